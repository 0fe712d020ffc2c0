"""What is known now: News goes in, seconds, totals, figures over the sliding window and held targets come out, all bounded.

A second is complete when a look came GRACE_S after its end. What is told of it later is put into the oldest second that is
not complete, and counted in `late`: it is never lost from the totals; only what is older than the whole history is in no
second. `due` counts the operations that were known, when their second was complete, to have been due in it, whether they had
ended or were under way. A look that brings LOOK_ROWS_MAX rows has not seen all there is, and `State` then stands at the newest
of its rows, not at the look's own time, until it has caught up. What nobody could look at for LOOK_FRESH_S is not known: there
are no figures then, and no target is held.
"""

from __future__ import annotations

import math
import sys
from collections import deque

import numpy as np
from msgspec import Struct, field
from numpy.typing import NDArray

from eventcore_lab.clock import NS_PER_S
from eventcore_lab.lab import stats
from eventcore_lab.lab.targets import Targets
from eventcore_lab.monitor.facts import EDGES_MS, NO_TIMES, Gauge, Held, Mark, News, Second, Watched
from eventcore_lab.monitor.health import LOOK_FRESH_S
from eventcore_lab.monitor.judging import held
from eventcore_lab.monitor.window import OBSERVED, STORE_EVENTS, Window
from eventcore_lab.schema import SAMPLE_WORDS, Outcome

GRACE_S = 1
LOOK_ROWS_MAX = 250_000
"""A source gives about so many rows at one look at most, and this many only if there may be more."""
MARKS_MAX, GAUGES_MAX, GAUGES_PER_SECOND_MAX = 200, 500, 120
RUNS_KNOWN_MAX = 1000
LATE_LOOK_S, SET_BACK_S, AHEAD_MAX_S = 3.0, 5.0, 60
ENDED = tuple(o for o in Outcome if o is not Outcome.RUNNING)
UNDER_WAY = ("preparing", "loading", "ending")
_EDGES = np.array(EDGES_MS)
_DUE, _BEGAN, _ACQUIRED, _ENDED, _BACKOFF, _PACKED = (
    SAMPLE_WORDS.index(name) for name in ("due_ns", "began_ns", "acquired_ns", "ended_ns", "backoff_ns", "packed")
)


class Totals(Struct):
    """Counters that only grow, since the monitor began and over all runs. `latency`: of operations that ended, how many in
    each bucket of EDGES_MS and above, of ended − due; `store` the same of ended − acquired − backoff, the time at the store.
    What was dropped never ran: it is in the last bucket of `latency` (at least that slow) and in none of `store`. `runs`:
    seen; `lost_s`: seconds in which the monitor itself was not able to look."""

    outcomes: dict[str, int] = field(default_factory=lambda: dict.fromkeys((o.name.lower() for o in ENDED), 0))
    events: int = 0
    latency: list[int] = field(default_factory=lambda: [0] * (len(EDGES_MS) + 1))
    latency_sum_s: float = 0.0
    store: list[int] = field(default_factory=lambda: [0] * (len(EDGES_MS) + 1))
    store_sum_s: float = 0.0
    runs: int = 0
    lost_s: int = 0


class _Open:
    """A second that is being built."""

    __slots__ = ("counts", "due", "events", "gauges", "is_noted", "latencies", "oldest_s", "run_id", "waiting")

    def __init__(self) -> None:
        self.run_id = ""
        self.counts = np.zeros(len(Outcome), np.int64)
        self.due = self.events = self.waiting = 0
        self.oldest_s, self.is_noted = 0.0, False
        self.latencies: list[NDArray[np.float64]] = []
        self.gauges: dict[str, float] = {}


