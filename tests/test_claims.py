"""Arms, ratios and claims: what is compared is told apart by what it was made with, and a claim says only what its interval
says."""

from __future__ import annotations

import itertools
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventcore_lab import workbench
from eventcore_lab.experiment import Experiment
from eventcore_lab.lab import claims, optimum, sentences, views
from eventcore_lab.lab.arms import Arm, arms, ratio, value_of
from eventcore_lab.lab.database import Lab
from eventcore_lab.lab.measures import UNITS, Figure, Run
from eventcore_lab.lab.picture import Picture, name_ends
from eventcore_lab.lab.stats import Estimate
from eventcore_lab.lab.table import Table
from eventcore_lab.lab.targets import Targets, judge
from eventcore_lab.reports.markup import markdown
from eventcore_lab.spec import UsageError
from eventcore_lab.workbench import conclude, run_each, vary
from tests.test_lab import MS, sample, spooled


class Fake:
    """A run with one figure, as far as comparing asks."""

    def __init__(self, value: float, half: float = math.nan, **row: Any) -> None:
        self.row = {"store": "memory", **row}
        self.run_id = "fake"
        self._figure = Figure("p50", Estimate(value, value - half, value + half, 100), "fake")

    def figure(self, _: str) -> Figure:
        return self._figure


def fakes(*values: float, half: float = math.nan) -> Any:
    return [Fake(value, half) for value in values]


# what tells runs apart


@pytest.mark.parametrize(
    ("row", "name", "value"),
    [
        ({"connections": 20}, "connections", 20),
        ({"workload": "write_events:batch=100"}, "batch", 100),
        ({"pacer": "poisson:rate=2.5"}, "rate", 2.5),
        ({"executor": "parallel(cached(direct):size=7):limit=3"}, "size", 7),
        ({"workload": "users:pick=zipf"}, "pick", "zipf"),
        ({"executor": "direct"}, "executor", "direct"),
    ],
)
def test_a_run_is_known_by_its_columns_and_by_the_options_of_its_specs(
    row: dict[str, Any], name: str, value: Any
) -> None:
    found: Any = Fake(1.0, **row)
    assert value_of(found, name) == value


def test_what_a_run_does_not_have_is_refused_or_has_its_default() -> None:
    found: Any = Fake(1.0)
    assert value_of(found, "batch", 1) == 1
    with pytest.raises(UsageError, match="'batch' is neither a column of runs nor an option"):
        value_of(found, "batch")


def test_arms_are_in_order_and_keep_their_trials_together() -> None:
    runs: Any = [Fake(v, connections=n) for n, v in [(100, 1.0), (5, 2.0), (20, 3.0), (5, 4.0)]]
    assert [(arm.value, len(arm.runs)) for arm in arms(runs, "connections")] == [(5, 2), (20, 1), (100, 1)]
    words: Any = [Fake(1.0, executor=name) for name in ("direct", "cached(direct)", "direct")]
    assert [arm.value for arm in arms(words, "executor")] == ["direct", "cached(direct)"]


def test_trials_have_the_interval_of_their_spread_and_few_that_of_the_runs() -> None:
    three = Arm("a", tuple(fakes(10, 11, 12, half=100))).estimate("p50")
    assert (three.value, three.low) == (11, pytest.approx(11 - 4.3027 / math.sqrt(3), rel=1e-4))
    two = Arm("a", tuple(fakes(10, 12, half=1))).estimate("p50")
    assert (two.value, two.low, two.high) == (11, 9, 13)


@pytest.mark.parametrize("order", [1, -1])
def test_few_trials_of_which_one_has_no_interval_have_none_in_whatever_order(order: int) -> None:
    trials = [*fakes(10, half=1), *fakes(30)][::order]
    found = Arm("a", tuple(trials)).estimate("p50")
    assert found.value == 20 and not found.has_interval


# ratios


