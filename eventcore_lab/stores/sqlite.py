"""The `sqlite` store: one file in WAL mode, one thread that writes groups of appends, a few threads that read.

Variants: `full` flushes every commit to the device before it is acknowledged, `normal` leaves that to SQLite's
checkpoints. The group commit is in `sqlite_writer`, the transactions are in `sqlite_file`, the tables in sql/sqlite.sql.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import sqlite3
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from hashlib import sha256
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from eventcore_lab.events import (
    EVERYTHING,
    AppendResult,
    Filter,
    Position,
    Snapshot,
    StoredEvent,
    StoreError,
    StreamId,
    StreamSlice,
    StreamWrite,
    check_distinct,
)
from eventcore_lab.schema import current_attempt
from eventcore_lab.spec import unknown
from eventcore_lab.stores import sqlite_file
from eventcore_lab.stores.directories import IN_MEMORY, filesystem_of, on_disk
from eventcore_lab.stores.protocol import Address, Lease, Place, PoolSettings, Store, each_from, stores
from eventcore_lab.stores.sqlite_writer import Writer
from eventcore_lab.stores.threads import Threads

T = TypeVar("T")

VARIANTS = ("full", "normal")
READERS_MAX = 4
"""Threads that read at once, at most: they share one interpreter, and more of them only wait for each other."""


class Sqlite:
    """A Store over one file. Writes go through `writer`, reads through connections of their own, which it never blocks."""

    def __init__(self, path: str, writer: Writer, settings: PoolSettings) -> None:
        self._path, self._writer = path, writer
        self._readers = _Readers(path, settings)
        self._leases: set[_Lease] = set()

    async def append(self, writes: Sequence[StreamWrite]) -> AppendResult:
        if len(writes) > 1:
            check_distinct(writes)
        result: AppendResult = await self._write(writes)
        return result

    async def append_many(self, requests: Sequence[Sequence[StreamWrite]]) -> list[AppendResult | StoreError]:
        """All in one transaction, in the order given."""
        for writes in requests:
            check_distinct(writes)
        return await self._writer.do(requests, current_attempt.get()) if requests else []

    async def _write(self, part: sqlite_file.Part) -> Any:
        (answer,) = await self._writer.do((part,), current_attempt.get())
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def read_stream(self, stream: StreamId, from_version: int = 1, limit: int | None = None) -> StreamSlice:
        return await self._readers.do(sqlite_file.read_stream, stream, from_version, limit)

    async def read_streams(
        self, streams: Sequence[StreamId], from_versions: Sequence[int] | None = None
    ) -> list[StreamSlice]:
        return await self._readers.do(sqlite_file.read_streams, each_from(streams, from_versions))

    async def read_all(self, after: Position = 0, limit: int = 1000, where: Filter = EVERYTHING) -> list[StoredEvent]:
        return await self._readers.do(sqlite_file.read_all, after, limit, where)

    async def last_position(self) -> Position:
        return await self._readers.do(sqlite_file.last_position)

    async def load_checkpoint(self, name: str) -> Position | None:
        return await self._readers.do(sqlite_file.load_checkpoint, name)

    async def save_checkpoint(self, name: str, position: Position) -> None:
        await self._write(sqlite_file.saving_checkpoint(name, position))

    async def load_snapshot(self, key: str) -> Snapshot | None:
        return await self._readers.do(sqlite_file.load_snapshot, key)

    async def save_snapshot(self, snapshot: Snapshot) -> bool:
        is_kept: bool = await self._write(sqlite_file.saving_snapshot(snapshot))
        return is_kept

    async def try_lead(self, name: str) -> Lease | None:
        """The lease is a lock on a file beside the database, which the system gives back when the process ends. It
        belongs to the open file, so a second one in the same process is refused as well."""
        handle = os.open(f"{self._path}-lead-{sha256(name.encode()).hexdigest()[:32]}", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(handle)
            return None
        lease = _Lease(handle, self._leases)
        self._leases.add(lease)
        return lease

    async def close(self) -> None:
        """What is queued is written first; leases end last."""
        await self._writer.close()
        await self._readers.close()
        for lease in list(self._leases):
            await lease.release()


class _Lease:
    def __init__(self, handle: int, held: set[_Lease]) -> None:
        self._handle, self._held = handle, held

    async def release(self) -> None:
        if self in self._held:
            self._held.remove(self)
            os.close(self._handle)


class _Readers:
    """Threads that read, each with a connection of its own, opened when it is first needed."""

    def __init__(self, path: str, settings: PoolSettings) -> None:
        self._path, self._settings = path, settings
        count = min(READERS_MAX, max(1, settings.max_connections - 1))  # the writer has one
        self._threads = Threads(count, settings.acquire_timeout_s, settings.command_timeout_s)
        self._mine = threading.local()
        self._connections: list[sqlite3.Connection] = []
        self._is_closed = False

    async def do(self, read: Callable[..., T], *arguments: Any) -> T:
        """What `read(connection, *arguments)` gives. StoreError when it cannot, or takes too long."""
        if self._is_closed:
            raise StoreError("the store is closed")
        try:
            return await self._threads.run(self._read, read, arguments)
        except TimeoutError:
            raise StoreError(f"no answer to a read within {self._settings.command_timeout_s:g} s") from None

    def _read(self, read: Callable[..., T], arguments: Sequence[Any]) -> T:
        if self._is_closed:
            raise StoreError("the store is closed")
        try:
            return read(self._connection(), *arguments)
        except (sqlite3.Error, ValueError, OverflowError) as error:
            raise StoreError(f"SQLite could not read this: {error}") from None

    def _connection(self) -> sqlite3.Connection:
        connection: sqlite3.Connection | None = getattr(self._mine, "connection", None)
        if connection is None:
            timeout_s = self._settings.acquire_timeout_s
            connection = sqlite_file.opened(self._path, is_reader=True, timeout_s=timeout_s)
            self._mine.connection = connection
            self._connections.append(connection)
        return connection

    async def close(self) -> None:
        """Reads under way are cut off."""
        self._is_closed = True
        for connection in self._connections:
            connection.interrupt()
        await self._threads.close()
        while self._connections:
            self._connections.pop().close()


class SqliteDriver:
    """Provisions a file of its own in a directory that is removed at the end."""

    is_shared = True
    lacks: Mapping[str, str] = MappingProxyType({})

    def __init__(self, variant: str, group: int) -> None:
        if variant not in VARIANTS:
            raise unknown("variant of store sqlite", variant, VARIANTS)
        if group < 1:
            raise ValueError(f"group must be at least 1, not {group}")
        self._synchronous, self._group = variant, group

    @asynccontextmanager
    async def provision(self) -> AsyncIterator[Place]:
        with tempfile.TemporaryDirectory(
            prefix="eventcore-lab-sqlite-", dir=on_disk(), ignore_cleanup_errors=True
        ) as folder:
            yield await asyncio.to_thread(self._place, Path(folder) / "events.db")

    def _place(self, path: Path) -> Place:
        sqlite_file.create(path)
        found, filesystem = sqlite_file.pragmas(str(path), self._synchronous), filesystem_of(path.resolve())
        return Place(
            Address(f"sqlite:{self._synchronous}", schema=str(path)),
            durability(found, filesystem),
            f"SQLite {sqlite3.sqlite_version}",
            facts={
                **{f"sqlite.{name}": value for name, value in found.items()},
                "sqlite.group": str(self._group),
                "sqlite.filesystem": filesystem,
            },
        )

    async def connect(self, address: Address, pool: PoolSettings) -> Store:
        writer = Writer(address.schema, self._synchronous, self._group, pool)
        await writer.open()
        return Sqlite(address.schema, writer, pool)


def durability(pragmas: Mapping[str, str], filesystem: str) -> str:
    """The class first, then what it rests on. `durable`: acknowledged means flushed to the device."""
    if filesystem in IN_MEMORY:
        return f"not durable (the data is on {filesystem}, in memory)"
    shown = f"(synchronous={pragmas['synchronous']}, {pragmas['journal_mode'].upper()})"
    return f"{'durable' if pragmas['synchronous'] in ('FULL', 'EXTRA') else 'flushed later'} {shown}"


@stores.register("sqlite")
def _sqlite(*, variant: str = "full", group: int = 500) -> SqliteDriver:
    """One file in WAL mode, full or normal: appends that wait go into one commit, at most `group` of them."""
    return SqliteDriver(variant, group)
