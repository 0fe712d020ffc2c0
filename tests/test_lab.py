"""The judging half: statistics, the results file, measures, checkers, targets, verdicts."""

from __future__ import annotations

import fcntl
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eventcore_lab.events import (
    EVERYTHING,
    AppendResult,
    Filter,
    NewEvent,
    StoredEvent,
    StoreError,
    StreamId,
    StreamWrite,
    VersionConflict,
)
from eventcore_lab.experiment import Experiment, measure
from eventcore_lab.lab import plots, stats
from eventcore_lab.lab.checkers import CHECKERS, Finding, check
from eventcore_lab.lab.database import Lab, LabError, UnknownRun
from eventcore_lab.lab.disturbances import generator_limits
from eventcore_lab.lab.measures import UNITS, Run
from eventcore_lab.lab.sentences import caveats
from eventcore_lab.lab.targets import Judgement, Targets, Threshold, Verdict, judge, untested
from eventcore_lab.load.journal import Journal, read_back
from eventcore_lab.progress import Quiet
from eventcore_lab.schema import LOCK_FILE, SAMPLE_WORDS, TABLES, ExitCode, Outcome, packed
from eventcore_lab.spec import UsageError
from eventcore_lab.stores.memory import Memory
from eventcore_lab.stores.wrapper import Wrapper
from eventcore_lab.workbench import run

# statistics


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=200), st.floats(0.001, 1))
def test_a_percentile_is_the_least_sample_that_so_many_do_not_exceed(values: list[int], p: float) -> None:
    ascending = np.sort(np.asarray(values, float))
    found = stats.percentile(ascending, p)
    assert found in values
    assert np.mean(ascending <= found) >= p - 1e-9
    assert np.mean(ascending < found) < p


