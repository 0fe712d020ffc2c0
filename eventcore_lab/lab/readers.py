"""What the readers beside the load were given, from the evidence in a run's spool: one row of `readers` for each.

delivered  how many times it was given an event
skipped    stored events that it was never given; NULL where the store was not read back
repeated   how many of those deliveries were of an event it had been given before
reordered  how many had a position that was not above the one delivered just before
lag_…_ns   from the end of the operation (or batch) that wrote the event (acknowledged, in the steady part) to its delivery;
           0 where the reader was first; order statistic ⌈pn⌉, NULL where it falls among those that were never delivered.
           Readers are on the run's own clock, so what a worker wrote whose clock is in doubt (schema.CLOCK_DOUBT) has no lag
late_ns    from the last acknowledgement of the load to the last event's delivery; 0 where the reader had kept up, NULL where
           a worker's clock is in doubt
"""

from __future__ import annotations

from pathlib import Path

import duckdb

from eventcore_lab.lab.evidence import IN_DOUBT
from eventcore_lab.schema import JOURNAL, Outcome, Phase

_FILES = {
    "followed": "followed-*.parquet",
    "stored": "stored*.parquet",
    "writes": "writes-*.parquet",
    "counts": "counts-clocks.parquet",
}

# An event id counts once: a store that keeps an event twice has not skipped it when the reader had it once.
_READERS = f"""
WITH facts AS (
    SELECT reader, nth, event_id, seen_ns, position,
           lag(position) OVER (PARTITION BY reader ORDER BY life, nth) AS before
    FROM followed),
deliveries AS (
    SELECT reader, count(*) AS delivered, count(*) - count(DISTINCT event_id) AS repeated,
           count(*) FILTER (position <= before) AS reordered, max(seen_ns) AS last_seen_ns
    FROM facts GROUP BY reader),
firsts AS (SELECT reader, event_id, min(seen_ns) AS seen_ns FROM followed GROUP BY reader, event_id),
missing AS (
    SELECT d.reader, count(*) FILTER (f.event_id IS NULL) AS skipped
    FROM deliveries AS d, (SELECT DISTINCT event_id FROM stored) AS s
    LEFT JOIN firsts AS f ON f.reader = d.reader AND f.event_id = s.event_id GROUP BY d.reader),
in_doubt AS ({IN_DOUBT}),
acknowledged AS (
    SELECT w.worker, w.event_id, s.phase, s.ended_ns FROM writes AS w
    JOIN samples AS s ON s.run_id = $run_id AND s.worker = w.worker AND s.operation = w.operation
    WHERE w.outcome = {int(Outcome.OK)} AND w.event_id IS NOT NULL AND s.outcome = {int(Outcome.OK)}
    UNION ALL  -- an append that is several operations' (those put together in batches) counts from its own end
    SELECT w.worker, w.event_id, CASE WHEN w.began_ns >= r.warmup_s * 1e9 THEN {int(Phase.STEADY)} ELSE {int(Phase.WARMUP)} END,
           w.ended_ns FROM writes AS w, runs AS r
    WHERE r.run_id = $run_id AND w.operation < 0 AND w.outcome = {int(Outcome.OK)} AND w.event_id IS NOT NULL),
lags AS (
    SELECT d.reader, CASE WHEN f.seen_ns IS NOT NULL THEN greatest(f.seen_ns - a.ended_ns, 0) END AS lag_ns,
           row_number() OVER (PARTITION BY d.reader ORDER BY f.seen_ns - a.ended_ns NULLS LAST) AS rank,
           count(*) OVER (PARTITION BY d.reader) AS n
    FROM deliveries AS d, (SELECT * FROM acknowledged ANTI JOIN in_doubt USING (worker) WHERE phase = {int(Phase.STEADY)}) AS a
    LEFT JOIN firsts AS f ON f.reader = d.reader AND f.event_id = a.event_id),
percentiles AS (
    SELECT reader,
           max(lag_ns) FILTER (rank = greatest(ceil(0.5 * n - 1e-9), 1)) AS lag_p50_ns,
           max(lag_ns) FILTER (rank = greatest(ceil(0.95 * n - 1e-9), 1)) AS lag_p95_ns,
           max(lag_ns) FILTER (rank = greatest(ceil(0.99 * n - 1e-9), 1)) AS lag_p99_ns,
           max(lag_ns) FILTER (rank = n) AS lag_max_ns
    FROM lags GROUP BY reader)
SELECT $run_id AS run_id, reader, delivered, CASE WHEN $has_stored THEN coalesce(skipped, 0) END AS skipped,
       repeated, reordered, lag_p50_ns, lag_p95_ns, lag_p99_ns, lag_max_ns,
       CASE WHEN NOT EXISTS (FROM in_doubt)
            THEN greatest(last_seen_ns - (SELECT max(ended_ns) FROM acknowledged), 0) END AS late_ns
FROM deliveries LEFT JOIN missing USING (reader) LEFT JOIN percentiles USING (reader)"""


def take_in(con: duckdb.DuckDBPyConnection, folder: Path, run_id: str) -> None:
    """Add the run's rows of `readers`; its `samples` must be there. A reader that was given nothing has no row."""
    found = {table: [str(path) for path in sorted(folder.glob(pattern))] for table, pattern in _FILES.items()}
    if not found["followed"]:
        return
    for table, paths in found.items():
        con.execute(f"CREATE OR REPLACE TEMP TABLE {table} AS {_rows(table, paths)}", [paths] if paths else [])
    parameters = {"run_id": run_id, "has_stored": bool(found["stored"])}
    con.execute(f"INSERT INTO readers BY NAME {_READERS}", parameters)
    for table in found:
        con.execute(f"DROP TABLE {table}")


def _rows(table: str, paths: list[str]) -> str:
    if paths:
        return "SELECT * FROM read_parquet(?, hive_partitioning = false)"
    return "SELECT " + ", ".join(f"NULL::{kind} AS {name}" for name, kind in JOURNAL[table].items()) + " WHERE false"
