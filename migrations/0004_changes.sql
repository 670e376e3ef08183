-- Changes of services: told by somebody or their CI, or seen in telemetry. `time` is event time, `kept_at` the wall clock, both in
-- nanoseconds; the oldest go when there are too many. The same change told again is the same row.
CREATE TABLE changes(
    number INTEGER PRIMARY KEY,
    service TEXT NOT NULL,
    namespace TEXT NOT NULL,
    environment TEXT NOT NULL,
    kind TEXT NOT NULL,
    "from" TEXT NOT NULL,
    "to" TEXT NOT NULL,
    time INTEGER NOT NULL,
    url TEXT NOT NULL,
    told INTEGER NOT NULL,
    kept_at INTEGER NOT NULL,
    UNIQUE(service, namespace, environment, kind, "from", "to", time)
) STRICT;
CREATE INDEX changes_by_time ON changes(time);
