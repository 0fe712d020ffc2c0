"""The plain stores: `memory`, which is the model every other store is compared with, and `null`, which keeps nothing
and so shows what the harness itself costs."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from itertools import islice
from types import MappingProxyType

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
    VersionConflict,
    check_distinct,
)
from eventcore_lab.stores.protocol import Address, Lease, Place, PoolSettings, Store, each_from, stores


class Memory:
    """A list of all events and a list per stream. No method awaits anything, so each is atomic by construction."""

    def __init__(self) -> None:
        self._all: list[StoredEvent] = []
        self._streams: dict[StreamId, list[StoredEvent]] = {}
        self._checkpoints: dict[str, Position] = {}
        self._snapshots: dict[str, Snapshot] = {}
        self._leases: set[str] = set()

    async def append(self, writes: Sequence[StreamWrite]) -> AppendResult:
        return self._append(writes)

    async def append_many(self, requests: Sequence[Sequence[StreamWrite]]) -> list[AppendResult | StoreError]:
        for writes in requests:
            check_distinct(writes)
        return [self._try(writes) for writes in requests]

    def _try(self, writes: Sequence[StreamWrite]) -> AppendResult | StoreError:
        try:
            return self._append(writes)
        except VersionConflict as conflict:
            return conflict

    def _append(self, writes: Sequence[StreamWrite]) -> AppendResult:
        if len(writes) == 1:
            return AppendResult((self._write(writes[0], self._checked(writes[0])),), len(self._all))
        check_distinct(writes)
        streams = [self._checked(write) for write in writes]
        versions = tuple([self._write(write, stream) for write, stream in zip(writes, streams, strict=True)])
        return AppendResult(versions, len(self._all))

    def _checked(self, write: StreamWrite) -> list[StoredEvent] | None:
        """The stream's events, None if it has none yet. Raises VersionConflict."""
        stream = self._streams.get(write.stream)
        if write.expected >= 0:
            actual = 0 if stream is None else len(stream)
            if actual != write.expected:
                raise VersionConflict(write.stream, write.expected, actual)
        return stream

    def _write(self, write: StreamWrite, stream: list[StoredEvent] | None) -> int:
        if stream is None:
            if not write.events:
                return 0
            stream = self._streams[write.stream] = []
        everything, name, now_us = self._all, write.stream, time.time_ns() // 1000
        position, version = len(everything), len(stream)
        for e in write.events:
            position, version = position + 1, version + 1
            event = StoredEvent(position, name, version, e.id, e.type, e.data, e.meta, now_us)
            stream.append(event)
            everything.append(event)
        return version

    async def read_stream(self, stream: StreamId, from_version: int = 1, limit: int | None = None) -> StreamSlice:
        events = self._streams.get(stream, [])
        first = max(from_version, 1) - 1
        return StreamSlice(stream, len(events), tuple(events[first : None if limit is None else first + limit]))

    async def read_streams(
        self, streams: Sequence[StreamId], from_versions: Sequence[int] | None = None
    ) -> list[StreamSlice]:
        return [await self.read_stream(*each) for each in each_from(streams, from_versions)]

    async def read_all(self, after: Position = 0, limit: int = 1000, where: Filter = EVERYTHING) -> list[StoredEvent]:
        if where == EVERYTHING:
            return self._all[after : after + limit]
        wanted = (e for e in islice(self._all, after, None) if where.matches(e.stream, e.type))
        return list(islice(wanted, limit))

    async def last_position(self) -> Position:
        return len(self._all)

    async def load_checkpoint(self, name: str) -> Position | None:
        return self._checkpoints.get(name)

    async def save_checkpoint(self, name: str, position: Position) -> None:
        self._checkpoints[name] = position

    async def load_snapshot(self, key: str) -> Snapshot | None:
        return self._snapshots.get(key)

    async def save_snapshot(self, snapshot: Snapshot) -> bool:
        there = self._snapshots.get(snapshot.key)
        if there is not None and snapshot.is_behind(there):
            return False
        self._snapshots[snapshot.key] = snapshot
        return True

    async def try_lead(self, name: str) -> Lease | None:
        if name in self._leases:
            return None
        self._leases.add(name)
        return _Lease(self._leases, name)

    async def close(self) -> None:
        return


class _Lease:
    def __init__(self, held: set[str], name: str) -> None:
        self._held, self._name = held, name

    async def release(self) -> None:
        self._held.discard(self._name)


class Null:
    """Acknowledges every append and keeps nothing. Expectations are believed, so commands on fresh streams run."""

    def __init__(self) -> None:
        self._position = 0

    async def append(self, writes: Sequence[StreamWrite]) -> AppendResult:
        self._position += sum([len(w.events) for w in writes])
        return AppendResult(tuple([max(w.expected, 0) + len(w.events) for w in writes]), self._position)

    async def append_many(self, requests: Sequence[Sequence[StreamWrite]]) -> list[AppendResult | StoreError]:
        return [await self.append(writes) for writes in requests]

    async def read_stream(self, stream: StreamId, from_version: int = 1, limit: int | None = None) -> StreamSlice:
        return StreamSlice(stream, 0)

    async def read_streams(
        self, streams: Sequence[StreamId], from_versions: Sequence[int] | None = None
    ) -> list[StreamSlice]:
        return [StreamSlice(stream, 0) for stream in streams]

    async def read_all(self, after: Position = 0, limit: int = 1000, where: Filter = EVERYTHING) -> list[StoredEvent]:
        return []

    async def last_position(self) -> Position:
        return 0

    async def load_checkpoint(self, name: str) -> Position | None:
        return None

    async def save_checkpoint(self, name: str, position: Position) -> None:
        return

    async def load_snapshot(self, key: str) -> Snapshot | None:
        return None

    async def save_snapshot(self, snapshot: Snapshot) -> bool:
        return False

    async def try_lead(self, name: str) -> Lease | None:
        return _Lease(set(), name)

    async def close(self) -> None:
        return


class _InProcess:
    """The driver of a store that lives in the memory of the process that connects."""

    lacks: Mapping[str, str] = MappingProxyType({})

    def __init__(self, name: str, make: type[Memory] | type[Null], durability: str) -> None:
        self._name, self._make, self._durability = name, make, durability
        self.is_shared = make is Null  # all processes see the same events of it: none

    @asynccontextmanager
    async def provision(self) -> AsyncIterator[Place]:
        yield Place(Address(self._name), self._durability, keeps_events=self._make is not Null)

    async def connect(self, address: Address, pool: PoolSettings) -> Store:
        return self._make()


@stores.register("memory")
def memory() -> _InProcess:
    """Lists in the worker's own memory: the reference every other store is compared with."""
    return _InProcess("memory", Memory, "none: lost when the process ends")


@stores.register("null")
def null() -> _InProcess:
    """Acknowledges and keeps nothing: the floor, what the harness itself costs."""
    return _InProcess("null", Null, "none: keeps nothing")
