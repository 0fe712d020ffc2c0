"""Handing alerts on, against real servers on loopback that work, fail, reset, hang and trickle."""

from __future__ import annotations

import json
import logging
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from queue import Queue
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventcore_lab.lab.database import Lab
from eventcore_lab.monitor import channels, delivery, messages
from eventcore_lab.monitor.beside import try_out
from eventcore_lab.monitor.channels import STUCK_MAX, Channel, NotDelivered, channels_of
from eventcore_lab.monitor.delivery import MINUTE_S, Delivery, Pace
from eventcore_lab.monitor.facts import Alert
from eventcore_lab.monitor.history import History
from eventcore_lab.monitor.messages import Message, kind_of, message_of, plain, summary_of, title_of
from eventcore_lab.schema import ExitCode
from eventcore_lab.spec import UsageError

T = 1_800_000_000.0
TOKEN = "Z0planted7token9secret3"
PATIENCE_S = 20.0
TRY = "alert try"


def alert(k: int = 0, state: str = "firing", **more: Any) -> Alert:
    fields = {"name": "high_latency", "severity": "critical", "text": f"p95 is {k} ms", "since": T, "run_id": "r1"}
    return Alert(t=T + k, state=state, **(fields | more))


class Service(ThreadingHTTPServer):
    """What alerts are posted to. `behaviour` is asked with each handler and its number; it is told to let go with `done`."""

    daemon_threads = True

    def __init__(self, behaviour: Callable[[Handler, int], None]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.behaviour, self.done, self.answered = behaviour, threading.Event(), 0
        self.posted: Queue[dict[str, Any]] = Queue()
        self.lock, self.count = threading.Lock(), 0
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # whoever posted has gone

    def url(self, scheme: str = "json", path: str = f"/hook/{TOKEN}") -> str:
        return f"{scheme}://127.0.0.1:{self.server_port}{path}"

    def bodies(self, count: int) -> list[dict[str, Any]]:
        return [self.posted.get(timeout=PATIENCE_S) for _ in range(count)]


class Handler(BaseHTTPRequestHandler):
    server: Service

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        with self.server.lock:
            number, self.server.count = self.server.count, self.server.count + 1
        self.server.posted.put(json.loads(body))
        self.server.behaviour(self, number)

    def answer(self, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"ok")
        self.server.answered += 1

    def log_message(self, format: str, *args: Any) -> None:
        pass


def works(handler: Handler, _: int) -> None:
    handler.answer()


def fails(handler: Handler, _: int) -> None:
    handler.answer(500)


def fails_twice(handler: Handler, number: int) -> None:
    handler.answer(500 if number < 2 else 200)


def hangs(handler: Handler, _: int) -> None:
    handler.server.done.wait()


def slow_first(handler: Handler, number: int) -> None:
    if number == 0:
        handler.server.done.wait()
    handler.answer()


def resets(handler: Handler, _: int) -> None:
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()


def trickles(handler: Handler, _: int) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n")
    while not handler.server.done.wait(0.01):
        handler.wfile.write(b"x")


def moves(handler: Handler, _: int) -> None:
    handler.send_response(307)
    handler.send_header("location", handler.server.url("http", "/elsewhere"))
    handler.send_header("content-length", "0")
    handler.end_headers()


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Service]]:
    """Starts a service and names its address `env:HOOK`, or as asked."""
    started: list[Service] = []

    def start(
        behaviour: Callable[[Handler, int], None], name: str = "HOOK", scheme: str = "json", **path: str
    ) -> Service:
        service = Service(behaviour)
        started.append(service)
        monkeypatch.setenv(name, service.url(scheme, **path))
        return service

    monkeypatch.setattr(delivery, "BACKOFF_S", 0.01)
    yield start
    for service in started:
        service.done.set()
        service.shutdown()
        service.server_close()
    assert not alive()


