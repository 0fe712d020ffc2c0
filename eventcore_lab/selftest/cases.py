"""The cases of the self-test: what is modelled, and what must come out. Each drives the real load and is a pure function of
the seed and of how much to drive."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from eventcore_lab.clock import NS_PER_S
from eventcore_lab.lab import stats
from eventcore_lab.selftest import judging, theory
from eventcore_lab.selftest.judging import Case, Row, estimated, mean, samples_in_a_row
from eventcore_lab.selftest.model import (
    MS_NS,
    SERVICE_NS,
    Freezing,
    Nanoseconds,
    Rows,
    Server,
    Setting,
    exponential_ns,
    in_virtual_time,
    schedule,
    virtual_clock,
)

PERCENTILES = (0.5, 0.95, 0.99, 0.999)
SETTLING = 1000
"""Arrivals of the warm-up: ten times what a queue at ρ = .8 takes to forget that it was empty, 1/(1−√ρ)² services."""
KLEINROCK = "Kleinrock"


class Size(Struct, frozen=True):
    """How much to drive: `share` of the whole table's samples. The seed of every case follows from `seed`."""

    seed: int = 1
    share: float = 1.0

    def samples(self, whole: int) -> int:
        return SETTLING + int(whole * self.share)

    def rng(self, case: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, case])


class Driven(Struct, frozen=True):
    """An open loop that was driven, with what it was driven with."""

    rows: Rows
    due: Nanoseconds
    service_ns: Nanoseconds
    server: Server

    @property
    def responses_ms(self) -> NDArray[np.float64]:
        rows = self.rows
        return _ms(rows.latency_ns[rows.is_steady & rows.is_ok])

    def waits_ms(self, taken_ns: Nanoseconds) -> NDArray[np.float64]:
        return _ms((taken_ns - self.rows.due_ns)[self.rows.is_steady])


def pacers_alone(size: Size) -> Case:
    """Nothing is driven, so a million arrivals cost nothing."""
    due = schedule("poisson:rate=1000", int(1000 * NS_PER_S), size.rng(0))
    gaps_ms = _ms(np.diff(due))
    even = schedule("constant:rate=1000", 1000 * NS_PER_S, size.rng(0))
    source = "Poisson process"
    return Case(
        "Arrivals",
        f"{len(due):,} of the pacer poisson:rate=1000, and 1,000,000 of constant:rate=1000, without a server",
        [
            estimated("arrivals per second", 1000, gaps_ms, lambda gaps: 1000 / mean(gaps), source),
            estimated("sd/mean of times between", 1, gaps_ms, lambda gaps: float(gaps.std() / gaps.mean()), source),
            estimated("correlation of neighbours", 0, gaps_ms, _lag_1, source),
            Row("evenly paced ones not on time", 0, _different(even, np.arange(1_000_000) * MS_NS), "arithmetic"),
        ],
    )


def mm1(rho: float, whole: int, waits_in: str, number: int) -> Callable[[Size], Case]:
    """`waits_in`: the `server`, as operations under way, or the load's own `backlog`."""
    where = "as operations under way" if waits_in == "server" else "in the load's own backlog"

    def case(size: Size) -> Case:
        driven = _open(size, number, rho, whole, exponential_ns, in_flight_max=200 if waits_in == "server" else 1)
        rows, responses = driven.rows, driven.responses_ms
        taken_ns = rows.acquired_ns if waits_in == "server" else rows.began_ns
        source = f"{KLEINROCK} 3.2"
        found = [
            *_percentiles(responses, lambda p: theory.mm1_response(p, rho), samples_in_a_row(rho), source),
            estimated("mean response, ms", theory.mm1_response_mean(rho), responses, mean, source),
            estimated("share that need not wait", 1 - rho, driven.waits_ms(taken_ns) == 0, mean, source),
            _as_replayed(driven, theory.lindley(driven.due, driven.service_ns), "Lindley 1952"),
            *_accounts(driven),
        ]
        if waits_in == "server":
            difference = driven.server.area_ns - int(rows.latency_ns.sum())
            found.append(Row("∫ number inside dt − Σ responses, ns", 0, difference, "Little 1961"))
        return Case(
            f"M/M/1 at ρ = {rho:g}", _described(driven, f"exponential service, one server, waiting {where}"), found
        )

    return case


