"""A run from its description to its facts, also when somebody or something ends it early."""

from __future__ import annotations

import importlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pyarrow.parquet as pq
import pytest

from eventcore_lab.clock import NS_PER_S, now_ns, pause_s
from eventcore_lab.commands import executors
from eventcore_lab.events import StoreError, StoreUnreachable
from eventcore_lab.experiment import Experiment, RunBroken, measure
from eventcore_lab.lab.database import Lab
from eventcore_lab.lab.measures import Run
from eventcore_lab.lab.targets import Targets, judge
from eventcore_lab.load.drive import Stop
from eventcore_lab.load.fill import filled
from eventcore_lab.load.journal import Journal
from eventcore_lab.load.pacers import pacers
from eventcore_lab.load.projector import FINISH_TIMEOUT_S
from eventcore_lab.load.workloads import workloads
from eventcore_lab.progress import Quiet, Tally
from eventcore_lab.projections import read_models
from eventcore_lab.schema import TABLES
from eventcore_lab.spec import Registry, UsageError
from eventcore_lab.stores import open_store, stores
from eventcore_lab.workbench import best, conclude, run, run_each, summary_line, vary

QUICK: dict[str, Any] = {"store": "memory", "duration_s": 0.3, "warmup_s": 0.1}


def until(condition: Callable[[], Any], timeout_s: float = 30) -> Any:
    """The first true answer; fails when there is none in time."""
    deadline_ns = now_ns() + int(timeout_s * NS_PER_S)
    while not (found := condition()):
        assert now_ns() < deadline_ns, "waited in vain"
        pause_s(0.01)
    return found


def test_parameters_are_columns_of_the_runs_table() -> None:
    assert set(Experiment.__struct_fields__) <= set(TABLES["runs"])


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("store", "postgrs", "did you mean postgres"),
        ("workload", "creat_user", "unknown workload"),
        ("pacer", "possion:rate=1", "did you mean poisson"),
        ("pacer", "poisson:rate=-1", "above 0"),
        ("pacer", "poisson:rate=nan", "finite"),
        ("pacer", "constant:rate=1e9", "too many"),
        ("workload", "write_events:batch=0", "batch must be"),
        ("duration_s", 0, "duration_s must be"),
        ("duration_s", float("nan"), "duration_s must be"),
        ("connections", -1, "connections must be"),
        ("backlog_policy", "ignore", "unknown backlog_policy"),
        ("executor", "cashed(direct)", "did you mean cached"),
        ("executor", "cached", "write cached"),
        ("executor", "cached(direct):size=0", "size must be"),
        ("executor", "batching(parallel(direct))", "puts commands together itself"),
        ("projection", "worcker", "unknown projection 'worcker'.*did you mean worker"),
        ("projection", "matview:every_s=0", "every_s"),
    ],
)
def test_an_experiment_that_cannot_be_is_refused_before_anything_starts(field: str, value: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said) as error:
        Experiment(**{field: value})
    assert "\n" not in str(error.value)


def test_an_open_loop_records_every_arrival_of_its_schedule(open_run: Run) -> None:
    assert len(open_run.samples) == 1400
    assert open_run.samples["operation"].to_list() == list(range(1400))
    assert open_run.samples["due_ns"].diff().drop_nulls().unique().to_list() == [500_000]
    late = open_run.samples["began_ns"] - open_run.samples["due_ns"]
    assert late.min() >= 0
    assert open_run.row["status"] == "complete"
    assert open_run.samples.filter(open_run.samples["phase"] == 0)["due_ns"].max() < 100_000_000


def test_in_a_closed_loop_operations_are_due_when_they_begin(closed_run: Run) -> None:
    s = closed_run.samples
    assert (s["due_ns"] == s["began_ns"]).all()
    assert (s["acquired_ns"] >= s["began_ns"]).all() and (s["ended_ns"] >= s["acquired_ns"]).all()


