-- Secrets for a project's tools, sealed as providers' keys are; what an organisation demands of all its sessions.
CREATE TABLE tool_secret (
    org TEXT NOT NULL, project TEXT NOT NULL, name TEXT NOT NULL, kek TEXT NOT NULL, wrapped BYTEA NOT NULL, sealed BYTEA NOT NULL,
    created_by TEXT NOT NULL, created_at BIGINT NOT NULL, PRIMARY KEY (project, name)
);
CREATE INDEX tool_secret_kek ON tool_secret (kek);
CREATE TABLE org_policy (org TEXT PRIMARY KEY, body TEXT NOT NULL, updated_at BIGINT NOT NULL);
