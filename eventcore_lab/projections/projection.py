"""What a projection is: how a store's events, one after the other, change a state in place.

Where the state is kept and how it survives a crash is not said here: `memory` and `table` say it. `Pages` reads for both.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

from msgspec import Struct

from eventcore_lab.clock import sleep_s
from eventcore_lab.events import Filter, Position, StoredEvent, StoreError
from eventcore_lab.stores.protocol import Store
from eventcore_lab.stores.reading import decoded

S = TypeVar("S")


class Projection(Generic[S]):
    """Events of the types in `kinds` change a state of kind `S`; events of other types are none of its business.

    `initial()` makes the state of no events; `change(state, event, said)` changes it in place, where `said` is the event's
    data as `kinds` has it. In place, for a copy per event makes a rebuild quadratic. `kind` is what msgspec needs to read
    a state back from JSON.
    """

    def __init__(
        self,
        name: str,
        kinds: Mapping[str, type[Any]],
        initial: Callable[[], S],
        change: Callable[[S, StoredEvent, Any], None],
        kind: Any,
    ) -> None:
        self.name, self.initial, self.kind = name, initial, kind
        self._change = change
        self._kinds = dict(kinds)

    @property
    def wanted(self) -> Filter:
        """The events it is about."""
        return Filter(types=tuple(self._kinds))

    def said(self, event: StoredEvent) -> Any:
        """What the event says; None for one of a type that is not wanted. EventRejected for one that says something else
        than its type promises: passing it over would make the state wrong for ever."""
        return decoded(event, self._kinds) if event.type in self._kinds else None

    def apply(self, state: S, event: StoredEvent) -> bool:
        """Change `state` by one event; whether it was wanted. Raises EventRejected, naming stream and version, and changes
        nothing."""
        said = self.said(event)
        if said is None:
            return False
        self._change(state, event, said)
        return True


class Page(Struct, frozen=True):
    """Events in position order, up to `position`; `is_full`: there may be more at once."""

    events: list[StoredEvent]
    position: Position
    is_full: bool


class Pages:
    """A store's events, page by page: while one is worked on, the server prepares the next, and no more than that.

    All events, wanted or not: a PostgreSQL that has no statistics yet of a table that grows reads filtered pages at a
    thirtieth of the rate (20,000 events a second instead of 600,000).
    """

    def __init__(self, store: Store, page: int) -> None:
        if page < 1:
            raise ValueError(f"page must be at least 1, not {page}")
        self._store, self._page = store, page
        self._ahead: tuple[Position, asyncio.Task[Page]] | None = None

    async def behind(self, after: Position) -> Page:
        """The page behind `after`. Raises StoreError as the store does, and when a page ends where it began."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead[0] == after:
            found = await ahead[1]
        else:
            await _dropped(ahead)
            found = await self._read(after)
        if found.is_full:
            self._ahead = (found.position, asyncio.ensure_future(self._read(found.position)))
            await sleep_s(0)  # so that the question is out before somebody works on this page
        return found

    async def _read(self, after: Position) -> Page:
        events = await self._store.read_all(after, self._page)
        last = events[-1].position if events else after
        if events and last <= after:
            raise StoreError(f"read_all gave position {last} as the last behind {after}")
        return Page(events, last, is_full=len(events) >= self._page)

    async def close(self) -> None:
        """Forget the page that was asked for beforehand."""
        ahead, self._ahead = self._ahead, None
        await _dropped(ahead)


async def _dropped(ahead: tuple[Position, asyncio.Task[Page]] | None) -> None:
    if ahead is not None:
        ahead[1].cancel()
        await asyncio.gather(ahead[1], return_exceptions=True)
