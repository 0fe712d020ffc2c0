"""The memory store as the model of every other one: whatever is done to both, both say the same.

A Hypothesis state machine draws appends, reads, checkpoints, snapshots and reconnections and does each to the store under
test and to `memory`. Positions may be other numbers, but they must put the events in one order; where the protocol leaves
an order open (independent appends of one `append_many`) the model follows the store. That the machine can tell is shown
by the mutants at the end: each is a store with one fault, and the machine must find it within the same bound.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from operator import itemgetter
from typing import Any, ClassVar, TypeVar

import msgspec
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from msgspec.structs import replace

from eventcore_lab.events import (
    ABSENT,
    ANY,
    EVERYTHING,
    AppendResult,
    EventRejected,
    Filter,
    NewEvent,
    OutcomeUnknown,
    Position,
    Snapshot,
    StoredEvent,
    StoreError,
    StreamId,
    StreamSlice,
    StreamWrite,
    VersionConflict,
    new_event_id,
    stream_id,
)
from eventcore_lab.stores import Place, PoolSettings, Store, stores, stream_all
from eventcore_lab.stores.memory import Memory
from eventcore_lab.stores.protocol import Address, Driver
from eventcore_lab.stores.retry import append_once, find
from eventcore_lab.stores.wrapper import Wrapper

DRIVERS = ("postgres", "postgres:counter", "sqlite")
BOUND = settings(
    max_examples=25,
    stateful_step_count=25,
    deadline=None,
    derandomize=True,
    print_blob=True,
    report_multiple_bugs=False,
    phases=[Phase.generate],  # shrinking takes minutes: add Phase.shrink to understand what was found
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)
POOL = PoolSettings(max_connections=2, min_connections=1, command_timeout_s=20)
T = TypeVar("T")

# What is drawn

STREAMS = tuple(map(stream_id, ("order-1", "order-12", "Order-1", "käse/ß🧀", "a.b|(c^$", "\\d+ '%_")))
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
).map(msgspec.json.encode)
TYPES = st.sampled_from(("Opened", "Closed", "geöffnet")) | TEXT
PREFIXES = st.sampled_from(("o", "order-1", "rder", "kä", "a_", "\\d", "%"))
GLOB_PARTS = (*"*?-12kä.|^\\(", "[0-9]", "[!a-z]", "[^Oo]", "[.|]", "order", "Order")
GLOBS = st.lists(st.sampled_from(GLOB_PARTS), min_size=1, max_size=4)
TYPES_WANTED = st.lists(st.sampled_from(("Opened", "Closed", "geöffnet", "")), max_size=2).map(tuple)

STREAM = st.sampled_from(STREAMS)


class Draft(msgspec.Struct, frozen=True):
    """A write whose expectation is a word until the stream's version is known."""

    stream: StreamId
    expects: str
    events: tuple[NewEvent, ...]

    def at(self, head: int) -> StreamWrite:
        expected = {"any": ANY, "absent": ABSENT, "right": head, "stale": max(head - 1, 0), "future": head + 2}
        return StreamWrite(self.stream, expected[self.expects], self.events)


EXPECTS = st.sampled_from(("right",) * 4 + ("any",) * 3 + ("absent", "stale", "future"))


@st.composite
def appends(draw: st.DrawFn) -> list[Draft]:
    """One append. (Composite, since Hypothesis takes seconds to print what nested `builds` made.)"""
    events = st.lists(st.tuples(TYPES, JSON, st.just(b"") | JSON), max_size=3)
    drawn = draw(st.lists(st.tuples(STREAM, EXPECTS, events), min_size=1, max_size=3, unique_by=itemgetter(0)))
    return [Draft(stream, expects, tuple(NewEvent(*e) for e in events)) for stream, expects, events in drawn]


FILTER = (
    st.just(EVERYTHING)
    | st.builds(Filter, prefix=PREFIXES)
    | st.builds(Filter, glob=GLOBS.map("".join))
    | st.builds(Filter, prefix=st.just("") | PREFIXES, glob=st.just("") | GLOBS.map("".join), types=TYPES_WANTED)
)


# The machine


def content(event: StoredEvent) -> tuple[Any, ...]:
    """All of an event but what each store has of its own: its positions and its clock."""
    return event.stream, event.version, event.id, event.type, event.data, event.meta


