"""Claims about the chapter's executors: each of their faults with a number, and next to it what ours does instead."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any, TypeVar

import msgspec
import pytest

from eventcore_lab.clock import NS_PER_S, VirtualClock, sleep_s
from eventcore_lab.commands import (
    Command,
    CommandRejected,
    CreateUser,
    Direct,
    Executed,
    Executor,
    Fold,
    OpenAccount,
    ReserveStock,
    RetryPolicy,
    Transfer,
    UpdateProfile,
    execute_all,
    executors,
)
from eventcore_lab.commands.bank import TRANSFERS_RESUMED, TRANSFERS_SUSPENDED
from eventcore_lab.commands.chapter import BatchProcessor, Cancelled, ChapterBatching, ChapterCached, ChapterParallel
from eventcore_lab.commands.inventory import received, stock_stream
from eventcore_lab.commands.users import USER, user_stream
from eventcore_lab.events import (
    AppendResult,
    NewEvent,
    StoreError,
    StreamId,
    StreamSlice,
    StreamWrite,
    VersionConflict,
)
from eventcore_lab.load.workloads import workloads
from eventcore_lab.schema import Attempt, current_attempt
from eventcore_lab.spec import UsageError
from eventcore_lab.stores.batcher import Batcher
from eventcore_lab.stores.memory import Memory

T = TypeVar("T")
MS = NS_PER_S // 1000
CHAPTERS = ("chapter_cached(direct)", "chapter_parallel(direct)", "chapter_batching(direct)")
Told = list[Executed | CommandRejected | StoreError]


class Served(Memory):
    """A memory store whose answers take their time, that counts what it is asked, and on which somebody else may be
    quicker: `first` is done just before an append."""

    def __init__(self, *, read_s: float = 0, append_s: float = 0) -> None:
        super().__init__()
        self.read_s, self.append_s = read_s, append_s
        self.reads = self.conflicts = 0
        self.appended: list[Sequence[StreamWrite]] = []
        self.first: Callable[[], Awaitable[object]] | None = None

    async def append(self, writes: Sequence[StreamWrite]) -> AppendResult:
        [result] = await self.append_many([writes])
        if isinstance(result, StoreError):
            raise result
        return result

    async def append_many(self, requests: Sequence[Sequence[StreamWrite]]) -> list[AppendResult | StoreError]:
        if self.append_s:
            await sleep_s(self.append_s)
        first, self.first = self.first, None
        if first is not None:
            await first()
        results = await super().append_many(requests)
        self.appended += requests
        self.conflicts += sum(isinstance(result, VersionConflict) for result in results)
        return results

    async def read_stream(self, stream: StreamId, from_version: int = 1, limit: int | None = None) -> StreamSlice:
        return (await self._answered([await super().read_stream(stream, from_version, limit)]))[0]

    async def read_streams(
        self, streams: Sequence[StreamId], from_versions: Sequence[int] | None = None
    ) -> list[StreamSlice]:
        froms = from_versions or [1] * len(streams)
        return await self._answered(
            [await Memory.read_stream(self, *each) for each in zip(streams, froms, strict=True)]
        )

    async def _answered(self, slices: list[StreamSlice]) -> list[StreamSlice]:
        """After a while, as of the instant they were asked for."""
        self.reads += 1
        if self.read_s:
            await sleep_s(self.read_s)
        return slices


COUNT = Fold("count", 0, lambda count, _: count + 1, int)


class Checks(msgspec.Struct, frozen=True):
    """Rests on a user's stream and writes nothing."""

    user_id: str

    @property
    def streams(self) -> Mapping[StreamId, Fold]:
        return {user_stream(self.user_id): USER}

    def decide(self, states: Mapping[StreamId, Any]) -> Sequence[tuple[StreamId, NewEvent]]:
        return []


def virtually(main: Coroutine[Any, Any, T]) -> T:
    return VirtualClock().run(main)


def new_user(n: int) -> CreateUser:
    return CreateUser(str(n), f"{n}@example.com", "Ada", "Lovelace")


