"""The monitor's web server and process: who is let in, what is streamed, whether /health tells the truth, how it ends."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tracemalloc
import urllib.request
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import nbformat
import numpy as np
import psutil
import pytest

from eventcore_lab import cli
from eventcore_lab.batch import run_notebooks
from eventcore_lab.clock import NS_PER_S, now_ns, pause_s, sleep_s, three_clocks_ns
from eventcore_lab.lab.database import Lab
from eventcore_lab.lab.targets import Targets
from eventcore_lab.monitor import beside, delivery, process, server, watching
from eventcore_lab.monitor.access import Access, is_foreign, is_loopback
from eventcore_lab.monitor.beside import Beside, live
from eventcore_lab.monitor.facts import Alert, Gauge, Mark, News, Watched
from eventcore_lab.monitor.health import Watch, health
from eventcore_lab.monitor.metrics import TEXT
from eventcore_lab.monitor.process import Order
from eventcore_lab.monitor.server import Server
from eventcore_lab.monitor.state import State
from eventcore_lab.monitor.watching import Watching
from eventcore_lab.schema import LOCK_FILE, Outcome, packed
from eventcore_lab.spec import UsageError

T0 = 1_800_000_000.0
RUN = Watched(run_id="r1", store="memory", status="loading", began=T0, duration_s=60.0)
TOKEN = "0123456789abcdef-planted"
HOSTILE = '</script><img src=x onerror=alert(1)>\n\r"\\\u2028‮\x00' + "y" * 1000
SMALL = (
    "duration_s = 2.0",
    "from eventcore_lab import Experiment, conclude, judge, run, Targets",
    """found = run(Experiment(store="memory", pacer="constant:rate=500", duration_s=duration_s, warmup_s=0.1))
conclude(judge(Targets.production(), found))""",
)


def rows_ended(second: int, n: int = 10) -> np.ndarray:
    rows = np.zeros((n, 8), np.int64)
    rows[:, 5] = second * 10**9 + 10**6 * np.arange(n)
    rows[:, 1:5] = rows[:, 5:6] - 2_000_000
    rows[:, 7] = packed(Outcome.OK, 1, 1, 2)
    return rows


class Source:
    """Ten operations a second, unless told to do otherwise."""

    def __init__(self) -> None:
        self.n, self.error, self.is_closed = 0, "", False
        self.fault: Exception | None = None
        self.gate: asyncio.Event | None = None
        self.watched: Watched | None = RUN
        self.gauges: tuple[Gauge, ...] = ()

    @property
    def now(self) -> float:
        return T0 + self.n

    async def look(self) -> News:
        if self.gate is not None:
            await self.gate.wait()
        if self.fault is not None:
            raise self.fault
        self.n += 1
        marks = (Mark(self.now, HOSTILE, HOSTILE),) if self.n == 1 else ()
        gauges = (Gauge(self.now, "machine", "busy_percent", 50.0), *self.gauges)
        rows = rows_ended(self.n - 1) if self.watched is not None else np.empty((0, 8), np.int64)
        return News(t=self.now, watched=self.watched, rows=rows, gauges=gauges, marks=marks, error=self.error)

    async def close(self) -> None:
        self.is_closed = True


class Judge:
    """One alert, at the third look."""

    rules = ()

    def __init__(self) -> None:
        self.looks = 0

    def states(self) -> dict[str, str]:
        return {}

    def look(self, now: float, state: State) -> list[Alert]:
        self.looks += 1
        return [Alert(t=now, name=HOSTILE, severity="warning", state="firing", text=HOSTILE)] if self.looks == 3 else []


def watched_by(source: Source, **options: Any) -> Watching:
    return Watching(source, State(Targets.production()), Judge(), clock=lambda: source.now, **options)


@asynccontextmanager
async def served(access: Access | None = None, source: Source | None = None) -> AsyncIterator[tuple[Server, Source]]:
    source = source or Source()
    made = Server(watched_by(source), access or Access())
    made.listen("127.0.0.1", 0)
    try:
        yield made, source
    finally:
        for stream in OPENED:
            stream.writer.close()
        OPENED.clear()
        await made.close()


async def ask(
    port: int, path: str = "/health", method: str = "GET", body: str = "", **headers: str
) -> tuple[int, dict[str, str], str]:
    """Status, headers in lower case, and body of one request, sent as it is."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    said = {"Host": f"127.0.0.1:{port}", "Connection": "close"} | {k.replace("_", "-"): v for k, v in headers.items()}
    head = f"{method} {path} HTTP/1.1\r\n" + "".join(f"{k}: {v}\r\n" for k, v in said.items() if v) + "\r\n"
    with suppress(ConnectionError):  # hung up on before all was sent
        writer.write((head + body).encode())
        await writer.drain()
    answer = b""
    with suppress(ConnectionError):
        answer = await asyncio.wait_for(reader.read(), 20)
    writer.close()
    if not answer:
        return 0, {}, ""
    top, _, content = answer.decode("utf-8", "replace").partition("\r\n\r\n")
    first, *lines = top.split("\r\n")
    return int(first.split()[1]), {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines)}, content


