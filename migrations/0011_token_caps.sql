-- The session token that a call came with: tokens can have a cap of their own.
ALTER TABLE hold ADD COLUMN token TEXT;
