"""What every picture has in common: the style, how it shows itself in a notebook, and how text from users becomes a label."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font

from eventcore_lab.lab.measures import Run
from eventcore_lab.lab.wording import digits, printable

BLUE, ORANGE, GREEN, RED, PURPLE, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#666666"
COLOURS = (BLUE, RED, GREEN, PURPLE, ORANGE, "#56B4E9")
MARKERS, DASHES = "osD^vP", ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)))
"""Of the first line, the second …: told apart also in grey."""
_STYLE: Any = {
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.edgecolor": "#888888",
    "axes.linewidth": 0.8,
    "figure.constrained_layout.use": True,
    "figure.facecolor": "white",
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.8,
    "lines.linewidth": 1.8,
}
_SIZE = (6.4, 3.6)
_DPI = 144
BEHIND_TEXT: Any = {"facecolor": "white", "edgecolor": "none", "pad": 0.5, "alpha": 0.8}
"""Under a label that a line may pass behind."""
_LOCK = threading.RLock()


@contextmanager
def style() -> Iterator[None]:
    """The one style of every picture, whatever the user's own; theirs is back afterwards. matplotlib's settings belong to
    the process, so threads take turns."""
    own = {k: v for k, v in matplotlib.rcParamsDefault.items() if not k.startswith(("backend", "interactive"))}
    with _LOCK, matplotlib.rc_context({**own, **_STYLE}):
        yield


class Picture(Figure):
    """A figure that a notebook shows as the last value of a cell, with a text for those who cannot see it."""

    def __init__(self, alt: str, height: float = 1.0) -> None:
        super().__init__(figsize=(_SIZE[0], _SIZE[1] * height))
        FigureCanvasAgg(self)
        self.alt = alt

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        data = io.BytesIO()
        with style():
            self.savefig(data, format="png", dpi=_DPI, metadata={"Software": ""})
        width = int(self.get_figwidth() * 100)
        return (
            {"image/png": data.getvalue(), "text/plain": f"<picture: {self.alt}>"},
            {"image/png": {"width": width, "alt": self.alt}},
        )


def plain(text: object, chars_max: int = 48) -> str:
    """`text` for a label: no mathematics, no control characters, a box for what the font lacks, cut to fit."""
    clean = printable(str(text)[: chars_max + 1])
    cut = clean if len(clean) <= chars_max else clean[: chars_max - 1] + "…"
    return "".join(c if ord(c) in _glyphs() else "□" for c in cut).replace("$", r"\$")


@cache
def _glyphs() -> frozenset[int]:
    return frozenset(get_font(findfont(_STYLE["font.family"])).get_charmap())


def corner(axes: Axes, text: str, y: float) -> None:
    axes.text(0.99, y, text, color=RED, fontsize=9, ha="right", va="center", transform=axes.transAxes)


def nothing(axes: Axes) -> Axes:
    axes.text(0.5, 0.5, "nothing was measured", ha="center", color=GREY, transform=axes.transAxes)
    axes.set_axis_off()
    return axes


def name_ends(axes: Axes, ends: Sequence[tuple[float, str, str]]) -> None:
    """Each line's name at its right end, moved apart where lines meet; `ends` are (y, name, colour). The axes must have their
    final range. Of lines that end alike the first is named below."""
    line = 0.2 / (axes.get_position().height * axes.figure.get_figheight())  # type: ignore[union-attr] # 0.2 inch of text
    at: list[float] = []
    ordered = sorted(ends, key=lambda end: end[0])
    for y, _, _ in ordered:
        own = float(axes.transAxes.inverted().transform(axes.transData.transform((axes.get_xlim()[1], y)))[1])
        at.append(max(own, at[-1] + line) if at else own)
    ceiling = max(1.0, line * len(at))
    for n in reversed(range(len(at))):  # what was pushed out of the top comes down again
        at[n] = min(at[n], ceiling)
        ceiling = at[n] - line
    for height, (_, name, colour) in zip(at, ordered, strict=True):
        axes.text(1.01, height, plain(name, 36), color=colour, fontsize=9, va="center", transform=axes.transAxes)


def caption(picture: Figure, runs: Sequence[Run]) -> None:
    if runs:
        r = runs[0].row
        which = r["run_id"] if len(runs) == 1 else f"{len(runs)} runs"
        text = f"{plain(r['store'])} · {plain((r['durability'] or '').partition(' (')[0], 24)} · {which}"
        picture.supxlabel(text, x=0.99, ha="right", fontsize=8, color=GREY)


def short(value: float) -> str:
    """As `wording.digits` has it below ten thousand; 12.3k, 4.5M above, for there is little room."""
    if abs(value) >= 1e6:
        return f"{value / 1e6:.3g}M"
    return f"{value / 1e3:.3g}k" if abs(value) >= 1e4 else digits(value)
