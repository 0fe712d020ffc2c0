"""Commands that want the same streams: how much a limit of commands at a time brings, what waiting and conflicts cost, and what
keeping them apart leaves behind. A run's `label` says how its commands were kept apart."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from eventcore_lab.lab.arms import arms, ratio, value_of, values_of, where
from eventcore_lab.lab.claims import Claim, claim, settled
from eventcore_lab.lab.measures import Run
from eventcore_lab.lab.sentences import NOTHING_MEASURED, Sentence
from eventcore_lab.lab.stats import Estimate
from eventcore_lab.lab.table import Table
from eventcore_lab.lab.wording import digits, enumerated, percent, said
from eventcore_lab.schema import Outcome

TOPIC = "parallelism"
APART, BY_ITSELF, CHAPTERS, TOGETHER = "parallel", "each by itself", "the chapter's", "in batches"
SHARE = 0.9
"""A setting is enough when it gives this share of what the best gives."""


def ways(inside: str, limits: Sequence[int]) -> dict[str, list[str]]:
    """Label → executors of each way to deal with commands that may want the same streams, around the executor `inside`: kept
    apart by each limit, and by none; the chapter's with the highest; put together."""
    return {
        APART: [f"parallel({inside}):limit={n}" for n in limits],
        BY_ITSELF: [inside],
        CHAPTERS: [f"chapter_parallel({inside}):limit={max(limits)}"],
        TOGETHER: [f"batching({inside}):delay_ms=0"],
    }


def at_highest(runs: Sequence[Run]) -> list[Run]:
    """The runs of each way, of those kept apart only what has the highest limit."""
    highest = values_of(where(runs, label=APART), "limit")[-1:]
    return [run for run in runs if run.row["label"] != APART or value_of(run, "limit") in highest]


def counted(runs: Sequence[Run], name: str) -> float:
    """What the executors counted under `name`, the mean over the runs; NaN where none counts it."""
    values = [float(v.sum()) for r in runs if len(v := r.gauge("executor", name, steady=False)["value"].to_numpy())]
    return sum(values) / len(values) if values else math.nan


def waited_share(runs: Sequence[Run]) -> float:
    """The percentage of commands that had to wait for one of their streams; NaN for executors that do not count it."""
    asked = sum(len(run.samples) for run in runs) / len(runs) if runs else 0
    return 100 * counted(runs, "waited_for_stream") / asked if asked else math.nan


def wait_ms(runs: Sequence[Run]) -> float:
    """The mean time of a command that was done before it got to the store: for its turn, its permit, a connection; ms."""
    frames = [run.steady.filter(outcome=int(Outcome.OK)).select("began_ns", "acquired_ns").to_numpy() for run in runs]
    rows = np.concatenate(frames) if frames else np.empty((0, 2))
    return float(np.maximum(rows[:, 1] - rows[:, 0], 0).mean()) / 1e6 if len(rows) else math.nan


def table(runs: Sequence[Run], option: str) -> Table:
    """One row per way of keeping commands apart, limit and number of streams (`option` of the workload): conflicts of all
    attempts, commands not done, the mean wait for turn, permit and connection."""
    heads = (
        "kept apart",
        "at a time",
        "streams",
        "commands/s",
        "conflicts",
        "not done",
        "wait, ms",
        "p50, ms",
        "p99, ms",
    )
    rows = []
    for way in arms(runs, "label"):
        for limit in arms(way.runs, "limit", ""):
            for spread in arms(limit.runs, option):
                values = {name: spread.estimate(name).value for name in _FIGURES}
                shares = [values["conflicts/attempts"], values["failures/attempts"]]
                times = [wait_ms(spread.runs), values["p50"], values["p99"]]
                first = [
                    str(way.value),
                    str(limit.value) or "–",
                    f"{spread.value:,}",
                    digits(values["commands_per_second"]),
                ]
                rows.append([*first, *(f"{digits(s)} %".replace("– %", "–") for s in shares), *map(digits, times)])
    return Table(heads, rows)


_FIGURES = ("commands_per_second", "conflicts/attempts", "failures/attempts", "p50", "p99")


def gain(limited: Sequence[Run], option: str) -> Sentence:
    """How many times the commands of the lowest limit the highest does, for each number of streams, most streams first."""
    limits = values_of(limited, "limit")
    if len(limits) < 2:
        return Sentence("Two limits are needed to compare.")
    told = []
    for spread in reversed(arms(limited, option)):
        most = where(spread.runs, limit=limits[-1])
        times = ratio(most, where(spread.runs, limit=limits[0]), "commands_per_second")
        rate = digits(arms(most, option)[0].estimate("commands_per_second").value)
        told.append(f"{_streams(spread.value)} {said(times, 'times')} ({rate}/s)")
    return Sentence(f"**{limits[-1]:,g} at a time do, of what {limits[0]:,g} at a time does: {'; '.join(told)}.**")


def _streams(n: object) -> str:
    return f"on {n:,} stream{'' if n == 1 else 's'}"


def conflicts(runs: Sequence[Run], option: str) -> Sentence:
    """The share of attempts in conflict on the fewest streams, way by way, and the commands that were given up."""
    fewest = values_of(runs, option)[:1]
    hot = where(runs, **{option: fewest[0]}) if fewest else []
    told = []
    for way in arms(hot, "label"):
        share, lost = (way.estimate(name) for name in ("conflicts/attempts", "failures/attempts"))
        given_up = f", {digits(lost.value)} % of commands not done" if lost.value > 0 else ""
        rate = digits(way.estimate("commands_per_second").value)
        told.append(f"{way.value} {said(share, '%')}{given_up}, {rate} commands/s")
    if not told:
        return NOTHING_MEASURED
    return Sentence(f"**Attempts in conflict {_streams(int(fewest[0]))}: {'; '.join(told)}.**")


