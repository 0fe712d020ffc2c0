"""Claims about executors that remember, and about all of them: whatever stands around `direct`, what is stored and what
callers are told is what some serial execution would have given."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any

import msgspec
import pytest
from conftest import STORES
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Struct
from witness import COUNT, Audit, Counting, Crowd, History, Interrupted, Noted, Watched, drawn_command, said

from eventcore_lab.clock import VirtualClock
from eventcore_lab.commands import (
    Command,
    CommandRejected,
    CreateUser,
    Direct,
    Executed,
    Executor,
    Fold,
    OpenAccount,
    State,
    Transfer,
    UpdateProfile,
    cached,
    direct,
    execute_all,
    executors,
    snapshots,
)
from eventcore_lab.commands.bank import ACCOUNT, TRANSFERS, account_stream
from eventcore_lab.commands.command import Said, only_reads
from eventcore_lab.commands.executor import after_events
from eventcore_lab.commands.inventory import STOCK
from eventcore_lab.commands.memory import NOTHING, SNAPSHOTS_IN_FLIGHT, Cache, Snapshots, States, Wanted
from eventcore_lab.commands.users import USER, user_stream
from eventcore_lab.events import ANY, AppendResult, NewEvent, Snapshot, StoreError, StreamId, StreamWrite
from eventcore_lab.schema import Attempt, current_attempt
from eventcore_lab.spec import UsageError
from eventcore_lab.stores import PoolSettings, Store, open_store, stores
from eventcore_lab.stores.memory import Memory
from eventcore_lab.stores.wrapper import Wrapper

REMEMBERING = [
    "cached(direct)",
    "cached(direct):size=1",
    "cached(direct:retries=0):size=3",
    "snapshots(direct):every=2",
    "cached(snapshots(direct):every=2):size=2",
    "snapshots(cached(direct):size=2):every=3",
    "cached(cached(direct):size=5):size=2",
    "cached(parallel(direct):limit=2)",
]


# --- some serial order ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", ["direct", *REMEMBERING])
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), foreign=st.sampled_from([0, 0, 10]), cancelled=st.sampled_from([0, 0, 4]))
def test_two_processes_that_remember_and_one_that_does_not_come_to_what_a_serial_execution_gives(
    spec: str, seed: int, foreign: int, cancelled: int
) -> None:
    """The cache of each is watched all the while: it holds nothing but what was true, never goes back, keeps its bound."""
    Crowd([spec, spec, "direct"], seed, foreign=foreign, cancelled=cancelled).judge()


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_unknown_outcomes_leave_nothing_untrue_in_a_cache(seed: int) -> None:
    Crowd(["cached(direct)", "cached(snapshots(direct):every=2)"], seed, lost_every=4, poisoned=3, cancelled=5).judge()


def test_the_crowds_of_these_tests_meet_enough_of_everything() -> None:
    """Conflicts, rejections of every kind, decisions on nothing: else the claims above would be cheap."""
    kinds: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    for seed in range(20):
        crowd = Crowd(["cached(direct)", "cached(direct)", "direct"], seed, foreign=10)
        crowd.judge()
        for t in crowd.tried:
            kinds[type(t.outcome).__name__] += 1
            if isinstance(t.outcome, Executed):
                kinds["again"] += t.outcome.attempts > 1
                kinds["nothing"] += not t.outcome.events
                kinds["two streams"] += len(t.noted.streams) > 1
            kinds["looked into"] += isinstance(t.outcome, CommandRejected) and len(t.noted.decisions) > 0
        counts.update(crowd.counts[0])
    assert min(kinds[k] for k in ("Executed", "CommandRejected", "again", "nothing", "two streams")) >= 20, kinds
    assert counts["cache_hits"] > 100


def rejections_on_what_was_remembered_are_believed(executor: Direct) -> None:
    async def execute(command: Command) -> Executed:
        known, recent = await executor.memory.recall(command.streams)
        if len(recent) == len(command.streams):
            command.decide({s: state.value for s, state in known.items()})
        return await Direct.execute(executor, command)

    executor.execute = execute  # type: ignore[method-assign]


def what_was_told_last_is_kept(executor: Direct) -> None:
    cache = _cache_of(executor)

    def kept(wanted: Wanted, states: States, since: States) -> None:
        for key in wanted.items():
            cache._entries.pop(key, None)
        Cache.keep(cache, wanted, states, since)

    cache.keep = kept


def what_was_decided_is_kept_before_it_is_appended(executor: Direct) -> None:
    class Hasty(Wrapper):
        async def append(self, writes: Sequence[StreamWrite]) -> AppendResult:
            for write in writes:
                for (stream, fold), state in list(_cache_of(executor)._entries.items()):
                    if stream == write.stream and state.version == write.expected:
                        _cache_of(executor)._entries[stream, fold] = after_events(fold, state, write.events)
            return await self.inner.append(writes)

    executor.store = Hasty(executor.store)


def appends_expect_nothing(executor: Direct) -> None:
    class Careless(Wrapper):
        async def append(self, writes: Sequence[StreamWrite]) -> AppendResult:
            return await self.inner.append([StreamWrite(w.stream, ANY, w.events) for w in writes])

    executor.store = Careless(executor.store)


def participants_that_are_only_read_are_left_out(executor: Direct) -> None:
    class Careless(Wrapper):
        async def append(self, writes: Sequence[StreamWrite]) -> AppendResult:
            result = await self.inner.append([w for w in writes if w.events] or writes)
            return AppendResult(tuple(max(w.expected, 0) + len(w.events) for w in writes), result.position)

    executor.store = Careless(executor.store)


def _cache_of(executor: Direct) -> Any:
    return executor.memory._cache  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "fault",
    [
        rejections_on_what_was_remembered_are_believed,
        what_was_told_last_is_kept,
        what_was_decided_is_kept_before_it_is_appended,
        appends_expect_nothing,
        participants_that_are_only_read_are_left_out,
    ],
)
def test_the_witness_finds_an_executor_that_is_wrong_on_purpose(fault: Callable[[Direct], None]) -> None:
    def broken(executor: Executor) -> Executor:
        if isinstance(executor.core.memory, Watched):
            fault(executor.core)
        return executor

    def found(seed: int) -> bool:
        try:
            Crowd(["cached(direct)", "cached(direct)", "direct"], seed, foreign=10, changed=broken).judge()
        except (AssertionError, ExceptionGroup):
            return True
        return False

    assert any(found(seed) for seed in range(30))


# --- the cache ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", ["cached(direct)", "parallel(cached(direct))", "batching(cached(direct)):delay_ms=0"])
async def test_one_who_writes_reads_once_and_never_again(spec: str) -> None:
    store = Counting(Memory())
    executor = executors.make(spec, store=store)
    await executor.execute(CreateUser("1", "a@example.com", "Ada", "L"))
    for n in range(20):
        assert (await executor.execute(UpdateProfile("1", f"Ada {n}", "L"))).versions == (n + 2,)
    assert store.reads == [{"user-1": 1}]
    assert len(store.appends) == 21
    assert executor.counts()["cache_hits"] == 20 and executor.counts()["cache_misses"] == 1


@pytest.mark.parametrize("spec", ["cached(direct)", "parallel(cached(direct))", "batching(cached(direct)):delay_ms=0"])
@pytest.mark.parametrize("behind", [1, 7])
def test_a_stale_entry_costs_one_conflict_and_one_read_of_what_is_new(spec: str, behind: int) -> None:
    async def whole() -> None:
        store, attempt = Counting(Memory()), Attempt()
        current_attempt.set(attempt)
        executor, other = executors.make(spec, store=store), direct(store.inner)
        await executor.execute(CreateUser("1", "a@example.com", "Ada", "L"))
        for n in range(behind):
            await other.execute(UpdateProfile("1", f"Eve {n}", "L"))
        store.forget()
        attempt.reset(1)
        done = await executor.execute(UpdateProfile("1", "Ada", "King"))
        assert (done.versions, done.attempts) == ((behind + 2,), 2)
        assert store.reads == [{"user-1": 2}] and store.read_events == behind
        assert [w.expected for [w] in store.appends] == [1, behind + 1]
        assert (attempt.attempts, attempt.conflicts, attempt.backoff_ns) == (2, 1, 0)
        store.forget()
        assert (await executor.execute(UpdateProfile("1", "Ada", "Byron"))).attempts == 1
        assert store.reads == [] and len(store.appends) == 1

    clock = VirtualClock()
    clock.run(whole())
    assert clock.now_ns() == 0, "nobody waited"


async def test_of_several_streams_only_what_is_new_is_read_and_all_at_one_instant() -> None:
    store = Counting(Memory())
    executor = cached(direct(store))
    for n in range(3):
        await executor.execute(OpenAccount(str(n), 100))
    store.forget()
    await executor.execute(Transfer("0", "1", 1))
    assert store.reads == []
    await direct(store.inner).execute(Transfer("1", "2", 1))
    await executor.execute(Transfer("0", "1", 1))
    assert store.reads == [{"account-0": 3, "account-1": 3}]
    store.forget()
    with pytest.raises(CommandRejected, match="3 is not open"):
        await executor.execute(Transfer("0", "3", 1))
    assert store.reads == [{"account-0": 4, "account-3": 1}], "known is read on, unknown from the beginning"


async def test_two_folds_of_one_stream_are_two_entries() -> None:
    store = Memory()
    executor = cached(direct(store))
    await executor.execute(OpenAccount("0", 100))
    await executor.execute(Audit("0"))
    await executor.execute(OpenAccount("1", 0))
    done = await executor.execute(Transfer("0", "1", 60))
    assert done.versions == (3, 2) and done.attempts == 2
    with pytest.raises(CommandRejected, match="3 events"):
        await executor.execute(Audit("0"))
    with pytest.raises(CommandRejected, match="has 40 cents"):
        await executor.execute(Transfer("0", "1", 60))


class Counted(str):
    """A stream id that counts how often it is hashed or compared."""

    operations = 0

    def __hash__(self) -> int:
        Counted.operations += 1
        return str.__hash__(self)

    def __eq__(self, other: object) -> bool:
        Counted.operations += 1
        return str.__eq__(self, other)


@pytest.mark.parametrize("others", [10, 10_000])
async def test_a_cache_costs_the_same_however_much_is_in_it(others: int) -> None:
    cache = Cache(NOTHING, others)
    streams = [StreamId(Counted(f"s-{n}")) for n in range(others + 50)]
    for stream in streams[:others]:
        cache.keep({stream: COUNT}, {stream: State(1, 1)}, {})
    Counted.operations = 0
    for n in range(50):
        hit, miss = streams[others - 1 - n % 10], streams[others + n]
        await cache.recall({hit: COUNT})
        await cache.recall({miss: COUNT})
        cache.keep({miss: COUNT}, {miss: State(1, 1)}, {})
    assert Counted.operations < 50 * 30
    assert len(cache) == others


@settings(max_examples=200, deadline=None)
@given(
    size=st.integers(1, 5),
    steps=st.lists(st.tuples(st.booleans(), st.integers(0, 6), st.integers(0, 9)), max_size=60),
)
def test_a_cache_has_the_streams_used_last_each_at_the_newest_version_told(
    size: int, steps: list[tuple[bool, int, int]]
) -> None:
    """Against the plainest model: a list, the one used last at its end."""
    cache, model = Cache(NOTHING, size), list[tuple[StreamId, int]]()

    async def recalled(stream: StreamId) -> State | None:
        known, recent = await cache.recall({stream: COUNT})
        assert set(recent) == set(known)
        return known.get(stream)

    async def whole() -> None:
        for is_kept, n, version in steps:
            stream = StreamId(f"s-{n}")
            there = dict(model).get(stream)
            if is_kept:
                cache.keep({stream: COUNT}, {stream: State(version, version)}, {})
                if there is None or there < version:
                    model[:] = [*((s, v) for s, v in model if s != stream), (stream, version)][-size:]
            else:
                found = await recalled(stream)
                assert found == (None if there is None else State(there, there))
                if there is not None:
                    model.remove((stream, there))
                    model.append((stream, there))
            assert len(cache) == len(model) <= size

    asyncio.run(whole())


async def test_a_million_streams_leave_no_more_entries_than_its_size() -> None:
    cache = Cache(NOTHING, 1000)
    for n in range(1_000_000):
        wanted = {StreamId(f"s-{n}"): COUNT}
        cache.keep(wanted, dict.fromkeys(wanted, State(1, 1)), {})
    assert len(cache) == 1000
    known, recent = await cache.recall({StreamId(f"s-{n}"): COUNT for n in range(998_000, 1_000_000)})
    assert len(known) == len(recent) == 1000 and StreamId("s-999999") in known


# --- snapshots ------------------------------------------------------------------------------------------------------


async def saved(store: Store, spec: str, events: int, stream: str = "1") -> Executor:
    """A user's stream of so many events, written by an executor that takes snapshots, and closed."""
    executor = executors.make(spec, store=store)
    await executor.execute(CreateUser(stream, "a@example.com", "Ada", "L"))
    for n in range(events - 1):
        await executor.execute(UpdateProfile(stream, f"Ada {n}", "L"))
        await asyncio.sleep(0)
    await executor.close()
    return executor


