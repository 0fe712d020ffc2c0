"""Files of evidence: rows in the columns of schema.JOURNAL, written as Parquet in parts, so that memory stays bounded.

What is written before the load has a start goes to the folder EARLY with times of the clock; `dated` makes evidence of it.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from eventcore_lab.schema import JOURNAL

ROWS_PER_PART = 100_000
EARLY = "early"
"""The folder in the spool for files whose times are not yet relative to the start. No checker looks there."""
_TIMES = ("began_ns", "ended_ns", "seen_ns")
_KINDS = {
    "BIGINT": pa.int64(),
    "BLOB": pa.binary(16),
    "HUGEINT": pa.decimal128(38),
    "INTEGER": pa.int32(),
    "SMALLINT": pa.int16(),
    "UTINYINT": pa.uint8(),
    "VARCHAR": pa.string(),
}


def columns_of(table: str) -> pa.Schema:
    """The Arrow schema of one table of schema.JOURNAL."""
    return pa.schema([(name, _KINDS[kind]) for name, kind in JOURNAL[table].items()])


class Rows:
    """A file of `table` that is being written; `add` takes tuples in the order of its columns. Use it with `with`."""

    def __init__(self, path: Path, table: str) -> None:
        self._schema = columns_of(table)
        self._writer = pq.ParquetWriter(path, self._schema)
        self._rows: list[tuple[Any, ...]] = []
        self.count = 0

    def add(self, row: tuple[Any, ...]) -> None:
        self._rows.append(row)
        self.count += 1
        if len(self._rows) >= ROWS_PER_PART:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            columns = [list(column) for column in zip(*self._rows, strict=True)]
            self._writer.write_table(pa.table(columns, schema=self._schema))
            self._rows.clear()

    def __enter__(self) -> Rows:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            self._flush()
        finally:
            self._writer.close()


def write_rows(path: Path, table: str, rows: list[tuple[Any, ...]]) -> None:
    """A whole file of `table` at once."""
    with Rows(path, table) as file:
        for row in rows:
            file.add(row)


def early(spool: Path) -> Path:
    """The folder EARLY of a spool, which is there afterwards."""
    folder = spool / EARLY
    folder.mkdir(exist_ok=True)
    return folder


def give_back() -> None:
    """Memory that writing files has taken and would keep for the next one goes back to the system."""
    pa.default_memory_pool().release_unused()


def dated(spool: Path, pattern: str, start_ns: int) -> None:
    """Move what is `early` and matches `pattern` to the evidence, its times relative to `start_ns`."""
    for path in sorted((spool / EARLY).glob(pattern)):
        table = pq.read_table(path)
        for name in {*_TIMES} & {*table.column_names}:
            since = pa.array(table[name].to_numpy() - start_ns)
            table = table.set_column(table.column_names.index(name), name, since)
        part = path.with_suffix(".part")
        pq.write_table(table, part)
        part.rename(spool / path.name)  # whoever finds it finds all of it
        path.unlink()
