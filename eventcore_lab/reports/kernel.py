"""One run of a notebook in a kernel of this interpreter: papermill's bookkeeping, our own way to start and to stop.

Three things differ from papermill's own engine. The kernel is always `sys.executable`, whatever kernelspecs exist or
not, and talks over sockets in a private directory. What cells print goes line by line to `progress`. And it can be
stopped (`stop.py`). Importing this module takes a second, so it is imported where it is used.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager

from eventcore_lab.reports.jupyter import imported_quickly
from eventcore_lab.reports.passwords import blank
from eventcore_lab.reports.stop import CellError, Stop

with imported_quickly():
    from nbclient.exceptions import CellExecutionError, DeadKernelError
    from papermill.clientwrap import PapermillNotebookClient
    from papermill.engines import Engine

_log = logging.getLogger(__name__)
_log.addHandler(logging.NullHandler())
_log.propagate = False  # what nbclient logs as errors is in the report; on the terminal it would be there twice


# ipykernel 7.4 at exit: its control thread may flush stdout to a thread that has just ended, and then waits out a timeout
# of 10 s (5 of 80 runs took 11 s instead of 0.6 s; with 1 s, 0 of 200). A flush that gives up loses and reorders nothing
# (15 runs of 5,000 lines with a timeout of 0), but says "IOStream.flush timed out" on stderr.
_SHORT_FLUSH = (
    "--IPKernelApp.exec_lines=setattr(__import__('ipykernel.iostream').iostream.OutStream, 'flush_timeout', 1.0)"
)


class _ThisInterpreter(KernelSpecManager):  # type: ignore[misc, unused-ignore]
    """Answers every kernel name with this interpreter, installed kernelspecs or not."""

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}", _SHORT_FLUSH]
        return KernelSpec(argv=argv, display_name=kernel_name, language="python", interrupt_mode="signal")


def _kernel_manager(private: Path) -> AsyncKernelManager:
    address: dict[str, str] = {}
    if os.name == "posix" and len(str(private)) < 80:  # the path of a Unix socket has 107 characters at most
        address = {"transport": "ipc", "ip": str(private / "kernel")}  # no ports, so no races for them
    return AsyncKernelManager(
        kernel_name="python3",
        kernel_spec_manager=_ThisInterpreter(),
        connection_file=str(private / "connection.json"),
        shutdown_wait_time=20.0,  # an embedded server that the kernel started is stopped when it exits
        **address,
    )


@dataclass
class Run:
    """What one run is given and what it leaves: `notebook` as far as it came, `error` when it stopped early."""

    notebook: Any
    cells: Mapping[int, int]  # index in the notebook → number of the code cell in its source
    stop: Stop
    progress: Callable[[str], None]
    save: Callable[[Any], None]
    private: Path  # a directory for connection file, sockets and the kernel's own log
    folder: Path  # working directory of the kernel
    environment: dict[str, str]
    timeout_s: float
    error: CellError | None = None
    index: int = -1  # of the cell that runs, or ran last
    tails: dict[str, str] = field(default_factory=dict)  # of lines that are not complete yet, by stream

    def execute(self) -> None:
        """Runs the cells; returns when the kernel and its process group are gone. What cells do raises nothing here."""
        timer = threading.Timer(self.timeout_s, self.stop.expire)
        timer.daemon = True
        timer.start()
        try:
            _Engine.execute_notebook(self.notebook, "python3", progress_bar=False, run=self)
        finally:
            timer.cancel()
            self.stop.cells_ended()
            self.stop.kill()
            self.flush()

    def printed(self, stream: str, text: str) -> None:
        """Hands on the lines that are complete; of a line that a progress bar overwrites, what is left at its end."""
        *lines, self.tails[stream] = (self.tails.get(stream, "") + text).split("\n")
        self.tails[stream] = self.tails[stream].rpartition("\r")[2] or self.tails[stream][-10_000:]
        for line in lines:
            self.progress(line.rstrip("\r").rpartition("\r")[2])

    def flush(self) -> None:
        for tail in self.tails.values():
            if tail.strip():
                self.progress(tail)
        self.tails.clear()

    def failed(self, name: str, message: str) -> None:
        # A password is blanked here already: the error is shown before the notebook is written.
        self.error = CellError(*self.where(), name, blank(message))

    def where(self) -> tuple[int, str]:
        """Number and first line of the cell that runs, or ran last."""
        return self.cells.get(self.index, 0), blank(first_line(self.notebook, self.index))

    def kernel_died(self) -> None:
        number, code = self.where()[0], self.stop.exit_code()
        where = f"the kernel died in cell {number}" if number else "the kernel did not start"
        how = f" (killed by {signal.Signals(-code).name})" if code is not None and code < 0 else ""
        how += ": out of memory?" if code == -signal.SIGKILL and not self.stop.reason else ""
        said = _last_line(self.private / "kernel.log")
        self.failed("KernelDied", where + how + (f": {said}" if said else ""))


def first_line(notebook: Any, index: int) -> str:
    """The first line of a cell that says something; of cell −1, nothing."""
    lines = notebook.cells[index].source.splitlines() if index >= 0 else []
    return next((line.strip() for line in lines if line.strip()), "")[:200]


def _last_line(log: Path) -> str:
    try:
        lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
    except OSError:
        return ""
    said = [line for line in lines if line and "[IPKernelApp]" not in line]
    return said[-1][:300] if said else ""


class _Engine(Engine):  # type: ignore[misc]
    """Keeps papermill's record of each cell (when it ran, how long, how it came out) in the notebook's metadata."""

    @classmethod
    def execute_managed_notebook(cls, nb_man: Any, kernel_name: str, *, run: Run, **_: object) -> None:
        client = _Client(
            nb_man,
            run=run,
            kernel_name=kernel_name,
            log=_log,
            timeout=None,  # a report has one, its cells have none
            startup_timeout=60,
            force_raise_errors=True,  # whatever its tags say: a report with an error in it is none that passed
            iopub_timeout=60,  # the default of 4 s is too short on a machine that a load run keeps busy
        )
        client.execute()


class _Client(PapermillNotebookClient):  # type: ignore[misc]
    """nbclient's client with the kernel, the printing and the stopping of a `Run`."""

    def __init__(self, nb_man: Any, *, run: Run, **options: Any) -> None:
        super().__init__(nb_man, **options)
        self.run = run

    def create_kernel_manager(self) -> AsyncKernelManager:
        self.km = _kernel_manager(self.run.private)
        return self.km

    def execute(self) -> None:
        self.reset_execution_trackers()
        try:
            with (self.run.private / "kernel.log").open("wb") as log, self.setup_kernel(**self._launch(log)):
                self.run.stop.kernel_ready()
                try:
                    self.papermill_execute_cells()
                finally:
                    self.run.stop.cells_ended()
        except CellExecutionError as error:
            self.run.failed(error.ename, error.evalue)
        except (RuntimeError, TimeoutError) as error:  # it died, did not start, or answers no more
            if isinstance(error, DeadKernelError) or self.run.stop.exit_code() is not None:
                self.run.kernel_died()
            else:
                self.run.failed(type(error).__name__, str(error))

    def papermill_execute_cells(self) -> None:
        for index, cell in enumerate(self.nb.cells):
            if self.run.stop.reason:
                break
            self.run.index = index
            self._run_cell(cell, index)

    def _launch(self, log: Any) -> dict[str, Any]:
        return {"cwd": str(self.run.folder), "env": self.run.environment, "stdout": log, "stderr": subprocess.STDOUT}

    def start_new_kernel(self, **options: Any) -> None:
        super().start_new_kernel(**options)
        provisioner: Any = self.km.provisioner if self.km else None
        self.run.stop.kernel_launched(provisioner.process)
        import eventcore_lab.reports.markup  # noqa: F401 (a tenth of a second for what comes last, while the kernel starts)

    def _run_cell(self, cell: Any, index: int) -> None:
        self.nb_man.cell_start(cell, index)
        if index in self.run.cells and "injected-parameters" not in cell.metadata.get("tags", []):
            number, total = self.run.cells[index], max(self.run.cells.values())
            self.run.progress(f"cell {number}/{total}  {first_line(self.nb, index)[:80]}")
        try:
            self.execute_cell(cell, index)
        except Exception as error:
            self.nb_man.cell_exception(cell, cell_index=index, exception=error)
            raise
        finally:
            self.run.stop.cell_ended()
            self.run.flush()
            self.nb_man.cell_complete(cell, cell_index=index)
            self.run.save(self.nb)

    def process_message(self, msg: dict[str, Any], cell: Any, cell_index: int) -> Any:
        if msg["msg_type"] == "execute_input":
            self.run.stop.cell_began()
        elif msg["msg_type"] == "stream":
            self.run.printed(msg["content"]["name"], msg["content"]["text"])
        return super().process_message(msg, cell, cell_index)
