"""A load that goes on for hours: memory and disk stay bounded, and what is judged is the same, whoever is killed when."""

from __future__ import annotations

import mmap
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from eventcore_lab.clock import sleep_s
from eventcore_lab.commands import Executed
from eventcore_lab.companions.probes import LOOKS_MAX, interval_of
from eventcore_lab.events import (
    AppendResult,
    NewEvent,
    OutcomeUnknown,
    StoredEvent,
    StoreError,
    StreamId,
    StreamSlice,
    StreamWrite,
    VersionConflict,
)
from eventcore_lab.experiment import Experiment, measure, measuring
from eventcore_lab.experiment.jobs import Jobs
from eventcore_lab.experiment.value import CAPACITY_MAX
from eventcore_lab.lab.database import Lab
from eventcore_lab.lab.evidence import opened, sampled
from eventcore_lab.lab.measures import Run
from eventcore_lab.load import spill
from eventcore_lab.load.answers import Answers
from eventcore_lab.load.journal import Journal
from eventcore_lab.load.recorder import Recorder, Watcher
from eventcore_lab.load.rotation import Rotation, _punched, bytes_per_operation, parts_of, taken
from eventcore_lab.progress import LATENCIES_MAX, Quiet, Tally
from eventcore_lab.schema import RUN_FILE, Attempt, Outcome, Phase, current_attempt, packed
from eventcore_lab.stores.memory import Null
from eventcore_lab.stores.protocol import Address, Place

S = StreamId("s")
STORED = StoredEvent(1, S, 1, UUID(int=7), "T", b"{}", b"")
PLACE = Place(Address("x", "y"), durability="none")
SLOW = [HealthCheck.function_scoped_fixture]


# --- what is noted of appends ---------------------------------------------------------------------------------------


class Answering(Null):
    """A store that gives the answers it is told to give."""

    def __init__(self, answers: Sequence[AppendResult | Exception]) -> None:
        super().__init__()
        self._answers = list(answers)

    async def append(self, writes: Sequence[StreamWrite]) -> AppendResult:
        answer = self._answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


@st.composite
def appends(draw: st.DrawFn) -> tuple[list[StreamWrite], AppendResult | Exception]:
    data = st.sampled_from([b"{}", b'{"amount": 7}', b"\xff", b'{"b":[1,2],"a":"\xc3\xa9"}', b"x" * 300])
    event = st.builds(
        NewEvent, st.sampled_from("TU"), data, data, st.integers(0, 2**128 - 1).map(lambda n: UUID(int=n))
    )
    names = draw(st.lists(st.sampled_from(["a", "b", "ü\n"]), min_size=1, max_size=3, unique=True))
    written = [
        StreamWrite(StreamId(name), draw(st.integers(-1, 9)), tuple(draw(st.lists(event, max_size=3))))
        for name in names
    ]
    ok = AppendResult(tuple(range(len(names))), 2**70)
    return written, draw(
        st.sampled_from([ok, VersionConflict(StreamId(names[-1]), 1, 2), StoreError("no"), OutcomeUnknown("?")])
    )


async def journalled(folder: Path, listed: Sequence[Any], **settings: Any) -> dict[str, bytes]:
    """The files of a journal that has seen these appends, at times that are the same for all journals."""
    journal = Journal(Answering([answer for _, answer in listed]), **settings)
    attempt = Attempt()
    current_attempt.set(attempt)
    for k, (writes, _) in enumerate(listed):
        attempt.reset(k)
        try:
            await journal.append(writes)
        except StoreError:
            continue
    return files_of(journal, folder)


def files_of(journal: Journal, folder: Path) -> dict[str, bytes]:
    folder.mkdir(exist_ok=True)
    journal.write(folder, 0)
    found = {file.name: file.read_bytes() for file in sorted(folder.iterdir())}
    assert found.keys() == {f"{table}-0.parquet" for table in ("writes", "reads", "joint_reads", "counts")}
    return found


@pytest.fixture(autouse=True)
def frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eventcore_lab.load.journal.now_ns", lambda: 5)


@settings(max_examples=40, deadline=None, suppress_health_check=SLOW)
@given(
    listed=st.lists(appends(), max_size=20),
    times=st.integers(1, 12),
    kept_max=st.integers(0, 50),
    chunk=st.sampled_from([1, 2000, 10**6]),
)
async def test_the_evidence_of_a_journal_is_the_same_however_little_it_keeps_in_memory(
    listed: list[Any], times: int, kept_max: int, chunk: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("j")
    listed = listed * times
    whole = await journalled(folder / "whole", listed)
    (folder / "spilled").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spill, "CHUNK_BYTES", chunk)
        assert whole == await journalled(folder / "spilled", listed, spool=folder / "spilled", kept_max=kept_max)


