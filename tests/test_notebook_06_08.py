"""Claims about commands that meet, commands put together, and read models beside a load: what the notebooks 06 to 08 say of
them, and the notebooks themselves once."""

from __future__ import annotations

import math
import re
import sys
from pathlib import Path
from typing import Any

import pages
import polars as pl
import pytest

from eventcore_lab import cli
from eventcore_lab.commands import executors
from eventcore_lab.lab import arms, command_batches, contention, staleness, table, unpromised, wording
from eventcore_lab.lab.checkers import CHECKERS
from eventcore_lab.lab.database import Lab
from eventcore_lab.lab.measures import Run
from eventcore_lab.lab.stats import NOTHING, Estimate
from eventcore_lab.load.workloads import workloads
from eventcore_lab.load.workloads.commands import Looks
from eventcore_lab.projections import read_models
from eventcore_lab.schema import ExitCode, Outcome
from eventcore_lab.spec import UsageError
from eventcore_lab.stores import stores
from tests.test_lab import MS, sample, spooled


class Made(Run):
    """A run by hand, in no Lab: `rate` operations in a second, one event and `ms` each, and what was told beside them."""

    def __init__(
        self,
        name: str = "made",
        rate: int = 100,
        ms: tuple[int, ...] = (1,),
        outcome: Outcome = Outcome.OK,
        gauges: Any = (),
        filled: int = 0,
        **row: Any,
    ) -> None:
        base = {"store": "memory", "workload": "create_user", "pacer": "constant:rate=10", "executor": "direct"}
        rest = {"is_closed_loop": False, "warmup_s": 0.0, "measured_ns": 1000 * MS, "status": "complete", "label": ""}
        self.run_id, self.row = name, {**base, **rest, "durability": "none", "projection": "", **row}
        due = pl.Series(range(rate), dtype=pl.Int64) * (1000 * MS // rate)
        took = pl.Series([ms[k % len(ms)] * MS for k in range(rate)])
        times = dict.fromkeys(("due_ns", "offered_ns", "began_ns", "acquired_ns"), due) | {"ended_ns": due + took}
        same = {"phase": 1, "outcome": int(outcome), "attempts": 1, "conflicts": 0, "events": 1, "backoff_ns": 0}
        self.__dict__["samples"] = pl.DataFrame(times).with_columns(**{k: pl.lit(v) for k, v in same.items()})
        schema = {"t_ns": pl.Int64, "source": pl.String, "name": pl.String, "value": pl.Float64}
        self.__dict__["gauges"] = pl.DataFrame([(MS, *gauge) for gauge in gauges], schema=schema, orient="row")
        said = {"name": ["store filled"], "detail": [f"{filled} events"]}
        self.__dict__["marks"] = pl.DataFrame(
            said if filled else {"name": [], "detail": []}, schema=dict.fromkeys(said, pl.String)
        )


def stored(lab: Lab, name: str, **row: Any) -> Run:
    lab.ingest(spooled(lab, name, [sample(k, k * MS, k * MS + MS) for k in range(50)], **row))
    return Run(lab, name)


def violated(lab: Lab, run: Run, invariant: str) -> Run:
    row = {"run_id": run.run_id, "kind": "invariant", "name": invariant, "measured": 7.0, "status": "violated"}
    lab.add_verdicts([{**row, "reason": "the first; the second"}])
    return Run(lab, run.run_id)


# what is told


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.1234, "0.123"), (12.34, "12.3"), (99.97, "100"), (12_340, "12,340"), (0.00004, "0"), (math.nan, "–")],
)
def test_digits_are_three_where_that_says_enough(value: float, text: str) -> None:
    assert wording.digits(value) == text


def test_a_number_is_said_with_its_unit_and_interval_where_it_has_one() -> None:
    assert wording.said(Estimate(3.14, 3, 4, 9), "times") == "3.14 times [3 – 4]"
    assert wording.said(Estimate(200, 200, 200, 9), "/s") == "200/s"
    assert wording.said(NOTHING, "ms") == "not measured"


def test_runs_are_picked_by_all_that_they_were_made_with() -> None:
    runs = [Made(f"r{n}", executor=f"parallel(direct):limit={n}", label="a") for n in (4, 16)]
    assert arms.where(runs, limit=16, label="a") == runs[1:]
    assert arms.where(runs, limit=16, label="b") == []
    assert arms.values_of(runs, "limit") == [4, 16]


def test_a_table_escapes_what_it_shows() -> None:
    found = table.Table(["way", "rate"], [["<b>", "1"]])
    assert "&lt;b&gt;" in found._repr_html_() and repr(found) == "way  rate\n<b>  1"


# what was never promised


