"""A server that says to the dashboard what a test wants said, in the wire's words; and a tab of a Chromium to watch it in."""

from __future__ import annotations

import asyncio
import json
import math
import random
import re
import subprocess
import threading
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import tornado.httpserver
import tornado.netutil
import tornado.web

from eventcore_lab.clock import NS_PER_S, now_ns, pause_s
from eventcore_lab.monitor.facts import EDGES_MS, Second
from eventcore_lab.monitor.page import page

BEGAN = 1_750_000_000
DEADLINE_S = 60
TARGETS = {
    "name": "production",
    "thresholds": [
        {"name": "commands_per_second", "limit": 100, "is_max": False, "unit": "/s"},
        {"name": "events_per_second", "limit": 1000, "is_max": False, "unit": "/s"},
        {"name": "p50", "limit": 10, "is_max": True, "unit": "ms"},
        {"name": "p95", "limit": 50, "is_max": True, "unit": "ms"},
        {"name": "p99", "limit": 100, "is_max": True, "unit": "ms"},
        {"name": "memory", "limit": 1024, "is_max": True, "unit": "MiB"},
        {"name": "cpu", "limit": 70, "is_max": True, "unit": "%"},
    ],
}


def until(condition: Callable[[], Any], what: str) -> Any:
    deadline_ns = now_ns() + DEADLINE_S * NS_PER_S
    while not (found := condition()):
        assert now_ns() < deadline_ns, f"waited in vain for {what}"
        pause_s(0.05)
    return found


def second(t: int, **fields: Any) -> dict[str, Any]:
    """A second as the wire has it."""
    made: dict[str, Any] = msgspec.to_builtins(Second(t=t, **fields))
    return made


def busy(t: int, chance: random.Random, run_id: str = "run-1") -> dict[str, Any]:
    """A second of an open loop on PostgreSQL: about 500 operations, and the gauges that a run records."""
    rate = 500 + 60 * math.sin(t / 90)
    latencies = sorted(chance.lognormvariate(1.2, 0.6) * (9 if t % 97 < 3 else 1) for _ in range(60))
    counts: dict[int, int] = {}
    for ms in latencies:
        bucket = next((i for i, edge in enumerate(EDGES_MS) if ms <= edge), len(EDGES_MS))
        counts[bucket] = counts.get(bucket, 0) + round(rate / 60)
    failed, conflict = (chance.randrange(20) if t % 97 < 3 else 0), chance.randrange(9)
    mib = 2**20
    gauges = {
        "loader.pss_bytes": (90 + (t % 7200) / 200) * mib,
        "loader.resident_bytes": (110 + (t % 7200) / 200) * mib,
        "server.pss_bytes": 260 * mib + 20 * mib * math.sin(t / 300),
        "server.resident_bytes": 330 * mib,
        "machine.busy_percent": 55 + 8 * math.sin(t / 40) + chance.random() * 4,
        "machine.steal_percent": 0.2,
        "loader.cpu_percent": 38 + chance.random() * 6,
        "server.cpu_percent": 61 + chance.random() * 9,
        "server.connections.active": 6 + chance.randrange(4),
        "server.connections.idle": 4 - chance.randrange(3),
        "server.connections.idle_in_transaction": chance.randrange(2),
        "server.wait:LWLock:WALWrite": chance.randrange(4),
        "server.wait:IO:WalSync": chance.randrange(3),
        "server.wait:Client:ClientRead": 4 + chance.randrange(3),
        "store.visibility_lag_s": 0.002 + chance.random() * 0.01,
        "lag.orders_lag_events": chance.randrange(120),
        "server.wal_bytes": 9e9 + t % 7200 * 1e6,
        "probe.memory_cost_ms": 1.8,
    }
    return second(
        t, run_id=run_id, ended=round(rate), ok=round(rate) - failed - conflict, conflict=conflict, failed=failed,
        due=500, events=round(rate * 2.4), p50=latencies[30], p95=latencies[57], p99=latencies[59],
        worst=latencies[59] * 1.4, heat=tuple(sorted(counts.items())), waiting=chance.randrange(9),
        oldest_s=chance.random() / 20, gauges=gauges,
    )  # fmt: skip


