"""A soak is as long as it says, whatever happens to it meanwhile, and what was measured is kept."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pages
import pytest
from test_drift import leg

from eventcore_lab import batch, cli
from eventcore_lab import soak as room
from eventcore_lab.clock import pause_s
from eventcore_lab.events import StoreError
from eventcore_lab.experiment import Experiment
from eventcore_lab.lab.database import Lab, UnknownRun
from eventcore_lab.lab.drift import Soak, legs_of
from eventcore_lab.lab.targets import Targets
from eventcore_lab.load.recorder import Watcher
from eventcore_lab.load.rotation import Rotation
from eventcore_lab.progress import Quiet
from eventcore_lab.schema import ExitCode
from eventcore_lab.soak import HOURS_MIN, longest_leg_s, resumed, soak
from eventcore_lab.spec import UsageError

LOAD = Experiment(store="memory", pacer="constant:rate=400", warmup_s=0.1)
SECOND_H = 1 / 3600
VERDICTS = {ExitCode.PASS, ExitCode.FAIL, ExitCode.INCONCLUSIVE}
SCRIPT = """
import sys
from eventcore_lab import Experiment, Lab
from eventcore_lab.progress import Quiet
from eventcore_lab.schema import ExitCode
from eventcore_lab.soak import soak
if __name__ == "__main__":
    load = Experiment(store="memory", pacer="constant:rate=400", warmup_s=0.1)
    soak(load, 600 / 3600, Lab(sys.argv[1]), progress=Quiet(), rotate_s=0.2)
