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

websocket = pytest.importorskip("websocket", reason="websocket-client is not installed")
pytest.importorskip("jupyterlab", reason="JupyterLab is not installed (the extra notebook)")

NOTEBOOK = "14-how-does-it-take-this-traffic.ipynb"
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

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def lab_address(tmp_path: Path) -> Iterator[str]:
    """JupyterLab on loopback, over a folder with the one notebook, its parameters made small."""
    folder = tmp_path / "project" / "notebooks"
    folder.mkdir(parents=True)
    (tmp_path / "project" / "data").mkdir()
    content = json.loads(Path("notebooks", NOTEBOOK).read_text())
    [cell] = [c for c in content["cells"] if "parameters" in c["metadata"].get("tags", [])]
    lines = "".join(cell["source"]).splitlines()
    names = [line.partition(" = ")[0] for line in lines]
    assert set(QUICK) <= set(names)
    cell["source"] = "\n".join(
        f"{n} = {QUICK[n]}" if n in QUICK else line for n, line in zip(names, lines, strict=True)
    )
    (folder / NOTEBOOK).write_text(json.dumps(content))
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
        yield f"http://127.0.0.1:{port}/lab/tree/{NOTEBOOK}?token={token}&reset"
    finally:
        ended(process)


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    assert CHROMIUM is not None
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


@needs_chromium
def test_a_notebook_runs_in_jupyterlab_and_shows_itself_meanwhile(lab_address: str, page: Page) -> None:
    page.call("Page.navigate", url=lab_address)
    outputs = "[...document.querySelectorAll('.jp-OutputArea-output')].map(e => e.innerHTML).join('\\n')"
    until(lambda: page.value("document.querySelectorAll('.jp-Notebook .jp-Cell').length > 5"), "the notebook")
    notebook = "[...jupyterapp.shell.widgets('main')][0]"
    until(lambda: page.value(f"{notebook}?.sessionContext?.session?.kernel?.status") == "idle", "a kernel")
    page.value(f"jupyterapp.shell.activateById({notebook}.id); true")
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
