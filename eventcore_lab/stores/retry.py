"""What became of an append that got no answer, and how to try it again without doing it twice."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from eventcore_lab.events import (
    AppendResult,
    OutcomeUnknown,
    Position,
    StoreError,
    StreamWrite,
    VersionConflict,
)
from eventcore_lab.stores.protocol import Store
from eventcore_lab.stores.reading import stream_events

TRIES_MAX = 5


async def find(store: Store, writes: Sequence[StreamWrite]) -> AppendResult | None:
    """The result of an append that is in the store, recognised by its event ids; None if it is not there *now*.

    One round trip where a version was expected: the events can only be behind it. With ANY the stream is read through.
    """
    written = [write for write in writes if write.events]
    if not written:
        return None
    first = written[0]
    position, found = await _place(store, first)
    if not found:
        return None
    versions, last = [], position
    for write in writes:
        if write is first:
            versions.append(found)
            continue
        position, version = await _place(store, write) if write.events else (0, await _seen(store, write))
        if not version and write.events:
            raise StoreError(f"a torn append: {first.stream!r} has its part of it, {write.stream!r} does not")
        versions.append(version)
        last = max(last, position)
    return AppendResult(tuple(versions), last)


async def _place(store: Store, write: StreamWrite) -> tuple[Position, int]:
    """Position and version of the write's last event, (0, 0) if its events are not there."""
    ids = [event.id for event in write.events]
    if write.expected >= 0:
        there = (await store.read_stream(write.stream, write.expected + 1, len(ids))).events
        is_ours = [event.id for event in there] == ids
        return (there[-1].position, there[-1].version) if is_ours else (0, 0)
    async for event in stream_events(store, write.stream):
        if event.id == ids[-1]:
            return event.position, event.version
    return 0, 0


async def _seen(store: Store, write: StreamWrite) -> int:
    """The version of a stream that was only read: what was expected, which held; with ANY, what it is now."""
    return write.expected if write.expected >= 0 else (await store.read_stream(write.stream, 1, 0)).version


async def append_once(store: Store, writes: Sequence[StreamWrite], tries_max: int = TRIES_MAX) -> AppendResult:
    """Append, and after an unknown outcome look and try again, so that the events are stored at most once.

    The lost attempt may still be under way while we look. A second attempt therefore never says ANY: it expects the
    version seen *before* looking, so that of the two only one can be stored, and the other one conflicts.
    Raises VersionConflict for a conflict that is not our own doing, OutcomeUnknown when the tries are used up.
    """
    attempt, tries = writes, 0
    while True:
        tries += 1
        try:
            return await store.append(attempt)
        except OutcomeUnknown:
            if tries >= tries_max:
                raise
        except VersionConflict:
            if tries == 1 or tries >= tries_max:
                raise
        heads = [(await store.read_stream(write.stream, 1, 0)).version for write in writes]
        if (found := await find(store, writes)) is not None:
            return found
        attempt = [_pinned(write, head) for write, head in zip(writes, heads, strict=True)]


def _pinned(write: StreamWrite, head: int) -> StreamWrite:
    return write if write.expected >= 0 or not write.events else msgspec.structs.replace(write, expected=head)
