"""One row of facts per attempt, written into memory that is shared with a file of the spool.

The file is sparse and mapped: a row costs a few hundred nanoseconds and no system call, the parent reads progress from
the same memory, and what was recorded outlives a `kill -9` of the process that recorded it.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Callable, Collection
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from eventcore_lab.schema import SAMPLE_WORDS, Outcome, Phase, packed

ROW = struct.Struct(f"<{len(SAMPLE_WORDS)}q")
_ROW_BYTES = ROW.size
_RUNNING = [packed(Outcome.RUNNING, phase, 0, 0) for phase in Phase]


class RecorderFull(Exception):
    """More operations than there is room for; the run ends here and says so."""


class Recorder:
    """Rows for at most `capacity` operations. `begin` takes a row, `end` completes it; both only from one thread.

    `end(offset, operation, due_ns, offered_ns, began_ns, acquired_ns, ended_ns, backoff_ns, word)` is the packing itself,
    bound to the memory, for it is called in the hot loop; `word` is `packed(…)` of schema.py.
    """

    def __init__(self, path: Path, capacity: int) -> None:
        self.capacity = capacity
        self._next, self._limit = 0, capacity * _ROW_BYTES
        self._path = path
        with path.open("xb") as file:
            file.truncate(self._limit)
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), self._limit)
        self.end: Callable[[int, int, int, int, int, int, int, int, int], None] = partial(ROW.pack_into, self._memory)

    @property
    def begun(self) -> int:
        """How many operations have a row."""
        return self._next // _ROW_BYTES

    def begin(self, operation: int, due_ns: int, offered_ns: int, began_ns: int, phase: int) -> int:
        """Note that an operation is under way; gives the offset to end it with. Raises RecorderFull."""
        offset = self._next
        if offset >= self._limit:
            raise RecorderFull
        self._next = offset + _ROW_BYTES
        self.end(offset, operation, due_ns, offered_ns, began_ns, 0, 0, 0, _RUNNING[phase])
        return offset

    def drop(self, operation: int, due_ns: int, offered_ns: int, phase: int) -> None:
        """An arrival that could not be started still has a row."""
        offset = self.begin(operation, due_ns, offered_ns, offered_ns, phase)
        word = packed(Outcome.DROPPED, phase, 0, 0)
        self.end(offset, operation, due_ns, offered_ns, offered_ns, 0, offered_ns, 0, word)

    def close(self) -> None:
        """Let go of the memory, and cut the file to what was begun."""
        self._memory.close()
        os.truncate(self._path, self.begun * _ROW_BYTES)

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class Watcher:
    """The parent's view of a worker's samples while they are being written; a row may be half way.

    Reads the file instead of mapping it: a mapping would fault once the worker has cut the file to its length. Rows at the
    beginning may be gone, for they were taken into the Lab; how many says a file beside it, and it goes on behind them.
    """

    _ROWS_AT_ONCE = 4096

    def __init__(self, path: Path) -> None:
        self._path = path
        self._held: int | None = None
        self._seen = 0
        self._running: dict[int, int] = {}
        self.is_behind = False
        """Whether the last call has left rows that had begun, for it came to its limit."""
        self.skipped = 0
        """Rows that were gone before they were seen here."""

    @property
    def waiting(self) -> NDArray[np.int64]:
        """Due times, ns, of the operations that were under way at the last call."""
        return np.fromiter(self._running.values(), np.int64, len(self._running))

    def hold(self) -> bool:
        """Open the file if it is there, so that it can be read to its end after its folder has gone; then `close`."""
        if self._held is None:
            with suppress(FileNotFoundError):
                self._held = os.open(self._path, os.O_RDONLY)
        return self._held is not None

    def close(self) -> None:
        if self._held is not None:
            os.close(self._held)
            self._held = None

    def new_rows(self, limit: int | None = None) -> NDArray[np.int64]:
        """Rows ended since the last call, shape (n, 8), each once. A slow operation comes when it has ended. With a `limit`
        no more begun rows are looked at than about so many."""
        if self._held is not None:
            return self._new_rows(self._held, limit)
        try:
            file = os.open(self._path, os.O_RDONLY)
        except FileNotFoundError:
            return np.empty((0, len(SAMPLE_WORDS)), np.int64)
        try:
            return self._new_rows(file, limit)
        finally:
            os.close(file)

    def _new_rows(self, file: int, limit: int | None) -> NDArray[np.int64]:
        running, self._running = self._running, {}
        parts = [np.empty((0, len(SAMPLE_WORDS)), np.int64)]
        parts += [self._since_ended(file, numbers) for numbers in self._close_together(running)]
        first = self._seen
        self.is_behind = False
        while not self.is_behind:
            rows = self._begun(self._read(file, self._seen, self._ROWS_AT_ONCE))
            if len(rows):
                parts.append(self._ended(file, np.arange(self._seen, self._seen + len(rows)), rows))
                self._seen += len(rows)
            elif (taken := self._taken(file)) > self._seen:
                self.skipped += taken - self._seen
                first += taken - self._seen
                self._seen = taken
            else:
                break
            self.is_behind = limit is not None and self._seen - first >= limit
        return np.concatenate(parts)

    def _read(self, file: int, row: int, count: int) -> NDArray[np.int64]:
        data = os.pread(file, count * _ROW_BYTES, row * _ROW_BYTES)
        return np.frombuffer(data, np.int64, len(data) // 8).reshape(-1, len(SAMPLE_WORDS))

    def _taken(self, file: int) -> int:
        """Up to which row those that were taken into the Lab are zeros here: not all of them were given back yet, and if the
        folder is gone nobody tells how many were taken."""
        behind = _behind_hole(file, self._seen * _ROW_BYTES) // _ROW_BYTES
        try:
            taken = int(self._path.with_suffix(".taken").read_text())
        except (OSError, ValueError):
            return 0 if os.fstat(file).st_nlink else behind
        return min(taken, behind) if behind > self._seen else taken

    def _begun(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        unused = np.flatnonzero(rows[:, -1] == 0)
        return rows[: unused[0] if len(unused) else len(rows)]

    def _close_together(self, running: Collection[int]) -> list[NDArray[np.int64]]:
        """The numbers of rows, which ascend, by where in the file they are: an overload may have ten thousand under way."""
        numbers = np.fromiter(running, np.int64, len(running))
        return np.split(numbers, np.flatnonzero(np.diff(numbers // self._ROWS_AT_ONCE)) + 1) if len(numbers) else []

    def _at(self, file: int, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """The rows of these numbers, zeros for those that are gone."""
        places = numbers - numbers[0]
        block = self._read(file, int(numbers[0]), int(places[-1]) + 1)
        rows = np.zeros((len(numbers), len(SAMPLE_WORDS)), np.int64)
        is_there = places < len(block)
        rows[is_there] = block[places[is_there]]
        return rows

    def _since_ended(self, file: int, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Those that were under way and have ended. One that is zeros now has, and was taken before it was seen."""
        rows = self._at(file, numbers)
        is_there = rows[:, -1] != 0
        self.skipped += int((~is_there).sum())
        return self._ended(file, numbers[is_there], rows[is_there]) if is_there.any() else rows[is_there]

    def _ended(self, file: int, numbers: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Those of `rows`, of these numbers, that have ended; the others are looked at again."""
        is_ended = rows[:, -1] & 0xFF != Outcome.RUNNING
        # Read again: of a row that was written meanwhile the last word had been seen, but perhaps not those before it.
        again = self._at(file, numbers)
        rows = np.where(again[:, -1:] != 0, again, rows)
        self._running |= zip(numbers[~is_ended].tolist(), rows[~is_ended, 1].tolist(), strict=True)
        ended: NDArray[np.int64] = rows[is_ended]
        return ended


def _behind_hole(file: int, offset: int) -> int:
    """Where the file has data again; 0 if it has none, or the file system does not tell."""
    try:
        return os.lseek(file, offset, os.SEEK_DATA)
    except OSError:
        return 0
