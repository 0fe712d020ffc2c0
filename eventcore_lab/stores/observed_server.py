"""What a PostgreSQL server tells of itself, as gauges of the source `server`: connections, what they wait for, what is
written.

Only statistics are read, never a table. What differs between PostgreSQL 14 and 18 is looked up, not known by version; what
the role may not see (the connections of others are hidden from one that is not in pg_read_all_stats) is left out.
"""

from __future__ import annotations

from typing import Any

import msgspec

from eventcore_lab.clock import NS_PER_S, now_ns

APPLICATION_NAME = "eventcore_lab monitor"
"""By it our own connections are known, and left out."""

WAITS_SHOWN, WAITS_NAMED = 12, 40
"""Of one look the most frequent wait events are named, and over all looks no more names than these; the rest is `other`."""

Gauges = dict[str, float]

# One row. A row of somebody else is without state where the role may not see it. A backend's xid is that of a transaction that
# has written something: readers in a safe order wait for the oldest of these, also for one that was prepared and forgotten.
# Where xids are hidden, the locks show them: every such transaction holds one on its own, and those anybody may see.
ACTIVITY = f"""WITH a AS MATERIALIZED (
    SELECT state, wait_event_type, wait_event, xact_start, backend_xid, backend_type,
        datid = (SELECT oid FROM pg_database WHERE datname = current_database()) AS is_here,
        coalesce(backend_type = 'client backend', usesysid IS NOT NULL AND datid IS NOT NULL) AS is_client
    FROM pg_stat_activity
    WHERE pid <> pg_backend_pid() AND application_name IS DISTINCT FROM '{APPLICATION_NAME}'),
here AS (SELECT * FROM a WHERE is_client AND is_here),
ages AS (
    SELECT min(xact_start) FILTER (WHERE backend_type IS DISTINCT FROM 'walsender') AS any_began,
        least(min(xact_start) FILTER (WHERE backend_xid IS NOT NULL), (SELECT min(prepared) FROM pg_prepared_xacts)) AS began
    FROM a)
SELECT (SELECT count(*) FROM here WHERE state = 'active') AS "connections.active",
    (SELECT count(*) FROM here WHERE state = 'idle') AS "connections.idle",
    (SELECT count(*) FROM here WHERE state LIKE 'idle in transaction%') AS "connections.idle_in_transaction",
    (SELECT count(*) FROM here WHERE state NOT IN ('active', 'idle') AND state NOT LIKE 'idle in transaction%')
        AS "connections.other",
    (SELECT count(*) FROM here WHERE state IS NULL) AS "connections.hidden",
    (SELECT count(*) + 1 FROM a WHERE is_client) / current_setting('max_connections')::float8 AS connections_share,
    (SELECT count(*) FROM here WHERE state = 'active' AND wait_event IS NULL) AS active_not_waiting,
    (SELECT count(*) FROM here WHERE wait_event_type = 'Lock') AS locks_waited_for,
    (SELECT count(*) FROM pg_prepared_xacts) AS prepared_transactions,
    coalesce(extract(epoch FROM clock_timestamp() - any_began), 0)::float8 AS oldest_transaction_s,
    coalesce(extract(epoch FROM clock_timestamp() - began), 0)::float8 AS oldest_writing_transaction_s,
    is_partial, CASE WHEN is_partial THEN (
        SELECT transactionid::text::bigint FROM pg_locks WHERE locktype = 'transactionid' AND mode = 'ExclusiveLock'
        ORDER BY age(transactionid) DESC LIMIT 1) END AS oldest_xid,
    (SELECT json_object_agg(event, n)::text FROM (
        SELECT wait_event_type || ':' || wait_event AS event, count(*) AS n FROM here
        WHERE state = 'active' AND wait_event IS NOT NULL GROUP BY 1) AS w) AS waits
FROM ages, (SELECT EXISTS (SELECT FROM a WHERE is_client AND state IS NULL) AS is_partial) AS partial"""

_COLUMNS = """SELECT relname::text || '.' || attname FROM pg_attribute JOIN pg_class c ON c.oid = attrelid
    WHERE relnamespace = 'pg_catalog'::regnamespace AND attnum > 0
    AND relname IN ('pg_stat_wal', 'pg_stat_io', 'pg_stat_checkpointer', 'pg_stat_bgwriter', 'pg_stat_database')"""

_COUNTS_SINCE = "SELECT stats_reset FROM pg_catalog.pg_stat_bgwriter"

