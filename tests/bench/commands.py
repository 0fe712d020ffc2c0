"""Figures of commands: what caching, batching and parallelism bring on the embedded PostgreSQL, fsync on, everything
audited: a run with an invariant that is off is no figure but an error."""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import sys
from functools import partial

import psutil
from scipy import stats as scipy_stats

from eventcore_lab.commands import executors
from eventcore_lab.experiment import Experiment, measure
from eventcore_lab.lab.measures import Run
from eventcore_lab.load.workloads import workloads
from eventcore_lab.stores import PoolSettings, stores
from tests.bench.figure import TRIALS, Figure, a_lab, compared, interleaved
from tests.bench.stores import EVENTCORE, OURS, SECONDS, server_of_our_own

FAST = "batching(cached(direct)):delay_ms=0,in_flight=2"
"""Ours at its best: states remembered, commands that wait decided and appended together."""
GROUPED = "parallel(cached(direct)):limit=1000"
"""The same idea layer by layer, over grouped(…): a cache, commands on one stream in turn, group commit."""
CALLERS = 100
RATES = (2_000, 5_000, 7_500, 10_000, 12_500, 15_000, 17_500, 20_000, 25_000, 30_000)
P95_MS = 10.0


def commands_single_rate() -> Figure:
    """The highest offered rate of single-stream commands that is served with p95 below 10 ms, at most 100 at a time: the
    first targets of EventCore."""
    return _highest("commands.single_rate", OURS, FAST, "update_profile", 5_000)


def commands_grouped_rate() -> Figure:
    """The same with a cache and group commit as separate layers."""
    return _highest("commands.grouped_rate", f"grouped({OURS})", GROUPED, "update_profile", 5_000)


def commands_transfer_rate() -> Figure:
    """The highest offered rate of transfers over two streams that is served with p95 below 10 ms."""
    return _highest("commands.transfer_rate", OURS, FAST, "transfer", 2_000)


def commands_to_plain() -> Figure:
    """Single-stream commands of 100 callers, against the plain executor on the plain store."""
    arms = partial(_rate, OURS, "update_profile", FAST), partial(_rate, OURS, "update_profile", "direct")
    return _against("commands.to_plain", "single-stream commands, 100 callers, to direct on postgres", 4, *arms)


def commands_grouped_to_plain() -> Figure:
    """The same with a cache and group commit as separate layers."""
    ours = partial(_rate, f"grouped({OURS})", "update_profile", GROUPED)
    theirs = partial(_rate, OURS, "update_profile", "direct")
    return _against("commands.grouped_to_plain", "cache and group commit, 100 callers, to direct", 4, ours, theirs)


def commands_to_eventcore() -> Figure:
    """Single-stream commands of 100 callers, against EventCore's tables and statements."""
    ours, theirs = partial(_rate, OURS, "update_profile", FAST), partial(_rate, EVENTCORE, "update_profile", "direct")
    return _against(
        "commands.to_eventcore", "single-stream commands, 100 callers, to postgres:eventcore", 8, ours, theirs
    )


def commands_transfers() -> Figure:
    """Transfers of 100 callers, against 2,000 a second."""
    return _to_target(
        "commands.transfers", "two-stream transfers per second, 100 callers", 2_000, OURS, "transfer", FAST
    )


def commands_events() -> Figure:
    """Events appended in batches of 100, against 20,000 a second."""
    name, what = "commands.events", "events per second in appends of 100, 10 callers, grouped"
    with server_of_our_own():
        run = partial(
            _rate, f"grouped({OURS})", "write_events:batch=100", "direct", callers=10, figure="events_per_second"
        )
        rates = [run() for _ in range(TRIALS)]
    return Figure(name, f"{what}, to 20,000", 1, [r / 20_000 for r in rates], {"/s": statistics.median(rates)})


def commands_cached_long() -> Figure:
    """Commands on streams of a thousand events, remembered against read each time, by a hundred callers who keep out of each
    other's way, with group commit in both arms."""
    what = "cached on 1,000-event streams, 100 callers, to direct (both in parallel, grouped)"
    return _cached_long("commands.cached_long", what, 10, f"grouped({OURS})", 100)


