"""Claims about writing: one append, many at once, and what is known after an unknown outcome."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress

import msgspec

from eventcore_lab.clock import sleep_s
from eventcore_lab.events import (
    ABSENT,
    ANY,
    AppendResult,
    EventRejected,
    NewEvent,
    OutcomeUnknown,
    StoreError,
    StreamId,
    StreamWrite,
)
from eventcore_lab.stores.conformance.suite import (
    A,
    B,
    C,
    NotKept,
    claim,
    conflict_of,
    happened,
    said,
    same,
    versions,
    write,
)
from eventcore_lab.stores.protocol import Store
from eventcore_lab.stores.retry import append_once, find

# One append


@claim
async def events_come_back_as_they_were_written(store: Store, other: Store) -> None:
    """Ids, types, contents, versions from 1, the version of the stream, and the last position are as acknowledged."""
    events = happened(3)
    result = await store.append([StreamWrite(A, ABSENT, events)])
    found = await other.read_stream(A)
    same((result.versions, found.version), ((3,), 3), "version after three events")
    same([e.version for e in found.events], [1, 2, 3], "versions")
    same(list(said(found.events)), list(said(events)), "events")
    same(found.events[-1].position, result.position, "position of the last event")
    if min(e.recorded_at_us for e in found.events) < 1_600_000_000_000_000:
        raise NotKept("recorded_at_us is no time of day in microseconds")


@claim
async def payloads_come_back_byte_for_byte(store: Store, other: Store) -> None:
    """Whatever bytes, JSON or not: spaces, the order of keys, \\u0000."""
    for n, data in enumerate(
        (b'{ "b":1,"a" : "\\u0000 \xc3\xa9 %_\'" }', b"\x00\xff not JSON", b"1.10", b'{"a":1,"a":2}')
    ):
        await store.append([StreamWrite(StreamId(f"s{n}"), ABSENT, (NewEvent("T", data),))])
        same((await other.read_stream(StreamId(f"s{n}"))).events[0].data, data, "payload")


@claim
async def a_payload_the_store_cannot_hold_is_rejected_and_nothing_else(store: Store, other: Store) -> None:
    """EventRejected, or it is held; either way the next append works, and of the rejected one nothing is there."""
    for data, kind in ((b'{"a": "\\u0000"}', "T"), (b'{"a": 1', "T"), (b"{}", "nul\x00")):
        before = (await other.read_stream(A)).version
        held = 2
        try:
            await store.append([StreamWrite(A, before, (NewEvent("T", b"{}"), NewEvent(kind, data)))])
        except EventRejected:
            held = 0
        same((await other.read_stream(A)).version, before + held, "version after the doubtful append")
    await store.append(write(B, ABSENT))


@claim
async def a_stale_version_conflicts_and_names_the_actual_one(store: Store, other: Store) -> None:
    """Too old, too new and absent alike; nothing is written."""
    await store.append(write(A, ABSENT, 2))
    for expected in (ABSENT, 1, 3, 99):
        same(await conflict_of(other.append(write(A, expected))), (A, expected, 2), "conflict")
    same(await conflict_of(other.append(write(B, 1))), (B, 1, 0), "conflict on a stream that is not there")
    same(versions(await store.read_streams([A, B])), [2, 0], "versions afterwards")


@claim
async def any_version_appends_wherever_the_stream_is(store: Store, other: Store) -> None:
    """ANY never conflicts, not even among many writers at once."""
    results = await asyncio.gather(*(s.append(write(A, ANY, 2)) for s in (store, other) * 10))
    same(sorted(r.versions for r in results), [(2 * n,) for n in range(1, 21)], "versions acknowledged")


@claim
async def of_many_writers_with_one_expectation_one_wins(store: Store, other: Store) -> None:
    """The others conflict with the winner's version."""
    for n in range(10):
        appends = [s.append(write(f"s{n}", ABSENT)) for s in (store, other) * 4]
        results = await asyncio.gather(*appends, return_exceptions=True)
        kinds = sorted(type(r).__name__ for r in results)
        same(kinds, ["AppendResult"] + ["VersionConflict"] * 7, "outcomes")
        same((await store.read_stream(StreamId(f"s{n}"))).version, 1, "version")


