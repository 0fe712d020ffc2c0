"""What a process of the load tells of itself while it goes on: lines of the run's gauges, beside those of the companions."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from eventcore_lab.clock import now_ns
from eventcore_lab.schema import GAUGES_FILE


class Gauges:
    """Values of this run's time series from one more process: each line is one write at the file's end, so that lines of
    several processes do not mix. Times are relative to `start_ns`."""

    def __init__(self, spool: Path, source: str, start_ns: int) -> None:
        self._source, self._start_ns = source, start_ns
        self._file = os.open(spool / GAUGES_FILE, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def tell(self, **values: float) -> None:
        """Names with their units at the end, all as of now."""
        row = {"t_ns": now_ns() - self._start_ns, "source": self._source}
        lines = [msgspec.json.encode({**row, "name": name, "value": float(value)}) for name, value in values.items()]
        os.write(self._file, b"".join([line + b"\n" for line in lines]))

    def close(self) -> None:
        os.close(self._file)