def one(k: int) -> list[StreamWrite]:
    return [StreamWrite(S, k, (NewEvent("T", b'{"n":%d}' % k, id=UUID(int=k)),))]


async def test_a_journal_keeps_so_many_appends_in_memory_and_no_more(tmp_path: Path) -> None:
    journal, most = Journal(Null(), tmp_path, kept_max=100), 0
    for k in range(20_000):
        await journal.append(one(k))
        most = max(most, len(journal._entries))
    assert most <= 100 + 2 * spill.AT_ONCE + 1
    journal.write(tmp_path, 0)


class Reading(Null):
    """A store whose every stream is empty."""

    async def read_stream(self, stream: StreamId, from_version: int = 1, limit: int | None = None) -> StreamSlice:
        return StreamSlice(stream, 0)

    async def read_streams(
        self, streams: Sequence[StreamId], from_versions: Sequence[int] | None = None
    ) -> list[StreamSlice]:
        return [StreamSlice(stream, k, (STORED,) * k) for k, stream in enumerate(streams)]


async def test_reads_leave_the_memory_too_and_all_of_them_are_evidence(tmp_path: Path) -> None:
    found, most = list[dict[str, bytes]](), 0
    for spool in (None, tmp_path):
        journal = Journal(Reading(), spool)
        for k in range(3_000):
            await journal.read_stream(StreamId(f"s{k}"))
            await journal.read_streams([StreamId(f"a{k}"), StreamId(f"b{k}")])
            most = max(most, len(journal._reads), len(journal._joint)) if spool else 0
        found.append(files_of(journal, tmp_path / f"of {spool is None}"))
    assert found[0] == found[1]
    assert most <= spill.AT_ONCE + 3
    assert pq.read_metadata(tmp_path / "of False" / "reads-0.parquet").num_rows == 9_000


async def test_a_disk_that_does_not_come_after_is_not_waited_for_and_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spill, "CHUNK_BYTES", 100)
    monkeypatch.setattr(spill, "AT_ONCE", 16)
    listed = [(one(k), AppendResult((k,))) for k in range(4_000)]
    whole = await journalled(tmp_path / "whole", listed)
    comes_back, write = threading.Event(), spill.Spill._write

    def late(self: Any) -> None:
        comes_back.wait(20)
        write(self)

    monkeypatch.setattr(spill.Spill, "_write", late)
    (folder := tmp_path / "late").mkdir()
    journal = Journal(Answering([answer for _, answer in listed]), folder, kept_max=10)
    attempt = Attempt()
    current_attempt.set(attempt)
    for k, (writes, _) in enumerate(listed):
        attempt.reset(k)
        await journal.append(writes)
        if k == 2_000:
            kept_meanwhile = len(journal._entries)
            comes_back.set()
        while comes_back.is_set() and not k % 50 and not journal._spilling._waiting.empty():
            await sleep_s(0)
    assert kept_meanwhile > 1_000, "it waited for the disk"
    assert len(journal._entries) < 500, "what had to wait was not made up for"
    journal.write(folder, 0)
    assert (folder / "writes-0.parquet").read_bytes() == whole["writes-0.parquet"]


async def test_evidence_that_no_disk_would_take_is_an_error_and_not_left_out(tmp_path: Path) -> None:
    journal = Journal(Null(), tmp_path / "nowhere", kept_max=0)
    for k in range(20_000):
        await journal.append(one(k))
    with pytest.raises(OSError, match="nowhere"):
        journal.write(tmp_path, 0)


class Told:
    """An executor that answers with what it is given."""

    async def execute(self, command: Any) -> Executed:
        done: Executed = command
        return done

    def counts(self) -> dict[str, int]:
        return {}

    async def close(self) -> None: ...


async def test_what_commands_were_told_is_the_same_however_little_is_kept(tmp_path: Path) -> None:
    answers = [Executed((NewEvent("T", b"{}", id=UUID(int=k)),), (k, 1), 1, (S, StreamId("t"))) for k in range(300)]
    files = []
    for name, given_ in (("whole", {}), ("spilled", {"spool": tmp_path / "spilled", "kept_max": 5})):
        (tmp_path / name).mkdir()
        told = Answers(Told(), **given_)  # type: ignore[arg-type]
        attempt = Attempt()
        current_attempt.set(attempt)
        for k, answer in enumerate(answers):
            attempt.reset(k)
            await told.execute(answer)  # type: ignore[arg-type]
        assert len(told.told) <= 300 if name == "whole" else 5 + 2 * spill.AT_ONCE
        told.write(tmp_path / name, 0)
        files.append((tmp_path / name / "executed-0.parquet").read_bytes())
    assert files[0] == files[1]


