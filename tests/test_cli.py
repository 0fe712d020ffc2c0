"""The command line as a person uses it: what it prints, where it leaves things, what it ends with."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pages
import polars as pl
import pytest

from eventcore_lab import cli, listing
from eventcore_lab.clock import NS_PER_S, now_ns, pause_s
from eventcore_lab.experiment import Experiment
from eventcore_lab.lab.database import Lab
from eventcore_lab.lab.measures import Run
from eventcore_lab.progress import Quiet
from eventcore_lab.schema import ExitCode
from eventcore_lab.workbench import run, summary_line

NOTEBOOK = "00-store-benchmark"
QUICK = ["duration_s=0.2", "warmup_s=0.05", "concurrency=1,4", "batch_sizes=1,10", "rate=200", "connections=4"]


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of one command line."""
    sys.argv = ["eventcore-lab", *arguments]
    with pytest.raises(SystemExit) as done:
        cli.main()
    out, err = capsys.readouterr()
    return int(done.value.code or 0), out, err


def set_(*pairs: str) -> list[str]:
    return [word for pair in pairs for word in ("-p", pair)]


@pytest.mark.parametrize(
    ("arguments", "code", "part"),
    [
        (["run", "07-nothing"], 2, "unknown notebook"),
        (["run", "00", "-p", "stor=x"], 2, "did you mean store?"),
        (["run", "00", "-p", "store=possgres"], 2, "did you mean postgres?"),
        (["run", "00", "-p", "duration_s=abc"], 2, "not a number"),
        (["run", "00", "-p", "duration_s=-1"], 2, "duration_s must be"),
        (["run", "00", "-p", "rate=0"], 2, "above 0"),
        (["run", "00", "-p", "batch_sizes="], 2, "empty list"),
        (["run", "00", "-p", "concurrency=1,0"], 2, "concurrency must be"),
        (["run", "00", "-p", "store=env:NOT_SET"], 2, "not set or empty"),
        (["run", "00", "-p", "store=postgresql://a:b@c/d"], 2, "by name"),
        (["run", "00", "-p", "targets=prod"], 2, "unknown targets"),
        (["run", "00", "-p", "workload=create_users"], 2, "did you mean create_user?"),
        (["run", "00", "-p", "workload=write_events"], 2, "'write_events' has no commands"),
        (["run", "00", "-p", "workload=update_profile:users=0"], 2, "users must be"),
        (["run", "00", "-p", "executor=batching(batching(direct))"], 2, "batching takes direct, cached(direct)"),
        (["run", "00", "-p", "projection=workr"], 2, "did you mean worker?"),
        (["run", "00", "-p", "store=memory", "-p", "projection=worker"], 2, "several processes can open"),
        (["run", "00", "-p", "store=sqlite", "-p", "projection=worker"], 2, "needs postgres or env:"),
        (["run", "00", "--out", "/dev/null/x"], 4, "no report can be written"),
        (["run", "00", "--lab", "/dev/null/x/lab.duckdb"], 4, "cannot write to"),
        (["nonsense"], 2, "No such command"),
        (["run"], 2, "Missing argument"),
        (["run", "00", "store=postgres"], 2, "'store=postgres' is no notebook; a parameter is given with -p"),
        (["run", "00", "-p", "targets=p99 < 50ms"], 2, "or a TOML file with thresholds"),
        (["report", "no-such-run"], 2, "no run begins with"),
    ],
)
def test_a_mistake_gets_one_line_and_a_documented_code(
    arguments: list[str], code: int, part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found, _, err = said(capsys, *arguments)
    assert (found, err.count("\n")) == (code, 1), err
    assert part in err and err.startswith("eventcore-lab: ") and "b@c" not in err


def test_a_lab_that_is_no_database_is_said_before_anything_starts(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("x")
    code, _, err = said(capsys, "run", "00", "--lab", str(tmp_path / "file"), "--out", str(tmp_path / "out"))
    assert (code, "is not a DuckDB file" in err) == (4, True)
    assert not list((tmp_path / "out").glob("2*"))


def test_list_names_everything_with_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = said(capsys, "list")
    assert code == 0
    for word in (NOTEBOOK, "duration_s=4.0", "memory", "postgres", "create_user", "poisson:rate", "production"):
        assert word in out
    assert max(map(len, out.splitlines())) < 160


def test_runs_and_report_show_what_is_in_the_lab(capsys: pytest.CaptureFixture[str], open_run: Run) -> None:
    lab = ["--lab", str(open_run.lab.path)]
    code, out, _ = said(capsys, "runs", *lab)
    assert code == 0 and open_run.run_id in out
    code, out, _ = said(capsys, "report", open_run.run_id, "--targets", "development", *lab)
    assert code in (0, 3) and "p99" in out and "versions are contiguous" in out


def test_report_and_runs_tell_what_the_executor_counted_and_how_far_the_projection_was_behind(
    capsys: pytest.CaptureFixture[str], lab: Lab
) -> None:
    e = Experiment(
        store="sqlite",
        workload="users:users=20",
        executor="batching(cached(direct)):delay_ms=0",
        projection="memory",
        pacer="constant:rate=200",
        duration_s=0.5,
        warmup_s=0.1,
    )
    found = run(e, lab, Quiet())
    assert ", projection memory:" in summary_line(found)
    _, out, _ = said(capsys, "runs", "--lab", str(lab.path))
    assert re.search(r"\s+executor\s+projection\s+pacer", out) and re.search(r"\s+memory\s+constant:rate=200", out)
    _, out, _ = said(capsys, "report", found.run_id, "--lab", str(lab.path))
    assert re.search(
        r"^counted +\d+ batches, \d+ commands in batches, \d+ streams found in the cache, \d+ not", out, re.M
    )
    assert re.search(r"^lag +p50 [\d.]+ ms, worst [\d.]+ ms; p50 \d+ events, worst \d+ events$", out, re.M)


@pytest.mark.parametrize("refreshes_ms", [[], [30.0, 10.0, 20.0]])
def test_the_lag_of_a_report_has_the_refresh_where_there_is_one(refreshes_ms: list[float]) -> None:
    rows = [("lag_ms", v) for v in (1.5, 3.25, 1234.5)] + [("refresh_ms", v) for v in refreshes_ms]
    gauges = pl.DataFrame(
        [("projection matview", *row) for row in rows], schema=["source", "name", "value"], orient="row"
    )
    found = SimpleNamespace(
        row={"projection": "matview:every_s=1"},
        gauge=lambda source, name: gauges.filter((pl.col("source") == source) & (pl.col("name") == name)),
    )
    refresh = "; a refresh takes 20 ms in the median" if refreshes_ms else ""
    assert listing._lag(found) == f"p50 3.25 ms, worst 1,234 ms{refresh}"  # type: ignore[arg-type]


def test_doctor_prints_a_table(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, _ = said(capsys, "doctor", "--quick", str(tmp_path))
    assert code == 0 and "fsync" in out and "timers" in out


OWN = {
    "memory": ["workload=update_profile:users=50", "executor=cached(direct)"],
    "postgres": ["workload=users:users=50", "projection=worker"],
}


@pytest.mark.parametrize("store", OWN)
def test_the_main_job_leaves_a_report_and_ends_with_the_verdicts_code(
    store: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    lab = Lab(tmp_path / "data" / "lab.duckdb")
    code, out, err = said(
        capsys,
        "run",
        NOTEBOOK,
        "--out",
        str(tmp_path),
        "--lab",
        str(lab.path),
        *set_(f"store={store}", *QUICK, *OWN[store]),
    )
    assert code in (ExitCode.FAIL, ExitCode.INCONCLUSIVE), out + err  # too short a run to pass
    [page] = tmp_path.glob("2*/index.html")
    conclusion = json.loads((page.parent / "conclusion.json").read_text())
    assert conclusion["exit_code"] == code
    assert conclusion["answer"] in out and "report: " in out
    assert store in page.read_text()
    pages.check(page)
    pages.asks_nobody_and_fits_a_phone(tmp_path / "index.html")
    assert len(lab.runs()) == 6
    put_on = {(r["store"], r["workload"].partition(":")[0], r["projection"]) for r in lab.runs().iter_rows(named=True)}
    commands = ("memory", "update_profile", "") if store == "memory" else ("postgres", "users", "worker")
    assert put_on == {("null", "create_user", ""), commands, (store, "write_events", "")}
    assert set(lab.runs()["status"]) == {"complete"}
    assert lab.sql("SELECT count(*) FROM verdicts WHERE status = 'violated'").item() == 0
    assert lab.sql("SELECT count(*) FROM verdicts WHERE status = 'passed'").item() > 20


def test_a_store_that_cannot_be_reached_ends_with_4_and_the_password_is_nowhere(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAB_DSN", "postgresql://me:geheim@127.0.0.1:1/db")
    lab = tmp_path / "lab.duckdb"
    code, out, err = said(
        capsys, "run", "00", "--out", str(tmp_path / "r"), "--lab", str(lab), *set_("store=env:LAB_DSN", *QUICK)
    )
    assert code == ExitCode.BROKEN
    assert "no PostgreSQL server answers" in err
    assert "geheim" not in out + err
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or b"geheim" not in path.read_bytes(), path


def test_ctrl_c_in_the_middle_keeps_what_was_measured(tmp_path: Path) -> None:
    lab = Lab(tmp_path / "lab.duckdb")
    command = [sys.executable, "-m", "eventcore_lab", "run", "00", "--out", str(tmp_path), "--lab", str(lab.path)]
    command += set_("store=memory", "duration_s=60", "warmup_s=0", "concurrency=2")
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline_ns = now_ns() + 60 * NS_PER_S
    # The first runs are of the null store; one sample in a file is enough to interrupt.
    while not any(p.stat().st_size and any(p.read_bytes()[:64]) for p in lab.spool.glob("*/samples-0.i64")):
        assert now_ns() < deadline_ns and process.poll() is None
        pause_s(0.05)
    os.kill(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == ExitCode.INTERRUPTED, out + err
    assert "interrupted" in err
    assert "interrupted" in set(lab.runs()["status"])
    assert lab.sql("SELECT count(*) FROM samples").item() > 0
    assert list(tmp_path.glob("2*/index.html"))
    assert not list(lab.spool.iterdir())
