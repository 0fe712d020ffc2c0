"""A notebook of ours in JupyterLab, in a real browser: it runs, shows itself while it runs, and ends with its verdict."""

from __future__ import annotations

import json
import os
import re
import secrets
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from eventcore_lab.clock import NS_PER_S, now_ns, pause_s
from tests.browser import CHROMIUM, needs_chromium

nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed (the extra notebook)")
websocket = pytest.importorskip("websocket", reason="websocket-client is not installed")
pytest.importorskip("jupyterlab", reason="JupyterLab is not installed (the extra notebook)")

NOTEBOOK = "14-how-does-it-take-this-traffic.ipynb"
WATCHED = "watched.ipynb"
CELLS = (
    "from eventcore_lab import Experiment, dashboard, run\ndashboard(port=0, height=700)",
    'run(Experiment(store="memory", pacer="constant:rate=200", duration_s=4, warmup_s=0.2))',
)
QUICK = {"store": '"memory"', "duration_s": "3.0", "warmup_s": "0.2", "connections": "2"}
DEADLINE_S = 60


def until(condition: Callable[[], Any], what: str) -> Any:
    deadline_ns = now_ns() + DEADLINE_S * NS_PER_S
    while not (found := condition()):
        assert now_ns() < deadline_ns, f"waited in vain for {what}"
        pause_s(0.1)
    return found


def ended(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def said(log: Path, pattern: str) -> str:
    found = until(lambda: re.search(pattern, log.read_text()), f"{pattern} in {log.name}")
    return str(found.group(1))


class Page:
    """A tab of a Chromium that was started for remote debugging (Chrome DevTools Protocol)."""

    def __init__(self, port: str) -> None:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=10) as answer:
            tab = next(t for t in json.load(answer) if t["type"] == "page")
        self._socket = websocket.create_connection(tab["webSocketDebuggerUrl"], timeout=30, suppress_origin=True)
        self._number = 0

    def call(self, method: str, **parameters: Any) -> Any:
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while (answer := json.loads(self._socket.recv())).get("id") != self._number:
            pass
        assert "error" not in answer, answer["error"]
        return answer["result"]

    def value(self, expression: str) -> Any:
        """What the expression is in the page; None while it raises."""
        done = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        return done["result"].get("value")

    def text_of(self, end: str) -> str:
        """What is to be read in the frame whose address ends so; nothing while there is none."""
        frames = self.call("Page.getFrameTree")["frameTree"].get("childFrames", [])
        for frame in (f["frame"] for f in frames if f["frame"]["url"].endswith(end)):
            world = self.call("Page.createIsolatedWorld", frameId=frame["id"])["executionContextId"]
            read = self.call("Runtime.evaluate", expression="document.body.innerText", contextId=world)
            return str(read["result"].get("value", ""))
        return ""

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(scope="module")
def lab_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], str]]:
    """JupyterLab on loopback, over a folder with the one notebook, its parameters made small, and one that watches a run;
    gives where to find each."""
    tmp_path = tmp_path_factory.mktemp("jupyter")
    folder = tmp_path / "project" / "notebooks"
    folder.mkdir(parents=True)
    (tmp_path / "project" / "data").mkdir()
    (folder / NOTEBOOK).write_text(json.dumps(made_small(json.loads(Path("notebooks", NOTEBOOK).read_text()))))
    cells = [nbformat.v4.new_code_cell(source) for source in CELLS]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), folder / WATCHED)
    token, log = secrets.token_hex(16), tmp_path / "jupyter.log"
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--port=0", "--ip=127.0.0.1", "--allow-root"]
    command += ["--expose-app-in-browser", f"--notebook-dir={folder}", f"--IdentityProvider.token={token}"]
    private = {f"JUPYTER_{name}_DIR": str(tmp_path / name) for name in ("CONFIG", "DATA", "RUNTIME")}
    environment = {
        **os.environ,
        **private,
        "EVENTCORE_LAB_DATA": str(tmp_path / "project" / "data"),
        "HOME": str(tmp_path),
    }
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, text=True, env=environment, cwd=tmp_path)
    try:
        port = said(log, r"http://127\.0\.0\.1:(\d+)/lab")
        yield lambda name: f"http://127.0.0.1:{port}/lab/tree/{name}?token={token}&reset"
    finally:
        ended(process)


