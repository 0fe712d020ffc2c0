-- Table of the `postgres:chapter` store. The chapter shows no schema, only the seven columns its statements name.
--
--   types       uuid, bigint and timestamptz as the names say; jsonb because the chapter's view asks for payload->>'…'.
--               (The chapter binds every value as text, which these columns refuse with 42804: we bind the right types.)
--   unique key  none: the chapter shows none and its code never reacts to a violation. `postgres:chapter_unique` has one on
--               (stream_id, version).
--   indexes     the two that its queries need so that they do not scan the table at every append, and one on id for what a
--               primary key costs (no key, since an event keeps the id it came with: the chapter makes a new one each try).

CREATE TABLE events (
    id          uuid NOT NULL,
    stream_id   text NOT NULL,
    version     bigint NOT NULL,
    event_type  text NOT NULL,
    payload     jsonb NOT NULL,
    metadata    jsonb NOT NULL,
    occurred_at timestamptz NOT NULL
);

CREATE INDEX events_by_id ON events (id);
CREATE INDEX events_by_stream ON events (stream_id, version);
CREATE INDEX events_by_time ON events (occurred_at);
