"""A small connection pool over asyncpg: connections are kept with their prepared statements and handed out as they are.

asyncpg's own pool resets a connection with a round trip each time it comes back, which halves the rate of one-statement
appends. Here nothing is reset: every user of this pool sends single statements in autocommit, or ends the transaction
it began, which leave nothing behind, and a connection whose statement was cut off is closed, not reused.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping
from typing import Any

import asyncpg

from eventcore_lab.clock import NS_PER_S, now_ns
from eventcore_lab.events import StoreUnreachable
from eventcore_lab.schema import current_attempt
from eventcore_lab.stores.protocol import PoolSettings


class Connection:
    """An asyncpg connection and the statements prepared on it."""

    __slots__ = ("_statements", "busy_since_ns", "expires_ns", "idle_since_ns", "is_new", "is_overdue", "raw")

    def __init__(self, raw: Any, life_ns: int) -> None:
        self.raw = raw
        self.idle_since_ns = self.busy_since_ns = now_ns()
        self.expires_ns = self.idle_since_ns + life_ns
        self.is_new, self.is_overdue = True, False
        self._statements: dict[str, Any] = {}

    async def fetch(self, sql: str, *arguments: Any) -> list[Any]:
        """The rows of one statement, prepared on first use."""
        statement = self._statements.get(sql)
        if statement is None:
            # Under a name: without asyncpg's own cache it would have none, and every other statement would make the server
            # parse this one again.
            name = f"statement_{len(self._statements)}"
            statement = self._statements[sql] = await self.raw.prepare(sql, name=name)
        rows: list[Any] = await statement.fetch(*arguments)
        return rows

    async def answers(self) -> bool:
        """Whether the server is still there behind it: a round trip with next to nothing to do."""
        try:
            await self.fetch("SELECT 1")  # asyncpg cannot take the answer to an empty query
        except (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError):
            return False
        return True


class Pool:
    """At most `settings.max_connections` connections to `dsn`; the most recently used is handed out first, waiters are
    served in the order they came.

    A statement that takes longer than `command_timeout_s` has its connection ended. One timer looks after all of them:
    a timer for each statement would cost a tenth of the client's work for an append. `statements_kept`: how many statements
    asyncpg itself keeps prepared, of those that do not go through `Connection.fetch`.
    """

    def __init__(
        self,
        dsn: str,
        schema: str,
        settings: PoolSettings,
        server_settings: Mapping[str, str] | None = None,
        statements_kept: int = 0,
    ) -> None:
        self._dsn, self._settings, self._statements_kept = dsn, settings, statements_kept
        self._server_settings = {
            "application_name": settings.application_name,
            # Checks behind a lock rely on it, and a database may have another default.
            "default_transaction_isolation": "read committed",
            **(server_settings or {}),
        }
        if schema:
            self._server_settings["search_path"] = schema
        self._idle: list[Connection] = []
        self._busy: set[Connection] = set()
        self._waiters: deque[asyncio.Future[Connection | None]] = deque()
        self._open = 0
        self._is_closed = False
        self._watch: asyncio.TimerHandle | None = None

    async def warm(self) -> None:
        """Open `min_connections` now."""
        opened: list[Connection] = []
        try:
            while len(opened) < self._settings.min_connections:
                opened.append(await self.acquire())
        finally:
            for connection in opened:
                self.release(connection)

    @property
    def command_timeout_s(self) -> float:
        return self._settings.command_timeout_s

    @property
    def in_use(self) -> int:
        """How many connections somebody has."""
        return len(self._busy)

    @property
    def waiting(self) -> int:
        """How many wait for one."""
        return len(self._waiters)

    async def acquire(self) -> Connection:
        """A connection of one's own until `release`. Raises StoreUnreachable when none can be had in time, or any more."""
        if self._is_closed:
            raise _closed()
        while True:
            connection = self._take_idle()
            if connection is None:
                if self._open < self._settings.max_connections:
                    self._open += 1
                    connection = await self._connect()
                else:
                    connection = await self._wait()
            if connection.is_new or not self._settings.test_before_acquire or await self._is_alive(connection):
                self._hand_out(connection)
                return connection

    def take(self) -> Connection | None:
        """A connection of one's own if one is idle now and need not be tested."""
        connection = None if self._settings.test_before_acquire else self._take_idle()
        if connection is not None:
            self._hand_out(connection)
        return connection

    async def _is_alive(self, connection: Connection) -> bool:
        """Whether it answers; one that does not is ended."""
        self._lend(connection)
        is_alive = False
        try:
            is_alive = await connection.answers()
        finally:
            if not is_alive:
                self.release(connection, is_usable=False)
        return is_alive

    def _lend(self, connection: Connection) -> None:
        """From now on it is looked after until it is released."""
        connection.busy_since_ns = now_ns()
        self._busy.add(connection)
        if self._watch is None:
            self._watch_soon()

    def _hand_out(self, connection: Connection) -> None:
        self._lend(connection)
        taken_ns = connection.busy_since_ns
        attempt = current_attempt.get()
        if attempt is not None and not attempt.acquired_ns:
            attempt.acquired_ns = taken_ns

    def _watch_soon(self) -> None:
        interval_s = min(1.0, self._settings.command_timeout_s / 10)
        self._watch = asyncio.get_running_loop().call_later(interval_s, self._end_overdue)

    def _end_overdue(self) -> None:
        """End the connections whose statement takes too long; whoever waits for its answer gets a connection error."""
        latest_ns = now_ns() - int(self._settings.command_timeout_s * NS_PER_S)
        for connection in self._busy:
            if connection.busy_since_ns < latest_ns:
                connection.is_overdue = True
                connection.raw.terminate()
        self._watch = None
        if self._busy:
            self._watch_soon()

    def release(self, connection: Connection, is_usable: bool = True) -> None:
        """Give it back. Not usable (cut off, closed by the server): it is ended, and a waiter may open a new one."""
        self._busy.discard(connection)
        connection.idle_since_ns = released_ns = now_ns()
        connection.is_new = False
        if not is_usable or connection.raw.is_closed() or released_ns > connection.expires_ns or self._is_closed:
            connection.raw.terminate()
            self._free_place()
        elif not self._waiters or not self._hand_over(connection):
            self._idle.append(connection)
            self._retire_idle()

    def _take_idle(self) -> Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if not connection.raw.is_closed():
                return connection
            self._open -= 1
        return None

    async def _connect(self) -> Connection:
        """A new connection in the place already counted in `_open`; the place is free again when there is none."""
        try:
            return await self.connect()
        except BaseException:
            self._free_place()
            raise

    async def connect(self) -> Connection:
        """A connection like those of the pool, but outside it and not counted: whoever asks for it closes it."""
        try:
            return Connection(
                await asyncpg.connect(
                    self._dsn,
                    timeout=self._settings.connect_timeout_s,
                    statement_cache_size=self._statements_kept,
                    server_settings=self._server_settings,
                ),
                int(self._settings.max_lifetime_s * NS_PER_S),
            )
        except Exception as error:
            raise StoreUnreachable(explained(error)) from None

    async def _wait(self) -> Connection:
        waiter: asyncio.Future[Connection | None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            async with asyncio.timeout(self._settings.acquire_timeout_s):
                connection = await waiter
        except BaseException as error:
            self._give_up(waiter)
            if isinstance(error, TimeoutError):
                raise StoreUnreachable(
                    f"no connection became free within {self._settings.acquire_timeout_s:g} s (all "
                    f"{self._settings.max_connections} are in use; raise max_connections or lower the load)"
                ) from None
            raise
        return connection if connection is not None else await self._connect()

    def _give_up(self, waiter: asyncio.Future[Connection | None]) -> None:
        """Handed something and cancelled in the same moment: what was handed must not be lost."""
        if waiter in self._waiters:
            self._waiters.remove(waiter)
        if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
            handed = waiter.result()
            if handed is None:
                self._free_place()
            else:
                self.release(handed)

    def _hand_over(self, connection: Connection | None) -> bool:
        """Give a connection, or with None the place for one, to whoever has waited longest."""
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(connection)
                return True
        return False

    def _free_place(self) -> None:
        """A connection is gone: its place stays counted if somebody who waits takes it over, so that nobody who comes
        between makes one more than the maximum."""
        if not self._hand_over(None):
            self._open -= 1

    def _retire_idle(self) -> None:
        """End the connection that has been idle longest, if that is too long and more than the minimum are open."""
        if self._open <= self._settings.min_connections:
            return
        oldest = self._idle[0]
        if now_ns() - oldest.idle_since_ns > int(self._settings.idle_timeout_s * NS_PER_S):
            self._idle.pop(0).raw.terminate()
            self._open -= 1

    async def close(self) -> None:
        """End idle connections politely, within 5 s; the others end when they are given back."""
        self._is_closed = True
        if self._watch is not None and not self._busy:
            self._watch.cancel()
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_exception(_closed())
        idle, self._idle = self._idle, []
        self._open -= len(idle)
        for connection in idle:
            try:
                await connection.raw.close(timeout=5)
            except Exception:  # the server may be gone, and closing is all that is wanted
                connection.raw.terminate()


def _closed() -> StoreUnreachable:
    return StoreUnreachable("the store is closed; nothing was sent")


def explained(error: Exception) -> str:
    """Why a connection failed, in one line that holds no password."""
    if isinstance(error, asyncpg.InvalidPasswordError | asyncpg.InvalidAuthorizationSpecificationError):
        return f"PostgreSQL refused the user or password: {_first_line(error)}"
    if isinstance(error, asyncpg.InvalidCatalogNameError):
        return f"PostgreSQL has no such database: {_first_line(error)}"
    if isinstance(error, TimeoutError):
        return "PostgreSQL did not answer in time (is the host right, and does a firewall drop the packets?)"
    if isinstance(error, ValueError | asyncpg.ClientConfigurationError):
        return "the DSN cannot be read (expected postgresql://user:password@host:port/database)"
    if isinstance(error, OSError):
        return (
            f"no PostgreSQL server answers: {error.strerror or _first_line(error)} (is it running, and the port right?)"
        )
    return f"PostgreSQL refused the connection: {_first_line(error)}"


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).partition("\n")[0]
