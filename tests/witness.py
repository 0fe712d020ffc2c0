"""A witness of what commands do to a store: a store that is interrupted at every call, commands that remember what they
decided, and the judgement whether all of it is what some serial execution would have given."""

from __future__ import annotations

import asyncio
import random
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any
from uuid import UUID

from msgspec import Struct, field

from eventcore_lab.clock import VirtualClock
from eventcore_lab.commands import (
    Command,
    CommandRejected,
    CreateUser,
    Executed,
    Executor,
    Fold,
    OpenAccount,
    ReserveStock,
    State,
    Transfer,
    UpdateProfile,
    executors,
)
from eventcore_lab.commands.bank import (
    ACCOUNT_OPENED,
    MONEY_DEPOSITED,
    MONEY_WITHDRAWN,
    TRANSFERS,
    TRANSFERS_RESUMED,
    TRANSFERS_SUSPENDED,
    account_stream,
    moved,
)
from eventcore_lab.commands.command import Said, only_reads
from eventcore_lab.commands.inventory import received, stock_stream
from eventcore_lab.commands.memory import Cache, Recalled, States, Wanted
from eventcore_lab.commands.memory import Memory as Remembered
from eventcore_lab.commands.users import user_stream
from eventcore_lab.events import (
    ANY,
    AppendResult,
    EventRejected,
    NewEvent,
    OutcomeUnknown,
    Snapshot,
    StoredEvent,
    StoreError,
    StreamId,
    StreamSlice,
    StreamWrite,
    VersionConflict,
)
from eventcore_lab.stores import Store
from eventcore_lab.stores.memory import Memory
from eventcore_lab.stores.wrapper import Wrapper

Decided = list[tuple[StreamId, NewEvent]]
POISON = "poison"
"""In the data of an event: what `Unreliable` cannot hold."""
ASKED_MAX = 300
"""How often a command, or a store, may be asked in a test: else one that is tried for ever would hang instead of failing."""


# --- stores ---------------------------------------------------------------------------------------------------------


class Interrupted(Wrapper):
    """Before and after every call others get their turn, as often as chance wants, now and then for a while."""

    def __init__(self, inner: Store, chance: random.Random, turns_max: int = 3) -> None:
        super().__init__(inner)
        self._chance, self._turns_max = chance, turns_max

    async def _others(self) -> None:
        if self._chance.randrange(10) == 0:
            await asyncio.sleep(self._chance.choice((0.001, 0.015)))
        for _ in range(self._chance.randint(0, self._turns_max)):
            await asyncio.sleep(0)

    async def append(self, writes: Sequence[StreamWrite]) -> AppendResult:
        await self._others()
        try:
            return await super().append(writes)
        finally:
            await self._others()

    async def append_many(self, requests: Sequence[Sequence[StreamWrite]]) -> list[AppendResult | StoreError]:
        await self._others()
        results: list[AppendResult | StoreError] = []
        for writes in requests:  # each is checked by itself: others may come between
            results += await super().append_many([writes])
            await self._others()
        return results

    async def read_stream(self, stream: StreamId, from_version: int = 1, limit: int | None = None) -> StreamSlice:
        await self._others()
        found = await super().read_stream(stream, from_version, limit)
        await self._others()
        return found

    async def read_streams(
        self, streams: Sequence[StreamId], from_versions: Sequence[int] | None = None
    ) -> list[StreamSlice]:
        await self._others()
        found = await super().read_streams(streams, from_versions)
        await self._others()
        return found

    async def load_snapshot(self, key: str) -> Snapshot | None:
        await self._others()
        return await super().load_snapshot(key)

    async def save_snapshot(self, snapshot: Snapshot) -> bool:
        await self._others()
        return await super().save_snapshot(snapshot)


