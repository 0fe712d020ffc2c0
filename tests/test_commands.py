"""Claims about commands and the plain executor: what is read, decided, appended, tried again and given up."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventcore_lab.clock import NS_PER_S, VirtualClock
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
from eventcore_lab.commands.bank import (
    ACCOUNT,
    TRANSFERS,
    TRANSFERS_RESUMED,
    TRANSFERS_SUSPENDED,
    account_stream,
    moved,
)
from eventcore_lab.commands.command import Said
from eventcore_lab.commands.executor import PAGE
from eventcore_lab.commands.inventory import received, stock_stream
from eventcore_lab.commands.users import USER, User
from eventcore_lab.events import (
    ANY,
    AppendResult,
    EventRejected,
    NewEvent,
    OutcomeUnknown,
    StoreError,
    StreamId,
    StreamSlice,
    StreamWrite,
    VersionConflict,
)
from eventcore_lab.schema import Attempt, current_attempt
from eventcore_lab.stores.memory import Memory

ALICE, BOB, AUDIT = StreamId("account-alice"), StreamId("account-bob"), StreamId("audit")


class Contended(Memory):
    """A memory store on which somebody else is quicker `conflicts` times, just before an append. `reads` are the streams
    of each read, each with the version it was read from."""

    def __init__(self, conflicts: int) -> None:
        super().__init__()
        self.conflicts = conflicts
        self.appends: list[list[StreamWrite]] = []
        self.reads: list[dict[StreamId, int]] = []
        self.limits: list[int | None] = []

    async def others_deposit(self, times: int) -> None:
        """Somebody else's events, not counted."""
        await super().append([StreamWrite(ALICE, events=tuple(deposit(1)[0] for _ in range(times)))])

    async def append(self, writes: Sequence[StreamWrite]) -> AppendResult:
        self.appends.append(list(writes))
        if self.conflicts:
            self.conflicts -= 1
            await super().append([StreamWrite(writes[0].stream, events=deposit(1))])
        return await super().append(writes)

    async def read_stream(self, stream: StreamId, from_version: int = 1, limit: int | None = None) -> StreamSlice:
        self.reads.append({stream: from_version})
        self.limits.append(limit)
        return await super().read_stream(stream, from_version, limit)

    async def read_streams(
        self, streams: Sequence[StreamId], from_versions: Sequence[int] | None = None
    ) -> list[StreamSlice]:
        self.reads.append(dict(zip(streams, from_versions or [1] * len(streams), strict=True)))
        assert len(self.reads) < 100, "tried for ever"
        return [await Memory.read_stream(self, *each) for each in self.reads[-1].items()]


class Refuses(Contended):
    """A store whose appends all raise."""

    def __init__(self, error: StoreError) -> None:
        super().__init__(0)
        self._error = error

    async def append(self, writes: Sequence[StreamWrite]) -> AppendResult:
        self.appends.append(list(writes))
        raise self._error


def deposit(amount: int) -> tuple[NewEvent, ...]:
    return (NewEvent("Deposited", b"%d" % amount),)


def _added(amount: int, event: Said) -> int:
    return amount + int(event.data)


AMOUNT = Fold("amount", 0, _added, int)


class Pay(msgspec.Struct, frozen=True):
    """Moves money if it is there. The audit stream is read and not written."""

    amount: int
    into: StreamId = BOB
    only_reads: tuple[StreamId, ...] = ()

    @property
    def streams(self) -> Mapping[StreamId, Fold]:
        return dict.fromkeys((ALICE, BOB, AUDIT), AMOUNT)

    def decide(self, states: Mapping[StreamId, int]) -> Sequence[tuple[StreamId, NewEvent]]:
        if states[ALICE] < self.amount:
            raise CommandRejected(f"{states[ALICE]} is less than {self.amount}")
        return [(self.into, *deposit(self.amount)), (ALICE, *deposit(-self.amount))]