def test_the_same_seed_asks_the_same_of_the_store(lab: Lab) -> None:
    found = [run(Experiment(pacer="poisson:rate=300", seed=5, **QUICK), lab, Quiet()) for _ in range(2)]
    assert found[0].samples["due_ns"].equals(found[1].samples["due_ns"])


def test_trials_are_interleaved_and_come_back_in_order(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    base = Experiment(**{**QUICK, "duration_s": 0.05, "warmup_s": 0})
    plan = vary(base, pacer=[f"saturate:concurrency={n}" for n in (1, 2)])
    runs = run_each(plan, lab, trials=2, progress=Quiet())
    assert [(r.row["trial"], r.row["pacer"][-1]) for r in runs] == [(0, "1"), (0, "2"), (1, "1"), (1, "2")]
    assert len({r.row["experiment_id"] for r in runs}) == 2
    assert capsys.readouterr().out.count("operations/s") == 4
    assert best(runs, "commands_per_second") in runs
    assert "memory, create_user" in summary_line(runs[0])


def test_a_conclusion_is_kept_in_the_lab_and_given_to_the_report(
    lab: Lab, open_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVENTCORE_LAB_REPORT", str(tmp_path))
    verdict = conclude(judge(Targets.of("p50 < 1s"), open_run), lab)
    conclude(verdict, lab)
    content = msgspec.json.decode((tmp_path / "conclusion.json").read_bytes())
    assert content["exit_code"] == int(verdict.exit_code)
    assert content["rows"][0]["name"] == "p50"
    assert lab.sql("SELECT count(*) FROM verdicts WHERE kind = 'target'").item() == 1


class _When(Quiet):
    """Does something once so many operations have been seen."""

    def __init__(self, count: int, act: Callable[[], None]) -> None:
        self._count, self._act, self._is_done = count, act, False

    def update(self, title: str, tally: Tally) -> None:
        if tally.operations >= self._count and not self._is_done:
            self._is_done = True
            self._act()


def _worker_pid() -> int:
    return next(p.pid for p in psutil.Process().children() if "eventcore_lab.load.worker" in " ".join(p.cmdline()))


def test_a_worker_that_is_killed_is_said_and_its_samples_kept(lab: Lab) -> None:
    kill = _When(50, lambda: os.kill(_worker_pid(), signal.SIGKILL))
    experiment = Experiment(store="memory", pacer="constant:rate=500", duration_s=60, warmup_s=0)
    with pytest.raises(RunBroken, match="SIGKILL"):
        run(experiment, lab, kill)
    [row] = lab.runs().iter_rows(named=True)
    assert row["status"] == "broken" and "SIGKILL" in row["status_reason"]
    assert len(lab.samples(row["run_id"])) >= 50
    assert set(lab.invariants(row["run_id"])["status"]) == {"not tested"}


def test_ctrl_c_drains_checks_and_keeps_the_run_as_interrupted(lab: Lab) -> None:
    # Only the main thread hears a signal; `measure` listens there while another thread works.
    assert threading.current_thread() is threading.main_thread()
    stop = _When(50, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        run(Experiment(store="memory", pacer="constant:rate=500", duration_s=60, warmup_s=0), lab, stop)
    [row] = lab.runs().iter_rows(named=True)
    assert row["status"] == "interrupted"
    assert set(lab.invariants(row["run_id"])["status"]) == {"passed", "not tested"}
    samples = lab.samples(row["run_id"])
    assert 50 <= len(samples) < 5000 and (samples["outcome"] != 0).all()


SCRIPT = """
import sys
from eventcore_lab import Experiment, Lab, run
run(Experiment(store="postgres", pacer="constant:rate=300", duration_s=60, warmup_s=0, connections=2), Lab(sys.argv[1]))
"""


def test_after_kill_9_of_everything_else_nothing_is_left_and_the_run_is_found(tmp_path: Path) -> None:
    lab = Lab(tmp_path / "lab.duckdb")
    parent = subprocess.Popen([sys.executable, "-c", SCRIPT, str(lab.path)], stderr=subprocess.DEVNULL)
    try:
        samples = until(lambda: next(lab.spool.glob("*/samples-0.i64"), None))
        family = psutil.Process(parent.pid).children(recursive=True)
        until(lambda: any(samples.read_bytes()[: 64 * 20][-64:]))
    finally:
        parent.kill()
        parent.wait()
    until(lambda: not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in family))
    [run_id] = lab.recover()
    assert lab.run_row(run_id)["status"] == "interrupted"
    assert len(lab.samples(run_id)) >= 20
    assert not list(lab.spool.iterdir())


def test_a_store_that_cannot_be_reached_is_a_broken_run(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAB_DSN", "postgresql://me:geheim@127.0.0.1:1/db")
    with pytest.raises(StoreUnreachable, match="no PostgreSQL server answers"):
        run(Experiment(store="env:LAB_DSN", duration_s=1), lab, Quiet())
    [row] = lab.runs().iter_rows(named=True)
    assert row["status"] == "broken"
    assert b"geheim" not in lab.path.read_bytes()


def test_a_full_backlog_drops_and_counts_to_the_unit(lab: Lab) -> None:
    found = run(
        Experiment(
            store="postgres",
            pacer="constant:rate=20000",
            duration_s=0.5,
            warmup_s=0,
            connections=1,
            in_flight_max=1,
            backlog_max=10,
        ),
        lab,
        Quiet(),
    )
    assert sum(found.outcomes.values()) == 10_000
    assert found.outcomes["dropped"] > 0
    assert set(found.invariants["status"]) == {"passed", "not tested"}


def test_a_run_works_inside_a_loop_that_is_running_as_in_a_notebook(lab: Lab) -> None:
    import asyncio

    async def cell() -> Run:
        return run(Experiment(**{**QUICK, "duration_s": 0.05}), lab, Quiet())

    assert asyncio.run(cell()).row["status"] == "complete"


def test_measure_leaves_a_folder_that_says_everything(tmp_path: Path) -> None:
    measured = measure(Experiment(**{**QUICK, "duration_s": 0.05}), tmp_path)
    names = {p.name for p in measured.folder.iterdir()}
    assert names >= {"run.json", "environment.json", "gauges.ndjson", "marks.ndjson", "samples-0.i64", "stored.parquet"}
    assert msgspec.json.decode((measured.folder / "run.json").read_bytes())["status"] == "complete"


def test_positions_that_the_store_drew_are_accounted_for(closed_run: Run) -> None:
    found = dict(closed_run.invariants.select("name", "status").iter_rows())
    assert found["holes are accounted for"] == "passed"


# executors and projections


def test_an_executor_is_for_workloads_of_commands_only() -> None:
    with pytest.raises(UsageError, match="has no commands"):
        Experiment(workload="write_events", executor="cached(direct)")
    Experiment(workload="write_events", executor="direct")


@pytest.mark.parametrize(
    ("store", "projection"),
    [
        ("sqlite", "worker"),
        ("grouped(sqlite)", "trigger"),
        ("postgres:eventcore", "matview"),
        ("mutant(postgres:chapter):lost_ack", "chapter_matview"),
    ],
)
def test_a_projection_that_keeps_tables_needs_a_store_of_our_own_tables(store: str, projection: str) -> None:
    said = f"projection {projection} keeps tables .* projection=memory works .*, and {re.escape(store)} is one"
    with pytest.raises(UsageError, match=said):
        Experiment(store=store, projection=projection)
    Experiment(store=store, projection="memory")


@pytest.mark.parametrize("store", ["postgres:xmin", "grouped(postgres)", "mutant(grouped(postgres)):lost_ack"])
def test_a_store_of_our_own_tables_has_a_place_for_every_projection(store: str) -> None:
    for projection in read_models.names():
        Experiment(store=store, projection=projection)


def test_a_projection_needs_a_store_that_others_can_open() -> None:
    with pytest.raises(UsageError, match="several processes can open, and memory is not"):
        Experiment(store="memory", projection="worker")


def test_a_run_has_the_conflicts_of_its_commands_and_what_its_executor_counted(lab: Lab) -> None:
    """On one hot stream of a store with a network: every caller but one of those that read the same version conflicts."""
    base = Experiment(store="sqlite", workload="reserve", pacer="saturate:concurrency=8", duration_s=0.4, warmup_s=0.1)
    direct, cached, batching = (
        run(msgspec.structs.replace(base, executor=executor), lab, Quiet())
        for executor in ("direct:retries=50,first_ms=1", "cached(direct)", "batching(cached(direct)):delay_ms=0")
    )
    assert direct.figure("conflicts/attempts").estimate.value > 0
    ok = direct.samples.filter(direct.samples["outcome"] == 1)
    assert (ok["attempts"] == ok["conflicts"] + 1).all() and ok["conflicts"].max() > 0
    assert (ok.filter(ok["conflicts"] == 0)["backoff_ns"] == 0).all() and ok["backoff_ns"].max() > 0
    assert counts(cached)["cache_hits"] > counts(cached)["cache_misses"] > 0
    assert counts(batching)["batched"] > counts(batching)["batches"] > 0
    assert batching.figure("conflicts/attempts").estimate.value == 0
    for found in (direct, cached, batching):
        assert ("store filled", "1 events") in found.marks.select("name", "detail").rows()
        assert set(found.invariants["status"]) <= {"passed", "not tested"}


def counts(found: Run) -> dict[str, float]:
    return {name: value for _, source, name, value in found.gauges.iter_rows() if source == "executor"}


@pytest.mark.parametrize(("projection", "status"), [("worker", "passed"), ("chapter_matview", "violated")])
def test_a_projection_is_kept_beside_the_load_and_held_against_the_events(
    lab: Lab, projection: str, status: str
) -> None:
    e = Experiment(workload="users:users=20", projection=projection, duration_s=0.5, warmup_s=0.1, connections=4)
    found = run(e, lab, Quiet())
    statuses = dict(found.invariants.select("name", "status").rows())
    assert statuses.pop("projections equal the fold of the events") == status
    assert set(statuses.values()) <= {"passed", "not tested"}
    lags = found.gauge(f"projection {projection}", "lag_events", steady=False)
    assert len(lags) > 1 and lags["value"].min() >= 0
    [told] = found.marks.filter(found.marks["name"] == "projected")["detail"]
    assert told.startswith(projection) and "had not caught up" not in told


# filling, and those beside the load


def marks(found: Run) -> dict[str, int]:
    return {name: t_ns for t_ns, name, _ in found.marks.iter_rows()}


def test_the_store_is_filled_and_caught_up_with_before_the_load_begins(lab: Lab) -> None:
    e = Experiment(workload="users:users=2000", projection="worker", followers=1, duration_s=0.5, warmup_s=0.1)
    found = run(msgspec.structs.replace(e, pacer="constant:rate=100", connections=4), lab, Quiet())
    assert marks(found)["store filled"] < marks(found)["load begins"] == 0 < marks(found)["load ends"]
    lags = found.gauge("projection worker", "lag_events", steady=False)
    assert lags["value"].max() < 1000, "what the store was filled with is no lag of the load"
    assert found.readers.select("skipped", "repeated", "reordered").rows() == [(0, 0, 0)]
    assert found.readers["delivered"][0] > 2000
    assert set(found.invariants["status"]) <= {"passed", "not tested"}


def test_what_the_store_was_filled_with_is_evidence_and_not_in_the_journal_of_the_load(tmp_path: Path) -> None:
    e = Experiment(store="sqlite", workload="users:users=30000", followers=1, duration_s=0.2, warmup_s=0)
    folder = measure(msgspec.structs.replace(e, pacer="constant:rate=100"), tmp_path, Quiet()).folder
    parts = [pq.read_table(folder / f"writes--{n}.parquet") for n in (1, 2, 3)]
    assert sum(len(part) for part in parts) == 30_000 and not list((folder / "early").iterdir())
    for part in parts:
        assert max(part["ended_ns"].to_pylist()) < 0 and set(part["operation"].to_pylist()) == {-1}
    load = pq.read_table(folder / "writes-0.parquet")
    assert 0 < len(load) < 100 and min(load["began_ns"].to_pylist()) >= 0
    seen = [ns for part in folder.glob("followed-*.parquet") for ns in pq.read_table(part)["seen_ns"].to_pylist()]
    assert len([ns for ns in seen if ns < 0]) == 30_000 and max(seen) > 0


async def test_a_store_that_was_filled_with_the_same_seed_says_so(tmp_path: Path) -> None:
    async with open_store("memory") as store:
        for seed in (1, 2):
            assert await filled(store, workloads.make("users:users=50", seed=seed).populate(), tmp_path, Stop()) == 50
        with pytest.raises(StoreError, match="has been filled with this seed before; choose another seed") as error:
            await filled(store, workloads.make("users:users=50", seed=2).populate(), tmp_path, Stop())
        assert "\n" not in str(error.value)


async def test_filling_forgets_what_it_has_written_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    most, write = 0, Journal.write

    def counting(journal: Journal, *given: Any) -> None:
        nonlocal most
        most = max(most, len(journal._entries))
        write(journal, *given)

    monkeypatch.setattr(Journal, "write", counting)
    async with open_store("memory") as store:
        await filled(store, workloads.make("users:users=50000", seed=1).populate(), tmp_path, Stop())
    assert most <= 10_500 and len(list((tmp_path / "early").glob("writes-*"))) == 5


READ_MODEL = """
from msgspec import Struct
from eventcore_lab.events import StoreError
from eventcore_lab.projections import Step, read_models

class Stuck:
    "Never comes to the end, or says what is wrong."
    relation, every_s, applied, failures = "", 0.0, 0, {}
    def __init__(self, says): self.says = says
    async def make(self): pass
    async def step(self):
        if self.says:
            raise StoreError(self.says)
        return Step()
    async def reached(self): return 0
    async def rows(self): return []
    async def close(self): pass

class Model(Struct):
    says: str
    needs_tables = False
    def kept_in(self, store): return Stuck(self.says)

@read_models.register("stuck")
def stuck(*, says: str = ""):
    "In a module of its own."
    return Model(says)
"""


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], Any]]:
    """Writes and imports a module; what it registers is forgotten afterwards."""
    folder = tmp_path / "modules"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    registries: list[Registry[Any]] = [workloads, read_models, pacers, stores, executors]
    before = [dict(registry._makers) for registry in registries]
    names = []

    def write(name: str, text: str) -> Any:
        (folder / f"{name}.py").write_text(text)
        names.append(name)
        return importlib.import_module(name)

    yield write
    for registry, makers in zip(registries, before, strict=True):
        registry._makers = makers
    for name in names:
        sys.modules.pop(name, None)


