"""Readers beside the load: what they are given is written down, and what is said about it is counted right."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pages
import psutil
import pyarrow.parquet as pq
import pytest

from eventcore_lab import cli
from eventcore_lab.clock import now_ns
from eventcore_lab.companions.series import Series
from eventcore_lab.events import NewEvent, StoredEvent, StoreUnreachable, StreamId, StreamWrite
from eventcore_lab.experiment import Experiment, RunBroken, with_option
from eventcore_lab.lab import sentences, visibility
from eventcore_lab.lab.database import Lab
from eventcore_lab.lab.measures import Run
from eventcore_lab.load.evidence import write_rows
from eventcore_lab.load.follower import Delivered, FollowerJob
from eventcore_lab.load.projector import ProjectorJob
from eventcore_lab.load.workers import Followers, WorkerDied
from eventcore_lab.progress import Quiet, Tally
from eventcore_lab.schema import GAUGES_FILE, MARKS_FILE, SAFE_ORDER, SAMPLE_WORDS, TABLES, ExitCode, Outcome, packed
from eventcore_lab.spec import UsageError
from eventcore_lab.stores import Place, PoolSettings, Store, stores
from eventcore_lab.stores.conformance import CLAIMS
from eventcore_lab.stores.protocol import Address
from eventcore_lab.workbench import run

LOAD: dict[str, Any] = {"pacer": "saturate:concurrency=8", "duration_s": 0.5, "warmup_s": 0.1, "connections": 8}
S = StreamId("s")
MS = 1_000_000


def delivered_in(folder: Path, reader: int) -> list[list[int]]:
    """The `nth` of each row, part by part."""
    assert not list(folder.glob("*.part")) and not list(folder.glob("*.log"))
    return [pq.read_table(part)["nth"].to_pylist() for part in sorted(folder.glob(f"followed-{reader}-*.parquet"))]


def seen_in(folder: Path) -> list[int]:
    return [ns for part in sorted(folder.glob("followed-*")) for ns in pq.read_table(part)["seen_ns"].to_pylist()]


def job(folder: Path, **changes: Any) -> FollowerJob:
    given = {"spool": str(folder), "reader": 0, "store": "postgres", "address": Address("x"), "pool": PoolSettings()}
    return FollowerJob(**{**given, **changes})


# whole runs


def test_followers_of_a_safe_store_are_given_every_event_once_and_in_order(lab: Lab) -> None:
    found = run(Experiment(store="postgres", followers=2, **LOAD), lab, Quiet())
    assert found.row["followers"] == 2
    stored = found.samples.filter(found.samples["outcome"] == int(Outcome.OK))["events"].sum()
    readers = found.readers
    assert readers["delivered"].to_list() == [stored, stored]
    assert readers.select("skipped", "repeated", "reordered").rows() == [(0, 0, 0)] * 2
    for low, high in (("lag_p50_ns", "lag_p95_ns"), ("lag_p95_ns", "lag_p99_ns"), ("lag_p99_ns", "lag_max_ns")):
        assert (readers[low] >= 0).all() and (readers[low] <= readers[high]).all()
    assert not list(lab.spool.iterdir())


def test_a_follower_of_a_store_without_a_cure_skips_and_the_run_tells(lab: Lab) -> None:
    found = run(Experiment(store="postgres:none,hold_ms=10", followers=1, **LOAD), lab, Quiet())
    assert found.readers["skipped"][0] > 0
    assert not found.promises("a reader beside writers sees each event once and in order")


def test_a_run_without_followers_has_no_readers(open_run: Run) -> None:
    assert open_run.row["followers"] == 0 and not len(open_run.readers)


def test_a_store_of_one_process_cannot_be_followed() -> None:
    with pytest.raises(UsageError, match="followers need a store that several processes can open"):
        Experiment(store="memory", followers=1)


class _KillsAFollower(Quiet):
    """Kills one of the follower processes once the load has begun."""

    def update(self, title: str, tally: Tally) -> None:
        for child in psutil.Process().children():
            if "eventcore_lab.load.follower" in " ".join(child.cmdline()):
                os.kill(child.pid, signal.SIGKILL)
                return


def test_a_follower_that_is_killed_ends_the_run_and_is_said(lab: Lab) -> None:
    with pytest.raises(RunBroken, match="follower 0 was ended by signal SIGKILL"):
        run(Experiment(**{**LOAD, "duration_s": 60}, store="postgres", followers=1), lab, _KillsAFollower())
    [row] = lab.runs().iter_rows(named=True)
    assert row["status"] == "broken"


# the process


async def test_a_follower_finishes_when_it_has_everything_and_ends_with_its_input(tmp_path: Path) -> None:
    driver, lock = stores.make("postgres"), os.open(tmp_path / "lock", os.O_CREAT | os.O_RDWR)
    try:
        async with driver.provision() as place:
            store = await driver.connect(place.address, PoolSettings.sized(1))
            jobs = [job(tmp_path, address=place.address, pool=PoolSettings.sized(1), page=7, rows_per_part=20)]
            async with Followers.spawned(jobs, lock) as followers:
                await followers.go(0)
                for n in range(50):
                    await store.append([StreamWrite(S, n, (NewEvent("Happened", b"{}"),))])
                [(_, said)] = await followers.finish()
                assert said == {"event": "done", "delivered": 50, "has_caught_up": True}
            await store.close()
    finally:
        os.close(lock)
    parts = delivered_in(tmp_path, 0)
    assert len(parts) > 1 and [n for part in parts for n in part] == list(range(1, 51))


@asynccontextmanager
async def spool_of(folder: Path) -> AsyncIterator[tuple[Place, Store, int]]:
    """A store with a schema of its own, and the lock of the spool."""
    driver, lock = stores.make("postgres"), os.open(folder / "lock", os.O_CREAT | os.O_RDWR)
    try:
        async with asyncio.timeout(30), driver.provision() as place:
            store = await driver.connect(place.address, PoolSettings.sized(1))
            yield place, store, lock
            await store.close()
    finally:
        os.close(lock)


async def test_a_follower_is_given_what_is_stored_before_the_start(tmp_path: Path) -> None:
    async with spool_of(tmp_path) as (place, store, lock):
        for n in range(50):
            await store.append([StreamWrite(S, n, (NewEvent("Happened", b"{}"),))])
        given = job(tmp_path, address=place.address, pool=PoolSettings.sized(1), page=7, rows_per_part=20)
        async with Followers.spawned([given], lock) as followers:
            assert await followers.settle() == [(given, True)]
            assert not seen_in(tmp_path)
            start_ns = now_ns()
            await followers.go(start_ns)
            await store.append([StreamWrite(S, 50, (NewEvent("Happened", b"{}"),))])
            [(_, said)] = await followers.finish()
            end_ns = now_ns() - start_ns
    assert said == {"event": "done", "delivered": 51, "has_caught_up": True}
    assert [n for part in delivered_in(tmp_path, 0) for n in part] == list(range(1, 52))
    seen = seen_in(tmp_path)
    assert seen == sorted(seen) and seen[49] < 0 <= seen[50] < end_ns
    assert seen[0] > -60 * 10**9, "since the start, not since the clock's beginning"


@pytest.mark.parametrize("projection", ["worker:page=7", "matview:every_s=60", "memory", "trigger"])
async def test_a_projector_comes_to_the_end_of_what_is_stored_before_the_start(projection: str, tmp_path: Path) -> None:
    async with spool_of(tmp_path) as (place, store, lock):
        for n in range(50):
            await store.append([StreamWrite(S, n, (NewEvent("Happened", b"{}"),))])
        same: dict[str, Any] = {"spool": str(tmp_path), "store": "postgres", "address": place.address}
        given = ProjectorJob(projection=projection, pool=PoolSettings.sized(2), **same)
        async with Followers.spawned([given], lock) as followers:
            assert await followers.settle() == [(given, True)]
            await followers.go(now_ns())
            [(_, said)] = await followers.finish()
    assert said["has_caught_up"]
    lags = [json.loads(line) for line in (tmp_path / GAUGES_FILE).read_text().splitlines()]
    assert {line["value"] for line in lags if line["name"] == "lag_events"} <= {0}


async def test_a_follower_whose_store_cannot_be_reached_says_so(tmp_path: Path) -> None:
    lock = os.open(tmp_path / "lock", os.O_CREAT | os.O_RDWR)
    try:
        with pytest.raises(StoreUnreachable):
            address = Address("postgres", "postgresql://nobody@127.0.0.1:1/x", "s")
            async with Followers.spawned([job(tmp_path, address=address)], lock):
                pass
    finally:
        os.close(lock)


async def test_work_beside_followers_ends_with_the_first_that_dies() -> None:
    followers = Followers([])
    assert await followers.beside(asyncio.sleep(0, "done")) == "done"

    async def dies() -> dict[str, Any]:
        raise WorkerDied("follower 0 ended")

    followers = Followers([object()])  # type: ignore[list-item]
    followers._ends = [asyncio.ensure_future(dies())]
    with pytest.raises(WorkerDied, match="follower 0"):
        await followers.beside(asyncio.Event().wait())


async def test_what_was_delivered_is_written_in_parts(tmp_path: Path) -> None:
    delivered = Delivered(job(tmp_path, reader=3, rows_per_part=10), start_ns=0)
    for n in range(1, 26):
        await delivered.add([StoredEvent(n, S, n, NewEvent("T", b"").id, "T", b"")])
        assert len(delivered._rows) < 10
    await delivered.keep()
    assert [len(part) for part in delivered_in(tmp_path, 3)] == [10, 10, 5]


def test_what_is_marked_before_the_start_has_a_time_below_zero(tmp_path: Path) -> None:
    for is_started in (True, False):
        series = Series(tmp_path)
        series.mark("store filled")
        series.gauge("machine", "busy_percent", 7)
        if is_started:
            series.start_ns = now_ns()
        series.mark("later")
        series.close()
        marks = [json.loads(line) for line in (tmp_path / MARKS_FILE).read_text().splitlines()][-2:]
        gauge = json.loads((tmp_path / GAUGES_FILE).read_text().splitlines()[-1])
        assert [mark["name"] for mark in marks] == ["store filled", "later"]
        assert marks[0]["t_ns"] <= gauge["t_ns"] <= 0 and (marks[1]["t_ns"] >= 0) == is_started


# what is counted


def planted(
    lab: Lab,
    given: list[tuple[int, int]],
    ended: dict[int, int],
    seen_ns: list[int] | None = None,
    stored: bool = True,
    **row: Any,
) -> dict[str, Any]:
    """The reader's row for events 1, 2, … acknowledged at `ended` ns, of which it was `given` (event, position)."""
    folder = lab.spool / "r1"
    folder.mkdir(parents=True)
    whole: dict[str, Any] = dict.fromkeys(TABLES["runs"]) | {"run_id": "r1", "status": "complete", "keeps_events": True}
    whole |= {"started_at": "2026-01-01T00:00:00+00:00", "schema_version": 2, "store": "mine", "durability": "durable"}
    whole |= {"warmup_s": 0.0, "measured_ns": 1_000_000_000, "pacer": "saturate", "workload": "write_events"}
    (folder / "run.json").write_text(json.dumps(whole | row))
    ok = packed(Outcome.OK, 1, 1, 1)
    samples = [[k, 0, 0, 0, 0, at, 0, ok] for k, at in ended.items()]
    np.asarray(samples, np.int64).reshape(-1, len(SAMPLE_WORDS)).tofile(folder / "samples-0.i64")
    with duckdb.connect() as con:
        events = ", ".join(f"({k})" for k in ended)
        ident = "unhex(lpad(to_hex(k), 32, '0'))"
        con.execute(
            f"""COPY (SELECT 0::SMALLINT AS worker, k::BIGINT AS operation, k::BIGINT AS append, 1::UTINYINT AS outcome,
                      0::BIGINT AS began_ns, 0::BIGINT AS ended_ns,
                      's' AS stream, 0::BIGINT AS expected, k::BIGINT AS version, 1::INTEGER AS ordinal,
                      {ident} AS event_id, 0::BIGINT AS digest FROM (VALUES {events}) AS v(k))
                TO '{folder}/writes-0.parquet'"""
        )
        if stored:
            con.execute(
                f"""COPY (SELECT k::HUGEINT AS position, 's' AS stream, k::BIGINT AS version, {ident} AS event_id,
                          0::BIGINT AS digest FROM (VALUES {events}) AS v(k)) TO '{folder}/stored.parquet'"""
            )
    times = seen_ns or [0] * len(given)
    rows = [(0, 0, n, p, k.to_bytes(16, "big"), times[n - 1]) for n, (k, p) in enumerate(given, 1)]
    half = len(rows) // 2
    write_rows(folder / "followed-0-0.parquet", "followed", rows[:half])
    write_rows(folder / "followed-0-1.parquet", "followed", rows[half:])
    lab.ingest(folder)
    return lab.readers("r1").row(0, named=True)