@claim
async def an_append_over_several_streams_answers_each_in_order(store: Store, other: Store) -> None:
    """Whatever the order of their names."""
    await store.append(write(B, ABSENT, 5))
    result = await store.append([*write(C, ABSENT, 2), *write(B, 5, 1), *write(A, ANY, 3)])
    same(result.versions, (2, 6, 3), "versions acknowledged")
    same(versions(await other.read_streams([A, B, C])), [3, 6, 2], "versions")


@claim
async def a_conflict_on_one_stream_leaves_nothing_on_the_others(store: Store, other: Store) -> None:
    """All or nothing."""
    await store.append(write(B))
    attempt = store.append([*write(A, ABSENT), *write(B, ABSENT), *write(C, ABSENT)])
    same(await conflict_of(attempt), (B, 0, 1), "conflict")
    same(versions(await other.read_streams([A, B, C])), [0, 1, 0], "versions")


@claim
async def a_stale_read_only_participant_conflicts(store: Store, other: Store) -> None:
    """A stream that is only expected, not written, is checked like the others; a current one lets the append pass."""
    await store.append(write(A, ABSENT, 2))
    same((await store.append([StreamWrite(A, 2), *write(B, ABSENT)])).versions, (2, 1), "versions")
    same(await conflict_of(store.append([StreamWrite(A, 1), *write(B, 1)])), (A, 1, 2), "conflict")
    same(await conflict_of(store.append([*write(B, 1), StreamWrite(C, 3)])), (C, 3, 0), "conflict")
    same(versions(await other.read_streams([A, B])), [2, 1], "versions")


@claim
async def a_read_only_participant_cannot_change_before_the_commit(store: Store, other: Store) -> None:
    """No write skew: of two appends that each read what the other writes, one wins."""
    for n in range(25):
        left, right = StreamId(f"l{n}"), StreamId(f"r{n}")
        appends = [
            store.append([StreamWrite(left, 0), *write(right, 0)]),
            other.append([StreamWrite(right, 0), *write(left, 0)]),
        ]
        results = await asyncio.gather(*appends, return_exceptions=True)
        same(sum(isinstance(r, AppendResult) for r in results), 1, "winners")


@claim
async def crossing_appends_over_the_same_streams_do_not_deadlock(store: Store, other: Store) -> None:
    """Whatever the order in which each names them."""
    pairs = [[*write(first), *write(second)] for _ in range(20) for first, second in ((A, B), (B, A))]
    await asyncio.gather(*((store, other)[n % 2].append(pair) for n, pair in enumerate(pairs)))
    same(versions(await store.read_streams([A, B])), [40, 40], "versions")


@claim
async def a_stream_named_twice_in_one_append_is_refused(store: Store, other: Store) -> None:
    """ValueError: which of the two expectations would hold?"""
    try:
        await store.append([*write(A, 0), *write(A, 1)])
    except ValueError:
        same((await other.read_stream(A)).version, 0, "version")
        return
    raise NotKept("it was accepted")


@claim
async def an_append_of_very_many_events_is_one_append(store: Store, other: Store) -> None:
    """20,000 events: more than a statement has parameters."""
    result = await store.append([*write(A, ABSENT, 19_000), *write(B, ABSENT, 1_000)])
    same(result.versions, (19_000, 1_000), "versions acknowledged")
    same(versions([await other.read_stream(A, 18_999), await other.read_stream(B, 999)]), [19_000, 1_000], "versions")


