"""What was asked of the store, append by append, and what the store holds afterwards: the evidence the checkers judge.

`Journal(store)` is a store that notes every append with its outcome and its times, and every read of whole streams;
`read_back` writes down the whole content; `prefix` sums up how a store begins, to see later that it still does.
Nothing is judged here.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
from msgspec import Struct

from eventcore_lab.clock import NS_PER_S, now_ns, sleep_s
from eventcore_lab.events import (
    AppendResult,
    OutcomeUnknown,
    Position,
    StoredEvent,
    StoreError,
    StoreUnreachable,
    StreamId,
    StreamSlice,
    StreamWrite,
    VersionConflict,
)
from eventcore_lab.load.evidence import Rows, write_rows
from eventcore_lab.load.spill import KEPT_MAX, SPILLED, Spill
from eventcore_lab.schema import Outcome, current_attempt
from eventcore_lab.stores.protocol import Store
from eventcore_lab.stores.reading import stream_all
from eventcore_lab.stores.wrapper import Wrapper

READS_MAX = 200_000
"""Reads of a stream that a journal keeps; how many more there were is in `counts`."""
PREFIX_EVENTS_MAX = 100_000
PAGE = 5000
SETTLE_TIMEOUT_S = 10.0
_LOOK_EVERY_S = 0.020

_Answer = tuple[int, ...] | tuple[StreamId, int] | None
"""The versions acknowledged, or the stream that conflicted and its actual version."""
_Entry = tuple[int, Sequence[StreamWrite], int, _Answer, int, int]
"""Operation, writes, outcome, answer, when it began and when it ended."""
_SPILLED = tuple[int, tuple[StreamWrite, ...], int, Any, int, int]
_Read = tuple[int, StreamId, int, int, UUID | None, int, int]
_Joint = tuple[int, StreamId, int]


def outcome_of(error: BaseException) -> Outcome:
    """What an append that raised came to. Anything but a clear answer of the store may have happened."""
    if isinstance(error, VersionConflict):
        return Outcome.CONFLICT
    if isinstance(error, StoreError) and not isinstance(error, OutcomeUnknown):
        return Outcome.FAILED
    return Outcome.UNKNOWN


def digest(event_type: str, data: bytes, meta: bytes) -> int:
    """32 bits over what an event says, to see whether it came back as it was given. Blanks and the order of keys say
    nothing: a store that keeps JSON as jsonb gives back other bytes. (Whether bytes are kept is a claim of conformance.)
    """
    return zlib.crc32(_said(meta), zlib.crc32(_said(data), zlib.crc32(event_type.encode())))


_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder(order="sorted").encode


def _said(data: bytes) -> bytes:
    try:
        return _encode(_decode(data))
    except (msgspec.MsgspecError, OverflowError, RecursionError):  # no JSON we can read: the bytes say something
        return data


class _HasAmount(Struct):
    amount: int | None = None


_amounts = msgspec.json.Decoder(_HasAmount)


def amount(data: bytes) -> int | None:
    """The whole number that an event has as its "amount", if it has one."""
    if b'"amount"' not in data:
        return None
    try:
        found = _amounts.decode(data).amount
    except msgspec.MsgspecError:
        return None
    return found if found is not None and -(2**63) <= found < 2**63 else None


class Journal(Wrapper):
    """A Store around another that keeps a list of all appends, and of the first READS_MAX reads of whole streams.

    Where it has a `spool` to put files in, at most about `kept_max` appends are in memory, however many there are, and next to
    no reads.
    """

    def __init__(self, store: Store, spool: Path | None = None, worker: int = 0, kept_max: int = KEPT_MAX) -> None:
        super().__init__(store)

        def spilling(table: str, kind: Any, kept_max: int) -> Spill[Any]:
            return Spill(spool / f"{table}-{worker}{SPILLED}" if spool is not None else None, kind, kept_max)

        self._spilling: Spill[_Entry] = spilling("writes", _SPILLED, kept_max)
        self._entries = self._spilling.kept
        self._spilling_reads: Spill[_Read] = spilling("reads", _Read, 0)
        self._reads = self._spilling_reads.kept
        self._spilling_joint: Spill[_Joint] = spilling("joint_reads", _Joint, 0)
        self._joint = self._spilling_joint.kept
        self._read_count = self._joint_count = self._left_out = 0
        self.acknowledged: Position = 0
        """The highest position of an acknowledged append."""
        self._sessions: dict[object, int] = {None: 0}

    async def append(self, writes: Sequence[StreamWrite]) -> AppendResult:
        attempt = current_attempt.get()
        operation = attempt.operation if attempt is not None else -1
        began_ns = now_ns()
        try:
            result = await self.inner.append(writes)
        except BaseException as error:
            self._note((operation, writes, outcome_of(error), _actual(error), began_ns, now_ns()))
            raise
        self._note((operation, writes, Outcome.OK, result.versions, began_ns, now_ns()))
        if result.position > self.acknowledged:
            self.acknowledged = result.position
        return result

    async def append_many(self, requests: Sequence[Sequence[StreamWrite]]) -> list[AppendResult | StoreError]:
        attempt = current_attempt.get()
        operation = attempt.operation if attempt is not None else -1
        began_ns = now_ns()
        try:
            results = await self.inner.append_many(requests)
        except BaseException as error:
            ended_ns, outcome, actual = now_ns(), outcome_of(error), _actual(error)
            for writes in requests:
                self._note((operation, writes, outcome, actual, began_ns, ended_ns))
            raise
        ended_ns = now_ns()
        for writes, result in zip(requests, results, strict=True):
            if isinstance(result, AppendResult):
                self._note((operation, writes, Outcome.OK, result.versions, began_ns, ended_ns))
                self.acknowledged = max(self.acknowledged, result.position)
            else:
                self._note((operation, writes, outcome_of(result), _actual(result), began_ns, ended_ns))
        return results

    def _note(self, entry: _Entry) -> None:
        self._entries.append(entry)
        if len(self._entries) > self._spilling.full:
            self._spilling.spill()

    async def read_stream(self, stream: StreamId, from_version: int = 1, limit: int | None = None) -> StreamSlice:
        if from_version > 1:
            return await self.inner.read_stream(stream, from_version, limit)
        began_ns = now_ns()
        found = await self.inner.read_stream(stream, from_version, limit)
        if limit is None or len(found.events) < limit:
            self._note_read(found, began_ns, now_ns())
        return found

    async def read_streams(
        self, streams: Sequence[StreamId], from_versions: Sequence[int] | None = None
    ) -> list[StreamSlice]:
        if from_versions is not None:
            return await self.inner.read_streams(streams, from_versions)
        began_ns = now_ns()
        found = await self.inner.read_streams(streams)
        ended_ns = now_ns()
        if self._read_count + len(found) > READS_MAX:
            self._left_out += len(found)
            return found
        for part in found:
            self._note_read(part, began_ns, ended_ns)
        self._joint.extend([(self._joint_count, part.stream, part.version) for part in found])
        self._joint_count += 1
        if len(self._joint) > self._spilling_joint.full:
            self._spilling_joint.spill()
        return found

    def _note_read(self, part: StreamSlice, began_ns: int, ended_ns: int) -> None:
        if self._read_count >= READS_MAX:
            self._left_out += 1
            return
        self._read_count += 1
        attempt, sessions = current_attempt.get(), self._sessions
        session = sessions[attempt] if attempt in sessions else sessions.setdefault(attempt, len(sessions))
        events, reads = part.events, self._reads
        last = events[-1].id if events else None
        reads.append((session, part.stream, part.version, len(events), last, began_ns, ended_ns))
        if len(reads) > self._spilling_reads.full:
            self._spilling_reads.spill()

    def write(self, folder: Path, worker: int, start_ns: int = 0, counts: Mapping[str, int] | None = None) -> None:
        """Everything noted, and `counts`, as files of schema.JOURNAL in `folder`; times relative to `start_ns`."""
        with Rows(folder / f"writes-{worker}.parquet", "writes") as file:
            for n, entry in enumerate(self._spilling.taken_out()):
                for row in _rows(worker, n, entry, start_ns):
                    file.add(row)
        with Rows(folder / f"reads-{worker}.parquet", "reads") as file:
            for session, stream, version, events, last, began_ns, ended_ns in self._spilling_reads.taken_out():
                last_id = None if last is None else last.bytes
                file.add((worker, session, stream, version, events, last_id, began_ns - start_ns, ended_ns - start_ns))
        with Rows(folder / f"joint_reads-{worker}.parquet", "joint_reads") as file:
            for row in self._spilling_joint.taken_out():
                file.add((worker, *row))
        numbers = {**(counts or {}), "reads left out": self._left_out}
        write_rows(folder / f"counts-{worker}.parquet", "counts", list(numbers.items()))


def _actual(error: BaseException) -> _Answer:
    return (error.stream, error.actual) if isinstance(error, VersionConflict) else None


def _rows(worker: int, n: int, entry: _Entry, start_ns: int) -> list[tuple[Any, ...]]:
    operation, writes, outcome, answer, began_ns, ended_ns = entry
    head = (worker, operation, n, outcome, began_ns - start_ns, ended_ns - start_ns)
    is_ok, is_conflict = outcome == Outcome.OK, outcome == Outcome.CONFLICT
    rows: list[tuple[Any, ...]] = []
    for i, w in enumerate(writes):
        version = answer[i] if is_ok and answer is not None else None
        actual = answer[1] if is_conflict and answer is not None and answer[0] == w.stream else None
        of_stream = (*head, w.stream, w.expected, actual, version)
        if not w.events:
            rows.append((*of_stream, 0, None, None, None))
        for ordinal, e in enumerate(w.events, 1):
            rows.append((*of_stream, ordinal, e.id.bytes, digest(e.type, e.data, e.meta), amount(e.data)))
    return rows


class Prefix:
    """A rolling digest over events in position order: `add` one after the other, `row` says what was added so far."""

    def __init__(self) -> None:
        self._digest = hashlib.blake2b(digest_size=8)
        self.position: Position = 0
        self.events = 0

    def add(self, e: StoredEvent) -> None:
        said = digest(e.type, e.data, e.meta)
        self._digest.update(b"%d %b %d %d %b\n" % (e.position, e.id.bytes, e.version, said, e.stream.encode()))
        self.position = e.position
        self.events += 1

    def row(self, start_ns: int = 0) -> tuple[int, Position, int, int]:
        """As a row of `prefixes`, taken now."""
        value = int.from_bytes(self._digest.digest(), "big", signed=True)
        return now_ns() - start_ns, self.position, self.events, value


async def prefix(
    store: Store, events_max: int = PREFIX_EVENTS_MAX, start_ns: int = 0
) -> tuple[int, Position, int, int]:
    """How the store begins: a row of `prefixes` over what is settled now, at most its first `events_max` events.

    May be taken while others write. Give the row to `read_back`, which takes the digest up to the same position again.
    """
    top, found = await store.last_position(), Prefix()
    async for event in stream_all(store, page=min(PAGE, events_max)):
        if event.position > top or found.events >= events_max:
            break
        found.add(event)
    return found.row(start_ns)


async def settled(store: Store, position: Position, timeout_s: float = SETTLE_TIMEOUT_S) -> bool:
    """Wait until a reader may go as far as `position`: an append that was given up may still be open in the server, and
    keeps readers before it; and the server may be starting just now. Whether it came to that in time. Raises
    StoreUnreachable if nobody answered even then."""
    deadline_ns = now_ns() + int(timeout_s * NS_PER_S)
    while True:
        try:
            if await store.last_position() >= position:
                return True
            if now_ns() > deadline_ns:
                return False
        except StoreUnreachable:
            if now_ns() > deadline_ns:
                raise
        await sleep_s(_LOOK_EVERY_S)


async def read_back(
    store: Store,
    folder: Path,
    table: str = "stored",
    prefixes: Sequence[tuple[int, Position, int, int]] = (),
    start_ns: int = 0,
) -> int:
    """Write down everything the store holds as `table`, in position order, and how it begins up to each of `prefixes`
    taken before; gives the number of events."""
    rolling, cuts, taken = Prefix(), sorted({row[1] for row in prefixes if row[2]}), list(prefixes)
    with Rows(folder / f"{table}.parquet", table) as file:
        async for e in stream_all(store, page=PAGE):
            said = digest(e.type, e.data, e.meta)
            file.add((e.position, e.stream, e.version, e.id.bytes, said, amount(e.data), e.recorded_at_us))
            while cuts and e.position > cuts[0]:  # what was last in the prefix may itself be gone
                taken.append(_at(cuts.pop(0), rolling.row(start_ns)))
            if cuts:
                rolling.add(e)
        taken += [_at(cut, rolling.row(start_ns)) for cut in cuts]
    if prefixes:
        write_rows(folder / f"prefixes-{table}.parquet", "prefixes", taken)
    return file.count


def _at(position: Position, row: tuple[int, Position, int, int]) -> tuple[int, Position, int, int]:
    return row[0], position, row[2], row[3]
