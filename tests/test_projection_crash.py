"""`kill -9` of the process that keeps a read model, in the middle of the load: every event has its effect once.

A writer appends users all the while. After a seeded number of appends the projector is killed, looked at, and started
again; in the end it catches up and writes its evidence, which the checker holds against the fold.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pyarrow.parquet as pq
import pytest

from eventcore_lab.clock import now_ns, sleep_s
from eventcore_lab.commands.users import Profile, UserProfileUpdated, UserRegistered
from eventcore_lab.events import ANY, NewEvent, Position, StoredEvent, StoreError, StreamId, StreamWrite
from eventcore_lab.lab.checkers import check
from eventcore_lab.load.projector import ProjectorJob
from eventcore_lab.load.workers import Worker
from eventcore_lab.projections import read_models, users
from eventcore_lab.projections.plain import folded
from eventcore_lab.projections.read_model import tables_of
from eventcore_lab.projections.table import CHECKPOINT, rows_sql
from eventcore_lab.schema import GAUGES_FILE
from eventcore_lab.stores import PoolSettings, Store, stores, stream_all
from eventcore_lab.stores.protocol import Place

POOL = PoolSettings.sized(3)
USERS = 40
TIMEOUT_S = 30


@pytest.fixture
def lock(tmp_path: Path) -> Iterator[int]:
    descriptor = os.open(tmp_path / "lock", os.O_CREAT | os.O_RDWR)
    yield descriptor
    os.close(descriptor)


@asynccontextmanager
async def provisioned() -> AsyncIterator[tuple[Place, Store]]:
    driver = stores.make("postgres")
    async with asyncio.timeout(TIMEOUT_S), driver.provision() as place:
        store = await driver.connect(place.address, POOL)
        try:
            yield place, store
        finally:
            await store.close()


class Writer:
    """Registers users and changes their profiles until it is stopped; `count`: appends acknowledged."""

    def __init__(self, store: Store, seed: int) -> None:
        self._store, self._rng = store, random.Random(seed)
        self.count = 0
        self._task = asyncio.ensure_future(self._write())

    async def _write(self) -> None:
        while True:
            n, name = self._rng.randrange(USERS), str(self.count)
            user_id, profile = f"u{n}", Profile("", name, name)
            said: Any = UserProfileUpdated(user_id, profile)
            if self._rng.random() < 0.3:
                said = UserRegistered(user_id, f"{name}@example.org", profile)
            event = NewEvent(type(said).__name__, msgspec.json.encode(said))
            await self._store.append([StreamWrite(StreamId(f"user-{user_id}"), ANY, (event,))])
            self.count += 1

    async def wrote(self, more: int) -> None:
        wanted = self.count + more
        while self.count < wanted and not self._task.done():
            await sleep_s(0.001)

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


def job(folder: Path, place: Place, projection: str) -> ProjectorJob:
    return ProjectorJob(spool=str(folder), projection=projection, store="postgres", address=place.address, pool=POOL)


async def until(store: Store, position: Position) -> AsyncIterator[StoredEvent]:
    async for event in stream_all(store):
        if event.position <= position:
            yield event


async def table_is_the_fold(store: Store) -> Position:
    """Of the events up to its checkpoint, whatever the killed worker's last statement comes to: it is waited for."""
    look = ("SELECT position FROM checkpoints WHERE name = $1 FOR UPDATE", (CHECKPOINT,))
    [[[position]], rows] = await tables_of(store, "").in_transaction([look, (rows_sql("user_summaries"), ())])
    assert sorted(tuple(row) for row in rows) == sorted((await folded(until(store, int(position)))).values())
    return int(position)


async def snapshot_is_the_fold(store: Store) -> Position:
    kept: Any = read_models.make("memory").kept_in(store)
    await kept.make()
    assert sorted(await kept.rows()) == sorted((await folded(until(store, kept.position))).values())
    events = [event async for event in until(store, kept.position)]
    assert kept.applied == len([event for event in events if users.wanted.matches(event.stream, event.type)])
    position: Position = kept.position
    return position


