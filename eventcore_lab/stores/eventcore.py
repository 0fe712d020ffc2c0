"""The `postgres:eventcore` store: EventCore 2.0.1's own tables (sql/eventcore.sql), statements and round trips.

An append of s streams is BEGIN, s advisory locks in the order of the streams' names, s questions for their heads, one
set_config, an INSERT per 1,000 events, COMMIT: 2·s + 4 round trips, each sent when the one before is answered. A position
is the UUIDv7 of the event as an integer, drawn under the locks but before the commit, as EventCore draws it.

Where we must differ. EventCore writes '{}' as metadata; we keep the event's own id and meta there, since the id column
holds the position. It has no ANY: we take the head found under the lock as the one expected, and do not conflict. It
gives back neither versions nor positions: we work them out from the heads and the ids. It has one type per filter: we
take several. Its checks of names and its patterns are done in its own language; a pattern is a regular expression here.
Made beforehand by EventCore itself, a database can be read as it is, events with '{}' included.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from importlib.resources import files
from types import MappingProxyType
from typing import Any
from uuid import UUID

import asyncpg
import msgspec

from eventcore_lab.events import (
    EVERYTHING,
    AppendResult,
    EventRejected,
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
    check_distinct,
    new_event_id,
)
from eventcore_lab.stores.pool import Connection, Pool
from eventcore_lab.stores.protocol import Lease, PoolSettings, each_from, one_by_one

SCHEMA_SQL = files("eventcore_lab.stores").joinpath("sql/eventcore.sql").read_text()

LACKS: Mapping[str, str] = MappingProxyType(
    {
        "payloads come back byte for byte": "payloads are jsonb",
        "several streams are read as of one instant": "sometimes: the streams are read one after the other",
        "a prefix is a prefix and nothing else": "% and _ in a prefix are wildcards (LIKE)",
        "a reader beside writers sees each event once and in order": (
            "sometimes: an id is drawn before the commit: a reader that has passed it never reads what commits later"
        ),
        "snapshots never go back": "a snapshot's state is jsonb: bytes that are no JSON are refused",
    }
)

_CHUNK_EVENTS = 1000
_KEPT_ROWS = 100  # statements for more rows than this, but for full chunks, are not kept prepared: there could be many

_LOCK = "SELECT pg_advisory_xact_lock(hashtextextended($1, 0))"
_HEAD = "SELECT coalesce(max(stream_version), 0) FROM eventcore_events WHERE stream_id = $1"
_EXPECT = "SELECT set_config('eventcore.expected_versions', $1, true)"
_INSERT = "INSERT INTO eventcore_events (event_id, stream_id, event_type, event_data, metadata) VALUES "
_NEEDED = "event_id, stream_id, stream_version, event_type, event_data, metadata, created_at"
_COLUMNS = """event_id, stream_id, stream_version, event_type, event_data, metadata,
    (extract(epoch FROM created_at) * 1000000)::bigint"""
_READ_STREAM = f"""SELECT {_COLUMNS} FROM eventcore_events
    WHERE stream_id = $1 AND stream_version >= $2 ORDER BY stream_version LIMIT $3::bigint"""
_READ_ALL = f"SELECT {_COLUMNS} FROM eventcore_events WHERE event_id > $1 ORDER BY event_id LIMIT $2"
_READ_SOME = f"""SELECT {_COLUMNS} FROM eventcore_events
    WHERE event_id > $1 AND stream_id LIKE $3 || '%' AND ($4 = '' OR stream_id ~ $4)
    AND ($5::text[] = '{{}}' OR event_type = ANY($5)) ORDER BY event_id LIMIT $2"""
_LAST = "SELECT event_id FROM eventcore_events ORDER BY event_id DESC LIMIT 1"
_LOAD_CHECKPOINT = "SELECT last_position FROM eventcore_subscription_versions WHERE subscription_name = $1"
_SAVE_CHECKPOINT = """INSERT INTO eventcore_subscription_versions (subscription_name, last_position) VALUES ($1, $2)
    ON CONFLICT (subscription_name) DO UPDATE SET last_position = excluded.last_position, updated_at = now()"""
_LOAD_SNAPSHOT = "SELECT stream_versions, state FROM eventcore_command_state_snapshots WHERE snapshot_id = $1"
_SAVE_SNAPSHOT = """INSERT INTO eventcore_command_state_snapshots AS s (snapshot_id, state, stream_versions)
    VALUES ($1, $2, $3) ON CONFLICT (snapshot_id) DO UPDATE
    SET state = excluded.state, stream_versions = excluded.stream_versions, updated_at = now()
    WHERE NOT EXISTS (SELECT FROM jsonb_each_text(s.stream_versions) AS seen(stream, version)
                      WHERE seen.version::bigint > coalesce((excluded.stream_versions ->> seen.stream)::bigint, 0))
    RETURNING 1"""
_TRY_LEAD = "SELECT pg_try_advisory_lock($1)"

_LOST = (
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
)

_RAISED = re.compile(r'version_conflict: stream "(.*)" expected version (\d+), actual (\d+)', re.DOTALL)
_ID, _META = "eventcore_lab.id", "eventcore_lab.meta"
_decode_metadata = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class EventCore:
    """A Store over a pool of ours. `is_writable` False: whatever would change the database, or stand in the way of those
    who work with it, is refused with StoreError."""

    def __init__(self, pool: Pool, is_writable: bool = True) -> None:
        self.pool = self._pool = pool
        self._is_writable = is_writable

    async def append(self, writes: Sequence[StreamWrite]) -> AppendResult:
        self._check_writable()
        check_distinct(writes)
        async with self._connection("an append") as connection:
            await connection.raw.execute("BEGIN")
            try:
                heads = await _validated(connection, writes)
                last = await _inserted(connection, writes)
            except (VersionConflict, EventRejected, asyncpg.PostgresError):
                await connection.raw.execute("ROLLBACK")
                raise
            await connection.raw.execute("COMMIT")
        return AppendResult(tuple([heads[w.stream] + len(w.events) for w in writes]), last.int)

    async def append_many(self, requests: Sequence[Sequence[StreamWrite]]) -> list[AppendResult | StoreError]:
        """One after the other, each its own transaction: EventCore has nothing for several."""
        return await one_by_one(self.append, requests)

    async def read_stream(self, stream: StreamId, from_version: int = 1, limit: int | None = None) -> StreamSlice:
        rows = await self._rows(_READ_STREAM, stream, from_version, limit)
        events = tuple([_event(row) for row in rows])
        if events and (limit is None or len(events) < limit):
            return StreamSlice(stream, events[-1].version, events)
        if from_version <= 1 and not events and limit != 0:
            return StreamSlice(stream, 0)
        head: int = (await self._rows(_HEAD, stream))[0][0]
        if not events and limit != 0:  # what has come since the first statement was not read, so it is not told either
            head = min(head, from_version - 1)
        return StreamSlice(stream, head, events)

    async def read_streams(
        self, streams: Sequence[StreamId], from_versions: Sequence[int] | None = None
    ) -> list[StreamSlice]:
        """One after the other, as EventCore's commands do."""
        return [await self.read_stream(*each) for each in each_from(streams, from_versions)]

    async def read_all(self, after: Position = 0, limit: int = 1000, where: Filter = EVERYTHING) -> list[StoredEvent]:
        if where == EVERYTHING:
            return [_event(row) for row in await self._rows(_READ_ALL, UUID(int=after), limit)]
        pattern = f"^(?:{where.regex})$" if where.glob else ""
        rows = await self._rows(_READ_SOME, UUID(int=after), limit, where.prefix, pattern, list(where.types))
        return [_event(row) for row in rows]

    async def last_position(self) -> Position:
        """The highest id there is; a lower one may yet be committed."""
        rows = await self._rows(_LAST)
        return rows[0][0].int if rows else 0

    async def load_checkpoint(self, name: str) -> Position | None:
        rows = await self._rows(_LOAD_CHECKPOINT, name)
        return rows[0][0].int if rows else None

    async def save_checkpoint(self, name: str, position: Position) -> None:
        self._check_writable()
        await self._rows(_SAVE_CHECKPOINT, name, UUID(int=position))

    async def load_snapshot(self, key: str) -> Snapshot | None:
        rows = await self._rows(_LOAD_SNAPSHOT, key)
        return Snapshot(key, msgspec.json.decode(rows[0][0]), rows[0][1].encode()) if rows else None

    async def save_snapshot(self, snapshot: Snapshot) -> bool:
        self._check_writable()
        versions = msgspec.json.encode(snapshot.versions).decode()
        return bool(await self._rows(_SAVE_SNAPSHOT, snapshot.key, _text(snapshot.state), versions))

    async def try_lead(self, name: str) -> Lease | None:
        """A session lock on a connection of its own (EventCore takes one of its pool and keeps it). The key knows the name
        only, not the schema: a lease is one in the whole database."""
        self._check_writable()
        connection = await self._pool.connect()
        try:
            if (await connection.fetch(_TRY_LEAD, lease_key(name)))[0][0]:
                return _Lease(connection)
        except (*_LOST, OSError) as error:
            raise StoreUnreachable(f"no answer to a lease: {error or type(error).__name__}") from None
        connection.raw.terminate()
        return None

    def _check_writable(self) -> None:
        if not self._is_writable:
            raise StoreError("this EventCore database is only read here; add writes=true to the spec to write to it")

    async def _rows(self, sql: str, *arguments: Any) -> list[Any]:
        async with self._connection("a statement") as connection:
            return await connection.fetch(sql, *arguments)

    @asynccontextmanager
    async def _connection(self, purpose: str) -> AsyncIterator[Connection]:
        """A connection of the pool; what goes wrong becomes a StoreError that says whether anything can have happened."""
        connection = await self._pool.acquire()
        is_usable = False
        try:
            yield connection
            is_usable = True
        except (VersionConflict, EventRejected):
            is_usable = True
            raise
        except _LOST as error:
            why = "it took too long" if connection.is_overdue else error
            raise OutcomeUnknown(f"the connection was lost during {purpose}: {why}") from None
        except asyncpg.PostgresError as error:
            is_usable = True
            raise _refusal(error) from None
        except (TimeoutError, OSError) as error:
            raise OutcomeUnknown(f"no answer to {purpose}: {error or type(error).__name__}") from None
        finally:
            self._pool.release(connection, is_usable)

    async def close(self) -> None:
        await self._pool.close()


