"""F14 to F16 and F28, F29: what the chapter's own benchmark, memory test, histogram and alerts say of what is known."""

from __future__ import annotations

import tracemalloc
from bisect import bisect_left
from collections.abc import Callable, Sequence
from math import exp, log
from random import Random
from typing import Any

from eventcore_lab.clock import now_ns
from eventcore_lab.commands import CreateUser, Direct
from eventcore_lab.commands.executor import execute_all
from eventcore_lab.events import ABSENT, StreamId, VersionConflict
from eventcore_lab.load.faults.fact import CHAPTER, OURS, Fact, Scale, grounds, outcome, write
from eventcore_lab.stores.memory import Memory

BUCKETS_MS = (5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000)
"""The default buckets of Prometheus' clients."""
LEAK_BYTES = 9000
SAMPLED = "sampled all the while"
MIB = 1024 * 1024


async def benchmark(scale: Scale) -> list[Fact]:
    """F14: the chapter's benchmark of the event store, iteration by iteration: streams test-0 … expected at 0, the
    result thrown away. `ours` has streams of their own in each iteration."""
    facts, iterations = [], scale.times(50, 10)
    for arm in (CHAPTER, OURS):
        async with grounds("postgres:chapter") as g:
            refused = 0
            for n in range(1, iterations + 1):
                new = "" if arm == CHAPTER else f"{n}-"
                batch = [write(StreamId(f"test-{new}{i}"), ABSENT) for i in range(10)]
                refused += isinstance(await outcome(g.store, batch), VersionConflict)
                if n in (1, 2, 3, 5, 10, 20, 50) or n == iterations:
                    facts.append(Fact("F14", arm, n, refused, n))
    return facts


async def join_all(scale: Scale) -> list[Fact]:
    """F15: the one number that the benchmark of commands gives (the time of all, divided by how many), beside what a command
    took at p99; ms."""
    facts = []
    for concurrency in (1, 10, 50):
        async with grounds("postgres:chapter") as g:
            took_ns: list[int] = []

            class Noting(Direct):
                async def execute(self, command: Any, took_ns: list[int] = took_ns) -> Any:
                    began_ns = now_ns()
                    done = await super().execute(command)
                    took_ns.append(now_ns() - began_ns)
                    return done

            executor, began_ns, rounds = Noting(g.store), now_ns(), scale.times(200 // concurrency, 2)
            for n in range(rounds):
                names = [f"{n}-{i}" for i in range(concurrency)]
                await execute_all(
                    executor, [CreateUser(name, f"{name}@example.com", "U", "T") for name in names], concurrency
                )
            given_ms = (now_ns() - began_ns) / 1e6 / rounds / concurrency
            slow_ms = sorted(took_ns)[-(-99 * len(took_ns) // 100) - 1] / 1e6
        facts += [Fact("F15", CHAPTER, concurrency, given_ms), Fact("F15", "a command at p99", concurrency, slow_ms)]
    return facts


async def leak(scale: Scale) -> list[Fact]:
    """F16: the chapter's test of memory with a leak of 9 kB per command planted: the growth in MiB that it asks for at the
    end, the peak that it prints, taken before the work, and what is there after so many commands."""
    commands, kept = scale.times(10_000, 500), []
    was_tracing = tracemalloc.is_tracing()
    tracemalloc.start()
    try:
        initial = tracemalloc.get_traced_memory()[0]
        executor, facts = Direct(Memory()), []
        listed = [CreateUser(str(n), f"user{n}@example.com", f"User{n}", "Test") for n in range(commands)]
        printed = tracemalloc.get_traced_memory()[0]
        for n, command in enumerate(listed, 1):
            await executor.execute(command)
            kept.append(bytes(LEAK_BYTES))
            if n % (commands // 10) == 0:
                facts.append(Fact("F16", SAMPLED, n, (tracemalloc.get_traced_memory()[0] - initial) / MIB))
    finally:
        if not was_tracing:
            tracemalloc.stop()
    grown = Fact("F16", CHAPTER, commands, facts[-1].value)
    return [grown, *[Fact("F16", "the peak it prints", f.at, (printed - initial) / MIB) for f in facts], *facts]


def buckets(scale: Scale) -> list[Fact]:
    """F28: p95 in ms of log-normal latencies with a known p95, by the chapter's histogram, and by the order statistic."""
    facts, n = [], scale.times(20_000, 2000)
    for known_ms in (12.0, 27.0, 40.0, 60.0, 120.0):
        rng, sigma = Random(scale.seed), 0.25
        middle = log(known_ms) - 1.6449 * sigma
        values = sorted(exp(rng.gauss(middle, sigma)) for _ in range(n))
        facts.append(Fact("F28", CHAPTER, known_ms, bucket_quantile(values, 0.95)))
        facts.append(Fact("F28", OURS, known_ms, values[-(-95 * n // 100) - 1]))
    return facts


def bucket_quantile(values: Sequence[float], p: float) -> float:
    """What Prometheus' histogram_quantile says: linear within the bucket that the rank falls into."""
    counts = [0] * (len(BUCKETS_MS) + 1)
    for value in values:
        counts[bisect_left(BUCKETS_MS, value)] += 1
    rank, below = p * len(values), 0
    for n, inside in enumerate(counts[:-1]):
        if below + inside >= rank and inside:
            low = BUCKETS_MS[n - 1] if n else 0
            return low + (BUCKETS_MS[n] - low) * (rank - below) / inside
        below += inside
    return float(BUCKETS_MS[-1])


class Alerting:
    """The chapter's `PerformanceAlerting`, as it stands there: three rules, a cooldown, no duration, and one lock that is held
    while an alert is delivered, which takes `delivery_s`."""

    COOLDOWN_S = 300.0

    def __init__(self, delivery_s: float = 0.0) -> None:
        self._delivery_s, self._last_s = delivery_s, {}  # type: tuple[float, dict[str, float]]
        self.sent: list[tuple[str, float]] = []

    def check(self, p95_ms: float, commands_per_second: float, memory_mib: float, now_s: float) -> float:
        """How long the check takes, s."""
        took_s = 0.0
        rules = (
            ("high_latency", p95_ms > 50),
            ("low_throughput", commands_per_second < 100),
            ("high_memory", memory_mib > 1024),
        )
        for name, is_wrong in rules:
            if is_wrong and now_s + took_s - self._last_s.get(name, -self.COOLDOWN_S) >= self.COOLDOWN_S:
                took_s += self._delivery_s
                self.sent.append((name, now_s + took_s))
                self._last_s[name] = now_s + took_s
        return took_s


def alarms(scale: Scale) -> list[Fact]:
    """F29: alarms in an hour in which nothing is wrong, checked every 15 s: at 0 commands per second, since nobody asks for
    anything, and at 200 with one slow sample in a hundred checks; and the longest check while a delivery takes 30 s."""
    rng, facts = Random(scale.seed), []
    for rate in (0.0, 200.0):
        alerting = Alerting()
        for n in range(240):
            spike = rate > 0 and rng.random() < 0.01
            alerting.check(400.0 if spike else 5.0, rate, 100.0, 15.0 * n)
        facts.append(Fact("F29", CHAPTER, rate, len(alerting.sent)))
    hanging = Alerting(30.0)
    facts.append(Fact("F29 held", CHAPTER, 30, hanging.check(400.0, 0.0, 100.0, 0.0)))
    return facts


MEASURED: tuple[tuple[str, Callable[[Scale], Any]], ...] = (
    ("F14", benchmark),
    ("F15", join_all),
    ("F16", leak),
    ("F28", buckets),
    ("F29", alarms),
)
