"""The chapter's faults as they showed themselves: how often, as sentences, pictures, a table of all thirty that passes none
over, and claims. The facts come from trials (load.faults), known here by their shape."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from textwrap import fill
from typing import Protocol

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from msgspec import structs

from eventcore_lab.lab import claims
from eventcore_lab.lab.claims import Claim
from eventcore_lab.lab.faults_known import FIRST, KNOWN, OURS, Fault
from eventcore_lab.lab.measures import Run
from eventcore_lab.lab.picture import (
    BEHIND_TEXT,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    RED,
    Picture,
    name_ends,
    nothing,
    plain,
    style,
)
from eventcore_lab.lab.sentences import Sentence
from eventcore_lab.lab.stats import CONFIDENCE, NOTHING, Estimate, growth
from eventcore_lab.lab.targets import Judgement, Targets, Verdict, judge

CHAPTER, SAMPLED = "the chapter's", "sampled all the while"


class Fact(Protocol):
    """`value` of one arm at one setting: a count out of `of`, or where `of` is 0 a measure by itself."""

    @property
    def fault(self) -> str: ...
    @property
    def arm(self) -> str: ...
    @property
    def at(self) -> float: ...
    @property
    def value(self) -> float: ...
    @property
    def of(self) -> float: ...


class Shown(Protocol):
    """`asked`: the faults that were tried; `broken`: those whose trial broke, with the reason."""

    @property
    def asked(self) -> Sequence[str]: ...
    @property
    def facts(self) -> Sequence[Fact]: ...
    @property
    def broken(self) -> Mapping[str, str]: ...


def estimate(fact: Fact) -> Estimate:
    """A share in percent with Wilson's interval (Wilson 1927), as for independent throws; a measure, and a share that has no
    chance in it, without one."""
    share = 100 * fact.value / fact.of if fact.of else fact.value
    if not fact.of or KNOWN[fact.fault].is_certain:
        return Estimate(share, math.nan, math.nan, max(int(fact.of), 1))
    from scipy.stats import binomtest  # half a second to import, for one notebook

    found = binomtest(round(fact.value), round(fact.of)).proportion_ci(CONFIDENCE, "wilson")
    return Estimate(share, 100 * float(found.low), 100 * float(found.high), int(fact.of))


def _of(shown: Shown, name: str, arm: str) -> list[Fact]:
    return sorted([f for f in shown.facts if (f.fault, f.arm) == (name, arm)], key=lambda f: f.at)


def _arms(shown: Shown, name: str) -> list[str]:
    return list(dict.fromkeys(f.arm for f in shown.facts if f.fault == name))


def worst(shown: Shown, name: str, arm: str = CHAPTER) -> Fact | None:
    """The fact of an arm where it is surely worst: a share with the highest lower end, the last of a measure compared."""
    facts = _of(shown, name, arm)
    if not facts:
        return None
    return max(facts, key=_surely) if facts[0].of else _largest(facts, KNOWN[name])


def _surely(fact: Fact) -> tuple[float, float]:
    e = estimate(fact)
    return (e.low if e.has_interval else e.value), fact.of


def _largest(facts: Sequence[Fact], fault: Fault) -> Fact:
    return facts[-1] if fault.to or fault.is_at_most else max(facts, key=lambda f: f.value)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == round(value) or abs(value) >= 1000 else f"{value:.3g}"


def _told(fact: Fact | None, fault: Fault, is_long: bool = True) -> str:
    """A fact in words: how many of how many, and what that is."""
    if fact is None:
        return "–"
    if not fact.of:
        return f"{_number(fact.value)} {fault.unit}"
    e = estimate(fact)
    counted = f"{fact.value:,.0f} of {fact.of:,.0f}"
    interval = f" [{e.low:.3g} – {e.high:.3g}]" if e.has_interval else ""
    return f"{counted} ({e.value:.3g} %{interval})" if is_long else counted


def _same(shown: Shown, name: str, arm: str, at: float) -> Fact | None:
    return next((f for f in _of(shown, name, arm) if f.at == at), None)


def sentence(shown: Shown, name: str) -> Sentence:
    """How bad it is where it is worst, and what the other arms do there."""
    if name in shown.broken:
        return Sentence(f"**{name} was not shown: its trial broke ({shown.broken[name]}).**")
    fault, fact = KNOWN[name], worst(shown, name)
    if fact is None:
        return Sentence(f"{name} was not tried.")
    text = f"**{name}: {_told(fact, fault)} {fault.figure}** ({fault.setting}: {_number(fact.at)})."
    for arm in (arm for arm in _arms(shown, name) if arm != CHAPTER):
        text += f" {arm[0].upper()}{arm[1:]}: {_told(_same(shown, name, arm, fact.at), fault)}."
    return Sentence(text + _besides(shown, name))


_BESIDES = {
    "F7 longest": ("The longest append", "ms"),
    "F23 refresh": ("The refresh itself", "ms"),
    "F29 held": ("With a delivery that takes 30 s, one check takes", "s"),
}


def _besides(shown: Shown, name: str) -> str:
    """What a trial noted beside its figure: the highest of each arm; and of the leak its slope."""
    text = ""
    for key, (words, unit) in _BESIDES.items():
        arms = _arms(shown, key) if key.startswith(f"{name} ") else []
        listed = [f"{arm} {_number(max(f.value for f in _of(shown, key, arm)))} {unit}" for arm in arms]
        text += f" {words}: {', '.join(listed)}." if listed else ""
    return text + (_slope(shown) if name == "F16" else "")


def _slope(shown: Shown) -> str:
    facts = _of(shown, "F16", SAMPLED)
    e = growth(np.array([f.at for f in facts]), np.array([f.value for f in facts]))
    if not facts or facts[-1].at == facts[0].at:
        return ""
    per = [v * 2**20 / 1000 / (facts[-1].at - facts[0].at) for v in (e.value, e.low, e.high)]
    return f" It grows by {per[0]:.3g} kB a command [{per[1]:.3g} – {per[2]:.3g}]."


_LOOKS = {CHAPTER: (RED, "X", "-"), OURS: (BLUE, "o", "-"), SAMPLED: (BLUE, "o", "-")}
_OTHERS = ((GREEN, "D", "-."), (ORANGE, "s", "--"))


def picture(shown: Shown, name: str) -> Picture:
    """The figure of one fault along its setting, a line for each arm, shares with their intervals."""
    fault = KNOWN[name]
    with style():
        arms = _arms(shown, name)
        drawn = Picture(f"{name}: {fault.figure} along {fault.setting}", 0.95 if arms else 0.2)
        axes = drawn.add_subplot()
        if not arms:
            nothing(axes)
            return drawn
        others = iter(_OTHERS * 2)
        ends = [_line(axes, _of(shown, name, arm), arm, _LOOKS.get(arm) or next(others)) for arm in arms]
        if fault.line:
            axes.axhline(fault.line[0], color=GREY, lw=1, ls="--")
            axes.annotate(fault.line[1], (0.01, fault.line[0]), (0, 3), xycoords=("axes fraction", "data"),
                          textcoords="offset points", color=GREY, fontsize=9, bbox=BEHIND_TEXT)  # fmt: skip
        _scale(axes, [f for arm in arms for f in _of(shown, name, arm)], fault)
        name_ends(axes, ends)
        axes.set_xlabel(fault.setting)
        axes.set_title(plain(f"{fault.figure}, {fault.unit}", 90), fontsize=10, loc="left", color=GREY)
    return drawn


def _line(axes: Axes, facts: Sequence[Fact], arm: str, look: tuple[str, str, str]) -> tuple[float, str, str]:
    found = [estimate(f) for f in facts]
    spans = [
        [e.value - e.low if e.has_interval else 0 for e in found],
        [e.high - e.value if e.has_interval else 0 for e in found],
    ]
    colour, marker, dash = look
    spans = [[max(v, 0.0) for v in side] for side in spans]
    axes.errorbar([f.at for f in facts], [e.value for e in found], spans, color=colour, marker=marker, ms=6, ls=dash,
                  capsize=3, elinewidth=1, clip_on=False)  # fmt: skip
    return found[-1].value, arm, colour


def _scale(axes: Axes, facts: Sequence[Fact], fault: Fault) -> None:
    ticks = sorted({f.at for f in facts})
    if ticks[0] > 0 and ticks[-1] > 5 * ticks[0] and len(ticks) < 9:  # many are a course of events
        axes.set_xscale("log")
        ticks = [t for n, t in enumerate(ticks) if n in (0, len(ticks) - 1) or t >= 1.6 * ticks[n - 1]]
    if len(ticks) > 8:
        ticks = ticks[1::2]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.6g}"))
    highs = [e.high if e.has_interval else e.value for e in map(estimate, facts)]
    top = max(*highs, fault.line[0] if fault.line else 0.0, 1e-9)
    axes.set_ylim(0, min(1.15 * top, 103.0) if fault.unit == "%" else 1.15 * top)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.6g}"))


def shares(shown: Shown) -> Picture:
    """Every fault that is counted, where it is worst: the share that went wrong, and ours."""
    with style():
        rows = [(name, f) for name in KNOWN if (f := worst(shown, name)) is not None and f.of]
        drawn = Picture("how often each fault shows itself", min(max(0.4 + 0.075 * len(rows), 0.6), 2.0))
        axes = drawn.add_subplot()
        if not rows:
            nothing(axes)
            return drawn
        for n, (name, fact) in enumerate(rows):
            e, ours = estimate(fact), worst(shown, name, OURS)
            if e.has_interval:
                axes.plot([e.low, e.high], [n, n], color=RED, lw=2)
            axes.plot([e.value], [n], "X", color=RED, ms=7, clip_on=False)
            if ours is not None:
                axes.plot([estimate(ours).value], [n], "o", color=BLUE, ms=5, clip_on=False)
        labels = [f"{name}  {fill(plain(KNOWN[name].figure, 80), 44)}" for name, _ in rows]
        axes.set_yticks(range(len(rows)), labels, fontsize=8)
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.set_xlim(-2, 103)
        axes.set_xlabel("% at its worst (✕ the chapter's, ● ours)")
    return drawn


def status(shown: Shown, name: str) -> str:
    """`shown`, `not seen here`, or `not shown` and why; with what of it is no matter of a running system."""
    beyond = f"; {KNOWN[name].beyond}" if KNOWN[name].beyond else ""
    if name in shown.broken:
        return f"not shown: its trial broke ({shown.broken[name]}){beyond}"
    if name not in shown.asked:
        return f"not shown: not tried this time{beyond}"
    fact = worst(shown, name)
    if fact is None:
        return f"not shown: its trial gave no fact{beyond}"
    return (
        "shown" if claimed_of(shown, name, "").status == "held" else "not shown: not seen clearly enough here"
    ) + beyond


class Table:
    """All thirty faults, none left out: what goes wrong, whether it was shown, the chapter's number and ours."""

    _HEADS = ("fault", "what goes wrong", "shown?", "what is counted or measured", "the chapter's", "ours")

    def __init__(self, shown: Shown) -> None:
        self.rows = [self._row(shown, name) for name in KNOWN]

    @staticmethod
    def _row(shown: Shown, name: str) -> list[str]:
        fault, fact = KNOWN[name], worst(shown, name)
        counted = f"{fault.figure} ({fault.setting}: {_number(fact.at)})" if fact else fault.figure
        ours = _same(shown, name, OURS, fact.at) if fact else None
        return [name, fault.what, status(shown, name), counted, _told(fact, fault), _told(ours, fault, is_long=False)]

    def _repr_html_(self) -> str:
        head = "".join(f"<th scope='col'>{head}</th>" for head in self._HEADS)
        body = ""
        for first, *rest in self.rows:
            body += f"<tr><th scope='row'>{first}</th>{''.join(f'<td>{html.escape(cell)}</td>' for cell in rest)}</tr>"
        return f"<table class='facts'><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"

    def __repr__(self) -> str:
        return "\n".join("  ".join(row) for row in [list(self._HEADS), *self.rows])


