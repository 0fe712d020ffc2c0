"""What the monitor knows: exact, bounded, the same however the facts came in, and of a whole run what the lab says of it."""

from __future__ import annotations

import itertools
import math
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from eventcore_lab.clock import NS_PER_S
from eventcore_lab.lab.database import Lab
from eventcore_lab.lab.measures import MIB, UNITS, Run
from eventcore_lab.lab.targets import Targets
from eventcore_lab.monitor import state as state_room
from eventcore_lab.monitor import window as window_room
from eventcore_lab.monitor.facts import EDGES_MS, NO_TIMES, Gauge, Mark, News, Second, Watched
from eventcore_lab.monitor.state import State
from eventcore_lab.schema import Outcome, Phase, packed

MS = 1_000_000
BEGAN = 1_790_000_000.25
WARMUP_S, DURATION_S = 1.0, 4.0
EXACT = ("p50", "p90", "p95", "p99", "p99.9", "memory")


def watched(status: str = "loading", **facts: Any) -> Watched:
    of = {"run_id": "r", "began": BEGAN, "warmup_s": WARMUP_S, "duration_s": DURATION_S, **facts}
    return Watched(status=status, **of)


def row(
    due_ms: float,
    took_ms: float = 1.0,
    outcome: Outcome = Outcome.OK,
    events: int = 1,
    attempts: int = 1,
    conflicts: int = 0,
    waited_ms: float = 0.0,
) -> list[int]:
    """One sample that was begun `waited_ms` after it was due, and steady if it was due after the warm-up."""
    due, began, ended = (int(ms * MS) for ms in (due_ms, due_ms + waited_ms, due_ms + took_ms))
    phase = Phase.STEADY if due >= WARMUP_S * NS_PER_S else Phase.WARMUP
    return [0, due, due, began, began, ended, 0, packed(outcome, phase, attempts, events, conflicts)]


def table(*rows: list[int]) -> NDArray[np.int64]:
    return np.array(rows, np.int64).reshape(-1, 8)


def at(ms: float) -> float:
    return BEGAN + ms / 1000


def fed(state: State, *news: News) -> list[Second]:
    return [second for one in news for second in state.add(one)]


def loading(ms: float, rows: NDArray[np.int64] | None = None, waiting: list[float] = [], **more: Any) -> News:  # noqa: B006
    due = np.array([int(w * MS) for w in waiting], np.int64)
    return News(t=at(ms), watched=watched(), rows=table() if rows is None else rows, waiting=due, **more)


def samples(seed: int, n: int = 6000) -> NDArray[np.int64]:
    """Of a whole run: every outcome, retries and give-ups, in the order in which they ended."""
    rng = np.random.default_rng(seed)
    kinds = rng.choice([*Outcome][1:], n, p=[0.93, 0.04, 0.01, 0.01, 0.01])
    due = np.sort(rng.uniform(0, 1000 * (WARMUP_S + DURATION_S), n))
    took, tries = rng.lognormal(1, 1.5, n), rng.integers(1, 4, n)
    rows = table(
        *(row(d, t, Outcome(k), 3, int(a), int(a) - 1) for d, t, k, a in zip(due, took, kinds, tries, strict=True))
    )
    return rows[np.argsort(rows[:, 5], kind="stable")]


def figures_equal(found: dict[str, float], wanted: dict[str, float]) -> None:
    for name in UNITS:
        tolerance = 0.0 if name in EXACT else 1e-9
        assert found[name] == pytest.approx(wanted[name], rel=tolerance, abs=0, nan_ok=True), name


# --- of a whole run, what the lab says --------------------------------------------------------------------------------


def kept(lab: Lab, rows: NDArray[np.int64], gauges: list[Gauge], status: str) -> dict[str, float]:
    """The figures of a run with these facts, as the lab has them."""
    folder = lab.spool / f"run-{status}"
    folder.mkdir(parents=True)
    about = {
        "run_id": folder.name,
        "status": status,
        "is_closed_loop": False,
        "warmup_s": WARMUP_S,
        "schema_version": 4,
    }
    about |= {"measured_ns": int(DURATION_S * NS_PER_S), "started_at": "2026-01-01T00:00:00+00:00"}
    (folder / "run.json").write_bytes(msgspec.json.encode(about))
    rows.tofile(folder / "samples-0.i64")
    lines = [{"t_ns": round((g.t - BEGAN) * 1e9), "source": g.source, "name": g.name, "value": g.value} for g in gauges]
    (folder / "gauges.ndjson").write_bytes(b"\n".join(map(msgspec.json.encode, lines)) + b"\n")
    lab.ingest(folder)
    return {name: figure.estimate.value for name, figure in Run(lab, folder.name).figures.items()}


