"""The hot loop: puts prepared operations on a store when they are due, and records each.

Closed: a number of callers, each starting again when it is answered. Open: one dispatcher that follows the schedule
whatever the store does, and a bounded number of consumers that carry operations out. Times recorded are relative to
`start_ns`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, takewhile
from typing import Any

import numpy as np
from msgspec import Struct, field
from numpy.typing import NDArray

from eventcore_lab.clock import NS_PER_S, Clock, sleep_s
from eventcore_lab.commands import CommandRejected
from eventcore_lab.events import OutcomeUnknown, StoreError
from eventcore_lab.load.journal import outcome_of
from eventcore_lab.load.recorder import Recorder, RecorderFull
from eventcore_lab.load.workloads import Performer
from eventcore_lab.schema import Attempt, Outcome, Phase, current_attempt, packed

BACKLOG_POLICIES = ("drop", "queue", "abort")
DUE_WHEN_BEGUN = -1
_TURN_NS = 1_000_000
_LOOK_UP_NS = 250_000_000
_FAILURE_TEXT_MAX = 300
_ARRIVALS_AT_ONCE = 1024

_Arrival = tuple[int, int, int]
"""An operation, when it was due and when it was offered, both relative to the start."""


class BacklogFull(Exception):
    """More arrivals wait than the bound allows, and the policy says abort."""


class InSystem:
    """How many operations are under way, summed up over time while it happens. By Little's law that is the sum of their
    times, so that rows which went missing or changed on their way to a reader can be told. `offered`: how many arrivals were
    handed over, or begun by callers, counted where that happens and not by rows."""

    __slots__ = ("_since_ns", "area_ns", "count", "offered")

    def __init__(self) -> None:
        self.count = self.area_ns = self._since_ns = self.offered = 0

    def enter(self, now_ns: int) -> None:
        self.area_ns += self.count * (now_ns - self._since_ns)
        self._since_ns = now_ns
        self.count += 1

    def leave(self, now_ns: int) -> None:
        self.area_ns += self.count * (now_ns - self._since_ns)
        self._since_ns = now_ns
        self.count -= 1


class Load(Struct, kw_only=True):
    """Everything one worker's loop needs, decided beforehand. Times in ns; `due` ascending, relative to the start; if it is
    long, an array, whose instants become Python's numbers (70 bytes each) only when their time has nearly come.

    `think_ns`: how long a caller of a closed loop waits after operation k before its next. `timeout_ns`: how long an
    operation may take, 0 for as long as the store lets it. `in_system` counts along.
    """

    clock: Clock
    recorder: Recorder
    prepare: Callable[[int], Any]
    perform: Performer
    start_ns: int
    warmup_ns: int
    total_ns: int
    callers: int = 0
    due: Sequence[int] | NDArray[np.int64] = ()
    operations: Sequence[int] = ()
    in_flight_max: int = 200
    backlog_max: int = 10_000
    backlog_policy: str = "drop"
    first: int = 0
    step: int = 1
    think_ns: Callable[[int], int] | None = None
    timeout_ns: int = 0
    in_system: InSystem = field(default_factory=InSystem)


class Stop:
    """Asks the loop to end: no new operation begins, those under way are waited for. `failures`: how many operations
    failed, by the class of the error with the first one's text."""

    def __init__(self) -> None:
        self.is_set = False
        self.reason = ""
        self.failures: dict[str, int] = {}
        self.first_of_kind: dict[type[Exception], str] = {}

    def set(self, reason: str) -> None:
        if not self.is_set:
            self.is_set, self.reason = True, reason


