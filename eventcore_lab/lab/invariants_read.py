"""The invariants of what was read, by whom and when: joint reads (V6), followers (V10, V11), reads of streams (V12), and
the whole content at two times (V15, V16)."""

from __future__ import annotations

from eventcore_lab.lab.invariant import Invariant

_JOINT_STREAMS_MAX = 32
"""Appends and joint reads of more streams are not compared, for every stream of one is held against every other."""

_JOINT = f"""
    WITH wanted AS (SELECT DISTINCT stream FROM joint_reads),
         parts AS (SELECT worker, append, stream, last_version AS version FROM placed SEMI JOIN wanted USING (stream)
                   QUALIFY count(*) OVER (PARTITION BY worker, append) BETWEEN 2 AND {_JOINT_STREAMS_MAX}),
         together AS (
             SELECT a.stream AS one, b.stream AS other, a.version AS version,
                    max(b.version) OVER (PARTITION BY a.stream, b.stream ORDER BY a.version) AS other_version
             FROM parts AS a JOIN parts AS b USING (worker, append) WHERE a.stream <> b.stream),
         looks AS (SELECT * FROM joint_reads
                   QUALIFY count(*) OVER (PARTITION BY worker, read) BETWEEN 2 AND {_JOINT_STREAMS_MAX}),
         seen AS (SELECT worker, read, a.stream AS one, a.version AS version, b.stream AS other, b.version AS other_version
                  FROM looks AS a JOIN looks AS b USING (worker, read) WHERE a.stream <> b.stream),
         met AS (SELECT seen.*, together.version AS whole, together.other_version AS other_whole
                 FROM seen ASOF JOIN together ON seen.one = together.one AND seen.other = together.other
                                              AND seen.version >= together.version)"""

_READER_STARTS = """
    firsts AS (SELECT reader, life, min(nth) AS nth, arg_min(position, nth) AS position FROM followed GROUP BY ALL),
    starts AS (SELECT f.reader, coalesce(max(c.position), 0) AS start
               FROM (SELECT reader, min(life) AS life, arg_min(nth, life) AS nth FROM firsts GROUP BY reader) AS f
                    LEFT JOIN checkpointed AS c ON c.reader = f.reader AND c.life = f.life AND c.nth <= f.nth
               GROUP BY f.reader)"""
"""Where a reader began: at the checkpoint it saved before its first event, else before everything."""

# Lives and places in them as one number, so that they can be compared at once.
_AT = "life::BIGINT * 1099511627776 + nth"

_HEADS = """
    WITH heads AS (SELECT stream, ended_ns, max(version) OVER (PARTITION BY stream ORDER BY ended_ns) AS version
                   FROM acked WHERE ordinal = 1)"""
"""Up to which version each stream had certainly come at the end of each append."""

