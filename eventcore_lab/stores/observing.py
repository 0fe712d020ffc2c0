"""An Observer: looks at a PostgreSQL server and the event store on it, from beside, by one connection that cannot write.

Nothing it does is waited for by others for long: each statement is a transaction of its own, ended after 2 s, and gives up
after 100 ms behind somebody's lock. Nothing that goes wrong raises: it is told in one line, without the DSN, and a server
that has gone is tried again, at longer and longer intervals. What is asked for is in `observed_server` and `observed_events`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any

import asyncpg
from msgspec import Struct

from eventcore_lab.clock import NS_PER_S, now_ns
from eventcore_lab.stores.observed_events import OF_STREAMS, Events
from eventcore_lab.stores.observed_server import APPLICATION_NAME, Gauges, Server
from eventcore_lab.stores.pool import explained

CONNECT_TIMEOUT_S, LOOK_MAX_S = 2.0, 2.5
RETRY_FIRST_S, RETRY_MAX_S = 0.5, 5.0
COST_SHARE_MAX, PAUSE_MAX_S = 0.005, 60.0
"""Each thing that is asked for is left alone so long that asking takes at most this share of the time; but not longer than
5 s for what belongs to every second, and a minute for the rest."""

SETTINGS = {
    "application_name": APPLICATION_NAME,
    "default_transaction_read_only": "on",
    "statement_timeout": "2000",
    "lock_timeout": "100",
    "idle_in_transaction_session_timeout": "2000",
    "jit": "off",  # compiling what takes a millisecond takes a hundred
}
_HELLO = """SELECT current_setting('server_version') AS version, current_setting('transaction_read_only') AS is_read_only,
    pg_has_role('pg_read_all_stats', 'USAGE') AS sees_all"""

_SCHEMAS = """SELECT nspname::text AS name FROM pg_namespace
    WHERE nspname = $1 OR (nspname !~ '^pg_' AND nspname <> 'information_schema')
    ORDER BY nspname = $1 DESC, nspname = 'public' DESC, nspname LIMIT 100"""

HIDDEN = (
    "the connections of others are not shown to this role: no states, waits or ages of transactions "
    "(GRANT pg_monitor TO …)"
)

DIALECTS = ("postgres://", "postgresql://")


class Seen(Struct, frozen=True):
    """What one look came to: values by "source.name" (sources `server`, `store`, `lag`; units at the end of the names), those
    that were due to be asked for; what is told once, as (name, detail); in one line why the server could not be looked at, ""
    if it could; how long the server was asked, ms."""

    gauges: Gauges
    notes: tuple[tuple[str, str], ...] = ()
    error: str = ""
    cost_ms: float = 0.0


class _Part:
    """One thing to ask for, not more often than every `every_s`, and less often if it is dear."""

    def __init__(self, what: str, every_s: float, ask: Callable[[Any], Awaitable[Gauges]]) -> None:
        self.what, self.ask, self.complaint = what, ask, ""
        self._every_s, self._due_ns = every_s, 0

    def is_due(self, at_ns: int) -> bool:
        return at_ns >= self._due_ns

    def took(self, began_ns: int, ended_ns: int) -> None:
        longest_s = RETRY_MAX_S if self._every_s <= 1 else PAUSE_MAX_S
        wanted_ns = (ended_ns - began_ns) / COST_SHARE_MAX
        # A look that comes a little early is as good as one that is a whole look late.
        self._due_ns = began_ns + int(max(0.9 * self._every_s * NS_PER_S, min(wanted_ns, longest_s * NS_PER_S)))

    def reset(self) -> None:
        self._due_ns = 0


class Observer:
    """Of the server behind `dsn`, and of the event store in `schema` ("": whichever is found). Use it in one loop, one look at
    a time, and close it."""

    def __init__(self, dsn: str, schema: str = "", kind: str = "", look_max_s: float = LOOK_MAX_S) -> None:
        self._dsn, self._look_max_s = dsn, look_max_s
        self._raw: Any = None
        self._server = Server()
        self._events = Events(self._server, schema, kind)
        self._is_cut = False
        self._retry_ns, self._retry_s = 0, RETRY_FIRST_S
        self._error = ""
        self._notes: list[tuple[str, str]] = []
        self._told: set[str] = set()
        self.version = ""
        """Of the server that was last reached, as in "18.4"."""
        self._parts = (
            _Part("connections and waits", 1.0, self._server.activity),
            _Part("the server's counters", 1.0, self._server.counters),
        )
        self._rest = (
            _Part("the size of the database", 60.0, self._server.size),
            *(_Part(*each) for each in self._events.parts()),
        )
        self._of_streams = [part for part in self._rest if part.what in OF_STREAMS]

    @property
    def described(self) -> str:
        """The server and the event store that are looked at, as far as known."""
        parts = [f"PostgreSQL {self.version}" if self.version else "", self._events.described]
        return " · ".join(part for part in parts if part)

    @property
    def pid(self) -> int | None:
        """Of the server's process that serves the connection; None while there is none."""
        return None if self._raw is None or self._raw.is_closed() else int(self._raw.get_server_pid())

    def make_due(self) -> None:
        """Whatever was asked for just now, the next look asks for it."""
        for part in (*self._parts, *self._rest):
            part.reset()

    async def look(self, events: bool = True, streams: bool = False) -> Seen:
        """Ask for what is due; within `look_max_s`. Without `events` only for what the server tells every second, and with
        `streams` how many of those there are."""
        parts = (*self._parts, *self._rest) if events else (*self._parts, *(self._of_streams if streams else ()))
        began_ns = now_ns()
        if began_ns < self._retry_ns:
            return Seen({}, error=self._error)
        gauges: Gauges = {}
        self._is_cut = False
        # Cut off, the connection raises: a wait that is cancelled would have the driver open another, to cancel what it asked.
        guard = asyncio.get_running_loop().call_later(self._look_max_s, self._cut)
        is_whole = False
        try:
            await self._asked(parts, gauges)
            self._error, self._retry_s, is_whole = "", RETRY_FIRST_S, True
        except Exception as error:
            self._note_lost(error)
        finally:
            guard.cancel()
            if not is_whole:
                self._terminate()
        notes, self._notes = tuple(self._notes), []
        return Seen(gauges, notes, self._error, (now_ns() - began_ns) / 1e6)

    async def schemas(self, schema: str) -> list[str]:
        """The names of the schemas in the database but for the server's own, this one first if it is there, at most a hundred;
        none if the server does not tell."""
        if self._raw is None or self._raw.is_closed():
            return []
        guard = asyncio.get_running_loop().call_later(self._look_max_s, self._cut)
        try:
            return [row["name"] for row in await self._raw.fetch(_SCHEMAS, schema)]
        except Exception:
            return []
        finally:
            guard.cancel()

    async def _asked(self, parts: Sequence[_Part], gauges: Gauges) -> None:
        if self._raw is None or self._raw.is_closed():
            await self._connect()
        for part in parts:
            if part.is_due(began_ns := now_ns()):
                try:
                    gauges.update(await part.ask(self._raw))
                    part.complaint = ""
                except asyncpg.PostgresError as error:
                    if self._raw.is_closed() or _is_end(error):
                        raise
                    self._note_part(part, error)
                part.took(began_ns, now_ns())
        for name, detail in self._events.notes():
            self._note_once(name, detail)

    async def _connect(self) -> None:
        self._terminate()
        raw = await asyncpg.connect(
            self._dsn, timeout=min(CONNECT_TIMEOUT_S, self._look_max_s), server_settings=SETTINGS
        )
        self._raw = raw
        hello = await raw.fetchrow(_HELLO)
        if hello["is_read_only"] != "on":
            raise _CanWrite
        self.version = hello["version"].partition(" ")[0]
        if not hello["sees_all"]:
            self._note_once("observed in part", HIDDEN)
        await self._server.learn(raw)
        self.make_due()

    def _cut(self) -> None:
        self._is_cut = True
        if self._raw is not None:
            self._raw.terminate()

    def _terminate(self) -> None:
        raw, self._raw = self._raw, None
        if raw is not None:
            raw.terminate()

    def _note_lost(self, error: Exception) -> None:
        if self._is_cut:
            self._error = f"the server did not answer within {self._look_max_s:g} s"
        elif isinstance(error, _CanWrite):
            self._error = (
                "the server does not keep the connection read-only: nothing is asked (is a pooler in between?)"
            )
        elif self._raw is None:
            self._error = explained(error)
        else:
            self._error = f"the connection was lost: {(str(error) or type(error).__name__).partition(chr(10))[0]}"
        self._retry_ns = now_ns() + int(self._retry_s * NS_PER_S)
        self._retry_s = min(2 * self._retry_s, RETRY_MAX_S)

    def _note_part(self, part: _Part, error: asyncpg.PostgresError) -> None:
        """Once, until it could be asked again."""
        if isinstance(error, asyncpg.LockNotAvailableError):
            why = "somebody holds a lock on a table (not waited for)"
        elif isinstance(error, asyncpg.QueryCanceledError):
            why = "no answer within 2 s"
        else:
            why = (str(error) or type(error).__name__).partition("\n")[0]
        if isinstance(
            error, asyncpg.UndefinedTableError | asyncpg.UndefinedColumnError | asyncpg.InvalidSchemaNameError
        ):
            self._events.forget()
        if part.complaint != why:
            part.complaint = why
            self._notes.append(("could not be looked at", f"{part.what}: {why}"))

    def _note_once(self, name: str, detail: str) -> None:
        if (key := f"{name}\n{detail}") not in self._told and len(self._told) < 100:
            self._told.add(key)
            self._notes.append((name, detail))

    async def crashes(self) -> int:
        """How often the server has crashed since it was first reached, as far as it could be seen: one that crashed again
        before it was reached in between has crashed once. Asked anew; with no answer what was known."""
        if self.version:
            with suppress(Exception):
                await self._connect()
            await self.close()
        return self._server.crashes

    async def close(self) -> None:
        """End the connection, politely within a second."""
        raw, self._raw = self._raw, None
        if raw is not None:
            try:
                await raw.close(timeout=1)
            except Exception:  # the server may be gone, and closing is all that is wanted
                raw.terminate()


class _CanWrite(Exception):
    """A connection that is not read-only, whatever was asked for."""


def _is_end(error: asyncpg.PostgresError) -> bool:
    """Whether it ends the connection, not only the statement."""
    is_ending = isinstance(error, asyncpg.PostgresConnectionError | asyncpg.OperatorInterventionError)
    return is_ending and not isinstance(error, asyncpg.QueryCanceledError)
