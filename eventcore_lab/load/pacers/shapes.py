"""Pacers whose rate changes while the run goes on: ramps, steps, spikes, waves and days.

A shape is a rate over time, straight between points; times count from the beginning of the warm-up. Arrivals are `poisson`
(chance, with the rate of the moment) or `even` (the k-th comes when the shape has offered k). Both come from the inverse of
the rate's integral, which is exact for straight pieces (time rescaling; Çınlar, *Introduction to Stochastic Processes*, 4.7).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from eventcore_lab.clock import NS_PER_S
from eventcore_lab.load.pacers.steady import Schedule, bounded, pacers, positive
from eventcore_lab.spec import unknown

ARRIVALS = ("poisson", "even")
POINTS_PER_WAVE = 256
WAVES_MAX = 1_000
STEPS_MAX = 1_000
_AT_ONCE = 1 << 17

Points = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Ascending times in seconds, and the rate per second at each. Two points at one time are a jump."""


class Shaped(Struct, frozen=True):
    """`points(duration_s)` gives the shape from 0 to `duration_s`."""

    points: Callable[[float], Points]
    arrivals: str
    callers: int = 0

    def __post_init__(self) -> None:
        if self.arrivals not in ARRIVALS:
            raise unknown("kind of arrivals", self.arrivals, ARRIVALS)

    def expected(self, duration_ns: int) -> float:
        times, rates = self.points(duration_ns / NS_PER_S)
        return float(np.sum(np.diff(times) * (rates[:-1] + rates[1:]) / 2))

    def schedule(self, duration_ns: int, rng: np.random.Generator) -> Schedule:
        expected = bounded(self.expected(duration_ns))
        if self.arrivals == "even":
            offered = np.arange(np.ceil(expected - 1e-9), dtype=np.float64)
        else:
            offered = np.sort(rng.random(rng.poisson(expected))) * expected
        points, due = self.points(duration_ns / NS_PER_S), np.empty(len(offered), np.int64)
        for first in range(0, len(due), _AT_ONCE):  # in parts: on the way there are ten times as many numbers
            part = slice(first, first + _AT_ONCE)
            due[part] = when_offered(*points, offered[part]) * NS_PER_S
        return due[due < duration_ns]


