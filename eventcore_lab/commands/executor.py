"""The plain executor: read, fold, decide, append; on a conflict wait a little, read what is new and decide again."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from msgspec import Struct

from eventcore_lab.clock import NS_PER_S, sleep_s
from eventcore_lab.commands.command import Command, CommandRejected, Executed, Fold, State, declared, only_reads
from eventcore_lab.commands.memory import NOTHING, Memory, States, Wanted
from eventcore_lab.events import (
    NewEvent,
    StoredEvent,
    StoreError,
    StreamId,
    StreamSlice,
    StreamWrite,
    VersionConflict,
)
from eventcore_lab.schema import current_attempt
from eventcore_lab.stores.protocol import Store

PAGE = 5000
"""Events of one stream in memory at a time while it is folded."""
UNDER_WAY_MAX = 1000


class RetryPolicy(Struct, frozen=True, kw_only=True):
    """How often and after what wait a conflict is tried again: `first_s`·2ⁿ but at most `longest_s`, each up to `jitter`
    longer or shorter.

    The defaults are EventCore's: 4 retries, 10 ms, ±20 % (eventcore 2.0.1, `RetryPolicy`).
    """

    retries_max: int = 4
    first_s: float = 0.010
    longest_s: float = 1.0
    jitter: float = 0.2

    def wait_s(self, attempt: int, rng: random.Random) -> float:
        """The wait after the `attempt`-th try (from 1)."""
        middle_s = min(self.first_s * float(2 ** (attempt - 1)), self.longest_s)
        return middle_s * (1 + self.jitter * rng.uniform(-1, 1))

    async def back_off(self, attempt: int, rng: random.Random) -> None:
        """Wait as long as `wait_s` says, and note it with the operation under way."""
        wait_s = self.wait_s(attempt, rng)
        if (facts := current_attempt.get()) is not None:
            facts.backoff_ns += int(wait_s * NS_PER_S)
        await sleep_s(wait_s)


class Executor(Protocol):
    """Anything that executes commands; a wrapper of an executor is an executor.

    `remembering` gives an executor of the same kind whose memory is made from its present one: how a cache comes to sit
    where the states are needed, whatever stands around.
    """

    @property
    def core(self) -> Direct: ...
    async def execute(self, command: Command) -> Executed:
        """Raises CommandRejected, the last VersionConflict when the tries are used up, and what the store raises."""
        ...

    def remembering(self, make: Callable[[Memory, Store], Memory]) -> Executor: ...
    def counts(self) -> dict[str, int]:
        """What happened inside, by name: cache hits, batches and the like."""
        ...

    async def close(self) -> None:
        """Finish what is under way. The store stays open."""
        ...


class Direct:
    """Executes each command by itself: one read of its streams (none where `memory` has them), one append, per try."""

    def __init__(
        self,
        store: Store,
        *,
        retry: RetryPolicy = RetryPolicy(),  # noqa: B008 (frozen)
        seed: int = 0,
        memory: Memory = NOTHING,
    ) -> None:
        self.store, self.retry, self.memory, self.seed = store, retry, memory, seed
        self.rng = random.Random(seed)

    @property
    def core(self) -> Direct:
        return self

    async def execute(self, command: Command) -> Executed:
        """A rejection counts only if it was decided on what was read for this command. What a memory said is acted on at
        once; if the store or the rule says no to that, what is new is read and it is decided again, without waiting and
        without using up a retry."""
        wanted = declared(command)
        since, recent = await self.memory.recall(wanted)
        is_remembered = len(recent) == len(wanted)
        states = since if is_remembered else await self.read_on(wanted, since)
        attempt = tries = 1
        while True:
            try:
                done, after = await self._attempt(command, wanted, states, attempt)
            except CommandRejected:
                if not is_remembered:
                    self.memory.keep(wanted, states, since)
                    raise
            except VersionConflict:
                is_last = not is_remembered and tries > self.retry.retries_max
                conflicted(attempt, is_last)
                if is_last:
                    raise
                if not is_remembered:
                    await self.retry.back_off(tries, self.rng)
                    tries += 1
                attempt += 1
            else:
                self.memory.keep(wanted, after, since)
                return done
            states, is_remembered = await self.read_on(wanted, states), False

    async def read_on(self, wanted: Wanted, known: States) -> States:
        """As the function of this name; what the store has lost is forgotten."""
        states = await read_on(self.store, wanted, known)
        if any(stream in known and states[stream].version < known[stream].version for stream in wanted):
            self.memory.forget(wanted)
        return states

    async def _attempt(self, command: Command, wanted: Wanted, states: States, attempt: int) -> tuple[Executed, States]:
        decided = command.decide(values_of(states))
        writes = writes_of(command, states, decided)
        # Before they are stored: what cannot be folded must not be there.
        after = {w.stream: after_events(wanted[w.stream], states[w.stream], w.events) for w in writes}
        result = await self.store.append(writes)
        return Executed(tuple([event for _, event in decided]), result.versions, attempt, tuple(wanted)), after

    def remembering(self, make: Callable[[Memory, Store], Memory]) -> Direct:
        return Direct(self.store, retry=self.retry, seed=self.seed, memory=make(self.memory, self.store))

    def counts(self) -> dict[str, int]:
        return self.memory.counts()

    async def close(self) -> None:
        await self.memory.close()


def conflicted(attempt: int, is_last: bool) -> None:
    """Note with the operation under way that its `attempt`-th try met a conflict, and that another follows unless it was
    the last."""
    if (facts := current_attempt.get()) is not None:
        facts.conflicts += 1
        facts.attempts = attempt + (not is_last)


def writes_of(command: Command, states: States, decided: Sequence[tuple[StreamId, NewEvent]]) -> list[StreamWrite]:
    """One write per declared stream, at the version it was decided on. ValueError for an event on a stream that was not
    declared, or was declared as only read."""
    by_stream: dict[StreamId, list[NewEvent]] = {}
    for stream, event in decided:
        if stream not in states:
            raise ValueError(f"the command decided on an event for stream {stream!r}, which it did not declare")
        by_stream.setdefault(stream, []).append(event)
    if not by_stream.keys().isdisjoint(only_reads(command)):
        raise ValueError(f"the command decided on an event for a stream it said it only reads: {list(by_stream)}")
    return [StreamWrite(s, state.version, tuple(by_stream.get(s, ()))) for s, state in states.items()]


def after_events(fold: Fold, state: State, events: Sequence[NewEvent | StoredEvent]) -> State:
    """The state with these events behind it."""
    value, apply = state.value, fold.apply
    for event in events:
        value = apply(value, event)
    return State(state.version + len(events), value) if events else state


async def read_on(store: Store, wanted: Wanted, known: States) -> States:
    """The states of all of `wanted` now, reading only what is new where something is known; several streams as of one
    instant. One stream is read in pages, so that its length is no matter of memory."""
    if len(wanted) == 1:
        [(stream, fold)] = wanted.items()
        return {stream: await _read_one(store, stream, fold, known.get(stream) or State(0, fold.initial))}
    froms = [known[stream].version + 1 if stream in known else 1 for stream in wanted]
    slices = await store.read_streams(list(wanted), froms if known else None)
    if known and any(has_lost(known.get(part.stream), part) for part in slices):
        return await read_on(store, wanted, {})
    found: dict[StreamId, State] = {}
    for part, fold in zip(slices, wanted.values(), strict=True):
        found[part.stream] = after_events(fold, known.get(part.stream) or State(0, fold.initial), part.events)
    return found


def has_lost(known: State | None, found: StreamSlice) -> bool:
    """Whether the stream is shorter than it was: the store has lost what it had (a crash with `synchronous_commit=off`, a
    backup put back), and what was folded from it is of no use any more."""
    return known is not None and not found.events and found.version < known.version


async def _read_one(store: Store, stream: StreamId, fold: Fold, state: State) -> State:
    while True:
        part = await store.read_stream(stream, state.version + 1, PAGE)
        if has_lost(state, part):
            state = State(0, fold.initial)
            continue
        state = after_events(fold, state, part.events)
        if len(part.events) < PAGE:
            return state


async def execute_all(
    executor: Executor, commands: Sequence[Command], under_way_max: int = UNDER_WAY_MAX
) -> list[Executed | CommandRejected | StoreError]:
    """Execute them all, at most `under_way_max` at once; what became of each, in the order given. Raises what is neither a
    rule's nor the store's no."""
    results: list[Any] = [None] * len(commands)
    numbered = iter(enumerate(commands))

    async def work() -> None:
        for n, command in numbered:
            try:
                results[n] = await executor.execute(command)
            except (CommandRejected, StoreError) as error:
                results[n] = error

    async with asyncio.TaskGroup() as group:
        for _ in range(min(under_way_max, len(commands))):
            group.create_task(work())
    return results


def values_of(states: Mapping[StreamId, State]) -> dict[StreamId, Any]:
    """What `decide` is given."""
    return {stream: state.value for stream, state in states.items()}
