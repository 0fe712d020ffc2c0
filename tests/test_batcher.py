"""Claims about the batcher: who goes together and when, that everybody gets his own answer, and that everything is bounded."""

from __future__ import annotations

import asyncio
import random
import sys
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec import Struct

from eventcore_lab.clock import NS_PER_S, VirtualClock
from eventcore_lab.events import OutcomeUnknown, StoreError
from eventcore_lab.schema import Attempt, current_attempt
from eventcore_lab.stores.batcher import Batcher, BatcherClosed


class Odd(Exception):
    """What is wrong with one item, or with one whole batch."""


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def begun(batcher: Batcher[Any, Any], *items: Any) -> list[asyncio.Task[Any]]:
    return [asyncio.ensure_future(batcher.submit(item)) for item in items]


def now_s() -> float:
    return asyncio.get_running_loop().time()


class Held:
    """A process that answers each batch when it is let."""

    def __init__(self) -> None:
        self.batches: list[list[Any]] = []
        self._gates: list[asyncio.Future[None]] = []

    async def __call__(self, items: Sequence[Any]) -> Sequence[Any]:
        self.batches.append(list(items))
        self._gates.append(asyncio.get_running_loop().create_future())
        await self._gates[-1]
        return [f"did {item}" for item in items]

    async def let(self, batch: int) -> None:
        self._gates[batch].set_result(None)
        await settle()


# --- everybody gets his own answer ----------------------------------------------------------------------------------


class Item(Struct, frozen=True):
    """What comes of it: `fate` "wrong" is an error of its own, "ruin" fails the batch it is in, "few" loses an answer of
    that batch and "many" adds one."""

    n: int
    keys: tuple[int, ...] = ()
    weight: int = 0
    fate: str = "done"


class Crowd:
    """Callers who come at random instants, some of whom leave again, and a process that takes its time and fails."""

    def __init__(self, seed: int, *, is_keyed: bool, is_weighed: bool, is_faulty: bool, **settings: Any) -> None:
        self.chance = random.Random(seed)
        self.settings = settings
        self.weight_max = 12
        fates = ["done"] * 12 + (["wrong", "wrong", "ruin", "few", "many"] if is_faulty else [])
        self.items = [
            Item(
                n,
                tuple(self.chance.sample(range(5), self.chance.choice((0, 1, 1, 2)))) if is_keyed else (),
                self.chance.choice((1, 2, 5, 30)) if is_weighed else 0,
                self.chance.choice(fates),
            )
            for n in range(40)
        ]
        self.batches: list[list[Item]] = []
        self.submitted: list[int] = []
        self.under_way: list[list[Item]] = []
        self.outcomes: dict[int, Any] = {}

    def judge(self, cancelled: int) -> None:
        VirtualClock().run(self._whole(cancelled))
        processed = Counter(item.n for batch in self.batches for item in batch)
        assert max(processed.values()) == 1, "nothing is processed twice"
        assert set(processed) | self.left == {item.n for item in self.items}, "whoever stays is served"
        self._judge_answers()
        self._judge_order()

    async def _whole(self, cancelled: int) -> None:
        self.batcher: Batcher[Item, str] = Batcher(
            self._process,
            keys=lambda item: item.keys,
            weight=lambda item: item.weight,
            weight_max=self.weight_max,
            **self.settings,
        )
        tasks = []
        async with asyncio.timeout(60):
            for item in self.items:
                await self._pause()
                tasks.append(asyncio.ensure_future(self._call(item)))
                if cancelled and self.chance.randrange(cancelled) == 0:
                    self.chance.choice(tasks).cancel()
            await asyncio.wait(tasks)
            await self.batcher.close()
        self.left = {n for n, task in enumerate(tasks) if task.cancelled()}
        assert (self.batcher.waiting, self.batcher.outside, len(self.batcher._batches)) == (0, 0, 0)
        assert self.batcher._taken == set() and self.batcher.batches == len(self.batches)

    async def _pause(self) -> None:
        match self.chance.randrange(4):
            case 0:
                await asyncio.sleep(self.chance.choice((0.001, 0.003, 0.02)))
            case 1:
                for _ in range(self.chance.randint(1, 3)):
                    await asyncio.sleep(0)

    async def _call(self, item: Item) -> None:
        self.submitted.append(item.n)
        try:
            self.outcomes[item.n] = await self.batcher.submit(item)
        except Exception as error:
            self.outcomes[item.n] = error
        assert self.batcher.waiting <= self.settings["queue_max"]

    async def _process(self, items: Sequence[Item]) -> Sequence[Any]:
        batch = list(items)
        self.batches.append(batch)
        self.under_way.append(batch)
        self._judge_under_way(batch)
        await self._pause()
        self.under_way.remove(batch)
        fates = {item.fate for item in items}
        if "ruin" in fates:
            raise Odd([item.n for item in items])
        results: list[Any] = [Odd(item.n) if item.fate == "wrong" else f"did {item.n}" for item in items]
        if "few" in fates:
            return results[:-1]
        return [*results, "one too many"] if "many" in fates else results

    def _judge_under_way(self, batch: list[Item]) -> None:
        assert 1 <= len(batch) <= self.settings["size"]
        assert len(self.under_way) <= self.settings["in_flight"]
        assert self.batcher.waiting <= self.settings["queue_max"]
        others = {key for other in self.under_way if other is not batch for item in other for key in item.keys}
        assert others.isdisjoint(key for item in batch for key in item.keys), "a key is in two batches"
        assert len(batch) == 1 or sum(item.weight for item in batch) <= self.weight_max

    def _judge_answers(self) -> None:
        batch_of = {item.n: batch for batch in self.batches for item in batch}
        for n, outcome in self.outcomes.items():
            fates = {item.fate for item in batch_of[n]}
            if "ruin" in fates:
                assert outcome.args == ([item.n for item in batch_of[n]],), "the error of his own batch"
            elif fates & {"few", "many"}:
                assert isinstance(outcome, OutcomeUnknown)
            elif self.items[n].fate == "wrong":
                assert outcome.args == (n,), "his own error"
            else:
                assert outcome == f"did {n}"

    def _judge_order(self) -> None:
        """Items with a common key, and where there are neither keys nor weights all items, go in the order they came."""
        place = {n: k for k, n in enumerate(self.submitted)}
        order = [item for batch in self.batches for item in batch]
        keys = {key for item in order for key in item.keys}
        lines = [[item.n for item in order if key in item.keys] for key in keys]
        if not keys and not any(item.weight for item in order):
            lines.append([item.n for item in order])
        for line in lines:
            assert line == sorted(line, key=place.__getitem__)


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    size=st.integers(1, 8),
    delay_s=st.sampled_from([0, 0, 0.002, 0.5]),
    in_flight=st.integers(1, 3),
    queue_max=st.integers(1, 9),
    is_keyed=st.booleans(),
    is_weighed=st.booleans(),
    is_faulty=st.booleans(),
    cancelled=st.sampled_from([0, 2, 4]),
)
def test_everybody_gets_his_own_answer_in_his_turn_within_the_bounds(
    seed: int, is_keyed: bool, is_weighed: bool, is_faulty: bool, cancelled: int, **settings: Any
) -> None:
    crowd = Crowd(seed, is_keyed=is_keyed, is_weighed=is_weighed, is_faulty=is_faulty, **settings)
    crowd.judge(cancelled)


