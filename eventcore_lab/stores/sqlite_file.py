"""The file of the `sqlite` store: how it is opened, what a write transaction does to it, what is read from it.

Everything here blocks and runs in a thread of `sqlite_writer` or `sqlite`. SQLite gives up Python's lock at every step
of a statement, and under load another thread takes it: so a group is a handful of steps, however many appends it has.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec

from eventcore_lab.events import (
    AppendResult,
    EventRejected,
    Filter,
    Position,
    Snapshot,
    StoredEvent,
    StoreError,
    StoreUnreachable,
    StreamId,
    StreamSlice,
    StreamWrite,
    VersionConflict,
)

SCHEMA_SQL = files("eventcore_lab.stores").joinpath("sql/sqlite.sql").read_text()
SQLITE_MIN = (3, 35)

ROWS_PER_INSERT = 256
_COLUMNS = 8  # those of `events`, in the order of its definition
_HEADS = """SELECT json_group_object(value, coalesce((SELECT max(version) FROM events WHERE stream_id = value), 0))
    FROM json_each(?)"""
_TOP = "SELECT coalesce(max(position), 0) FROM events"
_EVENTS = "SELECT position, stream_id, version, event_id, event_type, data, meta, recorded_at FROM events"
_HEAD = "SELECT coalesce(max(version), 0) FROM events WHERE stream_id = ?"
_READ_STREAM = f"{_EVENTS} WHERE stream_id = ? AND version >= ? ORDER BY version LIMIT ?"
_SAVE_CHECKPOINT = """INSERT INTO checkpoints VALUES (?, ?)
    ON CONFLICT (name) DO UPDATE SET position = excluded.position"""
_SAVE_SNAPSHOT = """INSERT INTO snapshots VALUES (?, ?, ?)
    ON CONFLICT (key) DO UPDATE SET versions = excluded.versions, state = excluded.state"""

Change = Callable[[sqlite3.Connection], Any]
"""Something other than an append, done inside a write transaction; what it gives back is the answer."""
Part = Sequence[StreamWrite] | Change
"""One of the independent things that a transaction does: an append, or a change."""

REFUSED = (
    sqlite3.DataError,
    sqlite3.IntegrityError,
    sqlite3.InterfaceError,
    sqlite3.ProgrammingError,
    ValueError,  # text that is no Unicode
    TypeError,
    AttributeError,
    OverflowError,
)
"""What a value brings about that the file cannot hold. Every other error of SQLite is the file's own."""


def create(path: Path) -> None:
    """Make the file with its tables, in WAL mode, which it keeps. Raises StoreError when SQLite is too old."""
    if sqlite3.sqlite_version_info < SQLITE_MIN:
        raise StoreError(
            f"SQLite {sqlite3.sqlite_version} is too old (expected {SQLITE_MIN[0]}.{SQLITE_MIN[1]} or newer)"
        )
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.executescript(SCHEMA_SQL)
    finally:
        connection.close()


def opened(
    path: str, synchronous: str = "full", *, is_reader: bool = False, timeout_s: float = 5.0
) -> sqlite3.Connection:
    """A connection to a file that exists, usable from any thread, one at a time. A lock is waited for `timeout_s` while
    opening, since whoever opens or closes the file at the same moment has one, and, by a reader, later.
    StoreUnreachable when it cannot be opened or is not one of ours."""
    try:
        connection = sqlite3.connect(
            f"{Path(path).absolute().as_uri()}?mode=rw",
            uri=True,
            timeout=timeout_s,
            isolation_level=None,
            check_same_thread=False,
        )
    except sqlite3.Error as error:
        raise StoreUnreachable(f"{Path(path).name} cannot be opened: {error}") from None
    try:
        connection.execute(f"PRAGMA synchronous = {synchronous}")
        connection.execute("PRAGMA fullfsync = on")  # macOS, where fsync alone does not reach the device
        connection.execute(_TOP)
        connection.execute("PRAGMA query_only = on" if is_reader else "PRAGMA busy_timeout = 0")
    except sqlite3.Error as error:
        connection.close()
        fault = "is locked" if is_busy(error) else "is not a file of this store"
        raise StoreUnreachable(f"{Path(path).name} {fault}: {error}") from None
    return connection


