"""What is asked of a store. Operation k of a workload is a pure function of the seed and k, whoever performs it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from eventcore_lab.commands import CommandRejected, CreateUser, Direct
from eventcore_lab.events import NewEvent, StoredEvent, StoreError, StreamId, StreamWrite
from eventcore_lab.spec import Registry
from eventcore_lab.stores.protocol import Store
from eventcore_lab.stores.reading import stream_all

STREAMS_PER_APPEND_MAX = 500
EVENTS_PER_APPEND_MAX = 100_000
FIRST_EVENTS_MAX = 100_000


class Workload(Protocol):
    """`prepare` makes operation k before its time is taken; `start` gives what performs a prepared one on a store.

    `only_reads`: it can be put on a store that is not to be written to. Performing returns the number of events written,
    or read by a workload that reads, and raises what the store raises.
    """

    @property
    def only_reads(self) -> bool: ...
    def prepare(self, k: int) -> Any: ...
    def start(self, store: Store) -> Performer: ...


class Performer(Protocol):
    async def __call__(self, prepared: Any) -> int: ...


workloads: Registry[Workload] = Registry("workload")

REJECTED = CommandRejected
"""What an operation raises when a business rule, not the store, refused it."""


def mixed(seed: int, k: int) -> int:
    """64 well-mixed bits from (seed, k): the finaliser of SplitMix64 (Steele, Lea, Flood, 2014)."""
    z = (seed * 0x9E3779B97F4A7C15 + (k + 1) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return z ^ (z >> 31)


class CreateUsers:
    """The chapter's `command_execution` benchmark, with a new user each time, so that what is measured is creation and
    not the rejection of somebody who exists."""

    only_reads = False

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def prepare(self, k: int) -> CreateUser:
        user = f"{mixed(self._seed, k):016x}"
        return CreateUser(user, f"user{user}@example.com", f"User{k}", "Test")

    def start(self, store: Store) -> Performer:
        execute = Direct(store, seed=self._seed).execute

        async def perform(prepared: Any) -> int:
            return len((await execute(prepared)).events)

        return perform


class WriteEvents:
    """The chapter's `event_store` benchmark: one append of `batch` events over `streams` streams nobody has written."""

    only_reads = False

    def __init__(self, seed: int, batch: int, streams: int, payload_bytes: int) -> None:
        self._seed, self._batch, self._streams = seed, batch, streams
        self._padding = b"x" * max(0, payload_bytes - len('{"test":1234567,"pad":""}'))

    def prepare(self, k: int) -> Sequence[StreamWrite]:
        events = [
            NewEvent("TestHappened", b'{"test":%d,"pad":"%b"}' % (i, self._padding))
            for i in range(k * self._batch, (k + 1) * self._batch)
        ]
        name = f"test-{mixed(self._seed, k):016x}"
        return [
            StreamWrite(StreamId(f"{name}-{s}"), 0, tuple(events[s :: self._streams])) for s in range(self._streams)
        ]

    def start(self, store: Store) -> Performer:
        batch = self._batch

        async def perform(prepared: Any) -> int:
            await store.append(prepared)
            return batch

        return perform


class ReadPages:
    """Pages of everything, each behind a position that chance picks between the first and the last there were."""

    only_reads = True

    def __init__(self, seed: int, limit: int) -> None:
        self._seed, self._limit = seed, limit

    def prepare(self, k: int) -> float:
        return mixed(self._seed, k) / 2**64

    def start(self, store: Store) -> Performer:
        limit = self._limit
        ends: list[int] = []

        async def perform(prepared: Any) -> int:
            if not ends:
                ends[:] = (await _something(store))[0].position - 1, await store.last_position()
            first, last = ends
            return len(await store.read_all(first + int((last - first) * prepared), limit))

        return perform


class ReadStreams:
    """Whole streams, picked by chance among the first that the store has."""

    only_reads = True

    def __init__(self, seed: int, streams: int) -> None:
        self._seed, self._streams = seed, streams

    def prepare(self, k: int) -> int:
        return mixed(self._seed, k)

    def start(self, store: Store) -> Performer:
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


@workloads.register("create_user")
def create_user(*, seed: int) -> CreateUsers:
    """The chapter's command_execution: CreateUser for a new user each time, read, decide, append."""
    return CreateUsers(seed)


@workloads.register("write_events")
def write_events(*, batch: int = 1, streams: int = 1, payload_bytes: int = 200, seed: int) -> WriteEvents:
    """The chapter's event_store benchmark: appends of `batch` events over `streams` new streams each."""
    if not 1 <= batch <= EVENTS_PER_APPEND_MAX:
        raise ValueError(f"batch must be 1 to {EVENTS_PER_APPEND_MAX} events, not {batch}")
    if not 1 <= streams <= min(batch, STREAMS_PER_APPEND_MAX):
        raise ValueError(f"streams must be 1 to {min(batch, STREAMS_PER_APPEND_MAX)} for batch={batch}, not {streams}")
    if not 1 <= payload_bytes <= 1_000_000:
        raise ValueError(f"payload_bytes must be 1 to 1000000, not {payload_bytes}")
    return WriteEvents(seed, batch, streams, payload_bytes)
