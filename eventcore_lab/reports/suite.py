"""Several notebooks with several parameters from one TOML file, and one page that says how they came out.

    name = "ci"                                  # of its page; the file's name if there is none

    [[notebooks]]
    notebook = "00-store-benchmark"              # a name, a number, or a path from this file
    parameters = { duration_s = 2.0 }            # the same for all of its reports
    matrix = { store = ["memory", "sqlite"] }    # a report for each combination
    again = false                                # true: is run each time, as one must be that reads the Lab

A suite can be stopped and started again: a report in the same folder with the same fingerprint (the notebook's cells, the
parameters, the version of the package) that came to its end is taken as it is. The fingerprint does not know what is outside of
them: a server behind `env:`, a file that a parameter names.
"""

from __future__ import annotations

import itertools
import json
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from eventcore_lab.clock import NS_PER_S, now_ns
from eventcore_lab.reports.execution import fingerprint, folder_error, new_folder
from eventcore_lab.reports.index import rewrite_index
from eventcore_lab.reports.junit import junit
from eventcore_lab.reports.markdown import summary
from eventcore_lab.reports.notebooks import find_notebook, read_json, write_atomically
from eventcore_lab.reports.parameters import declared_parameters, typed_parameters
from eventcore_lab.reports.passwords import blank
from eventcore_lab.reports.record import answer_of, badge_of, exit_code_of, worst
from eventcore_lab.schema import ExitCode
from eventcore_lab.spec import UsageError, shown, unknown

JOBS_MAX = 1000
_KEYS = ("notebook", "parameters", "matrix", "again")
_STATUS = {
    ExitCode.PASS: "pass",
    ExitCode.FAIL: "fail",
    ExitCode.INCONCLUSIVE: "inconclusive",
    ExitCode.VIOLATED: "violated",
}


@dataclass(frozen=True)
class Job:
    """A notebook with parameters. `given` are those of the file, `fingerprint` says whether a report is of this job."""

    notebook: Path
    given: dict[str, object]
    is_always_run: bool
    fingerprint: str

    @property
    def label(self) -> str:
        """What tells it from the others: the notebook and what it was given."""
        return " ".join([self.notebook.stem, *(f"{name}={value}" for name, value in self.given.items())])


@dataclass(frozen=True)
class Suite:
    """What a file asks for."""

    name: str
    jobs: list[Job]


def read_suite(file: Path, folder: Path) -> Suite:
    """The suite of a TOML file; notebooks are those of `folder`, or paths. UsageError, in one line, for whatever is wrong."""
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"suite {shown(str(file))} cannot be read: {error.strerror}") from None
    except ValueError as error:  # TOML that is none, or no UTF-8
        raise UsageError(f"suite {shown(str(file))} is not TOML: {' '.join(str(error).split())}") from None
    try:
        _check_keys(content, ("name", "notebooks"), "key")
        entries = content.get("notebooks")
        if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
            raise UsageError("it needs [[notebooks]], one or more, each with a notebook")
        jobs = [job for n, entry in enumerate(entries, 1) for job in _jobs(entry, n, file.parent, folder)]
    except UsageError as error:
        raise UsageError(f"suite {file.name}: {error}") from None
    if len(jobs) > JOBS_MAX:
        raise UsageError(f"suite {file.name}: {len(jobs)} reports; at most {JOBS_MAX} at once")
    return Suite(str(content.get("name", file.stem)), jobs)


def _jobs(entry: dict[str, Any], n: int, here: Path, folder: Path) -> Iterator[Job]:
    """The jobs of one [[notebooks]], in the order of its matrix, the last name varying fastest."""
    where = f"[[notebooks]] {n}"
    try:
        _check_keys(entry, _KEYS, "key")
        name = entry.get("notebook")
        if not isinstance(name, str):
            raise UsageError('notebook = "…" is missing')
        beside = here / name
        notebook = beside if name.endswith(".ipynb") and beside.is_file() else find_notebook(name, folder)
        again = entry.get("again", False)
        if not isinstance(again, bool):
            raise UsageError(f"again: {shown(str(again))} is not true or false")
        parameters, matrix = (_table(entry, key) for key in ("parameters", "matrix"))
        for given in _combinations(parameters, matrix):
            yield job_of(notebook, given, again)
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from None


def job_of(notebook: Path, given: Mapping[str, object], again: bool = False) -> Job:
    """A job, its parameters checked against the notebook's own."""
    values = typed_parameters(notebook, given)
    defaults = {parameter.name: parameter.default for parameter in declared_parameters(notebook)}
    return Job(notebook, values, again, fingerprint(read_json(notebook), {**defaults, **values}))


