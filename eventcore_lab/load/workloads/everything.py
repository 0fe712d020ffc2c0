"""The workload that reads a whole store, in pages or at once: what streaming saves, by the memory of whoever reads.

An operation reads everything there is, event by event, and keeps nothing that its way of reading does not keep: only the
number of events is told.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

from eventcore_lab.commands import Executor
from eventcore_lab.events import StreamId, StreamWrite
from eventcore_lab.load.workloads.payloads import PAYLOAD_BYTES_MAX, Numbered
from eventcore_lab.load.workloads.sizes import POPULATED_MAX, STREAMS_MAX, sizes_of
from eventcore_lab.load.workloads.workload import EVENTS_PER_APPEND_MAX, Performer, Plain, mixed, within, workloads
from eventcore_lab.spec import unknown
from eventcore_lab.stores.protocol import Store
from eventcore_lab.stores.reading import stream_all, stream_events

_CHUNK = 1000
_WHOLE = 2**31 - 1
"""More events than there can be, for a read without a limit."""

WAYS = ("stream", "load", "streams", "stream_events")
"""`stream`: everything in position order, a page at a time · `load`: one read into one list · `streams`: each stream whole,
one after the other · `stream_events`: each stream a page at a time, as the chapter's code of that name (its page: 100)."""


async def _read(store: Store, how: str, streams: Sequence[StreamId], page: int) -> int:
    """The number of events that came."""
    if how == "stream":
        return await _counted(stream_all(store, page=page))
    if how == "load":
        return len(await store.read_all(0, _WHOLE))
    if how == "streams":
        return sum([len((await store.read_stream(stream)).events) for stream in streams])
    return sum([await _counted(stream_events(store, stream, page=page)) for stream in streams])


async def _counted(events: AsyncIterator[object]) -> int:
    n = 0
    async for _ in events:
        n += 1
    return n


class ReadEverything(Plain):
    """Reads `events` events over `streams` streams, which it puts into the store first."""

    def __init__(self, seed: int, how: str, events: int, streams: int, page: int, payload_bytes: int) -> None:
        self._how, self._page, self._events = how, page, events
        self._streams = [StreamId(f"read-{mixed(seed, n):016x}") for n in range(streams)]
        self._numbered = Numbered(seed, sizes_of("constant", payload_bytes, PAYLOAD_BYTES_MAX))

    def populate(self) -> Iterator[Sequence[StreamWrite]]:
        """Turn by turn a chunk for each stream, so that the streams lie between one another as they do in a store in use."""
        streams = self._streams
        share, more = divmod(self._events, len(streams))
        lengths = [share + (n < more) for n in range(len(streams))]
        chunk = max(1, min(_CHUNK, share // 10))
        first = 0
        for version in range(0, max(lengths), chunk):
            for stream, length in zip(streams, lengths, strict=True):
                end = min(length, version + chunk)
                if end > version:
                    yield [StreamWrite(stream, version, tuple(self._numbered(first, first + end - version)))]
                    first += end - version

    def prepare(self, k: int) -> str:
        """All operations are alike."""
        return self._how

    def start(self, store: Store, executor: Executor) -> Performer:
        streams, page = self._streams, self._page

        async def perform(prepared: Any) -> int:
            return await _read(store, prepared, streams, page)

        return perform


@workloads.register("read_everything")
def read_everything(
    *,
    how: str = "stream",
    events: int = 10_000,
    streams: int = 10,
    page: int = 1000,
    payload_bytes: int = 200,
    seed: int,
) -> ReadEverything:
    """Reads a store of `events` events whole each time; how=stream, load, streams (each whole) or stream_events."""
    if how not in WAYS:
        raise unknown("how", how, WAYS)
    within("events", events, 1, POPULATED_MAX)
    within("streams", streams, 1, min(events, STREAMS_MAX), f" for events={events}")
    within("page", page, 1, EVENTS_PER_APPEND_MAX)
    within("payload_bytes", payload_bytes, 1, PAYLOAD_BYTES_MAX)
    return ReadEverything(seed, how, events, streams, page, payload_bytes)
