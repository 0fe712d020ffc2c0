"""Read models beside a load: what keeping one costs the writers, how far it is behind, how long its refreshes take as events
grow in number, and how long who asks it must wait."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator
from numpy.typing import NDArray

from eventcore_lab.lab.arms import Arm, arms, ratio, where
from eventcore_lab.lab.claims import Claim, claim, of_trials, settled
from eventcore_lab.lab.measures import Run
from eventcore_lab.lab.numbers import Number, exactly
from eventcore_lab.lab.picture import (
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    RED,
    Picture,
    caption,
    name_ends,
    nothing,
    plain,
    style,
)
from eventcore_lab.lab.sentences import NOTHING_MEASURED, Sentence
from eventcore_lab.lab.stats import Estimate, percentile
from eventcore_lab.lab.table import Table
from eventcore_lab.lab.unpromised import parts
from eventcore_lab.lab.wording import digits, percent, said
from eventcore_lab.spec import parse

TOPIC = "projections"
NAMES = {"": "without"}
COST_MAX = 0.1
"""What keeping a read model may take from the writers' throughput before it is told to cost them something."""
_RATE = "commands_per_second"
_COLOURS, _MARKERS, _DASHES = (BLUE, RED, GREEN, PURPLE, ORANGE), "osD^v", ("-", "--", "-.", ":", (0, (5, 1, 1, 1)))


def plans_of(
    views: Sequence[str], tables: Sequence[str], sizes: Sequence[int], every_s: float, events: int
) -> list[dict[str, str]]:
    """Workload and projection of look-ups in each view, at each number of users, and in each table at the largest; each user
    has so many events."""
    asked = [(f"{view}:every_s={every_s:g}", view, n) for view in views for n in sizes]
    asked += [(table, table, max(sizes)) for table in tables if sizes]
    return [{"projection": kept, "workload": f"read_model:of={of},users={n},events={events}"} for kept, of, n in asked]


def gauge(runs: Iterable[Run], name: str, steady: bool = True) -> NDArray[np.float64]:
    """What the keepers of the runs' read models told under `name` (`lag_ms`, `refresh_ms`), ascending, all runs together."""
    found = [np.empty(0)]
    for run in runs:
        if run.row["projection"]:
            source = f"projection {parse(run.row['projection'], 'projection').name}"
            found.append(run.gauge(source, name, steady)["value"].to_numpy().astype(np.float64))
    return np.sort(np.concatenate(found))


def lag_ms(runs: Sequence[Run]) -> Estimate:
    """How far the read model was behind, the median of all looks at it, with its worst as the interval's upper end; ms."""
    lags = gauge(runs, "lag_ms")
    return Estimate(percentile(lags, 0.5), percentile(lags, 0.5), percentile(lags, 1.0), len(lags))


LAG = Number("lag", "behind the store, ms", "ms", lambda run: exactly((e := lag_ms([run])).value, e.n))


def refresh_ms(runs: Sequence[Run]) -> Estimate:
    """How long a refresh took, the median, from the shortest to the longest; ms."""
    took = gauge(runs, "refresh_ms", steady=False)
    return Estimate(percentile(took, 0.5), percentile(took, 1e-9), percentile(took, 1.0), len(took))


def events_in(run: Run) -> int:
    """How many events the store was filled with before the load."""
    told = run.marks.filter(pl.col("name") == "store filled")["detail"].to_list()
    return int(told[0].split()[0]) if told else 0


# what it costs the writers, and how far it is behind


def cost(writers: Sequence[Run]) -> Sentence:
    """What writers do beside each read model, of what they do without."""
    alone = where(writers, projection="")
    told = [
        f"`{way.value}` {said(ratio(way.runs, alone, _RATE), 'times')}"
        for way in arms(writers, "projection")
        if way.value
    ]
    if not told or not alone:
        return Sentence("There is nothing to compare.")
    rate = digits(arms(alone, "projection")[0].estimate(_RATE).value)
    return Sentence(
        f"**Of the {rate} commands/s that writers do without a read model they do beside: {'; '.join(told)}.**"
    )