def counted(shown: Shown) -> Sentence:
    """How many of the thirty were shown, and which were not."""
    by_status = {name: status(shown, name) for name in KNOWN}
    seen = [name for name, text in by_status.items() if text.startswith("shown")]
    why: dict[str, list[str]] = {}
    for name, text in by_status.items():
        if name not in seen:
            why.setdefault(text.removeprefix("not shown: "), []).append(name)
    missing = "; ".join(f"{', '.join(names)} ({reason})" for reason, names in why.items())
    text = f"**{len(seen)} of the {len(KNOWN)} faults were shown with a number.**"
    return Sentence(text + (f" Not shown: {missing}." if missing else ""))


def claimed_of(shown: Shown, name: str, run_id: str) -> Claim:
    """What is claimed of a fault, by its facts."""
    fault, fact = KNOWN[name], worst(shown, name)
    found, unit, reason = NOTHING, fault.unit, "nothing was recorded to measure it from"
    if fact is not None:
        found, reason = estimate(fact), f"{fault.setting}: {_number(fact.at)}"
        if fault.to:
            other = _same(shown, *((fault.to, CHAPTER) if fault.to.startswith("F") else (name, fault.to)), fact.at)
            times = fact.value / other.value if other and other.value > 0 else math.nan
            found, unit = Estimate(times, math.nan, math.nan, 1), "times"
            reason += f"; {_told(fact, fault)} to {_told(other, fault)} ({fault.to})"
    bound = {"at_most" if fault.is_at_most else "at_least": fault.least}
    return claims.settled(fault.topic, f"{name}: {fault.figure}", found, unit, reason, run_id, **bound)


