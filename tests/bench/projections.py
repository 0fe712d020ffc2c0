"""Figures of projections: rebuilding against bare reading, against the chapter's copy per event, and what each way of
keeping a read model costs the writer, leaves stale, and takes to refresh."""

from __future__ import annotations

import statistics
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import asyncpg
import psutil
import uvloop

from eventcore_lab.clock import NS_PER_S, now_ns
from eventcore_lab.commands import CreateUser, UpdateProfile
from eventcore_lab.commands.users import User, user_stream
from eventcore_lab.events import NewEvent, StoredEvent, StoreError, StreamId, StreamWrite
from eventcore_lab.experiment import Experiment, measure
from eventcore_lab.lab.measures import Run
from eventcore_lab.projections import Remembered, catch_up, read_models, users
from eventcore_lab.projections.chapter import OptimizedUserProjection
from eventcore_lab.stores import PoolSettings, Store, stores
from tests.bench.figure import Figure, a_lab, interleaved
from tests.bench.stores import OURS, server_of_our_own

EVENTS = 1_000_000
PAGE = 1000
USERS = 10_000
SIZES = (10_000, 100_000, 1_000_000)


def projections_rebuild() -> Figure:
    """A million events of ten thousand users folded, against a bare fetch of the same pages; and how much more memory at the
    peak that takes than the first hundred thousand events do."""
    with server_of_our_own():
        rates, grown = uvloop.run(_on_filled(EVENTS, USERS, _rebuilds))
    ratios = [ours / bare for ours, bare in zip(rates["ours"], rates["bare"], strict=True)]
    notes = {f"{arm} events/s": statistics.median(values) for arm, values in rates.items()}
    notes |= {"MiB more at the peak than at 100,000": grown / 2**20}
    what = "rebuilding a projection of 1,000,000 events, to a bare asyncpg fetch of their pages"
    return Figure("projections.rebuild", what, 0.5, ratios, notes)


async def _rebuilds(store: Store, dsn: str, schema: str) -> tuple[dict[str, list[float]], float]:
    await _peak_bytes(store, SIZES[1])  # the allocator's pools are as large as they get
    few, all_of_them = await _peak_bytes(store, SIZES[1]), await _peak_bytes(store, EVENTS)
    rates: dict[str, list[float]] = {"ours": [], "bare": []}
    for trial in range(3):
        arms: list[tuple[str, Callable[[], Awaitable[float]]]] = [
            ("ours", partial(_rebuild_rate, store)),
            ("bare", partial(_bare_rate, dsn, schema)),
        ]
        for arm, work in arms if trial % 2 else reversed(arms):
            rates[arm].append(await work())
    return rates, all_of_them - few


async def _rebuild_rate(store: Store) -> float:
    began = now_ns()
    kept = Remembered(users, store, page=PAGE, every=10 * EVENTS, save_s=1e6)
    await catch_up(kept)
    await kept.close()
    assert kept.applied == EVENTS and len(kept.state) == USERS
    return EVENTS * NS_PER_S / (now_ns() - began)


async def _bare_rate(dsn: str, schema: str) -> float:
    connection = await asyncpg.connect(dsn, server_settings={"search_path": schema})
    statement = await connection.prepare(
        """SELECT position, stream_id, version, event_id, event_type, data, meta, recorded_at FROM events
           WHERE position > $1 ORDER BY position LIMIT $2"""
    )
    began, after = now_ns(), 0
    while rows := await statement.fetch(after, PAGE):
        after = rows[-1][0]
    rate = EVENTS * NS_PER_S / (now_ns() - began)
    await connection.close()
    return rate


async def _peak_bytes(store: Store, events: int) -> float:
    """The process's highest memory while so many events are folded, seen at the end of each page."""
    process, peak = psutil.Process(), 0
    kept = Remembered(users, store, page=PAGE, every=10 * EVENTS, save_s=1e6)
    while kept.applied < events:
        await kept.step()
        peak = max(peak, process.memory_info().rss)
    await kept.close()
    return float(peak)


