"""Stores that are wrong on purpose, each in one way that real ones have been: what the checkers must catch.

`mutant(memory):lost_ack` is the memory store with one such fault, `mutant(postgres):…` the same around PostgreSQL. Where
a fault strikes is decided by counting, not by chance: every `every`-th time, or whenever the moment comes.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from types import MappingProxyType

import msgspec

from eventcore_lab.clock import sleep_s
from eventcore_lab.events import (
    ANY,
    EVERYTHING,
    AppendResult,
    Filter,
    Position,
    StoredEvent,
    StoreError,
    StreamId,
    StreamSlice,
    StreamWrite,
    VersionConflict,
    new_event_id,
)
from eventcore_lab.spec import UsageError, unknown
from eventcore_lab.stores.protocol import Address, Driver, Place, PoolSettings, Store, each_from, has_tables, stores
from eventcore_lab.stores.wrapper import Wrapper

_replaced = msgspec.structs.replace


class Mutant(Wrapper):
    """What all of them have: the store they spoil, and how often."""

    def __init__(self, inner: Store, every: int) -> None:
        super().__init__(inner)
        self._every, self._count = every, 0

    def _is_turn(self) -> bool:
        self._count += 1
        return self._count % self._every == 0

    async def _heads(self, writes: Sequence[StreamWrite]) -> list[int]:
        return [(await self.inner.read_stream(w.stream, 1, 0)).version for w in writes]

    async def _pretended(self, writes: Sequence[StreamWrite]) -> AppendResult:
        """What an append would be answered that was done where it expected to be."""
        heads = await self._heads(writes)
        bases = [w.expected if w.expected >= 0 else head for w, head in zip(writes, heads, strict=True)]
        versions = tuple([base + len(w.events) for w, base in zip(writes, bases, strict=True)])
        return AppendResult(versions, await self.inner.last_position())


def _careless(writes: Sequence[StreamWrite]) -> list[StreamWrite]:
    return [_replaced(w, expected=ANY) for w in writes]


class IgnoredExpectation(Mutant):
    """Every append is done wherever its streams are."""

    async def append(self, writes: Sequence[StreamWrite]) -> AppendResult:
        return await self.inner.append(_careless(writes))


class RepeatedVersions(Mutant):
    """Without a unique key two events of a stream have the same version, here as it looks to who reads them."""

    def _shown(self, events: Sequence[StoredEvent]) -> list[StoredEvent]:
        return [_replaced(e, version=e.version - (e.version % self._every == 0)) for e in events]

    async def read_stream(self, stream: StreamId, from_version: int = 1, limit: int | None = None) -> StreamSlice:
        found = await self.inner.read_stream(stream, from_version, limit)
        return _replaced(found, events=tuple(self._shown(found.events)))

    async def read_all(self, after: Position = 0, limit: int = 1000, where: Filter = EVERYTHING) -> list[StoredEvent]:
        return self._shown(await self.inner.read_all(after, limit, where))


class LatePositions(Mutant):
    """Some events are seen by readers only after later ones: a position drawn early, a commit that came late."""

    def __init__(self, inner: Store, every: int) -> None:
        super().__init__(inner, every)
        self._seen: set[Position] = set()

    async def read_all(self, after: Position = 0, limit: int = 1000, where: Filter = EVERYTHING) -> list[StoredEvent]:
        events = await self.inner.read_all(after, limit, where)
        late = {e.position for e in events[:-1] if e.position % self._every == 0} - self._seen
        self._seen |= late
        return [e for e in events if e.position not in late]


class LostAck(Mutant):
    """Some appends are acknowledged and not done."""

    async def append(self, writes: Sequence[StreamWrite]) -> AppendResult:
        if not self._is_turn():
            return await self.inner.append(writes)
        for w, head in zip(writes, await self._heads(writes), strict=True):
            if 0 <= w.expected != head:
                raise VersionConflict(w.stream, w.expected, head)
        return await self._pretended(writes)


class RepeatedDelivery(Mutant):
    """Some pages begin with the event that the page before ended with."""

    async def read_all(self, after: Position = 0, limit: int = 1000, where: Filter = EVERYTHING) -> list[StoredEvent]:
        is_repeated = after > 0 and self._is_turn()
        events = await self.inner.read_all(after - is_repeated, limit, where)
        return events if len(events) > 1 else await self.inner.read_all(after, limit, where)


class TornAppend(Mutant):
    """Some appends over several streams are done but for the last of them."""

    async def append(self, writes: Sequence[StreamWrite]) -> AppendResult:
        if sum([bool(w.events) for w in writes]) < 2 or not self._is_turn():
            return await self.inner.append(writes)
        result = await self.inner.append(writes[:-1])
        return AppendResult((*result.versions, (await self._pretended(writes[-1:])).versions[0]), result.position)


class InterleavedBatch(Mutant):
    """The events of an append are stored one by one, with room for others between them."""

    async def append(self, writes: Sequence[StreamWrite]) -> AppendResult:
        if len(writes) > 1 or len(writes[0].events) < 2:
            return await self.inner.append(writes)
        [write] = writes
        result = await self.inner.append([_replaced(write, events=write.events[:1])])
        for event in write.events[1:]:
            await sleep_s(0)
            result = await self.inner.append([StreamWrite(write.stream, ANY, (event,))])
        return result


class SwallowedConflict(Mutant):
    """A conflict is answered like a success: ON CONFLICT DO NOTHING."""

    async def append(self, writes: Sequence[StreamWrite]) -> AppendResult:
        try:
            return await self.inner.append(writes)
        except VersionConflict:
            return await self._pretended(writes)


class UncheckedParticipant(Mutant):
    """Streams that an append only checks are not checked."""

    async def append(self, writes: Sequence[StreamWrite]) -> AppendResult:
        written = [w for w in writes if w.events]
        result = await self.inner.append(written)
        told = dict(zip([w.stream for w in written], result.versions, strict=True))
        return AppendResult(tuple([told.get(w.stream, w.expected) for w in writes]), result.position)


class EarlyCheck(Mutant):
    """Versions are checked first and events stored later, without a lock from the one to the other."""

    async def append(self, writes: Sequence[StreamWrite]) -> AppendResult:
        for w, head in zip(writes, await self._heads(writes), strict=True):
            if 0 <= w.expected != head:
                raise VersionConflict(w.stream, w.expected, head)
        await sleep_s(0)
        written = [w for w in writes if w.events]
        result = await self.inner.append(_careless(written))
        told = dict(zip([w.stream for w in written], result.versions, strict=True))
        return AppendResult(tuple([told.get(w.stream, w.expected) for w in writes]), result.position)


class BlindRetry(Mutant):
    """Some appends are taken for lost and done again."""

    def _again(self, writes: Sequence[StreamWrite]) -> list[StreamWrite]:
        return _careless(writes)

    async def append(self, writes: Sequence[StreamWrite]) -> AppendResult:
        result = await self.inner.append(writes)
        return await self.inner.append(self._again(writes)) if self._is_turn() else result


class BlindRetryWithNewIds(BlindRetry):
    """The same, by a client that makes an event's id anew for each attempt."""

    def _again(self, writes: Sequence[StreamWrite]) -> list[StreamWrite]:
        return [
            _replaced(w, expected=ANY, events=tuple([_replaced(e, id=new_event_id()) for e in w.events]))
            for w in writes
        ]


