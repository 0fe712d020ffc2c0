"""Claims about the hot loop, in virtual time: what is due is offered when it is due, nothing is left out, and it stops."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from eventcore_lab.clock import NS_PER_S, VirtualClock, sleep_s
from eventcore_lab.commands import CommandRejected, direct
from eventcore_lab.events import (
    EventRejected,
    OutcomeUnknown,
    StoreError,
    StoreUnreachable,
    StreamId,
    VersionConflict,
)
from eventcore_lab.load.drive import InSystem, Load, Stop, drive
from eventcore_lab.load.pacers import Thinks, pacers
from eventcore_lab.load.recorder import Recorder
from eventcore_lab.load.workloads import workloads
from eventcore_lab.schema import SAMPLE_WORDS, Outcome, Phase, current_attempt
from eventcore_lab.stores.memory import Memory

MS = 1_000_000
_OPERATION, _DUE, _OFFERED, _BEGAN, _ACQUIRED, _ENDED, _BACKOFF, _PACKED = range(len(SAMPLE_WORDS))

Perform = Callable[[Any], Awaitable[int]]


class Rows:
    """The samples of one drive, a column per fact."""

    def __init__(self, rows: NDArray[np.int64], stop: Stop, ended_ns: int) -> None:
        self.operation, self.due_ns, self.offered_ns, self.began_ns = (rows[:, n] for n in range(4))
        self.acquired_ns, self.ended_ns, self.backoff_ns = (rows[:, n] for n in range(4, 7))
        word = rows[:, _PACKED]
        self.outcome, self.phase, self.attempts, self.events = (
            word & 0xFF,
            word >> 8 & 0x7F,
            word >> 24 & 0xFF,
            word >> 32,
        )
        self.latency_ns = self.ended_ns - self.due_ns
        self.stop, self.drive_ended_ns = stop, ended_ns

    def __len__(self) -> int:
        return len(self.operation)

    def count(self, outcome: Outcome) -> int:
        return int((self.outcome == outcome).sum())

    def percentile_ns(self, p: float) -> int:
        """The order statistic ⌈pn⌉."""
        return int(np.sort(self.latency_ns)[int(np.ceil(p * len(self))) - 1])


class Rig:
    """Drives a load in virtual time. `perform` is what the store does with operation k, which is also what is prepared."""

    def __init__(self, folder: Path) -> None:
        self.clock = VirtualClock(start_ns=3 * NS_PER_S)
        self.start_ns = self.clock.now_ns() + NS_PER_S
        self.stop = Stop()
        self._file = folder / "samples"

    def drive(
        self,
        perform: Perform,
        *beside: Coroutine[Any, Any, None],
        due: list[int] | None = None,
        capacity: int = 0,
        total_s: float = 1.0,
        warmup_s: float = 0.0,
        **settings: Any,
    ) -> Rows:
        """What was recorded, also when drive raises: then the error is `self.error`."""
        due = [] if due is None else due
        self.error: BaseException | None = None
        recorder = Recorder(self._file, capacity or max(len(due), 10_000))
        with recorder:
            load = Load(
                clock=self.clock,
                recorder=recorder,
                prepare=settings.pop("prepare", lambda k: k),
                perform=perform,
                start_ns=self.start_ns,
                warmup_ns=int(warmup_s * NS_PER_S),
                total_ns=int(total_s * NS_PER_S),
                due=due,
                operations=settings.pop("operations", range(len(due))),
                **settings,
            )
            ended_ns = self.clock.run(self._driven(load, beside))
        rows = np.fromfile(self._file, np.int64).reshape(-1, len(SAMPLE_WORDS))
        return Rows(rows, self.stop, ended_ns - self.start_ns)

    async def _driven(self, load: Load, beside: tuple[Coroutine[Any, Any, None], ...]) -> int:
        tasks = [asyncio.ensure_future(coroutine) for coroutine in beside]
        try:
            await drive(load, self.stop)
        except Exception as error:
            self.error = error
        ended_ns = self.clock.now_ns()
        await asyncio.gather(*tasks)
        return ended_ns

    async def stop_at(self, at_ns: int) -> None:
        await self.clock.sleep_until(self.start_ns + at_ns)
        self.stop.set("stopped")

    def server(self, service_ns: Callable[[int], int], acquired: bool = False) -> Perform:
        """One first-in-first-out server. `service_ns` is told the operation."""
        queue = asyncio.Lock()

        async def perform(k: int) -> int:
            async with queue:
                attempt = current_attempt.get()
                if acquired and attempt is not None:
                    attempt.acquired_ns = self.clock.now_ns()
                await self.clock.sleep_until(self.clock.now_ns() + service_ns(k))
            return 1

        return perform

    def crowd(self, service_ns: int) -> Perform:
        """As many servers as it takes."""

        async def perform(_: int) -> int:
            await self.clock.sleep_until(self.clock.now_ns() + service_ns)
            return 1

        return perform


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


def every(ns: int, count: int, first: int = 0) -> list[int]:
    return [first + n * ns for n in range(count)]


def schedule(spec: str, duration_s: float, seed: int) -> list[int]:
    due: list[int] = pacers.make(spec).schedule(int(duration_s * NS_PER_S), np.random.default_rng(seed)).tolist()
    return due


# --- what theory says -----------------------------------------------------------------------------------------------


def test_a_steady_schedule_below_saturation_never_waits(rig: Rig) -> None:
    rows = rig.drive(rig.server(lambda _: 9 * MS, acquired=True), due=schedule("constant:rate=100", 10, 1), total_s=10)
    assert len(rows) == 1000
    assert (rows.offered_ns == rows.due_ns).all()
    assert (rows.began_ns == rows.due_ns).all()
    assert (rows.acquired_ns == rows.began_ns).all()
    assert (rows.latency_ns == 9 * MS).all()


def test_a_long_schedule_is_an_array_and_goes_as_the_list_would(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eventcore_lab.load.drive._ARRIVALS_AT_ONCE", 7)
    due = schedule("poisson:rate=200", 1, 3)
    rows = rig.drive(rig.crowd(MS), due=np.array(due, np.int64))  # type: ignore[arg-type]
    assert rows.due_ns.tolist() == rows.offered_ns.tolist() == due and rows.operation.tolist() == [*range(len(due))]


def test_a_long_schedule_that_is_stopped_drops_whom_the_list_would(tmp_path: Path) -> None:
    found = []
    for name, kind in (("list", list), ("array", np.array)):
        (tmp_path / name).mkdir()
        rig = Rig(tmp_path / name)
        due = kind(every(MS, 3_000))  # type: ignore[operator]
        rows = rig.drive(rig.crowd(25 * MS), rig.stop_at(2_505 * MS), due=due, in_flight_max=1, backlog_max=2)
        found.append((rows.operation.tolist(), rows.outcome.tolist(), rows.due_ns.tolist()))
    assert found[0] == found[1] and len(found[0][0]) == 2_506 and set(found[0][1]) == {Outcome.OK, Outcome.DROPPED}


def test_a_freeze_is_felt_by_everybody_who_was_due_during_it(rig: Rig) -> None:
    """Gil Tene's example: 100/s for 200 s, 1 ms each, but frozen for the second 100 s."""
    thaw_ns = rig.start_ns + 200 * NS_PER_S

    async def perform(_: int) -> int:
        now_ns = rig.clock.now_ns()
        is_frozen = now_ns >= rig.start_ns + 100 * NS_PER_S
        await rig.clock.sleep_until(max(thaw_ns, now_ns) if is_frozen else now_ns + MS)
        return 1

    rows = rig.drive(perform, due=every(10 * MS, 20_000), total_s=200)
    assert len(rows) == rows.count(Outcome.OK) == 20_000
    assert rows.latency_ns.mean() / NS_PER_S == pytest.approx(25.003, abs=0.001)
    assert rows.percentile_ns(0.50) == MS
    for p, seconds in ((0.75, 50), (0.90, 80), (0.99, 98), (0.9999, 99.98), (1, 100)):
        assert rows.percentile_ns(p) / NS_PER_S == pytest.approx(seconds, abs=0.0101), p  # one arrival is 10 ms