def test_what_was_never_promised_is_an_invariant_of_a_part_that_exists() -> None:
    registries: dict[str, Any] = {"executor": executors, "projection": read_models}
    for (column, name), invariant in unpromised.NEVER_PROMISED.items():
        assert name in registries[column].names()
        assert invariant in {checker.name for checker in CHECKERS}


ANSWERS = "executed commands are where their answers say"


@pytest.mark.parametrize("executor", ["chapter_batching(direct)", "parallel(chapter_batching(direct)):limit=3"])
def test_an_executor_that_never_promised_an_answer_is_told_of_and_the_store_is_not_judged_by_it(
    lab: Lab, executor: str
) -> None:
    run = violated(lab, stored(lab, "r1", executor=executor), ANSWERS)
    verdict = unpromised.concluded_as_promised("t", "async_batching", [], [run])
    assert verdict.status != "violated"
    [told] = verdict.claims
    assert (told.status, told.measured, told.reason) == ("not held", 7, "the first")
    assert "only told of: chapter_batching" in verdict.answer


def test_what_its_store_promised_is_judged_beside_any_executor(lab: Lab) -> None:
    run = violated(lab, stored(lab, "r1", executor="chapter_batching(direct)"), "acknowledged appends are there")
    assert unpromised.concluded_as_promised("t", "async_batching", [], [run]).status == "violated"


def test_the_same_violation_by_an_executor_that_promised_it_decides(lab: Lab) -> None:
    run = violated(lab, stored(lab, "r1", executor="batching(direct)"), ANSWERS)
    verdict = unpromised.concluded_as_promised("t", "async_batching", [], [run])
    assert (verdict.status, verdict.claims) == ("violated", [])
    assert "Not correct" in verdict.answer


def test_what_no_run_tested_is_not_settled(lab: Lab) -> None:
    [found] = unpromised.findings("async_batching", [stored(lab, "r1", executor="chapter_batching(direct)")])
    assert found.status == "not settled"


# commands that meet


def hot_and_wide() -> list[Run]:
    rates = {
        contention.APART: {(1, 1): 100, (16, 1): 100, (1, 50): 100, (16, 50): 400},
        contention.BY_ITSELF: {(0, 1): 20, (0, 50): 400},
        contention.CHAPTERS: {(16, 1): 100, (16, 50): 400},
        contention.TOGETHER: {(0, 1): 1000, (0, 50): 400},
    }
    ways, runs = contention.ways("direct", [1, 16]), []
    for label, by_setting in rates.items():
        for (limit, streams), rate in by_setting.items():
            executor = next(e for e in ways[label] if f"limit={limit}" in e or not limit)
            counts = {contention.APART: ("waited_for_stream", rate / 4), contention.CHAPTERS: ("locks", float(streams))}
            counted = [("executor", *counts[label])] if label in counts else []
            made_with = {"executor": executor, "workload": f"reserve:articles={streams}", "label": label}
            pacer = {"pacer": "saturate:concurrency=32", "is_closed_loop": True}
            runs.append(Made(f"{label} {limit} {streams}", rate, gauges=counted, **made_with, **pacer))
    return runs


def test_claims_about_parallel_commands_are_of_the_hot_stream_and_of_many() -> None:
    found = {c.text: c.status for c in contention.claims_of(hot_and_wide(), "articles")}
    assert found == {
        "on 50 streams, 16 commands at a time do at least 2 times what 1 does": "held",
        "on 1 stream, 16 commands at a time do at least 1.2 times what 1 does": "not held",
        "on 1 stream, keeping apart does at least 1.5 times what letting commands conflict does": "held",
        "on 1 stream, putting together does at least 3 times what keeping apart does": "held",
        "on 1 stream, parallel does at least 0.9 times what the chapter's does": "held",
        "on 1 stream, letting commands conflict leaves at most 1 % not done": "held",
        "the chapter's: no more locks are kept than there are callers": "not held",
    }


def test_what_is_said_of_parallel_commands_is_what_was_counted() -> None:
    runs = hot_and_wide()
    limited = arms.where(runs, label=contention.APART)
    assert contention.waited_share(limited) == 25
    assert {run.row["label"] for run in contention.at_highest(runs)} == set(contention.ways("direct", [1]))
    highest = arms.where(contention.at_highest(runs), label=contention.APART)
    assert arms.values_of(highest, "limit") == [16] and len(highest) == 2
    gain = str(contention.gain(limited, "articles"))
    assert re.search(r"on 50 streams 4 times .*\(400/s\); on 1 stream 1 times", gain)
    assert "locks 1 for 1 and 50 for 50 streams" in str(contention.locks(runs, "articles"))
    assert "on 1 stream 1 (100 commands/s" in str(contention.settings(limited, "articles"))
    assert len(contention.table(runs, "articles").rows) == len(runs)


# commands put together


def shop(label: str, confirmed: int) -> Run:
    return Made(f"{label} {confirmed}", confirmed, label=label, workload="reserve:articles=2,stock=10")


