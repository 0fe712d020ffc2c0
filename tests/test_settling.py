"""A store that shows its readers less than it has acknowledged, since a stranger's transaction is open, is not accused."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import asyncpg
import msgspec

from eventcore_lab.clock import now_ns
from eventcore_lab.events import NewEvent, StreamId, StreamWrite
from eventcore_lab.experiment import Experiment
from eventcore_lab.experiment.jobs import Jobs
from eventcore_lab.lab.checkers import Finding, check, reported
from eventcore_lab.load.journal import Journal
from eventcore_lab.load.worker import Job
from eventcore_lab.load.workers import Worker
from eventcore_lab.schema import LOCK_FILE
from eventcore_lab.stores import PoolSettings, stores

STORE = "postgres:xmin"
"""Its readers wait for every transaction that is older, whoever's it is."""
APPENDS = 3
WITHIN_S = 0.25


@asynccontextmanager
async def strangers_transaction(dsn: str) -> AsyncIterator[None]:
    stranger = await asyncpg.connect(dsn)
    try:
        async with stranger.transaction():
            await stranger.fetch("SELECT pg_current_xact_id()")
            yield
    finally:
        await stranger.close()


async def read_back(job: Job, acknowledged: int) -> int:
    """Have the keeper of a run read its store back; the number of events."""
    lock = os.open(Path(job.spool) / LOCK_FILE, os.O_CREAT | os.O_RDWR)
    keeper = await Worker.spawn(job, lock)
    try:
        await keeper.heard("ready")
        await keeper.say("go", now_ns())
        await keeper.say("verify", acknowledged)
        return int((await keeper.heard("done"))["stored"])
    finally:
        await keeper.end()
        os.close(lock)


async def judged(is_held: bool, folder: Path) -> tuple[int, dict[str, Finding]]:
    """How many events a run on STORE read back, and what was found."""
    driver, e = stores.make(STORE), Experiment(store=STORE, workload="write_events", timeout_s=WITHIN_S)
    async with AsyncExitStack() as stack:
        place = await stack.enter_async_context(driver.provision())
        journal = Journal(await driver.connect(place.address, PoolSettings.sized(1)))
        stack.push_async_callback(journal.close)
        if is_held:
            await stack.enter_async_context(strangers_transaction(place.address.dsn))
        for n in range(APPENDS):
            await journal.append([StreamWrite(StreamId("s"), n, (NewEvent("T", b"{}"),))])
        journal.write(folder, 0)
        keeper = msgspec.structs.replace(Jobs(e, folder, False).keeper(place), settle_timeout_s=WITHIN_S)
        return await read_back(keeper, journal.acknowledged), {f.name: f for f in check(folder)}


async def test_what_a_store_may_not_show_yet_is_not_called_lost(tmp_path: Path) -> None:
    stored, found = await judged(True, tmp_path)
    lost = found["acknowledged appends are there"]
    assert stored < APPENDS and (lost.status, lost.detail) == (
        "broken",
        f"the store had not settled up to what was acknowledged within {WITHIN_S:g} s; is another transaction open on the "
        "server?",
    )
    assert not [f for f in found.values() if f.status == "violated"]
    assert "events stored" not in reported(tmp_path)


async def test_a_store_that_has_settled_is_judged_by_what_it_shows(tmp_path: Path) -> None:
    stored, found = await judged(False, tmp_path)
    lost = found["acknowledged appends are there"]
    assert stored == APPENDS and (lost.status, lost.looked_at) == ("passed", APPENDS)
    assert {f.status for f in found.values()} == {"passed", "not tested"}