def locks(runs: Sequence[Run], option: str) -> Sentence:
    """What each way of keeping commands apart still held when the run was over, and over how many streams."""
    told = []
    for way in arms(runs, "label"):
        for word, name in (("locks", "locks"), ("lines of those who wait", "lines")):
            spread = [(arm.value, n) for arm in arms(way.runs, option) if not math.isnan(n := counted(arm.runs, name))]
            if spread:
                listed = enumerated([f"{n:,.0f} for {streams:,}" for streams, n in spread])
                most = max(counted([run], "lines_max") for run in way.runs)
                at_most = "" if math.isnan(most) else f" (while it ran, {most:,.0f} at most)"
                told.append(f"{way.value}: {word} {listed} streams{at_most}")
    return Sentence(f"Held when the load was over: {'; '.join(told)}." if told else "No executor said what it holds.")


def processes(runs: Sequence[Run]) -> Sentence:
    """What becomes of conflicts when several processes keep their own commands apart, and not those of the others."""
    told = [
        f"{arm.value} process{'' if arm.value == 1 else 'es'} {said(arm.estimate('conflicts/attempts'), '%')} of attempts in "
        f"conflict, {digits(arm.estimate('commands_per_second').value)} commands/s, p99 {digits(arm.estimate('p99').value)} ms"
        for arm in arms(runs, "workers")
    ]
    return Sentence(f"**On the hottest stream: {'; '.join(told)}.**" if told else "One process was asked for.")


def settings(limited: Sequence[Run], option: str) -> Sentence:
    """The smallest limit within SHARE of the best, for each number of streams."""
    told = []
    for spread in arms(limited, option):
        rates = [(a.value, a.estimate("commands_per_second").value) for a in arms(spread.runs, "limit")]
        known = [(limit, rate) for limit, rate in rates if not math.isnan(rate)]
        if known:
            best = max(rate for _, rate in known)
            limit, rate = next((limit, rate) for limit, rate in known if rate >= SHARE * best)
            told.append(f"{_streams(spread.value)} {limit:,} ({digits(rate)} commands/s, best {digits(best)})")
    if not told:
        return NOTHING_MEASURED
    return Sentence(f"The smallest limit within {percent(1 - SHARE)} of the best: {', '.join(told)}.")


def waiting(limited: Sequence[Run], option: str) -> Sentence:
    """How many of the commands had to wait for a stream, and how long all waited for turn and permit, at the highest limit."""
    limits = values_of(limited, "limit")[-1:]
    told = [
        f"{_streams(arm.value)} {digits(waited_share(arm.runs))} % waited for one of their streams, "
        f"{digits(wait_ms(arm.runs))} ms on average for turn and permit"
        for arm in (arms(where(limited, limit=limits[0]), option) if limits else ())
    ]
    return Sentence(f"**With {limits[0]:,g} at a time: {'; '.join(told)}.**" if told else "Nothing was measured.")


def claims_of(runs: Sequence[Run], option: str) -> list[Claim]:
    """What is said of commands in parallel, put to the test on the most streams and on the fewest, and against other ways."""
    apart, spreads = where(runs, label=APART), values_of(runs, option)
    limits = values_of(apart, "limit")
    if not limits:
        return []
    low, high = limits[0], limits[-1]
    asked = []
    for n, factor in {spreads[-1]: 2.0, spreads[0]: 1.2}.items() if high > low else ():
        text = f"{_streams(int(n))}, {high:g} commands at a time do at least {factor:g} times what {low:g} does"
        asked.append((text, where(apart, limit=high, **{option: n}), where(apart, limit=low, **{option: n}), factor))
    hot, on_hot = where(runs, **{option: spreads[0]}), _streams(int(spreads[0]))
    top = where(hot, label=APART, limit=high)
    alone, chapters, together = (where(hot, label=label) for label in (BY_ITSELF, CHAPTERS, TOGETHER))
    asked += [
        (f"{on_hot}, keeping apart does at least 1.5 times what letting commands conflict does", top, alone, 1.5),
        (f"{on_hot}, putting together does at least 3 times what keeping apart does", together, top, 3.0),
        (f"{on_hot}, parallel does at least 0.9 times what the chapter's does", top, chapters, 0.9),
    ]
    found = [claim(TOPIC, text, of, to, at_least=factor) for text, of, to, factor in asked if of and to]
    for way in arms(alone, "label"):
        text, lost = (
            f"{on_hot}, letting commands conflict leaves at most 1 % not done",
            way.estimate("failures/attempts"),
        )
        reason = f"{digits(way.estimate('conflicts/attempts').value)} % of attempts met a conflict"
        found.append(settled(TOPIC, text, lost, "%", reason, way.runs[0].run_id, at_most=1))
    return found + _claims_of_locks(runs, option)


def _claims_of_locks(runs: Sequence[Run], option: str) -> list[Claim]:
    """That nobody keeps more locks than there are commands at work, where locks are counted."""
    found = []
    for way in arms(runs, "label"):
        widest = arms(way.runs, option)[-1]
        if not math.isnan(kept := counted(widest.runs, "locks")):
            callers = float(value_of(widest.runs[0], "concurrency", 0))
            reason = f"for {widest.value:,} streams, asked for by {callers:,.0f} callers"
            estimate, run_id = Estimate(kept, math.nan, math.nan, len(widest.runs)), widest.runs[0].run_id
            text = f"{way.value}: no more locks are kept than there are callers"
            found.append(settled(TOPIC, text, estimate, "locks", reason, run_id, at_most=callers))
    return found