@pytest.mark.parametrize("spec", ["snapshots(direct):every=10", "cached(snapshots(direct):every=10)"])
@pytest.mark.parametrize("events, at", [(9, 0), (10, 10), (11, 10), (29, 20), (30, 30)])
async def test_a_snapshot_is_saved_every_so_many_events_and_a_restart_reads_from_there(
    spec: str, events: int, at: int
) -> None:
    store = Counting(Memory())
    executor = await saved(store, spec, events)
    assert executor.counts()["snapshots_saved"] == at // 10
    store.forget()
    restarted = executors.make(spec, store=store)
    await restarted.execute(UpdateProfile("1", "Ada", "King"))
    assert store.reads == [{"user-1": at + 1}]
    assert restarted.counts()["snapshots_loaded"] == (at > 0)


async def test_a_long_stream_without_a_snapshot_gets_one_when_it_is_read() -> None:
    store = Counting(Memory())
    await saved(store, "direct", 57)
    executor = snapshots(direct(store), every=10)
    with pytest.raises(CommandRejected):
        await executor.execute(CreateUser("1", "a@example.com", "Ada", "L"))
    await executor.close()
    store.forget()
    await snapshots(direct(store), every=10).execute(UpdateProfile("1", "Ada", "King"))
    assert store.reads == [{"user-1": 58}]


