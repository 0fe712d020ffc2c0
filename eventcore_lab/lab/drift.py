"""Did it stay as it was for hours? A soak's legs put together: blocks of time, slopes with intervals, and what they come to.

A leak and a slow decay show as a slope, not as a level: Theil's and Sen's median of all pairwise slopes over BLOCKS blocks of
time, each of which is one value (outages and other rare things do not bend it), with an interval at 95 % that holds where
neighbours are alike (stats.trend). It is carried on for some hours beyond the end, never for longer than CARRIED_ON times what
was seen.

What fills up does not leak: a server's buffers, and caches, grow until they are full. So growth is told of only where the last
half alone shows it as well (Slope.grows).
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import msgspec
import numpy as np
import polars as pl
from msgspec import Struct
from numpy.typing import NDArray

from eventcore_lab.clock import NS_PER_S
from eventcore_lab.lab import stats
from eventcore_lab.lab.database import Lab, UnknownRun
from eventcore_lab.lab.measures import MIB, Run
from eventcore_lab.lab.table import Table
from eventcore_lab.lab.targets import Judgement, Targets, Threshold, Verdict, judge
from eventcore_lab.lab.wording import digits, enumerated, percent

BLOCKS = 60
BLOCK_MIN_S = 0.25
CARRIED_ON, CARRIED_ON_MAX_H = 3.0, 24.0
"""A slope is carried on for so many times what was seen, and at most for so many hours."""
LEVEL_SHARE = 0.25
"""Where it is now: the median of the last quarter of the blocks."""
SHORT_H = 1 / 6
"""A soak shorter than this says nothing of hours."""
_LABEL = re.compile(
    r"soak (?P<id>[\w-]+) leg (?P<leg>\d+) of (?P<hours>[\d.e-]+) h(?: held to (?P<targets>.+))?", re.DOTALL
)
_JUDGED = ("p50", "p95", "p99", "memory")

_HAS_LATENCY = "run_id = ? AND due_ns >= ? AND (outcome IN (0, 1, 3, 4, 5) OR outcome = 2 AND attempts > 1)"
_COUNTED = f"SELECT count(*) AS n, count(*) FILTER (outcome <> 1) AS unwell FROM samples WHERE {_HAS_LATENCY}"
_IN_BLOCKS = f"""
    SELECT block, count(*) AS n, quantile_disc(ms, [0.5, 0.95, 0.99]) FILTER (outcome <> 3) AS ps,
           max(ms) FILTER (outcome <> 3) AS worst, count(*) FILTER (outcome <> 1) AS unwell
    FROM (SELECT due_ns // ? AS block, outcome,
                 CASE WHEN outcome = 1 THEN (ended_ns - due_ns) / 1e6 ELSE 'inf'::DOUBLE END AS ms
          FROM samples WHERE {_HAS_LATENCY})
    GROUP BY block ORDER BY block"""


class Leg(NamedTuple):
    """What the label of a leg says: whose it is, and how long and against which targets (may be empty) that soak is."""

    soak_id: str
    run_id: str
    hours: float
    targets: str


def label_of(soak_id: str, leg: int, hours: float, targets: str = "") -> str:
    """What a leg of a soak of so many hours is labelled with; `Soak` finds it by that."""
    return f"soak {soak_id} leg {leg} of {hours!r} h" + (f" held to {targets}" if targets else "")


class Slope(Struct, frozen=True):
    """How a figure changes per hour (`per_hour`, with its interval, in `unit` per hour; `early` and `lately` of either half
    alone) and where it is now. `leg`: which it is of, 0 for all, and which `life` of its process in it."""

    name: str
    unit: str
    per_hour: stats.Estimate
    early: stats.Estimate
    lately: stats.Estimate
    level: float
    span_h: float
    leg: int = 0
    life: int = 0

    @property
    def carried_on_h(self) -> float:
        return min(CARRIED_ON * self.span_h, CARRIED_ON_MAX_H)

    @property
    def grows(self) -> bool:
        """Whether it is shown to grow, and to go on: the last half's interval is above zero, and that of the whole or of the
        first half too; or above the first half's, for what begins late. A bend makes the interval of the whole wide. Of 400
        flat soaks 1 % seem to grow (AR(1) of 0.9: 3 %); of those that grew by 5 standard deviations of a block 89 % are
        found, and by 10 all (0.5: 50 and 88 %, 0.9: 23 and 46 %)."""
        whole, early, lately = self.per_hour, self.early, self.lately
        return lately.low > 0 and (whole.low > 0 or early.low > 0 or lately.low > early.high)

    @property
    def growth(self) -> str:
        """What of its growth is shown, in words."""
        whole, lately = self.per_hour, self.lately
        if self.grows:
            return "shown"
        if not (whole.has_interval and lately.has_interval):
            return "too few blocks to tell"
        if whole.low > 0:
            return "not shown of the last half"
        if lately.low > 0:
            return "of the last half alone"
        return "it falls" if whole.high < 0 else "not shown"

    @property
    def changes(self) -> bool:
        """Whether an interval leaves zero out: that of the whole, or of the last half."""
        return any(e.low > 0 or e.high < 0 for e in (self.per_hour, self.lately))


class Soak:
    """The legs of a soak, in order, as the Lab has them. Raises UnknownRun where there are none of that id."""

    def __init__(self, lab: Lab, soak_id: str = "") -> None:
        """`soak_id` empty: the newest."""
        found = legs_of(lab, soak_id)
        if not found:
            raise UnknownRun(f"no soak {soak_id!r} in {lab.path}" if soak_id else f"no soak in {lab.path}")
        self.lab = lab
        self.soak_id, _, self.hours, self.targets = found[-1]
        runs = (Run(lab, leg.run_id) for leg in found if leg.soak_id == self.soak_id)
        self.legs = sorted(runs, key=lambda leg: leg.row["started_at"])

    @property
    def done_h(self) -> float:
        """How much of the time was measured, warm-ups aside."""
        return sum(_measured_s(leg) for leg in self.legs) / 3600

    @cached_property
    def operations(self) -> tuple[int, int]:
        """How many were due after the warm-ups, and how many of those were not ok."""
        n, unwell = zip(*(self.lab.sql(_COUNTED, [leg.run_id, leg.warmup_ns]).row(0) for leg in self.legs), strict=True)
        return sum(n), sum(unwell)

    @cached_property
    def blocks(self) -> pl.DataFrame:
        """Columns t_h (hours since the first leg began, the block's middle), leg, n, rate (operations that are due, per
        second), unwell, p50, p95, p99, worst (ms; +inf where that many were not answered); one row per whole block."""
        block_s = max(sum(_measured_s(leg) for leg in self.legs) / BLOCKS, BLOCK_MIN_S)
        frames = [self._blocks_of(n, leg, int(block_s * NS_PER_S)) for n, leg in enumerate(self.legs, 1)]
        return pl.concat(frames)

    def _blocks_of(self, n: int, leg: Run, block_ns: int) -> pl.DataFrame:
        found = self.lab.sql(_IN_BLOCKS, [block_ns, leg.run_id, leg.warmup_ns])
        none = [math.nan] * 3  # a block in which everything failed at once
        ps = np.asarray([p or none for p in found["ps"].to_list()], np.float64).reshape(-1, 3)
        began_h = (leg.row["started_at"] - self.legs[0].row["started_at"]).total_seconds() / 3600
        frame = pl.DataFrame(
            {
                "t_h": began_h + (found["block"].to_numpy() + 0.5) * block_ns / NS_PER_S / 3600,
                "leg": np.full(len(found), n),
                "n": found["n"],
                "rate": found["n"].to_numpy() * NS_PER_S / block_ns,
                "unwell": found["unwell"],
                **{name: ps[:, i] for i, name in enumerate(("p50", "p95", "p99"))},
                "worst": found["worst"].cast(pl.Float64),
            }
        )
        first, last = (
            -(-leg.warmup_ns // block_ns),
            leg.window_ns[1] // block_ns,
        )  # a block cut by either end is no block
        return frame.filter(found["block"].is_between(first, last - 1).to_numpy())

    def memory(self, source: str) -> pl.DataFrame:
        """Columns t_h, leg, life, mib: the PSS of the loader or the server in the steady parts of the legs. `life` counts how
        often its processes had gone and others had come."""
        frames = []
        for n, leg in enumerate(self.legs, 1):
            series = leg.memory_of(source).filter(pl.col("t_ns").is_between(*leg.window_ns))
            began_h = (leg.row["started_at"] - self.legs[0].row["started_at"]).total_seconds() / 3600
            t_ns, mib = series["t_ns"].to_numpy(), series["value"].to_numpy() / MIB
            gone = leg.gauge(source, "processes", steady=False).filter(pl.col("value") == 0)["t_ns"].to_numpy()
            life = np.unique(np.searchsorted(gone, t_ns), return_inverse=True)[1]
            t_h = began_h + t_ns / NS_PER_S / 3600
            frames.append(pl.DataFrame({"t_h": t_h, "leg": np.full(len(series), n), "life": life, "mib": mib}))
        return pl.concat(frames)

    @cached_property
    def slopes(self) -> dict[str, Slope]:
        """Of p50, p95 and p99 (of blocks that were answered), and of the memory of each process that has any. Memory begins
        anew with each leg, in the server with each restart as well, so its slope is that of the longest time without."""
        found = {}
        for name in ("p50", "p95", "p99"):
            known = self.blocks.filter(pl.col(name).is_finite())
            found[name] = _slope(name, "ms", known["t_h"].to_numpy(), known[name].to_numpy())
        for source in ("loader", "server"):
            lives = self.memory(source).partition_by("leg", "life", maintain_order=True)
            if lives:
                longest = max(lives, key=lambda life: life["t_h"][-1] - life["t_h"][0])
                name = f"memory of the {source}"
                slope = _slope(name, "MiB", longest["t_h"].to_numpy(), longest["mib"].to_numpy())
                found[name] = msgspec.structs.replace(slope, leg=longest["leg"][0], life=longest["life"][0])
        return found

    def verdict(self, targets: Targets) -> Verdict:
        """The targets held by the leg that took longest, every leg's invariants, and what its slopes lead to."""
        longest = max(self.legs, key=_measured_s)
        judged = judge(targets, longest, *self.legs)
        drifts = [j for name in _JUDGED for j in self._drifts(name, targets, longest.run_id)]
        broken = [_broke(n, leg) for n, leg in enumerate(self.legs, 1) if leg.row["status"] == "broken"]
        judgements = *judged.judgements, *drifts, *broken
        verdict = Verdict(f"soak of {spoken(self.done_h)}, {targets.title}", judgements)
        of = tuple(leg.run_id for leg in self.legs)
        return msgspec.structs.replace(verdict, answer=self._answer(verdict), runs=of)

    def _drifts(self, name: str, targets: Targets, run_id: str) -> Sequence[Judgement]:
        thresholds = [t for t in targets.thresholds if t.name == name and t.is_max]
        slopes = [s for key, s in self.slopes.items() if key == name or key.startswith(f"{name} of")]
        return [_carried_on(s, t, run_id) for t in thresholds for s in slopes]

    def _answer(self, verdict: Verdict) -> str:
        """What it came to, with every change whose interval leaves zero out."""
        judged = {j.name.removesuffix(", growth"): j.status for j in verdict.targets if j.unit.endswith("/h")}
        drifting = [s for s in self.slopes.values() if judged.get(s.name) == "fail"]
        growing = [s for s in self.slopes.values() if s.grows and s not in drifting]
        changed = [s for s in self.slopes.values() if s.changes and not s.grows]
        said = [self._took()]
        if drifting:
            said[0] += f", and does not stay as it is: {_all_told(drifting)}"
        elif not growing and not changed:
            said[0] += self._nothing_grew()
        if growing:
            is_far = {judged.get(s.name) for s in growing} == {"pass"}
            far = f"; no limit is reached within {spoken(growing[0].carried_on_h)} more" if is_far else ""
            said.append(f"Growth was shown: {_all_told(growing)}{far}")
        if changed:
            told = "; ".join(f"{s.name} {_told(s)} ({s.growth})" for s in changed)
            said.append(f"Growth that goes on was not shown, but {told}")
        if self.done_h < SHORT_H and (drifting or len(said) > 1):
            said.append("Slopes of minutes are no slopes of hours")
        return ". ".join(said) + "."

    def _took(self) -> str:
        count, unwell = self.operations
        legs = f" in {len(self.legs)} legs" if len(self.legs) > 1 else ""
        share = f", {unwell:,} of which ({percent(unwell / count)}) failed or had no answer," if unwell else ""
        took = f"{self.legs[0].row['store']} took {f'{count:,}' if count else 'no'} operations{share}"
        return f"{took} over {spoken(self.done_h)}{legs}{self._unread()}"

    def _nothing_grew(self) -> str:
        if self.done_h < SHORT_H:
            return ", too short to tell whether anything grows: slopes of minutes are no slopes of hours"
        short = [s.name for s in self.slopes.values() if not (s.per_hour.has_interval and s.lately.has_interval)]
        if short:
            return f", with too few blocks of time to tell whether there is growth of {enumerated(short)}"
        return ", and no growth of latency or memory was shown"

    def _unread(self) -> str:
        """Which legs ended before what they had stored was read back."""
        unread = [n for n, leg in enumerate(self.legs, 1) if not leg.marks.filter(pl.col("name") == "read back").height]
        found = [str(n) for n in unread if self.legs[n - 1].row["status"] != "complete"]
        return f" (what leg {enumerated(found)} stored was not read back)" if found else ""

    def told(self) -> str:
        """One line per slope, for a terminal."""
        return "\n".join(f"{s.name}: now {_now(s)}, {_told(s)}; growth: {s.growth}" for s in self.slopes.values())

    def table(self) -> Table:
        """One row per slope: the figure, now (the median of the last quarter), its change per hour in all and in the last
        half alone, each with its interval at 95 %."""
        heads = ["figure", "now", "change per hour", "of the last half alone", "growth"]
        rows = [
            (
                s.name,
                _now(s),
                _change(s.per_hour, s.unit),
                _change(s.lately, s.unit),
                s.growth,
            )
            for s in self.slopes.values()
        ]
        return Table(heads, rows)


