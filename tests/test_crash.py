"""`kill -9` of a writer and of the server, in the middle of the load: nothing acknowledged is lost, nothing is torn.

Several writers append to single and paired streams and note what they were told; after a seeded number of
acknowledgements somebody is killed. What the store holds afterwards is held against the notes. Ten kills of each kind.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import sys
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from msgspec import Struct

from eventcore_lab.clock import sleep_s
from eventcore_lab.events import (
    ANY,
    AppendResult,
    NewEvent,
    OutcomeUnknown,
    Position,
    StoreError,
    StoreUnreachable,
    StreamId,
    StreamWrite,
    VersionConflict,
)
from eventcore_lab.experiment import Experiment
from eventcore_lab.experiment.measuring import _Run
from eventcore_lab.lab.database import Lab
from eventcore_lab.lab.measures import Run
from eventcore_lab.load.follower import FollowerJob
from eventcore_lab.load.journal import settled
from eventcore_lab.load.projector import ProjectorJob
from eventcore_lab.load.recorder import Watcher
from eventcore_lab.load.workers import Followers
from eventcore_lab.progress import Quiet
from eventcore_lab.schema import Outcome
from eventcore_lab.stores import PoolSettings, Store, follow, stores, stream_all
from eventcore_lab.stores.embedded import EmbeddedServer
from eventcore_lab.stores.protocol import Address
from eventcore_lab.stores.retry import find

WRITERS = 6
SEEDS = range(1, 6)
KILLS_EACH = 2  # per seed and kind
STREAMS = tuple(StreamId(f"s{n}") for n in range(5))
TIMEOUT_S = 30
POOL = PoolSettings(max_connections=WRITERS + 2, min_connections=2, application_name="crash")


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedServer]:
    with EmbeddedServer() as started:
        yield started


@pytest.fixture(autouse=True)
def dsn(server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("CRASH_DSN", server.dsn)
    return server.dsn


class Tried(Struct, frozen=True):
    """An append and what its writer was told: versions, or the name of an error, or nothing because the writer died."""

    writes: tuple[StreamWrite, ...]
    versions: tuple[int, ...] = ()
    error: str = ""

    @property
    def ids(self) -> set[UUID]:
        return {event.id for write in self.writes for event in write.events}


def drawn(rng: random.Random, heads: dict[StreamId, int]) -> tuple[StreamWrite, ...]:
    """An append to one stream or two, of one to three events each; half of them expect the version last seen."""
    chosen = rng.sample(STREAMS, rng.choice((1, 2)))
    expected = [heads.get(stream, 0) if rng.random() < 0.5 else ANY for stream in chosen]
    sizes = [rng.randint(1, 3) for _ in chosen]
    return tuple(
        StreamWrite(stream, at, tuple(NewEvent("Happened", b"{}") for _ in range(size)))
        for stream, at, size in zip(chosen, expected, sizes, strict=True)
    )


async def write_on(
    store: Store,
    rng: random.Random,
    begins: Callable[[tuple[StreamWrite, ...]], int],
    ends: Callable[[int, Tried], Any],
) -> None:
    """Append until the store is gone. Every append is noted before it is tried, and again with its answer."""
    heads: dict[StreamId, int] = {}
    while True:
        writes = drawn(rng, heads)
        n = begins(writes)
        try:
            versions = (await store.append(writes)).versions
        except StoreError as error:
            ends(n, Tried(writes, error=type(error).__name__))
            if not isinstance(error, VersionConflict):
                return
            heads[error.stream] = error.actual
        else:
            ends(n, Tried(writes, versions))
            heads.update({write.stream: at for write, at in zip(writes, versions, strict=True)})


class Notes:
    """What all writers tried; `enough` is set when so many appends were acknowledged."""

    def __init__(self) -> None:
        self.tried: list[Tried] = []
        self.enough = asyncio.Event()
        self._left = 0

    def until(self, acknowledged: int) -> None:
        self._left = acknowledged
        self.enough.clear()

    def begins(self, writes: tuple[StreamWrite, ...]) -> int:
        self.tried.append(Tried(writes, error="no answer"))
        return len(self.tried) - 1

    def ends(self, n: int, tried: Tried) -> None:
        self.tried[n] = tried
        if not tried.error:
            self._left -= 1
            if self._left <= 0:
                self.enough.set()


async def check(store: Store, tried: list[Tried]) -> Counter[str]:
    """Hold what is stored against what the writers were told; how many appends there were of each kind."""
    events = [event async for event in stream_all(store)]
    stored = {event.id: event for event in events}
    assert len(stored) == len(events), "an id is stored twice"
    assert stored.keys() <= set().union(*(t.ids for t in tried)), "nobody wrote it"
    for part in await store.read_streams(STREAMS):
        assert [event.version for event in part.events] == list(range(1, part.version + 1))
    kinds: Counter[str] = Counter()
    for t in tried:
        there = len(t.ids & stored.keys())
        kinds[t.error or "acknowledged"] += 1
        if t.versions:
            assert there == len(t.ids), "an acknowledged append was lost"
            lasts = [stored[write.events[-1].id] for write in t.writes]
            assert [(e.stream, e.version) for e in lasts] == [
                (write.stream, at) for write, at in zip(t.writes, t.versions, strict=True)
            ]
        elif t.error in (OutcomeUnknown.__name__, "no answer"):
            assert there in (0, len(t.ids)), "a torn append"
            found = await find(store, t.writes)
            assert (found is not None) == (there > 0)
            kinds["found" if found else "not found"] += 1
        else:
            assert there == 0, f"{t.error}, but something of it is there"
    return kinds


# The server is killed


class Tail:
    """A reader that follows the store, and goes on from its place whenever the store is back."""

    def __init__(self, store: Store) -> None:
        self._store, self.position = store, 0
        self.seen: list[UUID] = []
        self.breaks = 0

    async def follow(self, is_up: asyncio.Event) -> None:
        while True:
            await is_up.wait()
            try:
                async for page in follow(self._store, self.position, page=13):
                    self.seen.extend(event.id for event in page)
                    self.position: Position = page[-1].position
            except StoreError:
                self.breaks += 1
                await sleep_s(0)


async def caught_up(tail: Tail, store: Store) -> list[UUID]:
    """What is stored, once the reader has come to its end."""
    wanted = [event.id async for event in stream_all(store)]
    async with asyncio.timeout(TIMEOUT_S):
        while len(tail.seen) < len(wanted):
            await sleep_s(0.001)
    return wanted


@asynccontextmanager
async def tailed(store: Store, is_up: asyncio.Event) -> Any:
    tail = Tail(store)
    following = asyncio.ensure_future(tail.follow(is_up))
    try:
        yield tail
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)


@pytest.mark.parametrize("seed", SEEDS)
async def test_a_server_that_is_killed_loses_nothing_acknowledged(seed: int, server: EmbeddedServer) -> None:
    """The store object and the reader live through it: they are the same before and after."""
    rng, notes, is_up = random.Random(seed), Notes(), asyncio.Event()
    driver = stores.make("env:CRASH_DSN")
    async with asyncio.timeout(TIMEOUT_S), driver.provision() as place:
        store = await driver.connect(place.address, POOL)
        is_up.set()
        async with tailed(store, is_up) as tail:
            for _ in range(KILLS_EACH):
                notes.until(rng.randint(20, 120))
                writing = [
                    asyncio.ensure_future(write_on(store, random.Random(rng.random()), notes.begins, notes.ends))
                    for _ in range(WRITERS)
                ]
                await notes.enough.wait()
                is_up.clear()
                await asyncio.to_thread(server.kill)
                await asyncio.gather(*writing)
                await asyncio.to_thread(server.restart)
                is_up.set()
                kinds = await check(store, notes.tried)
                wanted = await caught_up(tail, store)
                assert tail.seen == wanted, "the reader lost, repeated or reordered something"
                print(f"seed {seed}: {dict(kinds)}, {len(wanted)} events, reader interrupted {tail.breaks} times")
        assert kinds["acknowledged"] >= 20 * KILLS_EACH and kinds["OutcomeUnknown"] > 0
        await store.close()


async def test_a_server_that_was_killed_comes_back_with_its_data_and_the_same_address(
    server: EmbeddedServer, dsn: str
) -> None:
    server.kill()
    assert not server.is_running and not server.pids()
    with pytest.raises(StoreUnreachable):
        await stores.make("env:CRASH_DSN").connect(Address("x", dsn), POOL)
    assert server.restart().dsn == dsn and server.is_running
    assert server.restart() is server
    server.kill()
    server.kill()
    server.restart()
    connection = await asyncpg.connect(dsn)
    assert await connection.fetchval("SELECT 1") == 1
    await connection.close()


async def test_the_processes_of_a_server_are_found_again_after_a_restart(server: EmbeddedServer) -> None:
    async with stores.make("env:CRASH_DSN").provision() as place:
        before = place.server_pids()
        await asyncio.to_thread(server.kill)
        assert place.server_pids() == []
        await asyncio.to_thread(server.restart)
        after = place.server_pids()
    assert len(before) > 3 and len(after) > 3 and not set(before) & set(after)


async def test_a_reader_that_waits_at_a_hole_when_the_server_dies_goes_on(server: EmbeddedServer, dsn: str) -> None:
    """Transaction ids that wrote nothing are handed out again after a crash; its fence must not wait for them."""
    driver = stores.make("env:CRASH_DSN")
    async with asyncio.timeout(TIMEOUT_S), driver.provision() as place:
        store = await driver.connect(place.address, PoolSettings.sized(1))
        writes = [[StreamWrite(stream, ANY, (NewEvent("Happened", b"{}"),))] for stream in STREAMS[:2]]
        slow = await asyncpg.connect(dsn, server_settings={"search_path": place.address.schema})
        await slow.execute("BEGIN")
        await slow.execute(
            "SELECT append_one('slow', -1, ARRAY[gen_random_uuid()], '{T}', ARRAY[''::bytea], ARRAY[''::bytea])"
        )
        await store.append(writes[0])
        others = await asyncpg.connect(dsn)
        for _ in range(5):
            await others.execute("SELECT pg_current_xact_id()")
        assert not await store.read_all()
        await asyncio.to_thread(server.kill)
        await asyncio.to_thread(server.restart)
        while not (events := await store.read_all()):
            await sleep_s(0)
        assert [event.stream for event in events] == [STREAMS[0]]
        await store.append(writes[1])
        assert len(await store.read_all()) == 2
        for connection in (slow, others):
            connection.terminate()
        await store.close()


async def killed_and_restarted(run: _Run, server: EmbeddedServer) -> None:
    """Measure `run`; kill the server in the middle of its load, start it again, and stop when it has answered for a while."""
    outcomes, watcher = list[int](), Watcher(run.folder / "samples-0.i64")

    async def until(is_enough: Callable[[], bool]) -> None:
        while not is_enough():
            outcomes.extend((watcher.new_rows()[:, -1] & 0xFF).tolist())
            assert not measured.done(), measured.result()
            await sleep_s(0.01)

    def is_well() -> bool:
        return len(outcomes) >= 200 and set(outcomes[-200:]) == {Outcome.OK}

    measured = asyncio.ensure_future(run.whole())
    await until(is_well)
    await asyncio.to_thread(server.kill)
    await until(lambda: outcomes[-1] != Outcome.OK)
    await asyncio.to_thread(server.restart)
    await until(is_well)
    run.asked.set()
    assert (await measured).status == "interrupted"


@pytest.mark.parametrize(
    "beside",
    [{"workload": "write_events"}, {"followers": 2, "projection": "worker"}, {"projection": "matview:every_s=0.05"}],
    ids=str,
)
async def test_a_load_goes_on_when_the_server_is_killed_and_started_again(
    beside: dict[str, Any], server: EmbeddedServer, lab: Lab
) -> None:
    """The load process and those beside it live through it, reconnect by themselves, and lose and repeat nothing."""
    e = Experiment(store="env:CRASH_DSN", pacer="constant:rate=300", duration_s=60, warmup_s=0, **beside)
    run = _Run(e, lab.spool, Quiet(), threading.Event())
    async with asyncio.timeout(60):
        await killed_and_restarted(run, server)
    found = Run(lab, await asyncio.to_thread(lab.ingest, run.folder)).invariants
    status = dict(found.select("name", "status").iter_rows())
    assert set(status.values()) <= {"passed", "not tested"}, found.filter(found["status"] == "violated").rows()
    names = ["acknowledged appends are there", "every operation has one outcome", "holes are accounted for"]
    names += ["refused appends left nothing"] * ("workload" in beside)
    names += ["followers miss nothing", "followers are given nothing twice"] * ("followers" in beside)
    names += ["projections equal the fold of the events"] * ("projection" in beside)
    assert all(status[name] == "passed" for name in names), status


async def test_a_reader_gives_a_server_up_that_stays_away(server: EmbeddedServer, tmp_path: Path) -> None:
    driver, lock = stores.make("env:CRASH_DSN"), os.open(tmp_path / "lock", os.O_CREAT | os.O_RDWR)
    async with asyncio.timeout(TIMEOUT_S), driver.provision() as place:
        same: Any = {"spool": str(tmp_path), "store": "env:CRASH_DSN", "address": place.address, "away_max_s": 0.1}
        pool = PoolSettings.sized(2)
        jobs = [FollowerJob(reader=0, pool=pool, **same), ProjectorJob(projection="worker", pool=pool, **same)]
        for job in jobs:
            with pytest.raises(StoreUnreachable, match=f"^{re.escape(job.complains_as)}: the store has been away for"):
                async with Followers[Any].spawned([job], lock) as followers:
                    await followers.go(0)
                    await asyncio.to_thread(server.kill)
                    await followers.beside(sleep_s(TIMEOUT_S))
            await asyncio.to_thread(server.restart)
    os.close(lock)


async def test_a_server_that_is_just_starting_when_the_load_ends_is_waited_for(server: EmbeddedServer) -> None:
    driver = stores.make("env:CRASH_DSN")
    async with asyncio.timeout(TIMEOUT_S), driver.provision() as place:
        store = await driver.connect(place.address, PoolSettings.sized(1))
        await asyncio.to_thread(server.kill)
        with pytest.raises(StoreUnreachable):
            await settled(store, 0, timeout_s=0)
        waiting = asyncio.ensure_future(settled(store, 0, timeout_s=TIMEOUT_S))
        await asyncio.to_thread(server.restart)
        assert await waiting
        await store.close()


# The writer is killed

_Line = dict[str, Any]


def written(line: _Line) -> tuple[StreamWrite, ...]:
    return tuple(
        StreamWrite(StreamId(stream), expected, tuple(NewEvent("Happened", b"{}", id=UUID(i)) for i in ids))
        for stream, expected, ids in line["writes"]
    )


async def victim() -> None:
    """The writer's process: told what to do on standard input, tells every append and every answer on standard output."""
    job = json.loads(sys.stdin.readline())
    store = await stores.make("env:CRASH_DSN").connect(Address("x", os.environ["CRASH_DSN"], job["schema"]), POOL)
    count = 0

    def tell(**line: Any) -> None:
        os.write(1, json.dumps(line).encode() + b"\n")

    def begins(writes: tuple[StreamWrite, ...]) -> int:
        nonlocal count
        count += 1
        tell(n=count, writes=[(w.stream, w.expected, [str(e.id) for e in w.events]) for w in writes])
        return count

    rng = random.Random(job["seed"])
    async with asyncio.TaskGroup() as group:
        for _ in range(WRITERS):
            own = random.Random(rng.random())
            group.create_task(write_on(store, own, begins, lambda n, t: tell(n=n, versions=t.versions, error=t.error)))