STUCK: dict[str, Any] = {"store": "sqlite", "pacer": "constant:rate=100", "warmup_s": 0, "projection": "stuck"}


def test_a_projection_that_has_not_caught_up_is_told_and_nothing_is_passed(
    lab: Lab, written: Callable[[str, str], Any]
) -> None:
    """The first Ctrl-C leaves two seconds of the half minute."""
    written("stuck_models", READ_MODEL)
    began_ns = now_ns()
    with pytest.raises(KeyboardInterrupt):
        run(Experiment(**STUCK, duration_s=60), lab, _When(20, lambda: os.kill(os.getpid(), signal.SIGINT)))
    assert now_ns() - began_ns < FINISH_TIMEOUT_S / 2 * NS_PER_S
    [row] = lab.runs().iter_rows(named=True)
    [found] = lab.invariants(row["run_id"]).filter(name="projections equal the fold of the events").rows(named=True)
    assert (found["status"], found["reason"]) == ("broken", "the read model had not caught up when its time was over")
    verdict = judge(Targets.of("p50 < 10s"), Run(lab, row["run_id"]))
    assert verdict.status == "inconclusive"
    told = dict(lab.marks(row["run_id"]).select("name", "detail").rows())["projected"]
    assert "had not caught up" in told


class _AtTheEnd(Quiet):
    """Ctrl-C twice while those beside the load catch up."""

    def phase(self, title: str, text: str) -> None:
        if text == "waiting for those who follow":
            threading.Thread(target=self._twice).start()

    def _twice(self) -> None:
        for _ in range(2):
            pause_s(0.5)
            os.kill(os.getpid(), signal.SIGINT)