def legs_of(lab: Lab, soak_id: str = "") -> list[Leg]:
    """Every leg of a soak, or of all soaks, oldest first; the last is of the newest."""
    rows = lab.sql("SELECT label, run_id FROM runs WHERE starts_with(label, 'soak ') ORDER BY run_id").iter_rows()
    found = [
        Leg(m["id"], run_id, float(m["hours"]), m["targets"] or "")
        for label, run_id in rows
        if (m := _LABEL.fullmatch(label))
    ]
    return [leg for leg in found if not soak_id or leg.soak_id == soak_id]


def _measured_s(leg: Run) -> float:
    start, end = leg.window_ns
    return max(end - start, 0) / NS_PER_S if leg.row["status"] == "complete" or len(leg.samples) else 0.0


def _broke(number: int, leg: Run) -> Judgement:
    """Of a leg that ended by itself: whatever else was met, it did not do what it should."""
    nothing, reason = (math.nan,) * 3, leg.row["status_reason"]
    return Judgement(
        "target", f"leg {number}", "ends well", *nothing, "", "inconclusive", f"broken: {reason}", leg.run_id
    )


def _slope(name: str, unit: str, t_h: NDArray[np.float64], values: NDArray[np.float64]) -> Slope:
    if len(values) < 2:
        return Slope(name, unit, stats.NOTHING, stats.NOTHING, stats.NOTHING, math.nan, 0.0)
    at = np.argsort(t_h, kind="stable")
    t_h, values = t_h[at], values[at]
    if len(values) > BLOCKS:  # gauges: one median per block, for neighbours are alike
        parts = [part for part in np.array_split(np.arange(len(values)), BLOCKS) if len(part)]
        t_h, values = (np.asarray([np.median(a[part]) for part in parts]) for a in (t_h, values))
    last, half = max(1, int(len(values) * LEVEL_SHARE)), len(values) // 2
    level, span_h = float(np.median(values[-last:])), float(t_h[-1] - t_h[0])
    whole, early, lately = (stats.trend(t_h[of], values[of]) for of in (slice(None), slice(half), slice(half, None)))
    return Slope(name, unit, whole, early, lately, level, span_h)


