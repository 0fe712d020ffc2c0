"""What commands leave in memory: growth per command with its interval, the highest there was between two looks, and what a
count of allocations sees of it.

Memory that one process has is told by its RSS, which is cheap enough to be looked at all the time; the highest is the kernel's
own mark. Both end with the load: afterwards the load process writes down its evidence, which takes memory of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import polars as pl
from matplotlib.axes import Axes

from eventcore_lab.clock import NS_PER_S
from eventcore_lab.lab import stats
from eventcore_lab.lab.arms import arms, value_of
from eventcore_lab.lab.caching import counts
from eventcore_lab.lab.claims import Claim, settled
from eventcore_lab.lab.measures import MIB, Run
from eventcore_lab.lab.numbers import Number, exactly, less
from eventcore_lab.lab.picture import (
    BEHIND_TEXT,
    BLUE,
    GREY,
    ORANGE,
    PURPLE,
    RED,
    Picture,
    caption,
    name_ends,
    nothing,
    style,
)
from eventcore_lab.lab.sentences import NOTHING_MEASURED, Sentence
from eventcore_lab.lab.stats import NOTHING, Estimate
from eventcore_lab.lab.wording import digits, said
from eventcore_lab.schema import Outcome


def per_command(run: Run) -> Estimate:
    """By how many bytes the load process grows with a command, after the warm-up: the median slope of all pairs of looks over
    the commands that had ended by then, so that it does not matter whether they came evenly; with its interval. NaN with less
    than two looks."""
    series = run.looks("resident_bytes").filter(pl.col("t_ns") >= run.warmup_ns)
    ended = np.sort(run.samples.filter(pl.col("outcome") == int(Outcome.OK))["ended_ns"].to_numpy())
    done = np.searchsorted(ended, series["t_ns"].to_numpy(), side="right").astype(np.float64)
    n = int(done[-1] - done[0]) if len(done) else 0
    if not n:
        return NOTHING
    grown = stats.growth(done, series["value"].to_numpy())
    return Estimate(grown.value / n, grown.low / n, grown.high / n, n)


def grown(commands: int) -> Number:
    """Growth of the load process over so many commands, in MiB."""

    def of(run: Run) -> Estimate:
        e = per_command(run)
        times = commands / MIB
        return Estimate(e.value * times, e.low * times, e.high * times, e.n)

    return Number(f"growth over {commands:,} commands", f"growth over {commands:,} commands, MiB", "MiB", of)


def taken(run: Run) -> Estimate:
    """The most memory that the load process had more than before the load, in MiB: between looks as well. NaN where the
    kernel does not tell."""
    first, highest = run.looks("resident_bytes"), run.looks("resident_peak_bytes")
    if not len(highest):
        return NOTHING
    return exactly(max(0.0, float(highest["value"][-1]) - float(first["value"][0])) / MIB, len(highest))


PER_COMMAND = Number("bytes per command", "growth of the load process, bytes per command", "B", per_command)
TAKEN = Number("memory taken", "highest above the start, MiB", "MiB", taken)


def peaks(run: Run) -> dict[str, float]:
    """The highest memory of the load process and of the server, in MiB: PSS, and of the load process what it rose above its
    first look."""
    found = {}
    for source in ("loader", "server"):
        if len(series := run.looks("pss_bytes", source)):
            found[source] = float(series["value"].to_numpy().max()) / MIB
    if found.get("loader") and not math.isnan(rose := taken(run).value):
        found["loader"] = max(found["loader"], float(run.looks("pss_bytes")["value"][0]) / MIB + rose)
    return found


def counted(run: Run) -> dict[str, float]:
    """What chapter_memory counted, in MiB: `initial`, `peak`, `final`, `highest`, and the `counter` itself; {} without it."""
    found = {name: value / MIB for name, value in counts(run).items()}
    names = {
        name.removeprefix("counted_").removesuffix("_bytes"): name for name in found if name.startswith("counted_")
    }
    return {short: found[name] for short, name in names.items()} | (
        {"counter": found["counter_bytes"]} if "counter_bytes" in found else {}
    )


COUNTED = Number(
    "counted growth",
    "growth as counted, MiB",
    "MiB",
    lambda run: exactly(c["final"] - c["initial"], 2) if "final" in (c := counted(run)) else NOTHING,
)


def share_counted(run: Run) -> Estimate:
    """What a counter could have said at the highest, in percent of what load process and server had at theirs."""
    seen, there = counted(run), peaks(run)
    if "highest" not in seen or not there:
        return NOTHING
    whole = sum(there.values()) - seen["counter"]
    return exactly(100 * seen["highest"] / whole, 2)


SHARE_COUNTED = Number("share counted", "counted, % of what was taken", "%", share_counted)


def over_commands(runs: Sequence[Run], limit_mib: float, commands: int) -> Picture:
    """Growth per command of each executor as bars, with the bound that so many MiB over so many commands are."""
    picture = PER_COMMAND.side_by_side(runs, "executor")
    bound = limit_mib * MIB / commands
    with style():
        axes = picture.axes[0]
        for value in axes.texts:
            value.set_bbox({**BEHIND_TEXT, "alpha": 1.0})
        axes.axvline(bound, color=RED, lw=1, ls="--", zorder=1)
        axes.set_xlim(right=max(axes.get_xlim()[1], 1.05 * bound))
        text = f"dashed: the chapter's {limit_mib:g} MiB over {commands:,} commands, {bound:,.0f} B each"
        axes.set_title(text, fontsize=9, color=RED, loc="right")
    return picture


def over_time(runs: Sequence[Run], by: str = "executor") -> Picture:
    """RSS of the load process since the load began, less what it had at its beginning, a line for each run."""
    with style():
        picture = Picture("memory of the load process over time")
        axes = picture.add_subplot()
        ends = [end for n, run in enumerate(runs) if (end := _line(axes, run, n, by))]
        if not ends:
            return _empty(picture, axes)
        axes.set_xlabel("seconds since the load began")
        axes.set_ylabel("RSS above the start, MiB")
        name_ends(axes, ends)
        caption(picture, runs)
    return picture


def _line(axes: Axes, run: Run, n: int, by: str) -> tuple[float, str, str] | None:
    series = run.looks("resident_bytes")
    if not len(series):
        return None
    y = (series["value"].to_numpy() - series["value"][0]) / MIB
    colour, dash = (BLUE, RED, ORANGE, PURPLE, GREY)[n % 5], ("-", "--", "-.", ":")[n % 4]
    axes.plot(series["t_ns"].to_numpy() / NS_PER_S, y, color=colour, ls=dash)
    return float(y[-1]), str(run.row[by]), colour


def services_over_time(run: Run) -> Picture:
    """PSS of the load process and of the server while the load runs; dotted the highest between the looks."""
    with style():
        picture = Picture("memory of the load process and of the server over time")
        axes = picture.add_subplot()
        highest_of = peaks(run)
        for source, peak in highest_of.items():
            colour, dash = (BLUE, "-") if source == "loader" else (RED, "--")
            series = run.looks("pss_bytes", source)
            y = series["value"].to_numpy() / MIB
            axes.plot(series["t_ns"].to_numpy() / NS_PER_S, y, color=colour, ls=dash, marker="o" if len(y) == 1 else "")
            axes.axhline(peak, color=colour, ls=":", lw=1)
            axes.annotate(f"{source},\nhighest {peak:,.0f}", (1.01, peak), xycoords=("axes fraction", "data"), color=colour,
                          fontsize=9, va="bottom" if peak == max(highest_of.values()) else "top")  # fmt: skip
        if not highest_of:
            return _empty(picture, axes)
        axes.set_xlim(
            left=min(0.0, axes.get_xlim()[0]), right=max(axes.get_xlim()[1], run.row["measured_ns"] / NS_PER_S)
        )
        axes.set_ylim(0, 1.25 * max(highest_of.values()))
        axes.set_xlabel("seconds since the load began")
        axes.set_ylabel("memory (PSS), MiB")
        caption(picture, [run])
    return picture


def _empty(picture: Picture, axes: Axes) -> Picture:
    nothing(axes)
    return picture


def seen_and_taken(run: Run) -> Picture:
    """What the chapter's test would print of a run's memory, and what was there, in MiB."""
    seen, there = counted(run), peaks(run)
    rows = [
        ("the chapter's peak, captured before", seen.get("peak"), ORANGE),
        ("counted at the end", seen.get("final"), ORANGE),
        ("counted at the highest", seen.get("highest"), ORANGE),
        ("the counter itself, not counted", seen.get("counter"), GREY),
        ("load process at its highest (PSS)", there.get("loader"), BLUE),
        ("server at its highest (PSS)", there.get("server"), BLUE),
    ]
    known = [(name, value, colour) for name, value, colour in rows if value is not None]
    with style():
        picture = Picture("what is counted and what is taken", 0.75)
        axes = picture.add_subplot()
        if not seen:
            return _empty(picture, axes)
        for n, (_, value, colour) in enumerate(known):
            axes.barh(n, value, height=0.62, color=colour)
            axes.annotate(f"{value:.1f}", (value, n), (6, 0), textcoords="offset points", va="center", fontsize=9)
        axes.set_yticks(range(len(known)), [name for name, _, _ in known])
        axes.invert_yaxis()
        axes.set_axisbelow(True)
        axes.grid(visible=False, axis="y")
        axes.set_xlim(0, 1.15 * max(value for _, value, _ in known))
        axes.set_xlabel("MiB")
        caption(picture, [run])
    return picture


def growth(runs: Sequence[Run], floor: Sequence[Run], commands: int) -> Sentence:
    """Growth per command by executor, and what of it the harness keeps itself as evidence."""
    parts = [f"`{a.value}` {PER_COMMAND.said(a.runs)}" for a in arms(runs, "executor")]
    text = f"**By each command the load process grows: {'; '.join(parts)}.**" if parts else "Nothing was measured."
    own = PER_COMMAND.together(floor)
    if not math.isnan(own.value):
        text += (
            f" Of it {said(own, 'B')} are what the harness keeps to check the answers afterwards (measured on a store that "
            f"keeps nothing), {digits(own.value * commands / MIB)} MiB over {commands:,} commands."
        )
    return Sentence(text)


def in_short(runs: Sequence[Run], floor: Sequence[Run], commands: int) -> Sentence:
    """By how much so many commands through the first executor make the load process grow, and what of it the harness keeps."""
    if not runs:
        return NOTHING_MEASURED
    first, growing = arms(runs, "executor")[0], grown(commands)
    text = f"Over {commands:,} commands through {first.value} the load process grows by {growing.said(first.runs)}"
    own = f"; the evidence that the harness keeps is {growing.said(floor)} by itself" if floor else ""
    return Sentence(f"{text}{own}.")


def net(runs: Sequence[Run], floor: Sequence[Run]) -> Estimate:
    """Bytes per command that are not the harness's."""
    return less(PER_COMMAND.together(runs), PER_COMMAND.together(floor))


