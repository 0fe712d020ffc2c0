"""The `postgres` store: one round trip per append, versions checked under a lock, positions that readers can trust.

The SQL and the reasons for its order are in sql/postgres.sql. Reading in position order needs care, since a position is
drawn before its transaction commits: horizon.py says up to where everything is settled.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import asyncpg
import msgspec

from eventcore_lab.events import (
    EVERYTHING,
    AppendResult,
    EventRejected,
    Filter,
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
)
from eventcore_lab.stores.horizon import Horizon
from eventcore_lab.stores.pool import Connection, Pool
from eventcore_lab.stores.protocol import Lease, each_from
from eventcore_lab.stores.requests import answers, are_ones, columns, conflict_of, parts, share_streams

T = TypeVar("T")

# InternalClientError: the server's last words arrived before the end of the connection did.
_LOST = (
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
)

_APPEND_EVENT = "SELECT append_event($1, $2, $3, $4, $5, $6)"
_APPEND_ONE = "SELECT head, last_position FROM append_one($1, $2, $3, $4, $5, $6)"
_APPEND_FEW = "SELECT heads, last_position FROM append_few($1, $2, $3, $4, $5, $6, $7, $8)"
_APPEND_EACH = "SELECT heads, positions FROM append_each($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)"
_APPEND_ONES = "SELECT heads, positions FROM append_ones($1, $2, $3, $4, $5, $6)"
_APPEND_IN_TURN = "SELECT heads, positions FROM append_in_turn($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)"
_UNANSWERED = StoreError("the store gave no answer")
FEW_EVENTS = 16
"""Up to so many events on several streams are appended in loops, more by plans over arrays."""
READ_TRIES = 3

# In the order of StoredEvent's fields, so that a row becomes an event without naming a column.
_COLUMNS = """position, stream_id, version, event_id, event_type, data, meta,
    (extract(epoch FROM recorded_at) * 1000000)::bigint"""
_READ_STREAM = f"""SELECT {_COLUMNS} FROM events
    WHERE stream_id = $1 AND version >= $2 ORDER BY version LIMIT $3"""
_HEAD = "SELECT coalesce(max(version), 0) FROM events WHERE stream_id = $1"
# A subquery with an order of its own is planned by itself, stream by stream: as a join, or with `= ANY`, PostgreSQL reads
# the whole table instead once it has statistics of one event per stream (measured: a batch of 100 then takes 20 ms).
# Read from one version before that asked for, which is there if the stream is as far as that.
_READ_STREAMS = f"""SELECT nth, {_COLUMNS}
    FROM unnest($1::text[], $2::bigint[]) WITH ORDINALITY AS asked(stream, version_from, nth), LATERAL (
        SELECT * FROM events WHERE stream_id = stream AND version >= version_from - 1 ORDER BY version) AS found
    ORDER BY nth, version"""
# From the last event where a stream is not as far as that.
_READ_STREAMS_OR_LAST = _READ_STREAMS.replace(
    "version_from - 1", "least(version_from - 1, (SELECT max(version) FROM events WHERE stream_id = stream))"
)
_READ_ALL = f"""SELECT {_COLUMNS} FROM events
    WHERE position > $1 ORDER BY position LIMIT $2"""
_READ_ALL_SETTLED = f"""SELECT {_COLUMNS} FROM events
    WHERE position > $1 AND position <= $3 AND starts_with(stream_id, $4) AND ($5 = '' OR stream_id ~ $5)
    AND ($6::text[] = '{{}}' OR event_type = ANY($6)) ORDER BY position LIMIT $2"""
_SEQUENCE = "SELECT pg_get_serial_sequence('events', 'position')"
_DRAWN = """SELECT coalesce(last_value, 0) FROM pg_sequences
    WHERE schemaname = current_schema() AND sequencename = 'events_position_seq'"""
_LOAD_CHECKPOINT = "SELECT position FROM checkpoints WHERE name = $1"
_SAVE_CHECKPOINT = (
    """INSERT INTO checkpoints VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET position = excluded.position"""
)
_LOAD_SNAPSHOT = "SELECT versions, state FROM snapshots WHERE key = $1"
_SAVE_SNAPSHOT = """INSERT INTO snapshots AS s VALUES ($1, $2, $3)
    ON CONFLICT (key) DO UPDATE SET versions = excluded.versions, state = excluded.state
    WHERE NOT EXISTS (SELECT FROM jsonb_each_text(s.versions) AS seen(stream, version)
                      WHERE seen.version::bigint > coalesce((excluded.versions ->> seen.stream)::bigint, 0))
    RETURNING 1"""
_TRY_LEAD = "SELECT pg_try_advisory_lock(hashtextextended(current_schema() || '/' || $1, 1))"


class _TooMuch(StoreError):
    """The server has not enough of something for all of it; a part may do."""


class Postgres:
    """A Store over a pool of its own."""

    def __init__(self, pool: Pool, horizon: Horizon) -> None:
        self.pool = self._pool = pool
        self._horizon = horizon

    async def append(self, writes: Sequence[StreamWrite]) -> AppendResult:
        if len(writes) != 1 or not writes[0].events:
            return await self._append_all(writes)
        write = writes[0]
        if len(write.events) > 1 or write.expected < 0:
            return await self._append_one(write)
        event, expected = write.events[0], write.expected
        arguments = (write.stream, expected, event.id, event.type, event.data, event.meta)
        position = (await self._write(_APPEND_EVENT, *arguments))[0]
        if position < 0:
            raise VersionConflict(write.stream, expected, -1 - position)
        return AppendResult((expected + 1,), position)

    async def _append_one(self, write: StreamWrite) -> AppendResult:
        head, position = await self._write(_APPEND_ONE, write.stream, write.expected, *columns(write.events))
        if position is None:
            raise VersionConflict(write.stream, write.expected, head)
        return AppendResult((head + len(write.events),), position)

    async def _append_all(self, writes: Sequence[StreamWrite]) -> AppendResult:
        check_distinct(writes)
        if sum([len(w.events) for w in writes]) <= FEW_EVENTS:
            return await self._append_few(writes)
        result = (await self._answered(_APPEND_EACH, [writes]))[0]
        if isinstance(result, StoreError):
            raise result
        return result

    async def _append_few(self, writes: Sequence[StreamWrite]) -> AppendResult:
        heads, position = await self._write(
            _APPEND_FEW,
            sorted(range(1, len(writes) + 1), key=lambda slot: writes[slot - 1].stream),
            [w.stream for w in writes],
            [w.expected for w in writes],
            [len(w.events) for w in writes],
            *columns([e for w in writes for e in w.events]),
        )
        found = list(zip(writes, heads or (), strict=True))
        if position is None:
            raise next(c for w, head in found if (c := conflict_of(w, head)))
        return AppendResult(tuple([head + len(w.events) for w, head in found]), position)

    async def append_many(self, requests: Sequence[Sequence[StreamWrite]]) -> list[AppendResult | StoreError]:
        """One round trip and one commit for all of them, up to STATEMENT_MAX."""
        for request in requests:
            if len(request) > 1:
                check_distinct(request)
        results: list[AppendResult | StoreError] = []
        for part in parts(requests):
            results += await self._append_part(part)
        return results

    async def _append_part(self, requests: Sequence[Sequence[StreamWrite]]) -> list[AppendResult | StoreError]:
        try:
            if are_ones(requests):
                return await self._append_ones([request[0] for request in requests])
            sql = _APPEND_IN_TURN if share_streams(requests) else _APPEND_EACH
            return await self._answered(sql, requests)
        except (EventRejected, _TooMuch) as error:  # of nothing was anything written, and the others must not suffer
            if len(requests) == 1:
                return [error]
            half = len(requests) // 2
            return await self._append_part(requests[:half]) + await self._append_part(requests[half:])
        except StoreError as error:
            return [error] * len(requests)

    async def _append_ones(self, writes: Sequence[StreamWrite]) -> list[AppendResult | StoreError]:
        order = sorted(range(len(writes)), key=[w.stream for w in writes].__getitem__)
        by_name = [writes[n] for n in order]
        heads, positions = await self._write(
            _APPEND_ONES,
            [w.stream for w in by_name],
            [w.expected for w in by_name],
            *columns([w.events[0] for w in by_name]),
        )
        stored = iter(positions or ())
        results: list[AppendResult | StoreError] = [_UNANSWERED] * len(writes)
        for n, w, head in zip(order, by_name, heads, strict=True):
            is_done = w.expected == head or w.expected < 0
            results[n] = AppendResult((head + 1,), next(stored)) if is_done else conflict_of(w, head) or _UNANSWERED
        return results

    async def _answered(self, sql: str, requests: Sequence[Sequence[StreamWrite]]) -> list[AppendResult | StoreError]:
        """The answer to each request, in one round trip."""
        writes = [write for request in requests for write in request]
        heads, positions = await self._write(
            sql,
            [n for n, request in enumerate(requests) for _ in request],
            [w.stream for w in writes],
            [w.expected for w in writes],
            [len(w.events) for w in writes],
            [slot for slot, w in enumerate(writes, 1) for _ in w.events],
            [nth for w in writes for nth in range(1, len(w.events) + 1)],
            *columns([e for w in writes for e in w.events]),
        )
        return answers(requests, iter(heads or ()), positions or ())

    async def _write(self, sql: str, *arguments: Any) -> Any:
        """The row of one appending statement; what went wrong becomes a StoreError that says whether it happened."""
        connection = self._pool.take() or await self._pool.acquire()
        is_usable = False
        try:
            rows = await connection.fetch(sql, *arguments)
            is_usable = True
            return rows[0]
        except (asyncpg.DataError, asyncpg.ProgramLimitExceededError) as error:
            is_usable = True
            raise EventRejected(str(error)) from None
        except _LOST as error:
            why = "no answer in time" if connection.is_overdue else f"the connection was lost: {error}"
            raise OutcomeUnknown(f"an append may or may not have happened, {why}") from None
        except asyncpg.OutOfMemoryError as error:  # too many locks at once, say
            is_usable = True
            raise _TooMuch(f"{type(error).__name__}: {error}") from None
        except asyncpg.PostgresError as error:  # the server said no: nothing of it was committed
            is_usable = True
            raise StoreError(f"{type(error).__name__}: {error}") from None
        except (TimeoutError, OSError) as error:
            raise OutcomeUnknown(f"no answer to an append: {error or type(error).__name__}") from None
        finally:
            self._pool.release(connection, is_usable)

    async def read_stream(self, stream: StreamId, from_version: int = 1, limit: int | None = None) -> StreamSlice:
        rows = await self._read(_READ_STREAM, stream, from_version, limit)
        events = tuple([StoredEvent(*row) for row in rows])
        if events and (limit is None or len(events) < limit):
            return StreamSlice(stream, events[-1].version, events)
        if from_version <= 1 and not events and limit != 0:
            return StreamSlice(stream, 0)
        head: int = (await self._read(_HEAD, stream))[0][0]
        if not events and limit != 0:  # what has come since the first statement was not read, so it is not told either
            head = min(head, from_version - 1)
        return StreamSlice(stream, head, events)

    async def read_streams(
        self, streams: Sequence[StreamId], from_versions: Sequence[int] | None = None
    ) -> list[StreamSlice]:
        asked = each_from(streams, from_versions)
        found = await self._streams(_READ_STREAMS, asked)
        if any(at > 1 and not events for (_, at), events in zip(asked, found, strict=True)):
            found = await self._streams(_READ_STREAMS_OR_LAST, asked)  # all of them again, for they are of one instant
        return [
            StreamSlice(
                stream,
                events[-1].version if events else 0,
                tuple([e for e in events[:1] if e.version >= at] + events[1:]),
            )
            for (stream, at), events in zip(asked, found, strict=True)
        ]

    async def _streams(self, sql: str, asked: Sequence[tuple[StreamId, int]]) -> list[list[StoredEvent]]:
        found: list[list[StoredEvent]] = [[] for _ in asked]
        for nth, *row in await self._read(sql, [stream for stream, _ in asked], [at for _, at in asked]):
            found[nth - 1].append(StoredEvent(*row))
        return found

    async def read_all(self, after: Position = 0, limit: int = 1000, where: Filter = EVERYTHING) -> list[StoredEvent]:
        if where == EVERYTHING:
            known = self._horizon.settled
            rows = await self._read(_READ_ALL, after, limit)
            if not rows or self._horizon.covers(known, after, rows[-1][0], len(rows)):
                return [StoredEvent(*row) for row in rows]
        settled = await self._using(self._horizon.advance)
        pattern = f"^(?:{where.regex})$" if where.glob else ""
        rows = await self._read(_READ_ALL_SETTLED, after, limit, settled, where.prefix, pattern, list(where.types))
        return [StoredEvent(*row) for row in rows]

    async def last_position(self) -> Position:
        return await self._using(self._horizon.advance)

    async def positions_drawn(self) -> int | None:
        """How far the sequence of positions has come; None where positions come from elsewhere (variants)."""
        if not (await self._read(_SEQUENCE))[0][0]:
            return None
        drawn: int = (await self._read(_DRAWN))[0][0]
        return drawn

    async def load_checkpoint(self, name: str) -> Position | None:
        rows = await self._read(_LOAD_CHECKPOINT, name)
        return int(rows[0][0]) if rows else None

    async def save_checkpoint(self, name: str, position: Position) -> None:
        await self._read(_SAVE_CHECKPOINT, name, position)

    async def load_snapshot(self, key: str) -> Snapshot | None:
        rows = await self._read(_LOAD_SNAPSHOT, key)
        return Snapshot(key, msgspec.json.decode(rows[0][0]), rows[0][1]) if rows else None

    async def save_snapshot(self, snapshot: Snapshot) -> bool:
        versions = msgspec.json.encode(snapshot.versions).decode()
        return bool(await self._read(_SAVE_SNAPSHOT, snapshot.key, versions, snapshot.state))

    async def try_lead(self, name: str) -> Lease | None:
        """The lease is a session lock on a connection of its own: it ends with the connection, whatever happens to us."""
        connection = await self._pool.connect()
        try:
            async with asyncio.timeout(self._pool.command_timeout_s):
                if (await connection.fetch(_TRY_LEAD, name))[0][0]:
                    return _Lease(connection)
                await connection.raw.close(timeout=5)
                return None
        except (asyncpg.PostgresError, *_LOST, OSError, TimeoutError) as error:
            connection.raw.terminate()
            kind = StoreUnreachable if isinstance(error, (*_LOST, OSError, TimeoutError)) else StoreError
            raise kind(f"the lease {name!r} could not be asked for: {error or 'no answer in time'}") from None
        except BaseException:
            connection.raw.terminate()
            raise

    async def in_transaction(self, statements: Sequence[tuple[str, Sequence[Any]]]) -> list[list[Any]]:
        """The rows of each statement; all of them take effect or none. For what somebody keeps beside the events. The whole
        may take as long as one command. Raises EventRejected for values that cannot be held, OutcomeUnknown when no answer
        came, StoreError when the server refuses one of them."""
        connection = self._pool.take() or await self._pool.acquire()
        is_usable = False
        try:
            try:
                rows = await _all_or_none(connection, statements)
            except asyncpg.PostgresError:
                await _undone(connection, statements)
                is_usable = True
                raise
            is_usable = True
            return rows
        except _LOST as error:
            why = "no answer in time" if connection.is_overdue else f"the connection was lost: {error}"
            raise OutcomeUnknown(f"a transaction may or may not have happened, {why}") from None
        except asyncpg.DataError as error:
            raise EventRejected(str(error)) from None
        except asyncpg.PostgresError as error:
            raise StoreError(f"{type(error).__name__}: {error}") from None
        except (TimeoutError, OSError) as error:
            raise OutcomeUnknown(f"no answer to a transaction: {error or type(error).__name__}") from None
        finally:
            self._pool.release(connection, is_usable)

    async def _read(self, sql: str, *arguments: Any) -> list[Any]:
        return await self._using(lambda connection: connection.fetch(sql, *arguments))

    async def _using(self, work: Callable[[Connection], Awaitable[T]]) -> T:
        """What `work` reads on a connection. One that turns out to be lost is replaced, for reading twice does no harm;
        what else goes wrong becomes a StoreError."""
        for tries_left in range(READ_TRIES - 1, -1, -1):
            connection = self._pool.take() or await self._pool.acquire()
            is_usable = False
            try:
                found = await work(connection)
                is_usable = True
                return found
            except (*_LOST, OSError) as error:
                if connection.is_overdue or not tries_left:
                    why = "in time" if connection.is_overdue else f"({error or type(error).__name__})"
                    raise StoreUnreachable(f"no answer to a read {why}") from None
            except asyncpg.PostgresError as error:
                raise StoreError(f"{type(error).__name__}: {error}") from None
            finally:
                self._pool.release(connection, is_usable)
        raise AssertionError("the last try returns or raises")

    async def close(self) -> None:
        await self._pool.close()


async def _all_or_none(connection: Connection, statements: Sequence[tuple[str, Sequence[Any]]]) -> list[list[Any]]:
    if len(statements) == 1:  # which is a transaction by itself, in one round trip
        return [await connection.fetch(statements[0][0], *statements[0][1])]
    await connection.raw.execute("BEGIN")
    rows = [await connection.fetch(sql, *arguments) for sql, arguments in statements]
    await connection.raw.execute("COMMIT")
    return rows


async def _undone(connection: Connection, statements: Sequence[tuple[str, Sequence[Any]]]) -> None:
    if len(statements) > 1:
        await connection.raw.execute("ROLLBACK")


class _Lease:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def release(self) -> None:
        try:
            await self._connection.raw.close(timeout=5)
        except Exception:  # a server that is gone has given the lock back already
            self._connection.raw.terminate()
