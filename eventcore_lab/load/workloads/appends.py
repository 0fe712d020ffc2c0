"""The workloads that put appends on the store themselves, without commands."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from eventcore_lab.commands import Executor
from eventcore_lab.events import NewEvent, StreamId, StreamWrite
from eventcore_lab.load.workloads.workload import EVENTS_PER_APPEND_MAX, Performer, Plain, mixed, workloads
from eventcore_lab.stores.protocol import Store

STREAMS_PER_APPEND_MAX = 500


class WriteEvents(Plain):
    """The chapter's `event_store` benchmark: one append of `batch` events over `streams` streams nobody has written."""

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

    def start(self, store: Store, executor: Executor) -> Performer:
        batch = self._batch

        async def perform(prepared: Any) -> int:
            await store.append(prepared)
            return batch

        return perform


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