"""


def test_it_is_as_long_as_asked_and_loses_nothing_when_its_samples_leave_the_memory(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "Rotation", partial(Rotation, rows_per_part=64))
    told: list[str] = []
    found = soak(LOAD, 0.5 * SECOND_H, lab, tell=told.append, progress=Quiet(), rotate_s=0.1)
    assert found.done_h == pytest.approx(0.5 * SECOND_H)
    assert found.legs[0].outcomes == {"ok": 200}
    findings = dict(found.legs[0].invariants.select("name", "status").iter_rows())
    assert findings["every operation has one outcome"] == findings["acknowledged appends are there"] == "passed"
    assert "violated" not in findings.values()
    assert found.soak_id in told[0]


def test_what_is_missing_of_one_that_was_cut_is_measured_by_another_leg(lab: Lab) -> None:
    leg(lab, SECOND_H, of_h=1.2 * SECOND_H, status="interrupted", operations=400)
    found = resumed("s1", lab, tell=lambda _: None, progress=Quiet())
    assert found.done_h == pytest.approx(1.2 * SECOND_H, rel=0.01)
    first, second = (r.row for r in found.legs)
    assert (first["seed"], second["seed"]) == (7, 7 + 1_000_003)
    assert second["pacer"] == first["pacer"]


def test_it_goes_on_after_a_crash_of_its_own(tmp_path: Path) -> None:
    lab = Lab(tmp_path / "lab.duckdb")
    crashed = subprocess.Popen([sys.executable, "-c", SCRIPT, str(lab.path)], stdout=subprocess.DEVNULL)
    for _ in range(600):
        samples = next(iter(lab.spool.glob("*/samples-0.i64")), None)
        if samples is not None and len(Watcher(samples).new_rows()) > 100:
            break
        pause_s(0.05)
    os.kill(crashed.pid, signal.SIGKILL)
    crashed.wait(timeout=30)
    lab.check()  # takes in what was left
    before = Soak(lab)
    assert before.legs[0].row["status"] == "interrupted"
    assert before.done_h > 0
    assert before.hours == 600 / 3600
    hours = before.done_h + 0.4 * SECOND_H  # nobody waits for the ten minutes
    after = room._Soaking(LOAD, hours, before.soak_id, lab, lambda _: None, Quiet(), 30.0).whole()
    assert [r.row["status"] for r in after.legs] == ["interrupted", "complete"]
    assert after.done_h == pytest.approx(hours, rel=0.05)


def test_legs_that_break_one_after_the_other_end_it(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOBODY_DSN", "postgresql://nobody:hush@127.0.0.1:9/none")
    waits: list[float] = []
    monkeypatch.setattr(room, "pause_s", waits.append)
    monkeypatch.setattr(room, "BROKEN_MAX", 2)
    told: list[str] = []
    with pytest.raises(StoreError):
        soak(Experiment(store="env:NOBODY_DSN", pacer="constant:rate=10"), 1.0, lab, tell=told.append, progress=Quiet())
    assert waits == [2.0, 4.0]
    assert "another begins in 2 s (1 of 2 in a row)" in told[1]
    assert "3 legs in a row broke; go on with: eventcore-lab soak --resume 2" in told[-1]
    assert "hush" not in "".join(told)


def test_a_leg_that_breaks_at_its_end_is_told_and_no_other_is_announced(lab: Lab) -> None:
    leg(lab, SECOND_H, of_h=SECOND_H, status="broken", operations=400)
    told: list[str] = []
    found = resumed("s1", lab, tell=told.append, progress=Quiet())
    assert len(found.legs) == 1 and not any("another begins" in line for line in told)
    verdict = found.verdict(Targets.of("p95 < 5000ms"))
    assert [j.status for j in verdict.targets if j.name == "leg 1"] == ["inconclusive"]
    assert verdict.status != "pass" and "what leg 1 stored was not read back" in verdict.answer


def test_a_store_that_goes_in_the_last_moment_is_not_waited_for(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(experiment: Experiment, lab: Lab, *_: object) -> None:
        soak_id = experiment.label.split()[1]
        leg(lab, experiment.duration_s / 3600, soak_id=soak_id, of_h=SECOND_H, status="broken", operations=400)
        raise StoreError("it is gone")

    waits: list[float] = []
    monkeypatch.setattr(room, "run", breaks)
    monkeypatch.setattr(room, "pause_s", waits.append)
    told: list[str] = []
    assert len(soak(LOAD, SECOND_H, lab, tell=told.append, progress=Quiet()).legs) == 1
    assert not waits and len(told) == 1


def test_what_the_disk_cannot_hold_is_refused_before_it_begins(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "bytes_per_operation", lambda: 1e15)
    with pytest.raises(UsageError, match=r"operations need about .* GB .* [GM]B are free"):
        soak(LOAD, 1.0, lab, tell=lambda _: None, progress=Quiet())
    assert not legs_of(lab)


@pytest.mark.parametrize("hours", [0.0, -1.0, 10_000.0, float("nan")])
def test_hours_that_nobody_can_mean_are_refused(lab: Lab, hours: float) -> None:
    with pytest.raises(UsageError, match="hours must be"):
        soak(LOAD, hours, lab)


def test_a_leg_is_as_long_as_its_schedule_fits_into_memory() -> None:
    fast = Experiment(store="memory", pacer="constant:rate=2000")
    assert longest_leg_s(LOAD) < 24 * 3600
    assert longest_leg_s(fast) * 2000 == pytest.approx(longest_leg_s(LOAD) * 400)
    assert longest_leg_s(Experiment(store="memory", pacer="saturate:concurrency=1")) == 24 * 3600


def test_its_report_is_the_notebook_s_with_the_parameters_of_the_soak(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "SOAK_HOURS_MIN", HOURS_MIN)
    where = ["--lab", str(lab.path), "--out", str(tmp_path / "reports")]
    load = ["-p", "store=memory", "-p", "warmup_s=0.05", "-p", "connections=7", "-p", "workload=create_user"]
    assert command("soak", "--hours", f"{0.5 * SECOND_H}", "--rate", "300", *load, *where) in VERDICTS
    [page] = (tmp_path / "reports").glob("2*/index.html")
    pages.check(page)
    html = page.read_text()
    assert "does it stay as it is" in html.lower() and "memory of the loader" in html and "shape: (" not in html
    said = json.loads(page.with_name("report.json").read_text())["parameters"]
    known = {"store": "memory", "pacer": "poisson:rate=300", "warmup_s": 0.05, "connections": 7}
    assert said.items() >= {**known, "hours": 0.5 * SECOND_H, "soak": legs_of(lab)[0].soak_id}.items()


@pytest.fixture
def reported(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The parameters of each report that would be made."""
    found: list[dict[str, Any]] = []
    monkeypatch.setattr(batch, "_executed", lambda _, parameters, *__: found.append(parameters))
    monkeypatch.setattr(batch, "_told", lambda *_: ExitCode.PASS)
    return found