def test_all_once_and_in_order_is_clean(lab: Lab) -> None:
    found = planted(lab, [(1, 1), (2, 2), (3, 3)], {1: 0, 2: 0, 3: 0})
    assert (found["delivered"], found["skipped"], found["repeated"], found["reordered"]) == (3, 0, 0, 0)


def test_what_was_never_given_is_skipped_and_has_no_lag(lab: Lab) -> None:
    found = planted(lab, [(1, 1), (3, 3)], {1: 0, 2: 0, 3: 0}, [5 * MS, 6 * MS])
    assert (found["delivered"], found["skipped"], found["repeated"], found["reordered"]) == (2, 1, 0, 0)
    assert found["lag_p50_ns"] == 6 * MS and found["lag_p99_ns"] is None and found["lag_max_ns"] is None


def test_what_was_given_twice_is_repeated_and_its_first_time_counts(lab: Lab) -> None:
    found = planted(lab, [(1, 1), (2, 2), (2, 2)], {1: 0, 2: 0}, [1, 2, 30])
    assert (found["skipped"], found["repeated"], found["reordered"]) == (0, 1, 1)
    assert found["lag_max_ns"] == 2


def test_a_position_below_the_one_before_is_reordered(lab: Lab) -> None:
    found = planted(lab, [(1, 1), (3, 3), (2, 2), (4, 4)], dict.fromkeys((1, 2, 3, 4), 0))
    assert (found["skipped"], found["repeated"], found["reordered"]) == (0, 0, 1)


