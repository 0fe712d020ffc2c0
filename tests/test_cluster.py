"""A load on other machines is the same load: nobody's part is missing, no clock accuses anybody, and what is lost is said."""

from __future__ import annotations

import fcntl
import os
import pickle
import re
import signal
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path
from typing import IO, Any

import msgspec
import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventcore_lab import batch
from eventcore_lab.clock import now_ns
from eventcore_lab.experiment import Experiment, RunBroken, measure
from eventcore_lab.experiment.jobs import Jobs
from eventcore_lab.lab.checkers import reported
from eventcore_lab.lab.database import Lab
from eventcore_lab.lab.evidence import raw_samples
from eventcore_lab.lab.measures import Run
from eventcore_lab.load import cluster, folders, places, stripe
from eventcore_lab.load.cluster import kept
from eventcore_lab.load.evidence import write_rows
from eventcore_lab.load.imports import Imports
from eventcore_lab.load.offsets import Offset, doubt_ns, offset_of, widened
from eventcore_lab.load.places import LOCAL, check_cluster, is_local, variables_of
from eventcore_lab.load.recorder import Recorder
from eventcore_lab.load.stripe import STOP_FILE, Gathered, Order, Seen, Usage, gathered, gauges_of, look, pack_samples
from eventcore_lab.load.worker import Job
from eventcore_lab.load.workers import Worker
from eventcore_lab.progress import Quiet, Tally
from eventcore_lab.schema import CLOCK_DOUBT, LOADER_STOOD_STILL, LOCK_FILE, TABLES, Outcome, packed
from eventcore_lab.spec import UsageError
from eventcore_lab.stores import Address, Place
from eventcore_lab.workbench import rerun, run

SECRET = "hunter2"
SHORT = Experiment(
    store="postgres", workload="users:users=20", pacer="poisson:rate=500", duration_s=0.2, warmup_s=0.05, workers=2
)
LONG = msgspec.structs.replace(SHORT, duration_s=60.0)
SKEW_NS, DOUBT_NS = 5_000_000_000, 50_000_000
PROMPTLY_NS = 30 * 10**9
"""Half of what LONG takes when nobody ends it."""


class Once(Quiet):
    """Does something once both stripes have recorded samples, which they do in `folder`."""

    def __init__(self, folder: Path, act: Callable[[], Any]) -> None:
        self._folder, self._act = folder, act

    def update(self, title: str, tally: Tally) -> None:
        files = [path.read_bytes() for path in self._folder.glob("eventcore-lab-stripe-*/samples-?.i64")]
        if len([words for words in files if words[64 * 20 : 64 * 21].strip(b"\0")]) == 2:
            act, self._act = self._act, lambda: None
            act()


@pytest.fixture(scope="module")
def aside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where the processes of executors have their temporary files."""
    folder = tmp_path_factory.mktemp("aside")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(folder))
        yield folder


@pytest.fixture(autouse=True)
def start_sooner(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice as long as the rehearsal took is enough where nothing else is going on. Who is gone is noticed sooner, too."""
    monkeypatch.setattr(cluster, "START_DELAY_MIN_NS", 200_000_000)
    monkeypatch.setattr(cluster, "BEAT_EVERY_S", 0.1)


@pytest.fixture(scope="module")
def pool(aside: Path) -> Iterator[ProcessPoolExecutor]:
    assert aside.is_dir()
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as executor:
        yield executor


