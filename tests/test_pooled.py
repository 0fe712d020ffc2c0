"""What a pool is told besides its size: that each setting arrives where it is meant for, does what it says and loses
nobody, and that the store which only copies is what it says it is."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import asyncpg
import pytest

from eventcore_lab.events import NewEvent, StoreError, StoreUnreachable, StreamId, StreamWrite
from eventcore_lab.spec import UsageError
from eventcore_lab.stores import PoolSettings, open_store, stores
from eventcore_lab.stores.conformance import CLAIMS, examined
from eventcore_lab.stores.copying import limit_of
from eventcore_lab.stores.embedded import shared_server
from eventcore_lab.stores.pool import Pool

A = StreamId("a")


def told(options: str, pool: PoolSettings) -> PoolSettings:
    driver: Any = stores.make(f"pooled(memory):{options}")
    found: PoolSettings = driver.told(pool)
    return found


def test_what_is_not_said_stays_as_the_experiment_has_it() -> None:
    pool = PoolSettings(max_connections=7, min_connections=7, acquire_timeout_s=3)
    assert told("command_timeout_s=2", pool).command_timeout_s == 2
    assert told("test_before_acquire=false", pool) == pool


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("min_connections", 2),
        ("acquire_timeout_s", 0.5),
        ("idle_timeout_s", 0.5),
        ("max_lifetime_s", 0.5),
        ("connect_timeout_s", 0.5),
        ("command_timeout_s", 0.5),
        ("test_before_acquire", True),
    ],
)
def test_each_setting_changes_what_it_names_and_nothing_else(option: str, value: float) -> None:
    pool = PoolSettings.sized(7)
    found = told(f"{option}={str(value).lower()}", pool)
    changed = {n for n in PoolSettings.__struct_fields__ if getattr(found, n) != getattr(pool, n)}
    assert changed == {option} and getattr(found, option) == value


def test_a_small_pool_opens_all_it_has_where_more_are_asked_for() -> None:
    assert told("min_connections=5", PoolSettings.sized(2)).min_connections == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [("min_connections=-2", "0 or more, or -1 for all"), ("idle_timeout_s=-1", "idle_timeout_s must be above 0")],
)
def test_a_setting_that_cannot_be_is_refused(options: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        stores.make(f"pooled(memory):{options}")


def pool_of(**settings: Any) -> Pool:
    return Pool(shared_server().dsn, "", PoolSettings(max_connections=2, min_connections=1, **settings))


async def used(pool: Pool) -> Any:
    """The connection that is handed out next, given back."""
    connection = await pool.acquire()
    pool.release(connection)
    return connection


async def test_a_connection_that_is_tested_and_answers_is_kept() -> None:
    pool = pool_of(test_before_acquire=True)
    first = await used(pool)
    assert pool.take() is None  # what must be tested is not to be had at once
    assert await used(pool) is first
    await pool.close()


@pytest.mark.parametrize("is_tested", [True, False])
async def test_a_connection_that_answers_no_more_is_noticed_before_only_if_it_is_tested(
    is_tested: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def connect(*_: object, **__: object) -> _Line:
        return _Line(random.Random(1), lost=1.0)

    monkeypatch.setattr(asyncpg, "connect", connect)
    pool = Pool("dsn", "", PoolSettings(max_connections=2, min_connections=1, test_before_acquire=is_tested))
    first = await used(pool)
    assert (await used(pool) is not first) is is_tested
    assert pool._open == 1 and not pool._busy
    await pool.close()


async def test_whoever_is_cancelled_during_the_test_loses_no_place() -> None:
    pool = pool_of(test_before_acquire=True)
    await used(pool)
    waiting = asyncio.ensure_future(pool.acquire())
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert pool._open == 0 and not pool._busy
    await pool.close()


class _Line:
    """A connection that can be lost; what a pool that tests needs of one."""

    def __init__(self, rng: random.Random, lost: float = 0.3) -> None:
        self._rng, self._lost = rng, lost

    def is_closed(self) -> bool:
        return False

    def terminate(self) -> None: ...

    async def close(self, **_: float) -> None: ...

    async def prepare(self, _: str, name: str) -> _Line:
        return self

    async def fetch(self) -> list[Any]:
        await asyncio.sleep(0)
        if self._rng.random() < self._lost:
            raise asyncpg.InterfaceError("gone")
        return [(1,)]


@pytest.mark.parametrize("seed", range(10))
async def test_a_pool_that_tests_counts_right_whatever_is_lost_or_cancelled(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng, alive, most = random.Random(seed), 0, 0

    async def connect(*_: object, **__: object) -> _Line:
        nonlocal alive, most
        await asyncio.sleep(0)
        if rng.random() < 0.2:
            raise OSError("refused")
        alive += 1
        most = max(most, alive)
        return _Line(rng)

    def terminate(_: _Line) -> None:
        nonlocal alive
        alive -= 1

    monkeypatch.setattr(asyncpg, "connect", connect)
    monkeypatch.setattr(_Line, "terminate", terminate)
    pool = Pool("dsn", "", PoolSettings(max_connections=3, min_connections=0, test_before_acquire=True))
    tasks = []

    async def user() -> None:
        try:
            connection = await pool.acquire()
        except StoreUnreachable:
            return
        try:
            await asyncio.sleep(0)
        finally:
            pool.release(connection)

    for _ in range(200):
        tasks.append(asyncio.ensure_future(user()))
        if rng.random() < 0.3:
            rng.choice(tasks).cancel()
        if rng.random() < 0.5:
            await asyncio.sleep(0)
    async with asyncio.timeout(30):
        await asyncio.gather(*tasks, return_exceptions=True)
    assert most <= 3 and not pool._busy
    assert len(pool._idle) == pool._open == alive


# the store that copies


@pytest.mark.parametrize("name", CLAIMS)
async def test_the_store_that_copies_is_what_it_says_it_is(name: str) -> None:
    finding = await examined(stores.make("postgres:copy"), CLAIMS[name])
    assert finding.is_met, f"{finding.status}: {finding.detail}"


async def test_what_was_copied_is_read_as_it_was_written() -> None:
    events = tuple([NewEvent("E", b"%d" % n) for n in range(300)])
    async with open_store("postgres:copy", PoolSettings.sized(1)) as store:
        assert (await store.append([StreamWrite(A, 0, events)])).versions == (300,)
        found = (await store.read_stream(A)).events
        assert [(e.version, e.id, e.data) for e in found] == [(n, e.id, e.data) for n, e in enumerate(events, 1)]
        with pytest.raises(StoreError, match="duplicate key"):
            await store.append([StreamWrite(A, 0, events[:1])])
        assert (await store.read_stream(A)).version == 300


@pytest.mark.parametrize(
    ("store", "limit"),
    [
        ("postgres", ["postgres:copy"]),
        ("postgres:chapter", ["postgres:copy"]),
        ("grouped(postgres:synchronous_commit=off)", ["postgres:copy,synchronous_commit=off"]),
        ("postgres:timeout,gap_ms=2,hold_ms=1", ["postgres:copy,hold_ms=1"]),
        ("env:LAB_DSN,store=eventcore", ["env:LAB_DSN,store=copy"]),
        ("env:LAB_DSN,store=eventcore,schema=public", []),
        ("sqlite", []),
        ("memory", []),
    ],
)
def test_the_limit_of_a_store_is_copy_on_its_own_server(store: str, limit: list[str]) -> None:
    assert limit_of(store) == limit
