"""The notebooks about pools, batches and reads: each answers its question on a store that has what it asks about, in a
second or two of load, and where a store has none of it, says so."""

from __future__ import annotations

import json
import math
import sys
from itertools import groupby
from pathlib import Path
from typing import Any

import pages
import polars as pl
import pytest

from eventcore_lab import cli
from eventcore_lab.commands import Direct
from eventcore_lab.events import AppendResult, StreamWrite, VersionConflict
from eventcore_lab.lab import bulk_writes, optimum, pooling, reading, sentences
from eventcore_lab.lab.database import Lab
from eventcore_lab.lab.measures import Figure
from eventcore_lab.lab.stats import Estimate
from eventcore_lab.load.workloads import workloads
from eventcore_lab.load.workloads.reads import WAYS
from eventcore_lab.schema import ExitCode
from eventcore_lab.spec import UsageError
from eventcore_lab.stores.memory import Memory

QUICK = ("duration_s=0.15", "warmup_s=0.05")


def answered(capsys: pytest.CaptureFixture[str], folder: Path, notebook: str, *parameters: str) -> tuple[str, str, Lab]:
    """The notebook's answer, its page and what is in the Lab."""
    sys.argv = ["eventcore-lab", "run", notebook, "--out", str(folder), "--lab", str(folder / "lab.duckdb")]
    sys.argv += [word for pair in (*QUICK, *parameters) for word in ("-p", pair)]
    with pytest.raises(SystemExit) as done:
        cli.main()
    out, err = capsys.readouterr()
    assert done.value.code == ExitCode.PASS, out + err
    [page] = folder.glob("2*/index.html")
    pages.check(page)
    conclusion = json.loads((page.parent / "conclusion.json").read_text())
    return conclusion["answer"], page.read_text(), Lab(folder / "lab.duckdb")


def claims_in(lab: Lab) -> dict[str, str]:
    """What was claimed → its topic."""
    return dict(lab.sql("SELECT name, topic FROM verdicts WHERE kind = 'claim'").iter_rows())


