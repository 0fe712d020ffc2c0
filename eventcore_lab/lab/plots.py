"""Pictures of what was measured: a drawing function takes a frame and an axes and returns the axes, and one call over runs
makes the whole picture that a notebook's cell shows.

One style throughout: the colours of Okabe and Ito (2008), which colour-blind people tell apart, with markers and dashes that
grey print tells apart; labels stand at what they name instead of in a legend; what is drawn has its unit on the axis.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from eventcore_lab.clock import NS_PER_S
from eventcore_lab.lab.measures import MIB, PERCENTILES, Run, binned
from eventcore_lab.lab.picture import (
    BEHIND_TEXT,
    BLUE,
    COLOURS,
    DASHES,
    GREEN,
    GREY,
    PURPLE,
    RED,
    Picture,
    caption,
    corner,
    name_ends,
    nothing,
    plain,
    short,
    style,
)
from eventcore_lab.lab.sentences import DEFAULTS, option
from eventcore_lab.lab.stats import percentile, samples_needed
from eventcore_lab.lab.targets import Targets, Threshold

_WORDS = {"commands_per_second": "commands per second", "events_per_second": "events per second"}
_TAIL = (0.5, 0.9, 0.99, 0.999, 0.9999)


def throughput_by(
    runs: Sequence[Run],
    by: str,
    figure: str = "commands_per_second",
    targets: Targets | None = None,
    floor: Run | Sequence[Run] | None = None,
) -> Picture:
    """`figure` (per second, with its 95 % interval) of each run against its `batch` or `concurrency`."""
    default = DEFAULTS.get(by, 1)
    rows = [(option(r, by, default), e.value, e.low, e.high) for r in runs for e in [r.figure(figure).estimate]]
    frame = pl.DataFrame(rows, schema=["x", "value", "low", "high"], orient="row", strict=False).sort("x")
    with style():
        picture = Picture(f"{_WORDS[figure]} against {by}")
        axes = throughput(frame, picture.add_subplot(), f"{by} ({'events per append' if by == 'batch' else 'callers'})")
        axes.set_ylabel(_WORDS[figure])
        floors = [floor] if isinstance(floor, Run) else floor or []
        levels = [(option(r, by, default), v) for r in floors if math.isfinite(v := r.figure(figure).estimate.value)]
        limits = [t for t in targets.thresholds if t.name == figure] if targets else []
        if frame["value"].is_not_nan().any():
            if levels:
                _floor(axes, sorted(levels), f"{floors[0].row['store']} store")
            _scale(axes, [*frame["value"], *(v for _, v in levels), *(t.limit for t in limits)])
        _limits(axes, limits)
        caption(picture, runs)
    return picture


def throughput(frame: pl.DataFrame, axes: Axes, x_label: str) -> Axes:
    """Columns x, value, low, high (per second); each point with its interval and its value."""
    known = frame.filter(pl.col("value").is_not_nan())
    if not len(known):
        return nothing(axes)
    x, y = known["x"].to_numpy(), known["value"].to_numpy()
    spans = np.nan_to_num(np.abs(np.vstack([y - known["low"].to_numpy(), known["high"].to_numpy() - y])))
    axes.errorbar(x, y, spans, color=BLUE, marker="o", ms=5, capsize=3, elinewidth=1)
    for at, value in zip(x, y, strict=True):
        axes.annotate(
            short(value), (at, value), (0, 8), textcoords="offset points", ha="center", color=BLUE, fontsize=9
        )
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(sorted({float(v) for v in x})))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.0f}"))
    axes.set_xlabel(x_label)
    axes.margins(x=0.08)
    return _scale(axes, y)


def _floor(axes: Axes, levels: Sequence[tuple[int, float]], store: str) -> None:
    """What the harness reaches alone: a line against the same axis, or a level where it was measured at one setting."""
    x, y = zip(*levels, strict=True)
    if len(set(x)) > 1:
        axes.plot(x, y, color=GREY, lw=1, ls=":")
    else:
        axes.axhline(max(y), color=GREY, lw=1, ls=":")
    values = f"{short(min(y))} to {short(max(y))}/s" if len(set(x)) > 1 else f"{max(y):,.0f}/s"
    _at_line(axes, max(y), f"{store}: {values}, the harness's own limit", GREY)


def _scale(axes: Axes, values: Any) -> Axes:
    """Linear from zero, or logarithmic where the values span more than thirty times."""
    known = np.asarray([v for v in np.atleast_1d(values) if np.isfinite(v) and v > 0])
    if len(known) and known.max() > 30 * known.min():
        axes.set_yscale("log")
        axes.set_ylim(known.min() / 2, known.max() * 2.5)
        axes.yaxis.set_minor_locator(NullLocator())
    elif len(known):
        axes.set_ylim(0, known.max() * 1.25)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: short(v)))
    return axes


def latency_percentiles(runs: Sequence[Run], targets: Targets | None = None) -> Picture:
    """Latency (or service time) of each run by percentile, the tail stretched as by a logarithm, to the last percentile
    that has ten samples beyond it."""
    with style():
        picture = Picture("latency percentiles, tail stretched")
        axes = picture.add_subplot()
        names = [_told_apart(run, runs) for run in runs]
        ends = []
        for i, (run, name) in enumerate(zip(runs, names, strict=True)):
            frame = percentile_curve(run)
            if len(frame):
                colour = COLOURS[i % len(COLOURS)]
                percentiles(frame, axes, color=colour, ls=DASHES[i % len(DASHES)])
                ends.append((_stretched(frame["p"][-1]), frame["ms"][-1], name, colour))
        if not ends:
            nothing(axes)
        else:
            limits = [t for t in targets.thresholds if t.name in PERCENTILES] if targets else []
            _tail_axis(axes, max([x for x, *_ in ends] + [_stretched(PERCENTILES[t.name]) for t in limits]), runs)
            for t in limits:
                _mark_limit(axes, t)
            _never_ended(axes, runs)
            name_ends(axes, [end[1:] for end in ends if len(runs) > 1])
        caption(picture, runs)
    return picture


def percentile_curve(run: Run) -> pl.DataFrame:
    """Columns p, ms of a run's steady samples; ends where fewer than ten samples lie beyond, or at one that never ended."""
    ascending = np.sort(run.latencies_ms[0])
    n = len(ascending)
    last = max([p for p in _TAIL if samples_needed(p) <= n], default=0.5 if n else 0.0)
    ps = 1 - np.logspace(np.log10(1), np.log10(1 - last), 120)[1:] if n else np.empty(0)
    rows = [(float(p), percentile(ascending, float(p))) for p in ps]
    return pl.DataFrame(
        [r for r in rows if math.isfinite(r[1])], schema={"p": pl.Float64, "ms": pl.Float64}, orient="row"
    )


