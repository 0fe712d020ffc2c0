"""A Source over the spool of a Lab: the run that is under way there, from its folder's first moment to what became of it.

Which folder: the newest that a live process works in; runs that ended are told to their end first, oldest first, one a look.
A run may be over and its folder gone before it was looked at twice. So the spool is looked at ten times a second for new
folders, whose files are opened at once, and what was opened can be read after it is gone. How a run that is gone has ended,
and samples of workers that were not opened in time, the Lab is asked for. If it does not tell, a mark says what is missing.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from eventcore_lab.clock import NS_PER_S, sleep_s, three_clocks_ns
from eventcore_lab.lab.database import Lab, LabError
from eventcore_lab.monitor.facts import NO_ROWS, Mark, News, Watched
from eventcore_lab.monitor.state import LOOK_ROWS_MAX
from eventcore_lab.monitor.tails import Read, RunFolder, gauges_at, marks_at
from eventcore_lab.schema import BEGUN, RUN_STATUS, SAMPLE_WORDS, Outcome

NOTICE_EVERY_S = 0.1
SMALL_ROWS = 20_000
"""So many rows are read in the loop's own thread, more in another."""
LAB_BUSY_S, LAB_ASKED_MAX = 0.5, 3
SAMPLES_MAX = LOOK_ROWS_MAX // 2
FOLDERS_MAX = 64
CLOCK_STEP_NS = 100_000_000
"""By how much the wall clock must have been set for a run's beginning to be moved with it."""


class _End(Struct, frozen=True):
    """How a run ended: its `status`, what the Lab's row says of that, and samples that only the Lab had."""

    status: str
    facts: dict[str, Any] = {}
    rows: NDArray[np.int64] = NO_ROWS
    missing: str = ""


class Followed:
    """Of the folder `spool`, whose runs are taken into `lab`. See facts.Source."""

    def __init__(
        self, spool: Path, lab: Lab | None = None, *, clocks: Callable[[], tuple[int, int, int]] = three_clocks_ns
    ) -> None:
        self._spool, self._lab, self._clocks = spool, lab, clocks
        self._runs: dict[str, RunFolder] = {}
        self._over: deque[str] = deque(maxlen=4 * FOLDERS_MAX)
        self._dead: set[str] = set()
        self._marks: list[Mark] = []
        self._last: Watched | None = None
        self._wall_less_monotonic_ns: int | None = None
        self._noticing: asyncio.Task[None] | None = None
        self._is_reading = False

    async def look(self) -> News:
        if self._noticing is None:
            self._noticing = asyncio.ensure_future(self._keep_noticing())
        monotonic, wall, _ = self._clocks()
        t = wall / NS_PER_S
        if self._wall_less_monotonic_ns is None or self._has_stepped(wall - monotonic):
            self._wall_less_monotonic_ns = wall - monotonic
        try:
            self._notice()
            run = self._chosen(t)
            if run is None:
                return News(t=t, watched=self._last, marks=self._taken_marks())
            return await self._told(run, t)
        except OSError as error:
            return News(t=t, watched=self._last, error=f"the spool cannot be read: {error.strerror}")

    async def close(self) -> None:
        if self._noticing is not None:
            self._noticing.cancel()
            with suppress(asyncio.CancelledError):
                await self._noticing
        for run in self._runs.values():
            run.close()
        self._runs.clear()

    def _has_stepped(self, offset_ns: int) -> bool:
        return self._wall_less_monotonic_ns is None or abs(offset_ns - self._wall_less_monotonic_ns) > CLOCK_STEP_NS

    async def _keep_noticing(self) -> None:
        while True:
            await sleep_s(NOTICE_EVERY_S)
            if not self._is_reading:
                with suppress(OSError):
                    self._notice()

    def _notice(self) -> None:
        """Find new folders that somebody works in, and look what has become of those that are known; these after the listing,
        so that a run that had ended before another began has ended here, too, when that is found."""
        try:
            listed = {entry.name for entry in self._spool.iterdir()}
        except FileNotFoundError:
            listed = set()
        for run in self._runs.values():
            run.refresh()
        self._dead &= listed
        for name in sorted(listed - self._runs.keys() - self._dead - set(self._over)):
            run = RunFolder(self._spool / name)
            if not run.is_one():
                continue
            run.refresh()
            if run.has_ended:  # left by a process that died, or taken in just now
                run.close()
                self._dead.add(name)
            else:
                self._runs[name] = run

    def _chosen(self, t: float) -> RunFolder | None:
        """Whom to tell of now: who has ended, oldest first, else the newest."""
        for run in [run for run in self._runs.values() if run.is_aside and run.has_ended]:
            self._forget(run)
        while len(self._runs) > FOLDERS_MAX:
            run = self._runs[min(self._runs)]
            self._marks.append(Mark(t, "a run was not followed", f"{run.run_id}: too many at once"))
            self._forget(run)
        runs = [self._runs[run_id] for run_id in sorted(self._runs)]
        if ended := [run for run in runs if run.has_ended]:
            return ended[0]
        for run in runs[:-1]:
            if not run.is_aside:
                run.is_aside = True
                self._marks.append(
                    Mark(t, "another run is under way", f"{run.run_id} is not followed while {runs[-1].run_id} is")
                )
        if runs and runs[-1].is_aside:
            runs[-1].come_back_to()
        return runs[-1] if runs else None

    def _forget(self, run: RunFolder) -> None:
        run.close()
        del self._runs[run.run_id]
        self._over.append(run.run_id)

    async def _told(self, run: RunFolder, t: float) -> News:
        has_ended = run.has_ended  # before it is read: what it wrote last is then read too
        read = await self._read(run)
        if not has_ended or run.is_behind:
            return self._news(run, t, read, "")
        end = await self._end_of(run)
        if not end.status:  # asked again at the next look
            return self._news(run, t, read, "")
        run.row |= end.facts
        if end.missing:
            self._marks.append(Mark(t, "the end of a run was not seen", f"{run.run_id}: {end.missing}"))
        if len(read.waiting):
            self._marks.append(Mark(t, "operations never ended", f"{len(read.waiting):,} of {run.run_id}"))
        rows = np.concatenate([read.rows, end.rows])
        news = self._news(run, t, Read(rows, gauges=read.gauges, marks=read.marks), end.status)
        self._forget(run)
        return news

    async def _read(self, run: RunFolder) -> Read:
        """What is new, at most LOOK_ROWS_MAX rows and so many only if there are more; much of it in another thread."""
        first = run.read(SMALL_ROWS)
        if not run.is_behind:
            return first
        self._is_reading = True
        try:
            more = await asyncio.to_thread(run.read, LOOK_ROWS_MAX - len(first.rows))
        finally:
            self._is_reading = False
        rows = np.concatenate([first.rows, more.rows])
        return Read(rows, more.waiting, first.gauges + more.gauges, first.marks + more.marks)

    def _news(self, run: RunFolder, t: float, read: Read, status: str) -> News:
        assert self._wall_less_monotonic_ns is not None
        self._last = watched = run.watched(self._wall_less_monotonic_ns, status)
        began = t if watched.began is None else watched.began
        if (run.skipped and not run.told_skipped) or (run.skipped > run.told_skipped and status):
            run.told_skipped = run.skipped
            text = f"{run.skipped:,} operations of {run.run_id} were taken into the lab before they were seen here"
            self._marks.append(Mark(t, "joined late", text))
        return News(
            t=t,
            watched=watched,
            rows=read.rows,
            waiting=read.waiting,
            known_from_ns=run.known_from_ns,
            gauges=gauges_at(read.gauges, began),
            marks=(*marks_at(read.marks, began), *self._taken_marks()),
        )

    def _taken_marks(self) -> tuple[Mark, ...]:
        marks, self._marks = tuple(self._marks), []
        return marks

    async def _end_of(self, run: RunFolder) -> _End:
        """How the run ended: its folder tells, also one that nobody works in any more; else the Lab. No status: ask again."""
        status = str(run.row.get("status"))
        is_known = status in RUN_STATUS and not (run.is_gone and status == "interrupted")
        if is_known and not run.unread:
            return _End(status)
        if self._lab is None:
            return _End(status if is_known else "interrupted", missing="it is gone, and there is no lab to ask")
        run.asked += 1
        try:
            return await asyncio.to_thread(_told_by, self._lab, run.run_id, run.unread, run.start_ns is not None)
        except LabError as error:
            if run.asked < LAB_ASKED_MAX:
                return _End("")
            return _End(status if is_known else "interrupted", missing=f"the lab does not tell: {error}")


