"""Claims about what is kept of a verdict and read again later: conclusions, reports held against earlier ones, what held
here."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pages
import pytest

from eventcore_lab.experiment import Experiment
from eventcore_lab.lab import baseline, claims, conclusion, summary
from eventcore_lab.lab.claims import TOPICS
from eventcore_lab.lab.database import Lab
from eventcore_lab.lab.measures import UNITS, Run
from eventcore_lab.lab.stats import Estimate
from eventcore_lab.lab.targets import Targets, Verdict, judge
from eventcore_lab.progress import Quiet
from eventcore_lab.reports import execute
from eventcore_lab.reports.markup import clean
from eventcore_lab.schema import ExitCode
from eventcore_lab.spec import UsageError
from eventcore_lab.workbench import conclude, run

HOSTILE = "<img src=x onerror=alert(1)> & 'q' | `c`"
NOTEBOOK = Path(__file__).parent.parent / "notebooks" / "13-what-held-here.ipynb"


def concluded(run: Run, *found: claims.Claim) -> dict[str, Any]:
    """The conclusion of targets for a run, with claims."""
    verdict = judge(Targets.of("p50 < 100ms", "commands_per_second > 1"), run)
    made = Verdict("T", (*verdict.judgements, *(c.judgement for c in found)), verdict.answer)
    kept: dict[str, Any] = json.loads(json.dumps(conclusion.content(made, run.lab), allow_nan=False))
    return kept


def claim(topic: str, value: float, run_id: str, text: str = "it is fast") -> claims.Claim:
    return claims.settled(topic, text, Estimate(value, value - 0.5, value + 0.5, 9), "times", "why", run_id, at_least=2)


# ---- conclusions


def test_a_conclusion_keeps_the_figures_of_the_run_that_was_judged(open_run: Run) -> None:
    kept = concluded(open_run, claim("load", 3.0, open_run.run_id))
    for name, unit in UNITS.items():
        estimate = open_run.figure(name).estimate
        if math.isfinite(estimate.value):
            figure = kept["figures"][name]
            assert (figure["value"], figure["unit"], figure["run_id"]) == (estimate.value, unit, open_run.run_id)
            assert figure["low"] == (estimate.low if math.isfinite(estimate.low) else None)
    assert kept["figures"]["it is fast"]["value"] == 3.0
    assert kept["runs"][0]["run_id"] == open_run.run_id and kept["runs"][0]["durability"].startswith("none")
    assert {row["kind"] for row in kept["rows"]} == {"target", "invariant", "claim"}
    assert kept["environment"]["cores"]


def test_a_figure_is_of_the_run_that_it_was_judged_by_and_the_others_of_the_busiest(
    open_run: Run, closed_run: Run
) -> None:
    targets = Targets.of("p50 < 1s", "p99 < 1s", "commands_per_second > 1")
    figures = conclusion.content(judge(targets, open_run, commands_per_second=closed_run), open_run.lab)["figures"]
    found = {
        name: figures[name]["run_id"] for name in ("p50", "p90", "p99", "commands_per_second", "events_per_second")
    }
    assert found.pop("commands_per_second") == closed_run.run_id
    assert set(found.values()) == {open_run.run_id}


def test_a_run_that_the_lab_does_not_have_is_left_out(open_run: Run) -> None:
    verdict = Verdict("T", (claim("load", 3.0, "gone").judgement,))
    kept = conclusion.content(verdict, open_run.lab)
    assert (kept["figures"], kept["runs"], kept["environment"]) == ({}, [], {})
    assert kept["rows"][0]["run_id"] == "gone"


# ---- against an earlier report


def figure(value: float, half: float | None = None, **facts: Any) -> dict[str, Any]:
    edges = {"low": None if half is None else value - half, "high": None if half is None else value + half}
    return {"value": value, **edges, "unit": "ms", "run_id": "r", "of": "o", **facts}


@pytest.mark.parametrize(
    ("name", "now", "then", "change"),
    [
        ("p50", figure(10, 1), figure(20, 1), "better"),
        ("p50", figure(20, 1), figure(10, 1), "worse"),
        ("events_per_second", figure(20, 1), figure(10, 1), "better"),
        ("p50", figure(10, 5), figure(11, 5), "no difference shown"),
        ("p50", figure(10), figure(20, 1), "no interval"),
        ("appends in batches are faster", figure(20, 1), figure(10, 1), ""),
        ("failures/attempts", figure(0, 0), figure(0, 0), ""),
    ],
)
def test_a_figure_is_better_or_worse_only_if_its_interval_says_so(
    name: str, now: dict[str, Any], then: dict[str, Any], change: str
) -> None:
    [row] = baseline.Baseline("x", {name: then}).against({"figures": {name: now, "only now": now}})["rows"]
    assert row["change"] == change
    if then["value"]:
        assert row["ratio"] == pytest.approx(now["value"] / then["value"])


def test_a_closed_loop_is_not_compared_with_a_rate() -> None:
    closed = figure(2000, 10, of="postgres, create_user, saturate:concurrency=10")
    at_a_rate = figure(300, 1, of="postgres, create_user, poisson:rate=300")
    [row] = baseline.Baseline("x", {"commands_per_second": at_a_rate}).against(
        {"figures": {"commands_per_second": closed}}
    )["rows"]
    assert row["ratio"] is None and row["change"] == "not comparable: a closed loop and a rate"


def test_the_interval_of_a_ratio_puts_both_together() -> None:
    [row] = baseline.Baseline("x", {"p50": figure(10, 1)}).against({"figures": {"p50": figure(20, 2)}})["rows"]
    half = math.sqrt(0.1**2 + 0.1**2)
    assert (row["low"], row["high"]) == pytest.approx((2 * math.exp(-half), 2 * math.exp(half)))


def test_a_baseline_is_a_run_a_report_or_its_file(open_run: Run, tmp_path: Path) -> None:
    folder, kept = tmp_path / "2026-report", concluded(open_run)
    folder.mkdir()
    (folder / "report.json").write_text(json.dumps({"conclusion": kept}))
    (tmp_path / "conclusion.json").write_text(json.dumps(kept))
    names = [folder.name, str(folder), str(folder / "report.json"), str(tmp_path / "conclusion.json"), open_run.run_id]
    for name in names:
        found = baseline.load(name, open_run.lab, tmp_path)
        assert found.figures["p50"] == kept["figures"]["p50"]
        rows = found.against(kept)["rows"]
        assert {row["ratio"] for row in rows} <= {1.0, None} and {row["change"] for row in rows} <= {
            "no difference shown", "no interval", "",
        }  # fmt: skip
    assert found.of == f"run {open_run.run_id}"


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("{", "holds no JSON"),
        ("[" * 100_000, "holds no JSON"),
        ("[]", "has no figures"),
        ('{"conclusion": null}', "has no figures"),
        (
            '{"conclusion": {"figures": {"p50": 3, "p99": {"value": "x"}, "p90": {"value": 1, "low": []}}}}',
            "has no figures",
        ),
    ],
)
def test_a_file_that_is_no_baseline_is_refused_in_one_line(lab: Lab, tmp_path: Path, content: str, part: str) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(UsageError, match=part) as caught:
        baseline.load(str(tmp_path / "x.json"), lab, tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["nothing", "", "x" * 10_000, "a\0b"])
def test_a_baseline_that_is_not_there_is_refused(lab: Lab, tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="is no report, and no run begins with"):
        baseline.load(name, lab, tmp_path / "none")


# ---- what held here


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    """Two short runs on different stores in one Lab."""
    lab = Lab(tmp_path_factory.mktemp("held") / "lab.duckdb")
    plans = [
        Experiment(store=store, pacer="constant:rate=200", duration_s=0.2, warmup_s=0.0) for store in ("memory", "null")
    ]
    return [run(plan, lab, Quiet()) for plan in plans]


@pytest.fixture
def held(runs: list[Run], monkeypatch: pytest.MonkeyPatch) -> Lab:
    """A Lab that has claims only of this test."""
    monkeypatch.delenv("EVENTCORE_LAB_REPORT", raising=False)
    with runs[0].lab._writing() as con:
        con.execute("DELETE FROM verdicts WHERE kind = 'claim'")
    return runs[0].lab


def test_each_claim_is_told_once_for_each_store_and_the_latest_counts(held: Lab, runs: list[Run]) -> None:
    memory, null = runs
    later = run(Experiment(store="memory", pacer="constant:rate=200", duration_s=0.2, warmup_s=0.0), held, Quiet())
    for of, value in ((memory, 9.0), (null, 1.0), (later, 2.0)):
        conclude(claims.concluded("Q", [claim("batching", value, of.run_id)], [of]), held)
    found = summary.what_held(held)
    assert {(e.store, e.claim.status, e.claim.run_id) for e in found.evidence} == {
        ("memory", "not settled", later.run_id), ("null", "not held", null.run_id),
    }  # fmt: skip
    assert [e.store for e in summary.what_held(held, "null").evidence] == ["null"]


def test_topics_without_evidence_are_not_tested_here(held: Lab, runs: list[Run]) -> None:
    conclude(claims.concluded("Q", [claim("caching", 3.0, runs[0].run_id)], [runs[0]]), held)
    found = summary.what_held(held)
    assert found.untested == [topic for topic in TOPICS if topic != "caching"]
    text, table = str(found), found._repr_html_()
    assert text.count("– not tested here") == table.count("– not tested here") == len(TOPICS) - 1
    assert "✓ held  Q: it is fast: 3.00 times [2.50 – 3.50], ≥ 2 times (memory, run " in text
    assert found.verdict.status == "pass" and found.verdict.answer.startswith(
        "1 of 12 topics were tested here; of 1 claims 1 held."
    )


def test_telling_again_keeps_nothing_again(held: Lab, runs: list[Run]) -> None:
    conclude(claims.concluded("Q", [claim("caching", 3.0, runs[0].run_id)], [runs[0]]), held)
    before = held.sql("SELECT count(*) FROM verdicts").item()
    conclude(summary.what_held(held).verdict, held)
    assert held.sql("SELECT count(*) FROM verdicts").item() == before


def test_evidence_of_a_run_that_lost_an_event_is_said_to_be(held: Lab, runs: list[Run]) -> None:
    conclude(claims.concluded("Q", [claim("caching", 3.0, runs[0].run_id)], [runs[0]]), held)
    row = {
        "run_id": runs[0].run_id,
        "kind": "invariant",
        "name": "nothing is lost",
        "measured": 1.0,
        "status": "violated",
    }
    held.add_verdicts([row])
    verdict = summary.what_held(held).verdict
    with held._writing() as con:
        con.execute("DELETE FROM verdicts WHERE name = 'nothing is lost'")
    assert verdict.status == "violated" and "not correct: nothing is lost" in verdict.answer


def test_an_empty_lab_settles_nothing(lab: Lab) -> None:
    found = summary.what_held(lab)
    assert found.verdict.exit_code == ExitCode.INCONCLUSIVE and "Nothing was claimed" in found.verdict.answer


def test_evidence_leads_to_the_report_it_is_from_and_names_stay_text(
    held: Lab, runs: list[Run], tmp_path: Path
) -> None:
    conclude(claims.concluded("Q", [claim("caching", 1.0, runs[0].run_id, HOSTILE)], [runs[0]]), held)
    for name, kind in (("2026-1", "claim"), ("2026-2", "claim"), ("2026-0", "invariant"), ("2026-3", None)):
        (tmp_path / name).mkdir()
        row = {"run_id": runs[0].run_id, "kind": kind}
        (tmp_path / name / "report.json").write_text(json.dumps({"conclusion": {"rows": [row]} if kind else None}))
    table = summary.what_held(held, reports=tmp_path)._repr_html_()
    assert re.findall("href='([^']*)'", table) == ["../reports/2026-1/index.html"]
    assert "<img" not in table and "✗ not held" in table and "class='not-held'" in table


def test_a_link_to_another_report_is_kept_in_a_page_and_no_other_neighbour_is() -> None:
    for address, is_kept in (
        ("../20261124T000000Z-x/index.html", True),
        ("../../etc/index.html", False),
        ("../x/secret.html", False),
        ("other.ipynb", False),
        ("../x/index.html\njavascript:alert(1)", False),
    ):
        assert ("href" in clean(f'<a href="{address}">a</a>')) is is_kept, address


def test_the_notebook_says_it_with_links_to_the_evidence(held: Lab, runs: list[Run], tmp_path: Path) -> None:
    conclude(claims.concluded("Q", [claim("caching", 3.0, runs[0].run_id)], [runs[0]]), held)
    (tmp_path / "2026-1").mkdir()
    row = {"run_id": runs[0].run_id, "kind": "claim"}
    (tmp_path / "2026-1" / "report.json").write_text(json.dumps({"conclusion": {"rows": [row]}}))
    environment = {"EVENTCORE_LAB_FILE": str(held.path)}
    report = execute(NOTEBOOK, {}, tmp_path, progress=lambda _: None, environment=environment)
    assert report.error is None and report.html and report.conclusion and report.conclusion["status"] == "pass"
    page = report.html.read_text()
    assert page.count('href="../2026-1/index.html"') == 1
    header, _, body = page.partition("</header>")
    assert (
        "Which of the performance chapter" in header
        and "✓ held" in header
        and "invariants tested, none violated" in header
    )
    assert (
        body.index("Topic by topic")
        < body.index('id="method"')
        < body.index('id="runs"')
        < body.index('id="parameters"')
    )
    assert "**✓ Pass.** 1 of 12 topics" in (report.folder / "report.md").read_text()
    pages.check(report.html)


def test_evidence_is_not_judged_by_what_was_never_promised(lab: Lab) -> None:
    """The chapter's batching oversells, and the chapter's store lets two writers take one version: known, and claimed about."""
    oversells = Experiment(
        store="memory",
        workload="reserve:stock=30",
        executor="chapter_batching(direct)",
        pacer="saturate:concurrency=40",
        duration_s=0.5,
        warmup_s=0,
    )
    found = run(oversells, lab, Quiet())
    assert "violated" in set(found.invariants["status"])
    conclude(claims.concluded("Q", [claim("async_batching", 3.0, found.run_id)], []), lab)
    assert summary.what_held(lab).verdict.status == "pass"
    lost = run(Experiment(store="mutant(memory):lost_ack", duration_s=0.5, warmup_s=0), lab, Quiet())
    conclude(claims.concluded("R", [claim("batching", 3.0, lost.run_id)], []), lab)
    assert summary.what_held(lab).verdict.status == "violated"
