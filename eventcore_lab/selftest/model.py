"""A modelled server, and the real load put on it in virtual time: the pacer's schedule, `drive`, the recorder's file.

Nothing of the load is replaced but the clock and the store. What comes back is read from the file, as every run's is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from eventcore_lab.clock import NS_PER_S, Clock, VirtualClock
from eventcore_lab.lab.evidence import raw_samples
from eventcore_lab.load.drive import Load, Stop, drive
from eventcore_lab.load.pacers import Thinks, pacers
from eventcore_lab.load.recorder import Recorder
from eventcore_lab.load.workloads import Performer
from eventcore_lab.schema import SAMPLE_WORDS, Outcome, Phase, current_attempt

MS_NS = 1_000_000
SERVICE_NS = MS_NS
"""The mean service time of every modelled server: milliseconds are the textbooks' units of 1/μ."""

Nanoseconds = NDArray[np.int64]


class Rows:
    """The samples of one drive, a column per fact, in the order of the operations."""

    def __init__(self, rows: NDArray[np.int64]) -> None:
        rows = rows[np.argsort(rows[:, 0], kind="stable")]
        columns = dict(zip(SAMPLE_WORDS, rows.T, strict=True))
        self.operation, self.due_ns, self.offered_ns = columns["operation"], columns["due_ns"], columns["offered_ns"]
        self.began_ns, self.acquired_ns, self.ended_ns = (
            columns["began_ns"],
            columns["acquired_ns"],
            columns["ended_ns"],
        )
        self.is_ok = columns["packed"] & 0xFF == Outcome.OK
        self.is_dropped = columns["packed"] & 0xFF == Outcome.DROPPED
        self.is_steady = columns["packed"] >> 8 & 0x7F == Phase.STEADY
        self.latency_ns: Nanoseconds = self.ended_ns - self.due_ns

    def __len__(self) -> int:
        return len(self.operation)


class Server:
    """So many servers behind one queue, first in, first out. It keeps accounts of its own, in ns: `area_ns` is the number
    inside summed up over time, `busy_ns` what it has served."""

    def __init__(self, clock: Clock, service_ns: Sequence[int], servers: int = 1) -> None:
        self.area_ns = self.busy_ns = 0
        self._clock, self._service_ns = clock, iter(service_ns)
        self._places = asyncio.Semaphore(servers)
        self._inside, self._since_ns = 0, clock.now_ns()

    async def perform(self, prepared: Any) -> int:
        self._changes(+1)
        async with self._places:
            service_ns = next(self._service_ns)
            attempt = current_attempt.get()
            if attempt is not None:
                attempt.acquired_ns = self._clock.now_ns()
            await self._clock.sleep_until(self._clock.now_ns() + service_ns)
        self.busy_ns += service_ns
        self._changes(-1)
        return 1

    def _changes(self, by: int) -> None:
        now_ns = self._clock.now_ns()
        self.area_ns += self._inside * (now_ns - self._since_ns)
        self._inside, self._since_ns = self._inside + by, now_ns


class Freezing:
    """A store with room for all at once that takes 1 ms, stands still from `begins_ns` to `thaws_ns` after now, and from then
    on answers at once."""

    def __init__(self, clock: Clock, begins_ns: int, thaws_ns: int) -> None:
        self._clock = clock
        self._begins_ns, self._thaws_ns = clock.now_ns() + begins_ns, clock.now_ns() + thaws_ns

    async def perform(self, prepared: Any) -> int:
        now_ns = self._clock.now_ns()
        is_late = now_ns >= self._begins_ns
        await self._clock.sleep_until(max(self._thaws_ns, now_ns) if is_late else now_ns + SERVICE_NS)
        return 1


class Setting(Struct, frozen=True, kw_only=True):
    """One load: the spec of its pacer and what bounds it. `samples`: about how many, `warmup`: so many of them before the
    queue counts as settled."""

    pacer: str
    per_s: float
    samples: int
    warmup: int = 0
    in_flight_max: int = 200
    backlog_max: int = 10_000

    @property
    def total_ns(self) -> int:
        return int(self.samples / self.per_s * NS_PER_S)

    @property
    def warmup_ns(self) -> int:
        return int(self.warmup / self.per_s * NS_PER_S)


def virtual_clock() -> VirtualClock:
    """One that does not begin at 0, which could be taken for a time relative to the start."""
    return VirtualClock(3 * NS_PER_S)


def schedule(pacer: str, total_ns: int, rng: np.random.Generator) -> Nanoseconds:
    """What the real pacer gives."""
    return pacers.make(pacer).schedule(total_ns, rng)


def exponential_ns(rng: np.random.Generator, count: int) -> Nanoseconds:
    """Service times of a server without a memory."""
    return rng.exponential(SERVICE_NS, count).round().astype(np.int64)


def in_virtual_time(
    clock: VirtualClock, setting: Setting, perform: Performer, due: Nanoseconds | None = None, seed: int = 0
) -> Rows:
    """Drive the load to its end and read what it recorded; without `due` it is the pacer's callers."""
    with TemporaryDirectory() as folder:
        part = Path(folder) / "samples-0.i64"
        with Recorder(part, len(due) if due is not None else 2 * setting.samples) as recorder:
            load = load_of(setting, clock, recorder, perform, clock.now_ns(), due, seed)
            clock.run(driven_to_its_end(load))
        return Rows(raw_samples(part))


def load_of(
    setting: Setting,
    clock: Clock,
    recorder: Recorder,
    perform: Performer,
    start_ns: int,
    due: Nanoseconds | None,
    seed: int = 0,
) -> Load:
    pacer = pacers.make(setting.pacer)
    return Load(
        clock=clock,
        recorder=recorder,
        prepare=lambda k: k,
        perform=perform,
        start_ns=start_ns,
        warmup_ns=setting.warmup_ns,
        total_ns=setting.total_ns,
        callers=pacer.callers,
        due=due.tolist() if due is not None else (),
        operations=range(len(due)) if due is not None else (),
        in_flight_max=setting.in_flight_max,
        backlog_max=setting.backlog_max,
        backlog_policy="drop",
        think_ns=pacer.think_ns(seed) if isinstance(pacer, Thinks) else None,
    )


async def driven_to_its_end(load: Load) -> None:
    """Drive it; RuntimeError if it ended before its time."""
    stop = Stop()
    await drive(load, stop)
    if stop.is_set:
        raise RuntimeError(f"the load of the self-test stopped: {stop.reason}")
