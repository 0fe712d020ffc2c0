"""The monitor's beat: once a second look, add it up, judge, tell whoever listens. One look at a time; one that hangs or fails
is noted and the beat goes on, so that what is shown says so instead of standing still.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Protocol

from msgspec import Raw

from eventcore_lab.clock import NS_PER_S, now_ns, sleep_s, three_clocks_ns
from eventcore_lab.monitor import wire
from eventcore_lab.monitor.alerts import Alerts, Rule
from eventcore_lab.monitor.facts import Alert, Mark, News, Second, Source
from eventcore_lab.monitor.health import Health, Watch, health
from eventcore_lab.monitor.metrics import Metrics, Own
from eventcore_lab.monitor.state import State

BEAT_S = 1.0
ALERTS_KEPT = 200
log = logging.getLogger("eventcore_lab.monitor")


class Judge(Protocol):
    """Alerts, as far as they are asked here."""

    @property
    def rules(self) -> Sequence[Rule]: ...
    def look(self, now: float, state: State) -> list[Alert]: ...
    def states(self) -> dict[str, str]: ...


def unix_s() -> float:
    """The wall clock, s."""
    return three_clocks_ns()[1] / NS_PER_S


class Watching:
    """What the monitor knows now, and the beat that renews it. `tell` is given every change of an alert and must return at
    once; `is_held` says whether a live process holds the folder of a run; `troubles` what else is amiss, a line each; `marks`
    gives what was not told before of what happened beside the looking; `deliveries` see metrics.Own."""

    def __init__(
        self,
        source: Source,
        state: State,
        alerts: Judge | None = None,
        *,
        tell: Callable[[Sequence[Alert]], None] | None = None,
        is_held: Callable[[str], bool | None] | None = None,
        troubles: Callable[[], Sequence[str]] = tuple,
        marks: Callable[[], Sequence[Mark]] = tuple,
        deliveries: Callable[[], Mapping[str, Mapping[str, int]]] = dict,
        clock: Callable[[], float] = unix_s,
    ) -> None:
        self.source, self.state, self._judge = source, state, alerts or Alerts(())
        self._tell, self._is_held, self._troubles, self.clock = tell, is_held, troubles, clock
        self._marks, self._deliveries = marks, deliveries
        self.alerts: deque[Alert] = deque(maxlen=ALERTS_KEPT)
        self.looks = self.errors = self.beats = 0
        self.listeners: set[Callable[[bytes], None]] = set()
        self._seconds: deque[Raw] = deque(maxlen=state.history.maxlen)
        self._looked_ns: int | None = None
        self._ended_ns = now_ns()
        self._run_id = self._trouble = ""
        self._look: asyncio.Task[News] | None = None
        self._said: dict[str, int] = {}
        self._hello: tuple[int, bytes] = (-1, b"")
        self._metrics: dict[str, tuple[int, bytes]] = {}

    async def run(self) -> None:
        """Beat until cancelled."""
        due_ns = now_ns()
        try:
            while True:
                await self._beaten()
                due_ns = max(due_ns + int(BEAT_S * NS_PER_S), now_ns())
                await sleep_s((due_ns - now_ns()) / NS_PER_S)
        finally:
            await self._over()

    async def _beaten(self) -> None:
        """A beat that goes wrong is said, here and by /health, and is not the last."""
        try:
            await self.beat()
            self._trouble = ""
        except Exception as error:
            self._trouble = f"a beat failed: {type(error).__name__}"
            self._say_once(self._trouble)

    async def beat(self) -> None:
        """One second's work: what the look brought, if it came back in time, what follows from it, and a frame for all."""
        if self._look is None:
            self._look = asyncio.ensure_future(self.source.look())
        await asyncio.wait([self._look], timeout=BEAT_S)
        seconds, marks = self._taken() if self._look.done() else ((), ())
        self.state.age(self.clock())
        self.state.marks.extend(own := self._marks())
        changes = self._judged()
        self.beats += 1
        self._seconds.extend(encoded := [wire.encoded(second) for second in seconds])
        frame = wire.second(self.clock(), self.state, encoded, (*marks, *own), changes, self.health())
        for listener in tuple(self.listeners):
            try:
                listener(frame)
            except Exception as error:  # of one that is gone: the others are told all the same
                self.listeners.discard(listener)
                self._say_once(f"a dashboard could not be told: {type(error).__name__}")

    def hello(self) -> bytes:
        """Everything, for somebody who comes new; made once for all who come between two beats."""
        if self._hello[0] != self.beats:
            made = wire.hello(self.clock(), self.state, tuple(self._seconds), tuple(self.alerts), self.health())
            self._hello = self.beats, made
        return self._hello[1]

    def metrics(self, kind: str) -> bytes:
        """The exposition of a content type; made once between two beats, however many ask."""
        if self._metrics.get(kind, (-1,))[0] != self.beats:
            own = Own(
                health=self.health(),
                look_age_s=self.look_age_s,
                looks=self.looks,
                errors=self.errors,
                dashboards=len(self.listeners),
                firing=self._firing(),
                deliveries=self._deliveries(),
            )
            self._metrics[kind] = self.beats, wire.blanked(Metrics(self.state, own, self.clock()).text(kind))
        return self._metrics[kind][1]

    @property
    def look_age_s(self) -> float:
        return math.inf if self._looked_ns is None else (now_ns() - self._looked_ns) / NS_PER_S

    def health(self) -> Health:
        watched, is_held = self.state.watched, None
        if watched is not None and self.state.is_loaded and self._is_held is not None:
            is_held = self._is_held(watched.run_id)
        watch = Watch(
            look_age_s=self.look_age_s,
            since_ended_s=(now_ns() - self._ended_ns) / NS_PER_S,
            is_held=is_held,
            troubles=(*filter(None, (self._trouble,)), *self._troubles()),
        )
        return health(self.state, watch, self.clock())

    def _taken(self) -> tuple[Sequence[Second], Sequence[Mark]]:
        """What came of the look that is done."""
        look, self._look = self._look, None
        assert look is not None
        self.looks += 1
        try:
            news = look.result()
            seconds = self.state.add(news)
        except Exception as error:  # of a source that broke its promise: nothing here may end the monitor
            self.errors += 1
            self._say_once(f"a look failed: {type(error).__name__}")
            return (), ()
        self._looked_ns = now_ns()
        self.errors += bool(news.error)
        run_id = news.watched.run_id if news.watched is not None else ""
        if len(news.rows) or run_id != self._run_id or not self.state.is_loaded:
            self._run_id, self._ended_ns = run_id, now_ns()
        return seconds, news.marks

    def _firing(self) -> dict[str, tuple[str, bool]]:
        states = self._judge.states()
        return {rule.name: (rule.severity, states.get(rule.name) == "firing") for rule in self._judge.rules}

    def _judged(self) -> list[Alert]:
        try:
            changes = self._judge.look(self.clock(), self.state)
            self.alerts.extend(changes)
            if changes and self._tell is not None:
                self._tell(changes)
        except Exception as error:
            self._say_once(f"alerts could not be judged: {type(error).__name__}")
            return []
        return changes

    def _say_once(self, text: str) -> None:
        """To the log, the first time; how often is in the metrics."""
        self._said[text] = self._said.get(text, 0) + 1
        if self._said[text] == 1:
            log.warning("%s (said once)", text, exc_info=log.isEnabledFor(logging.DEBUG))

    async def _over(self) -> None:
        if self._look is not None:
            self._look.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await self._look
        with suppress(Exception):
            await self.source.close()