@claim
async def a_cancelled_append_is_whole_or_absent(store: Store, other: Store) -> None:
    """Wherever the cancellation strikes; and the store goes on working."""
    for n in range(20):
        task = asyncio.ensure_future(store.append([*write(f"x{n}", ABSENT, 2), *write(f"y{n}", ABSENT, 2)]))
        for _ in range(n):
            await sleep_s(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    await store.append(write(A, ABSENT))
    for n in range(20):
        found = versions(await other.read_streams([StreamId(f"x{n}"), StreamId(f"y{n}")]))
        if found not in ([0, 0], [2, 2]):
            raise NotKept(f"versions of the two streams of a cancelled append: {found}")


# Many appends at once


@claim
async def independent_appends_have_each_their_own_result(store: Store, other: Store) -> None:
    """append_many: conflicts stay where they are, requests for one stream take effect in their order."""
    await store.append(write(B))
    several = [*write(A, 2), *write(C, 3)]
    requests = [write(A, ABSENT), write(B, ABSENT), write(C, ABSENT, 3), write(A, 1), several, write(C, 9)]
    results = await store.append_many(requests)
    kinds = [r.versions if isinstance(r, AppendResult) else type(r).__name__ for r in results]
    same(kinds, [(1,), "VersionConflict", (3,), (2,), (3, 4), "VersionConflict"], "results")
    same(versions(await other.read_streams([A, B, C])), [3, 1, 4], "versions")
    same(await store.append_many([]), [], "results of nothing")


@claim
async def a_bad_payload_among_many_appends_fails_alone(store: Store, other: Store) -> None:
    """Its neighbours in append_many are stored and acknowledged."""
    bad = [StreamWrite(B, ABSENT, (NewEvent("nul\x00", b'{"a": "\\u0000"}'),))]
    results = await store.append_many([write(A, ABSENT), bad, write(C, ABSENT)])
    same([type(results[0]).__name__, type(results[2]).__name__], ["AppendResult"] * 2, "results of the neighbours")
    held = int(isinstance(results[1], AppendResult))
    same(versions(await other.read_streams([A, B, C])), [1, held, 1], "versions")


@claim
async def versions_and_positions_of_concurrent_appends_agree(store: Store, other: Store) -> None:
    """Events of an append keep their order and lie together in their stream; later versions have later positions."""
    streams = [StreamId(f"s{n}") for n in range(3)]
    kinds = [f"k{n}" for n in range(30)]
    appends = [(store, other)[n % 2].append(write(streams[n % 3], ANY, 7, kinds[n])) for n in range(30)]
    await asyncio.gather(*appends)
    for part in await store.read_streams(streams):
        same([e.version for e in part.events], list(range(1, 71)), "versions")
        positions = [e.position for e in part.events]
        same(positions, sorted(set(positions)), "positions")
        for first in range(0, 70, 7):
            batch = part.events[first : first + 7]
            same({e.type for e in batch}, {batch[0].type}, "types of the events of one append")
            same([msgspec.json.decode(e.data)["n"] for e in batch], list(range(7)), "order within one append")


# After an unknown outcome


@claim
async def an_append_is_found_by_its_event_ids(store: Store, other: Store) -> None:
    """After an outcome unknown to the caller: there with its result, or not there, whatever was expected."""
    await store.append(write(A, ABSENT, 3))
    sure, anywhere, lost = [*write(A, 3, 2), *write(B, 0)], write(A, ANY, 2), write(A, ANY)
    for attempt in (sure, anywhere):
        result = await store.append(attempt)
        same(await find(other, attempt), result, "the append that was made")
    same([await find(other, lost), await find(other, write(A, 3, 2))], [None, None], "appends that were not")


@claim
async def a_retry_after_an_unknown_outcome_stores_nothing_twice(store: Store, other: Store) -> None:
    """append_once, when the answer is lost before or after the commit, or the first attempt comes late: before the second,
    or when that is already there."""
    for n, fate in enumerate(("before", "after", "late", "latest")):
        for expected in (ABSENT, ANY):
            stream = StreamId(f"s{n}{expected}")
            losing = _LosingAnswers(store, fate)
            result = await append_once(losing, write(stream, expected, 2))  # type: ignore[arg-type]
            await losing.settle()
            found = await other.read_stream(stream)
            same((result.versions, found.version), ((2,), 2), f"versions, answer lost {fate}")


class _LosingAnswers:
    """A store whose first append gets no answer: it happened not, happened, or will happen a little later."""

    def __init__(self, store: Store, fate: str) -> None:
        self._store, self._fate, self._late = store, fate, None
        self.read_stream, self.read_streams = store.read_stream, store.read_streams
        self._held: Sequence[StreamWrite] | None = None
        self._is_last = False

    async def append(self, writes: Sequence[StreamWrite]) -> AppendResult:
        fate, self._fate = self._fate, ""
        if fate in ("late", "latest"):
            self._held, self._is_last = writes, fate == "latest"
        elif fate == "after":
            await self._store.append(writes)
        elif not fate:
            if not self._is_last:
                await self.settle()
            return await self._store.append(writes)
        raise OutcomeUnknown("the answer was lost")

    async def settle(self) -> None:
        """The late attempt arrives: between our look and our second attempt, the worst moment."""
        held, self._held = self._held, None
        if held is not None:
            with suppress(StoreError):  # it came too late
                await self._store.append(held)
