"""Sentences that state what was measured. They are computed: what a report claims above a picture is what the runs say."""

from __future__ import annotations

import math
from collections.abc import Sequence

from msgspec import Struct

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
    if run.generator_limits:
        text += " Caution: " + "; ".join(run.generator_limits) + "."
    return Sentence(text)


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
    """What a sceptic must know: durability, generator limits, steal, what was not tested, and the ids to query."""
    lines = [f"Durability: {d}." for d in sorted({str(r.row["durability"]) for r in runs if r.row["durability"]})]
    lines += [f"{r.row['pacer']}: {text}." for r in runs for text in r.generator_limits]
    steal = [v for r in runs if len(s := r.gauge("machine", "steal_percent")) and (v := float(s["value"].mean())) > 2]  # type: ignore[arg-type]
    if steal:
        lines.append(f"Another guest of this machine took up to {max(steal):.0f} % of it; repeat where that is not so.")
    lines += [f"Not tested, because {reason}: {'; '.join(names)}." for reason, names in untested(runs).items()]
    lines.append("Runs: " + ", ".join(f"`{r.run_id}`" for r in runs) + ".")
    return Sentence("\n".join(f"- {line}" for line in lines))


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