def alive() -> list[threading.Thread]:
    """Tries that go on although they were given time to end."""
    tries = [t for t in threading.enumerate() if t.name == TRY]
    for thread in tries:
        thread.join(PATIENCE_S)
    return [t for t in tries if t.is_alive()]


class Told:
    """What became of alerts, waited for."""

    def __init__(self) -> None:
        self._queue: Queue[tuple[str, str]] = Queue()

    def __call__(self, alert: Alert, channel: str, outcome: str) -> None:
        self._queue.put((channel, outcome))

    @property
    def is_empty(self) -> bool:
        return self._queue.empty()

    def next(self) -> tuple[str, str]:
        return self._queue.get(timeout=PATIENCE_S)


def test_a_webhook_is_given_the_alert(serve: Callable[..., Service], monkeypatch: pytest.MonkeyPatch) -> None:
    service, told = serve(works), Told()
    made = Delivery(["env:HOOK"], results=told)
    monkeypatch.setattr(messages.socket, "gethostname", lambda: "h" * 200)
    about = "store memory, workload orders; window 30 s"
    made.send(alert(73, detail="fired 2 more times since it was last told of", about=about))
    assert told.next() == ("env:HOOK", "delivered")
    [body] = service.bodies(1)
    assert body["title"] == "EventCore performance alert: high_latency is firing (critical)"
    text, detail, since, about, run = body["message"].split("\n")
    assert (text, detail) == ("p95 is 73 ms", "fired 2 more times since it was last told of")
    assert (about, run) == ("store memory, workload orders; window 30 s", f"run r1, host {'h' * 59}…")
    assert since.startswith("since 20") and body["type"] == "failure"
    assert made.close() == 0
    assert made.counts == {"env:HOOK": {"delivered": 1, "failed": 0, "dropped": 0}}


def test_services_are_told_what_fires_and_resolves_and_the_terminal_of_every_change(
    serve: Callable[..., Service],
) -> None:
    service, lines = serve(works), []
    made = Delivery(["env:HOOK"], tell=lines.append)
    for k, state in enumerate(("pending", "firing", "silenced", "resolved")):
        made.send(alert(k, state))
    made.send(alert(4, "unwatched"))
    made.send(alert(9, "resolved", detail="nobody was told of it"))
    assert made.close(PATIENCE_S) == 0
    assert [" ".join(line.split()[3:5]) for line in lines] == [
        "critical pending:",
        "critical firing:",
        "critical silenced:",
        "critical resolved:",
        "critical unwatched:",
        "critical resolved:",
    ]
    said = "\n".join(body["title"] + body["message"] for body in service.bodies(service.count))
    assert all(f"p95 is {k} ms" in said for k in (1, 3, 4))
    assert not any(f"p95 is {k} ms" in said for k in (0, 2, 9))


def test_the_log_says_each_change_at_its_level(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "eventcore_lab.alerts")
    made = Delivery()
    made.send(alert(1))
    made.send(alert(2, severity="warning"))
    made.send(alert(3, "resolved"))
    assert made.close(PATIENCE_S) == 0
    assert [r.levelname for r in caplog.records if r.name == "eventcore_lab.alerts"] == ["CRITICAL", "WARNING", "INFO"]


def test_what_fails_at_first_is_tried_again(serve: Callable[..., Service]) -> None:
    service, told = serve(fails_twice), Told()
    made = Delivery(["env:HOOK"], results=told)
    made.send(alert())
    assert told.next() == ("env:HOOK", "delivered")
    assert len({body["message"] for body in service.bodies(3)}) == 1
    made.close()


