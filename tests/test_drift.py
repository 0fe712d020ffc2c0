"""Slopes over hours: what grows is found, what does not is not accused, and legs are put together."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from eventcore_lab.clock import NS_PER_S
from eventcore_lab.lab.conclusion import content
from eventcore_lab.lab.database import Lab, UnknownRun
from eventcore_lab.lab.drift import BLOCKS, Soak, _carried_on, _slope, _told, label_of
from eventcore_lab.lab.measures import MIB
from eventcore_lab.lab.stats import percentile
from eventcore_lab.lab.steadiness import over_hours
from eventcore_lab.lab.targets import Targets, Threshold
from eventcore_lab.schema import Outcome, packed

HOUR_NS = 3600 * NS_PER_S
BEGAN = datetime(2026, 1, 1, tzinfo=UTC)


def leg(
    lab: Lab,
    hours: float,
    *,
    soak_id: str = "s1",
    of_h: float = 8.0,
    number: int = 1,
    begins_h: float = 0.0,
    ms_per_hour: float = 0.0,
    mib_per_hour: float = 0.0,
    outage: tuple[float, float] = (0.0, 0.0),
    seed: int = 1,
    operations: int = 24_000,
    status: str = "complete",
    server: tuple[tuple[float, float], ...] = (),
    targets: str = "",
) -> str:
    """A run of `hours` whose latency, 4 ms with an exponential tail, and loader's memory grow so much per hour; between the
    hours of `outage` nothing was answered. `server`: points (hour, MiB) between which its server's memory grows steadily; at
    one of 0 MiB it is gone."""
    rng = np.random.default_rng(seed)
    folder = lab.spool / f"run-{number}-{soak_id}"
    folder.mkdir(parents=True)
    total_ns = int(hours * HOUR_NS)
    row = {
        "run_id": folder.name,
        "label": label_of(soak_id, number, of_h, targets),
        "started_at": (BEGAN + timedelta(hours=begins_h)).isoformat(),
        "status": status,
        "store": "memory",
        "workload": "create_user",
        "pacer": "constant:rate=400",
        "is_closed_loop": False,
        "seed": 7,
        "measured_ns": total_ns,
        "duration_s": hours * 3600,
        "warmup_s": 0.0,
        "schema_version": 4,
    }
    (folder / "run.json").write_bytes(msgspec.json.encode(row))
    due = np.sort(rng.integers(0, total_ns, operations))
    at_h = due / HOUR_NS
    ms = 4 + ms_per_hour * at_h + rng.exponential(1.0, operations)
    ended = due + (ms * 1e6).astype(np.int64)
    is_out = (at_h >= outage[0]) & (at_h < outage[1])
    ok, unknown = packed(Outcome.OK, 1, 1, 1), packed(Outcome.UNKNOWN, 1, 1, 0)
    zero = np.zeros_like(due)
    columns = [np.arange(operations), due, due, due, zero, ended, zero, np.where(is_out, unknown, ok)]
    np.stack(columns, axis=1).astype(np.int64).tofile(folder / "samples-0.i64")
    lines = [
        {"t_ns": int(t), "source": "loader", "name": "pss_bytes", "value": float(value)}
        for t, value in zip(
            np.linspace(0, total_ns - 1, 600),
            (80 + mib_per_hour * np.linspace(0, hours, 600) + rng.normal(0, 1.5, 600)) * MIB,
            strict=True,
        )
    ]
    lines += server_lines(server, total_ns, rng)
    (folder / "gauges.ndjson").write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in lines))
    return lab.ingest(folder)


def server_lines(points: Sequence[tuple[float, float]], total_ns: int, rng: np.random.Generator) -> list[Any]:
    """Gauges of a server's memory; of one that is gone only that it has no processes."""
    lines: list[Any] = []
    for t in np.linspace(0, total_ns - 1, 600) if points else ():
        mib = float(np.interp(t / HOUR_NS, *zip(*points, strict=True)))
        lines.append({"t_ns": int(t), "source": "server", "name": "processes", "value": float(mib > 0)})
        if mib > 0:
            value = (mib + rng.normal(0, 1.5)) * MIB
            lines.append({"t_ns": int(t), "source": "server", "name": "pss_bytes", "value": value})
    return lines


