"""How numbers are told to people, everywhere alike: three digits, a unit after a space, the interval in brackets behind."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from eventcore_lab.lab.arms import Value
from eventcore_lab.lab.measures import UNITS
from eventcore_lab.lab.stats import Estimate

Names = Mapping[Value, str]
"""What values are called beside a picture or in a sentence, where that is not what they are."""


def digits(value: float) -> str:
    """Three significant digits, or all of those before the point: 0.123, 12.3, 1,234. What is less than a ten-thousandth is 0,
    of nothing there is a dash."""
    if not math.isfinite(value):
        return "–" if math.isnan(value) else "never"
    if abs(value) >= 99.95:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) >= 0.0001 else "0"


def interval(e: Estimate) -> str:
    """` [2.8 – 3.4]`, with the space before it; "" where there is none, or none of any width."""
    return f" [{digits(e.low)} – {digits(e.high)}]" if e.has_interval and e.low < e.high else ""


def said(e: Estimate, unit: str = "") -> str:
    """`3.1 times [2.8 – 3.4]`; the unit `/s` stands close to its number."""
    if math.isnan(e.value):
        return "not measured"
    return f"{digits(e.value)}{'' if unit.startswith('/') else ' '}{unit}".rstrip() + interval(e)


def told(e: Estimate, figure: str) -> str:
    """The value of a figure (see `measures.UNITS`) with its unit and its interval."""
    return "longer than anybody waited" if math.isinf(e.value) else said(e, UNITS[figure])


def percent(share: float) -> str:
    """`38 %` of 0.38: the unit after a space, as after any number."""
    return f"{100 * share:.0f} %"


def printable(text: str) -> str:
    """`text` without what moves a terminal's cursor or turns its writing round: a space for each."""
    return "".join(c if c.isprintable() else " " for c in text)


def named(value: Value, names: Names | None = None) -> str:
    """What a value is called by `names`, else itself: words as they are, numbers in thousands."""
    if names and value in names:
        return names[value]
    return value if isinstance(value, str) else f"{value:,.10g}"


def enumerated(parts: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
