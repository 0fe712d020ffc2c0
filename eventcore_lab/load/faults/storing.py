"""F1 to F7 and F24 to F27, F30: what goes wrong between the chapter's store and PostgreSQL, on the real thing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from random import Random
from typing import Any

import asyncpg

from eventcore_lab.clock import NS_PER_S, now_ns, sleep_s
from eventcore_lab.events import ABSENT, StoreError, StreamId, VersionConflict
from eventcore_lab.load.faults.fact import CHAPTER, OURS, POOL, A, B, Fact, Scale, grounds, outcome, write
from eventcore_lab.stores.chapter import Chapter
from eventcore_lab.stores.protocol import PoolSettings, Store

STAMPS_PER_US = 4
"""Events that a compiled loop stamps within a microsecond, on average; Python's takes longer than one for each."""
UNIQUE = "with a unique key"
TRIES = 4
"""Of what can come out only one way: so many agreeing settle that it is more often than not."""


async def ties(scale: Scale) -> list[Fact]:
    """F1: one batch stamped in a loop, drained in pages."""
    events, facts = scale.times(3000, 1500), []
    for arm, spec in ((CHAPTER, "postgres:chapter"), (OURS, "postgres")):
        async with grounds(spec) as g:
            store = g.store.varied(now_us=_fast_clock(scale.seed)) if isinstance(g.store, Chapter) else g.store
            await store.append([write(A, ABSENT, events)])
            for page in (10, 33, 100, 333, 1000):
                lost = events - await _drained(store, page)
                facts.append(Fact("F1", arm, page, lost, events))
    return facts


def _fast_clock(seed: int) -> Callable[[], int]:
    """Microseconds, asked about STAMPS_PER_US times within each."""
    rng, at_us = Random(seed), 1e6

    def now_us() -> int:
        nonlocal at_us
        at_us += rng.uniform(0, 2 / STAMPS_PER_US)
        return int(at_us)

    return now_us


async def _drained(store: Store, page: int) -> int:
    after = found = 0
    while events := await store.read_all(after, page):
        after, found = events[-1].position, found + len(events)
    return found


async def late_commits(scale: Scale) -> list[Fact]:
    """F2: eight writers, and a reader that tails them; each append stays open for up to so many ms."""
    specs = ((CHAPTER, "postgres:chapter"), ("EventCore's", "postgres:eventcore"), (OURS, "postgres"))
    each, facts = scale.times(40, 8), []
    for hold_ms in (0, 1, 10):
        for arm, spec in specs:
            option = "," if ":" in spec else ":"
            async with grounds(f"{spec}{option}hold_ms={hold_ms}" if hold_ms else spec) as g:
                lost = await _lost_by_a_tail(g.store, each)
                facts.append(Fact("F2", arm, hold_ms, lost, 8 * each))
    return facts


async def _lost_by_a_tail(store: Store, each: int) -> int:
    is_over, found = asyncio.Event(), 0

    async def follow() -> None:
        nonlocal found
        after = 0
        while True:
            was_over = is_over.is_set()
            events = await store.read_all(after, 1000)
            if not events and was_over:
                return
            found += len(events)
            after = events[-1].position if events else after
            await sleep_s(0.001)

    async def append(n: int) -> None:
        for k in range(each):
            await store.append([write(StreamId(f"s-{n}-{k}"), ABSENT)])

    async with asyncio.TaskGroup() as group:
        group.create_task(follow())
        await asyncio.gather(*[append(n) for n in range(8)])
        is_over.set()
    return 8 * each - found


