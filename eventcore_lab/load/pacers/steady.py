"""What a pacer is, and those that go on as they begin. A pacer is a pure function of a duration and a seed: it never
sleeps and sees no clock.

An *open* pacer gives the whole schedule beforehand, so nothing the store does can delay an arrival. A *closed* one gives
only a number of callers, each of which starts its next operation when its last has ended.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from eventcore_lab.clock import NS_PER_S
from eventcore_lab.load.chance import mixed
from eventcore_lab.spec import Registry, unknown

OPERATIONS_MAX = 20_000_000
"""More than this in one schedule is refused: 160 MB of due times."""

THINK_MS_MAX = 60_000
THINKS = ("constant", "exponential")
_THINKING = 0x7468696E6B
"""Keeps the chance of think times apart from that of operations."""

Schedule = NDArray[np.int64]


class Pacer(Protocol):
    """`callers` > 0: a closed loop of that many. 0: an open loop with `schedule`."""

    @property
    def callers(self) -> int: ...
    def expected(self, duration_ns: int) -> float:
        """How many operations an open loop offers in that time, on average; 0 for a closed one."""
        ...

    def schedule(self, duration_ns: int, rng: np.random.Generator) -> Schedule:
        """Due times in ns since the start, ascending, all below `duration_ns`."""
        ...


@runtime_checkable
class Thinks(Protocol):
    """A closed pacer whose callers wait between an answer and their next operation."""

    def think_ns(self, seed: int) -> Callable[[int], int] | None: ...


@runtime_checkable
class HasNotes(Protocol):
    """A pacer or a workload made from something outside: (name, detail) of what the run should tell about that."""

    @property
    def notes(self) -> Sequence[tuple[str, str]]: ...


pacers: Registry[Pacer] = Registry("pacer")


class Saturate(Struct, frozen=True):
    """`think_s`: how long a caller waits after an answer, on average; `think` says how that spreads."""

    callers: int
    think_s: float = 0.0
    think: str = "constant"

    def think_ns(self, seed: int) -> Callable[[int], int] | None:
        """How long is waited after operation k: a pure function of the seed and k; None for not at all."""
        mean_ns = self.think_s * NS_PER_S
        if not mean_ns:
            return None
        if self.think == "constant":
            return lambda _: int(mean_ns)
        return lambda k: int(-math.log1p(-mixed(seed ^ _THINKING, k) / 2**64) * mean_ns)

    def expected(self, duration_ns: int) -> float:
        return 0.0

    def schedule(self, duration_ns: int, rng: np.random.Generator) -> Schedule:
        return np.empty(0, np.int64)


class _Steady(Struct, frozen=True):
    """So many per second on average, all the time."""

    rate: float
    callers: int = 0

    def expected(self, duration_ns: int) -> float:
        return self.rate * duration_ns / NS_PER_S


class Constant(_Steady, frozen=True):
    def schedule(self, duration_ns: int, rng: np.random.Generator) -> Schedule:
        count = int(np.ceil(bounded(self.expected(duration_ns))))
        due = (np.arange(count) * (NS_PER_S / self.rate)).astype(np.int64)
        return due[due < duration_ns]


class Poisson(_Steady, frozen=True):
    def schedule(self, duration_ns: int, rng: np.random.Generator) -> Schedule:
        """Given their number, Poisson arrivals are uniform order statistics: the number is drawn, then the times."""
        count = rng.poisson(bounded(self.expected(duration_ns)))
        return np.sort(rng.integers(0, duration_ns, count, dtype=np.int64))


class Gamma(_Steady, frozen=True, kw_only=True):
    """A renewal process: times between arrivals are gamma distributed with the coefficient of variation `cv`."""

    cv: float

    def schedule(self, duration_ns: int, rng: np.random.Generator) -> Schedule:
        """The first gap is what is left of one that began before the run (a length-biased gap cut at an even chance), so that
        the rate is right from the first second on."""
        expected = bounded(self.expected(duration_ns))
        shape, scale_ns = self.cv**-2, NS_PER_S / self.rate * self.cv**2
        at_ns = float(rng.random() * rng.gamma(shape + 1, scale_ns))
        parts = []
        while at_ns < duration_ns:
            gaps = rng.gamma(shape, scale_ns, int(expected) + 100)
            last = gaps[-1]
            gaps[1:], gaps[0] = gaps[:-1], 0.0  # every arrival after the gap before it, the first at once
            np.cumsum(gaps, out=gaps)
            gaps += at_ns
            at_ns = float(gaps[-1] + last)
            parts.append(gaps[gaps < duration_ns].astype(np.int64))
            if len(parts) * len(gaps) > 2 * OPERATIONS_MAX:
                raise ValueError(f"cv={self.cv:g} is so bursty that {OPERATIONS_MAX:,} arrivals do not fill the run")
        return np.concatenate([np.empty(0, np.int64), *parts])


@pacers.register("saturate")
def saturate(*, concurrency: int = 10, think_ms: float = 0.0, think: str = "constant") -> Saturate:
    """Closed loop: so many callers, each starting again when it is answered, after think_ms (constant or exponential)."""
    if not 1 <= concurrency <= 10_000:
        raise ValueError(f"concurrency must be 1 to 10000, not {concurrency}")
    if not 0 <= think_ms <= THINK_MS_MAX:
        raise ValueError(f"think_ms must be 0 to {THINK_MS_MAX}, not {think_ms:g}")
    if think not in THINKS:
        raise unknown("kind of think time", think, THINKS)
    return Saturate(concurrency, think_ms / 1000, think)


@pacers.register("constant")
def constant(*, rate: float = 100.0) -> Constant:
    """Open loop: evenly spaced arrivals, `rate` per second, whatever the store does."""
    return Constant(positive(rate))


@pacers.register("poisson")
def poisson(*, rate: float = 100.0) -> Poisson:
    """Open loop: independent users, `rate` per second on average, with the bursts chance makes."""
    return Poisson(positive(rate))


@pacers.register("gamma")
def gamma(*, rate: float = 100.0, cv: float = 2.0) -> Gamma:
    """Open loop: `rate` per second in bursts; cv 0.1 is nearly even, 1 is poisson, 5 long silences and dense bursts."""
    if not 0.05 <= cv <= 20:
        raise ValueError(f"cv must be 0.05 to 20, not {cv:g}")
    return Gamma(positive(rate), cv=cv)


def positive(rate: float) -> float:
    if not rate > 0:
        raise ValueError(f"rate must be above 0 per second, not {rate:g}")
    return rate


def bounded(expected: float) -> float:
    """`expected` operations; ValueError above OPERATIONS_MAX."""
    if expected > OPERATIONS_MAX:
        raise ValueError(
            f"rate × duration is {expected:,.0f} operations, at most {OPERATIONS_MAX:,} fit in one run (a soak goes on in "
            "several)"
        )
    return expected
