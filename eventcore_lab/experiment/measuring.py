"""`measure`: open, fill, warm up, drive, verify, hand over.

What comes out is a folder in the spool with the facts of the run (schema.py); judging them is the Lab's work.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import secrets
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from eventcore_lab.clock import NS_PER_S, now_ns, sleep_s
from eventcore_lab.companions.probes import resources
from eventcore_lab.companions.series import Series
from eventcore_lab.events import StoreError
from eventcore_lab.experiment.value import CAPACITY_MAX, Experiment
from eventcore_lab.load.follower import FollowerJob
from eventcore_lab.load.imports import Imports
from eventcore_lab.load.pacers import pacers
from eventcore_lab.load.projector import ProjectorJob
from eventcore_lab.load.recorder import Watcher
from eventcore_lab.load.worker import Job
from eventcore_lab.load.workers import START_TIMEOUT_S, Followers, Worker, WorkerDied
from eventcore_lab.load.workloads import workloads
from eventcore_lab.machine import environment, environment_id
from eventcore_lab.progress import Progress, Quiet, Tally
from eventcore_lab.schema import ENVIRONMENT_FILE, LOCK_FILE, RUN_FILE, SCHEMA_VERSION
from eventcore_lab.stores import Place, PoolSettings, stores

CLOSED_LOOP_RATE_MAX = 200_000
"""Operations per second that a closed loop's recorder makes room for; the file is sparse, so room costs nothing."""
START_DELAY_NS = 100_000_000
LOOK_EVERY_S = 0.25
SHORT_FINISH_S = 2.0
"""After Ctrl-C those beside the load have so long to come to the end of what is stored."""
POPULATE_TIMEOUT_S = 1800.0
FOLLOWER_CONNECTIONS = 2


class Measured(Struct, frozen=True):
    """Where a run's facts are, and how it ended: `complete` or `interrupted`."""

    run_id: str
    folder: Path
    status: str


class RunBroken(Exception):
    """The run itself failed (store unreachable, worker died); what was recorded is in the spool."""


def measure(experiment: Experiment, spool: Path, progress: Progress | None = None) -> Measured:
    """Run `experiment` and leave its facts in a new folder of `spool`.

    Works in a script, a notebook's cell and a thread alike. The first Ctrl-C ends the load, lets what is under way
    finish, and keeps the run as `interrupted` (`Measured.status` says so); the second stops at once. Raises StoreError
    or RunBroken when there is nothing, or not the whole, to keep.
    """
    asked_to_stop = threading.Event()
    run = _Run(experiment, spool, progress or Quiet(), asked_to_stop)
    result: list[Measured | BaseException] = []
    # Not `thread.join` and `is_alive`: interrupted by a signal, they may take a running thread for one that has ended.
    is_over = threading.Event()

    def work() -> None:
        result.append(_outcome(run))
        is_over.set()

    thread = threading.Thread(target=work, name="experiment")
    thread.start()
    while not is_over.is_set():
        try:
            is_over.wait(0.2)
        except KeyboardInterrupt:
            if asked_to_stop.is_set():
                run.abandon()
            asked_to_stop.set()
    thread.join()
    if isinstance(result[0], BaseException):
        raise result[0]
    return result[0]


def _outcome(run: _Run) -> Measured | BaseException:
    try:
        return asyncio.run(run.whole())
    except BaseException as error:
        return error