def observed(t: int, chance: random.Random) -> dict[str, Any]:
    """A second of somebody's PostgreSQL that is only looked at: 180 events a second, in 90 transactions, 1 MiB of WAL."""
    n, mib = t - BEGAN, 2**20
    gauges = {
        "store.events_total": 1e6 + 180 * n,
        "server.transactions_committed_total": 5e6 + 90 * n,
        "server.transactions_rolled_back_total": 100 + 2 * n,
        "server.rows_inserted_total": 7e6 + 200 * n,
        "server.rows_updated_total": 3e6 + 20 * n,
        "server.blocks_hit_total": 9e8 + 4000 * n,
        "server.blocks_read_total": 8e6 + 30 * n,
        "server.wal_bytes": 9e9 + mib * n,
        "server.deadlocks_total": 3.0,
        "server.connections.active": 6.0 + chance.randrange(4),
        "server.connections.idle": 4.0,
        "server.wait:LWLock:WALWrite": 2.0,
        "server.wait:IO:WalSync": 1.0,
        "server.oldest_transaction_s": 0.5 + chance.random(),
        "server.oldest_writing_transaction_s": 0.25,
        "store.visibility_lag_s": 0.25,
        "store.subscriptions": 2.0,
        "store.streams": 1200.0,
        "lag.billing_lag_events": 12.0 + chance.randrange(9),
        "lag.orders_lag_events": 512.0,
        "probe.server_cost_ms": 2.5,
    }
    if n % 10 == 0:
        gauges |= {"store.statement_mean_ms": 1.5, "store.statements_per_s": 95.0}
    if n % 60 == 0:
        gauges |= {"server.database_bytes": 700 * mib, "store.table_bytes": 400 * mib, "store.index_bytes": 100 * mib}
    return second(t, events=180, gauges=gauges)


def watched(**fields: Any) -> dict[str, Any]:
    row = {"workload": "commands:streams=1000", "pacer": "poisson:rate=500"}
    given = {"run_id": "20250615-150640-a1b2c3", "title": "", "store": "postgres", "status": "loading", "began": BEGAN}
    return given | {"warmup_s": 30.0, "duration_s": 7200.0, "is_closed_loop": False, "row": row} | fields


def held(name: str, limit: str, value: float | None, unit: str, status: str, reason: str = "") -> dict[str, Any]:
    return {"name": name, "limit": limit, "value": value, "unit": unit, "status": status, "reason": reason}


def alert(t: float, name: str, state: str, **fields: Any) -> dict[str, Any]:
    return {"t": t, "name": name, "state": state, "severity": "warning", "text": "", "detail": ""} | fields


def hello(seconds: Sequence[dict[str, Any]], **fields: Any) -> dict[str, Any]:
    now = seconds[-1]["t"] + 1.5 if seconds else BEGAN
    given = {"version": 1, "now": now, "window_s": 30, "history_s": 7200, "watched": watched(), "targets": TARGETS}
    given |= {"edges_ms": EDGES_MS, "seconds": list(seconds), "marks": [], "alerts": [], "figures": {}, "held": []}
    return given | {"health": {"status": "ok", "reasons": []}} | fields


def news(seconds: Sequence[dict[str, Any]], **fields: Any) -> dict[str, Any]:
    given = hello(seconds)
    kept = ("now", "seconds", "watched", "figures", "held", "marks", "alerts", "health")
    return {name: given[name] for name in kept} | fields


