"""Where companions write: gauges and marks of one run, a JSON line each, kept even if this process is killed.

What is told before the run's start is known waits for it in memory, for its time counts from there.
"""

from __future__ import annotations

from io import TextIOWrapper
from pathlib import Path

import msgspec

from eventcore_lab.clock import now_ns
from eventcore_lab.schema import GAUGES_FILE, MARKS_FILE

_encode = msgspec.json.Encoder().encode


_Row = dict[str, int | float | str]


class Series:
    """Appends to the run's gauges and marks. `start_ns` is the run's start on the monotonic clock, set once it is known;
    times before it are negative. Of a run that never starts, times count back from its end."""

    def __init__(self, spool: Path) -> None:
        self._start_ns: int | None = None
        self._early: list[tuple[TextIOWrapper, _Row, int]] = []
        self._gauges = (spool / GAUGES_FILE).open("a", encoding="utf-8")
        self._marks = (spool / MARKS_FILE).open("a", encoding="utf-8")

    @property
    def start_ns(self) -> int | None:
        return self._start_ns

    @start_ns.setter
    def start_ns(self, start_ns: int) -> None:
        self._start_ns = start_ns
        early, self._early = self._early, []
        for file, row, t_ns in early:
            _line(file, {"t_ns": t_ns - start_ns, **row})

    def gauge(self, source: str, name: str, value: float, t_ns: int | None = None) -> None:
        """One value of a time series: of `source` (loader, server, machine …), with its unit at the end of `name`."""
        self._add(self._gauges, {"source": source, "name": name, "value": float(value)}, t_ns)

    def mark(self, name: str, detail: str = "", t_ns: int | None = None) -> None:
        """Something that happened at an instant."""
        self._add(self._marks, {"name": name, "detail": detail}, t_ns)

    def _add(self, file: TextIOWrapper, row: _Row, t_ns: int | None) -> None:
        at_ns = now_ns() if t_ns is None else t_ns
        if self._start_ns is None:
            self._early.append((file, row, at_ns))
        else:
            _line(file, {"t_ns": at_ns - self._start_ns, **row})

    def close(self) -> None:
        if self._start_ns is None:
            self.start_ns = now_ns()
        self._gauges.close()
        self._marks.close()


def _line(file: TextIOWrapper, row: _Row) -> None:
    file.write(_encode(row).decode() + "\n")
    file.flush()