class TimeCursor(Mutant):
    """Readers go on behind a time, of milliseconds: what has the same time as the end of a page is passed over."""

    def __init__(self, inner: Store, every: int) -> None:
        super().__init__(inner, every)
        self._ended: dict[Position, int] = {}

    async def read_all(self, after: Position = 0, limit: int = 1000, where: Filter = EVERYTHING) -> list[StoredEvent]:
        ended_ms = self._ended.pop(after, -1)
        while events := await self.inner.read_all(after, limit, where):
            after = events[-1].position
            if later := [e for e in events if e.recorded_at_us // 1000 > ended_ms]:
                self._ended[after] = later[-1].recorded_at_us // 1000
                return later
        self._ended[after] = ended_ms
        return []


class MergedBatch(Mutant):
    """Of several appends at once, only the first to a stream is held to what it expects."""

    async def append_many(self, requests: Sequence[Sequence[StreamWrite]]) -> list[AppendResult | StoreError]:
        seen: set[StreamId] = set()
        passed: list[Sequence[StreamWrite]] = []
        for writes in requests:
            passed.append([_replaced(w, expected=ANY) if w.stream in seen else w for w in writes])
            seen |= {w.stream for w in writes}
        return await self.inner.append_many(passed)


class InventedConflict(Mutant):
    """Some appends are refused for a conflict that there is not."""

    async def append(self, writes: Sequence[StreamWrite]) -> AppendResult:
        if writes[0].expected < 0 or not self._is_turn():
            return await self.inner.append(writes)
        raise VersionConflict(writes[0].stream, writes[0].expected, writes[0].expected + 1_000_000)


class OldConflict(Mutant):
    """Conflicts name a version that was the stream's before."""

    async def append(self, writes: Sequence[StreamWrite]) -> AppendResult:
        try:
            return await self.inner.append(writes)
        except VersionConflict as conflict:
            raise VersionConflict(conflict.stream, conflict.expected, 0) from None


class TornRead(Mutant):
    """Several streams are read one after the other."""

    async def read_streams(
        self, streams: Sequence[StreamId], from_versions: Sequence[int] | None = None
    ) -> list[StreamSlice]:
        found = []
        for each in each_from(streams, from_versions):
            found.append(await self.inner.read_stream(*each))
            await sleep_s(0)
        return found


class StaleRead(Mutant):
    """Some reads are answered with what the stream was when it was last read: a cache, a replica."""

    def __init__(self, inner: Store, every: int) -> None:
        super().__init__(inner, every)
        self._known: dict[StreamId, StreamSlice] = {}

    async def read_stream(self, stream: StreamId, from_version: int = 1, limit: int | None = None) -> StreamSlice:
        if from_version > 1 or limit is not None:
            return await self.inner.read_stream(stream, from_version, limit)
        if self._is_turn() and stream in self._known:
            return self._known.pop(stream)
        self._known.setdefault(stream, found := await self.inner.read_stream(stream))
        return found


class UnreadCheckpoint(Mutant):
    """Some checkpoints are not kept."""

    async def save_checkpoint(self, name: str, position: Position) -> None:
        if not self._is_turn():
            await self.inner.save_checkpoint(name, position)


class EagerCheckpoint(Mutant):
    """A reader that asks for its checkpoint is told one further on."""

    async def load_checkpoint(self, name: str) -> Position | None:
        position = await self.inner.load_checkpoint(name)
        return None if position is None else position + self._every


class RewrittenHistory(Mutant):
    """Some events say something else after they have been read for the first time."""

    def __init__(self, inner: Store, every: int) -> None:
        super().__init__(inner, every)
        self._read: dict[Position, int] = {}

    async def read_all(self, after: Position = 0, limit: int = 1000, where: Filter = EVERYTHING) -> list[StoredEvent]:
        return [self._shown(e) for e in await self.inner.read_all(after, limit, where)]

    def _shown(self, event: StoredEvent) -> StoredEvent:
        if event.position % self._every:
            return event
        self._read[event.position] = self._read.get(event.position, 0) + 1
        return event if self._read[event.position] < 4 else _replaced(event, data=b"{}")


MUTANTS: Mapping[str, type[Mutant]] = MappingProxyType(
    {
        "ignored_expectation": IgnoredExpectation,
        "repeated_versions": RepeatedVersions,
        "late_positions": LatePositions,
        "lost_ack": LostAck,
        "repeated_delivery": RepeatedDelivery,
        "torn_append": TornAppend,
        "interleaved_batch": InterleavedBatch,
        "swallowed_conflict": SwallowedConflict,
        "unchecked_participant": UncheckedParticipant,
        "early_check": EarlyCheck,
        "blind_retry": BlindRetry,
        "blind_retry_with_new_ids": BlindRetryWithNewIds,
        "time_cursor": TimeCursor,
        "merged_batch": MergedBatch,
        "invented_conflict": InventedConflict,
        "old_conflict": OldConflict,
        "torn_read": TornRead,
        "stale_read": StaleRead,
        "unread_checkpoint": UnreadCheckpoint,
        "eager_checkpoint": EagerCheckpoint,
        "rewritten_history": RewrittenHistory,
    }
)


class _MutantDriver:
    """The driver of a store with a fault; the place is the inner driver's."""

    def __init__(self, inner: Driver, fault: type[Mutant], every: int) -> None:
        self._inner, self._fault, self._every = inner, fault, every

    @property
    def is_shared(self) -> bool:
        return self._inner.is_shared

    @property
    def lacks(self) -> Mapping[str, str]:
        return self._inner.lacks

    @property
    def has_tables(self) -> bool:
        return has_tables(self._inner)

    @asynccontextmanager
    async def provision(self) -> AsyncIterator[Place]:
        async with self._inner.provision() as place:
            yield place

    async def connect(self, address: Address, pool: PoolSettings) -> Store:
        return self._fault(await self._inner.connect(address, pool), self._every)


@stores.register("mutant")
def mutant(inner: Driver, *, variant: str = "", every: int = 5) -> _MutantDriver:
    """A store with a fault on purpose, as mutant(memory):lost_ack; a checker must catch it."""
    if not variant:
        raise UsageError(f"store mutant: name a fault, as in mutant(memory):lost_ack (known: {', '.join(MUTANTS)})")
    if variant not in MUTANTS:
        raise unknown("fault", variant, MUTANTS)
    if not 2 <= every <= 1_000_000:
        raise ValueError(f"every must be 2 to 1000000, not {every}")
    return _MutantDriver(inner, MUTANTS[variant], every)
