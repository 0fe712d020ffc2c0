"""Were the clocks what they seemed? A mark for every time the wall clock was set, the machine was suspended, or this process
did not run, while a load went on.

What is measured is measured with the monotonic clock, which none of this moves; but a machine that slept measured nothing,
and times that a server wrote down belong to a wall clock that jumped.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager

from eventcore_lab.clock import watched_clocks
from eventcore_lab.companions.series import Series
from eventcore_lab.schema import CLOCK_MARKS


def clocks(series: Series) -> AbstractAsyncContextManager[None]:
    """Look at the clocks until the end of the block, and mark what happened to them."""
    return watched_clocks(lambda name, seconds: series.mark(*CLOCK_MARKS[name](seconds)))
