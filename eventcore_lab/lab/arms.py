"""Runs that are compared: what tells them apart, what the trials of one setting come to together, and how many times one
setting is another."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Protocol

from msgspec import Struct

from eventcore_lab.lab.measures import Figure, Run
from eventcore_lab.lab.stats import NOTHING, Estimate, t_interval
from eventcore_lab.spec import Spec, UsageError, parse, shown

SPECS = ("store", "workload", "executor", "pacer", "projection")
TRIALS_MIN = 3
"""With fewer trials an interval comes from the blocks of time within each run."""

Value = str | float


class Measured(Protocol):
    """What can be compared: a run, or the figures that are left of one."""

    def figure(self, name: str, /) -> Figure: ...


class Arm(Struct, frozen=True):
    """The runs of one setting, and the value that tells it from the others."""

    value: Value
    runs: tuple[Run, ...]

    def estimate(self, figure: str) -> Estimate:
        """The figure over all trials: their mean, with its interval from the trials if they are at least TRIALS_MIN, else from
        within the runs, if each of them has one."""
        found = [e for run in self.runs if not math.isnan((e := run.figure(figure).estimate).value)]
        if not found:
            return NOTHING
        mean = sum(e.value for e in found) / len(found)
        n = sum(e.n for e in found)
        if len(found) >= TRIALS_MIN:
            return Estimate(mean, *t_interval([e.value for e in found]), n)
        if not all(e.has_interval for e in found):
            return Estimate(mean, math.nan, math.nan, n)
        return Estimate(mean, min(e.low for e in found), max(e.high for e in found), n)


def value_of(run: Run, name: str, default: Value | None = None) -> Value:
    """What a run was made with: a column of `runs` (`connections`, `executor`), or an option of one of its specs (`batch`,
    `concurrency`), numbers as numbers. UsageError if it has no such thing and there is no default."""
    if name in run.row and run.row[name] is not None:
        value: Value = run.row[name]
        return value
    for column in SPECS:
        if text := run.row.get(column):
            spec: Spec | None = parse(text, column)
            while spec is not None:
                if name in (options := dict(spec.options)):
                    return _number(options[name])
                spec = spec.inner
    if default is None:
        raise UsageError(f"{shown(name)} is neither a column of runs nor an option of {run}")
    return default


def _number(text: str) -> Value:
    try:
        value = float(text)
    except ValueError:
        return text
    return int(value) if value.is_integer() else value


def where(runs: Iterable[Run], **values: Value) -> list[Run]:
    """The runs that were made with all these values (see `value_of`), in their order."""
    return [run for run in runs if all(value_of(run, name, "") == value for name, value in values.items())]


def values_of(runs: Iterable[Run], name: str) -> list[float]:
    """The numbers that `name` has in these runs, ascending, each once; runs without it are left out."""
    found = {value_of(run, name, "") for run in runs}
    return sorted(float(value) for value in found if not isinstance(value, str))


def arms(runs: Sequence[Run], by: str, default: Value | None = None) -> list[Arm]:
    """The runs by what `by` is (see `value_of`): numbers ascending, words in the order they come."""
    found: dict[Value, list[Run]] = {}
    for run in runs:
        found.setdefault(value_of(run, by, default), []).append(run)
    values = list(found)
    if all(isinstance(value, int | float) for value in values):
        values.sort(key=float)
    return [Arm(value, tuple(found[value])) for value in values]


def ratio(of: Sequence[Measured], to: Sequence[Measured], figure: str) -> Estimate:
    """How many times the figure of `of` is that of `to`, with its 95 % interval.

    Trials are paired in their order, since what drifts meanwhile falls on a pair alike: the interval is that of the mean
    logarithm (Student's t). Of fewer than TRIALS_MIN pairs it comes from the runs' own intervals, their relative widths put
    together as for independent errors, and is only as good as blocks of time within a run are (not as good as trials).
    """
    pairs = [(a.figure(figure).estimate, b.figure(figure).estimate) for a, b in zip(of, to, strict=False)]
    pairs = [(a, b) for a, b in pairs if a.value > 0 and b.value > 0 and math.isfinite(a.value * b.value)]
    if not pairs:
        return NOTHING
    logs = [math.log(a.value / b.value) for a, b in pairs]
    mean, n = sum(logs) / len(logs), sum(a.n + b.n for a, b in pairs)
    if len(pairs) >= TRIALS_MIN:
        low, high = t_interval(logs)
        return Estimate(math.exp(mean), math.exp(low), math.exp(high), n)
    widths = [_relative(a) ** 2 + _relative(b) ** 2 for a, b in pairs]
    half = math.sqrt(sum(widths)) / len(pairs)
    return Estimate(math.exp(mean), math.exp(mean - half), math.exp(mean + half), n)


def _relative(e: Estimate) -> float:
    """Half the width of an interval, as a share of the value; NaN without one."""
    return max(e.high - e.value, e.value - e.low) / e.value if e.has_interval else math.nan
