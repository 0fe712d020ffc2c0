"""Memory and processor time, looked at from beside, against a machine that is made up."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from eventcore_lab.clock import VirtualClock, sleep_s
from eventcore_lab.companions import probes
from eventcore_lab.companions.series import Series
from eventcore_lab.schema import GAUGES_FILE, MARKS_FILE


def rows(folder: Path, file: str) -> list[dict[str, Any]]:
    return [msgspec.json.decode(line) for line in (folder / file).read_bytes().splitlines()]


def test_gauges_and_marks_are_lines_with_times_since_the_start(tmp_path: Path) -> None:
    series = Series(tmp_path)
    series.start_ns = 1000
    series.gauge("loader", "pss_bytes", 7, 1500)
    series.mark("fault begins", "it was\nkilled", 900)
    series.close()
    assert rows(tmp_path, GAUGES_FILE) == [{"t_ns": 500, "source": "loader", "name": "pss_bytes", "value": 7.0}]
    assert rows(tmp_path, MARKS_FILE) == [{"t_ns": -100, "name": "fault begins", "detail": "it was\nkilled"}]


def test_a_process_is_seen_from_first_to_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = VirtualClock()
    monkeypatch.setattr(probes, "now_ns", clock.now_ns)
    series = Series(tmp_path)
    series.start_ns = 0

    async def load() -> None:
        async with probes.resources(series, {"loader": lambda: [os.getpid(), 2**22 + 1]}, interval_s=0.25):
            await sleep_s(2)

    clock.run(load())
    series.close()
    found = rows(tmp_path, GAUGES_FILE)
    memory = [r for r in found if r["name"] == "pss_bytes"]
    # In virtual time looking costs nothing, so the memory is looked at as often as asked.
    assert len(memory) >= 8 and memory[0]["t_ns"] == 0 and memory[-1]["t_ns"] >= 2_000_000_000
    whole = psutil.Process().memory_full_info()
    assert 0.5 * whole.pss < memory[-1]["value"] <= 1.5 * whole.rss
    assert len([r for r in found if r["name"] == "cpu_percent"]) >= 8
    assert {r["value"] for r in found if r["name"] == "processes"} == {1.0}


def test_a_dear_look_is_taken_less_often(tmp_path: Path) -> None:
    probe = probes._Probe(Series(tmp_path), {})
    for cost_ns, pause_ns in ((0, 250_000_000), (10_000_000, 1_000_000_000), (10**9, 5_000_000_000)):
        probe._memory_cost_ns = cost_ns
        assert probe.pause_ns(0.25) == pause_ns
    probe._series.close()


def test_processor_time_before_the_first_look_is_not_counted(tmp_path: Path) -> None:
    series = Series(tmp_path)
    probe = probes._Probe(series, {"me": lambda: [os.getpid()]})
    probe.sample_memory()
    assert probe._newly_spent_s(os.getpid(), psutil.Process()) == 0
    series.close()


def test_the_memory_of_what_is_away_is_not_known_and_not_none(tmp_path: Path) -> None:
    series = Series(tmp_path)
    series.start_ns = 0
    pids = [os.getpid()]
    probe = probes._Probe(series, {"server": lambda: pids})
    probe.sample_memory()
    pids.clear()
    probe.sample_memory()
    series.close()
    found = [(r["name"], r["value"]) for r in rows(tmp_path, GAUGES_FILE) if r["source"] == "server"]
    assert [value for name, value in found if name == "processes"] == [1.0, 0.0]
    assert [name for name, _ in found if name in ("pss_bytes", "rss_bytes")] == ["pss_bytes", "rss_bytes"]
