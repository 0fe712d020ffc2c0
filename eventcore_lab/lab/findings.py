"""Sentences about a figure along a setting: where it is best, and how little of the setting is enough for nearly that."""

from __future__ import annotations

import math
from collections.abc import Sequence

from eventcore_lab.lab.arms import TRIALS_MIN, Arm, Value, arms
from eventcore_lab.lab.measures import UNITS, Run
from eventcore_lab.lab.sentences import Sentence
from eventcore_lab.lab.stats import Estimate
from eventcore_lab.lab.views import WORDS, Names

SHARE = 0.9
"""Of the best: what is within a tenth of it is as good."""
NOTHING = Sentence("Nothing was measured.")


def told(e: Estimate, figure: str) -> str:
    """A value with its interval and its unit, for people."""
    if math.isnan(e.value):
        return "not measured"
    if math.isinf(e.value):
        return "longer than anybody waited"
    unit = "/s" if UNITS[figure] == "/s" else f" {UNITS[figure]}"
    return f"{digits(e.value)}{f' [{digits(e.low)} – {digits(e.high)}]' if e.has_interval else ''}{unit}"


def digits(value: float) -> str:
    """Three significant digits, or all of those before the point."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def named(value: Value, names: Names | None = None) -> str:
    if names and value in names:
        return names[value]
    return value if isinstance(value, str) else f"{value:,.10g}"


def most(
    runs: Sequence[Run],
    by: str,
    figure: str,
    words: str,
    lines: str = "",
    names: Names | None = None,
) -> Sentence:
    """Where `figure` (a rate) is highest along `by`, and what that is to the first setting, the best of `lines` first. `words`
    says a setting as people do: "in pages of {}"."""
    found = [peak for group in _groups(runs, lines) if (peak := _peak(group, by, figure, words, names))]
    if not found:
        return NOTHING
    (_, best), *rest = sorted(found, key=lambda f: -f[0])
    return Sentence(
        " ".join([f"**Most {WORDS[figure]}: {best}.**", *(f"{text[0].upper()}{text[1:]}." for _, text in rest)])
    )


def _groups(runs: Sequence[Run], lines: str) -> list[Arm]:
    return arms(runs, lines) if lines else [Arm("", tuple(runs))]


def _peak(group: Arm, by: str, figure: str, words: str, names: Names | None) -> tuple[float, str] | None:
    """The highest value and the words for it; None where nothing was measured."""
    found = [(a, e) for a in arms(group.runs, by) if not math.isnan((e := a.estimate(figure)).value)]
    if not found:
        return None
    (first, least), (at, top) = found[0], max(found, key=lambda f: f[1].value)
    whose = f"{named(group.value, names)}, " if group.value != "" else ""
    text = f"{whose}{told(top, figure)} {words.format(named(at.value))}"
    if at is not first and least.value > 0:
        text += f", {top.value / least.value:.1f} times what {named(first.value)} gives"
    return top.value, text


def enough(
    runs: Sequence[Run],
    by: str,
    figure: str,
    words: str,
    lines: str = "",
    names: Names | None = None,
    share: float = SHARE,
) -> Sentence:
    """The smallest setting of `by` that gives nearly the highest `figure`, a line for each of `lines`."""
    parts = []
    for group in _groups(runs, lines):
        values = {a.value: v for a in arms(group.runs, by) if (v := a.estimate(figure).value) > 0}
        if values:
            top = max(values.values())
            at = next(n for n, v in values.items() if v >= share * top)
            whose = f"{named(group.value, names)}: " if lines else ""
            setting = words.format(f"**{named(at)}**")
            parts.append(
                f"- {whose}{setting} ({digits(values[at])} {WORDS[figure]}, {values[at] / top:.0%} of the most)"
            )
    return Sentence("\n".join(parts)) if parts else NOTHING


def rests(**trials: int) -> Sentence:
    """What the intervals of each part rest on, by how often it was run: `rests(sizes=1, settings=3)`."""
    few = [name.replace("_", " ") for name, n in trials.items() if n < TRIALS_MIN]
    many = [f"{name.replace('_', ' ')} ({n})" for name, n in trials.items() if n >= TRIALS_MIN]
    lines = [f"- Intervals from trials, in a random order each time: {', '.join(many)}."] if many else []
    if few:
        lines.append(
            f"- Fewer than {TRIALS_MIN} trials, so that intervals are from blocks of time within a run and too narrow: "
            f"{', '.join(few)}."
        )
    return Sentence("\n".join(lines))