def md1(size: Size) -> Case:
    rho = 0.7
    driven = _open(size, 3, rho, 100_000, lambda _, count: np.full(count, SERVICE_NS), in_flight_max=1)
    responses, waits = driven.responses_ms, driven.waits_ms(driven.rows.began_ns)
    return Case(
        f"M/D/1 at ρ = {rho:g}",
        _described(driven, "constant service, one server, waiting in the load's own backlog"),
        [
            *_percentiles(responses, lambda p: theory.md1_response(p, rho), samples_in_a_row(rho, 0), "Erlang 1909"),
            estimated("mean wait, ms", theory.md1_wait_mean(rho), waits, mean, f"{KLEINROCK} 5"),
            estimated("share that need not wait", 1 - rho, waits == 0, mean, "Erlang 1909"),
            _as_replayed(driven, theory.lindley(driven.due, driven.service_ns), "Lindley 1952"),
            *_accounts(driven),
        ],
    )


def mmc(size: Size) -> Case:
    servers, rho = 4, 0.7
    driven = _open(size, 4, rho, 120_000, exponential_ns, servers=servers, in_flight_max=servers)
    responses, waits = driven.responses_ms, driven.waits_ms(driven.rows.began_ns)
    replayed = theory.kiefer_wolfowitz(driven.due.tolist(), driven.service_ns.tolist(), servers)
    return Case(
        f"M/M/{servers} at ρ = {rho:g}",
        _described(driven, f"exponential service, {servers} servers, waiting in the load's own backlog"),
        [
            *_percentiles(
                responses, lambda p: theory.mmc_response(p, servers, rho), samples_in_a_row(rho), "Gross & Harris"
            ),
            estimated(
                "share that waits (Erlang C)", theory.erlang_c(servers, rho), waits > 0, mean, f"{KLEINROCK} 3.5"
            ),
            estimated("mean wait, ms", theory.mmc_wait_mean(servers, rho), waits, mean, f"{KLEINROCK} 3.5"),
            _as_replayed(driven, replayed, "Kiefer-Wolfowitz"),
            *_accounts(driven),
        ],
    )


def mm1k(size: Size) -> Case:
    rho, places = 1.2, 5
    driven = _open(size, 5, rho, 50_000, exponential_ns, in_flight_max=1, backlog_max=places - 1)
    rows, source = driven.rows, f"{KLEINROCK} 3.6"
    lost = theory.mm1k_share(places, rho, places)
    return Case(
        f"M/M/1/{places} at ρ = {rho:g}",
        _described(driven, f"more than one server can do; in_flight_max=1, backlog_max={places - 1}, policy drop"),
        [
            estimated("share that is dropped", lost, rows.is_dropped[rows.is_steady], mean, source),
            estimated(
                "mean response of the others, ms",
                theory.mm1k_response_mean(rho, places),
                driven.responses_ms,
                mean,
                source,
            ),
            Row(
                "arrivals neither answered nor dropped",
                0,
                len(driven.due) - int(rows.is_ok.sum()) - int(rows.is_dropped.sum()),
                "arithmetic",
            ),
        ],
    )


def dd1(size: Size) -> Case:
    due = schedule("constant:rate=100", 20 * NS_PER_S, size.rng(6))
    setting = Setting(pacer="constant:rate=100", per_s=100, samples=2000)
    clock = virtual_clock()
    rows = in_virtual_time(clock, setting, Server(clock, [9 * MS_NS] * len(due)).perform, due)
    return Case(
        "D/D/1 at ρ = 0.9",
        f"{len(rows):,} evenly spaced arrivals, 100/s; constant service of 9 ms, one server",
        [
            Row("arrivals that waited", 0, int((rows.acquired_ns != rows.due_ns).sum()), "arithmetic"),
            Row("longest response, ms", 9, rows.latency_ns.max(initial=0) / MS_NS, "arithmetic"),
            Row("arrivals without a row", 0, len(due) - len(rows), "arithmetic"),
        ],
    )


