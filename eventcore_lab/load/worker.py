"""The process that puts the load on: `python -m eventcore_lab.load.worker`, told what to do on standard input.

It is a process of its own so that neither a notebook's kernel nor the recording of gauges disturbs it, and it is
started by name, not forked or spawned from `__main__`, so that a script needs no guard. One JSON line each way: the job,
then `ready` / `populate` / `populated` / `go START_NS` / `loaded` / `verify` / `done`; `stop` ends the load early. When the
input closes, the parent is gone: what was recorded is kept in the spool and the process ends.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

import msgspec
import numpy as np
import uvloop
from msgspec import Struct

from eventcore_lab.clock import WallClock, sleep_s
from eventcore_lab.commands import Executor, executors
from eventcore_lab.events import StoreError
from eventcore_lab.load.answers import Answers
from eventcore_lab.load.drive import Load, Stop, drive
from eventcore_lab.load.evidence import dated
from eventcore_lab.load.fill import FILLED, filled
from eventcore_lab.load.imports import Imports
from eventcore_lab.load.journal import Journal, prefix, read_back
from eventcore_lab.load.pacers import pacers
from eventcore_lab.load.recorder import Recorder
from eventcore_lab.load.workloads import workloads
from eventcore_lab.stores import Address, PoolSettings, Store, stores
from eventcore_lab.stores.wrapper import positions_drawn

_LOOK_EVERY_S = 0.020


class Job(Struct, frozen=True, kw_only=True):
    """What one worker does; the same fields for all workers of a run but `worker`."""

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
    imports: Imports = Imports()

    @property
    def name(self) -> str:
        return f"worker {self.worker}"

    @property
    def complains_as(self) -> str:
        """Nobody: what the load's store says is said of the run."""
        return ""


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
    journal = Journal(store)
    spool = Path(job.spool)
    clock = WallClock()
    executor = Answers(executors.make(job.executor, store=journal, seed=job.seed))
    with Recorder(spool / f"samples-{job.worker}.i64", job.capacity) as recorder:
        load = _load(job, clock, recorder, journal, executor)
        lines.say("ready", pid=os.getpid(), operations=len(load.due))
        if (await lines.heard())[0] != "populate":
            return
        # The first fills it for all.
        requests = iter(()) if job.worker else workloads.make(job.workload, seed=job.seed).populate()
        lines.say("populated", events=await filled(store, requests, spool, lines.stop))
        word, *rest = await lines.heard()
        if word != "go":
            return
        load.start_ns = int(rest[0])
        _keep_collector_out()
        await drive(load, lines.stop)
        await executor.close()
    clock.close()
    counted = {"reason": lines.stop.reason, "failures": lines.stop.failures, "counts": executor.counts()}
    lines.say("loaded", begun=recorder.begun, **counted)
    counts = {"offered": _offered(load, lines.stop, recorder)}
    if job.worker == 0:
        with suppress(StoreError):  # a server that is gone says nothing, and what was recorded is kept
            drawn = await positions_drawn(store)
            counts |= {} if drawn is None else {"positions drawn": drawn}
    journal.write(spool, job.worker, load.start_ns, counts)
    if not job.worker:
        dated(spool, FILLED, load.start_ns)
    executor.write(spool, job.worker)
    if (await lines.heard())[0] == "verify":
        before = await prefix(store, start_ns=load.start_ns)
        count = await read_back(store, spool, prefixes=[before], start_ns=load.start_ns)
        lines.say("done", stored=count)


def _offered(load: Load, stop: Stop, recorder: Recorder) -> int:
    """How many operations there were to do: an open loop that was not stopped says so without looking at its samples."""
    return recorder.begun if load.callers or stop.is_set else len(load.due)


def _load(job: Job, clock: WallClock, recorder: Recorder, journal: Journal, executor: Executor) -> Load:
    """The job as the hot loop wants it: this worker's stripe of the one schedule, everything made beforehand."""
    pacer = pacers.make(job.pacer)
    workload = workloads.make(job.workload, seed=job.seed)
    due = pacer.schedule(job.total_ns, np.random.default_rng(job.seed))
    stripe = slice(job.worker, None, job.workers)
    return Load(
        clock=clock,
        recorder=recorder,
        prepare=workload.prepare,
        perform=workload.start(journal, executor),
        start_ns=0,
        warmup_ns=job.warmup_ns,
        total_ns=job.total_ns,
        callers=len(range(job.worker, pacer.callers, job.workers)),
        due=due[stripe].tolist(),
        operations=range(job.worker, len(due), job.workers),
        in_flight_max=job.in_flight_max,
        backlog_max=job.backlog_max,
        backlog_policy=job.backlog_policy,
        first=job.worker,
        step=job.workers,
    )


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
