"""The process that keeps a read model while the load writes: `python -m eventcore_lab.load.projector`, told on standard input.

One JSON line each way, as with a worker: the job, then `ready` (the read model is made) / `settle` / `settled` /
`go START_NS` / `finish` / `done`. `settle` has it come to the end of what is stored before the load begins, and may be left
out. While the load runs it tells as gauges how far the read model is behind. After `finish`, said when the load has ended,
it brings the read model to the store's end, and writes down what it holds and what a plain fold of the events holds: the
evidence for "is the read model what the events say"; `stop` has it give that up, which is written down too. When the input
closes, the parent is gone and the process ends. A store that is away for a while is waited for (patience.py).
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

import uvloop
from msgspec import Struct

from eventcore_lab.clock import NS_PER_S, now_ns, sleep_s
from eventcore_lab.events import Position, StoreError
from eventcore_lab.load.evidence import Rows, write_rows
from eventcore_lab.load.gauges import Gauges
from eventcore_lab.load.imports import Imports
from eventcore_lab.load.patience import AWAY_MAX_S, PatientKeeper, PatientReader
from eventcore_lab.load.worker import Lines, one_job
from eventcore_lab.projections import Kept, read_models, users
from eventcore_lab.projections.plain import digest, folded
from eventcore_lab.projections.users import Row
from eventcore_lab.schema import NOT_COMPARED
from eventcore_lab.spec import UsageError, parse
from eventcore_lab.stores import Address, Polling, PoolSettings, Store
from eventcore_lab.stores.reading import stream_all

SETTLE_TIMEOUT_S = 120.0
FINISH_TIMEOUT_S = 30.0
COMPARE_TIMEOUT_S = 600.0
"""To read the whole read model and fold all events, once the read model has caught up."""
SAMPLE_EVERY_S = 0.1
DENSE_MAX = 2**32
"""No store here holds so many events: positions above are made of a time or a transaction, and differences count nothing."""
_PAGE = 5000


class ProjectorJob(Struct, frozen=True, kw_only=True):
    """What one projector does. `projection`: the spec of a read model; `projector`: its number among those of the run."""

    module: ClassVar[str] = "eventcore_lab.load.projector"
    spool: str
    projection: str
    store: str
    address: Address
    pool: PoolSettings
    projector: int = 0
    settle_timeout_s: float = SETTLE_TIMEOUT_S
    finish_timeout_s: float = FINISH_TIMEOUT_S
    away_max_s: float = AWAY_MAX_S
    imports: Imports = Imports()

    @property
    def name(self) -> str:
        return f"projector {self.projector}"

    @property
    def complains_as(self) -> str:
        return f"{self.name} ({self.projection})"


async def _work(job: ProjectorJob, store: Store, lines: Lines) -> None:
    kept = _kept(job, store)
    try:
        await kept.make()
        lines.say("ready", pid=os.getpid())
        word, *rest = await lines.heard()
        if word == "settle":
            lines.say("settled", has_caught_up=await _settled(job, store, kept, lines))
            word, *rest = await lines.heard()
        if word == "go" and await _kept_until_finish(job, store, kept, lines, int(rest[0])):
            rows = await _compared(job, PatientReader(store, job.away_max_s), kept, lines)
            lines.say("done", has_caught_up=rows is not None, rows=rows or 0, failures=dict(kept.failures))
    finally:
        await kept.close()


def _kept(job: ProjectorJob, store: Store) -> Kept:
    """The read model, kept by nobody else, also when the store has been away meanwhile."""
    try:
        kept = read_models.make(job.projection).kept_in(store)
    except UsageError as error:  # the parent hears of it as of any refusal
        raise StoreError(str(error)) from None
    return PatientKeeper(kept, store, job.projection, job.away_max_s, job.finish_timeout_s)


# before the load, and while it runs


async def _settled(job: ProjectorJob, store: Store, kept: Kept, lines: Lines) -> bool:
    """Whether the read model came to the end of what is stored. No step is cut off: the next ones build on it."""
    return await _reaches(kept, await store.last_position(), _from_now_ns(job.settle_timeout_s), lines)


async def _kept_until_finish(job: ProjectorJob, store: Store, kept: Kept, lines: Lines, start_ns: int) -> bool:
    """Whether `finish` was said, and not that the parent is gone."""
    gauges = Gauges(Path(job.spool), f"projection {parse(job.projection, read_models.kind).name}", start_ns)
    is_over = asyncio.Event()
    keeping = asyncio.ensure_future(_keep(kept, gauges, is_over))
    sampling = asyncio.ensure_future(_sample(store, kept, gauges, is_over))
    asked = asyncio.ensure_future(lines.heard())
    try:
        await asyncio.wait([keeping, sampling, asked], return_when=asyncio.FIRST_COMPLETED)
        is_over.set()
        # What is under way is finished, for a step that is cut off may or may not have happened; unless nobody will ask.
        await lines.unless_stopped(_both(keeping, sampling))
        return (await asked)[0] == "finish"
    finally:
        for task in (keeping, sampling, asked):
            task.cancel()
        await asyncio.gather(keeping, sampling, asked, return_exceptions=True)
        gauges.close()


async def _both(keeping: asyncio.Future[None], sampling: asyncio.Future[None]) -> None:
    await asyncio.gather(keeping, sampling)  # raises what one of them raised: neither ends by itself


async def _keep(kept: Kept, gauges: Gauges, is_over: asyncio.Event) -> None:
    polling = Polling()
    wait_s = polling.first_s
    while not is_over.is_set():
        began_ns = now_ns()
        step = await kept.step()
        if step.refresh_ns:
            gauges.tell(refresh_ms=step.refresh_ns / 1e6)
        if kept.every_s:
            wait_s = kept.every_s - (now_ns() - began_ns) / NS_PER_S
        else:
            wait_s = polling.first_s if step.applied else min(2 * wait_s, polling.longest_s)
        await _wait(is_over, 0.0 if step.is_behind else wait_s)


async def _sample(store: Store, kept: Kept, gauges: Gauges, is_over: asyncio.Event) -> None:
    due_ns = now_ns()
    while not is_over.is_set():
        with suppress(StoreError):  # a gap in the series; whoever keeps the read model will say what is wrong
            gauges.tell(**await lag(store, kept), applied_events=kept.applied, **kept.failures)
        due_ns = max(due_ns + int(SAMPLE_EVERY_S * NS_PER_S), now_ns())
        await _wait(is_over, (due_ns - now_ns()) / NS_PER_S)


async def _wait(is_over: asyncio.Event, seconds: float) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(max(seconds, 0)):
            await is_over.wait()


async def lag(store: Store, kept: Kept) -> dict[str, float]:
    """How far a read model is behind its store: `lag_events`, in positions, where these are numbers that count; `lag_ms`,
    how long ago the first event that is not in it was recorded, by this machine's clock (0: there is none)."""
    top, at = await store.last_position(), await kept.reached()
    found: dict[str, float] = {} if top > DENSE_MAX else {"lag_events": max(0, top - at)}
    waiting = await store.read_all(at, 1) if at < top else []
    if waiting and not users.wanted.matches(
        waiting[0].stream, waiting[0].type
    ):  # not asked for at once, for it is slower
        waiting = await store.read_all(at, 1, users.wanted)
    if not waiting:
        return found | {"lag_ms": 0.0}
    if waiting[0].recorded_at_us:
        found["lag_ms"] = max(0.0, time.time_ns() / 1e6 - waiting[0].recorded_at_us / 1e3)
    return found


