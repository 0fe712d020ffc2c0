"""The invariants of what was written and counted: V1 to V9, V13, V14 and V18. Those of what was read are in `invariants_read`.

No store that keeps its promises may be accused, however its answers interleave: an append counts as done at some time
between its beginning and its end, and one without an answer at any time after its beginning.
"""

from __future__ import annotations

from eventcore_lab.lab.invariant import Invariant
from eventcore_lab.schema import IN_SYSTEM

_EVENTS_AND_STORED = ("writes", "stored", "acked")

INVARIANTS_WRITTEN = (
    Invariant(
        "V1",
        "every operation has one outcome",
        "every operation offered ended in exactly one of ok, conflict, failed, unknown and dropped",
        ("counts", "samples"),
        "SELECT sum(value) FROM counts WHERE name = 'offered'",
        """SELECT format('{} operations were offered, {} have an outcome', offered::BIGINT, ended)
           FROM (SELECT (SELECT sum(value) FROM counts WHERE name = 'offered') AS offered,
                        (SELECT count(*) FROM samples WHERE outcome > 0) AS ended) WHERE offered <> ended
           UNION ALL
           SELECT format('operation {} has {} outcomes', operation, count(*))
           FROM samples GROUP BY operation HAVING count(*) > 1""",
    ),
    # Over a time that begins and ends with nothing under way, ∫N(t)dt = Σ of the times in the system (Little, 1961). The left
    # side is counted by the loop while it runs, the right side is what was recorded.
    Invariant(
        "V18",
        "the times of all operations add up (Little's law)",
        "the number of operations under way, summed up over time by the load, is the sum of the recorded times",
        ("counts", "samples"),
        f"""SELECT count(*) FROM samples
            WHERE outcome > 0 AND EXISTS (SELECT 1 FROM counts WHERE name = '{IN_SYSTEM}')""",
        f"""SELECT format('{{:.6f}} operation-seconds were counted, the samples have {{:.6f}}', counted / 1e9, recorded / 1e9)
            FROM (SELECT (SELECT sum(value) FROM counts WHERE name = '{IN_SYSTEM}') AS counted,
                         (SELECT coalesce(sum(ended_ns - began_ns), 0) FROM samples WHERE outcome > 0) AS recorded)
            WHERE counted <> recorded""",
    ),
    Invariant(
        "V2",
        "acknowledged appends are there",
        "every event of every acknowledged append is stored once, at the version acknowledged, as it was given",
        _EVENTS_AND_STORED,
        "SELECT count(*) FROM acked",
        """SELECT format('{} version {}: {}', a.stream, a.at_version,
                         CASE WHEN s.event_id IS NULL THEN 'acknowledged, but not there'
                              WHEN s.stream <> a.stream OR s.version <> a.at_version
                              THEN 'is at ' || s.stream || ' version ' || s.version
                              ELSE 'its content differs' END)
           FROM acked AS a LEFT JOIN stored AS s USING (event_id)
           WHERE s.event_id IS NULL OR s.stream <> a.stream OR s.version <> a.at_version OR s.digest <> a.digest""",
    ),
    Invariant(
        "V2",
        "refused appends left nothing",
        "no event of an append that conflicted or failed is stored",
        _EVENTS_AND_STORED,
        "SELECT count(*) FROM refused WHERE event_id IS NOT NULL",
        """SELECT format('{}: an event of a refused append is there', stream)
           FROM refused SEMI JOIN stored USING (event_id)
                ANTI JOIN (SELECT event_id FROM acked UNION ALL SELECT event_id FROM unanswered) USING (event_id)""",
    ),
    Invariant(
        "V2",
        "nothing else was stored",
        "every stored event belongs to an append of this run",
        ("writes", "stored"),
        "SELECT count(*) FROM stored",
        """SELECT format('{} version {}: nobody wrote it', stream, version) FROM stored ANTI JOIN writes USING (event_id)""",
    ),
    Invariant(
        "V2",
        "event ids are unique",
        "no event id is stored twice",
        ("stored",),
        "SELECT count(*) FROM stored",
        """SELECT format('{} is stored {} times', event_id::VARCHAR, count(*))
           FROM stored GROUP BY event_id HAVING count(*) > 1""",
    ),
    Invariant(
        "V3",
        "unknown appends are whole or absent",
        "of an append without an answer either every event is stored or none",
        ("writes", "stored"),
        "SELECT count(DISTINCT (worker, append)) FROM unanswered WHERE event_id IS NOT NULL",
        """SELECT format('{}: {} of {} events are there', any_value(stream), count(*) FILTER (there), count(*))
           FROM (SELECT *, event_id IN (SELECT event_id FROM stored) AS there FROM unanswered WHERE event_id IS NOT NULL)
           GROUP BY worker, append HAVING count(*) FILTER (there) NOT IN (0, count(*))""",
    ),
    Invariant(
        "V4",
        "versions are contiguous",
        "the versions of each stream are 1, 2, … without a gap or a repeat",
        ("stored",),
        "SELECT count(DISTINCT stream) FROM stored",
        """SELECT format('{}: {} events, {} versions from {} to {}', stream, count(*), count(DISTINCT version),
                         min(version), max(version))
           FROM stored GROUP BY stream
           HAVING count(*) <> max(version) OR min(version) <> 1 OR count(DISTINCT version) <> count(*)""",
    ),
    Invariant(
        "V5",
        "one winner per version",
        "no two acknowledged appends were given the same versions of a stream",
        ("acked",),
        "SELECT count(*) FROM acked",
        """SELECT format('{} version {} was acknowledged {} times', stream, at_version, count(*))
           FROM acked GROUP BY stream, at_version HAVING count(*) > 1""",
    ),
    Invariant(
        "V5",
        "appends are where they expected",
        "an acknowledged append that expected version n was given n + 1, n + 2, …; one that only checked a stream saw n",
        ("acked",),
        """SELECT (SELECT count(*) FROM acked WHERE ordinal = 1 AND expected >= 0)
                + (SELECT count(*) FROM participants WHERE expected >= 0)""",
        """SELECT format('{}: expected version {}, acknowledged behind version {}', stream, expected, version - n)
           FROM (SELECT stream, expected, version, n FROM acked WHERE ordinal = 1
                 UNION ALL SELECT stream, expected, version, 0 FROM participants)
           WHERE expected >= 0 AND version - n <> expected""",
    ),
    Invariant(
        "V6",
        "appends over several streams are whole",
        "of an append that writes several streams every event is stored or none",
        ("writes", "stored"),
        """SELECT count(*) FROM (SELECT 1 FROM writes WHERE event_id IS NOT NULL
                                 GROUP BY worker, append HAVING min(stream) <> max(stream))""",
        """SELECT format('{} … {}: {} of {} events are there', min(stream), max(stream), count(*) FILTER (there), count(*))
           FROM (SELECT *, event_id IN (SELECT event_id FROM stored) AS there
                 FROM writes WHERE event_id IS NOT NULL)
           GROUP BY worker, append
           HAVING min(stream) <> max(stream) AND count(*) FILTER (there) NOT IN (0, count(*))""",
    ),
    Invariant(
        "V7",
        "positions are unique and follow versions",
        "no two events share a position, and in each stream a later version has a later position",
        ("stored",),
        "SELECT count(*) FROM stored",
        """SELECT format('position {} is taken {} times', position::VARCHAR, count(*))
           FROM stored GROUP BY position HAVING count(*) > 1
           UNION ALL
           SELECT format('{} version {} lies before version {}', stream, version, before)
           FROM (SELECT stream, version, position,
                        lag(position) OVER (PARTITION BY stream ORDER BY version) AS position_before,
                        lag(version) OVER (PARTITION BY stream ORDER BY version) AS before FROM stored)
           WHERE position < position_before""",
    ),
    Invariant(
        "V7",
        "appends stay together",
        "the events of an append lie in each stream one behind the other, in the order given",
        ("placed",),
        "SELECT count(*) FROM placed WHERE events > 1",
        """SELECT format('{}: {} events of one append lie between versions {} and {}, not in the order given', stream,
                         events, first_version, last_version)
           FROM placed WHERE low <> high""",
    ),
    Invariant(
        "V8",
        "conflicts are honest",
        "a conflict names a stream of its append and a version other than expected that it had during the append",
        ("placed", "spans"),
        "SELECT count(*) FROM conflicts",
        """WITH latest AS (SELECT stream, max(version) AS version FROM stored GROUP BY stream)
           SELECT CASE
               WHEN c.stream IS NULL THEN 'a conflict names a stream that the append has not'
               WHEN expected < 0 THEN format('{}: a conflict where any version would do', c.stream)
               WHEN actual = expected THEN format('{}: a conflict at the version expected, {}', c.stream, actual)
               WHEN actual > coalesce(latest.version, 0)
               THEN format('{}: actual version {}, which it never had', c.stream, actual)
               WHEN s.began_ns > c.ended_ns THEN format('{}: actual version {}, before it had that', c.stream, actual)
               WHEN s.ended_ns < c.began_ns THEN format('{}: actual version {}, long gone', c.stream, actual)
               END AS text
           FROM conflicts AS c LEFT JOIN latest ON latest.stream = c.stream
                LEFT JOIN spans AS s ON s.stream = c.stream AND s.version = actual
           WHERE text IS NOT NULL""",
    ),
    Invariant(
        "V9",
        "streams only checked did not change",
        "a stream that an acknowledged append only checked had the version expected where the append stands in the store's "
        "order, and at some time during it",
        ("placed", "spans"),
        "SELECT count(*) FROM participants WHERE expected >= 0",
        # Positions say it where the store draws them under the locks that its check takes, as this protocol's order of
        # positions asks: who reads up to an append must find what it was decided on.
        """WITH checked AS (SELECT * FROM participants WHERE expected >= 0),
                stands AS (SELECT worker, append, max(last_position) AS position FROM placed GROUP BY ALL),
                placed_checks AS (SELECT c.stream, expected, position FROM checked AS c JOIN stands USING (worker, append)),
                theirs AS (SELECT stream, version, position FROM stored SEMI JOIN placed_checks USING (stream))
           SELECT format('{}: expected version {}, but it stands at {} before position {}', c.stream, expected,
                         coalesce(t.version, 0), c.position::VARCHAR)
           FROM placed_checks AS c ASOF LEFT JOIN theirs AS t ON t.stream = c.stream AND t.position < c.position
           WHERE coalesce(t.version, 0) <> expected
           UNION ALL
           SELECT format('{}: expected version {}, which it did not have during the append', stream, expected)
           FROM checked AS c JOIN spans AS s USING (stream)
           WHERE s.version = expected AND (s.began_ns > c.ended_ns OR s.ended_ns < c.began_ns)""",
    ),
    Invariant(
        "V13",
        "holes are accounted for",
        "no more positions are missing than appends without success can have drawn, and 32 for each crash of the server",
        ("writes", "stored", "counts"),
        "SELECT sum(value) FROM counts WHERE name = 'positions drawn'",
        """SELECT format('{} positions were drawn and {} events stored, but at most {} can be missing', drawn, kept, lost)
           FROM (SELECT (SELECT sum(value)::BIGINT FROM counts WHERE name = 'positions drawn') AS drawn,
                        (SELECT count(*) FROM stored) AS kept,
                        (SELECT coalesce(sum(value), 0)::BIGINT * 32 FROM counts WHERE name = 'server crashes')
                        + (SELECT count(*) FROM refused WHERE event_id IS NOT NULL)
                        + (SELECT count(*) FROM unanswered WHERE event_id IS NOT NULL) AS lost)
           WHERE drawn - kept > lost""",
    ),
    Invariant(
        "V14",
        "amounts are conserved",
        "what is stored sums up to what was acknowledged, and of every transfer both legs are there",
        _EVENTS_AND_STORED,
        "SELECT count(*) FROM acked WHERE amount IS NOT NULL",
        """WITH due AS (SELECT DISTINCT event_id, amount FROM acked WHERE amount IS NOT NULL
                        UNION SELECT event_id, amount FROM unanswered SEMI JOIN stored USING (event_id)
                        WHERE amount IS NOT NULL)
           SELECT format('{} is stored where {} was acknowledged', has::VARCHAR, wanted::VARCHAR)
           FROM (SELECT (SELECT coalesce(sum(amount), 0) FROM stored) AS has,
                        (SELECT coalesce(sum(amount), 0) FROM due) AS wanted) WHERE has <> wanted
           UNION ALL
           SELECT format('{} → {}: {} of {} legs of a transfer are there', min(stream), max(stream),
                         count(*) FILTER (there), count(*))
           FROM (SELECT *, event_id IN (SELECT event_id FROM stored) AS there FROM acked WHERE amount IS NOT NULL)
           GROUP BY worker, append
           HAVING min(stream) <> max(stream) AND sum(amount) = 0 AND count(*) FILTER (there) < count(*)""",
    ),
    Invariant(
        "V5",
        "executed commands are where their answers say",
        "the last event of a command on each stream is stored at the version the command was told, decided on all before it",
        ("executed", "stored"),
        "SELECT count(*) FROM executed WHERE event_id IS NOT NULL",
        """SELECT format('{}: a command was told version {} and its events end at {}', stream, t.version, h.version)
           FROM (SELECT worker, operation, stream, version FROM executed WHERE event_id IS NULL) AS t
           JOIN (SELECT e.worker, e.operation, s.stream, max(s.version) AS version
                 FROM executed AS e JOIN stored AS s USING (event_id) GROUP BY ALL) AS h USING (worker, operation, stream)
           WHERE t.version <> h.version""",
    ),
)
