-- Keys that sign session tokens: the private half sealed, the public half for everybody. Tokens are kept to be listed and revoked.
CREATE TABLE token_key (
    id TEXT PRIMARY KEY, public BYTEA NOT NULL, kek TEXT NOT NULL, wrapped BYTEA NOT NULL, sealed BYTEA NOT NULL, created_at BIGINT NOT NULL
);
CREATE TABLE session_token (
    id TEXT PRIMARY KEY, org TEXT NOT NULL, project TEXT NOT NULL, key TEXT NOT NULL, end_user TEXT NOT NULL, session TEXT,
    origins TEXT NOT NULL, created_at BIGINT NOT NULL, expires_at BIGINT NOT NULL, revoked_at BIGINT
);
CREATE INDEX session_token_org ON session_token (org, id);
CREATE INDEX session_token_key ON session_token (key);
CREATE INDEX session_token_expires ON session_token (expires_at);
