"""Logs of events, read: what happened when, on which streams, and in which transactions. replay.py plays them again.

A log is a Parquet or CSV file (comma, semicolon, tab or |), a row per event. Rows that cannot be used are rejected and
counted by reason; a file of which nothing can be used is a ValueError. What is read is the same for the same bytes and
columns, wherever and by whomever.
"""

from __future__ import annotations

import codecs
import csv
import hashlib
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from eventcore_lab.load.chance import mixed
from eventcore_lab.load.stamps import EMPTY, FAR, LEFT_OUT, NO_TIME, Ints, far, instants, settled
from eventcore_lab.spec import shown

EVENTS_MAX = 5_000_000
"""More rows than this in one log are refused."""

EXAMPLE = "example"
"""The log that comes with this package; a file of that name is ./example."""

AUTO, NONE = "auto", "none"
NAMES: dict[str, tuple[str, ...]] = {
    "time": (
        *("ts", "timestamp", "time", "created_at", "recorded_at", "occurred_at", "time:timestamp", "event_time"),
        *("datetime", "complete_timestamp"),
    ),
    "stream": (
        *("stream_id", "stream", "stream_name", "case:concept:name", "case_id", "case", "aggregate_id", "aggregate"),
        *("entity_id",),
    ),
    "type": ("event_type", "type", "activity", "concept:name", "event_name"),
    "transaction": ("txn", "transaction", "transaction_id", "txn_id", "commit", "commit_id"),
}
"""What columns are called, the likeliest first; case, blanks and hyphens make no difference."""

TOO_FEW, TOO_MANY, NO_STREAM = "with too few fields", "with too many fields", "without a stream"
NO_TEXT = "with bytes that are no UTF-8"
REJECTED = (TOO_FEW, TOO_MANY, NO_TEXT, EMPTY, NO_TIME, LEFT_OUT, NO_STREAM, FAR)
UNSORTED, TWICE, LONG = "out of order", "at a local time that there was twice", "transactions of several instants"
ODD_QUOTES = "quotation mark too many: rows may have run together"
_HEAD_BYTES = 1 << 20
_ROW_BYTES_MAX = 16 << 20
"""Arrow reads a CSV file in blocks, and a row must end in the block behind its own."""
_MARKING = "eventcore_lab.marking"
_DELIMITERS = ",;\t|"
_NO_UTF_8 = "\U0010ffff"
"""Stands for bytes that are no UTF-8 while a file with some is read: Unicode keeps it free of any meaning."""

codecs.register_error(_MARKING, lambda error: (_NO_UTF_8, error.end))  # type: ignore[attr-defined]


class Reading(Struct, frozen=True, kw_only=True):
    """What to read: a file, the columns by name or `auto`, and the time zone of stamps that have no offset. `type` and
    `transaction` may be `none`."""

    file: str = EXAMPLE
    tz: str = "UTC"
    time: str = AUTO
    stream: str = AUTO
    type: str = AUTO
    transaction: str = AUTO


class Trace(Struct, frozen=True, eq=False):
    """A log as it was read. Operation k is one transaction, its events those from begins[k] to begins[k + 1].

    `at_ns` (one entry per operation) ascends, in ns since the first one; what was at the same instant stays in the order
    of the file. `stream` and `type` (one per event) are places in `streams` and `types`. `digest`: of the file's bytes.
    `counts`: what was kept, and what was rejected or odd, by reason.
    """

    name: str
    digest: str
    at_ns: Ints
    begins: Ints
    stream: NDArray[np.int32]
    type: NDArray[np.int32]
    streams: list[str]
    types: list[str]
    counts: Mapping[str, int]
    unit: str = ""

    def __len__(self) -> int:
        return len(self.at_ns)

    def events(self, k: int) -> list[tuple[str, str]]:
        """(stream, type) of each event of operation k."""
        events = range(int(self.begins[k]), int(self.begins[k + 1]))
        return [(self.streams[self.stream[e]], self.types[self.type[e]]) for e in events]

    @property
    def said(self) -> str:
        """What was kept and what was not, in one line."""
        counts = self.counts
        rejected = [f"{counts[reason]:,} {reason}" for reason in REJECTED if reason in counts]
        parts = [
            f"{counts['operations']:,} operations with {counts['events']:,} events on {counts['streams']:,} streams"
        ]
        if rejected:
            parts.append(f"{sum(counts.get(r, 0) for r in REJECTED):,} rows rejected ({', '.join(rejected)})")
        parts += [f"{counts[odd]:,} {odd}" for odd in (UNSORTED, TWICE, LONG, ODD_QUOTES) if odd in counts]
        return "; ".join(parts + ([f"times read as {self.unit}"] if self.unit else []))