def test_lag_counts_from_the_acknowledgement_and_is_never_below_zero(lab: Lab) -> None:
    ended = {k: 10 * k for k in range(1, 101)}
    found = planted(lab, [(k, k) for k in range(1, 101)], ended, [10 * k + k - 50 for k in range(1, 101)])
    lags = [found[f"lag_{name}_ns"] for name in ("p50", "p95", "p99", "max")]
    assert lags == [0, 45, 49, 50]
    assert found["late_ns"] == 50


def test_without_reading_back_nothing_is_known_about_what_was_skipped(lab: Lab) -> None:
    assert planted(lab, [(1, 1)], {1: 0, 2: 0}, stored=False)["skipped"] is None


def test_a_file_of_an_older_version_gets_what_it_lacks(lab: Lab) -> None:
    lab.check()
    with duckdb.connect(str(lab.path)) as con:
        con.execute("DROP TABLE readers")
        con.execute("ALTER TABLE runs DROP COLUMN followers")
        con.execute("INSERT INTO runs (run_id, schema_version) VALUES ('old', 1)")
    assert not len(Run(lab, "old").readers)
    lab.check()
    assert Run(lab, "old").row["followers"] is None


# the comparison


def test_a_store_that_promises_an_order_is_judged_by_what_its_readers_got(lab: Lab) -> None:
    planted(lab, [(1, 1), (3, 3)], {1: 0, 2: 0, 3: 0})
    verdict = visibility.judged([Run(lab, "r1")])
    assert verdict.status == "violated" and verdict.exit_code == ExitCode.VIOLATED
    assert "mine: skipped 1 events" in verdict.answer


