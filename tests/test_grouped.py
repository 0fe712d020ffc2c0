"""Group commit: who goes together, and that nobody pays for another's conflict, bad payload, cancellation or bad luck."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eventcore_lab.events import (
    ABSENT,
    ANY,
    AppendResult,
    NewEvent,
    OutcomeUnknown,
    StoreError,
    StreamId,
    StreamWrite,
    VersionConflict,
)
from eventcore_lab.schema import Attempt, current_attempt
from eventcore_lab.spec import UsageError
from eventcore_lab.stores import PoolSettings, Store, open_store, stores
from eventcore_lab.stores.embedded import EmbeddedServer
from eventcore_lab.stores.grouped import Grouped
from eventcore_lab.stores.memory import Memory
from eventcore_lab.stores.retry import find
from eventcore_lab.stores.wrapper import Wrapper


def write(stream: str, expected: int = ANY, n: int = 1) -> list[StreamWrite]:
    return [StreamWrite(StreamId(stream), expected, tuple([NewEvent("T", b"{}") for _ in range(n)]))]


class Gated(Wrapper):
    """A memory store that answers when it is let, one call after the other, and notes what it was asked together."""

    def __init__(self) -> None:
        super().__init__(Memory())
        self.calls: list[list[str]] = []
        self._gates: list[asyncio.Event] = []
        self.is_broken = False

    async def _gate(self, requests: Sequence[Sequence[StreamWrite]]) -> None:
        self.calls.append(["+".join(w.stream for w in request) for request in requests])
        gate = asyncio.Event()
        self._gates.append(gate)
        await gate.wait()
        if self.is_broken:
            raise OutcomeUnknown("the connection was lost")

    async def append(self, writes: Sequence[StreamWrite]) -> AppendResult:
        await self._gate([writes])
        return await self.inner.append(writes)

    async def append_many(self, requests: Sequence[Sequence[StreamWrite]]) -> list[AppendResult | StoreError]:
        await self._gate(requests)
        return await self.inner.append_many(requests)

    async def let(self, call: int) -> None:
        """Let this call be answered, and everybody do what follows from it."""
        self._gates[call].set()
        await settle()


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def begun(store: Store, *writes: Sequence[StreamWrite]) -> list[asyncio.Task[AppendResult]]:
    return [asyncio.ensure_future(store.append(w)) for w in writes]


async def test_a_lone_append_goes_at_once_and_what_waits_meanwhile_goes_together() -> None:
    gated = Gated()
    store = Grouped(gated, in_flight=1)
    tasks = begun(store, write("a"))
    await settle()
    tasks += begun(store, write("b"), write("c"), write("d"))
    await settle()
    assert gated.calls == [["a"]]
    await gated.let(0)
    assert gated.calls == [["a"], ["b", "c", "d"]]
    await gated.let(1)
    assert [(await t).versions for t in tasks] == [(1,)] * 4


async def test_no_stream_is_in_two_groups_and_its_appends_keep_their_order() -> None:
    gated = Gated()
    store = Grouped(gated, size=2, in_flight=2)
    tasks = begun(store, write("hot", 0), write("b"), write("hot", 1), [*write("c"), *write("hot", 2)], write("d"))
    await settle()
    assert gated.calls == [["hot", "b"], ["d"]]
    await gated.let(0)
    assert gated.calls[2:] == [["hot", "c+hot"]]
    await gated.let(1)
    await gated.let(2)
    results = await asyncio.gather(*tasks)
    assert [r.versions for r in results] == [(1,), (1,), (2,), (1, 3), (1,)]


async def test_a_group_has_at_most_so_many_appends_and_events() -> None:
    gated = Gated()
    store = Grouped(gated, size=3, events_max=10, in_flight=1)
    tasks = begun(store, *[write(f"s{n}") for n in range(4)], write("big", n=50), write("e"), write("f", n=9))
    for call in range(4):
        await settle()
        await gated.let(call)
    assert gated.calls == [["s0", "s1", "s2"], ["s3", "e"], ["big"], ["f"]]
    await asyncio.gather(*tasks)


async def test_a_caller_cancelled_while_waiting_takes_its_append_along_and_nobody_elses() -> None:
    gated = Gated()
    store = Grouped(gated, in_flight=1)
    (first,) = begun(store, write("a"))
    await settle()
    waits, other = begun(store, write("b"), write("c"))
    await settle()
    waits.cancel()
    await settle()
    await gated.let(0)
    await gated.let(1)
    assert gated.calls == [["a"], ["c"]]
    assert [(await t).versions for t in (first, other)] == [(1,), (1,)]


async def test_a_caller_cancelled_under_way_leaves_its_append_to_happen_once() -> None:
    gated = Gated()
    store = Grouped(gated)
    tasks = begun(store, write("a"), write("b"))
    await settle()
    tasks[0].cancel()
    await settle()
    for call in range(len(gated.calls)):
        await gated.let(call)
    assert (await tasks[1]).versions == (1,)
    assert [s.version for s in await store.read_streams([StreamId("a"), StreamId("b")])] == [1, 1]


async def test_a_lost_connection_is_unknown_to_those_under_way_and_nothing_to_those_who_wait() -> None:
    gated = Gated()
    store = Grouped(gated, in_flight=1, size=2)
    tasks = begun(store, write("a"), write("b"), write("c"))
    await settle()
    gated.is_broken = True
    await gated.let(0)
    gated.is_broken = False
    await gated.let(1)
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(r) for r in results] == [OutcomeUnknown, OutcomeUnknown, AppendResult]


async def test_what_is_wrong_with_the_inner_store_reaches_the_callers() -> None:
    class Odd(Wrapper):
        async def append(self, writes: Sequence[StreamWrite]) -> AppendResult:
            raise ZeroDivisionError

        async def append_many(self, requests: Sequence[Sequence[StreamWrite]]) -> list[AppendResult | StoreError]:
            raise ZeroDivisionError

    store = Grouped(Odd(Memory()))
    results = await asyncio.gather(*begun(store, write("a"), write("b"), write("c")), return_exceptions=True)
    assert {type(r) for r in results} == {ZeroDivisionError}


async def test_an_inner_store_that_forgets_an_answer_leaves_nobody_waiting() -> None:
    class Forgetful(Wrapper):
        async def append_many(self, requests: Sequence[Sequence[StreamWrite]]) -> list[AppendResult | StoreError]:
            return (await self.inner.append_many(requests))[:-1]

    store = Grouped(Forgetful(Memory()), in_flight=1)
    async with asyncio.timeout(5):
        results = await asyncio.gather(*begun(store, write("a"), write("b"), write("c")), return_exceptions=True)
    assert {type(r) for r in results} == {OutcomeUnknown}


async def test_a_group_belongs_to_no_callers_operation() -> None:
    """Else whatever a group acquires would be noted as acquired by the caller who happened to set it off."""
    seen = []

    class Asking(Wrapper):
        async def append(self, writes: Sequence[StreamWrite]) -> AppendResult:
            seen.append(current_attempt.get())
            return await self.inner.append(writes)

    store = Grouped(Asking(Memory()), size=1)

    async def caller(n: int) -> Attempt:
        attempt = Attempt()
        current_attempt.set(attempt)
        await store.append(write(f"s{n}"))
        return attempt

    attempts = await asyncio.gather(*(caller(n) for n in range(6)))
    assert seen == [None] * 6
    assert all(attempt.acquired_ns for attempt in attempts)


async def test_the_queue_is_bounded_and_callers_outside_are_let_in_in_their_order() -> None:
    gated = Gated()
    store = Grouped(gated, in_flight=1, size=1, queue_max=2)
    tasks = begun(store, *[write(f"s{n}") for n in range(6)])
    await settle()
    assert store.batcher.waiting <= 2
    assert store.batcher.outside >= 3
    tasks[4].cancel()
    for call in range(5):
        await gated.let(call)
    assert gated.calls == [["s0"], ["s1"], ["s2"], ["s3"], ["s5"]]
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert sum(isinstance(r, AppendResult) for r in results) == 5


async def test_close_carries_out_what_waits_and_refuses_what_comes() -> None:
    gated = Gated()
    store = Grouped(gated, in_flight=1, size=1)
    tasks = begun(store, write("a"), write("b"))
    await settle()
    closing = asyncio.ensure_future(store.close())
    await settle()
    with pytest.raises(StoreError, match="closed"):
        await store.append(write("late"))
    await gated.let(0)
    await gated.let(1)
    await closing
    assert [(await t).versions for t in tasks] == [(1,), (1,)]


@pytest.mark.parametrize("in_flight", [1, 2, 3])
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32), size=st.integers(1, 8), queue_max=st.integers(1, 9))
def test_everybody_gets_the_answer_to_his_own_append(in_flight: int, seed: int, size: int, queue_max: int) -> None:
    asyncio.run(_a_crowd(random.Random(seed), in_flight, size, queue_max))


async def _a_crowd(rng: random.Random, in_flight: int, size: int, queue_max: int) -> None:
    """Callers with exact and free expectations on few streams, some cancelled; then versions against events."""
    memory = Memory()
    store = Grouped(Slow(memory, rng), size=size, in_flight=in_flight, queue_max=queue_max)
    asked = []
    for _ in range(40):
        streams = rng.sample("abcdefgh", rng.choice([1, 1, 1, 2]))
        asked.append([write(s, rng.choice([ANY, ABSENT, 1, 2]), rng.randint(1, 3))[0] for s in streams])
    tasks = begun(store, *asked)
    for task in rng.sample(tasks, 8):
        for _ in range(rng.randint(0, 3)):
            await asyncio.sleep(0)
        task.cancel()
    async with asyncio.timeout(20):
        results = await asyncio.gather(*tasks, return_exceptions=True)
        await store.close()
    where = {e.id: (e.stream, e.version) for e in await memory.read_all(0, 10_000)}
    for writes, result in zip(asked, results, strict=True):
        present = [where.get(e.id) for w in writes for e in w.events]
        if isinstance(result, AppendResult):
            due = [
                (w.stream, v - len(w.events) + n)
                for w, v in zip(writes, result.versions, strict=True)
                for n in range(1, len(w.events) + 1)
            ]
            assert present == due
        elif isinstance(result, VersionConflict):
            assert not any(present)
        else:
            assert isinstance(result, asyncio.CancelledError)
            assert all(present) or not any(present)


class Slow(Wrapper):
    """Answers after a number of turns of the loop that chance decides."""

    def __init__(self, inner: Store, rng: random.Random) -> None:
        super().__init__(inner)
        self._rng = rng

    async def append(self, writes: Sequence[StreamWrite]) -> AppendResult:
        await self._some_turns()
        return await self.inner.append(writes)

    async def append_many(self, requests: Sequence[Sequence[StreamWrite]]) -> list[AppendResult | StoreError]:
        await self._some_turns()
        return await self.inner.append_many(requests)

    async def _some_turns(self) -> None:
        for _ in range(self._rng.randint(0, 5)):
            await asyncio.sleep(0)


async def test_a_hundred_callers_on_one_hot_stream_are_all_served() -> None:
    async with open_store("grouped(postgres):size=30", PoolSettings.sized(3)) as store:
        results = await asyncio.gather(*(store.append(write("hot")) for _ in range(100)))
        assert sorted(r.versions[0] for r in results) == list(range(1, 101))


@pytest.mark.parametrize("inner", ["memory", "postgres", "sqlite"])
async def test_nobody_pays_for_what_is_wrong_with_anothers_append(inner: str) -> None:
    """Named twice, no text, no bytes, a NUL: whoever asked for it hears of it, all others are served."""
    async with open_store(f"grouped({inner})", PoolSettings.sized(3)) as store:
        wrong = [
            [*write("x"), *write("x")],
            [StreamWrite(StreamId("sur"), ANY, (NewEvent("\ud800", b"{}"),))],
            [StreamWrite(StreamId("str"), ANY, (NewEvent("T", "text"),))],  # type: ignore[arg-type]
            [StreamWrite(StreamId("nul"), ANY, (NewEvent("\0", b"{}"),))],
        ]
        good = [write(f"s{n}", ABSENT) for n in range(40)]
        asked = [*good[:10], *wrong, *good[10:]]
        results = await asyncio.gather(*begun(store, *asked), return_exceptions=True)
        assert [r.versions for r, w in zip(results, asked, strict=True) if w in good] == [(1,)] * 40
        assert isinstance(results[10], ValueError)
        stored = await store.read_streams([StreamId(f"s{n}") for n in range(40)])
        assert [s.version for s in stored] == [1] * 40


async def test_a_server_that_dies_leaves_groups_unknown_and_each_append_can_be_found_or_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with EmbeddedServer() as server:
        monkeypatch.setenv("DYING_DSN", server.dsn)
        driver = stores.make("grouped(env:DYING_DSN)")
        async with driver.provision() as place:
            store = await driver.connect(place.address, PoolSettings.sized(2))
            appends = [write(f"s{n}", ABSENT) for n in range(200)]
            first = await asyncio.gather(*begun(store, *appends[:100]))
            tasks = begun(store, *appends[100:])
            os.kill(server.postmaster_pid, signal.SIGQUIT)
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(isinstance(r, AppendResult | StoreError) for r in results)
            assert len(first) == 100
            with pytest.raises(StoreError):
                await find(store, appends[0])
            await store.close()


def test_grouped_is_a_spec_and_says_what_is_wrong_with_one() -> None:
    assert stores.make("grouped(postgres:synchronous_commit=off):size=20").is_shared
    for wrong in (
        "grouped",
        "grouped()",
        "grouped(nosuch)",
        "grouped(memory",
        "grouped(memory):size=0",
        "memory(null)",
    ):
        with pytest.raises(UsageError):
            stores.make(wrong)
