-- Tables and triggers of EventCore 2.0.1 on PostgreSQL, in our words: same names, columns, keys, triggers and error codes,
-- so that a database made by either can be used by the other.
--
-- What is worth knowing when reading its figures:
--   eventcore_events_stream_idx   is a second index on a prefix of the first: every insert pays for it, no query needs it.
--   eventcore_version_trigger     runs per row: one probe with a row lock, and the whole JSON of expected versions parsed,
--                                 changed and written back. n events over s streams cost n·s.
--   event_id                      is the global position, drawn by the client before its transaction commits.

CREATE TABLE eventcore_events (
    event_id       uuid PRIMARY KEY,
    stream_id      text NOT NULL,
    stream_version bigint NOT NULL DEFAULT 0,  -- the trigger says which
    event_type     text NOT NULL,
    event_data     jsonb NOT NULL,
    metadata       jsonb NOT NULL DEFAULT '{}',
    created_at     timestamptz NOT NULL DEFAULT now()
);
CREATE UNIQUE INDEX eventcore_events_stream_version_idx ON eventcore_events (stream_id, stream_version);
CREATE INDEX eventcore_events_stream_idx ON eventcore_events (stream_id);

CREATE FUNCTION eventcore_assign_stream_version() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    head bigint := coalesce((SELECT e.stream_version FROM eventcore_events e WHERE e.stream_id = NEW.stream_id
                             ORDER BY e.stream_version DESC LIMIT 1 FOR UPDATE), 0);
    expected jsonb := nullif(current_setting('eventcore.expected_versions', true), '')::jsonb;
BEGIN
    NEW.stream_version := head + 1;
    IF expected IS NOT NULL THEN
        IF (expected ->> NEW.stream_id)::bigint <> head THEN
            RAISE EXCEPTION 'version_conflict: stream "%" expected version %, actual %',
                NEW.stream_id, expected ->> NEW.stream_id, head USING ERRCODE = 'P0001';
        END IF;
        expected := jsonb_set(expected, ARRAY[NEW.stream_id], to_jsonb(head + 1));  -- for its next event in this append
        PERFORM set_config('eventcore.expected_versions', expected::text, true);
    END IF;
    RETURN NEW;
END $$;

CREATE FUNCTION eventcore_prevent_update() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'Events are immutable and cannot be updated' USING ERRCODE = 'P0002';
END $$;

CREATE FUNCTION eventcore_prevent_delete() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'Events are immutable and cannot be deleted' USING ERRCODE = 'P0002';
END $$;

CREATE TRIGGER eventcore_version_trigger BEFORE INSERT ON eventcore_events
    FOR EACH ROW EXECUTE FUNCTION eventcore_assign_stream_version();
CREATE TRIGGER eventcore_prevent_update_trigger BEFORE UPDATE ON eventcore_events
    FOR EACH ROW EXECUTE FUNCTION eventcore_prevent_update();
CREATE TRIGGER eventcore_prevent_delete_trigger BEFORE DELETE ON eventcore_events
    FOR EACH ROW EXECUTE FUNCTION eventcore_prevent_delete();

CREATE TABLE eventcore_subscription_versions (
    subscription_name text PRIMARY KEY,
    last_position     uuid NOT NULL,
    updated_at        timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE eventcore_command_state_snapshots (
    snapshot_id        text PRIMARY KEY,
    state              jsonb NOT NULL,
    stream_versions    jsonb NOT NULL CHECK (jsonb_typeof(stream_versions) = 'object'),
    replay_checkpoints jsonb NOT NULL DEFAULT '[]' CHECK (jsonb_typeof(replay_checkpoints) = 'array'),
    updated_at         timestamptz NOT NULL DEFAULT now()
);