# The exception that ends a try may reach its thread while it frees something, where Python can only tell of it.
@pytest.mark.filterwarnings("ignore:Exception ignored in:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("behaviour", "why"),
    [
        (fails, "it answered 500"),
        (resets, "it could not be reached, or gave no answer"),
        (hangs, "no end after 0.2 s"),
        (trickles, "no end after 0.2 s"),
        (moves, "it answered 307"),
    ],
)
def test_tries_are_counted_and_the_kind_of_failure_is_said(
    serve: Callable[..., Service], behaviour: Callable[[Handler, int], None], why: str
) -> None:
    service, told = serve(behaviour), Told()
    made = Delivery(["env:HOOK"], timeout_s=0.2 if "0.2 s" in why else PATIENCE_S, tries=2, results=told)
    for k in range(3):
        made.send(alert(k))
    outcomes = {told.next()[1] for _ in range(3)}
    assert all(outcome.startswith("failed after 2 tries: ") for outcome in outcomes)
    assert outcomes & {
        f"failed after 2 tries: {why}",
        "failed after 2 tries: it could not be reached, or gave no answer",
    }
    assert service.count <= 6 and sum(t.name == TRY for t in threading.enumerate()) <= STUCK_MAX
    assert made.counts["env:HOOK"]["failed"] == 3
    made.close()


@pytest.mark.parametrize(
    ("states", "kind"),
    [
        (("firing",), "failure"),
        (("resolved",), "success"),
        (("unwatched",), "info"),
        (("resolved", "unwatched"), "info"),
        (("unwatched", "firing"), "failure"),
    ],
)
def test_only_what_is_resolved_is_a_success(states: tuple[str, ...], kind: str) -> None:
    assert kind_of([alert(k, state) for k, state in enumerate(states)]) == kind
    title = title_of(alert(0, "unwatched"))
    assert title == "EventCore performance alert: high_latency is no longer watched (critical)"


def test_what_did_not_reach_is_told_until_something_does(serve: Callable[..., Service]) -> None:
    service, told, notes = serve(fails_twice), Told(), list[str]()
    made = Delivery(["env:HOOK"], tries=2, note=notes.append, results=told)
    made.send(alert(0))
    why = "after 2 tries: it answered 500"
    assert told.next() == ("env:HOOK", f"failed {why}")
    assert notes == [f"alert not delivered to env:HOOK {why}"]
    assert made.troubles == [f"alerts do not reach env:HOOK: failed {why}"]
    [mark] = made.taken_marks()
    assert (mark.name, mark.detail) == ("alert not delivered", f"high_latency (firing) to env:HOOK {why}")
    made.send(alert(1))
    assert told.next() == ("env:HOOK", "delivered")
    assert (made.troubles, made.taken_marks(), len(notes)) == ([], (), 1)
    assert service.count == 3
    made.close()


def test_a_terminal_that_went_away_ends_no_channel(serve: Callable[..., Service]) -> None:
    serve(fails_twice)
    told = Told()
    made = Delivery(["env:HOOK"], tries=1, note=lambda _: 1 / 0, results=told)  # type: ignore[arg-type, return-value]
    for k in range(3):
        made.send(alert(k))
    assert [told.next()[1] for _ in range(3)][-1] == "delivered"
    made.close()


def test_a_trial_says_of_every_service_what_became_of_it(
    serve: Callable[..., Service], capsys: pytest.CaptureFixture[str]
) -> None:
    good, _ = serve(works, "GOOD"), serve(fails, "BAD")
    assert try_out(["env:GOOD"]) == ExitCode.PASS
    assert try_out(["env:BAD", "env:GOOD"]) == ExitCode.BROKEN
    assert capsys.readouterr().out.splitlines() == [
        "env:GOOD: delivered",
        "env:BAD: not delivered: it answered 500",
        "env:GOOD: delivered",
    ]
    first, second = good.bodies(2)
    assert first == second and first["title"] == "EventCore performance alerts: a test"
    with pytest.raises(UsageError, match="add --notify env:NAME"):
        try_out([])


def test_nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HOOK", f"json://127.0.0.1:{taken.getsockname()[1]}/{TOKEN}")
        told = Told()
        made = Delivery(["env:HOOK"], tries=1, results=told)
        made.send(alert())
        assert told.next()[1] == "failed after 1 try: it could not be reached, or gave no answer"
        made.close()