@given(st.lists(st.tuples(st.floats(0.1, 1e6), st.floats(0.1, 1e6)), min_size=3, max_size=9))
def test_a_ratio_lies_in_its_interval_and_turns_round(pairs: list[tuple[float, float]]) -> None:
    of, to = (fakes(*column) for column in zip(*pairs, strict=True))
    there, back = ratio(of, to, "p50"), ratio(to, of, "p50")
    assert there.low <= there.value * (1 + 1e-9) and there.value <= there.high * (1 + 1e-9)
    assert there.value * back.value == pytest.approx(1)
    assert there.low * back.high == pytest.approx(1)


def test_what_falls_on_both_of_a_pair_does_not_widen_its_ratio() -> None:
    of, to = fakes(20, 2, 200), fakes(10, 1, 100)
    found = ratio(of, to, "p50")
    assert (found.low, found.high) == (pytest.approx(2), pytest.approx(2))


def test_the_ratio_of_single_runs_has_both_their_widths() -> None:
    found = ratio(fakes(20, half=0.6), fakes(10, half=0.4), "p50")
    half = math.sqrt(0.03**2 + 0.04**2)
    assert (found.low, found.high) == (pytest.approx(2 * math.exp(-half)), pytest.approx(2 * math.exp(half)))
    assert not ratio(fakes(20), fakes(10), "p50").has_interval


@pytest.mark.parametrize("values", [(0.0, 1.0), (math.nan, 1.0), (math.inf, 1.0), (1.0, 0.0)])
def test_there_is_no_ratio_of_what_was_not_measured(values: tuple[float, float]) -> None:
    assert math.isnan(ratio(fakes(values[0]), fakes(values[1]), "p50").value)


# claims


@pytest.mark.parametrize(
    ("low", "high", "bound", "status"),
    [
        (2.0, 3.0, {"at_least": 1.5}, "held"),
        (1.0, 3.0, {"at_least": 1.5}, "not settled"),
        (1.0, 1.4, {"at_least": 1.5}, "not held"),
        (1.0, 1.4, {"at_most": 1.5}, "held"),
        (1.0, 1.6, {"at_most": 1.5}, "not settled"),
        (1.6, 1.7, {"at_most": 1.5}, "not held"),
        (math.nan, math.nan, {"at_least": 1.5}, "held"),
    ],
)
def test_a_claim_is_held_when_its_whole_interval_is(
    low: float, high: float, bound: dict[str, float], status: str
) -> None:
    middle = 2.5 if math.isnan(low) else (low + high) / 2
    found = claims.settled("pooling", "it is so", Estimate(middle, low, high, 9), "times", "", "r", **bound)
    assert found.status == status


@pytest.mark.parametrize("values", [(math.nan, 1.0), (3.0, 1.0)])
def test_a_claim_about_nothing_or_without_an_interval_is_not_settled(values: tuple[float, float]) -> None:
    found = claims.claim("pooling", "it is so", fakes(values[0]), fakes(values[1]), "p50", at_least=1)
    assert found.status == "not settled" and "too little was measured for an interval" in found.reason


@pytest.mark.parametrize(("n", "what"), [(1, "; one run each"), (2, "; 2 runs each"), (3, "")])
def test_a_claim_of_fewer_than_three_trials_says_so(n: int, what: str) -> None:
    found = claims.claim(
        "pooling", "it is so", fakes(*[3.0] * n, half=0.1), fakes(*[1.0] * n, half=0.01), "p50", at_least=2
    )
    assert found.status == "held" and (what in found.reason if what else "each" not in found.reason)


def test_a_claim_that_cannot_be_is_refused() -> None:
    with pytest.raises(UsageError, match="unknown topic 'poling'.*did you mean pooling"):
        claims.claim("poling", "x", fakes(1), fakes(1), "p50", at_least=1)
    with pytest.raises(UsageError, match="at_least or at_most"):
        claims.claim("pooling", "x", fakes(1), fakes(1), "p50")


