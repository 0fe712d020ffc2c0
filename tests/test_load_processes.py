"""Several load processes are one load: nobody's part is missing or done twice, and one that dies ends the load of all."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import polars as pl
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from eventcore_lab.clock import now_ns, pause_s
from eventcore_lab.experiment import Experiment, RunBroken, measuring
from eventcore_lab.lab.database import Lab
from eventcore_lab.lab.disturbances import cautions
from eventcore_lab.listing import repeat
from eventcore_lab.load.loaders import Loaded
from eventcore_lab.load.worker import share
from eventcore_lab.progress import Quiet, Tally
from eventcore_lab.schema import ExitCode, Outcome
from eventcore_lab.spec import UsageError
from eventcore_lab.workbench import differences, rerun, run

DEADLINE_S = 30


class When(Quiet):
    """Does something once so many samples were seen."""

    def __init__(self, samples: int, act: Callable[[], Any]) -> None:
        self._samples, self._act = samples, act

    def update(self, title: str, tally: Tally) -> None:
        if tally.operations >= self._samples:
            self._samples = sys.maxsize
            self._act()


def workers_of(pid: int) -> list[psutil.Process]:
    """The load processes that `pid` has started, in the order of their starts."""
    children = [p for p in psutil.Process(pid).children() if "eventcore_lab.load.worker" in p.cmdline()]
    return sorted(children, key=lambda p: p.create_time())


def eventually(condition: Callable[[], Any]) -> Any:
    deadline_ns = now_ns() + DEADLINE_S * 1_000_000_000
    while not (found := condition()) and now_ns() < deadline_ns:
        pause_s(0.02)
    return found


@given(total=st.integers(0, 10_000), workers=st.integers(1, 64))
def test_shares_add_up_and_differ_by_one_at_most(total: int, workers: int) -> None:
    shares = [share(total, worker, workers) for worker in range(workers)]
    assert sum(shares) == total
    assert max(shares) - min(shares) <= 1


@pytest.mark.parametrize("store", ["null", "postgres"])
def test_three_workers_offer_what_one_offers(lab: Lab, store: str) -> None:
    e = {"store": store, "workload": "write_events", "pacer": "poisson:rate=600", "duration_s": 0.8, "warmup_s": 0.2}
    [one, three] = [run(Experiment(**e, workers=n), lab, Quiet()) for n in (1, 3)]  # type: ignore[arg-type]
    schedule = ["operation", "due_ns", "phase"]
    assert three.samples.select(schedule).sort("operation").equals(one.samples.select(schedule).sort("operation"))
    by_worker = three.samples.select((pl.col("operation") % 3 == pl.col("worker")).alias("is_its_own"), "worker")
    assert by_worker["is_its_own"].all() and by_worker["worker"].n_unique() == 3
    assert set(three.invariants["status"]) == {"passed", "not tested"}
    assert three.row["workers"] == 3


def test_callers_of_three_workers_are_as_many_as_those_of_one(lab: Lab) -> None:
    e = Experiment(workload="transfer", pacer="saturate:concurrency=7", duration_s=0.6, warmup_s=0.1, workers=3)
    found = run(e, lab, Quiet())
    assert found.samples["operation"].n_unique() == len(found.samples)
    assert sorted(found.samples["worker"].unique()) == [0, 1, 2]
    changes = pl.concat(
        [
            found.samples.select(t="began_ns", by=pl.lit(1)),
            found.samples.select(t="ended_ns", by=pl.lit(-1)),
        ]
    ).sort("t", "by")
    assert changes["by"].cum_sum().max() == 7
    assert set(found.invariants["status"]) == {"passed", "not tested"}


def test_one_worker_of_two_that_is_killed_ends_the_load_and_all_samples_are_kept(lab: Lab) -> None:
    killed_ns: list[int] = []

    def kill() -> None:
        killed_ns.append(now_ns())
        workers_of(os.getpid())[1].kill()

    e = Experiment(store="postgres", pacer="constant:rate=400", duration_s=60, warmup_s=0, workers=2)
    with pytest.raises(RunBroken, match="worker 1 was ended by signal SIGKILL"):
        run(e, lab, When(50, kill))
    assert killed_ns and not workers_of(os.getpid())
    [row] = lab.runs().iter_rows(named=True)
    assert row["status"] == "broken" and "worker 1" in row["status_reason"]
    assert sorted(lab.samples(row["run_id"])["worker"].unique()) == [0, 1]
    assert set(lab.invariants(row["run_id"])["status"]) <= {"passed", "not tested"}  # nobody is accused of it


def test_one_worker_that_gives_up_stops_the_others(lab: Lab) -> None:
    e = Experiment(
        pacer="constant:rate=8000",
        duration_s=60,
        warmup_s=0,
        workers=2,
        connections=2,
        in_flight_max=2,
        backlog_max=11,
        backlog_policy="abort",
    )
    with pytest.raises(RunBroken, match="arrivals wait"):
        run(e, lab, Quiet())
    [row] = lab.runs().iter_rows(named=True)
    samples = lab.samples(row["run_id"])
    assert sorted(samples["worker"].unique()) == [0, 1]
    assert not (samples["outcome"] == int(Outcome.RUNNING)).any()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"workers": 0}, "workers must be 1 to 64"),
        ({"workers": 3, "connections": 2}, "connections is shared by 3 workers, and 2 is not one for each"),
        ({"workers": 3, "in_flight_max": 2}, "in_flight_max is shared by 3 workers"),
        ({"workers": 11}, "concurrency is shared by 11 workers, and 10"),
        ({"workers": 2, "store": "memory"}, "2 workers need a store that several processes can open"),
        ({"operation_timeout_s": -1}, "operation_timeout_s must be"),
    ],
)
def test_what_cannot_be_shared_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=re.escape(said)):
        Experiment(**settings)


def test_a_load_process_that_stands_still_is_told(lab: Lab) -> None:
    def stand_still() -> None:
        worker = workers_of(os.getpid())[1]
        worker.suspend()
        threading.Timer(1.6, worker.resume).start()

    e = Experiment(store="null", workload="write_events", pacer="saturate:concurrency=4,think_ms=5", workers=2)
    found = run(structs.replace(e, duration_s=3, warmup_s=0), lab, When(50, stand_still))
    assert any("a load process stood still" in line and "worker 1" in line for line in cautions(found))
    assert set(found.invariants["status"]) == {"passed", "not tested"}


def test_a_load_process_that_hangs_does_not_hang_the_run(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "HANGS_AFTER_S", 0.5)
    e = Experiment(store="memory", pacer="constant:rate=500", duration_s=1, warmup_s=0, timeout_s=0.01)
    with pytest.raises(RunBroken, match=r"worker 0 did not end within 0\.56 s after the last arrival was due"):
        run(e, lab, When(50, lambda: workers_of(os.getpid())[0].suspend()))
    assert not workers_of(os.getpid())


def test_a_failure_after_ctrl_c_is_not_told_as_the_user_s_wish(lab: Lab) -> None:
    def stop_and_kill() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        threading.Timer(0.2, workers_of(os.getpid())[0].kill).start()

    e = Experiment(store="postgres:hold_ms=1000", workload="write_events", duration_s=60, warmup_s=0)
    e = structs.replace(e, pacer="saturate:concurrency=10")
    with pytest.raises(RunBroken, match="SIGKILL"):
        run(e, lab, When(0, stop_and_kill))
    [row] = lab.runs().iter_rows(named=True)
    assert row["status"] == "broken" and row["status_reason"].startswith("after the user had stopped it, ")


def test_who_died_is_said_before_the_others_are_ended(lab: Lab) -> None:
    said: list[str] = []

    class Hears(When):
        def phase(self, title: str, text: str) -> None:
            said.append(text)

    e = Experiment(store="memory", pacer="constant:rate=400", duration_s=60, warmup_s=0)
    with pytest.raises(RunBroken):
        run(e, lab, Hears(50, lambda: workers_of(os.getpid())[0].kill()))
    assert said[-1] == "worker 0 was ended by signal SIGKILL; ending the others"


def test_a_progress_whose_output_goes_away_costs_no_run(lab: Lab) -> None:
    class Gone(Quiet):
        def update(self, title: str, tally: Tally) -> None:
            raise BrokenPipeError

        def ended(self, status: str, reason: str) -> None:
            raise AssertionError("nothing more is said")

    found = run(Experiment(store="memory", pacer="constant:rate=400", duration_s=0.5, warmup_s=0), lab, Gone())
    assert found.row["status"] == "complete" and found.outcomes == {"ok": 200}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"workers": 2.5}, "workers must be a whole number, not '2.5'"),
        ({"workers": True}, "workers must be a whole number"),
        ({"seed": "1"}, "seed must be a whole number"),
        ({"duration_s": "5"}, "duration_s must be a number"),
        ({"spins": 1}, "spins must be True or False"),
        ({"store": None}, "store must be text"),
    ],
)
def test_a_value_of_another_type_is_refused_in_one_line(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Experiment(**settings)


def test_equal_experiments_have_one_id() -> None:
    floats, ints = Experiment(warmup_s=0.0, connections=20), Experiment(warmup_s=0, connections=20.0)  # type: ignore[arg-type]
    assert floats == ints and floats.experiment_id == ints.experiment_id
    assert type(ints.connections) is int and type(ints.warmup_s) is float


def test_reports_of_workers_are_added_up_and_the_first_reason_is_the_reason() -> None:
    said = [
        {"reason": "", "failures": {"a": 1}, "counts": {"hits": 2}},
        {"reason": "full", "failures": {"a": 2, "b": 1}, "counts": {"hits": 5}},
    ]
    assert Loaded.together(said) == Loaded("full", {"a": 3, "b": 1}, {"hits": 7})


SCRIPT = """
import sys
from eventcore_lab import Experiment, Lab, run
run(Experiment(pacer="constant:rate=300", duration_s=60, warmup_s=0, workers=2, followers=1, projection="memory"),
    Lab(sys.argv[1]))
