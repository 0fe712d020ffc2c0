"""A run from its description to its facts, also when somebody or something ends it early."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from eventcore_lab.clock import NS_PER_S, now_ns, pause_s
from eventcore_lab.events import StoreUnreachable
from eventcore_lab.experiment import Experiment, RunBroken, measure
from eventcore_lab.lab.database import Lab
from eventcore_lab.lab.measures import Run
from eventcore_lab.lab.targets import Targets, judge
from eventcore_lab.progress import Quiet, Tally
from eventcore_lab.schema import TABLES
from eventcore_lab.spec import UsageError
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
        ("executor", "batching(parallel(direct))", "the other way round"),
        ("projection", "worcker", "did you mean worker"),
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
