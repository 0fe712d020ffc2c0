"""Where a PostgreSQL store lives: the embedded server, one from the system's own binaries, or any server by DSN.

Each provisioned store is a schema of its own with a random name, dropped at the end: nothing else in a database is
read or touched, and two runs at once do not meet.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import asyncpg
import psutil

from eventcore_lab.events import StoreUnreachable
from eventcore_lab.spec import UsageError, unknown
from eventcore_lab.stores import embedded, eventcore
from eventcore_lab.stores.directories import IN_MEMORY
from eventcore_lab.stores.flavours import FLAVOURS, Flavour
from eventcore_lab.stores.pool import explained
from eventcore_lab.stores.protocol import Address, Place, PoolSettings, Store, stores
from eventcore_lab.stores.variants import Variant, variants

CONNECT_TIMEOUT_S = 5.0
_SYNCHRONOUS_COMMIT = ("on", "off", "local", "remote_write", "remote_apply")
_SERVERS = ("embedded", "system")
_HOLD_MS_MAX = 1000.0
# Left out of the recorded settings: they may hold secrets or paths of the machine.
_PRIVATE_SETTINGS = r"conninfo|command|passphrase|file|director|path|preload|krb|ldap|ssl_|cluster_name"


_Server = tuple[str, Callable[[], list[int]] | None, str]
"""A server's DSN, what gives the pids of its processes (None: find them), the filesystem of its data ("": not known)."""


@stores.register("postgres")
def _postgres(
    *,
    variant: str = "",
    server: str = "embedded",
    synchronous_commit: str = "on",
    hold_ms: float = 0.0,
    gap_ms: float = 100.0,
) -> PostgresDriver:
    """PostgreSQL: one call per append, durable, positions safe to follow (server: embedded or system)."""
    if server not in _SERVERS:
        raise unknown("server", server, _SERVERS)
    return PostgresDriver(lambda: _started(server), synchronous_commit, _variant(variant, gap_ms), hold_ms)


@stores.register("env")
def _env(
    *,
    variant: str = "",
    store: str = "",
    synchronous_commit: str = "on",
    hold_ms: float = 0.0,
    gap_ms: float = 100.0,
    schema: str = "",
    writes: bool = False,
) -> PostgresDriver | ExistingEventCore:
    """The same stores on the PostgreSQL server whose DSN the named environment variable holds: env:LAB_DSN.

    `store` is a variant of `postgres`: env:LAB_DSN,store=eventcore. With `schema` it is an EventCore database that is there
    already: nothing is made or removed, and nothing written unless `writes`.
    """
    if not variant:
        raise UsageError("store env: say which environment variable holds the DSN, as in env:LAB_DSN")
    if not os.environ.get(variant):
        raise UsageError(f"store env:{variant}: the environment variable {variant} is not set or empty")
    server: _Server = (os.environ[variant], None, "")
    driver = PostgresDriver(lambda: server, synchronous_commit, _variant(store, gap_ms), hold_ms)
    if not schema and not writes:
        return driver
    if store != "eventcore" or not schema or hold_ms:
        raise UsageError(
            f"store env:{variant}: schema and writes are about an EventCore database that is there already, as in "
            f"env:{variant},store=eventcore,schema=public (hold_ms would change its tables)"
        )
    return ExistingEventCore(driver, schema, writes)


def _variant(name: str, gap_ms: float) -> Variant | Flavour:
    known: dict[str, Variant | Flavour] = {**variants(gap_ms), **FLAVOURS}
    if name not in known:
        raise unknown("variant of postgres", name, [n for n in known if n])
    return known[name]


def _started(origin: str) -> _Server:
    server = embedded.shared_server("wheel" if origin == "embedded" else "system")
    return server.dsn, server.pids, server.filesystem


class PostgresDriver:
    """Provisions a schema on the server that `server()` gives. `hold_ms`: how long, at most, each append stays open before
    its commit, so that late visibility can be provoked."""

    is_shared = True

    def __init__(
        self, server: Callable[[], _Server], synchronous_commit: str, variant: Variant | Flavour, hold_ms: float = 0.0
    ) -> None:
        if synchronous_commit not in _SYNCHRONOUS_COMMIT:
            raise unknown("synchronous_commit", synchronous_commit, _SYNCHRONOUS_COMMIT)
        if not 0 <= hold_ms <= _HOLD_MS_MAX:
            raise ValueError(f"hold_ms must be 0 to {_HOLD_MS_MAX:g}, not {hold_ms:g}")
        self._server, self._synchronous_commit = server, synchronous_commit
        self._variant, self._hold_ms = variant, hold_ms
        self.lacks: Mapping[str, str] = variant.lacks
        self.has_tables = isinstance(variant, Variant)  # of our own, with a place for a read model's beside them

    @asynccontextmanager
    async def provision(self) -> AsyncIterator[Place]:
        server = await asyncio.to_thread(self._server)
        dsn, schema = server[0], f"eventcore_lab_{secrets.token_hex(6)}"
        await _reached(create(dsn, schema, self._variant.schema_sql(self._hold_ms), CONNECT_TIMEOUT_S))
        try:
            yield await self._place(server, schema)
        finally:
            await drop(dsn, schema, CONNECT_TIMEOUT_S)

    async def existing(self, schema: str) -> Place:
        """A place that is there already, `schema` written as in SQL. Nothing is made, and nothing must be undone."""
        return await self._place(await asyncio.to_thread(self._server), schema)

    async def _place(self, server: _Server, schema: str) -> Place:
        dsn, pids, filesystem = server
        facts, postmaster_pid = await _reached(_described(dsn))
        return Place(
            Address("postgres", dsn, schema),
            _durability({**facts, "synchronous_commit": self._synchronous_commit}, filesystem),
            f"PostgreSQL {facts['server_version']}",
            facts={f"postgres.{k}": v for k, v in facts.items()},
            server_pids=pids or _Family(postmaster_pid).pids,
        )

    async def connect(self, address: Address, pool: PoolSettings, **settings: str) -> Store:
        settings["synchronous_commit"] = self._synchronous_commit
        return await self._variant.connect(address.dsn, address.schema, pool, settings)