INVARIANTS_READ = (
    Invariant(
        "V6",
        "joint reads do not split appends",
        "who reads several streams at once sees all of an append or nothing of it",
        ("joint_reads", "placed"),
        f"{_JOINT} SELECT count(DISTINCT (worker, read)) FROM met",
        f"""{_JOINT} SELECT format('{{}} at version {{}} with {{}} at version {{}}, which was written together with {{}}', one,
                                   version, other, other_version, other_whole)
            FROM met WHERE other_version < other_whole""",
    ),
    Invariant(
        "V6",
        "reads do not split appends",
        "who reads a stream sees all of an append's events there or none",
        ("reads", "placed"),
        """SELECT count(*) FROM reads SEMI JOIN (SELECT stream FROM placed WHERE last_version > first_version) USING (stream)
           WHERE version > 0""",
        """WITH wide AS (SELECT stream, first_version, last_version FROM placed WHERE last_version > first_version)
           SELECT format('{} was read at version {}, in the midst of the append of versions {} to {}', stream, version,
                         first_version, last_version)
           FROM (SELECT DISTINCT r.stream, version, first_version, last_version
                 FROM reads AS r ASOF JOIN wide AS w ON w.stream = r.stream AND w.first_version <= r.version)
           WHERE version < last_version""",
    ),
    Invariant(
        "V10",
        "followers miss nothing",
        "a reader that follows the store is given every event between the first and the last it was given",
        ("followed", "stored", "writes", "acked"),
        "SELECT count(*) FROM followed",
        f"""WITH {_READER_STARTS},
                 reach AS (SELECT reader, max(position) AS last FROM followed GROUP BY reader),
                 due AS (SELECT reader, stream, version, event_id, s.position FROM stored AS s, starts JOIN reach USING (reader)
                         WHERE s.position > start AND s.position <= last),
                 missed AS (SELECT * FROM due ANTI JOIN followed USING (reader, event_id)),
                 passed AS (SELECT m.*, seen_ns FROM missed AS m
                            ASOF JOIN followed AS f ON f.reader = m.reader AND f.position > m.position)
            SELECT format('reader {{}} was never given {{}} version {{}}, position {{}}', reader, p.stream, p.version,
                          position::VARCHAR) ||
                   CASE WHEN a.ended_ns IS NULL THEN ''
                        WHEN a.ended_ns > seen_ns THEN format(', acknowledged {{:.3f}} ms after the reader had passed',
                                                              (a.ended_ns - seen_ns) / 1e6)
                        ELSE format(', acknowledged {{:.3f}} ms before the reader passed', (seen_ns - a.ended_ns) / 1e6) END
            FROM passed AS p LEFT JOIN (SELECT event_id, any_value(ended_ns) AS ended_ns FROM acked GROUP BY event_id) AS a
                 USING (event_id)""",
    ),
    Invariant(
        "V10",
        "followers are given nothing twice",
        "a reader that follows the store is given each event once, as long as it is not restarted",
        ("followed",),
        "SELECT count(*) FROM followed",
        """SELECT format('reader {} was given position {} {} times', reader, any_value(position)::VARCHAR, count(*))
           FROM followed GROUP BY reader, life, event_id HAVING count(*) > 1""",
    ),
    Invariant(
        "V10",
        "followers are given events in order",
        "a reader that follows the store is given higher and higher positions, as long as it is not restarted",
        ("followed",),
        "SELECT count(*) FROM followed",
        """SELECT format('reader {} was given position {} behind position {}', reader, position::VARCHAR, before::VARCHAR)
           FROM (SELECT reader, position, lag(position) OVER (PARTITION BY reader, life ORDER BY nth) AS before FROM followed)
           WHERE position <= before""",
    ),
    Invariant(
        "V10",
        "followers are given what is stored",
        "what a reader was given is stored, at the position it was given at",
        ("followed", "stored"),
        "SELECT count(*) FROM followed",
        """SELECT format('reader {} was given position {}, which is not there', reader, position::VARCHAR)
           FROM followed ANTI JOIN stored USING (event_id, position)""",
    ),
    Invariant(
        "V11",
        "checkpoints follow what was read",
        "a reader's checkpoints never go back, and are never ahead of what it was given",
        ("checkpointed", "followed"),
        "SELECT count(*) FROM checkpointed SEMI JOIN followed USING (reader)",
        f"""WITH {_READER_STARTS},
                 given AS (SELECT reader, {_AT} AS at, max(position) OVER (PARTITION BY reader ORDER BY {_AT}) AS reached
                           FROM followed),
                 saved AS (SELECT reader, {_AT} AS at, position, lag(position) OVER (
                               PARTITION BY reader ORDER BY {_AT}, position) AS before FROM checkpointed)
            SELECT format('reader {{}} saved position {{}} behind position {{}}', reader, position::VARCHAR, before::VARCHAR)
            FROM saved WHERE position < before
            UNION ALL
            SELECT format('reader {{}} saved position {{}} when it had been given up to {{}}', s.reader, s.position::VARCHAR,
                          greatest(coalesce(reached, 0), start)::VARCHAR)
            FROM saved AS s ASOF LEFT JOIN given AS g ON g.reader = s.reader AND g.at < s.at
                 JOIN starts ON starts.reader = s.reader
            WHERE s.position > greatest(coalesce(reached, 0), start)""",
    ),
    Invariant(
        "V11",
        "restarted followers go on at their checkpoint",
        "after a restart a reader is given what is behind its last checkpoint: nothing before it, nothing left out",
        ("followed", "stored"),
        "SELECT count(*) FROM (SELECT DISTINCT reader, life FROM followed) SEMI JOIN (SELECT reader FROM followed "
        "GROUP BY reader HAVING min(life) < max(life)) USING (reader) WHERE life > 0",
        f"""WITH {_READER_STARTS},
                 saved AS (SELECT reader, {_AT} AS at, position FROM checkpointed),
                 kept AS (SELECT f.reader, f.life, f.position, {_AT.replace("nth", "0").replace("life", "f.life")} AS at
                          FROM firsts AS f WHERE life > (SELECT min(life) FROM firsts AS g WHERE g.reader = f.reader)),
                 resumed AS (SELECT k.reader, k.life, k.position, coalesce(s.position, start) AS checkpoint
                             FROM kept AS k ASOF LEFT JOIN saved AS s ON s.reader = k.reader AND s.at < k.at
                                  JOIN starts ON starts.reader = k.reader)
            SELECT format('reader {{}} had saved {{}} and was given {{}} again', reader, checkpoint::VARCHAR, position::VARCHAR)
            FROM resumed WHERE position <= checkpoint
            UNION ALL
            SELECT format('reader {{}} went on at {{}} and left out {{}}', r.reader, r.position::VARCHAR, s.position::VARCHAR)
            FROM resumed AS r JOIN stored AS s ON s.position > r.checkpoint AND s.position < r.position
            WHERE NOT EXISTS (SELECT 1 FROM followed AS f WHERE f.reader = r.reader AND f.event_id = s.event_id
                              AND f.life < r.life)""",
    ),
    Invariant(
        "V12",
        "reads are how the stream begins",
        "what a read of a stream gave is the beginning of the stream as it is now",
        ("reads", "stored"),
        "SELECT count(*) FROM reads WHERE version > 0",
        """SELECT CASE WHEN r.version <> events THEN format('{} was said to be at version {}, and {} events were given',
                                                            r.stream, r.version, events)
                       WHEN s.event_id IS NULL THEN format('{} was read up to version {}, which is not there', r.stream,
                                                           r.version)
                       ELSE format('{} version {} was another event when it was read', r.stream, r.version) END
           FROM (SELECT DISTINCT stream, version, events, last_id FROM reads WHERE version > 0 OR events > 0) AS r
                LEFT JOIN stored AS s ON s.stream = r.stream AND s.version = r.version
           WHERE r.version <> events OR s.event_id IS DISTINCT FROM r.last_id""",
    ),
    Invariant(
        "V12",
        "reads see what was acknowledged before",
        "a read that begins after an append was acknowledged has its events",
        ("reads", "acked"),
        f"{_HEADS} SELECT count(*) FROM reads AS r ASOF JOIN heads AS h ON h.stream = r.stream AND h.ended_ns < r.began_ns",
        _HEADS
        + """
           SELECT format('{} was read at version {}, version {} had been acknowledged {:.3f} ms before', r.stream, r.version,
                         h.version, (r.began_ns - h.ended_ns) / 1e6)
           FROM reads AS r ASOF JOIN heads AS h ON h.stream = r.stream AND h.ended_ns < r.began_ns
           WHERE r.version < h.version""",
    ),
    Invariant(
        "V12",
        "reads never go back",
        "a read that begins after another of the same stream has ended sees at least as much",
        ("reads",),
        "SELECT count(*) FROM reads SEMI JOIN (SELECT stream FROM reads WHERE version > 0 GROUP BY stream HAVING count(*) > 1) "
        "USING (stream)",
        """WITH seen AS (SELECT stream, ended_ns, max(version) OVER (PARTITION BY stream ORDER BY ended_ns) AS version
                         FROM reads)
           SELECT format('{} was read at version {} after version {} had been read', r.stream, r.version, s.version)
           FROM reads AS r ASOF JOIN seen AS s ON s.stream = r.stream AND s.ended_ns < r.began_ns
           WHERE r.version < s.version""",
    ),
    Invariant(
        "V15",
        "acknowledged appends survive a restart",
        "after a restart of the server every event of every acknowledged append is still there, as it was given",
        ("writes", "restarted", "acked"),
        "SELECT count(*) FROM acked",
        """SELECT format('{} version {}: {}', a.stream, a.at_version,
                         CASE WHEN r.event_id IS NULL THEN 'acknowledged, but not there after the restart'
                              ELSE 'differs after the restart' END)
           FROM acked AS a LEFT JOIN restarted AS r USING (event_id)
           WHERE r.event_id IS NULL OR r.stream <> a.stream OR r.version <> a.at_version OR r.digest <> a.digest""",
    ),
    Invariant(
        "V15",
        "a restart changes nothing",
        "the store holds the same events at the same places before and after a restart of the server",
        ("stored", "restarted"),
        "SELECT count(*) FROM stored",
        """SELECT format('{} version {} is not as it was after the restart', coalesce(s.stream, r.stream),
                         coalesce(s.version, r.version))
           FROM stored AS s FULL JOIN restarted AS r ON s.event_id = r.event_id AND s.position = r.position
           WHERE s.event_id IS NULL OR r.event_id IS NULL
                 OR (s.stream, s.version, s.digest) <> (r.stream, r.version, r.digest)""",
    ),
    Invariant(
        "V16",
        "what is stored does not change",
        "the digest over the events up to a position is the same whenever it is taken",
        ("prefixes",),
        "SELECT count(*) FROM (SELECT 1 FROM prefixes WHERE events > 0 GROUP BY position HAVING count(*) > 1)",
        """SELECT format('the {} events up to position {} are not what they were', max(events), position::VARCHAR)
           FROM prefixes GROUP BY position
           HAVING max(events) > 0 AND (min(events) <> max(events) OR min(digest) <> max(digest))""",
    ),
)