def test_a_closed_loop_does_not_feel_the_freeze_which_is_why_it_says_service_time(rig: Rig) -> None:
    """The tester that waits of the same example: 10,000 answers of 1 ms and one of 100 s."""

    async def perform(_: int) -> int:
        now_ns = rig.clock.now_ns()
        is_frozen = now_ns >= rig.start_ns + 100 * NS_PER_S
        await rig.clock.sleep_until(rig.start_ns + 200 * NS_PER_S if is_frozen else now_ns + MS)
        if not is_frozen:
            await rig.clock.sleep_until(now_ns + 10 * MS)  # it thinks as long as it takes to be 100/s
        return 1

    rows = rig.drive(perform, callers=1, total_s=200, capacity=20_000)
    assert len(rows) == 10_001
    assert rows.percentile_ns(1) == 100 * NS_PER_S
    assert rows.percentile_ns(0.9999) == 10 * MS
    assert (rows.due_ns == rows.began_ns).all()


def test_random_arrivals_at_a_random_server_wait_as_the_theory_of_queues_says(rig: Rig) -> None:
    """M/M/1 at ρ = .5, in units of the mean service time of 1 ms: the response is exponential with mean 2."""
    due = schedule("poisson:rate=500", 100, seed=11)
    service_ns = np.random.default_rng(12).exponential(MS, len(due)).astype(np.int64).tolist()
    rows = rig.drive(rig.server(lambda k: service_ns[k], acquired=True), due=due, in_flight_max=50, total_s=100)
    assert len(rows) == rows.count(Outcome.OK) == len(due) > 45_000
    for p, units in ((0.5, 1.3863), (0.95, 5.9915), (0.99, 9.2103)):
        assert rows.percentile_ns(p) / MS == pytest.approx(units, rel=0.05), p
    assert rows.percentile_ns(0.999) / MS == pytest.approx(13.8155, rel=0.15)
    assert rows.latency_ns.mean() / MS == pytest.approx(2, rel=0.05)
    waits = rows.acquired_ns - rows.due_ns
    assert (waits == 0).mean() == pytest.approx(0.5, abs=0.02)


