"""What besides the store made a run what it is: the load generator's own limits, clocks, a machine that was shared or slept.

Latency counts from the due time, so a generator that is late or short of processor time can only make a store look slower.
What was met in spite of it is met; what was missed may not be the store's fault, and is then not settled. Each line that comes
out of here says the rule it comes from.
"""

from __future__ import annotations

import numpy as np
import polars as pl

from eventcore_lab.lab import stats
from eventcore_lab.lab.measures import PERCENTILES, Run
from eventcore_lab.schema import LOADER_STOOD_STILL, STOOD_STILL, SUSPENDED, WALL_CLOCK_SET

LOADER_CPU_MAX = 90.0
"""Percent of a core that one load process may use."""
LATENESS_SHARE_MAX = 0.1
"""Of the limit that a percentile is held to, or of the p99 that was measured: so late may one arrival in a hundred be sent."""
LATENESS_FLOOR_MS = 1.0
"""Less than this is never told as a caution: it is what timers and schedulers do."""
STEAL_MAX = 2.0


def lateness_ms(run: Run, p: float = 0.99) -> float:
    """How late the generator sent the steady arrivals of an open loop, ms at `p`; 0 for a closed one."""
    if run.is_closed_loop or not len(run.steady):
        return 0.0
    late_ns = np.sort((run.steady["offered_ns"] - run.steady["due_ns"]).to_numpy())
    return stats.percentile(late_ns / 1e6, p)


def without_lateness_ms(run: Run, name: str) -> float:
    """A percentile of the time from when operations were sent, not due: what it would be if the generator were never late."""
    late_ns = (run.latency_rows["offered_ns"] - run.latency_rows["due_ns"]).to_numpy()
    return stats.percentile(np.sort(run.latencies_ms[0] - late_ns / 1e6), PERCENTILES[name])


def loader_cpu(run: Run) -> float:
    """Percent of a core that the busiest load process used, on average over the steady part; 0 if nobody looked."""
    sources = [s for s in run.gauges["source"].unique() if s.startswith("worker ")] or ["loader"]
    means = [float(v.mean()) for s in sources if len(v := run.gauge(s, "cpu_percent")["value"].to_numpy())]
    return max(means, default=0.0)


def generator_limits(run: Run) -> list[str]:
    """Why the generator, not the store, may have been the limit; empty if it was not."""
    limits = []
    if (cpu := loader_cpu(run)) > LOADER_CPU_MAX:
        limits.append(
            f"a load process used {cpu:.0f} % of a core (rule: above {LOADER_CPU_MAX:.0f} %), so it, not the store, may be "
            "the limit; more workers share the load"
        )
    late, slowest = lateness_ms(run), stats.percentile(np.sort(run.latencies_ms[0]), 0.99)
    if late > LATENESS_FLOOR_MS and late > LATENESS_SHARE_MAX * slowest:
        limits.append(
            f"the load generator sent its arrivals late (p99 {late:.1f} ms; rule: above {100 * LATENESS_SHARE_MAX:.0f} % of "
            f"the p99 measured and {LATENESS_FLOOR_MS:g} ms)"
        )
    still = run.marks.filter(name=LOADER_STOOD_STILL)["detail"].to_list()
    limits += [f"{LOADER_STOOD_STILL} {detail}" for detail in still]
    return limits


def cautions(run: Run) -> list[str]:
    """Everything that a sceptic must know about how a run came about, a line each."""
    lines = generator_limits(run)
    marks = run.marks.filter(pl.col("name").is_in([SUSPENDED, STOOD_STILL, WALL_CLOCK_SET]))
    lines += [f"{name} {detail}".strip() for name, detail in marks.select("name", "detail").iter_rows()]
    steal = run.gauge("machine", "steal_percent")["value"].to_numpy()
    if len(steal) and float(steal.mean()) > STEAL_MAX:
        lines.append(
            f"another guest of this machine took {steal.mean():.0f} % of it (rule: above {STEAL_MAX:g} %); repeat where that "
            "is not so"
        )
    return lines


def unsettled(run: Run, name: str, limit: float, status: str) -> str:
    """Why a figure that was compared with its limit, and was `pass` or `fail`, settles nothing; "" if it does."""
    slept = run.marks.filter(pl.col("name") == SUSPENDED)["detail"].to_list()
    if slept:
        return f"{SUSPENDED} {slept[0]}"
    late = lateness_ms(run)
    if name in PERCENTILES:
        if status == "pass" and late > limit:
            return f"the arrivals were not sent as scheduled (lateness p99 {late:.1f} ms; rule: at most the limit)"
        if status == "fail" and late > LATENESS_SHARE_MAX * limit and without_lateness_ms(run, name) < limit:
            rule = f"rule: above {100 * LATENESS_SHARE_MAX:.0f} % of the limit, and met from when they were sent"
            return f"the load generator sent its arrivals late (p99 {late:.1f} ms; {rule})"
        limits = [text for text in generator_limits(run) if "late" not in text]
    else:
        limits = generator_limits(run)
    return "; ".join(limits) if status == "fail" else ""
