"""What a figure is, and how the trials that lead to it are run."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from eventcore_lab.lab.database import Lab

TRIALS = 5


@dataclass
class Figure:
    """`ratios`: one per trial. `floor`: the least the median may be; None where there is none to hold."""

    name: str
    what: str
    floor: float | None
    ratios: list[float]
    notes: dict[str, float] = field(default_factory=dict)

    @property
    def median(self) -> float:
        return statistics.median(self.ratios)

    @property
    def is_met(self) -> bool:
        return self.floor is None or self.median >= self.floor

    def __str__(self) -> str:
        mark = " " if self.is_met else "!"
        floor = "–" if self.floor is None else f"{self.floor:g}"
        notes = "  ".join(f"{k} {v:,.4g}" for k, v in self.notes.items())
        spread = f"[{min(self.ratios):.2f} – {max(self.ratios):.2f}]"
        return f"{mark} {self.name:<28} {self.median:6.2f} {spread:<16} floor {floor:<5} {self.what}  ({notes})"


def compared(
    name: str,
    what: str,
    floor: float | None,
    ours: Callable[[], float],
    theirs: Callable[[], float],
    unit: str = "/s",
    trials: int = TRIALS,
) -> Figure:
    """The ratio of two rates measured in turn, who is first changing from trial to trial."""
    found = interleaved({"ours": ours, "theirs": theirs}, trials)
    ratios = [a / b for a, b in zip(found["ours"], found["theirs"], strict=True)]
    return Figure(name, what, floor, ratios, {f"{arm}{unit}": statistics.median(v) for arm, v in found.items()})


def interleaved(arms: Mapping[str, Callable[[], float]], trials: int = TRIALS) -> dict[str, list[float]]:
    """Every arm once per trial, in turn from the one end and from the other."""
    found: dict[str, list[float]] = {arm: [] for arm in arms}
    for trial in range(trials):
        for arm in list(arms) if trial % 2 else reversed(arms):
            found[arm].append(arms[arm]())
    return found


@contextmanager
def a_lab() -> Iterator[Lab]:
    with tempfile.TemporaryDirectory() as folder:
        yield Lab(Path(folder) / "lab.duckdb")
