"""The picture that grows in a cell: one display per run, updated, and the same claims as the numbers beside it."""

from __future__ import annotations

import math
from typing import Any
from xml.etree import ElementTree

import pytest

from eventcore_lab import live
from eventcore_lab.live import Live, picture
from eventcore_lab.progress import Look, Tally

SVG = "{http://www.w3.org/2000/svg}"


class Display:
    """What IPython's `display` does, noted."""

    def __init__(self) -> None:
        self.shown: list[dict[str, str]] = []
        self.updates: list[dict[str, str]] = []

    def __call__(self, bundle: dict[str, str], **_: Any) -> Display:
        self.shown.append(bundle)
        return self

    def update(self, bundle: dict[str, str], **_: Any) -> None:
        self.updates.append(bundle)


def tally(*looks: Look) -> Tally:
    found = Tally(1, 9)
    found.looks = list(looks)
    return found


def test_a_run_has_one_picture_that_ends_with_how_it_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "EVERY_S", 0)
    display = Display()
    shown = Live(display)
    for _ in range(2):
        shown.phase("a run", "preparing memory")
        shown.update("a run", tally(Look(1, 100, 1, 2)))
        shown.update("a run", tally(Look(1, 100, 1, 2), Look(2, 120, 1, 2)))
        shown.ended("interrupted", "stopped by the user")
    assert len(display.shown) == 2 and len(display.updates) == 6
    assert "interrupted: stopped by the user" in display.updates[-1]["text/plain"]


def test_it_is_drawn_seldom_however_often_it_is_told() -> None:
    display = Display()
    shown = Live(display)
    shown.phase("a run", "preparing memory")
    for _ in range(1000):
        shown.update("a run", tally(Look(1, 100, 1, 2)))
    assert len(display.updates) <= 1


def test_lines_are_as_long_as_the_looks_and_stay_inside() -> None:
    looks = [Look(k / 4, 100 + k, 1 + k / 10, 5 + k) for k in range(1, 41)]
    root = ElementTree.fromstring(picture("t", "x", tally(*looks)))
    lines = [line.get("points", "").split() for line in root.iter(f"{SVG}polyline")]
    assert [len(line) for line in lines] == [40, 40, 40]
    points = [tuple(map(float, point.split(","))) for line in lines for point in line]
    assert all(live._LEFT <= x <= live._WIDTH - live._RIGHT and 0 <= y <= live._HEIGHT for x, y in points)


@pytest.mark.parametrize("looks", [(), (Look(1, 0, math.nan, math.nan),), (Look(1, 5, 2, 2),)])
def test_little_or_nothing_is_drawn_without_an_error(looks: tuple[Look, ...]) -> None:
    ElementTree.fromstring(picture("t", "x", tally(*looks)))


def test_names_from_users_are_text_and_cut() -> None:
    strange = '<script>"&$x^2$\x00\x1b[31m\n' + "w" * 10_000
    svg = picture(strange, strange, tally(Look(1, 5, 2, 2)))
    root = ElementTree.fromstring(svg)
    assert len(svg) < 6000 and not [e for e in root.iter() if e.tag.endswith("script")]
