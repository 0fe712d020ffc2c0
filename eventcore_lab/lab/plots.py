"""Pictures of what was measured: a drawing function takes a frame and an axes and returns the axes, and one call over runs
makes the whole picture that a notebook's cell shows.

One style throughout: the colours of Okabe and Ito (2008), which colour-blind people tell apart, with markers and dashes that
grey print tells apart; labels stand at what they name instead of in a legend; what is drawn has its unit on the axis.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from eventcore_lab.clock import NS_PER_S
from eventcore_lab.lab.measures import MIB, PERCENTILES, Run
from eventcore_lab.lab.sentences import option
from eventcore_lab.lab.stats import percentile, samples_needed
from eventcore_lab.lab.targets import Targets, Threshold
from eventcore_lab.schema import Outcome

BLUE, ORANGE, GREEN, RED, PURPLE, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#666666"
_COLOURS = (BLUE, RED, GREEN, PURPLE, ORANGE, "#56B4E9")
_MARKERS, _DASHES = "osD^vP", ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)))
_STYLE: Any = {
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.edgecolor": "#888888",
    "axes.linewidth": 0.8,
    "figure.constrained_layout.use": True,
    "figure.facecolor": "white",
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.8,
    "lines.linewidth": 1.8,
}
_SIZE = (6.4, 3.6)
_DPI = 144
_WORDS = {"commands_per_second": "commands per second", "events_per_second": "events per second"}
_TAIL = (0.5, 0.9, 0.99, 0.999, 0.9999)
BINS = 60


class Picture(Figure):
    """A figure that a notebook shows as the last value of a cell, with a text for those who cannot see it."""

    def __init__(self, alt: str, height: float = 1.0) -> None:
        super().__init__(figsize=(_SIZE[0], _SIZE[1] * height))
        FigureCanvasAgg(self)
        self.alt = alt

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        data = io.BytesIO()
        with matplotlib.rc_context(_STYLE):
            self.savefig(data, format="png", dpi=_DPI, metadata={"Software": ""})
        width = int(self.get_figwidth() * 100)
        return (
            {"image/png": data.getvalue(), "text/plain": f"<picture: {self.alt}>"},
            {"image/png": {"width": width, "alt": self.alt}},
        )


def plain(text: object, chars_max: int = 48) -> str:
    """`text` for a label: no mathematics, no control characters, cut to fit."""
    clean = "".join(c if c.isprintable() else " " for c in str(text))
    return (clean if len(clean) <= chars_max else clean[: chars_max - 1] + "…").replace("$", r"\$")


def throughput_by(
    runs: Sequence[Run],
    by: str,
    figure: str = "commands_per_second",
    targets: Targets | None = None,
    floor: Sequence[Run] = (),
) -> Picture:
    """`figure` (per second, with its 95 % interval) of each run against its `batch` or `concurrency`."""
    default = {"batch": 1, "concurrency": 10}.get(by, 1)
    rows = [(option(r, by, default), e.value, e.low, e.high) for r in runs for e in [r.figure(figure).estimate]]
    frame = pl.DataFrame(rows, schema=["x", "value", "low", "high"], orient="row", strict=False).sort("x")
    with matplotlib.rc_context(_STYLE):
        picture = Picture(f"{_WORDS[figure]} against {by}")
        axes = throughput(frame, picture.add_subplot(), f"{by} ({'events per append' if by == 'batch' else 'callers'})")
        axes.set_ylabel(_WORDS[figure])
        for run in floor:
            level = run.figure(figure).estimate.value
            if math.isfinite(level):
                axes.axhline(level, color=GREY, lw=1, ls=":")
                _at_line(axes, level, f"{run.row['store']} store: {level:,.0f}/s, the harness's own limit", GREY)
                _scale(axes, np.append(frame["value"].to_numpy(), level))
        _limits(axes, [t for t in targets.thresholds if t.name == figure] if targets else [])
        _caption(picture, runs)
    return picture


def throughput(frame: pl.DataFrame, axes: Axes, x_label: str) -> Axes:
    """Columns x, value, low, high (per second); each point with its interval and its value."""
    known = frame.filter(pl.col("value").is_not_nan())
    if not len(known):
        return _nothing(axes)
    x, y = known["x"].to_numpy(), known["value"].to_numpy()
    spans = np.nan_to_num(np.abs(np.vstack([y - known["low"].to_numpy(), known["high"].to_numpy() - y])))
    axes.errorbar(x, y, spans, color=BLUE, marker="o", ms=5, capsize=3, elinewidth=1)
    for at, value in zip(x, y, strict=True):
        axes.annotate(
            _short(value), (at, value), (0, 8), textcoords="offset points", ha="center", color=BLUE, fontsize=9
        )
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(sorted({float(v) for v in x})))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.0f}"))
    axes.set_xlabel(x_label)
    axes.margins(x=0.08)
    return _scale(axes, y)


def _scale(axes: Axes, values: Any) -> Axes:
    """Linear from zero, or logarithmic where the values span more than thirty times."""
    known = np.asarray([v for v in np.atleast_1d(values) if np.isfinite(v) and v > 0])
    if len(known) and known.max() > 30 * known.min():
        axes.set_yscale("log")
        axes.set_ylim(known.min() / 2, known.max() * 2.5)
        axes.yaxis.set_minor_locator(NullLocator())
    elif len(known):
        axes.set_ylim(0, known.max() * 1.25)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: _short(v)))
    return axes


def latency_percentiles(runs: Sequence[Run], targets: Targets | None = None) -> Picture:
    """Latency (or service time) of each run by percentile, the tail stretched as by a logarithm, to the last percentile
    that has ten samples beyond it."""
    with matplotlib.rc_context(_STYLE):
        picture = Picture("latency percentiles, tail stretched")
        axes = picture.add_subplot()
        names = [_told_apart(run, runs) for run in runs]
        ends = []
        for i, (run, name) in enumerate(zip(runs, names, strict=True)):
            frame = percentile_curve(run)
            if len(frame):
                colour = _COLOURS[i % len(_COLOURS)]
                percentiles(frame, axes, color=colour, ls=_DASHES[i % len(_DASHES)])
                ends.append((_stretched(frame["p"][-1]), frame["ms"][-1], name, colour))
        if not ends:
            _nothing(axes)
        else:
            _tail_axis(axes, max(x for x, *_ in ends), runs)
            _names_at_ends(axes, [e for e in ends if len(runs) > 1])
        for t in targets.thresholds if targets and ends else ():
            if t.name in PERCENTILES:
                _mark_limit(axes, t)
        _caption(picture, runs)
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


def _stretched(p: float) -> float:
    return -math.log10(1 - p)


def _tail_axis(axes: Axes, last: float, runs: Sequence[Run]) -> None:
    ticks = [p for p in (0.0, *_TAIL) if _stretched(p) <= last + 1e-9]
    axes.set_xticks([_stretched(p) for p in ticks], [f"{100 * p:.6g} %" for p in ticks])
    axes.set_xlim(0, last * 1.02)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.6g}"))
    axes.set_xlabel("percentile of operations")
    axes.set_ylabel(f"{runs[0].latency_word}, ms")


def _names_at_ends(axes: Axes, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Each curve's name at its right end, moved apart where curves meet."""
    low, high = axes.get_ylim()
    placed: list[float] = []
    for _, y, name, colour in sorted(ends, key=lambda e: e[1]):
        at = math.log(y / low) / math.log(high / low)
        at = max(at, placed[-1] + 0.075) if placed else at
        placed.append(at)
        axes.text(1.01, at, plain(name), color=colour, fontsize=9, va="center", transform=axes.transAxes)


