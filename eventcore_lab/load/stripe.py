"""One load process on whatever machine an executor chose: what is submitted there, and what comes back.

`stripe` starts `python -m eventcore_lab.load.worker` in a folder of its own, as a run does on its own machine, has it begin
at a time of that machine's monotonic clock, and brings back its files as bytes. `look` tells what that clock says, `hear`
is how a cluster passes a word on to the stripes of a machine. All three are found by name there, so the package has to be
installed there too.
"""

from __future__ import annotations

import asyncio
import platform
import signal
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from msgspec import Struct

from eventcore_lab.clock import NS_PER_S, now_ns, sleep_s
from eventcore_lab.events import StoreError
from eventcore_lab.load.folders import is_held, taken
from eventcore_lab.load.worker import Job
from eventcore_lab.load.workers import START_TIMEOUT_S, Worker, WorkerDied
from eventcore_lab.schema import LOCK_FILE, SAMPLE_WORDS

GATHERED_BYTES_MAX = 512 * 1024**2
"""What one stripe may bring back, compressed: about 20 bytes for each sample, 60 for each event appended."""
LEASE_S = 30.0
"""A stripe that is told nothing for so long, though its cluster passes words on, belongs to a run that is gone."""
STOP_FILE = "stop"
"""In the run's own folder: where that can be seen, its stripes stop."""
_EVIDENCE = ("writes", "reads", "joint_reads", "counts", "executed")
_LOOK_EVERY_S = 0.1
_USAGE_EVERY_S, _USAGES_MAX = 0.25, 2000
_ROWS_AT_ONCE = 1 << 17


class Seen(Struct, frozen=True):
    """Where a function ran, and what the monotonic clock said there. `machine` is the same for processes that share it."""

    machine: str
    host: str
    now_ns: int
    python: str
    version: str


def look() -> Seen:
    """What is seen from the process that calls this."""
    return Seen(_machine(), platform.node(), now_ns(), platform.python_version(), _version())


@cache
def _machine() -> str:
    """The kernel's boot, not the host's name: containers of one machine have many names and one clock."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{platform.node()} since {psutil.boot_time():.0f}"


@cache
def _version() -> str:
    try:
        return version("eventcore_lab")
    except PackageNotFoundError:
        return "not installed"


class Order:
    """What one stripe is to do. `starts`: machine → when to start by its clock, ns; None for a rehearsal, which ends when the
    load process is ready. On `machine` the run's own folder is `home`. `has_beats`: the cluster passes words on."""

    def __init__(
        self,
        *,
        token: str,
        job: bytes,
        home: str,
        machine: str,
        has_beats: bool,
        starts: dict[str, int] | None = None,
    ) -> None:
        self.token, self.job, self.home, self.machine = token, job, home, machine
        self.has_beats, self.starts = has_beats, starts

    def __repr__(self) -> str:
        return f"Order({self.token})"  # the job has the store's DSN, and executors write what they are given into logs


class Usage(Struct, frozen=True):
    """What a load process used: `cpu_percent` of a core since the last look, memory as PSS; ns since the start."""

    t_ns: int
    cpu_percent: float
    pss_bytes: int

    def gauges(self, source: str) -> list[tuple[str, str, float, int]]:
        """As gauges (source, name, value, ns since the start)."""
        return [
            (source, "cpu_percent", self.cpu_percent, self.t_ns),
            (source, "pss_bytes", float(self.pss_bytes), self.t_ns),
        ]


def gauges_of(usages: dict[int, list[Usage]]) -> list[tuple[str, str, float, int]]:
    """What each of several load processes used, and all of them together at the times that all were looked at."""
    found: list[tuple[str, str, float, int]] = []
    sums: dict[int, list[Usage]] = {}
    for n, usage in usages.items():
        for u in usage:
            sums.setdefault(u.t_ns, []).append(u)
            if len(usages) > 1:
                found += u.gauges(f"worker {n}")
    for t_ns, parts in sorted(sums.items()):
        if len(parts) == len(usages):
            found += Usage(t_ns, sum(u.cpu_percent for u in parts), sum(u.pss_bytes for u in parts)).gauges("loader")
    return found


