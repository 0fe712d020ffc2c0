"""Whether what was measured is what theory says: a row of the table, its interval, and the rule.

Samples that follow each other in a queue are alike, so no interval comes from them one by one. They are cut into BATCHES
stretches, the statistic is taken of the whole and of each stretch, and the spread of the stretches about the whole is its
standard error: batch means for a mean, sectioning for a percentile (Asmussen & Glynn, *Stochastic Simulation*, 2007, III.5).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray
from scipy import stats as scipy_stats

from eventcore_lab.lab import stats

BATCHES = 25
ROWS_MAX = 40
FALSE_ALARM = 0.001
"""How often a whole table with nothing wrong has a row that does not hold, over all seeds."""
_NOMINAL = FALSE_ALARM / 10
"""What Student's t is asked for, to have that: sums over a busy queue are skewed, and a run that missed its rare long queues
has both too low a figure and too small an error. Found with replays of the cases from some ten thousand seeds."""
LIMIT = float(scipy_stats.t.ppf(1 - _NOMINAL / ROWS_MAX / 2, BATCHES - 1))
"""So many standard errors off is too far. ROWS_MAX rows share what may be wrong (Bonferroni)."""
VISITS_MIN = 90
"""A percentile is judged where samples go above it in so many separate visits. In a busy queue they do so seldom and then many
in a row, and the spread of a few visits over the stretches is not to be relied on."""
_SHOWN = float(scipy_stats.t.ppf(1 - (1 - stats.CONFIDENCE) / 2, BATCHES - 1))

Samples = NDArray[np.int64] | NDArray[np.float64] | NDArray[np.bool_]
Statistic = Callable[[NDArray[np.float64]], float]


class Row(Struct, frozen=True):
    """One claim. `error` is the standard error of `measured`; 0: it must be what `theory` says, to the last digit; infinite:
    there is too little to judge by."""

    quantity: str
    theory: float
    measured: float
    source: str
    error: float = 0.0

    @property
    def is_exact(self) -> bool:
        return not self.error

    @property
    def is_judged(self) -> bool:
        return self.error != math.inf

    @property
    def holds(self) -> bool:
        """Never of what is not a number."""
        return not self.is_judged or abs(self.measured - self.theory) <= LIMIT * self.error

    @property
    def interval(self) -> tuple[float, float]:
        """At 95 %."""
        return self.measured - _SHOWN * self.error, self.measured + _SHOWN * self.error

    @property
    def off(self) -> float:
        """How far theory is, in standard errors."""
        return (self.measured - self.theory) / self.error if self.error else math.nan


class Case(Struct, frozen=True):
    """What is modelled, in a line, and the claims about it."""

    title: str
    modelled: str
    rows: list[Row]


def estimated(quantity: str, theory: float, samples: Samples, statistic: Statistic, source: str) -> Row:
    """A row for `statistic` of `samples`, which are in the order they were taken."""
    values = samples.astype(np.float64)
    whole = statistic(values)
    size = len(values) // BATCHES
    parts = np.array([statistic(part) for part in values[: size * BATCHES].reshape(BATCHES, size)])
    error = math.sqrt(float(np.sum((parts - whole) ** 2)) / (BATCHES * (BATCHES - 1)))
    return Row(quantity, theory, whole, source, error)


def percentile(p: float, theory: float, samples: Samples, in_a_row: float, source: str) -> Row:
    """A row for the p-th percentile of responses in ms. `in_a_row`: how many samples are above it in one visit, on average."""
    name = f"response p{100 * p:g}, ms"
    row = estimated(name, theory, samples, lambda values: stats.percentile(np.sort(values), p), source)
    visits = len(samples) * (1 - p) / in_a_row
    return row if visits >= VISITS_MIN else Row(name, theory, row.measured, source, math.inf)


def samples_in_a_row(rho: float, variation: float = 1.0) -> float:
    """How many neighbours have a response above a high level once one has: 1/(1−ρ)², the inverse of the extremal index of
    M/M/1 (Rootzén 1988, *Maxima and exceedances of stationary Markov chains*), and in proportion to how much arrivals and
    services vary; `variation` is the squared coefficient of variation of the service."""
    return (1 + variation) / 2 / (1 - rho) ** 2


def mean(values: NDArray[np.float64]) -> float:
    return float(values.mean())
