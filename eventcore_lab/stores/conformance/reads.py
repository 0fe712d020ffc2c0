"""Claims about reading, and about what readers keep: checkpoints, snapshots, leases."""

from __future__ import annotations

import asyncio
import itertools
from uuid import UUID

from eventcore_lab.clock import sleep_s
from eventcore_lab.events import (
    ABSENT,
    ANY,
    EventRejected,
    Filter,
    Snapshot,
    StoredEvent,
    StreamId,
    StreamWrite,
)
from eventcore_lab.stores.conformance.suite import (
    A,
    B,
    C,
    NotKept,
    claim,
    happened,
    same,
    versions,
    write,
)
from eventcore_lab.stores.protocol import Store
from eventcore_lab.stores.reading import decoded, follow, stream_all, stream_events

# Reading streams


@claim
async def a_stream_that_is_not_there_is_empty(store: Store, other: Store) -> None:
    """Version 0, no events, no error; asked for alone, in part, or with others."""
    await store.append(write(B))
    for found in (await other.read_stream(A), await other.read_stream(A, 5, 2), (await other.read_streams([A, B]))[0]):
        same((found.stream, found.version, found.events), (A, 0, ()), "a missing stream")


@claim
async def streams_do_not_mix(store: Store, other: Store) -> None:
    """Not even when their names start alike or differ in case, accents or a trailing blank."""
    names = ["a", "A", "a ", "ab", "á", "a%", "a_", "a'", 'a"', "a\\", "a/b", "ä" * 255]
    for n, name in enumerate(names):
        await store.append(write(name, ABSENT, n + 1))
    found = await other.read_streams([StreamId(name) for name in names])
    same(versions(found), list(range(1, len(names) + 1)), "versions")
    same([{e.stream for e in part.events} for part in found], [{name} for name in names], "streams of the events")


@claim
async def a_page_tells_the_version_of_the_stream_not_of_the_page(store: Store, other: Store) -> None:
    """From a version, at most so many events, or only the version (limit 0)."""
    await store.append(write(A, ABSENT, 5))
    for start, limit, wanted in ((1, 2, [1, 2]), (3, None, [3, 4, 5]), (5, 9, [5]), (6, 1, []), (1, 0, [])):
        found = await other.read_stream(A, start, limit)
        same(([e.version for e in found.events], found.version), (wanted, 5), f"from {start}, at most {limit}")


@claim
async def a_stream_is_iterated_whole_whatever_the_page(store: Store, other: Store) -> None:
    """stream_events."""
    await store.append(write(A, ABSENT, 10))
    for page in (1, 3, 5, 9, 10):
        same([e.version async for e in stream_events(other, A, 2, page)], list(range(2, 11)), "versions")


@claim
async def several_streams_are_read_as_of_one_instant(store: Store, other: Store) -> None:
    """While appends write to both, a reader always finds them equally long, from wherever it reads them."""

    async def writer() -> None:
        for _ in range(40):
            await store.append([*write(A), *write(B)])

    writing = asyncio.ensure_future(writer())
    starts = itertools.cycle(((1, 1), (20, 20), (1_000, 1_000), (1, 1_000)))  # also behind what there is
    while not writing.done():
        left, right = versions(await other.read_streams([A, B], next(starts)))
        if left != right:
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)
            raise NotKept(f"a torn read: versions {left} and {right} of streams that are written together")
        await sleep_s(0)
    await writing


@claim
async def an_event_of_a_type_that_was_not_expected_is_an_error(store: Store, other: Store) -> None:
    """`decoded` says what it found and where, and never leaves an event out."""
    await store.append([*write(A, ABSENT, 1, "Known")])
    await store.append([*write(A, 1, 1, "Strange")])
    first, second = (await other.read_stream(A)).events
    same(decoded(first, {"Known": dict}), {"n": 0}, "the event of a known type")
    for kinds in ({"Known": dict}, {"Strange": list[int]}):
        try:
            decoded(second, kinds)
        except EventRejected:
            continue
        raise NotKept("no error")


