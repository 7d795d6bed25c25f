-- Data keys of what sessions have made, wrapped by a key-encryption key. `part` is '' for the organisation as a whole. A row that is
-- gone makes everything unreadable that was sealed with its key.
CREATE TABLE state_key (
    id TEXT PRIMARY KEY, org TEXT NOT NULL, part TEXT NOT NULL, kek TEXT NOT NULL, wrapped BYTEA NOT NULL, created_at BIGINT NOT NULL
);
CREATE UNIQUE INDEX state_key_part ON state_key (org, part);
CREATE INDEX state_key_kek ON state_key (kek);

-- What a session had made at a turn's end. `place`, `length`: where in the pack its root is; `packs`: all that it needs.
CREATE TABLE checkpoint (
    session TEXT NOT NULL, seq BIGINT NOT NULL, org TEXT NOT NULL, turn TEXT, state_key TEXT NOT NULL, pack TEXT NOT NULL,
    place BIGINT NOT NULL, length BIGINT NOT NULL, packs TEXT NOT NULL, files BIGINT NOT NULL, bytes BIGINT NOT NULL, at BIGINT NOT NULL,
    PRIMARY KEY (session, seq)
);
CREATE INDEX checkpoint_org ON checkpoint (org);
