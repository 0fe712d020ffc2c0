"""The only place that waits. `WallClock` waits as finely as the platform allows; `VirtualClock` does not wait at all.

Instants are integer nanoseconds of the monotonic clock, which on Linux is one clock for all processes of the machine,
so a due time set in one process means the same in another.
"""

from __future__ import annotations

import asyncio
import ctypes
import heapq
import itertools
import os
import selectors
import struct
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Any, Protocol, TypeVar

T = TypeVar("T")
NS_PER_S = 1_000_000_000

now_ns = time.monotonic_ns
"""The monotonic clock, ns."""


class Clock(Protocol):
    """What the load needs of time. `sleep_until` returns at or after `due_ns`, at once if that has passed."""

    def now_ns(self) -> int: ...
    async def sleep_until(self, due_ns: int) -> None: ...
    def close(self) -> None: ...


class WallClock:
    """Real time. On Linux one `timerfd` with absolute times wakes the loop (tens of µs late); elsewhere the loop's own
    timer does (about 1 ms grained). Make it inside the loop that uses it and close it there.

    `spin_ns` is the last part of a wait that is spent looking at the clock instead of sleeping, each time round the loop: a
    few µs late, for as much of a core as the waits' last parts take.
    """

    def __init__(self, spin_ns: int = 0) -> None:
        self._spin_ns = spin_ns
        self._loop = asyncio.get_running_loop()
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self._ticket = itertools.count()
        self._timer = _TimerFd() if sys.platform == "linux" else None
        if self._timer is not None:
            self._loop.add_reader(self._timer.fd, self._wake)

    def now_ns(self) -> int:
        return time.monotonic_ns()

    async def sleep_until(self, due_ns: int) -> None:
        if not self._spin_ns:
            await self._wake_at(due_ns)
            return
        await self._wake_at(due_ns - self._spin_ns)
        while time.monotonic_ns() < due_ns:  # noqa: ASYNC110 (nobody else can tell that the time has come)
            await asyncio.sleep(0)

    async def _wake_at(self, due_ns: int) -> None:
        late_ns = time.monotonic_ns() - due_ns
        if late_ns >= 0:
            return
        if self._timer is None:
            await asyncio.sleep(-late_ns / NS_PER_S)
            return
        future: asyncio.Future[None] = self._loop.create_future()
        heapq.heappush(self._waiting, (due_ns, next(self._ticket), future))
        if self._waiting[0][2] is future:
            self._timer.set(due_ns)
        await future

    def _wake(self) -> None:
        assert self._timer is not None
        self._timer.drain()
        now = time.monotonic_ns()
        while self._waiting and (self._waiting[0][0] <= now or self._waiting[0][2].done()):
            future = heapq.heappop(self._waiting)[2]
            if not future.done():  # a cancelled sleeper
                future.set_result(None)
        if self._waiting:
            self._timer.set(self._waiting[0][0])

    def close(self) -> None:
        if self._timer is not None:
            self._loop.remove_reader(self._timer.fd)
            self._timer.close()
            self._timer = None


class _TimerFd:
    """Linux timerfd_create(2) on CLOCK_MONOTONIC. In `os` from Python 3.13; by ctypes before."""

    _ITIMERSPEC = struct.Struct("@qqqq")

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self.fd: int = self._libc.timerfd_create(1, os.O_NONBLOCK | os.O_CLOEXEC)
        if self.fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")

    def set(self, due_ns: int) -> None:
        # An all-zero time would disarm the timer; 1 ns after boot has passed and fires at once.
        spec = self._ITIMERSPEC.pack(0, 0, *divmod(max(due_ns, 1), NS_PER_S))
        if self._libc.timerfd_settime(self.fd, 1, spec, None) < 0:
            raise OSError(ctypes.get_errno(), "timerfd_settime")

    def drain(self) -> None:
        try:
            os.read(self.fd, 8)
        except BlockingIOError:
            return  # set again since it fired

    def close(self) -> None:
        os.close(self.fd)


