"""What PostgreSQL has to prove beyond the conformance suite: holes, dying servers, the pool; and the iterators."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from pathlib import Path

import asyncpg
import pytest

from eventcore_lab.events import (
    ABSENT,
    ANY,
    EventRejected,
    Filter,
    NewEvent,
    OutcomeUnknown,
    StoreError,
    StoreUnreachable,
    StreamId,
    StreamWrite,
)
from eventcore_lab.schema import Attempt, current_attempt
from eventcore_lab.spec import UsageError
from eventcore_lab.stores import (
    PoolSettings,
    Store,
    directories,
    open_store,
    servers,
    stores,
)
from eventcore_lab.stores.embedded import EmbeddedServer, shared_server
from eventcore_lab.stores.pool import Pool

A, B, C = StreamId("a"), StreamId("b"), StreamId("c")


def happened(n: int = 1, kind: str = "Happened") -> tuple[NewEvent, ...]:
    return tuple(NewEvent(kind, b'{"n":%d}' % i, b'{"by":"test"}') for i in range(n))


def write(stream: StreamId, expected: int = ANY, n: int = 1) -> list[StreamWrite]:
    return [StreamWrite(stream, expected, happened(n))]


# PostgreSQL


async def test_a_hole_in_the_positions_is_waited_for_and_then_filled() -> None:
    """A position drawn but not committed hides what lies above it, until its transaction ends."""
    driver = stores.make("postgres")
    async with driver.provision() as place:
        store = await driver.connect(place.address, PoolSettings.sized(2))
        slow = await asyncpg.connect(place.address.dsn, server_settings={"search_path": place.address.schema})
        one = "SELECT * FROM append_one($1, -1, $2, '{T}', ARRAY['\\x'::bytea], ARRAY['\\x'::bytea])"
        try:
            await store.append(write(A))
            hanging = slow.transaction()
            await hanging.start()
            await slow.fetch(one, "slow", [happened()[0].id])
            await store.append(write(B))
            assert [e.stream for e in await store.read_all()] == [A]
            assert [e.stream for e in await store.read_all(where=Filter(types=("Happened",)))] == [A]
            await hanging.commit()
            assert [e.stream for e in await store.read_all()] == [A, "slow", B]
        finally:
            await slow.close()
            await store.close()


async def test_a_hole_that_will_never_be_filled_is_passed() -> None:
    driver = stores.make("postgres")
    async with driver.provision() as place:
        store = await driver.connect(place.address, PoolSettings.sized(2))
        slow = await asyncpg.connect(place.address.dsn, server_settings={"search_path": place.address.schema})
        try:
            await store.append(write(A))
            dying = slow.transaction()
            await dying.start()
            await slow.fetch("SELECT pg_current_xact_id(), nextval(pg_get_serial_sequence('events', 'position'))")
            await store.append(write(B))
            assert [e.stream for e in await store.read_all()] == [A]
            await dying.rollback()
            assert [e.stream for e in await store.read_all()] == [A, B]
        finally:
            await slow.close()
            await store.close()


async def test_a_nul_in_text_is_rejected_and_the_connection_still_works() -> None:
    async with open_store("postgres", PoolSettings.sized(1)) as store:
        with pytest.raises(EventRejected):
            await store.append([StreamWrite(A, ABSENT, (NewEvent("ty\x00pe", b"{}"),))])
        assert (await store.append(write(A, ABSENT))).versions == (1,)


async def test_a_server_that_dies_leaves_the_append_unknown_and_then_unreachable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with EmbeddedServer() as server:
        monkeypatch.setenv("DYING_DSN", server.dsn)
        driver = stores.make("env:DYING_DSN")
        async with driver.provision() as place:
            store = await driver.connect(place.address, PoolSettings.sized(1))
            await store.append(write(A))
            os.kill(server.postmaster_pid, signal.SIGQUIT)
            with pytest.raises((OutcomeUnknown, StoreUnreachable)):
                for _ in range(1000):
                    await store.append(write(A))
            with pytest.raises(StoreError):
                for _ in range(1000):
                    await store.append(write(A))
            await store.close()


async def test_the_pool_never_opens_more_than_its_maximum_and_serves_in_order() -> None:
    server = shared_server()
    pool = Pool(server.dsn, "", PoolSettings(max_connections=2, min_connections=1))
    order: list[int] = []

    async def use(n: int) -> None:
        connection = await pool.acquire()
        order.append(n)
        found = await connection.fetch("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'eventcore_lab'")
        assert found[0][0] <= 2 + 4  # of this pool, and of a store that another test may be closing
        pool.release(connection)

    await asyncio.gather(*(use(n) for n in range(10)))
    waited = [n for n in order if n >= 2]  # the first two connect, each as fast as it can
    assert waited == sorted(waited)
    await pool.close()


async def test_waiting_for_a_connection_ends_in_time_and_loses_none() -> None:
    pool = Pool(shared_server().dsn, "", PoolSettings(max_connections=1, min_connections=1, acquire_timeout_s=0.02))
    held = await pool.acquire()
    with pytest.raises(StoreUnreachable, match="no connection became free within 0.02 s"):
        await pool.acquire()
    waiting = asyncio.ensure_future(pool.acquire())
    await asyncio.sleep(0)
    pool.release(held)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    again = await pool.acquire()
    assert again is held
    pool.release(again)
    await pool.close()


class _Line:
    """A connection that can be lost; what the pool needs of one."""

    def is_closed(self) -> bool:
        return False

    def terminate(self) -> None: ...


@pytest.mark.parametrize("seed", range(20))
async def test_the_pool_counts_right_whatever_is_lost_cancelled_or_late(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Users come, are cancelled, lose their connections, and fail to connect; nobody is forgotten, no place is lost."""
    rng, alive, most = random.Random(seed), 0, 0

    async def connect(*_: object, **__: object) -> _Line:
        nonlocal alive, most
        await asyncio.sleep(0)
        if rng.random() < 0.2:
            raise OSError("refused")
        alive += 1
        most = max(most, alive)
        return _Line()

    def terminate(_: _Line) -> None:
        nonlocal alive
        alive -= 1

    monkeypatch.setattr(asyncpg, "connect", connect)
    monkeypatch.setattr(_Line, "terminate", terminate)
    pool = Pool("dsn", "", PoolSettings(max_connections=3, min_connections=0))

    async def user() -> None:
        try:
            connection = await pool.acquire()
        except StoreUnreachable:
            return
        for _ in range(rng.randrange(3)):
            await asyncio.sleep(0)
        pool.release(connection, rng.random() < 0.7)

    tasks = []
    for _ in range(200):
        tasks.append(asyncio.ensure_future(user()))
        if rng.random() < 0.3:
            rng.choice(tasks).cancel()
        if rng.random() < 0.5:
            await asyncio.sleep(0)
    async with asyncio.timeout(30):
        await asyncio.gather(*tasks, return_exceptions=True)
    assert most <= 3
    cancelled_in_hand = sum(t.cancelled() for t in tasks)
    assert len(pool._idle) <= pool._open <= len(pool._idle) + cancelled_in_hand


