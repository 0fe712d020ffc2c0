"""What a cache of states is worth: how often it had what a command needed, how often the workload's picks let it, and what
commands gained by it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from eventcore_lab.lab.arms import arms, ratio, value_of
from eventcore_lab.lab.claims import Claim, claim, settled
from eventcore_lab.lab.measures import Run
from eventcore_lab.lab.numbers import Number, exactly
from eventcore_lab.lab.picture import GREY, Picture, style
from eventcore_lab.lab.sentences import NOTHING_MEASURED, Sentence
from eventcore_lab.lab.stats import NOTHING, Estimate
from eventcore_lab.lab.wording import named, percent, said

SIZE = 1000
"""How many states a cache keeps unless it is told."""


def counts(run: Run) -> dict[str, float]:
    """What the run's executor counted, by name."""
    return dict(run.gauges.filter(pl.col("source") == "executor").select("name", "value").iter_rows())


def hits(run: Run) -> Estimate:
    """Streams that commands found in the cache, in percent of those they asked it for; the warm-up included."""
    counted = counts(run)
    asked = counted.get("cache_hits", 0) + counted.get("cache_misses", 0)
    return exactly(100 * counted["cache_hits"] / asked, int(asked)) if asked else NOTHING


HITS = Number("cache hits", "found in the cache, %", "%", hits)


def possible_hits(run: Run) -> float:
    """The percentage of hits that an LRU cache of the run's size lets its picks have, the first look at each stream included;
    NaN where the picks are not independent draws.

    Che, Tung and Wang (2002): an entry stays for the time T in which as many different streams as there is room for come up,
    so that the next pick of stream i is a hit with probability 1 - exp(-p_i·T), and before T with 1 - exp(-p_i·k) at pick k.
    """
    asked = hits(run).n
    streams = int(value_of(run, "users", value_of(run, "streams", 0)))
    pick, theta = value_of(run, "pick", "uniform"), float(value_of(run, "theta", 0.99))
    if not asked or not streams or pick not in ("uniform", "zipf"):
        return math.nan
    p = np.arange(1, streams + 1, dtype=np.float64) ** -(theta if pick == "zipf" else 0.0)
    p /= p.sum()
    stays = _stay(p, int(value_of(run, "size", SIZE)))
    filling = min(float(asked), stays)
    # the mean of 1 - exp(-p·k) over the picks k up to `filling`, then constant
    while_filling = p @ (1 + np.expm1(-p * filling) / (p * filling))
    after = p @ -np.expm1(-p * filling)
    return float(100 * (filling * while_filling + (asked - filling) * after) / asked)


def _stay(p: NDArray[np.float64], size: int) -> float:
    """For how many picks an entry stays; for ever where there is room for all."""
    if size >= len(p):
        return math.inf

    from scipy.optimize import brentq  # a fifth of a second to import, for one notebook

    def too_many(t: float) -> float:
        return float(-np.expm1(-p * t).sum()) - size

    most = float(size)
    while too_many(most) < 0:
        most *= 2
    return float(brentq(too_many, 0.0, most))


def hits_by_size(runs: Sequence[Run], streams: str = "users") -> Picture:
    """Hits along the cache's size, a line for each number of streams; dotted what the picks allow."""
    names = {a.value: f"{a.value:,} streams" for a in arms(runs, streams) if not isinstance(a.value, str)}
    picture = HITS.along(runs, "size", streams, "states in the cache", names=names, default=SIZE, span=(0, 105))
    with style():
        axes = picture.axes[0]
        for group in arms(runs, streams):
            points = [
                (float(a.value), float(np.mean([possible_hits(r) for r in a.runs])))
                for a in arms(group.runs, "size", SIZE)
            ]
            if all(math.isfinite(y) for _, y in points):
                axes.plot(*zip(*points, strict=True), color=GREY, ls=":", lw=1.2, zorder=1)
        axes.set_title("dotted: what the picks allow, first looks included", fontsize=9, color=GREY, loc="left")
    return picture


def found_in_cache(runs: Sequence[Run], streams: str = "users") -> Sentence:
    """The hits of the smallest and the largest cache for each number of streams, and the largest distance from what the
    picks allow."""
    parts = []
    for group in arms(runs, streams):
        sizes = [a for a in arms(group.runs, "size", SIZE) if not math.isnan(HITS.together(a.runs).value)]
        if sizes:
            told = {f"{a.value:,} states {HITS.said(a.runs)}": None for a in (sizes[0], sizes[-1])}
            parts.append(f"{group.value:,} streams: " + ", ".join(told))
    if not parts:
        return Sentence("No cache was asked for anything.")
    apart = [abs(hits(r).value - p) for r in runs if math.isfinite(p := possible_hits(r))]
    text = f"**Of what commands asked the cache for, it had: {'; '.join(parts)}.**"
    if apart:
        text += f" That is within {max(apart):.1f} percentage points of what the picks allow."
    return Sentence(text)