def judged(soak: Soak, name: str) -> str:
    verdict = soak.verdict(Targets.of("p95 < 50ms", "memory < 1024MiB"))
    return next(j.status for j in verdict.targets if j.name == f"{name}, growth")


@pytest.mark.parametrize("per_hour", [2.0, 20.0, 300.0])
def test_a_leak_is_found_with_its_size(lab: Lab, per_hour: float) -> None:
    leg(lab, 8, mib_per_hour=per_hour)
    slope = Soak(lab, "s1").slopes["memory of the loader"]
    assert slope.per_hour.low <= per_hour <= slope.per_hour.high
    assert slope.grows


def test_a_leak_that_will_reach_the_limit_fails_and_one_that_will_not_does_not(lab: Lab) -> None:
    leg(lab, 8, soak_id="large", mib_per_hour=100)
    leg(lab, 8, soak_id="small", mib_per_hour=2)
    assert judged(Soak(lab, "large"), "memory of the loader") == "fail"
    assert judged(Soak(lab, "small"), "memory of the loader") == "pass"
    assert Soak(lab, "large").verdict(Targets.of("memory < 1024MiB")).status == "fail"
    assert "does not stay as it is" in Soak(lab, "large").verdict(Targets.of("memory < 1024MiB")).answer


def test_latency_that_grows_is_carried_on_to_its_limit(lab: Lab) -> None:
    leg(lab, 8, soak_id="slower", ms_per_hour=2.0)
    slope = Soak(lab, "slower").slopes["p95"]
    assert slope.per_hour.low <= 2.0 <= slope.per_hour.high
    assert judged(Soak(lab, "slower"), "p95") == "fail"


@pytest.mark.parametrize("seed", range(5))
def test_what_stays_as_it_is_is_not_accused(lab: Lab, seed: int) -> None:
    leg(lab, 8, seed=seed)
    assert {judged(Soak(lab, "s1"), name) for name in ("p95", "memory of the loader")} == {"pass"}


FILLING = tuple((t, 200 + 400 * (1 - math.exp(-t / 1.0))) for t in np.linspace(0, 8, 81).tolist())


def test_memory_that_fills_up_and_stays_is_no_leak(lab: Lab) -> None:
    leg(lab, 8, server=FILLING)
    soak = Soak(lab, "s1")
    assert not soak.slopes["memory of the server"].grows
    assert judged(soak, "memory of the server") != "fail"
    answer = soak.verdict(Targets.of("memory < 700MiB")).answer
    assert "does not stay" not in answer and "Growth was shown" not in answer


def test_what_the_table_shows_to_change_the_answer_tells_as_well(lab: Lab) -> None:
    leg(lab, 8, server=((0, 200), (4, 208), (8, 206)))
    soak = Soak(lab, "s1")
    assert soak.slopes["memory of the server"].per_hour.low > 0
    answer = soak.verdict(Targets.of("memory < 2048MiB")).answer
    assert "no growth" not in answer
    assert "Growth that goes on was not shown, but memory of the server changes by +" in answer
    assert "(not shown of the last half)" in answer


def test_what_only_the_last_half_shows_is_told_with_its_interval() -> None:
    rng, t_h = np.random.default_rng(3), np.linspace(0, 8, BLOCKS)
    slope = _slope("p95", "ms", t_h, 10 + 4 * np.abs(t_h - 4) + rng.normal(size=BLOCKS))
    assert slope.changes and not slope.per_hour.low > 0
    assert _told(slope).endswith("per hour over the last half") and _told(slope).startswith("changes by +")


def test_a_soak_of_minutes_says_nothing_of_hours(lab: Lab) -> None:
    leg(lab, 0.05, soak_id="flat", of_h=0.05)
    leg(lab, 0.05, soak_id="slower", of_h=0.05, ms_per_hour=100.0)
    flat, slower = (Soak(lab, name).verdict(Targets.of("p95 < 50s")).answer for name in ("flat", "slower"))
    assert "too short to tell" in flat and "no growth" not in flat
    assert "Growth was shown: p50" in slower and "lopes of minutes are no slopes of hours" in slower


