"""Group commit as a store: appends of many callers that wait at the same time go together, in one round trip and one
commit, and each is checked and answered by itself.

There is no timer. A lone append goes at once and as it is; while groups are under way, what arrives meanwhile becomes
the next group. Two groups are under way at a time, so that the server works while the client prepares and takes apart;
no stream is in two of them, so the order of appends to a stream is the order in which they were asked for.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from contextvars import Context
from typing import Any

from eventcore_lab.clock import now_ns
from eventcore_lab.events import (
    AppendResult,
    OutcomeUnknown,
    StoreError,
    StreamId,
    StreamWrite,
    check_distinct,
)
from eventcore_lab.schema import Attempt, current_attempt
from eventcore_lab.stores.protocol import Address, Driver, Place, PoolSettings, Store, stores
from eventcore_lab.stores.wrapper import Wrapper

CLOSE_TIMEOUT_S = 30.0
_LOOK_AHEAD = 200
"""How many appends that must wait for their stream are stepped over in search of others: bounds the work per group."""


_NOBODYS = Context()


class _Waiting:
    """One append on its way, and where its caller waits for the answer."""

    __slots__ = ("answer", "attempt", "events", "request")

    def __init__(
        self, request: Sequence[StreamWrite], answer: asyncio.Future[AppendResult], attempt: Attempt | None
    ) -> None:
        self.request, self.answer, self.attempt = request, answer, attempt
        self.events = sum([len(write.events) for write in request])


class Grouped(Wrapper):
    """`size`: appends per group at most; `events_max`: events per group at most (a larger append goes alone);
    `in_flight`: groups under way at a time; `queue_max`: appends that wait at most, further callers wait to be let in."""

    def __init__(
        self, inner: Store, *, size: int = 100, events_max: int = 5000, in_flight: int = 2, queue_max: int = 10_000
    ) -> None:
        super().__init__(inner)
        self._size, self._events_max, self._in_flight, self._queue_max = size, events_max, in_flight, queue_max
        self._queue: deque[_Waiting] = deque()
        self._outside: deque[asyncio.Future[None]] = deque()
        self._groups: set[asyncio.Task[None]] = set()
        self._under_way = 0
        self._carried = 0
        self._entering = 0
        self._taken: set[StreamId] = set()
        self._is_departure_due = False
        self._is_closed = False

    async def append(self, writes: Sequence[StreamWrite]) -> AppendResult:
        """As the inner store's. A caller that is cancelled while its append waits takes it along; one that is cancelled
        later leaves it to happen."""
        if self._is_closed:
            raise _closed()
        if len(writes) > 1:
            check_distinct(writes)  # here, where it is the caller's own mistake, and not his group's
        if len(self._queue) + self._entering >= self._queue_max or self._outside:
            await self._let_in()
        waiting = _Waiting(writes, asyncio.get_running_loop().create_future(), current_attempt.get())
        self._queue.append(waiting)
        self._depart_soon()
        return await waiting.answer

    async def append_many(self, requests: Sequence[Sequence[StreamWrite]]) -> list[AppendResult | StoreError]:
        """Each request on its way like an append of its own."""
        for request in requests:
            check_distinct(request)
        results = await asyncio.gather(*(self.append(request) for request in requests), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException) and not isinstance(result, StoreError):
                raise result
        return [r for r in results if isinstance(r, AppendResult | StoreError)]

    async def _let_in(self) -> None:
        """Wait in line until there is room in the queue."""
        place = asyncio.get_running_loop().create_future()
        self._outside.append(place)
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():
                self._entering -= 1
                self._make_room()
            raise
        self._entering -= 1
        if self._is_closed:
            raise _closed()

    def _make_room(self) -> None:
        while self._outside and len(self._queue) + self._entering < self._queue_max:
            place = self._outside.popleft()
            if not place.done():
                self._entering += 1
                place.set_result(None)

    def _depart_soon(self) -> None:
        """Not at once: the callers that a group has just answered ask again in this turn of the loop, and belong together."""
        if not self._is_departure_due and self._under_way < self._in_flight:
            self._is_departure_due = True
            self._soon()

    def _soon(self) -> None:
        # In nobody's context: a group is not part of the operation of whoever happened to set it off.
        asyncio.get_running_loop().call_soon(self._depart, context=_NOBODYS)

    def _depart(self) -> None:
        self._is_departure_due = False
        while self._under_way < self._in_flight and (group := self._next_group()):
            streams = {write.stream for waiting in group for write in waiting.request}
            self._taken |= streams
            self._under_way += 1
            self._carried += len(group)
            task = asyncio.ensure_future(self._carried_out(group, streams))
            self._groups.add(task)
            task.add_done_callback(self._groups.discard)

    def _next_group(self) -> list[_Waiting]:
        """The appends that have waited longest and touch no stream under way; what must wait keeps its place."""
        group: list[_Waiting] = []
        left: list[_Waiting] = []
        blocked = set(self._taken)
        events = 0
        # An equal share of all who want something, so that no group waits long for its callers while another is small.
        size = min(self._size, -(-(len(self._queue) + self._carried) // self._in_flight))
        while self._queue and len(group) < size and len(left) < _LOOK_AHEAD:
            waiting = self._queue.popleft()
            if waiting.answer.done():  # its caller was cancelled
                continue
            if blocked.isdisjoint([write.stream for write in waiting.request]) and (
                not group or events + waiting.events <= self._events_max
            ):
                group.append(waiting)
                events += waiting.events
            else:
                left.append(waiting)
                blocked.update([write.stream for write in waiting.request])
        self._queue.extendleft(reversed(left))
        self._make_room()
        return group

    async def _carried_out(self, group: list[_Waiting], streams: set[StreamId]) -> None:
        """Append the group and answer everybody in it; nothing is raised here, for nobody waits for this task."""
        taken_ns = now_ns()
        for waiting in group:
            if waiting.attempt is not None and not waiting.attempt.acquired_ns:
                waiting.attempt.acquired_ns = taken_ns
        try:
            results = await self._appended(group)
        except asyncio.CancelledError:
            results = [OutcomeUnknown("an append was cut off; it may have happened")] * len(group)
        except StoreError as error:
            results = [error] * len(group)
        except Exception as error:
            results = [error] * len(group)
        finally:
            self._taken -= streams
            self._under_way -= 1
            self._carried -= len(group)
        for waiting, result in zip(group, results, strict=True):
            if waiting.answer.done():
                continue
            if isinstance(result, AppendResult):
                waiting.answer.set_result(result)
            else:
                waiting.answer.set_exception(result)
        # Behind those who have just been answered, so that what they ask now departs together.
        self._soon()

    async def _appended(self, group: list[_Waiting]) -> Sequence[AppendResult | Exception]:
        if len(group) > 1:
            results = await self.inner.append_many([waiting.request for waiting in group])
            if len(results) != len(group):
                return [OutcomeUnknown(f"{len(results)} answers came to {len(group)} appends")] * len(group)
            return results
        try:
            return [await self.inner.append(group[0].request)]
        except Exception as error:
            return [error]

    async def close(self) -> None:
        """Refuse new appends, carry out those that wait (at most CLOSE_TIMEOUT_S), close the inner store."""
        self._is_closed = True
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                while self._groups or self._queue:
                    self._depart()
                    await asyncio.gather(*self._groups, return_exceptions=True)
        except TimeoutError:
            self._give_up()
        await self.inner.close()

    def _give_up(self) -> None:
        """Tell everybody who still waits that it is over."""
        for waiting in self._queue:
            _refused(waiting.answer)
        for place in self._outside:
            _refused(place)
        self._queue.clear()
        self._outside.clear()


def _refused(future: asyncio.Future[Any]) -> None:
    if not future.done():
        future.set_exception(_closed())


def _closed() -> StoreError:
    return StoreError("the store is closed; nothing was written")


class _GroupedDriver:
    def __init__(self, inner: Driver, size: int, in_flight: int, queue_max: int) -> None:
        self._inner, self._size, self._in_flight, self._queue_max = inner, size, in_flight, queue_max
        self.is_shared, self.lacks = inner.is_shared, inner.lacks

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