def gain(runs: Sequence[Run], by: str, plain: str = "direct", figure: str = "commands_per_second") -> Sentence:
    """How many times what `plain` does each of the other executors does, at the least and the most `by`."""
    ends = arms(runs, by)
    if not ends:
        return NOTHING_MEASURED
    parts = []
    for executor in dict.fromkeys(run.row["executor"] for run in runs if run.row["executor"] != plain):
        told = []
        for a in {arm.value: arm for arm in (ends[0], ends[-1])}.values():
            of, to = (_through(a.runs, e) for e in (executor, plain))
            told.append(f"{said(ratio(of, to, figure), 'times')} at {by}={a.value}")
        parts.append(f"`{executor}` {' and '.join(told)}")
    found = [f"`{a.value}` {HITS.said(a.runs)}" for a in arms(ends[-1].runs, "executor") if hits(a.runs[0]).n]
    had = (
        f" Found in the cache of what it was asked for, at {by}={ends[-1].value}: {', '.join(found)}." if found else ""
    )
    return Sentence(f"**Against {plain}, by {figure.replace('_', ' ')}: {'; '.join(parts)}.**{had}")


def in_short(by_length: Sequence[Run], cache: str, plain: str = "direct") -> Sentence:
    """What a cache does to the commands of `plain`, on the longest streams and on the shortest."""
    lengths = arms(by_length, "events")
    told = []
    for a in {arm.value: arm for arm in reversed([*lengths[:1], *lengths[-1:]])}.values():
        times = ratio(_through(a.runs, cache), _through(a.runs, plain), "commands_per_second")
        told.append(
            f"{said(times, 'times')} the commands of {plain} on streams of {a.value:,} event{'' if a.value == 1 else 's'}"
        )
    return Sentence(f"A cache answers {', '.join(told)}.") if told else NOTHING_MEASURED


def conflicts(runs: Sequence[Run], by: str = "workers") -> Sentence:
    """The share of attempts that met a conflict, by executor and `by`."""
    parts = []
    for a in arms(runs, by):
        told = [f"`{e.value}` {said(e.estimate('conflicts/attempts'), '%')}" for e in arms(a.runs, "executor")]
        parts.append(f"{by} {named(a.value)}: {', '.join(told)}")
    return Sentence(f"**Attempts that met a conflict, {'; '.join(parts)}.**") if parts else NOTHING_MEASURED


def settings(runs: Sequence[Run], share: float = 0.9, streams: str = "users") -> Sentence:
    """The smallest cache within `share` of the most hits, for each number of streams."""
    parts = []
    for group in arms(runs, streams):
        found = {a.value: HITS.together(a.runs).value for a in arms(group.runs, "size", SIZE)}
        known = {size: v for size, v in found.items() if not math.isnan(v)}
        if known:
            size = next(s for s, v in known.items() if v >= share * max(known.values()))
            parts.append(
                f"for {group.value:,} streams {size:,} states ({known[size]:.0f} %, best {max(known.values()):.0f} %)"
            )
    if not parts:
        return NOTHING_MEASURED
    return Sentence(f"The smallest cache that has at least {percent(share)} of the most hits: {'; '.join(parts)}.")


def names(runs: Sequence[Run]) -> dict[str | float, str]:
    """Executor → its first word, where that tells them apart."""
    words: dict[str | float, str] = {run.row["executor"]: run.row["executor"].partition("(")[0] for run in runs}
    return words if len(set(words.values())) == len(words) else {}


HITS_APART_MAX = 5.0
"""Percentage points that hits may be from what the picks allow: of a thousand looks chance alone moves one run in a hundred by
four, and callers at once look for a stream again before the first has read it."""


def claimed(
    by_size: Sequence[Run], by_length: Sequence[Run], by_writers: Sequence[Run], executors: Sequence[str]
) -> list[Claim]:
    """What is claimed of a cache. `executors`: without, with a cache, and with the chapter's."""
    plain, cache, chapter = executors
    lengths = arms(by_length, "events")
    found = []
    apart = [abs(hits(r).value - p) for r in by_size if math.isfinite(p := possible_hits(r))]
    if apart:
        text = f"a cache has what the picks allow, to {HITS_APART_MAX:g} percentage points"
        worst, reason = exactly(max(apart), len(apart)), f"the furthest of {len(apart)} runs"
        found.append(settled("caching", text, worst, "points", reason, by_size[0].run_id, at_most=HITS_APART_MAX))
    for name, executor, least in (("a cache", cache, 1.5), ("the chapter's cache, which reads first,", chapter, 1.1)):
        text = f"on streams of {named(lengths[-1].value)} events {name} answers {least:g} times the commands of {plain}"
        of, to = (_through(lengths[-1].runs, e) for e in (executor, plain))
        found.append(claim("caching", text, of, to, at_least=least))
    several = [a for a in arms(by_writers, "workers") if float(a.value) > 1]
    if several:
        of, to = (_through(several[0].runs, e) for e in (cache, plain))
        who = f"with {named(several[0].value)} processes that write to the same streams"
        text = f"{who} a cache still answers as many commands as {plain}"
        found.append(claim("caching", text, of, to, at_least=1.0))
        found.append(_few_conflicts(of, who))
    return found


def _few_conflicts(runs: Sequence[Run], who: str, most: float = 5.0) -> Claim:
    [arm] = arms(runs, "executor")
    text = f"{who} at most {most:g} % of a cache's attempts meet a conflict"
    conflicts = arm.estimate("conflicts/attempts")
    return settled(
        "caching", text, conflicts, "%", "stale states are refused by the append", runs[0].run_id, at_most=most
    )


def _through(runs: Sequence[Run], executor: str) -> list[Run]:
    return [run for run in runs if run.row["executor"] == executor]
