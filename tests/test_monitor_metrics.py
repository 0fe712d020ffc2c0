"""What Prometheus is told: it parses strictly, says nothing it does not know, and its buckets are as exact as they claim."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
from bisect import bisect_left
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import Histogram
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from prometheus_client.parser import text_string_to_metric_families as text_families

from eventcore_lab.lab.measures import Run
from eventcore_lab.lab.targets import Targets
from eventcore_lab.monitor.facts import EDGES_MS, Gauge, News, Watched
from eventcore_lab.monitor.health import Health
from eventcore_lab.monitor.metrics import OPENMETRICS, SERIES_MAX, TEXT, Metrics, Own, kind_of
from eventcore_lab.monitor.state import State
from eventcore_lab.schema import Outcome, packed

ROOT = Path(__file__).parent.parent
GRAFANA = ROOT / "data" / "grafana" / "eventcore-lab.json"
SCRAPES = sorted((ROOT / "data" / "prometheus").glob("*.yml"))
T0 = 1_800_000_000.0
HOSTILE = (
    '"',
    "\\",
    "\n",
    "</script><script>alert(1)</script>",
    "a" * 10_000,
    "\x00\x1b[2J",
    "‮RTL",
    "{}",
    "$x",
    "\ud800",
    "",
)
OK = Health("ok", ("a run is loading",))
needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not on the PATH (Debian: apt install prometheus)"
)


def rows_of(latencies_ms: np.ndarray, outcome: Outcome = Outcome.OK) -> np.ndarray:
    """Samples that ended one after another, a millisecond apart, from the second the load began on; 0.1 ms in the pool."""
    n = len(latencies_ms)
    rows = np.zeros((n, 8), np.int64)
    rows[:, 0] = np.arange(n)
    rows[:, 5] = 10**9 + 10**6 * np.arange(n)
    rows[:, 1] = rows[:, 2] = rows[:, 3] = rows[:, 5] - (latencies_ms * 1e6).astype(np.int64)
    rows[:, 4] = rows[:, 3] + 100_000
    rows[:, 7] = packed(outcome, 1, 1, 2)
    return rows


def fed(rows: np.ndarray, gauges: tuple[Gauge, ...] = (), targets: Targets | None = None, **watched: object) -> State:
    """A state that has seen these samples of a run, some seconds ago."""
    state = State(targets)
    facts = {"run_id": "r1", "store": "memory", "status": "loading", "began": T0, "duration_s": 60.0, **watched}
    run = Watched(**facts)  # type: ignore[arg-type]
    last_s = int(rows[:, 5].max() // 10**9) + 1 if len(rows) else 1
    for k in range(last_s + 4):
        is_now = rows[:, 5] // 10**9 == k
        state.add(News(t=T0 + k + 1, watched=run, rows=rows[is_now], gauges=gauges if k == last_s + 3 else ()))
    return state


def own(**facts: object) -> Own:
    return Own(**{"health": OK, "look_age_s": 0.5, **facts})  # type: ignore[arg-type]


def families(state: State, now: float = T0 + 10, **facts: object) -> dict[str, Metric]:
    text = Metrics(state, own(**facts), now).text(OPENMETRICS).decode()
    return {family.name: family for family in openmetrics_families(text)}


def test_what_became_of_telling_alerts_is_counted_by_service() -> None:
    counts = {"env:HOOK": {"delivered": 2, "failed": 1, "dropped": 0}, "env:HOOKS 2": {"delivered": 0}}
    found = families(State(), deliveries=counts)
    name = "eventcore_lab_alert_deliveries_total"
    assert value(found, name, channel="env:HOOK", result="failed") == 1
    assert value(found, name, channel="env:HOOK", result="delivered") == 2
    assert value(found, name, channel="env:HOOKS 2", result="delivered") == 0
    assert "eventcore_lab_alert_deliveries" not in families(State())


def value(found: dict[str, Metric], sample: str, **labels: str) -> float:
    values = [s.value for f in found.values() for s in f.samples if s.name == sample and s.labels == labels]
    assert len(values) == 1, (sample, labels, values)
    return float(values[0])


@pytest.fixture(scope="module")
def busy() -> State:
    rng = np.random.default_rng(7)
    rows = np.vstack([rows_of(rng.lognormal(1.5, 1, 3000)), rows_of(np.full(30, 4.0), Outcome.CONFLICT)])
    gauges = (
        Gauge(T0 + 9, "loader", "pss_bytes", 1e8),
        Gauge(T0 + 9, "loader", "cpu_percent", 150.0),
        Gauge(T0 + 9, "store", "streams", 1000.0),
        Gauge(T0 + 9, "machine", "busy_percent", 50.0),
        Gauge(T0 + 9, "machine", "steal_percent", 0.0),
        Gauge(T0 + 9, "server", "connections.active", 3.0),
        Gauge(T0 + 9, "server", "wait:LWLock:WALWrite", 2.0),
        Gauge(T0 + 9, "projection worker", "lag_ms", 1500.0),
        Gauge(T0 + 9, "lag", "mails_lag_events", 7.0),
        Gauge(T0 + 9, "store", "visibility_lag_s", 0.25),
        *(Gauge(T0 + 9, name, name, 1.0) for name in HOSTILE),
    )
    return fed(rows, gauges, Targets.production())


def test_both_formats_parse_and_say_the_same(busy: State) -> None:
    metrics = Metrics(busy, own(firing=dict.fromkeys(HOSTILE, ("warning", True))), T0 + 10)
    strict = {
        (s.name, *sorted(s.labels.items())): s.value
        for f in openmetrics_families(metrics.text(OPENMETRICS).decode())
        for s in f.samples
    }
    plain = {
        (s.name, *sorted(s.labels.items())): s.value
        for f in text_families(metrics.text(TEXT).decode())
        for s in f.samples
    }
    assert strict.keys() == plain.keys()
    assert all(a == plain[k] or (math.isnan(a) and math.isnan(plain[k])) for k, a in strict.items())


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("", TEXT),
        ("*/*", TEXT),
        ("text/html", TEXT),
        ("application/openmetrics-text;version=1.0.0;q=0.8,text/plain;version=0.0.4;q=0.5,*/*;q=0.1", OPENMETRICS),
        ("text/plain;q=0.5, application/openmetrics-text; version=0.0.1", OPENMETRICS),
        ("application/openmetrics-text;q=0, text/plain", TEXT),
        (";;;,,=,application/openmetrics-text2", TEXT),
    ],
)
def test_the_accept_header_chooses(accept: str, kind: str) -> None:
    assert kind_of(accept) == kind


def test_the_chapters_names_are_there_with_the_types_they_ought_to_have(busy: State) -> None:
    found = families(busy)
    assert {name: found[name].type for name in found if not name.startswith("eventcore_lab")} == {
        "eventcore_commands": "counter",
        "eventcore_events": "counter",
        "eventcore_commands_per_second": "gauge",
        "eventcore_events_per_second": "gauge",
        "eventcore_command_latency_seconds": "histogram",
        "eventcore_event_store_latency_seconds": "histogram",
        "eventcore_active_streams": "gauge",
        "eventcore_memory_usage_bytes": "gauge",
    }
    for noun in ("commands", "events"):
        assert "registers it as a counter" in found[f"eventcore_{noun}_per_second"].documentation


def test_what_is_told_is_what_happened(busy: State) -> None:
    found = families(busy, firing={"high_latency": ("critical", True), "low_throughput": ("warning", False)})
    assert value(found, "eventcore_commands_total", outcome="ok") == 3000
    assert value(found, "eventcore_commands_total", outcome="conflict") == 30
    assert value(found, "eventcore_events_total") == 6000
    assert value(found, "eventcore_command_latency_seconds_count") == 3030
    assert value(found, "eventcore_lab_latency_quantile_seconds", quantile="0.95") == busy.figures["p95"] / 1000
    assert value(found, "eventcore_active_streams") == 1000
    assert value(found, "eventcore_memory_usage_bytes", source="loader") == 1e8
    assert value(found, "eventcore_lab_cpu_cores", source="loader") == 1.5
    assert value(found, "eventcore_lab_machine_cpu_ratio", state="busy") == 0.5
    assert value(found, "eventcore_lab_server_connections", state="active") == 3
    assert value(found, "eventcore_lab_server_waiting_backends", event="LWLock:WALWrite") == 2
    assert value(found, "eventcore_lab_lag_seconds", reader="projection worker") == 1.5
    assert value(found, "eventcore_lab_lag_seconds", reader="store.visibility") == 0.25
    assert value(found, "eventcore_lab_lag_events", reader="mails") == 7
    assert value(found, "eventcore_lab_reading", source="machine", name="busy_percent") == 50
    assert value(found, "eventcore_lab_alert_firing", alert="high_latency", severity="critical") == 1
    assert value(found, "eventcore_lab_alert_firing", alert="low_throughput", severity="warning") == 0
    assert value(found, "eventcore_lab_up") == 1


def test_time_at_the_store_is_without_waiting_for_a_connection() -> None:
    found = families(fed(rows_of(np.full(200, 3.0))))
    assert value(found, "eventcore_command_latency_seconds_sum") == pytest.approx(0.6)
    assert value(found, "eventcore_event_store_latency_seconds_sum") == pytest.approx(0.58)


def test_nothing_is_made_up_of_what_nobody_knows() -> None:
    found = families(State(), look_age_s=math.inf, health=Health("down", ("it has not looked yet",)))
    absent = (
        "per_second",
        "active_streams",
        "memory",
        "in_flight",
        "oldest",
        "cpu",
        "lag",
        "held",
        "run_info",
        "reading",
    )
    assert not [name for name in found if any(word in name for word in absent)]
    assert [s.name for s in found["eventcore_lab_latency_quantile_seconds"].samples if s.labels] == []
    assert value(found, "eventcore_lab_up") == 0
    assert value(found, "eventcore_commands_total", outcome="ok") == 0  # that nothing ended is known


def test_a_gauge_that_nobody_renews_goes_away(busy: State) -> None:
    assert "eventcore_memory_usage_bytes" in families(busy, T0 + 100)
    assert "eventcore_memory_usage_bytes" not in families(busy, T0 + 1000)


def test_targets_are_held_or_not_or_cannot_be_said() -> None:
    targets = Targets.of("p50 < 10ms", "p99 < 1ms", "memory < 1MiB")
    found = families(fed(rows_of(np.full(2000, 3.0)), targets=targets))
    said = {s.labels["target"]: s.value for s in found["eventcore_lab_target_held"].samples}
    assert (said["p50"], said["p99"]) == (1, 0) and math.isnan(said["memory"])


def test_of_a_store_that_is_only_observed_nothing_is_said_of_commands() -> None:
    state = State(Targets.production())
    gauges = (Gauge(T0, "store", "events_total", 100.0), Gauge(T0, "store", "streams", 7.0))
    for k in range(4):
        stored = (gauges[0], Gauge(T0 + k, "store", "events_total", 100.0 + 10 * k), gauges[1])
        state.add(News(t=T0 + k, watched=Watched(store="env:LAB_DSN", status="observed"), gauges=stored[1:]))
    found = families(state, T0 + 4)
    assert value(found, "eventcore_events_total") == 30 and value(found, "eventcore_active_streams") == 7
    assert not [name for name in found if re.search("command|latency|quantile|in_flight|runs", name)]


def test_a_window_that_stands_still_is_not_told_as_if_it_were_now(busy: State) -> None:
    found = families(busy, T0 + 60)
    assert not [name for name in found if re.search("per_second|(conflicts|failures)_ratio|in_flight|oldest", name)]
    assert [s.name for s in found["eventcore_lab_latency_quantile_seconds"].samples if "quantile" in s.labels] == []
    assert all(math.isnan(s.value) for s in found["eventcore_lab_target_held"].samples)
    assert value(found, "eventcore_commands_total", outcome="ok") == 3000


def test_names_from_outside_are_cut_escaped_and_bounded(busy: State) -> None:
    labels = [s.labels for s in families(busy)["eventcore_lab_reading"].samples]
    assert max(len(v) for each in labels for v in each.values()) == 100
    assert all(v.isprintable() for each in labels for v in each.values())
    assert {"source": "\\", "name": "\\"} in labels and {"source": '"', "name": '"'} in labels
    many = tuple(Gauge(T0 + 9, f"s{n}", "x", 1.0) for n in range(450))
    same = tuple(Gauge(T0 + 9, "s" * 100 + str(n), "x", 1.0) for n in range(20))
    found = families(fed(rows_of(np.full(10, 1.0)), many))
    assert len(found["eventcore_lab_reading"].samples) == SERIES_MAX
    assert value(found, "eventcore_lab_series_left_out") == 450 - SERIES_MAX
    assert value(families(fed(rows_of(np.full(10, 1.0)), same)), "eventcore_lab_series_left_out") == 19


def from_buckets(p: float, edges: list[float], counts: list[int]) -> float:
    """The quantile as PromQL's histogram_quantile has it: evenly spread within its bucket."""
    rank, below = p * sum(counts), 0
    for n, count in enumerate(counts):
        if below + count >= rank:
            if n == len(edges):
                return edges[-1]
            low = edges[n - 1] if n else 0.0
            return low + (edges[n] - low) * (rank - below) / count
        below += count
    raise AssertionError