@pytest.mark.parametrize(("confirmed", "status"), [(20, "pass"), (21, "violated"), (19, "inconclusive")])
def test_reservations_beyond_the_stock_are_a_violation_by_those_who_promised(confirmed: int, status: str) -> None:
    runs = [shop(command_batches.BY_ITSELF, confirmed), shop(command_batches.CHAPTERS, 30)]
    [judged] = command_batches.kept_stock(runs)
    assert (judged.status, judged.measured) == (status, max(confirmed - 20, 0))
    verdict = unpromised.concluded_as_promised("t", "async_batching", [], [], kept=[judged])
    assert verdict.status == status and ("Not correct" in verdict.answer) == (status == "violated")


def test_reservations_beyond_the_stock_by_the_chapter_s_are_a_claim_not_held() -> None:
    [found] = command_batches.claims_of(
        [], [], [shop(command_batches.CHAPTERS, 30), shop(command_batches.BY_ITSELF, 20)]
    )
    assert (found.status, found.measured.value, found.reason) == ("not held", 1.5, "30 of 20 pieces")


def test_only_what_is_confirmed_counts_as_sold() -> None:
    shops = [
        Made(label="a", rate=5, workload="reserve:stock=10"),
        Made(label="b", outcome=Outcome.FAILED, workload="reserve:stock=10"),
    ]
    assert "a 5 of 10; b 0 of 10" in str(command_batches.sold(shops))


def test_ways_to_put_together_are_told_apart_and_the_chapter_s_is_never_advised() -> None:
    ways = command_batches.ways("memory", [10, 100], [0, 5])
    rates = {
        command_batches.BY_ITSELF: 100,
        command_batches.GROUPED: 200,
        command_batches.CHAPTERS: 1000,
        command_batches.named(5): 400,
    }
    busy = [Made(f"b{n}", rates.get(way["label"], 380), **way) for n, way in enumerate(ways)]
    quiet = [Made(f"q{n}", 50, **way) for n, way in enumerate(ways)]
    with pytest.raises(UsageError, match="unknown kind 'timer'"):
        command_batches.ways("memory", [10], [0], ["timer"])
    assert len(busy) == 7 and len(command_batches.at_largest(busy)) == 5 and len(command_batches.in_batches(busy)) == 4
    assert "batching, no timer** is soonest" in str(command_batches.settings(busy, quiet))
    found = {c.text: c.status for c in command_batches.claims_of(busy, quiet, [])}
    assert found["many callers: batching, 5 ms does more than batching, no timer"] == "held"
    assert found["many callers: batching, no timer does at least what the chapter's does"] == "not held"
    assert found["low rate: batching, 5 ms takes at most 2 times what each by itself takes"] == "held"


# read models


def kept(projection: str, rate: int, lags: list[float], refreshes: list[float]) -> Run:
    source = f"projection {projection.partition(':')[0]}"
    told = [(source, "lag_ms", v) for v in lags] + [(source, "refresh_ms", v) for v in refreshes]
    return Made(projection, rate, gauges=told, projection=projection)


def test_claims_about_read_models_are_of_cost_and_of_lag() -> None:
    one = [
        Made("none", 100),
        kept("worker", 100, [0.0] * 10 + [5.0] * 20 + [10.0], []),
        kept("trigger", 50, [0, 0, 0], []),
        kept("matview:every_s=1", 100, [100, 200, 1000], [50]),
    ]
    one.append(kept("memory", 100, [0, 0, 0, 8.0], []))
    once = {c.text: c.status for c in staleness.claims_of(one, [])}
    assert once["memory is at most 0.1 times as far behind as matview:every_s=1, in the median"] == "held"
    assert once["worker is at most 0.1 times as far behind as matview:every_s=1, in the median"] == "not settled"
    assert once["trigger is at most 0.1 times as far behind as matview:every_s=1, in the median"] == "held"
    writers = 3 * one
    found = {c.text: c.status for c in staleness.claims_of(writers, [])}
    assert found["beside worker, writers do at least 0.9 times what they do without"] == "held"
    assert found["beside trigger, writers do at least 0.9 times what they do without"] == "not held"
    assert found["worker is at most 0.1 times as far behind as matview:every_s=1, in the median"] == "held"
    assert "`worker` 5 ms in the median, 10 ms at worst; `trigger` never" in str(staleness.behind(writers))
    assert "**memory** is least behind: at most 8 ms" in str(staleness.settings(writers))
    dear = staleness.settings([Made("none", 100), kept("trigger", 80, [0], []), kept("worker", 85, [1.0], [])])
    assert "(none was measured to cost writers at most 10 %), **trigger**" in str(dear)
    assert staleness.table(writers).rows[0][0] == "without"


