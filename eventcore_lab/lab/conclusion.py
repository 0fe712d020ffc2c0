"""What a report keeps of a verdict: its lines, the figures of the runs that were judged, and what must be known about those
runs. Plain JSON, so that a later report can be held against it (baseline.py) and a page can say it without the Lab.

    status, exit_code, title, answer
    rows         one per judgement: kind (target, invariant, claim), topic, name, limit, measured (text), status, reason, run_id
    figures      name → value, low, high, unit, run_id, of: what was judged under its own name (a claim under its text), then
                 every other figure, of the run that most was judged by
    runs         one per run judged, or that the verdict is about: run_id, of, store, server, durability, cautions
    environment  the machine and the versions, in few words
A number that is not finite is null.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from typing import Any

from eventcore_lab.lab.database import Lab, UnknownRun
from eventcore_lab.lab.disturbances import cautions
from eventcore_lab.lab.measures import UNITS, Run
from eventcore_lab.lab.targets import Judgement, Verdict
from eventcore_lab.lab.wording import printable

RUNS_MAX = 12
"""Figures are computed from every sample: not of more runs than this."""
_ENVIRONMENT = {
    "cpu_model": "processor",
    "cores_affinity": "cores",
    "virtualisation": "virtualisation",
    "kernel": "kernel",
    "os_release": "system",
    "filesystem": "file system",
    "python_version": "Python",
    "eventcore_lab_version": "eventcore_lab",
    "git_commit": "commit",
    "git_state": "checkout",
}

Content = dict[str, Any]


def content(verdict: Verdict, lab: Lab) -> Content:
    """`verdict` as the JSON described above. Runs that the Lab does not have are left out."""
    runs = list(_runs(_judged(verdict), lab))
    beside = [run_id for run_id in verdict.runs if run_id not in {run.run_id for run in runs}]
    return {
        "status": verdict.status,
        "exit_code": int(verdict.exit_code),
        "title": verdict.title,
        "answer": printable(verdict.answer),  # it goes to terminals, too
        "rows": [_row(j) for j in verdict.judgements],
        "figures": _figures(verdict.judgements, runs),
        "runs": [_facts(run) for run in (*runs, *_runs(beside, lab))],
        "environment": _environment(runs),
    }


def figures_of(run: Run) -> dict[str, Content]:
    """Every figure that a run has, as a conclusion keeps it."""
    return {
        name: kept(f.estimate.value, f.estimate.low, f.estimate.high, f.unit, run.run_id, setting(run))
        for name, f in run.figures.items()
        if math.isfinite(f.estimate.value)
    }


def kept(value: float, low: float, high: float, unit: str, run_id: str, of: str) -> Content:
    """One figure as a conclusion keeps it."""
    numbers = {"value": finite(value), "low": finite(low), "high": finite(high)}
    return {**numbers, "unit": unit, "run_id": run_id, "of": of}


def setting(run: Run) -> str:
    """What was run, in one line: store, workload, executor, pacer."""
    through = [run.row["executor"]] if run.row["executor"] not in ("direct", None) else []
    return ", ".join([run.row["store"], run.row["workload"], *through, run.row["pacer"]])


def finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _judged(verdict: Verdict) -> list[str]:
    """The runs that were judged: first those of targets, then of claims, then of invariants; of each the busiest first."""
    kinds = ("target", "claim", "invariant")
    judged = Counter((kinds.index(j.kind), j.run_id) for j in verdict.judgements if j.kind in kinds and j.run_id)
    ordered = sorted(judged, key=lambda key: (key[0], -judged[key]))
    return list(dict.fromkeys(run_id for _, run_id in ordered))[:RUNS_MAX]


def _runs(run_ids: Iterable[str], lab: Lab) -> Iterable[Run]:
    for run_id in run_ids:
        try:
            yield Run.of(lab, run_id)
        except UnknownRun:
            continue


def _row(j: Judgement) -> Content:
    said = {"name": j.name, "limit": j.limit, "measured": j.shown, "status": j.status, "reason": j.reason}
    return {"kind": j.kind, "topic": j.topic, **said, "run_id": j.run_id}


def _figures(judgements: Iterable[Judgement], runs: Iterable[Run]) -> dict[str, Content]:
    by_id = {run.run_id: run for run in runs}
    found = {
        j.name: kept(j.measured, j.low, j.high, j.unit, j.run_id, setting(by_id[j.run_id]))
        for j in judgements
        if j.kind != "invariant" and j.run_id in by_id and math.isfinite(j.measured)
    }
    for run in by_id.values():
        if UNITS.keys() <= found.keys():  # a tenth of a second's work each, and mostly the first has them all
            break
        found |= {name: figure for name, figure in figures_of(run).items() if name not in found}
    return found


def _facts(run: Run) -> Content:
    known = {name: run.row[name] or "" for name in ("store", "server", "durability")}
    return {"run_id": run.run_id, "of": setting(run), **known, "cautions": cautions(run)}


def _environment(runs: list[Run]) -> dict[str, str]:
    facts = runs[0].lab.environment(runs[0].run_id) if runs else {}
    return {name: facts[key] for key, name in _ENVIRONMENT.items() if facts.get(key)}