def update(n: int) -> UpdateProfile:
    return UpdateProfile(str(n), "Ada", "King")


async def with_users(store: Memory, users: int, events: int = 1) -> None:
    for n in range(users):
        states = {user_stream(str(n)): None}
        registered = [e for _, e in new_user(n).decide(states)]
        more = [NewEvent(registered[0].type, registered[0].data) for _ in range(events - 1)]
        await Memory.append(store, [StreamWrite(user_stream(str(n)), 0, tuple(registered + more))])


async def with_accounts(store: Memory, *names: str) -> None:
    for name in names:
        await Direct(store).execute(OpenAccount(name, 1_000_000))


async def told(executor: Executor, commands: Sequence[Command]) -> Told:
    """What each was told, all asked at once."""
    return await execute_all(executor, commands, len(commands))


def no_retries(store: Memory) -> Direct:
    return Direct(store, retry=RetryPolicy(retries_max=0))


def counted(results: Told) -> Counter[str]:
    return Counter(type(result).__name__ for result in results)


# --- what all three are ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", CHAPTERS)
@pytest.mark.parametrize("workload", ["mixed:streams=40,articles=2", "transfer:accounts=10,policy=true"])
def test_one_command_after_the_other_comes_to_the_same_as_with_direct(spec: str, workload: str) -> None:
    async def contents(spec: str) -> list[tuple[str, int, str, bytes]]:
        store, operations = Memory(), workloads.make(workload, seed=3)
        for writes in operations.populate():
            await store.append(writes)
        executor = executors.make(spec, store=store, seed=3)
        perform = operations.start(store, executor)
        for k in range(150):
            await perform(operations.prepare(k))
        await executor.close()
        return [(e.stream, e.version, e.type, e.data) for e in await store.read_all(0, 10_000)]

    assert virtually(contents(spec)) == virtually(contents("direct"))


@pytest.mark.parametrize("spec", CHAPTERS)
def test_conflicts_are_tried_again_as_often_as_direct_would_and_are_noted(spec: str) -> None:
    async def main(conflicts: int) -> tuple[Executed, int, int]:
        store = Served()
        await with_users(store, 1)

        async def somebody() -> None:
            await Memory.append(store, [StreamWrite(user_stream("0"), events=(NewEvent("Seen", b"{}"),))])
            if store.conflicts + 1 < conflicts:
                store.first = somebody

        store.first = somebody
        executor = executors.make(spec.replace("direct", "direct:retries=2,first_ms=10,jitter=0"), store=store, seed=1)
        attempt = Attempt()
        current_attempt.set(attempt)
        done = await executor.execute(update(0))
        return done, attempt.conflicts, attempt.backoff_ns // MS

    done, conflicts, waited_ms = virtually(main(2))
    assert (done.attempts, conflicts, waited_ms, done.versions) == (3, 2, 10 + 20, (4,))
    with pytest.raises(VersionConflict):
        virtually(main(3))


@pytest.mark.parametrize("spec", CHAPTERS)
async def test_a_rejection_is_the_commands_own(spec: str) -> None:
    store = Memory()
    executor = executors.make(spec, store=store, seed=1)
    results = await told(executor, [new_user(1), update(2), new_user(3)])
    assert [type(result).__name__ for result in results] == ["Executed", "CommandRejected", "Executed"]
    await executor.close()


