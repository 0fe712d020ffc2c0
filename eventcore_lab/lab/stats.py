"""Pure statistics over arrays: order statistics and intervals. Knows nothing of runs, stores or units."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

BLOCKS = 20
BLOCKS_MIN = 6
"""With fewer blocks of a run no interval is given: a median's order-statistic interval at 95 % needs six values."""
CONFIDENCE = 0.95
RESAMPLES = 400
SAMPLES_PER_INTERVAL_MAX = 200_000
ALIKE_MAX = 0.97
"""Correlation of neighbours, at most: a series that wanders more than that says nothing about its slope in any case."""
POINTS_PER_SLOPE_MAX = 500
"""All pairs of them are looked at; of more points so many, evenly spaced."""


class Estimate(Struct, frozen=True):
    """A value and the interval it lies in at 95 %, NaN where there was too little to say. `n`: samples behind it."""

    value: float
    low: float
    high: float
    n: int

    @property
    def has_interval(self) -> bool:
        return not (math.isnan(self.low) or math.isnan(self.high))


NOTHING = Estimate(math.nan, math.nan, math.nan, 0)


def percentile(ascending: NDArray[np.float64], p: float) -> float:
    """The order statistic ⌈pn⌉ of sorted samples; NaN of none. 0 < p ≤ 1."""
    n = len(ascending)
    return float(ascending[max(math.ceil(p * n - 1e-9), 1) - 1]) if n else math.nan


def samples_needed(p: float) -> int:
    """How many samples a percentile's estimate needs at least: ten beyond it, so that it is not one outlier's value."""
    return math.ceil(10 / (1 - p) - 1e-9)


def percentiles_with_intervals(
    values: NDArray[np.float64], blocks: NDArray[np.int64], ps: Sequence[float], seed: int = 0
) -> list[Estimate]:
    """Percentiles of `values`, with intervals from a bootstrap over *blocks* of time.

    Samples that follow each other are alike (one slow fsync delays all that wait), so whole blocks, not samples, are
    drawn again: the block bootstrap of Künsch (1989) with disjoint blocks. `blocks` gives each value's block number;
    values may hold +inf (at least this slow, nobody knows how slow). Above SAMPLES_PER_INTERVAL_MAX samples the
    interval, not the value, comes from every k-th.
    """
    n = len(values)
    if not n:
        return [NOTHING] * len(ps)
    ascending = np.sort(values)
    points = [percentile(ascending, p) for p in ps]
    thin = slice(None, None, max(1, math.ceil(n / SAMPLES_PER_INTERVAL_MAX)))
    numbers, block_of = np.unique(blocks[thin], return_inverse=True)
    if len(numbers) < BLOCKS_MIN:
        return [Estimate(point, math.nan, math.nan, n) for point in points]
    draws = _block_bootstrap(values[thin], block_of, len(numbers), ps, seed)
    tail, nan = (1 - CONFIDENCE) / 2, math.nan
    low, high = np.quantile(draws, [tail, 1 - tail], axis=0, method="nearest")
    # A percentile that has fewer than ten samples beyond it has a value, but not an interval worth the name.
    return [
        Estimate(point, min(a, point), max(b, point), n) if n >= samples_needed(p) else Estimate(point, nan, nan, n)
        for point, a, b, p in zip(points, low.tolist(), high.tolist(), ps, strict=True)
    ]


def _block_bootstrap(
    values: NDArray[np.float64], block_of: NDArray[np.int64], blocks: int, ps: Sequence[float], seed: int
) -> NDArray[np.float64]:
    """The percentiles of RESAMPLES draws of blocks, shape (RESAMPLES, len(ps)): sorted once, weighted each time."""
    order = np.argsort(values, kind="stable")
    ascending, block_of = values[order], block_of[order]
    rng = np.random.default_rng(seed)
    draws = np.empty((RESAMPLES, len(ps)))
    for i in range(RESAMPLES):
        weights = np.bincount(rng.integers(0, blocks, blocks), minlength=blocks)
        cumulated = np.cumsum(weights[block_of])
        ranks = np.ceil(np.asarray(ps) * cumulated[-1] - 1e-9)
        draws[i] = ascending[np.searchsorted(cumulated, np.maximum(ranks, 1))]
    return draws


def mean_with_interval(block_values: NDArray[np.float64], n: int) -> Estimate:
    """The mean of per-block values and its t interval (batch means; Law, *Simulation Modeling and Analysis*, 9.5)."""
    count = len(block_values)
    if not count:
        return NOTHING
    if count < BLOCKS_MIN:
        return Estimate(float(np.mean(block_values)), math.nan, math.nan, n)
    return Estimate(float(np.mean(block_values)), *t_interval(block_values), n)