def behind(writers: Sequence[Run]) -> Sentence:
    """How far each read model was behind while the writers went on."""
    told = []
    for way in (way for way in arms(writers, "projection") if way.value):
        lag = lag_ms(way.runs)
        if lag.n and lag.high > 0:
            told.append(f"`{way.value}` {digits(lag.value)} ms in the median, {digits(lag.high)} ms at worst")
        elif lag.n:
            told.append(f"`{way.value}` never")
    return Sentence(f"**Behind the store: {'; '.join(told)}.**" if told else "No read model was kept.")


def table(writers: Sequence[Run]) -> Table:
    """One row per read model: what writers did beside it, and how far it was behind."""
    heads = ("read model", "commands/s", "p50, ms", "p99, ms", "behind, ms", "at worst, ms", "refresh, ms")
    rows = []
    for way in arms(writers, "projection"):
        lag, refresh = lag_ms(way.runs), refresh_ms(way.runs)
        figures = [way.estimate(name).value for name in (_RATE, "p50", "p99")]
        rows.append(
            [NAMES.get(str(way.value), str(way.value)), *map(digits, [*figures, lag.value, lag.high, refresh.value])]
        )
    return Table(heads, rows)


def lags(writers: Sequence[Run]) -> Picture:
    """How far each read model was behind: from the median to the worst of all looks at it."""
    found = [(str(way.value), lag_ms(way.runs)) for way in arms(writers, "projection") if way.value]
    with style():
        picture = Picture("how far read models are behind", height=min(max(0.45 + 0.11 * len(found), 0.6), 2.0))
        axes = picture.add_subplot()
        known = [(name, lag) for name, lag in found if lag.n]
        if not known:
            nothing(axes)
            return picture
        positive = [v for _, lag in known for v in (lag.value, lag.high) if v > 0]
        left = min(positive, default=1.0) / 2
        for n, (_, lag) in enumerate(known):
            at = [max(v, left) for v in (lag.value, lag.high)]
            axes.plot(at, [n, n], color=BLUE, lw=3, solid_capstyle="butt")
            axes.plot(at[:1], [n], color=BLUE, marker="o", ms=7, ls="", clip_on=False)
            axes.plot(at[1:], [n], color=RED, marker="|", ms=14, mew=2, ls="")
            text = f"{digits(lag.value)} to {digits(lag.high)} ms" if lag.high > 0 else "never behind"
            axes.annotate(text, (at[1], n), (8, 0), textcoords="offset points", va="center", fontsize=9)
        axes.set_yticks(range(len(known)), [plain(name, 30) for name, _ in known])
        axes.invert_yaxis()
        axes.set_ylim(len(known) - 0.5, -0.5)
        axes.set_xscale("log")
        axes.set_xlim(left, max(positive, default=1.0) * 8)
        _ticks(axes.xaxis, left, max(positive, default=1.0), dense_to=50)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel("behind the store, ms: median (dot) to worst (bar)")
        caption(picture, writers)
    return picture


# refreshes as events grow in number, and who asks meanwhile


def refreshes(looks: Sequence[Run]) -> Sentence:
    """How long a refresh takes with the fewest events and with the most."""
    told = []
    for view in arms(looks, "projection"):
        sizes = [(events_in(a.runs[0]), refresh_ms(a.runs)) for a in arms(view.runs, "workload")]
        known = sorted((events, took) for events, took in sizes if took.n)
        if known:
            first, last = known[0], known[-1]
            text = f"`{view.value}` {digits(first[1].value)} ms over {first[0]:,} events"
            told.append(text + (f", {digits(last[1].value)} ms over {last[0]:,}" if last[0] > first[0] else ""))
    return Sentence(f"**A refresh takes, in the median: {'; '.join(told)}.**" if told else "Nothing was refreshed.")


