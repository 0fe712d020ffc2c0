"""Pictures of runs. A drawing takes a frame and an axes and returns the axes; above the drawings, one call per picture
for a notebook's cell takes Runs and returns a Picture. What a figure is worth is computed in `measures`, never here.
"""

from __future__ import annotations

import base64
import threading
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, wraps
from io import BytesIO
from typing import Any, NamedTuple, ParamSpec, TypeVar

import matplotlib as mpl
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.transforms import Transform

from eventcore_lab.schema import Outcome

SIZE_IN, DPI, SHOWN_PX_PER_IN = (6.4, 3.6), 200, 100
"""Twice as many dots as a notebook shows, so that dense screens have them all."""
FONT = "DejaVu Sans"  # comes with matplotlib, so that every machine draws the same picture
INK, GREY, SHADE, RED = "#222222", "#6b6b6b", "#ececec", "#c1121f"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito, *Color Universal Design* (2008), without the yellow, which is no line on white."""
DASHES = ("-", "--", "-.", (0, (1, 1)), (0, (5, 1, 1, 1, 1, 1)))
MARKERS = "os^Dv"
LOG_SPAN, NEAR = 30, 3
"""From which ratio a value axis is logarithmic; within which ratio of the data a limit is worth a line."""
RUNS_MAX, BINS_MAX, SAMPLES_PER_BIN, P_MAX = 12, 60, 20, 0.999
TAIL_TICKS = (0.5, 0.9, 0.95, 0.99, 0.999, 0.9999)
DEFAULTS = {"batch": 1, "concurrency": 10}
AXIS = {"batch": "events per append (batch)", "concurrency": "callers at once (concurrency)"}
ROUTINE_MARKS = ("load begins", "load ends", "read back", "failed operations")
UNWELL = {"dropped": Outcome.DROPPED, "failed": Outcome.FAILED, "unknown": Outcome.UNKNOWN, "still running": Outcome.RUNNING}
_RC: dict[str, Any] = {
    "font.family": [FONT],
    "font.size": 10.5,
    "axes.labelsize": 10.5,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#e3e3e3",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.8,
    "lines.markersize": 5.5,
    "figure.dpi": DPI,
    "savefig.dpi": DPI,
}
_LOCK = threading.RLock()
P = ParamSpec("P")
T = TypeVar("T")


@contextmanager
def style() -> Iterator[None]:
    """The one style of every picture here, whatever the user's own is; afterwards theirs is back.

    matplotlib's settings belong to the process, so threads take turns.
    """
    defaults = {k: v for k, v in mpl.rcParamsDefault.items() if not k.startswith(("backend", "interactive"))}
    with _LOCK, mpl.rc_context({**defaults, **_RC}):
        yield


def _styled(function: Callable[P, T]) -> Callable[P, T]:
    @wraps(function)
    def inner(*args: P.args, **kwargs: P.kwargs) -> T:
        with style():
            return function(*args, **kwargs)

    return inner


class Picture(Figure):
    """A figure that shows itself as a cell's last line, without pyplot: a PNG, and `alt` for who cannot see it."""

    alt = ""

    def png(self) -> bytes:
        """The picture at DPI."""
        with style():
            self.savefig(buffer := BytesIO(), format="png", dpi=DPI)
        return buffer.getvalue()

    def _repr_mimebundle_(self, **_: object) -> tuple[dict[str, str], dict[str, Any]]:
        width = round(self.get_figwidth() * SHOWN_PX_PER_IN)
        data = {"image/png": base64.b64encode(self.png()).decode(), "text/plain": self.alt}
        return data, {"image/png": {"width": width, "alt": self.alt}}


def plain(text: object, chars_max: int = 40) -> str:
    """`text` on one line without control and formatting characters, cut to fit."""
    spaced = " ".join(str(text).split())
    kept = "".join(c for c in spaced if unicodedata.category(c)[0] != "C")
    return kept if len(kept) <= chars_max else kept[: chars_max - 1] + "…"


def printable(text: object, chars_max: int = 40) -> str:
    """`plain` text as matplotlib draws it literally: no mathematics between dollars, a box for what the font lacks."""
    return "".join(c if ord(c) in _glyphs() else "□" for c in plain(text, chars_max)).replace("$", r"\$")


