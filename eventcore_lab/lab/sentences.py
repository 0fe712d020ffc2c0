"""Sentences that state what was measured. They are computed: what a report claims above a picture is what the runs say."""

from __future__ import annotations

import math
from collections.abc import Sequence

import polars as pl
from msgspec import Struct

from eventcore_lab.lab import visibility
from eventcore_lab.lab.disturbances import cautions, generator_limits, lateness_ms, loader_cpu
from eventcore_lab.lab.measures import Figure, Run
from eventcore_lab.lab.targets import Verdict, untested
from eventcore_lab.spec import parse

_WORDS = {"commands_per_second": "commands/s", "events_per_second": "events/s"}


class Sentence(Struct, frozen=True):
    """Markdown in a notebook, plain text elsewhere."""

    text: str

    def __str__(self) -> str:
        return self.text

    def _repr_markdown_(self) -> str:
        return self.text.replace("$", "\\$").replace("<", "&lt;")


def option(run: Run, name: str, default: int) -> int:
    """An option of the run's workload or pacer as a number: its batch size, its concurrency."""
    for column in ("workload", "pacer"):
        for key, value in parse(run.row[column]).options:
            if key == name:
                return int(float(value))
    return default


def throughput(runs: Sequence[Run], by: str, figure: str = "commands_per_second") -> Sentence:
    """Where throughput is highest, and what that is to the smallest setting of `by` (batch or concurrency)."""
    defaults = {"batch": 1, "concurrency": 10}
    ordered = sorted(runs, key=lambda r: option(r, by, defaults.get(by, 1)))
    values = [r.figure(figure).estimate.value for r in ordered]
    if not values or all(math.isnan(v) for v in values):
        return Sentence("Nothing was measured.")
    top = max(range(len(values)), key=lambda i: -math.inf if math.isnan(values[i]) else values[i])
    at = option(ordered[top], by, defaults.get(by, 1))
    text = f"**Most {_WORDS[figure]}: {_value(ordered[top].figure(figure))} at {by} {at:,}**"
    first = option(ordered[0], by, defaults.get(by, 1))
    if top > 0 and values[0] > 0:
        text += f", {values[top] / values[0]:.1f} times what {by} {first:,} gives"
    return Sentence(text + ".")


def latency(run: Run) -> Sentence:
    """Median and tail of one run, and what did not end well."""
    f = run.figures
    n = f["p50"].estimate.n
    text = (
        f"**At {run.row['pacer']}, {run.latency_word} was {_value(f['p50'])} in the median and {_value(f['p99'])} at p99** "
        f"({n:,} operations)."
    )
    unwell = {name: count for name, count in run.outcomes.items() if name != "ok"}
    if unwell:
        text += " Not well: " + ", ".join(f"{count:,} {name}" for name, count in unwell.items()) + "."
    if limits := generator_limits(run):
        text += " Caution: " + "; ".join(limits) + "."
    return Sentence(text)


def generator(run: Run) -> Sentence:
    """How late arrivals were sent, and what the load says about what it was made from."""
    if run.is_closed_loop:
        text = "**In a closed loop nothing is due, and so nothing is late.**"
    else:
        median, tail, worst = (1000 * lateness_ms(run, p) for p in (0.5, 0.99, 1.0))
        text = f"**Arrivals were sent {median:,.0f} µs late in the median, {tail:,.0f} µs at p99 and {worst:,.0f} µs at most.**"
    if cpu := loader_cpu(run):
        text += f" The busiest load process used {cpu:.0f} % of a core."
    told = [
        f"{name}: {detail}."
        for name, detail in run.marks.select("name", "detail").iter_rows()
        if name.startswith("trace ")
    ]
    return Sentence("\n\n".join([text, *told]))


def memory(run: Run) -> Sentence:
    """Peak memory of each service, and the loader's growth."""
    f = run.figures["memory"]
    growth = run.figures["memory_growth"].estimate.value
    if math.isnan(f.estimate.value):
        return Sentence("Memory was not recorded.")
    grew = "" if math.isnan(growth) else f"; over the steady part the loader's changed by {growth:+.1f} MiB"
    return Sentence(f"**{f.note[0].upper()}{f.note[1:]}**{grew}.")


def answer(verdict: Verdict) -> Sentence:
    """The one sentence that somebody in a hurry reads."""
    return Sentence(verdict.answer)