class Add(msgspec.Struct, frozen=True):
    """Adds to one stream, what is told of it folded by `fold`."""

    amount: int
    fold: Fold = AMOUNT

    @property
    def streams(self) -> Mapping[StreamId, Fold]:
        return {ALICE: self.fold}

    def decide(self, states: Mapping[StreamId, int]) -> Sequence[tuple[StreamId, NewEvent]]:
        return [(ALICE, *deposit(self.amount))]


class Clocked:
    """Executes commands in virtual time; counts what was waited."""

    def __init__(self) -> None:
        self.clock, self.attempt = VirtualClock(), Attempt()

    def execute(self, executor: Executor, command: Command) -> Executed:
        return self.clock.run(self._execute(executor, command))

    async def _execute(self, executor: Executor, command: Command) -> Executed:
        current_attempt.set(self.attempt)
        return await executor.execute(command)

    @property
    def waited_s(self) -> float:
        return self.clock.now_ns() / NS_PER_S


def user(**changes: str) -> CreateUser:
    fields = {"user_id": "1", "email": "a@example.com", "first_name": "Ada", "last_name": "Lovelace"}
    return CreateUser(**fields | changes)


# --- the executor ---------------------------------------------------------------------------------------------------


async def test_a_command_appends_what_it_decides_on_what_was_there() -> None:
    store = Contended(0)
    await store.append([StreamWrite(ALICE, 0, deposit(10) + deposit(20))])
    done = await Direct(store).execute(Pay(25))
    assert [e.data for e in done.events] == [b"25", b"-25"]
    assert done.versions == (3, 1, 0)
    assert done.attempts == 1
    assert store.reads == [{ALICE: 1, BOB: 1, AUDIT: 1}], "one read of all its streams, from the beginning"


async def test_every_declared_stream_takes_part_in_the_append_at_the_version_read() -> None:
    store = Contended(0)
    await store.append([StreamWrite(ALICE, 0, deposit(30)), StreamWrite(AUDIT, 0, deposit(0))])
    await Direct(store).execute(Pay(1))
    assert [(w.stream, w.expected, len(w.events)) for w in store.appends[-1]] == [
        (ALICE, 1, 1),
        (BOB, 0, 1),
        (AUDIT, 1, 0),
    ]


async def test_an_event_for_a_stream_that_was_not_declared_is_a_bug_and_writes_nothing() -> None:
    store = Contended(0)
    with pytest.raises(ValueError, match="did not declare"):
        await Direct(store).execute(Pay(0, into=StreamId("elsewhere")))
    assert store.appends == []


async def test_a_command_a_rule_forbids_is_rejected_at_once_and_writes_nothing() -> None:
    store = Contended(0)
    with pytest.raises(CommandRejected, match="0 is less than 5"):
        await Direct(store).execute(Pay(5))
    assert store.appends == []
    assert len(store.reads) == 1


@pytest.mark.parametrize("conflicts", [1, 2, 3, 4])
def test_a_conflict_is_decided_again_on_what_is_there_now(conflicts: int) -> None:
    store, clocked = Contended(conflicts), Clocked()
    done = clocked.execute(Direct(store), Pay(0))
    assert done.attempts == clocked.attempt.attempts == conflicts + 1
    assert clocked.attempt.conflicts == conflicts
    assert [writes[0].expected for writes in store.appends] == list(range(conflicts + 1))
    assert done.versions == (conflicts + 1, 1, 0)


def test_a_retry_sees_the_events_that_were_in_its_way() -> None:
    """Alice has nothing until the deposit that makes the first try conflict."""
    store, clocked = Contended(1), Clocked()
    decided_on: list[int] = []

    class Sees(Pay, frozen=True):
        def decide(self, states: Mapping[StreamId, int]) -> Sequence[tuple[StreamId, NewEvent]]:
            decided_on.append(states[ALICE])
            return super().decide(states)

    clocked.execute(Direct(store), Sees(0))
    assert decided_on == [0, 1]


