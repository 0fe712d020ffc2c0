"""The package `eventsourcing` as stores: where its recorders keep their events, and which of our claims they do not keep.

Offered through our own entry point, like a driver from outside, and only there with the extra. Its recorders are made as
its own factories make them, but that originators are text and not UUIDs, so that a stream keeps its name, that the pool has
the size it is told, and that psycopg sends in blocking mode (see `_sending_whole`). How calls become theirs is in `recorders`.
"""

from __future__ import annotations

import asyncio
import sqlite3
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any

from eventcore_lab.events import StoreUnreachable
from eventcore_lab.spec import UsageError, unknown
from eventcore_lab.stores.directories import IN_MEMORY, filesystem_of, on_disk
from eventcore_lab.stores.protocol import Address, Driver, Place, PoolSettings, Store, stores

if find_spec("eventsourcing") is None:
    raise UsageError("store eventsourcing needs the extra: pip install 'eventcore_lab[eventsourcing]'")

from eventcore_lab.stores.recorders import Recorders, first_line
from eventcore_lab.stores.threads import Threads

_NO_POSITION = "select_events tells no notification id, so an event read from its stream has no position"
_ONLY_WRITTEN = "insert_events knows the streams it writes and no others: none can only be expected"
_LACKS = {
    "events come back as they were written": _NO_POSITION,
    "versions and positions of concurrent appends agree": _NO_POSITION,
    "an append is found by its event ids": _NO_POSITION,
    "a stale read only participant conflicts": _ONLY_WRITTEN,
    "a read only participant cannot change before the commit": _ONLY_WRITTEN,
    "checkpoints are kept by name": "tracking only goes forward: a checkpoint cannot be set back for a rebuild",
    "snapshots never go back": "its snapshots are each of one aggregate at one version, ours of any number of streams",
    "one leads at a time": "it has no leases",
}
_TORN = {"several streams are read as of one instant": "select_events reads one stream, each call for itself"}
_UNORDERED = {
    "a reader beside writers sees each event once and in order": "sometimes: its database function takes no table "
    "lock, so that ids drawn early are committed late, behind a reader that has gone on"
}


def eventsourcing(*, variant: str = "postgres", server: str = "embedded", synchronous_commit: str = "on") -> Driver:
    """Recorders of the Python package eventsourcing: postgres, functions, sqlite, popo (server: embedded, system, env:NAME)."""
    if variant in ("postgres", "functions"):
        return _Postgres(variant, _server(server, synchronous_commit), synchronous_commit)
    if variant not in ("popo", "sqlite"):
        raise unknown("variant of store eventsourcing", variant, ("functions", "popo", "postgres", "sqlite"))
    if (server, synchronous_commit) != ("embedded", "on"):
        raise UsageError(f"store eventsourcing:{variant} is on no server: leave out server and synchronous_commit")
    return _Popo() if variant == "popo" else _SQLite()


def _server(server: str, synchronous_commit: str) -> Driver:
    """Our own driver for that server: its places are schemas, and theirs can be in them as well."""
    name = server if server.startswith("env:") else f"postgres:server={server}"
    return stores.make(f"{name},synchronous_commit={synchronous_commit}")


class _Popo:
    """Plain Python objects: lists in the worker's own memory."""

    is_shared = False
    lacks: Mapping[str, str] = MappingProxyType(_LACKS)

    @asynccontextmanager
    async def provision(self) -> AsyncIterator[Place]:
        yield Place(Address("eventsourcing"), "none: lost when the process ends", facts=_facts())

    async def connect(self, address: Address, pool: PoolSettings) -> Store:
        from eventsourcing.popo import POPOApplicationRecorder, POPOTrackingRecorder

        return Recorders(POPOApplicationRecorder(), POPOTrackingRecorder(), None)


class _SQLite:
    """A file in a temporary directory of its own, in WAL mode, flushed at each commit as SQLite does by default."""

    is_shared = True
    lacks: Mapping[str, str] = MappingProxyType(_LACKS | _TORN)

    @asynccontextmanager
    async def provision(self) -> AsyncIterator[Place]:
        with tempfile.TemporaryDirectory(prefix="eventcore_lab-", dir=on_disk()) as directory:
            file = str(Path(directory) / "events.sqlite")
            store = _sqlite(file, PoolSettings.sized(1), is_new=True)
            await store.close()
            yield Place(
                Address("eventsourcing", schema=file),
                _flushed(file),
                f"SQLite {sqlite3.sqlite_version}",
                facts=_facts(),
            )

    async def connect(self, address: Address, pool: PoolSettings) -> Store:
        return await asyncio.to_thread(_sqlite, address.schema, pool)


def _sqlite(file: str, pool: PoolSettings, is_new: bool = False) -> Recorders:
    from eventsourcing.sqlite import SQLiteApplicationRecorder, SQLiteDatastore, SQLiteTrackingRecorder

    datastore = SQLiteDatastore(
        file,
        lock_timeout=max(1, int(pool.command_timeout_s)),
        pool_size=pool.max_connections,
        max_overflow=0,
        pool_timeout=pool.command_timeout_s,  # a thread each: the wait in there is for the one writer
        max_age=pool.max_lifetime_s,
        originator_id_type="text",
    )
    return _made(SQLiteApplicationRecorder(datastore), SQLiteTrackingRecorder(datastore), pool, datastore.close, is_new)