def settings(commands: Sequence[Run], writes: Sequence[Run], share: float = 0.9) -> Sentence:
    """What to set in production: the smallest concurrency and batch within `share` of the best, since more only waits."""
    parts = []
    for runs, by, figure in ((commands, "concurrency", "commands_per_second"), (writes, "batch", "events_per_second")):
        values = {option(r, by, 1): r.figure(figure).estimate.value for r in runs}
        known = {at: v for at, v in values.items() if not math.isnan(v)}
        if known:
            at = min(at for at, v in known.items() if v >= share * max(known.values()))
            parts.append(f"a {by} of {at:,} ({known[at]:,.0f} {_WORDS[figure]}, best {max(known.values()):,.0f})")
    if not parts:
        return Sentence("Nothing was measured.")
    return Sentence(f"The smallest settings within {1 - share:.0%} of the best: " + ", ".join(parts) + ".")


def caveats(runs: Sequence[Run]) -> Sentence:
    """What a sceptic must know: durability, what disturbed the run, what was not tested, and the ids to query."""
    lines = [f"Durability: {d}." for d in sorted({str(r.row["durability"]) for r in runs if r.row["durability"]})]
    lines += [f"{r.row['pacer']}: {text}." for r in runs for text in cautions(r)]
    lines += [f"Not tested, because {reason}: {'; '.join(names)}." for reason, names in untested(runs).items()]
    lines.append("Runs: " + ", ".join(f"`{r.run_id}`" for r in runs) + ".")
    return Sentence("\n".join(f"- {line}" for line in lines))


def readers(runs: Sequence[Run]) -> Sentence:
    """Whose readers got every event once and in order, and what the others' readers missed."""
    rows = list(visibility.compared(runs).filter(pl.col("delivered").is_not_null()).iter_rows(named=True))
    if not rows:
        return Sentence("No reader was given anything.")
    whole = [r for r in rows if all(r[wrong] == 0 for wrong in visibility.WRONGS)]
    text = ""
    if whole:
        names = ", ".join(f"{r['store']} ({r['delivered']:,})" for r in whole)
        text = f"**Every event, once and in order: the readers of {names}.** "
    for r in (r for r in rows if r not in whole):
        wrongs = ", ".join(f"{w} {r[w]:,}" for w in visibility.WRONGS if r[w])
        promise = "which promises a safe order" if r["promises_order"] else "which promises no safe order"
        text += f"Readers of {r['store']}, {promise}, got {r['delivered']:,} ({wrongs or 'not read back'}). "
    return Sentence(text.strip())


def cost_of_order(runs: Sequence[Run]) -> Sentence:
    """What a safe order costs the writers: the fastest and the slowest store whose readers missed nothing, and the fastest
    of the others."""
    rows = visibility.compared(runs).filter(pl.col("appends_per_s").is_not_nan())
    safe = rows.filter((pl.col("skipped") == 0) & pl.col("promises_order")).sort("appends_per_s", descending=True)
    if not len(safe):
        return Sentence("No store gave its readers a safe order here, so its cost is not known.")
    best, least = safe.row(0, named=True), safe.row(-1, named=True)
    text = f"**With a safe order, {best['store']} takes most: {best['appends_per_s']:,.0f} appends/s.**"
    if len(safe) > 1:
        text += f" The least is {least['store']} with {least['appends_per_s']:,.0f}."
    others = rows.filter(~pl.col("promises_order")).sort("appends_per_s", descending=True)
    if len(others):
        other = others.row(0, named=True)
        text += f" Without the promise, {other['store']} takes {other['appends_per_s']:,.0f}."
    return Sentence(text)


def lag(runs: Sequence[Run]) -> Sentence:
    """How late readers are that got everything, from the store whose readers are soonest to that whose are latest."""
    is_whole = pl.col("lag_p99_ms").is_not_null() & (pl.col("skipped") == 0)
    rows = visibility.compared(runs).filter(is_whole).sort("lag_p50_ms")
    if not len(rows):
        return Sentence("No reader got everything, so there is no lag to compare.")

    def said(row: dict[str, float | str | None]) -> str:
        return f"{row['store']} {row['lag_p50_ms']:,.2f} ms in the median, {row['lag_p99_ms']:,.2f} ms at p99"

    first, last = rows.row(0, named=True), rows.row(-1, named=True)
    text = f"**From acknowledgement to a reader that got everything: {said(first)}**"
    return Sentence(text + (f"; the latest, {said(last)}." if len(rows) > 1 else "."))


def _value(figure: Figure) -> str:
    e = figure.estimate
    if math.isnan(e.value):
        return "not measured"
    if math.isinf(e.value):
        return "longer than anybody waited"
    digits = 0 if figure.unit == "/s" else 2
    unit = "" if figure.unit == "/s" else f" {figure.unit}"
    interval = f" [{e.low:,.{digits}f} – {e.high:,.{digits}f}]" if e.has_interval else ""
    return f"{e.value:,.{digits}f}{unit}{interval}"
