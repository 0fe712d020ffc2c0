"""The same load in real time on this machine, for a second or two: how late it is, and what that makes of the percentiles.

Told, not judged: it is the machine that is looked at here, and what else it does.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import uvloop

from eventcore_lab.clock import NS_PER_S, WallClock
from eventcore_lab.lab import stats
from eventcore_lab.lab.evidence import raw_samples
from eventcore_lab.load.recorder import Recorder
from eventcore_lab.selftest import theory
from eventcore_lab.selftest.model import (
    MS_NS,
    Nanoseconds,
    Rows,
    Server,
    Setting,
    driven_to_its_end,
    exponential_ns,
    load_of,
    schedule,
)
from eventcore_lab.selftest.table import number

RHO = 0.5
PERCENTILES = (0.5, 0.95, 0.99)
_START_DELAY_NS = 50_000_000


def measured(seconds: float, seed: int) -> str:
    """A few lines of text."""
    rng, per_s = np.random.default_rng([seed, 99]), RHO * 1000
    setting = Setting(pacer=f"poisson:rate={per_s:g}", per_s=per_s, samples=int(per_s * seconds))
    due = schedule(setting.pacer, int(seconds * NS_PER_S), rng)
    service_ns = exponential_ns(rng, len(due))
    rows = _in_real_time(setting, due, service_ns)
    late_us = np.sort(rows.offered_ns - rows.due_ns) / 1000
    p50, p99, most = (f"{stats.percentile(late_us, p):,.0f} µs" for p in (0.5, 0.99, 1))
    replayed_ms, response_ms = theory.lindley(due, service_ns) - due, rows.latency_ns
    lines = [
        "",
        "Measured in real time on this machine; not judged",
        f"  M/M/1 at ρ = {RHO:g}: {len(rows):,} arrivals, poisson, in {seconds:g} s; a server that sleeps 1 ms on average",
        f"  the load was late by {p50} (p50), {p99} (p99), {most} at most",
        f"  {'':<27}{'theory':>12}{'a replay':>12}{'measured':>12}",
    ]
    for p in PERCENTILES:
        replay, found = (stats.percentile(np.sort(ns), p) / MS_NS for ns in (replayed_ms, response_ms))
        expected = theory.mm1_response(p, RHO)
        lines.append(
            f"  {f'response p{100 * p:g}, ms':<27}" + "".join(f"{number(x):>12}" for x in (expected, replay, found))
        )
    return "\n".join([*lines, "  (a replay: these arrivals and services by Lindley's recursion, with nobody late)"])


def _in_real_time(setting: Setting, due: Nanoseconds, service_ns: Nanoseconds) -> Rows:
    with TemporaryDirectory() as folder:
        part = Path(folder) / "samples-0.i64"
        with Recorder(part, len(due)) as recorder, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_driven(setting, recorder, due, service_ns))
        return Rows(raw_samples(part))


async def _driven(setting: Setting, recorder: Recorder, due: Nanoseconds, service_ns: Nanoseconds) -> None:
    clock = WallClock()
    try:
        server = Server(clock, service_ns.tolist())
        start_ns = clock.now_ns() + _START_DELAY_NS
        await driven_to_its_end(load_of(setting, clock, recorder, server.perform, start_ns, due))
    finally:
        clock.close()