def freeze(size: Size) -> Case:
    """Gil Tene's example, to the nanosecond."""
    due = schedule("constant:rate=100", 200 * NS_PER_S, size.rng(7))
    setting = Setting(pacer="constant:rate=100", per_s=100, samples=20_000)
    rows = _freezing(setting, due)
    seconds = np.sort(rows.latency_ns) / NS_PER_S
    expected = {0.5: 0.001, 0.75: 50, 0.9: 80, 0.99: 98, 0.999: 99.8, 0.9999: 99.98, 1: 100}
    source = "Tene, arithmetic"
    return Case(
        "A freeze, arrivals on schedule",
        f"{len(rows):,} arrivals, 100/s; 1 ms each for 100 s, then the server stands still for 100 s and answers all at once",
        [
            Row("mean response, s", 25.003, round(float(seconds.mean()), 9), source),
            *(
                Row(
                    "longest response, s" if p == 1 else f"response p{100 * p:g}, s",
                    s,
                    stats.percentile(seconds, p),
                    source,
                )
                for p, s in expected.items()
            ),
        ],
    )


def freeze_with_callers(_: Size) -> Case:
    setting = Setting(pacer="saturate:concurrency=1,think_ms=9", per_s=100, samples=20_000)
    rows = _freezing(setting, None)
    service_ms = _ms(np.sort(rows.ended_ns - rows.began_ns))
    source = "Tene, arithmetic"
    return Case(
        "The freeze, and a tester that waits",
        f"{len(rows):,} answers; it comes again 9 ms after each, so that those who were due meanwhile are missing",
        [
            Row("mean, ms", round(110_000 / 10_001, 6), round(float(service_ms.mean()), 6), source),
            Row("p99.99, ms", 1, stats.percentile(service_ms, 0.9999), source),
            Row("answers that took longer than 1 ms", 1, int((service_ms > 1).sum()), source),
        ],
    )


def callers_without_a_pause(size: Size) -> Case:
    callers, source = 8, "Denning & Buzen"
    rows, server = _closed(size, 8, f"saturate:concurrency={callers}", 1000, 30_000)
    between_ms = _ms(np.diff(np.sort(rows.ended_ns)))
    return Case(
        f"{callers} callers without a pause",
        f"{len(rows):,} answers; closed loop, exponential service, one server: it is never idle",
        [
            Row("utilisation, %", 100, 100 * server.busy_ns / int(rows.ended_ns.max(initial=1)), source),
            estimated("answers per second", 1000, between_ms, lambda gaps: 1000 / mean(gaps), source),
            estimated("mean response, ms (N/X − 0)", callers, _ms(rows.latency_ns[rows.is_steady]), mean, source),
            Row("∫ number inside dt − Σ responses, ns", 0, server.area_ns - int(rows.latency_ns.sum()), "Little 1961"),
        ],
    )


def callers_that_think(size: Size) -> Case:
    callers, think = 8, 10
    busy = theory.callers_busy(callers, think)
    rows, server = _closed(
        size, 9, f"saturate:concurrency={callers},think_ms={think},think=exponential", 1000 * busy, 30_000
    )
    between_ms = _ms(np.diff(np.sort(rows.ended_ns[rows.is_steady])))
    response = theory.callers_response_mean(callers, think)
    return Case(
        f"{callers} callers that think",
        f"{len(rows):,} answers; closed loop, {think} ms of thought on average, exponential service: the machine repairman",
        [
            estimated(
                "answers per second", 1000 * busy, between_ms, lambda gaps: 1000 / mean(gaps), f"{KLEINROCK} 3.8"
            ),
            estimated(
                "mean response, ms (N/X − Z)",
                response,
                _ms(rows.latency_ns[rows.is_steady]),
                mean,
                "Denning & Buzen",
            ),
            Row("∫ number inside dt − Σ responses, ns", 0, server.area_ns - int(rows.latency_ns.sum()), "Little 1961"),
        ],
    )


