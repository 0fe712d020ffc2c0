"""Figures of the stores: each against something that does the same work in the same run on the same server, fsync on."""

from __future__ import annotations

import asyncio
import os
import re
import statistics
import subprocess
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import asyncpg
import psutil
import uvloop

from eventcore_lab.clock import NS_PER_S, now_ns
from eventcore_lab.events import ANY, NewEvent, StreamId, StreamWrite
from eventcore_lab.experiment import Experiment, measure
from eventcore_lab.lab.measures import Run
from eventcore_lab.stores import PoolSettings, Store, servers, stores, stream_all
from eventcore_lab.stores.embedded import EmbeddedServer
from eventcore_lab.stores.memory import Memory
from eventcore_lab.stores.variants import variants
from tests.bench.figure import Figure, a_lab, compared, interleaved

SECONDS = 2.0
DATA = b"x" * 200
OURS, EVENTCORE = "env:BENCH_DSN", "env:BENCH_DSN,store=eventcore"


def stores_append_c10() -> Figure:
    """Our single append by ten callers on ten connections, against pgbench running the bare INSERT on the same server."""
    with server_of_our_own() as server:
        what = "single append, 10 connections, to pgbench's bare INSERT"
        ours, theirs = partial(_measured, OURS, 10), partial(_pgbench, server, 10)
        return compared("stores.append_c10", what, 0.75, ours, theirs)


def stores_grouped_c100() -> Figure:
    """A hundred callers, each append durable, checked and acknowledged by itself, against pgbench's best at any of four
    numbers of clients."""
    arms: dict[str, Callable[[], float]] = {"grouped": partial(_measured, f"grouped({OURS})", 100, connections=4)}
    with server_of_our_own() as server:
        arms |= {f"pgbench {n}": partial(_pgbench, server, n) for n in (1, 10, 50, 100)}
        found = interleaved(arms)
    grouped = found.pop("grouped")
    ratios = [ours / max(rates) for ours, *rates in zip(grouped, *found.values(), strict=True)]
    notes = {"grouped/s": statistics.median(grouped)} | {f"{k}/s": statistics.median(v) for k, v in found.items()}
    return Figure("stores.grouped_c100", "grouped, 100 callers, to pgbench's best bare INSERT", 2.5, ratios, notes)


def stores_batch_1000() -> Figure:
    """Appends of a thousand events by one caller, against COPY of the same rows on one connection."""
    with server_of_our_own() as server:
        what = "events/s in batches of 1000, to COPY of the same rows"
        ours = partial(_with_store, OURS, _appends_of_1000)
        return compared("stores.batch_1000", what, 0.8, ours, partial(_with_table, server, _copies_of_1000))


def stores_append_peer() -> Figure:
    """Our single append by ten callers, against the PostgreSQL application recorder of the package eventsourcing."""
    with server_of_our_own():
        what = "single append, 10 callers, to eventsourcing's PostgreSQL application recorder"
        theirs = partial(_measured, "eventsourcing:server=env:BENCH_DSN", 10)
        return compared("stores.append_peer", what, 6, partial(_measured, OURS, 10), theirs)


def stores_eventcore_plain() -> Figure:
    """Single appends, 10 callers, against EventCore's own schema and statements."""
    return _to_eventcore("stores.eventcore_plain", OURS, 10, 1, 3.5)


def stores_eventcore_plain_two() -> Figure:
    """Appends over two streams, 10 callers."""
    return _to_eventcore("stores.eventcore_plain_two", OURS, 10, 2, 3.5)


def stores_eventcore_grouped() -> Figure:
    """Single appends, 100 callers, ours grouped."""
    return _to_eventcore("stores.eventcore_grouped", f"grouped({OURS})", 100, 1, 10)


def stores_eventcore_grouped_two() -> Figure:
    """Appends over two streams, 100 callers, ours grouped."""
    return _to_eventcore("stores.eventcore_grouped_two", f"grouped({OURS})", 100, 2, 10)


def _to_eventcore(name: str, ours: str, callers: int, streams: int, floor: float) -> Figure:
    with server_of_our_own():
        way = "grouped" if ours.startswith("grouped") else "plain"
        what = f"{streams}-stream append, {callers} callers, {way}, to postgres:eventcore"
        arms = [partial(_measured, spec, callers, streams=streams, connections=20) for spec in (ours, EVENTCORE)]
        return compared(name, what, floor, arms[0], arms[1])


def stores_read_stream() -> Figure:
    """A stream of a thousand events, against a bare fetch of the same rows."""
    with server_of_our_own() as server:
        arms = _Reading(server)
        what = "reading a 1000-event stream, to a bare asyncpg fetch of its rows"
        return compared("stores.read_stream", what, 0.7, arms.stream, arms.stream_bare)


