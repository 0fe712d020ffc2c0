"""The freeze for real: a PostgreSQL server stands still for a while under load. On schedule, everybody who was due meanwhile is
counted with the whole wait; callers that wait for their answer hide it.

The server is private to this file: nobody else's test stands still with it. All claims are about marks and samples of one and
the same run; none is about how long anything takes on this machine.
"""

from __future__ import annotations

import queue
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import psutil
import pytest
from msgspec import Struct
from numpy.typing import NDArray

from eventcore_lab import Experiment, Lab, run
from eventcore_lab.clock import NS_PER_S, now_ns, pause_s
from eventcore_lab.lab.measures import Run
from eventcore_lab.lab.stats import percentile
from eventcore_lab.load.workers import Worker
from eventcore_lab.progress import Quiet
from eventcore_lab.schema import Outcome
from eventcore_lab.stores.directories import on_disk
from eventcore_lab.stores.embedded import EmbeddedServer

RATE, CALLERS = 200, 4
BEGINS_S, LASTS_S, DURATION_S = 0.4, 0.7, 1.8
IN_FLIGHT_MAX = 50
"""Fewer than come meanwhile: the others wait for their turn before they begin, and that must count, too."""
WAIT_MAX_S = 60


class Frozen(Struct, frozen=True):
    """A run during which the server stood still, at the latest from `stopped_ns` and at least until `thawed_ns`, relative to
    the run's start."""

    run: Run
    stopped_ns: int
    thawed_ns: int

    def column(self, name: str) -> NDArray[np.int64]:
        return self.run.samples[name].to_numpy().astype(np.int64)

    @property
    def latency_ns(self) -> NDArray[np.int64]:
        return self.column("ended_ns") - self.column("due_ns")

    @property
    def was_due_meanwhile(self) -> NDArray[np.bool_]:
        due_ns = self.column("due_ns")
        return (due_ns >= self.stopped_ns) & (due_ns < self.thawed_ns)

    @property
    def least_ns(self) -> NDArray[np.int64]:
        """What each must have taken at least: from when it was due to the thaw."""
        return np.where(self.was_due_meanwhile, self.thawed_ns - self.column("due_ns"), 0)


@contextmanager
def standing_still(server: EmbeddedServer) -> Iterator[None]:
    """All processes of the server, its main one first, so that it starts no other."""
    members = [psutil.Process(server.postmaster_pid)]
    try:
        _stopped(members[0])
        members += members[0].children(recursive=True)
        for member in members[1:]:
            _stopped(member)
        yield
    finally:
        for member in members:
            with suppress(psutil.NoSuchProcess):
                member.resume()


def _stopped(process: psutil.Process) -> None:
    """Returns when it does not run any more: a signal that was sent has not yet been heard."""
    until_ns = now_ns() + WAIT_MAX_S * NS_PER_S
    with suppress(psutil.NoSuchProcess):
        process.suspend()
        while process.status() not in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE):
            assert now_ns() < until_ns
            pause_s(0.001)


def frozen_run(server: EmbeddedServer, lab: Lab, pacer: str) -> Frozen:
    """A run with the freeze in its midst."""
    starts: queue.Queue[int] = queue.Queue()
    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(1) as pool:
        patch.setenv("FROZEN_DSN", server.dsn)
        say = Worker.say

        async def overheard(worker: Any, *words: str | int) -> None:
            if words[0] == "go":
                starts.put(int(words[1]))
            await say(worker, *words)

        patch.setattr(Worker, "say", overheard)
        e = Experiment(
            store="env:FROZEN_DSN", pacer=pacer, duration_s=DURATION_S, warmup_s=0.0, in_flight_max=IN_FLIGHT_MAX
        )
        running = pool.submit(run, e, lab, Quiet())
        running.add_done_callback(lambda _: starts.put(0))  # also of a run that never came so far
        start_ns = starts.get(timeout=WAIT_MAX_S) or running.result()
        pause_s(max(0, BEGINS_S + (start_ns - now_ns()) / NS_PER_S))
        with standing_still(server):
            stopped_ns = now_ns()
            pause_s(LASTS_S)
            thawed_ns = now_ns()
        return Frozen(running.result(WAIT_MAX_S), stopped_ns - start_ns, thawed_ns - start_ns)


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedServer]:
    with EmbeddedServer(place=on_disk()) as started:
        yield started