def percentiles(frame: pl.DataFrame, axes: Axes, **line: Any) -> Axes:
    """Columns p (0 … 1) and ms, drawn on the stretched axis."""
    axes.plot([_stretched(p) for p in frame["p"]], frame["ms"].to_numpy(), **line)
    return axes


def _never_ended(axes: Axes, runs: Sequence[Run]) -> None:
    """Why a curve stops short: what was dropped or not answered is slower than anything that was."""
    lost, n = (sum(int(f(r.latencies_ms[0])) for r in runs) for f in (lambda v: np.isinf(v).sum(), len))
    if lost:
        text = f"{lost:,} of {n:,} dropped or never answered:\nslower than any; the curve leaves through the top"
        axes.text(0.985, 0.03, text, color=RED, fontsize=9, ha="right", transform=axes.transAxes)
        for line in axes.get_lines()[: len(runs)]:
            x, y = (float(np.asarray(v, float)[-1]) for v in line.get_data())
            arrow = {"arrowstyle": "->", "color": line.get_color(), "ls": ":", "shrinkA": 0}
            axes.annotate("", (x, 1), (x, y), axes.get_xaxis_transform(), "data", arrowprops=arrow)


def _stretched(p: float) -> float:
    return -math.log10(1 - p)


def _tail_axis(axes: Axes, last: float, runs: Sequence[Run]) -> None:
    ticks = [p for p in _TAIL if _stretched(p) <= last + 1e-9]
    axes.set_xticks([_stretched(p) for p in ticks], [f"{100 * p:.6g} %" for p in ticks])
    axes.set_xlim(0, last * 1.02)
    _log_ms(axes)
    axes.set_xlabel("percentile of operations")
    axes.set_ylabel(f"{runs[0].latency_word}, ms")