class _Rows(Struct):
    """A file's columns by role (chunked arrays of Arrow), and how many rows could not be told from its bytes, by reason."""

    columns: dict[str, Any]
    names: dict[str, str]
    unread: dict[str, int] = {}


def read_trace(reading: Reading) -> Trace:
    """The log. The last few read are remembered, as long as their files do not change. ValueError, in one line, for a
    file that is not there, is no log, has too many rows or none that can be used."""
    if reading.file == EXAMPLE:
        return _example()
    path = Path(reading.file).expanduser()
    if not path.is_file():
        raise ValueError(f"there is no file {shown(reading.file, 120)}")
    try:
        stat = path.stat()
        return _remembered(path.absolute(), stat.st_mtime_ns, stat.st_size, reading)
    except OSError as error:
        raise ValueError(f"{path.name} cannot be read: {error.strerror or _line(error)}") from None


@lru_cache(maxsize=2)
def _remembered(path: Path, _mtime_ns: int, _size: int, reading: Reading) -> Trace:
    import pyarrow as pa

    digest, quotes, is_text = _gone_through(path)
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    is_parquet = head.startswith(b"PAR1")
    try:
        rows = _parquet_rows(path, reading) if is_parquet else _csv_rows(path, head, is_text, reading)
        if not is_parquet and quotes % 2:
            rows.unread[ODD_QUOTES] = 1
        return _trace(path.name, digest, rows, reading.tz)
    except pa.ArrowException as error:  # which is no OSError, and often a ValueError in several lines
        hint = "" if is_parquet or quotes % 2 == 0 else " (a quotation mark is missing, or there is one too many)"
        what = f"a row has more than {_ROW_BYTES_MAX >> 20} MiB" if "straddling" in str(error) else _line(error)
        raise ValueError(f"{path.name} cannot be read: {what}{hint}") from None


def _gone_through(path: Path) -> tuple[str, int, bool]:
    """The first half of the SHA-256 of what is in the file, which is enough to tell it; how many quotation marks it has;
    whether all of it is UTF-8."""
    digest, quotes, is_text = hashlib.sha256(), 0, True
    decoder = codecs.getincrementaldecoder("utf-8")()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
            quotes += chunk.count(b'"')
            is_text = is_text and _goes_on(decoder, chunk)
    return digest.hexdigest()[:16], quotes, is_text and _goes_on(decoder, b"")


def _goes_on(decoder: codecs.IncrementalDecoder, chunk: bytes) -> bool:
    """Whether the chunk goes on as UTF-8 behind those before it; b"": whether it may end here."""
    try:
        decoder.decode(chunk, final=not chunk)
    except UnicodeDecodeError:
        return False
    return True


def _line(error: Exception) -> str:
    return (str(error) or type(error).__name__).partition("\n")[0]


def _parquet_rows(path: Path, reading: Reading) -> _Rows:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        names = file.schema_arrow.names
        chosen = _chosen(names, reading, path.name)
        _check_size(file.metadata.num_rows, path.name)
        table = file.read(columns=[names[at] for at in chosen.values()])
        columns = {role: table.column(names[at]) for role, at in chosen.items()}
    return _Rows(columns, {role: names[at] for role, at in chosen.items()}, {})


def _csv_rows(path: Path, head: bytes, is_text: bool, reading: Reading) -> _Rows:
    import pyarrow as pa
    import pyarrow.csv as pc

    names, delimiter, skipped = _header(head, path.name)
    chosen = _chosen(names, reading, path.name)
    columns = [f"f{n}" for n in range(len(names))]  # what the file calls them need not be unique
    wanted = {role: columns[at] for role, at in chosen.items()}
    unread: dict[str, int] = {} if is_text else {NO_TEXT: 0}

    def skip(row: Any) -> str:
        reason = TOO_FEW if row.actual_columns < row.expected_columns else TOO_MANY
        if row.text.strip():
            unread[reason] = unread.get(reason, 0) + 1
        return "skip"

    with pc.open_csv(
        path if is_text else _marked(path),
        read_options=pc.ReadOptions(column_names=columns, skip_rows=skipped, block_size=_ROW_BYTES_MAX),
        parse_options=pc.ParseOptions(delimiter=delimiter, newlines_in_values=True, invalid_row_handler=skip),
        convert_options=pc.ConvertOptions(
            column_types=dict.fromkeys(wanted.values(), pa.string()),
            include_columns=list(dict.fromkeys(wanted.values())),
        ),
    ) as batches:
        table = pa.Table.from_batches(_bounded(batches, path.name, unread), batches.schema)
    return _Rows(
        {role: table.column(f) for role, f in wanted.items()}, {r: names[n] for r, n in chosen.items()}, unread
    )