@pytest.mark.parametrize(
    ("name", "ms_per_hour", "status"), [("p95", 2.0, "fail"), ("p95", 0.0, "pass"), ("p95", 1.4, "inconclusive")]
)
def test_a_reason_says_what_it_rests_on(lab: Lab, name: str, ms_per_hour: float, status: str) -> None:
    leg(lab, 8, ms_per_hour=ms_per_hour)
    row = next(j for j in Soak(lab, "s1").verdict(Targets.of("p95 < 50ms")).targets if j.name == f"{name}, growth")
    assert row.status == status, row
    assert re.match(r"now [\d.]+ ms; over the last half it changes by [+−][\d.]+ ms \[.* – .*\] per hour; ", row.reason)


def test_too_few_blocks_are_not_told_beside_an_interval() -> None:
    t_h, limit = np.linspace(0, 8, 9), Threshold("p95", 50.0, is_max=True)
    whole = _carried_on(_slope("p95", "ms", t_h, 10 + t_h % 3), limit, "")
    assert not math.isnan(whole.low) and "too few blocks of time for an interval of the last half" in whole.reason
    none = _carried_on(_slope("p95", "ms", t_h[:4], t_h[:4] % 3), limit, "")
    assert math.isnan(none.low) and "too few blocks of time for an interval;" in none.reason


def test_operations_are_counted_also_where_blocks_are_cut(lab: Lab) -> None:
    leg(lab, 1.1 / 3600, operations=80)
    soak = Soak(lab, "s1")
    assert soak.blocks["n"].sum() < 80
    assert "took 80 operations" in soak.verdict(Targets.production()).answer


def test_a_report_lists_every_leg(lab: Lab) -> None:
    for number in range(1, 4):
        leg(lab, 2, number=number, begins_h=3.0 * number, seed=number, status="interrupted", operations=4_000)
    kept = content(Soak(lab, "s1").verdict(Targets.of("p95 < 50ms")), lab)
    assert sorted(run["run_id"] for run in kept["runs"]) == ["run-1-s1", "run-2-s1", "run-3-s1"]


def test_a_leak_in_the_server_is_one_also_where_it_slows_or_quickens(lab: Lab) -> None:
    leg(lab, 8, soak_id="slows", server=((0, 200), (4, 500), (8, 700)))
    leg(lab, 8, soak_id="quickens", server=((0, 200), (4, 250), (8, 700)))
    for name in ("slows", "quickens"):
        assert Soak(lab, name).slopes["memory of the server"].grows
        assert judged(Soak(lab, name), "memory of the server") == "fail"


def test_a_server_that_begins_anew_with_a_leg_or_a_restart_has_no_slope_across(lab: Lab) -> None:
    leg(lab, 4, number=1, status="interrupted", server=((0, 900), (4, 900)))
    leg(lab, 8, number=2, begins_h=5.0, seed=2, server=((0, 100), (1, 500), (1.1, 0), (1.2, 0), (1.3, 300), (8, 300)))
    slope = Soak(lab, "s1").slopes["memory of the server"]
    assert (slope.leg, slope.life) == (2, 1)
    assert slope.level == pytest.approx(300, rel=0.01)
    assert not slope.grows and slope.span_h < 6.9


@pytest.mark.parametrize("alike", [0.0, 0.5, 0.9])
def test_blocks_that_are_like_their_neighbours_are_not_taken_for_growth(alike: float) -> None:
    """The share of flat soaks whose interval leaves zero out, and of those that are told to grow or to fail."""
    rng, t_h = np.random.default_rng(11), np.linspace(0, 8, BLOCKS)
    slopes = [_slope("p95", "ms", t_h, 10 + autoregressive(rng, alike)) for _ in range(200)]
    limit = Threshold("p95", 14.0, is_max=True)
    missed = sum(s.per_hour.low > 0 or s.per_hour.high < 0 for s in slopes) / len(slopes)
    assert missed <= {0.0: 0.08, 0.5: 0.09, 0.9: 0.2}[alike]  # as independent values: 0.05, 0.25, 0.64
    assert sum(s.grows for s in slopes) / len(slopes) <= 0.05
    assert sum(_carried_on(s, limit, "").status == "fail" for s in slopes) / len(slopes) <= 0.05