def _told_apart(run: Run, runs: Sequence[Run]) -> str:
    """What distinguishes a run from the others: its concurrency, its batch, or all of it."""
    for name, word in (("concurrency", "caller"), ("batch", "per append")):
        values = [option(r, name, DEFAULTS[name]) for r in runs]
        if len(set(values)) > 1:
            value = option(run, name, DEFAULTS[name])
            return f"{value:,} {word}{'s' if word == 'caller' and value != 1 else ''}"
    trial = f" trial {run.row['trial']}" if len({r.row["trial"] for r in runs}) > 1 else ""
    return f"{run.row['store']} {run.row['pacer']}{trial}"


def _mark_limit(axes: Axes, threshold: Threshold) -> None:
    x = _stretched(float(threshold.name[1:]) / 100)
    if x <= axes.get_xlim()[1]:
        axes.plot([x], [threshold.limit], marker="v", color=RED, ms=8, clip_on=False)
        is_left = x < 0.3 * axes.get_xlim()[1]  # where a label before the mark would stand on the axis
        axes.annotate(
            f"{threshold.name} {threshold}",
            (x, threshold.limit),
            (7 if is_left else -7, 0),
            textcoords="offset points",
            color=RED,
            ha="left" if is_left else "right",
            va="center",
            fontsize=9,
        )
        low, high = axes.get_ylim()
        axes.set_ylim(low, max(high, threshold.limit * 1.6))


def over_time(run: Run, targets: Targets | None = None) -> Picture:
    """Latency (median, p99, worst) and throughput in bins of time, warm-up shaded, what happened marked."""
    with style():
        picture = Picture("latency and throughput over time", 1.45)
        upper, lower = picture.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        frame = binned(run)
        if not len(frame):
            nothing(upper)
            nothing(lower)
            return picture
        latency_over_time(frame, upper)
        upper.set_ylabel(f"{run.latency_word}, ms")
        for t in targets.thresholds if targets else ():
            if t.name == "p99" and t.limit < 30 * max(_largest(frame["worst"]), _largest(frame["p50"])):
                _limits(upper, [t])
            if t.name == "p50" and t.limit < 3 * _largest(frame["p50"]):
                _limits(upper, [t])
        _name_lines(upper)
        rate_over_time(frame, lower, "" if run.is_closed_loop else "offered")
        _name_lines(lower)
        if not np.isfinite(frame["worst"].to_numpy()).all():
            corner(upper, "no line: operations due then never ended", 0.95)
        _shade_warmup(upper, run)
        _shade_warmup(lower, run, "")
        lower.set_xlabel("seconds since the load began")
        _mark_events(upper, run)
        caption(picture, [run])
    return picture


def latency_over_time(frame: pl.DataFrame, axes: Axes) -> Axes:
    """Columns t_s, p50, p99, worst in ms."""
    t = frame["t_s"].to_numpy()
    for name, colour, dash in (("worst", GREY, ":"), ("p99", RED, "--"), ("p50", BLUE, "-")):
        y = frame[name].to_numpy()
        axes.plot(t, np.where(np.isfinite(y), y, math.nan), color=colour, ls=dash, lw=1.4, label=name)
    return _log_ms(axes)


def _log_ms(axes: Axes) -> Axes:
    """A logarithmic axis of milliseconds, with ticks also where it spans less than a decade."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0,) if high > 300 * low else (1.0, 2.0, 5.0)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.6g}"))
    return axes


def _name_lines(axes: Axes) -> None:
    """Every labelled line's name at its right end, when the axis has its final range."""
    ends = []
    for line in reversed(axes.get_lines()):  # of lines that end alike, the first drawn is named on top
        y = np.asarray(line.get_ydata(), float)
        known, name = y[np.isfinite(y)], str(line.get_label())
        if len(known) and not name.startswith("_"):
            ends.append((float(known[-1]), name, str(line.get_color())))
    name_ends(axes, ends)


