"""A notebook in, a report out: a new folder with the executed notebook, a page to read, a record of how it came out.

`<out>/<UTC time>-<name>/` holds `<stem>.ipynb`, `index.html`, `report.md`, `junit.xml`, `report.json` (record.py says what is
in it) and what the notebook itself puts there (`conclusion.json`, by the folder named in `EVENTCORE_LAB_REPORT`). The source
notebook is only ever read.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from eventcore_lab.clock import NS_PER_S, now_ns
from eventcore_lab.reports import parameters as parameters_
from eventcore_lab.reports.index import rewrite_index
from eventcore_lab.reports.junit import junit
from eventcore_lab.reports.jupyter import imported_quickly
from eventcore_lab.reports.markdown import markdown
from eventcore_lab.reports.notebooks import (
    parameters_cell,
    question_of,
    read_json,
    source_of,
    title_of,
    write_atomically,
)
from eventcore_lab.reports.passwords import blank
from eventcore_lab.reports.stop import CellError, Stop, stopped_by_signals

if TYPE_CHECKING:
    from eventcore_lab.reports.kernel import Run

Status = Literal["complete", "failed", "interrupted"]
Compare = Callable[[Mapping[str, Any]], dict[str, Any]]
"""A conclusion as it compares with a baseline; see lab/baseline.py."""

GRACE_S = 20.0  # what a running cell gets to finish after Ctrl-C: a load run drains and stores its results
SPACE_MIN_BYTES = 32 << 20


class ReportFolderError(OSError):
    """No report can be written there; the message says where and why in one line."""


@dataclass(frozen=True)
class Report:
    """How one execution came out. `seconds` are all of it: starting the kernel, the cells, writing the page; `record` is what
    stands in `report.json`."""

    folder: Path
    notebook: Path
    html: Path | None
    conclusion: dict[str, Any] | None
    error: CellError | None
    seconds: float
    status: Status
    record: dict[str, Any]


def execute(
    notebook: Path,
    parameters: Mapping[str, object],
    out: Path,
    *,
    name: str | None = None,
    timeout_s: float = 3600,
    progress: Callable[[str], None] = print,
    environment: Mapping[str, str] = MappingProxyType({}),
    compare: Compare | None = None,
) -> Report:
    """Runs `notebook` with `parameters` and writes its report into a new folder of `out`.

    A cell that fails, a kernel that dies, Ctrl-C and the timeout are results (`Report.status`), not exceptions: what
    there is then is written all the same. Ctrl-C lets the running cell finish for `GRACE_S` seconds, a second one kills
    it. `environment` is added to the kernel's, never to ours. `compare` holds the conclusion against an earlier one.

    Errors: UsageError for a file that is no notebook and for parameters it does not have, and ReportFolderError, both
    before anything has started (ReportFolderError at the end, too, when the disk is full by then); KeyboardInterrupt
    when Ctrl-C came after the last cell, and then all is written.
    """
    source = read_json(notebook)
    declared = parameters_.parameters_in(parameters_cell(source), str(notebook))
    parameters_.check_values(parameters, declared)
    defaults = {parameter.name: parameter.default for parameter in declared}
    started = datetime.now(UTC)
    began = now_ns()
    paper = Paper(
        folder=new_folder(out, started, name or notebook.stem),
        stem=notebook.stem,
        name=name or notebook.stem,
        title=title_of(source, notebook.stem),
        question=question_of(source),
        fingerprint=fingerprint(source, {**defaults, **parameters}),
        started=started,
        parameters={**defaults, **parameters},
        declared=declared,
        source_folder=notebook.resolve().parent,
    )
    return _execute(notebook, dict(parameters), paper, began, timeout_s, _unbreakable(progress), environment, compare)


def fingerprint(source: Mapping[str, Any], parameters: Mapping[str, object]) -> str:
    """Of what a notebook asks: its cells, every parameter with its value, the package's version. Outputs do not count."""
    cells = [(cell.get("cell_type"), source_of(cell)) for cell in source["cells"]]
    asked = json.dumps([cells, dict(parameters), metadata.version("eventcore_lab")], sort_keys=True, default=str)
    return hashlib.sha256(asked.encode("utf-8", "backslashreplace")).hexdigest()[:32]