def test_the_interval_of_a_percentile_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    truth, covered = -math.log(0.05), 0
    for trial in range(200):
        values = rng.exponential(size=2000)
        [e] = stats.percentiles_with_intervals(values, np.arange(2000) * 20 // 2000, [0.95], seed=trial)
        covered += e.low <= truth <= e.high
    assert 170 <= covered <= 200


def test_alike_neighbours_widen_the_interval() -> None:
    """200 independent values, each seen ten times in a row, say no more than 200 values."""
    rng = np.random.default_rng(2)
    once = rng.exponential(size=200)
    blocks = np.arange(2000) * 20 // 2000
    [alike] = stats.percentiles_with_intervals(np.repeat(once, 10), blocks, [0.5])
    [shuffled] = stats.percentiles_with_intervals(rng.permutation(np.repeat(once, 10)), blocks, [0.5])
    assert alike.high - alike.low > 1.5 * (shuffled.high - shuffled.low)


def test_too_few_samples_have_a_value_but_no_interval() -> None:
    [e] = stats.percentiles_with_intervals(np.arange(999.0), np.arange(999) * 20 // 999, [0.99])
    assert e.value == 989 and not e.has_interval
    [e] = stats.percentiles_with_intervals(np.arange(1000.0), np.arange(1000) // 50, [0.99])
    assert e.has_interval
    assert stats.percentiles_with_intervals(np.empty(0), np.empty(0, np.int64), [0.5]) == [stats.NOTHING]


def test_what_never_ended_counts_as_at_least_this_slow() -> None:
    values = np.asarray([1.0] * 98 + [math.inf] * 2)
    p50, p99 = stats.percentiles_with_intervals(values, np.zeros(100, np.int64), [0.5, 0.99])
    assert (p50.value, p99.value) == (1.0, math.inf)


# the results file


def spooled(lab: Lab, name: str, rows: list[list[int]], status: str = "complete", **row: Any) -> Path:
    """A run in the spool, made by hand."""
    import msgspec

    folder = lab.spool / name
    folder.mkdir(parents=True)
    run = dict.fromkeys(TABLES["runs"]) | {
        "run_id": name,
        "started_at": "2026-01-01T00:00:00+00:00",
        "status": status,
        "status_reason": "",
        "store": "memory",
        "workload": "create_user",
        "pacer": "constant:rate=10",
        "duration_s": 1.0,
        "warmup_s": 0.0,
        "is_closed_loop": False,
        "measured_ns": 1_000_000_000,
        "keeps_events": True,
        "durability": "none",
        "schema_version": 1,
    }
    (folder / "run.json").write_bytes(msgspec.json.encode(run | row))
    np.asarray(rows, np.int64).reshape(-1, len(SAMPLE_WORDS)).tofile(folder / "samples-0.i64")
    return folder


def sample(k: int, due: int, ended: int, outcome: Outcome = Outcome.OK, phase: int = 1, events: int = 1) -> list[int]:
    return [k, due, due, due, due, ended, 0, packed(outcome, phase, 1, events)]


MS = 1_000_000


def test_percentiles_in_sql_are_those_of_the_definition(lab: Lab) -> None:
    rng = np.random.default_rng(3)
    latencies = rng.integers(1, 50, 997) * MS
    folder = spooled(lab, "r1", [sample(k, k * MS, k * MS + int(d)) for k, d in enumerate(latencies)])
    lab.ingest(folder)
    ascending = np.sort(latencies / MS)
    for p, ms in lab.percentiles("r1", [0.001, 0.5, 0.9, 0.99, 0.999, 1.0]).iter_rows():
        assert ms == stats.percentile(ascending, p)
    run = Run(lab, "r1")
    assert run.figure("p99").estimate.value == stats.percentile(ascending, 0.99)


def test_percentiles_in_sql_put_what_never_ended_at_the_top_and_leave_refusals_out(lab: Lab) -> None:
    rows = [sample(k, 0, (k + 1) * MS) for k in range(8)]
    rows += [sample(8, 0, 5, Outcome.UNKNOWN), sample(9, 0, 0, Outcome.RUNNING), sample(10, 0, 5, Outcome.CONFLICT)]
    lab.ingest(spooled(lab, "r1", rows))
    assert lab.percentiles("r1", [0.8, 0.81]).rows() == [(0.8, 8.0), (0.81, None)]
    assert Run(lab, "r1").figure("p90").estimate.value == math.inf


def test_every_fact_of_a_sample_arrives_in_its_column(lab: Lab) -> None:
    lab.ingest(spooled(lab, "r1", [[7, 1, 2, 3, 4, 5, 6, packed(Outcome.CONFLICT, 1, 3, 70_000, 2)]], schema_version=3))
    [row] = lab.samples("r1").iter_rows(named=True)
    assert row == {
        "worker": 0,
        "operation": 7,
        "phase": 1,
        "due_ns": 1,
        "offered_ns": 2,
        "began_ns": 3,
        "acquired_ns": 4,
        "ended_ns": 5,
        "backoff_ns": 6,
        "events": 70_000,
        "attempts": 3,
        "conflicts": 2,
        "outcome": int(Outcome.CONFLICT),
    }


def test_a_run_is_taken_in_once_and_its_folder_goes(lab: Lab) -> None:
    folder = spooled(lab, "r1", [sample(0, 0, 1)])
    copy = lab.spool.parent / "copy"
    shutil.copytree(folder, copy)
    lab.ingest(folder)
    assert not folder.exists()
    shutil.copytree(copy, folder)  # as after a crash between the commit and the removal
    assert lab.recover() == ["r1"]
    assert len(lab.samples("r1")) == len(lab.runs()) == 1
    lab.ingest(folder)  # gone meanwhile: no error


def test_a_dead_run_is_recovered_and_a_live_one_left_alone(lab: Lab) -> None:
    spooled(lab, "dead", [sample(0, 0, 1)], status="interrupted")
    live = spooled(lab, "live", [sample(0, 0, 1)], status="interrupted")
    lock = os.open(live / LOCK_FILE, os.O_CREAT | os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX)
    assert lab.recover() == ["dead"]
    os.close(lock)
    assert lab.recover() == ["live"]


def test_a_line_cut_off_by_a_kill_costs_only_itself(lab: Lab) -> None:
    folder = spooled(lab, "r1", [sample(0, 0, 1)])
    (folder / "gauges.ndjson").write_text('{"t_ns":1,"source":"loader","name":"pss_bytes","value":2.0}\n{"t_ns":2,"sou')
    with (folder / "samples-0.i64").open("ab") as file:
        file.write(b"\x01" * 11)
    lab.ingest(folder)
    assert len(lab.gauges("r1")) == len(lab.samples("r1")) == 1


def test_a_file_that_is_no_lab_is_said_in_one_line_and_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "other.duckdb"
    path.write_text("something else")
    with pytest.raises(LabError, match="is not a DuckDB file") as error:
        Lab(path).check()
    assert "\n" not in str(error.value)
    assert path.read_text() == "something else"


def test_a_busy_file_is_waited_for_and_then_said(lab: Lab) -> None:
    lab.check()
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            f"import duckdb,sys; c=duckdb.connect({str(lab.path)!r}); print(1, flush=True); sys.stdin.read()",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdin and holder.stdout and holder.stdout.readline()
    try:
        with pytest.raises(LabError, match="in use by another process"):
            Lab(lab.path, busy_timeout_s=0.01).check()
    finally:
        holder.communicate()
    lab.check()


def test_a_newer_file_is_not_written_into(lab: Lab) -> None:
    lab.check()
    with duckdb.connect(str(lab.path)) as con:
        con.execute("INSERT INTO runs (run_id, schema_version) VALUES ('x', 999)")
    with pytest.raises(LabError, match="newer eventcore_lab"):
        lab.check()


def test_a_run_is_found_by_the_beginning_of_its_id(lab: Lab) -> None:
    for name in ("aa1", "ab2"):
        lab.ingest(spooled(lab, name, []))
    assert lab.run_row("aa")["run_id"] == "aa1"
    assert lab.run_row("last")["run_id"] == "ab2"
    with pytest.raises(UnknownRun, match="several runs begin with 'a' .*, the newest: ab2, aa1"):
        lab.run_row("a")
    with pytest.raises(UnknownRun, match="no run begins with 'zz'"):
        lab.run_row("zz")


# measures


def test_throughput_counts_what_ended_well_inside_the_window(lab: Lab) -> None:
    rows = [sample(k, k * 10 * MS, k * 10 * MS + 1, events=3) for k in range(100)]
    rows.append(sample(100, 990 * MS, 1001 * MS))  # ended after the window
    rows.append(sample(101, 500 * MS, 501 * MS, Outcome.FAILED))
    lab.ingest(spooled(lab, "r1", rows))
    run = Run(lab, "r1")
    assert run.figure("commands_per_second").estimate.value == 100
    assert run.figure("events_per_second").estimate.value == 300
    assert run.figure("failures/attempts").estimate.value == pytest.approx(100 / 102)
    assert run.outcomes == {"ok": 101, "failed": 1}


def test_a_run_without_samples_has_figures_without_values(lab: Lab) -> None:
    lab.ingest(spooled(lab, "r1", []))
    run = Run(lab, "r1")
    assert set(run.figures) == set(UNITS)
    assert all(math.isnan(f.estimate.value) for f in run.figures.values())
    assert judge(Targets.production(), run).status == "inconclusive"


def test_a_late_generator_is_said(lab: Lab) -> None:
    late = [
        [k, k * MS, k * MS + 20 * MS, k * MS + 20 * MS, 0, k * MS + 21 * MS, 0, packed(1, 1, 1, 1)] for k in range(900)
    ]
    lab.ingest(spooled(lab, "r1", late))
    run = Run(lab, "r1")
    assert "sent its arrivals late" in generator_limits(run)[0]
    [j] = judge(Targets.of("p90 < 2ms"), run).targets
    assert (j.status, "late" in j.reason) == ("inconclusive", True)


# checkers


class LosesAck(Memory):
    async def append(self, writes: Any) -> AppendResult:
        result = await super().append(writes)
        if len(self._all) == 7:
            lost = self._all.pop()
            self._streams[lost.stream].pop()
        return result


class IgnoresExpectation(Memory):
    """Two appends to one place are both acknowledged at the same version."""

    async def append(self, writes: Any) -> AppendResult:
        result = await super().append([StreamWrite(w.stream, -1, w.events) for w in writes])
        return AppendResult(tuple(max(w.expected, 0) + len(w.events) for w in writes), result.position)


class WritesThenRefuses(Memory):
    async def append(self, writes: Any) -> AppendResult:
        try:
            return await super().append(writes)
        except VersionConflict:
            await super().append([StreamWrite(w.stream, -1, w.events) for w in writes])
            raise


class Changes(Wrapper):
    """A memory store whose content is changed as it is read back."""

    def __init__(self, change: Any) -> None:
        super().__init__(Memory())
        self._change = change

    async def read_all(self, after: int = 0, limit: int = 1000, where: Filter = EVERYTHING) -> list[StoredEvent]:
        events = [self._change(e) for e in await self.inner.read_all(after, limit, where)]
        return [e for e in events if e is not None]


def replaced(event: StoredEvent, **fields: Any) -> StoredEvent:
    import msgspec

    return msgspec.structs.replace(event, **fields)


async def judged(store: Any, tmp_path: Path, *, unknown: bool = False) -> dict[str, Finding]:
    """Twelve appends over four streams, two of them refused, through a journal; then every checker."""
    journal = Journal(store)
    for n in range(10):
        stream = StreamId(f"s{n % 4}")
        events = tuple(NewEvent("T", b'{"n":%d}' % i) for i in range(1 + n % 3))
        await journal.append([StreamWrite(stream, (await store.read_stream(stream)).version, events)])
    for n in range(2):
        try:
            await journal.append([StreamWrite(StreamId(f"s{n}"), 0, (NewEvent("T", b"{}"),))])
        except (VersionConflict, StoreError):
            continue
    if unknown:
        entry = journal._entries[-3]
        journal._entries[-3] = (*entry[:2], int(Outcome.UNKNOWN), None, *entry[4:])
    journal.write(tmp_path, 0)
    await read_back(store, tmp_path)
    return {f.name: f for f in check(tmp_path)}


async def test_a_healthy_store_is_never_accused(tmp_path: Path) -> None:
    found = await judged(Memory(), tmp_path)
    assert {f.status for f in found.values()} == {"passed", "not tested"}
    assert found["unknown appends are whole or absent"].status == "not tested"
    assert (await judged(Memory(), tmp_path, unknown=True))["unknown appends are whole or absent"].status == "passed"


@pytest.mark.parametrize(
    ("store", "caught_by"),
    [
        (LosesAck, "acknowledged appends are there"),
        (IgnoresExpectation, "one winner per version"),
        (WritesThenRefuses, "refused appends left nothing"),
        (lambda: Changes(lambda e: None if e.position == 3 else e), "acknowledged appends are there"),
        (lambda: Changes(lambda e: None if e.position == 3 else e), "versions are contiguous"),
        (
            lambda: Changes(lambda e: replaced(e, data=b"{}") if e.position == 3 else e),
            "acknowledged appends are there",
        ),
        (lambda: Changes(lambda e: replaced(e, version=9) if e.position == 3 else e), "versions are contiguous"),
        (
            lambda: Changes(lambda e: replaced(e, stream=StreamId("other")) if e.version == 1 else e),
            "versions are contiguous",
        ),
        (
            lambda: Changes(lambda e: replaced(e, id=NewEvent("T", b"").id) if e.position == 3 else e),
            "nothing else was stored",
        ),
    ],
)
async def test_a_store_that_is_wrong_is_caught(store: Any, caught_by: str, tmp_path: Path) -> None:
    found = await judged(store(), tmp_path)
    assert found[caught_by].status == "violated", found
    assert found[caught_by].detail


async def test_a_torn_unknown_append_is_caught(tmp_path: Path) -> None:
    journal = Journal(Memory())
    await journal.append([StreamWrite(StreamId("s"), 0, tuple(NewEvent("T", b"{}") for _ in range(3)))])
    journal._entries[0] = (*journal._entries[0][:2], int(Outcome.UNKNOWN), None, 0, 1)
    journal.write(tmp_path, 0)
    await read_back(journal, tmp_path)
    whole = pq.read_table(tmp_path / "stored.parquet")
    for there, status in ((3, "passed"), (2, "violated"), (0, "passed")):
        pq.write_table(whole.slice(0, there), tmp_path / "stored.parquet")
        found = {f.name: f.status for f in check(tmp_path)}
        assert found["unknown appends are whole or absent"] == status


async def test_doubled_ids_and_positions_are_caught(tmp_path: Path) -> None:
    await judged(Memory(), tmp_path)
    table = pq.read_table(tmp_path / "stored.parquet")
    pq.write_table(pa.concat_tables([table, table.slice(0, 1)]), tmp_path / "stored.parquet")
    found = {f.name: f.status for f in check(tmp_path)}
    assert found["event ids are unique"] == found["positions are unique and follow versions"] == "violated"


async def test_positions_against_the_order_of_versions_are_caught(tmp_path: Path) -> None:
    swapped = {1: 8, 8: 1}  # the first event of one stream and its second
    found = await judged(Changes(lambda e: replaced(e, position=swapped.get(e.position, e.position))), tmp_path)
    assert found["positions are unique and follow versions"].status == "violated"


async def test_a_store_whose_pages_go_backwards_is_not_read_for_ever(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="as the last behind"):
        await judged(Changes(lambda e: replaced(e, position=-e.position)), tmp_path)


async def test_without_evidence_nothing_is_passed_and_a_broken_file_is_no_pass(tmp_path: Path) -> None:
    assert {f.status for f in check(tmp_path)} == {f.status for f in check(tmp_path, False)} == {"not tested"}
    assert all(f.detail for f in check(tmp_path))
    await judged(Memory(), tmp_path)
    (tmp_path / "stored.parquet").write_text("no parquet")
    found = {f.name: f.status for f in check(tmp_path)}
    assert list(found) == [c.name for c in CHECKERS]
    assert found["acknowledged appends are there"] == found["versions are contiguous"] == "broken"
    assert found["one winner per version"] == "passed"
    assert {f.status for f in check(tmp_path, False)} == {"not tested"}


# targets


def test_the_presets_have_every_figure_of_the_chapter() -> None:
    wanted = {
        "production": (100, 1000, 10, 50, 100, 1024, 70),
        "development": (10, 100, 50, 200, 500, 512, 50),
    }
    names = ("commands_per_second", "events_per_second", "p50", "p95", "p99", "memory", "cpu")
    for targets in (Targets.production(), Targets.development()):
        assert tuple((t.name, t.limit) for t in targets.thresholds) == tuple(
            zip(names, wanted[targets.name], strict=True)
        )
        assert [t.is_max for t in targets.thresholds] == [False, False, True, True, True, True, True]


@pytest.mark.parametrize(
    ("text", "name", "limit", "is_max"),
    [
        ("p99 < 100ms", "p99", 100, True),
        ("p99.9<1s", "p99.9", 1000, True),
        ("events_per_second > 1000", "events_per_second", 1000, False),
        ("memory_growth < 100MiB", "memory_growth", 100, True),
        ("memory <= 1 GiB", "memory", 1024, True),
        ("conflicts/attempts < 1%", "conflicts/attempts", 1, True),
    ],
)
def test_a_threshold_is_written_as_people_would(text: str, name: str, limit: float, is_max: bool) -> None:
    assert Threshold.parse(text) == Threshold(name, limit, is_max)


@pytest.mark.parametrize("text", ["p98 < 1ms", "p99 < 1MiB", "p99 = 1ms", "p99 < 1.2.3ms", "", "p99 < ms"])
def test_a_threshold_that_cannot_be_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        Threshold.parse(text)


def test_a_targets_file_is_read_and_a_wrong_one_explained(tmp_path: Path) -> None:
    good, bad = tmp_path / "mine.toml", tmp_path / "bad.toml"
    good.write_text('thresholds = ["p99 < 20ms"]')
    bad.write_text("limits = 3")
    assert Targets.load(str(good)) == Targets("mine", (Threshold("p99", 20, True),))
    for wrong in (str(bad), str(tmp_path / "absent.toml"), "prodution"):
        with pytest.raises(UsageError):
            Targets.load(wrong)


@pytest.mark.parametrize(
    ("limit", "status"),
    [("p50 < 1ms", "fail"), ("p50 < 100ms", "pass"), ("p50 < 15ms", "inconclusive"), ("p99 < 100ms", "inconclusive")],
)
def test_the_whole_interval_decides(lab: Lab, limit: str, status: str) -> None:
    """Blocks of 10 and of 20 ms take turns, so the median's interval contains 15."""
    rows = [sample(k, k * 2 * MS, k * 2 * MS + (10 + 10 * (k // 25 % 2)) * MS) for k in range(500)]
    lab.ingest(spooled(lab, "r1", rows))
    [j] = judge(Targets.of(limit), Run(lab, "r1")).targets
    assert j.status == status, j


def test_less_throughput_than_the_target_is_no_failure_when_no_more_was_offered(lab: Lab) -> None:
    lab.ingest(spooled(lab, "r1", [sample(k, k * 10 * MS, k * 10 * MS + 1) for k in range(100)]))
    [j] = judge(Targets.of("commands_per_second > 500"), Run(lab, "r1")).targets
    assert (j.status, "offered" in j.reason) == ("inconclusive", True)
    lab.ingest(spooled(lab, "r2", [sample(k, k * 10 * MS, k * 10 * MS + 1) for k in range(100)], is_closed_loop=True))
    [j] = judge(Targets.of("commands_per_second > 500"), Run(lab, "r2")).targets
    assert j.status == "fail"


def test_an_interrupted_run_passes_nothing(lab: Lab) -> None:
    rows = [sample(k, k * MS, k * MS + 1) for k in range(900)]
    lab.ingest(spooled(lab, "r1", rows, status="interrupted"))
    assert {j.status for j in judge(Targets.of("p50 < 10ms"), Run(lab, "r1")).targets} == {"inconclusive"}


@settings(max_examples=50)
@given(st.lists(st.sampled_from(["pass", "fail", "inconclusive", "violated"]), max_size=6))
def test_the_worst_line_decides_and_nothing_is_no_pass(statuses: list[str]) -> None:
    lines = tuple(Judgement("target", "p50", "< 1", 1, 1, 1, "ms", s, "", "r") for s in statuses)
    verdict = Verdict("t", lines)
    order = ["violated", "fail", "inconclusive", "pass"]
    assert verdict.status == min(statuses, key=order.index, default="inconclusive")
    codes = dict(zip(order, (ExitCode.VIOLATED, ExitCode.FAIL, ExitCode.INCONCLUSIVE, ExitCode.PASS), strict=True))
    assert verdict.exit_code == codes[verdict.status]


def test_a_verdict_escapes_what_users_named() -> None:
    j = Judgement("target", "<script>", "< 1", 1, 1, 1, "ms", "pass", "a & b", "r")
    html = Verdict("<b>", (j,))._repr_html_()
    assert "<script>" not in html and "<b>" not in html and "a &amp; b" in html


def test_a_real_run_has_every_figure_and_no_violation(closed_run: Run) -> None:
    known = {name for name, f in closed_run.figures.items() if not math.isnan(f.estimate.value)}
    assert known >= set(UNITS) - {"memory_growth"}  # which needs two looks at the memory
    assert set(closed_run.invariants["status"]) == {"passed", "not tested"}
    assert {"loader", "server", "machine"} <= set(closed_run.gauges["source"])
    assert closed_run.lab.environment(closed_run.run_id)["postgres.fsync"] == "on"


def with_memory(lab: Lab, name: str, rows: list[list[int]], looks: dict[str, list[tuple[int, int]]]) -> Run:
    """A run of one second; `looks`: source → (ms, MiB of PSS)."""
    folder = spooled(lab, name, rows)
    seen = [
        {"t_ns": ms * MS, "source": source, "name": "pss_bytes", "value": mib * 2.0**20}
        for source, series in looks.items()
        for ms, mib in series
    ]
    (folder / "gauges.ndjson").write_text("".join(f"{json.dumps(look)}\n" for look in seen))
    lab.ingest(folder)
    return Run(lab, name)


def test_the_memory_of_the_loader_ends_with_the_load_and_that_of_the_server_with_the_run(lab: Lab) -> None:
    """When operations have ended, the load process writes down its evidence, which takes memory of its own."""
    looks = {
        "loader": [(-50, 40), (100, 45), (300, 46), (700, 99), (1300, 101)],
        "server": [(-50, 20), (300, 21), (1300, 60)],
    }
    rows = [sample(k, k * MS, 40 * k * MS) for k in range(11)]  # the last ends at 400 ms
    run = with_memory(lab, "ended", rows, looks)
    assert run.looks("pss_bytes")["value"].to_list() == [n * 2**20 for n in (40, 45, 46)]
    assert run.figure("memory").estimate.value == 60
    assert run.figure("memory").note == "peak PSS: loader 46 MiB, server 60 MiB"
    assert run.figure("memory_growth").estimate.value == pytest.approx(1)
    lines = plots.memory_over_time(run).axes[0].lines
    assert [line.get_ydata().tolist() for line in lines[:2]] == [[40, 45, 46], [20, 21, 60]]  # type: ignore[union-attr]

    hanging = with_memory(lab, "hanging", [*rows, sample(11, 11 * MS, 0, Outcome.RUNNING)], looks)
    assert hanging.figure("memory").note == "peak PSS: loader 99 MiB, server 60 MiB"
    nothing = with_memory(lab, "nothing", [], looks)
    assert nothing.figure("memory").note == "peak PSS: loader 99 MiB, server 60 MiB"


def test_a_run_on_a_mutant_is_violated_and_says_by_what(lab: Lab) -> None:
    faulty = run(Experiment(store="mutant(memory):lost_ack", duration_s=0.2, warmup_s=0), lab, Quiet())
    verdict = judge(Targets.of("p50 < 1s"), faulty)
    assert verdict.status == "violated"
    assert "acknowledged appends are there" in verdict.answer and "acknowledged, but not there" in verdict.answer


def test_facts_are_kept_with_a_run_and_are_no_invariants(closed_run: Run) -> None:
    facts = closed_run.lab.facts(closed_run.run_id)
    assert facts["events stored"] > 0 and facts["holes in the positions"] >= 0
    assert not set(facts) & set(closed_run.invariants["name"])


def test_what_was_not_tested_is_told_with_its_reason(closed_run: Run) -> None:
    reasons = untested([closed_run])
    assert "followers miss nothing" in reasons["no reader followed the store"]
    assert "a restart changes nothing" in reasons["the server was not restarted"]
    assert not any("acknowledged appends are there" in names for names in reasons.values())
    assert "- Not tested, because no reader followed the store: followers miss nothing;" in str(caveats([closed_run]))


def test_the_null_store_is_never_called_correct(lab: Lab) -> None:
    measured = measure(Experiment(store="null", duration_s=0.1, warmup_s=0), lab.spool)
    lab.ingest(measured.folder)
    passed = lab.invariants(measured.run_id).filter(status="passed")["name"].to_list()
    of_the_load = ["every operation has one outcome", "the times of all operations add up (Little's law)"]
    assert passed == of_the_load  # which says nothing about the store


def test_a_run_of_an_older_version_that_was_still_in_the_spool_has_no_conflicts_of_its_own(lab: Lab) -> None:
    """There the bit that is now the lowest of the conflicts said that the sample had begun."""
    old = [packed(Outcome.OK, 1, 1, 1) | 1 << 16, packed(Outcome.CONFLICT, 1, 1, 0) | 1 << 16]
    lab.ingest(
        spooled(lab, "r1", [[k, k * MS, k, k, k, k + MS, 0, word] for k, word in enumerate(old)], schema_version=2)
    )
    assert lab.samples("r1")["conflicts"].to_list() == [None, None]
    assert Run(lab, "r1").figure("conflicts/attempts").estimate.value == 50


def test_who_gave_up_after_conflicts_counts_as_not_answered_and_as_failed(lab: Lab) -> None:
    """Else fewer retries would make the percentiles better."""
    rows = [sample(k, 0, (k + 1) * MS) for k in range(8)]
    gave_up, answered = packed(Outcome.CONFLICT, 1, 5, 0, 5), packed(Outcome.CONFLICT, 1, 1, 0, 1)
    rows += [[8, 0, 0, 0, 0, 90 * MS, 0, gave_up], [9, 0, 0, 0, 0, 5, 0, gave_up], [10, 0, 0, 0, 0, 5, 0, answered]]
    lab.ingest(spooled(lab, "r1", rows, schema_version=3))
    run = Run(lab, "r1")
    assert run.figure("p50").estimate.value == 5 and run.figure("p90").estimate.value == math.inf
    assert lab.percentiles("r1", [0.8, 0.81]).rows() == [(0.8, 8.0), (0.81, None)]
    assert run.figure("failures/attempts").estimate.value == pytest.approx(100 * 2 / 11)
    assert run.figure("conflicts/attempts").estimate.value == pytest.approx(100 * 11 / 19)


def test_growth_is_the_slope_times_the_span_and_its_interval_holds_it_whatever_the_number_of_points() -> None:
    rng = np.random.default_rng(4)

    def grown(n: int) -> tuple[stats.Estimate, float]:
        t_s = np.sort(rng.uniform(0, 100, n))
        return stats.growth(t_s, 3 * t_s + rng.normal(0, 5, n)), 3 * float(t_s[-1] - t_s[0])

    assert sum(found.low <= truth <= found.high for found, truth in (grown(40) for _ in range(200))) >= 180
    found, truth = grown(20_000)
    assert found.value == pytest.approx(truth, rel=0.02) and found.n == 20_000
    flat = stats.growth(np.arange(50.0), np.full(50, 7.0))
    assert (flat.value, flat.low, flat.high) == (0, 0, 0)
    assert stats.growth(np.arange(3.0), np.asarray([1.0, 9.0, 4.0])).value == 3
    assert stats.growth(np.arange(1.0), np.arange(1.0)) is stats.NOTHING
