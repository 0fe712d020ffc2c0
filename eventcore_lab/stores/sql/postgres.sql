-- Schema and append functions of the `postgres` store: one round trip per append, in autocommit, whatever it writes.
--
-- Why each append goes  lock, check, xid, insert  and in that order:
--   lock    a transaction-scoped advisory lock per stream (shared for streams that are only read), taken in the order of
--           the streams' names, byte by byte, so that two appends never wait for each other in a circle, and a read-only
--           participant cannot change between the check and the commit.
--   check   in a later statement than the lock: under READ COMMITTED each statement of a VOLATILE plpgsql function takes
--           a new snapshot, so the check sees what the previous holder of the lock committed. A conflict is found before
--           any nextval and is returned as data: no gap, no aborted transaction, no line in the server's log.
--   xid     assigned before the first nextval: a reader that sees position q but not p < q can then take a transaction
--           id of its own as a fence, and knows p's fate once every transaction older than the fence has ended.
--   insert  positions are drawn under the stream's lock: order of versions and order of positions agree in each stream.
--
-- The lines that say  gate, xid  and  hold  are where a variant puts something in or takes it out (variants.py).

CREATE TABLE events (
    -- CACHE 1 (the default): a cached sequence would hand out old positions late and break the fence.
    position    bigint NOT NULL GENERATED ALWAYS AS IDENTITY,
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

-- One event onto one stream at an exact version: the commonest append, and the reason for a function of its own. One
-- scalar comes back instead of a row, arrays need not be taken apart, and every expression but two statements is a simple
-- one, which plpgsql evaluates without an executor. Returns the position, or -1 - head when the stream is elsewhere.
CREATE FUNCTION append_event(
    p_stream text, p_expected bigint, p_id uuid, p_type text, p_data bytea, p_meta bytea
) RETURNS bigint LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    head bigint;
    new_position bigint;
BEGIN
    -- gate
    IF pg_advisory_xact_lock(hashtextextended(p_stream, 0)) IS NULL THEN END IF;
    head := coalesce((SELECT e.version FROM events e WHERE e.stream_id = p_stream ORDER BY e.version DESC LIMIT 1), 0);
    IF p_expected <> head THEN
        RETURN -1 - head;
    END IF;
    IF pg_current_xact_id() IS NULL THEN END IF;  -- xid
    INSERT INTO events (stream_id, version, event_id, event_type, data, meta)
    VALUES (p_stream, head + 1, p_id, p_type, p_data, p_meta)
    RETURNING position INTO new_position;
    -- hold
    RETURN new_position;
END $$;

-- One stream. p_expected < 0: any version. Returns head = the version found, last_position = NULL on a conflict.
CREATE FUNCTION append_one(
    p_stream text, p_expected bigint, p_ids uuid[], p_types text[], p_data bytea[], p_meta bytea[],
    OUT head bigint, OUT last_position bigint
) LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    -- gate
    PERFORM pg_advisory_xact_lock(hashtextextended(p_stream, 0));
    SELECT coalesce(max(e.version), 0) INTO head FROM events e WHERE e.stream_id = p_stream;
    IF p_expected >= 0 AND p_expected <> head THEN
        RETURN;
    END IF;
    IF pg_current_xact_id() IS NULL THEN END IF;  -- xid
    WITH inserted AS (
        INSERT INTO events (stream_id, version, event_id, event_type, data, meta)
        SELECT p_stream, head + n, id, ty, d, m
        FROM unnest(p_ids, p_types, p_data, p_meta) WITH ORDINALITY AS e(id, ty, d, m, n)
        ORDER BY n
        RETURNING position)
    SELECT max(position) INTO last_position FROM inserted;
    -- hold
END $$;

-- A few events on several streams, all or nothing: loops, for which a plan over arrays would cost more than they do. p_turns:
-- the participants' indices in the order of their streams' names. Then arrays per participant, and per event in the
-- participants' order, which is that of the positions too. Returns heads = the versions found, last_position = NULL on a
-- conflict.
CREATE FUNCTION append_few(
    p_turns int[], p_streams text[], p_expected bigint[], p_writes int[],
    p_ids uuid[], p_types text[], p_data bytea[], p_meta bytea[],
    OUT heads bigint[], OUT last_position bigint
) LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    event int := 0;
    refused boolean := false;
    turn int;
BEGIN
    -- gate
    FOREACH turn IN ARRAY p_turns LOOP
        IF p_writes[turn] > 0 THEN
            IF pg_advisory_xact_lock(hashtextextended(p_streams[turn], 0)) IS NULL THEN END IF;
        ELSE
            IF pg_advisory_xact_lock_shared(hashtextextended(p_streams[turn], 0)) IS NULL THEN END IF;
        END IF;
    END LOOP;
    FOR slot IN 1 .. cardinality(p_streams) LOOP
        heads[slot] := coalesce((SELECT e.version FROM events e WHERE e.stream_id = p_streams[slot]
                                 ORDER BY e.version DESC LIMIT 1), 0);
        refused := refused OR p_expected[slot] >= 0 AND p_expected[slot] <> heads[slot];
    END LOOP;
    IF refused THEN
        RETURN;
    END IF;
    IF pg_current_xact_id() IS NULL THEN END IF;  -- xid
    last_position := 0;
    FOR slot IN 1 .. cardinality(p_streams) LOOP
        FOR nth IN 1 .. p_writes[slot] LOOP
            event := event + 1;
            INSERT INTO events (stream_id, version, event_id, event_type, data, meta)
            VALUES (p_streams[slot], heads[slot] + nth, p_ids[event], p_types[event], p_data[event], p_meta[event])
            RETURNING position INTO last_position;
        END LOOP;
    END LOOP;
    -- hold
END $$;

-- Independent appends ("requests") over any number of streams each, no stream written by two of them: each is done or
-- refused by itself. Per participant: p_requests (which request it belongs to, ascending), p_streams, p_expected, p_writes
-- (how many events it gets, 0 = only checked). Per event: p_slots and p_nth, its participant's index and its place (1, 2, …)
-- within that participant's events, and its columns. Returns heads = the versions found, per participant (a request with
-- an expectation that differs from its head was refused), positions = those of the inserted events in the order given.
CREATE FUNCTION append_each(
    p_requests int[], p_streams text[], p_expected bigint[], p_writes int[],
    p_slots int[], p_nth int[], p_ids uuid[], p_types text[], p_data bytea[], p_meta bytea[],
    OUT heads bigint[], OUT positions bigint[]
) LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    refused int[];
BEGIN
    -- gate
    PERFORM CASE WHEN u.writes THEN pg_advisory_xact_lock(hashtextextended(u.s, 0))
                 ELSE pg_advisory_xact_lock_shared(hashtextextended(u.s, 0)) END
    FROM (SELECT s, bool_or(w > 0) AS writes FROM unnest(p_streams, p_writes) AS p(s, w)
          GROUP BY s ORDER BY s COLLATE "C") AS u;
    SELECT array_agg(coalesce((SELECT e.version FROM events e WHERE e.stream_id = s ORDER BY e.version DESC LIMIT 1), 0)
                     ORDER BY i)
    INTO heads FROM unnest(p_streams) WITH ORDINALITY AS u(s, i);
    SELECT coalesce(array_agg(r), '{}') INTO refused
    FROM unnest(p_requests, p_expected, heads) AS u(r, x, h) WHERE x >= 0 AND x <> h;
    IF pg_current_xact_id() IS NULL THEN END IF;  -- xid
    WITH inserted AS (
        INSERT INTO events (stream_id, version, event_id, event_type, data, meta)
        SELECT p_streams[slot], heads[slot] + nth, id, ty, d, m
        FROM unnest(p_slots, p_nth, p_ids, p_types, p_data, p_meta) WITH ORDINALITY AS e(slot, nth, id, ty, d, m, n)
        WHERE p_requests[slot] <> ALL (refused)
        ORDER BY n
        RETURNING position)
    SELECT array_agg(position ORDER BY position) INTO positions FROM inserted;
    -- hold