def part(found: StreamSlice) -> tuple[Any, ...]:
    return found.stream, found.version, [content(e) for e in found.events]


def conflicts(writes: Sequence[StreamWrite], heads: Mapping[StreamId, int]) -> set[tuple[StreamId, int, int]]:
    """Every conflict that may be named."""
    return {(w.stream, w.expected, heads[w.stream]) for w in writes if 0 <= w.expected != heads[w.stream]}


def named(conflict: VersionConflict) -> tuple[StreamId, int, int]:
    return conflict.stream, conflict.expected, conflict.actual


def holds_nul(writes: Sequence[StreamWrite]) -> bool:
    """What a store may refuse to hold: text with U+0000."""
    return any("\0" in e.type for w in writes for e in w.events)


class LosesAnswers(Wrapper):
    """The first append gets no answer; `happens` says whether it was done all the same."""

    def __init__(self, inner: Store, happens: bool) -> None:
        super().__init__(inner)
        self.happens, self.left = happens, 1

    async def append(self, writes: Sequence[StreamWrite]) -> AppendResult:
        if not self.left:
            return await self.inner.append(writes)
        self.left -= 1
        if self.happens:
            await self.inner.append(writes)
        raise OutcomeUnknown("pretended")


class Machine(RuleBasedStateMachine):
    """`driver` and `runner` are set on a subclass: one driver, one event loop for all examples."""

    driver: ClassVar[Driver]
    runner: ClassVar[asyncio.Runner]

    def __init__(self) -> None:
        super().__init__()
        self.model = Memory()
        self.places: list[Position] = [0]  # the model's position → the store's
        self._provision = self.driver.provision()
        self.place = self.run(self._provision.__aenter__())
        self.store: Store = self.run(self.driver.connect(self.place.address, POOL))

    def teardown(self) -> None:
        self.run(self.store.close())
        self.run(self._provision.__aexit__(None, None, None))

    def run(self, awaited: Awaitable[T]) -> T:
        async def bounded() -> T:
            async with asyncio.timeout(20):
                return await awaited

        return self.runner.run(bounded())

    def heads(self) -> dict[StreamId, int]:
        return {s.stream: s.version for s in self.run(self.model.read_streams(STREAMS))}

    @initialize()
    def fill(self) -> None:
        """An event or two in every stream, so that what is drawn first meets something."""
        for n, stream in enumerate(STREAMS):
            events = tuple(NewEvent(kind, b"{}") for kind in ("Opened", "Closed")[: 1 + n % 2])
            for store in (self.model, self.store):
                self.run(store.append([StreamWrite(stream, ABSENT, events)]))
        self.look()

    # Appends

    def resolved(self, requests: Sequence[Sequence[Draft]]) -> list[list[StreamWrite]]:
        """Each with the versions it would find if those before it were done."""
        heads, made = self.heads(), []
        for drafts in requests:
            writes = [d.at(heads[d.stream]) for d in drafts]
            if not conflicts(writes, heads):
                heads.update({w.stream: heads[w.stream] + len(w.events) for w in writes})
            made.append(writes)
        return made

    def outcome(self, append: Awaitable[AppendResult | None]) -> AppendResult | StoreError | None:
        try:
            return self.run(append)
        except (VersionConflict, EventRejected) as refused:
            return refused

    def agree(self, writes: Sequence[StreamWrite], result: AppendResult | StoreError | None, model: Memory) -> bool:
        """Do it to `model` and compare what the store said. Whether it was done."""
        if isinstance(result, EventRejected):
            assert holds_nul(writes), result
            return False
        possible = conflicts(writes, {s.stream: s.version for s in self.run(model.read_streams(STREAMS))})
        if possible:
            assert isinstance(result, VersionConflict), f"{result} where one of {possible} was due"
            assert named(result) in possible, f"{named(result)} where one of {possible} was due"
            return False
        wanted = self.run(model.append(writes))
        assert isinstance(result, AppendResult), f"{result} where {wanted} was due"
        assert result.versions == wanted.versions, f"{writes}"
        return True

    def learn(self, result: AppendResult | StoreError | None, writes: Sequence[StreamWrite]) -> None:
        """After an append that was done: its last position is that of its last event in both stores."""
        if isinstance(result, AppendResult) and any(w.events for w in writes):
            self.look()
            assert self.places[self.run(self.model.last_position())] == result.position

    @rule(drafts=appends())
    def append(self, drafts: list[Draft]) -> None:
        (writes,) = self.resolved([drafts])
        result = self.outcome(self.store.append(writes))
        self.agree(writes, result, self.model)
        self.learn(result, writes)

    @rule(requests=st.lists(appends(), min_size=1, max_size=5))
    def append_many(self, requests: list[list[Draft]]) -> None:
        made = self.resolved(requests)
        results = self.run(self.store.append_many(made))
        assert len(results) == len(made)
        in_order = copy.deepcopy(self.model)
        done = [i for i, writes in enumerate(made) if self.agree(writes, results[i], in_order)]
        for i in sorted(done, key=lambda i: (results[i].position if any(w.events for w in made[i]) else 0, i)):
            unconditional = [replace(w, expected=ANY) for w in made[i]]
            versions = self.run(self.model.append(unconditional)).versions
            if all(w.events for w in made[i]):
                assert versions == results[i].versions, "requests that share a stream, out of order"

    @rule(drafts=appends(), happens=st.booleans())
    def append_whose_answer_is_lost(self, drafts: list[Draft], happens: bool) -> None:
        (writes,) = self.resolved([drafts])
        result = self.outcome(append_once(LosesAnswers(self.store, happens), writes))
        self.agree(writes, result, self.model)
        self.learn(result, writes)

    @rule(drafts=appends(), between=appends(), happens=st.booleans())
    def look_for_an_append_behind_another(self, drafts: list[Draft], between: list[Draft], happens: bool) -> None:
        (writes,) = self.resolved([drafts])
        if happens:
            self.agree(writes, self.outcome(self.store.append(writes)), self.model)
        (others,) = self.resolved([between])
        self.agree(others, self.outcome(self.store.append(others)), self.model)
        self.look()
        found, wanted = self.run(find(self.store, writes)), self.run(find(self.model, writes))
        assert (found and found.versions) == (wanted and wanted.versions)
        assert (found and found.position) == (wanted and self.places[wanted.position])

    # Reads

    @invariant()
    def look(self) -> None:
        """Both hold the same events in the same order."""
        ours, theirs = (self.run(s.read_all(0, 100_000)) for s in (self.model, self.store))
        assert [content(e) for e in theirs] == [content(e) for e in ours]
        self.places = [0, *(e.position for e in theirs)]
        assert all(a < b for a, b in zip(self.places, self.places[1:], strict=False)), "positions do not increase"
        assert self.run(self.store.last_position()) == self.places[-1]

    @rule(asked=st.lists(st.tuples(STREAM, st.integers(0, 8), st.none() | st.integers(0, 6)), min_size=2))
    def read_stream(self, asked: list[tuple[StreamId, int, int | None]]) -> None:
        for question in asked:
            ours, theirs = (self.run(s.read_stream(*question)) for s in (self.model, self.store))
            assert part(theirs) == part(ours), question
        streams, froms = [stream for stream, _, _ in asked], [max(version, 1) for _, version, _ in asked]
        all_ours, all_theirs = (self.run(s.read_streams(streams, froms)) for s in (self.model, self.store))
        assert list(map(part, all_theirs)) == list(map(part, all_ours)), (streams, froms)

    @rule(asked=st.lists(STREAM, max_size=4))
    def read_streams(self, asked: list[StreamId]) -> None:
        ours, theirs = (self.run(s.read_streams(asked)) for s in (self.model, self.store))
        assert list(map(part, theirs)) == list(map(part, ours))

    @rule(asked=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 20), FILTER), min_size=2))
    def read_all(self, asked: list[tuple[float, int, Filter]]) -> None:
        for part_of, limit, where in asked:
            after = round(part_of * (len(self.places) - 1))
            ours = self.run(self.model.read_all(after, limit, where))
            theirs = self.run(self.store.read_all(self.places[after], limit, where))
            assert list(map(content, theirs)) == list(map(content, ours)), (after, limit, where)
            assert [e.position for e in theirs] == [self.places[e.position] for e in ours]

    @rule(part_of=st.floats(0, 1), page=st.integers(1, 7), where=FILTER)
    def read_page_by_page(self, part_of: float, page: int, where: Filter) -> None:
        async def pages(store: Store, after: Position) -> list[tuple[Any, ...]]:
            return [content(e) async for e in stream_all(store, after, page, where)]

        after = round(part_of * (len(self.places) - 1))
        assert self.run(pages(self.store, self.places[after])) == self.run(pages(self.model, after))

    # What readers and commands keep

    @rule(name=st.sampled_from(("users", "käse")), position=st.integers(0, 2**128 - 1))
    def save_checkpoint(self, name: str, position: Position) -> None:
        for store in (self.model, self.store):
            self.run(store.save_checkpoint(name, position))
        self.load_checkpoint(name=name)

    @rule(name=st.sampled_from(("users", "käse", "nobody")))
    def load_checkpoint(self, name: str) -> None:
        assert self.run(self.store.load_checkpoint(name)) == self.run(self.model.load_checkpoint(name))

    @rule(
        key=st.sampled_from(("cart", "")),
        versions=st.dictionaries(STREAM, st.integers(0, 4), max_size=3),
        state=st.binary(max_size=8),
    )
    def save_snapshot(self, key: str, versions: dict[StreamId, int], state: bytes) -> None:
        ours, theirs = (self.run(s.save_snapshot(Snapshot(key, versions, state))) for s in (self.model, self.store))
        assert theirs == ours
        self.load_snapshot(key=key)

    @rule(key=st.sampled_from(("cart", "", "nothing")))
    def load_snapshot(self, key: str) -> None:
        assert self.run(self.store.load_snapshot(key)) == self.run(self.model.load_snapshot(key))

    @rule()
    def close_and_reconnect(self) -> None:
        if self.driver.is_shared:
            self.run(self.store.close())
            self.store = self.run(self.driver.connect(self.place.address, POOL))


