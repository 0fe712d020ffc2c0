"""The workload that hands many independent appends over at once: one round trip for all, and an answer to each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from eventcore_lab.commands import Executor
from eventcore_lab.events import StoreError, StreamId, StreamWrite
from eventcore_lab.load.workloads.payloads import PAYLOAD_BYTES_MAX, Numbered, check_bytes
from eventcore_lab.load.workloads.sizes import Sizes, sizes_of
from eventcore_lab.load.workloads.workload import EVENTS_PER_APPEND_MAX, Performer, Plain, mixed, within, workloads
from eventcore_lab.stores.protocol import Store


class AppendMany(Plain):
    """`batch` appends of one event each, every one to a stream that nobody has written. One that is refused is the outcome
    of the operation; the others have happened all the same."""

    def __init__(self, seed: int, batch: int, sizes: Sizes) -> None:
        self._seed, self._batch, self._events = seed, batch, Numbered(seed, sizes)

    def prepare(self, k: int) -> Sequence[Sequence[StreamWrite]]:
        first, name = k * self._batch, f"many-{mixed(self._seed, k):016x}"
        events = self._events(first, first + self._batch)
        return [[StreamWrite(StreamId(f"{name}-{n}"), 0, (event,))] for n, event in enumerate(events)]

    def start(self, store: Store, executor: Executor) -> Performer:
        async def perform(prepared: Any) -> int:
            results = await store.append_many(prepared)
            for result in results:
                if isinstance(result, StoreError):
                    raise result
            return len(results)

        return perform


@workloads.register("append_many")
def append_many(*, batch: int = 100, payload_bytes: int = 200, seed: int) -> AppendMany:
    """`batch` independent appends of one event in one round trip, each to a new stream."""
    within("batch", batch, 1, EVENTS_PER_APPEND_MAX, " appends")
    within("payload_bytes", payload_bytes, 1, PAYLOAD_BYTES_MAX)
    sizes = sizes_of("constant", payload_bytes, PAYLOAD_BYTES_MAX)
    check_bytes(batch, sizes)
    return AppendMany(seed, batch, sizes)
