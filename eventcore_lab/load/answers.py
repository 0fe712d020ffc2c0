"""What commands were told: an executor around an executor that keeps each answer, as evidence for the checkers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from eventcore_lab.commands import Command, Direct, Executed, Executor
from eventcore_lab.commands.memory import Memory
from eventcore_lab.load.evidence import Rows
from eventcore_lab.load.spill import KEPT_MAX, SPILLED, Spill
from eventcore_lab.schema import current_attempt
from eventcore_lab.stores.protocol import Store

ANSWERS_MAX = 1_000_000
"""Answers kept; of the commands behind it nothing is said."""


class Answers:
    """Notes under which operation each command was executed, and what it came to. With a `spool` to put files in, at most about
    `kept_max` of them are in memory (`told`)."""

    def __init__(self, inner: Executor, spool: Path | None = None, worker: int = 0, kept_max: int = KEPT_MAX) -> None:
        self._inner = inner
        path = spool / f"executed-{worker}{SPILLED}" if spool is not None else None
        self._spilling = Spill[tuple[int, Executed]](path, tuple[int, Executed], kept_max)
        self.told = self._spilling.kept
        self._count = 0

    @property
    def core(self) -> Direct:
        return self._inner.core

    async def execute(self, command: Command) -> Executed:
        done = await self._inner.execute(command)
        attempt = current_attempt.get()
        if attempt is not None and self._count < ANSWERS_MAX:
            self._count += 1
            self.told.append((attempt.operation, done))
            if len(self.told) > self._spilling.full:
                self._spilling.spill()
        return done

    def remembering(self, make: Callable[[Memory, Store], Memory]) -> Answers:
        return Answers(self._inner.remembering(make))

    def counts(self) -> dict[str, int]:
        return self._inner.counts()

    async def close(self) -> None:
        await self._inner.close()

    def write(self, folder: Path, worker: int) -> None:
        """A file of schema.JOURNAL's `executed`, if any command was."""
        if not self.told:
            return
        with Rows(folder / f"executed-{worker}.parquet", "executed") as file:
            for operation, done in self._spilling.taken_out():
                for stream, version in zip(done.streams, done.versions, strict=False):
                    file.add((worker, operation, stream, version, None))
                for event in done.events:
                    file.add((worker, operation, None, None, event.id.bytes))