class Stream:
    """A dashboard that listens."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def opened(cls, port: int, buffer: int = 2**16) -> Stream:
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
        reader, writer = await asyncio.open_connection(sock=sock, limit=buffer)
        writer.write(f"GET /events HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())
        OPENED.append(found := cls(reader, writer))
        assert b"200 OK" in await asyncio.wait_for(reader.readuntil(b"\r\n"), 20)
        return found

    async def event(self) -> tuple[str, bytes]:
        """The next event's name and data; chunked transfer and what is between events are left out."""
        name = ""
        while True:
            line = await asyncio.wait_for(self._line(), 20)
            if line.startswith(b"event: "):
                name = line[7:].strip().decode()
            elif line.startswith(b"data: "):
                return name, line[6:].rstrip(b"\n")

    async def _line(self) -> bytes:
        parts = []
        while True:
            try:
                return b"".join([*parts, await self.reader.readuntil(b"\n")])
            except asyncio.LimitOverrunError as error:
                parts.append(await self.reader.read(error.consumed))


OPENED: list[Stream] = []


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST:1", 200),
        ("127.0.0.1:9", 200),
        ("[::1]:8765", 200),
        ("lab.example.org", 200),
        ("lab.example.org:80", 200),
        ("", 421),
        ("evil.example", 421),
        ("127.0.0.1.evil.example", 421),
        ("localhost.evil.example:8765", 421),
        ("localhost:80@evil.example", 421),
        ("localhost, evil.example", 421),
        ("[::1", 421),
        ("169.254.169.254", 421),
        ("0.0.0.0", 421),
    ],
)
async def test_it_answers_to_its_own_names_only(host: str, status: int) -> None:
    async with served(Access.of("127.0.0.1", "", ["lab.example.org"])) as (made, _):
        await made.watching.beat()
        for path in ("/health", "/metrics", "/dashboard", "/nothing"):
            found, headers, _ = await ask(made.port, path, Host=host)
            if status == 200:
                assert found == (404 if path == "/nothing" else 200)
            else:  # what is no name at all never comes as far as to us
                assert found == 421 or (found == 400 and not host.replace(".", "").isalnum())
            assert "access-control-allow-origin" not in headers and "server" not in headers


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW"])
async def test_it_only_answers_and_never_takes(method: str) -> None:
    async with served() as (made, _):
        for path in ("/", "/dashboard", "/events", "/metrics", "/health", "/nothing"):
            assert (await ask(made.port, path, method))[0] == 405


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/metrics", {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "no-cors"}, 403),
        ("/health", {"Sec_Fetch_Site": "same-site", "Sec_Fetch_Mode": "cors"}, 403),
        ("/events", {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate"}, 403),
        ("/events", {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "cors"}, 403),
        ("/dashboard", {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate"}, 200),
        ("/metrics", {"Sec_Fetch_Site": "none", "Sec_Fetch_Mode": "navigate"}, 200),
        ("/metrics", {"Sec_Fetch_Site": "same-origin", "Sec_Fetch_Mode": "cors"}, 200),
        ("/metrics", {}, 200),
    ],
)
async def test_pages_of_other_sites_get_nothing(path: str, headers: dict[str, str], status: int) -> None:
    async with served() as (made, _):
        await made.watching.beat()
        assert (await ask(made.port, path, **headers))[0] == status
    assert not is_foreign({"Sec-Fetch-Site": "same-origin"}, is_stream=True)


async def test_the_page_is_one_file_under_a_strict_policy_and_the_root_leads_to_it() -> None:
    async with served() as (made, _):
        status, headers, html = await ask(made.port, "/dashboard")
        policy = headers["content-security-policy"]
        assert status == 200 and "default-src 'none'" in policy and "unsafe" not in policy
        assert server.FRAMED_BY in policy and headers["x-content-type-options"] == "nosniff"
        assert "<html" in html and not re.search(r"(src|href)=[\"']?(https?:)?//", html)
        assert await ask(made.port, "/")  # relative, so that it holds behind a proxy's prefix, too
        status, headers, _ = await ask(made.port, "/")
        assert (status, headers["location"]) == (302, "dashboard")
        for path in ("/dashboard", "/metrics", "/health", "/events"):
            status, headers, content = await ask(made.port, path, "HEAD")
            assert (status in (200, 503), content) == (True, "")
        status, _, content = await ask(made.port, "/../../etc/passwd")
        assert (status, content) == (404, "404 Not Found\n")


async def test_a_token_is_asked_for_everywhere_and_moves_from_the_address_into_a_cookie(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MONITOR_TOKEN", TOKEN)
    caplog.set_level(logging.DEBUG)
    said = ""
    async with served(Access.of("127.0.0.1", "env:MONITOR_TOKEN")) as (made, _):
        await made.watching.beat()
        for path in ("/", "/dashboard", "/events", "/metrics", "/health", "/nothing"):
            for headers in (
                {},
                {"Authorization": "Bearer wrong"},
                {"Authorization": TOKEN},
                {"Cookie": f"eventcore_lab_{made.port}=x"},
            ):
                status, found, text = await ask(made.port, path, **headers)
                assert status == 401 and found["www-authenticate"] == "Bearer"
                said += text + str(found)
        assert (await ask(made.port, "/metrics", Authorization=f"bearer {TOKEN}"))[0] == 200
        assert (await ask(made.port, f"/metrics?token={TOKEN}"))[0] == 401  # only where a person comes in
        assert (await ask(made.port, f"/dashboard?token={TOKEN[:-1]}"))[0] == 401
        status, found, text = await ask(made.port, f"/dashboard?token={TOKEN}")
        assert (status, found["location"]) == (303, "dashboard")
        assert "HttpOnly" in found["set-cookie"] and "SameSite=Strict" in found["set-cookie"]
        cookie = found["set-cookie"].partition(";")[0]
        status, found, page = await ask(made.port, "/dashboard", Cookie=cookie)
        assert status == 200
        said += str(found) + page + (await ask(made.port, "/health", Cookie=cookie))[2] + cookie
        said += (await ask(made.port, f"/%ff?token={TOKEN}", Authorization=f"Bearer {TOKEN}"))[2]
    assert TOKEN not in said + caplog.text + repr(made.access) and "GET '/dashboard' 303" in caplog.text


@pytest.mark.parametrize(
    ("host", "token", "said"),
    [
        ("0.0.0.0", "", "needs a token"),
        ("192.0.2.1", "", "needs a token"),
        ("lab.example.org", "", "needs a token"),
        ("::", "", "needs a token"),
        ("127.0.0.1", "env:NOT_SET", "not set or empty"),
        ("0.0.0.0", "env:SHORT", "has 5 characters"),
        ("0.0.0.0", "0123456789abcdef", "name the variable"),
        ("0.0.0.0", "env:", "name the variable"),
        ("0.0.0.0", "env:SPACED", "no spaces"),
    ],
)
def test_beyond_loopback_a_good_token_is_needed(
    host: str, token: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHORT", "short")
    monkeypatch.setenv("SPACED", "0123456789 abcdef")
    with pytest.raises(UsageError, match=said) as wrong:
        Access.of(host, token)
    assert "short" not in str(wrong.value) and "0123456789" not in str(wrong.value)


def test_what_is_loopback() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.9.9.9", "localhost", "::1", "[::1]")))
    assert not any(
        map(is_loopback, ("", "0.0.0.0", "::", "localhost.evil.example", "10.0.0.1", "127.0.0.1.nip.example"))
    )


async def test_sizes_and_connections_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "CONNECTIONS_MAX", 5)
    async with served() as (made, _):
        await made.watching.beat()
        with all_logs_off():
            assert (await ask(made.port, X="y" * 20_000))[0] in (0, 400, 431)
            assert (await ask(made.port, body="z" * 2000, Content_Length="2000"))[0] in (0, 400, 413)
            assert (await ask(made.port, Content_Length="99999999999"))[0] in (0, 400, 413)
        held = [await asyncio.open_connection("127.0.0.1", made.port) for _ in range(5)]
        assert (await ask(made.port))[0] == 0
        for _, writer in held:
            writer.close()
            await writer.wait_closed()
        for _ in range(100):  # until the server has noticed
            if (await ask(made.port))[0] == 200:
                break
        else:
            pytest.fail("whoever went away is still counted")


class all_logs_off:
    """Tornado tells of malformed requests; here they are made on purpose."""

    def __enter__(self) -> None:
        logging.disable(logging.ERROR)

    def __exit__(self, *_: object) -> None:
        logging.disable(logging.NOTSET)


async def test_who_comes_is_told_everything_then_every_beat() -> None:
    async with served() as (made, _):
        for _ in range(5):
            await made.watching.beat()
        stream = await Stream.opened(made.port)
        name, data = await stream.event()
        hello = json.loads(data)
        assert (name, hello["version"], hello["window_s"], hello["history_s"]) == ("hello", 1, 30.0, 7200)
        assert hello["watched"]["run_id"] == "r1" and hello["targets"]["name"] == "production"
        assert hello["targets"]["thresholds"][0].keys() == {"name", "limit", "is_max", "unit"}
        assert hello["seconds"] == json.loads(msgspec.json.encode(list(made.watching.state.history)))
        assert sum(s["ok"] for s in hello["seconds"]) > 0 and hello["figures"]["memory"] is None
        assert hello["marks"][0]["name"] == hello["alerts"][0]["name"] == HOSTILE
        assert [h["name"] for h in hello["held"]] == [t["name"] for t in hello["targets"]["thresholds"]]
        known = len(hello["seconds"])
        await made.watching.beat()
        name, data = await stream.event()
        second = json.loads(data)
        assert name == "second" and second.keys() == {
            *("now", "seconds", "watched", "figures", "unseen_s", "held", "marks", "alerts", "health"),
        }
        assert hello["unseen_s"] is None and second["unseen_s"] is None
        assert len(second["seconds"]) == len(made.watching.state.history) - known == 1
        assert second["health"]["status"] in ("ok", "degraded", "down") and b"\n" not in data


@pytest.mark.parametrize("is_hanging", [False, True])
async def test_who_listens_is_told_how_old_the_newest_look_is_instead_of_its_figures(
    is_hanging: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "BEAT_S", 0.001)
    async with served() as (made, source):
        for _ in range(5):
            await made.watching.beat()
        assert not math.isnan(made.watching.state.figures["p50"])
        stream = await Stream.opened(made.port)
        await stream.event()
        if is_hanging:
            source.gate = asyncio.Event()
            made.watching.clock = lambda: T0 + 12.5
        else:
            source.error, source.n = "gone", 11
            made.watching.clock = lambda: source.now + 0.5
        await made.watching.beat()
        told = json.loads((await stream.event())[1])
        assert told["unseen_s"] == 7.5 and set(told["figures"].values()) == {None}
        assert {h["status"] for h in told["held"]} == {"inconclusive"}
        assert {h["reason"] for h in told["held"]} == {"not looked at since 08:00:05 UTC"}


async def test_fifty_dashboards_are_told_the_same_and_who_leaves_is_forgotten() -> None:
    async with served() as (made, _):
        await made.watching.beat()
        streams = [await Stream.opened(made.port) for _ in range(50)]
        told = [await stream.event() for stream in streams]
        assert set(told) == {("hello", made.watching.hello().partition(b"data: ")[2].strip())}
        for _ in range(3):
            await made.watching.beat()
        for _ in range(3):
            assert len({await stream.event() for stream in streams}) == 1
        for stream in streams[:49]:
            stream.writer.close()
            await stream.writer.wait_closed()
        while len(made.streams) > 1:  # the server notices each time round the loop
            await made.watching.beat()
        assert (await streams[-1].event())[0] == "second"


async def test_a_dashboard_too_many_is_refused_and_the_others_are_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "STREAMS_MAX", 2)
    async with served() as (made, _):
        streams = [await Stream.opened(made.port) for _ in range(2)]
        status, headers, _ = await ask(made.port, "/events")
        assert status == 503 and "retry-after" in headers
        await made.watching.beat()
        for stream in streams:
            assert [(await stream.event())[0], (await stream.event())[0]] == ["hello", "second"]


async def test_who_does_not_take_what_is_sent_holds_nobody_up_and_gets_everything_anew() -> None:
    async with served() as (made, source):
        slow, quick = await Stream.opened(made.port, 4096), await Stream.opened(made.port)
        await quick.event()
        beats = 0
        source.gauges = tuple(Gauge(T0, "s", f"{n} {HOSTILE}", 1.0) for n in range(100))  # a large frame
        behind = {}
        while not behind:  # until the kernel takes no more for the slow one
            await made.watching.beat()
            beats += 1
            assert (await quick.event())[0] == "second"
            behind = {s for s in made.streams if s._is_behind}
        for _ in range(20):
            await made.watching.beat()
            await quick.event()
        (stream,) = behind
        assert (
            stream._pending is not None and not stream._pending.done()
        )  # one chunk waits, however many beats there were
        names = []
        while names.count("hello") < 2:
            reading = asyncio.ensure_future(slow.event())
            while not reading.done():
                await made.watching.beat()
            names.append(reading.result()[0])
        assert names[0] == "hello" and names.count("second") <= beats and len(names) < beats + 21


async def test_who_takes_nothing_for_long_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "STALL_TIMEOUT_S", 0.0)
    async with served() as (made, source):
        await Stream.opened(made.port, 4096)
        source.gauges = tuple(Gauge(T0, "s", f"{n} {HOSTILE}", 1.0) for n in range(100))
        while made.streams:
            await made.watching.beat()


async def test_a_look_that_fails_or_hangs_is_said_and_the_beat_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(watching, "BEAT_S", 0.001)
    source = Source()
    made = watched_by(source)
    source.fault = ValueError("postgresql://me:planted@host/db")
    for _ in range(3):
        await made.beat()
    assert (made.beats, made.errors, made.health().status) == (3, 3, "down")
    assert caplog.text.count("a look failed: ValueError") == 1 and "planted" not in caplog.text
    source.fault = None
    await made.beat()
    assert made.health().status == "ok"
    source.gate = asyncio.Event()
    for _ in range(3):
        await made.beat()
    assert (made.beats, made.looks) == (7, 4)
    monkeypatch.setattr(watching, "now_ns", lambda: now_ns() + 6 * NS_PER_S)
    found = made.health()
    assert found.code == 503 and "last looked" in found.reasons[0]
    source.gate.set()
    await made.beat()
    assert made.health().code == 200
    beating = asyncio.ensure_future(made.run())
    await asyncio.wait([beating], timeout=0.02)
    beating.cancel()
    await asyncio.wait([beating])
    assert source.is_closed


async def test_a_beat_that_goes_wrong_is_said_and_is_not_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "BEAT_S", 0.001)
    source, told = Source(), []
    source.watched = msgspec.structs.replace(RUN, title="\ud800")  # nothing that can be sent
    made = watched_by(source)
    made.listeners.add(told.append)
    beating = asyncio.ensure_future(made.run())
    while "a beat failed: UnicodeEncodeError" not in made.health().reasons:
        assert await asyncio.wait([beating], timeout=0.005) and not beating.done()
    assert made.health().status == "degraded" and not told
    source.watched = RUN
    while not told:
        assert await asyncio.wait([beating], timeout=0.005) and not beating.done()
    assert made.health().status == "ok"
    beating.cancel()
    await asyncio.wait([beating])


