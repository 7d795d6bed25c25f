-- What a release records of how it was made; what a project shows beside its active release; previews, which are projects of their
-- own that show a release of their parent; what builds print.
ALTER TABLE project_release ADD COLUMN files TEXT;
ALTER TABLE project_release ADD COLUMN built TEXT;
ALTER TABLE project_release ADD COLUMN commit_id TEXT;
ALTER TABLE project_release ADD COLUMN message TEXT;
ALTER TABLE project_release ADD COLUMN actor TEXT NOT NULL DEFAULT 'system:karta';
ALTER TABLE project_release ADD COLUMN bytes BIGINT NOT NULL DEFAULT 0;
ALTER TABLE project_release ADD COLUMN file_count BIGINT NOT NULL DEFAULT 0;
ALTER TABLE project_release ADD COLUMN preview TEXT;
ALTER TABLE project_release ADD COLUMN error TEXT;

ALTER TABLE project ADD COLUMN canary_version BIGINT;
ALTER TABLE project ADD COLUMN canary_percent BIGINT;
ALTER TABLE project ADD COLUMN canary_since BIGINT;
ALTER TABLE project ADD COLUMN parent TEXT;
ALTER TABLE project ADD COLUMN expires_at BIGINT;
CREATE INDEX project_parent ON project (parent) WHERE parent IS NOT NULL;

CREATE TABLE build_line (
    project TEXT NOT NULL REFERENCES project (id), version BIGINT NOT NULL, seq BIGINT NOT NULL, org TEXT NOT NULL, text TEXT NOT NULL,
    at BIGINT NOT NULL, PRIMARY KEY (project, version, seq)
);
CREATE INDEX build_line_at ON build_line (project, at);
CREATE INDEX turn_ended ON turn (org, ended_at) WHERE ended = 1;

-- In which pack of the blob store a content of the project's releases lies, and which release's setup made what for which inputs.
CREATE TABLE content (
    project TEXT NOT NULL REFERENCES project (id), hash TEXT NOT NULL, org TEXT NOT NULL, pack TEXT NOT NULL, PRIMARY KEY (project, hash)
);
CREATE INDEX content_pack ON content (project, pack);
CREATE TABLE layer (
    project TEXT NOT NULL REFERENCES project (id), key TEXT NOT NULL, org TEXT NOT NULL, version BIGINT NOT NULL, PRIMARY KEY (project, key)
);