def t_interval(values: NDArray[np.float64] | Sequence[float]) -> tuple[float, float]:
    """The interval of the mean of at least two independent values (Student's t)."""
    from scipy.special import stdtrit  # here, for it takes a tenth of a second to import, and a command line needs none

    mean, n = float(np.mean(values)), len(values)
    half = float(stdtrit(n - 1, 1 - (1 - CONFIDENCE) / 2) * np.std(values, ddof=1)) / n**0.5
    return mean - half, mean + half


def growth(t_s: NDArray[np.float64], values: NDArray[np.float64]) -> Estimate:
    """By how much `values` grow from the first to the last of the instants `t_s`: the median slope of all pairs times the
    span, with its 95 % interval (`_slope`). Of fewer than BLOCKS_MIN values the last less
    the first, without an interval."""
    n = len(values)
    if n < 2:
        return NOTHING
    if n < BLOCKS_MIN:
        return Estimate(float(values[-1] - values[0]), math.nan, math.nan, n)
    span_s = float(t_s[-1] - t_s[0])
    thin = np.linspace(0, n - 1, min(n, POINTS_PER_SLOPE_MAX)).round().astype(np.int64)
    slope, low, high = _slope(values[thin], t_s[thin])
    return Estimate(slope * span_s, low * span_s, high * span_s, n)


def trend(t: NDArray[np.float64], values: NDArray[np.float64]) -> Estimate:
    """How fast the values of blocks of time change per unit of `t`: the median slope of all pairs (`_slope`), with an interval
    at 95 % that holds also where neighbours are alike, as latencies and memory are. Of fewer than BLOCKS_MIN values none.

    The interval of independent values is widened as the variance of a fitted slope is by an AR(1) of the same correlation of
    neighbours, and by Student's t of the number of values that would say as much if they were independent (Santer et al.
    2000, J. Geophys. Res. 105). That correlation is of what a parabola leaves, so that a bend is not taken for noise, and
    freed of its bias (Kendall 1954, Marriott and Pope 1954, carried on to a fitted curve). Of 2,000 flat series of 60 values
    97 % of the intervals hold the truth with white noise, and 95, 94 and 88 % with an AR(1) of 0.5, 0.7 and 0.9; as independent
    values it would be 95, 75, 61 and 36 %.
    """
    n = len(values)
    if n < 2 or t[0] == t[-1]:
        return NOTHING
    slope, low, high = _slope(values, t)
    if n < BLOCKS_MIN:
        return Estimate(slope, math.nan, math.nan, n)
    wider = _widened(t, values)
    return Estimate(slope, slope - (slope - low) * wider, slope + (high - slope) * wider, n)


def _widened(t: NDArray[np.float64], values: NDArray[np.float64]) -> float:
    """How many times as wide as that of independent values the interval of a slope must be."""
    from scipy.special import stdtrit

    n, order = len(t), 2
    curve, _ = np.linalg.qr(np.vander((t - t.mean()) / np.ptp(t), order + 1))
    left = values - curve @ (curve.T @ values)
    squares = float(left @ left)
    if squares <= 1e-18 * float(values @ values):
        return 1.0
    seen = float(left[1:] @ left[:-1]) / squares
    alike = min(max((n * seen + 1 + order) / max(n - 3 - order, 1), 0.0), ALIKE_MAX)
    centred, at = t - t.mean(), np.arange(n)
    inflated = float(centred @ (alike ** np.abs(np.subtract.outer(at, at))) @ centred) / float(centred @ centred)
    as_good_as = n * (1 - alike) / (1 + alike)
    p = 1 - (1 - CONFIDENCE) / 2
    return float(inflated**0.5 * stdtrit(max(as_good_as - 2, 1.0), p)) / NormalDist().inv_cdf(p)


def _slope(y: NDArray[np.float64], x: NDArray[np.float64]) -> tuple[float, float, float]:
    """The median slope of all pairs (Theil 1950), and the slopes between which it is at CONFIDENCE: so many places from the
    middle as the variance of Kendall's statistic allows, less where values are tied (Sen 1968, equations 2.6 and 2.7). The
    numbers are those of scipy.stats.theilslopes. NaN where all `x` are one."""
    runs, rises = x[:, None] - x, y[:, None] - y
    slopes = np.sort(rises[runs > 0] / runs[runs > 0])
    if not len(slopes):
        return math.nan, math.nan, math.nan
    n = len(x)
    ties = np.concatenate([np.unique(values, return_counts=True)[1] for values in (x, y)]).astype(np.float64)
    variance = (n * (n - 1) * (2 * n + 5) - float((ties * (ties - 1) * (2 * ties + 5)).sum())) / 18
    places = NormalDist().inv_cdf(1 - (1 - CONFIDENCE) / 2) * max(variance, 0.0) ** 0.5
    last = len(slopes) - 1
    low, high = max(round((last + 1 - places) / 2) - 1, 0), min(round((last + 1 + places) / 2), last)
    return float(np.median(slopes)), float(slopes[min(low, last)]), float(slopes[high])
