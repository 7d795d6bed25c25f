-- Portable: the same text for SQLite and PostgreSQL. Ids and JSON are TEXT, times BIGINT microseconds, flags BIGINT 0/1.

CREATE TABLE org (
    id TEXT PRIMARY KEY, slug TEXT NOT NULL UNIQUE, name TEXT NOT NULL, created_at BIGINT NOT NULL
);

CREATE TABLE api_key (
    id TEXT PRIMARY KEY, org TEXT NOT NULL REFERENCES org (id), name TEXT NOT NULL, prefix TEXT NOT NULL, last4 TEXT NOT NULL,
    digest BYTEA NOT NULL UNIQUE, scopes TEXT NOT NULL, project TEXT, created_at BIGINT NOT NULL,
    expires_at BIGINT, revoked_at BIGINT, last_used_at BIGINT
);
CREATE INDEX api_key_org ON api_key (org);

CREATE TABLE project (
    id TEXT PRIMARY KEY, org TEXT NOT NULL REFERENCES org (id), slug TEXT NOT NULL, name TEXT NOT NULL,
    active_version BIGINT, source TEXT, created_at BIGINT NOT NULL, UNIQUE (org, slug)
);

CREATE TABLE project_release (
    project TEXT NOT NULL REFERENCES project (id), version BIGINT NOT NULL, id TEXT NOT NULL UNIQUE, org TEXT NOT NULL,
    digest TEXT NOT NULL, harness TEXT NOT NULL, found TEXT NOT NULL, settings TEXT NOT NULL, state TEXT NOT NULL,
    created_at BIGINT NOT NULL, PRIMARY KEY (project, version), UNIQUE (project, digest)
);

CREATE TABLE session (
    id TEXT PRIMARY KEY, org TEXT NOT NULL, project TEXT NOT NULL, key TEXT, status TEXT NOT NULL, title TEXT,
    metadata TEXT NOT NULL, current_agent TEXT, participants TEXT NOT NULL, permission_mode TEXT NOT NULL,
    release_pin TEXT NOT NULL, pinned_version BIGINT, last_version BIGINT, isolation TEXT NOT NULL, end_user_id TEXT,
    parent_id TEXT, native TEXT, harness TEXT, head BIGINT NOT NULL, generation BIGINT NOT NULL,
    input_tokens BIGINT NOT NULL, output_tokens BIGINT NOT NULL, cache_read_tokens BIGINT NOT NULL,
    cache_write_tokens BIGINT NOT NULL, cost_micros BIGINT NOT NULL,
    created_at BIGINT NOT NULL, updated_at BIGINT NOT NULL, expires_at BIGINT
);
CREATE INDEX session_org ON session (org, id);
CREATE INDEX session_project ON session (project, id);

CREATE TABLE session_label (
    session TEXT NOT NULL, name TEXT NOT NULL, value TEXT NOT NULL, org TEXT NOT NULL, PRIMARY KEY (session, name)
);
CREATE INDEX session_label_value ON session_label (org, name, value);

CREATE TABLE turn (
    id TEXT PRIMARY KEY, org TEXT NOT NULL, session TEXT NOT NULL, key TEXT, release_version BIGINT, release_id TEXT,
    agent TEXT, participant TEXT, state TEXT NOT NULL, ended BIGINT NOT NULL, stop_reason TEXT, error TEXT,
    input_tokens BIGINT NOT NULL, output_tokens BIGINT NOT NULL, cache_read_tokens BIGINT NOT NULL,
    cache_write_tokens BIGINT NOT NULL, cost_micros BIGINT NOT NULL, models TEXT NOT NULL,
    created_at BIGINT NOT NULL, started_at BIGINT, first_text_at BIGINT, ended_at BIGINT
);
CREATE INDEX turn_session ON turn (session, id);
CREATE INDEX turn_unfinished ON turn (id) WHERE ended = 0;

CREATE TABLE journal (
    session TEXT NOT NULL, last BIGINT NOT NULL, first BIGINT NOT NULL, org TEXT NOT NULL, turn TEXT, flags BIGINT NOT NULL,
    frames BYTEA NOT NULL, raw BYTEA, at BIGINT NOT NULL, PRIMARY KEY (session, last)
);
CREATE INDEX journal_at ON journal (at);

CREATE TABLE input (
    id TEXT PRIMARY KEY, org TEXT NOT NULL, session TEXT NOT NULL, turn TEXT NOT NULL, body BYTEA NOT NULL,
    created_at BIGINT NOT NULL, decision TEXT, decided_by TEXT, decided_at BIGINT
);
CREATE INDEX input_open ON input (org, id) WHERE decided_at IS NULL;
CREATE INDEX input_session ON input (session);

CREATE TABLE reply (
    org TEXT NOT NULL, key TEXT NOT NULL, fingerprint BYTEA NOT NULL, status BIGINT, content_type TEXT, body BYTEA,
    session TEXT, turn TEXT, created_at BIGINT NOT NULL, expires_at BIGINT NOT NULL, PRIMARY KEY (org, key)
);
CREATE INDEX reply_expires ON reply (expires_at);

CREATE TABLE usage_event (
    id TEXT PRIMARY KEY, org TEXT NOT NULL, project TEXT NOT NULL, session TEXT NOT NULL, turn TEXT, key TEXT, end_user TEXT,
    release_version BIGINT, provider TEXT NOT NULL, model TEXT NOT NULL, input_tokens BIGINT NOT NULL,
    output_tokens BIGINT NOT NULL, cache_read_tokens BIGINT NOT NULL, cache_write_tokens BIGINT NOT NULL,
    cost_micros BIGINT NOT NULL, priced BIGINT NOT NULL, day TEXT NOT NULL, at BIGINT NOT NULL
);
CREATE INDEX usage_event_org ON usage_event (org, at);
CREATE INDEX usage_event_turn ON usage_event (turn);

-- What an organisation used in all, kept with each event in one transaction.
CREATE TABLE usage_total (
    org TEXT PRIMARY KEY, input_tokens BIGINT NOT NULL, output_tokens BIGINT NOT NULL, cache_read_tokens BIGINT NOT NULL,
    cache_write_tokens BIGINT NOT NULL, cost_micros BIGINT NOT NULL
);