@dataclass(frozen=True)
class Paper:
    """What is known of a report before it has run."""

    folder: Path
    stem: str
    name: str
    title: str
    question: str
    fingerprint: str
    started: datetime
    parameters: dict[str, object]
    declared: list[parameters_.Parameter]
    source_folder: Path

    @property
    def changed(self) -> list[str]:
        """The names whose value is not the notebook's own."""
        return [p.name for p in self.declared if self.parameters[p.name] != p.default]


def _execute(
    notebook: Path,
    given: dict[str, object],
    paper: Paper,
    began: int,
    timeout_s: float,
    progress: Callable[[str], None],
    environment: Mapping[str, str],
    compare: Compare | None,
) -> Report:
    stop = Stop(GRACE_S, progress)
    private = tempfile.TemporaryDirectory(prefix="lab-", ignore_cleanup_errors=True)
    with stopped_by_signals(stop), private as directory:
        from eventcore_lab.reports.kernel import Run

        content = _prepared(notebook, given)
        run = Run(
            notebook=content,
            cells=_numbers(content),
            stop=stop,
            progress=progress,
            save=lambda so_far: _save_so_far(so_far, paper),
            private=Path(directory),
            folder=paper.source_folder,
            environment=_kernel_environment(paper.folder, Path(directory), environment),
            timeout_s=timeout_s,
        )
        run.execute()
        status, error = _outcome(run, timeout_s)
        report = _written(run, paper, status, error, began, compare)
    if stop.reason == "interrupted" and status == "complete":
        raise KeyboardInterrupt
    return report


def _outcome(run: Run, timeout_s: float) -> tuple[Status, CellError | None]:
    if run.stop.reason is None:
        return ("failed" if run.error else "complete"), run.error
    number, line = run.where()
    if run.stop.reason == "interrupted":
        return "interrupted", CellError(number, line, "KeyboardInterrupt", f"interrupted in cell {number}")
    message = f"stopped in cell {number}: the report took longer than {timeout_s:g} s"
    return "failed", CellError(number, line, "Timeout", message)


def _written(
    run: Run, paper: Paper, status: Status, error: CellError | None, began: int, compare: Compare | None
) -> Report:
    """The executed notebook, the page, the other formats, the record, the index, in this order: each is there if the next
    one fails."""
    from eventcore_lab.reports.page import render

    conclusion = _conclusion(paper.folder, run.progress)
    try:
        executed = _save(run.notebook, paper)
        record = blank(
            {
                **_facts(paper),
                "notebook": executed.name,
                "status": status,
                "seconds": round((now_ns() - began) / NS_PER_S, 1),
                "conclusion": conclusion,
                "baseline": compare(conclusion) if compare and conclusion else None,
                "error": asdict(error) if error else None,
            }
        )
        html = paper.folder / "index.html"
        write_atomically(html, render(blank(run.notebook), record, paper.declared, run.cells, paper.source_folder))
        write_atomically(paper.folder / "report.md", markdown(record))
        write_atomically(paper.folder / "junit.xml", junit([record]))
        write_atomically(paper.folder / "report.json", json.dumps(record, indent=1, default=str) + "\n")
        rewrite_index(paper.folder.parent)
    except OSError as problem:
        raise folder_error(paper.folder, problem) from None
    seconds = (now_ns() - began) / NS_PER_S
    return Report(paper.folder, executed, html, conclusion, error, seconds, status, record)


def _facts(paper: Paper) -> dict[str, Any]:
    return {
        "kind": "report",
        "name": paper.name,
        "title": paper.title,
        "question": paper.question,
        "started": paper.started.isoformat(timespec="seconds"),
        "parameters": paper.parameters,
        "changed": paper.changed,
        "fingerprint": paper.fingerprint,
    }


def _save(content: Any, paper: Paper) -> Path:
    executed = paper.folder / f"{paper.stem}.ipynb"
    write_atomically(executed, json.dumps(blank(content), indent=1, ensure_ascii=False) + "\n")
    return executed


def _save_so_far(content: Any, paper: Paper) -> None:
    """After each cell, so that there is something even when this process is killed; a full disk is told at the end."""
    with contextlib.suppress(OSError):
        _save(content, paper)


