"""F8 to F13 and F17 to F19: what the chapter's executors do, in virtual time over a store in memory whose answers take as long
as they are told to. A second of load takes milliseconds, and nothing depends on the machine."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from random import Random
from typing import Any

import msgspec

from eventcore_lab.clock import VirtualClock, sleep_s
from eventcore_lab.commands import (
    CreateUser,
    Direct,
    Executed,
    Executor,
    OpenAccount,
    ReserveStock,
    Transfer,
    UpdateProfile,
    execute_all,
    executors,
)
from eventcore_lab.commands.bank import account_stream
from eventcore_lab.commands.chapter import BatchProcessor, ChapterBatching, ChapterParallel
from eventcore_lab.commands.inventory import received, stock_stream
from eventcore_lab.commands.users import user_stream
from eventcore_lab.events import AppendResult, NewEvent, StoreError, StreamId, StreamSlice, StreamWrite, VersionConflict
from eventcore_lab.load.faults.fact import CHAPTER, OURS, Fact, Scale
from eventcore_lab.stores.batcher import Batcher
from eventcore_lab.stores.memory import Memory


class Slow(Memory):
    """A memory store whose answers take their time, that counts reads, and before whose next append somebody else may be."""

    def __init__(self, read_s: float = 0.0, append_s: float = 0.0) -> None:
        super().__init__()
        self.read_s, self.append_s, self.reads = read_s, append_s, 0
        self.meanwhile: list[StreamId] = []
        self.appended_s: dict[StreamId, float] = {}  # when last, on the loop's clock

    async def append(self, writes: Sequence[StreamWrite]) -> AppendResult:
        [result] = await self.append_many([writes])
        if isinstance(result, StoreError):
            raise result
        return result

    async def append_many(self, requests: Sequence[Sequence[StreamWrite]]) -> list[AppendResult | StoreError]:
        if self.append_s:
            await sleep_s(self.append_s)
        others, self.meanwhile = self.meanwhile, []
        if others:
            await super().append_many([[StreamWrite(s, events=(NewEvent("Seen", b"{}"),))] for s in others])
        self.appended_s.update(
            dict.fromkeys([w.stream for r in requests for w in r], asyncio.get_running_loop().time())
        )
        return await super().append_many(requests)

    async def read_streams(
        self, streams: Sequence[StreamId], from_versions: Sequence[int] | None = None
    ) -> list[StreamSlice]:
        self.reads += 1
        slices = await super().read_streams(streams, from_versions)
        if self.read_s:
            await sleep_s(self.read_s)
        return slices


def user(n: int) -> CreateUser:
    return CreateUser(str(n), f"user{n}@example.com", f"User{n}", "Test")


def update(n: int) -> UpdateProfile:
    return UpdateProfile(str(n), "Ada", "King")


async def _with_users(store: Memory, users: int, events: int = 1) -> None:
    for n in range(users):
        [(stream, event)] = user(n).decide({user_stream(str(n)): None})
        more = [NewEvent(event.type, event.data) for _ in range(events - 1)]
        await store.append([StreamWrite(stream, 0, (event, *more))])


def _virtually(main: Coroutine[Any, Any, Any]) -> Any:
    return VirtualClock().run(main)


def _pair(name: str, store: Memory, seed: int, inner: str = "direct") -> list[tuple[str, Executor]]:
    """The chapter's executor of that name, and ours."""
    ours = f"{name}({inner})" + (":delay_ms=0" if name == "batching" else "")
    return [
        (CHAPTER, executors.make(f"chapter_{name}({inner})", store=store, seed=seed)),
        (OURS, executors.make(ours, store=store, seed=seed)),
    ]


def locks_kept(scale: Scale) -> list[Fact]:
    """F8: locks (ours: lines) that are left after one command on each of so many streams."""

    async def main(arm: str, streams: int) -> Fact:
        executor = dict(_pair("parallel", Memory(), scale.seed))[arm]
        await execute_all(executor, [user(n) for n in range(streams)])
        counts = executor.counts()
        return Fact("F8", arm, streams, counts.get("locks", counts.get("lines", 0)), streams)

    sizes = [scale.times(n, 10) for n in (1000, 10_000)]
    return [_virtually(main(arm, n)) for n in sizes for arm in (CHAPTER, OURS)]