class Unreliable(Interrupted):
    """Every `every`-th call that appends gets no answer (and has happened, or not, or in part: each request by itself),
    and no event with POISON in it is taken."""

    def __init__(self, inner: Store, chance: random.Random, every: int) -> None:
        super().__init__(inner, chance)
        self._every = every

    async def append(self, writes: Sequence[StreamWrite]) -> AppendResult:
        await self._others()
        is_lost = self._is_lost()
        if is_lost and self._chance.random() < 0.5:
            raise OutcomeUnknown("the request was lost")
        _refuse_poison(writes)
        result = await self.inner.append(writes)
        await self._others()
        if is_lost:
            raise OutcomeUnknown("the answer was lost")
        return result

    async def append_many(self, requests: Sequence[Sequence[StreamWrite]]) -> list[AppendResult | StoreError]:
        await self._others()
        is_lost = self._is_lost()
        arrived = requests[: self._chance.randint(0, len(requests))] if is_lost else requests
        results: list[AppendResult | StoreError] = []
        for writes in arrived:
            try:
                _refuse_poison(writes)
                results.append(await self.inner.append(writes))
            except StoreError as error:
                results.append(error)
            await self._others()
        if is_lost:
            raise OutcomeUnknown("the answer to many was lost")
        return results

    def _is_lost(self) -> bool:
        return self._chance.randrange(self._every) == 0


def _refuse_poison(writes: Sequence[StreamWrite]) -> None:
    if any(POISON.encode() in event.data for write in writes for event in write.events):
        raise EventRejected("a store cannot hold this")


class Counting(Wrapper):
    """Notes what it was asked: the versions each read began at, and the appends."""

    def __init__(self, inner: Store) -> None:
        super().__init__(inner)
        self.forget()

    def forget(self) -> None:
        self.reads: list[dict[StreamId, int]] = []
        self.read_events = 0
        self.appends: list[list[StreamWrite]] = []
        self.calls: list[int] = []

    async def append(self, writes: Sequence[StreamWrite]) -> AppendResult:
        self.appends.append(list(writes))
        self.calls.append(1)
        assert len(self.calls) < ASKED_MAX, "tried for ever"
        return await super().append(writes)

    async def append_many(self, requests: Sequence[Sequence[StreamWrite]]) -> list[AppendResult | StoreError]:
        self.appends += [list(writes) for writes in requests]
        self.calls.append(len(requests))
        return await super().append_many(requests)

    async def read_stream(self, stream: StreamId, from_version: int = 1, limit: int | None = None) -> StreamSlice:
        self.reads.append({stream: from_version})
        found = await super().read_stream(stream, from_version, limit)
        self.read_events += len(found.events)
        return found

    async def read_streams(
        self, streams: Sequence[StreamId], from_versions: Sequence[int] | None = None
    ) -> list[StreamSlice]:
        self.reads.append(dict(zip(streams, from_versions or [1] * len(streams), strict=True)))
        found = await super().read_streams(streams, from_versions)
        self.read_events += sum(len(part.events) for part in found)
        return found


# --- commands -------------------------------------------------------------------------------------------------------


class Legislate(Struct, frozen=True):
    """Suspends transfers or lets them go on; decides on nothing when it is so already."""

    policy: str
    is_suspended: bool

    @property
    def streams(self) -> Mapping[StreamId, Fold]:
        return {StreamId(self.policy): TRANSFERS}

    def decide(self, states: Mapping[StreamId, Any]) -> Decided:
        [(stream, is_suspended)] = states.items()
        if is_suspended == self.is_suspended:
            return []
        return [(stream, NewEvent(TRANSFERS_SUSPENDED if self.is_suspended else TRANSFERS_RESUMED, b"{}"))]


def _counted(count: int, _: Said) -> int:
    return count + 1


COUNT = Fold("count", 0, _counted, int)
"""How many events a stream has: another fold of streams that have one already."""


class Audit(Struct, frozen=True):
    """Notes the number of an account's events behind them; rejected when it is a multiple of three."""

    account: str

    @property
    def streams(self) -> Mapping[StreamId, Fold]:
        return {account_stream(self.account): COUNT}

    def decide(self, states: Mapping[StreamId, Any]) -> Decided:
        [(stream, count)] = states.items()
        if count % 3 == 0:
            raise CommandRejected(f"{count} events are not audited")
        return [(stream, NewEvent("Audited", b"%d" % count))]