def _flushed(file: str) -> str:
    filesystem = filesystem_of(Path(file))
    if filesystem in IN_MEMORY:
        return f"not durable (the data is on {filesystem}, in memory)"
    connection = sqlite3.connect(file)
    try:
        mode = connection.execute("PRAGMA journal_mode").fetchone()[0]
        level = connection.execute("PRAGMA synchronous").fetchone()[0]
    finally:
        connection.close()
    return f"{'durable' if level >= 2 else 'flushed later'} (journal_mode={mode}, synchronous={level})"


class _Postgres:
    """Tables of its own in a schema that `server` provisions; ours are there too, and stay empty."""

    is_shared = True

    def __init__(self, variant: str, server: Driver, synchronous_commit: str) -> None:
        self._has_functions, self._server = variant == "functions", server
        self._synchronous_commit = synchronous_commit
        self._address = f"eventsourcing:{variant}"
        self.lacks: Mapping[str, str] = MappingProxyType(_LACKS | _TORN | (_UNORDERED if self._has_functions else {}))

    @asynccontextmanager
    async def provision(self) -> AsyncIterator[Place]:
        _check_psycopg()
        async with self._server.provision() as place:
            address = Address(self._address, place.address.dsn, place.address.schema)
            store = await self._connected(address, PoolSettings.sized(1), is_new=True)
            await store.close()
            yield replace(place, address=address, facts={**place.facts, **_facts("psycopg")})

    async def connect(self, address: Address, pool: PoolSettings) -> Store:
        return await self._connected(address, pool)

    async def _connected(self, address: Address, pool: PoolSettings, is_new: bool = False) -> Store:
        datastore = await asyncio.to_thread(
            _datastore, address, pool, self._has_functions, f"-c synchronous_commit={self._synchronous_commit}"
        )
        return await asyncio.to_thread(_opened, datastore, pool, is_new)


def _opened(datastore: Any, pool: PoolSettings, is_new: bool) -> Recorders:
    import psycopg
    from eventsourcing.persistence import PersistenceError
    from eventsourcing.postgres import PostgresApplicationRecorder, PostgresTrackingRecorder

    try:
        datastore.pool.open(wait=True, timeout=pool.connect_timeout_s)
        recorders = PostgresApplicationRecorder(datastore), PostgresTrackingRecorder(datastore)
        return _made(*recorders, pool, datastore.close, is_new)
    except (psycopg.Error, PersistenceError) as error:
        datastore.close()
        raise StoreUnreachable(f"eventsourcing has no connection to PostgreSQL: {first_line(error)}") from None


def _datastore(address: Address, pool: PoolSettings, has_functions: bool, options: str) -> Any:
    """Their datastore, whose connections go where ours would. It has no parameters for some of that: they are given to its
    pool before that opens the first."""
    import psycopg
    from eventsourcing.postgres import PostgresDatastore
    from psycopg.conninfo import conninfo_to_dict

    try:
        target: dict[str, Any] = dict(conninfo_to_dict(address.dsn))
    except psycopg.ProgrammingError:  # its message has parts of the DSN
        raise StoreUnreachable("psycopg cannot read the DSN") from None

    class Datastore(PostgresDatastore):  # type: ignore[misc]
        def after_connect_func(self) -> Callable[[Any], None]:
            return _sending_whole(super().after_connect_func())

    datastore = Datastore(
        **{name: target.pop(name, None) for name in ("dbname", "host", "port", "user", "password")},
        connect_timeout=pool.connect_timeout_s,
        pool_size=pool.min_connections,
        max_overflow=pool.max_connections - pool.min_connections,
        conn_max_age=pool.max_lifetime_s,
        schema=address.schema,
        originator_id_type="text",
        enable_db_functions=has_functions,
    )
    timeout = f"-c statement_timeout={int(pool.command_timeout_s * 1000)}"
    target.setdefault("tcp_user_timeout", int(pool.command_timeout_s * 1000))  # or a thread waits for a lost host
    target["options"] = " ".join([target.get("options") or "", timeout, options]).strip()
    datastore.pool.kwargs |= target | {"application_name": pool.application_name}
    datastore.pool.max_idle = pool.idle_timeout_s
    return datastore


def _sending_whole(configure: Callable[[Any], None]) -> Callable[[Any], None]:
    """`configure`, then blocking mode: in a pipeline psycopg flushes once and waits for the answer, for ever if an append
    was larger than the socket's buffer (psycopg 3.3.9 on a Unix socket: from 1 MB on). Each connection has a thread of its
    own, and in blocking mode libpq sends everything before it returns."""

    def configured(connection: Any) -> None:
        configure(connection)
        connection.pgconn.nonblocking = 0

    return configured


def _made(application: Any, tracking: Any, pool: PoolSettings, end: Callable[[], None], is_new: bool) -> Recorders:
    """The store over both recorders; `is_new`: their tables are to be made."""
    if is_new:
        application.create_table()
        tracking.create_table()
    return Recorders(
        application, tracking, Threads(pool.max_connections, pool.acquire_timeout_s, pool.command_timeout_s), end
    )


def _facts(*more: str) -> dict[str, str]:
    return {f"{name}.version": version(name) for name in ("eventsourcing", *more)}


def _check_psycopg() -> None:
    """UsageError where psycopg is missing, or finds no libpq to work with."""
    try:
        import psycopg_pool  # noqa: F401
    except ImportError as error:
        raise UsageError(
            f"store eventsourcing cannot use psycopg ({first_line(error)}): pip install 'eventcore_lab[eventsourcing]'"
        ) from None