def when_offered(
    times: NDArray[np.float64], rates: NDArray[np.float64], offered: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The times, in seconds, at which the shape has offered so many operations; all of one length, ascending."""
    lengths = np.diff(times)
    steps = lengths * (rates[:-1] + rates[1:]) / 2
    sums = np.concatenate([[0.0], np.cumsum(steps)])
    piece = np.clip(np.searchsorted(sums, offered, side="right") - 1, 0, len(steps) - 1)
    rest, begin, length = offered - sums[piece], rates[:-1][piece], lengths[piece]
    slope = np.divide(rates[1:][piece] - begin, length, out=np.zeros_like(length), where=length > 0)
    # begin·t + slope·t²/2 = rest, solved in the form that neither divides by a slope of 0 nor cancels.
    root = np.sqrt(np.maximum(begin**2 + 2 * slope * rest, 0))
    within = np.divide(2 * rest, begin + root, out=np.zeros_like(rest), where=begin + root > 0)
    return np.asarray(times[:-1][piece] + np.minimum(within, length))


@pacers.register("ramp")
def ramp(*, start: float = 10.0, end: float = 1000.0, over_s: float = 0.0, arrivals: str = "poisson") -> Shaped:
    """Open loop: from `start` to `end` per second, in a straight line over the run or over_s, and then as it is."""
    _at_least(0, start=start, end=end, over_s=over_s)
    positive(max(start, end))

    def points(duration_s: float) -> Points:
        return _until(duration_s, [(0.0, start), (over_s or duration_s, end)])

    return Shaped(points, arrivals)


@pacers.register("steps")
def steps(
    *, start: float = 100.0, end: float = 1000.0, steps: int = 5, each_s: float = 0.0, arrivals: str = "poisson"
) -> Shaped:
    """Open loop: so many even steps from `start` to `end` per second, each for each_s or its part of the run."""
    _at_least(0, start=start, end=end, each_s=each_s)
    positive(max(start, end))
    if not 1 <= steps <= STEPS_MAX:
        raise ValueError(f"steps must be 1 to {STEPS_MAX}, not {steps}")

    def points(duration_s: float) -> Points:
        length = each_s or duration_s / steps
        rates = np.linspace(start, end, steps).tolist()
        return _until(duration_s, [(t, rate) for n, rate in enumerate(rates) for t in (n * length, (n + 1) * length)])

    return Shaped(points, arrivals)


@pacers.register("spike")
def spike(
    *, rate: float = 100.0, peak: float = 1000.0, after_s: float = 5.0, lasts_s: float = 1.0, arrivals: str = "poisson"
) -> Shaped:
    """Open loop: `rate` per second, but `peak` from after_s on for lasts_s."""
    positive(rate)
    positive(peak)
    _at_least(0, after_s=after_s, lasts_s=lasts_s)

    def points(duration_s: float) -> Points:
        end_s = after_s + lasts_s
        corners = [(0.0, rate), (after_s, rate), (after_s, peak), (end_s, peak), (end_s, rate)]
        return _until(duration_s, corners)

    return Shaped(points, arrivals)


@pacers.register("sine")
def sine(*, rate: float = 500.0, swing: float = 0.5, period_s: float = 10.0, arrivals: str = "poisson") -> Shaped:
    """Open loop: a wave around `rate` per second, by the share `swing` up and down, once in period_s."""
    _swings(rate, swing)
    if not period_s > 0:
        raise ValueError(f"period_s must be above 0, not {period_s:g}")
    return Shaped(lambda duration_s: _wave(rate, swing, period_s, 0.0, duration_s), arrivals)


@pacers.register("day")
def day(*, rate: float = 500.0, swing: float = 0.8, day_s: float = 0.0, arrivals: str = "poisson") -> Shaped:
    """Open loop: a day from night to night in day_s, or in the run: least at both ends, most at noon, `rate` on average."""
    _swings(rate, swing)
    _at_least(0, day_s=day_s)
    return Shaped(lambda duration_s: _wave(rate, swing, day_s or duration_s, 0.25, duration_s), arrivals)


def _wave(rate: float, swing: float, period_s: float, behind: float, duration_s: float) -> Points:
    """A sine, `behind` by that share of its period, as straight pieces."""
    if duration_s > WAVES_MAX * period_s:
        raise ValueError(f"more than {WAVES_MAX} waves in one run; a period of {period_s:g} s is too short for it")
    times = np.linspace(0, duration_s, max(2, int(np.ceil(duration_s / period_s * POINTS_PER_WAVE)) + 1))
    return times, rate * (1 + swing * np.sin(2 * np.pi * (times / period_s - behind)))


def _until(duration_s: float, corners: list[tuple[float, float]]) -> Points:
    """The shape through `corners`, which begins at 0, as far as `duration_s`; behind the last corner it stays as it is."""
    times, rates = (np.array(column) for column in zip(*corners, strict=True))
    if times[-1] < duration_s:
        times, rates = np.append(times, duration_s), np.append(rates, rates[-1])
    inside = int(np.searchsorted(times, duration_s, side="left"))
    at_end = float(np.interp(duration_s, times[inside - 1 : inside + 1], rates[inside - 1 : inside + 1]))
    return np.append(times[:inside], duration_s), np.append(rates[:inside], at_end)


def _swings(rate: float, swing: float) -> None:
    positive(rate)
    if not 0 <= swing <= 1:
        raise ValueError(f"swing must be 0 to 1, not {swing:g}")


def _at_least(least: float, **values: float) -> None:
    for name, value in values.items():
        if not value >= least:
            raise ValueError(f"{name} must be at least {least:g}, not {value:g}")
