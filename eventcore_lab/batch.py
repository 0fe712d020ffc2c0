"""What the command line asks for: a notebook run as a batch with everything checked first, listings, one run in text."""

from __future__ import annotations

import asyncio
import os
import sys
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from eventcore_lab.commands import executors
from eventcore_lab.experiment import Experiment
from eventcore_lab.lab.database import Lab
from eventcore_lab.lab.measures import Run
from eventcore_lab.lab.stats import percentile
from eventcore_lab.lab.targets import Targets, judge
from eventcore_lab.load.pacers import pacers
from eventcore_lab.load.workloads import workloads
from eventcore_lab.progress import PROGRESS_VARIABLE, Relay
from eventcore_lab.projections import read_models
from eventcore_lab.reports import Report, declared_parameters, execute, find_notebook, parse_parameters
from eventcore_lab.schema import LAB_VARIABLE, ExitCode
from eventcore_lab.spec import UsageError, parse, shown
from eventcore_lab.stores import stores

_FIELDS = Experiment.__struct_fields__


def run_notebook(name: str, folder: Path, given: Sequence[str], out: Path, lab_file: Path | None) -> ExitCode:
    """Check everything that can be checked, then execute a notebook of `folder` (or a path) into `out`; says where the
    report is, gives its exit code."""
    notebook = find_notebook(name, folder)
    parameters = parse_parameters(notebook, given)
    _check({p.name: p.default for p in declared_parameters(notebook)} | parameters)
    lab = Lab(lab_file)
    lab.check()
    with TemporaryDirectory(prefix="eventcore-lab-") as private:
        notes = Path(private) / "progress"
        with Relay(notes) as relay:
            report = execute(
                notebook,
                parameters,
                out,
                progress=relay.line,
                environment={LAB_VARIABLE: str(lab.path.resolve()), PROGRESS_VARIABLE: str(notes)},
            )
    recovered = lab.recover()  # what a kernel that was killed left in the spool
    return _told(report, recovered)


def _check(parameters: Mapping[str, Any]) -> None:
    """Refuse before anything starts what the notebook would refuse in its first cell."""
    experiment = Experiment(**{k: v for k, v in parameters.items() if k in _FIELDS})
    if {"workload", "executor"} <= parameters.keys():
        _check_commands(experiment)
    if isinstance(rate := parameters.get("rate"), int | float):
        Experiment(pacer=f"poisson:rate={rate}", duration_s=float(parameters.get("duration_s", 1.0)))
    for n in _numbers(parameters, "concurrency"):
        Experiment(pacer=f"saturate:concurrency={n}")
    for n in _numbers(parameters, "batch_sizes"):
        Experiment(workload=f"write_events:batch={n}")
    if isinstance(targets := parameters.get("targets"), str):
        Targets.load(targets)


def _check_commands(experiment: Experiment) -> None:
    """Refuse a workload that puts no commands on the store for a notebook that measures commands."""
    known = {name: workloads.make(name, seed=experiment.seed).uses_commands for name in workloads.names()}
    if not workloads.make(experiment.workload, seed=experiment.seed).uses_commands:
        raise UsageError(
            f"workload: {shown(experiment.workload)} has no commands, which is what this notebook measures "
            f"(of commands: {', '.join(name for name in known if known[name])})"
        )


def conform(store: str, only: str) -> ExitCode:
    """Hold a store to the claims of the conformance suite, print a line for each as it comes; the exit code that follows."""
    from eventcore_lab.stores.conformance import Finding, conformance

    def told(finding: Finding) -> None:
        head, indent = f"{finding.status.ljust(_STATUS_WIDTH)}  ", " " * (_STATUS_WIDTH + 2)
        print(textwrap.fill(finding.claim, 80, initial_indent=head, subsequent_indent=indent), flush=True)
        if finding.detail:
            print(textwrap.fill(finding.detail, 80, initial_indent=indent, subsequent_indent=indent), flush=True)

    found = Counter(f.status for f in asyncio.run(conformance(stores.make(store), only, told)))
    print(f"\n{store}: " + ", ".join(f"{found[status]} {status}" for status in _STATUSES if found[status]))
    if found["broken"]:
        return ExitCode.VIOLATED
    return ExitCode.FAIL if found["kept after all"] else ExitCode.PASS


