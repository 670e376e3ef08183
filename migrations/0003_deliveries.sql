-- The outbox of notifications, and what each receiver was last told of an incident. Written in the transaction that keeps the incident, so
-- that nothing is told twice or forgotten between the two. Times are the wall clock in nanoseconds, but for `told.body`, which holds event
-- times (`firstfall_store::delivery::Told` as JSON).
CREATE TABLE deliveries(
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    receiver TEXT NOT NULL,
    incident TEXT NOT NULL,
    event TEXT NOT NULL,
    revision INTEGER NOT NULL,
    body TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    state TEXT NOT NULL CHECK(state IN ('pending', 'delivered', 'failed')),
    next_attempt_at INTEGER NOT NULL,
    give_up_at INTEGER NOT NULL,
    finished_at INTEGER,
    reason TEXT NOT NULL DEFAULT ''
) STRICT;
CREATE INDEX deliveries_by_receiver ON deliveries(receiver, state, number);
CREATE INDEX deliveries_by_incident ON deliveries(incident);
CREATE TABLE attempts(
    delivery INTEGER NOT NULL REFERENCES deliveries(number) ON DELETE CASCADE,
    attempt INTEGER NOT NULL,
    at INTEGER NOT NULL,
    took_ns INTEGER NOT NULL,
    status INTEGER,
    answer TEXT NOT NULL,
    PRIMARY KEY(delivery, attempt)
) STRICT;
CREATE TABLE told(incident TEXT NOT NULL, receiver TEXT NOT NULL, body TEXT NOT NULL, PRIMARY KEY(incident, receiver)) STRICT;