def rate_over_time(frame: pl.DataFrame, axes: Axes, offered: str) -> Axes:
    """Columns t_s, ok, offered (per second), unwell; the offered rate is drawn when it has a name."""
    t = frame["t_s"].to_numpy()
    if offered:
        axes.plot(t, frame["offered"].to_numpy(), color=GREY, lw=1, ls=":", label=offered)
    axes.plot(t, frame["ok"].to_numpy(), color=GREEN, lw=1.4, label="answered")
    bad = frame.filter(pl.col("unwell") > 0)
    if len(bad):
        axes.plot(bad["t_s"].to_numpy(), np.zeros(len(bad)), "|", color=RED, ms=12, clip_on=False)
        corner(axes, f"{int(bad['unwell'].sum()):,} failed, unknown or dropped", 0.08)
    axes.set_ylim(0, float(frame.select(pl.max_horizontal("ok", "offered").max()).item()) * 1.15)
    axes.set_ylabel("per second")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: short(v)))
    return axes


def memory_over_time(run: Run, targets: Targets | None = None) -> Picture:
    """PSS of the load generator, up to the end of the load, and of the server's processes, MiB."""
    with style():
        picture = Picture("memory over time")
        axes = picture.add_subplot()
        top = 0.0
        for source, colour, dash in (("loader", BLUE, "-"), ("server", RED, "--")):
            series = run.memory_of(source)
            if len(series):
                y = series["value"].to_numpy() / MIB
                axes.plot(series["t_ns"].to_numpy() / NS_PER_S, y, color=colour, ls=dash)
                axes.annotate(f"{source}\n{y[-1]:,.0f} MiB", (1.01, y[-1]), xycoords=("axes fraction", "data"),
                              color=colour, fontsize=9, va="center", annotation_clip=False)  # fmt: skip
                top = max(top, float(y.max()))
        if not top:
            nothing(axes)
            return picture
        axes.set_ylim(0, top * 1.25)
        for t in targets.thresholds if targets else ():
            if t.name == "memory" and t.limit > 3 * top:
                corner(axes, f"limit {t}, far above", 0.96)
            elif t.name == "memory":
                _limits(axes, [t])
        _shade_warmup(axes, run)
        axes.set_xlabel("seconds since the load began")
        axes.set_ylabel("memory (PSS), MiB")
        caption(picture, [run])
    return picture


def _limits(axes: Axes, thresholds: Sequence[Threshold]) -> None:
    for t in thresholds:
        low, high = axes.get_ylim()
        axes.set_ylim(min(low, t.limit * 0.7) if axes.get_yscale() == "log" else low, max(high, t.limit * 1.25))
        axes.axhline(t.limit, color=RED, lw=1, ls="--")
        _at_line(axes, t.limit, f"target: {t.name if t.name in PERCENTILES else ''} {t}".replace("  ", " "), RED)


def _at_line(axes: Axes, y: float, text: str, colour: str) -> None:
    axes.annotate(plain(text, 70), (0.01, y), (0, 3), xycoords=("axes fraction", "data"), textcoords="offset points",
                  color=colour, fontsize=9, bbox=BEHIND_TEXT)  # fmt: skip


def _shade_warmup(axes: Axes, run: Run, text: str = "warm-up") -> None:
    if run.row["warmup_s"]:
        axes.axvspan(0, run.row["warmup_s"], color="#000000", alpha=0.07, lw=0)
        axes.annotate(
            text,
            (0, 0),
            (3, 4),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            color=GREY,
            fontsize=9,
            bbox={"facecolor": "#ededed", "edgecolor": "none", "pad": 0.8},  # a line may pass behind it
        )


def _mark_events(axes: Axes, run: Run) -> None:
    """What a companion marked; the begin and end of the load itself are the picture's edges."""
    for t_ns, name, _ in run.marks.filter(pl.col("t_ns") >= 0).iter_rows():
        if name not in ("load begins", "load ends", "read back", "failed operations"):
            axes.axvline(t_ns / NS_PER_S, color=PURPLE, lw=1)
            axes.annotate(plain(name, 24), (t_ns / NS_PER_S, 1), (3, -14), xycoords=("data", "axes fraction"),
                          textcoords="offset points", color=PURPLE, fontsize=9)  # fmt: skip


def _largest(values: pl.Series) -> float:
    y = values.to_numpy()
    return float(np.max(y[np.isfinite(y)], initial=0.0))