# --- what can go wrong ----------------------------------------------------------------------------------------------


async def processed_by(process: Callable[[Sequence[int]], Awaitable[Any]], *items: int) -> list[Any]:
    batcher: Batcher[int, Any] = Batcher(process, delay_s=0)
    async with asyncio.timeout(5):
        results = await asyncio.gather(*begun(batcher, *items), return_exceptions=True)
        await batcher.close()
    return results


async def test_an_error_a_future_cannot_hold_is_its_callers_and_nobody_elses() -> None:
    """StopIteration, which a decision that says next(…) raises, cannot be raised into a future."""

    async def process(items: Sequence[int]) -> Sequence[Any]:
        return [StopIteration(n) if n == 1 else n for n in items]

    results = await processed_by(process, 0, 1, 2, 3)
    assert isinstance(results.pop(1), RuntimeError)
    assert results == [0, 2, 3]


@pytest.mark.parametrize("answer", [None, 7, []])
async def test_a_process_that_answers_nothing_sensible_leaves_nobody_waiting(answer: Any) -> None:
    async def process(_: Sequence[int]) -> Any:
        return answer

    results = await processed_by(process, 0, 1)
    assert all(isinstance(r, TypeError | OutcomeUnknown) for r in results)


async def test_a_batch_that_is_cut_off_is_unknown_to_its_callers_and_the_next_one_goes() -> None:
    async def process(items: Sequence[int]) -> Sequence[int]:
        if 0 in items:
            raise asyncio.CancelledError
        return list(items)

    batcher: Batcher[int, int] = Batcher(process, delay_s=0, size=2)
    async with asyncio.timeout(5):
        results = await asyncio.gather(*begun(batcher, 0, 1, 2), return_exceptions=True)
    assert [type(r) for r in results] == [OutcomeUnknown, OutcomeUnknown, int]


