"""Where companions write: gauges and marks of one run, a JSON line each, kept even if this process is killed."""

from __future__ import annotations

from io import TextIOWrapper
from pathlib import Path

import msgspec

from eventcore_lab.clock import now_ns
from eventcore_lab.schema import GAUGES_FILE, MARKS_FILE

_encode = msgspec.json.Encoder().encode


class Series:
    """Appends to the run's gauges and marks. `start_ns` is the run's start on the monotonic clock; times before it are
    negative."""

    def __init__(self, spool: Path) -> None:
        self.start_ns = now_ns()
        self._gauges = (spool / GAUGES_FILE).open("a", encoding="utf-8")
        self._marks = (spool / MARKS_FILE).open("a", encoding="utf-8")

    def gauge(self, source: str, name: str, value: float, t_ns: int | None = None) -> None:
        """One value of a time series: of `source` (loader, server, machine …), with its unit at the end of `name`."""
        _line(self._gauges, {"t_ns": self._since(t_ns), "source": source, "name": name, "value": float(value)})

    def mark(self, name: str, detail: str = "", t_ns: int | None = None) -> None:
        """Something that happened at an instant."""
        _line(self._marks, {"t_ns": self._since(t_ns), "name": name, "detail": detail})

    def _since(self, t_ns: int | None) -> int:
        return (now_ns() if t_ns is None else t_ns) - self.start_ns

    def close(self) -> None:
        self._gauges.close()
        self._marks.close()


def _line(file: TextIOWrapper, row: dict[str, int | float | str]) -> None:
    file.write(_encode(row).decode() + "\n")
    file.flush()