async def killed_writer(schema: str, seed: int, acknowledged: int) -> list[Tried]:
    """What a writer told that was killed after so many acknowledgements."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, __file__, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdin is not None and process.stdout is not None
    told: dict[int, Tried] = {}
    try:
        process.stdin.write(json.dumps({"schema": schema, "seed": seed}).encode() + b"\n")
        while raw := await process.stdout.readline():
            if not raw.endswith(b"\n"):
                break  # cut off in the middle: nobody was told
            line = json.loads(raw)
            if "writes" in line:
                told[line["n"]] = Tried(written(line), error="no answer")
            else:
                told[line["n"]] = Tried(told[line["n"]].writes, tuple(line["versions"]), line["error"])
            acknowledged -= bool(line.get("versions"))
            if acknowledged == 0:
                process.kill()
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
    return list(told.values())


async def no_backend_is_left(dsn: str) -> None:
    """A killed client's last statement may still run in the server."""
    watcher = await asyncpg.connect(dsn)
    try:
        while await watcher.fetchval("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'crash'"):
            await sleep_s(0.001)
    finally:
        await watcher.close()


@pytest.mark.parametrize("seed", SEEDS)
async def test_a_writer_that_is_killed_leaves_nothing_torn(seed: int, dsn: str) -> None:
    rng, tried = random.Random(seed), list[Tried]()
    driver = stores.make("env:CRASH_DSN")
    async with asyncio.timeout(TIMEOUT_S), driver.provision() as place:
        for _ in range(KILLS_EACH):
            tried += await killed_writer(place.address.schema, rng.randrange(2**31), rng.randint(20, 120))
            await no_backend_is_left(dsn)
            store = await driver.connect(place.address, PoolSettings.sized(1))
            kinds = await check(store, tried)
            await store.close()
            print(f"seed {seed}: {dict(kinds)}")
        assert kinds["acknowledged"] >= 20 * KILLS_EACH and kinds["no answer"] > 0


