"""What the command line asks for: notebooks, suites and soaks run as a batch, with everything checked first."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from eventcore_lab.experiment import Experiment, RunBroken
from eventcore_lab.lab.baseline import load as load_baseline
from eventcore_lab.lab.database import Lab
from eventcore_lab.lab.drift import Soak
from eventcore_lab.lab.targets import Targets
from eventcore_lab.load.places import PlacesError, check_cluster, size_of
from eventcore_lab.load.workloads import workloads
from eventcore_lab.progress import PROGRESS_VARIABLE, Relay
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
from eventcore_lab.soak import HOURS_MAX, resumed, soak
from eventcore_lab.spec import UsageError, shown
from eventcore_lab.stores import stores
from eventcore_lab.workbench import experiment_of

_FIELDS = Experiment.__struct_fields__
SOAK_HOURS, SOAK_RATE, SOAK_TARGETS = 8.0, 200.0, "production"
SOAK_HOURS_MIN = 0.003
"""In less there are too few blocks of time to show anything."""
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
    again: str = "",
) -> ExitCode:
    """Run a soak of an experiment with `given` parameters, those of `notebook`, or go on with one that was cut (`resume`: its
    id, or `last`), and make its report with that notebook; the exit code is the report's. None: SOAK_HOURS, SOAK_RATE. No
    targets: those it began with, or SOAK_TARGETS. `again`: what has to be said once more to go on with it."""
    if resume and (hours is not None or rate is not None or given):
        raise UsageError(
            "--resume goes on with the load and hours that the soak began with: leave out --hours, --rate, -p"
        )
    hours = SOAK_HOURS if hours is None else hours
    if not SOAK_HOURS_MIN <= hours <= HOURS_MAX:
        raise UsageError(
            f"--hours must be at least {SOAK_HOURS_MIN:g} ({SOAK_HOURS_MIN * 3600:.0f} s) and at most {HOURS_MAX:g} "
            f"(31 days), not {hours:g}"
        )
    experiment = _soaked(given, rate, notebook)
    lab = Lab(lab_file)
    lab.check()
    cut = Soak(lab, "" if resume == "last" else resume) if resume else None
    held = _held_to(targets, cut)
    with beside(lab, [held]):
        if cut:
            found = resumed(cut.soak_id, lab, targets=held, again=again)
        else:
            found = soak(experiment, hours, lab, targets=held, again=again)
    print(found.told())
    return _told(_executed(notebook, _as_parameters(found, held, notebook), out, lab), lab.recover())


def _held_to(targets: str, cut: Soak | None) -> str:
    """The targets of a soak, by a name that says the same from another folder."""
    began_with = cut.targets if cut else ""
    held = targets or began_with or SOAK_TARGETS
    try:
        Targets.load(held)
    except UsageError as error:
        if targets or not began_with:
            raise
        raise UsageError(f"{error}; the soak began with these: bring them back, or say others with --targets") from None
    file = Path(held).resolve()
    if not file.is_file():
        return held
    project = data_folder().resolve().parent
    return str(file.relative_to(project) if file.is_relative_to(project) else file)


def _as_parameters(soak: Soak, targets: str, notebook: Path) -> dict[str, object]:
    """What its report is made with: the parameters say what was put on the store, though it is not put on again."""
    experiment = experiment_of(soak.legs[0].row)
    declared = {p.name for p in declared_parameters(notebook)} & {*_FIELDS}
    load = {name: getattr(experiment, name) for name in _FIELDS if name in declared}
    return {"soak": soak.soak_id, "hours": soak.hours, **load, "targets": targets}


def words_of(**options: Any) -> str:
    """Options as they are said on the command line; what is not set, or as by default, is not said."""
    said: list[str] = []
    for name, value in options.items():
        option = f"--{name.replace('_', '-')}"
        if value is True:
            said.append(option)
        elif value and (name, value) != ("live_port", 8765):
            said += [word for one in (value if isinstance(value, list) else [value]) for word in (option, str(one))]
    return shlex.join(said)


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