async def test_a_batch_belongs_to_nobodys_operation() -> None:
    seen = []

    async def process(items: Sequence[int]) -> Sequence[int]:
        seen.append(current_attempt.get())
        return list(items)

    current_attempt.set(Attempt())
    for delay_s in (0, 0.001):
        batcher: Batcher[int, int] = Batcher(process, delay_s=delay_s)
        await asyncio.gather(*begun(batcher, 1, 2))
    assert seen == [None, None]


@pytest.mark.parametrize("wrong", [{"size": 0}, {"in_flight": 0}, {"queue_max": 0}, {"delay_s": -1}])
def test_a_batcher_without_room_cannot_be_made(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least 1, and delay_s 0 or more"):
        Batcher(Held(), **wrong)


def test_batchers_in_the_loops_of_several_threads_do_not_meet() -> None:
    """A context can be entered by one thread at a time; one for all of them would lose departures."""
    errors: list[Any] = []

    async def process(items: Sequence[int]) -> Sequence[int]:
        return list(items)

    async def whole() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context))
        batcher: Batcher[int, int] = Batcher(process, delay_s=0)
        for _ in range(300):
            async with asyncio.timeout(10):
                await asyncio.gather(*begun(batcher, 1, 2))

    def run() -> None:
        try:
            asyncio.run(whole())
        except Exception as error:
            errors.append(error)

    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=run) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval_s)
    assert errors == []


# --- when a batch goes ----------------------------------------------------------------------------------------------


def test_without_a_delay_an_item_at_idle_goes_in_the_same_turn_and_no_timer_is_ever_set() -> None:
    async def whole() -> None:
        loop, held = asyncio.get_running_loop(), Held()
        batcher: Batcher[int, str] = Batcher(held, delay_s=0, in_flight=1)
        timers: list[Any] = []
        loop.call_at = loop.call_later = lambda *args, **_: timers.append(args)  # type: ignore[method-assign, assignment]
        tasks = begun(batcher, 1)
        for _ in range(3):  # the caller begins, the batch departs, the process begins
            await asyncio.sleep(0)
        assert held.batches == [[1]]
        tasks += begun(batcher, 2, 3)
        await settle()
        assert held.batches == [[1]], "one is under way"
        await held.let(0)
        assert held.batches == [[1], [2, 3]], "what came meanwhile goes together"
        await held.let(1)
        assert [await t for t in tasks] == ["did 1", "did 2", "did 3"]
        assert timers == []

    clock = VirtualClock()
    clock.run(whole())
    assert clock.now_ns() == 0


async def test_what_callers_ask_who_have_just_been_answered_goes_together() -> None:
    held = Held()
    batcher: Batcher[int, str] = Batcher(held, delay_s=0, in_flight=1)

    async def caller(n: int) -> None:
        await batcher.submit(n)
        await batcher.submit(n)

    tasks = [asyncio.ensure_future(caller(n)) for n in range(5)]
    await settle()
    tasks += begun(batcher, 5)
    await settle()
    await held.let(0)
    assert held.batches == [[0, 1, 2, 3, 4], [5, 0, 1, 2, 3, 4]]
    await held.let(1)
    await asyncio.gather(*tasks)


async def test_without_a_delay_those_who_want_something_are_shared_out_among_the_batches_in_flight() -> None:
    held = Held()
    batcher: Batcher[int, str] = Batcher(held, delay_s=0, in_flight=2, size=100)
    tasks = begun(batcher, *range(10))
    await settle()
    assert [len(b) for b in held.batches] == [5, 5]
    await held.let(0)
    await held.let(1)
    await asyncio.gather(*tasks)


@settings(max_examples=200, deadline=None)
@given(
    arrivals_ms=st.lists(st.integers(0, 60), min_size=1, max_size=25).map(sorted),
    size=st.integers(1, 6),
    delay_ms=st.integers(0, 20).map(lambda ms: ms + 0.5),
)
@example(arrivals_ms=[0, 5, 10], size=3, delay_ms=10.5)
@example(arrivals_ms=[0, 5, 10], size=3, delay_ms=9.5)
def test_with_a_delay_a_batch_goes_when_it_is_full_or_its_first_item_has_waited_so_long(
    arrivals_ms: list[int], size: int, delay_ms: float
) -> None:
    """Against the policy said in five lines, to the microsecond of virtual time."""
    expected: list[tuple[float, int]] = []
    queue: list[int] = []
    for at_ms in [*arrivals_ms, 10_000]:
        if queue and queue[0] + delay_ms < at_ms:
            expected.append((queue[0] + delay_ms, len(queue)))
            queue.clear()
        if at_ms == 10_000:
            break
        queue.append(at_ms)
        if len(queue) == size:
            expected.append((at_ms, size))
            queue.clear()
    went: list[tuple[float, int]] = []

    async def process(items: Sequence[int]) -> Sequence[int]:
        went.append((round(now_s() * 1e3, 3), len(items)))
        return list(items)

    async def whole(clock: VirtualClock) -> None:
        batcher: Batcher[int, int] = Batcher(process, size=size, delay_s=delay_ms / 1e3)
        tasks = []
        for n, at_ms in enumerate(arrivals_ms):
            await clock.sleep_until(at_ms * 1_000_000)
            tasks += begun(batcher, n)
        async with asyncio.timeout(60):
            assert await asyncio.gather(*tasks) == list(range(len(arrivals_ms)))

    clock = VirtualClock()
    clock.run(whole(clock))
    assert went == expected