@pytest.fixture(scope="module")
def on_schedule(server: EmbeddedServer, tmp_path_factory: pytest.TempPathFactory) -> Frozen:
    return frozen_run(server, _lab(tmp_path_factory), f"constant:rate={RATE}")


@pytest.fixture(scope="module")
def by_callers(server: EmbeddedServer, tmp_path_factory: pytest.TempPathFactory) -> Frozen:
    return frozen_run(server, _lab(tmp_path_factory), f"saturate:concurrency={CALLERS}")


def _lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("freeze") / "lab.duckdb")


def test_nothing_is_lost_and_nobody_is_left_out(on_schedule: Frozen) -> None:
    samples = on_schedule.run.samples
    assert sorted(samples["operation"].to_list()) == list(range(int(RATE * DURATION_S)))
    assert (samples["outcome"] == Outcome.OK).all()
    invariants = on_schedule.run.invariants
    assert set(invariants["status"]) <= {"passed", "not tested"} and "passed" in set(invariants["status"])


def test_everybody_who_was_due_meanwhile_waited_for_the_thaw(on_schedule: Frozen) -> None:
    schedule_ns = np.arange(int(RATE * DURATION_S)) * (NS_PER_S // RATE)
    came = (schedule_ns >= on_schedule.stopped_ns) & (schedule_ns < on_schedule.thawed_ns)
    assert on_schedule.was_due_meanwhile.sum() == came.sum() > IN_FLIGHT_MAX
    assert (on_schedule.latency_ns >= on_schedule.least_ns).all()


def test_waits_descend_from_the_length_of_the_freeze(on_schedule: Frozen) -> None:
    """The k-th longest is at least the freeze less the time in which k came; and who was due before it mostly felt nothing."""
    length_ns = on_schedule.thawed_ns - on_schedule.stopped_ns
    longest_ns = np.sort(on_schedule.latency_ns)[::-1]
    came = int(on_schedule.was_due_meanwhile.sum())
    assert (longest_ns[:came] >= length_ns - np.arange(1, came + 1) * NS_PER_S // RATE).all()
    before = on_schedule.column("due_ns") < on_schedule.stopped_ns
    assert np.median(on_schedule.latency_ns[before]) < length_ns / 2


def test_percentiles_are_at_least_what_the_freeze_alone_makes_of_them(on_schedule: Frozen) -> None:
    alone_ms = np.sort(on_schedule.least_ns) / 1e6
    for name, p in (("p95", 0.95), ("p99", 0.99)):
        assert on_schedule.run.figure(name).estimate.value >= percentile(alone_ms, p) > 0


def test_callers_that_wait_for_their_answer_hide_the_freeze(by_callers: Frozen, on_schedule: Frozen) -> None:
    """One operation of each is under way when it ends; nobody is due meanwhile."""
    began_ns, ended_ns = by_callers.column("began_ns"), by_callers.column("ended_ns")
    felt = (began_ns <= by_callers.thawed_ns) & (ended_ns >= by_callers.thawed_ns)
    assert 1 <= felt.sum() <= CALLERS < on_schedule.was_due_meanwhile.sum()
    assert ((ended_ns - began_ns)[felt] > (by_callers.thawed_ns - by_callers.stopped_ns) / 2).all()
    assert (by_callers.column("due_ns") == began_ns).all()
    assert by_callers.run.invariants["status"].is_in(["passed", "not tested"]).all()