def test_littles_law_holds_exactly_over_a_run_that_begins_and_ends_empty(rig: Rig) -> None:
    rows = rig.drive(rig.server(lambda _: 8 * MS), due=schedule("poisson:rate=100", 5, seed=3), total_s=5)
    instants = np.concatenate([rows.due_ns, rows.ended_ns])
    steps = np.concatenate([np.ones(len(rows)), -np.ones(len(rows))])
    order = np.argsort(instants, kind="stable")
    under_way = np.cumsum(steps[order])[:-1]
    assert (under_way * np.diff(instants[order])).sum() == rows.latency_ns.sum()


# --- the closed loop ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["drop", "queue"])
def test_the_loop_counts_as_many_operation_seconds_as_the_rows_have(rig: Rig, policy: str) -> None:
    in_system = InSystem()
    due = schedule("gamma:rate=200,cv=3", 5, seed=2)
    rows = rig.drive(
        rig.crowd(40 * MS),
        due=due,
        total_s=5,
        in_flight_max=8,
        backlog_max=3,
        backlog_policy=policy,
        in_system=in_system,
    )
    assert bool(rows.count(Outcome.DROPPED)) == (policy == "drop")
    assert in_system.count == 0
    assert in_system.area_ns == (rows.ended_ns - rows.began_ns).sum() > 0


def test_callers_who_think_go_round_as_the_response_time_law_says(rig: Rig) -> None:
    """Throughput = callers / (service + think time), as long as nobody waits for another."""
    rows = rig.drive(rig.crowd(10 * MS), total_s=10, callers=5, think_ns=lambda _: 90 * MS)
    assert len(rows) == 5 * 10 / 0.1
    assert set(rows.latency_ns) == {10 * MS}


def test_think_times_are_those_asked_and_the_same_for_a_seed() -> None:
    for think, spread in (("constant", 0.0), ("exponential", 1.0)):
        pacer = pacers.make(f"saturate:think_ms=20,think={think}")
        assert isinstance(pacer, Thinks)
        think_ns, again, other = (pacer.think_ns(seed) for seed in (1, 1, 2))
        assert think_ns is not None and again is not None and other is not None
        times = np.array([think_ns(k) for k in range(20_000)])
        assert times.mean() == pytest.approx(20 * MS, rel=0.03)
        assert times.std() / times.mean() == pytest.approx(spread, abs=0.03)
        assert [again(k) for k in range(100)] == times[:100].tolist()
        assert ([other(k) for k in range(100)] == times[:100].tolist()) == (think == "constant")
    assert pacers.make("saturate").think_ns(1) is None  # type: ignore[attr-defined]


