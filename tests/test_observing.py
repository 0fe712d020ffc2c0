"""An existing store is looked at from beside: what is told is true, nothing is written, nobody is waited for."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventcore_lab import cli
from eventcore_lab.clock import NS_PER_S, now_ns
from eventcore_lab.events import ANY, NewEvent, StoreUnreachable, StreamWrite, new_event_id, stream_id
from eventcore_lab.monitor.observe import Observed
from eventcore_lab.spec import UsageError
from eventcore_lab.stores import Place, PoolSettings, Store, observed_events, observed_server, observing, stores
from eventcore_lab.stores.binaries import system_binaries
from eventcore_lab.stores.embedded import EmbeddedServer
from eventcore_lab.stores.observed_server import WAITS_NAMED, WAITS_SHOWN, Server, counters_sql
from eventcore_lab.stores.observing import Observer, Seen

ENOUGH_S = 60


@pytest.fixture(scope="module")
def embedded() -> Iterator[EmbeddedServer]:
    """A server on which nobody writes by himself."""
    with EmbeddedServer(settings={"autovacuum": "off", "max_prepared_transactions": "2"}) as server:
        yield server


@pytest.fixture
def server(embedded: EmbeddedServer, monkeypatch: pytest.MonkeyPatch) -> EmbeddedServer:
    monkeypatch.setenv("SOME_DSN", embedded.dsn)
    return embedded


@asynccontextmanager
async def observer(dsn: str, *arguments: Any, **options: Any) -> AsyncIterator[Observer]:
    made = Observer(dsn, *arguments, **options)
    try:
        yield made
    finally:
        await made.close()


@asynccontextmanager
async def connected(dsn: str) -> AsyncIterator[Any]:
    connection = await asyncpg.connect(dsn)
    try:
        yield connection
    finally:
        await connection.close()


@asynccontextmanager
async def filled(spec: str, events: int = 30, streams: int = 7) -> AsyncIterator[tuple[Store, Place]]:
    """A store with this many events in it, in streams one after the other."""
    driver = stores.make(spec)
    async with driver.provision() as place:
        store = await driver.connect(place.address, PoolSettings.sized(2))
        try:
            for n in range(events):
                await store.append([StreamWrite(stream_id(f"s-{n % streams}"), ANY, (NewEvent("Happened", b"{}"),))])
            yield store, place
        finally:
            await store.close()


@asynccontextmanager
async def role(server: EmbeddedServer, schema: str, *more: str) -> AsyncIterator[str]:
    """The DSN of somebody who may only connect and read the tables of `schema`."""
    async with connected(server.dsn) as admin:
        await admin.execute(f"CREATE ROLE looker LOGIN; GRANT USAGE ON SCHEMA {schema} TO looker")
        await admin.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA {schema} TO looker")
        for grant in more:
            await admin.execute(grant)
        try:
            yield server.dsn.replace("postgres@", "looker@", 1)
        finally:
            await admin.execute("DROP OWNED BY looker; DROP ROLE looker")


class Later:
    """A clock that can be set forward."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._ahead_ns = 0
        for module in (observing, observed_events, observed_server):
            monkeypatch.setattr(module, "now_ns", lambda: now_ns() + self._ahead_ns)

    def by_s(self, seconds: float) -> None:
        self._ahead_ns += int(seconds * NS_PER_S)


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Later:
    return Later(monkeypatch)


def told(seen: Seen, name: str) -> list[str]:
    return [detail for noted, detail in seen.notes if noted == name]


# --- what a server tells ---

EVERY_SECOND = {
    *(f"server.connections.{state}" for state in ("active", "idle", "idle_in_transaction", "other", "hidden")),
    *("server.connections_share", "server.active_not_waiting", "server.locks_waited_for", "server.wait:other"),
    *("server.prepared_transactions", "server.oldest_transaction_s", "server.oldest_writing_transaction_s"),
    *("server.transactions_committed_total", "server.transactions_rolled_back_total", "server.rows_inserted_total"),
    *("server.rows_updated_total", "server.rows_deleted_total", "server.blocks_read_total", "server.blocks_hit_total"),
    *("server.temp_bytes_total", "server.deadlocks_total", "server.wal_bytes", "server.wal_full_pages_total"),
    *("server.wal_buffers_full_total", "server.checkpoints_timed_total", "server.checkpoints_requested_total"),
    "server.replicas",
}
FROM_16 = {"server.io_reads_total", "server.io_writes_total", "server.io_fsyncs_total"}


