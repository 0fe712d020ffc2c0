"""What the command line asks for: a notebook run as a batch with everything checked first, listings, one run in text."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from eventcore_lab.commands import executors
from eventcore_lab.experiment import Experiment, RunBroken
from eventcore_lab.lab.baseline import load as load_baseline
from eventcore_lab.lab.database import Lab
from eventcore_lab.lab.measures import Run
from eventcore_lab.lab.stats import Estimate, percentile
from eventcore_lab.lab.targets import Targets, judge
from eventcore_lab.load.pacers import pacers
from eventcore_lab.load.places import PlacesError, check_cluster, size_of
from eventcore_lab.load.workloads import workloads
from eventcore_lab.progress import PROGRESS_VARIABLE, Relay
from eventcore_lab.projections import read_models
from eventcore_lab.reports import (
    Compare,
    Job,
    Report,
    declared_parameters,
    execute,
    exit_code_of,
    find_notebook,
    parse_parameters,
    read_suite,
    run_suite,
    worst,
)
from eventcore_lab.schema import LAB_VARIABLE, ExitCode, data_folder
from eventcore_lab.soak import resumed, soak
from eventcore_lab.spec import UsageError, parse, shown
from eventcore_lab.stores import stores
from eventcore_lab.workbench import differences, rerun, summary_line

_FIELDS = Experiment.__struct_fields__
SOAK_HOURS, SOAK_RATE = 8.0, 200.0
Beside = Callable[[Lab, Sequence[str]], AbstractContextManager[object]]
"""What goes on beside the runs of a Lab, as a live dashboard does, told the targets that they are held to."""


def alone(*_: object) -> AbstractContextManager[object]:
    """Nothing goes on beside the runs."""
    return nullcontext()


def run_notebooks(
    names: Sequence[str],
    folder: Path,
    given: Sequence[str],
    out: Path,
    lab_file: Path | None,
    workers: str = "",
    baseline: str = "",
    beside: Beside = alone,
) -> ExitCode:
    """Check everything that can be checked, then execute notebooks of `folder` (or paths) into `out`, one after the other; says
    where the reports are. `workers` is a number or a cluster, `baseline` an earlier report or a run. Gives the worst exit code,
    by reports.record.ORDER; after Ctrl-C no other notebook is begun."""
    jobs = [_checked(name, folder, given, workers) for name in names]
    lab = Lab(lab_file)
    lab.check()
    compare = load_baseline(baseline, lab, out).against if baseline else None
    codes: list[ExitCode] = []
    with beside(lab, _targets(jobs)):
        for notebook, parameters in jobs:
            codes.append(_told(_executed(notebook, parameters, out, lab, compare), lab.recover()))
            if codes[-1] is ExitCode.INTERRUPTED:
                break
    return worst(codes)


def _checked(name: str, folder: Path, given: Sequence[str], workers: str) -> tuple[Path, dict[str, object]]:
    notebook = find_notebook(name, folder)
    parameters = parse_parameters(notebook, [*given, *_workers(notebook, workers, given)])
    _check({p.name: p.default for p in declared_parameters(notebook)} | parameters)
    return notebook, parameters


def _targets(jobs: Sequence[tuple[Path, Mapping[str, object]]]) -> list[str]:
    """What these notebooks hold their runs to, of those that have such a parameter."""
    every = [{p.name: p.default for p in declared_parameters(notebook)} | dict(given) for notebook, given in jobs]
    return [found for values in every if isinstance(found := values.get("targets"), str) and found]


def _executed(
    notebook: Path, parameters: Mapping[str, object], out: Path, lab: Lab, compare: Compare | None = None
) -> Report:
    """The report of a notebook whose runs go into `lab` and whose progress is shown here."""
    with TemporaryDirectory(prefix="eventcore-lab-") as private:
        notes = Path(private) / "progress"
        with Relay(notes) as relay:
            environment = {LAB_VARIABLE: str(lab.path.resolve()), PROGRESS_VARIABLE: str(notes)}
            return execute(notebook, parameters, out, progress=relay.line, environment=environment, compare=compare)


def suite_of(
    name: str,
    folder: Path,
    out: Path,
    lab_file: Path | None,
    is_all_again: bool = False,
    beside: Beside = alone,
) -> ExitCode:
    """Run the suite of a TOML file, or of that name in `data/suites`: all of it checked first, what is done not done again."""
    suite = read_suite(_suite_file(name), folder)
    for job in suite.jobs:
        try:
            _check({p.name: p.default for p in declared_parameters(job.notebook)} | job.given)
        except UsageError as error:
            raise UsageError(f"suite {suite.name}: {job.label}: {error}") from None
    lab = Lab(lab_file)
    lab.check()

    def run(job: Job) -> dict[str, Any]:
        report = _executed(job.notebook, job.given, out, lab)
        _told(report, lab.recover())
        return {**report.record, "folder": report.folder.name}

    with beside(lab, _targets([(job.notebook, job.given) for job in suite.jobs])):
        return run_suite(suite, out, run, is_all_again=is_all_again)


def soak_of(
    hours: float | None,
    rate: float | None,
    given: Sequence[str],
    resume: str,
    targets: str,
    notebook: Path,
    out: Path,
    lab_file: Path | None,
    beside: Beside = alone,
) -> ExitCode:
    """Run a soak of an experiment with `given` parameters, those of `notebook`, or go on with one that was cut (`resume`: its
    id, or `last`), and make its report with that notebook; the exit code is the report's. None: SOAK_HOURS, SOAK_RATE."""
    if resume and (hours is not None or rate is not None or given):
        raise UsageError("--resume goes on with the load and hours that the soak began with: leave out --hours, --rate, -p")
    experiment = _soaked(given, rate, notebook)
    Targets.load(targets)
    lab = Lab(lab_file)
    lab.check()
    with beside(lab, [targets]):
        if resume:
            found = resumed("" if resume == "last" else resume, lab)
        else:
            found = soak(experiment, SOAK_HOURS if hours is None else hours, lab)
    print(found.told())
    return _told(_executed(notebook, {"soak": found.soak_id, "targets": targets}, out, lab), lab.recover())