def highest(run: Run) -> Sentence:
    """The highest of the load process and of the server, and what looks alone would have said."""
    there = peaks(run)
    if not there:
        return Sentence("Memory was not recorded.")
    seen = {s: float(v["value"].to_numpy().max()) / MIB for s in there if len(v := run.looks("pss_bytes", s))}
    names = {"loader": "the load process", "server": "the server"}
    told = [
        f"{names[s]} {v:.1f} MiB" + (f" (looks at its PSS saw {seen[s]:.1f})" if s == "loader" else "")
        for s, v in there.items()
    ]
    return Sentence(f"**At their highest: {', '.join(told)}.**")


def what_a_count_sees(run: Run) -> Sentence:
    """What the chapter's counters say of a run and what was there."""
    seen, there = counted(run), peaks(run)
    if not seen or not there:
        return Sentence("Nothing was counted.")
    whole = " + ".join(f"{v:.0f} MiB of the {'load process' if s == 'loader' else s}" for s, v in there.items())
    return Sentence(
        f"**The chapter's `peak_memory` is {seen['peak']:.1f} MiB, captured before the first command; a counter could have "
        f"said {seen['highest']:.1f} MiB; taken were {whole}.** Not counted: what was there before, what C libraries and the "
        f"interpreter hold, what was given back and is kept, the server, and {seen['counter']:.1f} MiB of the counter itself."
    )