async def _validated(connection: Connection, writes: Sequence[StreamWrite]) -> dict[StreamId, int]:
    """The head of every stream, under its lock; read-only participants included. Raises VersionConflict for the first,
    by name, that is not where it is expected; tells the trigger what to expect."""
    declared = sorted(writes, key=lambda w: w.stream)
    for write in declared:
        await connection.fetch(_LOCK, write.stream)
    heads: dict[StreamId, int] = {}
    for write in declared:
        head = heads[write.stream] = (await connection.fetch(_HEAD, write.stream))[0][0]
        if write.expected >= 0 and write.expected != head:
            raise VersionConflict(write.stream, write.expected, head)
    await connection.fetch(_EXPECT, msgspec.json.encode(heads).decode())
    return heads


async def _inserted(connection: Connection, writes: Sequence[StreamWrite]) -> UUID:
    """Inserts all events, `_CHUNK_EVENTS` to a statement; gives the last position (zero when there is no event)."""
    rows = [(w.stream, e) for w in writes for e in w.events]
    event_id = UUID(int=0)
    for first in range(0, len(rows), _CHUNK_EVENTS):
        parameters: list[Any] = []
        for stream, event in rows[first : first + _CHUNK_EVENTS]:
            event_id = new_event_id()
            parameters += (event_id, stream, event.type, _text(event.data), _metadata(event))
        count = len(parameters) // 5
        if count <= _KEPT_ROWS or count == _CHUNK_EVENTS:
            await connection.fetch(_insert_sql(count), *parameters)
        else:
            await connection.raw.execute(_insert_sql(count), *parameters)
    return event_id


