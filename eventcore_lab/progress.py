"""What the person who waits is told while a run goes on: a live bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import contextlib
import math
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TextIO

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from eventcore_lab.clock import NS_PER_S, now_ns
from eventcore_lab.schema import SAMPLE_WORDS, Outcome

LINE_EVERY_S = 5.0
PROGRESS_VARIABLE = "EVENTCORE_LAB_PROGRESS"
"""Names a file to which progress is appended as JSON lines, for a process that shows it in its own way."""

LOOKS_MAX = 240
LATENCIES_MAX = 200_000
_PACKED, _DUE, _ENDED = (SAMPLE_WORDS.index(name) for name in ("packed", "due_ns", "ended_ns"))


class Look(Struct, frozen=True):
    """What ended between two looks: when (seconds since the load began), how many per second, how slow (NaN of nothing)."""

    t_s: float
    rate: float
    p50_ms: float
    p99_ms: float


class Tally:
    """Running totals over the samples seen so far, and `looks`, at most LOOKS_MAX of them, each over a like time."""

    def __init__(self, warmup_s: float, duration_s: float, elsewhere: str = "") -> None:
        """`elsewhere`: where the load runs, if its samples come only at the end."""
        self.elsewhere = elsewhere
        self.warmup_s, self.total_s = warmup_s, warmup_s + duration_s
        self.began_ns = now_ns()
        self.looks: list[Look] = []
        self._unlooked = _Unlooked()
        self._look_s = self.total_s / LOOKS_MAX
        self.operations = self.events = self.unwell = 0
        self.rate = 0.0
        self._looked_ns = self.began_ns

    @property
    def elapsed_s(self) -> float:
        return min((now_ns() - self.began_ns) / NS_PER_S, self.total_s)

    def add(self, rows: NDArray[np.int64]) -> None:
        """Count rows of samples, shape (n, 8)."""
        looked_ns, before_ns = now_ns(), self._looked_ns
        self._looked_ns = looked_ns
        outcomes = rows[:, _PACKED] & 0xFF
        self.operations += len(rows)
        self.events += int((rows[:, _PACKED] >> 32).sum())
        self.unwell += int(np.isin(outcomes, (Outcome.FAILED, Outcome.UNKNOWN, Outcome.DROPPED)).sum())
        if looked_ns - before_ns > NS_PER_S // 20:
            self.rate = len(rows) * NS_PER_S / (looked_ns - before_ns)
        last_s, at_s = self.looks[-1].t_s if self.looks else 0.0, self.elapsed_s
        is_due = at_s - last_s >= 0.999 * self._look_s and len(self.looks) < LOOKS_MAX
        if is_due or at_s < self.total_s:  # what ends later is of no look
            self._unlooked.add(rows)
        if is_due:
            self.looks.append(self._unlooked.look(at_s, at_s - last_s))
            self._unlooked = _Unlooked()

    def __str__(self) -> str:
        if self.elsewhere and not self.operations:
            return f"{self.elapsed_s:4.1f}/{self.total_s:g} s  on {self.elsewhere}; its samples come at the end"
        unwell = f", {self.unwell:,} not well" if self.unwell else ""
        return f"{self.elapsed_s:4.1f}/{self.total_s:g} s  {self.operations:,} operations, {self.rate:,.0f}/s{unwell}"


class _Unlooked:
    """What is known of the samples since the last look: of a soak that may be millions, and then of every other latency, of
    every fourth, and so on."""

    def __init__(self) -> None:
        self._count = self._done = 0
        self._nth = 1
        self._latencies: list[NDArray[np.int64]] = []

    def add(self, rows: NDArray[np.int64]) -> None:
        self._count += len(rows)
        done = rows[rows[:, _PACKED] & 0xFF == Outcome.OK]
        self._latencies.append((done[:, _ENDED] - done[:, _DUE])[-self._done % self._nth :: self._nth])
        self._done += len(done)
        if sum(map(len, self._latencies)) > LATENCIES_MAX or len(self._latencies) > LATENCIES_MAX // 100:
            every = np.concatenate(self._latencies)
            is_too_many = len(every) > LATENCIES_MAX
            self._latencies, self._nth = [every[:: 1 + is_too_many]], self._nth * (1 + is_too_many)

    def look(self, t_s: float, length_s: float) -> Look:
        ms = np.sort(np.concatenate(self._latencies)) / 1e6
        p50, p99 = (float(ms[math.ceil(p * len(ms)) - 1]) if len(ms) else math.nan for p in (0.5, 0.99))
        return Look(t_s, self._count / max(length_s, 1e-9), p50, p99)


class Progress(Protocol):
    """Told by `measure` what is going on; must return at once."""

    def phase(self, title: str, text: str) -> None: ...
    def update(self, title: str, tally: Tally) -> None: ...
    def ended(self, status: str, reason: str) -> None: ...


class Quiet:
    """Says nothing."""

    def phase(self, title: str, text: str) -> None: ...
    def update(self, title: str, tally: Tally) -> None: ...
    def ended(self, status: str, reason: str) -> None: ...


class Guarded:
    """A Progress around one whose output may go away, as `head` does: then nothing more is said, and the run goes on."""

    def __init__(self, inner: Progress) -> None:
        self._inner: Progress = inner

    def phase(self, title: str, text: str) -> None:
        self._told(lambda: self._inner.phase(title, text))

    def update(self, title: str, tally: Tally) -> None:
        self._told(lambda: self._inner.update(title, tally))

    def ended(self, status: str, reason: str) -> None:
        self._told(lambda: self._inner.ended(status, reason))

    def _told(self, say: Callable[[], None]) -> None:
        try:
            say()
        except (OSError, ValueError):  # a pipe that was closed, a file that was
            self._inner = Quiet()


class Lines:
    """A plain line every few seconds, for logs."""

    def __init__(self, out: TextIO | None = None, every_s: float = LINE_EVERY_S) -> None:
        self._out, self._every_ns, self._last_ns = out or sys.stderr, int(every_s * NS_PER_S), now_ns()

    def phase(self, title: str, text: str) -> None:
        return

    def update(self, title: str, tally: Tally) -> None:
        if now_ns() - self._last_ns >= self._every_ns:
            self._last_ns = now_ns()
            print(f"{title}: {tally}", file=self._out, flush=True)

    def ended(self, status: str, reason: str) -> None:
        if status != "complete":
            print(f"{status}: {reason}", file=self._out, flush=True)


class Bar:
    """One line on a terminal that is written over, and removed at the end."""

    WIDTH = 24

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = out or sys.stderr

    def phase(self, title: str, text: str) -> None:
        self._write(f"{title}: {text} …")

    def update(self, title: str, tally: Tally) -> None:
        done = int(self.WIDTH * tally.elapsed_s / tally.total_s)
        self._write(f"{title} {'━' * done}{'╌' * (self.WIDTH - done)} {tally}")

    def ended(self, status: str, reason: str) -> None:
        self._write("")
        if status != "complete":
            print(f"{status}: {reason}", file=self._out, flush=True)

    def _write(self, text: str) -> None:
        columns = os.get_terminal_size(self._out.fileno()).columns if self._out.isatty() else 80
        self._out.write("\r\x1b[K" + text[: columns - 1])
        self._out.flush()


class Notes:
    """JSON lines in a file, for `Relay` in the process that started this one."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def phase(self, title: str, text: str) -> None:
        self._note(kind="phase", title=title, text=text)

    def update(self, title: str, tally: Tally) -> None:
        self._note(kind="update", title=title, text=str(tally), elapsed_s=tally.elapsed_s, total_s=tally.total_s)

    def ended(self, status: str, reason: str) -> None:
        self._note(kind="ended", status=status, reason=reason)

    def _note(self, **facts: Any) -> None:
        with self._path.open("ab") as file:
            file.write(msgspec.json.encode(facts) + b"\n")


