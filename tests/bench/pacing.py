"""Figures of pacing: how late arrivals are sent, by one process and by two, and whether what we measure is what pgbench does.

Importing this registers a workload that puts pgbench's own INSERT on a server, without any store of ours in between.
"""

from __future__ import annotations

import asyncio
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import numpy as np
import uvloop
from numpy.typing import NDArray

from eventcore_lab.clock import NS_PER_S, WallClock, now_ns
from eventcore_lab.commands import Executor
from eventcore_lab.experiment import Experiment, measure
from eventcore_lab.lab.disturbances import lateness_ms, loader_cpu
from eventcore_lab.lab.measures import Run
from eventcore_lab.load.chance import mixed
from eventcore_lab.load.workloads import Performer, workloads
from eventcore_lab.load.workloads.workload import Plain
from eventcore_lab.stores import Store
from eventcore_lab.stores.embedded import EmbeddedServer
from tests.bench.figure import TRIALS, Figure, a_lab, interleaved
from tests.bench.stores import DATA, _new_table, pgbench_insert, server_of_our_own

SECONDS = 3.0
CLIENTS, RATE, PGBENCH_S = 10, 500, 8
LATENESS_P50_US, LATENESS_P99_US, CPU = 80.0, 200.0, 25.0
SPIN_P50_US, SPIN_P99_US = 5.0, 50.0
LATENESS_BOUND_MS = 1.0
_PERCENTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
_SQL = """INSERT INTO bench.events (stream_id, version, event_id, event_type, data, meta)
          VALUES ($1, 1, $2, 'TestHappened', $3, ''::bytea)"""


def _lateness(rate: int, *, spins: bool = False, workers: int = 1) -> dict[str, float]:
    """How late arrivals at a constant rate are sent to a store that costs nothing, and what that takes."""
    e = Experiment(
        store="null",
        workload="write_events",
        pacer=f"constant:rate={rate}",
        duration_s=SECONDS,
        warmup_s=0.5,
        spins=spins,
        workers=workers,
    )
    with a_lab() as lab:
        run = Run(lab, lab.ingest(measure(e, lab.spool).folder))
        return {
            "p50 µs": 1e3 * lateness_ms(run, 0.5),
            "p99 µs": 1e3 * lateness_ms(run, 0.99),
            "cpu %": loader_cpu(run),
            "dropped": float(run.outcomes.get("dropped", 0)),
        }