@pytest.mark.parametrize(("alike", "rise", "least"), [(0.0, 5.0, 0.85), (0.5, 10.0, 0.85), (0.9, 40.0, 0.8)])
def test_growth_that_stands_out_is_found(alike: float, rise: float, least: float) -> None:
    """`rise` over the soak in standard deviations of a block."""
    rng, t_h = np.random.default_rng(12), np.linspace(0, 8, BLOCKS)
    slopes = [_slope("p95", "ms", t_h, 10 + rise * t_h / 8 + autoregressive(rng, alike)) for _ in range(100)]
    assert sum(s.grows for s in slopes) / len(slopes) >= least


def autoregressive(rng: np.random.Generator, alike: float) -> np.ndarray:
    """A value per block, of variance 1, with that correlation of neighbours."""
    values = rng.normal(size=BLOCKS)
    for n in range(1, BLOCKS):
        values[n] = alike * values[n - 1] + math.sqrt(1 - alike**2) * values[n]
    return values


def test_an_outage_does_not_bend_the_slope_and_is_counted(lab: Lab) -> None:
    leg(lab, 8, outage=(3.0, 3.5))
    soak = Soak(lab, "s1")
    assert abs(soak.slopes["p95"].per_hour.value) < 0.2
    assert soak.blocks["unwell"].sum() == pytest.approx(24_000 * 0.5 / 8, rel=0.1)
    assert judged(soak, "p95") == "pass"
    answer = soak.verdict(Targets.of("p95 < 50ms")).answer
    assert (
        f"24,000 operations, {soak.blocks['unwell'].sum():,} of which (6 %) failed or had no answer, over 8 h" in answer
    )


def test_blocks_are_of_every_operation_and_their_percentiles_order_statistics(lab: Lab) -> None:
    leg(lab, 8)
    soak = Soak(lab, "s1")
    assert len(soak.blocks) == BLOCKS
    assert soak.blocks["n"].sum() == 24_000
    rows = soak.legs[0].samples
    first = rows.filter(rows["due_ns"] < 8 * HOUR_NS // BLOCKS)
    ms = np.sort((first["ended_ns"] - first["due_ns"]).to_numpy() / 1e6)
    assert soak.blocks.row(0, named=True)["p95"] == percentile(ms, 0.95)


def test_legs_of_one_soak_are_put_together_in_time_and_others_left_out(lab: Lab) -> None:
    leg(lab, 2, number=1, status="interrupted")
    leg(lab, 5, number=2, begins_h=3.0, ms_per_hour=0.0, seed=2)
    leg(lab, 1, soak_id="s2", of_h=1.0)
    soak = Soak(lab, "s1")
    assert [r.run_id for r in soak.legs] == ["run-1-s1", "run-2-s1"]
    assert soak.done_h == pytest.approx(7.0, rel=0.01)
    assert soak.hours == 8.0
    t_h = soak.blocks["t_h"].to_numpy()
    assert not ((t_h > 2.01) & (t_h < 3.0)).any()
    assert t_h.max() == pytest.approx(8.0, abs=0.2)


def test_the_newest_soak_is_meant_when_none_is_named(lab: Lab) -> None:
    leg(lab, 1, soak_id="a", of_h=1.0)
    leg(lab, 1, soak_id="b", of_h=1.0)
    assert Soak(lab).soak_id == "b"
    with pytest.raises(UnknownRun, match="no soak 'c'"):
        Soak(lab, "c")


def test_a_soak_too_short_for_blocks_settles_nothing(lab: Lab) -> None:
    leg(lab, 1 / 3600, operations=400)
    assert judged(Soak(lab, "s1"), "p95") == "inconclusive"
    assert "too few blocks" in Soak(lab, "s1").told()


def test_a_soak_in_which_nothing_was_answered_is_told_not_raised(lab: Lab, tmp_path: Path) -> None:
    leg(lab, 1, outage=(0.0, 1.0))
    soak = Soak(lab, "s1")
    assert math.isnan(soak.slopes["p95"].per_hour.value)
    assert soak.verdict(Targets.production()).status != "pass"
    over_hours(soak, Targets.production()).savefig(tmp_path / "x.png")
