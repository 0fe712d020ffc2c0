"""What a Prometheus server is told: the chapter's names with the types they ought to have, and all else that the monitor sees.

A value that is not known, or that nobody has renewed, is absent; none is made up. The chapter registers its two rates as
counters; a rate goes up and down, so here they are gauges, and the counters they are taken from stand beside them as
`eventcore_commands_total` and `eventcore_events_total`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version

from msgspec import Struct
from prometheus_client import exposition
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector

from eventcore_lab.monitor.facts import EDGES_MS, Gauge
from eventcore_lab.monitor.health import LOOKS_PER_RUN, Health
from eventcore_lab.monitor.state import State
from eventcore_lab.monitor.window import OBSERVED

TEXT, OPENMETRICS = exposition.CONTENT_TYPE_PLAIN_0_0_4, openmetrics.CONTENT_TYPE_LATEST
LABEL_CHARS_MAX = 100
SERIES_MAX = 200
"""Of one family whose labels come from outside; what is beyond is counted in `eventcore_lab_series_left_out`."""
GAUGE_KEPT_S = 150.0
"""How long the last value of a gauge stands; the slowest is looked at once a minute."""
QUANTILES = {"p50": "0.5", "p90": "0.9", "p95": "0.95", "p99": "0.99", "p99.9": "0.999"}
_LE = tuple(repr(round(edge / 1000, 9)) for edge in EDGES_MS)
_RUN_LABELS = ("run_id", "store", "workload", "executor", "pacer", "projection")


def kind_of(accept: str) -> str:
    """The content type that an `Accept` header asks for: OpenMetrics if it is named, else the text format 0.0.4."""
    for part in accept.split(","):
        kind, *parameters = (word.strip().lower() for word in part.split(";"))
        if kind == "application/openmetrics-text":
            return TEXT if any(re.fullmatch(r"q=0(\.0*)?", p) for p in parameters) else OPENMETRICS
    return TEXT


class Own(Struct, frozen=True, kw_only=True):
    """What the monitor tells of itself. `firing`: alert → (severity, whether it fires); `deliveries`: service → what became of
    alerts → how many."""

    health: Health
    look_age_s: float
    looks: int = 0
    errors: int = 0
    dashboards: int = 0
    firing: Mapping[str, tuple[str, bool]] = {}
    deliveries: Mapping[str, Mapping[str, int]] = {}


class _Shape(Struct, frozen=True):
    """Which gauges make up a family: those whose "source.name" matches; the pattern's group, or the source, is the label."""

    pattern: re.Pattern[str]
    family: str
    label: str
    help: str
    factor: float = 1.0


_SHAPES = (
    _Shape(
        re.compile(r"(?P<label>.+)\.pss_bytes\Z"),
        "eventcore_memory_usage_bytes",
        "source",
        "Proportional set size: pages that several processes share count once, in parts.",
    ),
    _Shape(
        re.compile(r"(?P<label>.+)\.cpu_percent\Z"),
        "eventcore_lab_cpu_cores",
        "source",
        "Processor cores kept busy since the last look of the probe.",
        0.01,
    ),
    _Shape(
        re.compile(r"machine\.(?P<label>busy|steal)_percent\Z"),
        "eventcore_lab_machine_cpu_ratio",
        "state",
        "Share of all processors' time: busy, or taken by other guests of the host (steal).",
        0.01,
    ),
    _Shape(
        re.compile(r"(?:server|store)\.connections[.:](?P<label>.+)\Z"),
        "eventcore_lab_server_connections",
        "state",
        "Connections to the watched database by their state, the monitor's own left out.",
    ),
    _Shape(
        re.compile(r"(?:server|store)\.wait(?:ing)?:(?P<label>.+)\Z"),
        "eventcore_lab_server_waiting_backends",
        "event",
        "Active backends by what they wait for, when last looked at; the rarest together as other.",
    ),
    _Shape(
        re.compile(r"(?:lag\.)?(?P<label>.+?)[._]lag_ms\Z"),
        "eventcore_lab_lag_seconds",
        "reader",
        "How long what a reader or read model has not seen yet has been stored.",
        0.001,
    ),
    _Shape(
        re.compile(r"(?:lag\.)?(?P<label>.+?)[._]lag_s\Z"),
        "eventcore_lab_lag_seconds",
        "reader",
        "How long what a reader or read model has not seen yet has been stored.",
    ),
    _Shape(
        re.compile(r"(?:lag\.)?(?P<label>.+?)[._]lag_events\Z"),
        "eventcore_lab_lag_events",
        "reader",
        "How many events a reader or read model has not seen yet.",
    ),
)


