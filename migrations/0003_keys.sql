-- When a key last changed (so that other nodes notice a revocation), who made it, and which key it replaces.
ALTER TABLE api_key ADD COLUMN changed_at BIGINT;
ALTER TABLE api_key ADD COLUMN created_by TEXT;
ALTER TABLE api_key ADD COLUMN replaces TEXT;
CREATE INDEX api_key_changed ON api_key (changed_at);
