"""The process that puts the load on: `python -m eventcore_lab.load.worker`, told what to do on standard input.

It is a process of its own so that neither a notebook's kernel nor the recording of gauges disturbs it, and it is
started by name, not forked or spawned from `__main__`, so that a script needs no guard. One JSON line each way: the job,
then `ready` / [`populate` / `populated`] / `go START_NS` / `loaded` / [`verify POSITION` / `done`], what is in brackets
asked of one worker only; `stop` ends the load early. When the
input closes, the parent is gone: what was recorded is kept in the spool and the process ends. The worker KEEPER puts no load
on: where the others are on machines of their own, it is asked for what is in brackets, and beside them says nothing.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

import msgspec
import numpy as np
import uvloop
from msgspec import Struct

from eventcore_lab.clock import NS_PER_S, WallClock, repeated, sleep_s, watched_clocks
from eventcore_lab.commands import Executor, executors
from eventcore_lab.events import StoreError
from eventcore_lab.load.answers import Answers
from eventcore_lab.load.drive import Load, Stop, drive
from eventcore_lab.load.evidence import dated, write_rows
from eventcore_lab.load.fill import FILLED, filled
from eventcore_lab.load.gauges import Gauges
from eventcore_lab.load.imports import Imports
from eventcore_lab.load.journal import SETTLE_TIMEOUT_S, Journal, prefix, read_back, settled
from eventcore_lab.load.pacers import HasNotes, Thinks, pacers
from eventcore_lab.load.recorder import Recorder
from eventcore_lab.load.workloads import workloads
from eventcore_lab.schema import IN_SYSTEM, NOT_SETTLED
from eventcore_lab.stores import Address, PoolSettings, Store, stores
from eventcore_lab.stores.wrapper import pool_of, positions_drawn

_LOOK_EVERY_S = 0.020
SPIN_NS = 300_000
"""The last part of a wait, if the clock spins: longer than a timer here is ever late but for one wake-up in a thousand."""
STILLS_MAX = 1000
"""How often a load process may tell that it stood still; one that does so more often has told enough."""
POOL_EVERY_S, POOL_LOOKS_MAX = 0.25, 20_000
KEEPER = -1
"""The number of the worker that only fills the store and reads it back."""


class Job(Struct, frozen=True, kw_only=True):
    """What one worker does; the same fields for all workers of a run but `worker` and its share of what is bounded."""

    module: ClassVar[str] = "eventcore_lab.load.worker"
    spool: str
    worker: int
    workers: int
    store: str
    address: Address
    workload: str
    executor: str
    pacer: str
    seed: int
    warmup_ns: int
    total_ns: int
    pool: PoolSettings
    in_flight_max: int
    backlog_max: int
    backlog_policy: str
    capacity: int
    spins: bool = False
    operation_timeout_ns: int = 0
    settle_timeout_s: float = SETTLE_TIMEOUT_S
    imports: Imports = Imports()
    environment: dict[str, str] = {}
    """Variables that the store is made from and that the machine does not have: they hold DSNs."""

    @property
    def name(self) -> str:
        return "keeper" if self.worker == KEEPER else f"worker {self.worker}"

    @property
    def complains_as(self) -> str:
        """Nobody: what the load's store says is said of the run."""
        return ""


def share(total: int, worker: int, workers: int) -> int:
    """How many of `total` are this worker's: those of all workers add up to it."""
    return len(range(worker, total, workers))


T = TypeVar("T")


class Lines:
    """The conversation with the parent: one JSON line out, one line of words in. `stop` (or the end of the input, which
    means that the parent is gone) is acted on when it comes, the other words when they are asked for."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader
        self._words: asyncio.Queue[list[str]] = asyncio.Queue(maxsize=16)
        self.stop = Stop()
        self._listening = asyncio.ensure_future(self._listen())

    def say(self, event: str, **facts: Any) -> None:
        sys.stdout.buffer.write(msgspec.json.encode({"event": event, **facts}) + b"\n")
        sys.stdout.buffer.flush()

    async def _listen(self) -> None:
        while words := (await self._reader.readline()).decode().split():
            if words[0] == "stop":
                self.stop.set("stopped")
            else:
                await self._words.put(words)
        self.stop.set("the parent process is gone")
        await self._words.put(["gone"])

    async def heard(self) -> list[str]:
        """The next line's words; ["gone"] when the parent is."""
        return await self._words.get()

    async def unless_stopped(self, work: Coroutine[Any, Any, T]) -> T | None:
        """What `work` comes to, or None if `stop` came first; then it is cancelled."""
        working, stopped = asyncio.ensure_future(work), asyncio.ensure_future(self._stopped())
        try:
            await asyncio.wait([working, stopped], return_when=asyncio.FIRST_COMPLETED)
            return await working if working.done() else None
        finally:
            for task in (working, stopped):
                task.cancel()
            await asyncio.gather(working, stopped, return_exceptions=True)

    async def _stopped(self) -> None:
        while not self.stop.is_set:
            await sleep_s(_LOOK_EVERY_S)


