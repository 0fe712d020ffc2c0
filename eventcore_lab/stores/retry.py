"""What became of an append that got no answer, and how to try it again without doing it twice."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from eventcore_lab.clock import sleep_s
from eventcore_lab.events import (
    AppendResult,
    EventRejected,
    OutcomeUnknown,
    Position,
    StoreError,
    StreamWrite,
    VersionConflict,
)
from eventcore_lab.stores.protocol import Store
from eventcore_lab.stores.reading import stream_events

TRIES_MAX = 5
PINS_MAX = 100
"""How often somebody else may get before an append with ANY, in all its tries together."""
FIRST_WAIT_S = 0.01


async def find(store: Store, writes: Sequence[StreamWrite]) -> AppendResult | None:
    """The result of an append that is in the store, recognised by its event ids; None if it is not there *now*.

    One round trip where a version was expected: the events can only be behind it. With ANY the stream is read through.
    """
    written = [write for write in writes if write.events]
    if not written:
        return None
    first = next((write for write in written if write.expected >= 0), written[0])
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

    A lost attempt may still be under way while we look, and while the next one runs. So no two attempts may both be able
    to succeed: at least one stream that gets events is expected at an exact version. Where the caller says ANY
    everywhere, the first such stream is read before, and expected where it was; should somebody else move it meanwhile,
    that is no conflict of the caller's, and it is read again.

    Raises VersionConflict for a conflict that is not our own doing, StoreError when others get before us PINS_MAX times.
    Once an outcome was unknown, whatever else goes wrong raises OutcomeUnknown; but for EventRejected, since what the store
    cannot hold it did not hold the first time either.
    """
    lost: list[Sequence[StreamWrite]] = []
    pin = _to_pin(writes)
    # Under ANY the events are also looked for wherever they are: the caller may have tried before asking us.
    tried_before = [] if pin is None else [writes]
    for _ in range(tries_max if pin is None else tries_max + PINS_MAX):
        try:
            attempt = writes if pin is None else await _pinned(store, writes, pin)
            try:
                return await store.append(attempt)
            except OutcomeUnknown:
                lost.append(attempt)
                if len(lost) >= tries_max:
                    raise
                await sleep_s(FIRST_WAIT_S * 2 ** len(lost))
            except VersionConflict as conflict:
                if pin is None or conflict.stream != writes[pin].stream:
                    return await _found(store, lost) or _raised(conflict)
            if lost and (found := await _found(store, [*lost, *tried_before])) is not None:
                return found
        except StoreError as error:
            if not lost or isinstance(error, VersionConflict | OutcomeUnknown | EventRejected):
                raise
            raise OutcomeUnknown(
                f"an append may or may not have happened, and cannot be looked for: {error}"
            ) from error
    kind = OutcomeUnknown if lost else StoreError
    raise kind(f"not settled in all tries: others append to {writes[pin or 0].stream!r} all the time")


async def _found(store: Store, lost: Sequence[Sequence[StreamWrite]]) -> AppendResult | None:
    for attempt in lost:
        if (found := await find(store, attempt)) is not None:
            return found
    return None


def _raised(error: Exception) -> AppendResult:
    raise error


def _to_pin(writes: Sequence[StreamWrite]) -> int | None:
    """Which write must be given an exact expectation; None when one that has events has it already, or none has events."""
    written = [n for n, write in enumerate(writes) if write.events]
    return None if not written or any(writes[n].expected >= 0 for n in written) else written[0]


async def _pinned(store: Store, writes: Sequence[StreamWrite], pin: int) -> Sequence[StreamWrite]:
    head = (await store.read_stream(writes[pin].stream, 1, 0)).version
    return [msgspec.structs.replace(w, expected=head) if n == pin else w for n, w in enumerate(writes)]
