"""Stores compared under one load: each with a baseline of its own durability class, by ratios from paired trials.

Classes are kept apart, since an acknowledgement that is flushed and one that is not are two promises, and the price of the
one is no merit of the other. Runs of one store differ by more than blocks of time within a run do, so fewer than TRIALS_MIN
trials settle nothing. A store whose runs broke an invariant is shown with that, whatever it promises.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from msgspec import Struct, structs

from eventcore_lab.lab import claims
from eventcore_lab.lab.arms import TRIALS_MIN, Arm, arms, ratio
from eventcore_lab.lab.claims import Claim
from eventcore_lab.lab.measures import Run
from eventcore_lab.lab.picture import BEHIND_TEXT, BLUE, GREY, RED, Picture, nothing, plain, style
from eventcore_lab.lab.sentences import Sentence
from eventcore_lab.lab.stats import NOTHING, Estimate
from eventcore_lab.lab.table import Table
from eventcore_lab.lab.targets import Verdict
from eventcore_lab.lab.wording import digits, interval
from eventcore_lab.schema import SAFE_ORDER
from eventcore_lab.spec import parse

THROUGHPUT, LATENCY = "commands_per_second", "p95"
"""What is compared. The 95th percentile, since it has an interval from 200 samples on, where p99 needs 1,000."""


class Row(Struct, frozen=True):
    """One store: its closed loops, its open loops at the common rate, and both against the baseline of its class. `takes` and
    `waits` are how many times the baseline's throughput and latency it has; NOTHING for the baseline itself."""

    store: str
    durability: str
    baseline: str
    closed: tuple[Run, ...]
    at_rate: tuple[Run, ...]
    takes: Estimate
    waits: Estimate

    @property
    def is_baseline(self) -> bool:
        return self.store == self.baseline

    @property
    def violated(self) -> list[str]:
        """Invariants that some run of it broke."""
        runs = (*self.closed, *self.at_rate)
        names = [n for r in runs for n in r.invariants.filter(r.invariants["status"] == "violated")["name"]]
        return list(dict.fromkeys(names))


class Comparison:
    """`rows`, class by class in the order they come, the baseline of each class first. `matters`: what two stores differ by,
    in times, before anybody should care."""

    def __init__(
        self, closed: Sequence[Run], at_rate: Sequence[Run], baseline: str = "postgres", matters: float = 1.1
    ) -> None:
        self.matters = matters
        loops = {str(arm.value): arm.runs for arm in arms(closed, "store")}
        rated = {str(arm.value): arm.runs for arm in arms(at_rate, "store")}
        classes: dict[str, list[str]] = {}
        for store, runs in loops.items():
            classes.setdefault(durability_of(runs[0]), []).append(store)
        self.rows: list[Row] = []
        for durability, members in classes.items():
            first = baseline if baseline in members else members[0]
            for store in sorted(members, key=lambda name: name != first):
                takes = NOTHING if store == first else paired(loops[store], loops[first], THROUGHPUT)
                waits = NOTHING if store == first else paired(rated.get(store, ()), rated.get(first, ()), LATENCY)
                self.rows.append(Row(store, durability, first, loops[store], rated.get(store, ()), takes, waits))

    @property
    def others(self) -> list[Row]:
        """The rows that have somebody to be compared with."""
        return [row for row in self.rows if not row.is_baseline]

    def word(self, found: Estimate, more: str, less: str) -> str:
        """What an interval of a ratio says: `more`, `less`, `alike` (within `matters` both ways) or `not settled`."""
        if not found.has_interval:
            return "not settled"
        if found.low >= self.matters:
            return more
        if found.high <= 1 / self.matters:
            return less
        return "alike" if 1 / self.matters < found.low and found.high < self.matters else "not settled"

    def _cells(self, row: Row) -> list[str]:
        throughput, median, tail = (_shown(row, figure) for figure in (THROUGHPUT, "p50", LATENCY))
        wrong = "; ".join(row.violated) or "–"
        if row.is_baseline:
            return [row.store, throughput, "baseline", median, tail, "baseline", wrong]
        takes = f"{_times(row.takes)} {self.word(row.takes, 'faster', 'slower')}"
        waits = f"{_times(row.waits)} {self.word(row.waits, 'later', 'sooner')}"
        return [row.store, throughput, takes, median, tail, waits, wrong]

    _HEADS = (
        "store",
        "commands/s",
        "times the baseline's",
        "p50, ms",
        f"{LATENCY}, ms",
        f"times the baseline's {LATENCY}",
        "invariants broken",
    )

    def _repr_html_(self) -> str:
        head = "".join(f"<th scope='col'>{head}</th>" for head in self._HEADS)
        body = ""
        for durability in dict.fromkeys(row.durability for row in self.rows):
            body += f"<tr><th scope='rowgroup' colspan='{len(self._HEADS)}'>{html.escape(durability)}</th></tr>"
            for cells in (self._cells(row) for row in self.rows if row.durability == durability):
                rest = "".join(f"<td>{html.escape(cell)}</td>" for cell in cells[1:])
                body += f"<tr><th scope='row'>{html.escape(cells[0])}</th>{rest}</tr>"
        return f"<table class='facts'><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"

    def __repr__(self) -> str:
        rows = ([row.durability, *self._cells(row)] for row in self.rows)
        return repr(Table(["class", *self._HEADS], rows))


