"""Memory and processor time of everybody who takes part: the loader, the server's processes, the machine.

Memory is PSS (proportional set size): a page that n processes share counts 1/n in each, so the sum over a server's
processes is what the server really takes; their RSS would count shared_buffers once per connection. Reading PSS walks
page tables, so the probe watches its own cost and slows down rather than take more than 1 % of a core.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress

import psutil

from eventcore_lab.clock import NS_PER_S, now_ns, sleep_s
from eventcore_lab.companions.series import Series

COST_SHARE_MAX = 0.01
INTERVAL_MAX_S = 5.0

Pids = Callable[[], Sequence[int]]


@asynccontextmanager
async def resources(series: Series, sources: Mapping[str, Pids], interval_s: float = 0.25) -> AsyncIterator[None]:
    """Gauges `pss_bytes`, `rss_bytes`, `processes` and `cpu_percent` (of one core) per source, and `busy_percent`,
    `steal_percent` of the whole machine, about every `interval_s` from now until the end, both included."""
    probe = _Probe(series, sources)
    probe.sample()
    task = asyncio.ensure_future(_repeatedly(probe, interval_s))
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        probe.sample()


async def _repeatedly(probe: _Probe, interval_s: float) -> None:
    while True:
        cost_s = probe.last_cost_ns / NS_PER_S
        await sleep_s(min(max(interval_s, cost_s / COST_SHARE_MAX), INTERVAL_MAX_S))
        probe.sample()


class _Probe:
    def __init__(self, series: Series, sources: Mapping[str, Pids]) -> None:
        self._series, self._sources = series, sources
        self._processes: dict[int, psutil.Process] = {}
        self._spent_s: dict[int, float] = {}
        self._machine = psutil.cpu_times()
        self._sampled_ns = now_ns()
        self._has_sampled = False
        self.last_cost_ns = 0

    def sample(self) -> None:
        began_ns = now_ns()
        elapsed_s = (began_ns - self._sampled_ns) / NS_PER_S
        for source, pids in self._sources.items():
            self._sample_source(source, list(pids()), elapsed_s, began_ns)
        self._sample_machine(began_ns)
        self._sampled_ns, self._has_sampled = began_ns, True
        self.last_cost_ns = now_ns() - began_ns
        self._series.gauge("probe", "cost_ms", self.last_cost_ns / 1e6, began_ns)

    def _sample_source(self, source: str, pids: list[int], elapsed_s: float, t_ns: int) -> None:
        pss = rss = 0
        spent_s = 0.0
        for pid in pids:
            with suppress(psutil.Error):  # ended since it was listed
                process = self._processes.setdefault(pid, psutil.Process(pid))
                memory = process.memory_full_info()
                pss, rss = pss + getattr(memory, "pss", memory.rss), rss + memory.rss
                spent_s += self._newly_spent_s(pid, process)
        self._series.gauge(source, "pss_bytes", pss, t_ns)
        self._series.gauge(source, "rss_bytes", rss, t_ns)
        self._series.gauge(source, "processes", len(pids), t_ns)
        if self._has_sampled and elapsed_s > 0:
            self._series.gauge(source, "cpu_percent", 100 * spent_s / elapsed_s, t_ns)

    def _newly_spent_s(self, pid: int, process: psutil.Process) -> float:
        times = process.cpu_times()
        total_s = times.user + times.system
        newly_s = total_s - self._spent_s.get(pid, 0.0 if self._has_sampled else total_s)
        self._spent_s[pid] = total_s
        return float(newly_s)

    def _sample_machine(self, t_ns: int) -> None:
        now, before = psutil.cpu_times(), self._machine
        self._machine = now
        spent = {name: getattr(now, name) - getattr(before, name) for name in now._fields}
        # guest time is counted in user time as well
        total = sum(v for name, v in spent.items() if not name.startswith("guest"))
        if self._has_sampled and total > 0:
            idle = spent.get("idle", 0.0) + spent.get("iowait", 0.0)
            steal = spent.get("steal", 0.0)
            self._series.gauge("machine", "busy_percent", 100 * (1 - (idle + steal) / total), t_ns)
            self._series.gauge("machine", "steal_percent", 100 * steal / total, t_ns)