@pytest.mark.parametrize(
    "spec",
    [
        "chapter_cached(cached(direct))",
        "cached(chapter_cached(direct))",
        "chapter_batching(snapshots(direct))",
        "cached(chapter_batching(direct))",
        "chapter_batching(chapter_cached(direct))",
        "chapter_cached(parallel(direct))",
    ],
)
def test_a_memory_that_would_not_be_asked_is_refused(spec: str) -> None:
    with pytest.raises(UsageError, match=r"write chapter_(cached|batching)\(direct\)"):
        executors.make(spec, store=Memory(), seed=1)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("chapter_cached(direct):size=0", "size must be 1 to"),
        ("chapter_parallel(direct):limit=0", "limit must be 1 to"),
        ("chapter_batching(direct):size=0", "size must be 1 to"),
        ("chapter_batching(direct):delay_ms=0", "delay_ms must be 0.1 to"),
        ("chapter_batching", r"write chapter_batching\(executor\)"),
    ],
)
def test_options_that_cannot_be_are_refused(spec: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        executors.make(spec, store=Memory(), seed=1)


def test_the_chapters_numbers_are_the_defaults_and_each_says_whose_it_is() -> None:
    described = executors.describe()
    assert described["chapter_cached"][0] == "chapter_cached(executor):size=1000"
    assert described["chapter_batching"][0] == "chapter_batching(executor):size=100,delay_ms=10.0"
    assert all(described[spec.partition("(")[0]][1].startswith("The chapter's, to compare with") for spec in CHAPTERS)


@pytest.mark.parametrize("spec", ["parallel(chapter_cached(direct))", "cached(chapter_parallel(direct))"])
async def test_others_can_stand_around_them_and_inside(spec: str) -> None:
    executor = executors.make(spec, store=Served(), seed=1)
    assert counted(await told(executor, [new_user(n) for n in range(5)])) == {"Executed": 5}
    assert executor.counts()["cache_misses"] == 5
    await executor.close()


# --- chapter_cached -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("spec", "reads"), [("chapter_cached(direct)", 100), ("cached(direct)", 1)])
async def test_store_reads_of_100_commands_of_which_99_find_all_in_the_cache(spec: str, reads: int) -> None:
    store = Served()
    await with_users(store, 1)
    executor = executors.make(spec, store=store, seed=1)
    for _ in range(100):
        await executor.execute(Checks("0"))
    assert (executor.counts()["cache_hits"], store.reads) == (99, reads)


@pytest.mark.parametrize(("spec", "hits", "left"), [("chapter_cached(direct)", 0, 0), ("cached(direct)", 99, 1)])
async def test_hits_of_100_commands_that_each_write_the_same_stream(spec: str, hits: int, left: int) -> None:
    """A write throws the entry away, so the next command misses; ours replaces it by what has come of it."""
    store = Served()
    await with_users(store, 1)
    executor = executors.make(spec, store=store, seed=1)
    for _ in range(100):
        await executor.execute(update(0))
    assert (executor.counts()["cache_hits"], executor.counts()["cache_entries"]) == (hits, left)
    assert (await store.read_stream(user_stream("0"))).version == 101


async def test_a_thousand_entries_are_as_many_events_as_their_streams_have() -> None:
    store = Served()
    await with_users(store, 50, events=200)
    chapters = ChapterCached(Direct(store), size=10)
    ours = executors.make("cached(direct):size=10", store=store, seed=1)
    for n in range(50):
        await chapters.execute(Checks(str(n)))
        await ours.execute(Checks(str(n)))
    assert chapters.counts() == {"cache_hits": 0, "cache_misses": 50, "cache_entries": 10, "cache_events": 2000}
    assert ours.counts()["cache_entries"] == 10
    assert all(type(s.value).__name__ == "User" for s in ours.core.memory._entries.values()), "a state, no events"


async def test_a_state_folded_otherwise_is_a_miss() -> None:
    class Counts(Checks, frozen=True):
        @property
        def streams(self) -> Mapping[StreamId, Fold]:
            return {user_stream(self.user_id): COUNT}

        def decide(self, states: Mapping[StreamId, Any]) -> Sequence[tuple[StreamId, NewEvent]]:
            assert list(states.values()) == [3]
            return []

    store = Served()
    await with_users(store, 1, events=3)
    executor = ChapterCached(Direct(store))
    await executor.execute(Checks("0"))
    await executor.execute(Counts("0"))
    assert executor.counts()["cache_hits"] == 0


async def test_the_least_recently_used_entry_goes_first() -> None:
    store = Served()
    await with_users(store, 3)
    executor = ChapterCached(Direct(store), size=2)
    for n in (0, 1, 0, 2, 0):
        await executor.execute(Checks(str(n)))
    assert executor.counts()["cache_hits"] == 2
    await executor.execute(Checks("1"))
    assert executor.counts()["cache_hits"] == 2


@pytest.mark.parametrize(("spec", "hits"), [("chapter_cached(direct)", 0), ("cached(direct)", 1)])
def test_who_read_before_a_write_puts_the_old_state_back_behind_it(spec: str, hits: int) -> None:
    """Alice asks first and gets version 1 late; Bob has written version 2 and thrown the entry away before she caches.
    What she puts there is of no use to who comes next."""

    async def main() -> int:
        store = Served(read_s=0.010)
        await with_users(store, 1)
        executor = executors.make(spec, store=store, seed=1)
        alice = asyncio.ensure_future(executor.execute(new_user(0)))
        await sleep_s(0.001)
        store.read_s = 0
        await executor.execute(update(0))
        with pytest.raises(CommandRejected):
            await alice
        assert executor.counts()["cache_entries"] == 1
        before = executor.counts()["cache_hits"]
        await executor.execute(Checks("0"))
        return executor.counts()["cache_hits"] - before

    assert virtually(main()) == hits


# --- chapter_parallel -----------------------------------------------------------------------------------------------


async def test_after_10_000_streams_there_are_10_000_locks_and_none_of_our_lines() -> None:
    store = Memory()
    chapters = executors.make("chapter_parallel(direct)", store=store, seed=1)
    ours = executors.make("parallel(direct)", store=store, seed=1)
    await execute_all(chapters, [new_user(n) for n in range(10_000)])
    await execute_all(ours, [update(n) for n in range(10_000)])
    assert chapters.counts()["locks"] == 10_000
    assert (ours.counts()["lines"], await store.last_position()) == (0, 20_000)


def of_order(result: Executed | Exception) -> int:
    assert isinstance(result, Executed)
    return int(msgspec.json.decode(result.events[0].data)["order"])


async def test_results_of_tagged_commands_are_at_the_wrong_index_and_ours_at_none() -> None:
    store = Memory()
    for n in range(20):
        await store.append([StreamWrite(stock_stream(str(n)), 0, (received(1000),))])
    rng = random.Random(5)
    commands = [ReserveStock(str(rng.randrange(20)), str(k)) for k in range(1000)]
    chapters = ChapterParallel(Direct(store), order=random.Random(5))
    ours = executors.make("parallel(direct)", store=store, seed=1)
    tags = [of_order(result) for result in await chapters.execute_batch(commands)]
    assert sorted(tags) == list(range(1000)), "all are there"
    assert sum(tag != k for k, tag in enumerate(tags)) > 950
    assert [of_order(result) for result in await execute_all(ours, commands)] == list(range(1000))


def overlapping(store: Memory, executor: Executor, other: Executor) -> Coroutine[Any, Any, int]:
    """{A, B} and {B, C} at once, ten times; how often the store said no."""

    async def main() -> int:
        await with_accounts(store, "a", "b", "c")
        for _ in range(10):
            await asyncio.gather(executor.execute(Transfer("a", "b", 1)), other.execute(Transfer("b", "c", 1)))
        assert isinstance(store, Served)
        return store.conflicts

    return main()


@pytest.mark.parametrize("spec", ["direct", "chapter_parallel(direct)", "parallel(direct)"])
def test_sets_that_overlap_conflict_only_between_two_executors(spec: str) -> None:
    """The locks are by stream, so that groups with a stream in common do not run at once. Another process's do."""
    store = Served(append_s=0.005)
    executor, other = (executors.make(spec, store=store, seed=seed) for seed in (1, 2))
    assert virtually(overlapping(store, executor, executor)) == (0 if "parallel" in spec else 10)
    store = Served(append_s=0.005)
    executor, other = (executors.make(spec, store=store, seed=seed) for seed in (1, 2))
    assert virtually(overlapping(store, executor, other)) == 10


def test_who_overlaps_with_a_group_waits_for_all_of_it() -> None:
    """{B, C} is the second of eleven commands, the others are on {A, B}."""
    commands = [Transfer("a", "b", 1)] * 11
    commands[1] = Transfer("b", "c", 1)

    def place(execute: Callable[[Memory], Awaitable[object]]) -> int:
        async def main() -> int:
            store = Served(append_s=0.005)
            await with_accounts(store, "a", "b", "c")
            store.appended.clear()
            await execute(store)
            return 1 + [any(w.stream == "account-c" for w in writes) for writes in store.appended].index(True)

        return virtually(main())

    def chapters(seed: int) -> int:
        return place(lambda store: ChapterParallel(Direct(store), order=random.Random(seed)).execute_batch(commands))

    assert {chapters(seed) for seed in range(20)} == {1, 11}
    assert place(lambda store: told(executors.make("parallel(direct)", store=store), commands)) == 2


@pytest.mark.parametrize("limit", [1, 3])
def test_no_more_commands_than_the_limit_are_under_way_and_no_order_of_locks_stops_them(limit: int) -> None:
    names = "abcdefghijkl"
    most = under_way = 0

    class Watched(Served):
        async def append_many(self, requests: Sequence[Sequence[StreamWrite]]) -> list[AppendResult | StoreError]:
            nonlocal most, under_way
            under_way += 1
            most = max(most, under_way)
            try:
                return await super().append_many(requests)
            finally:
                under_way -= 1

    async def main() -> Told:
        store = Watched(append_s=0.005)
        await with_accounts(store, *names)
        commands = [Transfer(a, b, 1) for a in names for b in names if a != b]
        random.Random(2).shuffle(commands)
        executor = ChapterParallel(Direct(store), limit)
        return await executor.execute_batch(commands) + await told(executor, commands)

    assert (counted(virtually(main())), most) == ({"Executed": 2 * 12 * 11}, limit)


def test_who_is_cancelled_gives_the_locks_back() -> None:
    async def main() -> None:
        store = Served(append_s=0.005)
        await with_accounts(store, "a", "b")
        executor = ChapterParallel(Direct(store), limit=1)
        first, second = (asyncio.ensure_future(executor.execute(Transfer("a", "b", 1))) for _ in range(2))
        await sleep_s(0.001)
        second.cancel()
        first.cancel()
        await executor.execute(Transfer("b", "a", 1))

    virtually(main())


# --- chapter_batching -----------------------------------------------------------------------------------------------


async def past_a_tick(executor: Executor) -> None:
    """Let the interval begin and be in the midst of two ticks, so that what comes now is one batch."""
    if isinstance(executor, ChapterBatching):
        await executor.execute(new_user(999_999))
        await sleep_s(0.021 - asyncio.get_running_loop().time() % 0.010)


def batchings(store: Memory, retries: int = 0, queue_max: int = 10_000) -> dict[str, Executor]:
    inner = f"direct:retries={retries}"
    return {
        "chapter": executors.make(f"chapter_batching({inner})", store=store, seed=1),
        "ours": executors.make(f"batching({inner}):delay_ms=0,queue_max={queue_max}", store=store, seed=1),
    }


@pytest.mark.parametrize(("whose", "failures"), [("chapter", 100), ("ours", 1)])
def test_failures_of_a_batch_of_100_in_which_one_conflicts(whose: str, failures: int) -> None:
    async def main() -> Counter[str]:
        store = Served()
        await with_users(store, 100)
        executor = batchings(store)[whose]
        await past_a_tick(executor)
        store.first = lambda: moved(store, 40)
        return counted(await told(executor, [update(n) for n in range(100)]))

    assert virtually(main()) == {"VersionConflict": failures} | ({"Executed": 99} if failures == 1 else {})


def moved(store: Memory, *users: int) -> Awaitable[object]:
    """Somebody else writes to these users' streams."""
    seen = (NewEvent("Seen", b"{}"),)
    return Memory.append_many(store, [[StreamWrite(user_stream(str(n)), events=seen)] for n in users])


@pytest.mark.parametrize(("p", "n"), [(0.01, 10), (0.01, 100), (0.05, 20)])
def test_innocent_failures_come_to_what_theory_says_and_ours_to_none(p: float, n: int) -> None:
    """Somebody else writes to each stream with probability p while a batch of n is under way. An innocent command fails
    when any of the n - 1 others conflicts: 1 - (1 - p)^(n - 1)."""
    batches = 300

    async def main(whose: str) -> tuple[int, int]:
        store, rng = Served(), random.Random(7)
        await with_users(store, n)
        executor = batchings(store)[whose]
        await past_a_tick(executor)
        innocents = failed = 0
        for _ in range(batches):
            guilty = {k for k in range(n) if rng.random() < p}
            store.first = lambda guilty=guilty: moved(store, *guilty)
            results = await told(executor, [update(k) for k in range(n)])
            innocents += n - len(guilty)
            failed += sum(isinstance(r, VersionConflict) for k, r in enumerate(results) if k not in guilty)
            assert all(isinstance(results[k], VersionConflict) for k in guilty)
        return failed, innocents

    failed, innocents = virtually(main("chapter"))
    theory = 1 - (1 - p) ** (n - 1)
    # Innocents of a batch share their fate, so a batch counts as one throw.
    assert abs(failed / innocents - theory) < 4 * (theory * (1 - theory) / batches) ** 0.5
    assert virtually(main("ours"))[0] == 0


def latencies_ms(spec: str, commands: int = 1000) -> list[float]:
    """Of a lone caller, who asks again some time after the answer."""

    async def main() -> list[float]:
        executor = executors.make(spec, store=Memory(), seed=1)
        loop, rng, found = asyncio.get_running_loop(), random.Random(11), []
        for n in range(commands):
            await sleep_s(rng.uniform(0.020, 0.070))
            began_s = loop.time()
            await executor.execute(new_user(n))
            found.append((loop.time() - began_s) * 1e3)
        await executor.close()
        return found

    return virtually(main())


def test_a_lone_caller_waits_for_the_tick_evenly_up_to_10_ms_and_ours_not_at_all() -> None:
    waited = sorted(latencies_ms("chapter_batching(direct)")[1:])
    n = len(waited)
    # Kolmogorov-Smirnov against U(0, 10 ms); above 1.95/sqrt(n) with probability 0.001.
    distance = max(max(abs(w / 10 - k / n), abs(w / 10 - (k + 1) / n)) for k, w in enumerate(waited))
    assert distance < 1.95 / n**0.5
    assert sum(waited) / n == pytest.approx(5, abs=0.4)
    assert waited[-1] < 10.001
    assert latencies_ms("batching(direct):delay_ms=0") == [0] * 1000
    assert latencies_ms("batching(direct):delay_ms=10") == pytest.approx([10] * 1000, abs=0.001)


def test_the_interval_ticks_whether_or_not_there_is_anything() -> None:
    async def main() -> tuple[int, int]:
        processor: BatchProcessor[int, int] = BatchProcessor(echo)
        await processor.process(1)
        await sleep_s(10)
        return processor.ticks, processor.batches

    ticks, batches = virtually(main())
    assert abs(ticks - 1000) <= 2 and batches == 1


async def echo(items: Sequence[T]) -> list[T]:
    return list(items)


@pytest.mark.parametrize(("whose", "lost"), [("chapter", 50), ("ours", 0)])
def test_of_250_pending_at_close_what_fills_no_batch_is_lost(whose: str, lost: int) -> None:
    async def main() -> tuple[Counter[str], int]:
        store = Served()
        executor = batchings(store)[whose]
        await past_a_tick(executor)
        before = await store.last_position()
        asked = [asyncio.ensure_future(executor.execute(new_user(n))) for n in range(250)]
        await sleep_s(0)
        await executor.close()
        results: Any = await asyncio.gather(*asked, return_exceptions=True)
        return counted(results), await store.last_position() - before

    results, written = virtually(main())
    assert (results["Cancelled"], results["Executed"], written) == (lost, 250 - lost, 250 - lost)


@pytest.mark.parametrize("is_used", [False, True])
def test_who_comes_after_the_close_is_told_so(is_used: bool) -> None:
    async def main() -> None:
        executor = ChapterBatching(Direct(Memory()))
        if is_used:
            await executor.execute(new_user(0))
        await executor.close()
        with pytest.raises(Cancelled):
            await executor.execute(new_user(1))

    virtually(main())


def test_a_stall_is_followed_by_a_burst_of_ticks_that_cut_batches_small() -> None:
    """A write of 300 ms makes 30 ticks late. The 90 items that wait then would have fitted into one batch."""

    async def batches_after_a_stall(make: Callable[[Any], Any], submit: str) -> int:
        stall_s = 0.300

        async def process(items: Sequence[int]) -> list[int]:
            nonlocal stall_s
            await sleep_s(stall_s)
            stall_s = 0
            return list(items)

        batcher = make(process)
        asked = [asyncio.ensure_future(getattr(batcher, submit)(0))]
        await sleep_s(0.015)
        asked += [asyncio.ensure_future(getattr(batcher, submit)(n)) for n in range(1, 91)]
        assert list(await asyncio.gather(*asked)) == list(range(91))
        return int(batcher.batches) - 1

    chapters = [
        virtually(batches_after_a_stall(lambda p, s=seed: BatchProcessor(p, rng=random.Random(s)), "process"))
        for seed in range(10)
    ]
    assert min(chapters) >= 10, "batches for what fits into one"
    assert virtually(batches_after_a_stall(lambda process: Batcher(process, delay_s=0), "submit")) == 1


def longest_queue(whose: str, per_ms: int, duration_s: float) -> int:
    """Of an open loop, when a batch of up to 100 takes 10 ms."""

    async def process(items: Sequence[int]) -> Sequence[int]:
        await sleep_s(0.010)
        return items

    async def main() -> int:
        processor = BatchProcessor[int, int](process)
        batcher = Batcher[int, int](process, delay_s=0, queue_max=500)
        submit = processor.process if whose == "chapter" else batcher.submit
        longest, asked = 0, set()
        for _ in range(int(duration_s * 1000)):
            await sleep_s(0.001)
            for n in range(per_ms):
                task = asyncio.ensure_future(submit(n))
                asked.add(task)
                task.add_done_callback(asked.discard)
            longest = max(longest, processor.queued, batcher.waiting)
        for task in asked:
            task.cancel()
        return longest

    return virtually(main())


def test_above_capacity_the_queue_grows_with_time_and_ours_is_bounded() -> None:
    """10,000 a second could be done, 12,000 come. At least 2,000 a second must be left over."""
    one, two = longest_queue("chapter", 12, 1), longest_queue("chapter", 12, 2)
    assert one > 1900
    assert two == pytest.approx(2 * one, rel=0.1)
    assert longest_queue("ours", 12, 1) == longest_queue("ours", 12, 2) == 500


def test_a_tick_that_comes_while_a_batch_is_written_takes_half_the_capacity() -> None:
    """It finds the next batch hardly begun, every other time, and sends that. At 8,000 a second the queue grows, too."""
    one, two = longest_queue("chapter", 8, 1), longest_queue("chapter", 8, 2)
    assert one > 1900
    assert two == pytest.approx(2 * one, rel=0.1)
    assert longest_queue("ours", 8, 2) <= 100


def test_writes_slower_than_the_tick_let_batches_shrink_to_one_or_two() -> None:
    """Each small batch makes more ticks late than it uses up, and there is no way back. 1000 items are ten batches."""

    async def batches(make: Callable[[Any], Any], submit: str) -> int:
        async def process(items: Sequence[int]) -> Sequence[int]:
            await sleep_s(0.030)
            return items

        batcher = make(process)
        await asyncio.gather(*[getattr(batcher, submit)(n) for n in range(1000)])
        return int(batcher.batches)

    for seed in range(5):
        chapters = virtually(batches(lambda p, s=seed: BatchProcessor(p, rng=random.Random(s)), "process"))
        assert chapters > 400
    assert virtually(batches(lambda process: Batcher(process, delay_s=0), "submit")) == 10


def test_the_executor_tells_how_long_its_queue_has_been() -> None:
    async def main() -> dict[str, int]:
        executor = batchings(Served(append_s=0.010))["chapter"]
        await past_a_tick(executor)
        await told(executor, [new_user(n) for n in range(300)])
        return executor.counts()

    assert virtually(main()) == {"batches": 4, "batched": 301, "queued_max": 300}


@pytest.mark.parametrize(("whose", "sold"), [("chapter", 100), ("ours", 10)])
def test_of_10_pieces_a_batch_of_100_sells_100_and_ours_10(whose: str, sold: int) -> None:
    """All are decided on the same ten pieces, and only the first one's expectation is looked at."""

    async def main() -> tuple[int, int]:
        store = Served()
        await store.append([StreamWrite(stock_stream("lamp"), 0, (received(10),))])
        executor = batchings(store)[whose]
        await past_a_tick(executor)
        results = counted(await told(executor, [ReserveStock("lamp", str(n)) for n in range(100)]))
        return results["Executed"], results["CommandRejected"]

    assert virtually(main()) == (sold, 100 - sold)


@pytest.mark.parametrize(("current_reads_s", "told_to"), [(0.001, "Executed"), (0.005, "VersionConflict")])
def test_what_the_first_of_a_batch_expects_of_a_stream_decides_for_all(current_reads_s: float, told_to: str) -> None:
    """One command is decided on what is no longer so, one on what is: both are acknowledged or refused, by who was first."""

    async def main() -> Counter[str]:
        store = Served(read_s=0.003)
        await with_users(store, 1)
        executor = batchings(store)["chapter"]
        await past_a_tick(executor)
        stale = asyncio.ensure_future(executor.execute(update(0)))
        await sleep_s(0.001)
        await moved(store, 0)
        store.read_s = current_reads_s
        return counted(await asyncio.gather(stale, executor.execute(update(0)), return_exceptions=True))  # type: ignore

    assert virtually(main()) == {told_to: 2}


@pytest.mark.parametrize(("whose", "told_to"), [("chapter", "Executed"), ("ours", "CommandRejected")])
def test_a_stream_that_is_only_read_is_not_checked_and_ours_is(whose: str, told_to: str) -> None:
    async def main() -> Counter[str]:
        store = Served()
        await with_accounts(store, "a", "b")
        policy = StreamId("policy")
        await store.append([StreamWrite(policy, 0, (NewEvent(TRANSFERS_RESUMED, b"{}"),))])
        executor = batchings(store, retries=2)[whose]
        await past_a_tick(executor)
        suspended = (NewEvent(TRANSFERS_SUSPENDED, b"{}"),)
        store.first = lambda: Memory.append_many(store, [[StreamWrite(policy, events=suspended)]])
        return counted(await told(executor, [Transfer("a", "b", 1, "policy")]))

    assert virtually(main()) == {told_to: 1}


def test_a_batch_is_nobodys_operation() -> None:
    """Else all appends would be booked to the command that came first."""

    seen: set[int | None] = set()

    class Notes(Served):
        async def append_many(self, requests: Sequence[Sequence[StreamWrite]]) -> list[AppendResult | StoreError]:
            attempt = current_attempt.get()
            seen.add(None if attempt is None else attempt.operation)
            return await super().append_many(requests)

    async def main() -> set[int | None]:
        store = Notes()
        executor = ChapterBatching(Direct(store))
        attempt = Attempt()
        attempt.reset(7)
        current_attempt.set(attempt)
        await executor.execute(new_user(1))
        return seen

    assert virtually(main()) == {None}


def test_what_breaks_while_a_batch_is_written_is_told_to_everybody_and_the_next_is_written() -> None:
    async def main() -> list[str]:
        store = Served()
        executor = ChapterBatching(Direct(store))
        await past_a_tick(executor)

        async def broken() -> None:
            raise RuntimeError("a bug")

        store.first = broken
        asked = [executor.execute(new_user(n)) for n in range(2)]
        results = [type(r).__name__ for r in await asyncio.gather(*asked, return_exceptions=True)]
        return [*results, type(await executor.execute(new_user(3))).__name__]

    assert virtually(main()) == ["RuntimeError", "RuntimeError", "Executed"]