class ExistingEventCore:
    """An EventCore database that is there already, in `schema`: nothing is made or removed, and unless `writes` every
    connection is read-only, so that the server itself refuses what would change anything."""

    is_shared = True

    def __init__(self, driver: PostgresDriver, schema: str, writes: bool) -> None:
        self._driver, self._schema, self._writes = driver, schema, writes
        self.lacks = driver.lacks

    @asynccontextmanager
    async def provision(self) -> AsyncIterator[Place]:
        place = await self._driver.existing('"' + self._schema.replace('"', '""') + '"')
        events = await _reached(eventcore.events_in(place.address.dsn, self._schema, CONNECT_TIMEOUT_S))
        yield replace(
            place, is_new=False, takes_appends=self._writes, facts={**place.facts, "eventcore.events_at_start": events}
        )

    async def connect(self, address: Address, pool: PoolSettings) -> Store:
        read_only = {} if self._writes else {"default_transaction_read_only": "on"}
        return await self._driver.connect(address, pool, **read_only)


async def create(dsn: str, schema: str, schema_sql: str, timeout_s: float) -> None:
    """Make `schema` with its tables and functions."""
    connection = await asyncpg.connect(dsn, timeout=timeout_s)
    try:
        async with connection.transaction():
            await connection.execute(f'CREATE SCHEMA "{schema}"')
            await connection.execute(f'SET LOCAL search_path = "{schema}"')
            await connection.execute(schema_sql)
    finally:
        await connection.close()


async def drop(dsn: str, schema: str, timeout_s: float) -> None:
    """Remove `schema` and all in it; a server that is gone has nothing to remove."""
    try:
        connection = await asyncpg.connect(dsn, timeout=timeout_s)
    except (OSError, asyncpg.PostgresError, TimeoutError):
        return
    try:
        await connection.execute(f'DROP SCHEMA IF EXISTS "{schema}" CASCADE')
    finally:
        await connection.close()


async def _described(dsn: str) -> tuple[dict[str, str], int | None]:
    """The server's settings that differ from its defaults, and its main process."""
    connection = await asyncpg.connect(dsn, timeout=CONNECT_TIMEOUT_S)
    try:
        rows = await connection.fetch(
            f"""SELECT name, current_setting(name) AS value FROM pg_settings
                WHERE (source NOT IN ('default', 'override', 'client') AND name !~ '{_PRIVATE_SETTINGS}')
                   OR name IN ('server_version', 'fsync', 'full_page_writes', 'shared_buffers', 'max_connections',
                               'wal_sync_method')"""
        )
        backend_pid = await connection.fetchval("SELECT pg_backend_pid()")
        return {row["name"]: row["value"] for row in rows}, _postmaster_of(backend_pid)
    finally:
        await connection.close()


async def _reached(attempt: Any) -> Any:
    """The result of `attempt`, with every way not to reach a server as one clear StoreUnreachable."""
    try:
        return await attempt
    except asyncpg.InsufficientPrivilegeError as error:
        raise StoreUnreachable(f"the user may not create a schema: {error} (GRANT CREATE ON DATABASE … TO …)") from None
    except (OSError, TimeoutError, ValueError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise StoreUnreachable(explained(error)) from None


def _durability(settings: dict[str, str], filesystem: str) -> str:
    """The class first, then what it rests on. `durable`: acknowledged means flushed to the device."""
    if filesystem in IN_MEMORY:
        return f"not durable (the data is on {filesystem}, in memory)"
    names = ("fsync", "synchronous_commit", "full_page_writes")
    shown = ", ".join(f"{name}={settings[name]}" for name in names)
    if settings["fsync"] != "on" or settings["full_page_writes"] != "on":
        return f"not durable ({shown})"
    return f"{'flushed later' if settings['synchronous_commit'] == 'off' else 'durable'} ({shown})"


def _postmaster_of(backend_pid: int) -> int | None:
    """The server's main process if it runs on this machine, found from one of its backends while that is alive."""
    try:
        parent = psutil.Process(backend_pid).parent()
        return parent.pid if parent is not None and "postgres" in parent.name() else None
    except psutil.Error:
        return None


class _Family:
    """The processes of a server on this machine, by its main process; also after it has been started again."""

    def __init__(self, postmaster_pid: int | None) -> None:
        self._pid, self._folder = postmaster_pid, None
        with suppress(psutil.Error):
            self._folder = psutil.Process(postmaster_pid).cwd() if postmaster_pid else None  # the folder of its data

    def pids(self) -> list[int]:
        found = _with_children(self._pid)
        if not found and self._folder:
            with suppress(OSError, ValueError, IndexError):  # not running, or not for us to read
                self._pid = int((Path(self._folder) / "postmaster.pid").read_text().split()[0])
            found = _with_children(self._pid)
        return found


def _with_children(pid: int | None) -> list[int]:
    try:
        process = psutil.Process(pid) if pid else None
        if process is None or "postgres" not in process.name():
            return []
        return [process.pid, *(child.pid for child in process.children())]
    except psutil.Error:
        return []