def made_small(content: dict[str, Any]) -> dict[str, Any]:
    [cell] = [c for c in content["cells"] if "parameters" in c["metadata"].get("tags", [])]
    lines = "".join(cell["source"]).splitlines()
    names = [line.partition(" = ")[0] for line in lines]
    assert set(QUICK) <= set(names)
    cell["source"] = "\n".join(
        f"{n} = {QUICK[n]}" if n in QUICK else line for n, line in zip(names, lines, strict=True)
    )
    return content


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    assert CHROMIUM is not None
    tmp_path = tmp_path_factory.mktemp("chromium")
    log = tmp_path / "chromium.log"
    flags = (
        "--headless --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run --disable-background-networking"
    )
    command = [
        CHROMIUM,
        *flags.split(),
        "--remote-debugging-port=0",
        f"--user-data-dir={tmp_path / 'profile'}",
        "about:blank",
    ]
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, text=True)
    try:
        tab = Page(said(log, r"DevTools listening on ws://127\.0\.0\.1:(\d+)/"))
        yield tab
        tab.close()
    finally:
        ended(process)


def opened(page: Page, address: str) -> None:
    """The notebook, with a kernel that waits, and nothing else in front of it."""
    page.call("Page.navigate", url=address)
    until(lambda: page.value("document.querySelectorAll('.jp-Notebook .jp-Cell').length > 1"), "the notebook")
    notebook = "[...jupyterapp.shell.widgets('main')][0]"
    until(lambda: page.value(f"{notebook}?.sessionContext?.session?.kernel?.status") == "idle", "a kernel")
    page.value(f"jupyterapp.shell.activateById({notebook}.id); true")


@needs_chromium
def test_a_notebook_runs_in_jupyterlab_and_shows_itself_meanwhile(
    lab_address: Callable[[str], str], page: Page
) -> None:
    opened(page, lab_address(NOTEBOOK))
    outputs = "[...document.querySelectorAll('.jp-OutputArea-output')].map(e => e.innerHTML).join('\\n')"
    page.value("jupyterapp.commands.execute('notebook:run-all-cells'); true")
    # While the load runs, its picture grows in the cell.
    picture = (
        "decodeURIComponent(document.querySelector('.jp-OutputArea-output img[src^=\"data:image/svg\"]')?.src || '')"
    )
    looks = f"({picture}.match(/polyline points=\"([^\"]*)\"/)?.[1] || '').split(' ').length"
    first = until(lambda: page.value(looks) >= 2 and page.value(looks), "a live picture")
    until(lambda: page.value(looks) > first, "the live picture to grow")
    found = until(lambda: 'class="verdict"' in str(page.value(outputs)) and page.value(outputs), "the verdict")
    assert "every operation has one outcome" in found
    assert "µs late in the median" in found
    assert page.value("document.querySelectorAll('.jp-OutputArea-output img').length") >= 3
    assert "Traceback" not in found


@needs_chromium
def test_the_dashboard_in_a_cell_shows_the_run_of_the_next_one_while_it_goes_on(
    lab_address: Callable[[str], str], page: Page
) -> None:
    opened(page, lab_address(WATCHED))
    page.value("jupyterapp.commands.execute('notebook:run-all-cells'); true")
    until(lambda: "· memory · loading" in page.text_of("/dashboard"), "the run that goes on")
    until(lambda: re.search(r"Operations\s+[12]\d\d/s", page.text_of("/dashboard")), "its rate")
    busy = "document.querySelectorAll('.jp-Notebook .jp-Cell')[1].textContent.includes('[*]')"
    assert page.value(busy), "it was seen only afterwards"
    until(lambda: not page.value(busy), "the end of the run")
    until(lambda: "complete" in page.text_of("/dashboard"), "the page to say so")