async def test_an_event_on_several_streams_saves_each_that_came_so_far() -> None:
    store = Memory()
    executor = snapshots(direct(store), every=3)
    for n in range(3):
        await executor.execute(OpenAccount(str(n), 100))
    await executor.execute(Transfer("0", "1", 1))
    await executor.execute(Transfer("0", "2", 1))
    await executor.close()
    assert {key: s.versions for key, s in store._snapshots.items()} == {"account/account-0": {"account-0": 3}}
    assert store._snapshots["account/account-0"].state == b"98"


@pytest.mark.parametrize(
    "state", [b'"an older form"', b"[1,2]", b"{", b"", b"\xff", b'{"email":"\xff","display_name":"x"}']
)
async def test_a_snapshot_of_an_older_form_is_as_if_there_were_none(state: bytes) -> None:
    store = Counting(Memory())
    await saved(store, "direct", 5)
    await store.save_snapshot(Snapshot("user/user-1", {StreamId("user-1"): 4}, state))
    store.forget()
    executor = snapshots(direct(store), every=100)
    assert (await executor.execute(UpdateProfile("1", "Ada", "King"))).versions == (6,)
    assert store.reads == [{"user-1": 1}]
    assert executor.counts()["snapshots_loaded"] == 0


class Refusing(Wrapper):
    async def save_snapshot(self, snapshot: Snapshot) -> bool:
        raise StoreError("no room for snapshots")