def stores_read_all() -> Figure:
    """Everything in pages of a thousand, against a bare fetch of the same pages."""
    with server_of_our_own() as server:
        arms = _Reading(server)
        what = "reading everything in pages of 1000, to a bare asyncpg fetch of the same pages"
        return compared("stores.read_all", what, 0.7, arms.pages, arms.pages_bare)


def stores_stream_memory() -> Figure:
    """How much more memory streaming a million events takes at its peak than streaming ten thousand."""
    with server_of_our_own():
        extra = [_with_store(OURS, _peak_growth_bytes) for _ in range(3)]
    allowed = 10 * 2**20
    notes = {"more at the peak, MiB": statistics.median(extra) / 2**20}
    what = "10 MiB, to how much more 1,000,000 streamed events take at the peak than 10,000"
    return Figure("stores.stream_memory", what, 1, [allowed / max(e, 2**20) for e in extra], notes)


def stores_sqlite_grouped() -> Figure:
    """Fifty callers whose appends share commits, against the same with a commit each."""
    what = "sqlite:full, 50 callers, to one commit per append"
    ours, theirs = partial(_measured, "sqlite:full", 50), partial(_measured, "sqlite:full,group=1", 50)
    return compared("stores.sqlite_grouped", what, 6, ours, theirs)


def stores_memory() -> Figure:
    """Events made and appended to `memory`, against the same events put into a plain dict of lists."""
    what = "memory, an event made and appended, to the same into a dict of lists"
    return compared("stores.memory", what, 0.5, _into_memory, _into_dict)


FIGURES = (
    stores_append_c10,
    stores_grouped_c100,
    stores_batch_1000,
    stores_append_peer,
    stores_eventcore_plain,
    stores_eventcore_plain_two,
    stores_eventcore_grouped,
    stores_eventcore_grouped_two,
    stores_read_stream,
    stores_read_all,
    stores_stream_memory,
    stores_sqlite_grouped,
    stores_memory,
)


@contextmanager
def server_of_our_own() -> Iterator[EmbeddedServer]:
    """A server of one's own, which `env:BENCH_DSN` means."""
    with EmbeddedServer() as server:
        os.environ["BENCH_DSN"] = server.dsn
        yield server


def _measured(store: str, callers: int, streams: int = 1, connections: int = 10) -> float:
    """Appends per second of a whole experiment, journal, checkers and all; none of its invariants may be violated."""
    e = Experiment(
        store=store,
        workload=f"write_events:batch={streams},streams={streams}",
        pacer=f"saturate:concurrency={callers}",
        duration_s=SECONDS,
        warmup_s=0.5,
        connections=connections,
    )
    with a_lab() as lab:
        found = Run(lab, lab.ingest(measure(e, lab.spool).folder))
        assert not set(found.invariants["status"]) & {"violated", "broken"}, found.invariants
        return found.figure("commands_per_second").estimate.value


_INSERT = """\\set s random(1, 4611686018427387904)
INSERT INTO bench.events (stream_id, version, event_id, event_type, data, meta)
VALUES ('test-' || :s, 1, gen_random_uuid(), 'TestHappened', '\\x{data}'::bytea, '\\x'::bytea);
"""


def _pgbench(server: EmbeddedServer, clients: int) -> float:
    """Transactions per second of the bare INSERT into a table like ours."""
    asyncio.run(_new_table(server))
    out = pgbench_insert(server, clients, int(SECONDS))
    found = re.search(r"tps = ([\d.]+)", out)
    assert found, out
    return float(found.group(1))


def pgbench_insert(server: EmbeddedServer, clients: int, seconds: int, *more: str) -> str:
    """What pgbench says after running the bare INSERT."""
    assert server.binaries is not None
    with tempfile.NamedTemporaryFile("w", suffix=".sql") as script:
        script.write(_INSERT.format(data=DATA.hex()))
        script.flush()
        command = [str(server.binaries.bindir / "pgbench"), "-n", "-M", "prepared", "-c", str(clients), "-j", "2"]
        command += ["-T", str(seconds), "-f", script.name, "-h", server.host, "-p", str(server.port), *more]
        command += ["-U", server.user, server.database]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


async def _new_table(server: EmbeddedServer) -> None:
    await servers.drop(server.dsn, "bench", 10)
    await servers.create(server.dsn, "bench", variants()[""].schema_sql(), 10)


def _with_store(spec: str, work: Callable[[Store], Awaitable[float]]) -> float:
    """What `work` finds with a new store of its own."""

    async def found() -> float:
        driver = stores.make(spec)
        async with driver.provision() as place:
            store = await driver.connect(place.address, PoolSettings.sized(2))
            try:
                return await work(store)
            finally:
                await store.close()

    return uvloop.run(found())


def _with_table(server: EmbeddedServer, work: Callable[[Any], Awaitable[float]]) -> float:
    """What `work` finds with a connection to a new table like ours."""

    async def found() -> float:
        await _new_table(server)
        connection = await asyncpg.connect(server.dsn, server_settings={"search_path": "bench"})
        try:
            return await work(connection)
        finally:
            await connection.close()

    return uvloop.run(found())