def test_a_stop_is_heard_by_callers_who_think(rig: Rig) -> None:
    rows = rig.drive(rig.crowd(MS), rig.stop_at(100 * MS), total_s=600, callers=3, think_ns=lambda _: 300 * NS_PER_S)
    assert len(rows) == 3
    assert rows.drive_ended_ns < NS_PER_S


def test_an_operation_that_takes_too_long_is_given_up_and_what_became_of_it_is_unknown(rig: Rig) -> None:
    async def perform(k: int) -> int:
        await rig.clock.sleep_until(rig.clock.now_ns() + (500 if k == 3 else 5) * MS)
        return 1

    rows = rig.drive(perform, due=every(20 * MS, 10), timeout_ns=100 * MS)
    assert rows.count(Outcome.OK) == 9 and rows.outcome[rows.operation == 3] == Outcome.UNKNOWN
    assert 100 * MS <= rows.latency_ns[rows.operation == 3] < 110 * MS
    assert list(rig.stop.failures.values()) == [1]
    assert "no answer to an operation within 0.1 s" in next(iter(rig.stop.failures))


def test_a_timeout_of_the_operation_s_own_making_is_a_bug_and_raised(rig: Rig) -> None:
    async def perform(_: int) -> int:
        raise TimeoutError("mine")

    rig.drive(perform, due=[0], timeout_ns=100 * MS)
    assert isinstance(rig.error, TimeoutError)


@pytest.mark.parametrize("callers", [1, 3, 20])
def test_never_more_than_the_callers_are_under_way_and_never_fewer(rig: Rig, callers: int) -> None:
    under_way, seen = 0, set()

    async def perform(k: int) -> int:
        nonlocal under_way
        under_way += 1
        seen.add(under_way)
        await rig.clock.sleep_until(rig.clock.now_ns() + (1 + k % 7) * MS)
        under_way -= 1
        return 1

    rows = rig.drive(perform, callers=callers, total_s=1)
    assert max(seen) == callers
    assert rows.count(Outcome.OK) == len(rows)
    assert rows.began_ns.min() == 0
    assert rows.began_ns.max() < NS_PER_S, "nothing begins after the end"
    busy_ns = (rows.ended_ns - rows.began_ns).sum()
    assert busy_ns >= 0.99 * callers * NS_PER_S


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_callers_of_all_workers_perform_different_operations_and_leave_none_out(tmp_path: Path, workers: int) -> None:
    operations: list[int] = []
    for worker in range(workers):
        (tmp_path / str(worker)).mkdir()
        rig = Rig(tmp_path / str(worker))
        rows = rig.drive(rig.crowd(10 * MS), callers=2, first=worker, step=workers, total_s=0.5)
        operations += rows.operation.tolist()
    assert sorted(operations) == list(range(workers * 2 * 50))


# --- the open loop --------------------------------------------------------------------------------------------------


def test_everything_due_while_the_loop_was_away_is_offered_at_once(rig: Rig) -> None:
    due = [0, 1 * MS, 1 * MS, 1 * MS, 2 * MS]
    rows = rig.drive(rig.crowd(5 * MS), due=due)
    assert rows.due_ns.tolist() == rows.offered_ns.tolist() == rows.began_ns.tolist() == due


def test_arrivals_do_not_wait_for_a_store_that_stands_still(rig: Rig) -> None:
    rows = rig.drive(rig.crowd(10 * NS_PER_S), due=every(MS, 100), in_flight_max=100)
    assert (rows.began_ns == rows.due_ns).all()


