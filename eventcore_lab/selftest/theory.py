"""What the theory of queues says, as formulas with their sources. Knows nothing of loads or samples.

Times are in units of the mean service time 1/μ, so that a rate of arrivals is the utilisation ρ (of one server); the replays
at the end take and give integer nanoseconds. Kleinrock is *Queueing Systems, Volume 1: Theory* (1975), Gross & Harris is
*Fundamentals of Queueing Theory*.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

Nanoseconds = NDArray[np.int64]

_PERCENTILE_MAX = 25.0
"""No percentile that is searched for here is above so many mean service times."""


def mm1_response(p: float, rho: float) -> float:
    """The p-th percentile of the response, which is exponential with rate 1−ρ. Kleinrock, 3.2 and 5.7."""
    return -math.log(1 - p) / (1 - rho)


def mm1_response_mean(rho: float) -> float:
    """Kleinrock, 3.2."""
    return 1 / (1 - rho)


def md1_wait_mean(rho: float) -> float:
    """Pollaczek and Khinchine's mean for a service that does not vary. Kleinrock, chapter 5."""
    return rho / (2 * (1 - rho))


def md1_waits_at_most(x: float, rho: float) -> float:
    """P(W ≤ x). Erlang (1909), *The theory of probabilities and telephone conversations*; its terms alternate, which costs
    digits as x grows, and for the x asked of it here leaves nine (Franx 2001 has a form for larger ones)."""
    terms = ((-rho * (x - j)) ** j / math.factorial(j) * math.exp(rho * (x - j)) for j in range(math.floor(x) + 1))
    return (1 - rho) * math.fsum(terms)


def md1_response(p: float, rho: float) -> float:
    """The p-th percentile: that of the wait, and one service."""
    return 1 + (_where(lambda x: md1_waits_at_most(x, rho) - p) if p > 1 - rho else 0.0)


def erlang_c(servers: int, rho: float) -> float:
    """The share that waits at `servers` servers, each busy for the share ρ. Kleinrock, 3.5; Gross & Harris, M/M/c."""
    offered = servers * rho
    all_busy = offered**servers / math.factorial(servers) / (1 - rho)
    return all_busy / (sum(offered**n / math.factorial(n) for n in range(servers)) + all_busy)


def mmc_wait_mean(servers: int, rho: float) -> float:
    """Kleinrock, 3.5; Gross & Harris, M/M/c."""
    return erlang_c(servers, rho) / (servers * (1 - rho))


def mmc_takes_longer(t: float, servers: int, rho: float) -> float:
    """P(R > t), of a wait that is 0 or exponential with rate c(1−ρ), and a service. Gross & Harris, M/M/c.

    The sum of the two has no such form where c(1−ρ) = 1.
    """
    rate = servers * (1 - rho)
    return math.exp(-t) + erlang_c(servers, rho) * (math.exp(-t) - math.exp(-rate * t)) / (rate - 1)


def mmc_response(p: float, servers: int, rho: float) -> float:
    """The p-th percentile of the response."""
    return _where(lambda t: 1 - p - mmc_takes_longer(t, servers, rho))


def mm1k_share(n: int, rho: float, places: int) -> float:
    """The share of time with n in a system of one server that has room for `places`, the one that is served included; of
    n = `places` that is the share of arrivals lost. Kleinrock, 3.6."""
    return (1 - rho) * rho**n / (1 - rho ** (places + 1))


def mm1k_response_mean(rho: float, places: int) -> float:
    """Of those let in: how many there are on average by the rate that is let in (Little)."""
    present = sum(n * mm1k_share(n, rho, places) for n in range(places + 1))
    return present / (rho * (1 - mm1k_share(places, rho, places)))


def callers_busy(callers: int, think: float) -> float:
    """The share of time one server is busy with `callers` that each think for an exponential time, on average `think`,
    between an answer and the next request: the machine repairman. Kleinrock, 3.8."""
    weights = [math.perm(callers, n) / think**n for n in range(callers + 1)]
    return 1 - weights[0] / sum(weights)


def callers_response_mean(callers: int, think: float) -> float:
    """The interactive response-time law R = N/X − Z. Denning & Buzen (1978), *The operational analysis of queueing network
    models*."""
    return callers / callers_busy(callers, think) - think


def _where(is_zero: Callable[[float], float]) -> float:
    return float(brentq(is_zero, 0.0, _PERCENTILE_MAX, xtol=1e-10))


def lindley(due: Nanoseconds, service: Nanoseconds) -> Nanoseconds:
    """When each ends at one server that takes them as they come: end(k) = max(end(k−1), due(k)) + service(k), solved for
    all k at once. Lindley (1952), *The theory of queues with a single server*."""
    before = np.cumsum(service) - service
    ended: Nanoseconds = np.maximum.accumulate(due - before) + before + service
    return ended


def kiefer_wolfowitz(due: Sequence[int], service: Sequence[int], servers: int) -> Nanoseconds:
    """The same at several servers: each goes to the one that is free first. Kiefer & Wolfowitz (1955), *On the theory of
    queues with many servers*."""
    free = [0] * servers
    ended = []
    for due_ns, service_ns in zip(due, service, strict=True):
        ended.append(max(due_ns, free[0]) + service_ns)
        heapq.heapreplace(free, ended[-1])
    return np.array(ended, np.int64)
