"""What was asked of the store, append by append, and what the store holds afterwards: the evidence the checkers judge.

`journaled(store)` is a store that notes every append with its outcome; `read_back` writes down the whole content.
Nothing is judged here.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from eventcore_lab.events import (
    AppendResult,
    OutcomeUnknown,
    StoreError,
    StreamWrite,
    VersionConflict,
)
from eventcore_lab.schema import Outcome, current_attempt
from eventcore_lab.stores.protocol import Store
from eventcore_lab.stores.reading import stream_all
from eventcore_lab.stores.wrapper import Wrapper

_Entry = tuple[int, Sequence[StreamWrite], int, "tuple[int, ...] | None"]

_WRITES = pa.schema(
    [
        ("worker", pa.int16()),
        ("operation", pa.int64()),
        ("append", pa.int64()),
        ("outcome", pa.uint8()),
        ("stream", pa.string()),
        ("expected", pa.int64()),
        ("version", pa.int64()),
        ("ordinal", pa.int32()),
        ("event_id", pa.binary(16)),
        ("digest", pa.int64()),
    ]
)
_STORED = pa.schema(
    [
        ("position", pa.decimal128(38)),
        ("stream", pa.string()),
        ("version", pa.int64()),
        ("event_id", pa.binary(16)),
        ("digest", pa.int64()),
    ]
)
_ROWS_PER_PART = 100_000


def outcome_of(error: BaseException) -> Outcome:
    """What an append that raised came to. Anything but a clear answer of the store may have happened."""
    if isinstance(error, VersionConflict):
        return Outcome.CONFLICT
    if isinstance(error, StoreError) and not isinstance(error, OutcomeUnknown):
        return Outcome.FAILED
    return Outcome.UNKNOWN


def digest(event_type: str, data: bytes, meta: bytes) -> int:
    """32 bits over what an event says, to see whether it came back as it was given. Blanks and the order of keys say
    nothing: a store that keeps JSON as jsonb gives back other bytes. (Whether bytes are kept is a claim of conformance.)
    """
    return zlib.crc32(_said(meta), zlib.crc32(_said(data), zlib.crc32(event_type.encode())))


_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder(order="sorted").encode


def _said(data: bytes) -> bytes:
    try:
        return _encode(_decode(data))
    except (msgspec.MsgspecError, OverflowError, RecursionError):  # no JSON we can read: the bytes say something
        return data


class Journal(Wrapper):
    """A Store around another that keeps a list of all appends. Reads go straight through."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self._entries: list[_Entry] = []

    async def append(self, writes: Sequence[StreamWrite]) -> AppendResult:
        attempt = current_attempt.get()
        operation = attempt.operation if attempt is not None else -1
        try:
            result = await self.inner.append(writes)
        except BaseException as error:
            self._entries.append((operation, writes, outcome_of(error), None))
            raise
        self._entries.append((operation, writes, Outcome.OK, result.versions))
        return result

    async def append_many(self, requests: Sequence[Sequence[StreamWrite]]) -> list[AppendResult | StoreError]:
        attempt = current_attempt.get()
        operation = attempt.operation if attempt is not None else -1
        try:
            results = await self.inner.append_many(requests)
        except BaseException as error:
            self._entries.extend((operation, writes, outcome_of(error), None) for writes in requests)
            raise
        for writes, result in zip(requests, results, strict=True):
            if isinstance(result, AppendResult):
                self._entries.append((operation, writes, Outcome.OK, result.versions))
            else:
                self._entries.append((operation, writes, outcome_of(result), None))
        return results

    def write(self, path: Path, worker: int) -> None:
        """One row per event (or read-only participant) of every append, in the columns of schema.JOURNAL."""
        with pq.ParquetWriter(path, _WRITES) as writer:
            rows: list[tuple[Any, ...]] = []
            for n, entry in enumerate(self._entries):
                rows.extend(_rows(worker, n, entry))
                if len(rows) >= _ROWS_PER_PART:
                    _flush(writer, _WRITES, rows)
            _flush(writer, _WRITES, rows)


def _rows(worker: int, n: int, entry: _Entry) -> list[tuple[Any, ...]]:
    operation, writes, outcome, versions = entry
    rows: list[tuple[Any, ...]] = []
    for i, w in enumerate(writes):
        head = (worker, operation, n, outcome, w.stream, w.expected, None if versions is None else versions[i])
        if not w.events:
            rows.append((*head, 0, None, None))
        for ordinal, e in enumerate(w.events, 1):
            rows.append((*head, ordinal, e.id.bytes, digest(e.type, e.data, e.meta)))
    return rows


def _flush(writer: pq.ParquetWriter, schema: pa.Schema, rows: list[tuple[Any, ...]]) -> None:
    if rows:
        columns = [list(column) for column in zip(*rows, strict=True)]
        writer.write_table(pa.table(columns, schema=schema))
        rows.clear()


async def read_back(store: Store, path: Path, page: int = 5000) -> int:
    """Write down everything the store holds, in position order; gives the number of events."""
    count = 0
    with pq.ParquetWriter(path, _STORED) as writer:
        rows: list[tuple[Any, ...]] = []
        async for e in stream_all(store, page=page):
            rows.append((e.position, e.stream, e.version, e.id.bytes, digest(e.type, e.data, e.meta)))
            count += 1
            if len(rows) >= _ROWS_PER_PART:
                _flush(writer, _STORED, rows)
        _flush(writer, _STORED, rows)
    return count
