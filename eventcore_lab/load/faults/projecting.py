"""F20 to F23: the chapter's projection in memory, and its materialised view on PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from eventcore_lab.clock import now_ns, sleep_s
from eventcore_lab.commands import CreateUser, UpdateProfile
from eventcore_lab.commands.users import User, user_stream
from eventcore_lab.events import ABSENT, NewEvent, StreamWrite
from eventcore_lab.load.faults.fact import CHAPTER, OURS, Fact, Scale, grounds
from eventcore_lab.projections import read_models
from eventcore_lab.projections.chapter import OptimizedUserProjection
from eventcore_lab.projections.memory import rebuild
from eventcore_lab.projections.read_model import Kept, tables_of
from eventcore_lab.projections.users import users
from eventcore_lab.stores.memory import Memory
from eventcore_lab.stores.protocol import Store
from eventcore_lab.stores.reading import stream_all

_BATCH = 200


def _said_by(n: int, updates: int) -> tuple[NewEvent, ...]:
    """The registration of user n, and so many changes of the profile."""
    name, stream = str(n), user_stream(str(n))
    first = CreateUser(name, f"user{n}@example.com", "Ada", "Byron").decide({stream: None})
    known = {stream: User(f"user{n}@example.com", "Ada Byron")}
    return tuple(
        [e for _, e in first] + [e for _ in range(updates) for _, e in UpdateProfile(name, "Ada", "King").decide(known)]
    )


async def with_users(store: Store, count: int, updates: int) -> None:
    """`count` users, each in a stream of 1 + `updates` events."""
    requests = [[StreamWrite(user_stream(str(n)), ABSENT, _said_by(n, updates))] for n in range(count)]
    for first in range(0, count, _BATCH):
        await store.append_many(requests[first : first + _BATCH])


async def checkpoints(scale: Scale) -> list[Fact]:
    """F20: checkpoints that were due, one every 1000 events, and not written: over many short streams, and few long ones."""
    facts = []
    for streams, length in ((scale.times(400, 100), 10), (4, 1000)):
        store, events = Memory(), streams * length
        await with_users(store, streams, length - 1)
        theirs = OptimizedUserProjection()
        for event in await store.read_all(0, events):  # state left out: only checkpoints are looked at
            theirs.users = theirs.apply_incremental(event, None)
        due = max(events // 1000, 1)
        ours = await rebuild(users, store, every=1000)
        missing = (due - len(theirs.saved), max(due - ours.saves, 0) if events >= 1000 else 0)
        facts += [Fact("F20", a, length, max(n, 0), due) for a, n in zip((CHAPTER, OURS), missing, strict=True)]
    return facts


async def copies(scale: Scale) -> list[Fact]:
    """F21: a rebuild of so many users, each one event, ms."""
    facts = []
    for count in (100, 200, 400, scale.times(800, 400)):
        store = Memory()
        await with_users(store, count, 0)
        began_ns = now_ns()
        await OptimizedUserProjection().rebuild_from_stream(stream_all(store))
        theirs_ns, began_ns = now_ns() - began_ns, now_ns()
        await rebuild(users, store)
        facts += [Fact("F21", CHAPTER, count, theirs_ns / 1e6), Fact("F21", OURS, count, (now_ns() - began_ns) / 1e6)]
    return facts


async def rows_per_user(scale: Scale) -> list[Fact]:
    """F22: rows of the view without an email, when each user changed the profile so many times."""
    facts = []
    for updates in (1, 3, 9):
        async with grounds("postgres") as g:
            await with_users(g.store, scale.times(50, 10), updates)
            for arm, spec in ((CHAPTER, "chapter_matview"), (OURS, "matview")):
                kept = await _made(spec, g.store)
                rows = await kept.rows()
                facts.append(Fact("F22", arm, updates, sum(row[1] is None for row in rows), len(rows)))
    return facts


async def _made(spec: str, store: Store) -> Kept:
    kept = read_models.make(spec).kept_in(store)
    await kept.make()
    await kept.step()
    return kept


async def refreshes(scale: Scale) -> list[Fact]:
    """F23: somebody who asks for one user all the time while the view of so many events is refreshed: the longest wait, ms, and
    the refresh itself (`F23 refresh`)."""
    facts = []
    for count in (scale.times(2000, 200), scale.times(10_000, 1000)):
        async with grounds("postgres") as g:
            await with_users(g.store, count, 0)
            for arm, spec in ((CHAPTER, "chapter_matview"), (OURS, "matview")):
                kept = await _made(spec, g.store)
                longest_ms, refresh_ms = await _beside_a_refresh(g.store, kept)
                facts += [Fact("F23", arm, count, longest_ms), Fact("F23 refresh", arm, count, refresh_ms)]
    return facts


async def _beside_a_refresh(store: Store, kept: Kept) -> tuple[float, float]:
    refreshing = asyncio.ensure_future(kept.step())
    look: Sequence[Any] = [(f"SELECT email FROM {kept.relation} WHERE user_id = '7'", ())]
    longest_ns = 0
    await sleep_s(0.002)  # the refresh has begun
    while not refreshing.done():
        began_ns = now_ns()
        await tables_of(store, "").in_transaction(look)
        longest_ns = max(longest_ns, now_ns() - began_ns)
    return longest_ns / 1e6, (await refreshing).refresh_ns / 1e6


PROJECTED: tuple[tuple[str, Callable[[Scale], Any]], ...] = (
    ("F20", checkpoints),
    ("F21", copies),
    ("F22", rows_per_user),
    ("F23", refreshes),
)
