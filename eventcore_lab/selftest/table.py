"""The self-test as plain text, at most 120 columns wide."""

from __future__ import annotations

import math
import textwrap

from eventcore_lab.selftest.judging import FALSE_ALARM, LIMIT, Case, Row

WIDTH = 120
_FORMAT = "{mark:<2}{quantity:<39}{theory:>12}{measured:>12}   {interval:<22}{off:>6}   {source}"
RULE = (
    "✓ holds   ✗ does not   · too little to judge by. `exact`: every digit must be the same. Of chance: ✗ where theory is more "
    f"than {LIMIT:.1f} standard errors `off`, which over all seeds happens to about one whole table in "
    f"{1 / FALSE_ALARM:,.0f} with nothing wrong. The seed is fixed: the same table every time, unless you choose another."
)
KLEINROCK = "Kleinrock is Queueing Systems, Volume 1 (1975). All times are virtual; a server's mean service takes 1 ms."


def preamble(seed: int) -> str:
    return "\n".join([*textwrap.wrap(RULE, WIDTH), f"{KLEINROCK} Seed {seed}."])


def heading(case: Case) -> str:
    """What is modelled, and over which columns."""
    columns = _FORMAT.format(
        mark="",
        quantity=case.title,
        theory="theory",
        measured="measured",
        interval="95 % interval",
        off="off",
        source="source",
    )
    return "\n".join(
        ["", columns, *textwrap.wrap(case.modelled, WIDTH - 2, initial_indent="  ", subsequent_indent="  ")]
    )


def line(row: Row) -> str:
    return _FORMAT.format(
        mark=_mark(row),
        quantity=row.quantity,
        theory=number(row.theory),
        measured=number(row.measured),
        interval=_interval(row),
        off=f"{row.off:+.1f}" if row.is_judged and not row.is_exact else "",
        source=row.source,
    )


def verdict(rows: list[Row]) -> str:
    """The last line."""
    judged = [row for row in rows if row.is_judged]
    missed = sum(not row.holds for row in judged)
    if missed:
        return f"✗ {missed} of {len(judged)} claims do not hold: do not trust what this load generator measures"
    return f"✓ all {len(judged)} claims hold: the load generator measures what theory says"


def number(value: float) -> str:
    """Whole numbers as they are, others with five digits."""
    if not math.isfinite(value):
        return str(value)
    if abs(value - round(value)) < 1e-9:
        return f"{value:,.0f}"
    return f"{value:,.{max(0, 5 - len(str(int(abs(value)))))}f}"


def _mark(row: Row) -> str:
    if not row.is_judged:
        return "·"
    return "✓" if row.holds else "✗"


def _interval(row: Row) -> str:
    if row.is_exact:
        return "exact"
    if not row.is_judged:
        return "too few samples"
    low, high = row.interval
    return f"{number(low)} … {number(high)}"