def test_a_read_model_that_never_promised_to_be_right_is_never_advised() -> None:
    writers = [Made("none", 100), kept("worker", 95, [5.0], []), kept("chapter_matview:every_s=1", 100, [1.0], [5])]
    assert "**worker** is least behind" in str(staleness.settings(writers))


def look(projection: str, users: int, *refreshes: float, ms: tuple[int, ...] = (1,), rate: int = 100) -> Run:
    """Look-ups that take `ms`, one after the other, in a store with two events of each user."""
    of = projection.partition(":")[0]
    told = [(f"projection {of}", "refresh_ms", took) for took in refreshes]
    made_with = {"projection": projection, "workload": f"read_model:of={of},users={users}"}
    return Made(f"{projection} {users}", rate, ms=ms, gauges=told, filled=2 * users, **made_with)


def test_claims_about_refreshes_are_of_their_growth_and_of_who_waits() -> None:
    view = "chapter_matview:every_s=1"
    looks = [look(view, 100, 9.0, 10.0, 11.0), look(view, 1000, 78.0, 80.0, 90.0, ms=(1, 50), rate=1000)]
    looks.append(look("worker", 1000, rate=1000))
    found = {c.text: (c.status, round(c.measured.value, 6)) for c in staleness.claims_of([], looks)}
    assert found == {
        f"{view}: a refresh takes at most twice as long with 10 times the events": ("not held", 8.0),
        f"a look-up in {view} takes at most twice what one in worker takes, at p99": ("not held", 50.0),
    }
    assert f"`{view}` 10 ms over 200 events, 80 ms over 2,000" in str(staleness.refreshes(looks))
    assert staleness.largest(looks) == looks[1:]


@pytest.mark.parametrize("took", [[80.0], [15.0, 40.0, 50.0]])
def test_few_refreshes_or_such_that_differ_settle_no_growth(took: list[float]) -> None:
    looks = [look("matview", 100, 9.0, 10.0, 11.0), look("matview", 1000, *took)]
    [grown] = staleness.claims_of([], looks)
    assert grown.status == "not settled"


def test_pictures_of_nothing_say_so() -> None:
    for picture in (staleness.lags([]), staleness.refresh_along([])):
        assert picture.axes[0].texts[0].get_text() == "nothing was measured"


def test_read_models_are_of_users_who_are_there_in_a_read_model_that_can_be_asked() -> None:
    workload: Any = workloads.make("read_model:users=20,of=trigger", seed=3)
    known = Looks(3, 20, 1)
    assert {workload.prepare(k) for k in range(500)} == {known.name(n) for n in range(20)}
    assert len([*workload.populate()]) == 20
    with pytest.raises(UsageError, match="memory is not: nobody else can ask it"):
        workloads.make("read_model:of=memory", seed=3)
    with pytest.raises(UsageError, match="needs the store postgres"):
        workload.start(stores.make("memory"), None)


# the notebooks

NOTEBOOKS = {
    "06": ["store=memory", "limits=1,2", "streams=1", "processes=1", "callers=8", "inside=direct"],
    "07": ["store=memory", "kinds=batching,chapter", "sizes=20", "delays_ms=0", "callers=20", "articles=1", "stock=10"],
    "08": [
        *("projections=worker,chapter_matview:every_s=0.1", "trials=1", "callers=2"),
        *("views=chapter_matview", "tables=worker", "sizes=50", "every_s=0.1", "rate=200"),
    ],
}
SAID = {"06": "on 1 stream", "07": "only told of: chapter_batching", "08": "only told of: chapter_matview"}


@pytest.mark.parametrize("number", NOTEBOOKS)
def test_the_notebook_answers_and_is_not_misled_by_what_was_never_promised(
    number: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = Lab(tmp_path / "lab.duckdb")
    given = [*NOTEBOOKS[number], "duration_s=0.2", "warmup_s=0.05"]
    command = ["eventcore-lab", "run", number, "--out", str(tmp_path), "--lab", str(lab.path)]
    monkeypatch.setattr(sys, "argv", command + [word for pair in given for word in ("-p", pair)])
    with pytest.raises(SystemExit) as done:
        cli.main()
    out, err = capsys.readouterr()
    assert done.value.code == ExitCode.PASS, out + err
    assert SAID[number] in out
    [page] = tmp_path.glob("2*/index.html")
    pages.check(page)
    assert '<th scope="col">p99, ms</th>' in page.read_text()  # the table of this notebook beside the verdict's
    assert page.read_text().count("data:image/png") == {"06": 3, "07": 3, "08": 4}[number]
    topics = lab.sql("SELECT DISTINCT topic FROM verdicts WHERE kind = 'claim'")["topic"].to_list()
    assert topics == [{"06": contention.TOPIC, "07": command_batches.TOPIC, "08": staleness.TOPIC}[number]]