def _conclusion(folder: Path, progress: Callable[[str], None]) -> dict[str, Any] | None:
    """What the notebook concluded, passwords blanked in its file too; None when it did not come to that."""
    path = folder / "conclusion.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        progress(f"conclusion.json cannot be read: {error}")
        return None
    if not isinstance(found, dict):
        progress("conclusion.json is not an object")
        return None
    if blank(found) != found:
        write_atomically(path, json.dumps(blank(found), indent=1) + "\n")
    return dict(blank(found))


def _prepared(notebook: Path, given: dict[str, object]) -> Any:
    """The notebook in memory with its parameters injected, whatever kernel its metadata name."""
    with imported_quickly():
        from papermill.iorw import load_notebook_node
        from papermill.parameterize import parameterize_notebook

    content = load_notebook_node(str(notebook.resolve()))
    content.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    content.metadata["language_info"] = {"name": "python"}
    content.cells = [cell for cell in content.cells if "injected-parameters" not in cell.metadata.tags]
    if given:
        content = parameterize_notebook(content, given, kernel_name="python3", language="python")
    return content


def _numbers(content: Any) -> dict[int, int]:
    """Index → number for the code cells, counted as JupyterLab counts them when it runs all; the injected one has the
    number of the parameters cell before it."""
    numbers: dict[int, int] = {}
    number = 0
    for index, cell in enumerate(content.cells):
        if cell.cell_type == "code" and source_of(cell).strip():
            number += "injected-parameters" not in cell.metadata.tags
            numbers[index] = number
    return numbers


def _kernel_environment(folder: Path, private: Path, extra: Mapping[str, str]) -> dict[str, str]:
    """Ours and what keeps the kernel out of the user's home, which may be unwritable or hold start-up files."""
    ours = {
        "EVENTCORE_LAB_REPORT": str(folder),
        "IPYTHONDIR": str(private / "ipython"),
        "JUPYTER_RUNTIME_DIR": str(private),
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",  # or the debugger warns about frozen modules at each start
    }
    if not any(name in os.environ for name in ("MPLCONFIGDIR", "XDG_CACHE_HOME")) and not _is_home_writable():
        ours["MPLCONFIGDIR"] = str(private / "matplotlib")
    return {**os.environ, **extra, **ours}


def _is_home_writable() -> bool:
    try:
        home = Path.home()
    except RuntimeError:  # no HOME and no entry in the password database
        return False
    return os.access(home, os.W_OK) and (not (home / ".config").exists() or os.access(home / ".config", os.W_OK))


def new_folder(out: Path, started: datetime, name: str) -> Path:
    """A new folder in `out` that can be written and has space around it, or ReportFolderError."""
    slug = re.sub(r"[^\w.-]+", "-", name, flags=re.ASCII).strip("-.")[:60] or "report"
    wanted = f"{started:%Y%m%dT%H%M%SZ}-{slug}"
    try:
        out.mkdir(parents=True, exist_ok=True)
        free_bytes = shutil.disk_usage(out).free
        if free_bytes < SPACE_MIN_BYTES:
            raise OSError(errno.ENOSPC, f"only {free_bytes >> 20} MiB free on the disk")
        folder = _first_free(out.resolve(), wanted)
        write_atomically(folder / ".probe", "can be written")
        (folder / ".probe").unlink()
    except OSError as error:
        raise folder_error(out, error) from None
    return folder


def _first_free(out: Path, wanted: str) -> Path:
    for number in range(1, 1000):
        folder = out / (wanted if number == 1 else f"{wanted}-{number}")
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        return folder
    raise OSError(errno.EEXIST, "a thousand reports of this second")


def folder_error(folder: Path, error: OSError) -> ReportFolderError:
    return ReportFolderError(f"no report can be written to {folder}: {error.strerror or error}")


def _unbreakable(progress: Callable[[str], None]) -> Callable[[str], None]:
    """`progress` without passwords, silent once its reader has gone (`… | head`): the report still counts."""

    def tell(line: str) -> None:
        with contextlib.suppress(OSError):
            progress(blank(line))

    return tell
