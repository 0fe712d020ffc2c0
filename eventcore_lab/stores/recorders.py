"""A store over the recorders of the package `eventsourcing`: what they offer is mapped, what they do not is refused.

Their words: an originator is a stream, an originator's version ours, a topic an event's type, a notification's id the
position. Everything else of an event is packed into its `state`. A recorder knows no expected version: two events of
one version cannot both be recorded, and that is the conflict. Whoever appends has read its stream before, so that the
version it expects is there; here this is remembered, and looked up where it is not known.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar
from uuid import UUID

import msgspec
from eventsourcing import persistence as theirs
from msgspec import Struct

from eventcore_lab.events import (
    EVERYTHING,
    AppendResult,
    EventRejected,
    Filter,
    NewEvent,
    OutcomeUnknown,
    Position,
    Snapshot,
    StoredEvent,
    StoreError,
    StoreUnreachable,
    StreamId,
    StreamSlice,
    StreamWrite,
    VersionConflict,
    check_distinct,
)
from eventcore_lab.stores.protocol import Lease, each_from, one_by_one
from eventcore_lab.stores.threads import Threads

T = TypeVar("T")

ANY_TRIES_MAX = 100
PAGE = 1000
KNOWN_MAX = 100_000


class _State(Struct, frozen=True, array_like=True, gc=False):
    """What their record has no column for."""

    id: UUID
    recorded_at_us: int
    data: bytes
    meta: bytes


_pack = msgspec.msgpack.Encoder(uuid_format="bytes").encode
_unpack = msgspec.msgpack.Decoder(_State).decode


class Recorders:
    """A Store over an application recorder (events) and a tracking recorder (checkpoints). Without `threads` the recorders
    are called where we are, which is right for those that only touch memory."""

    def __init__(
        self, application: Any, tracking: Any, threads: Threads | None, end: Callable[[], None] = lambda: None
    ) -> None:
        self._application, self._tracking, self._threads, self._end = application, tracking, threads, end
        self._known: dict[StreamId, int] = {}

    async def append(self, writes: Sequence[StreamWrite]) -> AppendResult:
        """As the protocol says, but a write without events is refused: only what is written is checked."""
        if len(writes) > 1:
            check_distinct(writes)
        for write in writes:
            if not write.events:
                raise StoreError(f"eventsourcing cannot expect a version of {write.stream!r} without writing to it")
        if not writes:
            return AppendResult(())
        try:
            position, heads = await self._run(self._append, writes)
        except TimeoutError:
            raise OutcomeUnknown("no answer to an append in time") from None
        return AppendResult(tuple([heads[w.stream] for w in writes]), position)

    def _append(self, writes: Sequence[StreamWrite]) -> tuple[Position, dict[StreamId, int]]:
        for _ in range(ANY_TRIES_MAX):
            bases = {w.stream: self._base(w) for w in writes}
            try:
                ids = self._application.insert_events(_recorded(writes, bases))
            except theirs.IntegrityError:
                self._explain(writes, bases)
                continue  # somebody else was first, and ANY goes behind
            except theirs.DataError as error:
                raise EventRejected(first_line(error)) from None
            except theirs.ConnectionUnavailableError as error:
                raise StoreUnreachable(first_line(error)) from None
            except (theirs.ProgrammingError, theirs.NotSupportedError) as error:
                raise StoreError(first_line(error)) from None
            except theirs.PersistenceError as error:
                raise OutcomeUnknown(f"no answer to an append: {first_line(error)}") from None
            heads = {w.stream: bases[w.stream] + len(w.events) for w in writes}
            self._note(heads)
            return ids[-1], heads
        raise StoreError(f"others were first {ANY_TRIES_MAX} times; nothing was written")

    def _base(self, write: StreamWrite) -> int:
        """The version that the events go behind. VersionConflict when it is expected but not there yet: their unique key
        finds what is too old, but lets what is too new leave a gap. What is there stays there, so a look is enough."""
        if write.expected < 0:
            return self._head(write.stream)[0]
        if write.expected > self._known.get(write.stream, 0):
            stream, expected = write.stream, write.expected
            if not self._read(self._application.select_events, stream, gt=expected - 1, lte=expected):
                raise VersionConflict(stream, expected, self._head(stream)[0])
            self._note({stream: expected})
        return write.expected

    def _explain(self, writes: Sequence[StreamWrite], bases: dict[StreamId, int]) -> None:
        """VersionConflict, or nothing if only ANY was in the way. Their recorders try again by themselves when a connection
        is lost, and may so meet their own first attempt: OutcomeUnknown, for then the event in the way is ours."""
        for write in writes:
            actual, last = self._head(write.stream)
            base = bases[write.stream]
            if actual == base:
                continue
            if actual > base + len(write.events) or last is None:
                [there] = self._read(self._application.select_events, write.stream, gt=base, lte=base + 1)
                is_ours = _unpack(there.state).id == write.events[0].id
            else:
                is_ours = actual > base and _unpack(last.state).id == write.events[actual - base - 1].id
            if is_ours:
                raise OutcomeUnknown("the append met its own events: the recorder had tried it before")
            if write.expected >= 0:
                raise VersionConflict(write.stream, write.expected, actual)

    def _head(self, stream: StreamId) -> tuple[int, Any]:
        """Version and record of the stream's last event, (0, None) if it has none."""
        rows = self._read(self._application.select_events, stream, desc=True, limit=1)
        if not rows:
            return 0, None
        self._note({stream: rows[0].originator_version})
        return rows[0].originator_version, rows[0]

    def _note(self, heads: dict[StreamId, int]) -> None:
        known = self._known
        if len(known) > KNOWN_MAX:
            known.clear()  # only a look-up the more
        for stream, version in heads.items():
            if version > known.get(stream, 0):
                known[stream] = version

    async def append_many(self, requests: Sequence[Sequence[StreamWrite]]) -> list[AppendResult | StoreError]:
        """One after the other: the recorders have no call for several appends."""
        return await one_by_one(self.append, requests)

    async def read_stream(self, stream: StreamId, from_version: int = 1, limit: int | None = None) -> StreamSlice:
        """As the protocol says; the events' position is 0, since select_events does not tell it."""
        return await self._asked(self._stream, stream, from_version, limit)

    def _stream(self, stream: StreamId, from_version: int, limit: int | None) -> StreamSlice:
        gt = from_version - 1 if from_version > 1 else None
        rows = self._application.select_events(stream, gt=gt, limit=limit) if limit != 0 else []
        events = tuple([_event(0, row) for row in rows])
        if events:
            self._note({stream: events[-1].version})
            if limit is None or len(events) < limit:
                return StreamSlice(stream, events[-1].version, events)
        elif gt is None and limit != 0:
            return StreamSlice(stream, 0)
        return StreamSlice(stream, self._head(stream)[0], events)

    async def read_streams(
        self, streams: Sequence[StreamId], from_versions: Sequence[int] | None = None
    ) -> list[StreamSlice]:
        """One call each, so not of one instant."""
        return [await self.read_stream(*each) for each in each_from(streams, from_versions)]

    async def read_all(self, after: Position = 0, limit: int = 1000, where: Filter = EVERYTHING) -> list[StoredEvent]:
        """Types are asked of the recorder, prefix and glob are looked at here, page by page."""
        return await self._asked(self._everything, after, limit, where) if limit > 0 else []

    def _everything(self, after: Position, limit: int, where: Filter) -> list[StoredEvent]:
        is_plain = not where.prefix and not where.glob
        page = limit if is_plain else max(limit, PAGE)
        found: list[StoredEvent] = []
        while len(found) < limit:
            rows = self._application.select_notifications(after, page, topics=where.types, inclusive_of_start=False)
            found += [_event(r.id, r) for r in rows if is_plain or where.matches(r.originator_id, r.topic)]
            if len(rows) < page:
                break
            after = rows[-1].id
        return found[:limit]

    async def last_position(self) -> Position:
        return await self._asked(self._application.max_notification_id) or 0

    async def load_checkpoint(self, name: str) -> Position | None:
        found: Position | None = await self._asked(self._tracking.max_tracking_id, name)
        return found

    async def save_checkpoint(self, name: str, position: Position) -> None:
        """Forward only, as tracking is theirs: StoreError for a position before the one saved last."""
        await self._asked(self._track, theirs.Tracking(name, position))

    def _track(self, tracking: Any) -> None:
        try:
            self._tracking.insert_tracking(tracking)
        except theirs.IntegrityError:
            saved = self._tracking.max_tracking_id(tracking.application_name)
            if saved != tracking.notification_id:
                raise StoreError(f"tracking never goes back: {tracking.application_name!r} is at {saved}") from None

    async def load_snapshot(self, key: str) -> Snapshot | None:
        return None

    async def save_snapshot(self, snapshot: Snapshot) -> bool:
        """Never kept: their snapshots are each of one aggregate at one version."""
        return False

    async def try_lead(self, name: str) -> Lease | None:
        raise StoreError("eventsourcing has no leases")

    async def close(self) -> None:
        if self._threads is not None:
            await self._threads.close()
        self._end()

    async def _asked(self, work: Callable[..., T], *arguments: Any) -> T:
        """The answer of a call that writes no events."""
        try:
            return await self._run(self._read, work, *arguments)
        except TimeoutError:
            raise StoreError("no answer in time") from None

    async def _run(self, work: Callable[..., T], *arguments: Any) -> T:
        return work(*arguments) if self._threads is None else await self._threads.run(work, *arguments)

    @staticmethod
    def _read(work: Callable[..., T], *arguments: Any, **options: Any) -> T:
        try:
            return work(*arguments, **options)
        except (theirs.OperationalError, theirs.InterfaceError) as error:
            raise StoreUnreachable(f"no answer to a read: {first_line(error)}") from None
        except theirs.PersistenceError as error:
            raise StoreError(f"{type(error).__name__}: {first_line(error)}") from None


def _recorded(writes: Sequence[StreamWrite], bases: dict[StreamId, int]) -> list[Any]:
    now_us = time.time_ns() // 1000
    return [
        theirs.StoredEvent(w.stream, version, e.type, _packed(e, now_us))
        for w in writes
        for version, e in enumerate(w.events, bases[w.stream] + 1)
    ]


def _packed(event: NewEvent, now_us: int) -> bytes:
    return _pack(_State(event.id, now_us, event.data, event.meta))


def _event(position: Position, row: Any) -> StoredEvent:
    state = _unpack(row.state)
    stream = StreamId(row.originator_id)
    return StoredEvent(
        position, stream, row.originator_version, state.id, row.topic, state.data, state.meta, state.recorded_at_us
    )


def first_line(error: Exception) -> str:
    """What an error says, in one line."""
    return (str(error) or type(error).__name__).partition("\n")[0]
