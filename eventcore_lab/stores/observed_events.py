"""Which event store is in a database, and what its tables tell without being read through: gauges of `store` and `lag`.

Known by their columns are the tables of this package, EventCore's, those of the package eventsourcing, and the chapter's. How
many events there are is told by the highest position where positions are numbers, else by the server's count of inserted
rows. Both count what was rolled back: a position that was drawn is gone, a row that was inserted was counted. The latter
comes up to a second late, after a quiet time up to ten.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID

from msgspec import Struct

from eventcore_lab.clock import NS_PER_S, now_ns
from eventcore_lab.stores.observed_server import APPLICATION_NAME, Gauges, Server

SUBSCRIPTIONS_MAX, NAME_MAX_CHARS = 50, 200
LAG_COUNTED_MAX = 1000
"""Where positions are no dense numbers a subscription's lag is counted, and no further than this."""
OF_STREAMS = ("which event store there is", "the events table", "the number of streams")
"""What is to be asked for to know how many streams there are."""
STREAMS_COUNTED_ROWS, STREAMS_COUNTED_BYTES = 20_000, 16 * 2**20
"""Streams are counted in a table that is no larger than this; else the estimate of the last ANALYZE is told."""


class Kind(Struct, frozen=True):
    """One design of event store: by which columns its table is known, what they are called, and its table of checkpoints (a
    pattern of its name, the columns of name and position). `position`: "" where no index leads to the last event. `counts`:
    positions are numbers that are drawn one after the other. `functions`: what else names the events in a statement."""

    name: str
    title: str
    columns: frozenset[str]
    stream: str = "stream_id"
    position: str = ""
    counts: bool = False
    checkpoints_in: str = "nowhere"
    checkpoints: tuple[str, str] = ("", "")
    functions: str = ""


KINDS = (
    Kind(
        "eventcore_lab",
        "eventcore_lab's own event store",
        frozenset(("position", "stream_id", "version", "event_id", "event_type", "data", "meta")),
        position="position",
        counts=True,
        checkpoints_in="checkpoints",
        checkpoints=("name", "position"),
        functions="|append_(event|ones?|few|each|in_turn)",
    ),
    Kind(
        "eventcore",
        "EventCore",
        frozenset(("event_id", "stream_id", "stream_version", "event_type", "event_data")),
        position="event_id",
        checkpoints_in="eventcore_subscription_versions",
        checkpoints=("subscription_name", "last_position"),
    ),
    Kind(
        "eventsourcing",
        "the package eventsourcing",
        frozenset(("originator_id", "originator_version", "topic", "state", "notification_id")),
        stream="originator_id",
        position="notification_id",
        counts=True,
        checkpoints_in=".*tracking",
        checkpoints=("application_name", "notification_id"),
    ),
    Kind(
        "chapter",
        "the chapter's event store",
        frozenset(("id", "stream_id", "version", "event_type", "payload", "metadata", "occurred_at")),
    ),
)

_FIND = r"""SELECT n.nspname::text AS schema, format('%I.%I', n.nspname, c.relname) AS name, c.relname::text AS plain,
        c.oid::bigint AS oid, greatest(pg_stat_get_tuples_inserted(c.oid), c.reltuples)::float8 AS size,
        coalesce(has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT'), false) AS is_readable,
        coalesce(n.nspname = ANY (current_schemas(false)), false) AS is_at_hand,
        ARRAY(SELECT attname::text FROM pg_attribute WHERE attrelid = c.oid AND attnum > 0 AND NOT attisdropped) AS columns,
        EXISTS (SELECT FROM pg_class s WHERE s.relnamespace = n.oid AND s.relname = 'event_sequence') AS is_packed
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND n.nspname !~ '^pg_' AND ($1 = '' OR n.nspname = $1)
        AND (c.relname IN ('events', 'checkpoints', 'eventcore_subscription_versions')
             OR c.relname ~ '(_events|tracking)$')
    ORDER BY size DESC LIMIT 1000"""
