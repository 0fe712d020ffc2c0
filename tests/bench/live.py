"""Figures of watching: what a live dashboard, open in one browser, costs the load beside it."""

from __future__ import annotations

import contextlib
import statistics
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException

import psutil

from eventcore_lab.clock import NS_PER_S, now_ns
from eventcore_lab.experiment import Experiment, measure
from eventcore_lab.lab.database import Lab
from eventcore_lab.lab.measures import Run
from eventcore_lab.monitor.beside import live
from tests.bench.figure import Figure, a_lab, interleaved

SECONDS = 5.0
TRIALS = 7


def live_cost() -> Figure:
    """Throughput of a closed loop with a monitor beside it, and a dashboard that listens, against without."""
    spent: list[float] = []
    found = interleaved({"on": lambda: _rate(spent), "off": lambda: _rate(None)}, TRIALS)
    ratios = [on / off for on, off in zip(found["on"], found["off"], strict=True)]
    notes = {f"{arm}/s": statistics.median(rates) for arm, rates in found.items()}
    notes["monitor, % of a core"] = statistics.median(spent)
    return Figure(
        "live.cost", "a closed loop on memory beside --live and one dashboard, to without", 0.99, ratios, notes
    )


def _rate(spent: list[float] | None) -> float:
    """Commands per second; with a monitor beside it, whose processor time goes to `spent`, in per cent of a core."""
    with a_lab() as lab, contextlib.nullcontext() if spent is None else _watched(lab, spent):
        lab.check()
        e = Experiment(store="memory", pacer="saturate:concurrency=1", duration_s=SECONDS, warmup_s=0.5)
        folder = measure(e, lab.spool).folder
        return Run(lab, lab.ingest(folder)).figure("commands_per_second").estimate.value


@contextmanager
def _watched(lab: Lab, spent: list[float]) -> Iterator[None]:
    with live(lab, port=0) as url:
        running = [p for p in psutil.Process().children() if p.status() != psutil.STATUS_ZOMBIE]
        (monitor,) = [p for p in running if "eventcore_lab.monitor" in p.cmdline()]
        listener = threading.Thread(target=_listen, args=(url.replace("dashboard", "events"),), daemon=True)
        listener.start()
        began_ns, before = now_ns(), monitor.cpu_times()
        yield
        after, passed_s = monitor.cpu_times(), (now_ns() - began_ns) / NS_PER_S
        spent.append(100 * (after.user + after.system - before.user - before.system) / passed_s)
    listener.join(10)


def _listen(url: str) -> None:
    with contextlib.suppress(OSError, HTTPException), urllib.request.urlopen(url, timeout=60) as stream:
        while stream.readline():
            pass