def _bounded(batches: Any, name: str, unread: dict[str, int]) -> Iterator[Any]:
    """Batches, where some bytes were no text without the rows that have them, which are counted."""
    import pyarrow as pa
    import pyarrow.compute as pc

    rows = 0
    for batch in batches:
        _check_size(rows := rows + batch.num_rows, name)
        if NO_TEXT in unread:
            has_some = [
                pc.match_substring(column, _NO_UTF_8).to_numpy(zero_copy_only=False) for column in batch.columns
            ]
            wrong = np.logical_or.reduce(has_some).astype(np.bool_)
            unread[NO_TEXT] += int(np.count_nonzero(wrong))
            batch = batch.filter(pa.array(~wrong))
        yield batch


def _marked(path: Path) -> Any:
    """The file as UTF-8, with a mark wherever it is none: Arrow would not go on behind such a byte."""
    import pyarrow as pa

    decoder = codecs.getincrementaldecoder("utf-8")(_MARKING)
    return pa.TransformInputStream(
        pa.OSFile(str(path)), lambda chunk: decoder.decode(chunk, final=not len(chunk)).encode()
    )


def _check_size(rows: int, name: str) -> None:
    if rows > EVENTS_MAX:
        raise ValueError(f"{name} has more than {EVENTS_MAX:,} rows: cut it into logs of its parts")


def _header(head: bytes, name: str) -> tuple[list[str], str, int]:
    """The names of the columns, what is between them, and how many lines there are up to the first row."""
    if b"\0" in head or head.startswith((b"\x1f\x8b", b"\xff\xfe", b"\xfe\xff", b"PK\x03\x04")):
        raise ValueError(f"{name} is neither Parquet nor text in UTF-8 (unpack it, or write it again as one of these)")
    lines = re.split("\r\n|\r|\n", head.decode("utf-8-sig", "replace"))
    skipped, line = next(((n, line) for n, line in enumerate(lines, 1) if line.strip()), (0, ""))
    if not line:
        raise ValueError(f"{name} is empty")
    known = {each for names in NAMES.values() for each in names}

    def likelihood(fields: list[str]) -> tuple[int, int]:
        return len(known.intersection(map(_plain, fields))), len(fields)

    try:
        split = {delimiter: next(csv.reader([line], delimiter=delimiter)) for delimiter in _DELIMITERS}
    except csv.Error:
        raise ValueError(f"{name} does not begin with the names of its columns") from None
    delimiter = max(_DELIMITERS, key=lambda each: likelihood(split[each]))
    return split[delimiter], delimiter, skipped


def _plain(name: str) -> str:
    return name.strip().casefold().replace(" ", "_").replace("-", "_")


def _chosen(names: list[str], reading: Reading, file: str) -> dict[str, int]:
    """Role → which column; the type and the transaction may be missing unless they were asked for."""
    plain = [_plain(name) for name in names]
    found = {}
    for role, likely in NAMES.items():
        asked = getattr(reading, role)
        if asked == NONE and role in ("type", "transaction"):
            continue
        if asked in names:
            found[role] = names.index(asked)
        elif at := [plain.index(name) for name in (likely if asked == AUTO else [_plain(asked)]) if name in plain]:
            found[role] = at[0]
        elif asked != AUTO or role in ("time", "stream"):
            missing = f"no column {shown(asked)}" if asked != AUTO else f"no column for the {role} (name it: {role}=…)"
            raise ValueError(f"{file} has {missing}; its columns are {', '.join(map(shown, names[:20]))}")
    return found