async def test_saving_that_fails_only_makes_reads_longer() -> None:
    store = Counting(Refusing(Memory()))
    executor = await saved(store, "snapshots(direct):every=10", 30)
    assert executor.counts()["snapshots_failed"] >= 3 and executor.counts()["snapshots_saved"] == 0
    store.forget()
    await snapshots(direct(store), every=10).execute(UpdateProfile("1", "Ada", "King"))
    assert store.reads == [{"user-1": 1}]


@pytest.mark.parametrize("spec", ["snapshots(direct):every=1", "batching(snapshots(direct):every=1):delay_ms=0"])
async def test_a_state_that_cannot_be_saved_only_makes_reads_longer(spec: str) -> None:
    """What was appended was appended: its caller is not told that the command failed because a snapshot did."""
    store = Memory()

    def apply(seen: frozenset[object], _: Said) -> frozenset[object]:
        return seen | {object()}

    class Odd(msgspec.Struct, frozen=True):
        @property
        def streams(self) -> Mapping[StreamId, Fold]:
            return {StreamId("odd"): ODD}

        def decide(self, states: Mapping[StreamId, Any]) -> Sequence[tuple[StreamId, NewEvent]]:
            return [(StreamId("odd"), NewEvent("Odd", b"{}"))]

    ODD = Fold("odd", frozenset[object](), apply)
    executor = executors.make(spec, store=store)
    assert (await executor.execute(Odd())).versions == (1,)
    assert (await executor.execute(Odd())).versions == (2,)
    await executor.close()
    assert executor.counts()["snapshots_failed"] == 2