def drawn_command(chance: random.Random) -> Command:
    """One of the kinds there are, on so few streams that they meet."""
    name, account, other = str(chance.randrange(3)), *map(str, chance.sample(range(3), 2))
    policy = chance.choice(("", "policy-0", "policy-1"))
    kinds: list[Command] = [
        CreateUser(name, "a@example.com", chance.choice(("Ada", "")), "L"),
        UpdateProfile(name, f"Ada {chance.randrange(100)}", "L"),
        OpenAccount(account, 50),
        Transfer(account, other, chance.randint(1, 40), policy),
        Transfer(account, other, chance.randint(1, 40), policy),
        Transfer(account, other, chance.randint(1, 40)),
        ReserveStock("0", str(chance.randrange(1000)), chance.randint(1, 4)),
        ReserveStock("0", str(chance.randrange(1000)), chance.randint(1, 4)),
        Legislate(f"policy-{chance.randrange(2)}", chance.random() < 0.5),
        Audit(account),
    ]
    return chance.choice(kinds)


class Noted:
    """A command that keeps what it decided each time."""

    def __init__(self, command: Command) -> None:
        self.command = command
        self.decisions: list[Decided] = []
        self.asked = 0

    @property
    def streams(self) -> Mapping[StreamId, Fold]:
        return self.command.streams

    @property
    def only_reads(self) -> Collection[StreamId]:
        return only_reads(self.command)

    def decide(self, states: Mapping[StreamId, Any]) -> Sequence[tuple[StreamId, NewEvent]]:
        self.asked += 1
        assert self.asked < ASKED_MAX, f"{self.command} is tried for ever"
        self.decisions.append(list(self.command.decide(states)))
        return self.decisions[-1]


class Tried(Struct):
    """A command, how many events there were when it began and ended (None: it was left alone), and what became of it."""

    noted: Noted
    began: int = 0
    ended: int | None = None
    outcome: Executed | BaseException | None = None

    async def execute(self, memory: Memory, executor: Executor) -> None:
        self.began = await memory.last_position()
        try:
            self.outcome = await executor.execute(self.noted)
        except (Exception, asyncio.CancelledError) as error:
            self.outcome = error
        if not isinstance(self.outcome, OutcomeUnknown | asyncio.CancelledError):
            self.ended = await memory.last_position()


# --- the judgement --------------------------------------------------------------------------------------------------


class History:
    """All events of a store, and the state of any stream at any instant. Instant n is that after the n-th event."""

    def __init__(self, events: Sequence[StoredEvent]) -> None:
        self.events = events
        assert [e.position for e in events] == list(range(1, len(events) + 1))
        self.positions = {e.id: e.position for e in events}
        assert len(self.positions) == len(events), "an id is stored twice"
        self._streams: dict[StreamId, list[StoredEvent]] = {}
        for event in events:
            self._streams.setdefault(event.stream, []).append(event)
        self._states: dict[tuple[StreamId, Fold], list[Any]] = {}

    def version_at(self, stream: StreamId, instant: int) -> int:
        return bisect_right(self._streams.get(stream, []), instant, key=lambda e: e.position)

    def state_of_first(self, stream: StreamId, fold: Fold, version: int) -> Any:
        states = self._states.setdefault((stream, fold), [fold.initial])
        for event in self._streams.get(stream, [])[len(states) - 1 :]:
            states.append(fold.apply(states[-1], event))
        return states[version]

    def decided_at(self, command: Command, instant: int) -> Decided | str:
        """What the command would have decided then; the reason of a rejection."""
        folds = command.streams.items()
        states = {s: self.state_of_first(s, fold, self.version_at(s, instant)) for s, fold in folds}
        try:
            return list(command.decide(states))
        except CommandRejected as rejection:
            return str(rejection)


def said(decided: Iterable[tuple[StreamId, NewEvent]]) -> list[tuple[StreamId, str, bytes]]:
    return [(stream, event.type, event.data) for stream, event in decided]