def test_quantiles_from_our_buckets_are_within_a_bucket_and_from_the_default_ones_are_not() -> None:
    """F28: p95 is said to be anything between 25 and 50 ms by the default buckets."""
    rng = np.random.default_rng(28)
    latencies = np.sort(np.concatenate([rng.uniform(1, 24, 9490), rng.uniform(40.0, 50.0, 510)]))
    exact = float(latencies[math.ceil(0.95 * len(latencies)) - 1])
    totals = fed(rows_of(latencies)).totals
    ours = from_buckets(0.95, list(EDGES_MS), totals.latency)
    defaults = [1000 * edge for edge in Histogram.DEFAULT_BUCKETS[:-1]]
    counts = np.bincount([bisect_left(defaults, v) for v in latencies], minlength=len(defaults) + 1).tolist()
    theirs = from_buckets(0.95, defaults, counts)
    nth = bisect_left(EDGES_MS, exact)
    assert EDGES_MS[nth - 1] <= ours <= EDGES_MS[nth]
    assert abs(ours - exact) <= EDGES_MS[nth] - EDGES_MS[nth - 1] < abs(theirs - exact)


def test_the_limits_of_the_presets_are_answered_by_the_buckets_exactly() -> None:
    limits = {
        t.limit
        for preset in (Targets.production(), Targets.development())
        for t in preset.thresholds
        if t.name[0] == "p"
    }
    assert limits <= set(EDGES_MS)