def _insert_sql(rows: int) -> str:
    return _INSERT + ", ".join([f"(${n}, ${n + 1}, ${n + 2}, ${n + 3}, ${n + 4})" for n in range(1, 5 * rows, 5)])


def _refusal(error: asyncpg.PostgresError) -> StoreError:
    """What EventCore makes of the server's errors: the trigger's words are read back; a broken unique key (a writer that
    takes no lock) is a conflict of which it knows no stream and no versions."""
    if isinstance(error, asyncpg.RaiseError) and (found := _RAISED.match(str(error))):
        return VersionConflict(StreamId(found[1]), int(found[2]), int(found[3]))
    if isinstance(error, asyncpg.UniqueViolationError):
        return VersionConflict(StreamId("unknown-conflict-stream"), 0, 0)
    if isinstance(error, asyncpg.DataError | asyncpg.ProgramLimitExceededError):
        return EventRejected(str(error))
    return StoreError(f"{type(error).__name__}: {error}")


def _metadata(event: NewEvent) -> str:
    """The event's id and meta. The id comes last: of equal keys jsonb keeps the last."""
    meta = _text(event.meta)
    if not meta:
        return f'{{"{_ID}":"{event.id}"}}'
    try:
        msgspec.json.decode(meta)
    except msgspec.DecodeError as error:
        raise EventRejected(f"meta is no JSON: {error}") from None
    return f'{{"{_META}":{meta},"{_ID}":"{event.id}"}}'