_FILES = "SELECT oid::bigint, pg_relation_size(oid) FROM pg_class WHERE oid = ANY($1::oid[])"
_FAMILY = "oid = $1 OR oid IN (SELECT inhrelid FROM pg_inherits WHERE inhparent = $1)"
_ROWS = f"""SELECT sum(pg_stat_get_tuples_inserted(oid))::float8 AS inserted, sum(pg_stat_get_live_tuples(oid))::float8 AS live,
    sum(pg_stat_get_dead_tuples(oid))::float8 AS dead FROM pg_class WHERE {_FAMILY}"""
_SIZES = f"""SELECT sum(pg_table_size(oid))::float8 AS table, sum(pg_indexes_size(oid))::float8 AS index,
    sum(greatest(reltuples, 0))::float8 AS rows FROM pg_class WHERE {_FAMILY}"""
_DISTINCT = """SELECT n_distinct::float8 FROM pg_stats
    WHERE schemaname = $1 AND tablename = $2 AND attname = $3 ORDER BY inherited DESC LIMIT 1"""
_LIBRARY = """SELECT format('%I.pg_stat_statements', nspname) FROM pg_extension JOIN pg_namespace n ON n.oid = extnamespace
    WHERE extname = 'pg_stat_statements' AND has_schema_privilege(n.oid, 'USAGE')"""
_OURS = f"/* {APPLICATION_NAME} */"
_STATEMENTS = """SELECT {ours} sum(calls)::float8 AS calls, sum(total_exec_time)::float8 AS ms FROM {view}
    WHERE dbid = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND query ~ $1 AND query NOT LIKE '%{ours}%'"""
STATEMENTS_EVERY_S = 10.0
_PACKED = 2**32 - 1  # of a pair of transaction id and sequence, the sequence


class Table(Struct, frozen=True):
    """The events table that is looked at; names are written as in SQL but for `schema` and `plain`."""

    kind: Kind
    schema: str
    plain: str
    name: str
    oid: int
    is_readable: bool
    is_packed: bool
    checkpoints: str
    alike: int
    """Tables of this kind in the same schema."""

    @property
    def counts(self) -> bool:
        return self.kind.counts and not self.is_packed