def refresh_along(looks: Sequence[Run]) -> Picture:
    """How long a refresh of each view takes (median, from the shortest to the longest) along the events in the store."""
    with style():
        picture = Picture("time of a refresh along the number of events")
        axes, ends, every = picture.add_subplot(), [], []
        for i, view in enumerate(arms(looks, "projection")):
            points = [(events_in(a.runs[0]), refresh_ms(a.runs)) for a in arms(view.runs, "workload")]
            known = sorted([(x, e) for x, e in points if e.n and x], key=lambda p: p[0])
            if known:
                _line(axes, known, i)
                ends.append((known[-1][1].value, str(view.value), _COLOURS[i % 5]))
                every += known
        if not every:
            nothing(axes)
            return picture
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_ylim(min(e.low for _, e in every) / 2, max(e.high for _, e in every) * 2)
        ticks = sorted({x for x, _ in every})
        axes.xaxis.set_major_locator(FixedLocator(ticks))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.0f}"))
        axes.margins(x=0.06)
        _ticks(axes.yaxis, *axes.get_ylim())
        axes.set_xlabel("events in the store")
        axes.set_ylabel("time of a refresh, ms")
        name_ends(axes, ends)
        caption(picture, looks)
    return picture


def _line(axes: Axes, points: Sequence[tuple[int, Estimate]], i: int) -> None:
    x, y = [x for x, _ in points], [e.value for _, e in points]
    spans = np.array([[e.value - e.low for _, e in points], [e.high - e.value for _, e in points]])
    look = {"color": _COLOURS[i % 5], "marker": _MARKERS[i % 5], "ls": _DASHES[i % 5]}
    axes.errorbar(x, y, spans, ms=5, capsize=3, elinewidth=1, **look)  # type: ignore[arg-type]


def _ticks(axis: object, low: float, high: float, dense_to: float = 300) -> None:
    """Plain numbers along a logarithmic axis, also within decades where it spans no more than `dense_to` times."""
    axis.set_major_locator(LogLocator(subs=(1.0,) if high > dense_to * low else (1.0, 2.0, 5.0)))  # type: ignore[attr-defined]
    axis.set_minor_locator(NullLocator())  # type: ignore[attr-defined]
    axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.6g}"))  # type: ignore[attr-defined]


def largest(looks: Sequence[Run]) -> list[Run]:
    """The runs with the most events in the store."""
    filled = [(events_in(run), run) for run in looks]
    most = max((n for n, _ in filled), default=0)
    return [run for n, run in filled if n == most]


def asked(looks: Sequence[Run]) -> Sentence:
    """How long a look-up takes in each read model, with the most events in the store."""
    most = largest(looks)
    told = [
        f"`{way.value}` {said(way.estimate('p50'), 'ms')} in the median, {digits(way.estimate('p99').value)} ms at p99"
        for way in arms(most, "projection")
    ]
    if not told:
        return Sentence("Nobody asked.")
    return Sentence(f"**A look-up beside {events_in(most[0]):,} events takes: {'; '.join(told)}.**")


# what is put to the test


def claims_of(writers: Sequence[Run], looks: Sequence[Run]) -> list[Claim]:
    """What is said of projections, put to the test: what they cost, how far they are behind, how refreshes grow, who waits."""
    ways, alone = {str(way.value): way for way in arms(writers, "projection")}, where(writers, projection="")
    found = [
        claim(TOPIC, f"beside {name}, writers do at least {1 - COST_MAX:g} times what they do without", way.runs, alone,
              at_least=1 - COST_MAX)
        for name, way in ways.items() if name and alone
    ]  # fmt: skip
    return found + _claims_of_lag(ways) + _claims_of_refreshes(looks) + _claims_of_readers(looks)


