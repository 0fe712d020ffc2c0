"""The picture of a soak: rate, latency, memory and what went wrong over hours, one under the other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from eventcore_lab.lab.drift import Slope, Soak
from eventcore_lab.lab.picture import (
    BEHIND_TEXT,
    BLUE,
    DASHES,
    GREEN,
    GREY,
    PURPLE,
    RED,
    Picture,
    nothing,
    plain,
    style,
)
from eventcore_lab.lab.targets import Targets, Threshold

_LATENCIES = (("worst", GREY), ("p99", RED), ("p95", PURPLE), ("p50", BLUE))
_UNITS: tuple[tuple[float, float, str], ...] = (
    (2.0, 1.0, "hours"),
    (1 / 30, 60.0, "minutes"),
    (0.0, 3600.0, "seconds"),
)
"""From so many hours on: how many of the unit are an hour, and its name."""


def over_hours(soak: Soak, targets: Targets | None = None) -> Picture:
    """Four panels that share the time since the soak began: operations per second, latency (log axis, targets as lines),
    memory with its slope, and operations that were not done well. Borders of legs are dotted lines."""
    limits = targets.thresholds if targets else ()
    with style():
        picture = Picture(f"soak {soak.soak_id} over {soak.done_h:.3g} hours", height=2.3)
        panels = picture.subplots(4, 1, sharex=True, gridspec_kw={"height_ratios": [2, 3, 3, 1.6]})
        if not len(soak.blocks):
            nothing(panels[0])
            return picture
        factor, unit = _unit(soak)
        _rate(panels[0], soak.blocks, factor)
        _latency(panels[1], soak.blocks, factor, [t for t in limits if t.name in ("p50", "p95", "p99")])
        _memory(panels[2], soak, factor)
        _unwell(panels[3], soak.blocks, factor)
        for leg in soak.legs[1:]:
            began_h = (leg.row["started_at"] - soak.legs[0].row["started_at"]).total_seconds() / 3600
            for axes in panels:
                axes.axvline(began_h * factor, color=GREY, lw=0.9, ls=":")
        panels[3].set_xlabel(f"{unit} since the soak began" + (", dotted: another leg" if soak.legs[1:] else ""))
        row = soak.legs[0].row
        picture.supxlabel(f"{plain(row['store'])} · {plain(row['pacer'])}", x=0.99, ha="right", fontsize=8, color=GREY)
    return picture


def _unit(soak: Soak) -> tuple[float, str]:
    last_h = float(soak.blocks["t_h"].to_numpy().max())
    return next((factor, name) for least, factor, name in _UNITS if last_h >= least)


def _rate(axes: Axes, blocks: pl.DataFrame, factor: float) -> None:
    for _, leg in blocks.group_by("leg", maintain_order=True):
        axes.plot(leg["t_h"].to_numpy() * factor, leg["rate"].to_numpy(), color=GREEN)
    axes.set_ylabel("operations/s")
    axes.set_ylim(bottom=0)


def _latency(axes: Axes, blocks: pl.DataFrame, factor: float, limits: Sequence[Threshold]) -> None:
    """Lines named at their right ends; a block in which that many were not answered is a gap."""
    ends: list[tuple[float, str, str]] = []
    for (name, colour), dashes in zip(_LATENCIES, DASHES[::-1][-len(_LATENCIES) :], strict=True):
        for _, leg in blocks.group_by("leg", maintain_order=True):
            y = np.where(np.isfinite(leg[name].to_numpy()), leg[name].to_numpy(), np.nan)
            axes.plot(leg["t_h"].to_numpy() * factor, y, color=colour, ls=dashes, lw=1.4)
        known = blocks.filter(pl.col(name).is_finite())
        if len(known):
            ends.append((known[name][-1], name, colour))
    axes.set_yscale("log")
    axes.set_ylabel("latency, ms")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    for t in limits:
        axes.axhline(t.limit, color=RED, lw=0.8, ls=(0, (2, 2)))
        axes.text(0.005, t.limit, f"{t.name} limit {t.limit:g} ms", color=RED, fontsize=8, va="bottom",
                  transform=axes.get_yaxis_transform(), bbox=BEHIND_TEXT)  # fmt: skip
    _named(axes, ends, is_log=True)


def _memory(axes: Axes, soak: Soak, factor: float) -> None:
    ends = []
    for source, colour in (("loader", BLUE), ("server", GREEN)):
        series = soak.memory(source)
        if not len(series):
            continue
        slope = soak.slopes[f"memory of the {source}"]
        for (leg, life), part in series.group_by("leg", "life", maintain_order=True):
            t_h, mib = part["t_h"].to_numpy(), part["mib"].to_numpy()
            axes.plot(t_h * factor, mib, color=colour, lw=1.4)
            if (leg, life) == (slope.leg, slope.life):
                _slope_line(axes, slope, t_h, mib, factor, colour)
        ends.append((float(series["mib"][-1]), source, colour))
    axes.set_ylim(bottom=0)
    axes.set_ylabel("memory (PSS), MiB")
    _named(axes, ends, is_log=False)


def _slope_line(axes: Axes, slope: Slope, x: np.ndarray, y: np.ndarray, factor: float, colour: str) -> None:
    """Theil's and Sen's line, through the medians, of what grows."""
    if slope.grows:
        ends = np.asarray([x.min(), x.max()])
        axes.plot(
            ends * factor, np.median(y) + slope.per_hour.value * (ends - np.median(x)), color=colour, lw=1, ls="--"
        )


def _unwell(axes: Axes, blocks: pl.DataFrame, factor: float) -> None:
    x, y = blocks["t_h"].to_numpy() * factor, blocks["unwell"].to_numpy()
    axes.bar(x, y, width=0.8 * (x[1] - x[0]) if len(x) > 1 else 1.0, color=RED)
    axes.set_ylabel("not ok")
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.set_ylim(0, max(1, 1.1 * float(y.max())))
    if not y.any():
        axes.text(0.5, 0.5, "every operation was ok", ha="center", va="center", color=GREY, fontsize=9,
                  transform=axes.transAxes)  # fmt: skip


def _named(axes: Axes, ends: Sequence[tuple[float, str, str]], is_log: bool) -> None:
    """The lines' names to the right of the panel, pushed apart where the lines end close together."""
    low, high = axes.get_ylim()
    heights = {
        name: (np.log(v / low) / np.log(high / low) if is_log else (v - low) / (high - low)) for v, name, _ in ends
    }
    last, at = -1.0, {}
    for _, name, colour in sorted(ends):
        last = max(float(heights[name]), last + 0.1)
        at[name] = last, colour
    for height, (name, (y, colour)) in zip(range(len(at) - 1, -1, -1), at.items(), strict=True):
        y = min(y, 1 - 0.1 * height)  # and none above it
        axes.text(1.01, y, name, color=colour, fontsize=9, va="center", transform=axes.transAxes)