@pytest.fixture(scope="module")
def dask(aside: Path) -> Iterator[Any]:
    """A client of a cluster of two processes on the loop-back interface."""
    distributed = pytest.importorskip("distributed", reason="the extra `cluster` is not installed")
    with (
        distributed.LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=True,
            protocol="tcp",
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            memory_limit=0,
            local_directory=str(aside),
        ) as made,
        distributed.Client(made, set_as_default=False) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The same experiment by one process of this machine."""
    lab = Lab(tmp_path_factory.mktemp("here") / "lab.duckdb")
    return run(msgspec.structs.replace(SHORT, workers=1), lab, Quiet())


def job_of(tmp_path: Path, e: Experiment = SHORT, address: Address | None = None, worker: int = 0) -> Job:
    return Jobs(e, tmp_path, is_elsewhere=True).load(Place(address or Address("null"), ""), worker)


def order_of(job: Job, starts: dict[str, int] | None = None) -> Order:
    return Order(
        token="token", job=msgspec.json.encode(job), home=job.spool, machine="none", has_beats=False, starts=starts
    )


# ---- clocks


@given(
    offset=st.integers(-(10**15), 10**15),
    trips=st.lists(st.tuples(st.integers(0, 10**9), st.integers(0, 10**9), st.integers(0, 10**12)), min_size=1),
)
def test_the_truth_is_within_the_error_of_an_offset_however_long_each_way_took(
    offset: int, trips: list[tuple[int, int, int]]
) -> None:
    found = offset_of([(at, at + there + offset, at + there + back) for there, back, at in trips])
    assert abs(found.offset_ns - offset) <= found.error_ns
    assert found.error_ns <= min(there + back for there, back, _ in trips) // 2 + 2


@pytest.mark.parametrize(
    ("trips", "offset", "error"),
    [
        ([(0, 500, 10)], 495, 6),
        ([(0, 1_000_500, 1_000), (5_000, 5_000 + 1_000_000 + 5, 5_010)], 1_000_000, 6),  # the shortest says most
        ([(100, 40, 120)], -70, 11),
    ],
)
def test_offsets(trips: list[tuple[int, int, int]], offset: int, error: int) -> None:
    assert offset_of(trips) == Offset(offset, error)


@pytest.mark.parametrize(
    ("before", "after", "between", "doubt"),
    [
        (Offset(0, 0), Offset(0, 0), 10**12, 0),
        (Offset(100, 7), Offset(100, 3), 10**9, 7),
        (Offset(100, 7), Offset(150, 3), 10**9, 53),
        (Offset(100, 7), Offset(40, 3), 10**9, 63),
        (Offset(100, 7), None, 10**9, 1_000_007),
    ],
)
def test_a_clock_is_in_doubt_by_what_it_may_have_drifted(
    before: Offset, after: Offset | None, between: int, doubt: int
) -> None:
    assert doubt_ns(before, after, between) == doubt


def test_spans_in_doubt_are_wider_at_both_ends_and_nothing_else_is_changed(tmp_path: Path) -> None:
    path = tmp_path / "reads-3.parquet"
    rows = [(3, 1, "s-1", 2, 2, b"x" * 16, 10, 20), (3, 1, "s-2", 0, 0, None, 15, 40)]
    write_rows(path, "reads", rows)  # type: ignore[arg-type]
    (tmp_path / "wide.parquet").write_bytes(widened(path.read_bytes(), 100))
    before, after = pq.read_table(path), pq.read_table(tmp_path / "wide.parquet")
    assert after.schema.equals(before.schema)
    assert after["began_ns"].to_pylist() == [-90, -85] and after["ended_ns"].to_pylist() == [120, 140]
    times = ["began_ns", "ended_ns"]
    assert after.drop_columns(times).equals(before.drop_columns(times))


# ---- what is gathered


def samples_in(folder: Path, worker: int, rows: int) -> Path:
    with Recorder(folder / f"samples-{worker}.i64", rows + 5) as recorder:
        for k in range(rows):
            offset = recorder.begin(k, 10 * k, 10 * k, 10 * k + 1, 1)
            recorder.end(offset, k, 10 * k, 10 * k, 10 * k + 1, 0, 10 * k + 5, 0, packed(Outcome.OK, 1, 1, 1))
    return folder / f"samples-{worker}.i64"


def test_samples_in_parquet_are_the_words_that_were_recorded(tmp_path: Path) -> None:
    raw = samples_in(tmp_path, 0, 300)
    words = raw_samples(raw)
    os.truncate(raw, 64 * 1000)  # as it is when the process was killed
    pack_samples(raw, tmp_path / "samples-0.parquet")
    assert np.array_equal(raw_samples(tmp_path / "samples-0.parquet"), words) and len(words) == 300


def test_too_much_is_not_gathered_and_said_while_samples_that_fit_are(tmp_path: Path) -> None:
    samples_in(tmp_path, 1, 10)
    write_rows(tmp_path / "counts-1.parquet", "counts", [("offered", 10)])
    whole, said = gathered(tmp_path, 1)
    assert set(whole) == {"samples-1.parquet", "counts-1.parquet"} and not said
    part, said = gathered(tmp_path, 1, bytes_max=len(whole["samples-1.parquet"]))
    assert set(part) == {"samples-1.parquet"} and "are gathered of a worker: choose a shorter duration_s" in said
    assert gathered(tmp_path, 1, bytes_max=10)[0] == {}


def test_files_of_another_name_are_not_written(tmp_path: Path) -> None:
    seen = Seen("m", "h", 0, "3", "1")
    files = {"../samples-1.parquet": b"x", "run.json": b"x", "counts-0.parquet": b"x", "counts-1.parquet": b"kept"}
    left = kept(Gathered(seen=seen, pid=1, took_ns=1, facts={}, files=files), 1, tmp_path, 0)
    assert "counts-1.parquet" not in left.files
    assert [p.name for p in tmp_path.iterdir()] == ["counts-1.parquet"]


def test_what_processes_used_is_added_up_where_all_were_looked_at() -> None:
    one, two = Usage(250, 10.0, 1000), Usage(250, 30.0, 2000)
    found = gauges_of({0: [one, Usage(500, 1.0, 1)], 1: [two]})
    assert ("loader", "cpu_percent", 40.0, 250) in found and ("loader", "pss_bytes", 3000.0, 250) in found
    assert ("worker 1", "cpu_percent", 30.0, 250) in found
    assert [g for g in found if g[0] == "loader" and g[3] == 500] == []


# ---- what is refused


@pytest.mark.parametrize("text", ["", LOCAL, "dask:tcp://host:8786", "dask:tls://10.0.0.1:1", "dask:tcp://[::1]:8786"])
def test_clusters(text: str) -> None:
    check_cluster(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tcp://host:8786", "is not dask:local or a Dask scheduler's address"),
        ("dask:host", "is not dask:local"),
        ("dask:tcp://host", "is not dask:local"),
        ("ProcessPoolExecutor", "an executor of one's own goes to run(…, executor=…)"),
        (f"dask:tcp://me:{SECRET}@host:8786", "must not hold a user or a password"),
    ],
)
def test_what_is_no_cluster_is_refused(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=re.escape(said)) as refused:
        Experiment(cluster=text)
    assert SECRET not in str(refused.value)


def test_a_store_of_one_process_cannot_be_used_from_elsewhere(lab: Lab, pool: ProcessPoolExecutor) -> None:
    with pytest.raises(UsageError, match="a worker elsewhere needs a store that several processes can open"):
        Experiment(store="memory", cluster=LOCAL)
    with pytest.raises(UsageError, match="a worker elsewhere needs"):
        run(Experiment(store="memory"), lab, Quiet(), pool)
    with pytest.raises(UsageError, match="a run has one of them"):
        run(msgspec.structs.replace(SHORT, cluster=LOCAL), lab, Quiet(), pool)


@pytest.mark.parametrize(
    ("dsn", "schema", "local"),
    [
        ("", "/tmp/file.db", True),
        ("", "", False),
        ("postgresql://u@/db?host=/tmp/x", "", True),
        ("postgresql://u@localhost:5432/db", "", True),
        ("postgresql://u:p@127.0.0.1/db", "", True),
        ("postgresql://u:p@[::1]:5432/db", "", True),
        ("postgresql:///db", "", True),
        ("host=/run/pg user=u", "", True),
        ("host=db.internal user=u", "", False),
        ("postgresql://u:p@db.internal:5432/db", "", False),
        ("postgresql://u:p@localhost,db.internal/db", "", False),
        ("postgresql://u@/db?host=db.internal", "", False),
    ],
)
def test_addresses_that_mean_something_here_alone(dsn: str, schema: str, local: bool) -> None:
    assert is_local(Address("x", dsn, schema)) == local


@pytest.mark.parametrize(
    ("workers", "given", "found"),
    [
        ("", [], []),
        ("3", [], ["workers=3"]),
        (LOCAL, [], [f"cluster={LOCAL}", f"workers={os.cpu_count()}"]),
        (LOCAL, ["workers=5"], [f"cluster={LOCAL}"]),
    ],
)
def test_the_option_of_the_command_line_sets_parameters(workers: str, given: list[str], found: list[str]) -> None:
    pytest.importorskip("distributed", reason="the extra `cluster` is not installed")
    notebook = Path(__file__).parent.parent / "notebooks" / "00-store-benchmark.ipynb"
    assert batch._workers(notebook, workers, given) == found
    with pytest.raises(UsageError, match="11-is-it-still-correct has no parameter"):
        batch._workers(notebook.with_name("11-is-it-still-correct.ipynb"), "2", [])


def test_a_scheduler_that_is_not_there_is_said_in_one_line(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("distributed", reason="the extra `cluster` is not installed")
    monkeypatch.setattr(places, "CONNECT_TIMEOUT_S", 0.3)
    e = msgspec.structs.replace(SHORT, store="null", cluster="dask:tcp://127.0.0.1:1")
    with pytest.raises(RunBroken, match=r"\Ano Dask scheduler at tcp://127\.0\.0\.1:1: [^\n]*\Z"):
        run(e, lab, Quiet())
    [row] = lab.runs().iter_rows(named=True)
    assert (row["status"], row["cluster"]) == ("broken", e.cluster)


# ---- one stripe


@pytest.mark.parametrize("kind", ["stripe", "dask"])
def test_what_the_killed_left_is_removed_and_nobody_elses(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folders, "LEFT_AFTER_S", 0)
    left, used, other = (tmp_path / f"eventcore-lab-{name}" for name in (f"{kind}-left", f"{kind}-used", "else"))
    for folder in (left, used, other):
        folder.mkdir()
        (folder / LOCK_FILE).touch()
    with (used / LOCK_FILE).open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        folders.sweep(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([used, other])


@pytest.mark.parametrize(
    ("starts", "said"),
    [({"here": -1}, "was not ready at the start, but"), ({"there": 1}, "whose clock had not been compared")],
)
def test_a_stripe_that_is_started_again_or_elsewhere_refuses(tmp_path: Path, starts: dict[str, int], said: str) -> None:
    mine = {look().machine if name == "here" else name: now_ns() + 10**9 * at for name, at in starts.items()}
    done = stripe.stripe(order_of(job_of(tmp_path, msgspec.structs.replace(SHORT, store="null")), mine))
    assert said in done.error and not done.pid and not done.facts and not done.files


def test_a_stripe_is_told_to_stop_and_stops_when_it_is_told_nothing_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = order_of(job_of(tmp_path, msgspec.structs.replace(SHORT, store="null")))
    order.has_beats = True
    one = stripe._Stripe(order)
    one.ear = stripe._Ear()
    monkeypatch.setitem(stripe._ears, "token", one.ear)
    for tokens, stop, is_told in ((["token"], False, False), (["other"], True, False)):
        stripe.hear(tokens, stop)
        assert one._is_told_to_stop() == is_told
    with monkeypatch.context() as later:
        later.setattr(stripe, "now_ns", lambda: now_ns() + int(1e9 * stripe.LEASE_S) + 1)
        assert one._is_told_to_stop()
        stripe.hear(["token"], False)
        assert not one._is_told_to_stop()
    stripe.hear(["other", "token"], True)
    stripe.hear(["token"], False)
    assert one._is_told_to_stop()


@pytest.fixture
def lock(tmp_path: Path) -> Iterator[IO[bytes]]:
    """That of a run that is under way, in the folder `run`."""
    (tmp_path / "run").mkdir()
    with (tmp_path / "run" / LOCK_FILE).open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file


def beside(home: Path) -> stripe._Stripe:
    """A stripe on the kernel of the run whose folder is `home`, which nobody passes words on to."""
    order = order_of(job_of(home, msgspec.structs.replace(SHORT, store="null")))
    order.machine = look().machine
    return stripe._Stripe(order)


@pytest.mark.parametrize("ends", [lambda _, lock: lock.close(), lambda home, _: (home / STOP_FILE).touch()])
def test_a_stripe_that_sees_its_run_stops_with_it(
    ends: Callable[[Path, IO[bytes]], None], lock: IO[bytes], tmp_path: Path
) -> None:
    one = beside(tmp_path / "run")
    one.ear = stripe._Ear()
    assert not one._is_told_to_stop()
    ends(tmp_path / "run", lock)
    assert one._is_told_to_stop()


def test_a_stripe_that_cannot_see_its_run_does_not_take_it_for_over(tmp_path: Path) -> None:
    one = beside(tmp_path / "in-another-container")
    one.ear = stripe._Ear()
    assert not one._is_told_to_stop()
    (tmp_path / "in-another-container").mkdir()
    assert not one._is_told_to_stop()
    one.ear.is_stopped = True
    assert one._is_told_to_stop()


@pytest.mark.usefixtures("lock")
def test_a_run_is_seen_by_another_user_who_may_only_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = os.open

    def read_only(path: Path, flags: int, mode: int = 0o777) -> int:
        if flags & (os.O_RDWR | os.O_WRONLY):
            raise PermissionError(path)
        return opened(path, flags, mode)

    monkeypatch.setattr(os, "open", read_only)
    assert beside(tmp_path / "run").sees_run


class Workers:
    """What places ask of a Dask client, whose scheduler knows of the workers of one of `looks` after the other. Its own look in
    between has left nothing."""

    status = "running"

    def __init__(self, *looks: str) -> None:
        self._looks, self.scheduler, self.told = list(looks), self, list[list[str]]()

    def identity(self, n_workers: int) -> dict[str, Any]:
        return {"workers": {f"tcp://{name}": {"nthreads": 1} for name in self._looks.pop(0)}}

    def sync(self, ask: Callable[..., Any], **options: Any) -> Any:
        return ask(**options)

    def scheduler_info(self) -> dict[str, Any]:
        return {"workers": {}}

    def run(self, *_: Any, workers: list[str], **__: Any) -> None:
        self.told.append(workers)


def test_a_worker_is_gone_when_two_looks_after_each_other_miss_it() -> None:
    client = Workers("ab", "ab", "", "ab", "a", "ab", "b", "b", "b")
    found = places.DaskPlaces(client, 2)
    assert [found.beat([], False) for _ in range(8)] == [set(), set(), set(), set(), set(), set(), {0}, {0}]
    assert client.told[-1] == ["tcp://b"]
    client.status = "closed"
    with pytest.raises(places.PlacesError, match="the Dask client is closed"):
        places.DaskPlaces(client, 2)


def test_a_module_that_is_not_there_is_named(tmp_path: Path) -> None:
    job = job_of(tmp_path, msgspec.structs.replace(SHORT, store="null"))
    done = stripe.stripe(order_of(msgspec.structs.replace(job, imports=Imports(("nowhere_at_all",)))))
    assert "No module named 'nowhere_at_all'" in done.error and not done.facts


def test_a_password_travels_in_the_order_and_is_told_to_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dsn = f"postgresql://me:{SECRET}@127.0.0.1:1/db"
    monkeypatch.setenv("LAB_DSN", dsn)
    assert variables_of("eventsourcing:postgres,server=env:LAB_DSN") == {"LAB_DSN": dsn}
    e = msgspec.structs.replace(SHORT, store="env:LAB_DSN")
    order = order_of(job_of(tmp_path, e, Address("postgres", dsn, "s")))
    monkeypatch.delenv("LAB_DSN")  # another machine does not have it
    assert SECRET.encode() in pickle.dumps(order)
    assert SECRET not in repr(order) + str([order]) + f"{order}"
    done = stripe.stripe(order)
    assert done.error and "LAB_DSN" not in done.error and SECRET not in repr(done)
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and SECRET.encode() in p.read_bytes()]


# ---- whole runs


def is_the_same_load(found: Run, here: Run, name: str) -> None:
    schedule = ["operation", "due_ns", "phase"]
    assert found.samples.select(schedule).sort("operation").equals(here.samples.select(schedule).sort("operation"))
    assert (found.samples["operation"] % 2 == found.samples["worker"]).all()
    assert set(found.invariants["status"]) == {"passed", "not tested"}
    assert found.row["cluster"] == name and found.row["workers"] == 2
    assert {"store filled", "read back"} <= set(found.marks["name"])
    told = found.marks.filter(pl.col("name").str.starts_with("worker "))["detail"].to_list()
    assert len(told) == 2 and all(look().host in text and "the run's own clock" in text for text in told)
    assert len(found.gauge("loader", "cpu_percent", steady=False)) and len(found.gauge("worker 1", "pss_bytes"))


def test_a_pool_of_processes_puts_the_same_load_on(lab: Lab, pool: ProcessPoolExecutor, here: Run) -> None:
    found = run(SHORT, lab, Quiet(), pool)
    is_the_same_load(found, here, "ProcessPoolExecutor")
    with pytest.raises(UsageError, match="an executor of one's own"):
        rerun(found.run_id, lab, Quiet())


def test_a_dask_cluster_by_its_address_puts_the_same_load_on(lab: Lab, dask: Any, here: Run) -> None:
    e = msgspec.structs.replace(SHORT, cluster=f"dask:{dask.scheduler.address}")
    found = run(e, lab, Quiet())
    is_the_same_load(found, here, e.cluster)
    with pytest.raises(RunBroken, match=r"has room for 2 load processes at once \(2 workers\), and 3 are asked for"):
        run(msgspec.structs.replace(e, workers=3), lab, Quiet())


def test_a_local_cluster_is_made_for_the_run_and_leaves_nothing(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("distributed", reason="the extra `cluster` is not installed")
    (tmp_path / "aside").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "aside"))
    seen = dict[str, bool]()

    class Looks(Quiet):
        def update(self, title: str, tally: Tally) -> None:
            for lock in (tmp_path / "aside").glob(f"eventcore-lab-*/{LOCK_FILE}"):
                with suppress(OSError):  # gone meanwhile
                    seen[lock.parent.name.split("-")[2]] = folders.is_held(lock)

    found = run(msgspec.structs.replace(SHORT, store="null", cluster=LOCAL), lab, Looks())
    assert seen == {"dask": True, "stripe": True} and not [*(tmp_path / "aside").glob("eventcore-lab-*")]
    assert sorted(found.samples["worker"].unique()) == [0, 1] and found.row["cluster"] == LOCAL


def elsewhere(monkeypatch: pytest.MonkeyPatch, skew_ns: int) -> list[int]:
    """Have stripes of threads run on "another machine" whose clock is ahead; the starts their processes are told, by ours."""
    real, starts = look(), list[int]()

    class Elsewhere(Worker[Job]):
        async def say(self, *words: str | int) -> None:
            if words[0] == "go":
                starts.append(int(words[1]) - skew_ns)
                words = ("go", starts[-1])
            await super().say(*words)

        async def heard(self, event: str) -> dict[str, Any]:
            return {**await super().heard(event), "still_s": [1.5]}

    def seen() -> Seen:
        return msgspec.structs.replace(real, machine="there", host="far-away", now_ns=now_ns() + skew_ns)

    monkeypatch.setattr(cluster, "look", lambda: real)
    monkeypatch.setattr(places, "look", seen)
    monkeypatch.setattr(stripe, "look", seen)
    monkeypatch.setattr(stripe, "_machine", lambda: "there")
    monkeypatch.setattr(stripe, "now_ns", lambda: now_ns() + skew_ns)
    monkeypatch.setattr(stripe, "Worker", Elsewhere)
    return starts


def test_machines_whose_clocks_differ_start_together_and_accuse_nobody(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts, started, stripes = elsewhere(monkeypatch, SKEW_NS), list[int](), list[cluster.Stripes]()
    monkeypatch.setattr("eventcore_lab.experiment.measuring.is_local", lambda _: False)
    monkeypatch.setattr(cluster, "doubt_ns", lambda *_: DOUBT_NS)  # more than an append takes
    go = cluster.Stripes.go

    async def noted(self: cluster.Stripes, start_ns: int) -> None:
        started.append(start_ns)
        stripes.append(self)
        await go(self, start_ns)

    monkeypatch.setattr(cluster.Stripes, "go", noted)
    with ThreadPoolExecutor(2) as threads:
        measured = measure(msgspec.structs.replace(SHORT, followers=1), lab.spool, Quiet(), threads)
    marks = (measured.folder / "marks.ndjson").read_text()
    assert len(re.findall(r"ran on far-away .* a clock known to ± 50\.000 ms", marks)) == 2
    assert marks.count(LOADER_STOOD_STILL) == 2
    assert not stripes[0]._futures and not [g for g in stripes[0]._gathered.values() if g.files], "they may be large"
    assert len(starts) == 2 and all(abs(start - started[0]) <= DOUBT_NS for start in starts)
    spans = pq.read_table(measured.folder / "writes-1.parquet")
    assert min(spans["ended_ns"].to_numpy() - spans["began_ns"].to_numpy()) >= 2 * DOUBT_NS
    facts = reported(measured.folder)
    assert facts["events stored"] > 0 and not [name for name in facts if "lag" in name]
    assert lab.recover() == [measured.run_id]  # also if this process had died by now
    assert set(lab.invariants(measured.run_id)["status"]) == {"passed", "not tested"}
    assert sorted(lab.samples(measured.run_id)["worker"].unique()) == [0, 1]
    [reader] = lab.readers(measured.run_id).iter_rows(named=True)
    assert reader["delivered"] > 0 == reader["skipped"] and reader["lag_max_ns"] is reader["late_ns"] is None


@pytest.mark.parametrize(("doubt", "lag_ns", "late_ns"), [(0, 900, 900), (7, 30, None)])
def test_a_readers_lag_is_of_what_was_written_by_its_own_clock(
    lab: Lab, doubt: int, lag_ns: int, late_ns: int | None
) -> None:
    folder = lab.spool / "r1"
    folder.mkdir(parents=True)
    row: dict[str, Any] = dict.fromkeys(TABLES["runs"]) | {"run_id": "r1", "status": "complete", "keeps_events": True}
    row |= {"started_at": "2026-01-01T00:00:00+00:00", "warmup_s": 0.0, "measured_ns": 10**9, "pacer": "saturate"}
    (folder / "run.json").write_bytes(msgspec.json.encode(row | {"workload": "write_events"}))
    ids = [bytes([worker] * 16) for worker in (0, 1)]
    for worker, event_id in enumerate(ids):
        samples_in(folder, worker, 1)  # it ends at 5
        written = (worker, 0, 0, Outcome.OK, 1, 5, f"s-{worker}", 0, None, 1, 1, event_id, 0, None)
        write_rows(folder / f"writes-{worker}.parquet", "writes", [written])
    seen = [
        (0, 0, n + 1, n + 1, event_id, at_ns) for n, (event_id, at_ns) in enumerate(zip(ids, (35, 905), strict=True))
    ]
    write_rows(folder / "followed-0.parquet", "followed", seen)
    write_rows(folder / "counts-clocks.parquet", "counts", [(f"{CLOCK_DOUBT}1", doubt)])
    assert reported(folder)["reader lag p99 ms"] == lag_ns / 1e6
    lab.ingest(folder)
    [reader] = lab.readers("r1").iter_rows(named=True)
    assert (reader["lag_max_ns"], reader["late_ns"]) == (lag_ns, late_ns)


def test_a_store_that_other_machines_cannot_reach_is_said_before_anything_starts(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere(monkeypatch, 0)
    with (
        ThreadPoolExecutor(2) as threads,
        pytest.raises(RunBroken, match="postgres can be reached on this machine alone, and worker 0 is on far-away"),
    ):
        run(LONG, lab, Quiet(), threads)


@pytest.mark.parametrize("where", ["pool", "dask"])
def test_ctrl_c_ends_the_load_everywhere_and_keeps_it(
    lab: Lab, where: str, aside: Path, request: pytest.FixtureRequest
) -> None:
    executor = request.getfixturevalue(where)
    began_ns = now_ns()
    with pytest.raises(KeyboardInterrupt):
        run(LONG, lab, Once(aside, lambda: os.kill(os.getpid(), signal.SIGINT)), executor)
    assert now_ns() - began_ns < PROMPTLY_NS
    [row] = lab.runs().iter_rows(named=True)
    assert (row["status"], row["cluster"]) == ("interrupted", type(executor).__name__)
    samples = lab.samples(row["run_id"])
    assert sorted(samples["worker"].unique()) == [0, 1] and (samples["operation"] % 2 == samples["worker"]).all()
    assert set(lab.invariants(row["run_id"])["status"]) == {"passed", "not tested"}


def test_a_dask_worker_that_is_killed_is_named_and_what_the_other_had_is_kept(lab: Lab, dask: Any, aside: Path) -> None:
    address, pid = sorted(dask.run(os.getpid).items())[1]
    began_ns = list[int]()

    def kill() -> None:
        began_ns.append(now_ns())
        os.kill(pid, signal.SIGKILL)

    with pytest.raises(RunBroken, match=f"worker 1 on Dask worker {address} of .* is gone"):
        run(LONG, lab, Once(aside, kill), dask)
    assert now_ns() - began_ns[0] < PROMPTLY_NS
    [row] = lab.runs().iter_rows(named=True)
    assert row["status"] == "broken" and "worker 1" in row["status_reason"]
    assert lab.samples(row["run_id"])["worker"].unique().to_list() == [0]
    assert set(lab.invariants(row["run_id"])["status"]) <= {"passed", "not tested"}