@cache
def _glyphs() -> frozenset[int]:
    return frozenset(font_manager.get_font(font_manager.findfont(FONT)).get_charmap())


# Labels: written beside what they name, and moved apart once the layout is known.


class Place(NamedTuple):
    """Where a label may stand: its anchor, the way from there in points, and which side of it the anchor is at."""

    xy: tuple[float, float]
    offset: tuple[float, float]
    ha: str
    va: str


class _Label(Annotation):
    """Text with several places it may take, best first."""

    def __init__(self, axes: Axes, text: str, places: Sequence[Place], xycoords: str | Transform, **kw: Any) -> None:
        super().__init__(
            text, places[0].xy, xytext=places[0].offset, xycoords=xycoords, textcoords="offset points", fontsize=9.5, **kw
        )
        self.places = places
        self.put(places[0])
        axes.add_artist(self)

    def put(self, place: Place) -> None:
        self.xy = place.xy
        self.set(position=place.offset, ha=place.ha, va=place.va)


class _EndLabel(Annotation):
    """Text in the right margin at the height of a line's end, with a thin line to it."""

    def __init__(self, axes: Axes, text: str, end: tuple[float, float], colour: str) -> None:
        thread = {"arrowstyle": "-", "color": colour, "lw": 0.7, "shrinkA": 1, "shrinkB": 3, "relpos": (0, 0.5)}
        place = {"xytext": (1.03, 0.5), "textcoords": "axes fraction", "va": "center", "annotation_clip": False}
        super().__init__(text, end, xycoords="data", fontsize=9.5, color=_ink(colour), arrowprops=thread, **place)  # type: ignore[arg-type]
        axes.add_artist(self)


def _ink(colour: str) -> str | tuple[float, ...]:
    """A line's colour, dark enough for letters."""
    return tuple(0.68 * c for c in to_rgb(colour))


_AROUND = ((0, 6, "center", "bottom"), (0, -6, "center", "top"), (7, 4, "left", "bottom"), (-7, 4, "right", "bottom"))


def _label_point(axes: Axes, x: float, y: float, text: str, **kw: Any) -> None:
    _Label(axes, text, [Place((x, y), (dx, dy), ha, va) for dx, dy, ha, va in _AROUND], "data", **kw)


def _label_level(axes: Axes, y: float, text: str, **kw: Any) -> None:
    """A label along a horizontal line at `y`."""
    sides = ((0.995, "right"), (0.01, "left"), (0.5, "center"))
    places = [Place((x, y), (0, dy), ha, va) for dy, va in ((2, "bottom"), (-3, "top")) for x, ha in sides]
    _Label(axes, text, places, axes.get_yaxis_transform(), **kw)


def _label_moment(axes: Axes, x: float, text: str, **kw: Any) -> None:
    """A label at a vertical line at `x`."""
    heights, sides = (0.98, 0.86, 0.74, 0.62, 0.5, 0.38, 0.26, 0.14), ((3, "left"), (-3, "right"))
    places = [Place((x, y), (dx, 0), ha, "top") for y in heights for dx, ha in sides]
    _Label(axes, text, places, axes.get_xaxis_transform(), **kw)


def _settle(figure: Figure) -> None:
    """Move every label to where it covers least; needs to know the layout, so it comes last."""
    figure.draw_without_rendering()
    for axes in figure.axes:
        _spread(axes)
        inked, taken = _inked(axes), [axes.bbox.padded(0)][:0]
        for label in axes.findobj(_Label):
            assert isinstance(label, _Label)

            def cost(place: Place, label: _Label = label) -> float:
                label.put(place)
                box = label.get_window_extent().padded(2)
                outside = not (axes.bbox.padded(4).contains(box.x0, box.y0) and axes.bbox.padded(4).contains(box.x1, box.y1))  # noqa: B023
                return int(inked_in(box)) + 1000 * sum(box.overlaps(b) for b in taken) + 300 * outside  # noqa: B023

            def inked_in(box: Any) -> int:
                return int(((inked > box.min) & (inked < box.max)).all(axis=1).sum())  # noqa: B023

            label.put(min(label.places, key=cost))
            taken.append(label.get_window_extent())