def test_at_most_in_flight_max_are_under_way_and_the_others_wait_in_order(rig: Rig) -> None:
    rows = rig.drive(rig.crowd(10 * MS), due=every(MS, 30), in_flight_max=3)
    assert rows.operation.tolist() == list(range(30))
    assert (rows.offered_ns == rows.due_ns).all()
    assert rows.began_ns.tolist() == [max(10 * MS * (k // 3) + MS * (k % 3), k * MS) for k in range(30)]


def test_an_operation_keeps_its_number_and_what_was_prepared_for_it(rig: Rig) -> None:
    performed: list[str] = []

    async def perform(prepared: str) -> int:
        performed.append(prepared)
        return 2

    rows = rig.drive(perform, due=every(MS, 3), operations=[5, 8, 11], prepare=lambda k: f"op {k}")
    assert rows.operation.tolist() == [5, 8, 11]
    assert performed == ["op 5", "op 8", "op 11"]
    assert rows.events.tolist() == [2, 2, 2]
    assert rows.attempts.tolist() == [1, 1, 1]


def test_an_empty_schedule_ends_at_once(rig: Rig) -> None:
    assert len(rig.drive(rig.crowd(MS), due=[])) == 0
    assert rig.error is None


def test_operations_due_in_the_warm_up_are_marked_also_when_dropped(rig: Rig) -> None:
    rows = rig.drive(
        rig.crowd(95 * MS), due=every(10 * MS, 40), in_flight_max=1, backlog_max=0, warmup_s=0.2, total_s=0.4
    )
    assert rows.count(Outcome.DROPPED) > 0
    assert (rows.phase == np.where(rows.due_ns < 200 * MS, Phase.WARMUP, Phase.STEADY)).all()


def test_operations_of_callers_begun_in_the_warm_up_are_marked(rig: Rig) -> None:
    rows = rig.drive(rig.crowd(30 * MS), callers=1, warmup_s=0.1, total_s=0.2)
    assert rows.phase.tolist() == [Phase.WARMUP] * 4 + [Phase.STEADY] * 3


# --- backlogs -------------------------------------------------------------------------------------------------------


def test_a_bounded_backlog_drops_and_counts_what_does_not_fit(rig: Rig) -> None:
    """One under way for 100 ms, 5 wait; of 100 arrivals in 100 ms 6 are started and 94 dropped when they arrive."""
    rows = rig.drive(rig.crowd(100 * MS), due=every(MS, 100), in_flight_max=1, backlog_max=5)
    assert (rows.count(Outcome.OK), rows.count(Outcome.DROPPED), len(rows)) == (6, 94, 100)
    dropped = rows.outcome == Outcome.DROPPED
    assert (rows.ended_ns[dropped] == rows.due_ns[dropped]).all()
    assert (rows.events[dropped] == 0).all()
    assert rig.stop.reason == ""


@pytest.mark.parametrize("backlog_max", [0, 1, 5])
def test_a_backlog_that_queues_performs_everything_in_order(rig: Rig, backlog_max: int) -> None:
    rows = rig.drive(
        rig.crowd(10 * MS), due=every(MS, 50), in_flight_max=2, backlog_max=backlog_max, backlog_policy="queue"
    )
    assert rows.count(Outcome.OK) == 50
    assert rows.operation.tolist() == list(range(50))
    assert rows.latency_ns.max() >= 200 * MS
    # The store kept them at the door; the generator was not late.
    assert (rows.offered_ns == rows.due_ns).all()


@pytest.mark.parametrize("backlog_max", [0, 1, 5])
def test_a_backlog_that_queues_leaves_nobody_waiting_when_the_store_answers_at_once(rig: Rig, backlog_max: int) -> None:
    async def perform(_: int) -> int:
        return 1

    rows = rig.drive(perform, due=[MS] * 100, in_flight_max=3, backlog_max=backlog_max, backlog_policy="queue")
    assert sorted(rows.operation.tolist()) == list(range(100))
    assert rows.count(Outcome.OK) == 100


def test_a_full_backlog_that_aborts_ends_the_run_and_says_so(rig: Rig) -> None:
    """2 under way, 3 wait, the next is one too many: those that cannot be started are dropped, what is due later never
    was offered."""
    rows = rig.drive(rig.crowd(100 * MS), due=every(MS, 100), in_flight_max=2, backlog_max=3, backlog_policy="abort")
    assert rig.error is None
    assert rig.stop.reason.startswith("more than 3 arrivals wait")
    assert (rows.count(Outcome.OK), rows.count(Outcome.DROPPED), len(rows)) == (2, 4, 6)
    assert sorted(rows.operation.tolist()) == list(range(6))


@pytest.mark.parametrize("policy", ["drop", "queue"])
def test_every_arrival_has_one_row_whatever_becomes_of_it(rig: Rig, policy: str) -> None:
    errors = [None, VersionConflict(StreamId("a"), 0, 1), EventRejected("no"), OutcomeUnknown("?")]

    async def perform(k: int) -> int:
        await rig.clock.sleep_until(rig.clock.now_ns() + (1 + k % 5) * 4 * MS)
        if error := errors[k % 4]:
            raise error
        return 1

    due = schedule("poisson:rate=1000", 1, seed=5)
    rows = rig.drive(perform, due=due, in_flight_max=4, backlog_max=10, backlog_policy=policy)
    assert sorted(rows.operation.tolist()) == list(range(len(due)))
    assert rows.due_ns[np.argsort(rows.operation)].tolist() == due
    kinds = (Outcome.OK, Outcome.CONFLICT, Outcome.FAILED, Outcome.UNKNOWN, Outcome.DROPPED)
    assert sum(rows.count(kind) for kind in kinds) == len(due)
    assert (rows.count(Outcome.DROPPED) > 0) == (policy == "drop")


# --- stopping -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["drop", "queue"])
def test_a_stop_finishes_what_is_under_way_and_drops_who_waits(rig: Rig, policy: str) -> None:
    """At 35 ms: 2 under way since 0 and 1 ms, 3 … 34 ms waiting or, when the bound is reached, held at the door."""
    rows = rig.drive(
        rig.crowd(50 * MS),
        rig.stop_at(35 * MS + 1),
        due=every(MS, 1000),
        in_flight_max=2,
        backlog_max=100 if policy == "drop" else 10,
        backlog_policy=policy,
    )
    assert rows.count(Outcome.OK) == 2
    assert rows.count(Outcome.RUNNING) == 0
    assert rows.ended_ns[rows.outcome == Outcome.OK].tolist() == [50 * MS, 51 * MS]
    assert sorted(rows.operation.tolist())[:36] == list(range(36)), "who was due before the stop has a row"
    assert rows.drive_ended_ns <= 51 * MS


def test_a_stop_after_the_last_arrival_starts_nobody_who_still_waits(rig: Rig) -> None:
    rows = rig.drive(rig.crowd(50 * MS), rig.stop_at(60 * MS), due=every(MS, 20), in_flight_max=2, backlog_max=100)
    assert rows.began_ns[rows.outcome == Outcome.OK].max() < 60 * MS
    assert (rows.count(Outcome.OK), rows.count(Outcome.DROPPED)) == (4, 16)
    assert rows.drive_ended_ns <= 101 * MS


def test_a_stop_is_heard_although_the_next_arrival_is_far_away(rig: Rig) -> None:
    rows = rig.drive(rig.crowd(MS), rig.stop_at(10 * MS), due=[0, 3600 * NS_PER_S], total_s=3600)
    assert len(rows) == 1
    assert rows.drive_ended_ns <= 260 * MS


def test_callers_stop_when_they_are_answered(rig: Rig) -> None:
    rows = rig.drive(rig.crowd(30 * MS), rig.stop_at(100 * MS), callers=4, total_s=3600)
    assert rows.count(Outcome.OK) == len(rows) == 16
    assert rows.drive_ended_ns <= 121 * MS
    assert rig.stop.reason == "stopped"


def test_the_first_reason_to_stop_is_the_one_that_is_told() -> None:
    stop = Stop()
    stop.set("first")
    stop.set("second")
    assert stop.is_set
    assert stop.reason == "first"


@pytest.mark.parametrize("policy", ["drop", "queue"])
def test_a_full_recorder_ends_an_open_loop_and_says_so(rig: Rig, policy: str) -> None:
    rows = rig.drive(
        rig.crowd(20 * MS),
        due=every(MS, 1000),
        in_flight_max=3,
        backlog_max=2,
        backlog_policy=policy,
        capacity=30,
    )
    assert rig.error is None
    assert "recorder is full" in rig.stop.reason
    assert len(rows) == 30
    assert rows.count(Outcome.RUNNING) == 0
    assert rows.drive_ended_ns < NS_PER_S


def test_a_full_recorder_ends_an_open_loop_that_has_idle_consumers(rig: Rig) -> None:
    rows = rig.drive(rig.crowd(MS), due=every(10 * MS, 100), in_flight_max=50, capacity=7)
    assert rig.error is None
    assert "recorder is full" in rig.stop.reason
    assert rows.count(Outcome.OK) == 7


def test_a_full_recorder_ends_a_closed_loop_and_says_so(rig: Rig) -> None:
    rows = rig.drive(rig.crowd(10 * MS), callers=4, capacity=10)
    assert rig.error is None
    assert "recorder is full" in rig.stop.reason
    assert rows.count(Outcome.OK) == len(rows) == 10


# --- how operations come out ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "outcome", "is_counted"),
    [
        (VersionConflict(StreamId("a"), 1, 2), Outcome.CONFLICT, False),
        (EventRejected("not JSON"), Outcome.FAILED, True),
        (StoreUnreachable("gone"), Outcome.FAILED, True),
        (StoreError("other"), Outcome.FAILED, True),
        (OutcomeUnknown("timed out"), Outcome.UNKNOWN, True),
        (CommandRejected("a rule"), Outcome.FAILED, True),
    ],
)
@pytest.mark.parametrize("is_closed", [True, False])
def test_what_an_operation_raises_is_its_outcome(
    rig: Rig, error: Exception, outcome: Outcome, is_counted: bool, is_closed: bool
) -> None:
    async def perform(k: int) -> int:
        await rig.clock.sleep_until(rig.clock.now_ns() + 10 * MS)
        if k % 2:
            raise error
        return 3

    kind: dict[str, Any] = {"callers": 2} if is_closed else {"due": every(10 * MS, 20)}
    rows = rig.drive(perform, total_s=0.1, **kind)
    assert len(rows) == 20
    assert (rows.outcome == np.where(rows.operation % 2, outcome, Outcome.OK)).all()
    assert (rows.events == np.where(rows.operation % 2, 0, 3)).all()
    assert (rows.latency_ns == 10 * MS).all()
    assert rig.stop.failures == ({f"{type(error).__name__}, the first: {error}": 10} if is_counted else {})


def test_failures_are_counted_by_their_class_and_none_is_left_out(rig: Rig) -> None:
    async def perform(k: int) -> int:
        raise (CommandRejected if k % 4 else EventRejected)(f"user known-{k} " + "x" * 1000)

    rows = rig.drive(perform, due=every(MS, 100))
    assert rows.count(Outcome.FAILED) == 100
    assert {text.partition(" xx")[0]: n for text, n in rig.stop.failures.items()} == {
        "EventRejected, the first: user known-0": 25,
        "CommandRejected, the first: user known-1": 75,
    }
    assert max(map(len, rig.stop.failures)) <= 300


@pytest.mark.parametrize("is_closed", [True, False])
def test_a_bug_in_an_operation_is_raised_and_the_others_are_finished(rig: Rig, is_closed: bool) -> None:
    async def perform(k: int) -> int:
        await rig.clock.sleep_until(rig.clock.now_ns() + 10 * MS)
        if k == 5:
            raise ValueError("a bug")
        return 1

    kind: dict[str, Any] = {"callers": 4} if is_closed else {"due": every(MS, 500)}
    rows = rig.drive(perform, **kind)
    assert isinstance(rig.error, ValueError)
    assert rig.stop.reason == "ValueError: a bug"
    assert rows.operation[rows.outcome == Outcome.RUNNING].tolist() == [5]
    assert rows.count(Outcome.OK) + rows.count(Outcome.DROPPED) == len(rows) - 1 > 3
    assert rows.count(Outcome.DROPPED) == (0 if is_closed else 1), "one is due at the very instant"
    assert rows.drive_ended_ns <= 30 * MS


def test_a_bug_in_what_prepares_an_operation_is_raised(rig: Rig) -> None:
    def prepare(k: int) -> int:
        return 1 // (k - 3)

    rows = rig.drive(rig.crowd(MS), due=every(MS, 10), prepare=prepare)
    assert isinstance(rig.error, ZeroDivisionError)
    assert rows.count(Outcome.RUNNING) == 0


# --- facts that only the inside knows -------------------------------------------------------------------------------


def test_the_time_a_connection_was_had_is_recorded(rig: Rig) -> None:
    """5 arrive at once at one connection: the fifth holds it after 4 services."""
    rows = rig.drive(rig.server(lambda _: 10 * MS, acquired=True), due=[0] * 5)
    assert rows.began_ns.tolist() == [0] * 5
    assert rows.acquired_ns.tolist() == [k * 10 * MS for k in range(5)]


def test_what_needs_no_connection_has_one_when_it_begins(rig: Rig) -> None:
    rows = rig.drive(rig.crowd(MS), due=every(10 * MS, 5))
    assert (rows.acquired_ns == rows.began_ns).all()


def test_retries_and_their_waits_belong_to_the_operation_that_made_them(rig: Rig) -> None:
    async def perform(k: int) -> int:
        attempt = current_attempt.get()
        assert attempt is not None
        assert attempt.operation == k
        await rig.clock.sleep_until(rig.clock.now_ns() + MS)
        assert attempt.operation == k, "nobody else may have taken it meanwhile"
        if k % 3 == 0:
            attempt.attempts, attempt.backoff_ns = 4, 70
        return 1

    rows = rig.drive(perform, due=every(MS // 4, 100), in_flight_max=5)
    assert rig.error is None
    assert (rows.attempts == np.where(rows.operation % 3, 1, 4)).all()
    assert (rows.backoff_ns == np.where(rows.operation % 3, 0, 70)).all()


# --- a store that never waits ---------------------------------------------------------------------------------------


def working(rig: Rig, ns: int) -> Perform:
    """Works for `ns` without ever giving the loop away, as a store in memory does."""

    async def perform(_: int) -> int:
        rig.clock.jump(ns / NS_PER_S)
        return 1

    return perform


def test_a_store_that_never_waits_lets_every_caller_have_its_turn(rig: Rig) -> None:
    rows = rig.drive(working(rig, 100_000), callers=4, total_s=0.1)
    shares = np.bincount(rows.operation % 4, minlength=4)
    assert shares.min() > 0.15 * len(rows)


@pytest.mark.parametrize("callers", [1, 4, 100])
def test_a_store_that_never_waits_does_not_hold_up_the_stop_of_callers(rig: Rig, callers: int) -> None:
    rows = rig.drive(working(rig, 100_000), rig.stop_at(50 * MS), callers=callers, total_s=60, capacity=1_000_000)
    assert rows.drive_ended_ns <= 75 * MS


def test_a_dispatcher_that_cannot_keep_up_lets_operations_begin_and_the_stop_be_heard(rig: Rig) -> None:
    """1,000 arrivals a millisecond, when each look at the clock takes 10 µs: it is behind from the first on."""

    class Slow(VirtualClock):
        def now_ns(self) -> int:
            self.jump(10e-6)
            return super().now_ns()

    rig.clock = Slow(start_ns=3 * NS_PER_S)
    rows = rig.drive(rig.crowd(MS), rig.stop_at(50 * MS), due=every(1000, 20_000))
    assert rows.began_ns.min() <= 10 * MS
    assert rows.drive_ended_ns <= 75 * MS


def test_a_store_that_never_waits_does_not_hold_up_the_stop_of_a_backlog(rig: Rig) -> None:
    """1,000 arrive at once, a second's work; the stop comes after a tenth of it."""
    rows = rig.drive(working(rig, MS), rig.stop_at(100 * MS), due=[0] * 1000, in_flight_max=4)
    assert rows.drive_ended_ns <= 120 * MS
    assert rows.count(Outcome.OK) + rows.count(Outcome.DROPPED) == 1000
    assert rows.count(Outcome.OK) <= 120


def test_a_backlog_at_a_store_that_never_waits_does_not_hold_up_arrivals(rig: Rig) -> None:
    due = [0] * 100 + [20 * MS]
    rows = rig.drive(working(rig, MS), due=due, in_flight_max=4)
    assert rows.offered_ns[rows.operation == 100][0] <= 30 * MS


def test_commands_on_the_memory_store_are_driven_to_their_end(rig: Rig) -> None:
    store, workload = Memory(), workloads.make("create_user", seed=1)
    due = schedule("poisson:rate=1000", 1, seed=1)
    rows = rig.drive(workload.start(store, direct(store)), due=due, prepare=workload.prepare)
    assert rows.count(Outcome.OK) == len(due)

    async def stored() -> int:
        await sleep_s(0)
        return len(await store.read_all(0, 10_000))

    assert rig.clock.run(stored()) == len(due)


def test_a_dispatcher_that_waits_for_space_hears_that_every_consumer_broke(rig: Rig) -> None:
    async def breaks(k: int) -> int:
        await rig.clock.sleep_until(rig.clock.now_ns() + 50 * MS)
        raise ZeroDivisionError(k)

    rows = rig.drive(breaks, due=every(MS, 100), in_flight_max=2, backlog_max=3, backlog_policy="queue")
    assert isinstance(rig.error, ZeroDivisionError)
    assert rows.count(Outcome.OK) == 0
