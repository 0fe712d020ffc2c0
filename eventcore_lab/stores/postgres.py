"""The `postgres` store: one round trip per append, versions checked under a lock, positions that readers can trust.

The SQL and the reasons for its order are in sql/postgres.sql. Reading in position order needs care, since a position is
drawn before its transaction commits: a reader may see 7 while 6 is still on its way. `_Horizon` says up to where
everything is settled.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from typing import Any

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
    StreamId,
    StreamSlice,
    StreamWrite,
    VersionConflict,
    check_distinct,
)
from eventcore_lab.stores.pool import Connection, Pool
from eventcore_lab.stores.protocol import Lease

SCHEMA_SQL = files("eventcore_lab.stores").joinpath("sql/postgres.sql").read_text()

_APPEND_ONE = "SELECT head, last_position FROM append_one($1, $2, $3, $4, $5, $6)"
_APPEND_ALL = "SELECT heads, last_position FROM append_all($1, $2, $3, $4, $5, $6, $7, $8, $9)"
_APPEND_EACH = "SELECT heads, positions FROM append_each($1, $2, $3, $4, $5, $6, $7, $8)"

# In the order of StoredEvent's fields, so that a row becomes an event without naming a column.
_COLUMNS = """position, stream_id, version, event_id, event_type, data, meta,
    (extract(epoch FROM recorded_at) * 1000000)::bigint"""
_READ_STREAM = f"""SELECT {_COLUMNS} FROM events
    WHERE stream_id = $1 AND version >= $2 ORDER BY version LIMIT $3"""
_HEAD = "SELECT coalesce(max(version), 0) FROM events WHERE stream_id = $1"
_READ_STREAMS = f"""SELECT {_COLUMNS} FROM events
    WHERE stream_id = ANY($1) ORDER BY stream_id, version"""
_READ_ALL = f"""SELECT {_COLUMNS} FROM events
    WHERE position > $1 ORDER BY position LIMIT $2"""
_READ_ALL_SETTLED = f"""SELECT {_COLUMNS} FROM events
    WHERE position > $1 AND position <= $3 AND starts_with(stream_id, $4) AND ($5 = '' OR stream_id ~ $5)
    AND ($6::text[] = '{{}}' OR event_type = ANY($6)) ORDER BY position LIMIT $2"""
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


class Postgres:
    """A Store over a pool of its own."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._horizon = _Horizon()

    async def append(self, writes: Sequence[StreamWrite]) -> AppendResult:
        if len(writes) == 1 and writes[0].events:
            return await self._append_one(writes[0])
        return await self._append_all(writes)

    async def _append_one(self, write: StreamWrite) -> AppendResult:
        head, position = await self._write(_APPEND_ONE, write.stream, write.expected, *_columns(write.events))
        if position is None:
            raise VersionConflict(write.stream, write.expected, head)
        return AppendResult((head + len(write.events),), position)

    async def _append_all(self, writes: Sequence[StreamWrite]) -> AppendResult:
        check_distinct(writes)
        heads, position = await self._write(
            _APPEND_ALL,
            [w.stream for w in writes],
            [w.expected for w in writes],
            [len(w.events) for w in writes],
            *_placed(writes),
        )
        if position is None:
            raise next(c for w, head in zip(writes, heads, strict=True) if (c := _conflict(w, head)))
        return AppendResult(tuple([h + len(w.events) for w, h in zip(writes, heads, strict=True)]), position)

    async def append_many(self, requests: Sequence[Sequence[StreamWrite]]) -> list[AppendResult | StoreError]:
        """Requests for one stream each go together, in one round trip; the others follow by themselves, in their order."""
        results: list[AppendResult | StoreError | None] = [None] * len(requests)
        together: dict[StreamId, int] = {}
        for i, writes in enumerate(requests):
            if len(writes) == 1 and writes[0].events and writes[0].stream not in together:
                together[writes[0].stream] = i
        if together:
            indexes = list(together.values())
            for i, result in zip(indexes, await self._append_each([requests[i][0] for i in indexes]), strict=True):
                results[i] = result
        return [result or await self._alone(requests[i]) for i, result in enumerate(results)]

    async def _alone(self, writes: Sequence[StreamWrite]) -> AppendResult | StoreError:
        try:
            return await self.append(writes)
        except StoreError as error:
            return error

    async def _append_each(self, writes: Sequence[StreamWrite]) -> list[AppendResult | StoreError]:
        try:
            heads, positions = await self._write(
                _APPEND_EACH, [w.stream for w in writes], [w.expected for w in writes], *_placed(writes)
            )
        except EventRejected as error:  # one of them, and nothing was written: the others must not suffer
            if len(writes) == 1:
                return [error]
            half = len(writes) // 2
            return await self._append_each(writes[:half]) + await self._append_each(writes[half:])
        except StoreError as error:
            return [error] * len(writes)
        results: list[AppendResult | StoreError] = []
        taken = 0
        for write, head in zip(writes, heads, strict=True):
            conflict = _conflict(write, head)
            if conflict is None:
                taken += len(write.events)
                results.append(AppendResult((head + len(write.events),), positions[taken - 1]))
            else:
                results.append(conflict)
        return results

    async def _write(self, sql: str, *arguments: Any) -> Any:
        """The row of one appending statement; what went wrong becomes a StoreError that says whether it happened."""
        connection = await self._pool.acquire()
        is_usable = False
        try:
            row = await connection.fetch_row(sql, *arguments)
            is_usable = True
            return row
        except (asyncpg.DataError, asyncpg.ProgramLimitExceededError) as error:
            is_usable = True
            raise EventRejected(str(error)) from None
        except (asyncpg.PostgresConnectionError, asyncpg.OperatorInterventionError, asyncpg.InterfaceError) as error:
            raise OutcomeUnknown(f"the connection was lost during an append: {error}") from None
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
        return StreamSlice(stream, (await self._read(_HEAD, stream))[0][0], events)

    async def read_streams(self, streams: Sequence[StreamId]) -> list[StreamSlice]:
        found: dict[str, list[StoredEvent]] = {stream: [] for stream in streams}
        for row in await self._read(_READ_STREAMS, list(found)):
            found[row[1]].append(StoredEvent(*row))
        return [StreamSlice(s, len(found[s]), tuple(found[s])) for s in streams]

    async def read_all(self, after: Position = 0, limit: int = 1000, where: Filter = EVERYTHING) -> list[StoredEvent]:
        if where == EVERYTHING:
            rows = await self._read(_READ_ALL, after, limit)
            if not rows or self._horizon.covers(after, rows[0][0], rows[-1][0], len(rows)):
                return [StoredEvent(*row) for row in rows]
        settled = await self._settled()
        pattern = f"^(?:{where.regex})$" if where.glob else ""
        rows = await self._read(_READ_ALL_SETTLED, after, limit, settled, where.prefix, pattern, list(where.types))
        return [StoredEvent(*row) for row in rows]

    async def last_position(self) -> Position:
        return await self._settled()

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
        if (await connection.fetch_row(_TRY_LEAD, name))[0]:
            return _Lease(connection)
        await connection.raw.close(timeout=5)
        return None

    async def _settled(self) -> Position:
        connection = await self._pool.acquire()
        is_usable = False
        try:
            settled = await self._horizon.advance(connection)
            is_usable = True
            return settled
        finally:
            self._pool.release(connection, is_usable)

    async def _read(self, sql: str, *arguments: Any) -> list[Any]:
        connection = await self._pool.acquire()
        is_usable = False
        try:
            rows = await connection.fetch(sql, *arguments)
            is_usable = True
            return rows
        except asyncpg.PostgresError as error:
            raise StoreError(f"{type(error).__name__}: {error}") from None
        except (TimeoutError, OSError, asyncpg.InterfaceError) as error:
            raise StoreError(f"no answer to a read: {error or type(error).__name__}") from None
        finally:
            self._pool.release(connection, is_usable)

    async def close(self) -> None:
        await self._pool.close()