def test_what_got_lost_is_said_with_the_next_message(serve: Callable[..., Service]) -> None:
    service, told = serve(fails_twice), Told()
    made = Delivery(["env:HOOK"], tries=1, results=told)
    for k in range(3):
        made.send(alert(k))
        told.next()
    made.send(alert(3))
    told.next()
    *_, third, fourth = (body["message"] for body in service.bodies(4))
    assert "2 earlier alerts could not be handed over" in third and "earlier" not in fourth
    made.close()


def test_sending_waits_for_nobody_and_the_queue_is_bounded(serve: Callable[..., Service]) -> None:
    service, told = serve(slow_first), Told()
    made = Delivery(["env:HOOK"], timeout_s=PATIENCE_S, queue_max=3, results=told)
    made.send(alert(0))
    service.bodies(1)
    for k in range(1, 1001):
        made.send(alert(k))
    assert service.answered == 0, "all were sent while the first was still on its way"
    assert made.counts["env:HOOK"]["dropped"] == 997
    service.done.set()
    outcomes = [told.next()[1] for _ in range(1 + 3 + 3)]
    assert outcomes.count("delivered") == 4
    assert outcomes.count("dropped: too many were waiting") == 3, (
        "as many as the queue holds are named, all are counted"
    )
    first, *_ = service.bodies(3)
    assert "997 earlier alerts could not be handed over" in first["message"] and "p95 is 998 ms" in first["message"]
    made.close()


def test_a_storm_becomes_one_summary(serve: Callable[..., Service]) -> None:
    service, told = serve(slow_first), Told()
    made = Delivery(["env:HOOK"], timeout_s=PATIENCE_S, per_minute_max=3, results=told)
    made.send(alert(0))
    service.bodies(1)
    for k in range(1, 50):
        made.send(alert(k, severity="warning"))
    service.done.set()
    assert {told.next()[1] for _ in range(50)} == {"delivered"}
    single, summary = service.bodies(2)
    assert single["message"].startswith("p95 is 1 ms")
    assert summary["title"] == "EventCore performance alerts: 48 changes" and summary["type"] == "warning"
    assert summary["message"].startswith("and 28 earlier changes\n") and "p95 is 49 ms" in summary["message"]
    assert service.count == 3
    made.send(alert(50))
    assert made.close(PATIENCE_S) == 0, "what waits for its minute goes at the end"
    assert service.count == 4


def test_one_channel_that_hangs_holds_back_no_other(serve: Callable[..., Service]) -> None:
    bad, good = serve(hangs, "BAD"), serve(works, "GOOD")
    told = Told()
    made = Delivery(["env:BAD", "env:GOOD"], timeout_s=PATIENCE_S, results=told)
    for k in range(5):
        made.send(alert(k))
    assert [told.next() for _ in range(5)] == [("env:GOOD", "delivered")] * 5
    assert (bad.answered, good.answered) == (0, 5)
    made.close(0.01)


def test_closing_waits_no_longer_than_it_may_and_says_what_did_not_go(serve: Callable[..., Service], lab: Lab) -> None:
    service, history, told = serve(hangs), History(lab), Told()

    def kept(*became: Any) -> None:
        history.delivered(*became)
        told(*became)

    made = Delivery(["env:HOOK"], timeout_s=PATIENCE_S, tries=1, results=kept)
    sent = [alert(k) for k in range(5)]
    history.add(sent)
    for one in sent:
        made.send(one)
    service.bodies(1)
    assert made.close(0.05) == 5
    assert service.answered == 0 and not service.done.is_set(), "it still hangs"
    made.send(alert(9))
    assert history.close() and lab.take_alerts() == 5
    assert set(lab.alerts()["delivered"]) == {"env:HOOK: failed: the monitor ended"}
    service.done.set()
    made._far[0].leave(PATIENCE_S)
    assert [told.next()[1] for _ in range(5)] == ["failed: the monitor ended"] * 5
    assert told.is_empty, "what comes of it later is not told a second time"