def _told_apart(run: Run, runs: Sequence[Run]) -> str:
    """What distinguishes a run from the others: its concurrency, its batch, or all of it."""
    for name, word in (("concurrency", "caller"), ("batch", "per append")):
        values = [option(r, name, 1) for r in runs]
        if len(set(values)) > 1:
            value = option(run, name, 1)
            return f"{value:,} {word}{'s' if word == 'caller' and value != 1 else ''}"
    return f"{run.row['store']} {run.row['pacer']}"


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
    with matplotlib.rc_context(_STYLE):
        picture = Picture("latency and throughput over time", 1.45)
        upper, lower = picture.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        frame = binned(run)
        if not len(frame):
            _nothing(upper)
            _nothing(lower)
            return picture
        latency_over_time(frame, upper)
        upper.set_ylabel(f"{run.latency_word}, ms")
        for t in targets.thresholds if targets else ():
            if t.name == "p99" and t.limit < 30 * (frame.select(pl.col("worst").max()).item() or 0.0):
                _limits(upper, [t])
        rate_over_time(frame, lower, "" if run.is_closed_loop else "offered")
        _shade_warmup(upper, run)
        _shade_warmup(lower, run, "")
        lower.set_xlabel("seconds since the load began")
        _mark_events(upper, run)
        _caption(picture, [run])
    return picture


