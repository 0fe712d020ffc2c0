"""What may not be the store's fault is told, with its rule, and settles nothing; what was met in spite of it is met."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from eventcore_lab import clock as clock_room
from eventcore_lab.clock import NS_PER_S, Clocks, VirtualClock
from eventcore_lab.lab.database import Lab
from eventcore_lab.lab.disturbances import cautions, generator_limits, lateness_ms, loader_cpu
from eventcore_lab.lab.measures import Run
from eventcore_lab.lab.targets import Targets, judge
from eventcore_lab.schema import CLOCK_MARKS, LOADER_STOOD_STILL, STOOD_STILL, SUSPENDED, WALL_CLOCK_SET, packed

MS = 1_000_000
_numbers = itertools.count()


def spooled(
    lab: Lab,
    late_ms: float = 0.0,
    served_ms: float = 1.0,
    is_closed: bool = False,
    gauges: list[tuple[str, str, float]] = [],  # noqa: B006
    marks: list[tuple[str, str]] = [],  # noqa: B006
    samples: int = 1000,
) -> Run:
    """A run of a second in which every arrival was sent `late_ms` late and then served."""
    folder = lab.spool / f"run-{next(_numbers)}"
    folder.mkdir(parents=True)
    row = {
        "run_id": folder.name,
        "started_at": "2026-01-01T00:00:00+00:00",
        "status": "complete",
        "store": "memory",
        "pacer": "constant:rate=1000",
        "is_closed_loop": is_closed,
        "measured_ns": NS_PER_S,
        "warmup_s": 0.0,
        "schema_version": 4,
    }
    (folder / "run.json").write_bytes(msgspec.json.encode(row))
    due = np.arange(samples) * NS_PER_S // samples
    began = due + int(late_ms * MS)
    zero = np.zeros_like(due)
    word = np.full_like(due, packed(1, 1, 1, 1))
    columns = [np.arange(samples), due, began, began, zero, began + int(served_ms * MS), zero, word]
    np.stack(columns, axis=1).astype(np.int64).tofile(folder / "samples-0.i64")
    lines = [{"t_ns": t, "source": s, "name": n, "value": v} for s, n, v in gauges for t in (0, NS_PER_S // 2)]
    (folder / "gauges.ndjson").write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in lines))
    said = [{"t_ns": 5, "name": name, "detail": detail} for name, detail in marks]
    (folder / "marks.ndjson").write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in said))
    lab.ingest(folder)
    return Run(lab, folder.name)


def status(run: Run, *targets: str) -> list[tuple[str, str]]:
    return [(j.status, j.reason) for j in judge(Targets.of(*targets), run).targets]


# lateness


def test_lateness_is_of_open_loops_and_in_ms(lab: Lab) -> None:
    assert lateness_ms(spooled(lab, late_ms=3)) == 3
    assert lateness_ms(spooled(lab, late_ms=3, is_closed=True)) == 0


def test_what_was_met_although_the_generator_was_late_is_met(lab: Lab) -> None:
    run = spooled(lab, late_ms=5, served_ms=1)
    assert generator_limits(run)
    assert status(run, "p99 < 100ms")[0][0] == "pass"


def test_what_lateness_can_account_for_is_not_missed(lab: Lab) -> None:
    [(found, reason)] = status(spooled(lab, late_ms=5, served_ms=7), "p99 < 10ms")
    assert (found, "p99 5.0 ms; rule: above 10 % of the limit" in reason) == ("inconclusive", True)


def test_what_lateness_cannot_account_for_is_missed(lab: Lab) -> None:
    """Met neither from when the operations were due nor from when they were sent."""
    assert status(spooled(lab, late_ms=5, served_ms=70), "p99 < 10ms")[0][0] == "fail"


def test_a_schedule_that_was_not_kept_shows_nothing(lab: Lab) -> None:
    """The median is within its limit, but one arrival in a hundred came later than that: other traffic was offered."""
    run = spooled(lab, late_ms=0, served_ms=1)
    late = spooled(lab, late_ms=20, served_ms=-19.5)  # measured to be fast, by whatever mistake
    assert status(run, "p50 < 10ms")[0][0] == "pass"
    [(found, reason)] = status(late, "p50 < 10ms")
    assert (found, "not sent as scheduled" in reason) == ("inconclusive", True)


# processor time


@pytest.mark.parametrize(
    ("gauges", "percent"),
    [
        ([], 0.0),
        ([("loader", "cpu_percent", 50.0)], 50.0),
        (
            [("loader", "cpu_percent", 150.0), ("worker 0", "cpu_percent", 55.0), ("worker 1", "cpu_percent", 95.0)],
            95.0,
        ),
    ],
)
def test_the_busiest_load_process_counts(lab: Lab, gauges: list[tuple[str, str, float]], percent: float) -> None:
    run = spooled(lab, gauges=gauges)
    assert loader_cpu(run) == percent
    assert bool(generator_limits(run)) == (percent > 90)


def test_a_generator_without_processor_time_excuses_what_is_missed_and_says_its_rule(lab: Lab) -> None:
    run = spooled(lab, served_ms=20, gauges=[("loader", "cpu_percent", 99.0)])
    missed, met = status(run, "p99 < 10ms", "p99 < 50ms")
    assert missed[0] == "inconclusive" and "99 % of a core (rule: above 90 %)" in missed[1]
    assert met[0] == "pass"


def test_a_load_process_that_stood_still_excuses_what_is_missed(lab: Lab) -> None:
    run = spooled(lab, served_ms=20, is_closed=True, marks=[(LOADER_STOOD_STILL, "for 2.000 s (worker 1)")])
    missed, met = status(run, "p99 < 10ms", "p99 < 50ms")
    assert missed == ("inconclusive", "a load process stood still for 2.000 s (worker 1)")
    assert met[0] == "pass" and "stood still" in cautions(run)[0]


# clocks


def looks(*steps: tuple[float, float, float]) -> list[tuple[str, str]]:
    """What is told when the monotonic, the wall and the boot clock go on by so many seconds, look by look."""
    at = [0, 1_700_000_000 * NS_PER_S, 0]
    clocks, found = Clocks(*at), []
    for step in steps:
        at = [now + int(by * NS_PER_S) for now, by in zip(at, step, strict=True)]
        found += [CLOCK_MARKS[name](seconds) for name, seconds in clocks.look(*at)]
    return found


@pytest.mark.parametrize(
    ("steps", "told"),
    [
        ([(0.25, 0.25, 0.25)] * 50, []),
        ([(0.25, 0.250125, 0.25)] * 50, []),  # corrected at 500 ppm
        ([(0.25, 3600.25, 0.25)], [(WALL_CLOCK_SET, "by +3600.000 s")]),
        ([(0.25, -1.75, 0.25), (0.25, 0.25, 0.25)], [(WALL_CLOCK_SET, "by -2.000 s")]),
        ([(0.25, 60.25, 60.25)], [(SUSPENDED, "for 60.000 s")]),  # the wall goes on meanwhile, and is not set
        ([(3.25, 3.25, 3.25)], [(STOOD_STILL, "for 3.000 s")]),
        ([(1.2, 1.2, 1.2)], []),  # a busy machine
    ],
)
def test_clocks_that_jump_are_told_apart(steps: list[tuple[float, float, float]], told: list[tuple[str, str]]) -> None:
    assert looks(*steps) == told


def test_a_machine_that_slept_settles_nothing(lab: Lab) -> None:
    run = spooled(lab, marks=[(SUSPENDED, "for 60.000 s")])
    for found, reason in status(run, "p99 < 100ms", "p99 < 0.1ms", "commands_per_second > 10"):
        assert (found, reason) == ("inconclusive", "the machine was suspended for 60.000 s")


def test_everything_that_disturbed_a_run_is_told(lab: Lab) -> None:
    run = spooled(
        lab,
        gauges=[("machine", "steal_percent", 12.0)],
        marks=[(WALL_CLOCK_SET, "by -2.000 s"), (STOOD_STILL, "for 3.000 s"), ("load begins", "")],
    )
    assert [line.partition(" (rule")[0] for line in cautions(run)] == [
        "the wall clock was set by -2.000 s",
        "the measuring process stood still for 3.000 s",
        "another guest of this machine took 12 % of it",
    ]
    assert cautions(spooled(lab)) == []


def test_clocks_are_looked_at_while_the_load_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from eventcore_lab.clock import sleep_s
    from eventcore_lab.companions import clocks as room
    from eventcore_lab.companions.series import Series

    clock, ahead = VirtualClock(), [0]
    said = lambda: (clock.now_ns(), clock.now_ns() + ahead[0], clock.now_ns())  # noqa: E731
    monkeypatch.setattr(clock_room, "three_clocks_ns", said)
    series = Series(tmp_path)

    async def work() -> None:
        async with room.clocks(series):
            await sleep_s(1)
            ahead[0] = NS_PER_S
            await sleep_s(1)

    clock.run(work())
    series.close()
    lines: list[dict[str, Any]] = [
        msgspec.json.decode(s) for s in (tmp_path / "marks.ndjson").read_bytes().splitlines()
    ]
    assert [(line["name"], line["detail"]) for line in lines] == [(WALL_CLOCK_SET, "by +1.000 s")]