def projections_chapter_clone() -> Figure:
    """Events applied to a state of 1,000, 10,000 and 100,000 users: in place, against the chapter's copy of all users for each
    event. The figure is at 10,000; the notes have all."""
    ratios, notes = [], {}
    for size in (1_000, 10_000, 100_000):
        state: dict[str, Any] = {}
        for event in _stored(size, size):
            users.apply(state, event)
        events = list(_stored(size, 2 * size))[size : size + 20_000]
        ours, chapters = [], []
        for _ in range(3):
            ours.append(_apply_rate(partial(users.apply, state), events))
            chapter = OptimizedUserProjection()
            few = events[: max(3, 200_000 // size)]
            chapters.append(_apply_rate(lambda e, c=chapter, s=state: c.apply_incremental(e, s), few))
        notes |= {f"ours/s at {size:,}": statistics.median(ours), f"chapter/s at {size:,}": statistics.median(chapters)}
        if size == 10_000:
            ratios = [a / b for a, b in zip(ours, chapters, strict=True)]
    what = "applying an event to 10,000 users in place, to the chapter's copy of all of them"
    return Figure("projections.chapter_clone", what, None, ratios, notes)


def _apply_rate(apply: Callable[[StoredEvent], object], events: list[StoredEvent]) -> float:
    began = now_ns()
    for event in events:
        apply(event)
    return len(events) * NS_PER_S / (now_ns() - began)


KEPT = ("worker", "trigger", "matview", "chapter_matview", "memory")


def projections_write_cost() -> Figure:
    """What is left of the writers' throughput, 10 callers of the plain executor, while a read model is kept in each way; and
    how stale it is. The figure is the worker's; the notes have all."""
    with server_of_our_own():
        found = interleaved({name or "none": partial(_kept_run, name) for name in ("", *KEPT)}, trials=3)
    bare = [run["rate"] for run in found.pop("none")]
    notes = {"writes/s without": statistics.median(bare)}
    for name, runs in found.items():
        ratio = statistics.median([run["rate"] / b for run, b in zip(runs, bare, strict=True)])
        notes |= {f"{name}: writes": ratio, f"{name}: ms stale": statistics.median([run["lag_ms"] for run in runs])}
    ratios = [run["rate"] / b for run, b in zip(found["worker"], bare, strict=True)]
    what = "commands while a worker keeps a read model, to commands without one"
    return Figure("projections.write_cost", what, None, ratios, notes)


def _kept_run(projection: str) -> Any:
    """The rate of the writers, and how late the read model was on the average of its looks."""
    e = Experiment(
        store=OURS,
        workload="users:users=10000",
        pacer="saturate:concurrency=10",
        projection=projection,
        duration_s=3.0,
        warmup_s=0.5,
        connections=10,
    )
    with a_lab() as lab:
        run = Run(lab, lab.ingest(measure(e, lab.spool).folder))
        off = run.invariants.filter(run.invariants["status"].is_in(["violated", "broken"]))["name"].to_list()
        assert not off or projection == "chapter_matview", off  # which has a row per event, and is found out
        lags = run.gauge(f"projection {projection.partition(':')[0]}", "lag_ms")["value"].to_list() or [0.0]
        return {"rate": run.figure("commands_per_second").estimate.value, "lag_ms": statistics.mean(lags)}


def projections_refresh() -> Figure:
    """How long a refresh takes with the number of events, a tenth as many users: ours CONCURRENTLY, the chapter's not; and what
    a page of the worker takes. The figure is how much longer ours takes for ten times the events, 1,000,000 to 100,000."""
    notes: dict[str, float] = {}
    for size in SIZES:
        with server_of_our_own():
            found = uvloop.run(_on_filled(size, size // 10, _refreshes))
        notes |= {f"{name} ms at {size:,}": ms for name, ms in found.items()}
    ratio = notes["matview ms at 1,000,000"] / notes["matview ms at 100,000"]
    what = "refreshing the right materialised view at 1,000,000 events, to 100,000 (linear would be 10)"
    return Figure("projections.refresh", what, None, [ratio], notes)


async def _refreshes(store: Store, *_: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for name in ("matview", "chapter_matview"):
        kept = read_models.make(f"{name}:every_s=1").kept_in(store)
        await kept.make()
        times = [(await kept.step()).refresh_ns / 1e6 for _ in range(3)]
        found[name] = statistics.median(times)
        await kept.close()
    kept = read_models.make("worker").kept_in(store)
    await kept.make()
    began, steps = now_ns(), 0
    while (await kept.step()).is_behind and steps < 50:
        steps += 1
    found["worker, a page of 1000,"] = (now_ns() - began) / 1e6 / max(steps, 1)
    await kept.close()
    return found


FIGURES = (projections_rebuild, projections_chapter_clone, projections_write_cost, projections_refresh)


def _said(n: int, population: int) -> tuple[StreamId, NewEvent]:
    """Event n of a history in which everybody registers first and then changes names in turn."""
    user = f"{n % population:08d}"
    stream = user_stream(user)
    command = CreateUser(user, f"{user}@example.com", "User", "Known") if n < population else None
    states = {stream: None} if command else {stream: User("", "")}
    [(_, event)] = (command or UpdateProfile(user, f"User{n}", "Known")).decide(states)  # type: ignore[arg-type]
    return stream, event


def _stored(population: int, events: int) -> list[StoredEvent]:
    found = []
    for n in range(events):
        stream, event = _said(n, population)
        found.append(StoredEvent(n + 1, stream, n // population + 1, event.id, event.type, event.data, b"", n))
    return found


async def _on_filled(events: int, population: int, work: Callable[[Store, str, str], Awaitable[Any]]) -> Any:
    """What `work` finds with a store that has so many events of so many users."""
    driver = stores.make(OURS)
    async with driver.provision() as place:
        store = await driver.connect(place.address, PoolSettings.sized(2))
        try:
            for first in range(0, events, 5000):
                requests = []
                for n in range(first, min(first + 5000, events)):
                    stream, event = _said(n, population)
                    requests.append([StreamWrite(stream, n // population, (event,))])
                for result in await store.append_many(requests):
                    assert not isinstance(result, StoreError), result
            return await work(store, place.address.dsn, place.address.schema)
        finally:
            await store.close()