def test_closing_hands_over_what_waits_as_one_message(serve: Callable[..., Service]) -> None:
    service = serve(slow_first)
    made = Delivery(["env:HOOK"], timeout_s=PATIENCE_S)
    for k in range(10):
        made.send(alert(k))
    service.bodies(1)
    made._far[0].close()  # what `close` begins with
    service.done.set()
    assert made.close(PATIENCE_S) == 0
    assert made.counts["env:HOOK"]["delivered"] == 10 and service.count == 2


def test_closing_does_not_wait_for_another_try(serve: Callable[..., Service], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "BACKOFF_S", 1000.0)
    service, told = serve(fails), Told()
    made = Delivery(["env:HOOK"], results=told)
    made.send(alert())
    service.bodies(1)
    assert made.close(PATIENCE_S) == 0
    assert told.next()[1] == "failed after 1 try: it answered 500"


def test_nothing_is_started_before_there_is_something_to_tell() -> None:
    before = threading.active_count()
    made = Delivery(tell=print)
    assert threading.active_count() == before and made.close() == 0


def test_what_keeps_the_results_may_fail(serve: Callable[..., Service]) -> None:
    serve(works)
    made = Delivery(["env:HOOK"], results=lambda *_: 1 / 0)
    made.send(alert(0))
    made.send(alert(1))
    assert made.close(PATIENCE_S) == 0 and made.counts["env:HOOK"]["delivered"] == 2


class Stuck:
    """A service that no exception reaches, for it waits outside Python."""

    request_rate_per_sec, socket_connect_timeout, socket_read_timeout = 0.0, 4.0, 4.0

    def __init__(self) -> None:
        self.goes_on = threading.Event()

    def notify(self, **_: Any) -> bool:
        return self.goes_on.wait(PATIENCE_S)


def test_only_so_many_tries_hang_at_once_and_then_none_is_begun() -> None:
    service = Stuck()
    channel, message = Channel("env:X", service, 0.01), Message("title", "body", "info")
    for _ in range(STUCK_MAX):
        with pytest.raises(NotDelivered, match="no end after 0.01 s"):
            channel.send(message)
    for _ in range(5):
        with pytest.raises(NotDelivered, match="not tried: earlier tries still hang"):
            channel.send(message)
    assert sum(t.name == TRY for t in threading.enumerate()) == STUCK_MAX
    service.goes_on.set()
    assert not alive()
    Channel("env:X", service, PATIENCE_S).send(message)


def test_a_library_that_raises_is_a_failure_with_the_name_of_the_error_alone() -> None:
    class Raises(Stuck):
        def notify(self, **_: Any) -> bool:
            raise ValueError(TOKEN)

    with pytest.raises(NotDelivered) as error:
        Channel("env:X", Raises(), PATIENCE_S).send(Message("title", "body", "info"))
    assert str(error.value) == "ValueError"


# pace

ARRIVALS = st.lists(st.floats(0, 40), min_size=1, max_size=80)


@given(gaps=ARRIVALS, per_minute_max=st.integers(1, 5), gap_s=st.sampled_from([0.0, 1.2, 5.5]))
def test_in_no_minute_go_more_messages_than_may(gaps: list[float], per_minute_max: int, gap_s: float) -> None:
    pace, now, waiting, sent, carried = Pace(per_minute_max, gap_s), 0.0, 0, [], 0
    for gap in gaps:
        now, waiting = now + gap, waiting + 3
        while waiting and not pace.wait_s(now):
            taken = pace.take(now, waiting)
            waiting, carried = waiting - taken, carried + taken
            sent.append(now)
    assert all(sent[k + per_minute_max] - sent[k] >= MINUTE_S - 1e-6 for k in range(len(sent) - per_minute_max))
    assert all(b - a >= gap_s - 1e-6 for a, b in pairwise(sent))
    assert carried + waiting == 3 * len(gaps)
    now += MINUTE_S
    assert not waiting or not pace.wait_s(now)


