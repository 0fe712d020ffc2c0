"""Claims about executors and commands: what is read, decided, appended, tried again and given up."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventcore_lab.clock import NS_PER_S, VirtualClock
from eventcore_lab.commands import Command, CommandRejected, CreateUser, Direct, Executed, RetryPolicy
from eventcore_lab.events import (
    AppendResult,
    EventRejected,
    NewEvent,
    OutcomeUnknown,
    StoredEvent,
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
    """A memory store on which somebody else is quicker `conflicts` times, just before an append."""

    def __init__(self, conflicts: int) -> None:
        super().__init__()
        self.conflicts = conflicts
        self.appends: list[list[StreamWrite]] = []
        self.reads: list[list[StreamId]] = []

    async def append(self, writes: Sequence[StreamWrite]) -> AppendResult:
        self.appends.append(list(writes))
        if self.conflicts:
            self.conflicts -= 1
            await super().append([StreamWrite(writes[0].stream, events=deposit(1))])
        return await super().append(writes)

    async def read_stream(self, stream: StreamId, from_version: int = 1, limit: int | None = None) -> StreamSlice:
        self.reads.append([stream])
        return await super().read_stream(stream, from_version, limit)

    async def read_streams(self, streams: Sequence[StreamId]) -> list[StreamSlice]:
        self.reads.append(list(streams))
        return await super().read_streams(streams)


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


class Transfer(msgspec.Struct, frozen=True):
    """Moves money if it is there. The audit stream is read and not written."""

    amount: int
    into: StreamId = BOB

    @property
    def streams(self) -> Sequence[StreamId]:
        return (ALICE, BOB, AUDIT)

    def initial(self) -> dict[StreamId, int]:
        return {ALICE: 0, BOB: 0, AUDIT: 0}

    def fold(self, state: dict[StreamId, int], event: StoredEvent) -> dict[StreamId, int]:
        return state | {event.stream: state[event.stream] + int(event.data)}

    def decide(self, state: dict[StreamId, int]) -> Sequence[tuple[StreamId, NewEvent]]:
        if state[ALICE] < self.amount:
            raise CommandRejected(f"{state[ALICE]} is less than {self.amount}")
        return [(self.into, *deposit(self.amount)), (ALICE, *deposit(-self.amount))]


class Clocked:
    """Executes commands in virtual time; counts what was waited."""

    def __init__(self) -> None:
        self.clock, self.attempt = VirtualClock(), Attempt()

    def execute(self, executor: Direct, command: Command) -> Executed:
        return self.clock.run(self._execute(executor, command))

    async def _execute(self, executor: Direct, command: Command) -> Executed:
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
    done = await Direct(store).execute(Transfer(25))
    assert [e.data for e in done.events] == [b"25", b"-25"]
    assert done.versions == (3, 1, 0)
    assert done.attempts == 1
    assert store.reads == [[ALICE, BOB, AUDIT]], "one read of all its streams"


async def test_every_declared_stream_takes_part_in_the_append_at_the_version_read() -> None:
    store = Contended(0)
    await store.append([StreamWrite(ALICE, 0, deposit(30)), StreamWrite(AUDIT, 0, deposit(0))])
    await Direct(store).execute(Transfer(1))
    assert [(w.stream, w.expected, len(w.events)) for w in store.appends[-1]] == [
        (ALICE, 1, 1),
        (BOB, 0, 1),
        (AUDIT, 1, 0),
    ]


async def test_an_event_for_a_stream_that_was_not_declared_is_a_bug_and_writes_nothing() -> None:
    store = Contended(0)
    with pytest.raises(ValueError, match="did not declare"):
        await Direct(store).execute(Transfer(0, into=StreamId("elsewhere")))
    assert store.appends == []


async def test_a_command_a_rule_forbids_is_rejected_at_once_and_writes_nothing() -> None:
    store = Contended(0)
    with pytest.raises(CommandRejected, match="0 is less than 5"):
        await Direct(store).execute(Transfer(5))
    assert store.appends == []
    assert len(store.reads) == 1


@pytest.mark.parametrize("conflicts", [1, 2, 3, 4])
def test_a_conflict_is_decided_again_on_what_is_there_now(conflicts: int) -> None:
    store, clocked = Contended(conflicts), Clocked()
    done = clocked.execute(Direct(store), Transfer(0))
    assert done.attempts == clocked.attempt.attempts == conflicts + 1
    assert [writes[0].expected for writes in store.appends] == list(range(conflicts + 1))
    assert done.versions == (conflicts + 1, 1, 0)


def test_a_retry_sees_the_events_that_were_in_its_way() -> None:
    """Alice has nothing until the deposit that makes the first try conflict."""
    store, clocked = Contended(1), Clocked()
    decided_on: list[int] = []

    class Sees(Transfer, frozen=True):
        def decide(self, state: dict[StreamId, int]) -> Sequence[tuple[StreamId, NewEvent]]:
            decided_on.append(state[ALICE])
            return super().decide(state)

    clocked.execute(Direct(store), Sees(0))
    assert decided_on == [0, 1]


def test_a_retry_makes_new_events_with_new_ids() -> None:
    store, clocked = Contended(1), Clocked()
    clocked.execute(Direct(store), Transfer(0))
    first, second = (writes[0].events[0].id for writes in store.appends)
    assert first != second


@pytest.mark.parametrize("retries_max", [0, 1, 4])
def test_the_last_conflict_is_raised_when_the_tries_are_used_up(retries_max: int) -> None:
    store, clocked = Contended(100), Clocked()
    executor = Direct(store, retry=RetryPolicy(retries_max=retries_max))
    with pytest.raises(VersionConflict) as conflict:
        clocked.execute(executor, Transfer(0))
    assert len(store.appends) == clocked.attempt.attempts == retries_max + 1
    assert conflict.value.actual == retries_max + 1


@pytest.mark.parametrize("error", [OutcomeUnknown("timed out"), EventRejected("no"), StoreError("other")])
def test_nothing_but_a_conflict_is_tried_again(error: StoreError) -> None:
    store, clocked = Refuses(error), Clocked()
    with pytest.raises(type(error)):
        clocked.execute(Direct(store), Transfer(0))
    assert len(store.appends) == 1
    assert clocked.waited_s == 0


def test_what_is_waited_between_tries_is_what_the_policy_says_and_is_noted() -> None:
    store, clocked = Contended(3), Clocked()
    clocked.execute(Direct(store, retry=RetryPolicy(first_s=1, jitter=0)), Transfer(0))
    assert clocked.waited_s == pytest.approx(1 + 2 + 4, abs=1e-6)
    assert clocked.attempt.backoff_ns == 7 * NS_PER_S


def test_the_waits_of_an_executor_follow_from_its_seed() -> None:
    def waited_ns(seed: int) -> int:
        clocked = Clocked()
        clocked.execute(Direct(Contended(4), seed=seed), Transfer(0))
        return clocked.attempt.backoff_ns

    assert waited_ns(1) == waited_ns(1) != waited_ns(2)


def test_an_executor_needs_no_load_around_it() -> None:
    done = VirtualClock().run(Direct(Contended(2)).execute(Transfer(0)))
    assert done.attempts == 3


# --- the policy -----------------------------------------------------------------------------------------------------


def test_a_policy_is_eventcores_unless_told_otherwise() -> None:
    assert RetryPolicy() == RetryPolicy(retries_max=4, first_s=0.010, jitter=0.2)


@given(st.integers(1, 12), st.floats(0.001, 10), st.floats(0, 1), st.randoms(use_true_random=False))
def test_waits_double_and_stay_within_the_jitter(
    attempt: int, first_s: float, jitter: float, rng: random.Random
) -> None:
    wait_s = RetryPolicy(first_s=first_s, jitter=jitter).wait_s(attempt, rng)
    middle_s = first_s * 2 ** (attempt - 1)
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
        "first_name": "Ada",
        "last_name": "Lovelace",
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
                await super().append([StreamWrite(w.stream, w.expected, user().decide(False)[0][1:]) for w in writes])
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
        user(**changes).decide(False)
