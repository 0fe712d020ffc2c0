"""The workloads that read: what the store has already, or what it was filled with for them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

from eventcore_lab.commands import Executor
from eventcore_lab.events import StoredEvent, StoreError, StreamId, StreamWrite
from eventcore_lab.load.workloads.payloads import PAYLOAD_BYTES_MAX, Numbered
from eventcore_lab.load.workloads.sizes import lengths_of, sizes_of
from eventcore_lab.load.workloads.workload import EVENTS_PER_APPEND_MAX, Performer, Plain, mixed, within, workloads
from eventcore_lab.spec import unknown
from eventcore_lab.stores.protocol import Store
from eventcore_lab.stores.reading import stream_all

FIRST_EVENTS_MAX = 100_000
TOGETHER_MAX = 1000
ROUNDS = 20
"""The streams of a filled store grow in so many rounds, so that the events of one lie apart as they do where people write."""
WAYS = ("joint", "parallel", "one_by_one")

Read = Callable[[Sequence[StreamId]], Awaitable[int]]
"""Reads these streams; the number of events."""


class Stock:
    """What a store is filled with beforehand: `streams` streams of `events` events. Nothing if `events` is 0."""

    def __init__(self, seed: int, streams: int, events: int, payload_bytes: int) -> None:
        within("payload_bytes", payload_bytes, 1, PAYLOAD_BYTES_MAX)
        if events:  # for its bounds
            lengths_of("constant", seed, streams, events, "streams")
        self._streams, self._events = streams if events else 0, events
        self._seed, self._numbered = seed, Numbered(seed, sizes_of("constant", payload_bytes, PAYLOAD_BYTES_MAX))

    @property
    def streams(self) -> list[StreamId]:
        return [StreamId(f"read-{mixed(self._seed, n):016x}") for n in range(self._streams)]

    def appends(self) -> Iterator[Sequence[StreamWrite]]:
        streams, step = self.streams, -(-self._events // ROUNDS)
        for version in range(0, self._events, step or 1):
            end = min(version + step, self._events)
            for n, stream in enumerate(streams):
                first = n * self._events
                yield [StreamWrite(stream, version, tuple(self._numbered(first + version, first + end)))]


class ReadPages(Plain):
    """Pages of everything, each behind a position that chance picks between the first and the last there were."""

    def __init__(self, seed: int, limit: int, stock: Stock) -> None:
        self._seed, self._limit, self._stock = seed, limit, stock
        self.only_reads = not stock.streams

    def populate(self) -> Iterator[Sequence[StreamWrite]]:
        return self._stock.appends()

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
    """Streams from their beginning, `together` of them in one operation, picked by chance among those of the stock, or the
    first that the store has."""

    def __init__(self, seed: int, streams: int, together: int, way: str, page: int, stock: Stock) -> None:
        self._seed, self._streams, self._together, self._stock = seed, streams, together, stock
        self._way, self._page = way, page
        self.only_reads = not stock.streams

    def populate(self) -> Iterator[Sequence[StreamWrite]]:
        return self._stock.appends()

    def prepare(self, k: int) -> int:
        return mixed(self._seed, k)

    def start(self, store: Store, executor: Executor) -> Performer:
        wanted, together = self._streams, self._together
        read = _read(store, self._way if together > 1 else "one_by_one", self._page)
        names = self._mixed_up(self._stock.streams)

        async def perform(prepared: Any) -> int:
            if not names:
                names[:] = self._mixed_up(await _first_streams(store, wanted))
            first, n = prepared % len(names), len(names)
            return await read([names[(first + i) % n] for i in range(min(together, n))])

        return perform

    def _mixed_up(self, names: list[StreamId]) -> list[StreamId]:
        """In an order of their own: streams that are read together need not lie together."""
        return random.Random(self._seed).sample(names, len(names))


def _read(store: Store, way: str, page: int) -> Read:
    async def one(stream: StreamId) -> int:
        if not page:
            return len((await store.read_stream(stream)).events)
        read, version = 0, 1
        while True:
            events = (await store.read_stream(stream, version, page)).events
            read += len(events)
            if len(events) < page:
                return read
            version = events[-1].version + 1

    async def one_by_one(streams: Sequence[StreamId]) -> int:
        return sum([await one(stream) for stream in streams])

    async def parallel(streams: Sequence[StreamId]) -> int:
        return sum(await asyncio.gather(*[one(stream) for stream in streams]))

    async def joint(streams: Sequence[StreamId]) -> int:
        return sum([len(part.events) for part in await store.read_streams(streams)])

    return {"one_by_one": one_by_one, "parallel": parallel, "joint": joint}[way]


async def _something(store: Store) -> list[StoredEvent]:
    if events := await store.read_all(0, 1):
        return events
    raise StoreError(
        "the store has no event to read: say how many it is to be filled with, as in events=20, or point the experiment at "
        "one that has some, as in env:LAB_DSN,schema=…"
    )


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
def read_pages(
    *, limit: int = 1000, streams: int = 1000, events: int = 0, payload_bytes: int = 200, seed: int
) -> ReadPages:
    """Reads pages of everything, from anywhere, of `streams` × `events` events (0: those that the store has)."""
    within("limit", limit, 1, EVENTS_PER_APPEND_MAX, " events")
    return ReadPages(seed, limit, Stock(seed, streams, events, payload_bytes))


@workloads.register("read_streams")
def read_streams(
    *,
    streams: int = 1000,
    events: int = 0,
    together: int = 1,
    way: str = "joint",
    page: int = 0,
    payload_bytes: int = 200,
    seed: int,
) -> ReadStreams:
    """Reads streams of `events` events each (0: the first that the store has), whole or in pages, one or `together`.

    `way`: several streams in one statement (joint), in one each at the same time (parallel), or one_by_one. `page`: so many
    events at a time, 0 for all of a stream.
    """
    within("streams", streams, 1, FIRST_EVENTS_MAX)
    within("together", together, 1, min(TOGETHER_MAX, streams), " streams")
    within("page", page, 0, EVENTS_PER_APPEND_MAX, " events")
    if way not in WAYS:
        raise unknown("way", way, WAYS)
    if page and together > 1 and way == "joint":
        raise ValueError("several streams in one statement are read whole: leave page out, or say way=parallel")
    return ReadStreams(seed, streams, together, way, page, Stock(seed, streams, events, payload_bytes))