def paired(of: Sequence[Run], to: Sequence[Run], figure: str) -> Estimate:
    """The ratio of trials, with an interval only where there are TRIALS_MIN pairs of them."""
    found = ratio(of, to, figure)
    return found if min(len(of), len(to)) >= TRIALS_MIN else structs.replace(found, low=math.nan, high=math.nan)


def durability_of(run: Run) -> str:
    """The class that a run's acknowledgements belong to, without what it rests on."""
    found = str(run.row["durability"] or "unknown").partition(" (")[0].partition(":")[0]
    return "not durable" if found == "none" else found


def _shown(row: Row, figure: str) -> str:
    runs = row.closed if figure == THROUGHPUT else row.at_rate
    e = Arm(row.store, runs).estimate(figure)
    if math.isnan(e.value):
        return "not measured"
    return digits(e.value)


def _times(e: Estimate) -> str:
    if math.isnan(e.value):
        return "–"
    return digits(e.value) + interval(e)


def _listed(rows: Sequence[tuple[Row, Estimate]]) -> str:
    return ", ".join(f"{row.store} {_times(found)}" for row, found in rows)


def throughput(found: Comparison) -> Sentence:
    """Class by class: whose throughput is how many times the baseline's, the settled ones first."""
    return _told(found, "takes", THROUGHPUT, ("faster", "slower"))


def latency(found: Comparison) -> Sentence:
    """Class by class: whose latency at the common rate is how many times the baseline's."""
    return _told(found, "waits", LATENCY, ("later", "sooner"))


def _told(found: Comparison, what: str, figure: str, words: tuple[str, str]) -> Sentence:
    parts = []
    for durability in dict.fromkeys(row.durability for row in found.rows):
        rows = [row for row in found.rows if row.durability == durability]
        unit = " commands/s" if figure == THROUGHPUT else f" ms at {LATENCY}"
        text = f"**{durability[0].upper()}{durability[1:]}: {rows[0].store} {_shown(rows[0], figure)}{unit}.**"
        for word in (*words, "alike", "not settled"):
            said = [(row, getattr(row, what)) for row in rows[1:]]
            if those := [(row, e) for row, e in said if found.word(e, *words) == word]:
                text += f" {word[0].upper()}{word[1:]}: {_listed(those)}."
        parts.append(text + (" Nothing else is of this class." if len(rows) == 1 else ""))
    return Sentence("\n\n".join(parts) or "Nothing was measured.")