def two_runs(lab: Lab) -> list[Run]:
    for name, ms in (("fast", 1), ("slow", 3)):
        lab.ingest(
            spooled(lab, name, [sample(k, k * MS, (k + ms) * MS) for k in range(990)], store="memory", pacer="saturate")
        )
    return [Run(lab, "fast"), Run(lab, "slow")]


def test_a_claim_that_is_not_held_is_a_finding_and_no_failure(lab: Lab) -> None:
    fast, slow = two_runs(lab)
    held = claims.claim("caching", "slow is slower", slow, fast, "p50", at_least=2.5)
    not_held = claims.claim("caching", "slow is ten times slower", slow, fast, "p50", at_least=10)
    verdict = claims.concluded("does it pay?", [held, not_held], [fast, slow])
    assert [j.status for j in verdict.claims] == ["held", "not held"]
    assert verdict.status == judge(Targets.of(), fast, slow).status
    assert verdict.answer.startswith("Yes: slow is slower (3.00 times") and "No: slow is ten times" in verdict.answer
    assert "✗ not held" in str(verdict) and "class='not-held'" in verdict._repr_html_()


def test_claims_are_kept_in_the_lab_under_their_topic(lab: Lab) -> None:
    fast, slow = two_runs(lab)
    verdict = claims.concluded(
        "t", [claims.claim("caching", "slow is slower", slow, fast, "p50", at_least=2)], [fast, slow]
    )
    for _ in range(2):
        conclude(verdict, lab)
    rows = lab.sql("SELECT topic, name, status, run_id FROM verdicts WHERE kind = 'claim'").rows()
    assert rows == [("caching", "t: slow is slower", "held", "slow")]


# pictures


