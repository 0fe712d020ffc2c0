"""The server of a run's store, looked at from beside: in the run's own series, and never in its way."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import polars as pl
import pytest

from eventcore_lab.companions import server as companion
from eventcore_lab.companions.series import Series
from eventcore_lab.experiment import Experiment
from eventcore_lab.lab.database import Lab
from eventcore_lab.lab.measures import Run
from eventcore_lab.progress import Quiet
from eventcore_lab.schema import GAUGES_FILE, MARKS_FILE
from eventcore_lab.stores import Address, PoolSettings, observing, stores
from eventcore_lab.stores.embedded import EmbeddedServer, shared_server
from eventcore_lab.stores.observing import Seen
from eventcore_lab.workbench import run


@pytest.fixture
def series(tmp_path: Path) -> Iterator[Series]:
    made = Series(tmp_path)
    made.start_ns = 0
    yield made
    made.close()


def rows(folder: Path, file: str) -> list[dict[str, Any]]:
    return [msgspec.json.decode(line) for line in (folder / file).read_bytes().splitlines()]


def names(folder: Path) -> set[str]:
    return {f"{r['source']}.{r['name']}" for r in rows(folder, GAUGES_FILE)}


class Scripted:
    """An Observer that sees what it is told."""

    def __init__(self, looks: list[Seen]) -> None:
        self._looks, self.asked, self.pid = looks, list[bool](), 4711
        self.asked_for_streams, self.made_due_at = list[bool](), list[int]()
        self.is_over = asyncio.Event()

    def make_due(self) -> None:
        self.made_due_at.append(len(self.asked))

    async def look(self, events: bool = True, streams: bool = False) -> Seen:
        self.asked.append(events)
        self.asked_for_streams.append(streams)
        if len(self._looks) <= 1:
            self.is_over.set()
        return self._looks.pop(0) if len(self._looks) > 1 else self._looks[0]

    async def close(self) -> None:
        self.asked.append(False)


async def watched(series: Series, monkeypatch: pytest.MonkeyPatch, looks: list[Seen]) -> tuple[Scripted, set[int]]:
    """What a companion comes to whose server tells these."""
    scripted = Scripted(looks)
    monkeypatch.setattr(companion, "Observer", lambda *_, **__: scripted)
    async with companion.server(series, Address("", "postgresql://x"), every_s=0.0) as watch:
        await scripted.is_over.wait()
    return scripted, watch.pids


async def test_a_store_without_a_server_has_nothing_to_tell(series: Series, tmp_path: Path) -> None:
    for address in (Address("memory"), Address("theirs", "mysql://somewhere"), Address("sqlite", schema="file")):
        async with companion.server(series, address) as watch:
            await asyncio.sleep(0)
        assert watch.pids == set() and await watch.crashes() == 0
    assert rows(tmp_path, GAUGES_FILE) == rows(tmp_path, MARKS_FILE) == []


async def test_what_is_seen_is_written_down_with_its_cost(
    series: Series, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = Seen({"server.connections.active": 3.0, "server.wait:LWLock:WALWrite": 2.0}, cost_ms=1.5)
    scripted, pids = await watched(series, monkeypatch, [seen] * 3)
    assert names(tmp_path) == {"server.connections.active", "server.wait:LWLock:WALWrite", "probe.server_cost_ms"}
    # The tables are looked at when the load is over, and not while it runs.
    assert scripted.asked[-2:] == [True, False] and not any(scripted.asked[:-2])
    assert pids == {4711}
    assert rows(tmp_path, MARKS_FILE) == []


async def test_a_server_that_cannot_be_looked_at_is_marked_once_each_time(
    series: Series, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone, there = Seen({}, error="it is gone"), Seen({"server.replicas": 0.0}, cost_ms=1.0)
    scripted, _ = await watched(series, monkeypatch, [gone, gone, there, gone, gone])
    marks = rows(tmp_path, MARKS_FILE)
    assert [(m["name"], m["detail"]) for m in marks] == [("the server could not be looked at", "it is gone")] * 2
    assert names(tmp_path) == {"server.replicas", "probe.server_cost_ms"}
    assert not any(scripted.asked)  # one that is gone is not asked once more at the end


async def test_streams_are_asked_for_seldom(series: Series, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted, _ = await watched(series, monkeypatch, [Seen({})] * 25)
    assert [n for n, asked in enumerate(scripted.asked_for_streams, 1) if asked][:2] == [10, 20]
    last = len(scripted.asked) - 2  # before it was closed
    assert scripted.asked[last] and scripted.made_due_at == [last], (
        "the end is told whole, whatever was asked just before"
    )


async def test_marks_are_bounded(series: Series, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await watched(series, monkeypatch, [Seen({}, error="gone"), Seen({}, cost_ms=1.0)] * 50)
    assert len(rows(tmp_path, MARKS_FILE)) == companion.MARKS_MAX


async def test_a_crash_is_survived_and_counted(series: Series, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observing, "RETRY_FIRST_S", 0.0)
    with EmbeddedServer(settings={"fsync": "off"}) as server:
        observer = observing.Observer(server.dsn)
        watch = companion.Watch(series, observer)
        watch.tell(await observer.look())
        server.kill()
        observer._parts[0].reset()
        watch.tell(await observer.look())
        assert not watch.is_there
        before = len(rows(tmp_path, GAUGES_FILE))
        server.restart()
        observer._retry_ns = 0
        watch.tell(await observer.look())
        assert watch.is_there and len(rows(tmp_path, GAUGES_FILE)) > before
        assert await watch.crashes() == 1
        server.kill()  # and nobody looked before it was there again
        assert await watch.crashes() == 1
        server.restart()
        assert await watch.crashes() == 2
        await observer.close()


async def test_the_end_of_a_load_is_not_held_up_by_a_look(series: Series, tmp_path: Path) -> None:
    """At once at the end, nothing was awaited before: the one look that began is waited for, then the last."""
    async with stores.make("postgres").provision() as place:
        store = await stores.make("postgres").connect(place.address, PoolSettings.sized(1))
        async with companion.server(series, place.address):
            pass
        await store.close()
    found = names(tmp_path)
    assert {"server.connections.idle", "store.events_total", "store.streams", "probe.server_cost_ms"} <= found


async def test_a_run_on_postgres_records_its_server(closed_run: Run) -> None:
    gauges = closed_run.gauges
    told = {f"{source}.{name}" for source, name in gauges.select("source", "name").iter_rows()}
    assert {"server.connections.active", "server.wal_bytes", "server.wait:other", "probe.server_cost_ms"} <= told
    assert closed_run.gauge("store", "events_total", steady=False)["value"][-1] > 0
    assert not closed_run.marks.filter(name="the server could not be looked at").height
    # What only looks is gone, and was no part of the server.
    assert await _named_so(shared_server().dsn) == 0


async def _named_so(dsn: str) -> int:
    import asyncpg

    connection = await asyncpg.connect(dsn)
    try:
        found: int = await connection.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = $1", observing.APPLICATION_NAME
        )
        return found
    finally:
        await connection.close()


def test_a_run_on_postgres_records_its_pool(closed_run: Run) -> None:
    found = closed_run.gauges.filter(pl.col("source") == "loader")
    in_use, waiting = (found.filter(pl.col("name") == name)["value"] for name in ("pool_in_use", "pool_waiting"))
    assert 2 <= len(in_use) == len(waiting) <= 20
    assert in_use.is_between(0, 4).all() and in_use.max() > 0 and (waiting == 0).all(), "4 callers have 4 connections"


def test_a_run_without_a_server_records_none(lab: Lab) -> None:
    done = run(Experiment(store="memory", duration_s=0.2, warmup_s=0.05), lab, Quiet())
    assert "server" not in set(done.gauges["source"]) and "server_cost_ms" not in set(done.gauges["name"])