def claimed(
    runs: Sequence[Run],
    floor: Sequence[Run],
    counts_runs: Sequence[Run],
    commands: int,
    limit_mib: float,
    service_mib: float,
) -> list[Claim]:
    """What is claimed of memory. `runs`: through the executors, the first of which is the plain one, a control that leaks among
    them; `counts_runs`: the same plain one and the control, with the chapter's count."""
    by = {str(a.value): list(a.runs) for a in arms(runs, "executor")}
    plain_name, plain_runs = next(iter(by.items()))
    limit, growing = f"{limit_mib:g} MiB", grown(commands)
    found = [
        growing.claim(
            "memory", f"{commands:,} commands make the load process grow by less than {limit}", plain_runs, at_most=limit_mib
        ),
        _settled(
            f"beside the harness's evidence a command leaves at most {OWN_BYTES_MAX:g} B in the process",
            net(plain_runs, floor), plain_runs, f"{plain_name} less a store that keeps nothing", at_most=OWN_BYTES_MAX,
        ),
    ]  # fmt: skip
    if found_peaks := [peak for run in plain_runs for peak in peaks(run).values()]:
        text = f"neither the load process nor the server takes more than {service_mib:,g} MiB"
        most, reason = exactly(max(found_peaks), len(found_peaks)), "the larger one's highest"
        found.append(settled("memory", text, most, "MiB", reason, plain_runs[0].run_id, at_most=service_mib))
    caches = {int(value_of(rs[0], "size", 0)): rs for rs in by.values() if "cache_entries" in counts(rs[0])}
    if caches:
        text = f"a cache of {min(caches):,} states is bounded: it grows at most 1.1 times as fast as none"
        found.append(PER_COMMAND.claim("caching", text, caches[min(caches)], plain_runs, at_most=1.1))
    for control in (rs for name, rs in by.items() if name.startswith("leaking")):
        leak = int(value_of(control[0], "bytes", 0))
        text = f"the slope finds nine tenths of a leak of {leak:,} B per command"
        found.append(_settled(text, net(control, plain_runs), control, "the control less none", at_least=0.9 * leak))
    for run in (r for r in counts_runs if "leaking" in r.row["executor"]):
        leak = int(value_of(run, "bytes", 0))
        text = f"the chapter's assertion (growth below {limit}) notices a leak of {leak:,} B per command"
        found.append(COUNTED.claim("memory", text, [run], at_least=limit_mib))
    plain_counts = [r for r in counts_runs if "leaking" not in r.row["executor"]]
    if plain_counts:
        text = "a count of allocations sees nine tenths of what the load process and the server take"
        found.append(SHARE_COUNTED.claim("memory", text, plain_counts, at_least=90))
    return found


