"""Figures of what stands around the load: a batch run of one notebook, a suite of ten, a report's size, the first picture.

Outside the load is the whole command's time less the warm-ups and durations of its runs: starting, importing, checking,
reading back, drawing, writing the page, ending. Ratios are the bound over what was measured: 1 or more keeps it.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jupyter_client.blocking import BlockingKernelClient
from jupyter_client.manager import KernelManager

from eventcore_lab.clock import NS_PER_S, now_ns
from eventcore_lab.lab.database import Lab
from eventcore_lab.schema import LAB_VARIABLE, ExitCode
from tests.bench.figure import TRIALS, Figure, interleaved

ROOT = Path(__file__).parents[2]
OUTSIDE_S, SUITE_TIMES, PAGE_BYTES = 6.0, 1.3, 2e6
LIVE_S, STATIC_S = 1.0, 6.0
"""From the beginning of a cell to its live picture; from a kernel's start to the first picture that stays, without the load."""
JOBS, SUITE_TRIALS = 10, 3
ONE, MANY = "14-how-does-it-take-this-traffic", "00-store-benchmark"
SHORT: dict[str, Any] = {"store": "memory", "duration_s": 1.0, "warmup_s": 0.5}
SHORTER: dict[str, Any] = {**SHORT, "duration_s": 0.4, "warmup_s": 0.1}
_VERDICTS = {int(code) for code in (ExitCode.PASS, ExitCode.FAIL, ExitCode.INCONCLUSIVE)}
_CELL_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Ran:
    """One command: seconds of it, of processor time with all its processes, and of the load; bytes of its largest page."""

    wall_s: float
    cpu_s: float
    load_s: float
    page_bytes: int

    @property
    def outside_s(self) -> float:
        return self.wall_s - self.load_s


def _ran(*command: str) -> Ran:
    """`eventcore-lab` with a Lab and reports of its own."""
    with tempfile.TemporaryDirectory() as folder:
        lab, out = Path(folder) / "lab.duckdb", Path(folder) / "reports"
        asked = [sys.executable, "-m", "eventcore_lab", *command, "--lab", str(lab), "--out", str(out)]
        began_ns, before_s = now_ns(), _spent_s()
        code = subprocess.run(asked, cwd=ROOT, stdout=subprocess.DEVNULL, check=False).returncode
        wall_s, cpu_s = (now_ns() - began_ns) / NS_PER_S, _spent_s() - before_s
        assert code in _VERDICTS, f"{command}: exit code {code}"
        runs = Lab(lab).runs()
        load_s = float((runs["warmup_s"] + runs["duration_s"]).sum())
        return Ran(wall_s, cpu_s, load_s, max(page.stat().st_size for page in out.glob("*/index.html")))


def _spent_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _notebook(name: str, **parameters: object) -> Ran:
    return _ran("run", name, *(word for n, value in parameters.items() for word in ("-p", f"{n}={value}")))


def _suite(seeds: range) -> Ran:
    """ONE once for each seed, by one suite in a folder of its own."""
    parameters = ", ".join(f"{name} = {json.dumps(value)}" for name, value in SHORTER.items())
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "ten.toml"
        file.write_text(
            f'[[notebooks]]\nnotebook = "{ONE}"\nparameters = {{ {parameters} }}\nmatrix = {{ seed = {[*seeds]} }}\n'
        )
        return _ran("suite", str(file))


def _medians(found: list[Ran]) -> dict[str, float]:
    names = {"outside s": "outside_s", "load s": "load_s", "cpu s": "cpu_s"}
    return {name: statistics.median(getattr(ran, field) for ran in found) for name, field in names.items()}


def batch_outside() -> Figure:
    found = [_notebook(ONE, **SHORT) for _ in range(TRIALS)]
    what = f"{OUTSIDE_S:g} s to what a notebook of one run spends outside the load"
    return Figure("batch.outside", what, 1.0, [OUTSIDE_S / ran.outside_s for ran in found], _medians(found))


def batch_outside_ten_runs() -> Figure:
    """The main notebook: ten runs, each with a process, a store and evidence of its own, and the more the faster the store."""
    found = [_notebook(MANY, **SHORT) for _ in range(2)]
    what = f"{OUTSIDE_S:g} s to the same of the main notebook, ten runs of a store that saturates: no bound"
    return Figure("batch.outside_ten_runs", what, None, [OUTSIDE_S / ran.outside_s for ran in found], _medians(found))