class State:
    """See the module. `figures`: names and units of lab.measures.UNITS, NaN where there is nothing to compute one from."""

    def __init__(self, targets: Targets | None = None, window_s: float = 30.0, history_s: int = 7200) -> None:
        self.targets, self.window_s, self.history_s = targets, window_s, history_s
        self.watched: Watched | None = None
        self.history: deque[Second] = deque(maxlen=history_s)
        self.marks: deque[Mark] = deque(maxlen=MARKS_MAX)
        self.gauges: dict[str, Gauge] = {}
        self.held: list[Held] = []
        self.totals = Totals()
        self.error, self.waiting, self.oldest_s, self.late = "", 0, 0.0, 0
        self._window = Window(window_s)
        self._loaded: Watched | None = None  # the newest run that has rows or will have, and after its end still
        self._last_run = ""
        self._runs: deque[str] = deque(maxlen=RUNS_KNOWN_MAX)
        self._open: dict[int, _Open] = {}
        self._next: int | None = None
        self._at = self._seen = self._looked = -math.inf
        self._latency_sum_ns = self._store_sum_ns = 0
        self._lost_s = 0.0
        self._is_behind = self._is_stale = False
        self._stored: float | None = None
        self._waiting_ns: NDArray[np.int64] = NO_TIMES

    @property
    def figures(self) -> dict[str, float]:
        return self._window.figures

    @property
    def is_loaded(self) -> bool:
        """Whether a load is under way."""
        return self.watched is not None and self.watched.status == "loading"

    @property
    def catching_up(self) -> bool:
        """Whether there is more than one look brings, and the window ends earlier than now."""
        return self._is_behind

    @property
    def is_cut(self) -> bool:
        """Whether the window is shorter than was asked for: not all the rows that ended within it are kept, or were seen."""
        return self._window.is_short

    def fresh_s(self, now: float) -> float:
        """How long ago the newest look was that was not an error; infinitely, if there was none."""
        return max(now - self._seen, 0.0)

    def is_stale(self, now: float) -> bool:
        """Whether the newest look that was not an error is too old to tell what is now."""
        return self.fresh_s(now) > LOOK_FRESH_S

    def age(self, now: float) -> None:
        """Be as old as `now`, though no look came back: of what nobody could look at for too long there are no figures."""
        if self.is_stale(now):
            self._judge(now)

    def add(self, news: News) -> list[Second]:
        """Take in what a look has brought; gives the seconds that became complete with it, oldest first."""
        complete = self._looked_at(news)
        self._watch(news)
        self._window.cut(news.known_from_ns)
        began_ns = self._began_ns(news)
        ended_ns = news.rows[:, _ENDED] + began_ns
        self._stand(news.t, ended_ns, len(news.rows) >= LOOK_ROWS_MAX)
        self._add_rows(news.rows, ended_ns, began_ns)
        self._add_gauges(news.gauges)
        self.marks.extend(news.marks)
        if not news.error:
            self._note_waiting(news, ended_ns, began_ns)
        complete += self._completed(began_ns)
        self._window.compute(self._loaded or self.watched, self._at, self._waiting_ns)
        self._judge(news.t)
        return complete

    def _judge(self, now: float) -> None:
        self._is_stale = self.is_stale(now)
        if self._is_stale:
            self._window.blank()
        self.held = self.hold(self.targets) if self.targets else []

    def hold(self, targets: Targets) -> list[Held]:
        """Any targets, held to the window as it is now."""
        unseen_since = self._seen if self._is_stale else None
        return held(targets, self.figures, self._window.basis, self._loaded or self.watched, unseen_since)

    def _looked_at(self, news: News) -> list[Second]:
        """Note when it was looked, and whether it could be. If the wall clock was set back, what was being built is over."""
        self.error = news.error
        passed = news.t - self._looked if math.isfinite(self._looked) else 0.0
        if news.error or passed > LATE_LOOK_S:
            self._lost_s += max(passed if news.error else passed - 1, 0.0)
            self.totals.lost_s = int(self._lost_s)
        closed = self._set_back() if passed < -SET_BACK_S else []
        self._looked = news.t
        if not news.error:
            self._seen = news.t
        return closed

    def _set_back(self) -> list[Second]:
        closed = [self._close(second, 0) for second in sorted(self._open)]
        self._next, self._at = None, -math.inf
        return closed

    def _watch(self, news: News) -> None:
        """Whom this is about. A run's window begins when its load's time does; until then the one before stands."""
        watched = news.watched
        if watched is None and news.error:
            return
        before, self.watched = self.watched, watched
        if watched is None:
            return
        if watched.run_id and watched.run_id != self._last_run:
            self._last_run = watched.run_id
            self.totals.runs += watched.run_id not in self._runs
            self._runs.append(watched.run_id)
        if watched.status == OBSERVED:
            self._loaded = None
            if before is None or before.title != watched.title:  # another store, and what it counts
                self._window.begin()
                self._stored = None
        elif watched.began is not None:
            if self._loaded is None or self._loaded.run_id != watched.run_id:
                self._window.begin()
                self._waiting_ns = NO_TIMES
            self._loaded = watched

    def _began_ns(self, news: News) -> int:
        about = news.watched or self.watched
        return round(about.began * NS_PER_S) if about is not None and about.began is not None else 0

    def _stand(self, t: float, ended_ns: NDArray[np.int64], is_full: bool) -> None:
        """Up to when everything is known; and where the seconds begin, if they have not yet."""
        self._is_behind = is_full
        at = min(t, float(ended_ns.max()) / NS_PER_S) if is_full else t
        self._at = max(self._at, at)
        if self._next is None:
            self._next = min(math.floor(t), int(ended_ns.min()) // NS_PER_S if len(ended_ns) else math.floor(t))
        self._next = max(self._next, math.floor(self._at) - self.history_s)

    def _second(self, second: int) -> _Open:
        """The one that is being built for this second; the oldest that is, of one that is complete."""
        assert self._next is not None
        latest = max(math.floor(self._looked), self._next) + AHEAD_MAX_S
        second = min(max(second, self._next), latest)
        if second not in self._open:
            self._open[second] = _Open()
        return self._open[second]

    def _add_rows(self, rows: NDArray[np.int64], ended_ns: NDArray[np.int64], began_ns: int) -> None:
        if not len(rows):
            return
        assert self._next is not None
        outcome, latency_ns = rows[:, _PACKED] & 0xFF, np.maximum(rows[:, _ENDED] - rows[:, _DUE], 0)
        ms = np.where(outcome == Outcome.DROPPED, math.inf, latency_ns / 1e6)
        events = np.where(outcome == Outcome.OK, rows[:, _PACKED] >> 32, 0)
        self._count(rows, outcome, ms, int(latency_ns.sum()), int(events.sum()))
        self._window.add(rows)
        seconds = ended_ns // NS_PER_S
        self.late += int((seconds < self._next).sum())
        order = np.argsort(seconds, kind="stable")
        oldest = np.searchsorted(seconds[order], math.floor(self._at) - self.history_s)
        if len(order := order[oldest:]):
            self._add_to_seconds(seconds[order], outcome[order], events[order], ms[order])
        due = (rows[:, _DUE] + began_ns) // NS_PER_S
        for number, count in zip(*np.unique(due[due >= self._next], return_counts=True), strict=True):
            self._second(int(number)).due += int(count)

    def _add_to_seconds(
        self, seconds: NDArray[np.int64], outcome: NDArray[np.int64], events: NDArray[np.int64], ms: NDArray[np.float64]
    ) -> None:
        """Of operations in the order of the seconds they belong to."""
        numbers, firsts, which = np.unique(seconds, return_index=True, return_inverse=True)
        kinds = len(Outcome)
        counts = np.bincount(which * kinds + outcome, minlength=len(numbers) * kinds).reshape(-1, kinds)
        sums, latencies = np.add.reduceat(events, firsts).tolist(), np.split(ms, firsts[1:])
        for n, number in enumerate(numbers.tolist()):
            second = self._second(number)
            second.run_id = self._last_run
            second.counts += counts[n]
            second.events += sums[n]
            second.latencies.append(latencies[n])

    def _count(
        self, rows: NDArray[np.int64], outcome: NDArray[np.int64], ms: NDArray[np.float64], latency_ns: int, events: int
    ) -> None:
        """Add to the totals."""
        totals = self.totals
        for kind, count in zip(Outcome, np.bincount(outcome, minlength=len(Outcome)).tolist(), strict=False):
            if kind is not Outcome.RUNNING:
                totals.outcomes[kind.name.lower()] += count
        at_store_ns = np.maximum(rows[:, _ENDED] - rows[:, _ACQUIRED] - rows[:, _BACKOFF], 0)[
            outcome != Outcome.DROPPED
        ]
        totals.latency = [a + b for a, b in zip(totals.latency, _buckets(ms), strict=True)]
        totals.store = [a + b for a, b in zip(totals.store, _buckets(at_store_ns / 1e6), strict=True)]
        self._latency_sum_ns += latency_ns
        self._store_sum_ns += int(at_store_ns.sum())
        totals.latency_sum_s, totals.store_sum_s = self._latency_sum_ns / NS_PER_S, self._store_sum_ns / NS_PER_S
        totals.events += events

    def _add_gauges(self, gauges: tuple[Gauge, ...]) -> None:
        assert self._next is not None
        self._window.add_gauges(gauges)
        for gauge in gauges:
            if not math.isfinite(gauge.value):
                continue
            name = sys.intern(f"{gauge.source}.{gauge.name}")  # not a text of its own in each second of the history
            known = self.gauges.get(name)
            if (known is None and len(self.gauges) < GAUGES_MAX) or (known is not None and known.t <= gauge.t):
                self.gauges[name] = gauge
            if gauge.t >= self._next:
                values = self._second(math.floor(gauge.t)).gauges
                if name in values or len(values) < GAUGES_PER_SECOND_MAX:
                    values[name] = gauge.value
            if name == STORE_EVENTS and self.watched is not None and self.watched.status == OBSERVED:
                grown = max(int(gauge.value - self._stored), 0) if self._stored is not None else 0
                self._stored = gauge.value
                self._second(math.floor(gauge.t)).events += grown
                self.totals.events += grown

    def _note_waiting(self, news: News, ended_ns: NDArray[np.int64], began_ns: int) -> None:
        """Who is under way now, and who was at the end of each second since the last look: those who still are and were due,
        and those who had begun before it and ended after."""
        assert self._next is not None
        self._waiting_ns = news.waiting
        due_ns = news.waiting + began_ns
        self.waiting = len(due_ns)
        self.oldest_s = max(self._looked - float(due_ns.min()) / NS_PER_S, 0.0) if len(due_ns) else 0.0
        order = np.argsort(ended_ns, kind="stable")
        ended, began = ended_ns[order], np.sort(news.rows[:, _BEGAN] + began_ns)
        oldest = np.minimum.accumulate((news.rows[:, _DUE] + began_ns)[order][::-1])[::-1]
        for number in range(self._next, math.floor(self._at)):
            second, end_ns = self._second(number), (number + 1) * NS_PER_S
            if second.is_noted:
                continue
            later = int(np.searchsorted(ended, end_ns, "right"))
            ran = int(np.searchsorted(began, end_ns, "right")) - later
            waits = due_ns[due_ns <= end_ns]
            since = [int(waits.min())] if len(waits) else []
            since += [int(oldest[later])] if ran > 0 and later < len(oldest) else []
            second.is_noted = True
            second.waiting = max(ran, 0) + len(waits)
            second.oldest_s = max((end_ns - min(since)) / NS_PER_S, 0.0) if since else 0.0

    def _completed(self, began_ns: int) -> list[Second]:
        """Close the seconds whose time of grace is over."""
        assert self._next is not None
        complete = []
        while self._next + 1 + GRACE_S <= self._at:
            complete.append(self._close(self._next, began_ns))
            self._next += 1
        return complete

    def _close(self, number: int, began_ns: int) -> Second:
        built = self._open.pop(number, None) or _Open()
        ms = np.sort(np.concatenate([np.empty(0), *built.latencies]))
        heat = _buckets(ms)
        due = (self._waiting_ns + began_ns) // NS_PER_S == number
        p50, p95, p99, worst = (stats.percentile(ms, p) if len(ms) else None for p in (0.5, 0.95, 0.99, 1.0))
        is_watched = self.watched is not None and self.watched.status in UNDER_WAY
        second = Second(
            t=number,
            run_id=built.run_id or (self._last_run if is_watched else ""),
            ended=len(ms),
            **{kind.name.lower(): int(built.counts[kind]) for kind in ENDED},
            due=built.due + int(due.sum()),
            events=built.events,
            p50=p50,
            p95=p95,
            p99=p99,
            worst=worst,
            heat=tuple((n, count) for n, count in enumerate(heat) if count),
            waiting=built.waiting,
            oldest_s=built.oldest_s,
            gauges=built.gauges,
        )
        self.history.append(second)
        return second


def _buckets(ms: NDArray[np.float64]) -> list[int]:
    """How many lie in each bucket of EDGES_MS, a value at an edge in the one below it, and above the last."""
    counts: list[int] = np.bincount(np.searchsorted(_EDGES, ms, "left"), minlength=len(_EDGES) + 1).tolist()
    return counts