def some_gauges(until_ms: int) -> list[Gauge]:
    values = (("loader", "pss_bytes", 90e6), ("server", "pss_bytes", 70e6), ("machine", "busy_percent", 30.0))
    return [
        Gauge(at(ms), source, name, value * (1 + ms / 50_000 + 0.1 * math.sin(ms)))
        for ms in range(-100, until_ms, 250)
        for source, name, value in values
    ]


@pytest.mark.parametrize("status", ["complete", "interrupted"])
def test_a_window_over_a_whole_run_has_the_figures_of_the_lab(lab: Lab, status: str) -> None:
    rows = samples(seed=3)
    if status == "interrupted":
        rows = rows[rows[:, 5] < 3.3 * NS_PER_S]
    gauges = some_gauges(8000)  # the last looks come after the load's end
    state = State(window_s=3600)
    for ms in range(500, 9000, 500):
        is_new = (rows[:, 5] >= (ms - 500) * MS) & (rows[:, 5] < ms * MS)
        state.add(loading(ms, rows[is_new], gauges=tuple(g for g in gauges if at(ms - 500) <= g.t < at(ms))))
    state.add(News(t=at(9000), watched=watched(status), rows=rows[rows[:, 5] >= 8500 * MS]))
    wanted = kept(lab, rows, [g for g in gauges if g.t >= at(0)], status)
    assert not any(map(math.isnan, wanted.values()))
    figures_equal(state.figures, wanted)


facts = st.tuples(
    st.floats(0, 5000), st.floats(0.01, 3000), st.sampled_from([*Outcome][1:]), st.integers(0, 5), st.integers(1, 3)
)


@settings(max_examples=60, deadline=None)
@given(st.lists(facts, min_size=1, max_size=40), st.lists(st.integers(0, 40), max_size=8), st.randoms())
def test_however_rows_come_in_totals_and_figures_are_the_same(
    found: list[tuple[float, float, Outcome, int, int]], cuts: list[int], chance: Any
) -> None:
    rows = table(*(row(due, took, outcome, events, tries) for due, took, outcome, events, tries in found))
    whole, parts = State(window_s=3600), State(window_s=3600)
    whole.add(loading(0))
    fed(
        whole, News(t=at(9000), watched=watched("complete"), rows=rows), News(t=at(12_000), watched=watched("complete"))
    )
    order = list(range(len(rows)))
    chance.shuffle(order)
    edges = [0, *sorted(min(cut, len(rows)) for cut in cuts), len(rows)]
    seconds = fed(parts, loading(0))
    for n, (first, last) in enumerate(itertools.pairwise(edges)):
        seconds += parts.add(loading(1000 * n, rows[order[first:last]]))
    seconds += fed(
        parts, News(t=at(9000), watched=watched("complete")), News(t=at(12_000), watched=watched("complete"))
    )
    parts.totals.lost_s = whole.totals.lost_s  # that is of the looks
    assert parts.totals == whole.totals
    figures_equal(parts.figures, whole.figures)
    assert (
        sum(parts.totals.latency) == len(rows) == sum(parts.totals.outcomes.values()) == sum(s.ended for s in seconds)
    )
    assert sum(parts.totals.store) == len(rows) - parts.totals.outcomes["dropped"]
    assert sum(count for s in seconds for _, count in s.heat) == len(rows)
    assert sum(s.events for s in seconds) == parts.totals.events
    for name, total in parts.totals.outcomes.items():
        assert sum(getattr(s, name) for s in seconds) == total


# --- seconds --------------------------------------------------------------------------------------------------------


def test_a_second_is_complete_when_a_look_came_a_second_after_it() -> None:
    state = State()
    assert [len(state.add(loading(ms))) for ms in (750, 1740, 2740, 2760, 6000)] == [0, 0, 0, 1, 3]
    assert [s.t for s in state.history] == [math.floor(BEGAN) + n for n in (1, 2, 3, 4)]


