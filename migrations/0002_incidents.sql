-- Incidents as they stand, and each revision of them, so that a page can be replayed. Times are event times in nanoseconds; `body` is the
-- whole incident as JSON (`firstfall_store::incident::Incident`).
CREATE TABLE incidents(
    id TEXT PRIMARY KEY,
    opened_at INTEGER NOT NULL,
    onset INTEGER NOT NULL,
    closed_at INTEGER,
    revision INTEGER NOT NULL,
    body TEXT NOT NULL
) STRICT;
CREATE INDEX incidents_by_onset ON incidents(onset);
CREATE TABLE incident_revisions(
    id TEXT NOT NULL,
    revision INTEGER NOT NULL,
    at INTEGER NOT NULL,
    body TEXT NOT NULL,
    PRIMARY KEY(id, revision)
) STRICT;