def commands_cached_long_plain() -> Figure:
    """The same by ten callers, each append a commit of its own."""
    what = "cached on 1,000-event streams, 10 callers, to direct (both in parallel)"
    return _cached_long("commands.cached_long_plain", what, None, OURS, 10)


def _cached_long(name: str, what: str, floor: float | None, store: str, callers: int) -> Figure:
    arms = [
        partial(_rate, store, "long_streams:streams=100", f"parallel({inner}):limit={callers}", callers=callers)
        for inner in ("cached(direct)", "direct")
    ]
    return _against(name, what, floor, *arms)


def commands_cached_long_alone() -> Figure:
    """The same by one caller, whose commands are then mostly the append's flush to the disk."""
    what, workload = "cached on 1,000-event streams, 1 caller, to direct", "long_streams:streams=10"
    arms = [partial(_rate, OURS, workload, executor, callers=1) for executor in ("cached(direct)", "direct")]
    return _against("commands.cached_long_alone", what, None, *arms)


def commands_cached_short() -> Figure:
    """Commands on streams of one event, of which the cache has hardly one: what asking it costs."""
    what, workload = (
        "cached on 1-event streams, nearly all missed, 10 callers, to direct",
        "update_profile:users=100000",
    )
    arms = [partial(_rate, OURS, workload, executor, callers=10) for executor in ("cached(direct)", "direct")]
    return _against("commands.cached_short", what, 0.95, *arms)


def commands_parallel_disjoint() -> Figure:
    """Commands on streams of their own, ten at a time against one at a time."""
    what = "parallel:limit=10 on disjoint streams, to limit=1, 10 callers"
    arms = [partial(_rate, OURS, "create_user", f"parallel(direct):limit={n}", callers=10) for n in (10, 1)]
    return _against("commands.parallel_disjoint", what, 3, *arms)


def commands_parallel_hot() -> Figure:
    """Commands that contend for one stream, in turn against all at once."""
    what = "parallel on one hot stream, 10 callers, to direct"
    arms = [partial(_rate, OURS, "reserve", executor, callers=10) for executor in ("parallel(direct)", "direct")]
    return _against("commands.parallel_hot", what, 0.9, *arms)


def commands_parallel_conflicts() -> Figure:
    """How many tries conflict on one hot stream: direct against parallel, each with one added so that none is no infinity."""
    what = "share of tries that conflict on one hot stream, direct to parallel (+1 % each)"
    with server_of_our_own():
        arms = {
            name: partial(_rate, OURS, "reserve", executor, callers=10, figure="conflicts/attempts")
            for name, executor in (("direct", "direct"), ("parallel", "parallel(direct)"))
        }
        found = interleaved(arms)
    ratios = [(a + 1) / (b + 1) for a, b in zip(found["direct"], found["parallel"], strict=True)]
    notes = {f"{name} %": statistics.median(values) for name, values in found.items()}
    return Figure("commands.parallel_conflicts", what, 1.01, ratios, notes)


def commands_batching_hot() -> Figure:
    """Commands that contend for one stream, decided on each other's events and appended together, against all at once."""
    what = "batching on one hot stream, 100 callers, to direct"
    arms = [partial(_rate, OURS, "reserve", executor) for executor in (FAST, "direct")]
    return _against("commands.batching_hot", what, None, *arms)


COMMANDS = 10_000
GROWTH_MAX = 100 * 2**20


def commands_memory() -> Figure:
    """The chapter's memory test, measured: how much a process grows over ten thousand commands, from its slope."""
    growths, slopes = [], []
    with server_of_our_own():
        for _ in range(3):
            script = [sys.executable, "-m", "tests.bench.commands"]
            out = subprocess.run(script, capture_output=True, text=True, check=True, timeout=120).stdout.split()
            slope, low, high = map(float, out)
            slopes.append((slope, low, high))
            growths.append(max(slope * COMMANDS, 1.0))
    slope, low, high = sorted(slopes)[1]
    notes = {"bytes per command": slope, "low": low, "high": high, "MiB grown": statistics.median(growths) / 2**20}
    what = "100 MiB, to what a process grows over 10,000 commands (Theil–Sen slope, 95 % interval)"
    return Figure("commands.memory", what, 1, [GROWTH_MAX / growth for growth in growths], notes)


