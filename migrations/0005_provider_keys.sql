-- Model providers' keys of organisations: sealed under a data key of their own, which is wrapped by a key-encryption key.
CREATE TABLE provider_key (
    id TEXT PRIMARY KEY, org TEXT NOT NULL, provider TEXT NOT NULL, last4 TEXT NOT NULL, kek TEXT NOT NULL, wrapped BYTEA NOT NULL,
    sealed BYTEA NOT NULL, created_by TEXT NOT NULL, created_at BIGINT NOT NULL, revoked_at BIGINT
);
CREATE UNIQUE INDEX provider_key_active ON provider_key (org, provider) WHERE revoked_at IS NULL;
CREATE INDEX provider_key_kek ON provider_key (kek);
