"""Up to which position a reader of a PostgreSQL store may go: the cures for late visibility, each as one way to know.

A position is drawn before its transaction commits, so a reader may see 7 while 6 is still on its way. Every `Horizon`
answers the same two questions: may this page be delivered as it is, and if not, up to where is everything settled?
"""

from __future__ import annotations

from typing import Protocol

from eventcore_lab.clock import now_ns
from eventcore_lab.events import Position
from eventcore_lab.stores.pool import Connection

_TOP = "SELECT coalesce(max(position), 0) FROM events"
_FIRST_HOLE = """SELECT coalesce(min(before), $2) FROM (
       SELECT position, lag(position, 1, $1) OVER (ORDER BY position) AS before
       FROM events WHERE position > $1 AND position <= $2) AS steps
   WHERE position <> before + 1"""


_RUNNING = """SELECT pg_snapshot_xmin(s)::text::bigint, pg_snapshot_xmax(s)::text::bigint
    FROM pg_current_snapshot() AS s"""


class Horizon(Protocol):
    """One per store object, shared by all its readers. `settled`: the highest position known to be settled."""

    settled: Position

    def covers(self, known: Position, after: Position, last: Position, count: int) -> bool:
        """Whether a page of `count` rows up to `last`, read behind `after`, may be delivered without asking further.
        `known` is what was `settled` *before* the page was asked for: what another reader has learned since then, this
        page may not have seen."""
        ...

    async def advance(self, connection: Connection) -> Position:
        """The settled position now: nothing can appear at or below it any more."""
        ...


class Open:
    """None at all: what is visible is delivered. Right where positions become visible in their order (a lock or a counter
    held until the commit), and loses events everywhere else."""

    settled: Position = 0

    def covers(self, known: Position, after: Position, last: Position, count: int) -> bool:
        return True

    async def advance(self, connection: Connection) -> Position:
        position: int = (await connection.fetch(_TOP))[0][0]
        return position


class Asked:
    """The server says it, in a function `settled()` of the schema: an oldest transaction, a barrier."""

    settled: Position = 0

    def covers(self, known: Position, after: Position, last: Position, count: int) -> bool:
        return False

    async def advance(self, connection: Connection) -> Position:
        position: int = (await connection.fetch("SELECT settled()"))[0][0]
        return position


class _Contiguous:
    """Where positions are contiguous they are settled, since all of them are seen."""

    _COUNT_AT_MOST = 10_000

    def __init__(self) -> None:
        self.settled: Position = 0

    def covers(self, known: Position, after: Position, last: Position, count: int) -> bool:
        if last - after == count:  # no hole in it
            if after <= self.settled:
                self.settled = max(self.settled, last)
            return True
        return last <= known

    async def _contiguous_to(self, connection: Connection, top: Position) -> Position:
        """The last position before the first hole above what is settled."""
        position: int = (await connection.fetch(_FIRST_HOLE, self.settled, top))[0][0]
        return position

    async def _run(self, connection: Connection) -> tuple[Position, bool]:
        """The highest position, and whether everything up to it is there."""
        top: int = (await connection.fetch(_TOP))[0][0]
        if top - self.settled > self._COUNT_AT_MOST:
            return top, False
        self.settled = max(self.settled, await self._contiguous_to(connection, top))
        return top, self.settled >= top


class Fence(_Contiguous):
    """At a hole, take a transaction id as a *fence* after having seen a row above the hole: every append takes its id
    before its first position, so whoever may still fill the hole is older than the fence, and once the oldest running
    transaction is not, a new look decides.

    The snapshot's own xmax is no fence: transactions with higher ids may be running already.
    """

    def __init__(self, fence: str = "pg_current_xact_id()") -> None:
        super().__init__()
        self._take = f"SELECT {fence}::text::bigint"
        self._fence: tuple[int, Position] | None = None
        self.waits = 0

    async def advance(self, connection: Connection) -> Position:
        """One round trip while there is no hole, up to four at a hole."""
        top, is_whole = await self._run(connection)
        if is_whole:
            self._fence = None
            return self.settled
        if self._fence is None:
            self._fence = ((await connection.fetch(self._take))[0][0], top)
        fence, fenced_top = self._fence
        oldest, newest = (await connection.fetch(_RUNNING))[0]
        if oldest >= fence:
            self.settled, self._fence = max(self.settled, fenced_top), None
        elif newest < fence:  # ids went back: the server crashed, and hands out again those that wrote nothing
            self._fence = None
        else:
            self.waits += 1
        return self.settled


class Patience(_Contiguous):
    """At a hole, wait for `gap_ns` and then take it for dead: what several event stores do, and a guess. A transaction
    that takes longer loses its events."""

    def __init__(self, gap_ns: int) -> None:
        super().__init__()
        self._gap_ns = gap_ns
        self._seen_ns: tuple[int, Position] | None = None

    async def advance(self, connection: Connection) -> Position:
        top, is_whole = await self._run(connection)
        if is_whole:
            self._seen_ns = None
        elif self._seen_ns is None:
            self._seen_ns = (now_ns(), top)
        elif now_ns() - self._seen_ns[0] > self._gap_ns:
            self.settled, self._seen_ns = max(self.settled, self._seen_ns[1]), None
        return self.settled