def wrong_places(scale: Scale) -> list[Fact]:
    """F9: results of one batch that are not where their commands were."""

    async def main(arm: str, commands: int) -> Fact:
        store, rng = Memory(), Random(scale.seed)
        for n in range(20):
            await store.append([StreamWrite(stock_stream(str(n)), 0, (received(10_000),))])
        asked = [ReserveStock(str(rng.randrange(20)), str(k)) for k in range(commands)]
        if arm == CHAPTER:
            results = await ChapterParallel(Direct(store), order=Random(scale.seed)).execute_batch(asked)
        else:
            results = await execute_all(executors.make("parallel(direct)", store=store), asked)
        tags = [int(msgspec.json.decode(r.events[0].data)["order"]) for r in results if isinstance(r, Executed)]
        return Fact("F9", arm, commands, sum(tag != k for k, tag in enumerate(tags)), commands)

    return [_virtually(main(arm, scale.times(n, 10))) for n in (100, 1000) for arm in (CHAPTER, OURS)]


def held_while_waiting(scale: Scale) -> list[Fact]:
    """F10: how long a command waits that is second of so many, the others on {A, B} and it on {B, C}; appends take 5 ms. The
    mean over orders of the hash map."""

    async def waited_ms(arm: str, group: int, seed: int) -> float:
        store = Slow()
        for name in "abc":
            await Direct(store).execute(OpenAccount(name, 1_000_000))
        store.append_s, began_s = 0.005, asyncio.get_running_loop().time()
        commands = [Transfer("a", "b", 1)] * group
        commands[1] = Transfer("b", "c", 1)
        if arm == CHAPTER:
            await ChapterParallel(Direct(store), order=Random(seed)).execute_batch(commands)
        else:
            await execute_all(executors.make("parallel(direct)", store=store, seed=seed), commands)
        return (store.appended_s[account_stream("c")] - began_s) * 1e3

    orders, facts = scale.times(20, 12), []
    for group in (11, 51, 101):
        for arm in (CHAPTER, OURS):
            found = [_virtually(waited_ms(arm, group, scale.seed + n)) for n in range(orders)]
            facts.append(Fact("F10", arm, group, sum(found) / len(found)))
    return facts


async def _taking_10_ms(items: Sequence[int]) -> Sequence[int]:
    await sleep_s(0.010)
    return items


def unbounded(scale: Scale) -> list[Fact]:
    """F11: 12,000 items a second for a processor that does 10,000 (batches of up to 100 in 10 ms): the longest queue so far."""

    async def main(arm: str) -> list[Fact]:
        processor: BatchProcessor[int, int] = BatchProcessor(_taking_10_ms, rng=Random(scale.seed))
        batcher: Batcher[int, int] = Batcher(_taking_10_ms, delay_s=0, queue_max=500)
        submit: Callable[[int], Any] = processor.process if arm == CHAPTER else batcher.submit
        asked: set[asyncio.Future[int]] = set()
        facts, longest = [], 0
        for ms in range(1, scale.times(800, 200) + 1):
            await sleep_s(0.001)
            for n in range(12):
                task = asyncio.ensure_future(submit(n))
                asked.add(task)
                task.add_done_callback(asked.discard)
            longest = max(longest, processor.queued, batcher.waiting)
            if ms % scale.times(200, 50) == 0:
                facts.append(Fact("F11", arm, ms, longest))
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
        return facts

    return [fact for arm in (CHAPTER, OURS) for fact in _virtually(main(arm))]


async def _past_a_tick(executor: Executor) -> None:
    """In the midst of two ticks, so that what comes now is one batch."""
    if isinstance(executor, ChapterBatching):
        await executor.execute(user(999_999))
        await sleep_s(0.021 - asyncio.get_running_loop().time() % 0.010)