class Events:
    """What to ask of the event store in `schema`, or in whichever has one; `kind`: only such a one."""

    def __init__(self, server: Server, schema: str = "", kind: str = "") -> None:
        self._server, self._schema = server, schema
        self._kinds = [k for k in KINDS if kind in ("", k.name)]
        self._table: Table | None = None
        self._found_ns: int | None = None
        self._notes: list[tuple[str, str]] = []
        self._top: Any = None
        self._live = 0.0
        self._statements: tuple[int, float, float] | None = None

    def parts(self) -> list[tuple[str, float, Callable[[Any], Awaitable[Gauges]]]]:
        """What to ask for: (what it is called, how often at most in s, how)."""
        return [
            ("which event store there is", 5.0, self._find),
            ("the events table", 1.0, self._rows),
            ("the last position", 1.0, self._last),
            ("the subscriptions", 2.0, self._lags),
            ("the sizes of the tables", 15.0, self._sizes),
            ("the number of streams", 30.0, self._streams),
            ("the statements", STATEMENTS_EVERY_S, self._timed),
        ]

    @property
    def described(self) -> str:
        if self._found_ns is None:
            return ""
        if self._table is None:
            return "no event store that is known here" + (f" in schema {self._schema}" if self._schema else "")
        where = self._table.name if self._table.alike > 1 else f"schema {self._table.schema}"
        return f"{self._table.kind.title} in {where}"

    def forget(self) -> None:
        """What was found is not there any more."""
        self._table, self._top, self._statements = None, None, None

    def notes(self) -> list[tuple[str, str]]:
        """What there is to tell that was not told before."""
        notes, self._notes = self._notes, []
        return notes

    async def _find(self, raw: Any) -> Gauges:
        """Look which there is, and now and then again: the one that was found may have gone, or have been the wrong one."""
        rows = [dict(row) for row in await raw.fetch(_FIND, self._schema)]
        known = {row["oid"]: row["size"] for row in rows if any(k.columns <= set(row["columns"]) for k in self._kinds)}
        if len(known) > 1 and max(known.values()) <= 0:  # nothing is counted yet: by their files
            sizes = dict(await raw.fetch(_FILES, list(known)))
            rows = [{**row, "size": sizes.get(row["oid"]) or 0} for row in rows]
        before, self._found_ns = self._table, now_ns()
        found = chosen(rows, self._kinds)
        if before is not None and found is not None and before.oid == found.oid:
            self._table = found
            return {}
        self.forget()
        self._table = found
        if found is None:
            self._notes.append(("observed", f"{self.described}: only what the server tells of itself"))
            return {}
        count = "the highest position" if found.counts and found.is_readable else "the server's count of inserted rows"
        if found.is_packed and found.is_readable:
            count = "the sequence within the highest position"
        self._notes.append(
            ("observed", f"{self.described} ({found.name}); events are told by {count}, rolled back or not")
        )
        if not found.is_readable:
            self._notes.append(("observed in part", f"this role may not read {found.name}: no lag, no positions"))
        elif found.alike > 1:
            self._notes.append(
                ("observed in part", f"{found.alike} tables of events in schema {found.schema}: only {found.name}")
            )
        return {}

    async def _rows(self, raw: Any) -> Gauges:
        if (table := self._table) is None:
            return {}
        inserted, live, dead = await raw.fetchrow(_ROWS, table.oid)
        if inserted is None:
            self.forget()
            return {}
        self._live = live
        found = {"store.dead_rows": dead, "store.visibility_lag_s": self._server.oldest_writing_s}
        if not (table.is_readable and table.kind.counts):
            found["store.events_total"] = inserted
        return found

    async def _last(self, raw: Any) -> Gauges:
        table = self._table
        if table is None or not table.kind.position or not table.is_readable:
            return {}
        position = table.kind.position
        self._top = await raw.fetchval(f"SELECT {position} FROM {table.name} ORDER BY {position} DESC LIMIT 1")
        if not table.kind.counts:
            return {}
        top = self._top or 0
        return {"store.events_total": float(top & _PACKED if table.is_packed else top)}

    async def _lags(self, raw: Any) -> Gauges:
        """How far each subscription's checkpoint is behind the last event, of those that are furthest behind."""
        table = self._table
        if table is None or not table.checkpoints or self._top is None or (table.alike > 1 and table.kind.counts):
            return {}
        name, at = table.kind.checkpoints
        # Several rows of one name are a history: the last is where it is.
        each = f"SELECT {name}::text AS name, {at} AS at FROM {table.checkpoints} WHERE {name} <> '__migration__'"
        last = f"SELECT DISTINCT ON (name) name, at FROM ({each}) AS each ORDER BY name, at DESC"
        behind = f"SELECT name, at FROM ({last}) AS last ORDER BY at, name LIMIT {SUBSCRIPTIONS_MAX}"
        if table.counts:
            rows = await raw.fetch(f"SELECT name, at::float8 AS at FROM ({behind}) AS behind")
            return _lag_gauges({row["name"]: {"events": self._top - row["at"]} for row in rows})
        kind = "uuid" if table.kind.name == "eventcore" else "bigint"
        counted = f"""SELECT FROM {table.name} WHERE {table.kind.position} > behind.at::{kind}
            ORDER BY {table.kind.position} LIMIT {LAG_COUNTED_MAX}"""
        rows = await raw.fetch(
            f"SELECT {_OURS} name, at::{kind} AS at, (SELECT count(*) FROM ({counted}) AS c)::float8 AS n "
            f"FROM ({behind}) AS behind"
        )
        return _lag_gauges({row["name"]: {"events": row["n"]} | _late(self._top, row["at"]) for row in rows})

    async def _sizes(self, raw: Any) -> Gauges:
        if (table := self._table) is None:
            return {}
        found = await raw.fetchrow(_SIZES, table.oid)
        if found["table"] is None:
            return {}
        return {"store.table_bytes": found["table"], "store.index_bytes": found["index"]}

    async def _streams(self, raw: Any) -> Gauges:
        """Counted where that is cheap, else as the last ANALYZE has estimated it; nothing where there was none."""
        table = self._table
        if table is None or not table.is_readable:
            return {}
        found = await raw.fetchrow(_SIZES, table.oid)
        if found["table"] is None:
            return {}
        if found["table"] <= STREAMS_COUNTED_BYTES and self._live <= STREAMS_COUNTED_ROWS:
            streams = await raw.fetchval(
                f"SELECT {_OURS} count(DISTINCT {table.kind.stream})::float8 FROM {table.name}"
            )
            return {"store.streams": streams, "store.streams_estimated": 0.0}
        estimate = await raw.fetchval(_DISTINCT, table.schema, table.plain, table.kind.stream)
        if estimate is None:
            return {}
        streams = estimate if estimate >= 0 else -estimate * found["rows"]
        return {"store.streams": float(round(streams)), "store.streams_estimated": 1.0}

    async def _timed(self, raw: Any) -> Gauges:
        """How often statements that touch the events are executed, and how long one takes, since the last time; nothing where
        pg_stat_statements is not there or shows the role nothing."""
        if (table := self._table) is None or (view := await raw.fetchval(_LIBRARY)) is None:
            return {}
        pattern = rf"\m({re.escape(table.plain)}{table.kind.functions})\M"
        found = await raw.fetchrow(_STATEMENTS.format(ours=_OURS, view=view), pattern)
        now, calls, ms = now_ns(), found["calls"] or 0.0, found["ms"] or 0.0
        before, self._statements = self._statements, (now, calls, ms)
        if before is None or calls < before[1] or ms < before[2]:  # the first time, or reset
            return {}
        newly = calls - before[1]
        gauges = {"store.statements_per_s": newly * NS_PER_S / max(now - before[0], 1)}
        return gauges | ({"store.statement_mean_ms": (ms - before[2]) / newly} if newly else {})