class _Lease:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def release(self) -> None:
        try:
            await self._connection.raw.close(timeout=5)
        except Exception:  # a server that is gone has given the lock back already
            self._connection.raw.terminate()


class _Horizon:
    """Up to which position everything is settled: committed, or never to come.

    Where positions are contiguous they are settled, since all of them are seen. At a hole, take a transaction id as a
    *fence* after having seen a row above the hole: every append takes its id before its first position, so whoever may
    still fill the hole is older than the fence, and once the oldest running transaction is not, a new look decides.
    (The snapshot's own xmax is no fence: transactions with higher ids may be running already.)
    """

    _COUNT_AT_MOST = 10_000

    def __init__(self) -> None:
        self._settled: Position = 0
        self._fence: tuple[int, Position] | None = None

    def covers(self, after: Position, first: Position, last: Position, count: int) -> bool:
        """Whether a page of `count` rows, `first` to `last`, read behind `after`, is settled without asking further."""
        if last <= self._settled:
            return True
        if after <= self._settled and first <= self._settled:
            return False  # reaches across; rare, and the way through `advance` answers it
        if last - after != count:
            return False
        if after <= self._settled:
            self._settled = last
        return True

    async def advance(self, connection: Connection) -> Position:
        """The settled position now. One round trip while there is no hole, up to four at a hole."""
        top = (await connection.fetch("SELECT coalesce(max(position), 0) FROM events"))[0][0]
        if self._fence is None and top - self._settled <= self._COUNT_AT_MOST:
            contiguous = await self._contiguous_to(connection, top)
            if contiguous >= top:
                self._settled = max(self._settled, contiguous)
                return self._settled
        if self._fence is None:
            self._fence = ((await connection.fetch("SELECT pg_current_xact_id()::text::bigint"))[0][0], top)
        fence, fenced_top = self._fence
        oldest = (await connection.fetch("SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint"))[0][0]
        if oldest >= fence:
            self._settled, self._fence = max(self._settled, fenced_top), None
        else:
            self._settled = max(self._settled, await self._contiguous_to(connection, top))
        return self._settled

    async def _contiguous_to(self, connection: Connection, top: Position) -> Position:
        """The last position before the first hole above what is settled."""
        rows = await connection.fetch(
            """SELECT coalesce(min(before), $2) FROM (
                   SELECT position, lag(position, 1, $1) OVER (ORDER BY position) AS before
                   FROM events WHERE position > $1 AND position <= $2) AS steps
               WHERE position <> before + 1""",
            self._settled,
            top,
        )
        position: int = rows[0][0]
        return position


