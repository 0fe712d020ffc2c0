"""Which part of a trace is played again, and how fast: what the pacer and the workload called `trace` have in common.

Both make a `Replay` of the same options, so that operation k of the one is operation k of the other. Nothing of this is
left to a run's seed: what is thinned out is a pure function of `thin_seed` and of the operation's, or the stream's, place in
the log, and a smaller `keep` keeps a part of what a larger one does. The workload's seed names the streams, that is all.
"""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache
from math import isqrt

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from eventcore_lab.clock import NS_PER_S
from eventcore_lab.load.stamps import Ints, Mask
from eventcore_lab.load.traces import Reading, Trace, read_trace
from eventcore_lab.spec import unknown

THINNINGS = ("operations", "streams")
SPEED_MIN, SPEED_MAX = 1e-6, 1e9
PASSES_MAX = 100_000
"""More copies of the log than this in one schedule are refused."""


class Replay(Struct, frozen=True, kw_only=True):
    """What of which log. `speed`: how many times faster than it was; the workload does not care. `keep`: the share kept;
    `thin`: of what, `operations` one by one, or `streams`, each with its whole story (an operation goes on with the
    streams that are left to it, and is dropped with the last). `from_s`, `to_s`: a window, in seconds of the log since its
    beginning; to_s=0 is to its end. `repeat`: begin again after the end."""

    reading: Reading
    speed: float = 1.0
    keep: float = 1.0
    thin: str = "operations"
    thin_seed: int = 0
    from_s: float = 0.0
    to_s: float = 0.0
    repeat: bool = True

    def __post_init__(self) -> None:
        if not SPEED_MIN <= self.speed <= SPEED_MAX:
            raise ValueError(f"speed must be {SPEED_MIN:g} to {SPEED_MAX:g}, not {self.speed:g}")
        if not 0 < self.keep <= 1:
            raise ValueError(f"keep must be above 0 and at most 1, not {self.keep:g}")
        if self.thin not in THINNINGS:
            raise unknown("thinning", self.thin, THINNINGS)
        if not 0 <= self.thin_seed < 2**63:
            raise ValueError(f"thin_seed must be 0 to 2^63 - 1, not {self.thin_seed}")
        if self.from_s < 0 or (self.to_s and self.to_s <= self.from_s):
            raise ValueError(f"a window goes from from_s, 0 or later, to a to_s behind it, not {self._window}")

    @property
    def _window(self) -> str:
        return f"from {self.from_s:g} s to {f'{self.to_s:g} s' if self.to_s else 'the end'}"

    @property
    def selection(self) -> Selection:
        """What is played; made once for the same part of the same log. ValueError if nothing is left of it."""
        return _selected(read_trace(self.reading), self.keep, self.thin, self.thin_seed, self.from_s, self.to_s)

    @property
    def said(self) -> str:
        """What is played, after what was read, in one line."""
        selection, trace = self.selection, self.selection.trace
        part = []
        if self.keep < 1:
            part.append(f"keep={self.keep:g} of its {self.thin}, thin_seed={self.thin_seed}")
        if self.from_s or self.to_s:
            part.append(self._window)
        left = f"; played: {len(selection):,} operations with {len(selection.stream):,} events ({', '.join(part)})"
        return f"{trace.name}, sha256 {trace.digest}: {trace.said}{left if part else ''}"