def test_one_who_leaves_does_not_make_others_wait_longer_or_go_earlier() -> None:
    """The first of three is cancelled, then one in the middle: the batch goes when those who are left have waited."""
    went: list[tuple[float, list[int]]] = []

    async def process(items: Sequence[int]) -> Sequence[int]:
        went.append((round(now_s(), 3), list(items)))
        return list(items)

    async def whole() -> None:
        batcher: Batcher[int, int] = Batcher(process, size=4, delay_s=10)
        tasks = []
        for n in range(4):
            tasks += begun(batcher, n)
            await settle()
            if n < 2:
                tasks[n].cancel()
            await asyncio.sleep(1)
        await asyncio.gather(*tasks, return_exceptions=True)

    VirtualClock().run(whole())
    assert went == [(12.0, [2, 3])]


def test_a_batch_whose_time_has_come_while_others_were_under_way_goes_as_soon_as_it_may() -> None:
    went: list[tuple[float, int]] = []

    async def process(items: Sequence[int]) -> Sequence[int]:
        went.append((round(now_s(), 3), len(items)))
        await asyncio.sleep(7)
        return list(items)

    async def whole() -> None:
        batcher: Batcher[int, int] = Batcher(process, size=10, delay_s=1, in_flight=1)
        first = begun(batcher, 1)
        await asyncio.sleep(3)
        rest = begun(batcher, 2, 3)
        await asyncio.gather(*first, *rest)

    VirtualClock().run(whole())
    assert went == [(1.0, 1), (8.0, 2)]


async def test_what_waits_for_its_key_lets_others_pass_and_keeps_its_place() -> None:
    held = Held()
    batcher: Batcher[str, str] = Batcher(held, delay_s=0, in_flight=2, size=2, keys=lambda item: item[0])
    tasks = begun(batcher, "a1")
    await settle()
    tasks += begun(batcher, "a2", "b1", "a3", "c1")
    await settle()
    assert held.batches == [["a1"], ["b1", "c1"]]
    await held.let(0)
    assert held.batches[2:] == [["a2", "a3"]]
    await held.let(1)
    await held.let(2)
    await asyncio.gather(*tasks)


# --- bounds ---------------------------------------------------------------------------------------------------------


async def test_callers_outside_are_let_in_in_their_order_also_when_some_leave() -> None:
    held = Held()
    batcher: Batcher[int, str] = Batcher(held, delay_s=0, in_flight=1, size=1, queue_max=2)
    tasks = begun(batcher, *range(8))
    await settle()
    assert (batcher.waiting, batcher.outside) == (2, 5)
    tasks[3].cancel()  # outside
    tasks[1].cancel()  # in the queue
    for batch in range(6):
        await held.let(batch)
        assert batcher.waiting <= 2
    assert held.batches == [[0], [2], [4], [5], [6], [7]]
    assert [t.cancelled() for t in tasks] == [n in (1, 3) for n in range(8)]


async def test_one_who_leaves_just_when_he_was_let_in_leaves_his_place_to_the_next() -> None:
    held = Held()
    batcher: Batcher[int, str] = Batcher(held, delay_s=0, in_flight=1, size=1, queue_max=1)
    tasks = begun(batcher, 0, 1, 2, 3)
    await settle()
    place = next(iter(batcher._outside))
    place.add_done_callback(lambda _: tasks[2].cancel())
    for batch in range(3):
        await held.let(batch)
    assert held.batches == [[0], [1], [3]]
    assert tasks[2].cancelled() and await tasks[3] == "did 3"