END $$;

-- The same for requests of one event each on a stream each, no stream twice: what group commit is mostly made of. Streams
-- in the order of their names. Nothing is sorted here: rows come out of unnest in the order of its arrays.
CREATE FUNCTION append_ones(
    p_streams text[], p_expected bigint[], p_ids uuid[], p_types text[], p_data bytea[], p_meta bytea[],
    OUT heads bigint[], OUT positions bigint[]
) LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    -- gate
    PERFORM pg_advisory_xact_lock(hashtextextended(s, 0)) FROM unnest(p_streams) AS p(s);
    SELECT array_agg(coalesce((SELECT e.version FROM events e WHERE e.stream_id = s ORDER BY e.version DESC LIMIT 1), 0))
    INTO heads FROM unnest(p_streams) AS p(s);
    IF pg_current_xact_id() IS NULL THEN END IF;  -- xid
    WITH inserted AS (
        INSERT INTO events (stream_id, version, event_id, event_type, data, meta)
        SELECT s, head + 1, id, ty, d, m
        FROM unnest(p_streams, p_expected, heads, p_ids, p_types, p_data, p_meta) AS e(s, x, head, id, ty, d, m)
        WHERE x < 0 OR x = head
        RETURNING position)
    SELECT array_agg(position) INTO positions FROM inserted;
    -- hold
END $$;

-- The same for requests that share streams: they take effect one after the other. Costs twice as much for each.
CREATE FUNCTION append_in_turn(
    p_requests int[], p_streams text[], p_expected bigint[], p_writes int[],
    p_slots int[], p_nth int[], p_ids uuid[], p_types text[], p_data bytea[], p_meta bytea[],
    OUT heads bigint[], OUT positions bigint[]
) LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    first int := 1;             -- participants first … last are those of one request
    last int;
    slot int;
    event int := 0;
    head bigint;
    refused boolean;
    new_position bigint;
BEGIN
    -- gate
    PERFORM CASE WHEN u.writes THEN pg_advisory_xact_lock(hashtextextended(u.s, 0))
                 ELSE pg_advisory_xact_lock_shared(hashtextextended(u.s, 0)) END
    FROM (SELECT s, bool_or(w > 0) AS writes FROM unnest(p_streams, p_writes) AS p(s, w)
          GROUP BY s ORDER BY s COLLATE "C") AS u;
    IF pg_current_xact_id() IS NULL THEN END IF;  -- xid
    WHILE first <= cardinality(p_streams) LOOP
        refused := false;
        last := first - 1;
        WHILE p_requests[last + 1] = p_requests[first] LOOP
            last := last + 1;
            head := coalesce((SELECT e.version FROM events e WHERE e.stream_id = p_streams[last]
                              ORDER BY e.version DESC LIMIT 1), 0);
            heads[last] := head;
            refused := refused OR p_expected[last] >= 0 AND p_expected[last] <> head;
        END LOOP;
        FOR slot IN first .. last LOOP
            FOR nth IN 1 .. p_writes[slot] LOOP
                event := event + 1;
                IF NOT refused THEN
                    INSERT INTO events (stream_id, version, event_id, event_type, data, meta)
                    VALUES (p_streams[slot], heads[slot] + nth, p_ids[event], p_types[event], p_data[event], p_meta[event])
                    RETURNING position INTO new_position;
                    positions := positions || new_position;
                END IF;
            END LOOP;
        END LOOP;
        first := last + 1;
    END LOOP;
    -- hold
END $$;
