-- Who changed what. A row holds the hash of the row before it in its organisation; nothing is ever changed or removed (see the
-- triggers, which differ by database and stand beside this file).

CREATE TABLE audit (
    org TEXT NOT NULL, seq BIGINT NOT NULL, id TEXT NOT NULL UNIQUE, at BIGINT NOT NULL, actor TEXT NOT NULL, action TEXT NOT NULL,
    resource TEXT NOT NULL, request TEXT, address TEXT, before BYTEA, after BYTEA, reason TEXT, hash BYTEA NOT NULL,
    PRIMARY KEY (org, seq)
);

-- The end of each chain; its update is what orders two writers.
CREATE TABLE audit_head (org TEXT PRIMARY KEY, seq BIGINT NOT NULL, hash BYTEA NOT NULL);

-- Ends of chains, signed now and then: whoever cuts a chain short has to forge one.
CREATE TABLE audit_seal (
    org TEXT NOT NULL, seq BIGINT NOT NULL, hash BYTEA NOT NULL, at BIGINT NOT NULL, signature BYTEA NOT NULL, PRIMARY KEY (org, seq)
);