class Replay:
    """The server, in a thread of its own. `hello` is what a page gets that connects; `tell` says more to all that are."""

    def __init__(self) -> None:
        self.hello: dict[str, Any] | None = hello([], watched=None)
        self.port = 0
        self.greeted = 0
        self._open: set[Any] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="replay", daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}/dashboard"

    def start(self) -> None:
        """Listens, on the port that it had before if it had one."""
        self._wait_for(self._start())

    def stop(self) -> None:
        """Hangs up and listens no more."""
        self._wait_for(self._stop())

    def tell(self, event: str, data: Any) -> None:
        frame = f"event: {event}\ndata: {data if isinstance(data, str) else json.dumps(data)}\n\n"
        self._wait_for(self._tell(frame))

    def close(self) -> None:
        self.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(DEADLINE_S)
        self._loop.close()

    def _wait_for(self, work: Any) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(DEADLINE_S)

    async def _start(self) -> None:
        replay = self

        class Dashboard(tornado.web.RequestHandler):
            def get(self) -> None:
                html, policy = page()
                self.set_header("Content-Security-Policy", policy)
                self.finish(html)

        class Events(tornado.web.RequestHandler):
            async def get(self) -> None:
                self.set_header("Content-Type", "text/event-stream")
                self.write(": here\n\n")
                if replay.hello is not None:
                    self.write(f"event: hello\ndata: {json.dumps(replay.hello)}\n\n")
                await self.flush()
                replay.greeted += 1
                replay._open.add(self)
                self.gone = asyncio.Event()
                await self.gone.wait()

            def on_connection_close(self) -> None:
                replay._open.discard(self)
                self.gone.set()

        application = tornado.web.Application(
            [("/dashboard", Dashboard), ("/events", Events)], log_function=lambda _: None
        )
        self._server = tornado.httpserver.HTTPServer(application)
        [socket] = tornado.netutil.bind_sockets(self.port, "127.0.0.1", reuse_port=False)
        self.port = socket.getsockname()[1]
        self._server.add_sockets([socket])

    async def _stop(self) -> None:
        self._server.stop()
        for stream in list(self._open):
            stream.gone.set()
        self._open.clear()
        await self._server.close_all_connections()

    async def _tell(self, frame: str) -> None:
        for stream in list(self._open):
            stream.write(frame)
            await stream.flush()


class Tab:
    """A tab of a Chromium, over the Chrome DevTools Protocol; what it tells by itself is kept in `events`."""

    def __init__(self, port: str) -> None:
        import websocket

        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=10) as answer:
            tab = next(t for t in json.load(answer) if t["type"] == "page")
        self._socket = websocket.create_connection(tab["webSocketDebuggerUrl"], timeout=30, suppress_origin=True)
        self._number = 0
        self.events: list[dict[str, Any]] = []

    def call(self, method: str, **parameters: Any) -> Any:
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while (answer := json.loads(self._socket.recv())).get("id") != self._number:
            self.events.append(answer)
        assert "error" not in answer, answer["error"]
        return answer["result"]

    def value(self, expression: str) -> Any:
        """What the expression is in the page."""
        done = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def size(self, width_px: int, height_px: int) -> None:
        is_phone = width_px < 500
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width_px, height=height_px, deviceScaleFactor=2 if is_phone else 1, mobile=is_phone,
        )  # fmt: skip

    def press(self, key: str, code: str = "", text: str = "") -> None:
        key_code = {"Tab": 9, " ": 32, "ArrowLeft": 37, "ArrowRight": 39, "Escape": 27, "Enter": 13}[key]
        fields = {"key": key, "code": code or key, "windowsVirtualKeyCode": key_code}
        self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **fields)
        self.call("Input.dispatchKeyEvent", type="keyUp", **fields)

    def complaints(self) -> list[str]:
        """Exceptions, console errors and what the policy forbade, since the tab was opened."""
        self.value("0")
        found = []
        for event in self.events:
            if event["method"] == "Runtime.exceptionThrown":
                found.append(json.dumps(event["params"]["exceptionDetails"])[:500])
            if event["method"] == "Runtime.consoleAPICalled" and event["params"]["type"] in ("error", "warning"):
                found.append(json.dumps(event["params"]["args"])[:500])
            if event["method"] == "Log.entryAdded" and event["params"]["entry"]["level"] == "error":
                found.append(event["params"]["entry"]["text"])
        return found

    def asked(self) -> list[str]:
        """The addresses that were asked for."""
        self.value("0")
        sent = [e["params"]["request"]["url"] for e in self.events if e["method"] == "Network.requestWillBeSent"]
        return [url for url in sent if not url.startswith("data:")]

    def close(self) -> None:
        self._socket.close()


@contextmanager
def chromium(program: str, folder: Path) -> Iterator[Tab]:
    """A browser with one tab."""
    log = folder / "chromium.log"
    flags = (
        "--headless --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run --disable-background-networking "
    )
    flags += (
        "--disable-component-update --disable-sync --disable-extensions --hide-scrollbars --remote-debugging-port=0"
    )
    command = [program, *flags.split(), f"--user-data-dir={folder / 'profile'}", "about:blank"]
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, text=True)
    try:
        found = until(lambda: re.search(r"DevTools listening on ws://127\.0\.0\.1:(\d+)/", log.read_text()), "Chromium")
        tab = Tab(found.group(1))
        for domain in ("Page", "Runtime", "Log", "Network", "Performance"):
            tab.call(f"{domain}.enable")
        yield tab
        tab.close()
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