def binned(run: Run) -> pl.DataFrame:
    """Columns t_s, p50, p99, worst (ms, of operations due in the bin), ok and offered (per second), unwell (count)."""
    s = run.samples
    end_ns = max(int(run.row["warmup_s"] * NS_PER_S) + int(run.row["measured_ns"]), 1)
    width = max(end_ns // BINS, 1)
    latency = pl.when(pl.col("outcome") == int(Outcome.OK)).then((pl.col("ended_ns") - pl.col("due_ns")) / 1e6)
    unwell = pl.col("outcome").is_in([int(Outcome.FAILED), int(Outcome.UNKNOWN), int(Outcome.DROPPED)])
    return (
        s.filter(pl.col("due_ns") < end_ns)
        .with_columns(bin=pl.col("due_ns") // width, ms=latency)
        .group_by("bin")
        .agg(
            p50=pl.col("ms").quantile(0.5, "higher"),
            p99=pl.col("ms").quantile(0.99, "higher"),
            worst=pl.col("ms").max(),
            # As floats: a count is a 32-bit integer, which nanoseconds would overflow.
            ok=(pl.col("outcome") == int(Outcome.OK)).sum().cast(pl.Float64) * (NS_PER_S / width),
            offered=pl.len().cast(pl.Float64) * (NS_PER_S / width),
            unwell=unwell.sum(),
        )
        .sort("bin")
        .with_columns(t_s=(pl.col("bin") + 0.5) * width / NS_PER_S)
    )


def latency_over_time(frame: pl.DataFrame, axes: Axes) -> Axes:
    """Columns t_s, p50, p99, worst in ms."""
    t, ends = frame["t_s"].to_numpy(), []
    for name, colour, dash in (("worst", GREY, ":"), ("p99", RED, "--"), ("p50", BLUE, "-")):
        y = frame[name].to_numpy()
        axes.plot(t, y, color=colour, ls=dash, lw=1.4)
        known = y[np.isfinite(y)]
        if len(known):
            ends.append((0.0, float(known[-1]), name, colour))
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.6g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    _names_at_ends(axes, ends)
    return axes


def rate_over_time(frame: pl.DataFrame, axes: Axes, offered: str) -> Axes:
    """Columns t_s, ok, offered (per second), unwell; the offered rate is drawn when it has a name."""
    t = frame["t_s"].to_numpy()
    if offered:
        axes.plot(t, frame["offered"].to_numpy(), color=GREY, lw=1, ls=":", label=offered)
    axes.plot(t, frame["ok"].to_numpy(), color=GREEN, lw=1.4)
    bad = frame.filter(pl.col("unwell") > 0)
    if len(bad):
        axes.plot(bad["t_s"].to_numpy(), np.zeros(len(bad)), "|", color=RED, ms=12, clip_on=False)
        _corner(axes, f"{int(bad['unwell'].sum()):,} failed, unknown or dropped", 0.08)
    axes.set_ylim(0, float(frame.select(pl.max_horizontal("ok", "offered").max()).item()) * 1.15)
    axes.set_ylabel("answered per second")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: _short(v)))
    return axes


