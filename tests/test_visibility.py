"""Late visibility: a reader beside writers, by schedules that leave nothing to chance, and by many writers at once."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID

import asyncpg
import pytest

from eventcore_lab.events import ABSENT, AppendResult, NewEvent, OutcomeUnknown, StoreError, StreamId, StreamWrite
from eventcore_lab.stores import PoolSettings, Store, follow, stores, stream_all
from eventcore_lab.stores.variants import SAFE_ORDER, variants

SAFE = ("", "table_lock", "counter", "xmin", "barrier")
LOSSY = ("none", "timeout", "late_xid")
MAKE_WAIT = ("table_lock", "counter", "barrier")
"""Variants in which the append that hangs makes the other append, or the reader, wait for it."""
GATE = 42
# Runs after the position was drawn and before the row is there: the append to stream `slow` waits for GATE.
WAITS = f"""CREATE FUNCTION waits() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.stream_id = 'slow' THEN PERFORM pg_advisory_lock_shared({GATE}); END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER waits BEFORE INSERT ON events FOR EACH ROW EXECUTE FUNCTION waits()"""
ONE = "SELECT append_event($1, 0, $2, 'T', '\\x', '\\x')"


def write(stream: str) -> list[StreamWrite]:
    return [StreamWrite(StreamId(stream), ABSENT, (NewEvent("T", b"{}"),))]


def spec_of(variant: str) -> str:
    return f"postgres:{variant},gap_ms=0.001" if variant == "timeout" else f"postgres:{variant}".rstrip(":")


@asynccontextmanager
async def place_of(spec: str) -> AsyncIterator[tuple[Store, asyncpg.Connection, asyncpg.Connection]]:
    """A store, and two connections to its schema; at the end whatever hangs is let go."""
    driver = stores.make(spec)
    async with driver.provision() as place:
        store = await driver.connect(place.address, PoolSettings.sized(6))
        settings = {"search_path": place.address.schema}
        raw = [await asyncpg.connect(place.address.dsn, server_settings=settings) for _ in range(2)]
        try:
            yield store, raw[0], raw[1]
        finally:
            for connection in raw:
                connection.terminate()
            await store.close()


class Tail:
    """A reader that goes on where it stopped."""

    def __init__(self, store: Store) -> None:
        self._store, self._after = store, 0
        self.seen: list[str] = []

    async def read(self, pages: int) -> None:
        for _ in range(pages):
            page = await self._store.read_all(self._after, 100)
            self.seen += [e.stream for e in page]
            self._after = page[-1].position if page else self._after


async def waiting_for_gate(connection: asyncpg.Connection) -> None:
    """Until the slow append hangs: it has its position, and no row yet."""
    for _ in range(10_000):
        found = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = $1 AND NOT granted"
        if await connection.fetchval(found, GATE):
            return
    raise AssertionError("the slow append never came to its gate")


async def overtaken(variant: str) -> tuple[list[str], list[str]]:
    """What a reader was given, and what is there: an append that hangs after drawing its position is overtaken."""
    async with place_of(spec_of(variant)) as (store, gate, slow):
        await store.append(write("first"))
        await gate.execute(WAITS)
        await gate.execute(f"SELECT pg_advisory_lock({GATE})")
        hanging = asyncio.ensure_future(slow.fetchval(ONE, "slow", write("x")[0].events[0].id))
        await waiting_for_gate(gate)
        fast = asyncio.ensure_future(store.append(write("fast")))
        tail = Tail(store)
        if variant not in MAKE_WAIT:
            await fast  # overtakes, and then the reader comes
        reading = asyncio.ensure_future(tail.read(30))
        if variant not in MAKE_WAIT:
            await reading
        await gate.execute(f"SELECT pg_advisory_unlock({GATE})")
        await asyncio.gather(hanging, fast, reading)
        await tail.read(30)
        return tail.seen, [e.stream async for e in stream_all(store)]


@pytest.mark.parametrize("variant", SAFE)
async def test_an_append_that_is_overtaken_is_still_delivered_once_and_in_order(variant: str) -> None:
    seen, there = await overtaken(variant)
    assert seen == there
    assert set(there) == {"first", "slow", "fast"}


@pytest.mark.parametrize("variant", LOSSY)
async def test_a_reader_that_does_not_wait_loses_the_append_that_is_overtaken(variant: str) -> None:
    seen, there = await overtaken(variant)
    assert set(there) - set(seen) == {"slow"}
    assert SAFE_ORDER in variants()[variant].lacks


async def test_what_one_reader_learns_is_no_excuse_for_a_page_that_another_has_read_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two readers of one store object: while the first holds a page with a hole, the hole is filled and the second
    learns that everything is settled."""
    async with place_of("postgres") as (store, slow, _):
        await store.append(write("first"))
        filling = slow.transaction()
        await filling.start()
        await slow.fetchval(ONE, "slow", write("x")[0].events[0].id)
        await store.append(write("fast"))
        read, is_first = store._read, [True]  # type: ignore[attr-defined]

        async def read_and_be_overtaken(sql: str, *arguments: object) -> list[object]:
            rows: list[object] = await read(sql, *arguments)
            if is_first.pop() if is_first else False:
                await filling.commit()
                assert await store.last_position() == 3
            return rows

        monkeypatch.setattr(store, "_read", read_and_be_overtaken)
        assert [e.stream for e in await store.read_all(1, 10)] == ["slow", "fast"]


