"""A monitor from its beginning to its end: everything made from one order, the beat and the server run, all let go.

Beside a run it is a process of its own, `python -m eventcore_lab.monitor`, told by one JSON line on standard input what to do,
and ends when that input closes: its parent is gone. Secrets are never in the order but in variables that it names.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from eventcore_lab.clock import sleep_s
from eventcore_lab.lab.database import Lab
from eventcore_lab.lab.targets import Targets
from eventcore_lab.load.folders import is_held
from eventcore_lab.monitor.access import Access, is_loopback
from eventcore_lab.monitor.alerts import Alerts, in_vain, rules_of
from eventcore_lab.monitor.delivery import Delivery
from eventcore_lab.monitor.facts import Alert, Source
from eventcore_lab.monitor.history import History
from eventcore_lab.monitor.server import Server
from eventcore_lab.monitor.state import State
from eventcore_lab.monitor.watching import Watching
from eventcore_lab.schema import LOCK_FILE
from eventcore_lab.spec import UsageError, shown

PORT, PORTS_TRIED = 8765, 20
WINDOW_S = (1.0, 3600.0)
CLOSE_TIMEOUT_S, LAST_LOOK_S, POLL_S = 5.0, 2.5, 0.1
BACKLOG_MAX = 100
TAKE_EVERY_S = 60.0
NICENESS = 19
ORDER_BYTES_MAX = 65536
Say = Callable[..., None]
log = logging.getLogger("eventcore_lab.monitor")


class Order(Struct, frozen=True, kw_only=True):
    """What a monitor is to do; the names are those of the command line. `store` empty: it watches the runs of the Lab. `tries`:
    how many ports from `port` on may be taken instead. `is_beside`: a run goes on here, which comes first. `seconds`: for how
    long, 0 until it is ended."""

    lab: str
    store: str = ""
    targets: str = "production"
    window_s: float = 30.0
    host: str = "127.0.0.1"
    port: int = PORT
    tries: int = 1
    token: str = ""
    allowed_hosts: tuple[str, ...] = ()
    alerts: str = ""
    has_alerts: bool = True
    notify: tuple[str, ...] = ()
    seconds: float = 0.0
    is_beside: bool = False


class Monitor:
    """Everything an order asks for, made; UsageError if it cannot be. `run` until `ended` is set."""

    def __init__(self, order: Order, say: Say) -> None:
        low, high = WINDOW_S
        if not low <= order.window_s <= high:
            raise UsageError(f"--window must be from {low:g} to {high:g} seconds, not {order.window_s:g}")
        self.order, self._say = order, say
        targets = Targets.load(order.targets) if order.targets else None
        self._access = Access.of(order.host, order.token, order.allowed_hosts)
        self._alerts = Alerts(rules_of(targets, order.alerts) if order.has_alerts else [], enabled=order.has_alerts)
        self._lab = Lab(order.lab)
        if self._lab.path.is_dir():
            raise UsageError(f"--lab {shown(order.lab)} is a folder; give the file of results in it, as in lab.duckdb")
        self._kept = _Kept(self._lab, order.is_beside)
        self._begin: Callable[[], Awaitable[None]] | None = None
        self._delivery = Delivery(
            order.notify,
            tell=lambda text: say("alert", text=text),
            note=self._note,
            results=self._kept.history.delivered,
        )
        self._watching = Watching(
            self._source(),
            State(targets, order.window_s),
            self._alerts,
            tell=self._changed,
            is_held=self._is_held,
            troubles=lambda: (*self._kept.troubles, *self._delivery.troubles),
            marks=self._delivery.taken_marks,
            deliveries=lambda: self._delivery.counts,
        )
        self.ended = asyncio.Event()

    async def run(self) -> None:
        """Listen, say where, and beat until the end; then let go of everything, within a bound."""
        order = self.order
        server = Server(self._watching, self._access)
        server.listen(order.host, order.port, order.tries)
        try:
            if self._begin is not None:
                await self._begin()
        except UsageError:
            await server.close()
            raise
        tasks = [asyncio.ensure_future(self._watching.run()), asyncio.ensure_future(self._kept.taking_in())]
        self._say(
            "ready",
            url=self._url(server.port),
            port=server.port,
            lab=order.lab,
            is_empty=not order.store and not self._lab.spool.is_dir(),
            has_token=bool(self._access.token),
            has_name=is_loopback(order.host) or bool(self._access.names),
        )
        if order.store and (line := in_vain(self._alerts.rules)):
            self._note(line)
        with suppress(TimeoutError):
            await asyncio.wait_for(self.ended.wait(), order.seconds or None)
        await self._looked_once_more()
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks, timeout=CLOSE_TIMEOUT_S)
        self._changed(self._alerts.leave(self._watching.clock()))
        await server.close()
        await asyncio.to_thread(self._delivery.close, CLOSE_TIMEOUT_S)
        await asyncio.to_thread(self._kept.close)

    async def _looked_once_more(self) -> None:
        """A run ends a moment before the monitor beside it: an alert that fires is to end with the run. Bounded."""
        enough = self._watching.beats + 2  # the look that is under way may have begun before
        for _ in range(round(LAST_LOOK_S / POLL_S)):
            fires = self.order.is_beside and "firing" in self._alerts.states().values()
            if not fires or self._watching.beats >= enough:
                return
            await sleep_s(POLL_S)

    def _note(self, text: str) -> None:
        self._say("note", text=text)

    def _url(self, port: int) -> str:
        host = self.order.host.strip("[]")
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        return f"http://{f'[{host}]' if ':' in host else host}:{port}/dashboard"

    def _source(self) -> Source:
        if self.order.store:
            from eventcore_lab.monitor.observe import Observed

            observed = Observed(self.order.store, self._note)
            self._begin = observed.begin
            return observed
        from eventcore_lab.monitor.follow import Followed

        return Followed(self._lab.spool, self._lab)

    def _is_held(self, run_id: str) -> bool | None:
        return _is_held(self._lab.spool / run_id / LOCK_FILE)

    def _changed(self, alerts: Sequence[Alert]) -> None:
        """Hand on what has changed: to the Lab, and to those who are to be told."""
        self._kept.add(alerts)
        for alert in alerts:
            self._delivery.send(alert)


class _Kept:
    """The history of alerts, written by a thread of its own: what waits for a disk, or for the Lab, is never the beat."""

    def __init__(self, lab: Lab, is_beside: bool) -> None:
        self.history, self._is_beside = History(lab), is_beside
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="alert history")
        self._waiting = self._left_out = 0

    @property
    def troubles(self) -> Sequence[str]:
        return (f"{self._left_out} changes of alerts were not kept: the disk was too slow",) if self._left_out else ()

    def add(self, alerts: Sequence[Alert]) -> None:
        if self._waiting >= BACKLOG_MAX:
            self._left_out += len(alerts)
            return
        self._waiting += 1
        self._thread.submit(self._written, tuple(alerts))

    def _written(self, alerts: Sequence[Alert]) -> None:
        self.history.add(alerts)
        self._waiting -= 1

    async def taking_in(self) -> None:
        """Have the Lab take in what is new, now and then, until cancelled. Beside a run nobody but the run may hold the Lab's
        file: it takes them in, with its runs."""
        while not self._is_beside:
            await sleep_s(TAKE_EVERY_S)
            await asyncio.wrap_future(self._thread.submit(self.history.take_in))

    def close(self) -> None:
        self._thread.shutdown(wait=True)
        self.history.close()
        self.history.take_in()


def _is_held(lock: Path) -> bool | None:
    """Whether a live process holds this lock; None if there is no such file."""
    try:
        return is_held(lock)
    except OSError:
        return None


async def monitored(order: Order, say: Say, is_child: bool = False) -> None:
    """A whole monitor. SIGTERM ends it; so does the end of the input of a child, else SIGINT, which a child leaves to its
    parent."""
    monitor = Monitor(order, say)
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, monitor.ended.set)
    if is_child:
        gone = asyncio.ensure_future(_input_closed())
        gone.add_done_callback(lambda _: monitor.ended.set())
    else:
        loop.add_signal_handler(signal.SIGINT, monitor.ended.set)
    await monitor.run()


def _step_back() -> None:
    """Take what processor time others leave, and interrupt nobody for it: SCHED_BATCH does not preempt when it wakes up."""
    os.nice(NICENESS)
    if hasattr(os, "SCHED_BATCH"):
        with suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def run_process() -> None:
    """Entry point of `python -m eventcore_lab.monitor`: an order on standard input, events as JSON lines on standard output."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    order = msgspec.json.decode(sys.stdin.buffer.readline(ORDER_BYTES_MAX), type=Order)
    if order.is_beside:
        _step_back()
    try:
        asyncio.run(monitored(order, _said, is_child=True))
    except UsageError as error:
        _said("broken", kind="usage", message=str(error))
        sys.exit(2)


def _said(event: str, **facts: Any) -> None:
    """One JSON line; nobody reads it any longer if the parent is gone, and then the input closes, too."""
    with suppress(OSError, ValueError):
        sys.stdout.buffer.write(msgspec.json.encode({"event": event, **facts}) + b"\n")
        sys.stdout.buffer.flush()


async def _input_closed() -> None:
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while await reader.read(1024):
        pass
