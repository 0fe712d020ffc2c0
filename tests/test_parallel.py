"""Claims about turns and the parallel executor: who waits for whom and for nobody else, in what order, within what bounds."""

from __future__ import annotations

import asyncio
import itertools
import random
import tracemalloc
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec import Struct
from witness import COUNT, Audit, Crowd, drawn_command

from eventcore_lab.clock import VirtualClock
from eventcore_lab.commands import CommandRejected, Executed, Fold, OpenAccount, Transfer, execute_all, executors
from eventcore_lab.commands.bank import account_stream
from eventcore_lab.commands.executor import Direct, Executor
from eventcore_lab.commands.memory import Memory as Remembered
from eventcore_lab.commands.parallel import Parallel
from eventcore_lab.commands.turns import Ticket, Turns
from eventcore_lab.events import NewEvent, StreamId
from eventcore_lab.stores import Store
from eventcore_lab.stores.memory import Memory

NEVER = 10**9
MS = 1_000_000


class Task(Struct, frozen=True):
    """A command as a plan: when it comes, what it writes and only reads, how long it takes, when it is cancelled."""

    at_ms: int
    writes: frozenset[int]
    shares: frozenset[int] = frozenset()
    takes_ms: int = 1
    cancelled_after_ms: int | None = None

    @property
    def streams(self) -> Mapping[StreamId, Fold]:
        return {StreamId(f"s-{n}"): COUNT for n in sorted(self.writes | self.shares)}

    @property
    def only_reads(self) -> Collection[StreamId]:
        return [StreamId(f"s-{n}") for n in sorted(self.shares - self.writes)]

    @property
    def cancelled_ms(self) -> float:
        return NEVER if self.cancelled_after_ms is None else self.at_ms + self.cancelled_after_ms + 0.5

    def decide(self, states: Mapping[StreamId, Any]) -> Sequence[tuple[StreamId, NewEvent]]:
        return []

    def meets(self, other: Task) -> bool:
        """Whether they share a stream that one of them writes."""
        return not self.writes.isdisjoint(other.writes | other.shares) or not other.writes.isdisjoint(self.shares)


class Timed:
    """An executor that takes as long as the plan says, and notes from when to when."""

    def __init__(self, clock: VirtualClock) -> None:
        self._clock = clock
        self.began_ms: dict[int, float] = {}
        self.ended_ms: dict[int, float] = {}
        self.under_way = self.most = 0

    @property
    def core(self) -> Direct:
        raise NotImplementedError

    def now_ms(self) -> float:
        return round(self._clock.now_ns() / MS, 3)

    async def execute(self, command: Any) -> Executed:
        self.began_ms[id(command)] = self.now_ms()
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            await self._clock.sleep_until(self._clock.now_ns() + command.takes_ms * MS)
        finally:
            self.under_way -= 1
            self.ended_ms[id(command)] = self.now_ms()
        return Executed((), (), 1)

    def remembering(self, make: Callable[[Remembered, Store], Remembered]) -> Executor:
        return self

    def counts(self) -> dict[str, int]:
        return {}

    async def close(self) -> None:
        return


class Played:
    """Tasks carried out by `Parallel` in virtual time. A deadlock raises, for then nothing is due."""

    def __init__(self, tasks: Sequence[Task], limit: int) -> None:
        self.tasks = sorted(tasks, key=lambda task: task.at_ms)
        clock = VirtualClock()
        self.timed = Timed(clock)
        self.parallel = Parallel(self.timed, limit)
        clock.run(self._whole(clock))
        assert len(self.parallel._turns) == 0, "the table of lines is empty"
        assert self.timed.most <= limit

    async def _whole(self, clock: VirtualClock) -> None:
        running = []
        for task in self.tasks:
            await clock.sleep_until(task.at_ms * MS)
            running.append(asyncio.ensure_future(self._one(clock, task)))
            await asyncio.sleep(0)  # it enters its lines before the next one comes
        await asyncio.gather(*running)

    async def _one(self, clock: VirtualClock, task: Task) -> None:
        execution = asyncio.ensure_future(self.parallel.execute(task))
        if task.cancelled_after_ms is None:
            await execution
            return
        timer = asyncio.ensure_future(clock.sleep_until(int(task.cancelled_ms * MS)))
        await asyncio.wait([execution, timer], return_when=asyncio.FIRST_COMPLETED)
        execution.cancel()
        timer.cancel()
        await asyncio.gather(execution, timer, return_exceptions=True)

    def began_ms(self, task: Task) -> float | None:
        return self.timed.began_ms.get(id(task))

    def ended_ms(self, task: Task) -> float | None:
        return self.timed.ended_ms.get(id(task))


