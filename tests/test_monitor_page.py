"""The dashboard in a real browser: it shows what it is told, once, whatever it is called, for as long as it is told."""

from __future__ import annotations

import base64
import hashlib
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from eventcore_lab.monitor.facts import EDGES_MS
from eventcore_lab.monitor.judging import UNTOLD
from eventcore_lab.monitor.page import SCRIPTS, page
from tests.browser import CHROMIUM, needs_chromium
from tests.replaying import (
    BEGAN,
    TARGETS,
    Replay,
    Tab,
    alert,
    busy,
    chromium,
    held,
    hello,
    news,
    observed,
    second,
    until,
    watched,
)

FOLDER = Path(__file__).parent.parent / "eventcore_lab" / "monitor" / "page"
STATE = "eventcoreLab.state"
HEAP_GROWTH_BYTES_MAX = 3_000_000
BLUE, RED, GREEN, PALE, DEEP = (0, 114, 178), (184, 74, 0), (0, 121, 90), (140, 201, 182), (0, 32, 77)
DRAWN = {
    "throughput": BLUE,
    "latency": RED,
    "heat": DEEP,
    "outcomes": PALE,
    "waiting": BLUE,
    "memory": GREEN,
    "cpu": RED,
}
DRAWN |= {"written": BLUE, "connections": BLUE, "waits": BLUE, "lag-s": BLUE, "lag-count": BLUE}
"""A colour that must be somewhere on each chart of a busy run, in the light theme."""


@pytest.fixture(scope="module")
def replay() -> Iterator[Replay]:
    made = Replay()
    made.start()
    yield made
    made.close()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    pytest.importorskip("websocket", reason="websocket-client is not installed")
    assert CHROMIUM is not None
    with chromium(CHROMIUM, tmp_path_factory.mktemp("chromium")) as tab:
        yield tab


@pytest.fixture
def tab(browser: Tab, replay: Replay) -> Iterator[Tab]:
    """The one tab as if it were new; whatever a test does with it, nothing is thrown and nobody else is asked."""
    browser.size(1400, 1000)
    browser.events.clear()
    yield browser
    assert [text for text in browser.complaints() if "net::ERR_" not in text] == []
    assert [url for url in browser.asked() if not url.startswith(f"http://127.0.0.1:{replay.port}/")] == []
    browser.call("Page.navigate", url="about:blank")


def shown(tab: Tab, replay: Replay, said: dict[str, Any]) -> None:
    """The page, having been told this at its connecting, and having drawn it."""
    replay.hello = said
    tab.call("Page.navigate", url=replay.address)
    drawn = f"document.readyState == 'complete' && window.eventcoreLab && {STATE}.connection == 'live'"
    until(lambda: tab.value(drawn) or tab.complaints(), "the page")
    assert tab.complaints() == []
    settle(tab)


def settle(tab: Tab) -> None:
    """Has the page draw what it knows now, instead of when a second is over."""
    tab.value("dispatchEvent(new Event('beforeprint')), dispatchEvent(new Event('afterprint')), true")
    tab.value("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(true))))")


def text(tab: Tab, selector: str) -> str:
    return str(tab.value(f"document.querySelector({json.dumps(selector)}).innerText")).strip()


def rows(tab: Tab, table: str) -> list[list[str]]:
    cells = f"[...document.querySelectorAll('#{table} tbody tr')].map(r => [...r.cells].map(c => c.textContent))"
    found: list[list[str]] = tab.value(cells)
    return found


def tiles(tab: Tab) -> dict[str, tuple[str, str]]:
    found = tab.value(
        "[...document.querySelectorAll('.tile:not([hidden])')].map(t => [...t.children].map(c => c.textContent))"
    )
    return {title: (value, target) for title, value, target in found}


def press_pause(tab: Tab) -> None:
    tab.press(" ", "Space", " ")


def library(tab: Tab, expression: str, *scripts: str) -> Any:
    """An expression in the scope of some of the page's scripts."""
    code = "".join((FOLDER / name).read_text(encoding="utf-8") for name in scripts or ("format.js", "history.js"))
    return tab.value(f"(() => {{ 'use strict'; {code}; return {expression}; }})()")


