"""Group commit as a store: appends of many callers that wait at the same time go together, in one round trip and one
commit, and each is checked and answered by itself.

There is no timer. A lone append goes at once and as it is; while groups are under way, what arrives meanwhile becomes
the next group. Two groups are under way at a time, so that the server works while the client prepares and takes apart;
no stream is in two of them, so the order of appends to a stream is the order in which they were asked for.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from msgspec import Struct

from eventcore_lab.clock import now_ns
from eventcore_lab.events import AppendResult, StoreError, StreamId, StreamWrite, check_distinct
from eventcore_lab.schema import Attempt, current_attempt
from eventcore_lab.stores.batcher import Batcher
from eventcore_lab.stores.protocol import Address, Driver, Place, PoolSettings, Store, has_tables, stores
from eventcore_lab.stores.wrapper import Wrapper


class _Asked(Struct, gc=False):
    """One append on its way, and the operation it is part of."""

    writes: Sequence[StreamWrite]
    attempt: Attempt | None


def _streams(asked: _Asked) -> list[StreamId]:
    return [write.stream for write in asked.writes]


def _events(asked: _Asked) -> int:
    return sum([len(write.events) for write in asked.writes])


class Grouped(Wrapper):
    """`size`: appends per group at most; `events_max`: events per group at most (a larger append goes alone);
    `in_flight`: groups under way at a time; `queue_max`: appends that wait at most, further callers wait to be let in."""

    def __init__(
        self, inner: Store, *, size: int = 100, events_max: int = 5000, in_flight: int = 2, queue_max: int = 10_000
    ) -> None:
        super().__init__(inner)
        self.batcher: Batcher[_Asked, AppendResult] = Batcher(
            self._appended,
            size=size,
            delay_s=0,
            in_flight=in_flight,
            queue_max=queue_max,
            keys=_streams,
            weight=_events,
            weight_max=events_max,
            close_error=_closed,
        )

    async def append(self, writes: Sequence[StreamWrite]) -> AppendResult:
        """As the inner store's. A caller that is cancelled while its append waits takes it along; one that is cancelled
        later leaves it to happen."""
        if len(writes) > 1:
            check_distinct(writes)  # here, where it is the caller's own mistake, and not his group's
        return await self.batcher.submit(_Asked(writes, current_attempt.get()))

    async def append_many(self, requests: Sequence[Sequence[StreamWrite]]) -> list[AppendResult | StoreError]:
        """Each request on its way like an append of its own."""
        for request in requests:
            check_distinct(request)
        results = await asyncio.gather(*(self.append(request) for request in requests), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException) and not isinstance(result, StoreError):
                raise result
        return [r for r in results if isinstance(r, AppendResult | StoreError)]

    async def _appended(self, group: Sequence[_Asked]) -> Sequence[AppendResult | Exception]:
        """One round trip and one commit for all of them."""
        taken_ns = now_ns()
        for asked in group:
            if asked.attempt is not None and not asked.attempt.acquired_ns:
                asked.attempt.acquired_ns = taken_ns
        if len(group) > 1:
            return await self.inner.append_many([asked.writes for asked in group])
        return [await self.inner.append(group[0].writes)]

    async def close(self) -> None:
        """Refuse new appends, carry out those that wait, close the inner store."""
        await self.batcher.close()
        await self.inner.close()


def _closed() -> StoreError:
    return StoreError("the store is closed; nothing was written")


class _GroupedDriver:
    def __init__(self, inner: Driver, size: int, in_flight: int, queue_max: int) -> None:
        self._inner, self._size, self._in_flight, self._queue_max = inner, size, in_flight, queue_max
        self.is_shared, self.lacks = inner.is_shared, inner.lacks
        self.has_tables = has_tables(inner)

    @asynccontextmanager
    async def provision(self) -> AsyncIterator[Place]:
        async with self._inner.provision() as place:
            yield place

    async def connect(self, address: Address, pool: PoolSettings) -> Store:
        inner = await self._inner.connect(address, pool)
        return Grouped(inner, size=self._size, in_flight=self._in_flight, queue_max=self._queue_max)


@stores.register("grouped")
def _grouped(inner: Driver, *, size: int = 100, in_flight: int = 2, queue_max: int = 10_000) -> _GroupedDriver:
    """Group commit around any store: appends of many callers in one commit, each answered by itself."""
    for name, value, most in (
        ("size", size, 10_000),
        ("in_flight", in_flight, 16),
        ("queue_max", queue_max, 1_000_000),
    ):
        if not 1 <= value <= most:
            raise ValueError(f"{name} must be 1 to {most}, not {value}")
    return _GroupedDriver(inner, size, in_flight, queue_max)
