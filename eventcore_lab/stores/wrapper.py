"""A store around a store that passes everything on: what a wrapper starts from, to change one thing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

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
)
from eventcore_lab.stores.protocol import Lease, Store


async def positions_drawn(store: Store) -> int | None:
    """How many positions the store has given out, stored or not; None when it does not say. Only a store whose positions
    come from a sequence has anything to say: its own method of this name."""
    ask = getattr(_innermost(store), "positions_drawn", None)
    drawn: int | None = await ask() if ask is not None else None
    return drawn


class UsesPool(Protocol):
    """What a pool of connections tells of itself at any moment."""

    @property
    def in_use(self) -> int: ...
    @property
    def waiting(self) -> int: ...


def pool_of(store: Store) -> UsesPool | None:
    """The pool that a store's appends take their connections from; None when it does not say. Only a store over one of ours has
    anything to say: its own attribute `pool`."""
    pool: UsesPool | None = getattr(_innermost(store), "pool", None)
    return pool


def _innermost(store: Store) -> Store:
    while isinstance(store, Wrapper):
        store = store.inner
    return store


class Wrapper:
    """Every call goes to `inner` as it is."""

    def __init__(self, inner: Store) -> None:
        self.inner = inner

    async def append(self, writes: Sequence[StreamWrite]) -> AppendResult:
        return await self.inner.append(writes)

    async def append_many(self, requests: Sequence[Sequence[StreamWrite]]) -> list[AppendResult | StoreError]:
        return await self.inner.append_many(requests)

    async def read_stream(self, stream: StreamId, from_version: int = 1, limit: int | None = None) -> StreamSlice:
        return await self.inner.read_stream(stream, from_version, limit)

    async def read_streams(
        self, streams: Sequence[StreamId], from_versions: Sequence[int] | None = None
    ) -> list[StreamSlice]:
        return await self.inner.read_streams(streams, from_versions)

    async def read_all(self, after: Position = 0, limit: int = 1000, where: Filter = EVERYTHING) -> list[StoredEvent]:
        return await self.inner.read_all(after, limit, where)

    async def last_position(self) -> Position:
        return await self.inner.last_position()

    async def load_checkpoint(self, name: str) -> Position | None:
        return await self.inner.load_checkpoint(name)

    async def save_checkpoint(self, name: str, position: Position) -> None:
        await self.inner.save_checkpoint(name, position)

    async def load_snapshot(self, key: str) -> Snapshot | None:
        return await self.inner.load_snapshot(key)

    async def save_snapshot(self, snapshot: Snapshot) -> bool:
        return await self.inner.save_snapshot(snapshot)

    async def try_lead(self, name: str) -> Lease | None:
        return await self.inner.try_lead(name)

    async def close(self) -> None:
        await self.inner.close()