async def two_winners(scale: Scale) -> list[Fact]:
    """F3: writers who read a hot stream's version and append behind it. Without a key two get the same version; with one the
    second is told of an error of the database."""
    facts = []
    for writers in (2, 8, 32):
        for arm, spec in ((CHAPTER, "postgres:chapter"), (UNIQUE, "postgres:chapter_unique"), (OURS, "postgres")):
            async with grounds(spec) as g:
                refused = await _contended(g.store, writers, scale.times(240, 60) // writers)
                if arm == UNIQUE:
                    errors = sum(not isinstance(error, VersionConflict) for error in refused)
                    facts.append(Fact("F3", arm, writers, errors, len(refused)))
                    continue
                versions = [event.version for event in (await g.store.read_stream(A)).events]
                facts.append(Fact("F3", arm, writers, len(versions) - len(set(versions)), len(versions)))
    return facts


async def _contended(store: Store, writers: int, each: int) -> list[StoreError]:
    refused: list[StoreError] = []

    async def contend() -> None:
        for _ in range(each):
            version = (await store.read_stream(A, 1)).version
            if error := await outcome(store, [write(A, version)]):
                refused.append(error)

    await asyncio.gather(*[contend() for _ in range(writers)])
    return refused


async def first_expectation(scale: Scale) -> list[Fact]:
    """F4: two commands of one batch that expect the same version: one must be refused."""
    facts, pairs = [], scale.times(40, 5)
    for arm, spec in ((CHAPTER, "postgres:chapter"), (OURS, "postgres")):
        async with grounds(spec) as g:
            both = 0
            for n in range(pairs):
                stream = StreamId(f"pair-{n}")
                results = await g.store.append_many([[write(stream, ABSENT)], [write(stream, ABSENT)]])
                both += not any(isinstance(result, StoreError) for result in results)
            facts.append(Fact("F4", arm, 2, both, pairs))
    return facts


async def statements_per_stream(scale: Scale) -> list[Fact]:
    """F5: one append of 200 events over so many streams, ms for the quickest."""
    facts, tries = [], scale.times(9, 3)
    for arm, spec in ((CHAPTER, "postgres:chapter"), (OURS, "postgres")):
        async with grounds(spec) as g:
            for streams in (1, 10, 100, 200):
                took_ms = []
                for n in range(tries):
                    names = [StreamId(f"wide-{streams}-{n}-{s}") for s in range(streams)]
                    began_ns = now_ns()
                    await g.store.append([write(name, ABSENT, 200 // streams) for name in names])
                    took_ms.append((now_ns() - began_ns) / 1e6)
                facts.append(Fact("F5", arm, streams, min(took_ms)))
    return facts


async def parameters(scale: Scale) -> list[Fact]:
    """F6: whether an append of so many events is one."""
    facts = []
    for arm, spec in ((CHAPTER, "postgres:chapter"), (OURS, "postgres")):
        async with grounds(spec) as g:
            for events in (1000, 4681, 4682, 10_000):
                names = [StreamId(f"long-{events}-{n}") for n in range(scale.times(TRIES, 1))]
                errors = [await outcome(g.store, [write(name, ABSENT, events)]) for name in names]
                facts.append(Fact("F6", arm, events, sum(error is not None for error in errors), len(names)))
    return facts


class _AsGiven(Random):
    def shuffle(self, x: Any) -> None:
        """Left as it is: sorted by who calls."""


async def deadlocks(scale: Scale) -> list[Fact]:
    """F7: callers who append to two hot streams at once; beside the deadlocks (`F7`) the longest append is noted (`F7 longest`,
    ms)."""
    facts = []
    arms: list[tuple[str, str, Random | None]] = [
        (CHAPTER, "postgres:chapter_unique", Random(scale.seed)),
        ("sorted by stream", "postgres:chapter_unique", _AsGiven()),
        (OURS, "postgres", None),
    ]
    for callers in (2, 4):
        for arm, spec, order in arms:
            async with grounds(spec) as g:
                store = g.store.varied(order) if isinstance(g.store, Chapter) else g.store
                count_, deadlocked, longest_ms = await _crossing(store, callers, min(scale.size, 1.0))
                facts.append(Fact("F7", arm, callers, deadlocked, count_))
                facts.append(Fact("F7 longest", arm, callers, longest_ms))
    return facts


async def _crossing(store: Store, callers: int, duration_s: float) -> tuple[int, int, float]:
    end_ns = now_ns() + int(duration_s * NS_PER_S)
    appends, deadlocked, longest_ms = 0, 0, 0.0

    async def cross() -> None:
        nonlocal appends, deadlocked, longest_ms
        while now_ns() < end_ns:
            began_ns = now_ns()
            error = await outcome(store, [write(A), write(B)])
            longest_ms = max(longest_ms, (now_ns() - began_ns) / 1e6)
            appends += 1
            deadlocked += "DeadlockDetected" in str(error)

    await asyncio.gather(*[cross() for _ in range(callers)])
    return appends, deadlocked, longest_ms


async def version_of_the_page(scale: Scale) -> list[Fact]:
    """F24: somebody who reads the first page of a longer stream, and appends at the version he is told."""
    facts, tries = [], scale.times(20, 5)
    for arm, spec in ((CHAPTER, "postgres:chapter"), (OURS, "postgres")):
        async with grounds(spec) as g:
            await g.store.append([write(A, ABSENT, 11)])
            conflicts = 0
            for _ in range(tries):
                page = await g.store.read_stream(A, 1, 10)
                conflicts += isinstance(await outcome(g.store, [write(A, page.version)]), VersionConflict)
            facts.append(Fact("F24", arm, 10, conflicts, tries))
    return facts


async def torn_reads(scale: Scale) -> list[Fact]:
    """F25: two streams that each append makes longer alike, read together while one writer appends."""
    facts, reads = [], scale.times(400, 100)
    for arm, spec in ((CHAPTER, "postgres:chapter"), (OURS, "postgres")):
        async with grounds(spec) as g:
            is_over, torn = asyncio.Event(), 0

            async def transfer(store: Store = g.store, over: asyncio.Event = is_over) -> None:
                while not over.is_set():
                    await store.append([write(A), write(B)])

            async with asyncio.TaskGroup() as group:
                group.create_task(transfer())
                for _ in range(reads):
                    left, right = await g.store.read_streams([A, B])
                    torn += left.version != right.version
                is_over.set()
            facts.append(Fact("F25", arm, 2, torn, reads))
    return facts


async def connections_per_command(scale: Scale) -> list[Fact]:
    """F26: 20 callers over the chapter's pool of 20 who each read so many streams together, ms in the mean."""
    facts, each = [], scale.times(5, 2)
    for arm, spec in ((CHAPTER, "postgres:chapter"), (OURS, "postgres")):
        async with grounds(spec, PoolSettings.sized(20)) as g:
            names = [StreamId(f"s-{n}") for n in range(20)]
            for name in names:
                await g.store.append([write(name, ABSENT)])
            for streams in (1, 5, 20):

                async def look(store: Store = g.store, wanted: list[StreamId] = names[:streams]) -> None:
                    for _ in range(each):
                        await store.read_streams(wanted)

                began_ns = now_ns()
                await asyncio.gather(*[look() for _ in range(20)])
                facts.append(Fact("F26", arm, streams, (now_ns() - began_ns) / 1e6 / each))
    return facts


async def timeouts(_: Scale) -> list[Fact]:
    """F27: an append behind a lock that somebody holds for a second, with a command time-out of 200 ms; ms until its caller
    knows."""
    facts, settings = [], PoolSettings(max_connections=2, min_connections=1, command_timeout_s=0.2)
    for arm, spec in ((CHAPTER, "postgres:chapter"), (OURS, "postgres")):
        async with grounds(spec, settings) as g, g.hand() as hand:
            held = hand.transaction()
            await held.start()
            await hand.execute("LOCK TABLE events IN SHARE MODE")
            began_ns = now_ns()
            waiting = asyncio.ensure_future(outcome(g.store, [write(A, ABSENT)]))
            await asyncio.wait([waiting], timeout=1.0)
            await held.rollback()
            await waiting
            facts.append(Fact("F27", arm, 200, (now_ns() - began_ns) / 1e6))
    return facts


async def texts(scale: Scale) -> list[Fact]:
    """F30: the chapter's INSERT with its parameters declared as the text that it binds."""
    async with grounds("postgres:chapter", POOL) as g, g.hand() as hand:
        columns = "id, stream_id, version, event_type, payload, metadata, occurred_at"
        declared, listed = ", ".join(["text"] * 7), ", ".join([f"${n}" for n in range(1, 8)])
        refused, tries = 0, scale.times(TRIES, 1)
        for n in range(tries):
            try:
                await hand.execute(f"PREPARE theirs{n}({declared}) AS INSERT INTO events ({columns}) VALUES ({listed})")
            except asyncpg.PostgresError as error:
                refused += error.sqlstate == "42804"
        return [Fact("F30", CHAPTER, 7, refused, tries)]


REAL: tuple[tuple[str, Callable[[Scale], Any]], ...] = (
    ("F1", ties),
    ("F2", late_commits),
    ("F3", two_winners),
    ("F4", first_expectation),
    ("F5", statements_per_stream),
    ("F6", parameters),
    ("F7", deadlocks),
    ("F24", version_of_the_page),
    ("F25", torn_reads),
    ("F26", connections_per_command),
    ("F27", timeouts),
    ("F30", texts),
)