def examine(driver: Driver, bound: settings = BOUND) -> None:
    """AssertionError (or what the store raised) when `driver` differs from the model."""
    with asyncio.Runner() as runner:
        run_state_machine_as_test(type("Machine", (Machine,), {"driver": driver, "runner": runner}), settings=bound)


@pytest.mark.parametrize("spec", DRIVERS)
def test_a_store_does_what_the_memory_store_does(spec: str) -> None:
    examine(stores.make(spec))


# Mutants: each has one fault, and the machine must find it


class IgnoresReadOnlyParticipants(Wrapper):
    async def append(self, writes: Sequence[StreamWrite]) -> AppendResult:
        return await self.inner.append([w if w.events else replace(w, expected=ANY) for w in writes])


class ChecksOnlyTheFirstStream(Wrapper):
    async def append(self, writes: Sequence[StreamWrite]) -> AppendResult:
        return await self.inner.append([w if i == 0 else replace(w, expected=ANY) for i, w in enumerate(writes)])


class TakesAbsentForAny(Wrapper):
    async def append(self, writes: Sequence[StreamWrite]) -> AppendResult:
        return await self.inner.append([w if w.expected > 0 else replace(w, expected=ANY) for w in writes])


class TearsAppendsThatConflict(Wrapper):
    async def append(self, writes: Sequence[StreamWrite]) -> AppendResult:
        try:
            return await self.inner.append(writes)
        except VersionConflict:
            for w in writes[:-1]:
                with suppress(VersionConflict):
                    await self.inner.append([w])
            raise


