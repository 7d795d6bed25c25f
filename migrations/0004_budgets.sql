-- Caps, what counts against them, and what is set aside for work that runs. One row for each level, subject and period; `span` is the
-- day or month that its sums are of, and they begin anew with the next one.

CREATE TABLE budget (
    org TEXT NOT NULL, level TEXT NOT NULL, subject TEXT NOT NULL, period TEXT NOT NULL, span TEXT NOT NULL,
    cap_input BIGINT, cap_output BIGINT, cap_total BIGINT, cap_cost BIGINT,
    settled_input BIGINT NOT NULL, settled_output BIGINT NOT NULL, settled_cost BIGINT NOT NULL,
    reserved_input BIGINT NOT NULL, reserved_output BIGINT NOT NULL, reserved_cost BIGINT NOT NULL,
    source TEXT NOT NULL, updated_at BIGINT NOT NULL, PRIMARY KEY (org, level, subject, period)
);

-- Set aside for one model call. `noted_…` is what the provider has said so far: a hold that is swept is settled to it.
CREATE TABLE hold (
    id TEXT PRIMARY KEY, org TEXT NOT NULL, project TEXT NOT NULL, key TEXT, end_user TEXT, session TEXT NOT NULL, turn TEXT,
    release_version BIGINT, provider TEXT NOT NULL, model TEXT NOT NULL, day TEXT NOT NULL,
    input BIGINT NOT NULL, output BIGINT NOT NULL, cost BIGINT NOT NULL,
    noted BIGINT NOT NULL, noted_input BIGINT NOT NULL, noted_output BIGINT NOT NULL, noted_cache_read BIGINT NOT NULL,
    noted_cache_write BIGINT NOT NULL, noted_cost BIGINT NOT NULL, noted_priced BIGINT NOT NULL,
    at BIGINT NOT NULL, expires_at BIGINT NOT NULL
);
CREATE INDEX hold_org ON hold (org);
CREATE INDEX hold_expires ON hold (expires_at);

CREATE INDEX usage_event_session ON usage_event (session);