def test_a_retry_makes_new_events_with_new_ids() -> None:
    store, clocked = Contended(1), Clocked()
    clocked.execute(Direct(store), Pay(0))
    first, second = (writes[0].events[0].id for writes in store.appends)
    assert first != second


@pytest.mark.parametrize("retries_max", [0, 1, 4])
def test_the_last_conflict_is_raised_when_the_tries_are_used_up(retries_max: int) -> None:
    store, clocked = Contended(100), Clocked()
    executor = Direct(store, retry=RetryPolicy(retries_max=retries_max))
    with pytest.raises(VersionConflict) as conflict:
        clocked.execute(executor, Pay(0))
    assert len(store.appends) == clocked.attempt.attempts == clocked.attempt.conflicts == retries_max + 1
    assert conflict.value.actual == retries_max + 1


@pytest.mark.parametrize("error", [OutcomeUnknown("timed out"), EventRejected("no"), StoreError("other")])
def test_nothing_but_a_conflict_is_tried_again(error: StoreError) -> None:
    store, clocked = Refuses(error), Clocked()
    with pytest.raises(type(error)):
        clocked.execute(Direct(store), Pay(0))
    assert len(store.appends) == 1
    assert clocked.waited_s == 0
    assert (clocked.attempt.attempts, clocked.attempt.conflicts, clocked.attempt.backoff_ns) == (1, 0, 0)


def test_a_retry_reads_only_what_is_new() -> None:
    store, clocked = Contended(2), Clocked()
    clocked.clock.run(store.others_deposit(3))
    clocked.execute(Direct(store), Pay(1))
    assert store.reads == [{ALICE: 1, BOB: 1, AUDIT: 1}, {ALICE: 4, BOB: 1, AUDIT: 1}, {ALICE: 5, BOB: 1, AUDIT: 1}]
    assert [e.data for e in store._streams[BOB]] == [b"1"]


def test_a_retry_on_one_stream_reads_only_what_is_new() -> None:
    store, clocked = Contended(2), Clocked()
    clocked.clock.run(store.others_deposit(3))
    done = clocked.execute(Direct(store), Add(1))
    assert store.reads == [{ALICE: 1}, {ALICE: 4}, {ALICE: 5}]
    assert (done.versions, done.attempts) == ((6,), 3)


def test_a_participant_that_is_only_read_conflicts_like_any_other() -> None:
    class Legislated(Contended):
        async def append(self, writes: Sequence[StreamWrite]) -> AppendResult:
            if not self.appends:
                await Memory.append(self, [StreamWrite(AUDIT, events=deposit(1))])
            return await super().append(writes)

    store, clocked = Legislated(0), Clocked()
    done = clocked.execute(Direct(store), Pay(0))
    assert (done.attempts, done.versions) == (2, (1, 1, 1))
    assert store.reads[1] == {ALICE: 1, BOB: 1, AUDIT: 1}


async def test_a_command_that_writes_what_it_said_it_only_reads_is_a_bug_and_writes_nothing() -> None:
    store = Contended(0)
    with pytest.raises(ValueError, match="only reads"):
        await Direct(store).execute(Pay(0, only_reads=(AUDIT, BOB)))
    assert store.appends == []
    assert (await Direct(store).execute(Pay(0, only_reads=(AUDIT,)))).versions == (1, 1, 0)


@pytest.mark.parametrize("spec", ["direct", "cached(direct)", "parallel(direct)", "batching(direct):delay_ms=0"])
async def test_a_command_without_streams_is_a_bug_and_writes_nothing(spec: str) -> None:
    class Nowhere(Pay, frozen=True):
        @property
        def streams(self) -> Mapping[StreamId, Fold]:
            return {}

    store = Contended(0)
    with pytest.raises(ValueError, match="Nowhere declares no stream"):
        await executors.make(spec, store=store).execute(Nowhere(0))
    assert store.appends == store.reads == []


