"""What there is, in text for a terminal: the catalogue of names, the runs of a Lab, one run, a run beside its repetition."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eventcore_lab.commands import executors
from eventcore_lab.lab.database import Lab
from eventcore_lab.lab.measures import Run
from eventcore_lab.lab.stats import Estimate, percentile
from eventcore_lab.lab.targets import Targets, judge
from eventcore_lab.lab.wording import digits
from eventcore_lab.load.pacers import pacers
from eventcore_lab.load.workloads import workloads
from eventcore_lab.projections import read_models
from eventcore_lab.reports import declared_parameters
from eventcore_lab.schema import ExitCode
from eventcore_lab.spec import parse
from eventcore_lab.stores import stores
from eventcore_lab.workbench import differences, rerun, summary_line


def catalogue(folder: Path) -> str:
    """Notebooks with their parameters, and every name of every registry, a line each."""
    lines = ["NOTEBOOKS (eventcore-lab run NAME -p PARAMETER=VALUE)"]
    for notebook in sorted(folder.glob("*.ipynb")):
        lines.append(f"  {notebook.stem}")
        declared = [(str(p), p.help) for p in declared_parameters(notebook)]
        width = min(max((len(text) for text, _ in declared), default=0), _PARAMETER_WIDTH)
        for text, help_ in declared:
            *above, last = [line.strip() for line in _broken(text)] if len(text) > width else [text]
            lines += [f"      {line}" for line in above]
            fits = len(last) <= width
            lines += (
                [f"      {last.ljust(width)}  {help_}".rstrip()]
                if fits
                else [f"      {last}", f"      {'':{width}}  {help_}"]
            )
    registries: list[tuple[str, Any]] = [
        ("STORES", stores),
        ("WORKLOADS", workloads),
        ("EXECUTORS (of the commands of a workload)", executors),
        ("PACERS", pacers),
        ("PROJECTIONS (a read model of the users, kept beside the load)", read_models),
    ]
    for title, registry in registries:
        lines += ["", title]
        for usage, text in registry.describe().values():
            lines += [*_broken(usage), *textwrap.wrap(text, 96, initial_indent="      ", subsequent_indent="      ")]
    lines += ["", "TARGETS", "  production, development, or a TOML file with thresholds such as 'p99 < 100ms'"]
    for preset in (Targets.production(), Targets.development()):
        lines.append(f"  {preset.name.ljust(12)}  " + ", ".join(f"{t.name} {t}" for t in preset.thresholds))
    return "\n".join(lines)


_PARAMETER_WIDTH = 40


def _broken(usage: str, width: int = 110) -> list[str]:
    """A long usage in lines, broken between its options."""
    lines = [""]
    for part in usage.replace(",", ",\n").split("\n"):
        if len(lines[-1]) + len(part) > width:
            lines.append("")
        lines[-1] += part
    return [f"  {'  ' * bool(n)}{line}" for n, line in enumerate(lines)]


def listing(lab: Lab, limit: int) -> str:
    """The newest runs, a line each."""
    found = lab.runs(limit)
    if not len(found):
        return f"no runs in {lab.path} yet (eventcore-lab run 00-store-benchmark)"
    named = ["run_id", "status", "store", "workload", "executor", "projection", "pacer"]
    if not any(found["projection"]):  # seldom there, and lines are long
        named.remove("projection")
    rows: list[tuple[str, ...]] = [("run", *named[1:], "seconds", "durability")]
    for r in found.iter_rows(named=True):
        durability = str(r["durability"] or "").partition(" (")[0]
        rows.append((*(r[name] or "" for name in named), f"{r['duration_s']:g}", durability))
    return _aligned(rows)


def describe(lab: Lab, run_id: str, targets: str) -> tuple[str, ExitCode]:
    """One run in text, held to targets, and the verdict's exit code."""
    run = Run(lab, run_id)
    verdict = judge(Targets.load(targets), run)
    outcomes = ", ".join(f"{n:,} {name}" for name, n in run.outcomes.items()) or "none"
    known = {**run.facts(), "outcomes": outcomes, "counted": _counted(run), "lag": _lag(run)}
    facts = "\n".join(f"{k:<12} {v}" for k, v in known.items() if v not in ("", None))
    marks = "\n".join(f"{t / 1e9:9.3f} s  {name}  {detail}".rstrip() for t, name, detail in run.marks.iter_rows())
    return f"{facts}\n\n{verdict}\n\n{marks}", verdict.exit_code


def repeat(lab: Lab, run_id: str) -> tuple[str, ExitCode]:
    """Run a stored experiment again; what it came to now and then, and what is not the same about the machine, in text.
    The exit code says whether the new run violated an invariant."""
    before, after = rerun(run_id, lab)
    rows = [("figure", "then", "now", "ratio")]
    for name, figure in after.figures.items():
        then, now = before.figures[name].estimate, figure.estimate
        if not math.isnan(then.value) and not math.isnan(now.value):
            unit = "" if figure.unit == "/s" else f" {figure.unit}"
            ratio = f"{now.value / then.value:.2f}" if then.value and math.isfinite(then.value) else "–"
            rows.append((name, f"{_interval(then)}{unit}", f"{_interval(now)}{unit}", ratio))
    changed = differences(before, after)
    told = [("differs", "then", "now"), *changed] if changed else []
    heads = [f"{r.run_id}  {summary_line(r)}" for r in (before, after)]
    same = "" if changed else "\nThe environment is the same."
    is_violated = "violated" in set(after.invariants["status"])
    text = "\n".join([*heads, "", _aligned(rows), "", _aligned(told)]).rstrip() + same
    return text, ExitCode.VIOLATED if is_violated else ExitCode.PASS


def _interval(e: Estimate) -> str:
    if math.isinf(e.value):
        return "never ended"
    value = digits(e.value)
    return f"{value} [{digits(e.low)} – {digits(e.high)}]" if e.has_interval else value


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows)


_COUNTERS = {
    "cache_hits": "streams found in the cache",
    "cache_misses": "not found there",
    "cache_entries": "in the cache at the end",
    "cache_events": "events in the cache at the end",
    "batched": "commands in batches",
    "queued_max": "commands queued at most",
    "parallel_max": "commands at once at most",
    "lines_max": "streams in use at most",
    "lines": "streams in use at the end",
    "waited_for_stream": "commands waited for a stream",
    "locks": "locks kept",
    "snapshots_failed": "snapshots that could not be saved",
}
"""What a counter of an executor counts, where its name does not say it by itself."""


def _counted(run: Run) -> str:
    """What the executor counted, in one line."""
    counters = run.gauges.filter(run.gauges["source"] == "executor").select("name", "value").iter_rows()
    return ", ".join(f"{value:,.0f} {_COUNTERS.get(name, name.replace('_', ' '))}" for name, value in counters)


def _lag(run: Run) -> str:
    """How far the projection was behind in the steady part, in one line."""
    if not run.row["projection"]:
        return ""
    source = f"projection {parse(run.row['projection'], 'projection').name}"
    ms, events, refresh_ms = (
        np.sort(run.gauge(source, name)["value"].to_numpy()) for name in ("lag_ms", "lag_events", "refresh_ms")
    )
    parts = [
        f"p50 {digits(percentile(values, 0.5))} {unit}, worst {digits(values[-1])} {unit}"
        for values, unit in ((ms, "ms"), (events, "events"))
        if len(values)
    ]
    if len(refresh_ms):
        parts.append(f"a refresh takes {digits(percentile(refresh_ms, 0.5))} ms in the median")
    return "; ".join(parts) or "not recorded"