STREAMS = st.frozensets(st.integers(0, 4), max_size=3)
TASKS = st.lists(
    st.builds(
        Task,
        at_ms=st.integers(0, 20),
        writes=STREAMS,
        shares=STREAMS,
        takes_ms=st.integers(1, 9),
        cancelled_after_ms=st.none() | st.integers(0, 20),
    ),
    min_size=1,
    max_size=16,
)


@settings(max_examples=300, deadline=None)
@given(tasks=TASKS)
def test_a_command_begins_as_soon_as_all_that_came_before_it_with_a_stream_of_its_own_have_left(
    tasks: list[Task],
) -> None:
    """To the microsecond of virtual time, so that it says at once: no two meet, nobody is overtaken on a stream he shares,
    nobody waits for anybody else, readers go together, who is cancelled leaves, and there is no deadlock."""
    played = Played(tasks, limit=len(tasks))
    left_ms: dict[int, float] = {}
    for n, task in enumerate(played.tasks):
        before = [left_ms[k] for k, other in enumerate(played.tasks[:n]) if task.meets(other)]
        begins_ms = max([task.at_ms, *before])
        if task.cancelled_ms <= begins_ms:
            assert played.began_ms(task) in (None, task.cancelled_ms)  # told and cancelled at one instant: either
            left_ms[n] = task.cancelled_ms
        else:
            assert played.began_ms(task) == begins_ms
            left_ms[n] = min(begins_ms + task.takes_ms, task.cancelled_ms)
            assert played.ended_ms(task) == left_ms[n]


@settings(max_examples=200, deadline=None)
@given(tasks=TASKS, limit=st.integers(1, 5))
def test_within_a_limit_commands_that_meet_keep_their_order_and_all_come_to_an_end(
    tasks: list[Task], limit: int
) -> None:
    played = Played(tasks, limit)
    for earlier, later in itertools.combinations(played.tasks, 2):
        if earlier.meets(later):
            began_ms, ended_ms = played.began_ms(later), played.ended_ms(earlier)
            assert began_ms is None or ended_ms is None or ended_ms <= began_ms
    for task in played.tasks:
        assert played.ended_ms(task) is not None or task.cancelled_after_ms is not None