def test_a_second_has_what_ended_in_it_as_exact_order_statistics() -> None:
    state, latencies = State(), np.arange(1, 201) / 4
    rows = table(*(row(1000 + 2 * n, float(ms)) for n, ms in enumerate(latencies)), row(2900, 50, Outcome.FAILED))
    seconds = fed(state, loading(0), loading(3500, rows), loading(6000))
    second = next(s for s in seconds if s.ended == 200)
    assert second.t == math.floor(at(1250))
    assert (second.p50, second.p95, second.p99, second.worst) == (25.0, 47.5, 49.5, 50.0)
    assert sum(count for _, count in second.heat) == 200
    for bucket, count in second.heat:
        low, high = EDGES_MS[bucket - 1], EDGES_MS[bucket]
        assert count == ((latencies > low) & (latencies <= high)).sum()
    assert [(s.failed, s.p50) for s in seconds if s.failed] == [(1, 50.0)]
    assert {s.p50 for s in seconds if not s.ended} == {None}


def test_what_was_dropped_is_slower_than_any_that_was_answered() -> None:
    rows = table(*(row(1000 + n, 2) for n in range(9)), row(1100, 0, Outcome.DROPPED))
    state = State()
    seconds = fed(state, loading(0), loading(2000, rows), loading(6000))
    second = next(s for s in seconds if s.ended)
    assert (second.p50, second.worst, second.dropped) == (2.0, math.inf, 1)
    assert state.totals.latency[-1] == 1 and sum(state.totals.store) == 9


def test_rows_that_come_late_are_in_the_second_that_is_built_and_counted() -> None:
    state = State()
    seconds = fed(state, loading(0), loading(9000), loading(9000, table(row(1000), row(8900))), loading(12_000))
    assert state.late == 1 and sum(s.ended for s in seconds) == 2 == sum(state.totals.outcomes.values())
    assert min(s.t for s in seconds if s.ended) >= math.floor(at(9000)) - 2


def test_due_counts_who_ended_later_or_still_waits_once() -> None:
    state = State()
    rows = table(row(1000, 100), row(1100, 1500))  # due in the same second, ended in different ones
    seconds = fed(state, loading(0), loading(3000, rows, [1200]), loading(5000, table(row(1200, 3500))), loading(8000))
    assert {s.t: s.due for s in seconds if s.due} == {math.floor(at(1000)): 3}
    assert sum(s.ended for s in seconds) == 3


def test_under_way_at_a_seconds_end_is_who_had_begun_and_not_ended() -> None:
    state = State()
    end_ms = 1750.0  # of the second that `at(1000)` lies in
    before, over, after, queued = row(1000, 100), row(1500, 400), row(1800, 10), row(1700, 200, waited_ms=100)
    rows = table(before, over, after, queued)
    seconds = fed(state, loading(0), loading(2000, rows, [1250, 1900]), loading(3000), loading(4000))
    second = next(s for s in seconds if s.t + 1 == at(end_ms))
    assert second.waiting == 2 and second.oldest_s == pytest.approx(0.5)
    seconds = fed(State(), loading(0), loading(2000, rows), loading(3000), loading(4000))
    second = next(s for s in seconds if s.t + 1 == at(end_ms))
    assert second.waiting == 1 and second.oldest_s == pytest.approx(0.25)


def test_gauges_of_a_second_are_the_last_of_each_and_the_latest_stand() -> None:
    state = State()
    gauges = [Gauge(at(ms), "loader", "pss_bytes", float(ms)) for ms in (1000, 1250, 1700, 1800)]
    seconds = fed(
        state, loading(0), loading(2000, gauges=(*gauges, Gauge(at(1900), "x", "y", math.nan))), loading(5000)
    )
    told = [s.gauges for s in seconds if s.gauges]
    assert told == [{"loader.pss_bytes": 1700.0}, {"loader.pss_bytes": 1800.0}]
    assert state.gauges == {"loader.pss_bytes": gauges[-1]}
    assert len({id(name) for second in told for name in second}) == 1, "two hours of seconds share their names"


def test_after_the_wall_clock_was_set_back_seconds_go_on() -> None:
    state = State()
    fed(state, loading(500_000, table(row(499_900))))
    seconds = fed(state, loading(2000), loading(5000))
    assert [s.t for s in seconds if s.ended] == [math.floor(at(499_901))]
    assert seconds[-1].t == math.floor(at(3000)) and state.fresh_s(at(6000)) == 1.0


# --- the window -----------------------------------------------------------------------------------------------------


