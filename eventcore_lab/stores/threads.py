"""Threads for stores whose client library blocks: as many as it has connections, so that who gets one is never kept waiting
inside the library."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

from eventcore_lab.clock import now_ns
from eventcore_lab.events import StoreUnreachable
from eventcore_lab.schema import current_attempt

T = TypeVar("T")

CLOSE_TIMEOUT_S = 5.0


class Threads:
    """Runs blocking calls, `count` at a time; who waits is served in the order of coming."""

    def __init__(self, count: int, acquire_timeout_s: float, run_timeout_s: float) -> None:
        self._count, self._acquire_timeout_s, self._run_timeout_s = count, acquire_timeout_s, run_timeout_s
        self._free = asyncio.Semaphore(count)
        self._executor = ThreadPoolExecutor(count, thread_name_prefix="eventcore_lab-store")

    async def run(self, work: Callable[..., T], *arguments: Any) -> T:
        """What `work(*arguments)` gives. Raises StoreUnreachable when no thread becomes free in time, TimeoutError when
        `work` takes too long: it goes on by itself then, and keeps its thread until it ends."""
        if self._free.locked():
            await self._wait()
        else:
            await self._free.acquire()
        attempt = current_attempt.get()
        if attempt is not None and not attempt.acquired_ns:
            attempt.acquired_ns = now_ns()
        running = asyncio.get_running_loop().run_in_executor(self._executor, work, *arguments)
        running.add_done_callback(lambda _: self._free.release())
        async with asyncio.timeout(self._run_timeout_s):
            # Shielded: a thread cannot be stopped, so its place is free when it ends and not when nobody waits any more.
            return await asyncio.shield(running)

    async def _wait(self) -> None:
        try:
            async with asyncio.timeout(self._acquire_timeout_s):
                await self._free.acquire()
        except TimeoutError:
            raise StoreUnreachable(
                f"no connection became free within {self._acquire_timeout_s:g} s (all {self._count} are in use; raise "
                f"max_connections or lower the load)"
            ) from None

    async def close(self) -> None:
        """When what runs has ended, or after CLOSE_TIMEOUT_S without it."""
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                for _ in range(self._count):
                    await self._free.acquire()
        self._executor.shutdown(wait=False, cancel_futures=True)
