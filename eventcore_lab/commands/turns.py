"""Whose turn it is on each stream: a line per stream somebody waits for, gone when the last has left.

Whoever comes enters all the lines he needs in one turn of the loop, so everybody stands in the same order in every line,
and no order of locking could make two wait for each other. In a line those who only read go together; who writes goes
alone. Nobody overtakes on a stream he shares.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Collection

from eventcore_lab.events import StreamId


class Ticket:
    """A place in every line it entered. `missing`: in how many of them it is not yet its turn."""

    __slots__ = ("missing", "ready", "shared", "streams")

    def __init__(self, streams: Collection[StreamId], shared: Collection[StreamId]) -> None:
        self.streams, self.shared = tuple(streams), frozenset(shared)
        self.missing = 0
        self.ready: asyncio.Future[None] | None = None


class _Line:
    """Those who stand for one stream. `granted` of them, from the front, have their turn."""

    __slots__ = ("granted", "tickets")

    def __init__(self) -> None:
        self.tickets: deque[Ticket] = deque()
        self.granted = 0


class Turns:
    """`len` is the number of streams with a line."""

    def __init__(self) -> None:
        self._lines: dict[StreamId, _Line] = {}

    def __len__(self) -> int:
        return len(self._lines)

    def enter(self, streams: Collection[StreamId], shared: Collection[StreamId] = ()) -> Ticket:
        """A place in the lines of all `streams`; those in `shared` are only read."""
        ticket = Ticket(streams, shared)
        for stream in ticket.streams:
            line = self._lines.get(stream)
            if line is None:
                line = self._lines[stream] = _Line()
            line.tickets.append(ticket)
            ticket.missing += 1
            self._grant(stream, line)
        return ticket

    async def mine(self, ticket: Ticket) -> None:
        """Wait until it is the ticket's turn in all its lines."""
        if ticket.missing:
            ticket.ready = asyncio.get_running_loop().create_future()
            await ticket.ready

    def leave(self, ticket: Ticket) -> None:
        """Give up all places, had or waited for; whose turn it is now is told."""
        for stream in ticket.streams:
            line = self._lines[stream]
            place = line.tickets.index(ticket)
            del line.tickets[place]
            line.granted -= place < line.granted
            if line.tickets:
                self._grant(stream, line)
            else:
                del self._lines[stream]

    def _grant(self, stream: StreamId, line: _Line) -> None:
        """Give their turn to those at the front who may have it now: one who writes, or all up to the first who does."""
        while line.granted < len(line.tickets):
            ticket = line.tickets[line.granted]
            is_sharing = stream in ticket.shared
            if line.granted and not (is_sharing and stream in line.tickets[0].shared):
                return
            line.granted += 1
            ticket.missing -= 1
            if not ticket.missing and ticket.ready is not None and not ticket.ready.done():
                ticket.ready.set_result(None)