# what is read

HOSTILE = (
    "@channel @all @here @everyone",
    "<!channel> <!here|x> <@U123> <#C1>",
    "```code``` `x`",
    "one\ntwo\r\n# three\n| a | b |\n|--|--|",
    "‮gnp.exe‬ ⁦x⁩ \x1b[31mred\x1b[0m \x00\x07",
    "[click](https://evil.example/x) ![i](http://evil.example/i.png) www.evil.example <https://evil.example|x>",
    "x" * 10_000,
    "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "**bold** ~~no~~ __under__ \\@channel",
    "\ud800 lone",
)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_is_harmless_in_a_chat(serve: Callable[..., Service], name: str) -> None:
    service, told = serve(works, scheme="mmost", path="/3ccdd113474722377935511fc85d3dd4"), Told()
    made = Delivery(["env:HOOK"], results=told)
    made.send(alert(73, name=name, text=f"p95 of {name}", detail=f"so {name}", run_id=name))
    assert told.next()[1] == "delivered"
    [body] = service.bodies(1)
    assert set(body) == {"text", "username"} and body["username"] == "eventcore_lab"
    text = body["text"]
    assert "EventCore performance alert: " in text and "p95 of " in text
    assert not set(text) & set("@`<>|[]*~#\\\x1b\x00\x07‮⁦") and "://" not in text and "www." not in text
    assert len(text.splitlines()) == 5 and len(text) < 2000
    made.close()