async def test_nobody_overtakes_one_who_has_just_been_let_in() -> None:
    held = Held()
    batcher: Batcher[int, str] = Batcher(held, delay_s=0, in_flight=1, size=2, queue_max=2)
    tasks = begun(batcher, *range(5))
    await settle()
    assert (held.batches, batcher.waiting, batcher.outside) == ([[0, 1]], 2, 1)
    # 5 comes in the very turn in which 4 is told that there is room, and finds nobody outside.
    held._gates[0].add_done_callback(lambda _: tasks.extend(begun(batcher, 5)))
    for batch in range(3):
        await held.let(batch)
    assert held.batches == [[0, 1], [2, 3], [4, 5]]
    await asyncio.gather(*tasks)


# --- closing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("delay_s", [0, 3600])
def test_closing_processes_what_waits_at_once_and_refuses_what_comes(delay_s: float) -> None:
    async def whole() -> None:
        held = Held()
        batcher: Batcher[int, str] = Batcher(
            held, delay_s=delay_s, in_flight=1, size=2, queue_max=4, close_error=lambda: Odd("closed")
        )
        tasks = begun(batcher, *range(4))
        await settle()
        outside = begun(batcher, 4, 5, 6, 7) if batcher.waiting == 4 else []
        await settle()
        closing = asyncio.ensure_future(batcher.close())
        await settle()
        with pytest.raises(Odd, match="closed"):
            await batcher.submit(99)
        for batch in range(2):
            assert not closing.done()
            await held.let(batch)
        await closing
        assert held.batches == [[0, 1], [2, 3]]
        assert [await t for t in tasks] == [f"did {n}" for n in range(4)]
        assert all(isinstance(r, Odd) for r in await asyncio.gather(*outside, return_exceptions=True))
        await batcher.close()
        assert isinstance((await asyncio.gather(batcher.submit(1), return_exceptions=True))[0], Odd)

    clock = VirtualClock()
    clock.run(whole())
    assert clock.now_ns() == 0, "nobody waits for a timer"


def test_closing_an_idle_batcher_takes_no_time_and_its_refusal_is_a_store_error() -> None:
    async def whole() -> None:
        batcher: Batcher[int, str] = Batcher(Held())
        await batcher.close()
        with pytest.raises(BatcherClosed) as refusal:
            await batcher.submit(1)
        assert isinstance(refusal.value, StoreError)

    VirtualClock().run(whole())


@pytest.mark.parametrize("in_flight", [1, 2])
@pytest.mark.parametrize("delay_s", [0, 0.5])
def test_closing_that_takes_too_long_ends_with_everybody_told_and_nothing_begun_behind_it(
    in_flight: int, delay_s: float
) -> None:
    """Those under way cannot know, those who waited were not processed, and no batch goes after the end."""
    began_s: list[float] = []

    async def never(items: Sequence[int]) -> Sequence[int]:
        began_s.append(now_s())
        await asyncio.sleep(1e6)
        return list(items)

    async def whole() -> None:
        batcher: Batcher[int, int] = Batcher(never, size=2, queue_max=6, in_flight=in_flight, delay_s=delay_s)
        tasks = begun(batcher, *range(20))
        await asyncio.sleep(1)
        await batcher.close(timeout_s=5)
        assert batcher._batches == set() and (batcher.waiting, batcher.outside) == (0, 0)
        await settle()
        assert all(t.done() for t in tasks)
        kinds = Counter(type(t.exception()) for t in tasks)
        assert kinds == {OutcomeUnknown: 2 * in_flight, BatcherClosed: 20 - 2 * in_flight}
        assert len(began_s) == in_flight

    clock = VirtualClock()
    clock.run(whole())
    assert 6 * NS_PER_S <= clock.now_ns() < 7 * NS_PER_S


def test_callers_who_have_gone_leave_no_trace_and_keep_nobody_out() -> None:
    """A batch hangs; ten thousand come with a time-out of their own, and all of them go."""

    async def run() -> None:
        gate = asyncio.Event()

        async def process(items: Sequence[int]) -> list[int]:
            await gate.wait()
            return list(items)

        batcher: Batcher[int, int] = Batcher(process, size=1, delay_s=0, queue_max=5)
        first = asyncio.ensure_future(batcher.submit(0))
        await settle()
        others = [asyncio.ensure_future(batcher.submit(n)) for n in range(10_000)]
        await settle()
        assert (batcher.waiting, batcher.outside) == (5, 9_995)
        for other in others:
            other.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        assert batcher.outside == 0 and batcher.waiting <= 1
        last = asyncio.ensure_future(batcher.submit(-1))
        await settle()
        assert batcher.outside == 0
        gate.set()
        assert await asyncio.gather(first, last) == [0, -1]

    VirtualClock().run(run())