def assert_serial(events: Sequence[StoredEvent], tried: Sequence[Tried], others: Collection[UUID] = ()) -> History:
    """What is stored and what each caller was told is what one execution after the other would have given, each at some
    instant between its begin and its end. `others`: the ids of events that no command wrote, each an append of its own."""
    history = History(events)
    written = {t.noted: _written(history, t) for t in tried}
    instants = set(range(len(events) + 1))
    for decided in written.values():
        places = sorted(history.positions[e.id] for _, e in decided)
        assert places == list(range(places[0], places[0] + len(places))) if places else True, "a torn append"
        instants -= set(places[:-1])
    owned = {e.id for decided in written.values() for _, e in decided}
    assert owned | set(others) == history.positions.keys(), "nobody wrote it, or it was lost"
    for t in tried:
        ended = len(events) if t.ended is None else t.ended
        if decided := written[t.noted]:
            _judge_write(history, t, decided, ended)
        elif isinstance(t.outcome, Executed | CommandRejected):
            assert any(_could_be(history, t, n) for n in range(t.began, ended + 1) if n in instants), (
                f"{t.noted.command} came to {t.outcome!r}, which it never could"
            )
    return history


def _written(history: History, t: Tried) -> Decided:
    """What is stored of the command: one decision or nothing, as its caller was told."""
    stored = [d for d in t.noted.decisions if any(e.id in history.positions for _, e in d)]
    assert len(stored) <= 1, f"{t.noted.command} was written twice"
    assert all(e.id in history.positions for d in stored for _, e in d), f"{t.noted.command} was written in part"
    if isinstance(t.outcome, Executed):
        assert [e for d in stored for _, e in d] == list(t.outcome.events), f"{t.noted.command} is not there"
    elif not isinstance(t.outcome, OutcomeUnknown | asyncio.CancelledError | None):
        assert not stored, f"{t.noted.command} came to {t.outcome!r} and is there all the same"
    return stored[0] if stored else []


def _judge_write(history: History, t: Tried, decided: Decided, ended: int) -> None:
    places = [history.positions[e.id] for _, e in decided]
    assert t.began < min(places) <= max(places) <= ended, f"{t.noted.command} was written when it was not under way"
    right = history.decided_at(t.noted.command, min(places) - 1)
    assert not isinstance(right, str), f"{t.noted.command} had to be rejected: {right}"
    assert said(decided) == said(right), f"{t.noted.command} was decided on something else"
    if isinstance(t.outcome, Executed):
        versions = tuple(history.version_at(s, max(places)) for s in t.noted.streams)
        assert t.outcome.versions == versions


def _could_be(history: History, t: Tried, instant: int) -> bool:
    """Whether a command that wrote nothing could have come to what it came to then."""
    decided = history.decided_at(t.noted.command, instant)
    if isinstance(t.outcome, Executed):
        return decided == [] and t.outcome.versions == tuple(history.version_at(s, instant) for s in t.noted.streams)
    return decided == str(t.outcome)


# --- memories -------------------------------------------------------------------------------------------------------


class Watched:
    """A memory around a cache (and what is inside it) that looks at every entry whenever something is kept."""

    def __init__(self, inner: Remembered, store: Memory, cache: Cache, size: int) -> None:
        self.inner, self._store, self._cache, self._size = inner, store, cache, size

    async def recall(self, wanted: Wanted) -> Recalled:
        known, recent = await self.inner.recall(wanted)
        assert set(recent) <= known.keys() <= wanted.keys()
        return known, recent

    def keep(self, wanted: Wanted, states: States, since: States) -> None:
        before = dict(self._cache._entries)
        self.inner.keep(wanted, states, since)
        now = self._cache._entries
        assert len(now) <= self._size
        for key, state in now.items():
            assert key not in before or before[key].version <= state.version, "an entry went back"
        self.check()

    def check(self) -> None:
        """Every entry is what the first `version` events of its stream fold into."""
        history = History(self._store._all)
        for (stream, fold), state in self._cache._entries.items():
            assert isinstance(state, State)
            assert state.value == history.state_of_first(stream, fold, state.version)

    def forget(self, wanted: Wanted) -> None:
        self.inner.forget(wanted)

    def counts(self) -> dict[str, int]:
        return self.inner.counts()

    async def close(self) -> None:
        await self.inner.close()


def watched(executor: Executor, store: Memory) -> Executor:
    """The executor with its cache, if it has one, watched."""
    memory: Any = executor.core.memory
    while not isinstance(memory, Cache) and hasattr(memory, "_inner"):
        memory = memory._inner
    if not isinstance(memory, Cache):
        return executor
    cache = memory
    return executor.remembering(lambda outermost, _: Watched(outermost, store, cache, cache._size))