def _soaked(given: Sequence[str], rate: float | None, notebook: Path) -> Experiment:
    """The experiment of a soak, from parameters of its notebook. What options say is not said by a parameter as well."""
    names = {text.partition("=")[0].strip() for text in given}
    for name, option in {"hours": "--hours", "targets": "--targets", "soak": "--resume"}.items():
        if name in names:
            raise UsageError(f"-p {name}=…: of a soak this is the option {option}")
    if "pacer" in names and rate is not None:
        raise UsageError("--rate and -p pacer=… both say when operations are due: leave one of them out")
    parameters = {p.name: p.default for p in declared_parameters(notebook)}
    parameters |= {"pacer": f"poisson:rate={SOAK_RATE if rate is None else rate:g}"} | parse_parameters(notebook, given)
    return Experiment(**{name: value for name, value in parameters.items() if name in _FIELDS})


def _suite_file(name: str) -> Path:
    folder = data_folder() / "suites"
    for place in (Path(name), folder / name, folder / f"{name}.toml"):
        with contextlib.suppress(OSError, ValueError):
            if place.is_file():
                return place
    raise UsageError(f"suite {shown(name)} does not exist (a TOML file, or the name of one in {folder})")


def _workers(notebook: Path, workers: str, given: Sequence[str]) -> list[str]:
    """The parameters that `--workers` sets: of a cluster as many workers as it has, unless it is said how many."""
    if not workers:
        return []
    missing = {"workers", "cluster"} - {p.name for p in declared_parameters(notebook)}
    if missing:
        raise UsageError(
            f"--workers: {notebook.stem} has no parameter {' and no '.join(sorted(missing))}; declare workers = 1 and "
            'cluster = "" in its parameters cell and give both to its Experiment'
        )
    if not workers.startswith("dask:"):
        return [f"workers={workers}"]
    check_cluster(workers)
    is_said = any(text.partition("=")[0].strip() == "workers" for text in given)
    return [f"cluster={workers}"] + ([] if is_said else [f"workers={_size(workers)}"])


def _size(cluster: str) -> int:
    try:
        return size_of(cluster)
    except PlacesError as error:
        raise RunBroken(str(error)) from None


def _check(parameters: Mapping[str, Any]) -> None:
    """Refuse before anything starts what the notebook would refuse in its first cell."""
    experiment = Experiment(**{k: v for k, v in parameters.items() if k in _FIELDS})
    if {"workload", "executor"} <= parameters.keys() and "pacer" not in parameters:  # with one, any experiment will do
        _check_commands(experiment)
    if isinstance(rate := parameters.get("rate"), int | float):
        Experiment(pacer=f"poisson:rate={rate}", duration_s=float(parameters.get("duration_s", 1.0)))
    shared = {name: parameters[name] for name in ("workers", "connections") if name in parameters}
    for n in _numbers(parameters, "concurrency"):
        Experiment(pacer=f"saturate:concurrency={n}", **shared)
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
    code = exit_code_of(report.record)
    if code is ExitCode.INTERRUPTED:
        return code
    if report.error is not None:
        where = f"cell {report.error.cell} of {report.notebook.name}"
        print(f"eventcore-lab: {report.error.message} ({report.error.name} in {where})", file=sys.stderr)
    elif report.conclusion is None:
        print("eventcore-lab: the notebook came to no conclusion (its last cell calls conclude)", file=sys.stderr)
    else:
        print(f"verdict: {report.conclusion['status']}. {report.conclusion['answer']}")
    return code


def _short(path: Path) -> str:
    relative = os.path.relpath(path)
    return relative if not relative.startswith("..") else str(path)


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
    value = _digits(e.value)
    return f"{value} [{_digits(e.low)} – {_digits(e.high)}]" if e.has_interval else value


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
        f"p50 {_digits(percentile(values, 0.5))} {unit}, worst {_digits(values[-1])} {unit}"
        for values, unit in ((ms, "ms"), (events, "events"))
        if len(values)
    ]
    if len(refresh_ms):
        parts.append(f"a refresh takes {_digits(percentile(refresh_ms, 0.5))} ms in the median")
    return "; ".join(parts) or "not recorded"


def _digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