def test_slack_gets_a_message_that_mentions_nobody(
    serve: Callable[..., Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The chapter's SLACK_WEBHOOK_URL, as Slack gives it."""
    service = serve(works)
    monkeypatch.setenv("SLACK_WEBHOOK_URL", f"https://hooks.slack.com/services/T1JJ3T3L2/A1BRTD4JD/{TOKEN}x")
    [channel] = channels_of(["env:SLACK_WEBHOOK_URL"], 10.0)
    assert type(channel._service).__name__ == "NotifySlack" and channel.gap_s > 0
    channel._service.webhook_url = service.url("http", "/services")
    with pytest.raises(NotDelivered):  # this one is answered as no Slack answers, but it was posted
        channel.send(message_of(alert(1, name="<!channel> @here & co")))
        raise NotDelivered
    [body] = service.bodies(1)
    said = json.dumps(body, ensure_ascii=False)
    assert "p95 is 1 ms" in said and "<!" not in said and "&lt;!" not in said and "@" not in said


@given(st.text(max_size=300))
def test_a_line_is_one_line_of_plain_text(text: str) -> None:
    line = plain(text, 100)
    assert len(line) <= 100 and line.isprintable()
    assert not set(line) & set("@`|[]*~#\\")
    line.encode()


def test_a_comparison_keeps_its_sign() -> None:
    assert plain("p95 is 90 ms, limit < 50 ms or > 3") == "p95 is 90 ms, limit < 50 ms or > 3"


def test_messages_are_short_however_much_there_is_to_say() -> None:
    long = [alert(k, name="n" * 9999, text="t" * 9999, detail="d" * 9999, run_id="r" * 9999) for k in range(500)]
    assert len("".join(message_of(long[0])[:2])) < 2000
    assert len(summary_of(long).body) < 20 * 800 and summary_of(long).title.endswith("500 changes")
    assert message_of(alert(since=1e300)).body


# secrets


@pytest.mark.parametrize(
    ("named", "value", "says"),
    [
        (f"https://hooks.slack.com/services/A/B/{TOKEN}", "", "write env:NAME"),
        (f"json://user:{TOKEN}@host/", "", "write env:NAME"),
        ("env:HOOK", "", "the variable is empty; export HOOK="),
        ("env:HOOK", f"nothing://{TOKEN}", "Apprise knows no such address"),
        ("env:HOOK", TOKEN, "Apprise knows no such address"),
        ("env:HOOK", f"https://example.com/{TOKEN}", "Apprise knows no such address"),
        ("env:HOOK", f"json://localhost/ok nothing://{TOKEN}", "Apprise knows no such address"),
        ("env:HOOK", f"slack://{TOKEN}", "Apprise knows no such address"),
        ("env:HOOK", " ".join(f"json://localhost/{k}/{TOKEN}" for k in range(21)), "20 is the most"),
    ],
)
def test_a_mistaken_address_is_told_without_the_address(
    named: str, value: str, says: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("HOOK", value)
    with pytest.raises(UsageError) as error:
        Delivery([named])
    assert says in str(error.value) and TOKEN not in repr(error.value) and "\n" not in str(error.value)
    assert error.value.__cause__ is None and TOKEN not in caplog.text


def test_several_addresses_in_one_variable_are_several_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOOKS", f"json://localhost/{TOKEN}, jsons://localhost/{TOKEN}")
    found = channels_of(["env:HOOKS", "env:HOOKS"], 10.0)
    assert [c.name for c in found] == ["env:HOOKS 1", "env:HOOKS 2"]


def test_no_address_is_logged_printed_kept_or_named(
    serve: Callable[..., Service],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    lab: Lab,
    tmp_path: Path,
) -> None:
    caplog.set_level(logging.NOTSET + 1)
    for name in ("apprise", "urllib3", "urllib3.connectionpool", "requests"):
        caplog.set_level(1, name)
    history, told, lines, names = History(lab), Told(), [], []
    behaviours = {"WORKS": works, "FAILS": fails, "RESETS": resets, "MOVES": moves, "TRICKLES": trickles}
    for name, behaviour in behaviours.items():
        service = serve(behaviour, name)
        port = service.server_port
        monkeypatch.setenv(name, f"json://user:{TOKEN}@127.0.0.1:{port}/{TOKEN}?-key={TOKEN}&+X-Key={TOKEN}")

    def kept(*became: Any) -> None:
        history.delivered(*became)
        told(*became)

    *answered, trickled = (f"env:{name}" for name in behaviours)
    made = Delivery(answered, timeout_s=PATIENCE_S, tries=2, tell=lines.append, results=kept)
    slow = Delivery([trickled], timeout_s=0.2, tries=2, results=kept)
    history.add([alert(1)])
    for one in (made, slow):
        one.send(alert(1))
    names += [t.name for t in threading.enumerate()]
    for _ in behaviours:
        told.next()
    for one in (made, slow):
        one.close(PATIENCE_S)
    assert not alive() and history.close() and lab.take_alerts() == 1
    logging.getLogger("apprise").warning("whoever else uses Apprise is still heard")
    assert "is still heard" in caplog.text and "critical firing: high_latency" in caplog.text
    became = lab.alerts()["delivered"].item()
    assert "env:WORKS: delivered" in became and "env:FAILS: failed after 2 tries: it answered 500" in became
    printed = "".join(capfd.readouterr())
    said = "\n".join(
        [caplog.text, repr(caplog.records), printed, became, repr(made), repr(made.counts), *lines, *names]
    )
    assert TOKEN not in said and str(port) not in said
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert written and not any(TOKEN.encode() in content for content in written)


def test_apprise_is_not_loaded_for_nobody() -> None:
    import subprocess
    import sys

    code = (
        "import sys; from eventcore_lab.monitor.delivery import Delivery; Delivery(); print('apprise' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_try_that_is_given_up_leaves_the_filter_of_others_alone() -> None:
    record = logging.LogRecord("apprise", logging.WARNING, __file__, 1, "text", None, None)
    assert channels._is_not_ours(record)
