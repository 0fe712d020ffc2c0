"""Memory and processor time of everybody who takes part: the loader, the server's processes, the machine.

Memory is PSS (proportional set size): a page that n processes share counts 1/n in each, so the sum over a server's
processes is what the server really takes; their RSS would count shared_buffers once per connection. Reading PSS walks
page tables, so the probe watches its own cost and slows down rather than take more than 1 % of a core.

What was taken between two looks only the kernel knows: it keeps the highest RSS of each process (VmHWM of proc(5)), from the
beginning of the block on, and is asked for it as often as for processor time, which costs next to nothing. Of a server's many
processes that share memory such a sum would say nothing, and is not asked for.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import psutil

from eventcore_lab.clock import NS_PER_S, now_ns, sleep_s
from eventcore_lab.companions.series import Series

COST_SHARE_MAX = 0.01
INTERVAL_S, LOOKS_MAX = 0.25, 20_000
"""How often it is looked, and how many looks a run has at most: one of more than 1.4 hours has fewer per hour."""
INTERVAL_MAX_S = 5.0
SHARING = "server"
"""The source whose processes have memory in common."""
_FORGET_THE_PEAK = "5"
"""Written to /proc/<pid>/clear_refs, this makes VmHWM begin again (proc(5))."""

Pids = Callable[[], Sequence[int]]


def interval_of(run_s: float) -> float:
    """How often to look in a run of so many seconds: every INTERVAL_S, and of a longer one so often that it has LOOKS_MAX looks
    (8 hours: every 1.4 s). What is written stays below 10 MB for each source, however long it takes."""
    return max(INTERVAL_S, run_s / LOOKS_MAX)


@asynccontextmanager
async def resources(series: Series, sources: Mapping[str, Pids], interval_s: float = INTERVAL_S) -> AsyncIterator[None]:
    """Gauges per source: `cpu_percent` (of one core) every `interval_s`, and `pss_bytes`, `rss_bytes`, `processes` as often
    as their cost allows; of the whole machine `busy_percent` and `steal_percent`. From now until the end, both included.
    Where the kernel tells, of every source but the server `resident_bytes` now and `resident_peak_bytes`, the highest since
    the beginning, every `interval_s`."""
    probe = _Probe(series, sources)
    probe.sample_memory()
    probe.forget_peaks()
    probe.sample_cpu()
    task = asyncio.ensure_future(_repeatedly(probe, interval_s))
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        probe.sample_cpu()
        probe.sample_memory()


async def _repeatedly(probe: _Probe, interval_s: float) -> None:
    memory_due_ns = now_ns() + probe.pause_ns(interval_s)
    while True:
        await sleep_s(interval_s)
        probe.sample_cpu()
        if now_ns() >= memory_due_ns:
            probe.sample_memory()
            memory_due_ns = now_ns() + probe.pause_ns(interval_s)


def sources_of(by_worker: Sequence[Sequence[int]], server_pids: Pids, ours: set[int]) -> dict[str, Pids]:
    """Whose memory and processor time are recorded: all load processes together, each of several, the server but for those of
    its processes that only look (`ours`)."""
    sources: dict[str, Pids] = {}
    if by_worker:
        sources["loader"] = lambda: [pid for pids in by_worker for pid in pids]
    if len(by_worker) > 1:
        sources |= {f"worker {n}": lambda pids=pids: pids for n, pids in enumerate(by_worker)}  # type: ignore[misc]
    if server_pids():
        sources[SHARING] = lambda: [pid for pid in server_pids() if pid not in ours]
    return sources


class _Probe:
    """Reads what a process or the machine has used since the last look; memory looks also renew the list of processes."""

    def __init__(self, series: Series, sources: Mapping[str, Pids]) -> None:
        self._series, self._sources = series, sources
        self._processes: dict[str, dict[int, psutil.Process]] = {source: {} for source in sources}
        self._spent_s: dict[int, float] = {}
        self._machine = psutil.cpu_times()
        self._sampled_ns: int | None = None
        self._memory_cost_ns = 0

    def pause_ns(self, interval_s: float) -> int:
        """How long to leave the memory alone, so that looking at it takes at most COST_SHARE_MAX of a core."""
        wanted_ns = max(interval_s * NS_PER_S, self._memory_cost_ns / COST_SHARE_MAX)
        return int(min(wanted_ns, INTERVAL_MAX_S * NS_PER_S))

    def sample_memory(self) -> None:
        began_ns = now_ns()
        for source, pids in self._sources.items():
            known, listed = self._processes[source], list(pids())
            for gone in known.keys() - set(listed):
                del known[gone]
            for pid in listed:
                with suppress(psutil.Error):  # ended since it was listed
                    known.setdefault(pid, psutil.Process(pid))
            self._memory_of(source, began_ns)
        self._memory_cost_ns = now_ns() - began_ns
        self._series.gauge("probe", "memory_cost_ms", self._memory_cost_ns / 1e6, began_ns)

    def _memory_of(self, source: str, t_ns: int) -> None:
        pss = rss = 0
        for process in self._processes[source].values():
            with suppress(psutil.Error):
                memory = process.memory_full_info()
                pss, rss = pss + getattr(memory, "pss", memory.rss), rss + memory.rss
        if self._processes[source]:  # of a server that is away it is not known, and not 0
            self._series.gauge(source, "pss_bytes", pss, t_ns)
            self._series.gauge(source, "rss_bytes", rss, t_ns)
        self._series.gauge(source, "processes", len(self._processes[source]), t_ns)

    def forget_peaks(self) -> None:
        """Have the kernel count from now on."""
        for source, processes in self._processes.items():
            for pid in processes if source != SHARING else ():
                with suppress(OSError):  # ended, or no Linux
                    Path(f"/proc/{pid}/clear_refs").write_text(_FORGET_THE_PEAK)

    def _sample_resident(self, source: str, t_ns: int) -> None:
        """What a source has in memory and the most it had, in bytes; nothing where the kernel does not tell."""
        pids = self._processes[source] if source != SHARING else ()
        if found := [size for pid in pids if (size := _resident(pid))]:
            now, peak = (sum(sizes) for sizes in zip(*found, strict=True))
            self._series.gauge(source, "resident_bytes", now, t_ns)
            self._series.gauge(source, "resident_peak_bytes", peak, t_ns)

    def sample_cpu(self) -> None:
        t_ns = now_ns()
        elapsed_s = 0.0 if self._sampled_ns is None else (t_ns - self._sampled_ns) / NS_PER_S
        for source, processes in self._processes.items():
            spent_s = 0.0
            for pid, process in processes.items():
                with suppress(psutil.Error):
                    spent_s += self._newly_spent_s(pid, process)
            if elapsed_s:
                self._series.gauge(source, "cpu_percent", 100 * spent_s / elapsed_s, t_ns)
            self._sample_resident(source, t_ns)
        self._machine_busy(t_ns, is_first=not elapsed_s)
        self._sampled_ns = t_ns

    def _newly_spent_s(self, pid: int, process: psutil.Process) -> float:
        """Processor time since the last look; of a process first seen now, none: what it did before is not of this run."""
        times = process.cpu_times()
        total_s = float(times.user + times.system)
        newly_s = total_s - self._spent_s.get(pid, total_s)
        self._spent_s[pid] = total_s
        return newly_s

    def _machine_busy(self, t_ns: int, is_first: bool) -> None:
        now, before = psutil.cpu_times(), self._machine
        self._machine = now
        spent = {name: getattr(now, name) - getattr(before, name) for name in now._fields}
        # guest time is counted in user time as well
        total = sum(v for name, v in spent.items() if not name.startswith("guest"))
        if not is_first and total > 0:
            idle, steal = spent.get("idle", 0.0) + spent.get("iowait", 0.0), spent.get("steal", 0.0)
            self._series.gauge("machine", "busy_percent", 100 * (1 - (idle + steal) / total), t_ns)
            self._series.gauge("machine", "steal_percent", 100 * steal / total, t_ns)


def _resident(pid: int) -> tuple[int, int] | None:
    """VmRSS and VmHWM of a process, in bytes; None where there is no such file, or no such process any more."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return None
    sizes = {name: value for name, _, value in (line.partition(":") for line in lines)}
    if not ("VmRSS" in sizes and "VmHWM" in sizes):  # one that has ended and waits to be buried
        return None
    now, peak = (int(sizes[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM"))
    return now, peak
