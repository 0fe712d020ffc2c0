"""Samples of a load that goes on for hours leave the recorder's memory for files of parts, each row once.

`Rotation(folder).turn()`, called now and then by a process that is not measured, takes what has ended from the beginning of
each `samples-<worker>.i64` to `samples-<worker>.<first>-<end>.parquet` (schema.SAMPLE_WORDS as columns, rows `first` to `end`),
and one turn later gives the blocks of the file back: the disk's, and with them the memory of the load process that has them
mapped. The Lab takes parts and file together when the run has ended (lab/evidence.py), so that nothing here waits for a Lab
that somebody else has open, and a reader of the folder finds every row.

Which rows were taken follows from the names of the parts alone, and a part has its name only when it is whole: killed between
any two steps, the next who looks finds each row once. TAKEN tells those who only watch (load.recorder.Watcher) where to begin.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from eventcore_lab.schema import SAMPLE_WORDS

ROWS_PER_PART = 16_384
"""What waits until there is so much of it: 1 MiB in memory, and not a file for every few rows."""
TAKEN = ".taken"
"""Beside the samples, with this for `.i64`: how many rows from the beginning are in parts, as text."""
FILES_BYTES, SORTED_BYTES, LAB_BYTES = 220, 300, 40
"""What an operation that appends one event takes: in the run's folder, with everything that lies there beside each other at its
end (measured: 150 for plain appends, 200 for commands with their reads and answers); what the checkers sort on disk, once it is
too much for memory (170 where a quarter of it was); for good in the Lab (20 to 37). The store's own events come on top."""
EVENT_BYTES = 300
"""Of so many bytes an event may be: compressed they are no more than is said above."""

_ROW_BYTES = 8 * len(SAMPLE_WORDS)
_SCHEMA = pa.schema([(name, pa.int64()) for name in SAMPLE_WORDS])
_PUNCH_HOLE, _KEEP_SIZE = 0x02, 0x01
_GIVEN_BACK_AT_ONCE = 1 << 20
"""The load process has to wait when it comes to a new page while some are given back: so not too many at once."""


def bytes_per_operation(events: float = 1.0, event_bytes: float = EVENT_BYTES) -> float:
    """About how many bytes an operation that appends so many events of that size takes in the data folder at most, until its
    run is in the Lab; afterwards it is LAB_BYTES."""
    of_events = max(events, 0.2) * (FILES_BYTES + SORTED_BYTES + max(0.0, event_bytes - EVENT_BYTES))
    return LAB_BYTES + of_events


def taken(samples: Path) -> int:
    """How many rows from the beginning of a `samples-<worker>.i64` are in parts and may be gone from it."""
    try:
        return int(samples.with_suffix(TAKEN).read_text())
    except (FileNotFoundError, ValueError):
        return 0


