"""An experiment as one frozen value, and `measure`: open, warm up, drive, verify, hand over.

What comes out is a folder in the spool with the facts of the run (schema.py); judging them is the Lab's work.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
import secrets
import threading
from collections.abc import AsyncIterator, Callable
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
from eventcore_lab.load.drive import BACKLOG_POLICIES
from eventcore_lab.load.follower import FollowerJob
from eventcore_lab.load.pacers import pacers
from eventcore_lab.load.recorder import Watcher
from eventcore_lab.load.worker import Job
from eventcore_lab.load.workers import START_TIMEOUT_S, Followers, Worker, WorkerDied
from eventcore_lab.load.workloads import workloads
from eventcore_lab.machine import environment, environment_id
from eventcore_lab.progress import Progress, Quiet, Tally
from eventcore_lab.schema import ENVIRONMENT_FILE, LOCK_FILE, RUN_FILE, SCHEMA_VERSION
from eventcore_lab.spec import UsageError, parse, unknown
from eventcore_lab.stores import Place, PoolSettings, stores

CLOSED_LOOP_RATE_MAX = 200_000
"""Operations per second that a closed loop's recorder makes room for; the file is sparse, so room costs nothing."""
CAPACITY_MAX = 50_000_000
START_DELAY_NS = 100_000_000
LOOK_EVERY_S = 0.25
FOLLOWER_CONNECTIONS = 2
LIMITS: dict[str, tuple[float, float]] = {
    "duration_s": (0.05, 86_400),
    "warmup_s": (0, 3_600),
    "connections": (1, 1_000),
    "in_flight_max": (1, 10_000),
    "backlog_max": (0, 1_000_000),
    "timeout_s": (0.01, 3_600),
    "seed": (0, 2**63 - 1),
    "trial": (0, 1_000_000),
    "followers": (0, 8),
}


class Experiment(Struct, frozen=True, kw_only=True):
    """What to measure. Scalars only: the same words are notebook parameters, flags and columns of `runs`.

    `connections` is the size of the store's pool. In an open loop at most `in_flight_max` operations run at once,
    `backlog_max` more arrivals wait, and `backlog_policy` says what becomes of the next: `drop` (it is recorded as
    dropped), `queue` (it waits outside) or `abort` (the run ends). An operation waits at most `timeout_s` for a
    connection and again for each answer. `followers` are processes that read the store from its beginning while the load
    runs, each with a few connections of its own.
    """

    store: str = "postgres"
    workload: str = "create_user"
    pacer: str = "saturate:concurrency=10"
    duration_s: float = 10.0
    warmup_s: float = 1.0
    seed: int = 1
    connections: int = 20
    in_flight_max: int = 200
    backlog_max: int = 10_000
    backlog_policy: str = "drop"
    timeout_s: float = 30.0
    followers: int = 0
    trial: int = 0
    label: str = ""

    def __post_init__(self) -> None:
        for name, (low, high) in LIMITS.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise UsageError(f"{name} must be {low:g} to {high:g}, not {value:g}")
        if self.backlog_policy not in BACKLOG_POLICIES:
            raise unknown("backlog_policy", self.backlog_policy, BACKLOG_POLICIES)
        if self.followers and not stores.make(self.store).is_shared:
            raise UsageError(f"followers need a store that several processes can open, and {self.store} is not")
        stores.make(self.store)
        workloads.make(self.workload, seed=self.seed)
        self.check_schedule()

    def check_schedule(self) -> None:
        """Refuse more arrivals than a schedule may hold, before anything is started."""
        rate = getattr(pacers.make(self.pacer), "rate", 0.0)
        if rate * (self.duration_s + self.warmup_s) > CAPACITY_MAX / 2:
            raise UsageError(f"{self.pacer} for {self.duration_s:g} s is too many operations for one run")

    @property
    def is_closed_loop(self) -> bool:
        return pacers.make(self.pacer).callers > 0

    @property
    def title(self) -> str:
        """What a progress line calls it."""
        return self.label or f"{self.workload} · {self.pacer}"

    @property
    def experiment_id(self) -> str:
        """The same for runs that differ only in trial, seed or label."""
        same = {k: v for k, v in msgspec.structs.asdict(self).items() if k not in ("trial", "seed", "label")}
        return hashlib.sha256(msgspec.json.encode(same, order="sorted")).hexdigest()[:12]