def _bare_timer(rate: int) -> dict[str, float]:
    """The same waits in a loop that does nothing else: what this machine allows at this moment."""

    async def waits() -> NDArray[np.float64]:
        clock, late = WallClock(), []
        start_ns = now_ns() + 10_000_000
        for k in range(int(rate * 1.0)):
            due_ns = start_ns + k * NS_PER_S // rate
            await clock.sleep_until(due_ns)
            late.append(now_ns() - due_ns)
        clock.close()
        return np.sort(late) / 1e3

    late = uvloop.run(waits())
    return {"bare p50 µs": float(late[len(late) // 2]), "bare p99 µs": float(late[len(late) * 99 // 100])}


@contextmanager
def _a_busy_core() -> Iterator[None]:
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def _lateness_figure(name: str, what: str, rate: int, *, spins: bool = False, is_busy: bool = False) -> Figure:
    """The bound over what was measured, the worst of the three (median, p99, processor): 1 or more keeps all."""
    p50, p99, cpu = (SPIN_P50_US, SPIN_P99_US, math.inf) if spins else (LATENESS_P50_US, LATENESS_P99_US, CPU)
    ratios, found = [], []
    for _ in range(TRIALS):
        with _a_busy_core() if is_busy else nullcontext():
            measured = _lateness(rate, spins=spins)
            found.append(measured | _bare_timer(rate))
        ratios.append(min(p50 / measured["p50 µs"], p99 / measured["p99 µs"], cpu / max(measured["cpu %"], 1.0)))
    notes = {key: statistics.median(f[key] for f in found) for key in found[0]}
    return Figure(f"load.{name}", f"bound to lateness {what}", None if is_busy else 1.0, ratios, notes)


def load_lateness_1000() -> Figure:
    return _lateness_figure("lateness_1000", "at 1,000/s: 80 µs p50, 200 µs p99, a quarter of a core", 1000)


def load_lateness_5000() -> Figure:
    return _lateness_figure("lateness_5000", "at 5,000/s: 80 µs p50, 200 µs p99, a quarter of a core", 5000)


def load_lateness_busy() -> Figure:
    return _lateness_figure("lateness_busy", "at 1,000/s beside a busy core: no bound", 1000, is_busy=True)


def load_spin_1000() -> Figure:
    return _lateness_figure("spin_1000", "spinning, 1,000/s: 5 µs p50, 50 µs p99", 1000, spins=True)


def load_spin_5000() -> Figure:
    return _lateness_figure("spin_5000", "spinning, 5,000/s: 5 µs p50, 50 µs p99", 5000, spins=True)


def load_spin_busy() -> Figure:
    return _lateness_figure("spin_busy", "spinning, 1,000/s beside a busy core", 1000, spins=True, is_busy=True)


def load_rate_max() -> Figure:
    """The highest rate at which p99 of lateness stays below a millisecond and nothing is dropped: two workers to one."""
    found = interleaved({"1 worker": partial(_rate_max, 1), "2 workers": partial(_rate_max, 2)}, 3)
    ratios = [two / one for one, two in zip(found["1 worker"], found["2 workers"], strict=True)]
    notes = {f"{arm}/s": statistics.median(rates) for arm, rates in found.items()}
    return Figure("load.rate_max", "highest rate with lateness p99 < 1 ms, 2 workers to 1", None, ratios, notes)


def _rate_max(workers: int) -> float:
    """By steps of a quarter, until one does not keep the bound."""
    rate, kept = 4000.0, 0.0
    while rate < 200_000:
        found = _lateness(int(rate), workers=workers)
        if found["p99 µs"] > 1e3 * LATENESS_BOUND_MS or found["dropped"]:
            break
        rate, kept = rate * 1.25, rate
    return kept


class _Insert(Plain):
    """pgbench's INSERT over CLIENTS connections of asyncpg, each of which does one at a time."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def prepare(self, k: int) -> tuple[str, UUID]:
        chance = mixed(self._seed, k)
        return f"test-{chance >> 2}", UUID(int=chance << 64 | mixed(chance, 0))

    def start(self, store: Store, executor: Executor) -> Performer:
        free: asyncio.LifoQueue[Any] = asyncio.LifoQueue(CLIENTS)
        connecting: list[asyncio.Future[None]] = []

        async def connect() -> None:
            for _ in range(CLIENTS):
                connection = await asyncpg.connect(os.environ["BENCH_DSN"])
                free.put_nowait(await connection.prepare(_SQL))

        async def perform(prepared: Any) -> int:
            if not connecting:
                connecting.append(asyncio.ensure_future(connect()))
            statement = await free.get()
            try:
                await statement.fetch(*prepared, DATA)
            finally:
                free.put_nowait(statement)
            return 1

        return perform


@workloads.register("bench_insert")
def bench_insert(*, seed: int) -> _Insert:
    """pgbench's INSERT, for comparison with pgbench itself."""
    return _Insert(seed)


def load_pgbench() -> list[Figure]:
    """The same INSERT at the same rate with Poisson arrivals and as many clients, by pgbench -R and by us, in turn."""
    with server_of_our_own() as server:
        arms: dict[str, Callable[[], Any]] = {
            "pgbench": partial(_pgbench_at_rate, server),
            "ours": partial(_ours_at_rate, server, False),
            "spinning": partial(_ours_at_rate, server, True),
        }
        found = interleaved(arms)
    figures = []
    for arm, name in (("ours", "load.pgbench"), ("spinning", "load.pgbench_spin")):
        for p in _PERCENTILES:
            pairs = list(zip(found["pgbench"], found[arm], strict=True))
            notes = {f"{who} ms": statistics.median(f[p] for f in found[who]) for who in ("pgbench", arm)}
            what = f"{p} at {RATE}/s by pgbench -R to ours{' spinning' if arm != 'ours' else ''}"
            figures.append(Figure(f"{name}_{p}", what, 0.9, [theirs[p] / ours[p] for theirs, ours in pairs], notes))
    return figures


def _pgbench_at_rate(server: EmbeddedServer) -> dict[str, float]:
    asyncio.run(_new_table(server))
    with tempfile.TemporaryDirectory() as folder:
        more = ["-R", str(RATE), "-l", f"--log-prefix={folder}/log"]
        pgbench_insert(server, CLIENTS, PGBENCH_S, *more)
        lines = [line.split() for path in Path(folder).glob("log*") for line in path.read_text().splitlines()]
    warm_s = min(int(line[4]) for line in lines) + 1
    us = np.sort([int(line[2]) for line in lines if int(line[4]) > warm_s])
    return {name: float(us[int(np.ceil(p * len(us))) - 1]) / 1e3 for name, p in _PERCENTILES.items()}


def _ours_at_rate(server: EmbeddedServer, spins: bool) -> dict[str, float]:
    asyncio.run(_new_table(server))
    e = Experiment(
        store="null",
        workload="bench_insert",
        pacer=f"poisson:rate={RATE}",
        duration_s=PGBENCH_S - 1,
        warmup_s=1,
        spins=spins,
    )
    with a_lab() as lab:
        run = Run(lab, lab.ingest(measure(e, lab.spool).folder))
        assert set(run.outcomes) == {"ok"}
        return {name: run.figure(name).estimate.value for name in _PERCENTILES}


FIGURES: tuple[Callable[[], Figure | list[Figure]], ...] = (
    load_lateness_1000,
    load_lateness_5000,
    load_lateness_busy,
    load_spin_1000,
    load_spin_5000,
    load_spin_busy,
    load_rate_max,
    load_pgbench,
)
