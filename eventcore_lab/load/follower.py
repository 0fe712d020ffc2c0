"""The process that reads while the load writes: `python -m eventcore_lab.load.follower`, told what to do on standard input.

It follows the store from its beginning and writes down what it was given, in the order it was given, with the time: the
evidence for "does a reader beside writers get each event once and in order, and how late". A store that is away for a while
is waited for (patience.py). One JSON line each way, as with a worker: the job, then `ready` / `settle` / `settled` /
`go START_NS` / `finish` / `done`. `settle` has it come to the end of what is stored before the load begins, and may be left
out. After `finish`, said when the load has ended, it goes on until nothing more comes; `stop` has it give that up. When the
input closes, the parent is gone and the process ends.
"""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any, ClassVar

import uvloop
from msgspec import Struct

from eventcore_lab.clock import now_ns, sleep_s
from eventcore_lab.events import Position, StoredEvent
from eventcore_lab.load.evidence import ROWS_PER_PART, dated, early, write_rows
from eventcore_lab.load.imports import Imports
from eventcore_lab.load.patience import AWAY_MAX_S, PatientReader
from eventcore_lab.load.worker import Lines, one_job
from eventcore_lab.stores import Address, PoolSettings, Store
from eventcore_lab.stores.reading import follow

SETTLE_TIMEOUT_S = 120.0
FINISH_TIMEOUT_S = 10.0
_LOOK_EVERY_S = 0.020
_QUIET_LOOKS = 2


class FollowerJob(Struct, frozen=True, kw_only=True):
    """What one follower does; the same fields for all followers of a run but `reader`."""

    module: ClassVar[str] = "eventcore_lab.load.follower"
    spool: str
    reader: int
    store: str
    address: Address
    pool: PoolSettings
    page: int = 1000
    settle_timeout_s: float = SETTLE_TIMEOUT_S
    finish_timeout_s: float = FINISH_TIMEOUT_S
    away_max_s: float = AWAY_MAX_S
    rows_per_part: int = ROWS_PER_PART
    imports: Imports = Imports()

    @property
    def name(self) -> str:
        return f"follower {self.reader}"

    @property
    def complains_as(self) -> str:
        return self.name


class Delivered:
    """What the reader was given, as files of `followed`. At most twice `rows_per_part` rows are in memory: those of the part
    that is being written, by another thread, and those of the next. `start_ns` is set once it is known, with `starts`."""

    def __init__(self, job: FollowerJob, start_ns: int | None = None) -> None:
        self._job, self._start_ns = job, start_ns
        self._rows: list[tuple[Any, ...]] = []
        self._parts = 0
        self._writing: asyncio.Future[None] | None = None
        self.count = 0
        self.position: Position = 0

    async def starts(self, start_ns: int) -> None:
        """From here on times count from `start_ns`; what was noted before is moved in `keep`, when the load is over."""
        await self._flush()
        self._start_ns = start_ns

    async def add(self, events: list[StoredEvent]) -> None:
        """Note a page; all of it was seen now."""
        seen_ns, reader, nth = now_ns() - (self._start_ns or 0), self._job.reader, self.count
        self._rows.extend([(reader, 0, nth + n, e.position, e.id.bytes, seen_ns) for n, e in enumerate(events, 1)])
        self.count += len(events)
        self.position = events[-1].position
        if len(self._rows) >= self._job.rows_per_part:
            await self._flush()

    async def keep(self) -> None:
        """Everything noted is in the spool."""
        await self._flush()
        if self._writing is not None:
            await self._writing
        if self._start_ns is not None:
            pattern = f"followed-{self._job.reader}-*.parquet"
            await asyncio.to_thread(dated, Path(self._job.spool), pattern, self._start_ns)

    async def _flush(self) -> None:
        while (writing := self._writing) is not None:
            await asyncio.shield(writing)
            if writing is self._writing:  # and no other caller was first
                break
        if self._rows:
            spool = Path(self._job.spool)
            folder = early(spool) if self._start_ns is None else spool
            path = folder / f"followed-{self._job.reader}-{self._parts}.parquet"
            rows, self._rows, self._parts = self._rows, [], self._parts + 1
            self._writing = asyncio.ensure_future(asyncio.to_thread(_write, path, rows))


def _write(path: Path, rows: list[tuple[Any, ...]]) -> None:
    part = path.with_suffix(".part")
    write_rows(part, "followed", rows)
    part.rename(path)  # whoever finds it finds all of it


async def _work(job: FollowerJob, store: Store, lines: Lines) -> None:
    store = PatientReader(store, job.away_max_s)
    lines.say("ready", pid=os.getpid())
    word, *rest = await lines.heard()
    delivered = Delivered(job)
    following: asyncio.Future[None] | None = None
    try:
        if word == "settle":
            following = asyncio.ensure_future(_follow(store, job.page, delivered))
            has_settled = await _caught_up(store, delivered, following, job.settle_timeout_s, lines)
            lines.say("settled", delivered=delivered.count, has_caught_up=has_settled)
            word, *rest = await lines.heard()
        if word != "go":
            return
        await delivered.starts(int(rest[0]))
        following = following or asyncio.ensure_future(_follow(store, job.page, delivered))
        is_asked = await _is_asked_to_finish(following, lines)
        has_caught_up = is_asked and await _caught_up(store, delivered, following, job.finish_timeout_s, lines)
    finally:
        if following is not None:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
        await delivered.keep()
    if is_asked:
        lines.say("done", delivered=delivered.count, has_caught_up=has_caught_up)


async def _follow(store: Store, page: int, delivered: Delivered) -> None:
    async for events in follow(store, 0, page):
        await delivered.add(events)


async def _is_asked_to_finish(following: asyncio.Future[None], lines: Lines) -> bool:
    """Whether `finish` was said, and not that the parent is gone. Raises what following the store raises."""
    asked = asyncio.ensure_future(lines.heard())
    both: list[asyncio.Future[Any]] = [following, asked]
    try:
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if following.done():
            await following  # raises: it never ends by itself
        return (await asked)[0] == "finish"
    finally:
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)


async def _caught_up(
    store: Store, delivered: Delivered, following: asyncio.Future[None], timeout_s: float, lines: Lines
) -> bool:
    """Whether nothing more came in time: what is behind the reader's place is empty, twice, and will stay so."""
    try:
        async with asyncio.timeout(timeout_s):
            return await lines.unless_stopped(_quiet(store, delivered, following)) is not None
    except TimeoutError:
        return False


async def _quiet(store: Store, delivered: Delivered, following: asyncio.Future[None]) -> bool:
    quiet = 0
    while quiet < _QUIET_LOOKS:
        at = delivered.position
        is_quiet = not await store.read_all(at, 1) and await store.last_position() <= at == delivered.position
        quiet = quiet + 1 if is_quiet else 0
        if following.done():
            await following
        await sleep_s(_LOOK_EVERY_S)
    return True


def run_follower() -> None:
    """Entry point. SIGINT belongs to the parent, which says `finish`; SIGTERM ends the process at once."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    uvloop.run(one_job(FollowerJob, _work))


if __name__ == "__main__":
    run_follower()