# Reading everything


@claim
async def everything_is_read_in_the_order_of_the_appends(store: Store, other: Store) -> None:
    """One after the other, over several streams; positions increase strictly, and any page can be read on from."""
    wanted = []
    for n in range(7):
        events = happened(2)
        await store.append([StreamWrite(StreamId(f"s-{n % 3}"), ANY, events)])
        wanted += [e.id for e in events]
    whole = await other.read_all(0, 100)
    same([e.id for e in whole], wanted, "events")
    same([e.position for e in whole], sorted({e.position for e in whole}), "positions")
    for page in (1, 3, 13, 14):
        same([e.id async for e in stream_all(other, page=page)], wanted, f"events in pages of {page}")
    same([e.id for e in await other.read_all(whole[4].position, 3)], wanted[5:8], "three behind the fifth")
    same(await other.last_position(), whole[-1].position, "last position")


@claim
async def a_page_of_everything_is_never_cut_within_an_append_so_that_something_is_lost(
    store: Store, other: Store
) -> None:
    """Many events of one append, whose times may be equal: every page size gives them all."""
    await store.append(write(A, ABSENT, 250))
    for page in (1, 10, 100):
        same([e.version async for e in stream_all(other, page=page)], list(range(1, 251)), f"versions, pages of {page}")


@claim
async def a_prefix_is_a_prefix_and_nothing_else(store: Store, other: Store) -> None:
    """Not found in the middle, no wildcards, case counts."""
    names = ["user-1", "old-user-1", "User-1", "user_%", "userx%", "user-"]
    for name in names:
        await store.append(write(name))
    for prefix, wanted in (("user-", ["user-1", "user-"]), ("user_", ["user_%"]), ("user_%", ["user_%"]), ("x", [])):
        same([e.stream for e in await other.read_all(0, 9, Filter(prefix))], wanted, f"streams with {prefix!r}")


@claim
async def a_glob_matches_whole_stream_ids(store: Store, other: Store) -> None:
    """`*`, `?`, `[0-9]`, `[!0-9]`; everything else is itself."""
    for name in ("user-1", "user-12", "user-x", "old-user-1", "user.1", "user-"):
        await store.append(write(name))
    cases = {
        "user-*": ["user-1", "user-12", "user-x", "user-"],
        "user-?": ["user-1", "user-x"],
        "user-[0-9]": ["user-1"],
        "user-[!0-9]": ["user-x"],
        "*user?1": ["user-1", "old-user-1", "user.1"],
        "user.1": ["user.1"],
        "user": [],
    }
    for glob, wanted in cases.items():
        same([e.stream for e in await other.read_all(0, 9, Filter(glob=glob))], wanted, f"streams like {glob!r}")


@claim
async def filters_apply_before_the_limit(store: Store, other: Store) -> None:
    """And all of them together."""
    for n in range(6):
        await store.append(write(f"user-{n}", ABSENT, 1, "Even" if n % 2 == 0 else "Odd"))
        await store.append(write(f"old-user-{n}", ABSENT, 1, "Even"))
    for where in (Filter("user-", types=("Odd",)), Filter(glob="user-*", types=("Odd", "Other"))):
        same([e.stream for e in await other.read_all(0, 2, where)], ["user-1", "user-3"], "the first two")
    same(len(await other.read_all(0, 100, Filter(types=("Even",)))), 9, "events of a type")


@claim
async def a_reader_beside_writers_sees_each_event_once_and_in_order(store: Store, other: Store) -> None:
    """Seven writers with appends of different length: positions are drawn in one order and committed in another. Two readers
    share a store object, and what it knows, and are always close behind the writers."""
    writing = [_writes_on(store if n < 5 else other, n, 80) for n in range(7)]
    reading = asyncio.gather(_seen_until(other, "End"), _seen_until(other, "End"))
    await asyncio.gather(*writing)
    await store.append(write("end", ABSENT, 1, "End"))
    final = [e.id async for e in stream_all(store)]
    async with asyncio.timeout(10):
        both = await reading
    for seen in both:
        same(len(set(final) - set(seen)), 0, "events that the reader missed")
        same(seen == final, True, "that the reader saw each once and in the final order")