def _batch(n: int, k: int) -> Sequence[StreamWrite]:
    return [StreamWrite(StreamId(f"test-{k}"), 0, tuple([NewEvent("TestHappened", DATA) for _ in range(n)]))]


_THOUSAND = tuple([NewEvent("TestHappened", DATA) for _ in range(1000)])
"""The application's events, made beforehand: making them is no part of either way to store them."""


async def _appends_of_1000(store: Store) -> float:
    return await _rate(1000, lambda k: store.append([StreamWrite(StreamId(f"test-{k}"), 0, _THOUSAND)]))


async def _copies_of_1000(connection: Any) -> float:
    columns = ["stream_id", "version", "event_id", "event_type", "data", "meta"]

    async def copy(k: int) -> None:
        rows = [(f"test-{k}", n, e.id, e.type, e.data, e.meta) for n, e in enumerate(_THOUSAND, 1)]
        await connection.copy_records_to_table("events", records=rows, columns=columns)

    return await _rate(1000, copy)


async def _rate(each: int, work: Callable[[int], Awaitable[object]], seconds: float = SECONDS) -> float:
    """How many per second, one call after the other, when each call makes `each`."""
    began, k = now_ns(), 0
    while not k or now_ns() - began < seconds * NS_PER_S:
        await work(k)
        k += 1
    return k * each * NS_PER_S / (now_ns() - began)


class _Reading:
    """Ten streams of a thousand events, read through the store and with bare statements."""

    _COLUMNS = "position, stream_id, version, event_id, event_type, data, meta, recorded_at"

    def __init__(self, server: EmbeddedServer) -> None:
        self._server = server

    def stream(self) -> float:
        return self._through_the_store(lambda store: lambda k: store.read_stream(StreamId(f"test-{k % 10}")))

    def pages(self) -> float:
        return self._through_the_store(lambda store: lambda k: store.read_all(k % 10 * 1000, 1000))

    def stream_bare(self) -> float:
        sql = f"SELECT {self._COLUMNS} FROM events WHERE stream_id = $1 ORDER BY version"
        return self._bare(sql, lambda k: f"test-{k % 10}")

    def pages_bare(self) -> float:
        sql = f"SELECT {self._COLUMNS} FROM events WHERE position > $1 ORDER BY position LIMIT 1000"
        return self._bare(sql, lambda k: k % 10 * 1000)

    def _through_the_store(self, reads: Callable[[Store], Callable[[int], Awaitable[object]]]) -> float:
        async def work(store: Store) -> float:
            for k in range(10):
                await store.append(_batch(1000, k))
            return await _rate(1000, reads(store))

        return _with_store(OURS, work)

    def _bare(self, sql: str, argument: Callable[[int], object]) -> float:
        async def work(connection: Any) -> float:
            for k in range(10):
                await connection.execute(
                    """INSERT INTO events (stream_id, version, event_id, event_type, data, meta)
                       SELECT $1, n, gen_random_uuid(), 'TestHappened', $2, '' FROM generate_series(1, 1000) AS n""",
                    f"test-{k}",
                    DATA,
                )
            statement = await connection.prepare(sql)
            return await _rate(1000, lambda k: statement.fetch(argument(k)))

        return _with_table(self._server, work)


async def _peak_growth_bytes(store: Store) -> float:
    """Peak of the process while a million events are streamed, less its peak while ten thousand are."""
    for k in range(1000):
        await store.append(_batch(1000, k))
    few = await _peak_bytes(store, 10_000)
    return await _peak_bytes(store, 1_000_000) - few


async def _peak_bytes(store: Store, events: int) -> float:
    process, peak, n = psutil.Process(), 0, 0
    async for _ in stream_all(store):
        n += 1
        if n % 1000 == 0:
            peak = max(peak, process.memory_info().rss)
        if n == events:
            break
    assert n == events
    return float(peak)


def _into_memory(n: int = 100_000) -> float:
    async def work() -> float:
        store = Memory()
        return await _rate(n, lambda _: _one_by_one(store.append, n), seconds=0)

    return asyncio.run(work())


def _into_dict(n: int = 100_000) -> float:
    async def work() -> float:
        streams: dict[str, list[NewEvent]] = {}

        async def append(writes: Sequence[StreamWrite]) -> None:
            for write in writes:
                streams.setdefault(write.stream, []).extend(write.events)

        return await _rate(n, lambda _: _one_by_one(append, n), seconds=0)

    return asyncio.run(work())


async def _one_by_one(append: Callable[[Sequence[StreamWrite]], Awaitable[object]], n: int) -> None:
    for k in range(n):
        await append([StreamWrite(StreamId(f"test-{k % 1000}"), ANY, (NewEvent("TestHappened", DATA),))])