@pytest.mark.parametrize("extra", [-1, 0, 1, PAGE, PAGE + 1])
async def test_a_stream_longer_than_a_page_is_folded_whole_and_a_page_at_a_time(extra: int) -> None:
    store, events = Contended(0), PAGE + extra
    await store.others_deposit(events)
    told: list[int] = []

    class Sees(Add, frozen=True):
        def decide(self, states: Mapping[StreamId, int]) -> Sequence[tuple[StreamId, NewEvent]]:
            told.append(states[ALICE])
            return super().decide(states)

    assert (await Direct(store).execute(Sees(1))).versions == (events + 1,)
    assert told == [events]
    assert store.reads == [{ALICE: 1 + PAGE * n} for n in range(events // PAGE + 1)]
    assert set(store.limits) == {PAGE}


async def test_what_cannot_be_folded_is_not_written() -> None:
    """Else it would be there, its caller would be told that it failed, and no later command could read that stream."""

    def refuse(_: int, event: Said) -> int:
        raise ZeroDivisionError(event.type)

    for spec in ("direct", "cached(direct)", "batching(direct):delay_ms=0"):
        store = Contended(0)
        with pytest.raises(ZeroDivisionError):
            await executors.make(spec, store=store).execute(Add(1, Fold("refuses", 0, refuse)))
        assert store.appends == [], spec


# --- what is remembered ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", ["cached(direct:retries=0)", "batching(cached(direct:retries=0)):delay_ms=0"])
def test_a_conflict_on_what_was_remembered_waits_for_nothing_and_uses_up_no_retry(spec: str) -> None:
    store, clocked = Contended(0), Clocked()
    executor = executors.make(spec, store=store)
    clocked.execute(executor, Add(1))
    clocked.attempt.reset(1)
    store.conflicts = 1
    done = clocked.execute(executor, Add(1))
    assert (done.attempts, done.versions) == (2, (3,))
    assert store.reads == [{ALICE: 1}, {ALICE: 2}], "the second reads on from what it had known"
    assert (clocked.attempt.attempts, clocked.attempt.conflicts, clocked.attempt.backoff_ns) == (2, 1, 0)
    assert clocked.waited_s == 0
    clocked.attempt.reset(2)
    store.conflicts = 2
    with pytest.raises(VersionConflict):
        clocked.execute(executor, Add(1))
    assert (clocked.attempt.attempts, clocked.attempt.conflicts) == (2, 2)


@pytest.mark.parametrize("spec", ["cached(direct)", "batching(cached(direct)):delay_ms=0"])
def test_a_rejection_on_what_was_remembered_is_looked_into_and_is_no_try(spec: str) -> None:
    store, clocked = Contended(0), Clocked()
    executor = executors.make(spec, store=store)
    clocked.execute(executor, Pay(0))
    clocked.clock.run(store.others_deposit(5))
    done = clocked.execute(executor, Pay(5))
    assert (done.attempts, done.versions) == (1, (7, 2, 0))
    assert (clocked.attempt.attempts, clocked.attempt.conflicts, clocked.attempt.backoff_ns) == (1, 0, 0)
    with pytest.raises(CommandRejected, match="0 is less than 1"):
        clocked.execute(executor, Pay(1))
    assert len(store.reads) == 3 and len(store.appends) == 2


@pytest.mark.parametrize("spec", ["cached(direct)", "batching(cached(direct)):delay_ms=0"])
def test_conflicts_behind_a_remembered_one_wait_as_the_policy_says(spec: str) -> None:
    store, clocked = Contended(0), Clocked()
    executor = executors.make(spec.replace("direct", "direct:first_ms=1000,longest_ms=2000,jitter=0"), store=store)
    clocked.execute(executor, Add(1))
    clocked.attempt.reset(1)
    store.conflicts = 4
    assert clocked.execute(executor, Add(1)).attempts == 5
    assert clocked.attempt.backoff_ns == (1 + 2 + 2) * NS_PER_S
    assert (clocked.attempt.attempts, clocked.attempt.conflicts) == (5, 4)


def test_what_is_waited_between_tries_is_what_the_policy_says_and_is_noted() -> None:
    store, clocked = Contended(3), Clocked()
    clocked.execute(Direct(store, retry=RetryPolicy(first_s=1, longest_s=60, jitter=0)), Pay(0))
    assert clocked.waited_s == pytest.approx(1 + 2 + 4, abs=1e-6)
    assert clocked.attempt.backoff_ns == 7 * NS_PER_S


def test_the_waits_of_an_executor_follow_from_its_seed() -> None:
    def waited_ns(seed: int) -> int:
        clocked = Clocked()
        clocked.execute(Direct(Contended(4), seed=seed), Pay(0))
        return clocked.attempt.backoff_ns

    assert waited_ns(1) == waited_ns(1) != waited_ns(2)


def test_an_executor_needs_no_load_around_it() -> None:
    done = VirtualClock().run(Direct(Contended(2)).execute(Pay(0)))
    assert done.attempts == 3


# --- the policy -----------------------------------------------------------------------------------------------------


def test_a_policy_is_eventcores_unless_told_otherwise() -> None:
    assert RetryPolicy() == RetryPolicy(retries_max=4, first_s=0.010, longest_s=1.0, jitter=0.2)


@given(st.integers(1, 1000), st.floats(0, 10), st.floats(0, 60), st.floats(0, 1), st.randoms(use_true_random=False))
def test_waits_double_up_to_the_longest_and_stay_within_the_jitter(
    attempt: int, first_s: float, longest_s: float, jitter: float, rng: random.Random
) -> None:
    wait_s = RetryPolicy(first_s=first_s, longest_s=longest_s, jitter=jitter).wait_s(attempt, rng)
    middle_s = min(first_s * 2.0 ** (attempt - 1), longest_s)
    assert middle_s * (1 - jitter) * 0.999 <= wait_s <= middle_s * (1 + jitter) * 1.001


def test_jitter_spreads_waits_over_its_whole_range_and_evenly() -> None:
    rng, policy = random.Random(3), RetryPolicy(first_s=1, jitter=0.2)
    waits = [policy.wait_s(1, rng) for _ in range(5_000)]
    assert min(waits) < 0.805
    assert max(waits) > 1.195
    assert sum(waits) / len(waits) == pytest.approx(1, abs=0.01)


# --- creating users -------------------------------------------------------------------------------------------------


async def test_a_user_is_registered_in_a_stream_of_their_own() -> None:
    store = Memory()
    done = await Direct(store).execute(user(user_id="7"))
    (stored,) = await store.read_all()
    assert (stored.stream, stored.version, stored.type) == ("user-7", 1, "UserRegistered")
    assert msgspec.json.decode(stored.data) == {
        "user_id": "7",
        "email": "a@example.com",
        "profile": {"first_name": "Ada", "last_name": "Lovelace", "display_name": "Ada Lovelace"},
    }
    assert (done.versions, done.events[0].id) == ((1,), stored.id)


async def test_a_user_who_exists_is_not_registered_again() -> None:
    store = Memory()
    executor = Direct(store)
    await executor.execute(user())
    with pytest.raises(CommandRejected, match="exists already"):
        await executor.execute(user(first_name="Eve"))
    await executor.execute(user(user_id="2"))
    assert len(await store.read_all()) == 2


async def test_other_events_in_a_users_stream_do_not_make_the_user_exist() -> None:
    store = Memory()
    await store.append([StreamWrite(StreamId("user-1"), 0, (NewEvent("Invited", b"{}"),))])
    assert (await Direct(store).execute(user())).versions == (2,)


def test_of_two_who_register_the_same_user_the_slower_is_rejected() -> None:
    class Race(Memory):
        is_first = True

        async def append(self, writes: Sequence[StreamWrite]) -> AppendResult:
            if self.is_first:
                self.is_first = False
                [(stream, event)] = user().decide({writes[0].stream: None})
                await super().append([StreamWrite(stream, 0, (event,))])
            return await super().append(writes)

    with pytest.raises(CommandRejected, match="exists already"):
        VirtualClock().run(Direct(Race()).execute(user()))


@pytest.mark.parametrize(
    "changes",
    [
        {"email": "nobody"},
        {"email": "a@b"},
        {"email": "a b@example.com"},
        {"email": "a@@example.com"},
        {"email": "a@example.com\n"},
        {"email": ""},
        {"first_name": ""},
        {"last_name": ""},
    ],
)
def test_a_user_needs_an_email_address_and_both_names(changes: dict[str, Any]) -> None:
    with pytest.raises(CommandRejected, match="are needed"):
        user(**changes).decide({StreamId("user-1"): None})


async def test_a_profile_is_changed_by_an_event_of_its_own_and_the_email_stays() -> None:
    store, executor = Memory(), Direct(Memory())
    executor = Direct(store)
    await executor.execute(user())
    await executor.execute(UpdateProfile("1", "Ada", "King"))
    events = (await store.read_stream(StreamId("user-1"))).events
    assert [e.type for e in events] == ["UserRegistered", "UserProfileUpdated"]
    assert msgspec.json.decode(events[1].data) == {
        "user_id": "1",
        "profile": {"first_name": "Ada", "last_name": "King", "display_name": "Ada King"},
    }
    assert folded(USER, events) == User("a@example.com", "Ada King")


@pytest.mark.parametrize("first_name, last_name", [("", "King"), ("Ada", "")])
async def test_nobody_is_left_without_a_name_and_only_who_is_registered_changes(
    first_name: str, last_name: str
) -> None:
    store = Memory()
    with pytest.raises(CommandRejected, match="not registered"):
        await Direct(store).execute(UpdateProfile("1", "Ada", "King"))
    await Direct(store).execute(user())
    with pytest.raises(CommandRejected, match="names are needed"):
        await Direct(store).execute(UpdateProfile("1", first_name, last_name))
    assert await store.last_position() == 1


def folded(fold: Fold, events: Sequence[Said]) -> Any:
    state = fold.initial
    for event in events:
        state = fold.apply(state, event)
    return state


# --- the bank and the inventory -------------------------------------------------------------------------------------


async def opened(*cents: int) -> Memory:
    store = Memory()
    for n, amount in enumerate(cents):
        await Direct(store).execute(OpenAccount(str(n), amount))
    return store


async def balance(store: Memory, account: str) -> int | None:
    return folded(ACCOUNT, (await store.read_stream(account_stream(account))).events)


async def test_a_transfer_takes_from_one_and_gives_to_another_in_one_append() -> None:
    store = await opened(100, 20)
    done = await Direct(store).execute(Transfer("0", "1", 70))
    assert (await balance(store, "0"), await balance(store, "1")) == (30, 90)
    assert [e.type for e in done.events] == ["MoneyWithdrawn", "MoneyDeposited"]
    assert done.versions == (2, 2)


@pytest.mark.parametrize(
    "transfer, reason",
    [
        (Transfer("0", "1", 101), "has 100 cents, less than 101"),
        (Transfer("0", "2", 1), "account 2 is not open"),
        (Transfer("2", "0", 1), "account 2 is not open"),
        (Transfer("0", "0", 1), "between two accounts"),
        (Transfer("0", "1", 0), "more than nothing"),
        (Transfer("0", "1", -5), "more than nothing"),
    ],
)
async def test_a_transfer_that_cannot_be_is_rejected_and_moves_nothing(transfer: Transfer, reason: str) -> None:
    store = await opened(100, 20)
    with pytest.raises(CommandRejected, match=reason):
        await Direct(store).execute(transfer)
    assert await store.last_position() == 2


async def test_an_account_is_opened_once_also_with_nothing_in_it() -> None:
    store = await opened(0)
    with pytest.raises(CommandRejected, match="open already"):
        await Direct(store).execute(OpenAccount("0", 5))
    assert await balance(store, "0") == 0


async def test_a_policy_holds_transfers_up_and_is_only_read() -> None:
    store, policy = await opened(100, 20), StreamId("policy")
    for event_type, is_suspended in ((TRANSFERS_SUSPENDED, True), (TRANSFERS_RESUMED, False)):
        await store.append([StreamWrite(policy, ANY, (NewEvent(event_type, b"{}"),))])
        assert folded(TRANSFERS, (await store.read_stream(policy)).events) is is_suspended
        results = await execute_all(Direct(store), [Transfer("0", "1", 1, "policy"), Transfer("0", "1", 1)])
        assert [isinstance(r, Executed) for r in results] == [not is_suspended, True]
    assert (await store.read_stream(policy)).version == 2


async def test_no_more_is_reserved_than_is_there() -> None:
    store = Memory()
    await store.append([StreamWrite(stock_stream("a"), 0, (received(3), received(2)))])
    results = await execute_all(Direct(store), [ReserveStock("a", str(n), 2) for n in range(3)])
    assert [isinstance(r, Executed) for r in results] == [True, True, False]
    assert str(results[2]) == "1 pieces of a are left, fewer than 2"


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(-5, 60)), max_size=20))
def test_transfers_conserve_the_total_and_nobody_owes(transfers: list[tuple[int, int, int]]) -> None:
    async def whole() -> None:
        store = await opened(50, 0, 7)
        await execute_all(Direct(store), [Transfer(str(a), str(b), cents) for a, b, cents in transfers])
        balances = [await balance(store, str(n)) for n in range(3)]
        assert sum(b for b in balances if b is not None) == 57 and all(b is not None and b >= 0 for b in balances)
        assert sum(msgspec.json.decode(e.data)["amount"] for e in await store.read_all(0, 1000)) == 57

    VirtualClock().run(whole())