@needs_promtool
def test_promtool_finds_nothing_to_say(busy: State) -> None:
    text = Metrics(busy, own(firing={"a": ("warning", True)}), T0 + 10).text()
    found = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True)
    assert (found.returncode, found.stdout, found.stderr) == (0, b"", b"")


@needs_promtool
@pytest.mark.parametrize("file", SCRAPES, ids=lambda f: f.name)
def test_promtool_takes_the_scrape_examples(file: Path, tmp_path: Path) -> None:
    text = file.read_text()
    for name in re.findall(r"credentials_file: (\S+)", text):
        (tmp_path / "token").write_text("x" * 16)
        text = text.replace(name, str(tmp_path / "token"))
    (tmp_path / "prometheus.yml").write_text(text)
    found = subprocess.run(["promtool", "check", "config", tmp_path / "prometheus.yml"], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr


UNITS = {"ops", "eps", "s", "bytes", "percentunit", "short", "none", "bool_yes_no"}
"""Of Grafana's, those that are used here."""
ADDED_BY_PROMETHEUS = {"job", "instance"}
VARIABLES = ("$job", "$source", "$__rate_interval")


def names_in(expression: str) -> dict[str, set[str]]:
    """Metric → the labels that a PromQL expression asks of it; what is summed `by` is asked of every metric in it."""
    bare = re.sub(r'"[^"]*"', '""', expression)
    by = {label for group in re.findall(r"\bby \(([^)]*)\)", bare) for label in re.findall(r"\w+", group)}
    found = re.findall(r"\b(eventcore_\w+)(?:\{([^}]*)\})?", bare)
    return {metric: set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", inside)) | by for metric, inside in found}


def expressions() -> list[tuple[str, str, str]]:
    """Panel or variable, expression, legend."""
    content = json.loads(GRAFANA.read_text())
    found = [(p["title"], t["expr"], t["legendFormat"]) for p in content["panels"] for t in p.get("targets", ())]
    for variable in content["templating"]["list"]:
        if "definition" in variable:
            metric, label = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["definition"]).groups()  # type: ignore[union-attr]
            found.append((variable["name"], metric, "{{" + label + "}}"))
    return found


@pytest.fixture(scope="module")
def real(closed_run: Run, busy: State) -> dict[str, set[str]]:
    """Sample → its labels, as the exposition of a real run on PostgreSQL has it, with what only other runs have."""
    frame = closed_run.samples
    rows = np.zeros((len(frame), 8), np.int64)
    for n, name in enumerate(
        ("operation", "due_ns", "offered_ns", "began_ns", "acquired_ns", "ended_ns", "backoff_ns")
    ):
        rows[:, n] = frame[name].to_numpy()
    words = zip(*(frame[c].to_list() for c in ("outcome", "phase", "attempts", "events", "conflicts")), strict=True)
    rows[:, 7] = [packed(*word) for word in words]
    gauges = tuple(Gauge(T0 + 2, source, name, v) for _, source, name, v in closed_run.gauges.iter_rows())
    state = fed(rows, gauges, Targets.production(), row=closed_run.row)
    found: dict[str, set[str]] = {}
    for seen in (state, busy):
        for family in families(seen, T0 + 5, firing={"low_throughput": ("warning", False)}).values():
            for sample in family.samples:
                found.setdefault(sample.name, set()).update(sample.labels)
    return found


def test_the_grafana_dashboard_asks_for_what_is_there_and_nothing_else(real: dict[str, set[str]]) -> None:
    for title, expression, legend in expressions():
        asked = names_in(expression)
        assert asked, (title, expression)
        for metric, labels in asked.items():
            assert metric in real, (title, metric)
            shown = set(re.findall(r"\{\{(\w+)\}\}", legend))
            assert labels | shown <= real[metric] | ADDED_BY_PROMETHEUS, (title, metric)


def test_every_family_has_a_panel(real: dict[str, set[str]]) -> None:
    asked = {metric for _, expression, _ in expressions() for metric in names_in(expression)}
    bare = {re.sub(r"_(bucket|sum|count)\Z", "", metric) for metric in asked}
    assert {re.sub(r"_(bucket|sum|count)\Z", "", name) for name in real} == bare


def test_the_grafana_dashboard_is_well_formed() -> None:
    content = json.loads(GRAFANA.read_text())
    panels = content["panels"]
    assert len({p["id"] for p in panels}) == len(panels)
    assert {p["fieldConfig"]["defaults"]["unit"] for p in panels if p["type"] != "row"} <= UNITS
    assert [p["title"] for p in panels if p["type"] != "row" and len(p["description"]) < 20] == []
    assert [v["name"] for v in content["templating"]["list"]] == ["datasource", "job", "source"]
    assert all(t["datasource"]["uid"] == "${datasource}" for p in panels for t in p.get("targets", ()))
    taken = [
        (p["gridPos"]["x"] + dx, p["gridPos"]["y"] + dy)
        for p in panels
        for dx in range(p["gridPos"]["w"])
        for dy in range(p["gridPos"]["h"])
    ]
    assert len(taken) == len(set(taken)) and max(x for x, _ in taken) < 24
    for title, expression, _ in expressions():
        assert set(re.findall(r"\$\w+", expression)) <= set(VARIABLES), title


@needs_promtool
def test_promtool_takes_every_query_as_a_rule(tmp_path: Path) -> None:
    rules = []
    for n, (_, expression, _) in enumerate(expressions()):
        said = expression.replace("$__rate_interval", "1m").replace("$job", ".*").replace("$source", ".*")
        rules.append({"record": f"query_{n}", "expr": said})
    file = tmp_path / "rules.yml"
    file.write_text(json.dumps({"groups": [{"name": "grafana", "rules": rules}]}))  # YAML has JSON in it
    found = subprocess.run(["promtool", "check", "rules", file], capture_output=True, text=True)
    assert found.returncode == 0 and f"{len(rules)} rules found" in found.stdout, found.stdout + found.stderr