@pytest.mark.parametrize(
    ("began_with", "said", "held"),
    [
        ("", [], "production"),
        ("development", [], "development"),
        ("development", ["--targets", "production"], "production"),
    ],
)
def test_it_remembers_its_targets_until_others_are_said(
    began_with: str, said: list[str], held: str, lab: Lab, reported: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    leg(lab, SECOND_H, of_h=SECOND_H, targets=began_with, operations=400)
    assert command("soak", "--resume", "last", "--lab", str(lab.path), *said) == ExitCode.PASS
    assert reported[0]["targets"] == held
    assert f"targets: {held}" in capsys.readouterr().out


def test_targets_of_a_file_are_found_from_another_folder_and_missed_when_they_are_gone(
    lab: Lab, tmp_path: Path, reported: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    short: Any = {"of_h": SECOND_H, "operations": 400}

    def soaks(experiment: Experiment, lab: Lab, *_: object) -> None:
        head, _, targets = experiment.label.partition(" held to ")
        leg(lab, experiment.duration_s / 3600, soak_id=head.split()[1], targets=targets, **short)

    monkeypatch.setattr(batch, "SOAK_HOURS_MIN", HOURS_MIN)
    monkeypatch.setattr(room, "run", soaks)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my").mkdir()
    (ours := tmp_path / "my" / "ours.toml").write_text('thresholds = ["p99 < 900ms"]')
    hours, where = repr(SECOND_H), ["--lab", str(lab.path)]
    assert command("soak", "--hours", hours, "--targets", "my/ours.toml", *where) == ExitCode.PASS
    monkeypatch.chdir(tmp_path / "my")
    assert command("soak", "--resume", "last", *where) == ExitCode.PASS
    assert {batch.data_folder().resolve().parent / r["targets"] for r in reported} == {ours.resolve()}
    ours.unlink()
    capsys.readouterr()
    assert command("soak", "--resume", "last", *where) == ExitCode.USAGE
    err = capsys.readouterr().err
    assert "ours.toml' does not exist; the soak began with these" in err and err.count("\n") == 1


def test_who_cuts_it_is_told_with_which_options_to_go_on(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def cut(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(room, "run", cut)
    monkeypatch.setattr(cli, "_beside", lambda *_: batch.alone)
    options = ["--lab", str(lab.path), "--live", "--notify", "env:ONE", "--notify", "env:TWO", "--alerts", "a b.toml"]
    assert command("soak", "--hours", "1", "-p", "store=memory", *options) == ExitCode.INTERRUPTED
    out = capsys.readouterr().out
    [soak_id] = re.findall(r"go on with: eventcore-lab soak --resume (\S+) ", out)
    assert f"--resume {soak_id} {shlex.join(options)}\n" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-p", "hours=1"], "-p hours=…: of a soak this is the option --hours"),
        (["-p", "targets=development"], "-p targets=…: of a soak this is the option --targets"),
        (["-p", "soak=x"], "-p soak=…: of a soak this is the option --resume"),
        (["--rate", "5", "-p", "pacer=constant:rate=5"], "leave one of them out"),
        (["--resume", "last", "--hours", "3"], "leave out --hours, --rate, -p"),
        (["--resume", "last", "-p", "seed=3"], "leave out --hours, --rate, -p"),
        (["--resume", "nobody"], "no soak 'nobody'"),
        (["--hours", "0"], "--hours must be at least 0.003 (11 s) and at most 744 (31 days), not 0"),
        (["--hours", "0.001"], "at least 0.003"),
        (["--targets", "nope"], "unknown targets 'nope'"),
        (["-p", "nonsense=1"], "unknown parameter 'nonsense'"),
    ],
)
def test_what_is_said_twice_or_by_nobody_is_refused(
    words: list[str], said: str, lab: Lab, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("soak", "--lab", str(lab.path), *words) == ExitCode.USAGE
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1


def command(*words: str) -> int:
    """The exit code of the command line."""
    sys.argv = ["eventcore-lab", *words]
    with pytest.raises(SystemExit) as done:
        cli.main()
    assert isinstance(done.value.code, int)
    return done.value.code


def test_there_must_be_one_to_go_on_with(lab: Lab) -> None:
    with pytest.raises(UnknownRun, match="no soak in .* to go on with"):
        resumed(lab=lab)