def with_option(store: str, name: str, value: str | float) -> str:
    """The spec of a store with one option more: `with_option("postgres:none", "hold_ms", 5)`. A store that has no such
    option, or has been given it already, stays as it is."""
    spec = parse(store, "store")
    if not stores.accepts(store, name) or name in dict(spec.options):
        return store
    return str(msgspec.structs.replace(spec, options=(*spec.options, (name, str(value)))))


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
            followers = await stack.enter_async_context(Followers.spawned(self._follower_jobs(place), self._lock))
            await self._loaded(worker, followers, place, series)
            await self._followed(followers, series)
            if place.is_new:
                await self._verified(worker, series)
            else:
                series.mark("not read back", "the store had events before this run")

    def abandon(self) -> None:
        """Called from another thread at the second Ctrl-C: the worker is ended, whatever it is doing."""
        if self._worker is not None and self._loop is not None:
            asyncio.run_coroutine_threadsafe(self._worker.end(timeout_s=0.2), self._loop)

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
        rate = getattr(pacers.make(e.pacer), "rate", CLOSED_LOOP_RATE_MAX)
        return Job(
            spool=str(self.folder.resolve()),
            worker=0,
            workers=1,
            store=e.store,
            address=place.address,
            workload=e.workload,
            pacer=e.pacer,
            seed=e.seed,
            warmup_ns=int(e.warmup_s * NS_PER_S),
            total_ns=int(total_s * NS_PER_S),
            pool=self._pool(e.connections),
            in_flight_max=e.in_flight_max,
            backlog_max=e.backlog_max,
            backlog_policy=e.backlog_policy,
            capacity=min(CAPACITY_MAX, int(2 * rate * total_s) + 10_000),
        )

    def _pool(self, connections: int) -> PoolSettings:
        timeout_s = self.experiment.timeout_s
        pool = PoolSettings.sized(connections)
        return msgspec.structs.replace(pool, acquire_timeout_s=timeout_s, command_timeout_s=timeout_s)

    def _follower_jobs(self, place: Place) -> list[FollowerJob]:
        spool, pool = str(self.folder.resolve()), self._pool(FOLLOWER_CONNECTIONS)
        store, address = self.experiment.store, place.address
        return [
            FollowerJob(spool=spool, reader=reader, store=store, address=address, pool=pool)
            for reader in range(self.experiment.followers)
        ]

    @asynccontextmanager
    async def _working(self, place: Place) -> AsyncIterator[Worker[Job]]:
        self._worker = worker = await Worker.spawn(self._job(place), self._lock)
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                await worker.heard("ready")
            yield worker
        finally:
            await worker.end()

    async def _loaded(self, worker: Worker[Job], followers: Followers, place: Place, series: Series) -> None:
        """The load itself, with the companions around it."""
        e = self.experiment
        sources: dict[str, Callable[[], list[int]]] = {"loader": lambda: [worker.pid], "server": place.server_pids}
        if not place.server_pids():
            del sources["server"]
        series.start_ns = now_ns() + START_DELAY_NS
        async with resources(series, sources):
            await followers.go(series.start_ns)
            await worker.say("go", series.start_ns)
            series.mark("load begins", e.workload, series.start_ns)
            async with self._watching(worker):
                loaded = await followers.beside(worker.heard("loaded"))
        series.mark("load ends", loaded["reason"])
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

    async def _followed(self, followers: Followers, series: Series) -> None:
        """Have the followers read what the load has left, also after the companions have gone."""
        for n, done in enumerate(await followers.finish()):
            suffix = "" if done["has_caught_up"] else ", and had not caught up when its time was over"
            series.mark("followed", f"reader {n}: {done['delivered']} events{suffix}")

    async def _verified(self, worker: Worker[Job], series: Series) -> None:
        """Have the store read back, after the companions have left: it is no part of what is measured."""
        self.progress.phase(self.experiment.title, "reading everything back")
        await worker.say("verify")
        done = await worker.heard("done")
        series.mark("read back", f"{done['stored']} events")