def innocents(scale: Scale) -> list[Fact]:
    """F12: commands of a batch that fail though nobody else touched their stream, when one in a hundred streams was touched."""

    async def main(arm: str, batch: int) -> Fact:
        store, rng = Slow(), Random(scale.seed)
        await _with_users(store, batch)
        executor = dict(_pair("batching", store, scale.seed, "direct:retries=0"))[arm]
        await _past_a_tick(executor)
        failed = innocent = 0
        for _ in range(scale.times(100, 20)):
            guilty = {k for k in range(batch) if rng.random() < 0.01}
            store.meanwhile = [user_stream(str(k)) for k in sorted(guilty)]
            results = await execute_all(executor, [update(k) for k in range(batch)], batch)
            innocent += batch - len(guilty)
            failed += sum(isinstance(r, VersionConflict) for k, r in enumerate(results) if k not in guilty)
        await executor.close()
        return Fact("F12", arm, batch, failed, innocent)

    return [_virtually(main(arm, batch)) for batch in (10, 100) for arm in (CHAPTER, OURS)]


def waits_for_the_tick(scale: Scale) -> list[Fact]:
    """F13: what a command of a lone caller waits at so many per second, ms in the mean; the store answers at once."""

    async def main(arm: str, rate: int) -> Fact:
        executor, rng = dict(_pair("batching", Memory(), scale.seed))[arm], Random(scale.seed)
        loop, waited_s, commands = asyncio.get_running_loop(), 0.0, scale.times(300, 50)
        await executor.execute(user(999_999))
        for n in range(commands):
            await sleep_s(rng.expovariate(rate))
            began_s = loop.time()
            await executor.execute(user(n))
            waited_s += loop.time() - began_s
        await executor.close()
        return Fact("F13", arm, rate, 1e3 * waited_s / commands)

    return [_virtually(main(arm, rate)) for rate in (1, 10, 100) for arm in (CHAPTER, OURS)]


def reads_of_hits(scale: Scale) -> list[Fact]:
    """F17: reads of the store by commands that write nothing and, from the second on, find their stream in the cache."""

    async def main(arm: str) -> Fact:
        store, commands = Slow(), scale.times(200, 20)
        await _with_users(store, 1)
        executor = dict(_pair("cached", store, scale.seed))[arm]
        for _ in range(commands):
            await execute_all(executor, [user(0)])
        return Fact("F17", arm, commands, store.reads, commands)

    return [_virtually(main(arm)) for arm in (CHAPTER, OURS)]


def put_back(scale: Scale) -> list[Fact]:
    """F18: Alice reads, Bob writes and throws the entry away, Alice puts hers in; how often the next command finds an entry
    that is of no use."""

    async def useless(arm: str) -> bool:
        store = Slow(read_s=0.010)
        await _with_users(store, 1)
        executor = dict(_pair("cached", store, scale.seed))[arm]
        alice = asyncio.ensure_future(execute_all(executor, [user(0)]))
        await sleep_s(0.001)
        store.read_s = 0
        await executor.execute(update(0))
        await alice
        before = executor.counts()["cache_hits"]
        await execute_all(executor, [user(0)])
        return executor.counts()["cache_entries"] == 1 and executor.counts()["cache_hits"] == before

    rounds = scale.times(20, 5)
    return [
        Fact("F18", arm, 2, sum(_virtually(useless(arm)) for _ in range(rounds)), rounds) for arm in (CHAPTER, OURS)
    ]


def events_per_entry(scale: Scale) -> list[Fact]:
    """F19: events that an entry of the cache keeps, by the length of the streams."""

    async def main(arm: str, length: int) -> Fact:
        store = Slow()
        await _with_users(store, 10, length)
        executor = dict(_pair("cached", store, scale.seed))[arm]
        await execute_all(executor, [user(n) for n in range(10)])
        counts: Counter[str] = Counter(executor.counts())
        return Fact("F19", arm, length, counts["cache_events"] / max(counts["cache_entries"], 1))

    return [_virtually(main(arm, length)) for length in (10, 100, 1000) for arm in (CHAPTER, OURS)]


VIRTUAL: tuple[tuple[str, Callable[[Scale], list[Fact]]], ...] = (
    ("F8", locks_kept),
    ("F9", wrong_places),
    ("F10", held_while_waiting),
    ("F11", unbounded),
    ("F12", innocents),
    ("F13", waits_for_the_tick),
    ("F17", reads_of_hits),
    ("F18", put_back),
    ("F19", events_per_entry),
)