class _Run:
    """One run from the parent's side. Its methods are the run's phases, in order."""

    def __init__(self, experiment: Experiment, spool: Path, progress: Progress, asked: threading.Event) -> None:
        now = datetime.now(UTC)
        self.experiment, self.progress, self.asked = experiment, progress, asked
        self.run_id = f"{now:%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"
        self.folder = spool / self.run_id
        self.row: dict[str, Any] = {
            "run_id": self.run_id,
            "started_at": now.isoformat(),
            "status": "interrupted",
            "status_reason": "the run had not ended",
            **{k: v for k, v in msgspec.structs.asdict(experiment).items() if k != "label"},
            "label": experiment.label,
            "experiment_id": experiment.experiment_id,
            "is_closed_loop": experiment.is_closed_loop,
            "measured_ns": int(experiment.duration_s * NS_PER_S),
            "schema_version": SCHEMA_VERSION,
        }
        self._worker: Worker[Job] | None = None
        self._followers: Followers[FollowerJob | ProjectorJob] = Followers([])
        self._is_abandoned = False
        self._imports = Imports.of(experiment.modules)
        self._loop: asyncio.AbstractEventLoop | None = None

    async def whole(self) -> Measured:
        """The table of contents."""
        self._loop = asyncio.get_running_loop()
        self.folder.mkdir(parents=True)
        self._lock = os.open(self.folder / LOCK_FILE, os.O_CREAT | os.O_RDWR, 0o644)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        try:
            self._keep_row()
            await self._phases()
        except (StoreError, WorkerDied, RunBroken, OSError, TimeoutError) as error:
            if not self.asked.is_set():  # after a second Ctrl-C a worker that died was killed by us
                self._end("broken", f"{type(error).__name__}: {error}")
                raise error if isinstance(error, StoreError) else RunBroken(str(error)) from None
            self._end("interrupted", "stopped by the user, at once")
        else:
            is_cut = self.asked.is_set()
            self._end("interrupted" if is_cut else "complete", "stopped by the user" if is_cut else "")
        finally:
            os.close(self._lock)
        return Measured(self.run_id, self.folder, self.row["status"])

    async def _phases(self) -> None:
        self.progress.phase(self.experiment.title, f"preparing {self.experiment.store}")
        async with AsyncExitStack() as stack:
            series = stack.enter_context(closing(Series(self.folder)))
            place = await stack.enter_async_context(stores.make(self.experiment.store).provision())
            self._note_environment(place)
            if (
                not place.takes_appends
                and not workloads.make(self.experiment.workload, seed=self.experiment.seed).only_reads
            ):
                raise StoreError(
                    f"{self.experiment.store} is only to be read: choose a workload that reads (read_pages, "
                    "read_streams), or add writes=true"
                )
            worker = await stack.enter_async_context(self._working(place))
            await stack.enter_async_context(self._followers.spawning(self._jobs_beside(place), self._lock))
            await self._populated(worker, series)
            await self._settled(series)
            await self._loaded(worker, place, series)
            await self._followed(series)
            if place.is_new:
                await self._verified(worker, series)
            else:
                series.mark("not read back", "the store had events before this run")

    def abandon(self) -> None:
        """Called from another thread at the second Ctrl-C: every process is ended, whatever it is doing."""
        self._is_abandoned = True
        if self._loop is not None:
            asyncio.run_coroutine_threadsafe(self._all_ended(), self._loop)

    async def _all_ended(self) -> None:
        working = [self._worker.end(timeout_s=0.2)] if self._worker is not None else []
        await asyncio.gather(*working, self._followers.end(timeout_s=0.2))

    def _begins(self, phase: str) -> None:
        """Tell of a phase, unless the user has given up: a process that was not there yet could not be ended then."""
        if self._is_abandoned:
            raise RunBroken("stopped by the user, at once")
        self.progress.phase(self.experiment.title, phase)

    def _keep_row(self) -> None:
        """Written whole and renamed, so that whoever finds it finds all of it."""
        part = self.folder / (RUN_FILE + ".part")
        part.write_bytes(msgspec.json.encode(self.row))
        part.replace(self.folder / RUN_FILE)

    def _end(self, status: str, reason: str) -> None:
        self.row["status"], self.row["status_reason"] = status, reason
        self._keep_row()
        self.progress.ended(status, reason)

    def _note_environment(self, place: Place) -> None:
        facts = {**environment(self.folder), **place.facts}
        self.row["environment_id"] = environment_id(facts)
        self.row["durability"], self.row["server"] = place.durability, place.server
        self.row["keeps_events"] = place.keeps_events
        self.row["lacks"] = "\n".join(stores.make(self.experiment.store).lacks)
        (self.folder / ENVIRONMENT_FILE).write_bytes(msgspec.json.encode(facts))
        self._keep_row()

    def _job(self, place: Place) -> Job:
        e = self.experiment
        total_s = e.warmup_s + e.duration_s
        total_ns = int(total_s * NS_PER_S)
        expected = pacers.make(e.pacer).expected(total_ns) or CLOSED_LOOP_RATE_MAX * total_s
        return Job(
            spool=str(self.folder.resolve()),
            worker=0,
            workers=1,
            store=e.store,
            address=place.address,
            workload=e.workload,
            executor=e.executor,
            pacer=e.pacer,
            seed=e.seed,
            warmup_ns=int(e.warmup_s * NS_PER_S),
            total_ns=total_ns,
            pool=self._pool(e.connections),
            in_flight_max=e.in_flight_max,
            backlog_max=e.backlog_max,
            backlog_policy=e.backlog_policy,
            imports=self._imports,
            capacity=min(CAPACITY_MAX, int(2 * expected) + 10_000),
        )

    def _pool(self, connections: int) -> PoolSettings:
        timeout_s = self.experiment.timeout_s
        pool = PoolSettings.sized(connections)
        return msgspec.structs.replace(pool, acquire_timeout_s=timeout_s, command_timeout_s=timeout_s)

    def _jobs_beside(self, place: Place) -> list[FollowerJob | ProjectorJob]:
        e = self.experiment
        same: dict[str, Any] = {
            "spool": str(self.folder.resolve()),
            "store": e.store,
            "address": place.address,
            "pool": self._pool(FOLLOWER_CONNECTIONS),
            "imports": self._imports,
        }
        jobs: list[FollowerJob | ProjectorJob] = [FollowerJob(reader=reader, **same) for reader in range(e.followers)]
        return [*jobs, ProjectorJob(projection=e.projection, **same)] if e.projection else jobs

    @asynccontextmanager
    async def _working(self, place: Place) -> AsyncIterator[Worker[Job]]:
        self._begins("starting the load process")
        self._worker = worker = await Worker.spawn(self._job(place), self._lock)
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                await worker.heard("ready")
            yield worker
        finally:
            await worker.end()

    async def _populated(self, worker: Worker[Job], series: Series) -> None:
        """Have the store filled with what the workload needs to find there: no part of what is measured."""
        self._begins("filling the store")
        await worker.say("populate")
        async with asyncio.timeout(POPULATE_TIMEOUT_S), self._passing_on_a_stop(lambda: worker.say("stop")):
            events = (await worker.heard("populated"))["events"]
        if events:
            series.mark("store filled", f"{events} events")

    async def _settled(self, series: Series) -> None:
        """Have those beside the load come to the end of what the store was filled with: that is not of the load either."""
        if self.asked.is_set() or not self._followers:
            return
        self._begins("catching up with what is stored")
        async with self._passing_on_a_stop(self._followers.stop):
            for job, has_caught_up in await self._followers.settle():
                if not has_caught_up:
                    series.mark("not caught up before the load", job.complains_as)

    @asynccontextmanager
    async def _passing_on_a_stop(
        self, stop: Callable[[], Awaitable[None]], after_s: float = 0.0
    ) -> AsyncIterator[None]:
        """Say `stop`, after a while, when the user wants to stop."""

        async def watch() -> None:
            while not self.asked.is_set():
                await sleep_s(LOOK_EVERY_S)
            await sleep_s(after_s)
            await stop()

        task = asyncio.ensure_future(watch())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _loaded(self, worker: Worker[Job], place: Place, series: Series) -> None:
        """The load itself, with the companions around it."""
        e, followers = self.experiment, self._followers
        sources: dict[str, Callable[[], list[int]]] = {"loader": lambda: [worker.pid], "server": place.server_pids}
        if not place.server_pids():
            del sources["server"]
        start_ns = series.start_ns = now_ns() + START_DELAY_NS
        async with resources(series, sources):
            await followers.go(start_ns)
            await worker.say("go", start_ns)
            series.mark("load begins", e.workload, start_ns)
            async with self._watching(worker):
                loaded = await followers.beside(worker.heard("loaded"))
        series.mark("load ends", loaded["reason"])
        for name, count in loaded["counts"].items():
            series.gauge("executor", name, count)
        for text, count in loaded["failures"].items():
            series.mark("failed operations", f"{count} × {text}")
        if loaded["reason"] and not self.asked.is_set():
            raise RunBroken(loaded["reason"])

    @asynccontextmanager
    async def _watching(self, worker: Worker[Job]) -> AsyncIterator[None]:
        """Tell the progress about new samples, and pass a wish to stop on to the worker."""
        e = self.experiment
        tally = Tally(e.warmup_s, e.duration_s)
        watcher = Watcher(self.folder / f"samples-{worker.job.worker}.i64")
        task = asyncio.ensure_future(self._watch(worker, watcher, tally))
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            tally.add(watcher.new_rows())
            self.progress.update(e.title, tally)

    async def _watch(self, worker: Worker[Job], watcher: Watcher, tally: Tally) -> None:
        is_told = False
        while True:
            await sleep_s(LOOK_EVERY_S)
            if self.asked.is_set() and not is_told:
                is_told = True
                await worker.say("stop")
            tally.add(watcher.new_rows())
            self.progress.update(self.experiment.title, tally)

    async def _followed(self, series: Series) -> None:
        """Have those beside the load come to the end of what it has left, also after the companions have gone."""
        if not self._followers:
            return
        self._begins("waiting for those who follow")
        async with self._passing_on_a_stop(self._followers.stop, SHORT_FINISH_S):
            finished = await self._followers.finish()
        for job, done in finished:
            suffix = "" if done["has_caught_up"] else ", and had not caught up when its time was over"
            if isinstance(job, FollowerJob):
                series.mark("followed", f"reader {job.reader}: {done['delivered']} events{suffix}")
            else:
                failures = "".join(f", {count} {name}" for name, count in done["failures"].items())
                series.mark("projected", f"{job.projection}: {done['rows']} rows compared{failures}{suffix}")

    async def _verified(self, worker: Worker[Job], series: Series) -> None:
        """Have the store read back, after the companions have left: it is no part of what is measured."""
        self._begins("reading everything back")
        await worker.say("verify")
        done = await worker.heard("done")
        series.mark("read back", f"{done['stored']} events")
