"""Numbers of a run that are no figures by which targets judge: how often a cache had what was asked for, bytes per command,
events read per second. Arms, views and claims are told of them as if they were figures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, cast

from msgspec import Struct

from eventcore_lab.lab import views
from eventcore_lab.lab.arms import Arm, Value, ratio
from eventcore_lab.lab.claims import Claim, of_trials, settled
from eventcore_lab.lab.measures import Figure, Run
from eventcore_lab.lab.picture import Picture
from eventcore_lab.lab.stats import Estimate
from eventcore_lab.lab.wording import said


class Number(Struct, frozen=True):
    """`of` a run, in `unit`; `words` are what stands at an axis."""

    name: str
    words: str
    unit: str
    of: Callable[[Run], Estimate]

    def together(self, runs: Sequence[Run]) -> Estimate:
        """Over all trials, as `Arm.estimate` has it."""
        return Arm("", tuple(self._seen(runs))).estimate(self.name)

    def times(self, of: Sequence[Run], to: Sequence[Run]) -> Estimate:
        """How many times that of `to` it is of `of`, as `arms.ratio` has it."""
        return ratio(self._seen(of), self._seen(to), self.name)

    def claim(
        self,
        topic: str,
        text: str,
        of: Sequence[Run],
        to: Sequence[Run] = (),
        *,
        at_least: float | None = None,
        at_most: float | None = None,
    ) -> Claim:
        """That it is at least, or at most, so much; or so many times what it is of the runs `to` (as `claims.claim` has it)."""
        found = self.times(of, to) if to else self.together(of)
        reason = f"{self.name}: {self.said(of)}" + (f" to {self.said(to)}" if to else "")
        unit = "times" if to else self.unit
        made = settled(topic, text, found, unit, reason, of[0].run_id, at_least=at_least, at_most=at_most)
        return of_trials(made, min(len(of), len(to))) if to else made

    def said(self, runs: Sequence[Run]) -> str:
        """Its value with its unit, and its interval if it has one, for people."""
        return said(self.together(runs), self.unit)

    def along(self, runs: Sequence[Run], by: str, lines: str = "", label: str = "", **options: Any) -> Picture:
        """As `views.along`."""
        self._named()
        return views.along(self._seen(runs), by, self.name, lines, label=label, **options)

    def side_by_side(self, runs: Sequence[Run], by: str, names: dict[Value, str] | None = None) -> Picture:
        """As `views.side_by_side`."""
        self._named()
        return views.side_by_side(self._seen(runs), by, self.name, names=names)

    def _named(self) -> None:
        views.WORDS.setdefault(self.name, self.words)

    def _seen(self, runs: Sequence[Run]) -> list[Run]:
        return [cast(Run, _Seen(run, self)) for run in runs]


class _Seen:
    """A run as far as arms and views ask, with one number as its only figure."""

    def __init__(self, run: Run, number: Number) -> None:
        self.row, self.run_id = run.row, run.run_id
        self._figure = Figure(number.name, number.of(run), run.run_id)

    def figure(self, _: str) -> Figure:
        return self._figure


def less(a: Estimate, b: Estimate) -> Estimate:
    """`a` less `b`, their errors independent: half-widths are added as squares."""
    half = math.hypot((a.high - a.low) / 2, (b.high - b.low) / 2)
    value = a.value - b.value
    return Estimate(value, value - half, value + half, a.n + b.n)


def exactly(value: float, n: int) -> Estimate:
    """A number that was counted, and has no interval."""
    return Estimate(value, math.nan, math.nan, n)