def test_the_pool_notebook_finds_a_size_and_tells_what_each_setting_changed(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    few = ["pool_sizes=1,4", "callers=8", "connections=4", "trials=1", "rate=200"]
    answer, page, lab = answered(capsys, tmp_path, "01", *few, "settings=acquire_timeout_s=0.000001")
    assert answer.startswith("8 callers are served best by ") and "/s [" in answer
    assert "with 8 callers, 4 connections take at least twice what 1 takes" in page
    assert "8 callers are served best by" in page and "waiting for one" in page
    assert "% of operations not done" in page  # of those who could not wait
    assert "longest wait for a connection, ms</th>" in page
    assert set(claims_in(lab).values()) == {"pooling"}
    assert set(lab.runs()["store"]) == {"postgres", "pooled(postgres):acquire_timeout_s=0.000001"}


def test_the_batch_notebook_puts_the_ways_beside_copy(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    answer, page, lab = answered(capsys, tmp_path, "02", "batch_sizes=100", "callers_max=100", "connections=4")
    assert answer.startswith("Most events per second: ") and "of 4 claims put to the test" in answer.lower()
    assert "group commit, 100 events at a time, moves at least 2 times" in page and "COPY of the same rows" in page
    labels = set(lab.sql("SELECT DISTINCT label FROM runs").to_series())
    assert labels == {
        "an append each",
        "group commit",
        "one append of all",
        "independent appends, one round trip",
        "COPY",
    }
    assert set(claims_in(lab).values()) == {"batching"}


def test_the_read_notebook_fills_the_store_it_reads(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    few = ["streams=40", "events=20", "page_sizes=10,1000", "together=10", "long_stream=1500", "long_pages=0,1000"]
    answer, page, lab = answered(capsys, tmp_path, "03", *few, "store=sqlite", "connections=4")
    assert "in pages of" in answer and "several streams come fastest" in answer
    assert "10 streams in one statement" in page and "a long stream in pages of 1,000" in page
    assert "an event costs" in page and "A stream of 1,500 events takes" in page
    assert set(claims_in(lab).values()) == {"reading"}
    filled = lab.sql("SELECT DISTINCT detail FROM marks WHERE name = 'store filled'").to_series().to_list()
    assert sorted(filled) == ["1500 events", "800 events"]


# what the notebooks ask for


async def performed(store: Memory, spec: str, operations: int = 3) -> list[int]:
    """How many events each of the first operations wrote or read, the store filled before."""
    workload = workloads.make(spec, seed=7)
    for result in await store.append_many(list(workload.populate())):
        assert isinstance(result, AppendResult)
    perform = workload.start(store, Direct(store))
    return [await perform(workload.prepare(k)) for k in range(operations)]


async def test_many_appends_go_at_once_each_onto_a_stream_of_its_own() -> None:
    store = Memory()
    assert await performed(store, "append_many:batch=5") == [5, 5, 5]
    events = await store.read_all()
    assert len({e.stream for e in events}) == len(events) == 15


async def test_one_refused_of_many_is_the_outcome_and_the_others_happened() -> None:
    store, workload = Memory(), workloads.make("append_many:batch=3", seed=7)
    prepared = workload.prepare(0)
    await store.append([StreamWrite(prepared[1][0].stream, 0, prepared[1][0].events)])
    with pytest.raises(VersionConflict):
        await workload.start(store, Direct(store))(prepared)
    assert len(await store.read_all()) == 3


@pytest.mark.parametrize("way", WAYS)
async def test_every_way_of_reading_several_streams_reads_all_of_them(way: str) -> None:
    assert await performed(Memory(), f"read_streams:streams=8,events=25,together=4,way={way}") == [100] * 3


async def test_a_long_stream_is_read_whole_whatever_the_page() -> None:
    for page in (0, 1, 7, 50, 51):
        assert await performed(Memory(), f"read_streams:streams=1,events=50,page={page}", 1) == [50]


async def test_the_events_of_a_filled_stream_lie_apart() -> None:
    store = Memory()
    await performed(store, "read_streams:streams=3,events=40", 1)
    streams = [e.stream for e in await store.read_all()]
    assert len(streams) == 120
    assert max(len(list(run)) for _, run in groupby(streams)) == 2  # in as many rounds as there are


async def test_pages_of_a_filled_store_have_events_and_nothing_is_written_where_none_are_asked_for() -> None:
    assert all(0 < n <= 20 for n in await performed(Memory(), "read_pages:limit=20,streams=5,events=10"))
    assert not workloads.make("read_pages:events=5", seed=1).only_reads
    for spec in ("read_pages", "read_streams:together=5"):
        workload = workloads.make(spec, seed=1)
        assert workload.only_reads and not list(workload.populate())


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("read_streams:way=joined", "did you mean joint"),
        ("read_streams:together=5,page=10", "leave page out"),
        ("read_streams:streams=3,together=5", "together must be 1 to 3 streams"),
        ("append_many:batch=0", "batch must be 1 to"),
        ("read_pages:events=100000,streams=1000", "must be 1 to 5000000"),
    ],
)
def test_what_cannot_be_read_or_written_is_refused(spec: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        workloads.make(spec, seed=1)


# what they say


class Fake:
    """A run with figures, as far as comparing asks."""

    def __init__(self, values: dict[str, float], **row: Any) -> None:
        self.row, self.run_id, self._values = {"store": "postgres", **row}, "fake", values
        self.samples, self.outcomes = pl.DataFrame(), {}

    def figure(self, name: str) -> Figure:
        value = self._values.get(name, math.nan)
        return Figure(name, Estimate(value, value * 0.99, value * 1.01, 100), "fake")


def rates(by: str, values: dict[int, float], **row: Any) -> list[Any]:
    return [
        Fake({"commands_per_second": v, "events_per_second": v, "p50": 1000 / v}, **{by: n}, **row)
        for n, v in values.items()
    ]


def test_the_most_is_told_first_and_compared_with_the_least_setting() -> None:
    runs = rates("connections", {1: 100, 5: 300}, label="slow") + rates("connections", {1: 1000, 5: 500}, label="fast")
    text = str(optimum.most(runs, "connections", "events_per_second", "with {}", lines="label"))
    assert text.startswith("**Most events per second: fast, 1,000/s [990 – 1,010] with 1.**")
    assert text.endswith("Slow, 300/s [297 – 303] with 5, 3 times [2.96 – 3.04] what 1 gives.")
    assert optimum.most([], "connections", "events_per_second", "{}") is sentences.NOTHING_MEASURED


def test_enough_is_the_smallest_within_a_tenth_of_the_best() -> None:
    runs = rates("connections", {1: 100, 5: 895, 10: 905, 20: 1000, 50: 950})
    text = "- connections: **10** (905 events per second, 90 % of the most)"
    assert str(optimum.enough(runs, "connections", "events_per_second", "connections: {}")) == text


def test_what_intervals_rest_on_is_told() -> None:
    assert str(sentences.rests(sizes=1, settings=3)).count("\n") == 1
    assert "from trials, in a random order each time: settings (3)" in str(sentences.rests(settings=3))


def effects(full: float, quiet: float, trials: int, **more: float) -> pooling.Effects:
    def of(store: str, rate: float, p50: float) -> list[Any]:
        values = {"commands_per_second": rate, "p50": p50, "p95": 2 * p50, "failures/attempts": 0.0, **more}
        return [Fake(values if store != "postgres" else {**values, "failures/attempts": 0.0}, store=store)] * trials

    pooled = "pooled(postgres):test_before_acquire=true"
    return pooling.Effects(
        [*of("postgres", 100, 1), *of(pooled, full, 1)], [*of("postgres", 50, 1), *of(pooled, 50, quiet)]
    )


def test_a_setting_that_changed_something_is_told_with_what() -> None:
    found = effects(60, 2, 3)
    assert found.rows[1].changed == [
        "throughput when full 0.60 times",
        "median when quiet 2.00 times",
        "p95 when quiet 2.00 times",
    ]
    assert "Changed by more than 10 %: test_before_acquire=true" in str(pooling.effects(found))


def test_a_setting_that_changed_nothing_is_told_so_and_one_run_settles_no_time() -> None:
    assert str(pooling.effects(effects(101, 1.01, 3))) == "Changed nothing: test_before_acquire=true."
    one = str(pooling.effects(effects(60, 2, 1)))
    assert one.startswith("No change is settled for") and "1 of at least 3 trials" in one
    assert effects(100, 1, 1, **{"failures/attempts": 5.0}).rows[1].changed == ["5.0 % of operations not done"]


def test_the_events_at_a_time_are_those_of_an_operation_times_the_callers() -> None:
    one: Any = Fake({}, workload="write_events:batch=100", pacer="saturate:concurrency=1")
    each: Any = Fake({}, workload="write_events", pacer="saturate:concurrency=50")
    assert [r.row[bulk_writes.AT_A_TIME] for r in bulk_writes.at_a_time([one, each])] == [100, 50]
    assert bulk_writes.AT_A_TIME not in one.row


def test_a_way_that_was_not_run_has_no_claim() -> None:
    each = rates(bulk_writes.AT_A_TIME, {1: 100, 100: 1000}, label=bulk_writes.EACH)
    assert bulk_writes.claimed(each) == []
    [only] = bulk_writes.claimed([*each, *rates(bulk_writes.AT_A_TIME, {100: 5000}, label=bulk_writes.ONE)])
    assert (only.topic, only.status) == ("batching", "held")
    assert "takes no COPY" in str(bulk_writes.limit(each))


def test_what_checks_nothing_is_no_answer_however_fast() -> None:
    each = rates(bulk_writes.AT_A_TIME, {1: 100}, label=bulk_writes.EACH)
    stored = bulk_writes.checked([*each, *rates(bulk_writes.AT_A_TIME, {1: 9000}, label=bulk_writes.COPY)])
    assert stored == each
    source = next((Path(__file__).parent.parent / "notebooks").glob("02-*.ipynb")).read_text(encoding="utf-8")
    assert "optimum.most(stored, " in source and "optimum.enough(stored, " in source


def test_the_price_of_a_page_counts_the_events_that_came() -> None:
    small = Fake({"p50": 0.1, "commands_per_second": 100, "events_per_second": 100}, workload="read_pages:limit=1")
    large = Fake({"p50": 1.1, "commands_per_second": 10, "events_per_second": 5010}, workload="read_pages:limit=1000")
    text = str(reading.price([small, large]))  # type: ignore[list-item]
    assert "501 events on average" in text and "an event costs 2 µs" in text and "as much as 50 events" in text