async def test_a_dashboard_that_cannot_be_told_is_forgotten_and_the_others_are_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def gone(_: bytes) -> None:
        raise RuntimeError("planted")

    made, told = watched_by(Source()), []
    made.listeners |= {gone, *(lambda frame, n=n: told.append((n, frame)) for n in range(5))}
    await made.beat()
    assert len(told) == 5 and gone not in made.listeners
    assert "could not be told: RuntimeError" in caplog.text and "planted" not in caplog.text


async def test_however_many_wait_for_a_large_hello_it_is_there_once() -> None:
    async with served() as (made, _):
        frame = b"event: hello\ndata: " + b"x" * 10_000_000 + b"\n\n"
        made.watching.hello = lambda: frame  # type: ignore[method-assign]
        tracemalloc.start()
        try:
            streams = [await Stream.opened(made.port, 4096) for _ in range(10)]
            while sum(s._sent_ns > 0 for s in made.streams) < len(streams):
                await made.watching.beat()
            assert tracemalloc.get_traced_memory()[1] < len(frame)
        finally:
            tracemalloc.stop()
        assert await streams[0].event() == ("hello", frame.partition(b"data: ")[2].strip())


async def test_a_proxy_that_speaks_http_1_0_gets_the_stream_without_chunks() -> None:
    async with served() as (made, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", made.port)
        writer.write(f"GET /events HTTP/1.0\r\nHost: 127.0.0.1:{made.port}\r\n\r\n".encode())
        await reader.readuntil(b"\r\n\r\n")
        assert await reader.readuntil(b"data: ") == b"retry: 1000\n\nevent: hello\ndata: "
        writer.close()


async def test_a_password_in_the_text_of_an_error_or_a_mark_goes_no_further() -> None:
    text = 'no: postgresql://me:planted1@host/db, password=planted2 PASSWORD = planted3; ftp://h/p; x://u:a"planted4@h'
    async with served() as (made, source):
        source.error = text
        source.watched = msgspec.structs.replace(RUN, title=text, row={"store": text})
        source.gauges = (Gauge(T0, "s", text, 1.0),)
        await made.watching.beat()
        made.watching.state.marks.append(Mark(T0, text, text))
        stream = await Stream.opened(made.port)
        await made.watching.beat()
        told = [(await stream.event())[1].decode() for _ in range(2)] + [(await ask(made.port))[2]]
        told.append((await ask(made.port, "/metrics"))[2])
    assert "planted" not in "".join(told) and all("me:***@host/db" in t and "ftp://h/p" in t for t in told)
    assert json.loads(told[0])["watched"]["title"].startswith("no: postgresql://me:***@host")


def state_of(**facts: Any) -> Any:
    """What health asks of a State: a load whose gauges come."""
    given = {
        "watched": RUN,
        "is_loaded": True,
        "gauges": {"machine.busy_percent": Gauge(T0 + 29, "machine", "busy_percent", 1.0)},
        "error": "",
        "waiting": 3,
        "oldest_s": 0.1,
        "catching_up": False,
        "is_cut": False,
    }
    return type("Seen", (), given | facts)()


OBSERVED = Watched(store="env:LAB_DSN", status="observed")


@pytest.mark.parametrize(
    ("seen", "watch", "status", "reason"),
    [
        ({}, {}, "ok", "a run is loading"),
        ({"watched": None, "is_loaded": False}, {}, "ok", "idle"),
        (
            {"is_loaded": False, "watched": msgspec.structs.replace(RUN, status="complete"), "gauges": {}},
            {},
            "ok",
            "idle",
        ),
        ({}, {"look_age_s": 5.1}, "down", "last looked 5 s ago"),
        ({}, {"look_age_s": math.inf}, "down", "has not looked yet"),
        ({"error": "the spool cannot be read"}, {}, "down", "the spool cannot be read"),
        ({"watched": OBSERVED, "is_loaded": False}, {}, "ok", "env:LAB_DSN answers"),
        ({"watched": OBSERVED, "is_loaded": False, "error": "refused"}, {}, "down", "refused"),
        ({}, {"is_held": False}, "down", "the processes of the run are gone"),
        ({}, {"is_held": True}, "ok", ""),
        ({"gauges": {}}, {}, "down", "the probes have been quiet for 30 s"),
        ({"gauges": {"a.b": Gauge(T0 + 19, "a", "b", 1.0)}}, {}, "down", "quiet for 11 s"),
        ({}, {"since_ended_s": 11.0}, "down", "nothing has ended for 11 s while 3 operations wait"),
        ({"waiting": 0}, {"since_ended_s": 11.0}, "ok", ""),
        ({"catching_up": True}, {}, "degraded", "catching up with what was recorded before"),
        ({"is_cut": True}, {}, "degraded", "shorter than asked"),
        ({}, {"troubles": ("disk full",)}, "degraded", "disk full"),
    ],
)
def test_health_tells_the_truth(seen: dict[str, Any], watch: dict[str, Any], status: str, reason: str) -> None:
    found = health(state_of(**seen), Watch(**{"look_age_s": 0.5, **watch}), T0 + 30)
    assert found.status == status and any(reason in r for r in found.reasons), found
    assert (found.code == 503) == (status == "down") == (False in found.checks.values())


def test_probes_of_a_run_of_days_may_be_quiet_for_longer() -> None:
    days = msgspec.structs.replace(RUN, duration_s=7 * 86_400.0)
    quiet = {"a.b": Gauge(T0 - 60, "a", "b", 1.0)}
    assert health(state_of(watched=days, gauges=quiet), Watch(look_age_s=0.1), T0 + 30).status == "ok"


def until(condition: Any, what: str, seconds: float = 30) -> Any:
    deadline_ns = now_ns() + int(seconds * NS_PER_S)
    while not (found := condition()):
        assert now_ns() < deadline_ns, f"waited in vain for {what}"
        pause_s(0.02)
    return found


def fetched(url: str) -> str:
    try:
        with urllib.request.urlopen(url, timeout=20) as answer:
            return str(answer.read().decode())
    except urllib.error.HTTPError as error:
        with error:
            return error.read().decode()


@pytest.fixture(scope="module")
def monitor(session_lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Beside]:
    """The one of a notebook; whoever ends it is the last to use it."""
    folder = tmp_path_factory.mktemp("elsewhere")
    (folder / "tornado.py").write_text("raise RuntimeError('a module of the folder one happens to be in')")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        beside.dashboard(session_lab, port=0)
    made = beside._OF_A_NOTEBOOK[session_lab.path.resolve()]
    yield made
    made.end()


def listening(pid: int) -> set[str]:
    """The addresses a process listens at, as `ss` has them, or psutil where it is not there."""
    if shutil.which("ss"):
        lines = subprocess.run(["ss", "-ltnpH"], capture_output=True, text=True, check=True).stdout.splitlines()
        return {line.split()[3].rpartition(":")[0] for line in lines if f"pid={pid}," in line}
    return {c.laddr.ip for c in psutil.Process(pid).net_connections() if c.status == psutil.CONN_LISTEN}


def test_a_notebook_has_the_page_in_a_frame_once(
    monitor: Beside, session_lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(beside.importlib.util, "find_spec", lambda _: None)
    frame = beside.dashboard(session_lab)
    assert frame.src == monitor.url and "iframe" in frame._repr_html_()
    assert beside.dashboard(session_lab, port=0).src == frame.src
    monkeypatch.setattr(beside.importlib.util, "find_spec", lambda _: object())
    assert beside.dashboard(session_lab).src == f"/proxy/{monitor.port}/dashboard"
    monkeypatch.setenv("JUPYTERHUB_SERVICE_PREFIX", "/user/ann/")
    assert beside.dashboard(session_lab).src == f"/user/ann/proxy/{monitor.port}/dashboard"


def test_a_process_of_its_own_listens_on_loopback_only_comes_last_and_ends_with_its_input(monitor: Beside) -> None:
    assert listening(monitor.pid) == {"127.0.0.1"}
    assert psutil.Process(monitor.pid).nice() >= 10
    assert not hasattr(os, "SCHED_BATCH") or os.sched_getscheduler(monitor.pid) == os.SCHED_BATCH
    until(lambda: '"status":"ok"' in fetched(monitor.url.replace("dashboard", "health")), "health")
    os.kill(monitor.pid, signal.SIGINT)  # the terminal's Ctrl-C is for the run
    assert "eventcore_lab_up" in fetched(monitor.url.replace("dashboard", "metrics"))
    monitor.end()
    assert not monitor.is_alive and monitor._process.returncode == 0


def test_a_process_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    code = (
        "import sys, time\n"
        "from eventcore_lab.monitor.beside import Beside\n"
        "from eventcore_lab.monitor.process import Order\n"
        f"print(Beside(Order(lab={str(tmp_path / 'lab.duckdb')!r}, port=0)).pid, flush=True)\n"
        "sys.stdin.read()\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert parent.stdin is not None and parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert psutil.pid_exists(pid)
    parent.kill()
    parent.wait()
    until(
        lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE, "the monitor to end"
    )
    parent.stdin.close()
    parent.stdout.close()


def test_nothing_says_the_password_of_a_store_that_cannot_be_reached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAB_DSN", "postgresql://me:s3cret-planted@127.0.0.1:1/db?application_name=t0ken-planted")
    told: list[Any] = []
    made = Beside(Order(lab=str(tmp_path / "lab.duckdb"), port=0, store="env:LAB_DSN"), told.append)
    try:
        base = made.url.replace("dashboard", "")
        health = until(
            lambda: (h := fetched(base + "health")) and "cannot be looked at" in h and h, "the store's error"
        )
        assert json.loads(health)["checks"]["store reachable"] is False
        with urllib.request.urlopen(base + "events", timeout=20) as stream:
            events = b"".join(stream.readline() for _ in range(9)).decode()
        said = health + events + fetched(base + "metrics") + str(told)
        made._words.seek(0)
        said += made._words.read().decode() + " ".join(psutil.Process(made.pid).cmdline())
        assert "planted" not in said and '"status":"observed"' in events
    finally:
        made.end()


class Heard:
    """What a monitor says, as (event, text)."""

    def __init__(self) -> None:
        self.all: list[tuple[str, str]] = []

    def __call__(self, event: str, **facts: Any) -> None:
        self.all.append((event, str(facts.get("text", ""))))

    def texts(self, event: str) -> list[str]:
        return [text for name, text in self.all if name == event]


ALWAYS = '[[rules]]\nname = "p50 bad"\nexpect = "p50 < 1ms"\nfor_s = 0\n'


@asynccontextmanager
async def firing(tmp_path: Path, heard: Heard, **order: Any) -> AsyncIterator[tuple[process.Monitor, Source]]:
    """A monitor of which an alert fires, and its source; after the block it ends."""
    (tmp_path / "rules.toml").write_text(ALWAYS)
    given = {"lab": str(tmp_path / "lab.duckdb"), "alerts": str(tmp_path / "rules.toml"), "port": 0}
    made, source = process.Monitor(process.Order(**given | order), heard), Source()
    made._watching.source, made._watching.clock = source, lambda: source.now
    running = asyncio.ensure_future(made.run())
    for _ in range(3000):
        await sleep_s(0.01)
        if any(" firing: p50 bad" in text for text in heard.texts("alert")):
            break
    yield made, source
    made.ended.set()
    await running


async def test_what_fires_when_the_monitor_ends_is_said_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "BEAT_S", 0.01)
    heard = Heard()
    async with firing(tmp_path, heard):
        pass
    last = heard.texts("alert")[-1]
    assert "unwatched: p50 bad: the monitor ends; p50 bad was still firing; p50 was 2 ms, limit < 1 ms" in last
    assert Lab(tmp_path / "lab.duckdb").alerts()["state"].to_list() == ["firing", "unwatched"]


async def test_beside_a_run_that_ended_just_now_it_looks_once_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "BEAT_S", 0.01)
    heard = Heard()
    async with firing(tmp_path, heard, is_beside=True) as (_, source):
        source.watched = msgspec.structs.replace(RUN, status="complete")
    assert "resolved: p50 bad: the load ended while p50 was 2 ms" in heard.texts("alert")[-1]


async def test_an_alert_that_reached_nobody_is_told_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "BEAT_S", 0.01)
    monkeypatch.setattr(delivery, "BACKOFF_S", 0.01)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HOOK", f"json://127.0.0.1:{closed.getsockname()[1]}/{TOKEN}")
        heard = Heard()
        async with firing(tmp_path, heard, notify=("env:HOOK",)) as (made, _):
            for _ in range(3000):
                await sleep_s(0.01)
                if any(mark.name == "alert not delivered" for mark in made._watching.state.marks):
                    break
            why = "env:HOOK after 3 tries: it could not be reached, or gave no answer"
            assert heard.texts("note") == [f"alert not delivered to {why}"]
            told = made._watching.health()
            assert told.status == "degraded" and any("alerts do not reach env:HOOK" in r for r in told.reasons)
            assert f"p50 bad (firing) to {why}" in made._watching.hello().decode()
            counted = 'eventcore_lab_alert_deliveries_total{channel="env:HOOK",result="failed"} 1.0'
            assert counted in made._watching.metrics(TEXT).decode()
    assert TOKEN not in str(heard.all)


