"""The two halves joined: run experiments, take them into the Lab, hold them to targets, conclude."""

from __future__ import annotations

import itertools
import json
import math
import os
import random
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from eventcore_lab.events import StoreError
from eventcore_lab.experiment import Executor, Experiment, RunBroken, measure
from eventcore_lab.lab import conclusion
from eventcore_lab.lab.conclusion import finite
from eventcore_lab.lab.database import Lab
from eventcore_lab.lab.measures import Run
from eventcore_lab.lab.targets import Verdict
from eventcore_lab.lab.wording import digits
from eventcore_lab.progress import Lines, Progress, chosen
from eventcore_lab.spec import UsageError

REPORT_VARIABLE = "EVENTCORE_LAB_REPORT"
"""Names the folder of the report this process is making; `conclude` leaves its verdict there."""
CONCLUSION_FILE = "conclusion.json"
EXPERIMENTS_MAX = 1000


def run(
    experiment: Experiment,
    lab: Lab | None = None,
    progress: Progress | None = None,
    executor: Executor | None = None,
) -> Run:
    """Measure one experiment and take it into `lab` (the project's own by default), whatever becomes of it. With an
    `executor` (a ProcessPoolExecutor, a Dask client, anything like them) its workers run there; the run is recorded with the
    executor's type as its `cluster`.

    Raises LabError before anything is measured if the results could not be kept, StoreUnreachable or RunBroken if the run
    failed (it is in the Lab as `broken`), KeyboardInterrupt after Ctrl-C (it is in the Lab as `interrupted`).
    """
    lab = lab or Lab()
    lab.check()
    try:
        measured = measure(experiment, lab.spool, progress or _chosen(), executor)
    except (StoreError, RunBroken):
        lab.recover()
        raise
    lab.ingest(measured.folder)
    if measured.status == "interrupted":
        raise KeyboardInterrupt
    return Run(lab, measured.run_id)


def _chosen() -> Progress:
    """As progress.py chooses, but a live picture in a notebook that somebody looks at."""
    found = chosen()
    if isinstance(found, Lines) and "ipykernel" in sys.modules:
        from eventcore_lab.live import Live

        return Live()
    return found


def rerun(
    run_id: str, lab: Lab | None = None, progress: Progress | None = None, executor: Executor | None = None
) -> tuple[Run, Run]:
    """Measure the experiment of a stored run again, with every parameter it was run with; the stored run and the new one.
    `differences` says what was not the same. A run on an executor of one's own needs such an `executor` again. Raises
    UnknownRun, UsageError, and what `run` raises."""
    lab = lab or Lab()
    before = Run(lab, run_id)
    row = dict(before.row)
    cluster = row.get("cluster") or ""
    if cluster and ":" not in cluster:
        if executor is None:
            raise UsageError(f"{before.run_id} ran on an executor of one's own ({cluster}): rerun(run_id, executor=…)")
        del row["cluster"]
    return before, run(experiment_of(row), lab, progress, executor)


def experiment_of(row: Mapping[str, Any]) -> Experiment:
    """The experiment that a row of `runs` is of; what a row of an older version lacks is as by default."""
    return Experiment(**{name: row[name] for name in Experiment.__struct_fields__ if row.get(name) is not None})


def differences(before: Run, after: Run) -> list[tuple[str, str, str]]:
    """(name, before, after) of everything in the environments of two runs that differs, what was read from files included."""
    facts = [
        {**r.lab.environment(r.run_id), "store": f"{r.row['server']}, {r.row['durability']}", **_read_from_files(r)}
        for r in (before, after)
    ]
    names = sorted({*facts[0], *facts[1]})
    return [(n, facts[0].get(n, ""), facts[1].get(n, "")) for n in names if facts[0].get(n) != facts[1].get(n)]


def _read_from_files(run: Run) -> dict[str, str]:
    """What the run's pacer and workload noted about files they are made from."""
    return {
        name: detail for name, detail in run.marks.select("name", "detail").iter_rows() if name.startswith("trace ")
    }


def vary(base: Experiment, **values: Any) -> list[Experiment]:
    """`base` with every combination of the listed values; a value that is no list stands for itself.

    `vary(base, pacer=["saturate:concurrency=1", "saturate:concurrency=10"])` gives two experiments, in this order.
    """
    lists = [value if isinstance(value, list | tuple) else [value] for value in values.values()]
    combinations = [dict(zip(values, combination, strict=True)) for combination in itertools.product(*lists)]
    if len(combinations) > EXPERIMENTS_MAX:
        raise ValueError(f"{len(combinations)} experiments; at most {EXPERIMENTS_MAX} at once")
    return [msgspec.structs.replace(base, **combination) for combination in combinations]


def run_each(
    experiments: Iterable[Experiment],
    lab: Lab | None = None,
    *,
    trials: int = 1,
    progress: Progress | None = None,
    executor: Executor | None = None,
) -> list[Run]:
    """Run all experiments, `trials` times over. Each round has an order of its own, drawn from the first one's seed, so
    that what drifts meanwhile (a disk that fills, a busy neighbour) falls on all alike. Gives the runs in the order of
    the experiments, trial by trial. A line per run is printed: what tells it from the others, and what it came to."""
    listed = list(experiments)
    apart = _telling_apart(listed)
    if apart:
        print(f"{len(listed) * trials} runs{_in_common(listed)}", flush=True)
    rng = random.Random(listed[0].seed if listed else 0)
    runs: dict[tuple[int, int], Run] = {}
    for trial in range(trials):
        for i in rng.sample(range(len(listed)), len(listed)):
            runs[trial, i] = run(msgspec.structs.replace(listed[i], trial=trial), lab, progress, executor)
            what = _what(listed[i], apart, listed, trial if trials > 1 else None)
            print(summary_line(runs[trial, i], what), flush=True)
    return [runs[key] for key in sorted(runs)]


