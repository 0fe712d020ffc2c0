"""What a store promises, how a driver makes one, and where drivers register.

A *driver* is what a spec such as `postgres` or `memory` names. It *provisions* a place (a server, a fresh schema) once,
in the process that runs the experiment, and *connects* to that place in whichever process puts the load on it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Protocol

from msgspec import Struct

from eventcore_lab.events import AppendResult, Position, StoredEvent, StoreError, StreamId, StreamSlice, StreamWrite
from eventcore_lab.spec import Registry


class Store(Protocol):
    """An event store, seen from one process. All methods may be called by many tasks at once."""

    async def append(self, writes: Sequence[StreamWrite]) -> AppendResult:
        """All of `writes` (one per stream) or none. Raises VersionConflict with the true actual version."""
        ...

    async def append_many(self, requests: Sequence[Sequence[StreamWrite]]) -> list[AppendResult | StoreError]:
        """Independent appends, each with its own result in its own place: no conflict fails a neighbour."""
        ...

    async def read_stream(self, stream: StreamId, from_version: int = 1, limit: int | None = None) -> StreamSlice:
        """Events with version ≥ `from_version`, at most `limit`. A stream that does not exist is empty, version 0."""
        ...

    async def read_streams(self, streams: Sequence[StreamId]) -> list[StreamSlice]:
        """Several whole streams as of one instant, in the order asked for."""
        ...

    async def read_all(
        self, after: Position = 0, limit: int = 1000, *, prefix: str = "", types: Sequence[str] = ()
    ) -> list[StoredEvent]:
        """Events behind `after` in position order, at most `limit`, filtered (before the limit) by the start of their
        stream's id and by type. Reading on from the last position misses nothing that is committed later."""
        ...

    async def close(self) -> None: ...


class PoolSettings(Struct, frozen=True, kw_only=True):
    """A connection pool, in the words of the chapter's OptimizedPostgresConfig. Times in seconds."""

    max_connections: int = 20
    min_connections: int = 5
    acquire_timeout_s: float = 30.0
    idle_timeout_s: float = 600.0
    max_lifetime_s: float = 1800.0
    connect_timeout_s: float = 5.0
    command_timeout_s: float = 30.0
    application_name: str = "eventcore_lab"

    def __post_init__(self) -> None:
        if not self.max_connections > 0:
            raise ValueError(f"max_connections must be at least 1, not {self.max_connections}")
        if not 0 <= self.min_connections <= self.max_connections:
            raise ValueError(f"min_connections must be 0 to {self.max_connections}, not {self.min_connections}")
        times = ("acquire_timeout_s", "idle_timeout_s", "max_lifetime_s", "connect_timeout_s", "command_timeout_s")
        for name in times:
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, not {getattr(self, name)}")

    @classmethod
    def production(cls) -> PoolSettings:
        """The chapter's figures: 20 connections, 5 kept, 30 s to acquire, 10 min idle, 30 min of life, 5 s to connect."""
        return cls()

    @classmethod
    def sized(cls, connections: int) -> PoolSettings:
        """Exactly `connections`, all opened before the load, so that no operation pays for a connect."""
        return cls(max_connections=connections, min_connections=connections)


class Address(Struct, frozen=True):
    """Where a provisioned store is. Handed to worker processes in memory only: the DSN may hold a password."""

    spec: str
    dsn: str = ""
    schema: str = ""


@dataclass(frozen=True)
class Place:
    """A provisioned store: its address, and the facts recorded with every run on it (never a password)."""

    address: Address
    durability: str
    server: str = ""
    keeps_events: bool = True
    facts: Mapping[str, str] = field(default_factory=dict)
    server_pids: Callable[[], list[int]] = list


class Driver(Protocol):
    """What a store's spec stands for. `is_shared`: several processes see the same events at one address."""

    is_shared: bool

    def provision(self) -> AbstractAsyncContextManager[Place]: ...
    async def connect(self, address: Address, pool: PoolSettings) -> Store: ...


stores: Registry[Driver] = Registry("store")


@asynccontextmanager
async def open_store(spec: str, pool: PoolSettings | None = None) -> AsyncIterator[Store]:
    """A store from its spec for a script or a test: provisioned, connected, and both undone at the end."""
    driver = stores.make(spec)
    async with driver.provision() as place:
        store = await driver.connect(place.address, pool or PoolSettings())
        try:
            yield store
        finally:
            await store.close()


async def stream_all(store: Store, after: Position = 0, page: int = 1000) -> AsyncIterator[StoredEvent]:
    """Everything behind `after` in position order, `page` events in memory at a time. Raises StoreError when a page ends
    where it began, which would be read for ever."""
    while events := await store.read_all(after, page):
        if events[-1].position <= after:
            raise StoreError(f"read_all gave position {events[-1].position} as the last behind {after}")
        for event in events:
            yield event
        after = events[-1].position


async def stream_events(
    store: Store, stream: StreamId, from_version: int = 1, page: int = 1000
) -> AsyncIterator[StoredEvent]:
    """One stream from `from_version` on, `page` events in memory at a time."""
    while True:
        events = (await store.read_stream(stream, from_version, page)).events
        for event in events:
            yield event
        if len(events) < page:
            return
        from_version = events[-1].version + 1