def chosen() -> Progress:
    """The way that fits where this runs: notes for a parent that asked for them, a bar on a terminal, else lines."""
    if os.environ.get(PROGRESS_VARIABLE):
        return Notes(Path(os.environ[PROGRESS_VARIABLE]))
    if "ipykernel" in sys.modules:  # a cell shows what is on standard error as if something were wrong
        return Lines(sys.stdout, every_s=2.0)
    return Bar() if sys.stderr.isatty() else Lines()


class Relay:
    """Shows the notes that another process writes: a bar on a terminal, a plain line every few seconds elsewhere. A
    context manager; `line` prints a whole line without hurting the bar."""

    POLL_S = 0.2

    def __init__(self, path: Path, out: TextIO | None = None) -> None:
        self._path, self._out = path, out or sys.stdout
        self._is_terminal = self._out.isatty()
        self._offset = self._said_ns = 0
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._follow, name="progress", daemon=True)

    def __enter__(self) -> Relay:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def line(self, text: str) -> None:
        """One whole line; ignores a reader that went away."""
        with self._lock, contextlib.suppress(BrokenPipeError, ValueError):
            self._out.write(("\r\x1b[K" if self._is_terminal else "") + text.rstrip("\n") + "\n")
            self._out.flush()

    def _follow(self) -> None:
        while not self._over.wait(self.POLL_S):
            if note := self._newest():
                self._show(note)
        if self._is_terminal:
            self._out.write("\r\x1b[K")

    def _newest(self) -> dict[str, Any] | None:
        if not self._path.exists():
            return None
        with self._path.open("rb") as file:
            file.seek(self._offset)
            whole, newline, _ = file.read().rpartition(b"\n")
        self._offset += len(whole) + len(newline)
        return msgspec.json.decode(whole.splitlines()[-1]) if whole else None

    def _show(self, note: dict[str, Any]) -> None:
        if note["kind"] == "ended":
            return
        if self._is_terminal:
            done = int(Bar.WIDTH * note["elapsed_s"] / note["total_s"]) if note["kind"] == "update" else 0
            bar = f"{'━' * done}{'╌' * (Bar.WIDTH - done)} " if note["kind"] == "update" else ""
            columns = os.get_terminal_size(self._out.fileno()).columns
            with self._lock:
                self._out.write("\r\x1b[K" + f"  {bar}{note['title']}: {note['text']}"[: columns - 1])
                self._out.flush()
        elif note["kind"] == "update" and now_ns() - self._said_ns >= LINE_EVERY_S * NS_PER_S:
            self._said_ns = now_ns()
            self.line(f"  {note['title']}: {note['text']}")
