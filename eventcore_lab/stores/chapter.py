"""The `postgres:chapter` store: the code of the chapter this project began with, as it stands, faults included.

Nothing is repaired: it shows what the obvious design costs and loses. Kept as written: BEGIN and COMMIT over a pool
that resets each connection; a SELECT and an INSERT per stream, in an order that changes from append to append; only the
first event's expectation of a stream looked at; seven parameters per event; one failure for all of a batch; readers
that go on from the last `occurred_at`, stamped by the client before the commit.

Ours, where the chapter says nothing: the table's types and indexes (sql/chapter.sql); ANY leaves the comparison out; an
event keeps the id it came with; what the chapter has no code for raises StoreError.
asyncpg's pool has no maximum life of a connection, and the chapter never applies its connect and command time-outs, so
those settings have no effect here. asyncpg sends at most 32,767 parameters, so a stream's part of an append ends at 4,681
events (the chapter's sqlx takes 65,535, which is 9,362 events). One Python process
takes longer than a microsecond to stamp an event, so that events with equal times need several processes here.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from importlib.resources import files
from itertools import count
from random import Random
from types import MappingProxyType
from typing import Any, NoReturn

import asyncpg

from eventcore_lab.clock import now_ns
from eventcore_lab.events import (
    EVERYTHING,
    AppendResult,
    Filter,
    NewEvent,
    OutcomeUnknown,
    Position,
    Snapshot,
    StoredEvent,
    StoreError,
    StoreUnreachable,
    StreamId,
    StreamSlice,
    StreamWrite,
    VersionConflict,
)
from eventcore_lab.schema import current_attempt
from eventcore_lab.stores.pool import explained
from eventcore_lab.stores.protocol import Lease, PoolSettings, each_from

SCHEMA_SQL = files("eventcore_lab.stores").joinpath("sql/chapter.sql").read_text()
UNIQUE_SQL = SCHEMA_SQL + "DROP INDEX events_by_stream;\nALTER TABLE events ADD UNIQUE (stream_id, version);\n"
"""The same table with the unique key that the chapter does not show: two winners become an error, or a deadlock."""

_SOMETIMES = "sometimes: "
_NO_FILTERS = "there is no reading with a filter"
_UNCHECKED = "a stream that is only read is not looked at: expectations travel with events"
_SAME_VERSION = (
    _SOMETIMES + "no lock and no unique key between reading the version and inserting: writers take the same one"
)
_TIES = "a reader goes on from a time, and events of the same microsecond behind the edge of a page are never read"
_BATCH = "a batch is one transaction: one failure is everybody's"
LACKS: Mapping[str, str] = MappingProxyType(
    {
        "payloads come back byte for byte": "payloads are jsonb",
        "a payload the store cannot hold is rejected and nothing else": "every error of the database is the same to it",
        "any version appends wherever the stream is": _SAME_VERSION,
        "of many writers with one expectation one wins": _SAME_VERSION,
        "a stale read only participant conflicts": _UNCHECKED,
        "a read only participant cannot change before the commit": _UNCHECKED,
        "crossing appends over the same streams do not deadlock": _SAME_VERSION,
        "a stream named twice in one append is refused": "only the first event's expectation of a stream is looked at",
        "an append of very many events is one append": "seven parameters per event, and a statement has 32,767 of them",
        "independent appends have each their own result": _BATCH,
        "a bad payload among many appends fails alone": _BATCH,
        "versions and positions of concurrent appends agree": _SAME_VERSION,
        "a stream that is not there is empty": "an empty page answers with the version that was asked for",
        "a page tells the version of the stream not of the page": "a page answers with the version of its last event",
        "several streams are read as of one instant": _SOMETIMES + "parallel queries have no common snapshot",
        "everything is read in the order of the appends": _SOMETIMES + _TIES,
        "a page of everything is never cut within an append so that something is lost": _SOMETIMES + _TIES,
        "a prefix is a prefix and nothing else": _NO_FILTERS,
        "a glob matches whole stream ids": _NO_FILTERS,
        "filters apply before the limit": _NO_FILTERS,
        "a reader beside writers sees each event once and in order": (
            _SOMETIMES
            + "times are taken before the commit: a reader that has passed one never reads what commits later"
        ),
        "a follower gets what is appended later": _NO_FILTERS,
        "checkpoints are kept by name": "there are no checkpoints",
        "snapshots never go back": "there are no snapshots",
        "one leads at a time": "there are no leases",
        "a retry after an unknown outcome stores nothing twice": (
            "looking for an append asks for a stream's version, and an empty page answers with the one that was asked for"
        ),
    }
)
_ERROR = (
    _SOMETIMES
    + "two writers read the same version, and the unique key turns the second into an error that is no conflict"
)
_CROSSING = (
    _SOMETIMES + "streams are written in an order that changes, so that two appends wait for each other: a deadlock"
)
LACKS_UNIQUE: Mapping[str, str] = MappingProxyType(
    {name: _ERROR if reason == _SAME_VERSION else reason for name, reason in LACKS.items()}
    | {"crossing appends over the same streams do not deadlock": _CROSSING}
)

_VERSION = "SELECT coalesce(max(version), 0) FROM events WHERE stream_id = $1"
_INSERT = "INSERT INTO events (id, stream_id, version, event_type, payload, metadata, occurred_at) VALUES "
# In the order of StoredEvent's fields. The position is the time, and so is recorded_at: no other clock is asked.
_MICROSECONDS = "(extract(epoch FROM occurred_at) * 1000000)::bigint"
_COLUMNS = f"{_MICROSECONDS}, stream_id, version, id, event_type, payload, metadata, {_MICROSECONDS}"
_READ_STREAM = (
    f"SELECT {_COLUMNS} FROM events WHERE stream_id = $1 AND version >= $2 ORDER BY version ASC LIMIT $3::bigint"
)
_READ_ALL = f"SELECT {_COLUMNS} FROM events WHERE occurred_at > $1 ORDER BY occurred_at ASC LIMIT $2"
_LAST = f"SELECT {_MICROSECONDS} FROM events ORDER BY occurred_at DESC LIMIT 1"

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_numbers = count()


def _clock_us() -> int:
    return time.time_ns() // 1000


class Chapter:
    """A Store over asyncpg's own pool. `order` shuffles the streams of an append, as a hash map with a random seed does;
    `now_us` stamps the events."""

    def __init__(
        self, pool: Any, acquire_timeout_s: float, order: Random | None = None, now_us: Callable[[], int] = _clock_us
    ) -> None:
        self._pool, self._acquire_timeout_s = pool, acquire_timeout_s
        self._order, self._now_us = order or Random(next(_numbers)), now_us

    def varied(self, order: Random | None = None, now_us: Callable[[], int] | None = None) -> Chapter:
        """The same store over the same pool, but with this order of streams, or stamped by this clock."""
        return Chapter(self._pool, self._acquire_timeout_s, order or self._order, now_us or self._now_us)

    async def append(self, writes: Sequence[StreamWrite]) -> AppendResult:
        return (await self._write_events_batch([writes]))[0]

    async def append_many(self, requests: Sequence[Sequence[StreamWrite]]) -> list[AppendResult | StoreError]:
        """All of them as one batch: what happens to one happens to all."""
        try:
            return list(await self._write_events_batch(requests))
        except StoreError as error:
            return [error] * len(requests)

    async def _write_events_batch(self, requests: Sequence[Sequence[StreamWrite]]) -> list[AppendResult]:
        batches: dict[StreamId, list[tuple[int, NewEvent]]] = {}
        for write in (w for writes in requests for w in writes):
            if write.events:
                batches.setdefault(write.stream, []).extend([(write.expected, e) for e in write.events])
        streams = list(batches)
        self._order.shuffle(streams)
        written: dict[StreamId, _Written] = {}
        if streams:
            async with self._connection() as connection, connection.transaction():
                for stream in streams:
                    written[stream] = await self._write_stream_batch(connection, stream, batches[stream])
        return [_answer(writes, written) for writes in requests]

    async def _write_stream_batch(
        self, connection: Any, stream: StreamId, events: Sequence[tuple[int, NewEvent]]
    ) -> _Written:
        current = await connection.fetchval(_VERSION, stream)
        expected = events[0][0]
        if expected >= 0 and expected != current:
            raise VersionConflict(stream, expected, current)
        values: list[str] = []
        parameters: list[Any] = []
        times_us: list[int] = []
        n = 1
        for i, (_, event) in enumerate(events):
            values.append(f"(${n}, ${n + 1}, ${n + 2}, ${n + 3}, ${n + 4}, ${n + 5}, ${n + 6})")
            payload, metadata = _text(event.data), _text(event.meta or b"null")
            times_us.append(self._now_us())
            parameters += [event.id, stream, current + i + 1, event.type, payload, metadata, _as_time(times_us[-1])]
            n += 7
        await connection.execute(_INSERT + ", ".join(values), *parameters)
        return _Written(current, times_us)

    async def read_stream(self, stream: StreamId, from_version: int = 1, limit: int | None = None) -> StreamSlice:
        """A page says the version of its last event, or if it is empty the one asked for (a whole stream begins at 0)."""
        rows = await self._read(_READ_STREAM, stream, from_version, limit)
        events = tuple([_event(row) for row in rows])
        asked_for = 0 if from_version <= 1 and limit is None else from_version
        return StreamSlice(stream, events[-1].version if events else asked_for, events)

    async def read_streams(
        self, streams: Sequence[StreamId], from_versions: Sequence[int] | None = None
    ) -> list[StreamSlice]:
        """A query each, at the same time, on as many connections."""
        return list(await asyncio.gather(*[self.read_stream(*each) for each in each_from(streams, from_versions)]))

    async def read_all(self, after: Position = 0, limit: int = 1000, where: Filter = EVERYTHING) -> list[StoredEvent]:
        if where != EVERYTHING:
            _lacking("filters")
        return [_event(row) for row in await self._read(_READ_ALL, _as_time(after), limit)]

    async def last_position(self) -> Position:
        """The latest time there is; something earlier may yet be committed."""
        rows = await self._read(_LAST)
        return rows[0][0] if rows else 0

    async def load_checkpoint(self, name: str) -> Position | None:
        _lacking("checkpoints")

    async def save_checkpoint(self, name: str, position: Position) -> None:
        _lacking("checkpoints")

    async def load_snapshot(self, key: str) -> Snapshot | None:
        _lacking("snapshots")

    async def save_snapshot(self, snapshot: Snapshot) -> bool:
        _lacking("snapshots")

    async def try_lead(self, name: str) -> Lease | None:
        _lacking("leases")

    async def _read(self, sql: str, *arguments: Any) -> list[Any]:
        async with self._connection() as connection:
            rows: list[Any] = await connection.fetch(sql, *arguments)
            return rows

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[Any]:
        """A connection of the pool; whatever goes wrong on it becomes a StoreError."""
        try:
            connection = await self._pool.acquire(timeout=self._acquire_timeout_s)
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            raise StoreUnreachable(explained(error)) from None
        attempt = current_attempt.get()
        if attempt is not None and not attempt.acquired_ns:
            attempt.acquired_ns = now_ns()
        try:
            yield connection
        except (
            asyncpg.PostgresConnectionError,
            asyncpg.OperatorInterventionError,
            asyncpg.InternalClientError,
            OSError,
        ) as error:
            raise OutcomeUnknown(f"the connection was lost: {error or type(error).__name__}") from None
        except asyncpg.InterfaceError as error:
            kind = OutcomeUnknown if connection.is_closed() else StoreError
            raise kind(f"{type(error).__name__}: {error}") from None
        except (asyncpg.PostgresError, asyncpg.DataError) as error:
            raise StoreError(f"{type(error).__name__}: {error}") from None
        finally:
            await self._pool.release(connection)

    async def close(self) -> None:
        """Within 5 s; connections that are still at work are ended then."""
        try:
            await asyncio.wait_for(self._pool.close(), 5)
        except (TimeoutError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            self._pool.terminate()


class _Written:
    """What became of one stream in a batch: the version found, and the events' times, taken in order by `_answer`."""

    def __init__(self, version: int, times_us: list[int]) -> None:
        self.version, self._times_us = version, iter(times_us)

    def took(self, events: int) -> int:
        """Count `events` more as written; gives the time of the last of them."""
        self.version += events
        return [next(self._times_us) for _ in range(events)][-1]


