"""Were the clocks what they seemed? A mark for every time the wall clock was set, the machine was suspended, or this process
did not run, while a load went on.

What is measured is measured with the monotonic clock, which none of this moves; but a machine that slept measured nothing,
and times that a server wrote down belong to a wall clock that jumped.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from eventcore_lab.clock import NS_PER_S, now_ns, other_clocks_ns, sleep_s
from eventcore_lab.companions.series import Series
from eventcore_lab.schema import STOOD_STILL, SUSPENDED, WALL_CLOCK_SET

INTERVAL_S = 0.25
STEP_NS = 10_000_000
"""A wall clock that is only corrected gains or loses at most 500 ppm (adjtime(3)): an eighth of a millisecond in INTERVAL_S."""
STILL_NS = 1_000_000_000


class Clocks:
    """Compares three clocks with what they said at the last look. Times in ns."""

    def __init__(self, monotonic: int, wall: int, since_boot: int) -> None:
        self._last = monotonic, wall, since_boot

    def look(self, monotonic: int, wall: int, since_boot: int) -> list[tuple[str, str]]:
        """(name, detail) of what happened to them since the last look."""
        passed, by_wall, by_boot = (
            now - then for now, then in zip((monotonic, wall, since_boot), self._last, strict=True)
        )
        self._last = monotonic, wall, since_boot
        found = []
        slept = by_boot - passed
        if slept > STEP_NS:
            found.append((SUSPENDED, f"for {slept / NS_PER_S:.3f} s"))
        if abs(step := by_wall - by_boot) > STEP_NS:
            found.append((WALL_CLOCK_SET, f"by {step / NS_PER_S:+.3f} s"))
        if passed > INTERVAL_S * NS_PER_S + STILL_NS:
            found.append((STOOD_STILL, f"for {passed / NS_PER_S - INTERVAL_S:.3f} s"))
        return found


@asynccontextmanager
async def clocks(series: Series) -> AsyncIterator[None]:
    """Look at the clocks until the end of the block, and mark what happened to them."""
    watched = Clocks(now_ns(), *other_clocks_ns())

    def look() -> None:
        for name, detail in watched.look(now_ns(), *other_clocks_ns()):
            series.mark(name, detail)

    async def watch() -> None:
        while True:
            await sleep_s(INTERVAL_S)
            look()

    task = asyncio.ensure_future(watch())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        look()