class SaysTheExpectedVersionIsTheActualOne(Wrapper):
    async def append(self, writes: Sequence[StreamWrite]) -> AppendResult:
        try:
            return await self.inner.append(writes)
        except VersionConflict as conflict:
            raise VersionConflict(conflict.stream, conflict.expected, conflict.expected) from None


class FailsTheNeighboursOfAConflict(Wrapper):
    async def append_many(self, requests: Sequence[Sequence[StreamWrite]]) -> list[AppendResult | StoreError]:
        results = await self.inner.append_many(requests)
        failed = [r for r in results if isinstance(r, StoreError)]
        return [failed[0]] * len(results) if failed else results


class OvertakesMultiStreamAppends(Wrapper):
    """What `postgres` did until this machine found it."""

    async def append_many(self, requests: Sequence[Sequence[StreamWrite]]) -> list[AppendResult | StoreError]:
        turn = sorted(range(len(requests)), key=lambda i: len(requests[i]) > 1)
        results = await self.inner.append_many([requests[i] for i in turn])
        return [results[turn.index(i)] for i in range(len(requests))]


class MakesIdsOfItsOwn(Wrapper):
    """Forgets the ids, by which a second try is recognised."""

    async def append(self, writes: Sequence[StreamWrite]) -> AppendResult:
        renamed = [replace(w, events=tuple(replace(e, id=new_event_id()) for e in w.events)) for w in writes]
        return await self.inner.append(renamed)