def _answer(writes: Sequence[StreamWrite], written: Mapping[StreamId, _Written]) -> AppendResult:
    """The result of one request. A stream without events was not looked at: the version expected is what we have."""
    position, versions = 0, []
    for write in writes:
        if write.events:
            position = max(position, written[write.stream].took(len(write.events)))
        known = written.get(write.stream)
        versions.append(known.version if known else max(write.expected, 0))
    return AppendResult(tuple(versions), position)


def _event(row: Any) -> StoredEvent:
    position, stream, version, event_id, kind, payload, metadata, at_us = row
    meta = b"" if metadata == "null" else metadata.encode()
    return StoredEvent(position, stream, version, event_id, kind, payload.encode(), meta, at_us)


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise StoreError("the payload is no text, so no JSON") from None


def _as_time(microseconds: int) -> datetime:
    return _EPOCH + timedelta(microseconds=microseconds)


def _lacking(what: str) -> NoReturn:
    raise StoreError(f"the chapter's store has no {what}")


async def connect(dsn: str, schema: str, pool: PoolSettings, server_settings: Mapping[str, str]) -> Chapter:
    """The chapter's pool: most and least connections, time to wait for one, time until an idle one is closed."""
    try:
        opened = await asyncpg.create_pool(
            dsn,
            max_size=pool.max_connections,
            min_size=pool.min_connections,
            max_inactive_connection_lifetime=pool.idle_timeout_s,
            server_settings={"application_name": pool.application_name, "search_path": schema, **server_settings},
        )
    except (OSError, TimeoutError, ValueError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise StoreUnreachable(explained(error)) from None
    return Chapter(opened, pool.acquire_timeout_s)
