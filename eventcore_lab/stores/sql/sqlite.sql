-- The `sqlite` store. A write transaction begins with BEGIN IMMEDIATE, so of all connections and processes one writes at
-- a time: versions are checked and positions drawn (the highest + 1) by the only writer there is. The order of positions
-- is therefore the order of commits, without a gap, and a reader that has seen position p has missed nothing before it.

CREATE TABLE events (
    position    INTEGER PRIMARY KEY,
    stream_id   TEXT NOT NULL,
    version     INTEGER NOT NULL CHECK (version > 0),
    event_id    BLOB NOT NULL,
    event_type  TEXT NOT NULL,
    -- A type here is a preference: without the checks, text would be kept as text and come back as something else.
    data        BLOB NOT NULL CHECK (typeof(data) = 'blob'),
    meta        BLOB NOT NULL CHECK (typeof(meta) = 'blob'),
    recorded_at INTEGER NOT NULL,  -- microseconds since 1970
    UNIQUE (stream_id, version)
);

-- A position is text: that of another store, packed into one number, may be larger than 64 bits.
CREATE TABLE checkpoints (name TEXT PRIMARY KEY, position TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE snapshots (key TEXT PRIMARY KEY, versions TEXT NOT NULL, state BLOB NOT NULL) WITHOUT ROWID;