# --- samples ---------------------------------------------------------------------------------------------------------


def ended(recorder: Recorder, k: int) -> None:
    row = recorder.begin(k, k, k, k, Phase.STEADY)
    recorder.end(row, k, k, k, k, k, k + 1, 0, packed(Outcome.OK, Phase.STEADY, 1, 1))


def all_rows(folder: Path) -> NDArray[np.int64]:
    lost: list[str] = []
    found = [rows for _, rows in sampled(folder, lost)]
    assert not lost
    return np.concatenate([np.empty((0, 8), np.int64), *found])


@settings(max_examples=60, deadline=None, suppress_health_check=SLOW)
@given(acts=st.lists(st.sampled_from(["begin", "end", "ten", "turn", "watch"]), max_size=80), size=st.integers(1, 150))
def test_whoever_reads_finds_each_row_once_whenever_it_is_taken(
    acts: list[str], size: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("r")
    path, running, seen = folder / "samples-3.i64", list[tuple[int, int]](), list[int]()
    watcher, rotation = Watcher(path), Rotation(folder, rows_per_part=size)
    with Recorder(path, 5_000) as recorder:
        for act in [*acts, "watch"]:
            if act == "begin":
                k = recorder.begun
                running.append((recorder.begin(k, k, k, k, Phase.STEADY), k))
            elif act == "end" and running:
                row, k = running.pop(0)
                recorder.end(row, k, k, k, k, k, k + 1, 0, packed(Outcome.OK, Phase.STEADY, 1, 1))
            elif act == "ten":
                for _ in range(50):
                    ended(recorder, recorder.begun)
            elif act == "turn":
                rotation.turn()
                seen += watcher.new_rows()[:, 0].tolist()  # who watches looks more often than is turned
                first_running = running[0][1] if running else recorder.begun
                assert taken(path) <= first_running and taken(path) % size == 0
            else:
                seen += watcher.new_rows()[:, 0].tolist()
            assert all_rows(folder)[:, 0].tolist() == list(range(recorder.begun))
        begun = recorder.begun
    assert sorted(seen) == sorted(set(range(begun)) - {k for _, k in running}) and not watcher.skipped
    assert all_rows(folder)[:, 0].tolist() == list(range(begun))


def mapped_kib(path: Path) -> int:
    """What this process has in memory of a file that it has mapped."""
    found = inside = 0
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(" ", 1)[0]:
            inside = line.endswith(str(path))
        elif inside and line.startswith("Pss:"):
            found += int(line.split()[1])
    return found


@pytest.fixture
def holes(tmp_path: Path) -> None:
    with (tmp_path / "holed").open("w+b", buffering=0) as file:
        file.write(bytes(mmap.PAGESIZE))
        if not _punched(file, 0, mmap.PAGESIZE):
            pytest.skip("this file system gives nothing back in the middle of a file")


@pytest.mark.usefixtures("holes")
def test_blocks_and_memory_of_what_was_taken_are_given_back(tmp_path: Path) -> None:
    path = tmp_path / "samples-0.i64"
    rotation, most, most_kib = Rotation(tmp_path, rows_per_part=4096), 0, 0
    with Recorder(path, 10**8) as recorder:
        for k in range(100_000):
            ended(recorder, k)
            if not k % 2_000:
                rotation.turn()
                most, most_kib = max(most, path.stat().st_blocks * 512), max(most_kib, mapped_kib(path))
        whole = 100_000 * 64
        assert most < whole / 4 and most_kib * 1024 < whole / 4
        recorder.begin(7, 0, 0, 0, Phase.STEADY)
    assert path.stat().st_size == 100_001 * 64
    assert all_rows(tmp_path)[:, 0].tolist() == [*range(100_000), 7]


def test_a_row_that_runs_and_those_behind_it_are_left_where_they_are(tmp_path: Path) -> None:
    rotation = Rotation(tmp_path, rows_per_part=10)
    with Recorder(tmp_path / "samples-0.i64", 1000) as recorder:
        for k in range(25):
            ended(recorder, k)
        slow = recorder.begin(25, 0, 0, 0, Phase.STEADY)
        for k in range(26, 60):
            ended(recorder, k)
        assert (rotation.turn(), rotation.turn()) == (20, 0)
        recorder.end(slow, 25, 0, 0, 0, 0, 9, 0, packed(Outcome.UNKNOWN, Phase.STEADY, 1, 0))
        assert rotation.turn() == 40
    assert [part[:2] for part in parts_of(tmp_path / "samples-0.i64")] == [(n, n + 10) for n in range(0, 60, 10)]


def folder_of(lab: Lab, run_id: str, rows: int = 2_300, running: int = 1_700) -> Path:
    folder = lab.spool / run_id
    folder.mkdir(parents=True)
    (folder / RUN_FILE).write_bytes(
        msgspec.json.encode({"run_id": run_id, "status": "interrupted", "schema_version": 4})
    )
    with Recorder(folder / "samples-0.i64", rows) as recorder:
        for k in range(rows):
            if k == running:
                recorder.begin(k, k, k, k, Phase.STEADY)
            else:
                ended(recorder, k)
    return folder


KILLED = """
import os, signal, sys
from pathlib import Path
from eventcore_lab.load.rotation import Rotation
for folder in sys.argv[1:]:
    left, child = int(folder.rpartition("-")[2]), os.fork()
    if not child:
        def step(name):
            global left
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)
        rotation = Rotation(Path(folder), rows_per_part=500, step=step)
        for _ in range(3):
            rotation.turn()
        os._exit(0)
    print(os.WTERMSIG(os.waitpid(child, 0)[1]), end=" ")
"""


def test_killed_between_any_two_steps_each_row_is_in_the_lab_once(lab: Lab) -> None:
    steps = 13  # three parts of three steps, two of giving back; then nobody is killed
    folders = [folder_of(lab, f"run-{at}") for at in range(1, steps)]
    script = [sys.executable, "-c", KILLED, *map(str, folders)]
    told = subprocess.run(script, capture_output=True, text=True, check=True).stdout.split()
    assert told == ["9"] * 11 + ["0"] and not taken(folders[0] / "samples-0.i64")
    again = folders[::2]
    for folder in again:  # as when the next of us goes on in it
        rotation = Rotation(folder, rows_per_part=100)
        assert rotation.turn() in (200, 700, 1200, 1700) and not rotation.turn()
        assert taken(folder / "samples-0.i64") == 1700
    assert len(lab.recover()) == 12
    for folder in folders:
        found = lab.samples(folder.name).sort("operation")
        assert found["operation"].to_list() == list(range(2_300))
        assert found.filter(found["outcome"] == 0)["operation"].to_list() == [1_700]
        assert not folder.exists()


@pytest.mark.usefixtures("holes")
def test_a_part_that_is_gone_or_torn_is_told_and_the_rest_is_kept(lab: Lab) -> None:
    folder = folder_of(lab, "run")
    rotation = Rotation(folder, rows_per_part=500)
    rotation.turn()
    parts = [part for *_, part in parts_of(folder / "samples-0.i64")]
    parts[2].write_bytes(b"torn")
    assert all_rows(folder)[:, 0].tolist() == list(range(2_300)), "the file still has what a torn part has lost"
    rotation.turn()
    parts[0].unlink()
    with opened(folder) as evidence:
        assert evidence.lacking["samples"] == ("broken", "of the samples 0 to 500 of worker 0 some are gone")
    lab.ingest(folder)
    page = mmap.PAGESIZE // 64
    gone = [*range(500), *range(1_000, 1_500 // page * page)]
    assert sorted(lab.samples("run")["operation"]) == sorted({*range(2_300)} - {*gone})


def test_nothing_is_taken_from_a_run_that_is_being_taken_in(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_of(lab, "run")
    rotation, turned = Rotation(folder, rows_per_part=500), list[int]()
    assert rotation.turn() == 1_500
    remove = shutil.rmtree

    def removed(path: Path) -> None:
        assert parts_of(folder / "samples-0.i64")
        turned.append(rotation.turn())
        remove(path)

    monkeypatch.setattr("eventcore_lab.lab.database.shutil.rmtree", removed)
    lab.ingest(folder)
    assert [*turned, rotation.turn()] == [0, 0] and not rotation._given_back
    assert len(lab.samples("run")) == 2_300


@contextmanager
def rotated(spool: Path, every_s: float = 0.1) -> Iterator[list[int]]:
    """Take parts of the one run in `spool` all the time; the most blocks its file had, in bytes, and the rows taken."""
    over, found = threading.Event(), [0, 0]

    def turn() -> None:
        rotation: Rotation | None = None
        while not over.wait(every_s):
            for path in spool.glob("*/samples-0.i64"):
                rotation = rotation or Rotation(path.parent, rows_per_part=128)
                found[1] += rotation.turn()
                found[0] = max(found[0], path.stat().st_blocks * 512)

    thread = threading.Thread(target=turn)
    thread.start()
    try:
        yield found
    finally:
        over.set()
        thread.join()


@pytest.mark.parametrize("store", ["memory", "sqlite", "postgres"])
def test_a_run_that_rotates_has_every_sample_and_passes_every_check(
    store: str, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched: list[NDArray[np.int64]] = []

    class Watching(Tally):
        def add(self, rows: NDArray[np.int64]) -> None:
            watched.append(rows)
            super().add(rows)

    monkeypatch.setattr(measuring, "Tally", Watching)
    e = Experiment(store=store, pacer="constant:rate=2000", workload="write_events", duration_s=1.2, warmup_s=0.1)
    lab.check()
    with rotated(lab.spool) as found:
        folder = measure(e, lab.spool, Quiet()).folder
    size = sum(file.stat().st_size for file in folder.iterdir() if file.name != "samples-0.i64")
    run = Run(lab, lab.ingest(folder))
    assert size / 2_600 < bytes_per_operation()
    assert found[1] > 500 and found[0] <= 2_600 * 64 / 2, "nothing was taken, or nothing given back"
    samples = lab.samples(run.run_id).sort("operation")
    assert samples["operation"].to_list() == list(range(2_600))
    seen = np.concatenate(watched)
    seen = seen[np.argsort(seen[:, 0])]
    kept = samples.filter(samples["operation"].is_in(seen[:, 0].tolist()))
    for n, name in enumerate(
        ("operation", "due_ns", "offered_ns", "began_ns", "acquired_ns", "ended_ns", "backoff_ns")
    ):
        assert kept[name].to_list() == seen[:, n].tolist(), name
    assert set(run.invariants["status"]) <= {"passed", "not tested"}
    passed = set(run.invariants.filter(run.invariants["status"] == "passed")["name"])
    assert {
        "every operation has one outcome",
        "the times of all operations add up (Little's law)",
        "acknowledged appends are there",
    } <= passed


# --- what else grows with time ----------------------------------------------------------------------------------------


def test_a_long_run_is_looked_at_so_often_that_its_gauges_are_bounded() -> None:
    assert interval_of(10) == interval_of(5_000) == 0.25
    for hours in (2, 8, 24 * 31):
        assert hours * 3600 / interval_of(hours * 3600) <= LOOKS_MAX + 1


def test_the_looks_of_a_progress_are_of_a_bounded_number_of_latencies() -> None:
    tally = Tally(0, 10**6)
    rows = np.zeros((50_000, 8), np.int64)
    rows[:, 5], rows[:, 7] = np.arange(50_000) * 10**6, packed(Outcome.OK, Phase.STEADY, 1, 1)
    for _ in range(40):
        tally.add(rows)
        assert sum(map(len, tally._unlooked._latencies)) <= LATENCIES_MAX
    for _ in range(3_000):
        tally.add(rows[:1])
        assert len(tally._unlooked._latencies) <= LATENCIES_MAX // 100
    look = tally._unlooked.look(100.0, 10.0)
    assert look.rate == 200_300 and look.p50_ms == pytest.approx(25_000, rel=0.02)
    assert look.p99_ms == pytest.approx(49_500, rel=0.02)


def test_a_month_is_a_duration_and_too_many_operations_are_refused_with_the_way_out(tmp_path: Path) -> None:
    month = 31 * 86_400
    assert Experiment(pacer="constant:rate=1", duration_s=month).duration_s == month
    with pytest.raises(ValueError, match=r"too many operations for one run; a soak goes on in several"):
        Experiment(pacer="constant:rate=1000", duration_s=month)
    e = Experiment(pacer="saturate:concurrency=10", duration_s=month)
    assert Jobs(e, tmp_path, False).load(PLACE, 0).capacity <= CAPACITY_MAX + 10_000


def test_a_file_is_no_larger_than_this_user_may_have_one(tmp_path: Path) -> None:
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 1_000_000, before[1]))
    try:
        job = Jobs(Experiment(pacer="saturate", duration_s=8 * 3600), tmp_path, False).load(PLACE, 0)
        Recorder(tmp_path / "samples-0.i64", job.capacity).close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert job.capacity == 1_000_000