FIGURES = (
    commands_single_rate,
    commands_grouped_rate,
    commands_transfer_rate,
    commands_to_plain,
    commands_grouped_to_plain,
    commands_to_eventcore,
    commands_transfers,
    commands_events,
    commands_cached_long,
    commands_cached_long_plain,
    commands_cached_long_alone,
    commands_cached_short,
    commands_parallel_disjoint,
    commands_parallel_hot,
    commands_parallel_conflicts,
    commands_batching_hot,
    commands_memory,
)


def _against(name: str, what: str, floor: float | None, ours: partial[float], theirs: partial[float]) -> Figure:
    with server_of_our_own():
        return compared(name, what, floor, ours, theirs)


def _to_target(name: str, what: str, target: float, store: str, workload: str, executor: str) -> Figure:
    with server_of_our_own():
        rates = [_rate(store, workload, executor) for _ in range(TRIALS)]
    return Figure(name, f"{what}, to {target:,.0f}", 1, [r / target for r in rates], {"/s": statistics.median(rates)})


def _experiment(store: str, workload: str, executor: str, pacer: str) -> Experiment:
    return Experiment(
        store=store,
        workload=workload,
        executor=executor,
        pacer=pacer,
        duration_s=SECONDS,
        warmup_s=0.5,
        connections=10,
        in_flight_max=CALLERS,
    )


def _rate(
    store: str, workload: str, executor: str, callers: int = CALLERS, figure: str = "commands_per_second"
) -> float:
    """A figure of one closed loop, audited."""
    return _found(_experiment(store, workload, executor, f"saturate:concurrency={callers}"), figure)[figure]


def _found(e: Experiment, *figures: str) -> dict[str, float]:
    with a_lab() as lab:
        run = Run(lab, lab.ingest(measure(e, lab.spool).folder))
        assert not set(run.invariants["status"]) & {"violated", "broken"}, run.invariants
        found = {name: run.figure(name).estimate.value for name in figures}
        return found | {"served": run.outcomes.get("ok", 0) / max(sum(run.outcomes.values()), 1)}


def _highest(name: str, store: str, executor: str, workload: str, target: float) -> Figure:
    """The highest of RATES that is served in time, in each of TRIALS climbs."""
    highest, p95s = [], []
    with server_of_our_own():
        for _ in range(3):
            rate, p95 = _climb(store, executor, workload)
            highest.append(rate)
            p95s.append(p95)
    what = f"highest rate of {workload} with p95 < {P95_MS:g} ms, to {target:,.0f}"
    return Figure(name, what, 1, [r / target for r in highest], {"/s": statistics.median(highest), "p95 ms": max(p95s)})


def _climb(store: str, executor: str, workload: str) -> tuple[float, float]:
    """The last of RATES before the first that is not served in time (99.9 % answered, and each within its time), and p95."""
    best = (0.0, 0.0)
    for rate in RATES:
        found = _found(_experiment(store, workload, executor, f"poisson:rate={rate}"), "p95", "commands_per_second")
        if not (found["p95"] < P95_MS and found["served"] >= 0.999):
            break
        best = rate, found["p95"]
    return best


async def _slope() -> tuple[float, float, float]:
    """Bytes per command over COMMANDS commands after as many for warming up, from the process's USS at 50 instants."""
    driver = stores.make(OURS)
    async with driver.provision() as place:
        store = await driver.connect(place.address, PoolSettings.sized(4))
        executor, workload = executors.make(FAST, store=store, seed=1), workloads.make("create_user", seed=1)
        process, done, sizes = psutil.Process(), [], []
        for k in range(0, 2 * COMMANDS, 200):
            await asyncio.gather(*[executor.execute(workload.prepare(n)) for n in range(k, k + 200)])
            if k >= COMMANDS:
                done.append(k - COMMANDS)
                sizes.append(process.memory_full_info().uss)
        await executor.close()
        await store.close()
    found = scipy_stats.theilslopes(sizes, done, alpha=0.95)
    return float(found.slope), float(found.low_slope), float(found.high_slope)


if __name__ == "__main__":
    assert os.environ["BENCH_DSN"]
    print(*asyncio.run(_slope()))