def is_busy(error: sqlite3.Error) -> bool:
    """Whether it says that somebody else has a lock."""
    return isinstance(error, sqlite3.OperationalError) and error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY


def pragmas(path: str, synchronous: str) -> dict[str, str]:
    """The settings that durability and speed rest on, as SQLite gives them."""
    connection = opened(path, synchronous)
    names = ("journal_mode", "synchronous", "page_size", "cache_size", "wal_autocheckpoint")
    try:
        found = {name: str(connection.execute(f"PRAGMA {name}").fetchone()[0]) for name in names}
    finally:
        connection.close()
    return {**found, "synchronous": ("OFF", "NORMAL", "FULL", "EXTRA")[int(found["synchronous"])]}


# Inside a write transaction


def together(connection: sqlite3.Connection, parts: Sequence[Part]) -> list[Any]:
    """The answers of all parts; appends take effect in the order given. Raises one of REFUSED when any part is bad: the
    transaction is then to be rolled back, and `one_by_one` knows which."""
    plan = _Plan(connection, {w.stream for part in parts if not callable(part) for w in part})
    answers = [part if callable(part) else plan.append(part) for part in parts]
    plan.write(connection)
    return [answer(connection) if callable(answer) else answer for answer in answers]


def one_by_one(connection: sqlite3.Connection, parts: Sequence[Part]) -> list[Any]:
    """The same, each part by itself: a bad one is answered with EventRejected, and of it nothing remains."""
    answers: list[Any] = []
    for part in parts:
        connection.execute("SAVEPOINT part")
        try:
            answers += together(connection, [part])
        except REFUSED as error:
            connection.execute("ROLLBACK TO part")
            answers.append(EventRejected(f"SQLite cannot hold this: {error}"))
        connection.execute("RELEASE part")
    return answers


class _Plan:
    """Appends checked against the versions found and those before them, and the rows to be written."""

    def __init__(self, connection: sqlite3.Connection, streams: set[StreamId]) -> None:
        self._heads = _heads(connection, streams) if streams else {}
        self._position: Position = connection.execute(_TOP).fetchone()[0]
        self._values: list[Any] = []
        self._now_us = time.time_ns() // 1000

    def append(self, writes: Sequence[StreamWrite]) -> AppendResult | VersionConflict:
        heads = self._heads
        for write in writes:
            if 0 <= write.expected != heads[write.stream]:
                return VersionConflict(write.stream, write.expected, heads[write.stream])
        values, position, now_us = self._values, self._position, self._now_us
        versions = []
        for write in writes:
            stream, version = write.stream, heads[write.stream]
            for e in write.events:
                position, version = position + 1, version + 1
                values += (position, stream, version, e.id.bytes, e.type, e.data, e.meta, now_us)
            heads[stream] = version
            versions.append(version)
        last, self._position = position if position > self._position else 0, position
        return AppendResult(tuple(versions), last)

    def write(self, connection: sqlite3.Connection) -> None:
        """In statements of a power of two rows: few of them, and each prepared once."""
        at, left = 0, len(self._values) // _COLUMNS
        while left:
            rows = min(ROWS_PER_INSERT, 1 << (left.bit_length() - 1))
            connection.execute(_insert(rows), self._values[at : at + rows * _COLUMNS])
            at, left = at + rows * _COLUMNS, left - rows


def _heads(connection: sqlite3.Connection, streams: set[StreamId]) -> dict[str, int]:
    if any("\0" in stream for stream in streams):
        raise ValueError("a stream id has no NUL")
    listed = msgspec.json.encode(list(streams)).decode()
    return msgspec.json.decode(connection.execute(_HEADS, (listed,)).fetchone()[0], type=dict[str, int])


@cache
def _insert(rows: int) -> str:
    row = f"({', '.join('?' * _COLUMNS)})"
    return f"INSERT INTO events VALUES {', '.join([row] * rows)}"