# afterwards


async def _compared(job: ProjectorJob, store: Store, kept: Kept, lines: Lines) -> int | None:
    """Write down the read model as of the store's end beside the fold of the same events; the number of rows. None, and
    that it was not compared is written down, when it did not come to an end in time or before `stop`."""
    rows: int | None = None
    with suppress(TimeoutError):
        async with asyncio.timeout(job.finish_timeout_s + COMPARE_TIMEOUT_S):
            rows = await lines.unless_stopped(_evidence(job, store, kept, lines))
    if rows is None:
        write_rows(Path(job.spool) / f"counts-{job.name.replace(' ', '-')}.parquet", "counts", [(NOT_COMPARED, 1)])
    return rows


async def _evidence(job: ProjectorJob, store: Store, kept: Kept, lines: Lines) -> int | None:
    deadline_ns = _from_now_ns(job.finish_timeout_s)
    while await _reaches(kept, top := await store.last_position(), deadline_ns, lines):
        rows, expected = await kept.rows(), await folded(stream_all(store, page=_PAGE))
        if await store.last_position() == top:  # else something came between the two
            path = Path(job.spool) / f"projected-{job.projector}.parquet"
            return write_projected(path, job.projection, rows, expected)
    return None


def _from_now_ns(timeout_s: float) -> int:
    return now_ns() + int(timeout_s * NS_PER_S)


async def _reaches(kept: Kept, top: Position, deadline_ns: int, lines: Lines) -> bool:
    while now_ns() < deadline_ns and not lines.stop.is_set:
        step = await kept.step()
        if not step.is_behind and await kept.reached() >= top:
            return True
        await sleep_s(0 if step.is_behind else Polling().first_s)
    return False


def write_projected(path: Path, projection: str, rows: list[Row], expected: dict[str, Row]) -> int:
    """A file of `projected`: every row of the read model beside the one it should be, and those that it has not."""
    missing = expected.keys() - {row[0] for row in rows}
    with Rows(path, "projected") as file:
        for row in rows:
            should_be = expected.get(row[0])
            file.add((projection, row[0], digest(row), None if should_be is None else digest(should_be)))
        for user_id in missing:
            file.add((projection, user_id, None, digest(expected[user_id])))
    return file.count


def run_projector() -> None:
    """Entry point. SIGINT belongs to the parent, which says `finish`; SIGTERM ends the process at once."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    uvloop.run(one_job(ProjectorJob, _work))


if __name__ == "__main__":
    run_projector()