def test_what_ended_before_the_window_does_not_count() -> None:
    state = State(window_s=2)
    slow, quick = table(*(row(1000 + n, 90) for n in range(500))), table(*(row(3000 + n, 1) for n in range(900)))
    fed(state, loading(2000, slow), loading(4000, quick))
    assert state.figures["p50"] == 1.0 and state.figures["commands_per_second"] == 900 / 2
    fed(state, loading(5500.5))
    assert state.figures["failures/attempts"] == 0.0 and state._window.basis.samples == 400, "of one look a part"
    fed(state, loading(6500))
    assert math.isnan(state.figures["p50"])


def test_a_store_that_stands_still_shows_as_such() -> None:
    state = State(Targets.of("commands_per_second > 100", "p99 < 100ms"), window_s=5)
    rows = table(*(row(1000 + 5 * n, 1) for n in range(400)))
    fed(state, loading(3000, rows))
    waiting = [3000 + 5 * n for n in range(1000)]
    seconds = fed(state, loading(8001.0, None, waiting))
    assert state.figures["p50"] == pytest.approx(8001 - waiting[500]) and state.oldest_s == pytest.approx(5.0, abs=0.01)
    assert state.figures["commands_per_second"] == 0.0 and state.waiting == 1000
    assert [h.status for h in state.held] == ["fail", "fail"]
    assert seconds[-1].waiting > 0 and seconds[-1].oldest_s > 2


def test_of_more_rows_than_are_kept_the_window_is_shorter_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(window_room, "ROWS_MAX", 1000)
    state = State(window_s=60)
    for n in range(2, 6):
        state.add(loading(1000 * n, table(*(row(1000 * n - 999 + k, n) for k in range(400)))))
    assert state.is_cut and not state.catching_up, "it stands at now"
    assert state.figures["p50"] == 4.0, "the last 1,000 rows"
    assert state.figures["commands_per_second"] == pytest.approx(1000 / (5 - (2.201 + 0.001 * 2)), rel=0.01)
    fed(state, *(loading(1000 * n) for n in range(6, 80, 5)))
    assert not state.is_cut


def test_a_look_that_has_not_seen_all_stands_where_its_rows_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_room, "LOOK_ROWS_MAX", 100)
    state = State(window_s=1)
    rows = table(*(row(10 * n + 1000, 5) for n in range(350)))
    seconds = []
    for n in range(4):
        seconds += state.add(loading(100_000 + 10 * n, rows[100 * n : 100 * n + 100]))
        assert state.catching_up == (n < 3) and not state.is_cut
        if n < 3:
            assert state.figures["p50"] == 5.0 and state.figures["commands_per_second"] == pytest.approx(100, rel=0.03)
    assert state.late == 0
    assert [s.ended for s in seconds if s.ended][1:3] == [100, 100] and sum(s.ended for s in seconds) == 350
    assert state.fresh_s(at(100_030)) == 0.0


def test_what_is_older_than_the_whole_history_is_in_the_totals_alone() -> None:
    state = State(history_s=10)
    seconds = fed(state, loading(100_000, table(row(1000), row(95_000))), loading(103_000))
    assert [s.t for s in seconds if s.ended] == [math.floor(at(95_001))] and len(seconds) <= 12
    assert state.totals.outcomes["ok"] == 2


def test_another_run_begins_with_an_empty_window() -> None:
    state = State()
    fed(state, loading(2000, table(*(row(1000 + n, 9) for n in range(50)))))
    fed(state, News(t=at(2500), watched=Watched(run_id="s", status="preparing")))
    assert state.figures["p50"] == 9.0, "until the next load begins"
    other = watched(run_id="s", began=at(3000), warmup_s=0.0)
    fed(state, News(t=at(5000), watched=other, rows=table(row(1100, 2))))
    assert state.figures["p50"] == 2.0 and state.totals.runs == 2 and state.totals.outcomes["ok"] == 51


def test_nothing_grows_in_three_hours() -> None:
    state = State(Targets.production(), window_s=10, history_s=600)
    about = watched(duration_s=10_800.0)
    name, four = [f"g{n}" for n in range(5)], table(*(row(1500 + k, 3) for k in range(4)))
    for n in range(5, 10_805, 5):
        rows = four + np.array([0, *[(n - 2) * NS_PER_S] * 5, 0, 0])
        gauges = tuple(Gauge(at(1000 * n), "loader", g, 1.0) for g in (*name, "pss_bytes", f"once {n}"))
        marks = (Mark(at(1000 * n), "m"),)
        state.add(News(t=at(1000 * n), watched=about, rows=rows, waiting=NO_TIMES, gauges=gauges, marks=marks))
    assert len(state.history) == 600 and len(state.marks) == state_room.MARKS_MAX
    assert len(state.gauges) == state_room.GAUGES_MAX and len(state._open) <= 3
    assert len(state._window._parts) <= 4 and max(map(len, state._window._points.values())) <= 4
    assert state.totals.outcomes["ok"] == 4 * 2160 and state.late == 0