def _claims_of_lag(ways: dict[str, Arm]) -> list[Claim]:
    """What is kept event by event is a tenth as far behind as what is refreshed."""
    lagging = {name: lag_ms(way.runs) for name, way in ways.items() if name}
    refreshed = {n: e for n, e in lagging.items() if refresh_ms(ways[n].runs).n and e.n and e.value > 0}
    found = []
    for name in (n for n, e in lagging.items() if e.n and not refresh_ms(ways[n].runs).n):
        for view, lag in list(refreshed.items())[:1]:
            ours, theirs = ways[name].runs, ways[view].runs
            is_never = all(LAG.of(run).value == 0 for run in ours)  # no ratio of medians says more
            times = exactly(0, lag.n) if is_never else LAG.times(ours, theirs)
            text = f"{name} is at most 0.1 times as far behind as {view}, in the median"
            reason = f"{digits(lagging[name].value)} to {digits(lag.value)} ms"
            made = settled(TOPIC, text, times, "times", reason, ours[0].run_id, at_most=0.1)
            found.append(made if is_never else of_trials(made, min(len(ours), len(theirs))))
    return found


def _claims_of_refreshes(looks: Sequence[Run]) -> list[Claim]:
    """A refresh does not take longer in proportion to what is there."""
    found = []
    for view in arms(looks, "projection"):
        sizes = sorted([(events_in(a.runs[0]), a) for a in arms(view.runs, "workload")], key=lambda s: s[0])
        (few, first), (many, last) = sizes[0], sizes[-1]
        short, long = refresh_ms(first.runs), refresh_ms(last.runs)
        if many > few and short.n and long.n:
            times = _times(long, short)
            text = f"{view.value}: a refresh takes at most twice as long with {many / few:.3g} times the events"
            reason = f"{digits(short.value)} ms over {few:,}, {digits(long.value)} ms over {many:,} events"
            reason += "; the interval is of the shortest and the longest" if times.has_interval else ""
            made = settled(TOPIC, text, times, "times", reason, last.runs[0].run_id, at_most=2)
            found.append(made if times.has_interval else of_trials(made, 1))
    return found


REFRESHES_MIN = 3
"""Of fewer refreshes nothing is settled."""


def _times(long: Estimate, short: Estimate) -> Estimate:
    """How many times as long refreshes take, at the least (the shortest of the one, the longest of the other) and at the
    most: with this few, wider than an interval at 95 % of their medians would be."""
    if min(long.n, short.n) < REFRESHES_MIN:
        return exactly(long.value / short.value, long.n)
    return Estimate(long.value / short.value, long.low / short.high, long.high / short.low, long.n)


def _claims_of_readers(looks: Sequence[Run]) -> list[Claim]:
    """Who asks what is refreshed waits no longer than who asks a table."""
    ways = arms(largest(looks), "projection")
    refreshed = [way for way in ways if refresh_ms(way.runs).n]
    return [
        claim(TOPIC, f"a look-up in {view.value} takes at most twice what one in {kept.value} takes, at p99", view.runs,
              kept.runs, "p99", at_most=2)
        for view in refreshed for kept in [way for way in ways if way not in refreshed][:1]
    ]  # fmt: skip


def settings(writers: Sequence[Run]) -> Sentence:
    """Of the read models that cost the writers no more than COST_MAX, the one that is least behind, and how sure that is. What
    never promised to be what the events say is never advised."""
    alone = where(writers, projection="")
    found = [
        (lag_ms(w.runs), ratio(w.runs, alone, _RATE), w.value)
        for w in arms(writers, "projection")
        if w.value and not any(parts(w.runs[0]))
    ]
    known = [f for f in found if f[0].n and not math.isnan(f[1].value)]
    cheap = [f for f in known if f[1].value >= 1 - COST_MAX] or known
    if not cheap:
        return NOTHING_MEASURED
    lag, times, name = min(cheap, key=lambda f: f[0].high)
    which = (
        f"cost writers at most {percent(COST_MAX)}"
        if times.value >= 1 - COST_MAX
        else f"were kept (none was measured to cost writers at most {percent(COST_MAX)})"
    )
    how_far = f"at most {digits(lag.high)} ms behind" if lag.high > 0 else "never behind"
    return Sentence(
        f"Of the read models that {which}, **{name}** is least behind: {how_far}, with {said(times, 'times')} the commands."
    )
