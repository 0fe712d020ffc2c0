"""Starting a monitor from somewhere else: beside the runs of a command, from a notebook, or alone in the foreground."""

from __future__ import annotations

import asyncio
import atexit
import importlib.util
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import msgspec

from eventcore_lab.clock import NS_PER_S, now_ns
from eventcore_lab.lab.database import Lab
from eventcore_lab.monitor.delivery import tried
from eventcore_lab.monitor.process import PORT, PORTS_TRIED, Order, monitored
from eventcore_lab.schema import ExitCode
from eventcore_lab.spec import UsageError

START_TIMEOUT_S, END_TIMEOUT_S = 60.0, 10.0
_OF_A_NOTEBOOK: dict[Path, Beside] = {}
"""Lab → its monitor, until the kernel ends."""


class Broken(Exception):
    """The monitor could not be started, through no fault of the user's; the message says why."""


class Beside:
    """A monitor in a process of its own, which ends with this one, however this one ends: its input is a pipe from here."""

    def __init__(self, order: Order, tell: Callable[[dict[str, Any]], None] | None = None) -> None:
        """Started and listening; raises UsageError or Broken. `tell` is given what it says from then on, in a thread."""
        self._words: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (for as long as the process)
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "eventcore_lab.monitor"],  # -P: no module of the folder one happens to be in
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._words,
            start_new_session=True,  # the terminal's Ctrl-C is for the run
        )
        assert self._process.stdin is not None
        self._listening: threading.Thread | None = None
        try:
            with suppress(BrokenPipeError):
                self._process.stdin.write(msgspec.json.encode(order) + b"\n")
                self._process.stdin.flush()
            said = self._first()
        except BaseException:
            self.end()
            raise
        self.url, self.port, self.pid = said["url"], int(said["port"]), self._process.pid
        self._tell = tell
        self._listening = threading.Thread(target=self._listen, name="monitor", daemon=True)
        self._listening.start()

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def _first(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        deadline_ns, line = now_ns() + int(START_TIMEOUT_S * NS_PER_S), b""
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while not line.endswith(b"\n") and now_ns() < deadline_ns:
                if selector.select(1.0):
                    part = os.read(self._process.stdout.fileno(), 65536)
                    line += part
                    if not part:
                        break
        if not line.endswith(b"\n"):
            raise Broken(self._last_words())
        said: dict[str, Any] = msgspec.json.decode(line.splitlines()[0])
        if said["event"] == "broken":
            raise UsageError(str(said["message"]))
        return said

    def _last_words(self) -> str:
        self._words.seek(0)
        lines = [line for line in self._words.read(1_000_000).decode(errors="replace").splitlines() if line.strip()]
        return f"the monitor did not start: {lines[-1][:300]}" if lines else "the monitor did not start"

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with suppress(OSError, ValueError):
            for line in self._process.stdout:
                if self._tell is not None:
                    with suppress(Exception):  # a terminal that went away ends nothing
                        self._tell(msgspec.json.decode(line))

    def end(self) -> None:
        """Close its input and wait; then ask, then kill. May be called again."""
        if self._process.stdin is not None:
            with suppress(OSError):
                self._process.stdin.close()
        for signal_now in (None, signal.SIGTERM, signal.SIGKILL):
            if signal_now is not None:
                self._process.send_signal(signal_now)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(END_TIMEOUT_S)
                break
        if self._listening is not None:
            self._listening.join(END_TIMEOUT_S)
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._words.close()


@contextmanager
def live(
    lab: Lab, targets: Sequence[str] = (), *, port: int = PORT, notify: Sequence[str] = (), alerts: str = ""
) -> Iterator[str]:
    """A monitor of the lab's runs beside whatever goes on in the block; gives, and prints, the address of its page.

    `targets`: what the runs are held to; where they differ, or name none, the page holds them all to production's. `notify` and
    `alerts` are as on the command line; every change of an alert is a line on standard output.
    A port that somebody else has is said, and the next free one taken. A monitor that does not start, or dies, is said, and
    what it was to watch goes on without it."""
    named = sorted(set(targets))
    order = Order(
        lab=str(lab.path.resolve()),
        port=port,
        tries=1 if port == 0 else PORTS_TRIED,
        targets=named[0] if len(named) == 1 else "production",
        alerts=alerts,
        notify=tuple(notify),
        is_beside=True,
    )
    try:
        monitor = Beside(order, _line_of_an_alert)
    except Broken as error:
        print(f"live: {error}; going on without", file=sys.stderr, flush=True)
        yield ""
        return
    try:
        if port not in (0, monitor.port):
            print(f"live: port {port} is in use by somebody else", flush=True)
        print(f"live: {monitor.url}", flush=True)
        if len(named) > 1:
            print(
                _safe(f"live: the page holds all runs to production, not each to its own ({', '.join(named)})"),
                flush=True,
            )
        yield monitor.url
    finally:
        if not monitor.is_alive:
            print("live: the monitor had ended before the runs did", file=sys.stderr, flush=True)
        monitor.end()


def dashboard(
    lab: Lab | None = None,
    *,
    port: int = PORT,
    targets: str = "production",
    window_s: float = 30.0,
    allowed_hosts: Sequence[str] = (),
    height: int = 900,
) -> Any:
    """The live page of a Lab's runs, by default the project's own, for the end of a cell: an IPython IFrame of `height` pixels.

    Its monitor is kept until the kernel ends; called again it is the same. Where jupyter-server-proxy is installed the page
    comes through Jupyter (for a name beyond localhost give it as one of `allowed_hosts`), else from this machine's port.
    Raises UsageError, and Broken if the monitor does not start."""
    from IPython.display import IFrame

    lab = lab or Lab()
    path = lab.path.resolve()
    kept = _OF_A_NOTEBOOK.get(path)
    if kept is None or not kept.is_alive:
        order = Order(
            lab=str(path),
            port=port,
            tries=1 if port == 0 else PORTS_TRIED,
            targets=targets,
            window_s=window_s,
            allowed_hosts=tuple(allowed_hosts),
            is_beside=True,
        )
        kept = _OF_A_NOTEBOOK[path] = Beside(order)
        atexit.register(kept.end)
    return IFrame(_address(kept), width="100%", height=height)


def _address(monitor: Beside) -> str:
    """The page as the browser that shows the notebook reaches it."""
    if importlib.util.find_spec("jupyter_server_proxy") is None:
        return str(monitor.url)
    base = os.environ.get("JUPYTERHUB_SERVICE_PREFIX", "/")
    return f"{base.rstrip('/')}/proxy/{monitor.port}/dashboard"


def watch(order: Order) -> None:
    """A monitor in the foreground until Ctrl-C, or for the order's seconds: says where it is, and every change of an alert."""
    asyncio.run(monitored(order, _print))


def try_out(notify: Sequence[str]) -> ExitCode:
    """Send one message for a trial through each service, and say what became of it; `broken` if one was not delivered. Raises
    UsageError."""
    if not notify:
        raise UsageError("--test-notify sends a message through each service of --notify; add --notify env:NAME")
    outcomes = tried(notify)
    for name, outcome in outcomes.items():
        print(_safe(f"{name}: {outcome}"), flush=True)
    return ExitCode.PASS if set(outcomes.values()) == {"delivered"} else ExitCode.BROKEN


def _print(event: str, **facts: Any) -> None:
    if event == "ready":
        once = "the first time with ?token=… behind it; " if facts["has_token"] else ""
        print(f"monitor: {facts['url']} ({once}Ctrl-C ends it)", flush=True)
        if facts["is_empty"]:
            print(f"monitor: there are no runs in {_safe(facts['lab'])} yet", flush=True)
        if not facts["has_name"]:
            print("monitor: asked from another machine it answers to no name yet; add --allowed-host NAME", flush=True)
    elif event == "alert":
        print(_safe(str(facts["text"])), flush=True)
    elif event == "note":
        print(_safe(f"monitor: {facts['text']}"), flush=True)


def _line_of_an_alert(said: Mapping[str, Any]) -> None:
    """In one piece, over a bar that may stand there: whoever draws it draws it anew."""
    if said.get("event") in ("alert", "note"):
        text = str(said["text"]) if said["event"] == "alert" else f"live: {said['text']}"
        print(("\r\x1b[K" if sys.stdout.isatty() else "") + _safe(text) + "\n", end="", flush=True)


def _safe(text: str) -> str:
    """Names come from outside: what a terminal would obey is not passed on."""
    return "".join(c if c.isprintable() else "�" for c in text)[:1000]