def _told_by(lab: Lab, run_id: str, workers: list[int], has_start: bool) -> _End:
    """What the Lab knows of a run that was taken in, with the samples of `workers` if it is known what their times count from.
    Raises LabError if it knows nothing, or is in use for long."""
    if not lab.path.exists():  # asking would make it
        raise LabError(f"{lab.path.name} is not there")
    lab = Lab(lab.path, busy_timeout_s=LAB_BUSY_S)
    row = lab.run_row(run_id)
    facts = {name: row[name] for name in ("status", "status_reason")}
    if not workers:
        return _End(row["status"], facts)
    frame = lab.samples(run_id)
    frame = frame.filter(frame["worker"].is_in(workers) & (frame["outcome"] != int(Outcome.RUNNING))).sort("ended_ns")
    if not has_start:
        return _End(
            row["status"], facts, missing=f"its {len(frame):,} operations are only in the lab" if len(frame) else ""
        )
    rows = np.column_stack([frame[name].to_numpy().astype(np.int64) for name in SAMPLE_WORDS[:-1]] + [_packed(frame)])
    left_out = len(rows) - SAMPLES_MAX
    missing = f"{left_out:,} of its operations are only in the lab" if left_out > 0 else ""
    return _End(row["status"], facts, rows[:SAMPLES_MAX], missing)


def _packed(frame: Any) -> NDArray[np.int64]:
    """The last word of samples; see schema.packed."""
    outcome, phase, conflicts, attempts, events = (
        frame[name].fill_null(0).to_numpy().astype(np.int64)
        for name in ("outcome", "phase", "conflicts", "attempts", "events")
    )
    word: NDArray[np.int64] = outcome | phase << 8 | BEGUN | conflicts << 16 | attempts << 24 | events << 32
    return word