def _columns(events: Sequence[Any]) -> tuple[list[Any], list[str], list[bytes], list[bytes]]:
    if len(events) == 1:
        e = events[0]
        return [e.id], [e.type], [e.data], [e.meta]
    return [e.id for e in events], [e.type for e in events], [e.data for e in events], [e.meta for e in events]


def _placed(writes: Sequence[StreamWrite]) -> tuple[list[Any], ...]:
    """Per event of all writes: its stream's index and its place there, both from 1, then its columns."""
    of = [i for i, w in enumerate(writes, 1) for _ in w.events]
    nth = [n for w in writes for n in range(1, len(w.events) + 1)]
    return of, nth, *_columns([e for w in writes for e in w.events])


def _conflict(write: StreamWrite, head: int) -> VersionConflict | None:
    return VersionConflict(write.stream, write.expected, head) if 0 <= write.expected != head else None


async def create(dsn: str, schema: str, timeout_s: float) -> None:
    """Make `schema` with its table and functions."""
    connection = await asyncpg.connect(dsn, timeout=timeout_s)
    try:
        async with connection.transaction():
            await connection.execute(f'CREATE SCHEMA "{schema}"')
            await connection.execute(f'SET LOCAL search_path = "{schema}"')
            await connection.execute(SCHEMA_SQL)
    finally:
        await connection.close()


async def drop(dsn: str, schema: str, timeout_s: float) -> None:
    """Remove `schema` and all in it; a server that is gone has nothing to remove."""
    try:
        connection = await asyncpg.connect(dsn, timeout=timeout_s)
    except (OSError, asyncpg.PostgresError, TimeoutError):
        return
    try:
        await connection.execute(f'DROP SCHEMA IF EXISTS "{schema}" CASCADE')
    finally:
        await connection.close()