def _carried_on(slope: Slope, threshold: Threshold, run_id: str) -> Judgement:
    """Where the figure would be in some hours, at either end of the slope's intervals, against its limit. It fails where it
    grows, and the lower end of either interval reaches the limit; it passes where the upper end of one does not, and the lower
    end of the other does not either."""
    e, lately, hours = slope.per_hour, slope.lately, slope.carried_on_h
    limit = f"{threshold} in {spoken(hours)} more"
    allowed = (threshold.limit - slope.level) / hours if hours else math.nan
    now = f"now {_now(slope)}"
    half = f"{now}; over the last half it changes by {_change(lately, slope.unit)} per hour"
    reach = f"{half}; {_signed(allowed)} {slope.unit} per hour would reach the limit"
    if math.isnan(slope.level):
        status, reason = "inconclusive", "nothing was recorded to measure it from"
    elif not (e.has_interval and lately.has_interval):
        of = " of the last half" if e.has_interval else ""
        status, reason = "inconclusive", f"{now}; too few blocks of time for an interval{of}; run it longer"
    elif allowed <= 0:
        status, reason = "inconclusive", f"{half}; it is over the limit already"
    elif slope.grows and max(e.low, lately.low) >= allowed:
        fastest = max(e, lately, key=lambda each: each.low)
        status, reason = "fail", f"{half}; the limit is reached in {spoken(allowed / fastest.value * hours)}"
    elif min(e.high, lately.high) < allowed and max(e.low, lately.low) < allowed:
        status, reason = "pass", reach
    else:
        status, reason = "inconclusive", f"{reach}, which the intervals allow; run it longer"
    unit = f"{slope.unit}/h"
    return Judgement("target", f"{slope.name}, growth", limit, e.value, e.low, e.high, unit, status, reason, run_id)


