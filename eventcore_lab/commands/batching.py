"""Commands in batches: those that wait at the same time are read for together, decided one after the other, and appended
in one round trip; each has its own result.

Commands on one and the same stream are decided on each other's events and go to the store as one append, so a hot stream
costs one round trip per batch and its commands never conflict with each other. Commands that share streams in any other
way, unless they only read them, go in turn, one round after the other. (They could not be decided on each other's events
and still be two requests: if the first is refused because somebody else has just written exactly as many events, the
second would find the version it expects, on events it has never seen.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from msgspec import Struct, field
from msgspec.structs import replace

from eventcore_lab.clock import now_ns
from eventcore_lab.commands.command import Command, CommandRejected, Executed, Fold, State, declared, only_reads
from eventcore_lab.commands.executor import (
    Direct,
    Executor,
    after_events,
    conflicted,
    has_lost,
    values_of,
    writes_of,
)
from eventcore_lab.commands.memory import Memory, States, Wanted
from eventcore_lab.events import (
    AppendResult,
    EventRejected,
    NewEvent,
    OutcomeUnknown,
    StoreError,
    StreamId,
    StreamWrite,
    VersionConflict,
)
from eventcore_lab.schema import Attempt, current_attempt
from eventcore_lab.spec import UsageError
from eventcore_lab.stores.batcher import Batcher, BatcherClosed
from eventcore_lab.stores.protocol import Store


class _Asked(Struct, gc=False):
    """One command on its way. `must_read`: what is remembered of its streams has turned out to be old; `is_alone`: it is
    not to be put together with others."""

    command: Command
    wanted: dict[StreamId, Fold]
    owned: list[StreamId]
    attempt: Attempt | None
    must_read: bool = False
    is_alone: bool = False


class _Chain(Struct):
    """Commands that go to the store as one append, and what has been decided so far on the states as they became."""

    wanted: dict[StreamId, Fold]
    members: list[_Asked] = field(default_factory=list)
    events: dict[StreamId, list[NewEvent]] = field(default_factory=dict)
    base: dict[StreamId, State] = field(default_factory=dict)
    states: dict[StreamId, State] = field(default_factory=dict)
    outcomes: list[Executed | Exception] = field(default_factory=list)
    answer: AppendResult | Exception | None = None
    is_current: bool = False
    has_rejected: bool = False


class _Again(Exception):
    """Nothing was written: to be handed in again. `is_current`: although it was decided on what had just been read."""

    def __init__(self, conflict: VersionConflict | None, is_current: bool, is_alone: bool = False) -> None:
        self.conflict, self.is_current, self.is_alone = conflict, is_current, is_alone


class Batching:
    """`delay_s` and the bounds are those of stores/batcher.py. What is read, remembered and tried again, and how often, is
    as the executor inside has it."""

    def __init__(self, inner: Executor, *, size: int, delay_s: float, in_flight: int, queue_max: int) -> None:
        if not isinstance(inner, Direct):
            raise UsageError(
                "batching takes direct, cached(direct) or snapshots(direct), for it reads and puts commands together itself; "
                "with parallel, write parallel(batching(…))"
            )
        self._core = inner
        self._settings = {"size": size, "delay_s": delay_s, "in_flight": in_flight, "queue_max": queue_max}
        self._batcher: Batcher[_Asked, Executed] = Batcher(
            self._carried_out,
            size=size,
            delay_s=delay_s,
            in_flight=in_flight,
            queue_max=queue_max,
            keys=lambda asked: asked.owned,
            close_error=lambda: BatcherClosed("the executor is closed; the command was not executed"),
        )

    @property
    def core(self) -> Direct:
        return self._core

    async def execute(self, command: Command) -> Executed:
        wanted = dict(declared(command))
        shared = only_reads(command)
        asked = _Asked(command, wanted, [s for s in wanted if s not in shared], current_attempt.get())
        retry, attempt, tries = self._core.retry, 1, 1
        while True:
            try:
                done = await self._batcher.submit(asked)
                return done if attempt == 1 else replace(done, attempts=attempt)
            except _Again as again:
                asked.must_read = True
                asked.is_alone = asked.is_alone or again.is_alone
                if again.conflict is not None:
                    is_last = again.is_current and tries > retry.retries_max
                    conflicted(attempt, is_last)
                    if is_last:
                        raise again.conflict from None
                    if again.is_current:
                        await retry.back_off(tries, self._core.rng)
                        tries += 1
                    attempt += 1

    async def _carried_out(self, batch: Sequence[_Asked]) -> Sequence[Executed | Exception]:
        """The batch in as many rounds as its common streams make necessary."""
        taken_ns = now_ns()
        results: dict[int, Executed | Exception] = {}
        for asked in batch:
            if asked.attempt is not None and not asked.attempt.acquired_ns:
                asked.attempt.acquired_ns = taken_ns
        for chains in _rounds(batch):
            try:
                await self._round(chains)
            except Exception as error:  # of this round: what those before it came to stays as it is
                for chain in chains:
                    chain.outcomes = [error] * len(chain.members)
            for chain in chains:
                results.update(zip(map(id, chain.members), chain.outcomes, strict=True))
        return [results[id(asked)] for asked in batch]

    async def _round(self, chains: Sequence[_Chain]) -> None:
        """Read for all of them, decide, append, and say what became of each command."""
        core, wanted = self._core, {stream: fold for chain in chains for stream, fold in chain.wanted.items()}
        since, recent = await core.memory.recall(wanted)
        overdue = {stream for chain in chains for asked in chain.members if asked.must_read for stream in asked.wanted}
        to_read = {s: fold for s, fold in wanted.items() if s not in recent or s in overdue}
        found = await self._read(to_read, since) if to_read else {}
        states = {**since, **found}
        for chain in chains:
            chain.is_current = to_read.keys() >= chain.wanted.keys()
            _decide(chain, states)
        to_append = [chain for chain in chains if chain.states and (chain.events or not chain.has_rejected)]
        appended = await self._appended([_writes(chain) for chain in to_append])
        for chain, answer in zip(to_append, appended, strict=True):
            chain.answer = answer
        for chain in chains:
            _conclude(chain)
            if chain.states:
                is_done = isinstance(chain.answer, AppendResult)
                core.memory.keep(chain.wanted, chain.states if is_done else chain.base, since)

    async def _read(self, wanted: Wanted, known: States) -> dict[StreamId, State | Exception]:
        """As `read_on`, in one statement; a stream whose events cannot be folded is its own commands' trouble only, and one
        that the store has lost is read anew."""
        core = self._core
        if len(wanted) == 1:
            [(stream, _)] = wanted.items()
            try:
                found: dict[StreamId, State | Exception] = {**await core.read_on(wanted, known)}
            except Exception as error:
                found = {stream: error}
            return found
        froms = [known[stream].version + 1 if stream in known else 1 for stream in wanted]
        slices = await core.store.read_streams(list(wanted), froms if known else None)
        found = {}
        for part, fold in zip(slices, wanted.values(), strict=True):
            try:
                found[part.stream] = after_events(fold, known.get(part.stream) or State(0, fold.initial), part.events)
            except Exception as error:
                found[part.stream] = error
        if lost := {part.stream: wanted[part.stream] for part in slices if has_lost(known.get(part.stream), part)}:
            core.memory.forget(lost)
            found.update(await self._read(lost, {}))
        return found

    async def _appended(self, requests: list[list[StreamWrite]]) -> Sequence[AppendResult | Exception]:
        try:
            if len(requests) <= 1:
                return [await self._core.store.append(request) for request in requests]
            results = await self._core.store.append_many(requests)
        except StoreError as error:
            return [error] * len(requests)
        if len(results) != len(requests):
            return [OutcomeUnknown(f"{len(results)} answers came to {len(requests)} appends")] * len(requests)
        return results

    def remembering(self, make: Callable[[Memory, Store], Memory]) -> Batching:
        return Batching(self._core.remembering(make), **self._settings)  # type: ignore[arg-type]

    def counts(self) -> dict[str, int]:
        """Batches that went, and the commands in them."""
        counted = {"batches": self._batcher.batches, "batched": self._batcher.items}
        return {**counted, **self._core.counts()}

    async def close(self) -> None:
        """Execute what waits, refuse what comes."""
        await self._batcher.close()
        await self._core.close()


def _rounds(batch: Sequence[_Asked]) -> Iterator[list[_Chain]]:
    """The batch as rounds of chains, such that no chain of a round writes a stream that another has. Commands with a common
    stream keep their order."""
    left = list(batch)
    while left:
        this, later = _Round(), []
        for asked in left:
            if not this.takes(asked):
                later.append(asked)  # noqa: PERF401 (takes has an effect)
        yield this.chains
        left = later


class _Round:
    """The chains of one round, and by which streams a command cannot be among them."""

    def __init__(self) -> None:
        self.chains: list[_Chain] = []
        self._owners: dict[StreamId, _Chain] = {}
        self._folds: dict[StreamId, Fold] = {}
        self._blocked: set[StreamId] = set()

    def takes(self, asked: _Asked) -> bool:
        """Put the command into a chain of its own, or behind others on the same single stream. If neither can be, nobody
        who comes after it gets one of its streams either."""
        if self._blocked.isdisjoint(asked.wanted) and (self._joins(asked) or self._begins(asked)):
            return True
        self._blocked.update(asked.wanted)
        return False

    def _joins(self, asked: _Asked) -> bool:
        chain = self._owners.get(asked.owned[0]) if len(asked.wanted) == len(asked.owned) == 1 else None
        if chain is None or chain.wanted != asked.wanted or asked.is_alone or chain.members[-1].is_alone:
            return False
        chain.members.append(asked)
        return True

    def _begins(self, asked: _Asked) -> bool:
        for stream, fold in asked.wanted.items():
            known = self._folds.get(stream)
            if known is not None and (known is not fold or stream in asked.owned or stream in self._owners):
                return False
        chain = _Chain(asked.wanted, [asked])
        self.chains.append(chain)
        self._folds.update(asked.wanted)
        self._owners.update(dict.fromkeys(asked.owned, chain))
        return True


def _decide(chain: _Chain, states: Mapping[StreamId, State | Exception]) -> None:
    """Every member's decision, each on what those before it have decided; a rejection or a mistake adds nothing."""
    broken = [state for stream in chain.wanted if isinstance(state := states[stream], Exception)]
    if broken:
        chain.outcomes = [broken[0]] * len(chain.members)
        return
    chain.base = {s: state for s in chain.wanted if isinstance(state := states[s], State)}
    chain.states = dict(chain.base)
    for asked in chain.members:
        try:
            decided = asked.command.decide(values_of(chain.states))
            writes = writes_of(asked.command, chain.states, decided)
            after = {w.stream: after_events(chain.wanted[w.stream], chain.states[w.stream], w.events) for w in writes}
        except CommandRejected as rejection:
            chain.has_rejected = True
            chain.outcomes.append(rejection)
            continue
        except Exception as error:
            chain.has_rejected = True
            chain.outcomes.append(error)
            continue
        chain.states.update(after)
        for write in writes:
            chain.events.setdefault(write.stream, []).extend(write.events)
        versions = tuple([state.version for state in chain.states.values()])
        chain.outcomes.append(Executed(tuple([event for _, event in decided]), versions, 1, tuple(chain.wanted)))


def _conclude(chain: _Chain) -> None:
    """Turn what the store said of the chain's append into what each of its commands is told. Without an append all were
    rejected, which counts only if it was on what had just been read."""
    answer, count, again = chain.answer, len(chain.members), not chain.is_current
    if answer is None:
        if again and chain.states:
            chain.outcomes = [_Again(None, False) for _ in range(count)]
    elif isinstance(answer, VersionConflict):
        chain.outcomes = [_Again(answer, chain.is_current) for _ in range(count)]
    elif isinstance(answer, EventRejected) and count > 1:  # one of them is to blame
        chain.outcomes = [_Again(None, True, is_alone=True) for _ in range(count)]
    elif isinstance(answer, OutcomeUnknown):  # whoever was rejected was so on events that may not be there
        chain.outcomes = [
            answer if isinstance(outcome, Executed) else _Again(None, True, is_alone=True) for outcome in chain.outcomes
        ]
    elif isinstance(answer, Exception):
        chain.outcomes = [answer] * count


def _writes(chain: _Chain) -> list[StreamWrite]:
    return [StreamWrite(s, state.version, tuple(chain.events.get(s, ()))) for s, state in chain.base.items()]