# --- a crowd --------------------------------------------------------------------------------------------------------


class Crowd(Struct):
    """Clients who give commands to several executors on one store, each executor as if in a process of its own; besides
    some are `cancelled`, answers are lost, events cannot be held, and somebody `foreign` writes without any command."""

    specs: Sequence[str]
    seed: int
    clients: int = 8
    each: int = 5
    cancelled: int = 0
    lost_every: int = 0
    poisoned: int = 0
    foreign: int = 0
    commands: Sequence[Command] = ()
    changed: Callable[[Any], Executor] = lambda executor: executor
    tried: list[Tried] = field(default_factory=list)
    others: set[UUID] = field(default_factory=set)
    counts: list[dict[str, int]] = field(default_factory=list)

    def judge(self) -> History:
        """Let them do it, in virtual time, and judge all of it."""
        return VirtualClock().run(self._whole())

    async def _whole(self) -> History:
        chance, memory = random.Random(self.seed), Memory()
        await self._prepare(memory)
        self._assign(chance)
        store = Unreliable(memory, chance, self.lost_every) if self.lost_every else Interrupted(memory, chance)
        members = [
            self.changed(watched(executors.make(spec, store=store, seed=self.seed + n), memory))
            for n, spec in enumerate(self.specs)
        ]
        async with asyncio.timeout(3600), asyncio.TaskGroup() as group:
            for client in range(self.clients):
                group.create_task(self._client(chance, memory, members, self.tried[client :: self.clients]))
            group.create_task(self._meddle(chance, memory))
        for member in members:
            await member.close()
            self.counts.append(member.counts())
            assert member.counts().get("lines", 0) == 0
        self._judge_rejected()
        return assert_serial(memory._all, self.tried, self.others)

    async def _prepare(self, memory: Memory) -> None:
        for stream, event in [
            (account_stream("0"), moved(ACCOUNT_OPENED, 100)),
            (account_stream("1"), moved(ACCOUNT_OPENED, 100)),
            (stock_stream("0"), received(20)),
        ]:
            self.others.add(event.id)
            await memory.append([StreamWrite(stream, 0, (event,))])

    def _assign(self, chance: random.Random) -> None:
        given = list(self.commands) or [drawn_command(chance) for _ in range(self.clients * self.each)]
        for n in chance.sample(range(len(given)), min(self.poisoned, len(given))):
            given[n] = ReserveStock("0", POISON)
        self.tried += [Tried(Noted(command)) for command in given]

    async def _client(
        self, chance: random.Random, memory: Memory, members: Sequence[Executor], tried: Sequence[Tried]
    ) -> None:
        for t in tried:
            task = asyncio.ensure_future(t.execute(memory, chance.choice(members)))
            if self.cancelled and chance.randrange(self.cancelled) == 0:
                for _ in range(chance.randint(0, 12)):
                    await asyncio.sleep(0)
                task.cancel()
            await asyncio.wait([task])
            if not task.cancelled():
                task.result()

    async def _meddle(self, chance: random.Random, memory: Memory) -> None:
        for _ in range(self.foreign):
            for _ in range(chance.randint(0, 12)):
                await asyncio.sleep(0)
            stream, event = chance.choice(
                [
                    (account_stream("0"), moved(MONEY_DEPOSITED, 1)),
                    (account_stream("1"), moved(MONEY_WITHDRAWN, -1)),
                    (stock_stream("0"), received(1)),
                    (user_stream("0"), NewEvent("Seen", b"{}")),
                ]
            )
            self.others.add(event.id)
            await memory.append([StreamWrite(stream, ANY, (event,))])

    def _judge_rejected(self) -> None:
        """Only who is to blame is refused by the store, and nothing but what is expected came to anybody."""
        for t in self.tried:
            if isinstance(t.outcome, EventRejected):
                assert isinstance(t.noted.command, ReserveStock) and t.noted.command.order == POISON
            allowed: tuple[type, ...] = (Executed, CommandRejected, VersionConflict, EventRejected)
            allowed += (asyncio.CancelledError, type(None)) if self.cancelled else ()
            allowed += (OutcomeUnknown,) if self.lost_every else ()
            assert isinstance(t.outcome, allowed), f"{t.noted.command} came to {t.outcome!r}"