class _Connecting(Protocol):
    """What every job says about the store it is to be done on."""

    @property
    def store(self) -> str: ...
    @property
    def address(self) -> Address: ...
    @property
    def pool(self) -> PoolSettings: ...
    @property
    def imports(self) -> Imports: ...


J = TypeVar("J", bound=_Connecting)


async def one_job(kind: type[J], work: Callable[[J, Store, Lines], Awaitable[None]]) -> None:
    """One job from standard input, to its end: `work` has the store, which is closed afterwards."""
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    job = msgspec.json.decode(await reader.readline(), type=kind)
    lines = Lines(reader)
    if isinstance(job, Job):
        os.environ.update(job.environment)
    job.imports.make()
    try:
        store = await stores.make(job.store).connect(job.address, job.pool)
        try:
            await work(job, store, lines)
        finally:
            await store.close()
    except StoreError as error:  # not of an operation, which is recorded, but of connecting or reading back
        lines.say("broken", kind=type(error).__name__, message=str(error))


async def _work(job: Job, store: Store, lines: Lines) -> None:
    await (_kept if job.worker == KEEPER else _loaded)(job, store, lines)


async def _kept(job: Job, store: Store, lines: Lines) -> None:
    """Fill the store and read it back for others who put the load on."""
    lines.say("ready", pid=os.getpid(), operations=0, notes=[])
    if (start_ns := await _go(job, store, lines)) is not None:
        dated(Path(job.spool), FILLED, start_ns)
        await _verified(job, store, lines, start_ns)


async def _loaded(job: Job, store: Store, lines: Lines) -> None:
    spool = Path(job.spool)
    journal = Journal(store, spool, job.worker)
    clock = WallClock(SPIN_NS if job.spins else 0)
    executor = Answers(executors.make(job.executor, store=journal, seed=job.seed + job.worker), spool, job.worker)
    with Recorder(spool / f"samples-{job.worker}.i64", job.capacity) as recorder:
        load, notes = _load(job, clock, recorder, journal, executor)
        lines.say("ready", pid=os.getpid(), operations=len(load.due), notes=notes)
        if (start_ns := await _go(job, store, lines)) is None:
            return
        load.start_ns = start_ns
        still_s: list[float] = []

        def note(name: str, seconds: float) -> None:
            if name == "still" and len(still_s) < STILLS_MAX:
                still_s.append(seconds)

        _keep_collector_out()
        async with watched_clocks(note), pool_watched(store, job, start_ns):
            await drive(load, lines.stop)
        await executor.close()
    clock.close()
    counted = {
        "reason": lines.stop.reason,
        "failures": lines.stop.failures,
        "counts": executor.counts(),
        "still_s": still_s,
    }
    counts = {"offered": _offered(load, lines.stop), IN_SYSTEM: load.in_system.area_ns}
    journal.write(spool, job.worker, load.start_ns, counts)
    executor.write(spool, job.worker)
    if not job.worker:
        dated(spool, FILLED, load.start_ns)
    lines.say("loaded", begun=recorder.begun, acknowledged=str(journal.acknowledged), **counted)
    await _verified(job, store, lines, load.start_ns)


