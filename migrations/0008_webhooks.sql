-- Where webhooks go, what happened (written with what it tells), and what became of telling each endpoint.
CREATE TABLE endpoint (
    id TEXT PRIMARY KEY, org TEXT NOT NULL REFERENCES org (id), url TEXT NOT NULL, events TEXT NOT NULL, description TEXT NOT NULL,
    created_by TEXT NOT NULL, created_at BIGINT NOT NULL, disabled_at BIGINT, disabled_why TEXT, failing_since BIGINT
);
CREATE INDEX endpoint_org ON endpoint (org);
CREATE TABLE endpoint_secret (
    endpoint TEXT NOT NULL REFERENCES endpoint (id), number BIGINT NOT NULL, org TEXT NOT NULL, kek TEXT NOT NULL,
    wrapped BYTEA NOT NULL, sealed BYTEA NOT NULL, created_at BIGINT NOT NULL, expires_at BIGINT, PRIMARY KEY (endpoint, number)
);
CREATE INDEX endpoint_secret_kek ON endpoint_secret (kek);
CREATE TABLE happening (
    id TEXT PRIMARY KEY, org TEXT NOT NULL, kind TEXT NOT NULL, subject TEXT NOT NULL, body TEXT NOT NULL, at BIGINT NOT NULL,
    spread BIGINT NOT NULL
);
CREATE INDEX happening_new ON happening (at, id) WHERE spread = 0;
CREATE INDEX happening_at ON happening (at);
CREATE TABLE delivery (
    id TEXT PRIMARY KEY, org TEXT NOT NULL, endpoint TEXT NOT NULL, happening TEXT NOT NULL, kind TEXT NOT NULL, subject TEXT NOT NULL,
    state TEXT NOT NULL, attempts BIGINT NOT NULL, happened_at BIGINT NOT NULL, next_at BIGINT, last_at BIGINT, status BIGINT,
    error TEXT, UNIQUE (endpoint, happening)
);
CREATE INDEX delivery_due ON delivery (next_at) WHERE state = 'pending';
CREATE INDEX delivery_order ON delivery (endpoint, subject, happened_at, happening) WHERE state = 'pending';
CREATE INDEX delivery_endpoint ON delivery (org, endpoint, id);
CREATE INDEX delivery_happening ON delivery (happening);
