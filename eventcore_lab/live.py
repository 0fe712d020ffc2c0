"""A picture that grows in a notebook's cell while a run goes on: throughput and latency so far, and at the end as it stays.

It is a small SVG drawn here, for it is made anew twice a second beside the load; the pictures of a report are plots.py's.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import Any

from eventcore_lab.clock import NS_PER_S, now_ns
from eventcore_lab.progress import Look, Tally

EVERY_S = 0.5
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _PANEL, _GAP = 640, 250, 56, 60, 34, 78, 34
_GREEN, _BLUE, _RED, _GREY = "#00795a", "#0072B2", "#B84A00", "#555555"
_Line = tuple[str, str, str, list[float]]
"""Its name, its colour, its dashes and its values, one per look."""


class Live:
    """A Progress that shows itself in the cell which is running. `display` is IPython's, called in the cell's own thread or in
    one that has its context."""

    def __init__(self, display: Any = None) -> None:
        if display is None:
            from IPython.display import display
        self._display = display
        self._handle: Any = None
        self._drawn_ns = 0
        self._title, self._tally = "", Tally(0, 1)

    def phase(self, title: str, text: str) -> None:
        self._title = title
        if text.startswith("preparing"):  # another run: a picture of its own
            self._handle, self._tally, self._drawn_ns = None, Tally(0, 1), 0
        self._show(text)

    def update(self, title: str, tally: Tally) -> None:
        self._title, self._tally = title, tally
        if now_ns() - self._drawn_ns >= EVERY_S * NS_PER_S:
            self._show("")

    def ended(self, status: str, reason: str) -> None:
        self._show("done" if status == "complete" else f"{status}: {reason}")

    def _show(self, text: str) -> None:
        self._drawn_ns = now_ns()
        said = f"{self._tally}" + (f"  {text}" if text else "")
        bundle = {"text/plain": f"{self._title}: {said}", "image/svg+xml": picture(self._title, said, self._tally)}
        if self._handle is None:
            self._handle = self._display(bundle, raw=True, display_id=True)
        else:
            self._handle.update(bundle, raw=True)


def picture(title: str, text: str, tally: Tally) -> str:
    """The SVG of what was seen so far: operations per second above, latency below, warm-up shaded."""
    looks = tally.looks
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="100%" role="img" '
        f'style="max-width:{_WIDTH}px;background:#fff" font-family="sans-serif" font-size="11">',
        f"<title>{_safe(title)}: {_safe(text)}</title>",
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#fff"/>',
        f'<text x="{_LEFT}" y="16" font-weight="bold" fill="#222">{_safe(title, 44)}</text>',
        f'<text x="{_WIDTH - 4}" y="16" text-anchor="end" fill="{_GREY}">{_safe(text, 70)}</text>',
    ]
    rates: list[_Line] = [("/s", _GREEN, "", [look.rate for look in looks])]
    ms: list[_Line] = [
        ("p50 ms", _BLUE, "", [look.p50_ms for look in looks]),
        ("p99 ms", _RED, "5 3", [look.p99_ms for look in looks]),
    ]
    parts += _panel(_TOP, rates, looks, tally, is_log=False)
    parts += _panel(_TOP + _PANEL + _GAP, ms, looks, tally, is_log=True)
    bottom = _TOP + 2 * _PANEL + _GAP
    parts += [
        f'<text x="{_x(t, tally):.1f}" y="{bottom + 16}" text-anchor="middle" fill="{_GREY}">{t:g} s</text>'
        for t in (0, tally.total_s / 2, tally.total_s)
    ]
    return "".join([*parts, "</svg>"])


def _panel(top: int, lines: Sequence[_Line], looks: Sequence[Look], tally: Tally, is_log: bool) -> list[str]:
    """One pair of axes with its lines, each named at its end."""
    known = [v for *_, values in lines for v in values if math.isfinite(v) and v > 0]
    low, high = (min(known), max(known)) if known else (1.0, 10.0)
    low, high = (low / 1.2, high * 1.2) if is_log else (0.0, high * 1.1)
    warm = _x(min(tally.warmup_s, tally.total_s), tally)
    right = _WIDTH - _RIGHT
    parts = [
        f'<rect x="{_LEFT}" y="{top}" width="{warm - _LEFT:.1f}" height="{_PANEL}" fill="#eee"/>',
        f'<path d="M{_LEFT} {top}V{top + _PANEL}H{right}" fill="none" stroke="#888"/>',
    ]
    for value in (low, math.sqrt(low * high) if is_log else (low + high) / 2, high):
        y = _y(value, low, high, top, is_log)
        parts.append(f'<path d="M{_LEFT} {y:.1f}H{right}" stroke="#e4e4e4"/>')
        parts.append(f'<text x="{_LEFT - 5}" y="{y + 4:.1f}" text-anchor="end" fill="{_GREY}">{_short(value)}</text>')
    last_y = math.inf
    for name, colour, dashes, values in lines:
        points = [
            (_x(look.t_s, tally), _y(v, low, high, top, is_log))
            for look, v in zip(looks, values, strict=True)
            if math.isfinite(v) and (v > 0 or not is_log)
        ]
        if points:
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
            parts.append(
                f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.6" stroke-dasharray="{dashes}"/>'
            )
            # The second name stands above the first, also where the lines meet.
            y = last_y = min(points[-1][1], last_y - 12)
            parts.append(f'<text x="{right + 6}" y="{y + 4:.1f}" fill="{colour}">{name}</text>')
    return parts


def _x(t_s: float, tally: Tally) -> float:
    return _LEFT + (_WIDTH - _LEFT - _RIGHT) * min(t_s / tally.total_s, 1.0)


def _y(value: float, low: float, high: float, top: int, is_log: bool) -> float:
    if is_log:
        value, low, high = math.log(value), math.log(low), math.log(high)
    return top + _PANEL * (1 - (value - low) / (high - low or 1.0))


def _short(value: float) -> str:
    if value >= 10_000:
        return f"{value / 1000:.0f}k"
    return f"{value:,.0f}" if value >= 100 or value == 0 else f"{value:.2g}"


def _safe(text: str, chars_max: int = 200) -> str:
    clean = "".join(c if c.isprintable() else " " for c in text[: chars_max + 1])
    return html.escape(clean if len(clean) <= chars_max else clean[: chars_max - 1] + "…")