class Rotation:
    """Of the run in `folder`, from outside the load process; one of them at a time. `step` is called with the name of each step
    that has been done, for tests."""

    def __init__(
        self, folder: Path, *, rows_per_part: int = ROWS_PER_PART, step: Callable[[str], None] = lambda _: None
    ) -> None:
        self._folder, self._rows_per_part, self._step = folder, rows_per_part, step
        self._given_back: dict[Path, int] = {}

    def turn(self) -> int:
        """Take whole parts of what has ended, and give back what the turn before took: whoever watches looks more often. Gives
        the number of rows. Where somebody takes the folder in, or has, nothing is left to do. Raises OSError (a full disk)."""
        return sum(self._turned(path) for path in sorted(self._folder.glob("samples-*.i64")))

    def _turned(self, path: Path) -> int:
        try:
            file = path.open("r+b", buffering=0)
        except FileNotFoundError:
            return 0
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:  # whoever takes the run in holds this until the folder is gone
                return 0
            if not os.fstat(file.fileno()).st_nlink:
                return 0
            return self._taken_of(path, file)

    def _taken_of(self, path: Path, file: BinaryIO) -> int:
        parts = parts_of(path)
        first = parts[-1][1] if parts else 0
        if parts:
            if taken(path) != first:  # whoever turned before did not come to saying so
                self._replace(path.with_suffix(TAKEN), str(first).encode())
            self._give_back(path, file, first, parts[-1][2])
        end = first
        while len(rows := _ended(file, end, self._rows_per_part)):
            self._keep(path, end, rows)
            end += len(rows)
            self._replace(path.with_suffix(TAKEN), str(end).encode())
            self._step("told")
        return end - first

    def _keep(self, path: Path, first: int, rows: NDArray[np.int64]) -> None:
        name = path.with_suffix(f".{first:012d}-{first + len(rows):012d}.parquet")
        part = name.with_suffix(".part")
        table = pa.table({word: rows[:, i] for i, word in enumerate(SAMPLE_WORDS)}, _SCHEMA)
        pq.write_table(table, part, compression="zstd")
        self._step("written")
        part.rename(name)
        self._step("kept")

    def _replace(self, path: Path, content: bytes) -> None:
        part = path.with_suffix(path.suffix + ".part")
        part.write_bytes(content)
        part.replace(path)

    def _give_back(self, path: Path, file: BinaryIO, rows: int, newest: Path) -> None:
        """The file's first `rows` rows are in parts, the last of them `newest`: their pages go, whole ones."""
        begin = self._given_back.get(path, 0)
        end = rows * _ROW_BYTES // mmap.PAGESIZE * mmap.PAGESIZE
        if end <= begin:
            return
        _on_disk(newest)
        _on_disk(self._folder)
        self._step("on disk")
        while begin < end:
            if not _punched(file, begin, length := min(end - begin, _GIVEN_BACK_AT_ONCE)):
                break
            begin += length
            self._step("given back")
        self._given_back[path] = end


def parts_of(samples: Path) -> list[tuple[int, int, Path]]:
    """(first row, row behind the last, file) of what was taken from a `samples-<worker>.i64`, in order."""
    found = []
    for part in samples.parent.glob(f"{samples.stem}.*-*.parquet"):
        first, _, end = part.name.split(".")[1].partition("-")
        found.append((int(first), int(end), part))
    return sorted(found)


def _ended(file: BinaryIO, first: int, count: int) -> NDArray[np.int64]:
    """`count` rows from row `first` on if all of them have ended, else none."""
    none = np.empty((0, len(SAMPLE_WORDS)), np.int64)
    if not len(last := _read(file, first + count - 1, 1)) or not last[0, -1]:
        return none
    rows = _read(file, first, count)
    if len(rows) < count or not (rows[:, -1] & 0xFF).all():
        return none
    # Read again: a row that was written while it was read said that it has ended before all of it had been seen.
    return _read(file, first, count)


def _read(file: BinaryIO, first: int, count: int) -> NDArray[np.int64]:
    data = os.pread(file.fileno(), count * _ROW_BYTES, first * _ROW_BYTES)
    words = len(data) // _ROW_BYTES * len(SAMPLE_WORDS)
    return np.frombuffer(data, np.int64, words).reshape(-1, len(SAMPLE_WORDS))


def _on_disk(path: Path) -> None:
    """After a power cut a part may be gone or empty if this was not done; the kernel has written most of it by itself."""
    at = os.open(path, os.O_RDONLY)
    try:
        os.fsync(at)
    finally:
        os.close(at)


def _punched(file: BinaryIO, offset: int, length: int) -> bool:
    """Whether this file system gives blocks back in the middle of a file (Linux, and not every network's)."""
    if sys.platform != "linux":
        return False
    fallocate = ctypes.CDLL(None, use_errno=True).fallocate
    fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    return bool(fallocate(file.fileno(), _PUNCH_HOLE | _KEEP_SIZE, offset, length) == 0)