def chosen(rows: list[dict[str, Any]], kinds: list[Kind]) -> Table | None:
    """Of the tables found the one that is most likely meant: with events in it, in the search path, the largest."""
    events = [(row, kind) for row in rows for kind in kinds if kind.columns <= set(row["columns"])]
    if not events:
        return None
    row, kind = max(events, key=lambda each: (each[0]["size"] > 0, each[0]["is_at_hand"], each[0]["size"]))
    beside = [r for r in rows if r["schema"] == row["schema"] and r["is_readable"] and r["name"] != row["name"]]
    checkpoints = [
        r["name"]
        for r in beside
        if re.fullmatch(kind.checkpoints_in, r["plain"]) and set(kind.checkpoints) <= set(r["columns"])
    ]
    return Table(
        kind,
        row["schema"],
        row["plain"],
        row["name"],
        row["oid"],
        row["is_readable"],
        row["is_packed"] and kind.name == "eventcore_lab",
        checkpoints[0] if checkpoints else "",
        sum(k is kind and r["schema"] == row["schema"] for r, k in events),
    )


def _lag_gauges(lags: dict[str, dict[str, float]]) -> Gauges:
    """By name, as it stands there but for its length."""
    found: Gauges = {"store.subscriptions": float(len(lags))}
    for name, by_unit in lags.items():
        for unit, value in by_unit.items():
            found[f"lag.{name[:NAME_MAX_CHARS]}_lag_{unit}"] = max(0.0, float(value))
    return found


def _late(top: Any, at: Any) -> dict[str, float]:
    """Of positions that are UUIDv7 (RFC 9562: 48 bits of ms), how much older the one is than the other, ms."""
    if isinstance(top, UUID) and isinstance(at, UUID) and top.version == at.version == 7:
        return {"ms": float((top.int >> 80) - (at.int >> 80))}
    return {}
