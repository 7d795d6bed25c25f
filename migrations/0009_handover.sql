-- What a data plane hands over: entries of the audit log, what happened, usage that the control plane was not there to take. Written in
-- the transaction of what it tells, taken by the control plane in the transaction of what it becomes.
CREATE TABLE handover (
    id TEXT PRIMARY KEY, org TEXT NOT NULL, kind TEXT NOT NULL, body TEXT NOT NULL, at BIGINT NOT NULL
);
CREATE INDEX handover_order ON handover (at, id);
