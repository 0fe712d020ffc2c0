"""The plain executor: read, fold, decide, append; on a conflict wait a little and do it all again."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Protocol

from msgspec import Struct

from eventcore_lab.clock import NS_PER_S, sleep_s
from eventcore_lab.commands.command import Command, Executed
from eventcore_lab.events import NewEvent, StreamId, StreamSlice, StreamWrite, VersionConflict
from eventcore_lab.schema import current_attempt
from eventcore_lab.stores.protocol import Store


class Executor(Protocol):
    """Anything that executes commands; a wrapper of an executor is an executor."""

    async def execute(self, command: Command) -> Executed: ...


class RetryPolicy(Struct, frozen=True, kw_only=True):
    """How often and after what wait a conflict is tried again: `first_s`·2ⁿ, each up to `jitter` longer or shorter.

    The defaults are EventCore's: 4 retries, 10 ms, ±20 % (eventcore 2.0.1, `RetryPolicy`).
    """

    retries_max: int = 4
    first_s: float = 0.010
    jitter: float = 0.2

    def wait_s(self, attempt: int, rng: random.Random) -> float:
        """The wait after the `attempt`-th try (from 1)."""
        return self.first_s * float(2 ** (attempt - 1)) * (1 + self.jitter * rng.uniform(-1, 1))


class Direct:
    """Reads all of a command's streams for every try. Raises the last VersionConflict when the tries are used up."""

    def __init__(self, store: Store, *, retry: RetryPolicy = RetryPolicy(), seed: int = 0) -> None:  # noqa: B008
        self._store, self._retry, self._rng = store, retry, random.Random(seed)

    async def execute(self, command: Command) -> Executed:
        attempt = 1
        while True:
            try:
                return await self._try(command, attempt)
            except VersionConflict:
                if attempt > self._retry.retries_max:
                    raise
            await self._back_off(attempt)
            attempt += 1

    async def _try(self, command: Command, attempt: int) -> Executed:
        slices = await _read(self._store, command.streams)
        state = command.initial()
        for part in slices:
            for event in part.events:
                state = command.fold(state, event)
        decided = command.decide(state)
        result = await self._store.append(_writes(slices, decided))
        return Executed(tuple([event for _, event in decided]), result.versions, attempt)

    async def _back_off(self, attempt: int) -> None:
        wait_s = self._retry.wait_s(attempt, self._rng)
        facts = current_attempt.get()
        if facts is not None:
            facts.attempts = attempt + 1
            facts.backoff_ns += int(wait_s * NS_PER_S)
        await sleep_s(wait_s)


async def _read(store: Store, streams: Sequence[StreamId]) -> list[StreamSlice]:
    if len(streams) == 1:
        return [await store.read_stream(streams[0])]
    return await store.read_streams(streams)


def _writes(slices: Sequence[StreamSlice], decided: Sequence[tuple[StreamId, NewEvent]]) -> list[StreamWrite]:
    """One write per declared stream, expecting the version that was read."""
    by_stream: dict[StreamId, list[NewEvent]] = {part.stream: [] for part in slices}
    for stream, event in decided:
        if stream not in by_stream:
            raise ValueError(f"the command decided on an event for stream {stream!r}, which it did not declare")
        by_stream[stream].append(event)
    return [StreamWrite(part.stream, part.version, tuple(by_stream[part.stream])) for part in slices]
