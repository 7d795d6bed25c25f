-- People, what they are in which organisation, and how they sign in. Secrets are keyed hashes.
CREATE TABLE person (
    id TEXT PRIMARY KEY, email TEXT NOT NULL UNIQUE, name TEXT NOT NULL, created_at BIGINT NOT NULL
);
CREATE TABLE identity (
    issuer TEXT NOT NULL, subject TEXT NOT NULL, person TEXT NOT NULL REFERENCES person (id), created_at BIGINT NOT NULL,
    PRIMARY KEY (issuer, subject)
);
CREATE TABLE member (
    org TEXT NOT NULL REFERENCES org (id), person TEXT NOT NULL REFERENCES person (id), role TEXT NOT NULL,
    created_at BIGINT NOT NULL, PRIMARY KEY (org, person)
);
CREATE INDEX member_person ON member (person);
CREATE TABLE invitation (
    id TEXT PRIMARY KEY, org TEXT NOT NULL REFERENCES org (id), email TEXT NOT NULL, role TEXT NOT NULL, digest BYTEA NOT NULL UNIQUE,
    created_by TEXT NOT NULL, created_at BIGINT NOT NULL, expires_at BIGINT NOT NULL, accepted_at BIGINT, revoked_at BIGINT
);
CREATE INDEX invitation_org ON invitation (org, id);
CREATE INDEX invitation_email ON invitation (email);
CREATE TABLE sign_in_link (
    digest BYTEA PRIMARY KEY, org TEXT NOT NULL, person TEXT NOT NULL, created_at BIGINT NOT NULL, expires_at BIGINT NOT NULL,
    used_at BIGINT
);
CREATE TABLE personal_access (
    id TEXT PRIMARY KEY, org TEXT NOT NULL, person TEXT NOT NULL, kind TEXT NOT NULL, digest BYTEA NOT NULL UNIQUE,
    created_at BIGINT NOT NULL, expires_at BIGINT NOT NULL, last_used_at BIGINT, changed_at BIGINT NOT NULL, revoked_at BIGINT
);
CREATE INDEX personal_access_person ON personal_access (org, person);
CREATE INDEX personal_access_changed ON personal_access (changed_at);
CREATE TABLE device_grant (
    device BYTEA PRIMARY KEY, code TEXT NOT NULL UNIQUE, created_at BIGINT NOT NULL, expires_at BIGINT NOT NULL,
    org TEXT, person TEXT, decision TEXT, polled_at BIGINT
);
