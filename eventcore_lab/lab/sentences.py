"""Sentences that state what was measured. They are computed: what a report claims above a picture is what the runs say."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

import polars as pl
from msgspec import Struct

from eventcore_lab.lab import visibility
from eventcore_lab.lab.arms import TRIALS_MIN, arms, ratio
from eventcore_lab.lab.disturbances import cautions, generator_limits, lateness_ms, loader_cpu
from eventcore_lab.lab.measures import Figure, Run
from eventcore_lab.lab.targets import Verdict, untested
from eventcore_lab.lab.wording import named, percent, printable, said
from eventcore_lab.spec import parse

_WORDS = {"commands_per_second": "commands/s", "events_per_second": "events/s"}


class Sentence(Struct, frozen=True):
    """Markdown in a notebook, plain text elsewhere. What it takes from users can neither be a link or a picture nor move a
    terminal's cursor."""

    text: str

    def __str__(self) -> str:
        return "\n".join(map(printable, self.text.split("\n")))

    @property
    def headline(self) -> str:
        """The bold part of a text that begins with one, else all of it; without marks, and without its full stop."""
        bold = [part for part in re.findall(r"\*\*(.+?)\*\*", self.text, re.DOTALL) if self.text.startswith("**")]
        return re.sub(r"[*`]", "", "; ".join(part.rstrip(".") for part in bold) or self.text).rstrip(".")

    def _repr_markdown_(self) -> str:
        return str(self).replace("$", "\\$").replace("<", "&lt;").replace("](", "]&#40;")


NOTHING_MEASURED = Sentence("Nothing was measured.")


def option(run: Run, name: str, default: int) -> int:
    """An option of the run's workload or pacer as a number: its batch size, its concurrency."""
    for column in ("workload", "pacer"):
        for key, value in parse(run.row[column]).options:
            if key == name:
                return int(float(value))
    return default


def throughput(runs: Sequence[Run], by: str, figure: str = "commands_per_second") -> Sentence:
    """Where throughput is highest, and how many times that is what the smallest setting of `by` (batch, concurrency …) gives,
    over all trials of each."""
    found = [(a, e) for a in arms(runs, by, DEFAULTS.get(by)) if not math.isnan((e := a.estimate(figure)).value)]
    if not found:
        return NOTHING_MEASURED
    (first, least), (top, most) = found[0], max(found, key=lambda f: f[1].value)
    text = f"**Most {_WORDS[figure]}: {said(most)} at {by} {named(top.value)}**"
    if top is not first and least.value > 0:
        text += f", {said(ratio(top.runs, first.runs, figure), 'times')} what {by} {named(first.value)} gives"
    return Sentence(text + ".")


DEFAULTS = {"batch": 1, "concurrency": 10}
"""Of options that a spec may leave out."""


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
        values = {a.value: a.estimate(figure).value for a in arms(runs, by, DEFAULTS.get(by))}
        known = {at: v for at, v in values.items() if not math.isnan(v)}
        if known:
            at = next(at for at, v in known.items() if v >= share * max(known.values()))
            parts.append(f"a {by} of {named(at)} ({known[at]:,.0f} {_WORDS[figure]}, best {max(known.values()):,.0f})")
    if not parts:
        return NOTHING_MEASURED
    return Sentence(f"The smallest settings within {percent(1 - share)} of the best: " + ", ".join(parts) + ".")


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


def caveats(runs: Sequence[Run]) -> Sentence:
    """What a sceptic must know: durability, what disturbed the run, what was not tested, and the ids to query."""
    lines = [f"Durability: {d}." for d in sorted({str(r.row["durability"]) for r in runs if r.row["durability"]})]
    lines += gathered({r.run_id: cautions(r) for r in runs})
    lines += [f"Not tested, because {reason}: {'; '.join(names)}." for reason, names in untested(runs).items()]
    lines.append("Runs: " + ", ".join(f"`{r.run_id}`" for r in runs) + ".")
    return Sentence("\n".join(f"- {line}" for line in lines))


_NUMBER = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?", re.ASCII)


def gathered(cautions_of: Mapping[str, Sequence[str]]) -> list[str]:
    """A line for each kind of caution: of how many runs it is told, by their ids if they are few, and from which number to
    which where that is what they differ by. `cautions_of`: run id → its cautions."""
    kinds: dict[str, list[tuple[str, str]]] = {}
    for run_id, texts in cautions_of.items():
        for text in texts:
            kinds.setdefault(_NUMBER.sub("#", text), []).append((run_id, text))
    lines = []
    for told_of in kinds.values():
        ids = list(dict.fromkeys(run_id for run_id, _ in told_of))
        few = f" ({', '.join(f'`{i}`' for i in ids)})" if len(ids) <= _IDS_MAX < len(cautions_of) else ""
        of = "" if len(cautions_of) == 1 else f"{len(ids)} of {len(cautions_of)} runs{few}: "
        text = f"{of}{_in_one([text for _, text in told_of])}."
        lines.append(text[0].upper() + text[1:])
    return lines


_IDS_MAX = 3


def _in_one(texts: Sequence[str]) -> str:
    """Texts that differ only in their numbers as one: where they do, from the least to the most."""
    numbers = zip(*map(_NUMBER.findall, texts), strict=True)
    said_of = iter([_range(found) for found in numbers])
    return _NUMBER.sub(lambda _: next(said_of), texts[0])


def _range(found: Sequence[str]) -> str:
    low, *_, high = sorted([*found, *found], key=lambda text: float(text.replace(",", "")))
    return low if low == high else f"{low} to {high}"


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
    if math.isinf(e.value):
        return "longer than anybody waited"
    return said(e, "" if figure.unit == "/s" else figure.unit)
