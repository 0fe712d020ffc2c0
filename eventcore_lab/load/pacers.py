"""When operations are due. A pacer is a pure function of a duration and a seed: it never sleeps and sees no clock.

An *open* pacer gives the whole schedule beforehand, so nothing the store does can delay an arrival. A *closed* one gives
only a number of callers, each of which starts its next operation when its last has ended.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from eventcore_lab.clock import NS_PER_S
from eventcore_lab.spec import Registry

OPERATIONS_MAX = 20_000_000
"""More than this in one schedule is refused: 160 MB of due times."""

Schedule = NDArray[np.int64]


class Pacer(Protocol):
    """`callers` > 0: a closed loop of that many. 0: an open loop with `schedule`."""

    @property
    def callers(self) -> int: ...
    def schedule(self, duration_ns: int, rng: np.random.Generator) -> Schedule:
        """Due times in ns since the start, ascending, all below `duration_ns`."""
        ...


pacers: Registry[Pacer] = Registry("pacer")


class Saturate(Struct, frozen=True):
    callers: int

    def schedule(self, duration_ns: int, rng: np.random.Generator) -> Schedule:
        return np.empty(0, np.int64)


class Constant(Struct, frozen=True):
    rate: float
    callers: int = 0

    def schedule(self, duration_ns: int, rng: np.random.Generator) -> Schedule:
        count = _bounded(self.rate * duration_ns / NS_PER_S)
        due = (np.arange(count) * (NS_PER_S / self.rate)).astype(np.int64)
        return due[due < duration_ns]


class Poisson(Struct, frozen=True):
    rate: float
    callers: int = 0

    def schedule(self, duration_ns: int, rng: np.random.Generator) -> Schedule:
        """Given their number, Poisson arrivals are uniform order statistics: the number is drawn, then the times."""
        count = rng.poisson(_bounded(self.rate * duration_ns / NS_PER_S, exactly=True))
        return np.sort(rng.integers(0, duration_ns, count, dtype=np.int64))


@pacers.register("saturate")
def saturate(*, concurrency: int = 10) -> Saturate:
    """Closed loop: so many callers, each starting again as soon as it is answered. Finds the capacity."""
    if not 1 <= concurrency <= 10_000:
        raise ValueError(f"concurrency must be 1 to 10000, not {concurrency}")
    return Saturate(concurrency)


@pacers.register("constant")
def constant(*, rate: float = 100.0) -> Constant:
    """Open loop: evenly spaced arrivals, `rate` per second, whatever the store does."""
    return Constant(_positive(rate))


@pacers.register("poisson")
def poisson(*, rate: float = 100.0) -> Poisson:
    """Open loop: independent users, `rate` per second on average, with the bursts chance makes."""
    return Poisson(_positive(rate))


def _positive(rate: float) -> float:
    if not rate > 0:
        raise ValueError(f"rate must be above 0 per second, not {rate:g}")
    return rate


def _bounded(expected: float, exactly: bool = False) -> float:
    """How many operations to make room for; ValueError above OPERATIONS_MAX."""
    if expected > OPERATIONS_MAX:
        raise ValueError(f"rate × duration is {expected:,.0f} operations, at most {OPERATIONS_MAX:,} fit in one run")
    return expected if exactly else int(np.ceil(expected))
