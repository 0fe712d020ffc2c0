"""A soak: one load for hours, in memory that does not grow.

It is an ordinary run, or several, one after the other (legs): after a crash of ours, after Ctrl-C, or after the store has been
away for too long, the hours that are missing are measured by another leg of the same soak. The legs are runs whose label says
so; there is no other record of a soak, so that nothing can contradict it.
"""

from __future__ import annotations

import math
import secrets
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from eventcore_lab.clock import NS_PER_S, pause_s
from eventcore_lab.events import StoreError
from eventcore_lab.experiment import Experiment, RunBroken
from eventcore_lab.lab.database import Lab, UnknownRun
from eventcore_lab.lab.drift import Soak, label_of, legs_of, spoken
from eventcore_lab.load.pacers import OPERATIONS_MAX, pacers
from eventcore_lab.load.rotation import Rotation, bytes_per_operation
from eventcore_lab.progress import LINE_EVERY_S, Lines, Progress, chosen
from eventcore_lab.schema import RUN_FILE
from eventcore_lab.spec import UsageError
from eventcore_lab.workbench import experiment_of, run

HOURS_MIN, HOURS_MAX = 1 / 36_000, 31 * 24.0
LEG_MAX_H = 24.0
ROTATE_S = 30.0
"""How often what was recorded leaves the recorder's memory for files (load/rotation.py)."""
LINES_MAX = 200
BROKEN_MAX = 20
"""So many legs in a row may break before the soak gives up; between them it waits, longer each time."""
_PAUSE_MAX_S = 60.0
_REST_S = 0.1
"""What is missing and shorter than this is not measured any more."""

Tell = Callable[[str], None]


def soak(
    experiment: Experiment,
    hours: float,
    lab: Lab | None = None,
    *,
    tell: Tell = print,
    progress: Progress | None = None,
    targets: str = "",
    again: str = "",
    rotate_s: float = ROTATE_S,
) -> Soak:
    """Put the load of `experiment` on its store for `hours`, whatever its `duration_s` says, and give what was found. It
    remembers the `targets` that it is to be held to, a preset or a file. `again`: options of the command line that whoever
    goes on with it has to say once more.

    Raises UsageError before anything starts if the disk could not hold it, KeyboardInterrupt after Ctrl-C (what was measured is
    in the Lab, and `resumed` goes on from there), StoreError or RunBroken when BROKEN_MAX legs in a row broke.
    """
    if not HOURS_MIN <= hours <= HOURS_MAX:
        raise UsageError(
            f"hours must be at least {HOURS_MIN:.5f} (0.1 s) and at most {HOURS_MAX:g} (31 days), not {hours:g}"
        )
    lab = lab or Lab()
    lab.check()
    soak_id = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    tell(f"soak {soak_id}: {spoken(hours)} of {experiment.workload} at {experiment.pacer} on {experiment.store}")
    return _Soaking(experiment, hours, soak_id, lab, tell, progress, rotate_s, targets, again).whole()


def resumed(
    soak_id: str = "",
    lab: Lab | None = None,
    *,
    tell: Tell = print,
    progress: Progress | None = None,
    targets: str = "",
    again: str = "",
) -> Soak:
    """Go on with a soak that was cut (the newest, if none is named) until its hours are full, held to the targets that it
    began with unless others are said. What its processes had recorded when they died is taken into the Lab first. Raises
    UnknownRun, and what `soak` raises."""
    lab = lab or Lab()
    lab.check()
    found = legs_of(lab, soak_id)
    if not found:
        raise UnknownRun(f"no soak {soak_id!r} in {lab.path}" if soak_id else f"no soak in {lab.path} to go on with")
    so_far = Soak(lab, found[-1][0])
    targets = targets or so_far.targets
    held = f"; targets: {targets}" if targets else ""
    tell(
        f"soak {so_far.soak_id}: {spoken(so_far.done_h)} of {spoken(so_far.hours)} are measured{_in_legs(so_far)}{held}"
    )
    rest = experiment_of(so_far.legs[0].row), so_far.hours, so_far.soak_id, lab
    return _Soaking(*rest, tell, progress, ROTATE_S, targets, again).whole()


def soaked(soak_id: str, experiment: Experiment, hours: float, targets: str = "", lab: Lab | None = None) -> Soak:
    """The soak of that id as it is in the Lab, or, without an id, a new one of so many hours."""
    return Soak(lab or Lab(), soak_id) if soak_id else soak(experiment, hours, lab, targets=targets)


def _in_legs(soak: Soak) -> str:
    return f", in {len(soak.legs)} legs" if len(soak.legs) > 1 else ""


