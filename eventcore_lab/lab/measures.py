"""Every number there is, from the facts of one run: throughput, latency percentiles, memory, processor. Nothing is stored;
what is printed anywhere was computed here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import polars as pl
from msgspec import Struct
from numpy.typing import NDArray

from eventcore_lab.clock import NS_PER_S
from eventcore_lab.lab import stats
from eventcore_lab.lab.database import Lab
from eventcore_lab.schema import CENSORED, Outcome, Phase

PERCENTILES: Mapping[str, float] = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99, "p99.9": 0.999}
UNITS: Mapping[str, str] = {
    "commands_per_second": "/s",
    "events_per_second": "/s",
    **dict.fromkeys(PERCENTILES, "ms"),
    "memory": "MiB",
    "memory_growth": "MiB",
    "cpu": "%",
    "conflicts/attempts": "%",
    "failures/attempts": "%",
}
"""Name of every figure that can be judged, and its unit."""
GAVE_UP = (pl.col("outcome") == int(Outcome.CONFLICT)) & (pl.col("attempts").fill_null(1) > 1)
"""An operation that met conflicts, tried again, and was not done in the end. (A single append that conflicts was answered.)"""
MIB = 1024 * 1024


class Figure(Struct, frozen=True):
    """One number of one run, with its interval at 95 % and what a reader must know about it."""

    name: str
    estimate: stats.Estimate
    run_id: str
    note: str = ""

    @property
    def unit(self) -> str:
        return UNITS[self.name]


_in_use: WeakValueDictionary[tuple[Path, str], Run] = WeakValueDictionary()


class Run:
    """One run as the Lab holds it. Facts are read when first asked for; figures are computed from them."""

    def __init__(self, lab: Lab, run_id: str) -> None:
        self.lab, self.row = lab, lab.run_row(run_id)
        self.run_id: str = self.row["run_id"]
        _in_use.setdefault((lab.path.resolve(), self.run_id), self)

    @classmethod
    def of(cls, lab: Lab, run_id: str) -> Run:
        """The run as this process has it already, with what was read and computed of it, or else anew: what is stored of a
        run does not change."""
        return _in_use.get((lab.path.resolve(), run_id)) or cls(lab, run_id)

    def __repr__(self) -> str:
        r = self.row
        return f"Run({self.run_id}: {r['store']}, {r['workload']}, {r['pacer']}, {r['status']})"

    def _repr_html_(self) -> str:
        frame: str = self.summary()._repr_html_()
        return frame

    @cached_property
    def samples(self) -> pl.DataFrame:
        return self.lab.samples(self.run_id)

    @cached_property
    def gauges(self) -> pl.DataFrame:
        return self.lab.gauges(self.run_id)

    @cached_property
    def marks(self) -> pl.DataFrame:
        return self.lab.marks(self.run_id)

    @cached_property
    def invariants(self) -> pl.DataFrame:
        return self.lab.invariants(self.run_id)

    @cached_property
    def readers(self) -> pl.DataFrame:
        """One row per follower: what it was given, and how late. See readers.py for the columns."""
        return self.lab.readers(self.run_id)

    def promises(self, claim: str) -> bool:
        """Whether the store makes this claim of the conformance suite."""
        return claim not in (self.row["lacks"] or "").splitlines()

    @property
    def is_closed_loop(self) -> bool:
        return bool(self.row["is_closed_loop"])

    @property
    def latency_word(self) -> str:
        """A closed loop has no due times of its own, so what it shows is never called latency."""
        return "service time (closed loop)" if self.is_closed_loop else "latency"

    @property
    def warmup_ns(self) -> int:
        return int(self.row["warmup_s"] * NS_PER_S)

    @cached_property
    def steady(self) -> pl.DataFrame:
        return self.samples.filter(pl.col("phase") == int(Phase.STEADY))

    @cached_property
    def window_ns(self) -> tuple[int, int]:
        """The steady window: from the end of the warm-up for the time asked, or to the last sample if it was cut."""
        end = self.warmup_ns + int(self.row["measured_ns"])
        if self.row["status"] != "complete" and len(self.samples):
            end = min(end, max(int(self.samples["ended_ns"].to_numpy().max()), self.warmup_ns + 1))
        return self.warmup_ns, end

    @cached_property
    def latency_rows(self) -> pl.DataFrame:
        """The steady samples that have a latency: see `latencies_ms`."""
        return self.steady.filter(pl.col("outcome").is_in([int(Outcome.OK), *map(int, CENSORED)]) | GAVE_UP)

    @cached_property
    def latencies_ms(self) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Latency of every steady sample that was answered well, or not at all (+inf), and its block of time. Who gave up
        after trying again counts as not answered: else fewer retries would make a store look faster."""
        rows = self.latency_rows
        is_ok = (rows["outcome"] == int(Outcome.OK)).to_numpy()
        values = np.where(is_ok, (rows["ended_ns"] - rows["due_ns"]).to_numpy() / 1e6, math.inf)
        return values, self._block_of(rows["due_ns"].to_numpy())

    def _block_of(self, t_ns: NDArray[np.int64]) -> NDArray[np.int64]:
        start, end = self.window_ns
        return np.clip((t_ns - start) * stats.BLOCKS // max(end - start, 1), 0, stats.BLOCKS - 1)

    def figure(self, name: str) -> Figure:
        """One figure by its name; its value is NaN when the run has nothing to compute it from."""
        if name not in UNITS:
            raise KeyError(name)
        return self.figures[name]

    @cached_property
    def figures(self) -> dict[str, Figure]:
        """Every figure of UNITS."""
        values, blocks = self.latencies_ms
        latencies = stats.percentiles_with_intervals(values, blocks, list(PERCENTILES.values()))
        commands, events = self._throughput()
        note = self.latency_word if self.is_closed_loop else ""
        found = {name: (estimate, note) for name, estimate in zip(PERCENTILES, latencies, strict=True)}
        found |= {"commands_per_second": (commands, ""), "events_per_second": (events, "")}
        found |= {"memory": self._memory(), "memory_growth": (self._memory_growth(), "of the loader")}
        found |= {"cpu": (self._gauge_mean("machine", "busy_percent"), "busy share of the whole machine")}
        found |= {
            "conflicts/attempts": (self._conflicts(), ""),
            "failures/attempts": (self._failures(), "failed, unknown, dropped or given up after conflicts"),
        }
        return {name: Figure(name, *found[name][:1], self.run_id, found[name][1]) for name in UNITS}

    def _throughput(self) -> tuple[stats.Estimate, stats.Estimate]:
        """Operations and events per second that *ended* well inside the steady window, whenever they were due."""
        start, end = self.window_ns
        ok = self.samples.filter(
            (pl.col("outcome") == int(Outcome.OK)) & pl.col("ended_ns").is_between(start, end, closed="left")
        )
        if not len(self.samples):
            return stats.NOTHING, stats.NOTHING
        block_s = (end - start) / stats.BLOCKS / NS_PER_S
        block_of = self._block_of(ok["ended_ns"].to_numpy())
        counts = np.bincount(block_of, minlength=stats.BLOCKS) / block_s
        events = np.bincount(block_of, weights=ok["events"].to_numpy(), minlength=stats.BLOCKS) / block_s
        return stats.mean_with_interval(counts, len(ok)), stats.mean_with_interval(events, int(ok["events"].sum()))

    def gauge(self, source: str, name: str, steady: bool = True) -> pl.DataFrame:
        """Columns t_ns, value of one time series; by default its steady part."""
        series = self.gauges.filter((pl.col("source") == source) & (pl.col("name") == name))
        start, end = self.window_ns
        return series.filter(pl.col("t_ns").is_between(start, end)) if steady else series

    @cached_property
    def load_ends_ns(self) -> int:
        """When the last operation ended; where the window ends if that is later and some never did, or there were none."""
        ended = [int(self.samples["ended_ns"].to_numpy().max())] if len(self.samples) else []
        if not ended or (self.samples["outcome"] == int(Outcome.RUNNING)).any():
            ended.append(self.window_ns[1])
        return max(ended)

    def looks(self, name: str, source: str = "loader") -> pl.DataFrame:
        """Columns t_ns, value of a gauge from before the load to its end: afterwards the load processes write down their
        evidence, which takes memory of its own."""
        return self.gauge(source, name, steady=False).filter(pl.col("t_ns") <= self.load_ends_ns)

    def memory_of(self, source: str) -> pl.DataFrame:
        """Columns t_ns, value (bytes): the PSS of the loader up to the end of the load, of the server over the whole run."""
        return self.looks("pss_bytes") if source == "loader" else self.gauge(source, "pss_bytes", steady=False)

    def _gauge_mean(self, source: str, name: str) -> stats.Estimate:
        values = self.gauge(source, name)["value"].to_numpy()
        return stats.mean_with_interval(values, len(values))

    def _memory(self) -> tuple[stats.Estimate, str]:
        """The highest PSS that one service (the loader, the server) reached, in MiB. A peak has no interval."""
        peaks = {
            source: float(series["value"].max())  # type: ignore[arg-type]
            for source in ("loader", "server")
            if len(series := self.memory_of(source))
        }
        if not peaks:
            return stats.NOTHING, ""
        largest = max(peaks, key=lambda source: peaks[source])
        n = len(self.memory_of(largest))
        note = "peak PSS: " + ", ".join(f"{source} {peak / MIB:.0f} MiB" for source, peak in peaks.items())
        return stats.Estimate(peaks[largest] / MIB, math.nan, math.nan, n), note

    def _memory_growth(self) -> stats.Estimate:
        """How much the loader's PSS grows over the steady part, in MiB, by its slope; of few looks the last less the first."""
        start, end = self.window_ns
        series = self.looks("pss_bytes").filter(pl.col("t_ns").is_between(start, end))
        return stats.growth(series["t_ns"].to_numpy() / NS_PER_S, series["value"].to_numpy() / MIB)

    def _conflicts(self) -> stats.Estimate:
        """The share of all tries, retries included, that met a conflict, in percent."""
        is_conflict = (pl.col("outcome") == int(Outcome.CONFLICT)).cast(pl.Int32)
        rows = self.steady.select(
            "due_ns",
            pl.col("attempts").clip(1),
            pl.col("conflicts").fill_null(is_conflict),  # NULL: of an older version
        )
        if not len(rows):
            return stats.NOTHING
        block_of = self._block_of(rows["due_ns"].to_numpy())
        tries, conflicts = (
            np.bincount(block_of, weights=rows[name].to_numpy(), minlength=stats.BLOCKS)
            for name in ("attempts", "conflicts")
        )
        interval = stats.mean_with_interval(100 * conflicts[tries > 0] / tries[tries > 0], len(rows))
        share = 100 * float(conflicts.sum() / tries.sum())
        return stats.Estimate(share, max(min(interval.low, share), 0.0), max(interval.high, share), len(rows))

    def _failures(self) -> stats.Estimate:
        n = len(self.steady)
        if not n:
            return stats.NOTHING
        failed = pl.col("outcome").is_in([int(o) for o in (Outcome.FAILED, *CENSORED)]) | GAVE_UP
        is_one = self.steady.select(failed.alias("is_one"))["is_one"].to_numpy()
        blocks = np.bincount(self._block_of(self.steady["due_ns"].to_numpy()), weights=is_one, minlength=stats.BLOCKS)
        totals = np.bincount(self._block_of(self.steady["due_ns"].to_numpy()), minlength=stats.BLOCKS)
        per_block = 100 * blocks[totals > 0] / totals[totals > 0]
        interval = stats.mean_with_interval(per_block, n)
        return stats.Estimate(100 * float(is_one.mean()), max(interval.low, 0.0), interval.high, n)

    @cached_property
    def outcomes(self) -> dict[str, int]:
        """How many steady operations came out how."""
        counts = dict(self.steady.group_by("outcome").len().iter_rows())
        return {o.name.lower(): counts[int(o)] for o in Outcome if counts.get(int(o))}

    def summary(self) -> pl.DataFrame:
        """One row per figure: value, interval, unit, what to know about it."""
        return pl.DataFrame(
            [
                {
                    "figure": f.name,
                    "value": f.estimate.value,
                    "low": f.estimate.low,
                    "high": f.estimate.high,
                    "unit": f.unit,
                    "note": f.note,
                }
                for f in self.figures.values()
            ]
        )

    def facts(self) -> dict[str, Any]:
        """What the reader of a report must know besides the figures."""
        keys = (
            "run_id",
            "store",
            "server",
            "durability",
            "workload",
            "executor",
            "projection",
            "pacer",
            "duration_s",
            "connections",
            "status",
        )
        return {key: self.row[key] for key in keys if key != "projection" or self.row[key]}


BINS, SAMPLES_PER_BIN = 60, 20


def binned(run: Run) -> pl.DataFrame:
    """Columns t_s; p50, p99, worst (ms, of operations due in the bin; +inf where that many never ended); ok (per second,
    ended in the bin), offered (per second, due in it), unwell (count)."""
    if not len(run.samples):
        return pl.DataFrame()
    end_ns = max(run.warmup_ns + int(run.row["measured_ns"]), 1)
    bins = int(np.clip(len(run.samples) // SAMPLES_PER_BIN, 1, BINS))
    due, ended, outcome = (run.samples[c].to_numpy() for c in ("due_ns", "ended_ns", "outcome"))
    is_unanswered = np.isin(outcome, CENSORED) | run.samples.select(GAVE_UP.alias("it"))["it"].to_numpy()
    ms = np.where(is_unanswered, math.inf, (ended - due) / 1e6)
    has_latency = (outcome == Outcome.OK) | is_unanswered
    due_in, ended_in = np.maximum(due, 0) * bins // end_ns, np.maximum(ended, 0) * bins // end_ns
    per_bin = [np.sort(ms[has_latency & (due_in == b)]) for b in range(bins)]
    is_unwell = (outcome == Outcome.FAILED) | is_unanswered
    width_s = end_ns / bins / NS_PER_S

    def count(where: Any) -> Any:  # what was due or ended after the window is not drawn
        return np.bincount(where, minlength=bins)[:bins]

    return pl.DataFrame(
        {
            "t_s": (np.arange(bins) + 0.5) * width_s,
            **{k: [stats.percentile(v, p) for v in per_bin] for k, p in (("p50", 0.5), ("p99", 0.99), ("worst", 1.0))},
            "ok": count(ended_in[outcome == Outcome.OK]) / width_s,
            "offered": count(due_in) / width_s,
            "unwell": count(due_in[is_unwell]),
        }
    )
