"""What a count of allocations sees of the memory that commands take, and a leak on purpose, to see who finds it.

`ChapterMemory` is the performance chapter's memory test, as an executor around another: a counting allocator, asked before the
first command and after the last. Python has one in tracemalloc, which sees what its own allocators are asked for: not what C
libraries take, not what was given back and is kept for the next, not the counter itself, and of a server nothing at all. The
chapter's `peak_memory` is captured before anything was executed, and so is its initial one.

`Leaking` keeps some bytes for each command, for good: the mutant of whoever judges memory.
"""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable

from eventcore_lab.commands.command import Command, Executed
from eventcore_lab.commands.executor import Direct, Executor
from eventcore_lab.commands.memory import Memory
from eventcore_lab.stores.protocol import Store


class ChapterMemory:
    """Counts from the first command to `close`. It slows everything down two or three times, so no time is to be taken."""

    def __init__(self, inner: Executor) -> None:
        self._inner = inner
        self._counts: dict[str, int] = {}

    @property
    def core(self) -> Direct:
        return self._inner.core

    async def execute(self, command: Command) -> Executed:
        if not self._counts:
            tracemalloc.start()
            initial, _ = tracemalloc.get_traced_memory()
            self._counts = {"counted_initial_bytes": initial, "counted_peak_bytes": initial}
        return await self._inner.execute(command)

    def remembering(self, make: Callable[[Memory, Store], Memory]) -> ChapterMemory:
        return ChapterMemory(self._inner.remembering(make))

    def counts(self) -> dict[str, int]:
        """What the chapter prints: `counted_initial_bytes`, `counted_peak_bytes` (captured before the first command) and
        `counted_final_bytes`; beside it what a counter could say, `counted_highest_bytes`, and the `counter_bytes` that
        it takes itself."""
        return {**self._counts, **self._inner.counts()}

    async def close(self) -> None:
        await self._inner.close()
        if self._counts:
            final, highest = tracemalloc.get_traced_memory()
            counter = tracemalloc.get_tracemalloc_memory()
            self._counts |= {"counted_final_bytes": final, "counted_highest_bytes": highest, "counter_bytes": counter}
            tracemalloc.stop()


class Leaking:
    """Keeps `size` bytes for each command that was executed."""

    def __init__(self, inner: Executor, size: int) -> None:
        self._inner, self._size = inner, size
        self._kept: list[bytearray] = []

    @property
    def core(self) -> Direct:
        return self._inner.core

    async def execute(self, command: Command) -> Executed:
        done = await self._inner.execute(command)
        self._kept.append(bytearray(b"\1") * self._size)  # written to, so that it is memory and not a promise of it
        return done

    def remembering(self, make: Callable[[Memory, Store], Memory]) -> Leaking:
        return Leaking(self._inner.remembering(make), self._size)

    def counts(self) -> dict[str, int]:
        return {"leaked_bytes": self._size * len(self._kept), **self._inner.counts()}

    async def close(self) -> None:
        await self._inner.close()