CASES: tuple[Callable[[Size], Case], ...] = (
    pacers_alone,
    mm1(0.5, 370_000, "server", 1),
    mm1(0.8, 240_000, "backlog", 2),
    md1,
    mmc,
    mm1k,
    dd1,
    callers_without_a_pause,
    callers_that_think,
    freeze,
    freeze_with_callers,
)


def _open(
    size: Size,
    case: int,
    rho: float,
    whole: int,
    service: Callable[[np.random.Generator, int], Nanoseconds],
    servers: int = 1,
    **bounds: int,
) -> Driven:
    """Poisson arrivals at servers that are busy for the share `rho`, driven to the end."""
    rng, per_s = size.rng(case), rho * servers * NS_PER_S / SERVICE_NS
    pacer = f"poisson:rate={per_s:g}"
    setting = Setting(pacer=pacer, per_s=per_s, samples=size.samples(whole), warmup=SETTLING, **bounds)
    due = schedule(pacer, setting.total_ns, rng)
    service_ns = service(rng, len(due))
    clock = virtual_clock()
    server = Server(clock, service_ns.tolist(), servers)
    return Driven(in_virtual_time(clock, setting, server.perform, due), due, service_ns, server)


def _closed(size: Size, case: int, pacer: str, per_s: float, whole: int) -> tuple[Rows, Server]:
    setting = Setting(pacer=pacer, per_s=per_s, samples=size.samples(whole), warmup=SETTLING)
    clock = virtual_clock()
    server = Server(clock, exponential_ns(size.rng(case), 2 * setting.samples).tolist())
    return in_virtual_time(clock, setting, server.perform, seed=size.seed), server


def _freezing(setting: Setting, due: Nanoseconds | None) -> Rows:
    clock = virtual_clock()
    return in_virtual_time(clock, setting, Freezing(clock, 100 * NS_PER_S, 200 * NS_PER_S).perform, due)


def _percentiles(
    responses_ms: NDArray[np.float64], expected: Callable[[float], float], in_a_row: float, source: str
) -> list[Row]:
    return [judging.percentile(p, expected(p), responses_ms, in_a_row, source) for p in PERCENTILES]


def _as_replayed(driven: Driven, ended_ns: Nanoseconds, source: str) -> Row:
    """The same arrivals and services, without a load: every end must be the same to the nanosecond."""
    rows = driven.rows
    return Row("ends that a replay has otherwise", 0, _different(rows.ended_ns, ended_ns[rows.operation]), source)


def _accounts(driven: Driven) -> list[Row]:
    rows = driven.rows
    return [
        Row("arrivals without a row of their own", 0, len(driven.due) - len(np.unique(rows.operation)), "arithmetic"),
        Row(
            "rows that are not as due, or late",
            0,
            _different(driven.due[rows.operation], rows.due_ns) + _different(rows.offered_ns, rows.due_ns),
            "arithmetic",
        ),
    ]


def _described(driven: Driven, server: str) -> str:
    rows = driven.rows
    return f"{int(rows.is_steady.sum()):,} arrivals, poisson; {server}"


def _ms(times_ns: Nanoseconds) -> NDArray[np.float64]:
    return np.asarray(times_ns / MS_NS)


def _different(these: Nanoseconds, those: Nanoseconds) -> int:
    """How many differ; those that only one has do."""
    n = min(len(these), len(those))
    return int((these[:n] != those[:n]).sum()) + max(len(these), len(those)) - n


def _lag_1(values: NDArray[np.float64]) -> float:
    return float(np.corrcoef(values[:-1], values[1:])[0, 1])