def test_the_page_is_one_file_and_its_policy_runs_just_that() -> None:
    html, policy = page()
    assert page() is page()
    for directive, tag in (("script-src", "script"), ("style-src", "style")):
        [block] = re.findall(f"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(block.encode()).digest()).decode()
        assert f"{directive} 'sha256-{digest}';" in policy
    assert "unsafe" not in policy and policy.startswith("default-src 'none'")
    assert not re.search(r"https?:|//[a-z]|url\(|@import|innerHTML|insertAdjacent|document\.write|eval\(", html)
    assert not re.search(r"\son\w+=|\sstyle=", html)
    assert set(re.findall(r'(?:src|href)="([^"]*)"', html)) == {"data:,", "#figures", "metrics", "health"}


def test_each_file_is_one_thing_and_opens_with_its_sentence() -> None:
    assert {path.name for path in FOLDER.glob("*.js")} == set(SCRIPTS)
    for path in sorted(FOLDER.glob("*.js")):
        lines = path.read_text(encoding="utf-8").splitlines()
        assert len(lines) <= 400, path.name
        assert re.match(r"// [A-Z].+[.,]?$", lines[0]) and not lines[0].endswith(";"), path.name


@needs_chromium
def test_numbers_are_short_and_have_units(tab: Tab) -> None:
    given = "[0, 0.0123, 1.5, 99.96, 1234, 9999, 12345, 999600, 4.56e9, NaN].map(short)"
    assert library(tab, given) == ["0", "0.012", "1.5", "100", "1,234", "9,999", "12.3k", "1M", "4.56G", "–"]
    given = "[ms(0.0123), ms(1.5), ms(999.9), ms(1500), ms(90000), UNITS.bytes(1536), inUnit(402.2, 'MiB'), inUnit(5, '/s')]"
    said = ["12.3 µs", "1.5 ms", "1 s", "1.5 s", "1.5 min", "1.5 KiB", "402 MiB", "5/s"]
    assert library(tab, given) == said
    assert library(tab, "[span(45), span(200), span(7500)]") == ["45 s", "3:20 min", "2:05 h"]
    assert library(tab, "[ticks(0, 3, 4, 'count'), ticks(0, 900, 4, 'rate'), logTicks(1, 100, 9)]") == [
        [0, 1, 2, 3],
        [0, 250, 500, 750, 1000],
        [1, 2, 5, 10, 20, 50, 100],
    ]


@needs_chromium
def test_a_second_has_one_place_whenever_it_comes(tab: Tab) -> None:
    """Twice is once, late is in its place, never is a gap, and the oldest goes when the ring is full."""
    code = """(() => {
        const h = new History(() => true); h.clear([1, 10]);
        for (const [t, ok] of [[100, 1], [101, 2], [104, 5], [101, 3], [102, 4]])
            h.put({t, ok, gauges: {"a.b": ok}, heat: [[1, ok]]});
        const seen = [], ofGauge = h.series.get("a.b");
        h.each(99, 110, (slot, t) => seen.push([t, h.columns.ok[slot], ofGauge[slot], h.heat[slot * 3 + 1]]));
        for (let t = 0; t < 20000; t += 1) h.put({t: 1000 + t});
        for (const bad of [null, 3, {}, {t: "5"}, {t: NaN}, {t: 1e300}]) h.put(bad);
        return [seen, h.count, h.slot(104), h.newest];
    })()"""
    seen, count, old, newest = library(tab, code)
    assert seen == [[100, 1, 1, 1], [101, 3, 3, 3], [102, 4, 4, 4], [104, 5, 5, 5]]
    assert (count, old, newest) == (7200, -1, 20999)


@needs_chromium
def test_where_seconds_share_a_pixel_the_highest_and_the_lowest_are_kept(tab: Tab) -> None:
    code = """(() => {
        const h = new History(() => true); h.clear([1]);
        for (let t = 0; t < 7200; t += 1) h.put({t, p99: t === 4321 ? 900 : t === 17 ? 0.5 : 10});
        const bins = binned(h, h.columns.p99, 0, 7200, 500);
        const seconds = bins.reduce((sum, b) => sum + b.count, 0);
        return [bins.length, Math.max(...bins.map(b => b.high)), Math.min(...bins.map(b => b.low)), seconds];
    })()"""
    assert library(tab, code) == [500, 900, 0.5, 7200]


@needs_chromium
def test_what_is_shown_is_what_was_sent(tab: Tab, replay: Replay) -> None:
    chance = random.Random(7)
    seconds = [busy(BEGAN + n, chance) for n in range(120)]
    figures = {"commands_per_second": 496.3, "events_per_second": 1203.0, "p50": 3.4, "p95": 11.2, "p99": None}
    figures |= {"memory": 402.2, "cpu": 57.9, "failures/attempts": 0.02, "unknown figure": 5}
    judged = [
        held("commands_per_second", "> 100/s", 496.3, "/s", "pass"),
        held("p95", "< 10 ms", 11.2, "ms", "fail"),
        held("p99", "< 100 ms", None, "ms", "fail", "3 never ended"),
        held("cpu", "< 70 %", 57.9, "%", "inconclusive", "warming up"),
    ]
    alerts = [alert(BEGAN + 60, "high_latency", "firing", text="p95 11.2 ms, should be < 10 ms", severity="critical")]
    marks = [{"t": BEGAN + 30.5, "name": "server restarted", "detail": "back after 1.2 s"}]
    health = {"status": "degraded", "reasons": ["no gauge for 12 s"]}
    said = hello(seconds, figures=figures, held=judged, alerts=alerts, marks=marks, health=health, something_new=[1])
    shown(tab, replay, said)
    for sent in seconds:
        kept = tab.value(f"eventcoreLab.secondAt({sent['t']})")
        assert kept == {name: sent[name] for name in kept}
    assert tab.value("eventcoreLab.secondAt(0)") is None
    found = tiles(tab)
    assert found["Operations"] == ("496/s", "✓ > 100/s")
    assert found["Events"] == ("1,203/s", "")
    assert found["p50"][0] == "3.4 ms"
    assert found["p95"] == ("11.2 ms", "✗ < 10 ms")
    assert found["p99"] == ("∞", "✗ < 100 ms")
    assert found["Waiting"][0] == str(seconds[-1]["waiting"])
    assert found["Worst"][0] == library(tab, f"ms({max(s['worst'] for s in seconds[-30:])})")
    assert found["Failures"][0] == "0.02 %"
    assert found["Memory"][0] == "402 MiB"
    assert found["CPU"] == ("57.9 %", "? < 70 %")
    assert rows(tab, "held")[1] == ["p95", "< 10 ms", "11.2 ms", "✗ fail", ""]
    assert rows(tab, "held")[2] == ["p99", "< 100 ms", "never ended", "✗ fail", "3 never ended"]
    assert rows(tab, "held")[3][3:] == ["? inconclusive", "warming up"]
    assert rows(tab, "alerts")[0][1:] == ["high_latency", "‼ critical", "▲ firing", "p95 11.2 ms, should be < 10 ms"]
    assert rows(tab, "marks")[0][1:] == ["server restarted", "back after 1.2 s"]
    assert {row[0] for row in rows(tab, "gauges")} == {
        "machine.steal_percent",
        "probe.memory_cost_ms",
    }
    assert text(tab, "#connection") == "● live"
    assert (text(tab, "#health"), text(tab, "#reasons")) == ("! degraded", "no gauge for 12 s")
    assert text(tab, "#title") == "postgres"
    assert text(tab, "#subtitle").startswith(
        "run 20250615-150640-a1b2c3 · commands:streams=1000 · poisson:rate=500 · loading 2:00 min of 2:00 h"
    )
    assert str(tab.value("document.title")).startswith("▲ 1 · postgres")
    tab.value("document.querySelector('summary').click(), true")
    until(lambda: len(rows(tab, "seconds")) == 60, "the newest minute")
    newest = seconds[-1]
    assert rows(tab, "seconds")[0][1:8] == [
        library(tab, f"short({newest[name]})")
        for name in ("ok", "conflict", "failed", "unknown", "dropped", "due", "events")
    ]
    legend = text(tab, "#chart-throughput .legend").split("\n")
    assert library(tab, f"UNITS.rate({newest['ok']})") in " ".join(legend)


@needs_chromium
def test_every_chart_has_words_for_who_cannot_see_it(tab: Tab, replay: Replay) -> None:
    chance = random.Random(3)
    shown(tab, replay, hello([busy(BEGAN + n, chance) for n in range(90)]))
    labels = tab.value(
        "[...document.querySelectorAll('figure:not([hidden]) canvas[role=img]')].map(c => c.getAttribute('aria-label'))"
    )
    assert len(labels) == 12
    assert all(re.match(r"[\w, ]+, \d\d:\d\d:\d\d to \d\d:\d\d:\d\d: .+ between .+", label) for label in labels), labels
    assert not tab.value("document.querySelector('#unrecorded').textContent")
    drawn = """(id, rgb) => {
        const c = document.querySelector(`#chart-${id} canvas[role=img]`);
        const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
        let found = 0;
        for (let i = 0; i < d.length; i += 4) found += d[i + 3] > 250 && rgb.every((v, k) => Math.abs(v - d[i + k]) < 12);
        return found; }"""
    for chart, colour in DRAWN.items():
        assert tab.value(f"({drawn})('{chart}', {list(colour)})") > 20, chart
    shown(tab, replay, hello([second(BEGAN + n, events=200) for n in range(9)], watched=watched(status="observed")))
    assert text(tab, "#unrecorded").startswith(
        "A store that is only observed does not tell it: latency, heat map, outcomes, waiting operations, memory, CPU."
    )
    assert "Waiting" not in tiles(tab)


OBSERVED = {"run_id": "", "store": "env:SHOP", "title": "env:SHOP · PostgreSQL 18.1 · EventCore in schema shop"}
OBSERVED |= {"status": "observed", "began": None, "row": {}}


def of_observed(**fields: Any) -> dict[str, Any]:
    chance = random.Random(41)
    judged = [
        held("events_per_second", "> 100/s", 180.0, "/s", "pass"),
        held("p50", "< 10 ms", None, "ms", "inconclusive", UNTOLD),
        held("p99", "< 100 ms", None, "ms", "inconclusive", UNTOLD),
        held("cpu", "< 70 %", None, "%", "inconclusive", UNTOLD),
    ]
    given: dict[str, Any] = {"watched": watched(**OBSERVED), "figures": {"events_per_second": 180.0}, "held": judged}
    given["seconds"] = [observed(BEGAN + n, chance) for n in range(121)]
    given |= fields
    return hello(given.pop("seconds"), **given)


@needs_chromium
def test_of_a_store_that_is_only_observed_it_shows_what_that_tells(tab: Tab, replay: Replay) -> None:
    said = of_observed()
    shown(tab, replay, said)
    found = tiles(tab)
    assert found["Events"] == ("180/s", "✓ > 100/s")
    assert found["Transactions"] == ("90/s", "2/s rolled back")
    assert found["Rows inserted"][0] == "200/s"
    assert found["WAL written"][0] == "1 MiB/s"
    active = said["seconds"][-1]["gauges"]["server.connections.active"]
    assert found["Connections"] == (f"{active + 4:.0f}", f"{active:.0f} active")
    assert found["Waiting backends"] == ("3", "LWLock:WALWrite")
    assert found["Oldest transaction"][1] == "writing: 250 ms" and found["Visibility lag"][0] == "250 ms"
    assert found["Furthest behind"] == ("512", "events: orders")
    assert found["Statement, mean"] == ("1.5 ms", "of 95/s")
    assert found["Database size"] == ("700 MiB", "events 500 MiB")
    assert not {"Operations", "p50", "Waiting", "Failures", "Memory", "CPU"} & set(found)
    assert text(tab, "#unrecorded") == (
        "A store that is only observed does not tell it: latency, heat map, outcomes, waiting operations, memory, CPU."
    )
    assert [row[0] for row in rows(tab, "held")] == ["events_per_second"]
    assert text(tab, "#held-untold") == f"Not judged, for {UNTOLD}: p50 < 10 ms, p99 < 100 ms, cpu < 70 %."
    tab.value("document.querySelector('summary').click(), true")
    until(lambda: len(rows(tab, "seconds")) == 60, "the newest minute")
    assert rows(tab, "seconds")[0][1:5] == ["180/s", "90/s", "200/s", "1 MiB/s"]
    assert "store.statements_per_s" in {row[0] for row in rows(tab, "gauges") if row[1] == "95/s"}
    cut = """[...document.querySelectorAll('.tile:not([hidden]) > *')].filter(e => e.scrollWidth > e.clientWidth)
        .map(e => e.textContent)"""
    large = [one | {"gauges": dict(one["gauges"])} for one in said["seconds"]]
    for n, one in enumerate(large):
        one["gauges"] |= {"server.wal_bytes": 1010 * 2**20 * n, "server.oldest_transaction_s": 3666.0}
    for width in (1400, 390):
        tab.size(width, 1000)
        shown(tab, replay, of_observed(seconds=large))
        assert tiles(tab)["WAL written"][0] == "1,010 MiB/s"
        assert tab.value(cut) == []
    tab.size(1400, 1000)
    tab.value("document.querySelector('summary').click(), true")
    # A run on the same page has its own figures again.
    replay.tell("second", news([busy(BEGAN + 121, random.Random(1))], figures={"p50": 1.5}))
    until(lambda: tab.value(f"{STATE}.newest") == BEGAN + 121, "a run")
    settle(tab)
    assert tiles(tab)["p50"][0] == "1.5 ms" and len(rows(tab, "seconds")[0]) == 14


@needs_chromium
def test_an_observed_store_that_rests_is_drawn_and_one_just_found_is_waited_for(tab: Tab, replay: Replay) -> None:
    resting = [second(BEGAN + n, gauges={"store.events_total": 500.0}) for n in range(30)]
    shown(tab, replay, of_observed(seconds=resting))
    assert text(tab, "#chart-throughput .legend") == "events\n0/s"
    shown(tab, replay, of_observed(seconds=[second(BEGAN + n) for n in range(3)]))
    assert "Waiting for the first second: throughput, connections, wait events, lag." in text(tab, "#unrecorded")


@needs_chromium
def test_what_nobody_could_look_at_is_no_figure_but_its_age(tab: Tab, replay: Replay) -> None:
    said = of_observed()
    shown(tab, replay, said)
    judged = [held("events_per_second", "> 100/s", None, "/s", "inconclusive", "not looked at since 15:06:41 UTC")]
    dead = [second(BEGAN + n) for n in range(121, 135)]
    more: dict[str, Any] = {"watched": watched(**OBSERVED), "figures": {"events_per_second": None}, "held": judged}
    replay.tell("second", news(dead, unseen_s=13.4, **more))
    until(lambda: tab.value(f"{STATE}.newest") == BEGAN + 134, "the end")
    settle(tab)
    found = tiles(tab)
    assert found["Events"] == ("–", "180/s, 13 s ago") and found["Transactions"] == ("–", "90/s, 13 s ago")
    assert {value for value, _ in found.values()} == {"–"} and len(found) == 11
    assert "13 s ago" in text(tab, "#figures-note")
    last = "document.querySelector('#chart-throughput .legend .value').textContent"
    assert tab.value(last) == "–"
    replay.tell("second", news([observed(BEGAN + 135, random.Random(1))], unseen_s=None, **more | {"figures": {}}))
    until(lambda: tab.value(f"{STATE}.newest") == BEGAN + 135, "it to come back")
    settle(tab)
    assert tiles(tab)["Database size"][0] == "700 MiB"
    shown(tab, replay, hello([busy(BEGAN + n, random.Random(2)) for n in range(9)], unseen_s=61.0))
    assert tiles(tab)["p99"] == ("–", "1:01 min ago") and tiles(tab)["Waiting"][0] == "–"


@needs_chromium
@pytest.mark.parametrize(("seconds", "span_s"), [(20, 60), (150, 151), (600, 300)])
def test_of_what_began_a_moment_ago_as_much_is_drawn_as_there_is(
    tab: Tab, replay: Replay, seconds: int, span_s: int
) -> None:
    chance = random.Random(31)
    shown(tab, replay, hello([busy(BEGAN + s, chance) for s in range(seconds)]))
    assert tab.value(STATE)["shownS"] == pytest.approx(span_s, abs=2)


@needs_chromium
def test_before_its_first_second_a_run_lacks_nothing(tab: Tab, replay: Replay) -> None:
    idle = [second(BEGAN - n) for n in (3, 2, 1)]
    for status, now in (("preparing", BEGAN), ("loading", BEGAN + 1.2)):
        shown(tab, replay, hello(idle, now=now, watched=watched(status=status)))
        assert text(tab, "#unrecorded").startswith("Waiting for the first second: throughput, latency,")
    chance = random.Random(5)
    late = [busy(BEGAN + n, chance) | {"gauges": {}} for n in range(9)]
    shown(tab, replay, hello(late))
    assert text(tab, "#unrecorded") == "Not recorded: memory, CPU, connections, wait events, lag."


@needs_chromium
def test_counters_are_drawn_as_what_they_grow_by(tab: Tab, replay: Replay) -> None:
    code = """(() => {
        const h = new History(() => true); h.clear([1]);
        for (let t = 0; t < 60; t += 1) if (t < 20 || t > 24) h.put({t, gauges: {c: t < 40 ? 1000 + 10 * t : 5 * (t - 40)}});
        h.put({t: 30, gauges: {c: 1300}});
        const r = h.rates(h.series.get("c"));
        const at = t => r[h.slot(t)];
        const over = (name, from, to) => h.rateOver(name, from, to);
        return [[0, 1, 19, 25, 30, 39, 40, 41, 59].map(at), over("c", 0, 40), over("c", 30, 50), over("d", 0, 9)];
    })()"""
    rates, steady, anew, unknown = library(tab, code)
    assert rates == [None, 10, 10, 10, 10, 10, None, 5, 5]
    assert (steady, unknown) == (10, None) and anew == (90 + 45) / 19
    seconds = of_observed()["seconds"]
    shown(tab, replay, of_observed())
    drawn = "[...document.querySelectorAll('figure:not([hidden])')].map(f => f.id.slice(6))"
    assert {"throughput", "rows", "written", "blocks", "ages", "statements", "sizes", "connections", "waits"} <= set(
        tab.value(drawn)
    )
    for chart, wanted in (
        ("rows", "rows inserted between 200/s and 200/s"),
        ("written", "WAL between 1 MiB/s and 1 MiB/s"),
    ):
        label = tab.value(f"document.querySelector('#chart-{chart} canvas[role=img]').getAttribute('aria-label')")
        assert wanted in label
    connections = tab.value("document.querySelector('#chart-connections .legend').innerText")
    assert "4" in connections and "/s" not in connections
    table = {row[0]: row[1] for row in rows(tab, "gauges")}
    assert table["server.deadlocks_total"] == "0/s" and table["store.streams"] == "1,200"
    assert not {"server.wal_bytes", "store.events_total"} & set(table) and seconds
    # Pools of a load are levels.
    pools = [busy(BEGAN + n, random.Random(n)) for n in range(30)]
    for one in pools:
        one["gauges"] |= {"loader.pool_in_use": 7.0, "loader.pool_waiting": 3.0, "projection.orders.lag_ms": 20.0}
    shown(tab, replay, hello(pools))
    assert re.split(r"\s*\n\s*", text(tab, "#chart-pool .legend")) == ["loader, in use", "7", "loader, waiting", "3"]
    assert text(tab, "#chart-lag-ms .legend bdi") == "orders"


@needs_chromium
def test_after_a_restart_it_connects_again_and_shows_the_new_data_once(tab: Tab, replay: Replay) -> None:
    chance = random.Random(5)
    old = [busy(BEGAN + n, chance) for n in range(50)]
    marks = [{"t": BEGAN + 1, "name": "of old", "detail": ""}]
    shown(tab, replay, hello(old, marks=marks))
    assert tab.value(f"{STATE}.seconds") == 50
    replay.stop()
    until(lambda: "reconnecting" in text(tab, "#connection"), "the page to notice")
    assert text(tab, "#health").startswith("? health not known since")
    assert tab.value("document.querySelector('#retry').hidden") is False
    # What it was told before comes again, and more.
    new = [*old[30:], *(busy(BEGAN + n, chance, "run-2") for n in range(50, 70))]
    new_marks = [{"t": BEGAN + 55, "name": "of new", "detail": ""}]
    replay.hello = hello(new, marks=new_marks, watched=watched(run_id="run-2"))
    replay.start()
    until(lambda: tab.value(f"{STATE}.connection") == "live", "the page to connect again by itself")
    replay.tell("second", news([busy(BEGAN + 69, chance), busy(BEGAN + 70, chance)], marks=[], alerts=[]))
    until(lambda: tab.value(f"{STATE}.newest") == BEGAN + 70, "the newest second")
    settle(tab)
    assert tab.value(f"{STATE}.seconds") == 41
    assert [row[1] for row in rows(tab, "marks")] == ["of new"]
    assert tab.value(f"eventcoreLab.secondAt({BEGAN + 5})") is None
    assert text(tab, "#connection") == "● live"
    until(lambda: "live" in text(tab, "#said"), "the page to say so")
    replay.stop()
    until(lambda: "reconnecting" in text(tab, "#connection"), "the page to notice")
    replay.start()
    tab.value("document.querySelector('#retry').click(), true")
    until(lambda: tab.value(f"{STATE}.connection") == "live", "the page to connect again at once")
    assert tab.value(f"{STATE}.seconds") == 40


@needs_chromium
def test_it_waits_longer_each_time_and_no_longer_than_half_a_minute(tab: Tab) -> None:
    code = """(() => {
        const waits = [];
        const timer = globalThis.setTimeout, source = globalThis.EventSource;
        globalThis.setTimeout = () => 0;
        globalThis.EventSource = class { addEventListener() {} close() {} };
        try {
            const s = new Stream({hello() {}, second() {}, changed() { if (this.retryS > 0) waits.push(this.retryS); }});
            for (let i = 0; i < 9; i += 1) { s.open(); s._source.onerror(); }
        } finally { globalThis.setTimeout = timer; globalThis.EventSource = source; }
        return waits;
    })()"""
    waits = library(tab, code, "stream.js")
    assert waits[:3] == [1, 2, 4]
    assert all(8 <= w <= 10 for w in waits[3:4]) and all(30 <= w <= 36 for w in waits[5:]) and len(waits) == 9


@needs_chromium
def test_what_cannot_be_read_is_left_out_and_said(tab: Tab, replay: Replay) -> None:
    chance = random.Random(5)
    shown(tab, replay, hello([busy(BEGAN + n, chance) for n in range(5)]))
    for nonsense in ("{not json", "null", "[]", "5", '"text"'):
        replay.tell("second", nonsense)
    odd: dict[str, Any] = {
        "now": "x",
        "seconds": [None, 7, {"t": "a"}],
        "held": {"a": 1},
        "marks": "m",
        "alerts": [None],
    }
    replay.tell("second", odd | {"figures": [], "health": 3, "watched": [1], "extra": {}})
    replay.tell("unheard", {"of": 1})
    replay.tell("second", news([busy(BEGAN + 5, chance) | {"new": {"field": 1}, "p50": None, "gauges": {"a.b": None}}]))
    until(lambda: tab.value(f"{STATE}.newest") == BEGAN + 5, "the news after the nonsense")
    settle(tab)
    assert text(tab, "#connection") == "● live · 1 unreadable"
    assert tab.value(f"{STATE}.seconds") == 6


def hostile_names() -> list[str]:
    """A thousand, all different."""
    evils = [
        "<img src=x onerror=alert(1)>",
        "<script>window.pwned = 1</script>",
        '"><svg onload=window.pwned=1>',
        "'; window.pwned = 1; '",
        "$& $1 $` ${window.pwned = 1}",
        "line\nbreak\r\nand\ttab\x00\x07\x1b[31m",
        "\u202egnirts\u2066 \u200f",
        "A" * 10_000,
        "</script><b>bold</b><!--",
        "__proto__",
        "constructor",
        "🙂\ud83d\udc69\u200d\ud83d\udcbb é̀̂" * 9,
        "مرحبا بالعالم",
        "\u2028\u2029\ufeff\ufffe",
        "{{7*7}} %s %n \\",
        "javascript:window.pwned=1",
    ]
    return [evil if n < len(evils) else f"{evil}{n}" for n in range(1000) for evil in [evils[n % len(evils)]]]


@needs_chromium
def test_a_thousand_hostile_names_are_text(tab: Tab, replay: Replay) -> None:
    names = hostile_names()
    chance = random.Random(11)
    plain = [busy(BEGAN + n, chance) for n in range(60)]
    shown(tab, replay, hello(plain))
    tags = "JSON.stringify([...new Set([...document.querySelectorAll('*')].map(e => e.localName))].sort())"
    before = tab.value(tags)
    charted = (".pss_bytes", ".cpu_percent", ".wait:x", "_lag_s", ".connections.x", "", "", "")
    for n in range(0, 1000, 200):
        part = names[n : n + 200]
        gauges = {f"{name[:5000]}{charted[i % 8]}": float(i) for i, name in enumerate(part)}
        gauges |= {f"server.wait:{name}": 1.0 for name in part[:50]}
        seconds = [busy(BEGAN + 60 + n // 200, chance) | {"run_id": part[1], "gauges": gauges}]
        w = watched(
            run_id=part[0],
            title=part[n // 200 + 2],
            store=part[1],
            status=part[3],
            row={"workload": part[4], "pacer": part[7]},
        )
        said = news(
            seconds,
            watched=w,
            marks=[{"t": BEGAN + 50 + i / 100, "name": name, "detail": name} for i, name in enumerate(part)],
            alerts=[
                alert(BEGAN + 50 + i / 100, name, "firing" if i % 2 else name, text=name, severity=name, detail=name)
                for i, name in enumerate(part)
            ],
            held=[held(name, name, 1.0, name, name, name) for name in part],
            health={"status": "down", "reasons": part},
        )
        replay.tell("second", said)
    until(lambda: tab.value(f"{STATE}.newest") == BEGAN + 64, "the last of the names")
    settle(tab)
    tab.value("document.querySelectorAll('details').forEach(d => d.open = true), true")
    assert tab.value("'pwned' in window") is False
    assert tab.value(tags) == before
    assert tab.value("document.querySelectorAll('main img, main svg, main script, main a, main b').length") == 0
    assert tab.value("({}).polluted === undefined && Object.keys(Object.prototype).length") == 0
    sizes = tab.value(STATE)
    assert (sizes["marks"], sizes["alerts"]) == (200, 200)
    assert sizes["series"] <= 200 and sizes["latest"] <= 500 and sizes["runs"] <= 200
    assert sizes["refused"] > 0 and "no more than 200" in text(tab, "#gauges-note")
    assert len(rows(tab, "marks")) == 200
    assert any("<img src=x onerror=alert(1)>" in cell for row in rows(tab, "marks") for cell in row)
    assert max(len(cell) for table in ("marks", "alerts", "held") for row in rows(tab, table) for cell in row) <= 310
    assert not tab.value(r"/[\u0000-\u0008\u202a-\u202e\u2066-\u2069]/.test(document.body.textContent)")
    for width in (1400, 390):
        tab.size(width, 844)
        settle(tab)
        assert tab.value("[document.documentElement.scrollWidth, innerWidth]") == [width, width]


@needs_chromium
def test_a_night_takes_no_more_memory_than_two_hours(tab: Tab, replay: Replay) -> None:
    chance = random.Random(13)
    pool = [busy(BEGAN + n, chance) for n in range(300)]
    shown(tab, replay, hello(pool[:60]))
    tab.call("Network.disable")  # it would hand every event to this process as well

    def two_hours(began: int) -> dict[str, Any]:
        for n in range(0, 7200, 300):
            at = began + n
            some = [{**pool[i], "t": at + i, "run_id": f"run-{at + i >> 9}"} for i in range(300)]
            marks = [{"t": at + i, "name": f"mark {n}", "detail": "x" * 200} for i in range(20)]
            alerts = [alert(at + i, f"alert {n}", "firing", text="y" * 200) for i in range(20)]
            now = watched(run_id=f"run-{at >> 9}", began=at)
            replay.tell("second", news(some, marks=marks, alerts=alerts, watched=now))
        for n in range(120):  # a campaign of short runs
            replay.tell("second", news(some[-1:], watched=watched(run_id=f"short-{began + n}", began=began + n)))
        until(lambda: tab.value(f"{STATE}.newest") == began + 7199, "the last second")
        settle(tab)
        tab.call("HeapProfiler.collectGarbage")
        metrics = {m["name"]: m["value"] for m in tab.call("Performance.getMetrics")["metrics"]}
        return dict(tab.value(STATE)) | {"heap": metrics["JSHeapUsedSize"], "dom": metrics["Nodes"]}

    first, again = two_hours(BEGAN + 7200), two_hours(BEGAN + 14400)
    assert first["seconds"] == again["seconds"] == again["ring"] == 7200
    for name in ("series", "latest", "marks", "alerts", "nodes"):
        assert first[name] == again[name], name
    assert again["runs"] == 200
    assert again["heap"] - first["heap"] < HEAP_GROWTH_BYTES_MAX
    assert again["dom"] <= first["dom"] * 1.2 + 200
    tab.call("Network.enable")


@needs_chromium
def test_it_draws_at_most_once_a_second_and_not_while_nobody_sees_it(tab: Tab, replay: Replay) -> None:
    chance = random.Random(17)
    shown(tab, replay, hello([busy(BEGAN, chance)]))
    tab.value("globalThis.began = performance.now(), globalThis.drawn = eventcoreLab.state.draws, true")
    for n in range(1, 41):
        replay.tell("second", news([busy(BEGAN + n, chance)]))
        tab.value("new Promise(done => requestAnimationFrame(() => done(true)))")
    until(lambda: tab.value(f"{STATE}.newest") == BEGAN + 40, "forty seconds in a burst")
    assert tab.value("eventcoreLab.state.draws - drawn <= 1 + (performance.now() - began) / 1000") is True
    hide = """Object.defineProperty(document, 'hidden', {configurable: true, get: () => %s}),
        document.dispatchEvent(new Event('visibilitychange')), true"""
    until(lambda: tab.value(f"{STATE}.draws - drawn") >= 1, "the burst to be drawn")
    tab.value(hide % "true")
    tab.value("globalThis.drawn = eventcoreLab.state.draws, true")
    replay.tell("second", news([busy(BEGAN + 41, chance)]))
    until(lambda: tab.value(f"{STATE}.newest") == BEGAN + 41, "a second while it is hidden")
    tab.value("new Promise(done => setTimeout(() => done(true), 1100))")
    assert tab.value("eventcoreLab.state.draws - drawn") == 0
    tab.value(hide % "false")
    until(lambda: tab.value("eventcoreLab.state.draws > drawn"), "it to catch up")


@needs_chromium
def test_while_it_is_paused_the_picture_stands_and_the_data_is_kept(tab: Tab, replay: Replay) -> None:
    chance = random.Random(19)
    shown(tab, replay, hello([busy(BEGAN + n, chance) for n in range(20)], figures={"p50": 1.5}))
    press_pause(tab)
    assert text(tab, "#pause") == "Continue"
    assert text(tab, "#connection").startswith("‖ paused at")
    replay.tell("second", news([busy(BEGAN + n, chance) for n in range(20, 30)], figures={"p50": 2.5}))
    until(lambda: tab.value(f"{STATE}.newest") == BEGAN + 29, "news while paused")
    settle(tab)
    assert tiles(tab)["p50"][0] == "1.5 ms"
    edge = tab.value(f"{STATE}.edge")
    assert (edge - BEGAN, tab.value(f"{STATE}.seconds")) == (20, 30)
    press_pause(tab)
    settle(tab)
    assert tiles(tab)["p50"][0] == "2.5 ms"
    assert tab.value(f"{STATE}.edge") > edge


@needs_chromium
def test_the_keyboard_reaches_everything(tab: Tab, replay: Replay) -> None:
    chance = random.Random(23)
    marks = [{"t": BEGAN + 89.5, "name": "server restarted", "detail": "SIGKILL"}]
    shown(tab, replay, hello([busy(BEGAN + n, chance) for n in range(90)], marks=marks))
    reached = []
    for _ in range(60):
        tab.press("Tab")
        reached.append(
            tab.value("""(e => e === document.body ? 'body' : [e.id || e.closest('figure')?.id || e.textContent.slice(0, 40),
            getComputedStyle(e).outlineStyle, e.matches(':focus-visible')].join('|'))(document.activeElement)""")
        )
        if reached[-1] == "body":
            break
    stops = [stop.split("|")[0] for stop in reached[:-1]]
    wanted = ["to the figures", "pause", "1 min", "5 min", "15 min", "60 min", "120 min", "auto", "light", "dark"]
    assert stops[: len(wanted)] == wanted
    assert {"chart-throughput", "chart-heat", "chart-waits", "The newest minute as a table"} <= set(stops)
    assert all("|auto|true" in stop or "|solid|true" in stop for stop in reached[:-1]), reached
    # On a chart the arrows move a cursor, which tells of marks.
    tab.value("document.querySelector('#chart-latency canvas[role=img]').focus(), true")
    tab.press("ArrowLeft")
    tip = text(tab, "#chart-latency .tip")
    assert "(+89 s) · server restarted: SIGKILL" in tip
    tab.press("Escape")
    assert tab.value("document.querySelector('#chart-latency .tip').hidden") is True
    # A button that has the focus is pressed by the space bar, once, as everywhere.
    tab.value("[...document.querySelectorAll('#windows button')][3].focus(), true")
    press_pause(tab)
    state = tab.value(STATE)
    assert (state["isPaused"], state["minutes"]) == (False, 60)


@needs_chromium
def test_a_new_alert_is_said_aloud_once(tab: Tab, replay: Replay) -> None:
    chance = random.Random(29)
    fired = alert(BEGAN + 1, "high_latency", "firing", text="p95 72 ms, should be < 50 ms")
    shown(tab, replay, hello([busy(BEGAN, chance)], alerts=[fired]))
    tab.value("""globalThis.heard = [], new MutationObserver(() => heard.push(document.querySelector('#said').textContent))
        .observe(document.querySelector('#said'), {childList: true, characterData: true, subtree: true}), true""")
    change = alert(BEGAN + 2, "low_throughput", "firing", text="3/s")
    mark = {"t": BEGAN + 1.5, "name": "server restarted", "detail": ""}
    for n in range(1, 4):
        replay.tell("second", news([busy(BEGAN + n, chance)], alerts=[change] if n < 3 else [], marks=[mark]))
    heard = until(lambda: tab.value("heard"), "the alert")
    assert heard == ["Alert firing: low_throughput. 3/s"]
    settle(tab)
    assert [row[1] for row in rows(tab, "alerts")] == ["low_throughput", "high_latency"]
    assert [row[1] for row in rows(tab, "marks")] == ["server restarted"]
    live = "[...document.querySelectorAll('[aria-live]')].filter(e => e.id === 'said' || !e.hidden).map(e => e.id)"
    assert tab.value(live) == ["said"]


CONTRASTS = """(() => {
    const rgb = text => {
        const c = document.createElement('canvas').getContext('2d');
        c.fillStyle = text;
        c.fillRect(0, 0, 1, 1);
        return [...c.getImageData(0, 0, 1, 1).data];
    };
    const light = ([r, g, b]) => [r, g, b].map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
        .reduce((s, v, i) => s + v * [0.2126, 0.7152, 0.0722][i], 0);
    const ratio = (a, b) => { const [x, y] = [light(a), light(b)].sort((p, q) => q - p); return (x + 0.05) / (y + 0.05); };
    const behind = e => {
        const c = e ? rgb(getComputedStyle(e).backgroundColor) : [255, 255, 255, 255];
        return c[3] === 255 ? c : behind(e.parentElement);
    };
    const seen = new Map();
    for (const e of document.querySelectorAll('body *')) {
        const own = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
        if (own && e.checkVisibility()) {
            const key = getComputedStyle(e).color + behind(e);
            const found = [ratio(rgb(getComputedStyle(e).color), behind(e)), e.localName + '.' + e.className];
            if (!seen.has(key)) seen.set(key, found);
        }
    }
    const root = getComputedStyle(document.documentElement);
    const of = name => rgb(root.getPropertyValue('--' + name));
    const texts = ['text', 'muted', 'pass', 'fail', 'inconclusive'].map(n => [ratio(of(n), of('panel')), n]);
    const boxes = ['pass', 'fail', 'inconclusive'].map(n => [ratio(of(n), of(n + '-box')), n + '-box']);
    const drawn = ['c1', 'c2', 'c3', 'c4', 'c5', 'c6', 'grey', 'axis', 'limit', 'accent'];
    const lines = drawn.map(n => [ratio(of(n), of('panel')), n]);
    return {texts: [...seen.values(), ...texts, ...boxes], lines};
})()"""


@needs_chromium
def test_text_and_lines_stand_out_in_both_themes(tab: Tab, replay: Replay) -> None:
    """WCAG 2.2 AA: 4.5 to 1 for text, 3 to 1 for what a picture needs to be understood."""
    chance = random.Random(31)
    judged = [held(name, "< 1 ms", 2.0, "ms", name) for name in ("pass", "fail", "inconclusive")]
    alerts = [alert(BEGAN + n, state, state) for n, state in enumerate(("pending", "firing", "resolved", "silenced"))]
    said = hello([busy(BEGAN + n, chance) for n in range(40)], held=judged, alerts=alerts)
    shown(tab, replay, said | {"health": {"status": "degraded", "reasons": ["slow"]}})
    for theme in ("light", "dark"):
        tab.value(
            f"[...document.querySelectorAll('#themes button')].find(b => b.textContent === '{theme}').click(), true"
        )
        tab.value("document.getAnimations().forEach(a => a.finish()), true")
        assert tab.value("document.documentElement.dataset.theme") == theme
        found = tab.value(CONTRASTS)
        assert len(found["texts"]) > 12
        assert [pair for pair in found["texts"] if pair[0] < 4.5] == [], theme
        assert [pair for pair in found["lines"] if pair[0] < 3] == [], theme
    tab.call("Page.reload")
    until(lambda: tab.value(f"window.eventcoreLab && {STATE}.connection == 'live'"), "the page again")
    assert tab.value("document.documentElement.dataset.theme") == "dark"  # it is remembered
    tab.value("localStorage.clear(), true")


@needs_chromium
def test_it_fits_a_phone_and_a_sheet_of_paper(tab: Tab, replay: Replay) -> None:
    chance = random.Random(37)
    judged = [held(t["name"], f"< {t['limit']}", 3.0, t["unit"], "pass", "why " * 20) for t in TARGETS["thresholds"]]
    alerts = [alert(BEGAN, "high_latency", "firing", text="p95 72 ms, should be < 50 ms " * 4)]
    tab.size(390, 844)
    shown(tab, replay, hello([busy(BEGAN + n, chance) for n in range(90)], held=judged, alerts=alerts))
    tab.value("document.querySelectorAll('details').forEach(d => d.open = true), true")
    assert tab.value("[document.documentElement.scrollWidth, innerWidth]") == [390, 390]
    outside = """[...document.querySelectorAll('body *')].filter(e => e.checkVisibility() &&
        !e.closest('.unseen, .skip, thead') && !e.parentElement.closest('.scroll') &&
        (e.getBoundingClientRect().right > 391 || e.getBoundingClientRect().left < 0)).map(e => e.outerHTML.slice(0, 80))"""
    assert tab.value(outside) == []
    small = """[...document.querySelectorAll('button')].filter(b => b.checkVisibility() &&
        b.getBoundingClientRect().height < 24).length"""
    assert tab.value(small) == 0
    paper = base64.b64decode(tab.call("Page.printToPDF", printBackground=True)["data"])
    assert 1 <= len(re.findall(rb"/Type\s*/Page\b", paper)) <= 12


@needs_chromium
def test_nothing_running_is_said(tab: Tab, replay: Replay) -> None:
    shown(tab, replay, hello([], watched=None, targets=None))
    assert text(tab, "#connection") == "○ nothing is running"
    assert text(tab, "#notice").startswith("Nothing is running")
    assert tab.value("document.querySelector('#charts-section').hidden") is True
    replay.tell("second", news([busy(BEGAN, random.Random(1))]))
    until(lambda: tab.value("!document.querySelector('#charts-section').hidden"), "the page to fill by itself")
    assert text(tab, "#connection") == "● live"
    assert len(EDGES_MS) + 1 == 42
