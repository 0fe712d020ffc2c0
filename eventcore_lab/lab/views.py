"""Pictures of runs by what tells them apart: a figure along a setting, side by side, over two settings, and where the time
of an operation goes. plots.py has the pictures of one run and of the main job."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from numpy.typing import NDArray

from eventcore_lab.lab.arms import Arm, Value, arms
from eventcore_lab.lab.measures import PERCENTILES, UNITS, Run
from eventcore_lab.lab.picture import (
    BEHIND_TEXT,
    BLUE,
    COLOURS,
    DASHES,
    GREY,
    MARKERS,
    ORANGE,
    PURPLE,
    RED,
    Picture,
    caption,
    name_ends,
    nothing,
    plain,
    short,
    style,
)
from eventcore_lab.lab.stats import Estimate
from eventcore_lab.lab.targets import Targets
from eventcore_lab.lab.wording import Names, named
from eventcore_lab.schema import Outcome

WORDS = {
    "commands_per_second": "operations per second",
    "events_per_second": "events per second",
    "memory": "peak memory (PSS), MiB",
    "memory_growth": "growth of memory, MiB",
    "cpu": "busy share of the machine, %",
    "conflicts/attempts": "attempts in conflict, %",
    "failures/attempts": "operations not done, %",
    **{p: f"{p}, ms" for p in PERCENTILES},
}
LOG_FROM = 30
"""An axis is logarithmic when its values span more than so many times."""


def along(
    runs: Sequence[Run],
    by: str,
    figure: str = "commands_per_second",
    lines: str = "",
    targets: Targets | None = None,
    label: str = "",
    default: Value | None = None,
    names: Names | None = None,
    span: tuple[float, float] | None = None,
) -> Picture:
    """`figure`, with its interval, along the setting `by` (a column or an option, see `arms.value_of`); one line for each
    value of `lines`, named at its end by `names` or its value. `span`: from where to where the axis of the figure goes."""
    with style():
        picture = Picture(f"{WORDS[figure]} along {label or by}")
        axes = picture.add_subplot()
        groups = arms(runs, lines) if lines else [Arm("", tuple(runs))]
        ends, every = [], []
        for i, group in enumerate(groups):
            points = [(a.value, a.estimate(figure)) for a in arms(group.runs, by, default)]
            known = [(float(x), e) for x, e in points if not math.isnan(e.value) and not isinstance(x, str)]
            if known:
                _line(axes, known, COLOURS[i % 6], MARKERS[i % 6], DASHES[i % 6])
                ends.append((known[-1][1].value, named(group.value, names), COLOURS[i % 6]))
                every += known
        if not every:
            nothing(axes)
            return picture
        _x_axis(axes, [x for x, _ in every], label or by)
        limits = [t for t in targets.thresholds if t.name == figure] if targets else []
        ends_of = [e.high for _, e in every if e.has_interval]
        _y_axis(axes, [e.value for _, e in every] + ends_of + [t.limit for t in limits], figure)
        if span:
            axes.set_ylim(*span)
        for t in limits:
            axes.axhline(t.limit, color=RED, lw=1, ls="--")
            axes.annotate(f"target: {t}", (0.01, t.limit), (0, 3), xycoords=("axes fraction", "data"),
                          textcoords="offset points", color=RED, fontsize=9, bbox=BEHIND_TEXT)  # fmt: skip
        if lines:
            name_ends(axes, ends)
        caption(picture, runs)
    return picture


def _line(axes: Axes, points: Sequence[tuple[float, Estimate]], colour: str, marker: str, dash: object) -> None:
    x, y = np.array([x for x, _ in points]), np.array([e.value for _, e in points])
    spans = [[max(e.value - e.low, 0) if e.has_interval else 0 for _, e in points],
             [max(e.high - e.value, 0) if e.has_interval else 0 for _, e in points]]  # fmt: skip
    look = {"color": colour, "marker": marker, "ls": dash, "clip_on": False}  # a line along zero lies on the edge
    axes.errorbar(x, y, np.array(spans), ms=5, capsize=3, elinewidth=1, **look)  # type: ignore[arg-type]


def _x_axis(axes: Axes, values: Sequence[float], label: str) -> None:
    ticks = sorted(set(values))
    if ticks[0] > 0 and ticks[-1] > 5 * ticks[0]:
        axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.6g}"))
    axes.set_xlabel(label)
    axes.margins(x=0.06)


def _y_axis(axes: Axes, values: Sequence[float], figure: str) -> None:
    known = [v for v in values if math.isfinite(v)]
    positive = [v for v in known if v > 0]
    if positive and len(positive) == len(known) and max(positive) > LOG_FROM * min(positive):
        axes.set_yscale("log")
        axes.set_ylim(min(positive) / 2, max(positive) * 2)
        axes.yaxis.set_minor_locator(NullLocator())
    elif known:
        axes.set_ylim(min(0.0, 1.25 * min(known)), max(max(known), 0.0) * 1.2 or 1.0)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: short(v)))
    axes.set_ylabel(WORDS[figure])


def side_by_side(
    runs: Sequence[Run],
    by: str,
    figure: str = "commands_per_second",
    targets: Targets | None = None,
    names: Names | None = None,
) -> Picture:
    """`figure` of each value of `by`, as bars with their intervals, the value written at the end of each."""
    found = [(a.value, a.estimate(figure)) for a in arms(runs, by)]
    with style():
        picture = Picture(f"{WORDS[figure]} by {by}", height=min(max(0.45 + 0.12 * len(found), 0.6), 2.5))
        axes = picture.add_subplot()
        known = [(name, e) for name, e in found if math.isfinite(e.value)]
        if not known:
            nothing(axes)
            return picture
        for n, (_, e) in enumerate(known):
            error = [[max(e.value - e.low, 0)], [max(e.high - e.value, 0)]] if e.has_interval else None
            axes.barh(n, e.value, height=0.62, color=BLUE, xerr=error, error_kw={"capsize": 3, "elinewidth": 1})
            edge = max(e.value, e.high if e.has_interval else e.value, 0)
            axes.annotate(short(e.value), (edge, n), (6, 0), textcoords="offset points", va="center", fontsize=9)
        axes.set_yticks(range(len(known)), [plain(named(value, names), 34) for value, _ in known])
        axes.invert_yaxis()
        axes.set_axisbelow(True)
        axes.grid(visible=False, axis="y")
        top = max(max(e.value, e.high if e.has_interval else e.value) for _, e in known)
        axes.set_xlim(min(0.0, *(e.value for _, e in known)) * 1.2, (top or 1.0) * 1.18)
        for t in (t for t in (targets.thresholds if targets else ()) if t.name == figure and t.limit < 3 * top):
            axes.set_xlim(right=max(top * 1.18, t.limit * 1.1))
            axes.axvline(t.limit, color=RED, lw=1, ls="--")
            axes.annotate(f"target: {t}", (t.limit, 1), (3, -9), xycoords=("data", "axes fraction"),
                          textcoords="offset points", color=RED, fontsize=9, bbox=BEHIND_TEXT)  # fmt: skip
        axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: short(v)))
        axes.set_xlabel(WORDS[figure])
        caption(picture, runs)
    return picture


def over_two(
    runs: Sequence[Run], x: str, y: str, figure: str = "commands_per_second", labels: tuple[str, str] = ("", "")
) -> Picture:
    """`figure` as a table of coloured fields: along `x`, and along `y` upwards. The best field has a frame."""
    columns, rows = arms(runs, x), arms(runs, y)
    values = np.full((len(rows), len(columns)), math.nan)
    for i, row in enumerate(rows):
        for arm in arms(row.runs, x):
            values[i, [c.value for c in columns].index(arm.value)] = arm.estimate(figure).value
    with style():
        picture = Picture(f"{WORDS[figure]} over {x} and {y}", height=min(0.55 + 0.13 * len(rows), 2.0))
        axes = picture.add_subplot()
        if not np.isfinite(values).any():
            nothing(axes)
            return picture
        _fields(axes, values, is_less_better=UNITS[figure] != "/s")
        axes.set_xticks(range(len(columns)), [plain(named(c.value, None), 16) for c in columns])
        axes.set_yticks(range(len(rows)), [plain(named(r.value, None), 24) for r in rows])
        axes.grid(visible=False)
        axes.set_xlabel(labels[0] or x)
        axes.set_ylabel(labels[1] or y)
        axes.set_title(WORDS[figure], fontsize=10, loc="left", color=GREY)
        caption(picture, runs)
    return picture


def _fields(axes: Axes, values: NDArray[np.float64], is_less_better: bool) -> None:
    finite = np.where(np.isfinite(values), values, math.nan)
    shade = np.log10(np.where(finite > 0, finite, math.nan)) if np.nanmin(finite) > 0 else finite
    axes.imshow(shade, cmap="cividis_r" if is_less_better else "cividis", aspect="auto", origin="lower", alpha=0.9)
    low, high = np.nanmin(shade), np.nanmax(shade)
    best = np.unravel_index(np.nanargmin(finite) if is_less_better else np.nanargmax(finite), finite.shape)
    for (i, j), value in np.ndenumerate(values):
        part = (shade[i, j] - low) / (high - low) if high > low else 0.5
        is_dark = (1 - part if is_less_better else part) < 0.55
        text = short(value) if math.isfinite(value) else "–"
        axes.text(j, i, text, ha="center", va="center", fontsize=9, color="white" if is_dark else "black")
    i, j = (int(n) for n in best)
    frame = [
        (j - 0.47, i - 0.46),
        (j + 0.47, i - 0.46),
        (j + 0.47, i + 0.46),
        (j - 0.47, i + 0.46),
        (j - 0.47, i - 0.46),
    ]
    axes.plot(*zip(*frame, strict=True), color=RED, lw=2)


PARTS = {"waiting to begin": GREY, "waiting for a connection": ORANGE, "in the store": BLUE, "back-off": PURPLE}


def where_time_goes(runs: Sequence[Run], by: str, names: Names | None = None, default: Value | None = None) -> Picture:
    """The mean time of an operation that was done, by what it was spent on, for each value of `by`, ms."""
    found = [(a.value, parts_ms(a.runs)) for a in arms(runs, by, default)]
    with style():
        picture = Picture(f"where the time of an operation goes, by {by}", min(max(0.5 + 0.12 * len(found), 0.7), 2.5))
        axes = picture.add_subplot()
        top = max((sum(parts.values()) for _, parts in found), default=0.0)
        if not top > 0:
            nothing(axes)
            return picture
        for n, (_, parts) in enumerate(found):
            left = 0.0
            for name, colour in PARTS.items():
                axes.barh(n, parts[name], left=left, height=0.62, color=colour, edgecolor="white", lw=0.6)
                left += parts[name]
            axes.annotate(f"{left:.3g} ms", (left, n), (6, 0), textcoords="offset points", va="center", fontsize=9)
        used = [name for name in PARTS if any(parts[name] > 0.01 * top for _, parts in found)]
        for k, name in enumerate(used):
            axes.annotate(
                f"■ {name}", (k / max(len(used), 2), 1.02), xycoords="axes fraction", color=PARTS[name], fontsize=9
            )
        axes.set_yticks(range(len(found)), [plain(named(value, names), 34) for value, _ in found])
        axes.invert_yaxis()
        axes.set_axisbelow(True)
        axes.grid(visible=False, axis="y")
        axes.set_xlim(0, top * 1.18)
        axes.set_ylabel(plain(by))
        axes.set_xlabel("mean time of an operation, ms")
        caption(picture, runs)
    return picture


def parts_ms(runs: Sequence[Run]) -> dict[str, float]:
    """The mean ms that an operation which was done spent on each of PARTS, over all `runs`."""
    columns = ("due_ns", "began_ns", "acquired_ns", "ended_ns", "backoff_ns")
    frames = [run.steady.filter(outcome=int(Outcome.OK)).select(columns).to_numpy() for run in runs]
    rows = np.concatenate(frames).astype(np.float64) if frames else np.empty((0, 5))
    if not len(rows):
        return dict.fromkeys(PARTS, 0.0)
    due, began, acquired, ended, backoff = rows.T
    waited = np.maximum(acquired - began, 0)
    times = (began - due, waited, ended - began - waited - backoff, backoff)
    return {name: float(t.mean()) / 1e6 for name, t in zip(PARTS, times, strict=True)}
