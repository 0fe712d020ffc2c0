"""The workloads that read, for stores that have events already."""

from __future__ import annotations

from typing import Any

from eventcore_lab.commands import Executor
from eventcore_lab.events import StoredEvent, StoreError, StreamId
from eventcore_lab.load.workloads.workload import EVENTS_PER_APPEND_MAX, Performer, Plain, mixed, workloads
from eventcore_lab.stores.protocol import Store
from eventcore_lab.stores.reading import stream_all

FIRST_EVENTS_MAX = 100_000


class ReadPages(Plain):
    """Pages of everything, each behind a position that chance picks between the first and the last there were."""

    only_reads = True

    def __init__(self, seed: int, limit: int) -> None:
        self._seed, self._limit = seed, limit

    def prepare(self, k: int) -> float:
        return mixed(self._seed, k) / 2**64

    def start(self, store: Store, executor: Executor) -> Performer:
        limit = self._limit
        ends: list[int] = []

        async def perform(prepared: Any) -> int:
            if not ends:
                ends[:] = (await _something(store))[0].position - 1, await store.last_position()
            first, last = ends
            return len(await store.read_all(first + int((last - first) * prepared), limit))

        return perform


class ReadStreams(Plain):
    """Whole streams, picked by chance among the first that the store has."""

    only_reads = True

    def __init__(self, seed: int, streams: int) -> None:
        self._seed, self._streams = seed, streams

    def prepare(self, k: int) -> int:
        return mixed(self._seed, k)

    def start(self, store: Store, executor: Executor) -> Performer:
        wanted = self._streams
        names: list[StreamId] = []

        async def perform(prepared: Any) -> int:
            if not names:
                names[:] = await _first_streams(store, wanted)
            return len((await store.read_stream(names[prepared % len(names)])).events)

        return perform


async def _something(store: Store) -> list[StoredEvent]:
    if events := await store.read_all(0, 1):
        return events
    raise StoreError("the store has no event to read: point the experiment at one that has, as in env:LAB_DSN,schema=…")


async def _first_streams(store: Store, wanted: int) -> list[StreamId]:
    """The streams of the first events, so many, or of the first FIRST_EVENTS_MAX events."""
    await _something(store)
    seen: dict[StreamId, None] = {}
    looked_at = 0
    async for event in stream_all(store):
        seen[event.stream] = None
        looked_at += 1
        if len(seen) >= wanted or looked_at >= FIRST_EVENTS_MAX:
            break
    return list(seen)


@workloads.register("read_pages")
def read_pages(*, limit: int = 1000, seed: int) -> ReadPages:
    """Reads pages of everything, from anywhere: for a store that has events already."""
    if not 1 <= limit <= EVENTS_PER_APPEND_MAX:
        raise ValueError(f"limit must be 1 to {EVENTS_PER_APPEND_MAX} events, not {limit}")
    return ReadPages(seed, limit)


@workloads.register("read_streams")
def read_streams(*, streams: int = 1000, seed: int) -> ReadStreams:
    """Reads whole streams, picked among the first so many: for a store that has events already."""
    if not 1 <= streams <= FIRST_EVENTS_MAX:
        raise ValueError(f"streams must be 1 to {FIRST_EVENTS_MAX}, not {streams}")
    return ReadStreams(seed, streams)