async def _seen_until(store: Store, kind: str) -> list[UUID]:
    seen: list[UUID] = []
    async for page in follow(store, page=200):
        seen += [e.id for e in page]
        if page[-1].type == kind:
            break
    return seen


async def _writes_on(store: Store, n: int, appends: int) -> None:
    for i in range(appends):
        await store.append(write(f"s-{n}-{i}", ABSENT, 1 + 100 * ((n + i) % 2)))


@claim
async def a_follower_gets_what_is_appended_later(store: Store, other: Store) -> None:
    """`follow` waits, delivers what it wants and only that, and can go on from a checkpoint."""
    await store.append(write(A, ABSENT, 3))
    wanted = Filter(types=("Later",))
    later = asyncio.ensure_future(_first(other, 0, wanted))
    await sleep_s(0)
    await store.append(write(B, ABSENT, 2))
    await store.append(write(B, 2, 1, "Later"))
    found = await later
    same((found.stream, found.version), (B, 3), "the event that was waited for")
    await store.append(write(B, 3, 1, "Later"))
    same((await _first(other, found.position, wanted)).version, 4, "version behind the checkpoint")


async def _first(store: Store, after: int, where: Filter) -> StoredEvent:
    async for page in follow(store, after, where=where):
        return page[0]
    raise NotKept("follow ended")


# Checkpoints, snapshots, leases


@claim
async def checkpoints_are_kept_by_name(store: Store, other: Store) -> None:
    """Missing is None; saved, overwritten (also backwards, for a rebuild), and independent of each other."""
    await store.append(write(A, ABSENT, 3))
    last = (await store.read_all())[-1].position
    same(await other.load_checkpoint("r1"), None, "a checkpoint never saved")
    await store.save_checkpoint("r1", last)
    same([await other.load_checkpoint(n) for n in ("r1", "r2")], [last, None], "after the first save")
    await other.save_checkpoint("r2", 0)
    await store.save_checkpoint("r1", (await store.read_all())[0].position)
    found = [await store.load_checkpoint(n) for n in ("r1", "r2")]
    same(found, [(await store.read_all())[0].position, 0], "after overwriting")


@claim
async def snapshots_never_go_back(store: Store, other: Store) -> None:
    """Missing is None; kept with the versions of all their streams; one that has seen less of any stream is refused."""
    same(await other.load_snapshot("k"), None, "a snapshot never saved")
    first = Snapshot("k", {A: 3, B: 1}, b'{"sum": 1}')
    same(await store.save_snapshot(first), True, "saved")
    same(await other.load_snapshot("k"), first, "snapshot")
    same(await other.save_snapshot(Snapshot("k", {A: 9, B: 0}, b"old")), False, "saved, though behind on one stream")
    same(await other.save_snapshot(Snapshot("k", {A: 9}, b"old")), False, "saved, though it lacks a stream")
    same(await store.load_snapshot("k"), first, "snapshot")
    later = Snapshot("k", {A: 3, B: 2, C: 1}, b"\x00\xff")
    same(await other.save_snapshot(later), True, "saved")
    same([await store.load_snapshot(k) for k in ("k", "l")], [later, None], "snapshots")


@claim
async def one_leads_at_a_time(store: Store, other: Store) -> None:
    """A lease is had by one, refused to others, independent of other names, and free again when released."""
    lease = await store.try_lead("projector")
    if lease is None:
        raise NotKept("nobody has it, and yet it was refused")
    same(await other.try_lead("projector"), None, "a second lease")
    same(await store.try_lead("projector"), None, "a second lease of the same process")
    elsewhere = await other.try_lead("another")
    if elsewhere is None:
        raise NotKept("a lease of another name was refused")
    await elsewhere.release()
    await lease.release()
    again = await other.try_lead("projector")
    if again is None:
        raise NotKept("released, and yet refused")
    await again.release()
