"""A report held against an earlier one: figure by figure, how many times what it was, with an interval.

A baseline is a run of the Lab, or what a conclusion kept (conclusion.py) in a report's folder. Both sides are single runs, so
the interval comes from blocks of time within them: it does not know how much whole runs differ from one another.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msgspec import Struct

from eventcore_lab.lab.arms import ratio
from eventcore_lab.lab.conclusion import figures_of, finite
from eventcore_lab.lab.database import Lab, UnknownRun
from eventcore_lab.lab.measures import UNITS, Figure, Run
from eventcore_lab.lab.stats import NOTHING, Estimate
from eventcore_lab.lab.targets import Judgement
from eventcore_lab.spec import UsageError, shown

FILES = ("report.json", "conclusion.json")
HIGHER_IS_BETTER = ("commands_per_second", "events_per_second")


class Baseline(Struct, frozen=True):
    """Figures by name, as conclusion.py keeps them, and where they are from."""

    of: str
    figures: dict[str, Any]

    def against(self, conclusion: Mapping[str, Any]) -> dict[str, Any]:
        """How a conclusion compares, as JSON: `of`, and `rows`, one for each figure that both have: name, now, then (text),
        ratio, low, high, change, of_now, of_then. `change` is `better`, `worse`, `no difference shown` or `no interval`,
        nothing where neither way is better, and says so, without a ratio, where a closed loop stands against a rate."""
        now = conclusion.get("figures") or {}
        names = [name for name in now if name in self.figures]
        return {"of": self.of, "rows": [_row(name, now[name], self.figures[name]) for name in names]}


def load(name: str, lab: Lab, reports: Path) -> Baseline:
    """The baseline called `name`: a report's folder (a path, or its name in `reports`), its JSON file, or a run's id.

    UsageError when it is none of them, or has no figures.
    """
    for place in (Path(name), reports / name):
        for file in (place, *(place / n for n in FILES)):
            if _is_file(file):
                return _from_file(file, name)
    try:
        run = Run(lab, name)
    except UnknownRun as error:
        raise UsageError(f"baseline: {shown(name)} is no report, and {error}") from None
    return Baseline(f"run {run.run_id}", figures_of(run))


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name of 10 kB, or with a NUL in it
        return False


def _from_file(file: Path, name: str) -> Baseline:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        raise UsageError(f"baseline: {shown(name)} holds no JSON; name a report's folder, or a run") from None
    concluded = (content.get("conclusion") or content) if isinstance(content, dict) else {}
    figures = concluded.get("figures") if isinstance(concluded, dict) else None
    found = {n: f for n, f in figures.items() if _is_figure(f)} if isinstance(figures, dict) else {}
    if not found:
        raise UsageError(
            f"baseline: {shown(name)} has no figures: it came to no conclusion, or is of an older version; "
            "name another report, or a run"
        )
    where = file.parent.name if file.name in FILES else file.name
    return Baseline(f"report {where}", found)


def _is_figure(figure: object) -> bool:
    if not isinstance(figure, dict) or not isinstance(figure.get("value"), int | float):
        return False
    return all(isinstance(figure.get(edge), int | float | None) for edge in ("low", "high"))


class _Kept(Struct, frozen=True):
    """One figure of a run, as far as comparing asks."""

    content: Mapping[str, Any]

    def figure(self, name: str, /) -> Figure:
        return Figure(name, _estimate(self.content), str(self.content.get("run_id", "")))


def _estimate(content: Mapping[str, Any]) -> Estimate:
    value, low, high = (math.nan if content.get(k) is None else float(content[k]) for k in ("value", "low", "high"))
    return Estimate(value, low, high, 0)


def _row(name: str, now: Mapping[str, Any], then: Mapping[str, Any]) -> dict[str, Any]:
    found = ratio([_Kept(now)], [_Kept(then)], name)
    are_alike = _is_closed_loop(now) == _is_closed_loop(then)
    found = found if are_alike else NOTHING
    return {
        "name": name,
        "now": _said(name, now),
        "then": _said(name, then),
        "ratio": finite(found.value),
        "low": finite(found.low),
        "high": finite(found.high),
        "change": _change(name, found) if are_alike else "not comparable: a closed loop and a rate",
        "of_now": str(now.get("of", "")),
        "of_then": str(then.get("of", "")),
    }


def _is_closed_loop(figure: Mapping[str, Any]) -> bool:
    """What callers do as fast as they are answered and what was asked for at a rate are not the same figure."""
    return str(figure.get("of", "")).rpartition(", ")[2].startswith("saturate")


def _change(name: str, found: Estimate) -> str:
    if name not in UNITS or math.isnan(found.value):
        return ""
    if not found.has_interval:
        return "no interval"
    if found.low <= 1 <= found.high:
        return "no difference shown"
    return "better" if (found.value > 1) == (name in HIGHER_IS_BETTER) else "worse"


def _said(name: str, figure: Mapping[str, Any]) -> str:
    e = _estimate(figure)
    return Judgement("figure", name, "", e.value, e.low, e.high, str(figure.get("unit", "")), "", "", "").shown