_STATUSES = ("kept", "lacking", "kept after all", "broken")
_STATUS_WIDTH = max(map(len, _STATUSES))


def _numbers(parameters: Mapping[str, Any], name: str) -> list[Any]:
    value = parameters.get(name, [])
    if value == [] and name in parameters:
        raise UsageError(f"{name}: an empty list leaves nothing to run")
    return list(value) if isinstance(value, list | tuple) else [value]


def _told(report: Report, recovered: Sequence[str]) -> ExitCode:
    """Print how it came out and where it is; the exit code that follows."""
    if recovered:
        print(f"kept as interrupted: {', '.join(recovered)}")
    if report.html is not None:
        print(f"report: {_short(report.html)}")
    if report.status == "interrupted":
        return ExitCode.INTERRUPTED
    if report.error is not None:
        where = f"cell {report.error.cell} of {report.notebook.name}"
        print(f"eventcore-lab: {report.error.message} ({report.error.name} in {where})", file=sys.stderr)
        return ExitCode.USAGE if report.error.name == "UsageError" else ExitCode.BROKEN
    if report.conclusion is None:
        print("eventcore-lab: the notebook came to no conclusion (its last cell calls conclude)", file=sys.stderr)
        return ExitCode.INCONCLUSIVE
    print(f"verdict: {report.conclusion['status']}. {report.conclusion['answer']}")
    return ExitCode(int(report.conclusion["exit_code"]))


def _short(path: Path) -> str:
    relative = os.path.relpath(path)
    return relative if not relative.startswith("..") else str(path)


def catalogue(folder: Path) -> str:
    """Notebooks with their parameters, and every name of every registry, a line each."""
    lines = ["NOTEBOOKS (eventcore-lab run NAME -p PARAMETER=VALUE)"]
    for notebook in sorted(folder.glob("*.ipynb")):
        lines.append(f"  {notebook.stem}")
        declared = declared_parameters(notebook)
        width = max((len(str(p)) for p in declared), default=0)
        lines += [f"      {str(p).ljust(width)}  {p.help}".rstrip() for p in declared]
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
            lines += [f"  {usage}", *textwrap.wrap(text, 96, initial_indent="      ", subsequent_indent="      ")]
    lines += ["", "TARGETS", "  production, development, or a TOML file with thresholds such as 'p99 < 100ms'"]
    for preset in (Targets.production(), Targets.development()):
        lines.append(f"  {preset.name.ljust(12)}  " + ", ".join(f"{t.name} {t}" for t in preset.thresholds))
    return "\n".join(lines)


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
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def describe(lab: Lab, run_id: str, targets: str) -> tuple[str, ExitCode]:
    """One run in text, held to targets, and the verdict's exit code."""
    run = Run(lab, run_id)
    verdict = judge(Targets.load(targets), run)
    outcomes = ", ".join(f"{n:,} {name}" for name, n in run.outcomes.items()) or "none"
    known = {**run.facts(), "outcomes": outcomes, "counted": _counted(run), "lag": _lag(run)}
    facts = "\n".join(f"{k:<12} {v}" for k, v in known.items() if v not in ("", None))
    marks = "\n".join(f"{t / 1e9:9.3f} s  {name}  {detail}".rstrip() for t, name, detail in run.marks.iter_rows())
    return f"{facts}\n\n{verdict}\n\n{marks}", verdict.exit_code


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
        f"p50 {_digits(percentile(values, 0.5))} {unit}, worst {_digits(values[-1])} {unit}"
        for values, unit in ((ms, "ms"), (events, "events"))
        if len(values)
    ]
    if len(refresh_ms):
        parts.append(f"a refresh takes {_digits(percentile(refresh_ms, 0.5))} ms in the median")
    return "; ".join(parts) or "not recorded"


def _digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