def ratios(found: Comparison, what: str = "takes") -> Picture:
    """How many times the baseline's each store's throughput (`takes`) or latency at the common rate (`waits`) is, by classes,
    with intervals. The band is where nobody should care; an interval that goes on beyond the picture ends in an arrow."""
    words = {"takes": "throughput", "waits": f"{LATENCY} at the common rate"}
    with style():
        rows = [row for row in found.others if getattr(row, what).value > 0]
        classes = list(dict.fromkeys(row.durability for row in rows))
        picture = Picture(f"{words[what]}, times the baseline's", min(0.45 + 0.1 * (len(rows) + len(classes)), 2.5))
        axes = picture.add_subplot()
        if not rows:
            nothing(axes)
            return picture
        axes.axvspan(1 / found.matters, found.matters, color=GREY, alpha=0.15, lw=0)
        axes.axvline(1, color=GREY, lw=1)
        places, n = [], 0.0
        for durability in classes:
            members = [row for row in rows if row.durability == durability]
            title = f"{durability}, to {members[0].baseline}"
            axes.annotate(plain(title, 60), (0.01, n), xycoords=("axes fraction", "data"), fontsize=9, color=GREY,
                          va="center", bbox=BEHIND_TEXT)  # fmt: skip
            for row in members:
                n += 1
                _interval(axes, n, getattr(row, what), found.word(getattr(row, what), "more", "less"))
                places.append((n, row))
            n += 1
        axes.set_yticks([at for at, _ in places], [plain(row.store, 34) for _, row in places])
        axes.set_ylim(n - 0.3, -0.6)
        axes.grid(visible=False, axis="y")
        _times_axis(axes, [getattr(row, what) for row in rows])
        for at, row in places:
            _arrows(axes, at, getattr(row, what), found.word(getattr(row, what), "more", "less"))
        axes.set_xlabel("times the baseline's")
        axes.set_title(f"{words[what]} (hollow: not settled)", fontsize=10, loc="left", color=GREY)
        runs = [run for row in found.rows for run in (row.closed if what == "takes" else row.at_rate)]
        text = f"{len(runs)} runs · {runs[0].row['pacer']} · {runs[0].row['workload']}"
        picture.supxlabel(plain(text, 80), x=0.99, ha="right", fontsize=8, color=GREY)
    return picture


def _interval(axes: Axes, n: float, e: Estimate, word: str) -> None:
    is_settled = word != "not settled"
    low, high = (e.low, e.high) if e.has_interval else (e.value, e.value)
    axes.plot([low, high], [n, n], color=BLUE if is_settled else RED, lw=2)
    face = BLUE if is_settled else "white"
    axes.plot([e.value], [n], marker="o", ms=7, color=BLUE if is_settled else RED, markerfacecolor=face, ls="")


def _arrows(axes: Axes, n: float, e: Estimate, word: str) -> None:
    """At the edges of the picture that an interval goes beyond."""
    left, right = axes.get_xlim()
    colour = RED if word == "not settled" else BLUE
    for edge, marker, is_beyond in ((left, "<", e.low < left), (right, ">", e.high > right)):
        if is_beyond:
            axes.plot([edge], [n], marker=marker, ms=7, color=colour, ls="", clip_on=False)


def _times_axis(axes: Axes, found: Sequence[Estimate]) -> None:
    edges = [v for e in found for v in (e.value, e.low, e.high) if math.isfinite(v) and v > 0]
    values = [e.value for e in found]
    low = max(min(*edges, 0.8) / 1.25, min(*values, 0.8) / 10)  # what few trials leave open may be four decades wide
    high = min(max(*edges, 1.25) * 1.25, max(*values, 1.25) * 10)
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    axes.xaxis.set_major_locator(FixedLocator(_ticks(low, high)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))


def _ticks(low: float, high: float) -> list[float]:
    """The most that fit, of decades, of 1, 2 and 5 in each, or of the neighbourhood of 1."""
    decades = [10.0**n for n in range(-4, 5)]
    lists = (decades, [f * t for t in decades for f in (1, 2, 5)], [0.5, 0.6, 0.7, 0.8, 0.9, 1, 1.25, 1.5, 2])
    fitting = [[t for t in ticks if low <= t <= high] for ticks in lists]
    return max([ticks for ticks in fitting if len(ticks) < 9], key=len, default=[1.0])