async def test_the_moment_a_connection_was_had_is_noted() -> None:
    async with open_store("postgres", PoolSettings.sized(1)) as store:
        attempt = Attempt()
        current_attempt.set(attempt)
        await store.append(write(A))
        assert attempt.acquired_ns > 0


@pytest.mark.parametrize(
    ("dsn", "said"),
    [
        ("postgresql://u:secret@127.0.0.1:1/db", "no PostgreSQL server answers"),
        ("nonsense", "cannot be read"),
    ],
)
async def test_a_server_that_cannot_be_reached_is_said_without_the_password(
    dsn: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BAD_DSN", dsn)
    with pytest.raises(StoreUnreachable, match=said) as error:
        async with open_store("env:BAD_DSN"):
            pass
    assert "secret" not in str(error.value)
    assert "\n" not in str(error.value)


async def test_wrong_password_and_wrong_database_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    with EmbeddedServer(tcp=True) as server:
        good = server.dsn
        head, _, tail = good.partition("://")
        user, _, rest = tail.partition("@")
        monkeypatch.setenv("LAB_DSN", f"{head}://{user.partition(':')[0]}:wrong@{rest}")
        with pytest.raises(StoreUnreachable, match="refused the user or password"):
            async with open_store("env:LAB_DSN"):
                pass
        monkeypatch.setenv("LAB_DSN", good.rpartition("/")[0] + "/nothing")
        with pytest.raises(StoreUnreachable, match="no such database"):
            async with open_store("env:LAB_DSN"):
                pass
        monkeypatch.setenv("LAB_DSN", good)
        async with open_store("env:LAB_DSN") as store:
            assert (await store.append(write(A))).versions == (1,)


async def test_durability_is_what_the_server_says_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    async with stores.make("postgres").provision() as place:
        assert place.durability == "durable (fsync=on, synchronous_commit=on, full_page_writes=on)"
        assert place.server.startswith("PostgreSQL ")
        assert not any("/" in v and v.startswith("/") for v in place.facts.values())
    async with stores.make("postgres:synchronous_commit=off").provision() as place:
        assert place.durability.startswith("flushed later")
    with EmbeddedServer(settings={"fsync": "off"}) as server:
        monkeypatch.setenv("LAB_DSN", server.dsn)
        async with stores.make("env:LAB_DSN").provision() as place:
            assert place.durability.startswith("not durable")
            pids = place.server_pids()  # backends come and go, the server's own processes stay
            assert pids[0] == server.postmaster_pid and len(set(pids) & set(server.pids())) > 3


def test_data_in_memory_is_never_called_durable(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on"}
    assert servers._durability(settings, "ext4").startswith("durable")
    assert servers._durability(settings, "tmpfs").startswith("not durable")
    monkeypatch.setattr(directories, "filesystem_of", lambda path: "ext4" if path == Path("/var/tmp") else "tmpfs")
    assert directories.on_disk() == Path("/var/tmp")
    monkeypatch.setattr(directories, "filesystem_of", lambda _: "ext4")
    assert directories.on_disk() is None


async def test_nothing_is_left_in_the_database_afterwards() -> None:
    async with open_store("postgres") as store:
        await store.append(write(A))
    connection = await asyncpg.connect(shared_server().dsn)
    left = await connection.fetchval("SELECT count(*) FROM pg_namespace WHERE starts_with(nspname, 'eventcore_lab_')")
    await connection.close()
    assert left == 0


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("env", "which environment variable"),
        ("env:NOT_SET_ANYWHERE", "not set or empty"),
        ("postgres:server=mars", "unknown server 'mars'"),
        ("postgres:synchronous_commit=maybe", "unknown synchronous_commit"),
        ("memory:x=1", "unknown option of store memory"),
    ],
)
def test_a_store_that_cannot_be_is_refused_when_it_is_named(spec: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        stores.make(spec)


def test_the_production_pool_has_the_chapters_figures() -> None:
    pool = PoolSettings.production()
    assert (pool.max_connections, pool.min_connections) == (20, 5)
    assert (pool.acquire_timeout_s, pool.idle_timeout_s, pool.max_lifetime_s) == (30, 600, 1800)
    assert (pool.connect_timeout_s, pool.command_timeout_s) == (5, 30)
    with pytest.raises(ValueError, match="max_connections must be at least 1"):
        PoolSettings(max_connections=0)


def test_the_sql_is_part_of_the_package() -> None:
    import eventcore_lab.stores

    assert (Path(eventcore_lab.stores.__file__).parent / "sql" / "postgres.sql").is_file()


async def test_a_tail_that_was_empty_is_never_told_with_a_version_that_came_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Who folds a snapshot and an empty tail, and expects the version told, must not overwrite what came in between."""
    async with open_store("postgres", PoolSettings.sized(2)) as store:
        await store.append(write(A, ABSENT, 2))
        read, is_first = store._read, [True]  # type: ignore[attr-defined]

        async def read_and_be_overtaken(sql: str, *arguments: object) -> list[object]:
            rows: list[object] = await read(sql, *arguments)
            if is_first.pop() if is_first else False:
                await store.append(write(A, 2))
            return rows

        monkeypatch.setattr(store, "_read", read_and_be_overtaken)
        assert (await store.read_stream(A, 3)).version == 2


async def test_a_database_with_another_default_of_isolation_changes_nothing() -> None:
    """A check behind a lock must see what the lock's last holder committed."""
    hand = await asyncpg.connect(shared_server().dsn)
    await hand.execute("ALTER DATABASE postgres SET default_transaction_isolation = 'repeatable read'")
    try:
        async with open_store("postgres", PoolSettings.sized(1)) as store:
            rows = await store._read("SELECT current_setting('transaction_isolation')")  # type: ignore[attr-defined]
            assert rows[0][0] == "read committed"
    finally:
        await hand.execute("ALTER DATABASE postgres RESET default_transaction_isolation")
        await hand.close()


async def test_a_closed_store_takes_nothing_more_and_lets_nobody_wait() -> None:
    async with open_store("postgres", PoolSettings.sized(1)) as store:
        connection = await store._pool.acquire()  # type: ignore[attr-defined]
        waiting = asyncio.ensure_future(store.append(write(A)))
        await asyncio.sleep(0)
        await store.close()
        store._pool.release(connection)  # type: ignore[attr-defined]
        for attempt in (waiting, store.append(write(B))):
            with pytest.raises(StoreUnreachable, match="closed"):
                await attempt


async def test_one_append_that_is_misspelled_stops_many_before_any_is_written(store: Store) -> None:
    with pytest.raises(ValueError, match="twice"):
        await store.append_many([write(A), [*write(B), *write(B)], write(C)])
    assert [s.version for s in await store.read_streams([A, B, C])] == [0, 0, 0]
