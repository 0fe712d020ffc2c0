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
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, closing
from contextvars import copy_context
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct

from eventcore_lab.clock import NS_PER_S, now_ns, repeated, sleep_s
from eventcore_lab.companions.clocks import clocks
from eventcore_lab.companions.probes import interval_of, resources, sources_of
from eventcore_lab.companions.series import Series
from eventcore_lab.companions.server import Watch, server
from eventcore_lab.events import StoreError
from eventcore_lab.experiment.jobs import Jobs
from eventcore_lab.experiment.value import LIMITS, Experiment
from eventcore_lab.load.cluster import Stripes
from eventcore_lab.load.evidence import write_rows
from eventcore_lab.load.follower import FollowerJob
from eventcore_lab.load.loaders import Loaders, Processes
from eventcore_lab.load.places import (
    Executor,
    Places,
    PlacesError,
    aside,
    awake,
    check_places,
    is_local,
    places_of,
    reached,
)
from eventcore_lab.load.projector import ProjectorJob
from eventcore_lab.load.recorder import Watcher
from eventcore_lab.load.workers import Followers, WorkerDied
from eventcore_lab.load.workloads import workloads
from eventcore_lab.machine import environment, environment_id
from eventcore_lab.progress import Guarded, Progress, Quiet, Tally
from eventcore_lab.schema import ENVIRONMENT_FILE, LOCK_FILE, RUN_FILE, SCHEMA_VERSION, START_KEY
from eventcore_lab.stores import Place, stores

LOOK_EVERY_S = 0.25
HANGS_AFTER_S, OVER_TIMEOUTS = 30.0, 6.0
"""So long, and so many of an operation's own time-outs (each try may wait for a connection and an answer), a load process may
take to end its last operations."""
SHORT_FINISH_S = 2.0
"""After Ctrl-C those beside the load have so long to come to the end of what is stored."""
POPULATE_TIMEOUT_S = 1800.0
CLUSTER_TIMEOUT_S = 60.0


class Measured(Struct, frozen=True):
    """Where a run's facts are, and how it ended: `complete` or `interrupted`."""

    run_id: str
    folder: Path
    status: str


class RunBroken(Exception):
    """The run itself failed (store unreachable, worker died); what was recorded is in the spool."""