class VirtualClock:
    """Time that jumps to the next thing due whenever every task waits: a ten-minute ramp takes a millisecond.

    `VirtualClock().run(coroutine)` gives the coroutine a loop whose `asyncio.sleep` and timers follow this clock too.
    Nothing outside the loop may be waited for; when all wait and nothing is due, that is a deadlock and raises.
    """

    def __init__(self, start_ns: int = 0) -> None:
        self._now_ns = start_ns
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self._ticket = itertools.count()

    def now_ns(self) -> int:
        return self._now_ns

    async def sleep_until(self, due_ns: int) -> None:
        if due_ns > self._now_ns:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            heapq.heappush(self._waiting, (due_ns, next(self._ticket), future))
            await future

    def close(self) -> None:
        return

    def run(self, main: Coroutine[Any, Any, T]) -> T:
        with asyncio.Runner(loop_factory=lambda: _VirtualLoop(self)) as runner:
            return runner.run(main)

    def jump(self, timeout_s: float | None) -> None:
        """Move to the next instant something is due, at most `timeout_s` ahead; wake who waited for it."""
        while self._waiting and self._waiting[0][2].done():
            heapq.heappop(self._waiting)
        if timeout_s is None and not self._waiting:
            raise RuntimeError("virtual time: every task waits and nothing is due (a deadlock)")
        # Rounded up: the loop compares its own float deadline, and must find it reached.
        ahead_ns = None if timeout_s is None else int(timeout_s * NS_PER_S) + 1
        if not self._waiting or (ahead_ns is not None and self._now_ns + ahead_ns < self._waiting[0][0]):
            assert ahead_ns is not None
            self._now_ns += ahead_ns
            return
        self._now_ns = max(self._now_ns, self._waiting[0][0])
        while self._waiting and self._waiting[0][0] <= self._now_ns:
            future = heapq.heappop(self._waiting)[2]
            if not future.done():
                future.set_result(None)


class _VirtualSelector(selectors.SelectSelector):
    """Never blocks: where a real selector would wait for `timeout`, the virtual clock jumps."""

    def __init__(self, clock: VirtualClock) -> None:
        super().__init__()
        self._clock = clock

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready and (timeout is None or timeout > 0):
            self._clock.jump(timeout)
        return ready


class _VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self, clock: VirtualClock) -> None:
        super().__init__(_VirtualSelector(clock))
        self._clock = clock

    def time(self) -> float:
        return self._clock.now_ns() / NS_PER_S


_AT_ONCE_NS, _LOOKS_MAX = 1_000_000, 5


def three_clocks_ns() -> tuple[int, int, int]:
    """What three clocks say at one moment, ns: the monotonic one, the wall's, which can be set, and the one since boot, which
    goes on while the machine is suspended (Linux; elsewhere the monotonic clock again)."""
    for _ in range(_LOOKS_MAX):
        before = now_ns()
        wall = time.time_ns()
        since_boot = time.clock_gettime_ns(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else now_ns()
        if now_ns() - before < _AT_ONCE_NS:  # else somebody else had the processor in between
            break
    return before, wall, since_boot


class Clocks:
    """Compares three clocks (see `three_clocks_ns`) with what they said at the last look."""

    INTERVAL_S = 0.25
    STEP_NS = 10_000_000
    """A clock that is only corrected gains or loses at most 500 ppm (adjtime(3)): an eighth of a ms in INTERVAL_S."""
    STILL_NS = 1_000_000_000

    def __init__(self, monotonic: int, wall: int, since_boot: int) -> None:
        self._last = monotonic, wall, since_boot

    def look(self, monotonic: int, wall: int, since_boot: int) -> list[tuple[str, float]]:
        """What happened to them since the last look, INTERVAL_S ago, and for how many seconds: `suspended`, `set` (by), or
        `still`, when nobody looked for long."""
        passed, by_wall, by_boot = (
            now - then for now, then in zip((monotonic, wall, since_boot), self._last, strict=True)
        )
        self._last = monotonic, wall, since_boot
        found = []
        if (slept := by_boot - passed) > self.STEP_NS:
            found.append(("suspended", slept / NS_PER_S))
        if abs(step := by_wall - by_boot) > self.STEP_NS:
            found.append(("set", step / NS_PER_S))
        if passed > self.INTERVAL_S * NS_PER_S + self.STILL_NS:
            found.append(("still", passed / NS_PER_S - self.INTERVAL_S))
        return found


@asynccontextmanager
async def repeated(look: Callable[[], None], every_s: float) -> AsyncIterator[None]:
    """Call `look` every so often until the end of the block, and once more then. What it raises is raised at the end."""

    async def repeat() -> None:
        while True:
            await sleep_s(every_s)
            look()

    task = asyncio.ensure_future(repeat())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        look()


def watched_clocks(tell: Callable[[str, float], None]) -> AbstractAsyncContextManager[None]:
    """Look at the clocks until the end of the block, and `tell` what happened to them (see `Clocks.look`)."""
    clocks = Clocks(*three_clocks_ns())

    def look() -> None:
        for name, seconds in clocks.look(*three_clocks_ns()):
            tell(name, seconds)

    return repeated(look, Clocks.INTERVAL_S)


async def sleep_s(seconds: float) -> None:
    """Wait about this long on the running loop's own clock (about 1 ms grained, virtual in a virtual loop)."""
    await asyncio.sleep(seconds)


def pause_s(seconds: float) -> None:
    """Block this thread about this long. Only for waiting on something outside that cannot be awaited."""
    time.sleep(seconds)