def memory_over_time(run: Run, targets: Targets | None = None) -> Picture:
    """PSS of the load generator and of the server's processes, MiB."""
    with matplotlib.rc_context(_STYLE):
        picture = Picture("memory over time")
        axes = picture.add_subplot()
        top = 0.0
        for source, colour, dash in (("loader", BLUE, "-"), ("server", RED, "--")):
            series = run.gauge(source, "pss_bytes", steady=False)
            if len(series):
                y = series["value"].to_numpy() / MIB
                axes.plot(series["t_ns"].to_numpy() / NS_PER_S, y, color=colour, ls=dash)
                axes.annotate(f"{source}\n{y[-1]:,.0f} MiB", (1.01, y[-1]), xycoords=("axes fraction", "data"),
                              color=colour, fontsize=9, va="center", annotation_clip=False)  # fmt: skip
                top = max(top, float(y.max()))
        if not top:
            _nothing(axes)
            return picture
        axes.set_ylim(0, top * 1.25)
        for t in targets.thresholds if targets else ():
            if t.name == "memory" and t.limit > 3 * top:
                _corner(axes, f"limit {t}, far above", 0.96)
            elif t.name == "memory":
                _limits(axes, [t])
        _shade_warmup(axes, run)
        axes.set_xlabel("seconds since the load began")
        axes.set_ylabel("memory (PSS), MiB")
        _caption(picture, [run])
    return picture


def _limits(axes: Axes, thresholds: Sequence[Threshold]) -> None:
    for t in thresholds:
        low, high = axes.get_ylim()
        axes.set_ylim(min(low, t.limit * 0.7) if axes.get_yscale() == "log" else low, max(high, t.limit * 1.25))
        axes.axhline(t.limit, color=RED, lw=1, ls="--")
        _at_line(axes, t.limit, f"target: {t.name if t.name in PERCENTILES else ''} {t}".replace("  ", " "), RED)


def _at_line(axes: Axes, y: float, text: str, colour: str) -> None:
    axes.annotate(plain(text, 70), (0.01, y), (0, 3), xycoords=("axes fraction", "data"), textcoords="offset points",
                  color=colour, fontsize=9)  # fmt: skip


def _corner(axes: Axes, text: str, y: float) -> None:
    axes.text(0.99, y, text, color=RED, fontsize=9, ha="right", va="center", transform=axes.transAxes)


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
        )


def _mark_events(axes: Axes, run: Run) -> None:
    """What a companion marked; the begin and end of the load itself are the picture's edges."""
    for t_ns, name, _ in run.marks.iter_rows():
        if name not in ("load begins", "load ends", "read back", "failed operations"):
            axes.axvline(t_ns / NS_PER_S, color=PURPLE, lw=1)
            axes.annotate(plain(name, 24), (t_ns / NS_PER_S, 1), (3, -14), xycoords=("data", "axes fraction"),
                          textcoords="offset points", color=PURPLE, fontsize=9)  # fmt: skip


def _nothing(axes: Axes) -> Axes:
    axes.text(0.5, 0.5, "nothing was measured", ha="center", color=GREY, transform=axes.transAxes)
    axes.set_axis_off()
    return axes


def _caption(picture: Figure, runs: Sequence[Run]) -> None:
    if runs:
        r = runs[0].row
        which = r["run_id"] if len(runs) == 1 else f"{len(runs)} runs"
        text = f"{plain(r['store'])} · {plain((r['durability'] or '').partition(' (')[0], 24)} · {which}"
        picture.supxlabel(text, x=0.99, ha="right", fontsize=8, color=GREY)


def _short(value: float) -> str:
    """1,234 below ten thousand, 12.3k above."""
    if abs(value) >= 1e6:
        return f"{value / 1e6:.3g}M"
    return f"{value / 1e3:.3g}k" if abs(value) >= 1e4 else f"{value:,.0f}"
