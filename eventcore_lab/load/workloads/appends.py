"""The workloads that put appends on the store themselves, without commands."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from msgspec import Struct

from eventcore_lab.commands import Executor
from eventcore_lab.events import NewEvent, StreamId, StreamWrite
from eventcore_lab.load.workloads.payloads import PAYLOAD_BYTES_MAX, Numbered, check_bytes
from eventcore_lab.load.workloads.picks import Pick, picking
from eventcore_lab.load.workloads.sizes import Sizes, lengths_of, sizes_of
from eventcore_lab.load.workloads.workload import EVENTS_PER_APPEND_MAX, Performer, Plain, mixed, within, workloads
from eventcore_lab.stores.protocol import Store

STREAMS_PER_APPEND_MAX = 500
FIRST_BYTES = 200
"""The payload of an event that is there at first, whatever those of the operations have: thousands are held at once."""
_CHUNK = 1000
_STALE, _FIRST = -3, -4
"""Numbers that no operation has, as sizes._LENGTHS."""


class WriteEvents(Plain):
    """The chapter's `event_store` benchmark: one append of `batch` events over `streams` streams nobody has written."""

    def __init__(self, seed: int, batch: int, streams: int, sizes: Sizes) -> None:
        self._seed, self._batch, self._streams = seed, batch, streams
        self._events = Numbered(seed, sizes)

    def prepare(self, k: int) -> Sequence[StreamWrite]:
        streams, first = self._streams, k * self._batch
        events = self._events(first, first + self._batch)
        name = f"test-{mixed(self._seed, k):016x}"
        if streams == 1:
            return [StreamWrite(StreamId(f"{name}-0"), 0, tuple(events))]
        return [StreamWrite(StreamId(f"{name}-{s}"), 0, tuple(events[s::streams])) for s in range(streams)]

    def start(self, store: Store, executor: Executor) -> Performer:
        batch = self._batch

        async def perform(prepared: Any) -> int:
            await store.append(prepared)
            return batch

        return perform


class Append(Struct, frozen=True):
    """An operation: `events` for stream `n`. `is_stale`: expected one version behind where the stream is read to be."""

    n: int
    stream: StreamId
    is_stale: bool
    events: tuple[NewEvent, ...]


class Appends(Plain):
    """Appends to streams that are there, each expected where its stream is read to be just before, as applications do.

    So an operation is a read and an append, and conflicts if it is stale, or if another one appended to its stream between
    the two, whichever process that was in: several processes have the conflicts that one has with as many operations under
    way. One caller alone has exactly those that are stale. A conflict is the outcome of its operation, and nobody tries
    again.

    A stream is read from where this process last knew it: what is new, and the event before that. What a process knows
    decides how much is read and nothing else.
    """

    def __init__(
        self, seed: int, streams: int, batch: int, pick: Pick, length: Callable[[int], int], sizes: Sizes, stale: float
    ) -> None:
        self._seed, self._streams, self._batch = seed, streams, batch
        self._pick, self._length, self._events = pick, length, Numbered(seed, sizes)
        self._stale, self._stale_below = mixed(seed, _STALE), int(stale * 2**64)

    def _stream(self, n: int) -> StreamId:
        return StreamId(f"append-{mixed(self._seed, n):016x}")

    def populate(self) -> Iterator[Sequence[StreamWrite]]:
        first = Numbered(mixed(self._seed, _FIRST), sizes_of("constant", FIRST_BYTES, FIRST_BYTES))
        for n in range(self._streams):
            stream, length = self._stream(n), self._length(n)
            for version in range(0, length, _CHUNK):
                events = first(version, min(length, version + _CHUNK))
                yield [StreamWrite(stream, version, tuple(events))]

    def prepare(self, k: int) -> Append:
        n = self._pick(k, mixed(self._seed, k))
        is_stale = self._stale_below > 0 and mixed(self._stale, k) < self._stale_below
        first = k * self._batch
        return Append(n, self._stream(n), is_stale, tuple(self._events(first, first + self._batch)))

    def start(self, store: Store, executor: Executor) -> Performer:
        append, read_stream, batch = store.append, store.read_stream, self._batch
        known = [self._length(n) for n in range(self._streams)]

        async def perform(prepared: Any) -> int:
            n = prepared.n
            known[n] = version = (await read_stream(prepared.stream, max(1, known[n]))).version
            expected = max(0, version - prepared.is_stale)  # below 0 is no version
            known[n] = (await append([StreamWrite(prepared.stream, expected, prepared.events)])).versions[0]
            return batch

        return perform


@workloads.register("write_events")
def write_events(
    *, batch: int = 1, streams: int = 1, payload_bytes: int = 200, sizes: str = "constant", seed: int
) -> WriteEvents:
    """The chapter's event_store benchmark: appends of `batch` events over `streams` new streams each."""
    within("batch", batch, 1, EVENTS_PER_APPEND_MAX, " events")
    within("streams", streams, 1, min(batch, STREAMS_PER_APPEND_MAX), f" for batch={batch}")
    return WriteEvents(seed, batch, streams, _payloads(batch, payload_bytes, sizes))


@workloads.register("append")
def append(
    *,
    streams: int = 1000,
    batch: int = 1,
    pick: str = "uniform",
    theta: float = 0.99,
    events: int = 1,
    lengths: str = "constant",
    payload_bytes: int = 200,
    sizes: str = "constant",
    stale: float = 0.0,
    seed: int,
) -> Appends:
    """Appends to one of `streams` streams of `events` events at first; the share `stale` expects a version too old."""
    within("batch", batch, 1, EVENTS_PER_APPEND_MAX, " events")
    within("stale", stale, 0, 1)
    length = lengths_of(lengths, seed, streams, events, "streams")
    drawn = _payloads(batch, payload_bytes, sizes)
    return Appends(seed, streams, batch, picking(streams, pick, theta), length, drawn, stale)


def _payloads(batch: int, payload_bytes: int, sizes: str) -> Sizes:
    within("payload_bytes", payload_bytes, 1, PAYLOAD_BYTES_MAX)
    drawn = sizes_of(sizes, payload_bytes, PAYLOAD_BYTES_MAX)
    check_bytes(batch, drawn)
    return drawn
