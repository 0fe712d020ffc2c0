"""Reading on and on: a store's events one after the other, with one page of them in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import TypeVar

import msgspec
from msgspec import Struct

from eventcore_lab.clock import sleep_s
from eventcore_lab.events import EVERYTHING, EventRejected, Filter, Position, StoredEvent, StoreError, StreamId
from eventcore_lab.stores.protocol import Store

T = TypeVar("T")


async def stream_all(
    store: Store, after: Position = 0, page: int = 1000, where: Filter = EVERYTHING
) -> AsyncIterator[StoredEvent]:
    """Everything behind `after` in position order, `page` events in memory at a time. Raises StoreError when a page ends
    where it began, which would be read for ever."""
    while events := await store.read_all(after, page, where):
        for event in events:
            yield event
        after = _advanced(after, events)


async def stream_events(
    store: Store, stream: StreamId, from_version: int = 1, page: int = 1000
) -> AsyncIterator[StoredEvent]:
    """One stream from `from_version` on, `page` events in memory at a time."""
    while True:
        events = (await store.read_stream(stream, from_version, page)).events
        for event in events:
            yield event
        if len(events) < page:
            return
        from_version = events[-1].version + 1


class Polling(Struct, frozen=True, kw_only=True):
    """How long a follower waits before it asks again when there was nothing: `first_s`, doubling up to `longest_s`."""

    first_s: float = 0.002
    longest_s: float = 0.050


async def follow(
    store: Store,
    after: Position = 0,
    page: int = 1000,
    where: Filter = EVERYTHING,
    polling: Polling = Polling(),  # noqa: B008 (frozen)
) -> AsyncIterator[list[StoredEvent]]:
    """What is behind `after`, then what is appended from now on, for ever: in position order, a page (at least one event)
    at a time. The last event's position is what to save as checkpoint.

    Asking is the truth; nothing that a lost or late notification could do makes an event go missing.
    """
    wait_s = polling.first_s
    while True:
        # Taken before the page: what the page does not have, up to here, is not wanted, and need not be looked at twice.
        top = after if where == EVERYTHING else await store.last_position()
        events = await store.read_all(after, page, where)
        if events:
            after, wait_s = _advanced(after, events), polling.first_s
            yield events
        if len(events) < page:
            after = max(after, top)
        if not events:
            await sleep_s(wait_s)
            wait_s = min(2 * wait_s, polling.longest_s)


def _advanced(after: Position, events: list[StoredEvent]) -> Position:
    last = events[-1].position
    if last <= after:
        raise StoreError(f"read_all gave position {last} as the last behind {after}")
    return last


def decoded(event: StoredEvent, kinds: Mapping[str, type[T]]) -> T:
    """What the event says as the type that `kinds` has for its type. EventRejected when there is none, or it says
    something else: an event nobody understands must not be passed over."""
    kind = kinds.get(event.type)
    if kind is None:
        expected = ", ".join(sorted(kinds))
        raise EventRejected(f"{event.stream!r} version {event.version} is of type {event.type!r} (expected {expected})")
    try:
        return msgspec.json.decode(event.data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise EventRejected(f"{event.stream!r} version {event.version}, {event.type!r}: {error}") from None
