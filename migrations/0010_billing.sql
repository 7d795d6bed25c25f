-- What organisations pay: their subscription, prepaid credit, what Stripe has told, and what it was told of usage.
CREATE TABLE subscription (
    org TEXT PRIMARY KEY REFERENCES org (id), plan TEXT NOT NULL, status TEXT NOT NULL, period_start BIGINT, period_end BIGINT,
    subscription TEXT, synced_at BIGINT NOT NULL
);
CREATE TABLE stripe_customer (
    org TEXT PRIMARY KEY REFERENCES org (id), customer TEXT NOT NULL UNIQUE
);
CREATE TABLE credit_grant (
    id TEXT PRIMARY KEY, org TEXT NOT NULL REFERENCES org (id), amount BIGINT NOT NULL, used BIGINT NOT NULL, note TEXT NOT NULL,
    created_by TEXT NOT NULL, created_at BIGINT NOT NULL, expires_at BIGINT, expired_at BIGINT
);
CREATE INDEX credit_grant_org ON credit_grant (org, id);
CREATE INDEX credit_grant_expires ON credit_grant (expires_at) WHERE expired_at IS NULL;
CREATE TABLE stripe_event (
    id TEXT PRIMARY KEY, kind TEXT NOT NULL, at BIGINT NOT NULL
);
CREATE TABLE metered (
    org TEXT NOT NULL, day TEXT NOT NULL, reported BIGINT NOT NULL, PRIMARY KEY (org, day)
);