# --- what is watched ------------------------------------------------------------------------------------------------


def test_an_observed_store_has_events_by_what_it_tells_and_never_fewer_than_none() -> None:
    state = State(Targets.of("events_per_second > 1000"), window_s=60)
    about = Watched(status="observed", store="env:STORE")
    values = [1000, 1500, 1500, 200, 900, 900]  # restored from a backup in between
    seconds = []
    for n, value in enumerate(values):
        gauges = (Gauge(at(1000 * n), "store", "events_total", float(value)),)
        seconds += state.add(News(t=at(1000 * n + 10), watched=about, gauges=gauges))
    seconds += fed(state, News(t=at(8000), watched=about))
    assert [s.events for s in seconds[:6]] == [0, 500, 0, 0, 700, 0] and state.totals.events == 1200
    assert state.figures["events_per_second"] == 1200 / 5 and math.isnan(state.figures["commands_per_second"])
    assert state.held[0].status == "inconclusive" and "only observed" in state.held[0].reason


def test_another_store_that_is_observed_has_not_grown_by_what_it_has_more() -> None:
    state = State(window_s=60)
    for n, (title, value) in enumerate([("a", 10), ("a", 20), ("b", 5000), ("b", 5007), ("b", 5007)]):
        about = Watched(status="observed", store="env:STORE", title=title)
        state.add(
            News(t=at(1000 * n + 10), watched=about, gauges=(Gauge(at(1000 * n), "store", "events_total", value),))
        )
    assert state.totals.events == 17 and state.figures["events_per_second"] == 7 / 2


def test_a_look_that_failed_leaves_what_was_known_and_is_not_fresh() -> None:
    state = State()
    fed(state, loading(2000, table(row(1500))), News(t=at(5000), error="cannot be read"))
    assert state.error == "cannot be read" and state.is_loaded and state.watched == watched()
    assert state.fresh_s(at(6000)) == 4.0 and state.totals.lost_s == 3
    fed(state, loading(6000))
    assert state.error == "" and state.fresh_s(at(6000)) == 0.0 and state.totals.lost_s == 3
    assert State().fresh_s(0.0) == math.inf


def test_seconds_in_which_nobody_looked_are_counted() -> None:
    state = State()
    fed(state, loading(0), loading(1000), loading(11_000))
    assert state.totals.lost_s == 9


def test_what_nobody_could_look_at_for_long_is_not_known_until_somebody_can() -> None:
    state = State(Targets.of("events_per_second > 1", "p99 < 10ms"), window_s=30)
    about = Watched(status="observed", store="env:STORE")
    for n in range(5):
        gauges = (Gauge(at(1000 * n), "store", "events_total", 100.0 * n),)
        state.add(News(t=at(1000 * n), watched=about, gauges=gauges))
    assert (state.figures["events_per_second"], state.held[0].status) == (100.0, "pass")
    state.add(News(t=at(9000), watched=about, error="gone"))
    assert state.figures["events_per_second"] == 100.0 and not state.is_stale(at(9000))
    state.add(News(t=at(9001), watched=about, error="gone"))
    assert state.is_stale(at(9001)) and all(math.isnan(value) for value in state.figures.values())
    assert state.held[0].value is None and state.held[0].status == "inconclusive"
    assert state.held[0].reason == "not looked at since 14:13:24 UTC"
    assert state.held[1].reason == "a store that is only observed does not tell it"
    state.add(News(t=at(10_000), watched=about, gauges=(Gauge(at(10_000), "store", "events_total", 1000.0),)))
    assert state.figures["events_per_second"] == 100.0 and state.held[0].status == "pass"


def test_a_look_that_does_not_come_back_is_no_look() -> None:
    state = State(Targets.of("p99 < 10ms", "memory < 1GiB"))
    state.add(loading(5000, samples(1)))
    assert not math.isnan(state.figures["p99"])
    state.age(at(10_000))
    assert not math.isnan(state.figures["p99"])
    state.age(at(10_001))
    assert math.isnan(state.figures["p99"])
    assert {h.reason for h in state.held} == {h.reason for h in state.hold(state.targets or Targets.production())}
    assert {h.reason.partition(" since")[0] for h in state.held} == {"not looked at"}
    fresh = State(Targets.of("p99 < 10ms"))
    fresh.add(News(t=at(0), watched=watched(), error="gone"))
    assert fresh.held[0].reason == "not looked at yet"