"""


def shared_memory() -> set[str]:
    folder = Path("/dev/shm")
    return {p.name for p in folder.iterdir()} if folder.is_dir() else set()


def test_kill_9_of_the_parent_leaves_no_worker_no_server_and_no_shared_memory(tmp_path: Path) -> None:
    lab, before = Lab(tmp_path / "lab.duckdb"), shared_memory()
    parent = subprocess.Popen([sys.executable, "-c", SCRIPT, str(lab.path)], stdout=subprocess.DEVNULL)
    try:

        def recorded():
            return [p for p in lab.spool.glob("*/samples-*.i64") if p.read_bytes()[64 * 20 : 64 * 21].strip(b"\0")]

        assert eventually(lambda: len(recorded()) == 2)
        everybody = psutil.Process(parent.pid).children(recursive=True)
        assert len(workers_of(parent.pid)) == 2 and len(everybody) > 4
        mine = shared_memory() - before
    finally:
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
    assert eventually(lambda: not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in everybody))
    assert eventually(lambda: not mine & shared_memory())
    [run_id] = lab.recover()
    assert lab.run_row(run_id)["status"] == "interrupted"
    assert sorted(lab.samples(run_id)["worker"].unique()) == [0, 1]


def test_an_operation_without_an_answer_in_time_is_unknown_and_read_back(lab: Lab) -> None:
    """Appends stay open for up to 300 ms here, and are given up after 50: some happened, and some did not."""
    e = Experiment(
        store="postgres:hold_ms=300",
        workload="write_events",
        pacer="saturate:concurrency=8",
        duration_s=1.5,
        warmup_s=0,
        operation_timeout_s=0.05,
    )
    found = run(e, lab, Quiet())
    assert found.outcomes["unknown"] > 0
    answered = found.samples.filter(pl.col("outcome") == int(Outcome.OK))
    slowest = (found.samples["ended_ns"] - found.samples["began_ns"]).to_numpy().max()
    assert len(answered) + found.outcomes["unknown"] == len(found.samples)
    assert slowest >= 50_000_000
    facts = lab.facts(found.run_id)
    resolved = sum(v for k, v in facts.items() if k.startswith("unknown appends"))
    assert resolved == found.outcomes["unknown"]
    assert set(found.invariants["status"]) == {"passed", "not tested"}
    assert "no answer to an operation within 0.05 s" in str(found.marks["detail"].to_list())


def test_a_stored_run_is_repeated_with_every_parameter_it_had(lab: Lab) -> None:
    e = Experiment(
        store="memory",
        workload="users:users=20,pick=zipf",
        executor="cached(direct)",
        pacer="poisson:rate=300",
        duration_s=0.3,
        warmup_s=0.1,
        seed=7,
        in_flight_max=33,
        label="once",
    )
    first = run(e, lab, Quiet())
    then, now = rerun(first.run_id[:-1], lab, Quiet())
    assert then.run_id == first.run_id != now.run_id
    named = list(Experiment.__struct_fields__)
    assert {n: then.row[n] for n in named} == {n: now.row[n] for n in named}
    assert then.row["experiment_id"] == now.row["experiment_id"]
    columns = ["operation", "due_ns"]
    assert then.samples.select(columns).equals(now.samples.select(columns))
    assert differences(then, now) == []


def test_a_run_on_an_executor_of_ones_own_is_repeated_on_one(lab: Lab) -> None:
    e = Experiment(store="null", workload="write_events", pacer="constant:rate=50", duration_s=0.3, warmup_s=0)
    with ThreadPoolExecutor(1) as own:
        first = run(e, lab, Quiet(), own)
        with pytest.raises(UsageError, match=r"executor of one's own \(ThreadPoolExecutor\): rerun"):
            rerun(first.run_id, lab, Quiet())
        assert rerun(first.run_id, lab, Quiet(), own)[1].row["cluster"] == "ThreadPoolExecutor"


def test_a_rerun_that_violates_an_invariant_says_so_by_its_code(lab: Lab) -> None:
    e = Experiment(store="mutant(memory):lost_ack", workload="write_events", pacer="constant:rate=400", duration_s=0.5)
    first = run(structs.replace(e, warmup_s=0), lab, Quiet())
    text, code = repeat(lab, first.run_id)
    assert code == ExitCode.VIOLATED and "VIOLATED" in text
