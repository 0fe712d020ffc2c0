"""Handing alerts on: to the log, the terminal and whatever Apprise reaches, off the path of whoever found them.

`send` only puts an alert into a queue for each channel, and a daemon thread per channel does the rest: so a server that hangs
holds back nobody, and no other channel either. Everything has a bound: the queue (the oldest is dropped, counted, and the next
message says so), the messages a minute (what is more goes into one summary), the tries and the time of each. Delivery is at
least once: a server that took a message and did not say so in time is given it again. What did not reach is told: a line to
the terminal, a mark, and a trouble of the monitor's until something reaches that service again.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from threading import Condition, Thread

from eventcore_lab.clock import NS_PER_S, now_ns, three_clocks_ns
from eventcore_lab.monitor.alerts import is_notice
from eventcore_lab.monitor.channels import Channel, NotDelivered, channels_of
from eventcore_lab.monitor.facts import Alert, Mark
from eventcore_lab.monitor.messages import line_of, message_of, plain, summary_of, trial

MINUTE_S = 60.0
BACKOFF_S, BACKOFF_MAX_S = 1.0, 30.0
LOST_MAX = 100
"""Marks of what did not reach that are kept until somebody takes them."""
_LEVELS = {"info": logging.INFO, "warning": logging.WARNING, "critical": logging.CRITICAL}

log = logging.getLogger("eventcore_lab.alerts")
log.addHandler(logging.NullHandler())  # without a configuration the terminal's line is enough

Results = Callable[[Alert, str, str], None]
"""Told of each alert and channel what became of it: `delivered`, `failed after 3 tries: it answered 500`, `dropped: …`."""


class Pace:
    """How many messages may go in any minute, and how far apart; pure of clocks."""

    def __init__(self, per_minute_max: int, gap_s: float = 0.0) -> None:
        self._per_minute_max, self._gap_s = per_minute_max, gap_s
        self._sent: deque[float] = deque(maxlen=per_minute_max)

    def wait_s(self, now: float) -> float:
        """How long to wait before the next message."""
        waits = [self._sent[-1] + self._gap_s - now] if self._sent else []
        if len(self._sent) == self._per_minute_max:
            waits.append(self._sent[0] + MINUTE_S - now)
        return max(0.0, *waits, 0.0)

    def take(self, now: float, waiting: int) -> int:
        """How many of the alerts that wait the next message takes, and that it goes now: one; all with the minute's last."""
        while self._sent and self._sent[0] + MINUTE_S <= now:
            self._sent.popleft()
        is_last = len(self._sent) >= self._per_minute_max - 1
        self._sent.append(now)
        return waiting if is_last else 1


