"""One row of facts per attempt, written into memory that is shared with a file of the spool.

The file is sparse and mapped: a row costs a few hundred nanoseconds and no system call, the parent reads progress from
the same memory, and what was recorded outlives a `kill -9` of the process that recorded it.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Callable
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
        parts += [self._ended(file, row, self._still_there(self._read(file, row, 1))) for row in running]
        first = self._seen
        self.is_behind = False
        while not self.is_behind:
            rows = self._begun(self._read(file, self._seen, self._ROWS_AT_ONCE))
            if len(rows):
                parts.append(self._ended(file, self._seen, rows))
                self._seen += len(rows)
            elif (taken := self._taken()) > self._seen:
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

    def _taken(self) -> int:
        """How many rows at the beginning were taken into the Lab, and may be zeros here."""
        try:
            return int(self._path.with_suffix(".taken").read_text())
        except (OSError, ValueError):
            return 0

    def _begun(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        unused = np.flatnonzero(rows[:, -1] == 0)
        return rows[: unused[0] if len(unused) else len(rows)]

    def _still_there(self, row: NDArray[np.int64]) -> NDArray[np.int64]:
        """One that had begun and is zeros now has ended, and was taken before it was seen."""
        there = self._begun(row)
        self.skipped += len(row) - len(there)
        return there

    def _ended(self, file: int, first: int, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Those of `rows`, the first of which is row `first`, that have ended; the others are looked at again."""
        is_ended = rows[:, -1] & 0xFF != Outcome.RUNNING
        # Read again: of a row that was written meanwhile the last word had been seen, but perhaps not those before it.
        again = self._read(file, first, len(rows))
        rows = np.where(again[:, -1:] != 0, again, rows)
        left = np.flatnonzero(~is_ended)
        self._running |= zip((first + left).tolist(), rows[left, 1].tolist(), strict=True)
        ended: NDArray[np.int64] = rows[is_ended]
        return ended
