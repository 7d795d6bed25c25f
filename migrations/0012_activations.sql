-- Which release was made active when, by whom. `below` is the activation that a rollback leads back to.
CREATE TABLE release_activation (
    project TEXT NOT NULL REFERENCES project (id), seq BIGINT NOT NULL, org TEXT NOT NULL, version BIGINT NOT NULL,
    kind TEXT NOT NULL, below BIGINT, actor TEXT NOT NULL, reason TEXT, at BIGINT NOT NULL, PRIMARY KEY (project, seq)
);
INSERT INTO release_activation (project, seq, org, version, kind, actor, at)
    SELECT id, 1, org, active_version, 'activate', 'system:karta', created_at FROM project WHERE active_version IS NOT NULL;