def _event(row: Any) -> StoredEvent:
    event_id, stream, version, kind, data, metadata, created_us = row
    own_id, meta = event_id, b"" if metadata == "{}" else metadata.encode()
    if _ID in metadata:
        kept = _decode_metadata(metadata)
        own_id, meta = UUID(msgspec.json.decode(kept[_ID])), bytes(kept[_META]) if _META in kept else b""
    return StoredEvent(event_id.int, stream, version, own_id, kind, data.encode(), meta, created_us)


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise EventRejected("jsonb holds text only, and these bytes are not UTF-8") from None


def lease_key(name: str) -> int:
    """The 64-bit FNV-1a hash of `name` as a signed integer, the key of PostgreSQL's advisory lock."""
    key = 0xCBF29CE484222325
    for byte in name.encode():
        key = (key ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return key - (1 << 64) if key >> 63 else key


class _Lease:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def release(self) -> None:
        try:
            await self._connection.raw.close(timeout=5)
        except (*_LOST, OSError, TimeoutError):  # a server that is gone has given the lock back already
            self._connection.raw.terminate()


async def connect(dsn: str, schema: str, pool: PoolSettings, server_settings: Mapping[str, str]) -> EventCore:
    """An EventCore store in `schema`; with `default_transaction_read_only` among the settings, one that is only read."""
    connections = Pool(dsn, schema, pool, server_settings)
    await connections.warm()
    return EventCore(connections, server_settings.get("default_transaction_read_only") != "on")


_COUNTED_AT_MOST = 5_000_000


async def events_in(dsn: str, schema: str, timeout_s: float) -> str:
    """How many events an existing EventCore schema holds; of more than `_COUNTED_AT_MOST`, the server's estimate. Raises
    StoreError when there is no such table, or it has other columns than EventCore 2's."""
    connection = await asyncpg.connect(dsn, timeout=timeout_s)
    try:
        await connection.execute("SET default_transaction_read_only = on")
        found = await connection.fetch(
            """SELECT attname, reltuples::bigint, c.oid::regclass::text FROM pg_class c
               JOIN pg_namespace n ON n.oid = relnamespace JOIN pg_attribute a ON attrelid = c.oid
               WHERE nspname = $1 AND relname = 'eventcore_events' AND attnum > 0 AND NOT attisdropped""",
            schema,
        )
        if not found:
            raise StoreError(f"schema {schema!r} has no table eventcore_events (does its name stand in schema=…?)")
        if missing := {name.strip() for name in _NEEDED.split(",")} - {row[0] for row in found}:
            raise StoreError(
                f"eventcore_events in schema {schema!r} lacks {', '.join(sorted(missing))}: not EventCore 2's"
            )
        estimate, table = found[0][1:]
        if estimate > _COUNTED_AT_MOST:
            return f"about {estimate}"
        return str(await connection.fetchval(f"SELECT count(*) FROM {table}"))
    finally:
        await connection.close(timeout=timeout_s)