async def past_the_xmax(variant: str) -> tuple[list[str], list[str]]:
    """The row above the hole belongs to an older transaction than the hole's: the snapshot's xmax is the hole's own id."""
    async with place_of(spec_of(variant)) as (store, older, younger):
        event_id = write("x")[0].events[0].id
        ahead, behind = older.transaction(), younger.transaction()
        await ahead.start()
        await older.fetchval("SELECT pg_current_xact_id()")
        await behind.start()
        await younger.fetchval("SELECT pg_current_xact_id()")
        position = await younger.fetchval("SELECT nextval(pg_get_serial_sequence('events', 'position'))")
        await older.fetchval(ONE, "above", event_id)
        await ahead.commit()
        tail = Tail(store)
        await tail.read(10)
        await younger.execute(
            """INSERT INTO events (position, stream_id, version, event_id, event_type, data, meta)
               OVERRIDING SYSTEM VALUE VALUES ($1, 'hole', 1, $2, 'T', '', '')""",
            position,
            event_id,
        )
        await behind.commit()
        await tail.read(10)
        return tail.seen, [e.stream async for e in stream_all(store)]


async def test_the_fence_is_an_id_of_its_own_and_not_the_snapshots_xmax() -> None:
    seen, there = await past_the_xmax("")
    assert seen == there == ["hole", "above"]
    lossy, there = await past_the_xmax("xmax_fence")
    assert (lossy, there) == (["above"], ["hole", "above"])


@pytest.mark.parametrize("variant", SAFE)
@pytest.mark.parametrize("seed", [1, 2])
async def test_eight_writers_killed_appends_and_a_long_foreign_transaction_lose_nothing(
    variant: str, seed: int
) -> None:
    """Each append stays open for a random time; some backends are killed in it; somebody else's transaction stays open."""
    rng = random.Random(seed)
    async with place_of(f"postgres:{variant or 'hold_ms=4'}{',hold_ms=4' if variant else ''}") as (
        store,
        killer,
        foreign,
    ):
        long = foreign.transaction()
        await long.start()
        await foreign.fetchval("SELECT pg_current_xact_id()")
        seen: list[UUID] = []
        reading = asyncio.ensure_future(_until_end(store, seen))
        writing = asyncio.gather(*(_writer(store, n, 12) for n in range(8)))
        killed = await _some_killed(killer, 4, writing, rng)
        acknowledged = {event for part in await writing for event in part}
        await long.rollback()
        await store.append(write("end"))
        async with asyncio.timeout(20):
            await reading
        there = [e.id async for e in stream_all(store)]
        print(f"seed {seed}: {len(there)} events, {killed} backends killed")
        assert seen == there
        assert acknowledged <= set(there)


async def _until_end(store: Store, seen: list[UUID]) -> None:
    async for page in follow(store, page=7):
        seen += [e.id for e in page]
        if page[-1].stream == "end":
            return


async def _writer(store: Store, n: int, appends: int) -> list[UUID]:
    acknowledged = []
    for i in range(appends):
        writes = write(f"s-{n}-{i}")
        try:
            assert isinstance(await store.append(writes), AppendResult)
        except (OutcomeUnknown, StoreError):
            continue
        acknowledged.append(writes[0].events[0].id)
    return acknowledged


async def _some_killed(
    killer: asyncpg.Connection, count: int, writing: asyncio.Future[list[list[UUID]]], rng: random.Random
) -> int:
    """Kill backends that hold an append open, until `count` are or the writing is over."""
    killed = 0
    while killed < count and not writing.done():
        pids = await killer.fetch(
            """SELECT pid FROM pg_stat_activity
               WHERE wait_event = 'PgSleep' AND query LIKE '%append_event%'"""
        )
        if pids and rng.random() < 0.1:
            killed += bool(await killer.fetchval("SELECT pg_terminate_backend($1)", rng.choice(pids)["pid"]))
    return killed