async def test_a_server_tells_the_same_whatever_its_version(server: EmbeddedServer) -> None:
    async with observer(server.dsn) as looking:
        seen = await looking.look(events=False)
        assert (seen.error, set(seen.gauges)) == ("", EVERY_SECOND | FROM_16)
        assert looking.described.startswith(f"PostgreSQL {looking.version}")
        again = await looking.look(events=False)
    assert again == Seen({}, cost_ms=again.cost_ms)  # a second has not passed


async def test_an_older_server_tells_it_too() -> None:
    try:
        found = system_binaries()
    except StoreUnreachable as error:
        pytest.skip(str(error))
    settings = {"shared_preload_libraries": "pg_stat_statements"}
    with EmbeddedServer(found, settings) as older, pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOME_DSN", older.dsn)
        later = Later(patch)
        async with connected(older.dsn) as admin, filled("env:SOME_DSN") as (store, _), observer(older.dsn) as looking:
            await admin.execute("CREATE EXTENSION pg_stat_statements")
            seen = await looking.look()
            is_16 = int(looking.version.split(".")[0]) >= 16
            assert {n for n in seen.gauges if n.startswith("server.")} - FROM_16 == EVERY_SECOND | {
                "server.database_bytes"
            }
            assert (set(seen.gauges) >= FROM_16) == is_16
            await store.append([StreamWrite(stream_id("timed"), ANY, (NewEvent("Happened", b"{}"),))])
            later.by_s(60)
            seen = await looking.look()
    assert seen.gauges["store.statements_per_s"] > 0 and seen.gauges["store.statement_mean_ms"] > 0


@pytest.mark.parametrize(
    ("there", "read"),
    [
        ({"pg_stat_database.xact_commit"}, "pg_stat_database.xact_commit"),
        ({"pg_stat_bgwriter.checkpoints_timed"}, "pg_stat_bgwriter.checkpoints_timed"),
        ({"pg_stat_checkpointer.num_timed"}, "pg_stat_checkpointer.num_timed"),
        (
            {"pg_stat_checkpointer.num_timed", "pg_stat_bgwriter.checkpoints_timed"},
            "pg_stat_checkpointer.num_timed",
        ),
    ],
)
def test_only_what_a_version_has_is_asked_for(there: set[str], read: str) -> None:
    sql = counters_sql(there)
    assert read in sql and "pg_stat_io" not in sql and "pg_stat_wal" not in sql
    assert sql.count("checkpoints_timed_total") <= 1


async def test_connections_are_told_by_their_state_and_our_own_is_none(server: EmbeddedServer) -> None:
    async with connected(server.dsn) as idle, connected(server.dsn) as open_one, observer(server.dsn) as looking:
        assert await idle.fetchval("SELECT 1") == 1
        await open_one.execute("BEGIN")
        seen = (await looking.look(events=False)).gauges
        assert seen["server.connections.idle"] == seen["server.connections.idle_in_transaction"] == 1
        assert seen["server.connections.active"] == seen["server.connections.hidden"] == 0
        assert seen["server.connections_share"] == 3 / 200
        assert seen["server.oldest_transaction_s"] > 0 == seen["server.oldest_writing_transaction_s"]
        await open_one.execute("ROLLBACK")


@given(st.lists(st.dictionaries(st.text(max_size=3), st.integers(1, 99), max_size=60), max_size=5))
def test_wait_events_are_bounded_and_none_is_lost(looks: list[dict[str, int]]) -> None:
    server, names = Server(), set[str]()
    for waits in looks:
        seen = server._waits(waits)
        assert sum(seen.values()) == sum(waits.values())
        assert sum(value > 0 for name, value in seen.items() if name != "wait:other") <= WAITS_SHOWN
        assert names <= set(seen)  # an event that has gone is 0, not what it was
        names = set(seen)
    assert len(names) <= WAITS_NAMED + 1


# --- what the event tables tell ---

IN_POSITIONS, IN_ROWS = "the highest position", "the server's count of inserted rows"