async def drive(load: Load, stop: Stop) -> None:
    """Run the load to its end or until `stop`. Raises what is neither a store's answer nor a business rule."""
    if load.callers:
        turn = _Turn(load.clock, _TURN_NS // load.callers)
        await _gathered([_caller(load, stop, n, turn) for n in range(load.callers)], stop)
    else:
        await _open(load, stop)


async def _gathered(coroutines: list[Any], stop: Stop) -> None:
    """Run them all; the first that breaks stops the others, which end their operation, and is raised."""
    tasks = [asyncio.ensure_future(c) for c in coroutines]
    for task in tasks:
        task.add_done_callback(lambda t: stop.set(_reason(t)) if not t.cancelled() and t.exception() else None)
    results = await asyncio.gather(*tasks, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException) and not isinstance(result, RecorderFull | BacklogFull):
            raise result


def _reason(task: asyncio.Future[Any]) -> str:
    error = task.exception()
    if isinstance(error, RecorderFull):
        return "the recorder is full: more operations than this run made room for"
    return f"{type(error).__name__}: {error}"


async def _caller(load: Load, stop: Stop, n: int, turn: _Turn) -> None:
    """One caller of a closed loop: due when it begins."""
    clock, perform_one, think = load.clock, _performer(load, stop), load.think_ns
    end_ns = load.start_ns + load.total_ns
    await clock.sleep_until(load.start_ns)
    k, step = load.first + n * load.step, load.step * load.callers
    while not stop.is_set:
        prepared = load.prepare(k)
        now_ns = clock.now_ns()
        if now_ns >= end_ns:
            return
        load.in_system.offered += 1
        await perform_one(k, prepared, DUE_WHEN_BEGUN, 0)
        if think is not None:
            await _until(load, stop, min(clock.now_ns() + think(k), end_ns))
        elif turn.is_over(now_ns, n):
            await turn.pass_on()
        k += step


async def _until(load: Load, stop: Stop, due_ns: int) -> None:
    """Wait, in steps, so that a stop is heard."""
    while (now_ns := load.clock.now_ns()) < due_ns and not stop.is_set:
        await load.clock.sleep_until(min(due_ns, now_ns + _LOOK_UP_NS))


def _performer(load: Load, stop: Stop) -> Callable[[int, Any, int, int], Any]:
    """What carries out one operation and records it; made once per task, for its `Attempt` is the task's own."""
    attempt = Attempt()
    current_attempt.set(attempt)
    now_ns, recorder, in_system = load.clock.now_ns, load.recorder, load.in_system
    perform = load.perform if not load.timeout_ns else _within(load.timeout_ns, load.perform)
    start_ns, warmup_ns = load.start_ns, load.warmup_ns

    async def perform_one(k: int, prepared: Any, due_ns: int, offered_ns: int) -> None:
        attempt.reset(k)
        began_ns = now_ns() - start_ns
        if due_ns == DUE_WHEN_BEGUN:
            due_ns = offered_ns = began_ns
        phase = Phase.WARMUP if due_ns < warmup_ns else Phase.STEADY
        row = recorder.begin(k, due_ns, offered_ns, began_ns, phase)
        in_system.enter(began_ns)
        events = 0
        try:
            events = await perform(prepared)
            outcome = Outcome.OK
        except CommandRejected as error:
            outcome = Outcome.FAILED
            _count(stop, error)
        except StoreError as error:
            outcome = outcome_of(error)
            if outcome is not Outcome.CONFLICT:
                _count(stop, error)
            elif not attempt.conflicts:  # of an append without an executor
                attempt.conflicts = 1
        ended_ns = now_ns() - start_ns
        in_system.leave(ended_ns)
        acquired_ns = attempt.acquired_ns - start_ns if attempt.acquired_ns else began_ns
        word = packed(outcome, phase, attempt.attempts, events, attempt.conflicts)
        recorder.end(row, k, due_ns, offered_ns, began_ns, acquired_ns, ended_ns, attempt.backoff_ns, word)

    return perform_one


def _within(timeout_ns: int, perform: Performer) -> Performer:
    """`perform`, given up after `timeout_ns`: what it asked for may have happened all the same."""
    timeout_s = timeout_ns / NS_PER_S

    async def perform_within(prepared: Any) -> int:
        try:
            async with asyncio.timeout(timeout_s) as scope:
                return await perform(prepared)
        except TimeoutError:
            if not scope.expired():
                raise
            raise OutcomeUnknown(f"no answer to an operation within {timeout_s:g} s") from None

    return perform_within


def _count(stop: Stop, error: Exception) -> None:
    """Count the failure with those of its class, under the text of the first: texts hold ids, and each would be a kind of
    its own."""
    text = stop.first_of_kind.get(type(error))
    if text is None:
        text = stop.first_of_kind[type(error)] = f"{type(error).__name__}, the first: {error}"[:_FAILURE_TEXT_MAX]
    stop.failures[text] = stop.failures.get(text, 0) + 1


class _Turn:
    """How long a task keeps the loop to itself: a store that never waits would never give it away. Where the store does
    wait, another task has had the loop in between, and nothing is given away."""

    def __init__(self, clock: Clock, length_ns: int = _TURN_NS) -> None:
        self._clock, self._length_ns = clock, length_ns
        self._holder = 0
        self.begin()

    def begin(self) -> None:
        self._began_ns = self._clock.now_ns()

    def is_over(self, now_ns: int, holder: int = 0) -> bool:
        """Whether `holder` has had the loop for too long; a new holder begins its turn."""
        if holder != self._holder:
            self._holder, self._began_ns = holder, now_ns
            return False
        return now_ns - self._began_ns > self._length_ns

    async def pass_on(self) -> None:
        await sleep_s(0)
        self.begin()


class _Backlog:
    """Arrivals on their way from the dispatcher to the consumers, at most `backlog_max` of them waiting. No consumer is
    idle while an arrival waits."""

    def __init__(self, load: Load, stop: Stop) -> None:
        self._load, self._stop, self._turn = load, stop, _Turn(load.clock)
        self._waiting: deque[_Arrival] = deque()
        self._idle: list[asyncio.Future[_Arrival | None]] = []
        self._space: asyncio.Future[None] | None = None
        self.reopened_ns = -1
        self._is_over = False

    async def offer(self, arrival: _Arrival) -> None:
        """Hand it to an idle consumer or let it wait; what can do neither, or comes after the stop, is dropped."""
        self._load.in_system.offered += 1
        policy = self._load.backlog_policy
        while not self._stop.is_set:
            if self._is_handed_over(arrival):
                return
            if len(self._waiting) < self._load.backlog_max:
                self._waiting.append(arrival)
                return
            if policy != "queue":
                break
            self._space = asyncio.get_running_loop().create_future()
            await self._space
            self.reopened_ns = self._load.clock.now_ns() - self._load.start_ns
        self._drop(arrival)
        if policy == "abort" and not self._stop.is_set:
            raise BacklogFull(f"more than {self._load.backlog_max} arrivals wait to be started (backlog_policy=abort)")

    async def take(self) -> _Arrival | None:
        """The next arrival, or None when the load is over."""
        if self._waiting and self._turn.is_over(self._load.clock.now_ns()):
            await self._turn.pass_on()  # all consumers share one turn, so that the dispatcher is not late for each
        if self._stop.is_set:
            self.end()
        if self._waiting:
            self.tell_of_space()
            return self._waiting.popleft()
        if self._is_over:
            return None
        consumer: asyncio.Future[_Arrival | None] = asyncio.get_running_loop().create_future()
        self._idle.append(consumer)
        self.tell_of_space()
        return await consumer

    def end(self) -> None:
        """No more arrivals. After a stop those that wait are recorded as dropped instead of started."""
        self._is_over = True
        self.tell_of_space()
        while self._is_handed_over(None):
            pass
        while self._stop.is_set and self._waiting:
            self._drop(self._waiting.popleft())

    def _is_handed_over(self, arrival: _Arrival | None) -> bool:
        while self._idle:
            consumer = self._idle.pop()
            if not consumer.done():
                consumer.set_result(arrival)
                return True
        return False

    def tell_of_space(self) -> None:
        if self._space is not None and not self._space.done():
            self._space.set_result(None)

    def _drop(self, arrival: _Arrival) -> None:
        k, due_ns, offered_ns = arrival
        phase = Phase.WARMUP if due_ns < self._load.warmup_ns else Phase.STEADY
        self._load.recorder.drop(k, due_ns, offered_ns, phase)


async def _open(load: Load, stop: Stop) -> None:
    backlog = _Backlog(load, stop)
    consumers = [_consumer(load, stop, backlog) for _ in range(load.in_flight_max)]
    await _gathered([_dispatcher(load, stop, backlog), *consumers], stop)


async def _dispatcher(load: Load, stop: Stop, backlog: _Backlog) -> None:
    clock, start_ns, turn = load.clock, load.start_ns, _Turn(load.clock)
    arrivals = zip(load.operations, chain.from_iterable(_instants(load.due)), strict=True)
    try:
        for k, due_ns in arrivals:
            while (now_ns := clock.now_ns()) < start_ns + due_ns and not stop.is_set:
                # In steps, so that a stop is heard between two arrivals that are far apart.
                await clock.sleep_until(min(start_ns + due_ns, now_ns + _LOOK_UP_NS))
                turn.begin()
            if stop.is_set:  # who was due by now was not let in any more, and has a row that says so
                for late in takewhile(lambda a: start_ns + a[1] <= now_ns, chain([(k, due_ns)], arrivals)):
                    await backlog.offer((*late, now_ns - start_ns))
                return
            if turn.is_over(now_ns):
                await turn.pass_on()
            # Who was due before the door opened again was kept by the store, not sent late by us.
            offered_ns = due_ns if due_ns <= backlog.reopened_ns else clock.now_ns() - start_ns
            await backlog.offer((k, due_ns, offered_ns))
    except BacklogFull as full:
        stop.set(str(full))
        raise
    finally:
        backlog.end()


def _instants(due: Sequence[int] | NDArray[np.int64]) -> Iterator[Sequence[int]]:
    if not isinstance(due, np.ndarray):
        yield due
        return
    for first in range(0, len(due), _ARRIVALS_AT_ONCE):
        yield due[first : first + _ARRIVALS_AT_ONCE].tolist()


async def _consumer(load: Load, stop: Stop, backlog: _Backlog) -> None:
    perform_one = _performer(load, stop)
    try:
        while (arrival := await backlog.take()) is not None:
            k, due_ns, offered_ns = arrival
            await perform_one(k, load.prepare(k), due_ns, offered_ns)
    finally:
        backlog.tell_of_space()  # one that broke will not take again, and the dispatcher must not wait for it
