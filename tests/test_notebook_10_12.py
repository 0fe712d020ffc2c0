"""Claims about the notebooks that compare stores and that show the chapter's faults: what they conclude, what not; and the
page of the one that replays traffic."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import pages
import polars as pl
import pytest

from eventcore_lab import cli
from eventcore_lab.lab import comparison, faults
from eventcore_lab.lab.comparison import Comparison
from eventcore_lab.lab.database import Lab
from eventcore_lab.lab.faults_known import FIRST, KNOWN
from eventcore_lab.lab.measures import UNITS, Figure
from eventcore_lab.lab.stats import NOTHING, Estimate
from eventcore_lab.load.faults import TRIALS, Fact, Shown, show
from eventcore_lab.load.faults.measuring import bucket_quantile
from eventcore_lab.schema import ExitCode
from eventcore_lab.spec import UsageError
from eventcore_lab.stores.installed import installed
from eventcore_lab.stores.protocol import stores


class Fake:
    """A run with one value for every figure, as far as comparing asks."""

    def __init__(self, store: str, durability: str, value: float, half: float, violated: str, lacks: str) -> None:
        self.row = {"store": store, "durability": durability, "pacer": "saturate", "workload": "create_user"}
        self.run_id, self._value, self._half, self._lacks = f"fake-{store}", value, half, lacks
        rows = [{"name": violated, "status": "violated", "reason": "", "wrong": 1}] if violated else []
        schema = {"name": pl.String, "status": pl.String, "reason": pl.String, "wrong": pl.Int64}
        self.invariants = pl.DataFrame(rows, schema=schema)

    def figure(self, name: str) -> Figure:
        return Figure(name, Estimate(self._value, self._value - self._half, self._value + self._half, 100), self.run_id)

    def promises(self, claim: str) -> bool:
        return claim != self._lacks


def trials(
    store: str,
    *values: float,
    durability: str = "durable (fsync=on)",
    half: float = 0.0,
    violated: str = "",
    lacks: str = "",
) -> Any:
    return [Fake(store, durability, value, half, violated, lacks) for value in values]


def run_notebook(number: str, folder: Path, *parameters: str) -> int:
    """Its exit code; its page is as a page must be."""
    sys.argv = ["eventcore-lab", "run", number, "--out", str(folder), "--lab", str(folder / "lab.duckdb")]
    sys.argv += [word for pair in parameters for word in ("-p", pair)]
    with pytest.raises(SystemExit) as done:
        cli.main()
    assert isinstance(done.value.code, int)
    [page] = folder.glob("2*/index.html")
    pages.check(page)
    return done.value.code


# comparing


def test_stores_of_different_classes_are_never_compared() -> None:
    durable, later = trials("a", 100, 101, 102), trials("b", 900, 910, 920, durability="flushed later (WAL)")
    found = Comparison([*durable, *later], [*durable, *later], "a")
    assert [(row.durability, row.baseline) for row in found.rows] == [("durable", "a"), ("flushed later", "b")]
    assert found.others == [] and comparison.claimed(found) == []
    assert "nothing to compare" in comparison.concluded(found).answer


def test_the_baseline_is_the_one_asked_for_where_it_is_and_else_the_first_of_its_class() -> None:
    runs = [
        *trials("a", 1, 1, 1),
        *trials("b", 1, 1, 1),
        *trials("c", 1, 1, 1, durability="x"),
        *trials("d", 1, durability="x"),
    ]
    found = Comparison(runs, runs, "b")
    assert [row.store for row in found.rows] == ["b", "a", "c", "d"]
    assert [row.baseline for row in found.rows] == ["b", "b", "c", "c"]


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [
        (1.2, 1.4, "more"),
        (0.5, 0.7, "less"),
        (0.95, 1.05, "alike"),
        (1.05, 1.3, "not settled"),
        (0.8, 1.3, "not settled"),
        (math.nan, math.nan, "not settled"),
    ],
)
def test_a_difference_is_settled_when_its_interval_is_outside_the_band_or_all_within(
    low: float, high: float, word: str
) -> None:
    assert Comparison([], [], matters=1.1).word(Estimate(1.2, low, high, 3), "more", "less") == word


def test_paired_trials_settle_what_drifts_for_all_alike() -> None:
    slow, fast = trials("a", 100, 200, 400), trials("b", 200, 401, 800)
    [row] = Comparison([*slow, *fast], [], "a").others
    assert row.takes.value == pytest.approx(2, rel=0.01) and row.takes.low > 1.9


@pytest.mark.parametrize(("n", "status"), [(2, "not settled"), (3, "not held")])
def test_fewer_than_three_trials_settle_nothing_whatever_the_blocks_within_them_say(n: int, status: str) -> None:
    base, other = trials("a", 100, 101, 102), trials("b", 300, 303, 306)
    rated = [*trials("a", *[5.0] * n, half=0.1), *trials("b", *[50.0] * n, half=0.1)]
    takes, waits = comparison.claimed(Comparison([*base, *other], rated, "a"))
    assert (takes.status, waits.status, waits.measured.has_interval) == ("held", status, n == 3)
    assert waits.measured.value == pytest.approx(10) and "to 5 ms" in waits.reason


def test_who_broke_an_invariant_is_told_and_never_proposed() -> None:
    safe = "a reader beside writers sees each event once and in order"
    sound, wrong = trials("a", 100, 101, 102), trials("b", 900, 901, 902, violated="acknowledged appends are there")
    told = Comparison([*sound, *trials("b", 900, violated="versions", lacks=safe)], [], "a")
    broken = comparison.concluded(Comparison([*sound, *wrong], [], "a"))
    assert broken.status == "violated" and broken.answer.startswith("Not correct: acknowledged appends are there")
    assert (
        "Times the throughput of a, faster: b 8.92 [" in broken.answer
        and "Of 1 claim put to the test: 1 held." in broken.answer
    )
    assert comparison.concluded(told).status != "violated" and "b broke versions" in comparison.concluded(told).answer
    assert comparison.settings(told).text.startswith("- durable: `a`, ")


def test_a_store_without_its_extra_is_left_out_and_a_slip_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    described = {**stores.describe(), "eventsourcing": ("eventsourcing", "cannot be used: an extra is missing")}
    monkeypatch.setattr(stores, "describe", lambda: described)
    assert installed(["memory", "eventsourcing:functions", "grouped(eventsourcing)"]) == ["memory"]
    assert "left out: grouped(eventsourcing) (an extra is missing)" in capsys.readouterr().out
    with pytest.raises(UsageError, match="unknown store 'memroy'"):
        installed(["memroy"])


def test_pictures_say_so_where_there_is_nothing_to_compare() -> None:
    assert comparison.ratios(Comparison([], [])).axes[0].texts[0].get_text() == "nothing was measured"
    assert math.isnan(NOTHING.value) and set(UNITS) >= {comparison.THROUGHPUT, comparison.LATENCY}


def test_the_notebook_compares_within_classes_and_keeps_its_claims(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    quick = ["stores=memory,sqlite,postgres", "baseline=postgres", "concurrency=2", "duration_s=0.1"]
    code = run_notebook("10", tmp_path, *quick, "warmup_s=0.05", "trials=1", "connections=2")
    out, err = capsys.readouterr()
    assert code == ExitCode.PASS, out + err
    claims = Lab(tmp_path / "lab.duckdb").sql("SELECT name, topic FROM verdicts WHERE kind = 'claim'")
    told = all("sqlite" in name and "of postgres" in name and topic == "load" for name, topic in claims.iter_rows())
    assert len(claims) == 2 and told


# faults


def shown(*facts: tuple[str, str, float, float, float], broken: dict[str, str] | None = None) -> Shown:
    listed = tuple(Fact(*fact) for fact in facts)
    return Shown(tuple({f.fault: None for f in listed} | (broken or {})), listed, broken or {})


CHANCY = ("F2", "F3", "F7", "F23", "F25", "F26", "F27")
"""They are races, wait for locks, or depend on how fast the machine is: what comes of them is no claim of a test."""


@pytest.fixture(scope="module")
def tried() -> Shown:
    return show([name for name in TRIALS if name not in CHANCY], size=0.1)


def test_there_are_thirty_faults_and_a_trial_for_each() -> None:
    assert list(TRIALS) == list(KNOWN) == [f"F{n}" for n in range(1, 31)]
    assert set(FIRST) | set(CHANCY) <= set(KNOWN)


@pytest.mark.parametrize("name", [name for name in TRIALS if name not in CHANCY])
def test_a_fault_shows_itself_in_its_trial_and_ours_is_free_of_what_is_counted(tried: Shown, name: str) -> None:
    assert name not in tried.broken
    fact = faults.worst(tried, name)
    assert fact is not None and fact.value > 0
    if name not in ("F5", "F10", "F15", "F21"):  # these are times, or need more than a little
        assert faults.status(tried, name).startswith("shown"), faults.claimed_of(tried, name, "")
    assert all(f.value == 0 for f in tried.facts if f.fault == name and f.arm == "ours" and f.of)


def test_the_table_passes_no_fault_over_and_says_why_one_was_not_shown() -> None:
    found = shown(
        ("F9", "the chapter's", 10, 9, 10), ("F2", "the chapter's", 1, 0, 100), broken={"F3": "OSError: gone"}
    )
    rows = {row[0]: row[2] for row in faults.Table(found).rows}
    assert list(rows) == list(KNOWN)
    assert rows["F9"] == "shown" and rows["F1"] == "not shown: not tried this time"
    assert rows["F2"] == "not shown: not seen clearly enough here" and "its trial broke (OSError: gone)" in rows["F3"]
    assert "no matter of a running system" in rows["F30"]
    assert faults.counted(found).text.startswith("**1 of the 30 faults")


def test_a_trial_that_breaks_is_told_and_does_not_stop_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(_: object) -> list[Fact]:
        raise RuntimeError("a bug\nand more")

    monkeypatch.setitem(TRIALS, "F9", breaks)
    found = show(["F9", "F29"])
    assert found.broken == {"F9": "RuntimeError: a bug"} and {f.fault for f in found.facts} == {"F29", "F29 held"}
    assert "its trial broke" in faults.sentence(found, "F9").text
    with pytest.raises(UsageError, match="unknown fault 'F31'"):
        show(["F31"])


def test_one_event_that_goes_wrong_with_ours_fails_the_notebook() -> None:
    [theirs], [ours] = trials("postgres:chapter", 1), trials("postgres", 1)
    sound = shown(("F1", "the chapter's", 10, 9, 100), ("F1", "ours", 10, 0, 100))
    wrong = shown(("F1", "the chapter's", 10, 9, 100), ("F1", "ours", 10, 1, 100))
    assert faults.concluded(sound, theirs, ours).status == "pass"
    assert faults.concluded(wrong, theirs, ours).status == "violated"
    assert "Ours is not free of: F1" in faults.concluded(wrong, theirs, ours).answer


def test_chance_has_an_interval_and_certainty_has_none() -> None:
    by_chance, certain = Fact("F1", "ours", 1, 0, 100), Fact("F9", "ours", 1, 0, 100)
    assert faults.estimate(by_chance).high == pytest.approx(3.7, abs=0.1)  # Wilson, 0 of 100
    assert not faults.estimate(certain).has_interval


def test_the_worst_setting_is_the_one_that_is_surely_bad() -> None:
    found = shown(("F1", "the chapter's", 10, 1, 2), ("F1", "the chapter's", 100, 40, 100))
    worst = faults.worst(found, "F1")
    assert worst is not None and worst.at == 100


def test_a_bucket_says_what_prometheus_would() -> None:
    assert bucket_quantile([40.0] * 100, 0.95) == pytest.approx(25 + 25 * 0.95)
    assert bucket_quantile([20_000.0], 0.95) == 10_000


def test_the_notebook_of_faults_shows_them_and_judges_only_ours(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    quick = ["only=F1,F9", "size=0.1", "duration_s=0.2", "warmup_s=0.05"]
    code = run_notebook("12", tmp_path, *quick)
    out, err = capsys.readouterr()
    assert code == ExitCode.PASS, out + err
    kept = Lab(tmp_path / "lab.duckdb").sql("SELECT kind, topic, status FROM verdicts WHERE name LIKE '%: F%'")
    assert {status for kind, _, status in kept.iter_rows() if kind == "claim"} == {"held"}
    assert {topic for kind, topic, _ in kept.iter_rows() if kind == "claim"} == {"correctness"}


def test_the_notebook_of_traffic_decides_nothing_from_half_a_second(tmp_path: Path) -> None:
    quick = ["store=memory", "duration_s=0.5", "warmup_s=0.1"]
    assert run_notebook("14", tmp_path, *quick) in (ExitCode.FAIL, ExitCode.INCONCLUSIVE)


@pytest.mark.parametrize("table", [Comparison([], []), faults.Table(shown())])
def test_a_table_of_findings_is_not_taken_for_the_verdicts(table: Comparison | faults.Table) -> None:
    """A page shows a verdict's table once, at its top, and leaves it out further down."""
    assert table._repr_html_().startswith("<table class='facts'>")