def test_no_more_snapshots_are_saved_at_a_time_than_allowed_and_no_command_waits_for_one() -> None:
    async def whole() -> None:
        is_open, under_way, most = asyncio.Event(), 0, 0

        class Held(Wrapper):
            async def save_snapshot(self, snapshot: Snapshot) -> bool:
                nonlocal under_way, most
                assert current_attempt.get() is None, "saving is no part of anybody's operation"
                under_way += 1
                most = max(most, under_way)
                await is_open.wait()
                under_way -= 1
                return await self.inner.save_snapshot(snapshot)

        current_attempt.set(Attempt())
        memory = Memory()
        executor = snapshots(direct(Held(memory)), every=1)
        commands = [CreateUser(str(n), "a@example.com", "Ada", "L") for n in range(20)]
        assert all(isinstance(r, Executed) for r in await execute_all(executor, commands))
        closing = asyncio.ensure_future(executor.close())
        await asyncio.sleep(0)
        assert not closing.done()
        is_open.set()
        await closing
        assert most == SNAPSHOTS_IN_FLIGHT
        counts = executor.counts()
        assert counts["snapshots_saved"] == SNAPSHOTS_IN_FLIGHT
        assert counts["snapshots_left_out"] == 20 - SNAPSHOTS_IN_FLIGHT

    VirtualClock().run(whole())


def test_closing_waits_for_a_snapshot_no_longer_than_it_says() -> None:
    class Never(Wrapper):
        async def save_snapshot(self, snapshot: Snapshot) -> bool:
            await asyncio.sleep(1e6)
            return True

    async def whole() -> None:
        executor = snapshots(direct(Never(Memory())), every=1)
        await executor.execute(CreateUser("1", "a@example.com", "Ada", "L"))
        await executor.close()

    clock = VirtualClock()
    clock.run(whole())
    assert 30e9 <= clock.now_ns() < 31e9


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), every=st.integers(1, 7), restarts=st.integers(1, 6))
def test_restarting_with_snapshots_gives_what_reading_all_of_it_gives(seed: int, every: int, restarts: int) -> None:
    async def whole() -> None:
        chance, stores_, results = random.Random(seed), (Memory(), Memory()), ([], [])
        commands = [[drawn_command(chance) for _ in range(15)] for _ in range(restarts)]
        for store, told, spec in zip(stores_, results, ("direct", f"snapshots(direct):every={every}"), strict=True):
            for life in commands:
                executor = executors.make(spec, store=store)
                for command in life:
                    told.append(await told_of(executor, command))
                    await asyncio.sleep(0)
                await executor.close()
        assert results[0] == results[1]
        assert [(e.stream, e.version, e.type, e.data) for e in stores_[0]._all] == [
            (e.stream, e.version, e.type, e.data) for e in stores_[1]._all
        ]
        assert_snapshots_true(stores_[1])

    VirtualClock().run(whole())


