"""One run's folder in the spool, read while it grows, and to its end after it is gone: a file that was opened once stays
readable when its name is removed. Every reading is bounded; what is left is read at the next look.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Generic, TypeVar

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from eventcore_lab.clock import NS_PER_S
from eventcore_lab.load.folders import is_held
from eventcore_lab.load.recorder import Watcher
from eventcore_lab.monitor.facts import NO_ROWS, NO_TIMES, Gauge, Mark, Watched
from eventcore_lab.schema import GAUGES_FILE, LOCK_FILE, MARKS_FILE, RUN_FILE, SAMPLE_WORDS, START_KEY, TABLES

LOOK_BYTES = 2**20
LATE_BYTES = 8 * 2**20
"""Of gauges and marks recorded before the monitor came, so much of the end is read."""
ROWS_AT_ONCE = 16_384
WORKERS_MAX = 1024
TEXT_MAX = 500
LOAD_ENDS = "load ends"
"""The mark that the measuring half leaves when the last operation has ended."""
_ENDED = SAMPLE_WORDS.index("ended_ns")

L = TypeVar("L", bound=Struct)


class GaugeLine(Struct):
    """See schema.TABLES["gauges"]."""

    t_ns: int
    source: str
    name: str
    value: float


class MarkLine(Struct):
    """See schema.TABLES["marks"]."""

    t_ns: int
    name: str
    detail: str = ""


class Lines(Generic[L]):
    """The whole lines of a file of JSON lines that grows. A line that is none of its kind is left out."""

    def __init__(self, path: Path, kind: type[L]) -> None:
        self._path, self._decode = path, msgspec.json.Decoder(kind).decode
        self._file: int | None = None
        self._offset = 0
        self.is_behind = False

    def hold(self) -> None:
        """Open the file if it is there; of a long one only the end will be read."""
        if self._file is None:
            with suppress(FileNotFoundError):
                self._file = os.open(self._path, os.O_RDONLY)
                self._offset = max(os.fstat(self._file).st_size - LATE_BYTES, 0)

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def new(self) -> list[L]:
        """The lines that have become whole since the last call, of at most LOOK_BYTES."""
        if self._file is None:
            return []
        data = os.pread(self._file, LOOK_BYTES, self._offset)
        self.is_behind = len(data) == LOOK_BYTES
        whole, newline, _ = data.rpartition(b"\n")
        self._offset += len(data) if self.is_behind and not newline else len(whole) + len(newline)
        found = []
        for line in whole.splitlines():
            with suppress(msgspec.DecodeError, UnicodeDecodeError):
                found.append(self._decode(line))
        return found


class Read(Struct, frozen=True):
    """What one reading of a folder has brought; see facts.News."""

    rows: NDArray[np.int64] = NO_ROWS
    waiting: NDArray[np.int64] = NO_TIMES
    gauges: tuple[GaugeLine, ...] = ()
    marks: tuple[MarkLine, ...] = ()


class RunFolder:
    """`row`: what RUN_FILE says. `is_gone`: the folder was removed. `has_ended`: nobody works in it any more, or it says how it
    ended. `is_behind`: the last reading has left something that could have been read. `known_from_ns`: see facts.News."""

    def __init__(self, path: Path) -> None:
        self.path, self.run_id = path, path.name
        self.row: dict[str, Any] = {}
        self.is_gone = self.is_held = self.has_load_ended = self.is_behind = self.is_aside = False
        self.told_skipped = self.asked = self.known_from_ns = 0
        self._skipped: dict[Watcher, int] = {}
        self._stamp = (0, 0, 0)
        self._watchers: list[Watcher] = []
        self._reached: dict[Watcher, int] = {}
        self._opened: set[Watcher] = set()
        self._gauges = Lines(path / GAUGES_FILE, GaugeLine)
        self._marks = Lines(path / MARKS_FILE, MarkLine)

    @property
    def has_ended(self) -> bool:
        return self.is_gone or not self.is_held or self.row.get("status") != "interrupted"

    @property
    def start_ns(self) -> int | None:
        """What the run's times count from, on the monotonic clock."""
        start = self.row.get(START_KEY)
        return start if isinstance(start, int) else None

    @property
    def skipped(self) -> int:
        """Samples that were taken into the Lab before they were seen here."""
        return sum(watcher.skipped for watcher in self._watchers)

    @property
    def unread(self) -> list[int]:
        """Workers whose samples were recorded on this machine and are gone, and were never opened."""
        workers = self._watchers if self.is_gone and not self.row.get("cluster") else []
        return [n for n, watcher in enumerate(workers) if watcher not in self._opened]

    def is_one(self) -> bool:
        """Whether it is a run's, and can be read; a folder that cannot must not hide the others."""
        try:
            return (self.path / RUN_FILE).is_file() and os.access(self.path / RUN_FILE, os.R_OK)
        except OSError:
            return False

    def refresh(self) -> None:
        """Look what has become of it, and open what has appeared. The lock is looked at first: who lets go of it has written
        down before how the run ended."""
        try:
            self.is_held = is_held(self.path / LOCK_FILE)
        except OSError as error:
            self.is_held = not isinstance(error, FileNotFoundError)
        try:
            about = (self.path / RUN_FILE).stat()
            if self._stamp != (stamp := (about.st_mtime_ns, about.st_ino, about.st_size)):
                self.row = msgspec.json.decode((self.path / RUN_FILE).read_bytes(), type=dict[str, Any])
                self._stamp = stamp
        except FileNotFoundError:
            self.is_gone = True
        except (msgspec.DecodeError, UnicodeDecodeError):
            pass  # not ours; what it said before stands
        self._hold()

    def _hold(self) -> None:
        workers = self.row.get("workers", 1)
        wanted = min(workers, WORKERS_MAX) if isinstance(workers, int) else 1
        self._watchers += [Watcher(self.path / f"samples-{n}.i64") for n in range(len(self._watchers), wanted)]
        self._opened |= {watcher for watcher in self._watchers if watcher.hold()}
        self._gauges.hold()
        self._marks.hold()

    def read(self, rows_max: int) -> Read:
        """What is new. Of several workers those are read first that are the farthest behind, so that times go forward."""
        if self.start_ns is None and not self.has_ended:
            return Read()
        parts, count, left = [NO_ROWS], 0, [w for w in self._watchers if w in self._opened]
        while left and count < rows_max:
            watcher = min(left, key=lambda w: self._reached.get(w, 0))
            parts.append(rows := watcher.new_rows(ROWS_AT_ONCE))
            count += len(rows)
            if len(rows):
                self._note_reached(watcher, rows[:, _ENDED])
            if not watcher.is_behind:
                left.remove(watcher)
        gauges, marks = self._gauges.new(), self._marks.new()
        self.has_load_ended |= any(mark.name == LOAD_ENDS for mark in marks)
        self.is_behind = bool(left) or self._gauges.is_behind or self._marks.is_behind
        waiting = np.concatenate([NO_TIMES, *(watcher.waiting for watcher in self._watchers)])
        return Read(np.concatenate(parts), waiting, tuple(gauges), tuple(marks))

    def _note_reached(self, watcher: Watcher, ended_ns: NDArray[np.int64]) -> None:
        self._reached[watcher] = max(int(ended_ns.max()), self._reached.get(watcher, 0))
        if watcher.skipped > self._skipped.get(watcher, 0):
            self._skipped[watcher] = watcher.skipped
            self.known_from_ns = max(self.known_from_ns, int(ended_ns.min()))

    def come_back_to(self) -> None:
        """Somebody else was followed meanwhile, and what was known of this run before was forgotten over it."""
        self.is_aside = False
        self.known_from_ns = max(self.known_from_ns, *self._reached.values(), 0)

    def watched(self, unix_less_monotonic_ns: int, status: str = "") -> Watched:
        """As the page is told of it. While it goes on, the row's own `status` says how it would have ended if it were dead."""
        row, start_ns = self.row, self.start_ns
        is_ending = self.has_load_ended or self.has_ended
        under_way = "ending" if is_ending else "preparing" if start_ns is None else "loading"
        facts = {name: row[name] for name in TABLES["runs"] if name in row}
        if not status:
            facts = {name: value for name, value in facts.items() if name not in ("status", "status_reason")}
        return Watched(
            run_id=self.run_id,
            title=_text(row, "label") or f"{_text(row, 'workload')} · {_text(row, 'pacer')}",
            store=_text(row, "store"),
            status=status or under_way,
            began=None if start_ns is None else (start_ns + unix_less_monotonic_ns) / NS_PER_S,
            warmup_s=_number(row, "warmup_s"),
            duration_s=_number(row, "duration_s"),
            is_closed_loop=bool(row.get("is_closed_loop")),
            row=facts,
        )

    def close(self) -> None:
        for watcher in self._watchers:
            watcher.close()
        self._gauges.close()
        self._marks.close()


def gauges_at(lines: tuple[GaugeLine, ...], began: float) -> tuple[Gauge, ...]:
    return tuple(Gauge(began + g.t_ns / NS_PER_S, g.source[:TEXT_MAX], g.name[:TEXT_MAX], g.value) for g in lines)


def marks_at(lines: tuple[MarkLine, ...], began: float) -> tuple[Mark, ...]:
    return tuple(Mark(began + m.t_ns / NS_PER_S, m.name[:TEXT_MAX], m.detail[:TEXT_MAX]) for m in lines)


def _text(row: Mapping[str, Any], name: str) -> str:
    return str(row.get(name) or "")[:TEXT_MAX]


def _number(row: Mapping[str, Any], name: str) -> float:
    value = row.get(name)
    return float(value) if isinstance(value, int | float) else 0.0