class _Soaking:
    """One soak that goes on until its hours are full."""

    def __init__(
        self,
        experiment: Experiment,
        hours: float,
        soak_id: str,
        lab: Lab,
        tell: Tell,
        progress: Progress | None,
        rotate_s: float,
        targets: str = "",
        again: str = "",
    ) -> None:
        self._experiment, self._hours, self._id, self._targets = experiment, hours, soak_id, targets
        self._lab, self._tell, self._rotate_s = lab, tell, rotate_s
        self._hint = f"go on with: eventcore-lab soak --resume {soak_id}{again and f' {again}'}"
        self._progress = progress or _seldom(hours)

    def whole(self) -> Soak:
        broken = 0
        while (missing_s := (self._hours - self._done_h()) * 3600) > _REST_S:
            legs, done_h = len(legs_of(self._lab, self._id)), self._done_h()
            leg = self._leg(legs + 1, missing_s)
            _check_disk(leg, self._lab)
            try:
                with _rotating(self._lab, leg.label, self._rotate_s, self._tell):
                    run(leg, self._lab, self._progress)
                broken = 0
            except (StoreError, RunBroken) as error:
                broken = broken + 1 if self._done_h() - done_h < _REST_S / 3600 else 1
                if (self._hours - self._done_h()) * 3600 > _REST_S:
                    self._wait_or_give_up(error, broken)
            except KeyboardInterrupt:
                self._tell(f"what was measured is kept; {self._hint}")
                raise
        return Soak(self._lab, self._id)

    def _done_h(self) -> float:
        return Soak(self._lab, self._id).done_h if legs_of(self._lab, self._id) else 0.0

    def _leg(self, number: int, missing_s: float) -> Experiment:
        """The experiment of the next leg; its seed is its own, for a store that stays has the events of the one before."""
        e = self._experiment
        return msgspec.structs.replace(
            e,
            duration_s=min(math.ceil(10 * missing_s - 1e-6) / 10, longest_leg_s(e)),  # as long as people say it
            seed=e.seed + 1_000_003 * (number - 1),
            trial=number - 1,
            label=label_of(self._id, number, self._hours, self._targets),
        )

    def _wait_or_give_up(self, error: Exception, broken: int) -> None:
        if broken > BROKEN_MAX:
            self._tell(f"{broken} legs in a row broke; {self._hint}")
            raise error
        wait_s = min(2.0**broken, _PAUSE_MAX_S)
        self._tell(f"this leg broke: {error}; another begins in {wait_s:g} s ({broken} of {BROKEN_MAX} in a row)")
        pause_s(wait_s)


def _seldom(hours: float) -> Progress | None:
    """What a run shows itself, but in a log LINES_MAX lines over all the hours."""
    found = chosen()
    return Lines(every_s=max(LINE_EVERY_S, hours * 3600 / LINES_MAX)) if isinstance(found, Lines) else None


def longest_leg_s(experiment: Experiment) -> float:
    """How long one run of this load may be: LEG_MAX_H, or as long as its schedule can be held in memory."""
    longest_s = LEG_MAX_H * 3600
    expected = pacers.make(experiment.pacer).expected(int(60 * NS_PER_S))
    return min(longest_s, 60 * 0.8 * OPERATIONS_MAX / expected) if expected else longest_s


@contextmanager
def _rotating(lab: Lab, label: str, every_s: float, tell: Tell) -> Iterator[None]:
    """Have what the run of that label records leave its memory, every so often, until the end of the block."""
    over, said = threading.Event(), set[str]()

    def turn() -> None:
        rotation: Rotation | None = None
        while not over.wait(every_s):
            folder = _folder_of(lab.spool, label)
            if folder is None:
                continue
            rotation = rotation or Rotation(folder)
            try:
                rotation.turn()
            except OSError as error:  # the next turn takes what this one could not
                if str(error) not in said and len(said) < 10:
                    said.add(str(error))
                    tell(f"the samples stay in {folder} for now: {error}")

    thread = threading.Thread(target=turn, name="rotation")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _folder_of(spool: Path, label: str) -> Path | None:
    """The folder in the spool whose run is labelled so."""
    for file in sorted(spool.glob(f"*/{RUN_FILE}"), reverse=True):
        try:
            if msgspec.json.decode(file.read_bytes()).get("label") == label:
                return file.parent
        except (OSError, msgspec.DecodeError):
            continue
    return None


def _check_disk(leg: Experiment, lab: Lab) -> None:
    """Refuse what the disk cannot hold, before it begins."""
    expected = pacers.make(leg.pacer).expected(int(leg.duration_s * NS_PER_S))
    if not expected:
        return
    needed, free = math.ceil(expected * bytes_per_operation()), shutil.disk_usage(lab.path.parent).free
    if needed > free:
        raise UsageError(
            f"{expected:,.0f} operations need about {_size(needed)} in {lab.path.parent} (the store's own events not "
            f"counted), and {_size(free)} are free: fewer hours, a lower rate, or another disk (--lab)"
        )


def _size(count: float) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"
