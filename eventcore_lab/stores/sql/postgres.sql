-- Schema and append functions of the `postgres` store: one round trip per append, in autocommit, whatever it writes.
--
-- Why each append goes  lock, check, xid, insert  and in that order:
--   lock    a transaction-scoped advisory lock per stream (shared for streams that are only read), taken in the order of
--           the lock keys, so that two appends never wait for each other in a circle, and a read-only participant
--           cannot change between the check and the commit.
--   check   in a later statement than the lock: under READ COMMITTED each statement of a VOLATILE plpgsql function takes
--           a new snapshot, so the check sees what the previous holder of the lock committed. A conflict is found before
--           any nextval and is returned as data: no gap, no aborted transaction, no line in the server's log.
--   xid     assigned before the first nextval: a reader that sees position q but not p < q can then take a transaction
--           id of its own as a fence, and knows p's fate once every transaction older than the fence has ended.
--   insert  positions are drawn under the stream's lock: order of versions and order of positions agree in each stream.

CREATE TABLE events (
    -- CACHE 1 (the default): a cached sequence would hand out old positions late and break the fence.
    position    bigint GENERATED ALWAYS AS IDENTITY,
    stream_id   text COLLATE "C" NOT NULL,
    version     bigint NOT NULL CHECK (version > 0),
    event_id    uuid NOT NULL,
    event_type  text COLLATE "C" NOT NULL,
    data        bytea NOT NULL,
    meta        bytea NOT NULL,
    recorded_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (stream_id, version),
    UNIQUE (position)
);

CREATE TABLE checkpoints (name text COLLATE "C" PRIMARY KEY, position numeric NOT NULL);
CREATE TABLE snapshots (key text COLLATE "C" PRIMARY KEY, versions jsonb NOT NULL, state bytea NOT NULL);

-- One stream. p_expected < 0: any version. Returns head = the version found, last_position = NULL on a conflict.
CREATE FUNCTION append_one(
    p_stream text, p_expected bigint, p_ids uuid[], p_types text[], p_data bytea[], p_meta bytea[],
    OUT head bigint, OUT last_position bigint
) LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended(p_stream, 0));
    SELECT coalesce(max(e.version), 0) INTO head FROM events e WHERE e.stream_id = p_stream;
    IF p_expected >= 0 AND p_expected <> head THEN
        RETURN;
    END IF;
    PERFORM pg_current_xact_id();
    IF array_length(p_ids, 1) = 1 THEN  -- the commonest append; unnest and its sort would cost a tenth of it
        INSERT INTO events (stream_id, version, event_id, event_type, data, meta)
        VALUES (p_stream, head + 1, p_ids[1], p_types[1], p_data[1], p_meta[1])
        RETURNING position INTO last_position;
    ELSE
        WITH inserted AS (
            INSERT INTO events (stream_id, version, event_id, event_type, data, meta)
            SELECT p_stream, head + n, id, ty, d, m
            FROM unnest(p_ids, p_types, p_data, p_meta) WITH ORDINALITY AS e(id, ty, d, m, n)
            ORDER BY n
            RETURNING position)
        SELECT max(position) INTO last_position FROM inserted;
    END IF;
END $$;

-- All streams or none. p_streams and p_expected: every participant once; p_writes: how many events each gets (0 = only
-- checked). p_slots and p_nth: per event, its stream's index and its place (1, 2, …) within that stream's events.
-- Returns heads = the versions found, last_position = NULL on a conflict.
CREATE FUNCTION append_all(
    p_streams text[], p_expected bigint[], p_writes int[],
    p_slots int[], p_nth bigint[], p_ids uuid[], p_types text[], p_data bytea[], p_meta bytea[],
    OUT heads bigint[], OUT last_position bigint
) LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    PERFORM CASE WHEN k.writes THEN pg_advisory_xact_lock(k.key) ELSE pg_advisory_xact_lock_shared(k.key) END
    FROM (SELECT hashtextextended(s, 0) AS key, bool_or(w > 0) AS writes
          FROM unnest(p_streams, p_writes) AS u(s, w) GROUP BY 1 ORDER BY 1) AS k;
    SELECT array_agg(coalesce((SELECT max(e.version) FROM events e WHERE e.stream_id = s), 0) ORDER BY i)
    INTO heads FROM unnest(p_streams) WITH ORDINALITY AS u(s, i);
    IF EXISTS (SELECT FROM unnest(p_expected, heads) AS u(x, h) WHERE x >= 0 AND x <> h) THEN
        RETURN;
    END IF;
    PERFORM pg_current_xact_id();
    WITH inserted AS (
        INSERT INTO events (stream_id, version, event_id, event_type, data, meta)
        SELECT p_streams[slot], heads[slot] + nth, id, ty, d, m
        FROM unnest(p_slots, p_nth, p_ids, p_types, p_data, p_meta) WITH ORDINALITY AS e(slot, nth, id, ty, d, m, n)
        ORDER BY n
        RETURNING position)
    SELECT coalesce(max(position), 0) INTO last_position FROM inserted;
END $$;

-- Independent appends, one stream each, no stream twice: each is done or refused by itself. Arrays as for append_all.
-- Returns heads = the versions found (a request with p_expected >= 0 that differs from its head was refused), positions
-- = those of the inserted events in the order given.
CREATE FUNCTION append_each(
    p_streams text[], p_expected bigint[],
    p_slots int[], p_nth bigint[], p_ids uuid[], p_types text[], p_data bytea[], p_meta bytea[],
    OUT heads bigint[], OUT positions bigint[]
) LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(k.key)
    FROM (SELECT DISTINCT hashtextextended(s, 0) AS key FROM unnest(p_streams) AS u(s) ORDER BY 1) AS k;
    SELECT array_agg(coalesce((SELECT max(e.version) FROM events e WHERE e.stream_id = s), 0) ORDER BY i)
    INTO heads FROM unnest(p_streams) WITH ORDINALITY AS u(s, i);
    PERFORM pg_current_xact_id();
    WITH inserted AS (
        INSERT INTO events (stream_id, version, event_id, event_type, data, meta)
        SELECT p_streams[slot], heads[slot] + nth, id, ty, d, m
        FROM unnest(p_slots, p_nth, p_ids, p_types, p_data, p_meta) WITH ORDINALITY AS e(slot, nth, id, ty, d, m, n)
        WHERE p_expected[slot] < 0 OR p_expected[slot] = heads[slot]
        ORDER BY n
        RETURNING position)
    SELECT array_agg(position ORDER BY position) INTO positions FROM inserted;
END $$;