@settings(max_examples=100, deadline=None)
@given(count=st.integers(1, 20), limit=st.integers(1, 8), takes_ms=st.integers(1, 5))
@example(count=20, limit=5, takes_ms=3)
def test_disjoint_commands_overlap_up_to_the_limit_and_never_beyond(count: int, limit: int, takes_ms: int) -> None:
    played = Played([Task(0, frozenset((n,)), takes_ms=takes_ms) for n in range(count)], limit)
    assert played.timed.most == min(limit, count)
    assert max(played.timed.ended_ms.values()) == -(-count // limit) * takes_ms


def test_readers_of_one_stream_overlap_and_a_writer_among_them_goes_alone() -> None:
    read, write = (
        (lambda at: Task(at, frozenset(), frozenset((0,)), 10)),
        (lambda at: Task(at, frozenset((0,)), takes_ms=10)),
    )
    tasks = [read(0), read(1), write(2), read(3), read(4), write(5), read(6)]
    played = Played(tasks, 10)
    assert [played.began_ms(t) for t in tasks] == [0, 1, 11, 21, 21, 31, 41]


def test_those_who_wait_for_a_hot_stream_hold_nobody_else_up() -> None:
    """They have no permit while they wait, and ask for one behind those who have been ready for longer."""
    hot = [Task(0, frozenset((0,)), takes_ms=10) for _ in range(5)]
    others = [Task(1, frozenset((n,)), takes_ms=10) for n in range(1, 4)]
    played = Played([*hot, *others], 2)
    assert [played.began_ms(t) for t in others] == [1, 10, 11]
    assert [played.began_ms(t) for t in hot] == [0, 20, 30, 40, 50]


async def test_one_who_is_cancelled_while_he_waits_leaves_every_line() -> None:
    turns = Turns()
    a, b, c = (turns.enter([StreamId(s) for s in streams]) for streams in ("x", "xy", "y"))
    assert (a.missing, b.missing, c.missing) == (0, 1, 1)
    waiting = asyncio.ensure_future(turns.mine(c))
    await asyncio.sleep(0)
    turns.leave(b)
    await waiting
    turns.leave(c)
    assert len(turns) == 1
    turns.leave(a)
    assert len(turns) == 0


async def test_one_who_is_told_and_cancelled_in_the_same_turn_leaves_nothing_behind() -> None:
    clock_free = Parallel(_Instant(), 1)
    first = asyncio.ensure_future(clock_free.execute(Task(0, frozenset((0,)))))
    second = asyncio.ensure_future(clock_free.execute(Task(0, frozenset((0, 1)))))
    third = asyncio.ensure_future(clock_free.execute(Task(0, frozenset((1,)))))
    await asyncio.sleep(0)
    first.add_done_callback(lambda _: second.cancel())
    results = await asyncio.gather(first, second, third, return_exceptions=True)
    assert [type(r) for r in results] == [Executed, asyncio.CancelledError, Executed]
    assert len(clock_free._turns) == 0 and clock_free.counts()["lines"] == 0


class _Instant(Timed):
    def __init__(self) -> None:
        super().__init__(VirtualClock())

    async def execute(self, command: Any) -> Executed:
        await asyncio.sleep(0)
        return Executed((), (), 1)


async def test_a_command_that_fails_leaves_its_lines_too() -> None:
    store = Memory()
    executor = executors.make("parallel(direct)", store=store)
    with pytest.raises(CommandRejected):
        await executor.execute(Transfer("0", "1", 5))
    assert executor.counts()["lines"] == 0
    results = await execute_all(executor, [OpenAccount("0", 1), OpenAccount("0", 2), OpenAccount("0", 3)])
    assert [type(r) for r in results] == [Executed, CommandRejected, CommandRejected]


@pytest.mark.parametrize("spec", ["parallel(direct:retries=0)", "parallel(cached(direct:retries=0)):limit=3"])
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_commands_of_one_parallel_executor_never_conflict_and_are_serial(spec: str, seed: int) -> None:
    """Nobody else writes, and no retry is allowed. (An audit folds an account's stream in a way of its own, and what one
    fold knows is not told to the other: between them a cache can be behind its own process.)"""
    chance = random.Random(seed)
    drawn = (drawn_command(chance) for _ in itertools.count())
    commands = list(itertools.islice((c for c in drawn if not isinstance(c, Audit)), 60))
    crowd = Crowd([spec], seed, clients=12, commands=commands)
    crowd.judge()
    for t in crowd.tried:
        assert isinstance(t.outcome, Executed | CommandRejected)
        assert not isinstance(t.outcome, Executed) or t.outcome.attempts == 1


def test_commands_with_a_stream_in_common_take_effect_in_the_order_they_came() -> None:
    """Of thirty that reserve the same account's last cents the first ones get them, whatever the store's answers take."""

    class Slow(Memory):
        async def append(self, writes: Any) -> Any:
            await asyncio.sleep(len(self._all) % 3)
            return await super().append(writes)

    async def whole() -> None:
        store = Slow()
        executor = executors.make("parallel(cached(direct))", store=store)
        await execute_all(executor, [OpenAccount("0", 10), OpenAccount("1", 0)])
        results = await execute_all(executor, [Transfer("0", "1", 1) for _ in range(30)])
        assert [isinstance(r, Executed) for r in results] == [True] * 10 + [False] * 20
        versions = [r.versions for r in results if isinstance(r, Executed)]
        assert versions == [(n, n) for n in range(2, 12)]
        assert (await store.read_stream(account_stream("0"))).version == 11

    VirtualClock().run(whole())


class Counted(str):
    """A stream id that counts how often it is hashed."""

    hashes = 0

    def __hash__(self) -> int:
        Counted.hashes += 1
        return str.__hash__(self)


@pytest.mark.parametrize("others", [1, 10_000])
def test_a_turn_costs_the_same_however_many_streams_have_a_line(others: int) -> None:
    turns = Turns()
    standing = [turns.enter([StreamId(f"other-{n}")]) for n in range(others)]
    stream = StreamId(Counted("mine"))
    Counted.hashes = 0
    turns.leave(turns.enter([stream]))
    assert Counted.hashes <= 5
    assert len(turns) == len(standing)


def test_a_million_turns_leave_nothing_behind() -> None:
    """At most a hundred stand at a time; memory is that of a hundred, not of a million streams."""

    def play(first: int, count: int) -> None:
        standing: list[Ticket] = []
        for n in range(first, first + count):
            standing.append(turns.enter((StreamId(f"s-{n}"),)))
            if len(standing) == 100:
                for ticket in standing:
                    turns.leave(ticket)
                standing.clear()

    turns = Turns()
    play(0, 10_000)
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    play(10_000, 20_000)
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert after - before < 100_000, "bytes"
    play(30_000, 1_000_000)
    assert len(turns) == 0