def measure(
    experiment: Experiment, spool: Path, progress: Progress | None = None, executor: Executor | None = None
) -> Measured:
    """Run `experiment` and leave its facts in a new folder of `spool`. With an `executor` its workers run where that
    runs what is submitted to it, and it stays open.

    Works in a script, a notebook's cell and a thread alike. The first Ctrl-C ends the load, lets what is under way
    finish, and keeps the run as `interrupted` (`Measured.status` says so); the second stops at once. Raises StoreError
    or RunBroken when there is nothing, or not the whole, to keep.
    """
    check_places(experiment.cluster, executor)
    if executor is not None:
        experiment.check_shared()
    asked_to_stop = threading.Event()
    run = _Run(experiment, spool, progress or Quiet(), asked_to_stop, executor)
    result: list[Measured | BaseException] = []
    # Not `thread.join` and `is_alive`: interrupted by a signal, they may take a running thread for one that has ended.
    is_over = threading.Event()

    def work() -> None:
        result.append(_outcome(run))
        is_over.set()

    # With the context of this thread, by which a notebook knows the cell that something is shown in.
    thread = threading.Thread(target=copy_context().run, args=(work,), name="experiment")
    thread.start()
    while True:
        try:
            if is_over.wait(0.2):
                break
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

    def __init__(
        self,
        experiment: Experiment,
        spool: Path,
        progress: Progress,
        asked: threading.Event,
        executor: Executor | None = None,
    ) -> None:
        now = datetime.now(UTC)
        self.experiment, self.asked, self.executor = experiment, asked, executor
        self.progress = Guarded(progress)
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
        if executor is not None:
            self.row["cluster"] = type(executor).__name__
        self._loaders: Loaders | None = None
        self._followers: Followers[FollowerJob | ProjectorJob] = Followers([])
        self._server: Watch | None = None
        self._is_abandoned = False
        self._jobs = Jobs(experiment, self.folder, is_elsewhere=bool(self.row["cluster"]))
        self._loop: asyncio.AbstractEventLoop | None = None

    async def whole(self) -> Measured:
        """The table of contents."""
        self._loop = asyncio.get_running_loop()
        if self.executor is not None:
            await awake(self.executor)
        self.folder.mkdir(parents=True)
        self._lock = os.open(self.folder / LOCK_FILE, os.O_CREAT | os.O_RDWR, 0o644)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        try:
            self._keep_row()
            await self._phases()
        except (StoreError, WorkerDied, PlacesError, RunBroken, OSError, TimeoutError) as error:
            if not self._is_abandoned:  # after a second Ctrl-C a worker that died was killed by us
                before = "after the user had stopped it, " if self.asked.is_set() else ""
                self._end("broken", f"{before}{type(error).__name__}: {error}")
                raise error if isinstance(error, StoreError) else RunBroken(str(error)) from None
            self._end("interrupted", "stopped by the user, at once")
        else:
            is_cut = self.asked.is_set()
            self._end("interrupted" if is_cut else "complete", "stopped by the user" if is_cut else "")
        finally:
            fcntl.flock(self._lock, fcntl.LOCK_UN)  # also for what has been forked meanwhile
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
            loaders = await stack.enter_async_context(self._working(place))
            await stack.enter_async_context(self._followers.spawning(self._jobs.beside(place), self._lock))
            await self._driven(loaders, place, series)

    async def _driven(self, loaders: Loaders, place: Place, series: Series) -> None:
        """Everything between the start of all processes and their end. Who died is said before the others are ended."""
        try:
            for name, detail in loaders.notes:
                series.mark(name, detail)
            await self._populated(loaders, series)
            await self._settled(series)
            await self._loaded(loaders, place, series)
            await self._followed(series)
            if place.is_new:
                await self._verified(loaders, place, series)
            else:
                series.mark("not read back", "the store had events before this run")
        except WorkerDied as died:
            if not self._is_abandoned:
                self.progress.phase(self.experiment.title, f"{died}; ending the others")
            raise

    def abandon(self) -> None:
        """Called from another thread at the second Ctrl-C: every process is ended, whatever it is doing."""
        self._is_abandoned = True
        if self._loop is not None:
            asyncio.run_coroutine_threadsafe(self._all_ended(), self._loop)

    async def _all_ended(self) -> None:
        working = [self._loaders.end(timeout_s=0.2)] if self._loaders is not None else []
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

    @asynccontextmanager
    async def _working(self, place: Place) -> AsyncIterator[Loaders]:
        n = self.experiment.workers
        jobs = [self._jobs.load(place, worker) for worker in range(n)]
        where = self.row["cluster"] and f" on {self.row['cluster']}"
        self._begins(("starting the load process" if n == 1 else f"starting {n} load processes") + where)
        if not where:
            self._loaders = processes = Processes()
            async with processes.spawned(jobs, self._lock):
                yield processes
            return
        places = await aside(self._places, CLUSTER_TIMEOUT_S)
        is_reachable = not place.keeps_events or not is_local(place.address)
        self._loaders = stripes = Stripes(places, jobs, self._jobs.keeper(place), is_reachable)
        async with stripes.spawned(self._lock):
            yield stripes

    def _places(self) -> Places:
        e = self.experiment
        return reached(e.cluster, e.workers) if self.executor is None else places_of(self.executor, e.workers)

    async def _populated(self, loaders: Loaders, series: Series) -> None:
        """Have the store filled with what the workload needs to find there: no part of what is measured."""
        self._begins("filling the store")
        async with asyncio.timeout(POPULATE_TIMEOUT_S), self._passing_on_a_stop(loaders.stop):
            events = await loaders.populate()
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

    async def _loaded(self, loaders: Loaders, place: Place, series: Series) -> None:
        """The load itself, with the companions around it."""
        followers = self._followers
        start_ns = series.start_ns = now_ns() + loaders.start_delay_ns
        self.row[START_KEY] = start_ns
        self._keep_row()  # for those who watch: from now on they know what the times of the samples count from
        async with (
            clocks(series),
            server(series, place.address) as self._server,
            resources(
                series,
                sources_of(loaders.pids(), place.server_pids, self._server.pids),
                interval_of(self.row["measured_ns"] / NS_PER_S),
            ),
        ):
            await followers.go(start_ns)
            await loaders.go(start_ns)
            series.mark("load begins", self.experiment.workload, start_ns)
            async with self._watching(), self._passing_on_a_stop(loaders.stop), self._bounded(loaders):
                loaded = await followers.beside(loaders.loaded())
        series.mark("load ends", loaded.reason)
        for name, count in loaded.counts.items():
            series.gauge("executor", name, count)
        for text, count in loaded.failures.items():
            series.mark("failed operations", f"{count} × {text}")
        for name, detail in loaded.notes:
            series.mark(name, detail)
        for source, name, value, t_ns in loaded.gauges:
            series.gauge(source, name, value, start_ns + t_ns)
        if loaded.reason and not self.asked.is_set():
            raise RunBroken(loaded.reason)

    @asynccontextmanager
    async def _bounded(self, loaders: Loaders) -> AsyncIterator[None]:
        """A load process that hangs does not hang the run. What waits outside (`queue`) may take as long as it takes."""
        e = self.experiment
        total_s = e.warmup_s + e.duration_s + loaders.start_delay_ns / NS_PER_S
        over_s = LIMITS["duration_s"][1] if e.backlog_policy == "queue" else HANGS_AFTER_S + OVER_TIMEOUTS * e.timeout_s
        try:
            async with asyncio.timeout(total_s + over_s + self._jobs.writing_s):
                yield
        except TimeoutError:
            silent = ", ".join(loaders.silent)
            raise WorkerDied(f"{silent} did not end within {over_s:g} s after the last arrival was due") from None

    def _watching(self) -> AbstractAsyncContextManager[None]:
        """Tell the progress about new samples."""
        e = self.experiment
        tally = Tally(e.warmup_s, e.duration_s, self.row["cluster"])
        watchers = [Watcher(self.folder / f"samples-{n}.i64") for n in range(e.workers)]

        def look() -> None:
            tally.add(np.concatenate([watcher.new_rows() for watcher in watchers]))
            self.progress.update(e.title, tally)

        return repeated(look, LOOK_EVERY_S)

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

    async def _verified(self, loaders: Loaders, place: Place, series: Series) -> None:
        """Have the store read back, after the companions have left: it is no part of what is measured."""
        self._begins("reading everything back")
        series.mark("read back", f"{await loaders.read_back(place.keeps_events)} events")
        if self._server is not None and (crashes := await self._server.crashes()):
            series.mark("the server crashed", f"{crashes} times, and was started again" if crashes > 1 else "")
            write_rows(self.folder / "counts-server.parquet", "counts", [("server crashes", crashes)])