def claimed(found: Comparison) -> list[Claim]:
    """For each store that is compared: that it takes at least `matters` times the load of its baseline, and that it answers no
    later than `matters` times the baseline's 95th percentile. A ratio of too few trials settles nothing."""
    listed: list[tuple[Claim, Estimate]] = []
    for row in found.others:
        topic = "async_batching" if parse(row.store, "store").name == "grouped" else "load"
        base = next(r for r in found.rows if r.store == row.baseline)
        more = f"{row.store} takes at least {found.matters:g} times the load of {row.baseline}"
        claim = claims.claim(topic, more, row.closed, base.closed, THROUGHPUT, at_least=found.matters)
        listed.append((claim, row.takes))
        if row.at_rate and base.at_rate:
            late = f"at one rate, {LATENCY} of {row.store} is at most {found.matters:g} times that of {row.baseline}"
            claim = claims.claim(topic, late, row.at_rate, base.at_rate, LATENCY, at_most=found.matters)
            listed.append((claim, row.waits))
    return [c if e.has_interval else structs.replace(c, status="not settled", measured=e) for c, e in listed]


def concluded(found: Comparison) -> Verdict:
    """Every claim, and the invariants of the stores that promise a safe order. Of the others a broken invariant is told."""
    runs = [run for row in found.rows for run in (*row.closed, *row.at_rate) if run.promises(SAFE_ORDER)]
    told = [row for row in found.rows if row.violated and not row.closed[0].promises(SAFE_ORDER)]
    more = "".join(f" Not judged, for it does not promise it: {r.store} broke {'; '.join(r.violated)}." for r in told)
    return claims.concluded("Stores and settings compared", claimed(found), runs, Sentence(_in_short(found) + more))


def _in_short(found: Comparison) -> str:
    """Whose throughput is settled to be more or less than that of its baseline, and whose is not settled."""
    words, parts = ("faster", "slower", "alike", "not settled"), []
    for baseline in dict.fromkeys(row.baseline for row in found.others):
        rows = [row for row in found.others if row.baseline == baseline]
        by_word = {w: [(r, r.takes) for r in rows if found.word(r.takes, "faster", "slower") == w] for w in words}
        told = "; ".join(f"{word}: {_listed(those)}" for word, those in by_word.items() if those)
        parts.append(f"Times the throughput of {baseline}, {told}.")
    return " ".join(parts)


def settings(found: Comparison) -> Sentence:
    """What to choose: in each class the stores that nobody is settled to be faster than, of those that broke nothing."""
    lines = []
    for durability in dict.fromkeys(row.durability for row in found.rows):
        sound = [r for r in found.rows if r.durability == durability and not r.violated]
        if not sound:
            lines.append(f"- {durability}: no store here kept its invariants.")
            continue
        best = max(sound, key=lambda r: _value(r.closed))
        rivals = [r for r in sound if r is not best and not _is_below(r, best, found)]
        also = f" (not told apart from it: {', '.join(r.store for r in rivals)})" if rivals else ""
        lines.append(f"- {durability}: `{best.store}`{also}, {_value(best.closed):,.0f} commands/s here.")
    return Sentence("\n".join(lines))


def _is_below(row: Row, best: Row, found: Comparison) -> bool:
    return found.word(paired(row.closed, best.closed, THROUGHPUT), "more", "less") == "less"


def _value(runs: Sequence[Run]) -> float:
    value = Arm("", tuple(runs)).estimate(THROUGHPUT).value
    return -math.inf if math.isnan(value) else value


def caution(found: Comparison) -> Sentence:
    """What the intervals rest on, and how many of so many comparisons are wrong by chance."""
    lines = []
    for what, trials in (
        ("throughput", min((len(row.closed) for row in found.rows), default=0)),
        ("latency", min((len(row.at_rate) for row in found.rows), default=0)),
    ):
        rests = f"are from {trials} paired trials in random order" if trials >= TRIALS_MIN else "are not given"
        more = "" if trials >= TRIALS_MIN else f": {trials} trials, and nothing is settled by fewer than {TRIALS_MIN}"
        lines.append(f"- Intervals of ratios of {what} {rests}{more}.")
    n = 2 * len(found.others)
    lines.append(f"- {n} comparisons at 95 % each: by chance alone {0.05 * n:.1f} of them would look settled.")
    lines.append("- Stores of different classes are never compared: no figure here says what durability costs.")
    return Sentence("\n".join(lines))