@pytest.mark.parametrize(
    ("spec", "kind", "count"),
    [
        ("env:SOME_DSN", "eventcore_lab's own event store", IN_POSITIONS),
        ("env:SOME_DSN,store=counter", "eventcore_lab's own event store", IN_POSITIONS),
        ("env:SOME_DSN,store=xmin", "eventcore_lab's own event store", "the sequence within the highest position"),
        ("env:SOME_DSN,store=eventcore", "EventCore", IN_ROWS),
        ("env:SOME_DSN,store=chapter", "the chapter's event store", IN_ROWS),
        ("eventsourcing:postgres,server=env:SOME_DSN", "the package eventsourcing", IN_POSITIONS),
    ],
)
async def test_every_store_is_known_by_its_tables(server: EmbeddedServer, spec: str, kind: str, count: str) -> None:
    if spec.startswith("eventsourcing"):
        pytest.importorskip("eventsourcing")
    async with filled(spec) as (store, place):
        has_checkpoints = "checkpoints are kept by name" not in store_lacks(spec) or "eventsourcing" in spec
        if has_checkpoints:
            tenth = (await store.read_all(limit=10))[-1]
            await store.save_checkpoint("a reader", tenth.position)
        if count == IN_ROWS:
            await store.close()  # what it has counted comes to be known
        async with observer(server.dsn) as looking:
            seen = await looking.look()
            assert looking.described.endswith(f"{kind} in schema {place.address.schema}")
    assert seen.error == "" and [count in detail for detail in told(seen, "observed")] == [True]
    assert seen.gauges["store.events_total"] == 30
    assert seen.gauges["store.streams"] == 7 and seen.gauges["store.streams_estimated"] == 0
    assert seen.gauges["store.table_bytes"] > 0 and seen.gauges["store.index_bytes"] > 0
    assert seen.gauges["store.dead_rows"] == 0
    if has_checkpoints:
        assert seen.gauges["lag.a reader_lag_events"] == 20
        assert ("lag.a reader_lag_ms" in seen.gauges) == (kind == "EventCore")


def store_lacks(spec: str) -> Any:
    return stores.make(spec).lacks


async def test_a_database_without_events_tells_of_the_server_and_says_so(server: EmbeddedServer) -> None:
    async with connected(server.dsn) as admin, observer(server.dsn, "elsewhere") as looking:
        await admin.execute("CREATE SCHEMA elsewhere CREATE TABLE events (position bigint, note text)")
        seen = await looking.look()
        await admin.execute("DROP SCHEMA elsewhere CASCADE")
    assert set(seen.gauges) >= EVERY_SECOND and not [n for n in seen.gauges if n.startswith(("store.", "lag."))]
    assert told(seen, "observed") == [
        "no event store that is known here in schema elsewhere: only what the server tells of itself"
    ]


async def test_the_schema_or_the_kind_chooses_among_several(server: EmbeddedServer) -> None:
    async with filled("env:SOME_DSN", 5) as (_, ours), filled("env:SOME_DSN,store=eventcore", 3) as (_, theirs):
        for arguments, expected in (((theirs.address.schema,), theirs), (("", "eventcore"), theirs), ((), ours)):
            async with observer(server.dsn, *arguments) as looking:
                await looking.look()
                assert looking.described.endswith(expected.address.schema), arguments


async def test_the_number_of_streams_may_be_asked_for_alone_and_again_when_it_is_made_due(
    server: EmbeddedServer,
) -> None:
    async with filled("env:SOME_DSN", 9, 4) as (_, place), observer(server.dsn, place.address.schema) as looking:
        few = (await looking.look(events=False, streams=True)).gauges
        assert (few["store.streams"], few["store.streams_estimated"]) == (4, 0) and "store.table_bytes" not in few
        assert "store.streams" not in (await looking.look()).gauges
        looking.make_due()
        assert (await looking.look()).gauges["store.streams"] == 4


