"""The batcher: what many callers hand in one by one is processed together, and each gets its own answer.

Two policies. With `delay_s` 0 there is no timer: an item goes at once when nothing is under way, and what comes meanwhile
is the next batch, so that batches grow with the load and nobody waits for company. With a delay a batch goes when it is
full or its first item has waited so long.

Bounded: at most `queue_max` items wait, further callers wait to be let in, in their order. A caller that is cancelled
while its item waits takes it along; one that is cancelled later leaves it to happen. Closing processes what waits.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Hashable, Sequence
from contextvars import Context
from typing import Any, Generic, TypeVar

from eventcore_lab.events import OutcomeUnknown, StoreError

T = TypeVar("T")
R = TypeVar("R")

CLOSE_TIMEOUT_S = 30.0
_LOOK_AHEAD = 200
"""How many items that must wait for their keys are stepped over in search of others: bounds the work per batch."""


class BatcherClosed(StoreError):
    """It takes nothing any more; the item was not processed."""


class _Waiting(Generic[T, R]):
    """One item on its way, and where its caller waits for the answer."""

    __slots__ = ("answer", "item", "keys", "since_s", "weight")

    def __init__(
        self, item: T, answer: asyncio.Future[R], keys: Collection[Hashable], weight: int, since_s: float
    ) -> None:
        self.item, self.answer, self.keys, self.weight, self.since_s = item, answer, keys, weight, since_s


def _no_keys(_: Any) -> Collection[Hashable]:
    return ()


def _no_weight(_: Any) -> int:
    return 0


class Batcher(Generic[T, R]):
    """`process(items)` gives a result or an exception for each of 1 … `size` items, in their order; an exception it raises
    is everybody's. `in_flight` batches are under way at a time.

    `keys(item)`: what an item must not share with another batch under way; items with a common key are processed in the
    order they were handed in. `weight(item)`: a batch weighs at most `weight_max`, unless it is one item. `close_error`
    makes what is raised by `submit` after `close`.
    """

    def __init__(
        self,
        process: Callable[[Sequence[T]], Awaitable[Sequence[R | Exception]]],
        *,
        size: int = 100,
        delay_s: float = 0.010,
        in_flight: int = 1,
        queue_max: int = 10_000,
        keys: Callable[[T], Collection[Hashable]] = _no_keys,
        weight: Callable[[T], int] = _no_weight,
        weight_max: int = 0,
        close_error: Callable[[], Exception] = lambda: BatcherClosed("the batcher is closed; nothing was processed"),
    ) -> None:
        if size < 1 or in_flight < 1 or queue_max < 1 or delay_s < 0:
            raise ValueError("size, in_flight and queue_max must be at least 1, and delay_s 0 or more")
        self._process, self._size, self._delay_s = process, size, delay_s
        self._in_flight, self._queue_max = in_flight, queue_max
        self._keys, self._weight, self._weight_max = keys, weight, weight_max
        self._close_error = close_error
        # A batch is not part of the operation of whoever happened to set it off. (One of its own for each batcher, because
        # only one thread at a time can be in a context.)
        self._nobodys = Context()
        self._queue: deque[_Waiting[T, R]] = deque()
        self._outside: dict[asyncio.Future[None], None] = {}
        self._batches: set[asyncio.Task[None]] = set()
        self._under_way = self._carried = self._entering = self._gone = 0
        self._taken: set[Hashable] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._is_departure_due = self._is_closed = False
        self.batches = self.items = 0

    @property
    def waiting(self) -> int:
        """Items that wait for their batch, at most `queue_max`."""
        return len(self._queue)

    @property
    def outside(self) -> int:
        """Callers that wait to be let in."""
        return len(self._outside)

    async def submit(self, item: T) -> R:
        """The item's own result, or its own exception."""
        if self._is_closed:
            raise self._close_error()
        if self._outside or self._entering or len(self._queue) >= self._queue_max:  # nobody overtakes one who is let in
            await self._let_in()
        loop = asyncio.get_running_loop()
        since_s = loop.time() if self._delay_s else 0.0
        waiting: _Waiting[T, R] = _Waiting(item, loop.create_future(), self._keys(item), self._weight(item), since_s)
        self._queue.append(waiting)
        if self._outside:
            self._make_room()
        self._depart_soon()
        try:
            return await waiting.answer
        except asyncio.CancelledError:
            self._forget_gone()
            raise

    def _forget_gone(self) -> None:
        """Somebody no longer waits; when that is half of the queue, those are left out of it."""
        self._gone += 1
        if 2 * self._gone > len(self._queue):
            self._queue = deque([waiting for waiting in self._queue if not waiting.answer.done()])
            self._gone = 0
            self._make_room()

    async def _let_in(self) -> None:
        """Wait in line until there is room in the queue."""
        place = asyncio.get_running_loop().create_future()
        self._outside[place] = None
        try:
            await place
        except asyncio.CancelledError:
            self._outside.pop(place, None)
            if place.done() and not place.cancelled():
                self._entering -= 1
                self._make_room()
            raise
        self._entering -= 1
        if self._is_closed:
            raise self._close_error()

    def _make_room(self) -> None:
        while self._outside and len(self._queue) + self._entering < self._queue_max:
            place = next(iter(self._outside))
            del self._outside[place]
            if not place.done():
                self._entering += 1
                place.set_result(None)

    def _depart_soon(self) -> None:
        """Not at once: the callers that a batch has just answered ask again in this turn of the loop, and belong together."""
        if not self._is_departure_due and self._under_way < self._in_flight:
            self._is_departure_due = True
            self._soon()

    def _soon(self) -> None:
        asyncio.get_running_loop().call_soon(self._depart, context=self._nobodys)

    def _depart(self) -> None:
        self._is_departure_due = False
        while self._under_way < self._in_flight and self._is_time() and (batch := self._next_batch()):
            keys = {key for waiting in batch for key in waiting.keys}
            self._taken |= keys
            self._under_way += 1
            self._carried += len(batch)
            self.batches += 1
            self.items += len(batch)
            task = asyncio.ensure_future(self._carried_out(batch, keys))
            self._batches.add(task)
            task.add_done_callback(self._batches.discard)

    def _is_time(self) -> bool:
        """Whether a batch may go now; where its time is to come, the timer is set for it."""
        if not self._delay_s or self._is_closed or len(self._queue) >= self._size:
            return True
        while self._queue and self._queue[0].answer.done():  # its caller was cancelled
            self._queue.popleft()
        self._make_room()
        if not self._queue:
            return False
        loop = asyncio.get_running_loop()
        due_s = self._queue[0].since_s + self._delay_s
        if loop.time() >= due_s:
            return True
        if self._timer is None:
            self._timer = loop.call_at(due_s, self._ring, context=self._nobodys)
        return False

    def _ring(self) -> None:
        self._timer = None
        self._depart()

    def _next_batch(self) -> list[_Waiting[T, R]]:
        """The items that have waited longest and share no key with what is under way; what must wait keeps its place."""
        batch: list[_Waiting[T, R]] = []
        left: list[_Waiting[T, R]] = []
        blocked = set(self._taken)
        weight = 0
        size = self._size
        if not self._delay_s:
            # An equal share of all who want something, so that no batch waits long for its callers while another is small.
            size = min(size, -(-(len(self._queue) + self._carried) // self._in_flight))
        while self._queue and len(batch) < size and len(left) < _LOOK_AHEAD:
            waiting = self._queue.popleft()
            if waiting.answer.done():  # its caller was cancelled
                continue
            if blocked.isdisjoint(waiting.keys) and (not batch or weight + waiting.weight <= self._weight_max):
                batch.append(waiting)
                weight += waiting.weight
            else:
                left.append(waiting)
                blocked.update(waiting.keys)
        self._queue.extendleft(reversed(left))
        self._make_room()
        return batch

    async def _carried_out(self, batch: list[_Waiting[T, R]], keys: set[Hashable]) -> None:
        """Process the batch and answer everybody in it; nothing is raised here, for nobody waits for this task."""
        results: Sequence[R | Exception]
        try:
            results = await self._process([waiting.item for waiting in batch])
            if len(results) != len(batch):
                raise OutcomeUnknown(f"{len(results)} answers came to {len(batch)} items")
        except asyncio.CancelledError:
            results = [OutcomeUnknown("a batch was cut off; it may have happened")] * len(batch)
        except Exception as error:
            results = [error] * len(batch)
        finally:
            self._taken -= keys
            self._under_way -= 1
            self._carried -= len(batch)
        for waiting, result in zip(batch, results, strict=True):
            if waiting.answer.done():
                continue
            if isinstance(result, Exception):
                waiting.answer.set_exception(_raisable(result))
            else:
                waiting.answer.set_result(result)
        # Behind those who have just been answered, so that what they ask now departs together.
        self._soon()

    async def close(self, timeout_s: float = CLOSE_TIMEOUT_S) -> None:
        """Refuse new items and process those that wait; what is not done by then is told that it is over."""
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        loop = asyncio.get_running_loop()
        end_s = loop.time() + timeout_s
        while (self._batches or self._queue) and loop.time() < end_s:
            self._depart()
            if self._batches:
                await asyncio.wait(self._batches, timeout=end_s - loop.time())
        # First those who wait, or the end of what is under way would make room for them.
        for waiting in self._queue:
            self._refuse(waiting.answer)
        for place in self._outside:
            self._refuse(place)
        self._queue.clear()
        self._outside.clear()
        late = list(self._batches)
        for batch in late:
            batch.cancel()
        await asyncio.gather(*late, return_exceptions=True)

    def _refuse(self, future: asyncio.Future[Any]) -> None:
        if not future.done():
            future.set_exception(self._close_error())


def _raisable(error: Exception) -> Exception:
    """What a future can hold: all but StopIteration, of which a coroutine that raises it makes the same."""
    if not isinstance(error, StopIteration):
        return error
    made = RuntimeError("StopIteration was raised")
    made.__cause__ = error
    return made