def spoken(hours: float) -> str:
    """A length of time in the unit that people would say it in."""
    size, unit = (hours, "h") if hours >= 2 else (hours * 60, "min") if hours >= 1 / 20 else (hours * 3600, "s")
    return f"{size:,.3g} {unit}" if size < 1000 else f"{size:,.0f} {unit}"


def _all_told(slopes: Sequence[Slope]) -> str:
    return "; ".join(f"{s.name} {_told(s)}" for s in slopes)


def _told(slope: Slope) -> str:
    """How it changes: over all the time, or over the last half where only that leaves zero out."""
    e, lately = slope.per_hour, slope.lately
    if math.isnan(e.value):
        return "not measured often enough to see it change"
    is_late = slope.changes and not (e.low > 0 or e.high < 0)
    over = (
        " over the last half" if is_late else "" if e.has_interval else ", with too few blocks of time for an interval"
    )
    return f"changes by {_change(lately if is_late else e, slope.unit)} per hour{over}"


def _change(e: stats.Estimate, unit: str) -> str:
    if math.isnan(e.value):
        return "–"
    interval = f" [{_signed(e.low)} – {_signed(e.high)}]" if e.has_interval else ""
    return f"{_signed(e.value)} {unit}{interval}"


def _signed(value: float) -> str:
    return f"{'+' if value > 0 else '−' if value < 0 else ''}{digits(abs(value))}"


def _now(slope: Slope) -> str:
    return "–" if math.isnan(slope.level) else f"{digits(slope.level)} {slope.unit}"
