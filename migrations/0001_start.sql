-- What a store says of itself. Everything else in meta.db joins in later migrations.
CREATE TABLE about(key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
INSERT INTO about VALUES ('created', strftime('%Y-%m-%dT%H:%M:%fZ', 'now'));