def batch_suite() -> Figure:
    """Ten jobs by one suite and by ten commands, who is first changing from trial to trial."""
    seeds = range(1, JOBS + 1)
    found = interleaved(
        {
            "suite": lambda: _suite(seeds).wall_s,
            "ten commands": lambda: sum(_notebook(ONE, **SHORTER, seed=n).wall_s for n in seeds),
        },
        SUITE_TRIALS,
    )
    ratios = [SUITE_TIMES * singly / one for one, singly in zip(found["suite"], found["ten commands"], strict=True)]
    notes = {f"{arm} s": statistics.median(seconds) for arm, seconds in found.items()}
    return Figure("batch.suite", f"{SUITE_TIMES:g} times ten single commands to a suite of the ten", 1.0, ratios, notes)


def report_size() -> Figure:
    pages = {name: _notebook(name, **SHORTER).page_bytes for name in (ONE, MANY)}
    notes = {f"{name[:2]} kB": size / 1e3 for name, size in pages.items()}
    return Figure("report.size", "2 MB to a report's page", 1.0, [PAGE_BYTES / size for size in pages.values()], notes)


def notebook_first_picture() -> list[Figure]:
    """The picture that grows while `run` goes on, and the first of the main notebook."""
    live, static = [], []
    for _ in range(TRIALS):
        with tempfile.TemporaryDirectory() as folder:
            live.append(_live_picture_s(Path(folder)))
            static.append(_static_picture_s(Path(folder)))
    return [
        Figure(
            "notebook.first_picture",
            f"{LIVE_S:g} s to the first picture after run() began: no bound",
            None,
            [LIVE_S / s for s in live],
            {"s": statistics.median(live)},
        ),
        Figure(
            "notebook.first_picture_static",
            f"{STATIC_S:g} s to the main notebook's first, from the kernel's start, without the load: no bound",
            None,
            [STATIC_S / s for s in static],
            {"s": statistics.median(static)},
        ),
    ]


def _live_picture_s(folder: Path) -> float:
    experiment = f"Experiment(store='memory', pacer='poisson:rate=250', duration_s={SHORT['duration_s']})"
    with _kernel(folder) as client:
        _shown_ns(client, f"from eventcore_lab import Experiment, run\nexperiment = {experiment}", "")
        began_ns = now_ns()
        shown_ns = _shown_ns(client, "found = run(experiment)", "image/svg+xml")
    assert shown_ns is not None, "run() showed no picture"
    return (shown_ns - began_ns) / NS_PER_S


def _static_picture_s(folder: Path) -> float:
    """Cell by cell until one shows an image. The floor's run and those of the closed loops come before it."""
    cells = json.loads((ROOT / "notebooks" / f"{MANY}.ipynb").read_text(encoding="utf-8"))["cells"]
    given = "\n".join(f"{name} = {value!r}" for name, value in {**SHORTER, "concurrency": [1, 10]}.items())
    load_ns = int(3 * (SHORTER["duration_s"] + SHORTER["warmup_s"]) * NS_PER_S)
    began_ns = now_ns()
    with _kernel(folder) as client:
        for cell in cells:
            code = "".join(cell["source"]) if cell["cell_type"] == "code" else ""
            more = given if "parameters" in cell["metadata"].get("tags", []) else ""
            if code and (shown_ns := _shown_ns(client, f"{code}\n{more}", "image/png")):
                return (shown_ns - began_ns - load_ns) / NS_PER_S
    raise AssertionError("the main notebook showed no picture")


@contextmanager
def _kernel(folder: Path) -> Iterator[BlockingKernelClient]:
    """One whose results go into a Lab of its own."""
    mine = {LAB_VARIABLE: str(folder / "lab.duckdb"), "IPYTHONDIR": str(folder / "ipython")}
    manager = KernelManager(kernel_name="python3", transport="ipc", ip=str(folder / "kernel"))
    manager.start_kernel(env={**os.environ, **mine}, cwd=str(ROOT))
    client = manager.client()
    try:
        client.start_channels()
        client.wait_for_ready(timeout=_CELL_TIMEOUT_S)
        yield client
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def _shown_ns(client: BlockingKernelClient, code: str, kind: str) -> int | None:
    """Runs a cell to its end; when the first output of that kind came, if one did."""
    asked, shown_ns = client.execute(code), None
    while True:
        message: dict[str, Any] = client.get_iopub_msg(timeout=_CELL_TIMEOUT_S)
        if message["parent_header"].get("msg_id") != asked:
            continue
        said, content = message["msg_type"], message["content"]
        if said == "error":
            raise AssertionError(f"{content['ename']}: {content['evalue']} in {code!r}")
        if kind in content.get("data", ()) and shown_ns is None:
            shown_ns = now_ns()
        if said == "status" and content["execution_state"] == "idle":
            return shown_ns


FIGURES: tuple[Callable[[], Figure | list[Figure]], ...] = (
    batch_outside,
    batch_outside_ten_runs,
    batch_suite,
    notebook_first_picture,
    report_size,
)