def test_a_second_ctrl_c_ends_those_beside_the_load_at_once(
    tmp_path: Path, written: Callable[[str, str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    written("stuck_models", READ_MODEL)
    monkeypatch.setattr("eventcore_lab.experiment.measuring.SHORT_FINISH_S", FINISH_TIMEOUT_S)
    began_ns = now_ns()
    found = measure(Experiment(**STUCK, duration_s=0.2), tmp_path / "spool", _AtTheEnd())
    assert now_ns() - began_ns < FINISH_TIMEOUT_S / 2 * NS_PER_S
    row = msgspec.json.decode((found.folder / "run.json").read_bytes())
    assert (row["status"], row["status_reason"]) == ("interrupted", "stopped by the user, at once")
    assert not [p for p in psutil.Process().children() if "eventcore_lab.load" in " ".join(p.cmdline())]


def test_what_goes_wrong_beside_the_load_says_where(tmp_path: Path, written: Callable[[str, str], Any]) -> None:
    written("stuck_models", READ_MODEL)
    e = Experiment(**{**STUCK, "projection": "stuck:says=no"}, duration_s=60)
    with pytest.raises(StoreError, match=r"\Aprojector 0 \(stuck:says=no\): no\Z"):
        measure(e, tmp_path / "spool", Quiet())


# what somebody registered in a module of his own


OWN = """
from eventcore_lab.load.pacers import Constant, pacers
from eventcore_lab.load.workloads import WriteEvents, workloads
from eventcore_lab.stores import grouped, stores

@workloads.register("bookings")
def bookings(seed: int, *, batch: int = 2):
    "Appends of two."
    return workloads.make(f"write_events:batch={batch}", seed=seed)

@pacers.register("by_the_hour")
def by_the_hour(*, rate: float = 3600.0):
    "So many an hour."
    return Constant(rate / 3600)

@stores.register("together")
def together(inner):
    "Another name."
    return grouped._grouped(inner)
"""


def test_a_run_knows_what_was_registered_in_a_module_of_ones_own(lab: Lab, written: Callable[[str, str], Any]) -> None:
    written("own_bookings", OWN)
    e = Experiment(
        store="together(sqlite)", workload="bookings", pacer="by_the_hour:rate=720000", duration_s=0.3, warmup_s=0
    )
    assert e.modules >= {"own_bookings", "eventcore_lab.stores.sqlite"}
    found = run(e, lab, Quiet())
    assert found.outcomes == {"ok": 60}
    assert set(found.samples["events"]) == {2}


def test_what_a_script_registers_itself_is_refused_before_anything_starts() -> None:
    script = OWN + 'from eventcore_lab import Experiment\nExperiment(store="sqlite", workload="bookings")\n'
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    last = done.stderr.strip().splitlines()[-1]
    assert "UsageError: workload bookings is registered in the script itself" in last
    assert "put it into a module beside it and import that" in last
    wrapped = script.replace('store="sqlite", workload="bookings"', 'store="together(sqlite)"')
    done = subprocess.run([sys.executable, "-c", wrapped], capture_output=True, text=True)
    assert "store together is registered in the script itself" in done.stderr