_COUNTERS = {
    "transactions_committed_total": "pg_stat_database.xact_commit",
    "transactions_rolled_back_total": "pg_stat_database.xact_rollback",
    "rows_inserted_total": "pg_stat_database.tup_inserted",
    "rows_updated_total": "pg_stat_database.tup_updated",
    "rows_deleted_total": "pg_stat_database.tup_deleted",
    "blocks_read_total": "pg_stat_database.blks_read",
    "blocks_hit_total": "pg_stat_database.blks_hit",
    "temp_bytes_total": "pg_stat_database.temp_bytes",
    "deadlocks_total": "pg_stat_database.deadlocks",
    "wal_bytes": "pg_stat_wal.wal_bytes",
    "wal_full_pages_total": "pg_stat_wal.wal_fpi",
    "wal_buffers_full_total": "pg_stat_wal.wal_buffers_full",
    "checkpoints_timed_total": "pg_stat_checkpointer.num_timed",  # from PostgreSQL 17 on
    "checkpoints_requested_total": "pg_stat_checkpointer.num_requested",
    "io_reads_total": "pg_stat_io.reads",  # from 16 on, a sum over kinds of backends
    "io_writes_total": "pg_stat_io.writes",
    "io_fsyncs_total": "pg_stat_io.fsyncs",
}
_UNTIL_16 = {
    "checkpoints_timed_total": "pg_stat_bgwriter.checkpoints_timed",
    "checkpoints_requested_total": "pg_stat_bgwriter.checkpoints_req",
}
# How far the replica that is furthest behind has replayed; on a replica, how much of what it received it has not replayed.
_REPLICATION = """(SELECT count(*)::float8 AS replicas, CASE WHEN pg_is_in_recovery()
        THEN pg_wal_lsn_diff(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn())
        ELSE max(pg_wal_lsn_diff(CASE WHEN NOT pg_is_in_recovery() THEN pg_current_wal_lsn() END, replay_lsn))
    END::float8 AS lag FROM pg_stat_replication) AS replication"""
_SIZE = "SELECT pg_database_size(current_database())::float8"


class Server:
    """The three things to ask a server, and what must be remembered from one look to the next."""

    def __init__(self) -> None:
        self._counters = ""
        self._waits_known: dict[str, None] = {}
        self._oldest: tuple[int | None, int] = (None, 0)
        self._counts_since: Any = None
        self.crashes = 0
        self.oldest_writing_s = 0.0
        """Of the last look: the age of the oldest transaction that has written something."""

    async def learn(self, raw: Any) -> None:
        """Find out what this server can be asked, and, by a new connection, whether it has crashed since the last: then, and
        not after an orderly restart, it has thrown its counters away and begun new ones."""
        self._counters = counters_sql({row[0] for row in await raw.fetch(_COLUMNS)})
        since = await raw.fetchval(_COUNTS_SINCE)
        self.crashes += self._counts_since not in (None, since)
        self._counts_since = since

    async def activity(self, raw: Any) -> Gauges:
        found = dict(await raw.fetchrow(ACTIVITY))
        waits = msgspec.json.decode(found.pop("waits") or "{}", type=dict[str, int])
        is_partial, running_s = found.pop("is_partial"), self._running_s(found.pop("oldest_xid"))
        if is_partial:  # what was counted of others is nothing, not none
            for name in ("active_not_waiting", "locks_waited_for", "oldest_transaction_s"):
                del found[name]
            found["oldest_writing_transaction_s"] = max(running_s, found["oldest_writing_transaction_s"])
        self.oldest_writing_s = found["oldest_writing_transaction_s"]
        return _named(found) | _named(self._waits(waits))

    def _running_s(self, xid: int | None) -> float:
        """How long a transaction has been seen to be the oldest: at least, for it began before it was first seen."""
        now = now_ns()
        if xid is None or xid != self._oldest[0]:
            self._oldest = (xid, now)
        return (now - self._oldest[1]) / NS_PER_S

    def _waits(self, waits: dict[str, int]) -> dict[str, float]:
        """Named as often as is allowed; an event that nobody waits for any more is 0, once it was told."""
        told = {f"wait:{event}": 0.0 for event in self._waits_known}
        ranked = sorted(waits.items(), key=lambda each: (-each[1], each[0]))
        other = 0
        for rank, (event, count) in enumerate(ranked):
            if rank < WAITS_SHOWN and (event in self._waits_known or len(self._waits_known) < WAITS_NAMED):
                self._waits_known[event] = None
                told[f"wait:{event}"] = float(count)
            else:
                other += count
        return told | {"wait:other": float(other)}

    async def counters(self, raw: Any) -> Gauges:
        return _named(dict(await raw.fetchrow(self._counters)))

    async def size(self, raw: Any) -> Gauges:
        return _named({"database_bytes": await raw.fetchval(_SIZE)})


def counters_sql(there: set[str]) -> str:
    """One row with all counters that a server with these "view.column" has, each under its gauge's name."""
    found = {name: column for name, column in {**_COUNTERS, **_UNTIL_16}.items() if column in there}
    found |= {name: column for name, column in _COUNTERS.items() if column in there}
    views = sorted({column.partition(".")[0] for column in found.values()} - {"pg_stat_database", "pg_stat_io"})
    shown = [f'{column}::float8 AS "{name}"' for name, column in found.items()]
    sources = ["pg_stat_database", *views, _REPLICATION]
    if any(column.startswith("pg_stat_io.") for column in found.values()):
        sums = ", ".join(f"sum({c}) AS {c}" for c in ("reads", "writes", "fsyncs"))
        sources.append(f"(SELECT {sums} FROM pg_catalog.pg_stat_io) AS pg_stat_io")
    return (
        f"SELECT {', '.join(shown)}, replicas, replication.lag AS replication_lag_bytes "
        f"FROM {', '.join(sources)} WHERE pg_stat_database.datname = current_database()"
    )


def _named(found: dict[str, Any]) -> Gauges:
    return {f"server.{name}": float(value) for name, value in found.items() if value is not None}
