"""Claims about commands in batches: what goes together, that it is what some serial execution gives under whatever happens
around it, and that nobody pays for another's rejection, mistake, conflict or bad luck."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Struct
from witness import POISON, Audit, Counting, Crowd, Legislate, Noted, Tried, assert_serial, drawn_command, said

from eventcore_lab.clock import VirtualClock
from eventcore_lab.commands import (
    Command,
    CommandRejected,
    Executed,
    Executor,
    Fold,
    OpenAccount,
    ReserveStock,
    Transfer,
    batching,
    direct,
    execute_all,
    executors,
)
from eventcore_lab.commands.bank import MONEY_WITHDRAWN, account_stream, moved
from eventcore_lab.commands.batching import Batching
from eventcore_lab.commands.command import Said
from eventcore_lab.commands.inventory import received, stock_stream
from eventcore_lab.events import (
    ANY,
    AppendResult,
    EventRejected,
    NewEvent,
    OutcomeUnknown,
    StoredEvent,
    StoreError,
    StreamId,
    StreamWrite,
    VersionConflict,
)
from eventcore_lab.schema import Attempt, current_attempt
from eventcore_lab.stores import PoolSettings, Store, open_store
from eventcore_lab.stores.batcher import BatcherClosed
from eventcore_lab.stores.memory import Memory
from eventcore_lab.stores.wrapper import Wrapper

SPECS = [
    "batching(direct):delay_ms=0",
    "batching(cached(direct)):delay_ms=0",
    "batching(cached(direct):size=2):delay_ms=2,size=3",
    "batching(cached(direct)):delay_ms=0,in_flight=2",
    "batching(snapshots(direct):every=2):delay_ms=0,in_flight=3,size=4,queue_max=5",
    "parallel(batching(cached(snapshots(direct):every=2):size=2):delay_ms=0):limit=5",
]
AT_ONCE = "batching(cached(direct)):delay_ms=0"


# --- some serial order ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", SPECS)
@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    foreign=st.sampled_from([0, 10]),
    cancelled=st.sampled_from([0, 4]),
    lost_every=st.sampled_from([0, 0, 3, 6]),
    poisoned=st.sampled_from([0, 4]),
)
def test_batches_come_to_what_a_serial_execution_gives_whatever_happens_around_them(
    spec: str, seed: int, foreign: int, cancelled: int, lost_every: int, poisoned: int
) -> None:
    """Two processes and one that executes directly; other writers, callers who leave, answers that are lost, events that
    cannot be held. Only whoever is to blame for an event is refused."""
    Crowd(
        [spec, spec, "direct"],
        seed,
        clients=20,
        each=3,
        foreign=foreign,
        cancelled=cancelled,
        lost_every=lost_every,
        poisoned=poisoned if lost_every else 0,
    ).judge()


@pytest.mark.parametrize("spec", SPECS)
@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32), lost_every=st.sampled_from([0, 3]), cancelled=st.sampled_from([0, 4]))
def test_long_chains_on_few_streams_come_to_what_a_serial_execution_gives(
    spec: str, seed: int, lost_every: int, cancelled: int
) -> None:
    chance = random.Random(seed)
    kinds: list[Callable[[], Command]] = [
        lambda: ReserveStock("0", str(chance.randrange(1000)), chance.randint(1, 3)),
        lambda: Legislate("policy-0", chance.random() < 0.5),
        lambda: Audit("0"),
        lambda: Transfer("0", "1", chance.randint(1, 9), "policy-0"),
    ]
    commands = [chance.choices(kinds, (6, 4, 2, 1))[0]() for _ in range(60)]
    crowd = Crowd(
        [spec],
        seed,
        clients=30,
        commands=commands,
        foreign=8,
        lost_every=lost_every,
        cancelled=cancelled,
        poisoned=3 if lost_every else 0,
    )
    crowd.judge()


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), in_flight=st.integers(1, 4), size=st.integers(1, 10))
def test_batches_under_way_at_a_time_never_conflict_with_each_other(seed: int, in_flight: int, size: int) -> None:
    """No stream that is written is in two of them. Nobody else writes, and no retry is allowed."""
    chance = random.Random(seed)
    drawn = (drawn_command(chance) for _ in itertools.count())
    commands = list(itertools.islice((c for c in drawn if not getattr(c, "policy", "")), 60))
    spec = f"batching(direct:retries=0):delay_ms=0,in_flight={in_flight},size={size}"
    crowd = Crowd([spec], seed, clients=20, commands=commands)
    crowd.judge()
    assert {type(t.outcome) for t in crowd.tried} <= {Executed, CommandRejected}
    assert all(t.outcome.attempts == 1 for t in crowd.tried if isinstance(t.outcome, Executed))


def test_the_crowds_of_these_tests_meet_enough_of_everything() -> None:
    kinds: Counter[str] = Counter()
    for seed in range(15):
        crowd = Crowd([AT_ONCE, AT_ONCE], seed, clients=20, each=3, foreign=10, cancelled=6, lost_every=4, poisoned=4)
        crowd.judge()
        for t in crowd.tried:
            kinds[type(t.outcome).__name__] += 1
            kinds["again"] += isinstance(t.outcome, Executed) and t.outcome.attempts > 1
        counts = crowd.counts[0]
        kinds["batched"] += counts["batched"]
        kinds["batches"] += counts["batches"]
    for kind in ("Executed", "CommandRejected", "OutcomeUnknown", "EventRejected", "CancelledError", "again"):
        assert kinds[kind] >= 10, kinds
    assert kinds["batched"] > 1.5 * kinds["batches"]


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32), size=st.integers(1, 40), count=st.integers(1, 40))
def test_what_waits_together_comes_to_what_one_after_the_other_would(seed: int, size: int, count: int) -> None:
    """Alone with a store, every command is told exactly what a plain executor would have told it in that order."""
    chance = random.Random(seed)
    commands = [drawn_command(chance) for _ in range(count)]

    async def whole() -> None:
        plain, batched = await prepared(), await prepared()
        expected = [await told_of(direct(plain), command) for command in commands]
        executor = batching(direct(batched), size=size, delay_ms=0)
        assert await asyncio.gather(*[told_of(executor, command) for command in commands]) == expected
        for stream in plain._streams:
            assert by_content(batched._streams[stream]) == by_content(plain._streams[stream])

    VirtualClock().run(whole())


async def told_of(executor: Executor, command: Command) -> Any:
    noted = Noted(command)
    try:
        done = await executor.execute(noted)
    except CommandRejected as rejection:
        return str(rejection)
    return done.versions, done.attempts, said(noted.decisions[-1])


def by_content(events: Sequence[StoredEvent]) -> list[tuple[int, str, bytes]]:
    return [(e.version, e.type, e.data) for e in events]


async def prepared(pieces: int = 20, cents: Sequence[int] = (100, 100)) -> Memory:
    """A store with so many pieces of article 0 and so many cents in accounts 0, 1 …"""
    store = Memory()
    await store.append([StreamWrite(stock_stream("0"), 0, (received(pieces),))])
    for n, amount in enumerate(cents):
        await store.append([StreamWrite(account_stream(str(n)), 0, (moved("AccountOpened", amount),))])
    return store


def reservations(count: int, quantity: int = 1) -> list[ReserveStock]:
    return [ReserveStock("0", f"order-{n}", quantity) for n in range(count)]


# --- what goes together ---------------------------------------------------------------------------------------------


async def test_a_hundred_commands_on_a_hot_stream_are_one_read_and_one_append() -> None:
    store = Counting(await prepared(pieces=1000))
    executor = executors.make(AT_ONCE, store=store)
    results = await execute_all(executor, reservations(100))
    assert [r.versions for r in results if isinstance(r, Executed)] == [(n,) for n in range(2, 102)]
    assert len(store.reads) == 1 and store.calls == [1]
    assert [w.expected for [w] in store.appends] == [1] and len(store.appends[0][0].events) == 100
    await execute_all(executor, reservations(100))
    assert len(store.reads) == 1 and store.calls == [1, 1], "what it wrote itself it need not read"
    assert executor.counts()["batches"] == 2 and executor.counts()["batched"] == 200


async def test_a_hot_stream_makes_no_conflicts_among_its_own_commands_on_any_store(store: Store) -> None:
    await store.append([StreamWrite(stock_stream("0"), 0, (received(60),))])
    executor = executors.make(AT_ONCE, store=store)
    results = await execute_all(executor, reservations(100))
    assert [isinstance(r, Executed) for r in results] == [True] * 60 + [False] * 40
    assert all(r.attempts == 1 for r in results if isinstance(r, Executed))
    stored = (await store.read_stream(stock_stream("0"))).events[1:]
    assert [e.id for e in stored] == [r.events[0].id for r in results if isinstance(r, Executed)]


async def test_commands_on_different_streams_are_one_read_and_one_round_trip() -> None:
    store = Counting(await prepared(cents=[100] * 40))
    executor = executors.make(AT_ONCE, store=store)
    transfers = [Transfer(str(n), str(n + 1), 5) for n in range(0, 40, 2)]
    assert all(isinstance(r, Executed) for r in await execute_all(executor, transfers))
    assert len(store.reads) == 1 and len(store.reads[0]) == 40
    assert store.calls == [20]


async def test_commands_that_only_read_a_stream_in_common_go_together() -> None:
    store = Counting(await prepared(cents=[100] * 20))
    executor = executors.make(AT_ONCE, store=store)
    transfers = [Transfer(str(n), str(n + 1), 5, "policy-0") for n in range(0, 20, 2)]
    assert all(isinstance(r, Executed) for r in await execute_all(executor, transfers))
    assert store.calls == [10]
    mixed: list[Command] = [transfers[0], Legislate("policy-0", True), *transfers[1:]]
    results = await execute_all(executor, mixed)
    assert [isinstance(r, Executed) for r in results] == [True, True] + [False] * 9
    assert store.calls == [10, 1, 1], "the law in a round between"


class Look(Struct, frozen=True):
    """Only looks at two accounts; rejected when there is less than so much in them."""

    least: int
    only_reads = (account_stream("0"), account_stream("1"))

    @property
    def streams(self) -> Mapping[StreamId, Fold]:
        return Transfer("0", "1", 1).streams

    def decide(self, states: Mapping[StreamId, Any]) -> Sequence[tuple[StreamId, NewEvent]]:
        if sum(states.values()) < self.least:
            raise CommandRejected(f"{sum(states.values())} is less than {self.least}")
        return []


@pytest.mark.parametrize("spec", [AT_ONCE, "batching(direct):delay_ms=0", "parallel(cached(direct))", "direct"])
async def test_commands_that_only_read_write_nothing_and_are_told_what_holds(spec: str) -> None:
    memory = await prepared(cents=(100, 50))
    executor = executors.make(spec, store=memory)
    commands: list[Command] = [Look(150), Look(151), Transfer("0", "1", 7), Look(150), Look(151)]
    for n in range(2):
        results = await execute_all(executor, commands)
        assert [isinstance(r, Executed) for r in results] == [True, False, True, True, False]
        assert [r.versions for r in results if isinstance(r, Executed)] == [
            (n + 1, n + 1),
            (n + 2, n + 2),
            (n + 2, n + 2),
        ]
    assert await memory.last_position() == 7


async def test_commands_that_share_streams_otherwise_go_in_rounds_in_their_order() -> None:
    """Money that comes with one transfer is spent by the next, in one batch."""
    store = Counting(await prepared(cents=(10, 0, 0, 0, 7, 7)))
    executor = executors.make(AT_ONCE, store=store)
    transfers = [Transfer("0", "1", 10), Transfer("4", "5", 7), Transfer("1", "2", 10), Transfer("2", "3", 10)]
    results = await execute_all(executor, transfers)
    assert [r.versions for r in results if isinstance(r, Executed)] == [(2, 2), (2, 2), (3, 2), (3, 2)]
    assert store.calls == [2, 1, 1]
    assert executor.counts()["batches"] == 1


async def test_nobody_passes_one_who_waits_for_a_stream_of_his() -> None:
    """The third has a stream with the second, who must wait for the first: it goes after the second, not before."""
    store = Counting(await prepared(cents=(10, 0, 0)))
    executor = executors.make("batching(direct):delay_ms=0", store=store)
    transfers = [Transfer("0", "1", 10), Transfer("1", "2", 10), Audit("2")]
    results = await execute_all(executor, transfers)
    assert store.calls == [1, 1, 1]
    assert isinstance(results[2], Executed) and results[2].events[0].data == b"2"


async def test_different_folds_of_one_stream_are_each_given_their_own_states() -> None:
    store = Counting(await prepared())
    executor = executors.make("batching(direct):delay_ms=0", store=store)
    commands = [Audit("0"), Transfer("0", "1", 60), Audit("0"), Transfer("0", "1", 60), Transfer("0", "1", 40)]
    results = await execute_all(executor, commands)
    assert [r.versions if isinstance(r, Executed) else str(r) for r in results] == [
        (2,),
        (3, 2),
        "3 events are not audited",
        "account 0 has 40 cents, less than 60",
        (4, 3),
    ]


# --- rejections and mistakes ----------------------------------------------------------------------------------------


async def test_rejected_commands_in_a_chain_leave_the_others_as_they_would_be_without_them() -> None:
    store = Counting(await prepared(pieces=10))
    executor = executors.make("batching(direct):delay_ms=0", store=store)
    quantities = [4, 7, 3, 4, 3, 1]
    results = await execute_all(executor, [ReserveStock("0", str(n), q) for n, q in enumerate(quantities)])
    assert [isinstance(r, Executed) for r in results] == [True, False, True, False, True, False]
    assert str(results[3]) == "3 pieces of 0 are left, fewer than 4"
    assert store.calls == [1] and len(store.appends[0][0].events) == 3


async def test_a_chain_of_nothing_but_rejections_writes_nothing_and_is_looked_into_once() -> None:
    store = Counting(await prepared(pieces=0))
    executor = executors.make(AT_ONCE, store=store)
    for reads in (1, 2):
        results = await execute_all(executor, reservations(5))
        assert all(isinstance(r, CommandRejected) for r in results)
        assert len(store.reads) == reads and store.calls == []
    await store.inner.append([StreamWrite(stock_stream("0"), ANY, (received(5),))])
    assert all(isinstance(r, Executed) for r in await execute_all(executor, reservations(5)))
    assert len(store.reads) == 3


class Says(Struct, frozen=True):
    """Appends `data` to `stream`, or raises what it is given."""

    stream: StreamId
    data: bytes = b"{}"
    raises: Exception | None = None
    fold: Fold | None = None

    @property
    def streams(self) -> Mapping[StreamId, Fold]:
        return {self.stream: self.fold or SAID}

    def decide(self, states: Mapping[StreamId, Any]) -> Sequence[tuple[StreamId, NewEvent]]:
        if self.raises is not None:
            raise self.raises
        return [(self.stream, NewEvent("Said", self.data))]


def _all_said(before: tuple[bytes, ...], event: Said) -> tuple[bytes, ...]:
    if event.data == b"unfoldable":
        raise ZeroDivisionError("an event that cannot be folded")
    return (*before, event.data)


SAID = Fold("said", (), _all_said)
A, B, C = StreamId("a"), StreamId("b"), StreamId("c")


@pytest.mark.parametrize("mistake", [ZeroDivisionError("mine"), ValueError("mine"), StopIteration("mine")])
async def test_a_mistake_in_a_decision_is_its_commands_own(mistake: Exception) -> None:
    store = Memory()
    executor = executors.make(AT_ONCE, store=store)
    commands = [Says(A), Says(A, raises=mistake), Says(A), Says(B), Says(C, raises=mistake)]
    results = await all_told(executor, commands)
    told = RuntimeError if isinstance(mistake, StopIteration) else type(mistake)  # as from any coroutine
    assert [type(r) for r in results] == [Executed, told, Executed, Executed, told]
    assert await store.last_position() == 3


async def all_told(executor: Executor, commands: Sequence[Command]) -> list[Any]:
    async with asyncio.timeout(10):
        return await asyncio.gather(*[executor.execute(c) for c in commands], return_exceptions=True)


@pytest.mark.parametrize("known", [[], [A], [A, C], [B], [A, B, C]])
async def test_a_fold_that_raises_for_one_stream_harms_only_its_own_commands(known: list[StreamId]) -> None:
    """Whichever streams are known already: also when the broken one is the only one that must be read."""
    store = Memory()
    executor = executors.make(AT_ONCE, store=store)
    await all_told(executor, [Says(stream) for stream in known])
    await store.append([StreamWrite(B, ANY, (NewEvent("Said", b"unfoldable"),))])
    results = await all_told(executor, [Says(A), Says(B), Says(C), Says(B), Says(A)])
    assert [type(r) for r in results] == [Executed, ZeroDivisionError, Executed, ZeroDivisionError, Executed]


async def test_an_event_that_cannot_be_folded_harms_only_the_command_that_decided_on_it() -> None:
    store = Memory()
    executor = executors.make(AT_ONCE, store=store)
    results = await all_told(executor, [Says(A), Says(A, b"unfoldable"), Says(A), Says(B)])
    assert [type(r) for r in results] == [Executed, ZeroDivisionError, Executed, Executed]
    assert [e.data for e in await store.read_all()] == [b"{}"] * 3


class Scripted(Wrapper):
    """A store whose n-th appending call (from 0) does something else."""

    def __init__(self, inner: Store, **script: Callable[[], Any]) -> None:
        super().__init__(inner)
        self._script, self._call = script, -1

    async def _before(self) -> None:
        self._call += 1
        if (act := self._script.get(f"before_{self._call}")) is not None:
            await act()

    async def _after(self) -> None:
        if (act := self._script.get(f"after_{self._call}")) is not None:
            await act()

    async def append(self, writes: Sequence[StreamWrite]) -> AppendResult:
        await self._before()
        result = await super().append(writes)
        await self._after()
        return result

    async def append_many(self, requests: Sequence[Sequence[StreamWrite]]) -> list[AppendResult | StoreError]:
        await self._before()
        results = await super().append_many(requests)
        await self._after()
        return results


def raising(error: Exception) -> Callable[[], Any]:
    async def act() -> None:
        raise error

    return act


@pytest.mark.parametrize("error", [ZeroDivisionError("a broken driver"), StoreError("refused"), OutcomeUnknown("lost")])
async def test_an_error_in_a_later_round_takes_nothing_back_that_an_earlier_one_acknowledged(error: Exception) -> None:
    memory = await prepared(cents=(10, 0, 0, 0))
    executor = executors.make("batching(direct):delay_ms=0", store=Scripted(memory, before_1=raising(error)))
    results = await all_told(executor, [Transfer("0", "1", 10), Transfer("1", "2", 10), Audit("3")])
    assert [type(r) for r in results] == [Executed, type(error), Executed]
    assert executor.counts()["batches"] == 1
    assert (await memory.read_stream(account_stream("1"))).version == 2


async def test_a_store_that_forgets_an_answer_leaves_unknown_what_became_of_them() -> None:
    class Forgetful(Wrapper):
        async def append_many(self, requests: Sequence[Sequence[StreamWrite]]) -> list[AppendResult | StoreError]:
            return (await self.inner.append_many(requests))[:-1]

    results = await all_told(executors.make(AT_ONCE, store=Forgetful(Memory())), [Says(A), Says(B), Says(C)])
    assert {type(r) for r in results} == {OutcomeUnknown}


# --- conflicts, refusals, lost answers ------------------------------------------------------------------------------


async def test_a_conflict_of_one_chain_is_no_other_chains() -> None:
    memory = await prepared(pieces=100)

    async def other() -> None:
        await memory.append([StreamWrite(stock_stream("0"), ANY, (received(1),))])

    store = Counting(Scripted(memory, before_0=other))
    executor = executors.make("batching(direct:first_ms=0):delay_ms=0", store=store)
    results = await execute_all(executor, [*reservations(3), Audit("0"), Audit("1")])
    assert [r.attempts for r in results if isinstance(r, Executed)] == [2, 2, 2, 1, 1]
    assert store.calls[0] == 3


async def test_an_event_the_store_refuses_is_its_commands_trouble_and_the_innocent_succeed() -> None:
    class Picky(Wrapper):
        async def append(self, writes: Sequence[StreamWrite]) -> AppendResult:
            if any(POISON.encode() in e.data for w in writes for e in w.events):
                raise EventRejected("cannot be held")
            return await self.inner.append(writes)

    store = Counting(Picky(await prepared()))
    executor = executors.make("batching(cached(direct:retries=0)):delay_ms=0", store=store)
    commands = [*reservations(2), ReserveStock("0", POISON), *reservations(2)]
    attempts = [Attempt() for _ in commands]

    async def noted(command: Command, attempt: Attempt) -> Executed:
        current_attempt.set(attempt)
        return await executor.execute(command)

    each = [noted(c, a) for c, a in zip(commands, attempts, strict=True)]
    results = await asyncio.gather(*each, return_exceptions=True)
    assert [type(r) for r in results] == [Executed, Executed, EventRejected, Executed, Executed]
    assert [(a.attempts, a.conflicts, a.backoff_ns) for a in attempts] == [(1, 0, 0)] * 5, "which is no try and no wait"
    assert (await store.read_stream(stock_stream("0"))).version == 5


@pytest.mark.parametrize("happened", [False, True])
async def test_a_lost_answer_is_unknown_to_those_who_wrote_and_those_rejected_are_decided_again(happened: bool) -> None:
    """They were rejected because of events of which nobody knows whether they are there."""
    memory, lost = await prepared(pieces=3), raising(OutcomeUnknown("lost"))
    store = Scripted(memory, **{"after_0" if happened else "before_0": lost})
    executor = executors.make(AT_ONCE, store=store)
    results = await all_told(executor, reservations(4))
    fourth = CommandRejected if happened else Executed
    assert [type(r) for r in results] == [OutcomeUnknown, OutcomeUnknown, OutcomeUnknown, fourth]
    assert (await memory.read_stream(stock_stream("0"))).version == (4 if happened else 2)


# --- as many events from somebody else ------------------------------------------------------------------------------

SPENT = moved(MONEY_WITHDRAWN, -10)
"""What somebody else takes out of account 1 at the worst moment: one event, as the transfer into it would have been."""


async def _naive(store: Store, transfers: Sequence[Transfer]) -> list[AppendResult | StoreError]:
    """Transfers decided each on the events of those before it, and sent as requests of their own in one round trip."""
    states = {s: fold for t in transfers for s, fold in t.streams.items()}
    slices = {part.stream: part for part in await store.read_streams(list(states))}
    versions = {s: part.version for s, part in slices.items()}
    values: dict[StreamId, Any] = {}
    for s, fold in states.items():
        values[s] = fold.initial
        for event in slices[s].events:
            values[s] = fold.apply(values[s], event)
    requests = []
    for transfer in transfers:
        decided = transfer.decide({s: values[s] for s in transfer.streams})
        requests.append([StreamWrite(s, versions[s], (event,)) for s, event in decided])
        for s, event in decided:
            versions[s], values[s] = versions[s] + 1, states[s].apply(values[s], event)
    await asyncio.sleep(0)  # somebody else's moment
    await store.append([StreamWrite(account_stream("1"), ANY, (SPENT,))])
    return await store.append_many(requests)


async def test_requests_decided_on_each_other_are_wrong_when_somebody_else_writes_as_many_events() -> None:
    """The danger is real: the first is refused, and the second finds the version it expects and spends what never came."""
    memory = await prepared(cents=(10, 10, 0))
    results = await _naive(memory, [Transfer("0", "1", 10), Transfer("1", "2", 20)])
    assert [type(r) for r in results] == [VersionConflict, AppendResult]
    assert balance(memory, "1") == -20


def balance(memory: Memory, account: str) -> int:
    events = memory._streams[account_stream(account)]
    value = None
    for event in events:
        value = Transfer("0", account, 1).streams[account_stream(account)].apply(value, event)
    return value or 0


@pytest.mark.parametrize("call", range(3))
@pytest.mark.parametrize(
    "spec", ["batching(direct:first_ms=0):delay_ms=0", "batching(cached(direct:first_ms=0)):delay_ms=0"]
)
async def test_commands_in_a_batch_are_right_when_somebody_else_writes_as_many_events(spec: str, call: int) -> None:
    """Whenever he does it: before the first transfer, between them, or behind them."""
    memory = await prepared(cents=(10, 10, 0))
    others = {e.id for e in memory._all} | {SPENT.id}

    async def spend() -> None:
        await memory.append([StreamWrite(account_stream("1"), ANY, (SPENT,))])

    executor = executors.make(spec, store=Scripted(memory, **{f"before_{call}": spend}))
    tried = [Tried(Noted(t)) for t in (Transfer("0", "1", 10), Transfer("1", "2", 20))]
    await asyncio.gather(*[t.execute(memory, executor) for t in tried])
    assert_serial(memory._all, tried, others & {e.id for e in memory._all})
    assert isinstance(tried[0].outcome, Executed)
    assert balance(memory, "1") >= 0


async def test_a_chain_is_refused_as_a_whole_when_somebody_else_writes_as_many_events() -> None:
    memory = await prepared(pieces=2)

    async def reserve() -> None:
        await memory.append([StreamWrite(stock_stream("0"), ANY, (received(-1),))])

    store = Counting(Scripted(memory, before_0=reserve))
    executor = executors.make("batching(direct:first_ms=0):delay_ms=0", store=store)
    results = await execute_all(executor, reservations(2))
    assert sorted(type(r).__name__ for r in results) == ["CommandRejected", "Executed"]
    assert (await memory.read_stream(stock_stream("0"))).version == 3


# --- callers, time, the end -----------------------------------------------------------------------------------------


def test_a_batch_is_full_or_its_first_command_has_waited_so_long() -> None:
    async def whole(clock: VirtualClock) -> None:
        store = Counting(await prepared(pieces=100))
        executor = executors.make("batching(direct):delay_ms=10,size=3", store=store)
        tasks = []
        for n in range(4):
            tasks.append(asyncio.ensure_future(executor.execute(ReserveStock("0", str(n)))))
            await asyncio.sleep(0.001)
        assert len(store.appends[0][0].events) == 3 and len(store.appends) == 1
        await asyncio.gather(*tasks)
        assert round(clock.now_ns() / 1e6, 3) == 13

    clock = VirtualClock()
    clock.run(whole(clock))


async def test_one_who_leaves_while_he_waits_takes_his_command_along() -> None:
    store = await prepared()
    executor = executors.make(AT_ONCE, store=store)
    tasks = [asyncio.ensure_future(executor.execute(c)) for c in reservations(3)]
    await asyncio.sleep(0)
    tasks[1].cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(r) for r in results] == [Executed, asyncio.CancelledError, Executed]
    assert (await store.read_stream(stock_stream("0"))).version == 3


async def test_a_batch_belongs_to_nobodys_operation_and_each_notes_when_it_was_taken() -> None:
    seen: set[Any] = set()

    class Asking(Wrapper):
        async def append(self, writes: Sequence[StreamWrite]) -> AppendResult:
            seen.add(current_attempt.get())
            return await self.inner.append(writes)

    executor = executors.make(AT_ONCE, store=Asking(await prepared()))

    async def noted(command: Command) -> Attempt:
        attempt = Attempt()
        current_attempt.set(attempt)
        await executor.execute(command)
        return attempt

    attempts = await asyncio.gather(*[noted(c) for c in reservations(3)])
    assert seen == {None}
    assert len({a.acquired_ns for a in attempts}) == 1 and attempts[0].acquired_ns > 0


async def test_closing_executes_what_waits_and_refuses_what_comes() -> None:
    store = await prepared()
    executor = executors.make("batching(cached(snapshots(direct):every=2)):delay_ms=60000", store=store)
    tasks = [asyncio.ensure_future(executor.execute(c)) for c in reservations(3)]
    await asyncio.sleep(0)
    await executor.close()
    assert [(await t).versions for t in tasks] == [(2,), (3,), (4,)]
    assert executor.counts()["snapshots_saved"] == 1
    with pytest.raises(BatcherClosed, match="the command was not executed"):
        await executor.execute(reservations(1)[0])


def test_an_executor_that_remembers_more_keeps_its_bounds() -> None:
    executor = executors.make("cached(batching(direct):size=7,delay_ms=3,in_flight=2,queue_max=11)", store=Memory())
    assert isinstance(executor, Batching)
    assert executor._settings == {"size": 7, "delay_s": 0.003, "in_flight": 2, "queue_max": 11}


@pytest.mark.parametrize("spec", ["memory", "postgres", "sqlite"])
async def test_nobody_pays_for_an_event_of_anothers_that_no_store_can_hold(spec: str) -> None:
    """A NUL, a lone surrogate, no bytes: in the same chain and in another one of the same round."""
    async with open_store(spec, PoolSettings.sized(2)) as store:
        executor = executors.make(AT_ONCE, store=store)
        wrong = [Raw(B, NewEvent("\0", b"{}")), Raw(C, NewEvent("\ud800", b"{}")), Raw(C, NewEvent("T", "text"))]  # type: ignore[arg-type]
        good = [Raw(s, NewEvent("T", b"{}")) for s in (A, B, C, A, B, C)]
        results = await all_told(executor, [*good[:3], *wrong, *good[3:]])
        assert all(isinstance(r, Executed) for r in [*results[:3], *results[6:]]), results
        assert all(isinstance(r, Executed | EventRejected | Exception) for r in results)


class Raw(Struct, frozen=True):
    """Appends this very event."""

    stream: StreamId
    event: NewEvent

    @property
    def streams(self) -> Mapping[StreamId, Fold]:
        return {self.stream: RAW}

    def decide(self, states: Mapping[StreamId, Any]) -> Sequence[tuple[StreamId, NewEvent]]:
        return [(self.stream, self.event)]


RAW = Fold("raw", 0, lambda n, _: n + 1)


async def test_opening_the_same_account_in_one_batch_opens_it_once() -> None:
    executor = executors.make(AT_ONCE, store=Memory())
    results = await execute_all(executor, [OpenAccount("0", n) for n in range(10)])
    assert [type(r) for r in results] == [Executed] + [CommandRejected] * 9


async def test_commands_that_fold_a_stream_they_only_read_differently_are_each_decided_on_their_own_fold() -> None:
    """They wait together and could go in one round, but for the state of that stream, of which a round has one."""
    count = Fold("count", 0, lambda n, _: n + 1, int)
    names = Fold("names", (), lambda found, event: (*found, event.type), tuple[str, ...])
    policy, decided = StreamId("policy"), []

    class Looks(Struct, frozen=True):
        at: StreamId
        fold: Fold

        @property
        def streams(self) -> Mapping[StreamId, Fold]:
            return {self.at: count, policy: self.fold}

        @property
        def only_reads(self) -> Collection[StreamId]:
            return (policy,)

        def decide(self, states: Mapping[StreamId, Any]) -> Sequence[tuple[StreamId, NewEvent]]:
            decided.append(states[policy])
            return [(self.at, NewEvent("Looked", b"{}"))]

    store = Memory()
    await store.append([StreamWrite(policy, 0, (NewEvent("Made", b"{}"), NewEvent("Changed", b"{}")))])
    executor = batching(direct(store), delay_ms=0)
    await execute_all(executor, [Looks(StreamId("a"), count), Looks(StreamId("b"), names)])
    assert decided == [2, ("Made", "Changed")]
    await executor.close()