def test_a_line_beside_a_run_and_alone_says_who_says_it(capsys: pytest.CaptureFixture[str]) -> None:
    beside._line_of_an_alert({"event": "note", "text": "alert not\x1b delivered"})
    beside._print("note", text="alert not\x1b delivered")
    assert capsys.readouterr().out == "live: alert not� delivered\nmonitor: alert not� delivered\n"


def test_a_trial_of_the_services_ends_with_what_became_of_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "add --notify env:NAME" in said(capsys, "monitor", "--test-notify")[2]
    for outcome, expected in (("delivered", 0), ("not delivered: it answered 500", 4)):
        monkeypatch.setattr(beside, "tried", lambda _, outcome=outcome: {"env:HOOK": outcome})
        code, out, err = said(capsys, "monitor", "--notify", "env:HOOK", "--test-notify")
        assert (code, out, err) == (expected, f"env:HOOK: {outcome}\n", "")


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    sys.argv = ["eventcore-lab", *arguments]
    with pytest.raises(SystemExit) as done:
        cli.main()
    out, err = capsys.readouterr()
    return int(done.value.code or 0), out, err


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--host", "0.0.0.0"], "needs a token"),
        (["--host", "no such host", "--token", "env:MONITOR_TOKEN"], "cannot listen at 'no such host'"),
        (["--token", "env:NOT_SET"], "not set or empty"),
        (["--targets", "prod"], "unknown targets"),
        (["--alerts", "nothing.toml"], "does not exist"),
        (["--notify", "env:NOT_SET"], "NOT_SET"),
        (["--store", "memory"], "can be observed"),
        (["--store", "postgresql://a:b@c/d"], "by name"),
        (["--window", "0.5"], "greater than or equal to 1"),
        (["--port", "TAKEN"], "is in use by somebody else"),
        (["--allowed-host", "http://lab.example.org"], "give the name alone"),
        (["--allowed-host", "two names"], "give the name alone"),
        (["--lab", "."], "is a folder"),
    ],
)
def test_a_mistake_gets_one_line_and_code_2(
    arguments: list[str], part: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MONITOR_TOKEN", TOKEN)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        given = [str(taken.getsockname()[1]) if a == "TAKEN" else a for a in arguments]
        code, out, err = said(capsys, "monitor", "--seconds", "0.1", *given)  # in case it is none
    assert (code, err.count("\n"), out) == (2, 1, "") and part in err, err
    assert "b@c" not in err and TOKEN not in err


def test_alone_it_runs_until_ctrl_c_or_for_its_seconds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lab = str(tmp_path / "lab.duckdb")
    code, out, err = said(capsys, "monitor", "--port", "0", "--lab", lab, "--seconds", "0.1")
    first, second = out.splitlines()
    assert (code, err) == (0, "") and second == f"monitor: there are no runs in {lab} yet"
    assert re.fullmatch(r"monitor: http://127\.0\.0\.1:\d+/dashboard \(Ctrl-C ends it\)", first)
    Lab(lab).spool.mkdir()
    command = [sys.executable, "-m", "eventcore_lab", "monitor", "--port", "0", "--lab", lab]
    alone = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert alone.stdout is not None and alone.stdout.readline().startswith("monitor: http://127.0.0.1:")
    alone.send_signal(signal.SIGINT)
    out, err = alone.communicate(timeout=30)
    assert (alone.returncode, out, err) == (0, "", "")


def test_it_is_said_how_to_come_in_and_what_is_still_missing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MONITOR_TOKEN", TOKEN)
    code, out, err = said(capsys, "monitor", "--port", "0", "--token", "env:MONITOR_TOKEN", "--seconds", "0.1")
    assert (code, err) == (0, "") and "(the first time with ?token=… behind it; Ctrl-C" in out and TOKEN not in out
    assert "--allowed-host" not in out
    beside._print("ready", url="http://127.0.0.1:1/dashboard", has_token=True, has_name=False, is_empty=False)
    assert "add --allowed-host NAME" in capsys.readouterr().out
    with suppress(OSError), socket.create_server(("::1", 0), family=socket.AF_INET6):
        code, out, err = said(capsys, "monitor", "--port", "0", "--host", "[::1]", "--seconds", "0.1")
        assert (code, err) == (0, "") and out.startswith("monitor: http://[::1]:")


class Started:
    """A monitor that was only asked for."""

    url, port, is_alive = "http://127.0.0.1:1/dashboard", 8765, True

    def __init__(self, order: Order, tell: Any) -> None:
        self.orders.append(order)
        tell({"event": "alert", "text": "high_latency\x1b[2J fires"})

    orders: ClassVar[list[Order]] = []

    def end(self) -> None:
        pass


def test_beside_a_run_targets_and_alerts_are_those_of_the_user_and_every_change_is_a_line(
    lab: Lab, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(beside, "Beside", Started)
    for targets, held in ((["development"] * 2, "development"), ([], "production"), (["a", "b"], "production")):
        with live(lab, targets, notify=["env:A", "env:B"], alerts="rules.toml"):
            pass
        order, out = Started.orders[-1], capsys.readouterr().out
        assert (order.targets, order.notify, order.alerts) == (held, ("env:A", "env:B"), "rules.toml")
        assert out.splitlines()[0] == "high_latency�[2J fires"
        assert ("not each to its own (a, b)" in out) == (len(set(targets)) > 1)


@pytest.mark.parametrize("command", [["run", "14"], ["suite", "ci"], ["soak"]], ids=lambda c: c[0])
def test_what_would_tell_nobody_is_refused(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    for option, given in (("--notify", "env:A"), ("--alerts", "rules.toml")):
        code, out, err = said(capsys, *command, option, given)
        assert (code, out) == (2, "") and err == f"eventcore-lab: {option} is for a run that is watched; add --live\n"


@pytest.mark.parametrize(("given", "told"), [([], ["production"] * 2), (["targets=development"], ["development"] * 2)])
def test_the_monitor_is_told_what_the_notebooks_hold_their_runs_to(
    given: list[str], told: list[str], tmp_path: Path
) -> None:
    def beside(_: Lab, targets: Sequence[str]) -> Any:
        raise UsageError(" ".join(targets))

    folder = Path(__file__).parent.parent / "notebooks"
    with pytest.raises(UsageError, match=f"^{' '.join(told)}$"):
        run_notebooks(["14", "00"], folder, given, tmp_path, tmp_path / "lab.duckdb", beside=beside)


def test_beside_a_run_it_shows_it_while_it_goes_on(tmp_path: Path) -> None:
    lab, out = tmp_path / "lab.duckdb", tmp_path / "reports"
    rules, notebook = tmp_path / "rules.toml", tmp_path / "small.ipynb"
    rules.write_text('for_s = 0\n[[rules]]\nname = "too slow"\nexpect = "p50 < 0.001 ms"\n')
    cells = [nbformat.v4.new_code_cell(source) for source in SMALL]
    cells[0].metadata["tags"] = ["parameters"]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), notebook)
    command = [sys.executable, "-m", "eventcore_lab", "run", str(notebook), "--live", "--live-port", "0"]
    command += ["--alerts", str(rules), "--lab", str(lab), "--out", str(out)]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert run.stdout is not None
    url = run.stdout.readline().removeprefix("live: ").strip()
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/dashboard", url), url
    base = url.removesuffix("dashboard")
    ended = r'eventcore_commands_total\{outcome="ok"\} ([1-9]\d*)'
    until(lambda: re.search(ended, fetched(base + "metrics")), "operations that ended", 60)
    health = json.loads(fetched(base + "health"))
    assert health["status"] in ("ok", "degraded"), health
    text, _ = run.communicate(timeout=60)
    assert run.returncode in (0, 1, 3) and "verdict: " in text, text
    assert re.search(r"warning firing: too slow: p50 is .* below 0\.001 ms", text), text
    with pytest.raises(OSError):
        urllib.request.urlopen(base + "health", timeout=5)
    assert len(Lab(lab).runs()) >= 1


def test_a_taken_port_is_said_and_the_next_one_had_and_a_monitor_that_dies_stops_no_run(
    lab: Lab, capsys: pytest.CaptureFixture[str]
) -> None:
    before = psutil.Process().children()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        if port > 65_000:
            pytest.skip("no ports above")
        with live(lab, port=port) as url:
            assert fetched(url.replace("dashboard", "health"))
            (child,) = set(psutil.Process().children()) - set(before)
            child.kill()
            child.wait()
    out, err = capsys.readouterr()
    assert f"port {port} is in use" in out and f"live: {url}" in out and f":{port}/" not in url
    assert "had ended before the runs did" in err


def test_a_monitor_that_does_not_start_stops_no_run(
    lab: Lab, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(beside.sys, "executable", shutil.which("false") or "/bin/false")
    with live(lab, port=0) as url:
        assert url == ""
    assert "going on without" in capsys.readouterr().err


def test_a_run_whose_processes_are_gone_is_not_held(tmp_path: Path) -> None:
    import fcntl

    from eventcore_lab.monitor.process import _is_held

    assert _is_held(tmp_path / LOCK_FILE) is None
    os.mkfifo(tmp_path / "pipe")
    assert _is_held(tmp_path / "pipe") is False  # and nothing waits for somebody to write
    with (tmp_path / LOCK_FILE).open("w") as lock:
        assert _is_held(tmp_path / LOCK_FILE) is False
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert _is_held(tmp_path / LOCK_FILE) is True


def test_the_wall_clock_is_the_wall_clock() -> None:
    assert abs(watching.unix_s() - three_clocks_ns()[1] / NS_PER_S) < 60
