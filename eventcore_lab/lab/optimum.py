"""Sentences about a figure along a setting: where it is best, and how little of the setting is enough for nearly that."""

from __future__ import annotations

import math
from collections.abc import Sequence

from eventcore_lab.lab.arms import Arm, arms, ratio
from eventcore_lab.lab.measures import Run
from eventcore_lab.lab.sentences import NOTHING_MEASURED, Sentence
from eventcore_lab.lab.views import WORDS
from eventcore_lab.lab.wording import Names, digits, named, percent, said, told

SHARE = 0.9
"""Of the best: what is within a tenth of it is as good."""


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
        return NOTHING_MEASURED
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
        text += f", {said(ratio(at.runs, first.runs, figure), 'times')} what {named(first.value)} gives"
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
            share_of = "the most" if values[at] == top else f"{percent(values[at] / top)} of the most"
            parts.append(f"- {whose}{setting} ({digits(values[at])} {WORDS[figure]}, {share_of})")
    return Sentence("\n".join(parts)) if parts else NOTHING_MEASURED