@pytest.fixture(scope="module")
def six(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    """Of three settings and two stores, one of which has a name to beware of."""
    lab = Lab(tmp_path_factory.mktemp("six") / "lab.duckdb")
    for n, batch in enumerate((1, 10, 100)):
        for m, store in enumerate(("memory", "$a_b^c$ <i>")):
            rows = [sample(k, k * MS, (k + n + m) * MS + 1, events=batch) for k in range(300)]
            workload, column = f"write_events:batch={batch}", {"store": store, "connections": 5 * batch}
            lab.ingest(spooled(lab, f"r{n}{m}", rows, workload=workload, pacer="saturate", executor="direct", **column))
    return [Run(lab, f"r{n}{m}") for n in range(3) for m in range(2)]


@pytest.mark.parametrize("figure", sorted(UNITS))
def test_every_figure_can_be_drawn_along_beside_and_over(six: list[Run], figure: str) -> None:
    drawn(
        views.along(six, "connections", figure, "store", Targets.production()),
        views.side_by_side(six, "store", figure, Targets.production()),
        views.over_two(six, "connections", "store", figure),
    )


def test_where_time_goes_can_be_drawn_and_so_can_nothing(six: list[Run]) -> None:
    drawn(
        views.where_time_goes(six, "connections"),
        views.along([], "connections"),
        views.where_time_goes([], "connections"),
    )


def drawn(*pictures: Picture) -> None:
    for picture in pictures:
        data, _ = picture._repr_mimebundle_()
        assert data["image/png"].startswith(b"\x89PNG")


def test_the_parts_of_an_operation_are_all_its_time(lab: Lab) -> None:
    # due, offered, began, acquired, ended, back-off
    row = [1, 0, 0, 2 * MS, 5 * MS, 15 * MS, 4 * MS, sample(1, 0, 1)[-1]]
    lab.ingest(spooled(lab, "r1", [row]))
    parts = views.parts_ms([Run(lab, "r1")])
    assert list(parts.values()) == [2, 3, 6, 4] and sum(parts.values()) == 15


def loops(lab: Lab, *ms: tuple[int, int]) -> list[Run]:
    """Runs of so many callers, each operation of so many ms."""
    made = []
    for n, (callers, each) in enumerate(ms):
        rows = [sample(k, k * each * MS, (k + 1) * each * MS) for k in range(990 // each)]
        lab.ingest(spooled(lab, f"r{n}", rows, pacer=f"saturate:concurrency={callers}", trial=n))
        made.append(Run(lab, f"r{n}"))
    return made


# answers and cautions


def test_the_most_is_of_all_trials_and_is_told_with_how_many_times_the_least_setting_it_is(lab: Lab) -> None:
    runs = loops(lab, (1, 6), (2, 3), (1, 5), (2, 2), (1, 4), (2, 4))
    text = str(sentences.throughput(runs, "concurrency"))
    mean = Arm(2, tuple(runs[1::2])).estimate("commands_per_second").value
    assert text.startswith(f"**Most commands/s: {mean:,.0f} [") and " at concurrency 2**" in text
    assert re.search(r"1\.\d+ times \[[\d.]+ – [\d.]+\] what concurrency 1 gives\.$", text)
    assert f"a concurrency of 2 ({mean:,.0f} commands/s" in str(sentences.settings(runs, []))


def test_one_setting_in_several_trials_is_not_held_against_itself(lab: Lab) -> None:
    assert "times" not in str(sentences.throughput(loops(lab, (1, 6), (1, 3), (1, 2)), "concurrency"))


def test_a_peak_is_told_with_how_many_times_the_first_setting_it_is_and_the_interval(lab: Lab) -> None:
    runs = loops(lab, (1, 6), (2, 3))
    told = str(optimum.most(runs, "concurrency", "commands_per_second", "with {} callers"))
    assert (
        re.search(r"with 2 callers, 2(\.\d+)? times \[[\d.]+ – [\d.]+\] what 1 gives\.", told) or "2 times what" in told
    )


HOSTILE = "[a](http://x.example/p.png) ![b](javascript:alert(1)) <img src=x> $x^2$ \x1b[31m\u202e"


def test_what_a_verdict_takes_from_users_moves_no_cursor(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVENTCORE_LAB_REPORT", str(tmp_path))
    found = claims.settled("load", HOSTILE, Estimate(1, 1, 1, 1), HOSTILE, HOSTILE, HOSTILE, at_least=1)
    verdict = conclude(claims.concluded(HOSTILE, [found], []), lab)
    answer = json.loads((tmp_path / "conclusion.json").read_text(encoding="utf-8"))["answer"]
    assert not {"\x1b", "\u202e"} & set(str(verdict) + answer) and "Yes: [a](http" in answer


def test_what_a_sentence_takes_from_users_is_no_link_no_picture_and_moves_no_cursor() -> None:
    found = sentences.Sentence(f"**Most: 3/s [2 – 4]** with {HOSTILE}\n\n- next")
    page = str(markdown(found._repr_markdown_()))
    assert ">a</a>" not in page and "<img" not in page and 'href="javascript' not in page and "![b](javascript" in page
    assert "[2 – 4]" in page and "<li>next</li>" in page
    assert not {"\x1b", "\u202e"} & set(str(found) + page + repr(Table(["name", HOSTILE], [[HOSTILE, "1"]])))
    assert str(found).startswith("**Most: 3/s [2 – 4]** with [a](http")


@pytest.mark.parametrize(
    ("text", "headline"),
    [
        ("**Most: 3/s.** And more, **much** more.", "Most: 3/s; much"),
        ("Of two, **the first** is best: `a`.", "Of two, the first is best: a"),
        ("**10 callers: 5**. **50 callers: 20**.", "10 callers: 5; 50 callers: 20"),
    ],
)
def test_a_headline_is_what_is_bold_or_all_of_a_text_that_does_not_begin_so(text: str, headline: str) -> None:
    assert sentences.Sentence(text).headline == headline


def test_an_answer_is_what_was_found_and_how_many_claims_held_and_no_list_of_them() -> None:
    listed = [
        claims.claim("load", f"it is so, {n}", fakes(n, half=0.01), fakes(1.5, half=0.01), "p50", at_least=1)
        for n in range(1, 9)
    ]
    text = claims.concluded("t", listed, [], sentences.Sentence("**Batches do 2 times [1.9 – 2.1] as much.**")).answer
    assert text == "Batches do 2 times [1.9 – 2.1] as much. Of 8 claims put to the test: 7 held, 1 not held."
    alone = claims.concluded("t", listed, []).answer
    assert alone.startswith("Yes: it is so, 2 (1.33 times") and "and 6 more. No: it is so, 1 (" in alone
    assert (
        claims.concluded("t", [], []).answer == "No claim was put to the test: these settings leave nothing to compare."
    )


def test_a_caution_is_told_once_with_how_many_runs_it_is_of_and_from_which_number_to_which() -> None:
    cpu = "a load process used {} % of a core (rule: above 90 %)"
    of = {f"r{n}": [cpu.format(91 + n)] for n in range(8)} | {"late": ["the clock was set"], "r9": [], "r10": []}
    assert sentences.gathered(of) == [
        "8 of 11 runs: a load process used 91 to 98 % of a core (rule: above 90 %).",
        "1 of 11 runs (`late`): the clock was set.",
    ]
    assert sentences.gathered({"r": ["late by 1.5 ms"]}) == ["Late by 1.5 ms."]
    assert sentences.gathered({"a": ["p99 1,234.5 ms"], "b": ["p99 20 ms"]})[0].endswith("runs: p99 20 to 1,234.5 ms.")
    addresses = {"a": ["127.0.0.1 is late"], "b": ["127.0.0.2 is late, 3, 4"]}
    assert sentences.gathered({**addresses, "c": ["127.0.0.9 is late"]})[0].endswith("127.0.0.1 to 0.9 is late.")


def test_names_at_the_ends_of_lines_stand_apart_and_within_the_picture() -> None:
    axes = Picture("x").add_subplot()
    axes.set_ylim(0, 10)
    name_ends(axes, [(y, f"line {y}", "black") for y in (9.9, 9.95, 10.0, 1.0)])
    heights = [text.get_position()[1] for text in axes.texts]
    assert heights == sorted(heights) and max(heights) <= 1.0
    assert min(b - a for a, b in itertools.pairwise(heights)) > 0.05
    assert heights[0] == pytest.approx(0.1)


def test_runs_that_are_compared_are_told_by_what_tells_them_apart(
    lab: Lab, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lab.ingest(
        spooled(lab, "r1", [sample(k, k * MS, (k + 1) * MS) for k in range(50)], executor="direct", projection="")
    )
    monkeypatch.setattr(workbench, "run", lambda *_: Run(lab, "r1"))
    base = Experiment(store="memory", workload="write_events:batch=2")
    run_each(vary(base, pacer=[f"saturate:concurrency={n}" for n in (4, 8)], connections=[1, 8]), lab, trials=2)
    head, *lines = capsys.readouterr().out.splitlines()
    assert head == "8 runs of memory, write_events:batch=2, saturate"
    told = {line.partition(":")[0] for line in lines}
    assert len(lines) == 8 and {"1 connection, concurrency=4, trial 1", "8 connections, concurrency=8, trial 2"} <= told
    run_each([base], lab)
    assert capsys.readouterr().out.count("\n") == 1


def test_what_follows_from_a_label_is_not_told_with_it() -> None:
    plan = [Experiment(store=store, label=store, connections=n) for n, store in enumerate(("memory", "null"), 1)]
    assert workbench._telling_apart(plan) == ["label"]
    assert workbench._telling_apart(plan[:1]) == []
    specs = [("a", "write_events:batch=1"), ("b", "append:streams=2"), ("b", "append:streams=4")]
    plan = [Experiment(store="memory", label=label, workload=workload) for label, workload in specs]
    apart = workbench._telling_apart(plan)
    assert [workbench._what(e, apart, plan, None) for e in plan] == ["a", "b, streams=2", "b, streams=4"]
