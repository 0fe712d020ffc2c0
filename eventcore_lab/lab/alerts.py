"""Alerts on their way into the Lab: a file of lines in the spool, written by a monitor, taken in by whoever opens the Lab next.

The monitor never opens the Lab's file. It appends, holding the file's lock for one write; whoever takes in renames the file
under that lock and reads it without. So a writer waits for nobody, and killed at any moment loses the line it was writing at
most. Each line has an id, and one that the Lab knows is not taken in again.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import duckdb
import msgspec
import pyarrow as pa
from msgspec import Struct

from eventcore_lab.clock import NS_PER_S, now_ns, pause_s
from eventcore_lab.schema import ALERTS_FILE

FILE_BYTES_MAX = 16 * 2**20
"""A file that nobody takes in grows no further."""
_TAKEN = ".taken-"
_LOCK_TIMEOUT_S, _LOCK_POLL_S = 1.0, 0.01


class AlertLine(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One change of an alert (`alerted_at`: Unix time), and what became of telling it, as far as that is known: the same change
    may come again with more of that, and either line may be the first that the Lab gets."""

    alert_id: str
    alerted_at: float = 0.0
    run_id: str = ""
    name: str = ""
    severity: str = ""
    state: str = ""
    value: float | None = None
    limit_text: str = ""
    text: str = ""
    detail: str = ""
    delivered: str = ""


def append(spool: Path, lines: Sequence[AlertLine], *, patient: bool = False) -> bool:
    """Add lines to the spool's file; False if somebody holds it just now, or it is full. `patient` waits a second for it."""
    spool.mkdir(parents=True, exist_ok=True)
    with _held(spool / ALERTS_FILE, os.O_RDWR | os.O_CREAT | os.O_APPEND, patient) as file:
        if file is None or (size := os.fstat(file).st_size) > FILE_BYTES_MAX:
            return False
        is_torn = size and os.pread(file, 1, size - 1) != b"\n"  # by a writer that was killed
        whole = b"".join(msgspec.json.encode(line) + b"\n" for line in lines)
        whole = b"\n" + whole if is_torn else whole
        while whole:
            whole = whole[os.write(file, whole) :]
        return True


def set_aside(spool: Path) -> list[Path]:
    """Files of lines that nobody writes to any more: the current one under another name, and what was set aside before."""
    current = spool / ALERTS_FILE
    if current.exists():
        with _held(current, os.O_RDWR, patient=True) as file:
            if file is not None:
                current.rename(spool / f"{ALERTS_FILE}{_TAKEN}{uuid4().hex}")
    return sorted(path for path in spool.glob(f"{ALERTS_FILE}{_TAKEN}*") if os.access(path, os.R_OK))


def take_in(con: duckdb.DuckDBPyConnection, files: Sequence[Path]) -> int:
    """Insert the changes that are new, note what became of telling them; gives how many are new. Malformed lines are left
    out."""
    lines = [line for file in files for line in _lines(file)]
    changes = {line.alert_id: line for line in lines if line.state}
    outcomes = {line.alert_id: line.delivered for line in lines if line.delivered}
    rows = [_row(line) for line in changes.values()]
    before = con.execute("SELECT count(*) FROM alerts").fetchall()[0][0]
    if rows:
        incoming = pa.Table.from_pylist(rows, _SCHEMA)  # noqa: F841 (read by DuckDB)
        con.execute(
            """INSERT INTO alerts BY NAME SELECT * FROM incoming
               WHERE NOT EXISTS (SELECT 1 FROM alerts WHERE alerts.alert_id = incoming.alert_id)"""
        )
    if outcomes:
        told = pa.table({"alert_id": list(outcomes), "delivered": list(outcomes.values())})  # noqa: F841 (read by DuckDB)
        con.execute("UPDATE alerts SET delivered = told.delivered FROM told WHERE alerts.alert_id = told.alert_id")
    return int(con.execute("SELECT count(*) FROM alerts").fetchall()[0][0] - before)


_SCHEMA = pa.schema(
    [
        (name, pa.string())
        for name in ("alert_id", "run_id", "name", "severity", "state", "limit_text", "text", "detail")
    ]
    + [("delivered", pa.string()), ("value", pa.float64()), ("alerted_at", pa.timestamp("us", tz="UTC"))]
)


def _row(line: AlertLine) -> dict[str, object]:
    row = msgspec.structs.asdict(line)
    try:
        row["alerted_at"] = datetime.fromtimestamp(line.alerted_at, UTC)
    except (OverflowError, ValueError, OSError):
        row["alerted_at"] = None
    return row


def _lines(file: Path) -> Iterator[AlertLine]:
    try:
        content = file.read_bytes()
    except FileNotFoundError:  # somebody else has taken it in meanwhile
        return
    for text in content.split(b"\n"):
        try:
            yield msgspec.json.decode(text, type=AlertLine)
        except (msgspec.DecodeError, UnicodeDecodeError):
            continue  # torn, or somebody else's


@contextmanager
def _held(path: Path, flags: int, patient: bool) -> Iterator[int | None]:
    """The open file while nobody else writes to it or moves it; None if somebody does, or it is gone."""
    file = _locked(path, flags, now_ns() + int(_LOCK_TIMEOUT_S * NS_PER_S) if patient else 0)
    try:
        yield file
    finally:
        if file is not None:
            os.close(file)


def _locked(path: Path, flags: int, deadline_ns: int) -> int | None:
    while True:
        try:
            file = os.open(path, flags, 0o644)
        except (FileNotFoundError, PermissionError):
            return None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(file, path):
                return file
        except BlockingIOError:
            if now_ns() >= deadline_ns:
                os.close(file)
                return None
            pause_s(_LOCK_POLL_S)
        os.close(file)


def _is_at(file: int, path: Path) -> bool:
    """Whether the open file is still what the path leads to: it may have been set aside before it was locked."""
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False
