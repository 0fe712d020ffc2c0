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

from eventcore_lab.commands import executors
from eventcore_lab.experiment import Experiment
from eventcore_lab.lab.database import Lab
from eventcore_lab.lab.measures import Run
from eventcore_lab.lab.targets import Targets, judge
from eventcore_lab.load.pacers import pacers
from eventcore_lab.load.workloads import workloads
from eventcore_lab.progress import PROGRESS_VARIABLE, Relay
from eventcore_lab.projections import read_models
from eventcore_lab.reports import Report, declared_parameters, execute, find_notebook, parse_parameters
from eventcore_lab.schema import LAB_VARIABLE, ExitCode
from eventcore_lab.spec import UsageError
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
    Experiment(**{k: v for k, v in parameters.items() if k in _FIELDS})
    if isinstance(rate := parameters.get("rate"), int | float):
        Experiment(pacer=f"poisson:rate={rate}", duration_s=float(parameters.get("duration_s", 1.0)))
    for n in _numbers(parameters, "concurrency"):
        Experiment(pacer=f"saturate:concurrency={n}")
    for n in _numbers(parameters, "batch_sizes"):
        Experiment(workload=f"write_events:batch={n}")
    if isinstance(targets := parameters.get("targets"), str):
        Targets.load(targets)


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
    rows: list[tuple[str, ...]] = [("run", "status", "store", "workload", "executor", "pacer", "seconds", "durability")]
    for r in found.iter_rows(named=True):
        durability = str(r["durability"] or "").partition(" (")[0]
        named = [r[name] or "" for name in ("run_id", "status", "store", "workload", "executor", "pacer")]
        rows.append((*named, f"{r['duration_s']:g}", durability))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def describe(lab: Lab, run_id: str, targets: str) -> tuple[str, ExitCode]:
    """One run in text, held to targets, and the verdict's exit code."""
    run = Run(lab, run_id)
    verdict = judge(Targets.load(targets), run)
    facts = "\n".join(f"{k:<12} {v}" for k, v in run.facts().items() if v not in ("", None))
    outcomes = ", ".join(f"{n:,} {name}" for name, n in run.outcomes.items()) or "none"
    marks = "\n".join(f"{t / 1e9:9.3f} s  {name}  {detail}".rstrip() for t, name, detail in run.marks.iter_rows())
    return f"{facts}\n{'outcomes':<12} {outcomes}\n\n{verdict}\n\n{marks}", verdict.exit_code