def _free(shown: Shown, name: str, run_id: str) -> Judgement | None:
    """That ours has none of a fault that is counted."""
    if not (facts := [f for f in _of(shown, name, OURS) if f.of]):
        return None
    wrong, of = sum(f.value for f in facts), sum(f.of for f in facts)
    state, nan = "violated" if wrong else "pass", math.nan
    return Judgement("invariant", f"{name} in ours", "= 0", wrong, nan, nan, "wrong", state, f"of {of:,.0f}", run_id)


def concluded(shown: Shown, theirs: Run, ours: Run) -> Verdict:
    """A claim for each fault; that ours has none that is counted; the invariants of our run beside. `theirs`: a run of the
    chapter's store under the same load, by which claims are looked up, and which is told and not judged."""
    listed = [claimed_of(shown, name, theirs.run_id) for name in KNOWN if name in shown.asked]
    free = [j for name in KNOWN if (j := _free(shown, name, ours.run_id)) is not None]
    title = "The faults of the chapter's own code"
    kept = judge(Targets.of(name=title), ours).judgements
    verdict = Verdict(title, (*[c.judgement for c in listed], *free, *kept))
    broken = [j for j in verdict.judgements if j.status == "violated"]
    text = counted(shown).text.replace("*", "")
    text += (
        f" Ours is not free of: {'; '.join(j.name for j in broken)}." if broken else " Ours has none of those counted."
    )
    return structs.replace(verdict, answer=text)


