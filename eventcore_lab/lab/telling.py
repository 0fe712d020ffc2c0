"""How comparisons are told: runs picked by what they were made with, numbers with unit and interval, small tables."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence

from eventcore_lab.lab.arms import Value, value_of
from eventcore_lab.lab.measures import Run
from eventcore_lab.lab.picture import short
from eventcore_lab.lab.stats import Estimate


def where(runs: Iterable[Run], **values: Value) -> list[Run]:
    """The runs that were made with all these values (see `arms.value_of`), in their order."""
    return [run for run in runs if all(value_of(run, name, "") == value for name, value in values.items())]


def values_of(runs: Iterable[Run], name: str) -> list[float]:
    """The numbers that `name` has in these runs, ascending, each once; runs without it are left out."""
    found = {value_of(run, name, "") for run in runs}
    return sorted(float(value) for value in found if not isinstance(value, str))


def digits(value: float) -> str:
    """Three digits where that says enough: 0.123, 12.3, 1,234, 12.3k."""
    if not math.isfinite(value):
        return "–" if math.isnan(value) else "never"
    return short(value) if abs(value) >= 100 else f"{value:.3g}"


def said(estimate: Estimate, unit: str = "") -> str:
    """`3.1 times [2.8 to 3.4]`; the unit `/s` stands close to its number."""
    if math.isnan(estimate.value):
        return "not measured"
    has_width = estimate.has_interval and estimate.low < estimate.high
    interval = f" [{digits(estimate.low)} to {digits(estimate.high)}]" if has_width else ""
    return f"{digits(estimate.value)}{unit if unit == '/s' else f' {unit}'.rstrip()}{interval}"


def enumerated(parts: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


class Table:
    """Rows of text under heads, as people read them in a notebook, a page and a terminal. The first cell names its row."""

    def __init__(self, heads: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        self.heads, self.rows = list(heads), [list(row) for row in rows]

    def _repr_html_(self) -> str:
        head = "".join(f"<th scope='col'>{html.escape(text)}</th>" for text in self.heads)
        body = "".join(
            f"<tr><th scope='row'>{html.escape(name)}</th>{''.join(f'<td>{html.escape(cell)}</td>' for cell in cells)}</tr>"
            for name, *cells in self.rows
        )
        return f"<table class='dataframe'><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"

    def __repr__(self) -> str:
        lines = [self.heads, *self.rows]
        widths = [max(len(line[n]) for line in lines) for n in range(len(self.heads))]
        told = ["  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) for line in lines]
        return "\n".join(line.rstrip() for line in told)