class Gathered(Struct, frozen=True, kw_only=True):
    """What a stripe brings back: where it ran, what its process said in the end (`facts`; {} if it did not come to that,
    and then `error` says why), its files by name, and what it used."""

    seen: Seen
    pid: int
    took_ns: int
    facts: dict[str, Any]
    error: str = ""
    files: dict[str, bytes] = {}
    usage: list[Usage] = []


class _Ear:
    """What a stripe has been told: whether to stop, and when it was last told anything."""

    def __init__(self) -> None:
        self.is_stopped, self.heard_ns = False, now_ns()


_ears: dict[str, _Ear] = {}
"""By token, the stripes that run in this process."""


def hear(tokens: Sequence[str], stop: bool) -> None:
    """Tell the stripes of these tokens that run in this process that the run is there, and whether it wants them to stop."""
    for ear in [_ears[token] for token in tokens if token in _ears]:
        ear.heard_ns, ear.is_stopped = now_ns(), ear.is_stopped or stop


def stripe(order: Order) -> Gathered:
    """Carry out `order`, to its end. What goes wrong with the store or the load process is in the result, not raised."""
    with _no_interrupts():
        return asyncio.run(_Stripe(order).whole())


@contextmanager
def _no_interrupts() -> Iterator[None]:
    """The terminal's Ctrl-C, which reaches the processes of a pool as well, is for the run, which then says `stop`."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class _Stripe:
    def __init__(self, order: Order) -> None:
        self.order, self.began_ns, self.pid, self.ready_ns = order, now_ns(), 0, 0
        # Decided once: a container of the same kernel, or another user, may never see the run's folder, and that it is not
        # seen must not mean to them that the run has ended.
        self.sees_run = order.machine == _machine() and _is_there(Path(order.home))
        self.usage: list[Usage] = []

    async def whole(self) -> Gathered:
        self.ear = _ears[self.order.token] = _Ear()
        facts: dict[str, Any] = {}
        error = ""
        files: dict[str, bytes] = {}
        try:
            with taken("stripe") as (folder, lock):
                job = msgspec.structs.replace(msgspec.json.decode(self.order.job, type=Job), spool=str(folder))
                try:
                    facts = await self._carried_out(job, lock)
                except (StoreError, WorkerDied, OSError, TimeoutError) as wrong:
                    error = str(wrong) or type(wrong).__name__
                if self.order.starts is not None:
                    files, too_much = gathered(folder, job.worker)
                    error = error or too_much
        finally:
            del _ears[self.order.token]
        took_ns = (self.ready_ns or now_ns()) - self.began_ns
        return Gathered(
            seen=look(), pid=self.pid, took_ns=took_ns, facts=facts, error=error, files=files, usage=self.usage
        )

    async def _carried_out(self, job: Job, lock: int) -> dict[str, Any]:
        start_ns = self._start_ns()
        worker = None
        try:
            worker = await Worker.spawn(job, lock)
            self.pid = worker.pid
            async with asyncio.timeout(START_TIMEOUT_S):
                ready = await worker.heard("ready")
            self.ready_ns = now_ns()
            if self.order.starts is None:
                return ready
            self._check_ahead(start_ns)
            await worker.say("go", start_ns)
            async with self._beside(worker, start_ns, job.total_ns):
                return await worker.heard("loaded")
        finally:
            if worker is not None:
                await worker.end()

    def _start_ns(self) -> int:
        """When to start by this machine's clock. Raises WorkerDied when that is past: somebody starts it a second time."""
        if self.order.starts is None:
            return 0
        if _machine() not in self.order.starts:
            raise WorkerDied("it was given to a machine whose clock had not been compared with the run's")
        self._check_ahead(start := self.order.starts[_machine()])
        return start

    def _check_ahead(self, start_ns: int) -> None:
        if (late_ns := now_ns() - start_ns) > 0:
            raise WorkerDied(
                f"was not ready at the start, but {late_ns / NS_PER_S:.1f} s after it "
                "(has the executor a place for every worker, and nothing else to do?)"
            )

    @asynccontextmanager
    async def _beside(self, worker: Worker[Job], start_ns: int, total_ns: int) -> AsyncIterator[None]:
        """Listen for the run, and look at what the load process uses, until the end of the block."""
        every_s = max(_USAGE_EVERY_S, total_ns / NS_PER_S / _USAGES_MAX)
        tasks = [
            asyncio.ensure_future(work) for work in (self._listen(worker), self._watch(worker.pid, start_ns, every_s))
        ]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _listen(self, worker: Worker[Job]) -> None:
        while not self._is_told_to_stop():
            await sleep_s(_LOOK_EVERY_S)
        await worker.say("stop")

    def _is_told_to_stop(self) -> bool:
        if self.ear.is_stopped:
            return True
        home = Path(self.order.home)
        if self.sees_run and (not _is_there(home) or (home / STOP_FILE).exists()):
            return True
        return self.order.has_beats and now_ns() - self.ear.heard_ns > LEASE_S * NS_PER_S

    async def _watch(self, pid: int, start_ns: int, every_s: float) -> None:
        """What the process used, at the same times after the start on every machine."""
        process, spent_s, pss = psutil.Process(pid), None, 0
        for tick in range(_USAGES_MAX):
            at_ns = start_ns + int(tick * every_s * NS_PER_S)
            await sleep_s(max(0.0, (at_ns - now_ns()) / NS_PER_S))
            with suppress(psutil.Error):
                times = process.cpu_times()
                if not tick % 4:  # reading it walks page tables
                    memory = process.memory_full_info()
                    pss = getattr(memory, "pss", memory.rss)
                if spent_s is not None:
                    percent = 100 * (times.user + times.system - spent_s) / every_s
                    self.usage.append(Usage(at_ns - start_ns, percent, pss))
                spent_s = times.user + times.system