class Metrics(Collector):
    """Everything as metric families, at the Unix time `now`. Reads, and changes nothing."""

    def __init__(self, state: State, own: Own, now: float) -> None:
        self._state, self._own, self._now = state, own, now
        self._left_out = 0

    def text(self, kind: str = TEXT) -> bytes:
        """The exposition of this content type, TEXT or OPENMETRICS."""
        if kind == OPENMETRICS:
            return openmetrics.generate_latest(self)  # type: ignore[no-any-return, no-untyped-call]
        return exposition.generate_latest(self)

    def collect(self) -> Iterator[Metric]:
        self._left_out = 0
        yield from self._counters()
        yield from self._rates()
        yield from self._latencies()
        yield from self._load()
        yield from self._gauges()
        yield from self._judged()
        yield from self._deliveries()
        yield from self._of_the_monitor()

    def _counters(self) -> Iterator[Metric]:
        totals = self._state.totals
        yield _counter(
            "eventcore_events",
            "Events stored by operations that were ok; of an existing store all that were.",
            totals.events,
        )
        if self._is_observed:
            return  # nobody knows of its commands
        commands = CounterMetricFamily(
            "eventcore_commands", "Operations that ended, by outcome, since the monitor began.", labels=["outcome"]
        )
        for outcome in ("ok", "conflict", "failed", "unknown", "dropped"):
            commands.add_metric([outcome], totals.outcomes.get(outcome, 0))
        yield commands
        yield _counter("eventcore_lab_runs", "Runs seen since the monitor began.", totals.runs)

    def _rates(self) -> Iterator[Metric]:
        for noun in ("commands", "events"):
            text = (
                f"{noun.capitalize()} per second over the window. A gauge: the chapter registers it as a counter, which a rate "
                f"is not; for a window of your own take rate(eventcore_{noun}_total[1m])."
            )
            yield from _known(f"eventcore_{noun}_per_second", text, self._figure(f"{noun}_per_second"))

    def _latencies(self) -> Iterator[Metric]:
        if self._is_observed:
            return
        totals = self._state.totals
        yield _histogram(
            "eventcore_command_latency_seconds",
            "Response time of operations that ended, from when each was due.",
            totals.latency,
            totals.latency_sum_s,
        )
        yield _histogram(
            "eventcore_event_store_latency_seconds",
            "Of the same operations the time at the store: neither waiting for a connection nor for another try.",
            totals.store,
            totals.store_sum_s,
        )
        exact = Metric(
            "eventcore_lab_latency_quantile_seconds",
            "Exact quantiles of the response time over the window; infinite where that part was never answered.",
            "summary",
            "seconds",
        )
        for name, quantile in QUANTILES.items():
            if not math.isnan(value := self._figure(name) / 1000):
                exact.add_sample(exact.name, {"quantile": quantile}, value)
        exact.add_sample(f"{exact.name}_count", {}, sum(totals.latency))
        exact.add_sample(f"{exact.name}_sum", {}, totals.latency_sum_s)
        yield exact

    def _load(self) -> Iterator[Metric]:
        state, fresh = self._state, self._fresh()
        streams = fresh["store.streams"].value if "store.streams" in fresh else math.nan
        yield from _known("eventcore_active_streams", "Streams that have events, as far as it is known.", streams)
        is_known = state.is_loaded and not self._is_stale
        in_flight, oldest_s = (float(state.waiting), state.oldest_s) if is_known else (math.nan, math.nan)
        yield from _known("eventcore_lab_operations_in_flight", "Operations under way.", in_flight)
        yield from _known(
            "eventcore_lab_oldest_operation_age_seconds",
            "How long ago the oldest operation under way was due.",
            oldest_s,
            "seconds",
        )
        for noun, what in (("conflicts", "Conflicts"), ("failures", "Failures")):
            value = self._figure(f"{noun}/attempts") / 100
            yield from _known(f"eventcore_lab_{noun}_ratio", f"{what} by attempts, over the window.", value, "ratio")

    def _gauges(self) -> Iterator[Metric]:
        fresh = self._fresh()
        for family in dict.fromkeys(shape.family for shape in _SHAPES):
            shapes = [shape for shape in _SHAPES if shape.family == family]
            rows = [
                ((found["label"],), gauge.value * shape.factor)
                for name, gauge in fresh.items()
                for shape in shapes
                if (found := shape.pattern.match(name))
            ]
            yield from self._labelled(family, shapes[0].help, [shapes[0].label], rows)
        yield from self._labelled(
            "eventcore_lab_reading",
            "The last value of every gauge of the run, or of the store, as it is recorded: the unit ends its name.",
            ["source", "name"],
            [((gauge.source, gauge.name), gauge.value) for gauge in fresh.values()],
        )

    def _judged(self) -> Iterator[Metric]:
        held = {} if self._is_stale else {"pass": 1.0, "fail": 0.0}
        yield from self._labelled(
            "eventcore_lab_target_held",
            "Whether the window keeps to a target: 1 it does, 0 it does not, NaN it cannot be said.",
            ["target", "limit"],
            [((h.name, h.limit), held.get(h.status, math.nan)) for h in self._state.held],
        )
        yield from self._labelled(
            "eventcore_lab_alert_firing",
            "Whether an alert fires.",
            ["alert", "severity"],
            [((name, severity), float(fires)) for name, (severity, fires) in self._own.firing.items()],
        )

    def _deliveries(self) -> Iterator[Metric]:
        family = CounterMetricFamily(
            "eventcore_lab_alert_deliveries",
            "Alerts by service and what became of telling them.",
            labels=["channel", "result"],
        )
        for channel, counts in self._own.deliveries.items():
            for result, count in counts.items():
                family.add_metric([_label(channel), result], count)
        if family.samples:
            yield family

    def _of_the_monitor(self) -> Iterator[Metric]:
        own, state = self._own, self._state
        build = InfoMetricFamily("eventcore_lab_build", "Which eventcore_lab this is.")
        build.add_metric([], {"version": version("eventcore_lab")})
        yield build
        if (watched := state.watched) is not None:
            info = InfoMetricFamily("eventcore_lab_run", "What is watched.")
            row = {name: _label(watched.row.get(name) or "") for name in _RUN_LABELS}
            said = {"run_id": watched.run_id, "store": watched.store, "status": watched.status}
            info.add_metric([], row | {name: _label(value) for name, value in said.items()})
            yield info
        up = {"ok": 1.0, "degraded": 1.0}.get(own.health.status, 0.0)
        yield GaugeMetricFamily("eventcore_lab_up", "Whether /health says 200.", up)
        yield from _known(
            "eventcore_lab_monitor_look_age_seconds", "Since the last look that came back.", own.look_age_s, "seconds"
        )
        yield GaugeMetricFamily(
            "eventcore_lab_monitor_window_seconds", "The window asked for.", state.window_s, unit="seconds"
        )
        yield GaugeMetricFamily(
            "eventcore_lab_monitor_window_cut", "Whether the window is shorter than that.", float(state.is_cut)
        )
        yield GaugeMetricFamily("eventcore_lab_monitor_dashboards", "Dashboards that listen.", own.dashboards)
        yield GaugeMetricFamily("eventcore_lab_series_left_out", "Series beyond the bounds.", self._left_out)
        yield _counter("eventcore_lab_monitor_looks", "Looks at the source.", own.looks)
        yield _counter("eventcore_lab_monitor_look_errors", "Looks that came to nothing.", own.errors)
        yield _counter(
            "eventcore_lab_monitor_lost_seconds", "Seconds that nobody looked.", state.totals.lost_s, "seconds"
        )

    def _figure(self, name: str) -> float:
        return math.nan if self._is_stale else self._state.figures.get(name, math.nan)

    @property
    def _is_stale(self) -> bool:
        """Whether the window stands still, because nothing could be looked at."""
        return self._state.is_stale(self._now)

    @property
    def _is_observed(self) -> bool:
        return self._state.watched is not None and self._state.watched.status == OBSERVED

    def _fresh(self) -> dict[str, Gauge]:
        """The gauges whose last value still stands."""
        watched = self._state.watched
        kept_s = GAUGE_KEPT_S + (3 * watched.duration_s / LOOKS_PER_RUN if watched is not None else 0.0)
        return {name: g for name, g in self._state.gauges.items() if self._now - g.t <= kept_s}

    def _labelled(
        self, name: str, text: str, labels: Sequence[str], rows: Iterable[tuple[Sequence[str], float]]
    ) -> Iterator[Metric]:
        """A family of at most SERIES_MAX series; of several that are the same once their labels are cut, the first."""
        unit = next((unit for unit in ("bytes", "seconds", "ratio") if name.endswith(f"_{unit}")), "")
        family = GaugeMetricFamily(name, text, labels=labels, unit=unit)
        seen: set[tuple[str, ...]] = set()
        for values, value in rows:
            cut = tuple(_label(v) for v in values)
            if cut in seen or len(seen) >= SERIES_MAX:
                self._left_out += 1
                continue
            seen.add(cut)
            family.add_metric(cut, value)
        if seen:
            yield family


def _known(name: str, text: str, value: float, unit: str = "") -> Iterator[Metric]:
    """A gauge, unless its value is not known."""
    if not math.isnan(value):
        yield GaugeMetricFamily(name, text, value, unit=unit)


def _counter(name: str, text: str, value: float, unit: str = "") -> CounterMetricFamily:
    return CounterMetricFamily(name, text, value, unit=unit)


def _histogram(name: str, text: str, counts: Sequence[int], sum_s: float) -> HistogramMetricFamily:
    """`counts` per bucket of EDGES_MS, one more for what lies above; the exposition wants them added up."""
    buckets, below = [], 0
    for le, count in zip((*_LE, "+Inf"), counts, strict=True):
        below += count
        buckets.append((le, float(below)))
    return HistogramMetricFamily(name, text, buckets=buckets, sum_value=sum_s, unit="seconds")


def _label(text: object) -> str:
    """What came from outside as a label: printable, at most LABEL_CHARS_MAX characters; the library escapes the rest."""
    said = str(text)[: LABEL_CHARS_MAX + 1]
    clean = "".join(c if c.isprintable() else "�" for c in said)
    return clean if len(clean) <= LABEL_CHARS_MAX else clean[: LABEL_CHARS_MAX - 1] + "…"