class TellsTheVersionOfThePage(Wrapper):
    async def read_stream(self, stream: StreamId, from_version: int = 1, limit: int | None = None) -> StreamSlice:
        found = await self.inner.read_stream(stream, from_version, limit)
        return replace(found, version=found.events[-1].version if found.events else found.version)


class StartsBehindTheVersionAskedFor(Wrapper):
    async def read_stream(self, stream: StreamId, from_version: int = 1, limit: int | None = None) -> StreamSlice:
        return await self.inner.read_stream(stream, from_version + (from_version > 2), limit)


class FiltersBehindTheLimit(Wrapper):
    async def read_all(self, after: Position = 0, limit: int = 1000, where: Filter = EVERYTHING) -> list[StoredEvent]:
        return [e for e in await self.inner.read_all(after, limit) if where.matches(e.stream, e.type)]


class TakesAPrefixForASubstring(Wrapper):
    async def read_all(self, after: Position = 0, limit: int = 1000, where: Filter = EVERYTHING) -> list[StoredEvent]:
        others = replace(where, prefix="")
        found = await self.inner.read_all(after, 100_000, others)
        return [e for e in found if where.prefix in e.stream][:limit]


class KeepsTheFurthestCheckpoint(Wrapper):
    async def save_checkpoint(self, name: str, position: Position) -> None:
        there = await self.inner.load_checkpoint(name)
        await self.inner.save_checkpoint(name, max(position, there or 0))


class LetsSnapshotsGoBack(Wrapper):
    async def save_snapshot(self, snapshot: Snapshot) -> bool:
        there = await self.inner.load_snapshot(snapshot.key)
        seen = there.versions if there else {}
        ahead = {s: max(v, snapshot.versions.get(s, 0)) for s, v in seen.items()}
        return await self.inner.save_snapshot(replace(snapshot, versions={**snapshot.versions, **ahead}))


class LosesTheLastEventOnClosing(Wrapper):
    """Over a store of its own that is shared: what was not yet written is gone."""

    async def close(self) -> None:
        assert isinstance(self.inner, Memory)
        if self.inner._all:
            self.inner._streams[self.inner._all.pop().stream].pop()


class Mutated:
    """The driver of a `memory` store with a fault; all connections lead to one store, as if it were shared."""

    is_shared = True
    lacks: ClassVar[Mapping[str, str]] = {}

    def __init__(self, mutant: Callable[[Store], Store]) -> None:
        self.mutant = mutant
        self.memory = Memory()

    @asynccontextmanager
    async def provision(self) -> AsyncIterator[Place]:
        self.memory = Memory()
        yield Place(Address("mutant"), "none")

    async def connect(self, address: Address, pool: PoolSettings) -> Store:
        return self.mutant(self.memory)


MUTANTS = (
    IgnoresReadOnlyParticipants,
    ChecksOnlyTheFirstStream,
    TakesAbsentForAny,
    TearsAppendsThatConflict,
    SaysTheExpectedVersionIsTheActualOne,
    FailsTheNeighboursOfAConflict,
    OvertakesMultiStreamAppends,
    MakesIdsOfItsOwn,
    TellsTheVersionOfThePage,
    StartsBehindTheVersionAskedFor,
    FiltersBehindTheLimit,
    TakesAPrefixForASubstring,
    KeepsTheFurthestCheckpoint,
    LetsSnapshotsGoBack,
    LosesTheLastEventOnClosing,
)


def test_the_model_is_found_to_be_like_itself() -> None:
    examine(Mutated(Wrapper))


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_store_with_a_fault_is_found(mutant: type[Wrapper]) -> None:
    with pytest.raises((AssertionError, StoreError)):
        examine(Mutated(mutant), settings(BOUND, max_examples=100))  # in memory, and over at the first that is found