def beside_a_load(theirs: Run, ours: Run) -> Sentence:
    """What the checkers find after one load on the chapter's store, and after the same on ours."""
    parts = []
    for run in (theirs, ours):
        rows = run.invariants.filter(run.invariants["status"] == "violated")
        wrong = "; ".join(f"{name} ({int(n):,})" for name, n in rows.select("name", "wrong").iter_rows())
        skipped = run.readers["skipped"].sum() if len(run.readers) else 0
        parts.append(
            f"**{run.row['store']}: {len(rows)} invariants violated**"
            + (f": {wrong}" if wrong else "")
            + f". Its reader skipped {int(skipped):,}."
        )
    return Sentence(" ".join(parts))


def caution(shown: Shown) -> Sentence:
    """What the figures rest on."""
    lines = [
        "Shares have intervals as if every event, append or command were a throw of its own; those of one batch or one burst "
        "share their fate, so that the true intervals are wider. Values in ms are of one trial, without an interval.",
        "Each fault is told at the worst of the settings that were tried: a rate of this trial, not of anybody's production.",
        "F8 to F13 and F17 to F19 are in virtual time over a store in memory, F1's clock is a compiled loop's; the rest is on "
        "PostgreSQL, in the process that says this. What is counted does not hang on its speed.",
        f"Tried {len(shown.asked)} of {len(KNOWN)}; broken trials: {', '.join(shown.broken) or 'none'}.",
    ]  # fmt: skip
    return Sentence("\n".join(f"- {line}" for line in lines))


def cures(shown: Shown) -> Sentence:
    """What to use instead, for the six that are shown first, as far as they were."""
    listed = {
        "F1": "read behind a position that is unique (`read_all`), never behind a time",
        "F2": "a position whose order is the commits' order for readers: `postgres` (notebook 11 has the others' price)",
        "F3": "check and insert in one statement, with a unique key on stream and version",
        "F7": "write the streams of an append in one order",
        "F14": "streams of their own for every iteration, and a look at every result",
        "F16": "sample memory all the while, and ask for its slope",
    }
    return Sentence("\n".join(f"- {n}: {listed[n]}." for n in FIRST if status(shown, n).startswith("shown")))
