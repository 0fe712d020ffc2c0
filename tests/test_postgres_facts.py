"""What the `postgres` store takes for granted about PostgreSQL, each fact tried on the server it runs on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import asyncpg
import pytest

from eventcore_lab.stores.embedded import shared_server

XMIN = "SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint"
XID = "SELECT pg_current_xact_id()::text::bigint"


@pytest.fixture
async def three() -> AsyncIterator[list[asyncpg.Connection]]:
    """Three connections, and a table that is dropped afterwards."""
    connections = [await asyncpg.connect(shared_server().dsn) for _ in range(3)]
    await connections[0].execute("CREATE TABLE facts (n bigint GENERATED ALWAYS AS IDENTITY, what text UNIQUE)")
    yield connections
    for connection in connections[1:]:
        connection.terminate()
    await connections[0].execute("DROP TABLE facts")
    await connections[0].close()


async def test_a_fence_in_autocommit_ends_by_itself_and_the_oldest_running_id_passes_it(three: list) -> None:
    a, b, _ = three
    running = a.transaction()
    await running.start()
    older = await a.fetchval(XID)
    fence = await b.fetchval(XID)
    assert older < fence
    assert await b.fetchval(XMIN) <= older
    await running.rollback()
    assert await b.fetchval(XMIN) >= fence


async def test_a_transaction_of_another_database_holds_the_oldest_running_id_back_too(three: list) -> None:
    """xmin is of the whole cluster: a long transaction elsewhere delays readers, and never loses them anything."""
    elsewhere = await asyncpg.connect(shared_server().dsn, database="template1")
    try:
        running = elsewhere.transaction()
        await running.start()
        older = await elsewhere.fetchval(XID)
        await three[0].fetchval(XID)
        assert await three[1].fetchval(XMIN) <= older
        await running.rollback()
    finally:
        await elsewhere.close()


async def test_an_advisory_lock_takes_no_transaction_id(three: list) -> None:
    async with three[0].transaction():
        await three[0].execute("SELECT pg_advisory_xact_lock(7)")
        assert await three[0].fetchval("SELECT pg_current_xact_id_if_assigned()") is None


async def test_whoever_gets_a_transactions_lock_sees_what_it_committed(three: list) -> None:
    """Locks are released after the commit has become visible, so a check in a later statement is never stale."""
    a, b, _ = three
    for n in range(50):
        first = a.transaction()
        await first.start()
        await a.execute("SELECT pg_advisory_xact_lock(8)")
        await a.execute("INSERT INTO facts (what) VALUES ($1)", str(n))
        waiting = b.transaction()
        await waiting.start()
        got_it = asyncio.ensure_future(b.execute("SELECT pg_advisory_xact_lock(8)"))
        await asyncio.sleep(0)
        await first.commit()
        await got_it
        assert await b.fetchval("SELECT count(*) FROM facts") == n + 1
        await waiting.rollback()


async def test_positions_are_drawn_after_the_rows_are_sorted(three: list) -> None:
    await three[0].execute(
        "INSERT INTO facts (what) SELECT g::text AS t FROM generate_series(1, 500) AS g ORDER BY g DESC"
    )
    rows = await three[0].fetch("SELECT what FROM facts ORDER BY n")
    assert [int(row["what"]) for row in rows] == list(range(500, 0, -1))


async def test_a_position_drawn_is_not_given_back(three: list) -> None:
    a, b, _ = three
    dying = a.transaction()
    await dying.start()
    await a.execute("INSERT INTO facts (what) VALUES ('a')")
    await dying.rollback()
    assert await b.fetchval("INSERT INTO facts (what) VALUES ('b') RETURNING n") == 2


async def test_drawing_a_position_may_take_no_transaction_id_which_is_why_appends_take_one_before(three: list) -> None:
    a, _, _ = three
    await a.execute("INSERT INTO facts (what) VALUES ('logs thirty-two numbers ahead')")
    async with a.transaction():
        await a.fetchval("SELECT nextval(pg_get_serial_sequence('facts', 'n'))")
        assert await a.fetchval("SELECT pg_current_xact_id_if_assigned()") is None


async def test_the_snapshots_xmax_can_lie_below_a_running_transaction(three: list) -> None:
    """It is the latest *completed* id and one: no fence."""
    a, b, c = three
    first, second = a.transaction(), b.transaction()
    await first.start()
    done = await a.fetchval(XID)
    await second.start()
    running = await b.fetchval(XID)
    await first.commit()
    xmax = await c.fetchval("SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint")
    await second.rollback()
    assert done < running
    assert xmax <= running


async def test_a_waiting_statement_still_sees_its_old_snapshot(three: list) -> None:
    """Why lock and check are two statements: in one, the check is older than the lock."""
    a, b, _ = three
    first = a.transaction()
    await first.start()
    await a.execute("SELECT pg_advisory_xact_lock(9)")
    await a.execute("INSERT INTO facts (what) VALUES ('x')")
    sql = "WITH l AS MATERIALIZED (SELECT pg_advisory_xact_lock(9)) SELECT (SELECT count(*) FROM facts) FROM l"
    late = asyncio.ensure_future(b.fetchval(sql))
    waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 9 AND NOT granted"
    while not await three[2].fetchval(waiting):
        pass
    await first.commit()
    assert await late == 0
