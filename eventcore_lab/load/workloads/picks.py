"""Which of n streams an operation is about: a pure function of the operation's number and its own chance.

`uniform` all alike · `zipf` the r-th (from 1) in proportion to r^-theta (exact, by its distribution function; up to
PICKS_MAX streams) · `hotspot` four fifths of the operations on the first fifth of the streams · `latest` those named most
recently, by the same law as zipf · `sequential` one after the other.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from functools import lru_cache

import numpy as np

from eventcore_lab.spec import unknown

PICKS = ("uniform", "zipf", "hotspot", "latest", "sequential")
PICKS_MAX = 1_000_000
HOT_OPERATIONS, HOT_STREAMS = 0.8, 0.2

Pick = Callable[[int, int], int]
"""(operation, its 64 bits of chance) → a number from 0 to n - 1."""


def picking(n: int, pick: str, theta: float) -> Pick:
    """How to pick one of `n`; ValueError for a theta that is out of bounds."""
    if pick not in PICKS:
        raise unknown("pick", pick, PICKS)
    if not 0 <= theta <= 5:
        raise ValueError(f"theta must be 0 to 5, not {theta:g}")
    if pick == "sequential":
        return lambda k, _: k % n
    if pick == "hotspot":
        return _hotspot(n)
    if pick == "uniform":
        return lambda _, chance: chance % n
    edges = zipf_edges(n, theta)
    if pick == "zipf":
        return lambda _, chance: min(bisect_right(edges, chance / 2**64), n - 1)
    return lambda k, chance: (k - bisect_right(edges, chance / 2**64)) % n


@lru_cache(maxsize=4)
def zipf_edges(n: int, theta: float) -> list[float]:
    """The distribution function of zipf over n ranks: the probability of one of the first r+1 at index r."""
    if n > PICKS_MAX:
        raise ValueError(f"zipf over more than {PICKS_MAX} streams")
    weights = np.arange(1, n + 1, dtype=np.float64) ** -theta
    edges: list[float] = (np.cumsum(weights) / weights.sum()).tolist()
    return edges


def _hotspot(n: int) -> Pick:
    hot = max(1, round(n * HOT_STREAMS))

    def pick(_: int, chance: int) -> int:
        if hot == n or (chance >> 32) / 2**32 < HOT_OPERATIONS:
            return chance % 2**32 % hot
        return hot + chance % 2**32 % (n - hot)

    return pick