_TOLD = ("label", "connections", "workers", "executor", "projection", "pacer", "workload", "store")
"""What experiments may be told apart by, what is shortest first: lines are read on phones as well."""


def _telling_apart(listed: Sequence[Experiment]) -> list[str]:
    """Which of _TOLD tell each of the experiments from the others: what follows from those before it is left out."""
    found: list[str] = []
    for name in _TOLD:
        known = {tuple(getattr(e, n) for n in found) for e in listed}
        if len({tuple(getattr(e, n) for n in (*found, name)) for e in listed}) > len(known):
            found.append(name)
    return found


def _in_common(listed: Sequence[Experiment]) -> str:
    """What all of them are, of their specs."""
    told = []
    for name in ("store", "workload", "executor", "projection", "pacer"):
        head, options = _options([getattr(e, name) for e in listed])
        told += [f"{head}:{','.join(options)}" if options else head] if head not in ("", "direct") else []
    return f" of {', '.join(told)}" if told else ""


def _options(specs: Sequence[str]) -> tuple[str, list[str]]:
    """What stands before the options of all of these specs, and the options that all have; "" where they begin differently."""
    parts = [
        (head, options.split(",") if options else []) for head, _, options in (text.partition(":") for text in specs)
    ]
    if len({head for head, _ in parts}) > 1:
        return "", []
    return parts[0][0], [option for option in parts[0][1] if all(option in options for _, options in parts)]


def _what(experiment: Experiment, apart: Sequence[str], listed: Sequence[Experiment], trial: int | None) -> str:
    """What tells an experiment from the others, as people say it: of specs only the options that do, and beside a label only
    what tells it from those of the same label."""
    alike = [e for e in listed if e.label == experiment.label]
    words = [experiment.label] if "label" in apart else []
    for name in (name for name in apart if name != "label"):
        values = [getattr(e, name) for e in alike]
        if len(set(values)) > 1 or "label" not in apart:
            words.append(_worded(name, getattr(experiment, name), values))
    return ", ".join([*words, *([] if trial is None else [f"trial {trial + 1}"])])


def _worded(name: str, value: Any, values: Sequence[Any]) -> str:
    if name in ("connections", "workers"):
        return f"{value} {name if value != 1 else name[:-1]}"
    head, common = _options(values)
    own = [option for option in value.partition(":")[2].split(",") if option not in common]
    return ", ".join(own) if head and any(own) else value or f"no {name}"


def best(runs: Sequence[Run], figure: str) -> Run:
    """The run with the highest `figure`."""
    if not runs:
        raise ValueError("best of no runs")
    return max(runs, key=lambda r: -math.inf if math.isnan(v := r.figure(figure).estimate.value) else v)


def summary_line(run: Run, what: str = "") -> str:
    """What one run came to, in one line that begins with what it was, in full or as `what` says."""
    figures, row = run.figures, run.row
    values = {name: f.estimate.value for name, f in figures.items()}
    rates = [f"{values['commands_per_second']:,.0f} operations/s"]
    if values["events_per_second"] not in (0.0, values["commands_per_second"]):
        rates.append(f"{values['events_per_second']:,.0f} events/s")
    unwell = {name: n for name, n in run.outcomes.items() if name not in ("ok", "running")}
    through = "" if row["executor"] in ("direct", None) else f"{row['executor']}, "
    beside = f", projection {row['projection']}" if row["projection"] else ""
    what = what or f"{row['store']}, {row['workload']}, {through}{row['pacer']}{beside}"
    parts = [
        f"{what}:",
        *rates,
        "nothing was answered well"
        if math.isnan(values["p50"])
        else f"p50 {_ms(values['p50'])}, p99 {_ms(values['p99'])}",
        *(f"{n:,} {name}" for name, n in unwell.items()),
    ]
    violated = run.invariants.filter(run.invariants["status"] == "violated")["name"].to_list()
    return "  ".join(parts) + (f"  VIOLATED: {', '.join(violated)}" if violated else "")


def _ms(value: float) -> str:
    return "never" if math.isinf(value) else f"{digits(value)} ms"


def conclude(verdict: Verdict, lab: Lab | None = None) -> Verdict:
    """Keep a verdict: in the Lab, and where a report is being made, as the conclusion that decides its exit code."""
    lab = lab or Lab()
    known = (
        set(lab.sql("SELECT run_id, name FROM verdicts WHERE kind = 'claim'").iter_rows()) if verdict.claims else set()
    )
    lab.add_verdicts(
        [
            {
                "run_id": j.run_id,
                "kind": j.kind,
                "topic": j.topic,
                "name": f"{verdict.title}: {j.name}",
                "unit": j.unit,
                "limit_text": j.limit,
                "measured": finite(j.measured),
                "low": finite(j.low),
                "high": finite(j.high),
                "status": j.status,
                "reason": j.reason,
            }
            for j in (*verdict.targets, *verdict.claims)
            if j.kind != "claim" or (j.run_id, j.name) not in known  # told again, as summary.py does, and kept already
        ]
    )
    if folder := os.environ.get(REPORT_VARIABLE):
        content = conclusion.content(verdict, lab)
        Path(folder, CONCLUSION_FILE).write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")
    return verdict