def _is_there(home: Path) -> bool:
    """Whether the run whose folder this is can be seen from here, and has neither ended nor died: somebody holds its lock."""
    try:
        return is_held(home / LOCK_FILE)
    except OSError:
        return False


def gathered(folder: Path, worker: int, bytes_max: int = GATHERED_BYTES_MAX) -> tuple[dict[str, bytes], str]:
    """The files of `worker` by name, its samples first, and what there is to say of those left out for their size."""
    raw, packed = folder / f"samples-{worker}.i64", folder / f"samples-{worker}.parquet"
    if raw.exists():
        pack_samples(raw, packed)
    found: dict[str, bytes] = {}
    names = [packed.name, *(f"{table}-{worker}.parquet" for table in _EVIDENCE)]
    sizes = {name: (folder / name).stat().st_size for name in names if (folder / name).exists()}
    if (total := sum(sizes.values())) > bytes_max:
        sizes = {name: size for name, size in sizes.items() if name == packed.name and size <= bytes_max}
    for name in sizes:
        found[name] = (folder / name).read_bytes()
    return found, "" if total <= bytes_max else (
        f"recorded {total / 1024**2:,.0f} MiB, and at most {bytes_max / 1024**2:,.0f} MiB are gathered of a worker: choose a "
        "shorter duration_s, a lower rate, or more workers"
    )


def pack_samples(raw: Path, packed: Path) -> None:
    """Samples as they are recorded (schema.SAMPLE_WORDS) as Parquet, in parts; what was never begun is left out."""
    schema = pa.schema([(name, pa.int64()) for name in SAMPLE_WORDS])
    with pq.ParquetWriter(packed, schema, compression="zstd") as writer, raw.open("rb") as file:
        while data := file.read(_ROWS_AT_ONCE * 8 * len(SAMPLE_WORDS)):
            whole = len(data) // (8 * len(SAMPLE_WORDS)) * len(SAMPLE_WORDS)
            rows = np.frombuffer(data, np.int64, whole).reshape(-1, len(SAMPLE_WORDS))
            begun = rows[rows[:, -1] != 0]
            writer.write_table(pa.table({name: begun[:, i] for i, name in enumerate(SAMPLE_WORDS)}, schema))
            if len(begun) < len(rows):  # rows are begun in their order: the rest of a sparse file need not be read
                break
