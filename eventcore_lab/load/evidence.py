"""Files of evidence: rows in the columns of schema.JOURNAL, written as Parquet in parts, so that memory stays bounded."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from eventcore_lab.schema import JOURNAL

ROWS_PER_PART = 100_000
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