def saving_checkpoint(name: str, position: Position) -> Change:
    """The change that remembers how far `name` has come."""

    def save(connection: sqlite3.Connection) -> None:
        connection.execute(_SAVE_CHECKPOINT, (name, str(position)))

    return save


def saving_snapshot(snapshot: Snapshot) -> Change:
    """The change that keeps `snapshot` unless it would go back; answers whether it was kept."""

    def save(connection: sqlite3.Connection) -> bool:
        there = load_snapshot(connection, snapshot.key)
        if there is not None and snapshot.is_behind(there):
            return False
        versions = msgspec.json.encode(snapshot.versions).decode()
        connection.execute(_SAVE_SNAPSHOT, (snapshot.key, versions, snapshot.state))
        return True

    return save


# Reading


@contextmanager
def _one_instant(connection: sqlite3.Connection) -> Iterator[None]:
    """All that is read within is as of the first read."""
    connection.execute("BEGIN")
    try:
        yield
    finally:
        if connection.in_transaction:
            connection.execute("COMMIT")


def read_stream(connection: sqlite3.Connection, stream: StreamId, from_version: int, limit: int | None) -> StreamSlice:
    with _one_instant(connection):
        rows = connection.execute(_READ_STREAM, (stream, from_version, -1 if limit is None else limit)).fetchall()
        version = connection.execute(_HEAD, (stream,)).fetchone()[0]
    return StreamSlice(stream, version, tuple(_events(rows)))


def read_streams(connection: sqlite3.Connection, asked: Sequence[tuple[StreamId, int]]) -> list[StreamSlice]:
    """Each stream from its version."""
    with _one_instant(connection):
        found = [
            (
                connection.execute(_READ_STREAM, (*each, -1)).fetchall(),
                connection.execute(_HEAD, each[:1]).fetchone()[0],
            )
            for each in asked
        ]
    return [
        StreamSlice(stream, version, tuple(_events(rows)))
        for (stream, _), (rows, version) in zip(asked, found, strict=True)
    ]


def read_all(connection: sqlite3.Connection, after: Position, limit: int, where: Filter) -> list[StoredEvent]:
    clauses, values = _wanted(where)
    sql = f"{_EVENTS} WHERE position > ?{clauses} ORDER BY position LIMIT ?"
    return _events(connection.execute(sql, (after, *values, limit)).fetchall())


def _wanted(where: Filter) -> tuple[str, list[Any]]:
    """`where` in SQL. The + keeps SQLite from going by stream and sorting by position, which would read everything there
    is of them for one page."""
    clauses, values = "", []
    if where.prefix:  # compared as bytes: of text, length() and LIKE see nothing behind a NUL
        prefix = where.prefix.encode(errors="surrogatepass")
        clauses += " AND substr(CAST(+stream_id AS BLOB), 1, ?) = ?"
        values += [len(prefix), prefix]
    if where.glob:
        if "\0" in where.glob:
            raise ValueError("a pattern has no NUL")
        clauses += " AND +stream_id GLOB ?"
        values.append(where.glob.replace("[!", "[^"))
    if where.types:
        clauses += f" AND event_type IN ({', '.join('?' * len(where.types))})"
        values += where.types
    return clauses, values


def _events(rows: list[Any]) -> list[StoredEvent]:
    return [StoredEvent(p, s, v, UUID(bytes=i), t, d, m, at) for p, s, v, i, t, d, m, at in rows]


def last_position(connection: sqlite3.Connection) -> Position:
    position: Position = connection.execute(_TOP).fetchone()[0]
    return position


def load_checkpoint(connection: sqlite3.Connection, name: str) -> Position | None:
    row = connection.execute("SELECT position FROM checkpoints WHERE name = ?", (name,)).fetchone()
    return int(row[0]) if row else None


def load_snapshot(connection: sqlite3.Connection, key: str) -> Snapshot | None:
    row = connection.execute("SELECT versions, state FROM snapshots WHERE key = ?", (key,)).fetchone()
    return Snapshot(key, msgspec.json.decode(row[0], type=dict[StreamId, int]), row[1]) if row else None