async def told_of(executor: Executor, command: Command) -> Any:
    """What became of it, but for the ids."""
    noted = Noted(command)
    try:
        done = await executor.execute(noted)
    except CommandRejected as rejection:
        return str(rejection)
    return done.versions, said(noted.decisions[-1])


FOLDS = {fold.name: fold for fold in (ACCOUNT, TRANSFERS, USER, STOCK, COUNT)}


def assert_snapshots_true(store: Memory) -> None:
    history = History(store._all)
    for key, snapshot in store._snapshots.items():
        name, _, stream = key.partition("/")
        fold = FOLDS[name]
        state = history.state_of_first(StreamId(stream), fold, snapshot.versions[StreamId(stream)])
        assert msgspec.json.decode(snapshot.state, type=fold.kind) == state


async def test_loading_that_fails_fails_the_command_and_writes_nothing() -> None:
    class Blind(Wrapper):
        async def load_snapshot(self, key: str) -> Snapshot | None:
            raise StoreError("no snapshots today")

    memory = Memory()
    with pytest.raises(StoreError, match="today"):
        await snapshots(direct(Blind(memory))).execute(CreateUser("1", "a@example.com", "Ada", "L"))
    assert await memory.last_position() == 0


# --- the bank -------------------------------------------------------------------------------------------------------

EACH_STORE = (*STORES, "grouped(postgres)", "grouped(sqlite)")
RETRIES = "direct:retries=1000,first_ms=0,jitter=0"
BANKS = (
    RETRIES,
    f"cached({RETRIES})",
    f"parallel(cached({RETRIES}))",
    f"batching(cached({RETRIES})):delay_ms=0",
    f"parallel(batching(cached(snapshots({RETRIES}):every=10)):delay_ms=0)",
)
ACCOUNTS = 8
# All that can keep the promise: the chapter's lets two writers take one version, and eventsourcing's recorders cannot
# expect a version of a stream that is only read, as these transfers do of their policy.
BANK_STORES = (
    *EACH_STORE,
    *[f"postgres:{name}" for name in ("eventcore", "counter", "table_lock", "xmin", "barrier", "none")],
)


@pytest.mark.parametrize("spec", BANK_STORES)
async def test_a_hundred_transfers_at_once_conserve_the_total_whatever_executes_them(spec: str) -> None:
    """Two executors each, as two processes would have them: on two connections where the store is shared."""
    driver = stores.make(spec)
    async with driver.provision() as place, AsyncExitStack() as stack:
        connected = []
        for _ in range(2 if driver.is_shared else 1):
            store = await driver.connect(place.address, PoolSettings.sized(3))
            stack.push_async_callback(store.close)
            connected.append(store)
        for n, bank in enumerate(BANKS):
            await _transferred(f"{n}-", bank, [connected[0], connected[-1]])


async def _transferred(bank: str, spec: str, connected: Sequence[Store]) -> None:
    chance = random.Random(bank)
    both = [executors.make(spec, store=Interrupted(store, chance, 1), seed=n) for n, store in enumerate(connected)]
    names = [f"{bank}{n}" for n in range(ACCOUNTS)]
    await execute_all(both[0], [OpenAccount(name, 1000) for name in names])
    policy = f"policy-{bank}"
    pairs = [chance.sample(names, 2) for _ in range(100)]
    transfers = [Transfer(payer, payee, n + 1, policy if n % 5 == 0 else "") for n, (payer, payee) in enumerate(pairs)]
    parts = await asyncio.gather(*[execute_all(both[n], transfers[n::2]) for n in range(2)])
    await asyncio.gather(*[executor.close() for executor in both])
    slices = await connected[0].read_streams([account_stream(name) for name in names])
    stored = {e.id: (part.stream, e.version) for part in slices for e in part.events}
    acknowledged = 0
    for n, part in enumerate(parts):
        for transfer, result in zip(transfers[n::2], part, strict=True):
            if isinstance(result, Executed):
                acknowledged += 1
                streams = [account_stream(transfer.payer), account_stream(transfer.payee)]
                legs = [stored[e.id] for e in result.events]
                assert legs == list(zip(streams, result.versions[:2], strict=True)), "both legs, where it was said"
            else:
                assert isinstance(result, CommandRejected), f"{spec}: {result!r}"
    assert acknowledged >= 50
    assert len(stored) == ACCOUNTS + 2 * acknowledged
    balances = [_balance(part.events) for part in slices]
    assert sum(balances) == 1000 * ACCOUNTS and min(balances) >= 0