def v17(folder: Path) -> tuple[str, int]:
    [finding] = [f for f in check(folder) if f.id == "V17"]
    return finding.status, finding.looked_at


@pytest.mark.parametrize(("projection", "seed"), [("worker:page=7", n) for n in range(4)] + [("memory:every=20", 4)])
async def test_a_projector_that_is_killed_goes_on_where_it_was(
    projection: str, seed: int, lock: int, tmp_path: Path
) -> None:
    rng, looked = random.Random(seed), list[Position]()
    is_the_fold = snapshot_is_the_fold if projection.startswith("memory") else table_is_the_fold
    async with provisioned() as (place, store):
        writer = Writer(store, seed)
        for _ in range(2):
            projector = await Worker.spawn(job(tmp_path, place, projection), lock)
            await projector.heard("ready")
            await projector.say("go", now_ns())
            await writer.wrote(rng.randint(5, 150))
            projector._process.kill()
            await projector.end()
            looked.append(await is_the_fold(store))
        await writer.wrote(rng.randint(5, 50))
        last = await Worker.spawn(job(tmp_path, place, projection), lock)
        await last.heard("ready")
        await last.say("go", now_ns())
        await writer.wrote(50)
        await writer.stop()
        await last.say("finish")
        done = await last.heard("done")
        await last.end()
        print(f"{projection}, seed {seed}: killed at {looked} of {await store.last_position()}, {done}")
        assert done["has_caught_up"] and done["rows"] == len(await folded(stream_all(store)))
        assert v17(tmp_path) == ("passed", done["rows"])
        assert await is_the_fold(store) > 0 and looked == sorted(looked)


@pytest.mark.parametrize("projection", ["trigger", "matview:every_s=0.05", "chapter_matview:every_s=0.05", "memory"])
async def test_a_projector_tells_how_far_behind_it_is_and_what_it_holds(
    projection: str, lock: int, tmp_path: Path
) -> None:
    async with provisioned() as (place, store):
        projector = await Worker.spawn(job(tmp_path, place, projection), lock)
        await projector.heard("ready")
        writer = Writer(store, 1)
        await projector.say("go", now_ns())
        lines = tmp_path / GAUGES_FILE
        wanted = {"lag_events", "lag_ms", "applied_events"} | ({"refresh_ms"} if "matview" in projection else set())
        found: list[dict[str, Any]] = []
        while {line["name"] for line in found} < wanted or writer.count < 100:
            await sleep_s(0.005)
            found = [json.loads(line) for line in lines.read_text().splitlines()] if lines.exists() else []
        await writer.stop()
        await projector.say("finish")
        done = await projector.heard("done")
        await projector.end()
    assert done["has_caught_up"] and {line["source"] for line in found} == {
        f"projection {projection.partition(':')[0]}"
    }
    assert all(line["value"] >= 0 and line["t_ns"] >= 0 for line in found)
    # The chapter's view has a row per event, and the checker says so.
    assert v17(tmp_path)[0] == ("violated" if projection.startswith("chapter") else "passed")
    assert pq.read_table(tmp_path / "projected-0.parquet")["projection"].unique().to_pylist() == [projection]


async def test_a_second_projector_waits_for_the_first_and_then_says_so(lock: int, tmp_path: Path) -> None:
    async with provisioned() as (place, store):
        lease = await store.try_lead("projection worker")
        assert lease is not None
        late = msgspec.structs.replace(job(tmp_path, place, "worker:page=2"), finish_timeout_s=0.2)
        projector = await Worker.spawn(late, lock)
        with pytest.raises(StoreError, match="somebody else keeps the read model worker:page=2"):
            await projector.heard("ready")
        await projector.end()
        await lease.release()


async def test_a_projector_says_what_it_cannot_keep(lock: int, tmp_path: Path) -> None:
    async with provisioned() as (place, _):
        wrong = msgspec.structs.replace(job(tmp_path, place, "worker"), store="postgres:chapter")
        projector = await Worker.spawn(wrong, lock)
        with pytest.raises(StoreError, match="read model worker needs the store postgres"):
            await projector.heard("ready")
        await projector.end()