def test_a_store_that_promises_no_order_is_told_of_and_not_judged(lab: Lab) -> None:
    planted(lab, [(1, 1), (3, 3)], {1: 0, 2: 0, 3: 0}, lacks=f"another claim\n{SAFE_ORDER}")
    runs = [Run(lab, "r1")]
    verdict = visibility.judged(runs)
    assert (verdict.status, verdict.judgements) == ("inconclusive", ())
    assert "skipped 1" in sentences.readers(runs).text and "promises no safe order" in sentences.readers(runs).text
    assert visibility.compared(runs)["skipped"].to_list() == [1]


def test_without_readers_nothing_is_settled(open_run: Run) -> None:
    assert visibility.judged([open_run]).status == "inconclusive"
    assert sentences.readers([open_run]).text == "No reader was given anything."
    assert sentences.lag([open_run]).text == "No reader got everything, so there is no lag to compare."
    drawn = visibility.lag_against_throughput([open_run]).axes[0]
    assert drawn.texts[0].get_text() == "nothing was measured"


def test_the_claim_that_decides_is_one_of_the_conformance_suite() -> None:
    assert SAFE_ORDER in CLAIMS


@pytest.mark.parametrize(
    ("store", "option", "wanted"),
    [
        ("postgres", "hold_ms", "postgres:hold_ms=5.0"),
        ("postgres:none", "hold_ms", "postgres:none,hold_ms=5.0"),
        ("postgres:hold_ms=1", "hold_ms", "postgres:hold_ms=1"),
        ("memory", "hold_ms", "memory"),
    ],
)
def test_an_option_is_added_where_the_store_has_it(store: str, option: str, wanted: str) -> None:
    assert with_option(store, option, 5.0) == wanted


def test_the_notebook_judges_the_safe_store_and_tells_of_the_other(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    lab = tmp_path / "lab.duckdb"
    quick = ["stores=postgres,postgres:none", "duration_s=0.3", "warmup_s=0.05"]
    sys.argv = ["eventcore-lab", "run", "11", "--out", str(tmp_path), "--lab", str(lab)]
    sys.argv += [word for pair in quick for word in ("-p", pair)]
    with pytest.raises(SystemExit) as done:
        cli.main()
    out, err = capsys.readouterr()
    assert done.value.code == ExitCode.PASS, out + err
    [page] = tmp_path.glob("2*/index.html")
    pages.check(page)
    assert "postgres:none" in page.read_text() and "Promised and kept" in out
    skipped = dict(Lab(lab).sql("SELECT store, skipped FROM readers JOIN runs USING (run_id)").iter_rows())
    assert skipped["postgres:hold_ms=5.0"] == 0 < skipped["postgres:none,hold_ms=5.0"]