OWN_BYTES_MAX = 100.0
"""Bytes that a command may leave in a client that keeps nothing: as much as one small object."""


def _settled(text: str, found: Estimate, runs: Sequence[Run], reason: str, **bound: float) -> Claim:
    return settled("memory", text, found, "B", reason, runs[0].run_id, **bound)


def settings(runs: Sequence[Run], floor: Sequence[Run]) -> Sentence:
    """What memory to plan for: the process's own, and a state in a cache."""
    if not runs or not (there := peaks(runs[0])):
        return NOTHING_MEASURED
    begins = float(runs[0].looks("pss_bytes")["value"][0]) / MIB if "loader" in there else math.nan
    own = net([r for r in runs if r.row["executor"] == runs[0].row["executor"]], floor)
    text = f"A load process begins with {digits(begins)} MiB; beside the harness's evidence each command leaves {_left(own)}."
    if size := state_bytes(runs):
        text += f" A state in the cache takes about {size:,.0f} B: a million of them {size * 1e6 / MIB:,.0f} MiB."
    return Sentence(
        text + " Alarm on the slope of memory over commands; a bound on growth lets a slow leak pass for long."
    )


def _left(own: Estimate) -> str:
    """Nothing is what cannot be told from nothing; how much that might be, the interval says."""
    if own.value > 0 or math.isnan(own.value):
        return said(own, "B")
    return f"nothing that shows ({said(own, 'B')})"


def state_bytes(runs: Sequence[Run]) -> float:
    """Bytes that one more state in a cache takes, of the largest cache that was not full; 0 if there was none."""
    plain_runs = [r for r in runs if r.row["executor"] == runs[0].row["executor"]]
    filling = [r for r in runs if 0 < counts(r).get("cache_entries", 0) < float(value_of(r, "size", 1000))]
    if not filling:
        return 0.0
    done = float(sum(r.samples.filter(pl.col("outcome") == int(Outcome.OK)).height for r in filling))
    entries = sum(counts(r)["cache_entries"] for r in filling)
    return max(less(PER_COMMAND.together(filling), PER_COMMAND.together(plain_runs)).value * done / entries, 0.0)
