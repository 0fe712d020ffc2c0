"""The pacer that goes as a log went: its stamps are the due times, with their bursts, at the speed asked for."""

from __future__ import annotations

import numpy as np
from msgspec import Struct

from eventcore_lab.clock import NS_PER_S
from eventcore_lab.load.pacers.steady import Schedule, bounded, pacers
from eventcore_lab.load.replay import Replay
from eventcore_lab.load.traces import AUTO, EXAMPLE, Reading


class Traced(Struct, frozen=True):
    """Arrivals of a `Replay`. The time before the first is kept if the window begins before it."""

    replay: Replay
    callers: int = 0

    def __post_init__(self) -> None:
        selection = self.replay.selection  # which tells what cannot be read, before anything starts
        if self.replay.repeat and not selection.pass_ns:
            raise ValueError("all that is played came at one instant, which cannot be repeated (say repeat=false)")

    def expected(self, duration_ns: int) -> float:
        return float(self.replay.selection.due_below(duration_ns, self.replay.speed, self.replay.repeat))

    def schedule(self, duration_ns: int, rng: np.random.Generator) -> Schedule:
        """The same for every seed."""
        bounded(self.expected(duration_ns))
        return self.replay.selection.due(duration_ns, self.replay.speed, self.replay.repeat)

    @property
    def notes(self) -> tuple[tuple[str, str], ...]:
        length_s = self.replay.selection.pass_ns / self.replay.speed / NS_PER_S
        again = "then again" if self.replay.repeat else "once"
        return (("trace paced", f"{self.replay.said}; speed={self.replay.speed:g}: {length_s:,.3f} s, {again}"),)


@pacers.register("trace")
def trace(
    *,
    file: str = EXAMPLE,
    speed: float = 1.0,
    keep: float = 1.0,
    thin: str = "operations",
    thin_seed: int = 0,
    from_s: float = 0.0,
    to_s: float = 0.0,
    repeat: bool = True,
    tz: str = "UTC",
    time: str = AUTO,
    stream: str = AUTO,
    type: str = AUTO,
    transaction: str = AUTO,
) -> Traced:
    """Open loop: operations when the log in `file` (Parquet or CSV) had them, `speed` times faster, bursts and all."""
    reading = Reading(file=file, tz=tz, time=time, stream=stream, type=type, transaction=transaction)
    return Traced(
        Replay(
            reading=reading,
            speed=speed,
            keep=keep,
            thin=thin,
            thin_seed=thin_seed,
            from_s=from_s,
            to_s=to_s,
            repeat=repeat,
        )
    )
