"""The sliding window: the newest rows and gauges of one run, and the figures of lab.measures over them.

Each figure is computed as lab.measures defines it, from rows that are all kept, so percentiles are exact order statistics. A
window that covers the whole steady part of a run gives what the lab says of that run. What the lab never meets: operations
under way count as at least as slow as they are old. Bounded: of more rows than ROWS_MAX the oldest go. Then, and where a source
has not seen all, the window is shorter than asked, and rates are those of what is left of it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from eventcore_lab.clock import NS_PER_S
from eventcore_lab.lab import stats
from eventcore_lab.lab.measures import MIB, PERCENTILES, UNITS
from eventcore_lab.monitor.facts import Gauge, Watched
from eventcore_lab.schema import RUN_STATUS, SAMPLE_WORDS, Outcome, Phase

ROWS_MAX = 2_000_000
POINTS_MAX = 100_000
"""Values kept of one gauge; at four a second a window of seven hours."""
OBSERVED = "observed"
STORE_EVENTS = "store.events_total"
_DUE, _ENDED, _PACKED = (SAMPLE_WORDS.index(name) for name in ("due_ns", "ended_ns", "packed"))
_LOADER, _SERVER, _BUSY = "loader.pss_bytes", "server.pss_bytes", "machine.busy_percent"
_PSS = (_LOADER, _SERVER)
_KEPT = (*_PSS, _BUSY, STORE_EVENTS)


class Basis(Struct, frozen=True, kw_only=True):
    """What the figures were computed from: `samples` with a latency (those under way included), `length_s` of the window in
    which the load ran, whether the `warm-up` goes on, and whether every operation that was to be done was `answered`."""

    samples: int = 0
    length_s: float = 0.0
    is_warming_up: bool = False
    is_all_answered: bool = False


class _Part(Struct, frozen=True):
    """Rows of one look, and what they add up to; so only those at the window's edges are gone through again. `rows`: due, ended
    and packed words. `ok` and `events`: of all that are ok; the rest of steady rows. `latencies`: ms, +inf of what was not
    answered; see lab.measures.Run.latencies_ms. `is_well`: only ok and conflicts."""

    rows: NDArray[np.int64]
    first_ns: int
    last_ns: int
    ok: int
    events: int
    steady: int
    tries: int
    conflicts: int
    failures: int
    latencies: NDArray[np.float64]
    is_well: bool

    @classmethod
    def of(cls, rows: NDArray[np.int64]) -> _Part:
        """Of at least one row."""
        due, ended, word = rows.T
        outcome = word & 0xFF
        is_steady, is_ok = word >> 8 & 0x7F == Phase.STEADY, outcome == Outcome.OK
        is_conflict, is_failed = outcome == Outcome.CONFLICT, outcome == Outcome.FAILED
        tries = np.maximum(word >> 24 & 0xFF, 1)
        has_given_up = is_conflict & (tries > 1)  # lab.measures.GAVE_UP
        is_unanswered = ~(is_ok | is_conflict | is_failed) | has_given_up
        has_latency = is_steady & (is_ok | is_unanswered)
        return cls(
            rows,
            first_ns=int(ended.min()),
            last_ns=int(ended.max()),
            ok=int(is_ok.sum()),
            events=int((word[is_ok] >> 32).sum()),
            steady=int(is_steady.sum()),
            tries=int(tries[is_steady].sum()),
            conflicts=int((word[is_steady] >> 16 & 0xFF).sum()),
            failures=int((is_steady & (is_failed | is_unanswered)).sum()),
            latencies=np.where(is_ok, (ended - due) / 1e6, math.inf)[has_latency],
            is_well=not bool((is_steady & ~(is_ok | is_conflict)).any()),
        )


class Window:
    """Of one run at a time: `begin` forgets the one before. Times of rows are ns since the run began, others Unix times, s."""

    STALLED_S = 3.0
    """Who waits for longer than this was not answered, whatever others were."""

    def __init__(self, window_s: float) -> None:
        self.window_s = window_s
        self.figures: dict[str, float] = dict.fromkeys(UNITS, math.nan)
        self.basis = Basis()
        self.is_short = False
        """Whether not all the rows that ended within the window are kept, or were seen."""
        self.begin()

    def begin(self) -> None:
        """Of another run, or of none yet."""
        self._parts: deque[_Part] = deque()
        self._kept = 0
        self._cut_ns = self._last_ns = -(2**62)
        self._points: dict[str, deque[tuple[float, float]]] = {name: deque(maxlen=POINTS_MAX) for name in _KEPT}

    def cut(self, known_from_ns: int) -> None:
        """Of what ended before this not everything is known, and nothing of it counts; 0: all is known."""
        if known_from_ns:
            self._cut_ns = max(self._cut_ns, known_from_ns - 1)

    def add(self, rows: NDArray[np.int64]) -> None:
        """Rows of samples that ended, shape (n, 8)."""
        if not len(rows):
            return
        self._parts.append(part := _Part.of(rows[:, (_DUE, _ENDED, _PACKED)]))
        self._last_ns = max(self._last_ns, part.last_ns)
        self._kept += len(rows)
        while self._kept > ROWS_MAX:
            self._shorten(self._kept - ROWS_MAX)

    def _shorten(self, surplus: int) -> None:
        """Leave out the oldest part, or as much of it as must be; what ended no later than that does not count any more."""
        oldest = self._parts.popleft().rows
        oldest = oldest[np.argsort(oldest[:, 1], kind="stable")]
        self._cut_ns = max(self._cut_ns, int(oldest[: min(surplus, len(oldest)), 1].max()))
        if len(oldest) > surplus:
            self._parts.appendleft(_Part.of(oldest[surplus:].copy()))
        self._kept -= min(surplus, len(oldest))

    def add_gauges(self, gauges: Iterable[Gauge]) -> None:
        for gauge in gauges:
            points = self._points.get(f"{gauge.source}.{gauge.name}")
            if points is not None and math.isfinite(gauge.value):
                points.append((gauge.t, gauge.value))

    def blank(self) -> None:
        """No figures, of nothing; what they are computed from is kept."""
        self.figures = dict.fromkeys(UNITS, math.nan)
        self.basis, self.is_short = Basis(), False

    def compute(self, watched: Watched | None, at: float, waiting_ns: NDArray[np.int64]) -> None:
        """Set `figures` and `basis` for the window that ends at `at`. `waiting_ns`: due times of operations under way."""
        self.blank()
        for points in self._points.values():
            while points and points[0][0] < at - self.window_s:
                points.popleft()
        if watched is not None and watched.began is not None:
            self._of_run(watched, watched.began, at, waiting_ns)
        elif watched is not None and watched.status == OBSERVED:
            self._observed()

    def _of_run(self, watched: Watched, began: float, at: float, waiting_ns: NDArray[np.int64]) -> None:
        at_ns = round((at - began) * NS_PER_S)
        first_ns = at_ns - int(self.window_s * NS_PER_S)
        self.is_short = self._cut_ns >= first_ns
        parts = self._within(first_ns, max(first_ns, self._cut_ns + 1))
        low_ns, high_ns = self._bounds(watched, max(first_ns, self._cut_ns + 1), at_ns)
        waiting_ns = waiting_ns[waiting_ns >= int(watched.warmup_s * NS_PER_S)]
        samples = self._latencies(parts, at_ns - waiting_ns)
        self._shares(parts)
        if high_ns > low_ns and (self._last_ns >= 0 or len(waiting_ns)):
            self._rates(parts, low_ns, high_ns)
        self._of_gauges(watched, began, low_ns, high_ns)
        is_stalled = bool(len(waiting_ns)) and at_ns - int(waiting_ns.min()) > self.STALLED_S * NS_PER_S
        self.basis = Basis(
            samples=samples,
            length_s=max((high_ns - low_ns) / NS_PER_S, 0.0),
            is_warming_up=watched.status == "loading" and at_ns < watched.warmup_s * NS_PER_S,
            is_all_answered=not is_stalled and all(part.is_well for part in parts),
        )

    def _bounds(self, watched: Watched, first_ns: int, at_ns: int) -> tuple[int, int]:
        """The steady part of the run within the window, as lab.measures.Run.window_ns has the whole."""
        warmup_ns = int(watched.warmup_s * NS_PER_S)
        end_ns = warmup_ns + int(watched.duration_s * NS_PER_S)
        if watched.status in RUN_STATUS and watched.status != "complete" and self._last_ns >= 0:
            end_ns = min(end_ns, max(self._last_ns, warmup_ns + 1))
        return max(first_ns, warmup_ns), min(end_ns, at_ns)

    def _within(self, first_ns: int, from_ns: int) -> list[_Part]:
        """What ended at `from_ns` or later; parts that ended before the window begins, at `first_ns`, are let go of."""
        while self._parts and self._parts[0].last_ns < first_ns:
            self._kept -= len(self._parts.popleft().rows)
        return [
            part if part.first_ns >= from_ns else _Part.of(part.rows[part.rows[:, 1] >= from_ns])
            for part in self._parts
            if part.last_ns >= from_ns
        ]

    def _latencies(self, parts: list[_Part], ages_ns: NDArray[np.int64]) -> int:
        """The percentiles, and of how many values."""
        values = np.concatenate([np.maximum(ages_ns, 0) / 1e6, *(part.latencies for part in parts)])
        n = len(values)
        if n:
            nth = {name: max(math.ceil(p * n - 1e-9), 1) - 1 for name, p in PERCENTILES.items()}  # stats.percentile
            values.partition(sorted(set(nth.values())))
            self.figures |= {name: float(values[k]) for name, k in nth.items()}
        return n

    def _shares(self, parts: list[_Part]) -> None:
        """Conflicts and failures among the steady rows, %."""
        if steady := sum(part.steady for part in parts):
            tries, conflicts = sum(part.tries for part in parts), sum(part.conflicts for part in parts)
            self.figures["conflicts/attempts"] = 100 * conflicts / tries
            self.figures["failures/attempts"] = 100 * sum(part.failures for part in parts) / steady

    def _rates(self, parts: list[_Part], low_ns: int, high_ns: int) -> None:
        """Operations and events per second that ended in the steady part, whenever they were due."""
        ok = events = 0
        for part in parts:
            if part.first_ns < low_ns or part.last_ns >= high_ns:
                ended = part.rows[:, 1]
                rows = part.rows[(ended >= low_ns) & (ended < high_ns)]
                if not len(rows):
                    continue
                part = _Part.of(rows)
            ok, events = ok + part.ok, events + part.events
        length_s = (high_ns - low_ns) / NS_PER_S
        self.figures["commands_per_second"], self.figures["events_per_second"] = ok / length_s, events / length_s

    def _of_gauges(self, watched: Watched, began: float, low_ns: int, high_ns: int) -> None:
        """Memory and processor: of the loader no look after the load's end, for then it writes down its evidence."""
        is_over = watched.status != "loading" and self._last_ns >= 0
        load_ends = began + self._last_ns / NS_PER_S if is_over else math.inf
        low, high = began + low_ns / NS_PER_S, began + high_ns / NS_PER_S
        loader = [(t, value) for t, value in self._points[_LOADER] if t <= load_ends]
        peaks = [value for _, value in (*loader, *self._points[_SERVER])]
        steady = np.array([(t - began, value) for t, value in loader if low <= t <= high]).reshape(-1, 2)
        busy = [value for t, value in self._points[_BUSY] if low <= t <= high]
        self.figures["memory"] = max(peaks, default=math.nan) / MIB
        self.figures["memory_growth"] = stats.growth(steady[:, 0], steady[:, 1] / MIB).value
        self.figures["cpu"] = float(np.mean(busy)) if busy else math.nan

    def _observed(self) -> None:
        """What a store that is only observed tells."""
        if len(points := self._points[STORE_EVENTS]) > 1 and points[-1][0] > points[0][0]:
            values = np.array([value for _, value in points])
            grown = float(np.maximum(np.diff(values), 0).sum())
            self.figures["events_per_second"] = grown / (points[-1][0] - points[0][0])
        self.figures["memory"] = max((v for name in _PSS for _, v in self._points[name]), default=math.nan) / MIB
        if busy := [value for _, value in self._points[_BUSY]]:
            self.figures["cpu"] = float(np.mean(busy))