async def test_of_several_tables_of_a_kind_the_one_that_is_looked_at_is_named(server: EmbeddedServer) -> None:
    columns = "originator_id uuid, originator_version bigint, topic text, state bytea, notification_id bigint"
    async with connected(server.dsn) as admin, observer(server.dsn, "banks") as looking:
        await admin.execute(f"CREATE SCHEMA banks CREATE TABLE a_events ({columns}) CREATE TABLE b_events ({columns})")
        await admin.execute("INSERT INTO banks.b_events (notification_id) VALUES (7)")
        seen = await looking.look()
        await admin.execute("DROP SCHEMA banks CASCADE")
    assert looking.described.endswith("the package eventsourcing in banks.b_events")
    assert seen.gauges["store.events_total"] == 7


async def test_a_store_that_was_dropped_is_forgotten(server: EmbeddedServer, later: Later) -> None:
    async with observer(server.dsn) as looking:
        async with filled("env:SOME_DSN"):
            assert (await looking.look()).gauges["store.events_total"] == 30
        later.by_s(60)
        seen = await looking.look()
    assert seen.error == "" and "store.events_total" not in seen.gauges
    assert told(seen, "observed") == ["no event store that is known here: only what the server tells of itself"]


async def test_of_many_streams_the_last_estimate_is_told(
    server: EmbeddedServer, later: Later, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(observed_events, "STREAMS_COUNTED_BYTES", 0)
    async with filled("env:SOME_DSN") as (_, place), observer(server.dsn) as looking:
        assert "store.streams" not in (await looking.look()).gauges  # nobody has estimated anything
        async with connected(server.dsn) as admin:
            await admin.execute(f"ANALYZE {place.address.schema}.events")
        later.by_s(60)
        seen = await looking.look()
    assert (seen.gauges["store.streams"], seen.gauges["store.streams_estimated"]) == (7, 1)


async def test_names_of_subscriptions_are_data_and_their_number_is_bounded(server: EmbeddedServer) -> None:
    hostile = ["<b onclick='x'>", "a.b.c", "$1'; DROP TABLE events; --", "‮evil\n\x1b[31m", "n" * 5000]
    async with filled("env:SOME_DSN") as (store, _), observer(server.dsn) as looking:
        for name in hostile:
            await store.save_checkpoint(name, 10)
        for n in range(60):
            await store.save_checkpoint(f"reader {n}", 20)
        seen = await looking.look()
    lags = {name: value for name, value in seen.gauges.items() if name.startswith("lag.")}
    assert len(lags) == observed_events.SUBSCRIPTIONS_MAX  # those that are furthest behind
    assert [lags[f"lag.{name[: observed_events.NAME_MAX_CHARS]}_lag_events"] for name in hostile] == [20] * 5


def test_a_lag_in_time_is_read_from_ids_that_have_one() -> None:
    older, newer = new_event_id(), new_event_id()
    assert observed_events._late(newer, older)["ms"] >= 0
    assert observed_events._late(newer, UUID(int=0)) == {}
    assert observed_events._late(7, 6) == {}


# --- how far readers are held back ---


@pytest.mark.parametrize("is_hidden", [False, True], ids=["seen", "hidden"])
async def test_a_transaction_that_has_written_holds_readers_back(
    server: EmbeddedServer, later: Later, is_hidden: bool
) -> None:
    async with (
        filled("env:SOME_DSN") as (_, place),
        role(server, place.address.schema) as dsn,
        connected(server.dsn) as writer,
        observer(dsn if is_hidden else server.dsn) as looking,
    ):
        assert (await looking.look()).gauges["store.visibility_lag_s"] == 0
        await writer.execute("BEGIN; SELECT pg_current_xact_id()")
        later.by_s(10)
        await looking.look()
        later.by_s(10)
        lag_s = (await looking.look()).gauges["store.visibility_lag_s"]
        assert lag_s >= 10 if is_hidden else 0 < lag_s < ENOUGH_S
        await writer.execute("ROLLBACK")
        later.by_s(10)
        assert (await looking.look()).gauges["store.visibility_lag_s"] == 0


async def test_a_prepared_transaction_that_was_forgotten_does_too(server: EmbeddedServer) -> None:
    async with filled("env:SOME_DSN"), connected(server.dsn) as writer, observer(server.dsn) as looking:
        await writer.execute("BEGIN; SELECT pg_current_xact_id(); PREPARE TRANSACTION 'forgotten'")
        seen = (await looking.look()).gauges
        await writer.execute("ROLLBACK PREPARED 'forgotten'")
    assert seen["server.prepared_transactions"] == 1 and seen["store.visibility_lag_s"] > 0


# --- it does not write, and it does not wait ---

_WRITTEN = "SELECT tup_inserted, tup_updated, tup_deleted FROM pg_stat_database WHERE datname = current_database()"


@pytest.mark.parametrize("grants", [(), ("GRANT pg_monitor TO looker",)], ids=["plain", "pg_monitor"])
async def test_who_may_only_read_can_look_and_nothing_is_written(
    server: EmbeddedServer, later: Later, grants: tuple[str, ...]
) -> None:
    async with filled("env:SOME_DSN") as (store, place), role(server, place.address.schema, *grants) as dsn:
        await store.save_checkpoint("a reader", 10)
        await store.close()
        async with connected(server.dsn) as admin, observer(dsn) as looking:
            await admin.execute("SELECT pg_stat_force_next_flush()")
            before = tuple(await admin.fetchrow(_WRITTEN))
            seen = [await looking.look()]
            for _ in range(3):
                later.by_s(120)
                seen.append(await looking.look())
            assert [s.error for s in seen] == [""] * 4
            assert told(seen[0], "observed in part") == ([] if grants else [observing.HIDDEN])
            assert [detail for s in seen[1:] for _, detail in s.notes] == []
            assert seen[-1].gauges["store.events_total"] == 30 and seen[-1].gauges["lag.a reader_lag_events"] == 20
            assert (seen[-1].gauges["server.connections.hidden"] > 0) == (not grants)
            assert ("server.oldest_transaction_s" in seen[-1].gauges) == bool(grants)
            with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
                await looking._raw.execute("CREATE TEMPORARY TABLE t AS SELECT 1; CREATE TABLE t2 ()")
            assert tuple(await admin.fetchrow(_WRITTEN)) == before
        assert set(await settled_writes(server.dsn)) == set(before)


async def settled_writes(dsn: str) -> tuple[int, ...]:
    """What was written in the end, when all who did are gone and have told."""
    async with connected(dsn) as admin:
        return tuple(await admin.fetchrow(_WRITTEN))


async def test_who_may_not_even_read_is_told_what_the_server_counts(server: EmbeddedServer) -> None:
    async with filled("env:SOME_DSN") as (store, place), role(server, place.address.schema) as dsn:
        await store.close()
        async with connected(server.dsn) as admin, observer(dsn) as looking:
            await admin.execute(f"REVOKE SELECT ON ALL TABLES IN SCHEMA {place.address.schema} FROM looker")
            seen = await looking.look()
    assert seen.error == "" and seen.gauges["store.events_total"] == 30
    assert any("may not read" in detail for detail in told(seen, "observed in part"))
    assert "store.streams" not in seen.gauges


async def test_a_connection_that_could_write_is_not_used(
    server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a pooler in between drops what was asked for."""
    monkeypatch.setitem(observing.SETTINGS, "default_transaction_read_only", "off")
    async with observer(server.dsn) as looking:
        seen = await looking.look()
        assert seen.gauges == {} and "read-only" in seen.error and looking.pid is None


async def test_a_table_locked_by_somebody_is_not_waited_for(server: EmbeddedServer, later: Later) -> None:
    async with filled("env:SOME_DSN") as (_, place), connected(server.dsn) as somebody, observer(server.dsn) as looking:
        assert (await looking.look()).gauges["store.events_total"] == 30
        await somebody.execute(f"BEGIN; LOCK TABLE {place.address.schema}.events IN ACCESS EXCLUSIVE MODE")
        later.by_s(60)
        async with asyncio.timeout(ENOUGH_S):
            seen = await looking.look()
        assert seen.error == "" and "server.connections.idle" in seen.gauges
        assert "store.events_total" not in seen.gauges
        complaint = "the last position: somebody holds a lock on a table (not waited for)"
        assert complaint in told(seen, "could not be looked at")
        later.by_s(60)
        assert told(await looking.look(), "could not be looked at") == []  # once is enough
        await somebody.execute("ROLLBACK")
        later.by_s(60)
        assert (await looking.look()).gauges["store.events_total"] == 30


async def test_a_server_that_does_not_answer_is_given_up(server: EmbeddedServer, later: Later) -> None:
    async with observer(server.dsn, look_max_s=0.3) as looking:
        await looking.look()
        pid = looking.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        try:
            later.by_s(60)
            async with asyncio.timeout(ENOUGH_S):
                seen = await looking.look()
        finally:
            os.kill(pid, signal.SIGCONT)
        assert seen.error == "the server did not answer within 0.3 s" and seen.gauges == {}
        later.by_s(60)
        assert (await looking.look()).error == ""


async def test_after_a_restart_it_goes_on(later: Later) -> None:
    with EmbeddedServer(settings={"fsync": "off"}) as server:
        async with observer(server.dsn) as looking:
            assert (await looking.look()).error == ""
            server.kill()
            later.by_s(2)
            gone = await looking.look()
            assert gone.error and gone.gauges == {} and "\n" not in gone.error
            server.restart()
            later.by_s(observing.RETRY_MAX_S)
            back = await looking.look()
    assert back.error == "" and set(back.gauges) >= EVERY_SECOND


async def test_a_server_that_is_not_there_is_tried_less_and_less_often(
    monkeypatch: pytest.MonkeyPatch, later: Later
) -> None:
    tried = []

    async def refused(*_: Any, **__: Any) -> Any:
        tried.append(1)
        raise ConnectionRefusedError(111, "Connect call failed ('127.0.0.1', 1)")

    monkeypatch.setattr(asyncpg, "connect", refused)
    looking = Observer("postgresql://me:hunter2@127.0.0.1:1/there")
    for _ in range(100):
        seen = await looking.look()
        assert seen.gauges == {} and "hunter2" not in seen.error and "me:" not in seen.error
        later.by_s(0.25)
    assert 5 <= len(tried) <= 10
    await looking.close()


@pytest.mark.parametrize(
    "dsn", ["postgresql://me:hunter2@", "postgresql://me:hunter2@[::1", "postgresql://a:hunter2@h:x/d"]
)
async def test_no_error_holds_the_password(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGHOST", "/nowhere")
    async with observer(dsn, look_max_s=0.3) as looking:
        seen = await looking.look()
    assert seen.error and "hunter2" not in repr(seen)


def test_what_is_dear_is_asked_less_often() -> None:
    part = observing._Part("x", 1.0, Server().activity)
    for cost_ms, pause_s in ((0, 0.9), (10, 2.0), (1000, observing.RETRY_MAX_S)):
        part.took(0, int(cost_ms * 1e6))
        assert part._due_ns == pause_s * NS_PER_S


# --- the source of a monitor ---


async def test_a_store_is_observed_by_the_name_of_its_variable(server: EmbeddedServer) -> None:
    async with filled("env:SOME_DSN") as (_, place):
        source = Observed(f"env:SOME_DSN,store=xmin,schema={place.address.schema}")
        news = await source.look()
        await source.close()
    assert news.error == "" and news.watched is not None
    assert (news.watched.status, news.watched.store, news.watched.run_id) == ("observed", "env:SOME_DSN", "")
    assert news.watched.title.startswith("env:SOME_DSN · PostgreSQL 18")
    assert place.address.schema in news.watched.title
    values = {(g.source, g.name): g.value for g in news.gauges}
    assert values["store", "events_total"] == 30 and values["server", "connections.idle"] >= 1
    assert values["probe", "server_cost_ms"] > 0
    assert {m.name for m in news.marks} == {"observed"} and len(news.rows) == len(news.waiting) == 0
    assert "host=" not in repr(news) and server.host not in repr(news)


@pytest.mark.usefixtures("server")
async def test_what_was_found_is_one_line_for_the_terminal() -> None:
    async with filled("env:SOME_DSN") as (_, place):
        lines: list[str] = []
        source = Observed(f"env:SOME_DSN,schema={place.address.schema}", lines.append)
        await source.begin()
        assert lines == [], "it is told with the look that is handed on"
        first = await source.look()
        await source.look()
        await source.close()
    [line] = lines
    assert line.startswith(f"env:SOME_DSN: eventcore_lab's own event store in schema {place.address.schema} (")
    assert line.endswith("events are told by the highest position, rolled back or not")
    assert {m.name for m in first.marks} == {"observed"}


async def test_a_schema_without_events_is_said_and_looked_at_all_the_same(server: EmbeddedServer) -> None:
    lines: list[str] = []
    async with connected(server.dsn) as admin:
        await admin.execute('CREATE SCHEMA "Bare"')
        source = Observed("env:SOME_DSN,schema=Bare", lines.append)
        await source.begin()
        news = await source.look()
        await source.close()
        await admin.execute('DROP SCHEMA "Bare"')
    assert news.error == "" and news.gauges
    told = "no event store that is known here in schema Bare: only what the server tells of itself"
    assert lines == [f"env:SOME_DSN: {told}"]


@pytest.mark.usefixtures("server")
def test_a_schema_that_is_not_there_is_a_mistake_with_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    order = ["--lab", str(tmp_path / "lab.duckdb"), "--port", "0", "--seconds", "0.1"]
    monkeypatch.setattr("sys.argv", ["eventcore-lab", "monitor", "--store", "env:SOME_DSN,schema=nope", *order])
    with pytest.raises(SystemExit) as done:
        cli.main()
    out, err = capsys.readouterr()
    assert (done.value.code, out) == (2, "")
    assert err == "eventcore-lab: store env:SOME_DSN: there is no schema 'nope' in it, but 'public'\n"


@pytest.mark.usefixtures("server")
def test_alone_it_says_what_it_observes_and_which_rules_are_in_vain(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    order = ["--lab", str(tmp_path / "lab.duckdb"), "--port", "0", "--seconds", "0.1"]
    monkeypatch.setattr("sys.argv", ["eventcore-lab", "monitor", "--store", "env:SOME_DSN,schema=public", *order])
    with pytest.raises(SystemExit):
        cli.main()
    out, err = capsys.readouterr()
    _, vain, found = out.splitlines()
    assert vain.startswith(
        "monitor: rules 'low_throughput' (no commands_per_second is known), 'high_latency' (no latency"
    )
    assert found.startswith("monitor: env:SOME_DSN: no event store that is known here in schema public") and not err


async def test_a_server_that_is_not_there_yet_is_no_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_DSN", "postgresql://me:hunter2@/there?host=/nowhere")
    lines: list[str] = []
    source = Observed("env:SOME_DSN,schema=nope", lines.append)
    await source.begin()
    for _ in range(2):
        await source.look()
    await source.close()
    [line] = lines
    assert (
        line.startswith("env:SOME_DSN cannot be looked at yet: no PostgreSQL server answers") and "hunter2" not in line
    )


async def test_a_store_that_cannot_be_reached_is_an_error_and_no_exception(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_DSN", "postgresql://me:hunter2@/there?host=/nowhere")
    source = Observed("env:SOME_DSN")
    news = await source.look()
    await source.close()
    assert "no PostgreSQL server answers" in news.error and "hunter2" not in repr(news)
    assert news.watched is not None and news.watched.title == "env:SOME_DSN"


async def test_a_fault_of_ours_is_an_error_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_DSN", "postgresql://somewhere")

    async def broken(*_: object) -> Seen:
        raise KeyError("postgresql://me:hunter2@there")

    source = Observed("env:SOME_DSN")
    monkeypatch.setattr(source._observer, "look", broken)
    news = await source.look()
    assert news.error == "the look failed (KeyError)" and "hunter2" not in repr(news)


@pytest.mark.parametrize(
    ("store", "message"),
    [
        ("postgres", "watched through their runs"),
        ("grouped(env:SOME_DSN)", "watched through their runs"),
        ("env", "which environment variable"),
        ("env:NOT_SET_ANYWHERE", "is not set or empty"),
        ("env:SOME_DSN,writes=true", "known: schema, store"),
        ("env:SOME_DSN,store=nothing", "unknown kind of event store"),
        ("env:NO_DSN", "does not hold a DSN of PostgreSQL"),
        ("postgresql://me:hunter2@there/db", "pass it by name"),
    ],
)
def test_only_a_store_in_the_environment_is_observed(monkeypatch: pytest.MonkeyPatch, store: str, message: str) -> None:
    monkeypatch.setenv("SOME_DSN", "postgresql://somewhere")
    monkeypatch.setenv("NO_DSN", "mysql://me:hunter2@there")
    with pytest.raises(UsageError, match=message) as caught:
        Observed(store)
    assert "hunter2" not in str(caught.value)