class _Lane:
    """The queue of one channel, and the thread that empties it. `hand` delivers alerts, or raises NotDelivered."""

    def __init__(
        self,
        name: str,
        hand: Callable[[list[Alert], str], None],
        pace: Pace | None,
        tries: int,
        queue_max: int,
        results: Results | None,
        lost: Callable[[str, str, Sequence[Alert]], None] | None = None,
    ) -> None:
        """`lost` is told of what did not reach: the lane's name, why, and which."""
        self.name, self._hand, self._pace, self._tries, self._queue_max = name, hand, pace, tries, queue_max
        self._results, self._lost, self.trouble = results, lost, ""
        self._waiting: deque[Alert] = deque()
        self._dropped: deque[Alert] = deque(maxlen=queue_max)
        self._in_hand: list[Alert] = []
        self._changed, self._is_closing, self._is_left = Condition(), False, False
        self._thread: Thread | None = None
        self._unsaid = 0
        self.counts = {"delivered": 0, "failed": 0, "dropped": 0}

    def add(self, alert: Alert) -> None:
        with self._changed:
            if self._is_closing:
                return
            if len(self._waiting) >= self._queue_max:
                self._dropped.append(self._waiting.popleft())
                self.counts["dropped"] += 1
                self._unsaid += 1
            self._waiting.append(alert)
            if self._thread is None:
                self._thread = Thread(target=self._run, name=f"alerts to {self.name}", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def _run(self) -> None:
        while alerts := self._next():
            self._deliver(alerts)

    def _next(self) -> list[Alert]:
        """What the next message is about, when its time has come; nothing when it is over."""
        with self._changed:
            while True:
                wait_s = None
                if self._waiting:
                    now = now_ns() / NS_PER_S
                    wait_s = self._pace.wait_s(now) if self._pace is not None and not self._is_closing else 0.0
                    if not wait_s:
                        count = self._pace.take(now, len(self._waiting)) if self._pace is not None else 1
                        count = len(self._waiting) if self._is_closing else count
                        self._in_hand = [self._waiting.popleft() for _ in range(count)]
                        return self._in_hand
                elif self._is_closing:
                    return []
                self._changed.wait(wait_s)

    def _deliver(self, alerts: list[Alert]) -> None:
        self._tell_dropped()
        unsaid, outcome, tries = self._unsaid, "", 0
        note = f"{unsaid} earlier alert{'s' if unsaid > 1 else ''} could not be handed over" if unsaid else ""
        while tries < self._tries:
            tries += 1
            try:
                self._hand(alerts, note)
                outcome = ""
                break
            except NotDelivered as error:
                outcome = str(error)
            except Exception as error:  # a library's own; its text may hold an address
                outcome = type(error).__name__
            if not self._rested(tries):
                break
        outcome = f"failed after {tries} tr{'ies' if tries > 1 else 'y'}: {outcome}" if outcome else "delivered"
        with self._changed:
            if self._is_left:
                return  # it was said that these did not go
            self._unsaid += len(alerts) if outcome != "delivered" else -unsaid
            self.counts["delivered" if outcome == "delivered" else "failed"] += len(alerts)
            self._in_hand = []
        self._tell(alerts, outcome)

    def _rested(self, tries: int) -> bool:
        """Wait before the next try; whether there is to be one."""
        wait_s = min(BACKOFF_S * 2 ** (tries - 1), BACKOFF_MAX_S)
        with self._changed:
            return tries < self._tries and not self._changed.wait_for(lambda: self._is_closing, wait_s)

    def _tell_dropped(self) -> None:
        with self._changed:
            dropped = list(self._dropped)
            self._dropped.clear()
        self._tell(dropped, "dropped: too many were waiting")

    def _tell(self, alerts: Sequence[Alert], outcome: str) -> None:
        if not alerts:
            return
        is_lost = outcome != "delivered"
        self.trouble = f"alerts do not reach {self.name}: {outcome}" if is_lost else ""
        if is_lost and self._lost is not None:
            self._lost(self.name, outcome, alerts)
        if self._results is None:
            return
        for alert in alerts:
            try:
                self._results(alert, self.name, outcome)
            except Exception as error:
                log.error("what became of an alert could not be kept: %s", type(error).__name__)

    def close(self) -> None:
        """No more is taken; what waits goes as one message, without waiting and with one try."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()

    def leave(self, timeout_s: float) -> int:
        """Wait for the thread, and give up what it has not handed over by then; gives how many those are."""
        if self._thread is not None:
            self._thread.join(max(timeout_s, 0.0))
        self._tell_dropped()
        with self._changed:
            left, self._is_left = [*self._in_hand, *self._waiting], True
            self._in_hand = []
            self._waiting.clear()
            self.counts["failed"] += len(left)
        self._tell(left, "failed: the monitor ended")
        return len(left)


class Delivery:
    """Every channel: the log, `tell` with a line for the terminal, and the services that `urls` name (`env:NAME`). Of log and
    terminal each change is told, of the services what fires and how it ended. `note` is given a line for the terminal of what
    did not reach. Raises UsageError."""

    def __init__(
        self,
        urls: Sequence[str] = (),
        *,
        timeout_s: float = 10.0,
        tries: int = 3,
        queue_max: int = 100,
        per_minute_max: int = 20,
        tell: Callable[[str], None] | None = None,
        note: Callable[[str], None] | None = None,
        results: Results | None = None,
    ) -> None:
        self._note = note
        self._marks: deque[Mark] = deque(maxlen=LOST_MAX)
        self._near = [_Lane("log", _each(_logged), None, 1, queue_max, None)]
        if tell is not None:
            self._near.append(_Lane("terminal", _each(lambda alert: tell(line_of(alert))), None, 1, queue_max, None))
        self._far = [
            _Lane(c.name, _handed_to(c), Pace(per_minute_max, c.gap_s), tries, queue_max, results, self._lost)
            for c in channels_of(urls, timeout_s)
        ]

    def __repr__(self) -> str:
        return f"Delivery(to {', '.join(lane.name for lane in (*self._near, *self._far))})"

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """Of each service how many alerts were delivered, failed, and dropped because too many were waiting."""
        return {lane.name: dict(lane.counts) for lane in self._far}

    @property
    def troubles(self) -> list[str]:
        """The services that the newest alert did not reach, a line each."""
        return [lane.trouble for lane in self._far if lane.trouble]

    def taken_marks(self) -> tuple[Mark, ...]:
        """What did not reach since this was last asked."""
        taken = []
        while self._marks:
            taken.append(self._marks.popleft())
        return tuple(taken)

    def _lost(self, name: str, outcome: str, alerts: Sequence[Alert]) -> None:
        """From a lane's thread."""
        is_tried = outcome.startswith("failed after")
        told = f"{name} {outcome.removeprefix('failed ')}" if is_tried else f"{name}: {outcome.partition(': ')[2]}"
        what = "alert" if len(alerts) == 1 else f"{len(alerts)} alerts"
        named = ", ".join(dict.fromkeys(f"{plain(a.name, 60)} ({a.state})" for a in alerts[-3:]))
        self._marks.append(Mark(three_clocks_ns()[1] / NS_PER_S, "alert not delivered", f"{named} to {told}"))
        if self._note is not None:
            with suppress(Exception):  # a terminal that went away ends no lane
                self._note(f"{what} not delivered to {told}")

    def send(self, alert: Alert) -> None:
        """Have it told; returns at once."""
        for lane in (*self._near, *(self._far if is_notice(alert) else ())):
            lane.add(alert)

    def close(self, timeout_s: float = 5.0) -> int:
        """Hand over what still waits, within `timeout_s`; gives how many messages to services that did not reach."""
        lanes, deadline_ns = (*self._far, *self._near), now_ns() + int(timeout_s * NS_PER_S)
        for lane in lanes:
            lane.close()
        left = [lane.leave((deadline_ns - now_ns()) / NS_PER_S) for lane in lanes]
        return sum(left[: len(self._far)])


def tried(urls: Sequence[str], timeout_s: float = 10.0) -> dict[str, str]:
    """One message for a trial through each service; what became of it: `delivered`, or why not. Raises UsageError."""
    found = {}
    for channel in channels_of(urls, timeout_s):
        try:
            channel.send(trial())
            found[channel.name] = "delivered"
        except NotDelivered as error:
            found[channel.name] = f"not delivered: {error}"
    return found


def _handed_to(channel: Channel) -> Callable[[list[Alert], str], None]:
    def hand(alerts: list[Alert], note: str) -> None:
        channel.send(message_of(alerts[0], note) if len(alerts) == 1 else summary_of(alerts, note))

    return hand


def _each(told: Callable[[Alert], None]) -> Callable[[list[Alert], str], None]:
    def hand(alerts: list[Alert], _: str) -> None:
        for alert in alerts:
            told(alert)

    return hand


def _logged(alert: Alert) -> None:
    level = _LEVELS.get(alert.severity, logging.WARNING) if alert.state == "firing" else logging.INFO
    log.log(level, "%s", line_of(alert))
