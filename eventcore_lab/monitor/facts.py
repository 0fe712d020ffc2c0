"""What passes between the monitor's parts: what a source has seen, what one second came to, what is judged and alerted.

Instants are Unix times in seconds; of everything that is shown to people, for a browser knows no other clock. Facts of a run
that lie on the monotonic clock are moved to it by whoever reads them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

EDGES_MS: tuple[float, ...] = (
    *(0.1, 0.14, 0.2, 0.28, 0.4, 0.5, 0.7, 1, 1.4, 2, 2.8, 4, 5, 7, 10, 14, 20, 28, 40, 50, 70, 100, 140, 200, 280),
    *(400, 500, 700, 1000, 1400, 2000, 2800, 4000, 5000, 7000, 10_000, 14_000, 20_000, 28_000, 40_000, 64_000),
)
"""Upper edges of the latency buckets, ms, of metrics and heat map alike; above the last lies one more bucket. No edge is more
than 1.6 times the one below, and the limits of both presets (10, 50, 100, 200, 500 ms) are edges, so that those can be
answered from buckets exactly."""

NO_ROWS: NDArray[np.int64] = np.empty((0, 8), np.int64)
NO_TIMES: NDArray[np.int64] = np.empty(0, np.int64)


class Watched(Struct, frozen=True, kw_only=True):
    """Whom a source watches: a run (`run_id`, and the columns of schema.TABLES["runs"] known so far as `row`), or a store that
    exists (`run_id` empty). `began` is when the load's time counts from, None before it does. `status` is `preparing`,
    `loading`, `ending`, or one of schema.RUN_STATUS; of an existing store `observed`."""

    run_id: str = ""
    title: str = ""
    store: str = ""
    status: str = ""
    began: float | None = None
    warmup_s: float = 0.0
    duration_s: float = 0.0
    is_closed_loop: bool = False
    row: Mapping[str, Any] = {}


class Gauge(Struct, frozen=True):
    """One value of a time series, as schema.TABLES["gauges"] has it but for the time."""

    t: float
    source: str
    name: str
    value: float


class Mark(Struct, frozen=True):
    """Something that happened at an instant."""

    t: float
    name: str
    detail: str = ""


class News(Struct, frozen=True, kw_only=True):
    """What a source has seen since it was last looked at. `rows`: samples that ended, shape (n, 8), in the words of
    schema.SAMPLE_WORDS, their times ns since `watched.began`. `waiting`: due times of operations under way, alike. Of those
    that ended before `known_from_ns` not all were, or will be, seen (0: all will). `error`: why it could not look (one line,
    without secrets); what it had seen before stands."""

    t: float
    watched: Watched | None = None
    rows: NDArray[np.int64] = NO_ROWS
    waiting: NDArray[np.int64] = NO_TIMES
    known_from_ns: int = 0
    gauges: tuple[Gauge, ...] = ()
    marks: tuple[Mark, ...] = ()
    error: str = ""


class Source(Protocol):
    """Where facts come from. `look` is called about once a second, one call at a time, and must not block the loop for long;
    it never raises for what goes wrong with what it watches: that is `News.error`."""

    async def look(self) -> News: ...
    async def close(self) -> None: ...


class Second(Struct, frozen=True, kw_only=True):
    """What ended within one second (`t` is its beginning), whole numbers but for the latencies, which are order statistics of
    every operation that ended in it, ms, None if none did. `heat`: of those latencies [bucket of EDGES_MS, count], the
    counts that are not 0. `waiting`: operations under way at its end, the oldest due `oldest_s` ago. `gauges`: the last value
    of each, by "source.name". `events` are those of operations that are ok, or what a store tells it has."""

    t: int
    run_id: str = ""
    ended: int = 0
    ok: int = 0
    conflict: int = 0
    failed: int = 0
    unknown: int = 0
    dropped: int = 0
    due: int = 0
    events: int = 0
    p50: float | None = None
    p95: float | None = None
    p99: float | None = None
    worst: float | None = None
    heat: tuple[tuple[int, int], ...] = ()
    waiting: int = 0
    oldest_s: float = 0.0
    gauges: Mapping[str, float] = {}


class Held(Struct, frozen=True, kw_only=True):
    """One target held to the sliding window: `name` and `value` as lab.measures.UNITS has them (None: nothing to compute it
    from), `status` pass, fail or inconclusive, and why."""

    name: str
    limit: str
    value: float | None
    unit: str
    status: str
    reason: str = ""


class Alert(Struct, frozen=True, kw_only=True):
    """One change of one alert. `state`: `pending` (the condition holds, not yet for long enough), `firing`, `resolved`,
    `unwatched` (it fired, and nobody looks any more), or `silenced` (it would fire, and was not told of, for the reason in
    `detail`). `since`: when the condition began to hold. `about`: store, workload, pacer and window, for a message."""

    t: float
    name: str
    severity: str
    state: str
    text: str
    value: float | None = None
    limit: str = ""
    since: float = 0.0
    run_id: str = ""
    detail: str = ""
    about: str = ""