def test_other_events_in_an_account_do_not_open_it() -> None:
    assert folded(ACCOUNT, [NewEvent("Audited", b"{}")]) is None
    assert folded(ACCOUNT, [moved("AccountOpened", 5), NewEvent("Audited", b"7"), moved("MoneyWithdrawn", -2)]) == 3


# --- many at once ---------------------------------------------------------------------------------------------------


async def test_all_are_executed_so_many_at_once_and_each_result_is_in_its_place() -> None:
    under_way = most = 0

    class Slow(Memory):
        async def append(self, writes: Sequence[StreamWrite]) -> AppendResult:
            nonlocal under_way, most
            under_way += 1
            most = max(most, under_way)
            await asyncio.sleep(0)
            under_way -= 1
            return await super().append(writes)

    commands = [user(user_id=str(n % 40), first_name="" if n % 7 == 0 else "Ada") for n in range(50)]
    results = await execute_all(Direct(Slow()), commands, under_way_max=8)
    assert most == 8
    for command, result in zip(commands, results, strict=True):
        if isinstance(result, Executed):
            assert msgspec.json.decode(result.events[0].data)["user_id"] == command.user_id
        else:
            assert f"user {command.user_id}" in str(result)
    assert sum(isinstance(r, Executed) for r in results) == 36, "34 are well named the first time, 2 the second"


async def test_what_is_nobodys_no_ends_all() -> None:
    with pytest.raises(ExceptionGroup) as raised:
        await execute_all(Direct(Memory()), [user(), Pay(0, into=StreamId("elsewhere"))])
    assert raised.group_contains(ValueError, match="did not declare")