@asynccontextmanager
async def pool_watched(store: Store, job: Job, start_ns: int) -> AsyncIterator[None]:
    """Gauges of the store's pool, if it has one, until the end of the block: how many connections are in use, and how many
    operations wait for one. Each look is one write, and there are at most POOL_LOOKS_MAX."""
    if (pool := pool_of(store)) is None:
        yield
        return
    gauges = Gauges(Path(job.spool), "loader" if job.workers == 1 else job.name, start_ns)

    def look() -> None:
        with suppress(OSError):  # a full disk is told of elsewhere
            gauges.tell(pool_in_use=pool.in_use, pool_waiting=pool.waiting)

    with closing(gauges):
        async with repeated(look, max(POOL_EVERY_S, job.total_ns / NS_PER_S / POOL_LOOKS_MAX)):
            yield


async def _go(job: Job, store: Store, lines: Lines) -> int | None:
    """When to start, the store being filled before if that is asked for; None if nobody says so."""
    while (words := await lines.heard())[0] == "populate":
        lines.say("populated", events=await _populated(job, store, lines.stop))
    return int(words[1]) if words[0] == "go" else None


async def _verified(job: Job, store: Store, lines: Lines, start_ns: int) -> None:
    """Read back what is stored, up to the position that is asked for at least, if it is. A store that does not come to that
    in time is not to be judged by what a reader is shown of it, and there is a file to say so."""
    words = await lines.heard()
    if words[0] == "verify":
        # What was given up may stay open in the server for as long as an answer may take.
        within_s = max(job.settle_timeout_s, job.pool.command_timeout_s)
        if not await settled(store, int(words[1]), within_s):
            write_rows(Path(job.spool) / "counts-settling.parquet", "counts", [(NOT_SETTLED, int(1000 * within_s))])
        lines.say("done", stored=await _read_back(store, Path(job.spool), start_ns))


async def _populated(job: Job, store: Store, stop: Stop) -> int:
    """Fill the store with what the workload needs; the number of events. One worker does it for all."""
    return await filled(store, workloads.make(job.workload, seed=job.seed).populate(), Path(job.spool), stop)


async def _read_back(store: Store, spool: Path, start_ns: int) -> int:
    """Write down what the store holds now that all workers are done; the number of events."""
    with suppress(StoreError):  # a server that is gone says nothing, and what was recorded is kept
        if (drawn := await positions_drawn(store)) is not None:
            write_rows(spool / "counts-store.parquet", "counts", [("positions drawn", drawn)])
    before = await prefix(store, start_ns=start_ns)
    return await read_back(store, spool, prefixes=[before], start_ns=start_ns)


def _offered(load: Load, stop: Stop) -> int:
    """How many operations there were to do: of an open loop that was not stopped the whole schedule, else what was handed over
    or begun, counted where that happened; no sample is looked at."""
    return load.in_system.offered if load.callers or stop.is_set else len(load.due)


def _load(
    job: Job, clock: WallClock, recorder: Recorder, journal: Journal, executor: Executor
) -> tuple[Load, list[tuple[str, str]]]:
    """The job as the hot loop wants it: this worker's stripe of the one schedule, everything made beforehand; and what
    there is to tell about what it was made from."""
    pacer = pacers.make(job.pacer)
    workload = workloads.make(job.workload, seed=job.seed)
    due = pacer.schedule(job.total_ns, np.random.default_rng(job.seed))
    at = job.worker, job.workers
    load = Load(
        clock=clock,
        recorder=recorder,
        prepare=workload.prepare,
        perform=workload.start(journal, executor),
        start_ns=0,
        warmup_ns=job.warmup_ns,
        total_ns=job.total_ns,
        callers=share(pacer.callers, *at),
        due=np.ascontiguousarray(due[job.worker :: job.workers]),
        operations=range(job.worker, len(due), job.workers),
        in_flight_max=share(job.in_flight_max, *at),
        backlog_max=share(job.backlog_max, *at),
        backlog_policy=job.backlog_policy,
        first=job.worker,
        step=job.workers,
        think_ns=pacer.think_ns(job.seed) if isinstance(pacer, Thinks) else None,
        timeout_ns=job.operation_timeout_ns,
    )
    return load, [note for made in (pacer, workload) if isinstance(made, HasNotes) for note in made.notes]


def _keep_collector_out() -> None:
    """What lives as long as the run need not be looked at again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


def run_worker() -> None:
    """Entry point. SIGINT belongs to the parent, which says `stop`; SIGTERM ends the process at once."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    uvloop.run(one_job(Job, _work))


if __name__ == "__main__":
    run_worker()
