"""How large the n-th thing is: the bytes of a payload, the events of a stream. A pure function of 64 bits of chance.

    sizes = word ["/" width] | histogram
    histogram = SIZExWEIGHT {"/" SIZExWEIGHT}

`constant` always the mean · `uniform/0.5` all whole numbers from half the mean to one and a half times the mean alike (1 or
more; /0 to /1) · `lognormal/1` with that sigma (/0 to /3) · `geometric` from 1 on, each next one with the same probability ·
`64x50/256x30/4096x20` the sizes given, in proportion to their weights, whatever mean was asked for.

All but a histogram have the mean that the workload's option says, so that distributions can be compared at the same number
of bytes or events: a lognormal of mean m has the median m·exp(-sigma²/2). Each is drawn by inverting its distribution
function, then rounded to a whole number, and is at least 1 and at most what the workload allows.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from functools import lru_cache
from itertools import accumulate
from math import exp, inf, log, log1p
from statistics import NormalDist

from msgspec import Struct

from eventcore_lab.load.chance import mixed
from eventcore_lab.load.workloads.workload import within
from eventcore_lab.spec import shown, unknown

SIZES: dict[str, tuple[float, float] | None] = {
    "constant": None,
    "uniform": (0.5, 1.0),
    "lognormal": (1.0, 3.0),
    "geometric": None,
}
"""Word → the width it has unless told and the largest it can have, or None if it has none."""
HISTOGRAM = "a histogram such as 64x50/256x30"
STREAMS_MAX = 1_000_000
EVENTS_MAX = 100_000
POPULATED_MAX = 5_000_000

_LENGTHS = -1
"""A number that no operation has: what is drawn behind it has nothing to do with what operations draw."""
_BITS_52 = 2.0**-52


class Sizes(Struct, frozen=True):
    """A distribution of sizes. `draw`: 64 bits of chance → a size. `mean`: of all of them; of a lognormal before it is
    rounded and bounded. `constant`: the only size there is, or 0."""

    draw: Callable[[int], int]
    mean: float
    constant: int = 0


def sizes_of(text: str, mean: int, most: int, option: str = "sizes") -> Sizes:
    """The distribution that `text` names, with sizes from 1 to `most`; ValueError, which names `option`, if it cannot be."""
    if text[:1].isdigit():
        return _histogram(text, most, option)
    word, slash, width = text.partition("/")
    if word not in SIZES:
        raise unknown(option, word, (*SIZES, HISTOGRAM))
    widths = SIZES[word]
    if widths is None:
        if slash:
            raise ValueError(f"{option}: {word} has no width, so write {option}={word}, not {shown(text)}")
        return _constant(mean) if word == "constant" else _geometric(mean, most)
    wide = _number(width) if slash else widths[0]
    if not 0 <= wide <= widths[1]:
        raise ValueError(
            f"{option}: the width of {word} must be 0 to {widths[1]:g}, as in {word}/{widths[0]:g}, not {shown(text)}"
        )
    return _lognormal(mean, wide, most) if word == "lognormal" else _uniform(mean, wide, most, option)


def _number(text: str) -> float:
    """`text` as a number; infinity, which is none that anything here can be, for what is no number."""
    try:
        value = float(text)
    except ValueError:
        return inf
    return value if value == value else inf


def _constant(mean: int) -> Sizes:
    return Sizes(lambda _: mean, mean, mean)


def _uniform(mean: int, spread: float, most: int, option: str) -> Sizes:
    reach = min(round(mean * spread), mean - 1)
    if mean + reach > most:
        raise ValueError(
            f"{option}: uniform/{spread:g} around {mean} goes up to {mean + reach}, and {most} is the most"
        )
    least, count = mean - reach, 2 * reach + 1
    return Sizes(lambda chance: least + (chance * count >> 64), mean)


def _lognormal(mean: int, sigma: float, most: int) -> Sizes:
    mu, quantile = log(mean) - sigma * sigma / 2, NormalDist().inv_cdf
    return Sizes(lambda chance: max(1, min(most, round(exp(mu + sigma * quantile(_share(chance)))))), mean)


def _geometric(mean: int, most: int) -> Sizes:
    """How many fair tries it takes when each succeeds with probability 1/mean: P(more than n) = (1 - 1/mean)^n."""
    if mean == 1:
        return _constant(1)
    fails = 1 - 1 / mean
    log_fails = log1p(-1 / mean)
    return Sizes(lambda chance: min(most, 1 + int(log(_share(chance)) / log_fails)), mean * (1 - fails**most))


def _histogram(text: str, most: int, option: str) -> Sizes:
    sizes: list[int] = []
    weights: list[float] = []
    for part in text.split("/"):
        size, _, weight = part.partition("x")
        if not (size.isdecimal() and 1 <= int(size) <= most and 0 < _number(weight) < inf):
            raise ValueError(
                f"{option}: {shown(part)} is not SIZExWEIGHT with a size of 1 to {most} and a weight above 0, as in 64x50"
            )
        sizes.append(int(size))
        weights.append(float(weight))
    edges, last = list(accumulate(weights)), len(sizes) - 1
    total = edges[-1]
    mean = sum(size * weight for size, weight in zip(sizes, weights, strict=True)) / total
    return Sizes(lambda chance: sizes[min(bisect_right(edges, chance / 2**64 * total), last)], mean)


def _share(chance: int) -> float:
    """`chance` as a number between 0 and 1 that is neither, however it is rounded."""
    return ((chance >> 12) + 0.5) * _BITS_52


@lru_cache(maxsize=8)
def lengths_of(text: str, seed: int, streams: int, events: int, option: str) -> Callable[[int], int]:
    """How many events stream n of `streams` has at first, `events` on average; `option` is what the workload calls the
    number of streams. ValueError if that is more than can be, or POPULATED_MAX in all, counted stream by stream."""
    within(option, streams, 1, STREAMS_MAX)
    within("events", events, 1, EVENTS_MAX)
    sizes = sizes_of(text, events, EVENTS_MAX, "lengths")
    within(f"{option} × events", streams * sizes.mean, 1, POPULATED_MAX)
    draw, own = sizes.draw, mixed(seed, _LENGTHS)
    if sizes.constant:
        return draw

    def length(n: int) -> int:
        return draw(mixed(own, n))

    within("the events of all streams", sum(map(length, range(streams))), 1, POPULATED_MAX)
    return length
