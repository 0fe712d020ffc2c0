"""How a run of a notebook ends early, and what is said about it.

A stop (Ctrl-C, SIGTERM, a timeout) is a *request*: the kernel gets one SIGINT and some seconds to end its cell, so that
a load run drains and stores its results; only then, or when asked again, is it killed. papermill itself raises
KeyboardInterrupt wherever its event loop happens to be, and nbclient's own handler shuts the kernel down at once.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any, Literal

Reason = Literal["interrupted", "timeout"]


@dataclass(frozen=True)
class CellError:
    """Why a notebook stopped. `cell` counts the code cells of the source notebook from 1; 0: before any of them."""

    cell: int
    source: str  # its first line
    name: str  # of the exception
    message: str


_TICK_S = 0.1


class Stop:
    """Ends a run early: `ask` lets the kernel finish its cell for `grace_s` seconds, asked again it kills at once.

    Callable from a signal handler and from another thread: it takes no locks, and a thread of its own prints and waits.
    """

    def __init__(self, grace_s: float, progress: Callable[[str], None]) -> None:
        self.reason: Reason | None = None
        self._grace_s = grace_s
        self._progress = progress
        self._kernel: subprocess.Popen[bytes] | None = None
        self._is_starting = True
        self._is_in_cell = False
        self._ended = threading.Event()

    def ask(self, reason: Reason) -> None:
        if self.reason is not None:
            self.kill()
            return
        self.reason = reason
        if self._is_starting:
            self.kill()  # nothing has run, so nothing wants to be finished
        elif not self._ended.is_set():
            threading.Thread(target=self._finish_or_kill, daemon=True).start()

    def expire(self) -> None:
        """The timeout: like `ask`, but never a reason to kill a kernel that is already finishing."""
        if self.reason is None:
            self.ask("timeout")

    def kernel_launched(self, kernel: subprocess.Popen[bytes]) -> None:
        self._kernel = kernel
        if self.reason:
            self.kill()

    def kernel_ready(self) -> None:
        self._is_starting = False

    def cell_began(self) -> None:
        """From here on the kernel turns SIGINT into an exception in the cell; between cells it ignores the signal."""
        self._is_in_cell = True

    def cell_ended(self) -> None:
        self._is_in_cell = False

    def cells_ended(self) -> None:
        """No other cell will run. The kernel's own exit is bounded by its manager."""
        self._ended.set()

    def kill(self) -> None:
        """The kernel and whatever it left behind in its process group."""
        self._signal(signal.SIGKILL)

    def exit_code(self) -> int | None:
        return self._kernel.poll() if self._kernel else None

    def _signal(self, number: signal.Signals) -> None:
        if self._kernel:
            with contextlib.suppress(OSError):
                os.killpg(self._kernel.pid, number)  # jupyter_client makes the kernel the leader of a session

    def _finish_or_kill(self) -> None:
        """One SIGINT, to a cell that has run for a moment: sent as it began, 9 of 40 replies of the kernel never came."""
        what = "stopping at the timeout" if self.reason == "timeout" else "interrupted"
        again = "" if self.reason == "timeout" else "; Ctrl-C again kills it"
        self._progress(f"{what}: the running cell has {self._grace_s:g} s to finish{again}")
        was_in_cell = is_told = False
        for _ in range(1 + round(self._grace_s / _TICK_S)):
            if self._ended.wait(_TICK_S):
                return
            if was_in_cell and self._is_in_cell and not is_told:
                is_told = True
                self._signal(signal.SIGINT)
            was_in_cell = self._is_in_cell
        self.kill()


@contextlib.contextmanager
def stopped_by_signals(stop: Stop) -> Iterator[None]:
    """SIGINT and SIGTERM ask `stop` while the block runs; elsewhere than in the main thread nothing is changed.

    A signal that is ignored (a job started with `nohup` or `&`) stays ignored.
    """

    def ask(_number: int, _frame: FrameType | None) -> None:
        stop.ask("interrupted")

    before: dict[signal.Signals, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                before[number] = signal.signal(number, ask)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