def _balance(events: Sequence[Said]) -> int:
    return sum(msgspec.json.decode(event.data)["amount"] for event in events)


# --- the registry ---------------------------------------------------------------------------------------------------


async def test_an_executor_is_made_from_one_line() -> None:
    line = "parallel(batching(cached(direct:retries=7):size=9):delay_ms=0):limit=5"
    executor = executors.make(line, store=Memory(), seed=3)
    assert executor.core.retry.retries_max == 7 and executor.core.seed == 3
    results = await execute_all(executor, [CreateUser(str(n), "a@example.com", "Ada", "L") for n in range(50)])
    assert all(isinstance(r, Executed) for r in results)
    assert executor.counts()["parallel_max"] == 5 and executor.counts()["cache_entries"] == 9
    await executor.close()


@pytest.mark.parametrize(
    "line, complaint",
    [
        ("dirct", "unknown executor 'dirct': did you mean direct"),
        ("cached", r"write cached\(executor\)"),
        ("direct(direct)", "write direct:"),
        ("cached(direct", "parenthesis"),
        ("direct:retries=-1", "executor direct: retries must be 0 to 1000, not -1"),
        ("direct:retries=often", "not a whole number"),
        ("direct:jitter=1.5", "jitter must be 0 to 1, not 1.5"),
        ("direct:first_ms=-1", "first_ms must be 0 to 60000"),
        ("direct:longest_ms=nan", "not a finite number"),
        ("direct:wait=1", "unknown option of executor direct 'wait'"),
        ("cached(direct):size=0", "size must be 1 to"),
        ("snapshots(direct):every=0", "every must be 1 to"),
        ("parallel(direct):limit=0", "limit must be 1 to"),
        ("batching(direct):size=0", "size must be 1 to"),
        ("batching(direct):delay_ms=-1", "delay_ms must be 0 to"),
        ("batching(direct):in_flight=17", "in_flight must be 1 to 16, not 17"),
        ("batching(direct):queue_max=0", "queue_max must be 1 to"),
        ("batching(parallel(direct))", r"write parallel\(batching\(…\)\)"),
        ("batching(batching(direct))", r"write parallel\(batching\(…\)\)"),
    ],
)
def test_what_cannot_be_made_says_what_is_wrong_and_how_to_mend_it(line: str, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        executors.make(line, store=Memory(), seed=0)


def test_the_seed_of_an_executor_is_that_of_its_waits() -> None:
    made = [executors.make("cached(parallel(direct))", store=Memory(), seed=n).core.rng.random() for n in (1, 1, 2)]
    assert made[0] == made[1] != made[2]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_a_cache_within_or_around_behaves_the_same(seed: int) -> None:
    """parallel(cached(direct)) and cached(parallel(direct)): the cache sits where the states are needed either way."""

    def seen(spec: str) -> Any:
        crowd = Crowd([spec, "direct"], seed, foreign=5)
        history = crowd.judge()
        told = [
            (t.began, t.ended, t.outcome.versions if isinstance(t.outcome, Executed) else str(t.outcome))
            for t in crowd.tried
        ]
        return told, [(e.stream, e.type, e.data) for e in history.events], crowd.counts

    assert seen("parallel(cached(direct):size=3):limit=4") == seen("cached(parallel(direct):limit=4):size=3")
    assert seen("batching(cached(direct)):delay_ms=0") == seen("cached(batching(direct):delay_ms=0)")


async def test_every_executor_passes_its_kind_on_and_closes_what_is_inside(store: Store) -> None:
    """Each of the kinds on each store, from registration to a restart."""
    for n, spec in enumerate([*REMEMBERING, *BANKS]):
        executor = executors.make(spec, store=store, seed=n)
        await executor.execute(CreateUser(f"{n}", "a@example.com", "Ada", "L"))
        for k in range(5):
            await executor.execute(UpdateProfile(f"{n}", f"Ada {k}", "L"))
        await executor.close()
        again = executors.make(spec, store=store, seed=n)
        assert (await again.execute(UpdateProfile(f"{n}", "Ada", "King"))).versions == (7,)
        await again.close()
        assert (await store.read_stream(user_stream(f"{n}"))).version == 7


async def test_a_restart_with_a_snapshot_reads_little_on_every_store(store: Store) -> None:
    counting = Counting(store)
    await saved(counting, "cached(snapshots(direct):every=10)", 25)
    counting.forget()
    await snapshots(direct(counting), every=10).execute(UpdateProfile("1", "Ada", "King"))
    assert counting.reads == [{"user-1": 21}] and counting.read_events == 5


async def test_another_process_is_seen_by_a_conflict_on_every_store() -> None:
    for spec in ("memory", "postgres", "sqlite"):
        async with open_store(spec, PoolSettings.sized(2)) as store:
            one, other = cached(direct(store)), cached(direct(store))
            await one.execute(OpenAccount("0", 10))
            await other.execute(OpenAccount("1", 10))
            assert [(await e.execute(Transfer("0", "1", 1))).attempts for e in (one, other, one)] == [1, 1, 2]
            await store.append([StreamWrite(account_stream("0"), ANY, (NewEvent("Seen", b"{}"),))])
            assert [(await e.execute(Transfer("0", "1", 1))).attempts for e in (one, one, other)] == [2, 1, 2]


def test_snapshots_stand_around_any_memory() -> None:
    executor = snapshots(cached(direct(Memory())))
    assert isinstance(executor.core.memory, Snapshots)


# --- a store that has lost what it had --------------------------------------------------------------------------------


class Forgetful(Memory):
    """A store that comes back from a crash or a backup with less than it had acknowledged."""

    def lose(self, stream: StreamId, version: int) -> None:
        del self._streams[stream][version:]


@pytest.mark.parametrize(
    "spec", ["cached(direct)", "cached(snapshots(direct):every=2)", "batching(cached(direct)):delay_ms=0"]
)
async def test_what_the_store_has_lost_is_forgotten_and_commands_go_on_as_of_what_is_there(spec: str) -> None:
    store = Forgetful()
    executor = executors.make(spec, store=store, seed=1)
    opened, other = OpenAccount("a", 100), OpenAccount("b", 0)
    await execute_all(executor, [opened, other, *[Transfer("a", "b", 10)] * 5])
    payer = account_stream("a")
    store.lose(payer, 2)
    for version, left in ((3, 80), (4, 70)):
        [done] = await execute_all(executor, [Transfer("a", "b", 10)])
        assert isinstance(done, Executed) and done.versions[0] == version
        assert (await store.read_stream(payer)).version == version
        state = after_events(ACCOUNT, State(0, None), (await store.read_stream(payer)).events)
        assert state.value == left
    await executor.close()


async def test_in_a_batch_only_those_on_the_lost_stream_are_read_anew() -> None:
    store = Forgetful()
    executor = executors.make("batching(cached(direct)):delay_ms=0", store=store, seed=1)
    await execute_all(executor, [OpenAccount(name, 100) for name in "abcd"])
    await execute_all(executor, [Transfer("a", "b", 10), Transfer("c", "d", 10)] * 3)
    store.lose(account_stream("b"), 1)
    done = await execute_all(executor, [Transfer("a", "b", 10), Transfer("c", "d", 10)])
    assert [d.versions for d in done if isinstance(d, Executed)] == [(5, 2), (5, 5)]


def test_a_name_where_a_collection_of_names_belongs_is_refused() -> None:
    class Careless(Struct, frozen=True):
        only_reads = "policy"

    with pytest.raises(ValueError, match=r"Careless\.only_reads is a stream's name"):
        only_reads(Careless())  # type: ignore[arg-type]
