"""Pictures draw what the runs say, also when that is little or strange."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import matplotlib
import polars as pl
import pytest
from matplotlib.figure import Figure
from test_lab import MS, sample, spooled

from eventcore_lab.lab import plots
from eventcore_lab.lab.database import Lab
from eventcore_lab.lab.measures import Run, binned
from eventcore_lab.lab.targets import Targets
from eventcore_lab.schema import Outcome


def drawn(picture: plots.Picture) -> str:
    """Every text of a picture, after it was drawn once: a warning (a missing glyph, a clipped layout) fails the test."""
    data, metadata = picture._repr_mimebundle_()
    assert data["image/png"].startswith(b"\x89PNG") and metadata["image/png"]["alt"]
    return "\n".join(t.get_text() for t in picture.findobj(lambda a: hasattr(a, "get_text")))  # type: ignore[attr-defined]


def everything(run: Run, targets: Targets) -> list[plots.Picture]:
    return [
        plots.throughput_by([run], "concurrency", "commands_per_second", targets, [run]),
        plots.throughput_by([run], "batch", "events_per_second", targets),
        plots.latency_percentiles([run, run], targets),
        plots.over_time(run, targets),
        plots.memory_over_time(run, targets),
    ]


def test_a_real_run_is_drawn_with_its_targets(open_run: Run, closed_run: Run) -> None:
    for run in (open_run, closed_run):
        texts = [drawn(picture) for picture in everything(run, Targets.production())]
        assert "target" in texts[0] and "warm-up" in texts[3] and "MiB" in texts[4]
        assert all(run.run_id in text or "runs" in text for text in texts)
    assert "service time (closed loop), ms" in drawn(plots.over_time(closed_run))
    assert "latency, ms" in drawn(plots.over_time(open_run))


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [sample(0, 0, MS)],
        [sample(k, k * MS, 0, Outcome.RUNNING) for k in range(30)],
        [sample(k, k * MS, k * MS, Outcome.DROPPED) for k in range(30)],
        [sample(k, k * MS, k * MS, Outcome.FAILED) for k in range(30)],
    ],
    ids=["none", "one", "running", "dropped", "failed"],
)
def test_a_run_with_little_to_show_is_drawn_all_the_same(lab: Lab, rows: list[list[int]]) -> None:
    lab.ingest(spooled(lab, "r1", rows))
    for picture in everything(Run(lab, "r1"), Targets.development()):
        drawn(picture)


def test_names_from_users_are_shown_as_they_are_and_cut(lab: Lab) -> None:
    strange = "$x^2$ \n\t<b>\x1b[31m é مرحبا " + "w" * 10_000
    lab.ingest(
        spooled(lab, "r1", [sample(k, k * MS, k * MS + 1) for k in range(50)], store="memory", durability=strange)
    )
    for picture in everything(Run(lab, "r1"), Targets.production()):
        assert len(drawn(picture)) < 2000


def test_throughput_is_drawn_where_it_was_measured() -> None:
    axes = Figure().add_subplot()
    rows = [(1, 100.0, 90.0, 110.0), (10, 500.0, math.nan, math.nan), (100, math.nan, math.nan, math.nan)]
    frame = pl.DataFrame(rows, schema=["x", "value", "low", "high"], orient="row")
    plots.throughput(frame, axes, "concurrency")
    line: Any = axes.get_lines()[0]
    assert (list(line.get_xdata()), list(line.get_ydata())) == ([1, 10], [100, 500])
    assert [t.get_text() for t in axes.texts] == ["100", "500"]


def test_the_curve_ends_where_ten_samples_lie_beyond(lab: Lab) -> None:
    lab.ingest(spooled(lab, "r1", [sample(k, 0, (k + 1) * MS) for k in range(1000)]))
    frame = plots.percentile_curve(Run(lab, "r1"))
    assert frame["p"][-1] == pytest.approx(0.99)
    assert frame["ms"][-1] == 990


def test_rates_over_time_do_not_overflow(lab: Lab) -> None:
    lab.ingest(spooled(lab, "r1", [sample(k, k * MS, k * MS + 1) for k in range(1000)]))
    frame = binned(Run(lab, "r1"))
    assert frame["offered"].mean() == pytest.approx(1000, rel=0.01)
    assert frame["ok"].equals(frame["offered"])


def run_of(lab: Lab, rows: list[list[int]], run_id: str = "r1", **row: Any) -> Run:
    lab.ingest(spooled(lab, run_id, rows, **row))
    return Run(lab, run_id)


def test_what_never_ended_is_slower_than_any_over_time_too(lab: Lab) -> None:
    rows = [sample(k, k * MS, (k + 1) * MS, Outcome.DROPPED if k % 4 == 0 else Outcome.OK) for k in range(1000)]
    frame = binned(run_of(lab, rows))
    assert set(frame["p99"]) == {math.inf} and frame["p50"].max() == pytest.approx(1)
    assert frame["unwell"].sum() == 250


def test_an_operation_is_answered_when_it_ends_not_when_it_was_due(lab: Lab) -> None:
    frame = binned(run_of(lab, [sample(k, k * MS // 10, (500 + k // 10) * MS) for k in range(1000)]))
    assert frame["ok"][0] == 0 and frame["ok"].sum() > 0


def test_a_target_beyond_the_curves_end_is_drawn_and_what_never_ended_is_said(lab: Lab) -> None:
    rows = [sample(k, k * MS, (k + 1) * MS, Outcome.DROPPED if k % 2 else Outcome.OK) for k in range(1000)]
    text = drawn(plots.latency_percentiles([run_of(lab, rows)], Targets.production()))
    assert "p99 < 100 ms" in text and "500 of 1,000 dropped or never answered" in text


def test_a_name_the_font_has_no_letters_for_is_drawn_as_boxes(lab: Lab) -> None:
    run = run_of(lab, [sample(k, k * MS, k * MS + 1) for k in range(50)], store="日本 🙂")
    assert "□□ □" in drawn(plots.latency_percentiles([run]))


def test_the_users_own_style_is_neither_used_nor_changed(lab: Lab) -> None:
    run = run_of(lab, [sample(k, k * MS, k * MS + 1) for k in range(50)])
    with matplotlib.rc_context({"axes.facecolor": "black"}):
        assert plots.over_time(run).axes[0].get_facecolor() == (1, 1, 1, 1)
        assert matplotlib.rcParams["axes.facecolor"] == "black"


def test_threads_leave_the_users_style_as_it_was(lab: Lab) -> None:
    run, before = run_of(lab, [sample(k, k * MS, k * MS + 1) for k in range(50)]), dict(matplotlib.rcParams)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(plots.over_time, [run] * 12))
    assert dict(matplotlib.rcParams) == before


def test_one_floor_is_a_level_and_several_are_a_line(lab: Lab) -> None:
    rows = [sample(k, k * MS, k * MS + 1) for k in range(300)]
    runs = [run_of(lab, rows, f"r{n}", pacer=f"saturate:concurrency={n}") for n in (1, 4)]
    for floor in (None, runs[0], runs):
        text = drawn(plots.throughput_by(runs, "concurrency", floor=floor))
        assert text.count("harness's own limit") == (floor is not None)


def test_runs_are_told_apart_by_what_their_pacer_does_when_it_says_nothing(lab: Lab) -> None:
    rows = [sample(k, k * MS, k * MS + 1) for k in range(50)]
    runs = [run_of(lab, rows, "r1", pacer="saturate"), run_of(lab, rows, "r2", pacer="saturate:concurrency=5")]
    assert "10 callers" in drawn(plots.latency_percentiles(runs))


def test_a_lines_name_stands_at_its_end(lab: Lab) -> None:
    upper = plots.over_time(
        run_of(lab, [sample(k, k * MS, (k + 1) * MS) for k in range(300)]), Targets.of("p99 < 5ms")
    ).axes[0]
    [name] = [t for t in upper.texts if t.get_text() == "p50"]
    at = upper.transAxes.inverted().transform(upper.transData.transform((0, 1)))[1]
    assert name.get_position()[1] == pytest.approx(at, abs=0.02)