class Selection(Struct, frozen=True, eq=False):
    """The operations that are played, numbered anew, with the columns of a Trace; `at_ns` counts from the beginning of the
    window. `before` (one entry per event): how many events of its stream come before it."""

    trace: Trace
    at_ns: Ints
    begins: Ints
    stream: NDArray[np.int32]
    type: NDArray[np.int32]
    before: Ints

    def __len__(self) -> int:
        return len(self.at_ns)

    @property
    def pass_ns(self) -> int:
        """From an operation to the same one in the next copy: as long as the log, and a mean gap. 0 if it has no length."""
        first, last = int(self.at_ns[0]), int(self.at_ns[-1])
        return last - first + round((last - first) / max(1, len(self) - 1))

    def due_below(self, end_ns: int, speed: float, repeat: bool) -> int:
        """How many operations are due before `end_ns`, at that speed."""
        per, of = _ratio(speed)
        before_ns = -(-end_ns * per // of)  # due = ⌊at × of ÷ per⌋ < end just if at < ⌈end × per ÷ of⌉
        if not repeat:
            return self._due_within(before_ns)
        whole = max(0, -(-(before_ns - int(self.at_ns[-1])) // self.pass_ns))
        return whole * len(self) + self._due_within(before_ns - whole * self.pass_ns)

    def _due_within(self, before_ns: int) -> int:
        return int(np.searchsorted(self.at_ns, max(0, min(before_ns, 2**63 - 1)), side="left"))

    def due(self, end_ns: int, speed: float, repeat: bool) -> Ints:
        """When they are due: exactly ⌊time ÷ speed⌋ ns. ValueError for more than PASSES_MAX copies."""
        count = self.due_below(end_ns, speed, repeat)
        passes = -(-count // len(self))
        if passes > PASSES_MAX:
            raise ValueError(f"more than {PASSES_MAX:,} copies of the log in one run; it is too short for this speed")
        per, of = _ratio(speed)
        # In two parts each, for 64 bits do not hold the product; what is left of a division is below `per`.
        at_ns = self.at_ns[:count]
        whole, rest = at_ns // per, at_ns % per
        begins = np.array([divmod(n * self.pass_ns * of, per) for n in range(passes)], np.int64).reshape(-1, 2)
        due = begins[:, :1] + (whole * of + (rest * of + begins[:, 1:]) // per)
        return due.reshape(-1)[:count]


def _ratio(speed: float) -> tuple[int, int]:
    """`speed` as a fraction per/of, such that `per` × `of` stays within 62 bits."""
    found = Fraction(repr(speed)).limit_denominator(isqrt(2**62 // max(1, int(speed) + 1)))
    return found.numerator, found.denominator


@lru_cache(maxsize=2)
def _selected(trace: Trace, keep: float, thin: str, thin_seed: int, from_s: float, to_s: float) -> Selection:
    begin_ns = round(from_s * NS_PER_S)
    is_kept = trace.at_ns >= begin_ns
    if to_s:
        is_kept &= trace.at_ns < round(to_s * NS_PER_S)
    operation = np.repeat(np.arange(len(trace)), np.diff(trace.begins))
    if thin == "streams":
        events = is_kept[operation] & _chosen(len(trace.streams), keep, thin_seed)[trace.stream]
    else:
        events = (is_kept & _chosen(len(trace), keep, thin_seed))[operation]
    kept = np.flatnonzero(events)
    if not len(kept):
        raise ValueError(f"nothing is left of {trace.name} with keep={keep:g}, from_s={from_s:g}, to_s={to_s:g}")
    operations, sizes = np.unique(operation[kept], return_counts=True)
    begins = np.concatenate([[0], np.cumsum(sizes)])
    stream = trace.stream[kept]
    at_ns = trace.at_ns[operations] - begin_ns
    return Selection(trace, at_ns, begins, stream, trace.type[kept], _before(stream))


def _chosen(count: int, keep: float, seed: int) -> Mask:
    """Which of so many are kept, each by a chance of its own."""
    if keep == 1:
        return np.ones(count, np.bool_)
    return mixed_each(seed, np.arange(count, dtype=np.uint64)) < np.uint64(int(keep * 2**64))


def mixed_each(seed: int, k: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """chance.mixed for many numbers."""
    first = np.uint64(seed * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF)
    z = first + (k + np.uint64(1)) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(z ^ (z >> np.uint64(31)))


def _before(stream: NDArray[np.int32]) -> Ints:
    """How many entries with the same number come before each."""
    order = np.argsort(stream, kind="stable")
    grouped = stream[order]
    is_first = np.concatenate([[True], grouped[1:] != grouped[:-1]])
    begins = np.maximum.accumulate(np.where(is_first, np.arange(len(grouped)), 0))
    before = np.empty(len(stream), np.int64)
    before[order] = np.arange(len(grouped)) - begins
    return before