# --- held -----------------------------------------------------------------------------------------------------------


def held_to(threshold: str, rows: NDArray[np.int64], ms: float = 5000, **about: Any) -> tuple[str, str]:
    state = State(Targets.of(threshold), window_s=60)
    state.add(News(t=at(ms), watched=watched(**about), rows=rows))
    return state.held[0].status, state.held[0].reason


MANY = table(*(row(1000 + 2 * n, 5) for n in range(1500)))


@pytest.mark.parametrize(
    ("threshold", "rows", "about", "wanted"),
    [
        ("p99 < 10ms", MANY, {}, ("pass", "")),
        ("p99 < 5ms", MANY, {}, ("fail", "")),
        ("p99 < 10ms", MANY, {"is_closed_loop": True}, ("inconclusive", "a closed loop shows service time; latency")),
        ("p99 < 1ms", MANY, {"is_closed_loop": True}, ("inconclusive", "a closed loop shows service time; latency")),
        ("p99 < 10ms", MANY[:999], {}, ("inconclusive", "999 samples; p99 needs at least 1,000")),
        ("p99 < 10ms", table(), {}, ("inconclusive", "nothing yet")),
        ("p99 < 10ms", MANY, {"status": "broken"}, ("inconclusive", "the run was broken")),
        ("p99 < 10ms", MANY, {"status": "complete"}, ("pass", "")),
        ("commands_per_second > 100", MANY, {}, ("pass", "")),
        ("commands_per_second > 1000", MANY, {}, ("inconclusive", "no more than this was offered")),
        ("commands_per_second > 1000", MANY, {"is_closed_loop": True}, ("fail", "")),
        ("commands_per_second < 100", MANY, {}, ("fail", "")),
        (
            "commands_per_second > 1000",
            table(*MANY.tolist(), row(2000, 9, Outcome.FAILED)),
            {},
            ("fail", ""),
        ),
        ("failures/attempts < 1%", MANY, {}, ("pass", "")),
        ("memory < 1GiB", MANY, {}, ("inconclusive", "nothing yet")),
    ],
)
def test_a_target_is_held_as_the_lab_compares(
    threshold: str, rows: NDArray[np.int64], about: dict[str, Any], wanted: tuple[str, str]
) -> None:
    status, reason = held_to(threshold, rows, **about)
    assert status == wanted[0] and (reason.startswith(wanted[1]) if wanted[1] else not reason)


def test_what_an_observed_store_never_tells_is_said_to_be_so() -> None:
    state = State(Targets.of("p99 < 10ms", "events_per_second > 10"))
    state.add(News(t=at(0), watched=Watched(status="observed", store="env:STORE")))
    assert [h.reason for h in state.held] == ["a store that is only observed does not tell it", "nothing yet"]


def test_before_the_load_is_steady_nothing_is_held() -> None:
    assert held_to("p99 < 10ms", table(row(100)), ms=800) == ("inconclusive", "warming up")
    assert (
        held_to("commands_per_second > 1", table(row(1100)), ms=1500)[1] == "0.5 s of load; a rate needs at least 1 s"
    )
    state = State(Targets.production())
    state.add(News(t=at(0)))
    assert {h.reason for h in state.held} == {"nothing is watched"} and {h.value for h in state.held} == {None}


def test_a_limit_of_memory_is_held_to_the_highest_look_in_the_window() -> None:
    state = State(Targets.of("memory < 100MiB"), window_s=3)
    gauge = (Gauge(at(1000), "server", "pss_bytes", 120.0 * MIB), Gauge(at(3000), "loader", "pss_bytes", 80.0 * MIB))
    state.add(loading(3500, gauges=gauge))
    assert (state.held[0].status, state.held[0].value) == ("fail", 120.0)
    state.add(loading(5000))
    assert (state.held[0].status, state.held[0].value) == ("pass", 80.0)


def test_state_can_be_written_as_json() -> None:
    state = State(Targets.production())
    seconds = fed(state, loading(0), loading(3000, samples(1, 500)), loading(9000))
    assert msgspec.json.decode(msgspec.json.encode(seconds))[0]["t"] == seconds[0].t
    msgspec.json.encode([state.watched, state.held, state.figures, state.totals])
