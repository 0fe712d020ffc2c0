"""Commands in parallel: those with a stream in common one after the other, in the order they came; all others at once, up
to a limit.

This keeps the commands of *this process* from conflicting with each other. Other processes are not seen: the expected
version of the append is the truth, and a conflict with them is tried again by the executor inside.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from eventcore_lab.commands.command import Command, Executed, only_reads
from eventcore_lab.commands.executor import Direct, Executor
from eventcore_lab.commands.memory import Memory
from eventcore_lab.commands.turns import Turns
from eventcore_lab.stores.protocol import Store


class Parallel:
    """At most `limit` commands are under way at a time. A command asks for its permit when it has its turn on all its
    streams: those who wait for a hot stream then hold nobody else up."""

    def __init__(self, inner: Executor, limit: int) -> None:
        self._inner, self._limit = inner, limit
        self._permits = asyncio.Semaphore(limit)
        self._turns = Turns()
        self._under_way = self._under_way_max = self._lines_max = self._waited = 0

    @property
    def core(self) -> Direct:
        return self._inner.core

    async def execute(self, command: Command) -> Executed:
        ticket = self._turns.enter(command.streams, only_reads(command))
        self._lines_max = max(self._lines_max, len(self._turns))
        try:
            if ticket.missing:
                self._waited += 1
                await self._turns.mine(ticket)
            async with self._permits:
                self._under_way += 1
                self._under_way_max = max(self._under_way_max, self._under_way)
                try:
                    return await self._inner.execute(command)
                finally:
                    self._under_way -= 1
        finally:
            self._turns.leave(ticket)

    def remembering(self, make: Callable[[Memory, Store], Memory]) -> Parallel:
        return Parallel(self._inner.remembering(make), self._limit)

    def counts(self) -> dict[str, int]:
        """Most commands under way at once, streams in the table at most and now, commands that waited for a stream."""
        counted = {
            "parallel_max": self._under_way_max,
            "lines_max": self._lines_max,
            "lines": len(self._turns),
            "waited_for_stream": self._waited,
        }
        return {**counted, **self._inner.counts()}

    async def close(self) -> None:
        await self._inner.close()