def _combinations(parameters: dict[str, Any], matrix: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for name, values in matrix.items():
        if not isinstance(values, list) or not values:
            raise UsageError(f"matrix: {name} is not a list of values, one for each report")
        if name in parameters:
            raise UsageError(f"{name} is in parameters and in matrix")
    count = 1
    for values in matrix.values():
        count *= len(values)
    if count > JOBS_MAX:
        raise UsageError(f"matrix: {count} reports; at most {JOBS_MAX} at once")
    for combination in itertools.product(*matrix.values()):
        yield parameters | dict(zip(matrix, combination, strict=True))


def _table(entry: dict[str, Any], key: str) -> dict[str, Any]:
    found = entry.get(key, {})
    if not isinstance(found, dict):
        raise UsageError(f"{key} is not a table; write {key} = {{ name = value }}")
    return found


def _check_keys(content: Mapping[str, Any], known: tuple[str, ...], kind: str) -> None:
    for key in content:
        if key not in known:
            raise unknown(kind, key, known)


Run = Callable[[Job], Mapping[str, Any]]
"""Runs a job and gives the record of its report, with the name of its folder as `folder`."""


def run_suite(
    suite: Suite, out: Path, run: Run, *, is_all_again: bool = False, progress: Callable[[str], None] = print
) -> ExitCode:
    """Runs what has no finished report in `out` yet, and keeps a page of all in a new folder there, renewed after each.

    After Ctrl-C the page has what there is. The exit code is the worst one, by record.ORDER.
    """
    began, started = now_ns(), datetime.now(UTC)
    folder = new_folder(out, started, suite.name)
    done = {} if is_all_again else _finished(out)
    records: list[Mapping[str, Any]] = []
    for n, job in enumerate(suite.jobs, 1):
        found = None if job.is_always_run else done.get(job.fingerprint)
        progress(f"{n}/{len(suite.jobs)}  {blank(job.label)}" + (f"  (done: {found['folder']})" if found else ""))
        record = found or run(job)
        records.append({**record, "given": job.given, "label": blank(job.label), "is_reused": found is not None})
        _write(folder, _record(suite, records, started, (now_ns() - began) / NS_PER_S), records)
        if exit_code_of(record) is ExitCode.INTERRUPTED:
            break
    progress(f"suite: {folder / 'index.html'}")
    return worst(map(exit_code_of, records))


def _finished(out: Path) -> dict[str, Mapping[str, Any]]:
    """Fingerprint → the record of the newest report in `out` that came to a conclusion."""
    found: dict[str, Mapping[str, Any]] = {}
    for path in sorted(out.glob("*/report.json")):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            continue
        if (
            isinstance(record, dict)
            and record.get("status") == "complete"
            and isinstance(record.get("conclusion"), dict)
        ):
            found[str(record.get("fingerprint"))] = {**record, "folder": path.parent.name}
    return found


def _record(suite: Suite, records: list[Mapping[str, Any]], started: datetime, seconds: float) -> dict[str, Any]:
    """The suite as a report of its own: see record.py."""
    code = worst(map(exit_code_of, records))
    is_whole = len(records) == len(suite.jobs)
    status = "complete" if code in _STATUS else "interrupted" if code is ExitCode.INTERRUPTED else "failed"
    if code in _STATUS and not is_whole:
        status, code = "interrupted", ExitCode.INTERRUPTED
    answer = _answer(suite, records)
    record = {
        "kind": "suite",
        "name": suite.name,
        "title": f"Suite {suite.name}",
        "status": status,
        "started": started.isoformat(timespec="seconds"),
        "seconds": round(seconds, 1),
        "conclusion": {"status": _STATUS.get(code, "inconclusive"), "exit_code": int(code), "answer": answer},
        "error": None if status == "complete" else {"cell": 0, "name": status, "message": answer},
        "jobs": [_job_record(r) for r in records],
        "of": len(suite.jobs),
    }
    found: dict[str, Any] = blank(record)
    return found


def _answer(suite: Suite, records: list[Mapping[str, Any]]) -> str:
    counted = Counter(badge_of(record).word.lower() for record in records)
    missing = len(suite.jobs) - len(records)
    parts = [f"{n} {word}" for word, n in counted.items()] + ([f"{missing} not run"] if missing else [])
    reused = sum(bool(record.get("is_reused")) for record in records)
    return f"Of {len(suite.jobs)} reports: {', '.join(parts)}." + (f" There already: {reused}." if reused else "")


def _job_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """What the suite's own record keeps of a report: enough for its line."""
    kept = (
        "name",
        "title",
        "status",
        "started",
        "seconds",
        "folder",
        "given",
        "label",
        "is_reused",
        "error",
        "fingerprint",
    )
    conclusion = record.get("conclusion")
    told = {k: conclusion.get(k) for k in ("status", "answer", "exit_code")} if isinstance(conclusion, dict) else None
    return {**{name: record.get(name) for name in kept}, "conclusion": told}


def _write(folder: Path, record: Mapping[str, Any], records: list[Mapping[str, Any]]) -> None:
    from eventcore_lab.reports.page import environment

    rows = [{**job, "badge": badge_of(job), "answer": answer_of(job)} for job in record["jobs"]]
    facts = {"record": record, "badge": badge_of(record), "answer": answer_of(record), "rows": rows}
    try:
        write_atomically(folder / "index.html", environment().get_template("suite.html.j2").render(**facts))
        write_atomically(folder / "summary.md", summary(record))
        write_atomically(folder / "junit.xml", junit(blank(records)))
        write_atomically(folder / "report.json", json.dumps(record, indent=1, default=str) + "\n")
        rewrite_index(folder.parent)
    except OSError as error:
        raise folder_error(folder, error) from None