# The check can tell


async def judged(change: Callable[[list[Tried]], Awaitable[None] | None]) -> None:
    from eventcore_lab.stores.memory import Memory

    store, notes, rng = Memory(), Notes(), random.Random(1)
    for _ in range(30):
        writes = drawn(rng, {})
        n = notes.begins(writes)
        try:
            result: AppendResult = await store.append(writes)
            notes.ends(n, Tried(writes, result.versions))
        except VersionConflict:
            notes.ends(n, Tried(writes, error="VersionConflict"))
    await check(store, notes.tried)
    change(notes.tried)
    await check(store, notes.tried)


def loses_one(tried: list[Tried]) -> None:
    tried.append(Tried(drawn(random.Random(2), {}), (1, 1)))


def tears_one(tried: list[Tried]) -> None:
    pair = next(t for t in tried if t.versions and len(t.writes) == 2)
    first, second = pair.writes
    halves = (first, StreamWrite(second.stream, ANY, (NewEvent("Happened", b"{}"),)))
    tried[tried.index(pair)] = Tried(halves, error="OutcomeUnknown")
    tried.append(Tried((second,), (pair.versions[1],)))


def keeps_a_refused_one(tried: list[Tried]) -> None:
    done = next(t for t in tried if t.versions)
    tried[tried.index(done)] = Tried(done.writes, error="VersionConflict")


def tells_another_version(tried: list[Tried]) -> None:
    done = next(t for t in tried if t.versions)
    tried[tried.index(done)] = Tried(done.writes, tuple(at + 1 for at in done.versions))


@pytest.mark.parametrize("fault", [loses_one, tears_one, keeps_a_refused_one, tells_another_version])
async def test_the_check_finds_a_fault(fault: Callable[[list[Tried]], None]) -> None:
    with pytest.raises((AssertionError, StoreError)):
        await judged(fault)


async def test_the_check_finds_no_fault_where_there_is_none() -> None:
    await judged(lambda _: None)


if __name__ == "__main__":
    asyncio.run(victim())