def _trace(name: str, digest: str, rows: _Rows, zone: str) -> Trace:
    """The rows that can be used, as operations; ValueError if there are none."""
    counts = dict(rows.unread)
    time = instants(rows.columns["time"], zone, rows.names["time"])
    coded = {role: _codes(column, rows.names[role]) for role, column in rows.columns.items() if role != "time"}
    stream, streams = coded["stream"]
    wrong = {**time.wrong, NO_STREAM: time.is_kept & (stream < 0)}
    counts |= {reason: int(np.count_nonzero(rows_of)) for reason, rows_of in wrong.items()}
    is_kept = ~np.logical_or.reduce(list(wrong.values()))
    is_far = far(time.early, is_kept)
    counts[FAR] = int(np.count_nonzero(is_far))
    kept = np.flatnonzero(is_kept & ~is_far)
    if not len(kept):
        reasons = [f"{n:,} {reason}" for reason, n in counts.items() if n]
        raise ValueError(f"{name} has no row that can be used ({', '.join(reasons) or 'it has none'})")
    ns, counts[TWICE] = settled(time.early[kept], time.late[kept], stream[kept])
    counts[UNSORTED] = int(np.count_nonzero(ns < np.maximum.accumulate(ns)))
    order = np.argsort(ns, kind="stable")
    ns, kept = ns[order], kept[order]
    begins, within = _transactions(coded["transaction"][0][kept] if "transaction" in coded else None, len(kept))
    ns, kept = ns[within], kept[within]
    counts[LONG] = int(np.count_nonzero(np.maximum.reduceat(ns, begins[:-1]) > ns[begins[:-1]]))
    kind, types = coded.get("type", (np.full(len(stream), -1, np.int32), []))
    counts |= {"operations": len(begins) - 1, "events": len(kept), "streams": len(np.unique(stream[kept]))}
    return Trace(
        name=name,
        digest=digest,
        at_ns=ns[begins[:-1]] - ns[0],
        begins=begins,
        stream=stream[kept],
        type=kind[kept],
        streams=streams,
        types=[*types, ""],  # where -1 leads: a row without one
        counts={what: n for what, n in counts.items() if n},
        unit=time.unit,
    )


def _codes(column: Any, name: str) -> tuple[NDArray[np.int32], list[str]]:
    """A column's texts, each as its place in the list of all; -1 for one that is empty or blank."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        raise ValueError(f"the column {name!r} is of type {kind}, which is no name")
    text = column.cast(kind).cast(pa.large_string()).fill_null("")
    coded = text.combine_chunks().dictionary_encode()
    codes = coded.indices.to_numpy(zero_copy_only=False).astype(np.int32)
    blank = pc.equal(pc.utf8_trim_whitespace(coded.dictionary), "").to_numpy(zero_copy_only=False)
    if len(blank):
        codes = np.where(blank[codes], np.int32(-1), codes)
    return codes, coded.dictionary.to_pylist()


def _transactions(codes: NDArray[np.int32] | None, rows: int) -> tuple[Ints, Ints]:
    """Where each operation begins, with the end, and the rows in the order of operations: an operation is where its first
    row is. A row without a transaction is one by itself."""
    if codes is None:
        return np.arange(rows + 1), np.arange(rows)
    alone = np.where(codes < 0, np.arange(rows) + EVENTS_MAX, codes)
    _, first, which, sizes = np.unique(alone, return_index=True, return_inverse=True, return_counts=True)
    order = np.argsort(first)
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    return np.concatenate([[0], np.cumsum(sizes[order])]), np.argsort(place[which], kind="stable")


@lru_cache(maxsize=1)
def _example() -> Trace:
    """Ten seconds of an order desk, made up: 1,000 operations on 200 orders in bursts of one instant, every tenth of them
    a parcel for two orders at once."""
    import pyarrow as pa

    lines, at_ms = [], 0
    for n in range(1_000):
        chance = mixed(2, n)
        at_ms += (0, 0, 5, 10, 35)[chance % 5]
        for order in (chance >> 8) % 200, (chance >> 16) % 199:
            kind = "ParcelPacked" if n % 10 == 9 else ("OrderChanged", "ItemAdded", "ItemAdded")[(chance >> 24) % 3]
            lines.append((at_ms * 1_000_000, f"order-{order:03}", kind, str(n)))
            if n % 10 != 9:
                break
    time, *texts = zip(*lines, strict=True)
    digest = hashlib.sha256(repr(lines).encode()).hexdigest()[:16]
    columns = {"time": pa.chunked_array([pa.array(time, pa.timestamp("ns"))])}
    columns |= {
        role: pa.chunked_array([list(t)]) for role, t in zip(("stream", "type", "transaction"), texts, strict=True)
    }
    return _trace(f"{EXAMPLE} (made up; file=… names a log)", digest, _Rows(columns, dict.fromkeys(columns, "")), "UTC")
