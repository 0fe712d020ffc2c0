"""What the stores of others lose and keep, each by a schedule that leaves nothing to chance; and EventCore databases that
were there before."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import asyncpg
import pytest

from eventcore_lab.events import (
    ABSENT,
    ANY,
    AppendResult,
    NewEvent,
    StoreError,
    StreamId,
    StreamSlice,
    StreamWrite,
    VersionConflict,
    new_event_id,
)
from eventcore_lab.experiment import Experiment
from eventcore_lab.lab.database import Lab
from eventcore_lab.progress import Quiet
from eventcore_lab.schema import Outcome
from eventcore_lab.spec import UsageError
from eventcore_lab.stores import PoolSettings, Store, chapter, eventcore, open_store, stores
from eventcore_lab.stores.chapter import Chapter
from eventcore_lab.stores.conformance import CLAIMS, Claim, NotKept, conformance, examined
from eventcore_lab.stores.embedded import shared_server
from eventcore_lab.stores.flavours import FLAVOURS
from eventcore_lab.stores.memory import memory
from eventcore_lab.stores.pool import Connection
from eventcore_lab.stores.protocol import Address
from eventcore_lab.workbench import run

A, B, SLOW = StreamId("a"), StreamId("b"), StreamId("slow")
NAME = "eventcore_lab_others"
POOL = PoolSettings(max_connections=4, min_connections=1, command_timeout_s=20, application_name=NAME)
GATE = 42


def write(stream: StreamId, expected: int = ANY, n: int = 1) -> list[StreamWrite]:
    return [StreamWrite(stream, expected, tuple(NewEvent("T", b'{"n": %d}' % i) for i in range(n)))]


class Rig:
    """A provisioned store, and a connection by hand to the same schema."""

    def __init__(self, address: Address, store: Any, hand: asyncpg.Connection[Any]) -> None:
        self.address, self.store, self.hand = address, store, hand

    async def gated(self, table: str, streams: str) -> None:
        """Whoever inserts into one of `streams` waits, within its transaction, until `open_gate`."""
        await self.hand.execute(
            f"""CREATE FUNCTION wait_here() RETURNS trigger LANGUAGE plpgsql AS
                $$ BEGIN PERFORM pg_advisory_xact_lock_shared({GATE}); RETURN NULL; END $$;
                CREATE TRIGGER gate AFTER INSERT ON {table} FOR EACH ROW
                WHEN (NEW.stream_id = ANY('{streams}')) EXECUTE FUNCTION wait_here();
                SELECT pg_advisory_lock({GATE})"""
        )

    async def open_gate(self) -> None:
        await self.hand.execute(f"SELECT pg_advisory_unlock({GATE})")

    async def waiting(self, n: int) -> None:
        """Until `n` connections of ours wait for a lock."""
        async with asyncio.timeout(20):
            while n != await self.hand.fetchval(
                "SELECT count(*) FROM pg_stat_activity WHERE application_name = $1 AND wait_event_type = 'Lock'", NAME
            ):
                await self.hand.execute("SELECT pg_stat_clear_snapshot()")  # a transaction sees the same state for ever


@asynccontextmanager
async def rig(spec: str) -> AsyncIterator[Rig]:
    driver = stores.make(spec)
    async with driver.provision() as place:
        store = await driver.connect(place.address, POOL)
        hand = await asyncpg.connect(place.address.dsn, server_settings={"search_path": place.address.schema})
        try:
            yield Rig(place.address, store, hand)
        finally:
            await hand.close()
            await store.close()


async def results(*appends: Any) -> list[Any]:
    async with asyncio.timeout(20):
        return await asyncio.gather(*appends, return_exceptions=True)


# The chapter


async def _two_with_one_expectation(r: Rig) -> list[Any]:
    """Both read the version before either can insert."""
    async with r.hand.transaction():
        await r.hand.execute("LOCK TABLE events IN SHARE MODE")
        both = [asyncio.ensure_future(r.store.append(write(A, ABSENT))) for _ in range(2)]
        await r.waiting(2)
    return await results(*both)


async def test_the_chapter_lets_two_writers_win_with_one_expectation() -> None:
    async with rig("postgres:chapter") as r:
        assert [x.versions for x in await _two_with_one_expectation(r)] == [(1,), (1,)]
        assert [e.version for e in (await r.store.read_stream(A)).events] == [1, 1]


async def test_with_a_unique_key_the_chapters_second_writer_gets_an_error_that_is_no_conflict() -> None:
    async with rig("postgres:chapter_unique") as r:
        outcomes = await _two_with_one_expectation(r)
        lost = next(x for x in outcomes if not isinstance(x, AppendResult))
        assert sum(isinstance(x, AppendResult) for x in outcomes) == 1
        assert isinstance(lost, StoreError) and not isinstance(lost, VersionConflict)
        assert "UniqueViolation" in str(lost)


async def test_the_chapter_looks_at_the_first_expectation_of_a_stream_only() -> None:
    async with rig("postgres:chapter") as r:
        await r.store.append(write(A, ABSENT, 5))
        assert (await r.store.append([*write(A, 5), *write(A, 99)])).versions == (6, 7)
        first, second = await r.store.append_many([write(A, 7), write(A, 7)])
        assert (first.versions, second.versions) == ((8,), (9,))


async def test_an_append_of_the_chapter_ends_where_a_statement_has_no_more_parameters() -> None:
    async with rig("postgres:chapter") as r:
        assert (await r.store.append(write(A, ABSENT, 32_767 // 7))).versions == (4_681,)
        with pytest.raises(StoreError, match="32767"):
            await r.store.append([*write(A, 4_681), *write(B, ABSENT, 4_682)])
        assert [s.version for s in await r.store.read_streams([A, B])] == [4_681, 0]


class _Reversed(Random):
    def shuffle(self, x: Any) -> None:
        x.reverse()


class _AsGiven(Random):
    def shuffle(self, x: Any) -> None:
        pass


async def test_two_appends_of_the_chapter_over_the_same_streams_deadlock() -> None:
    """Each has written one stream when it comes to the other's."""
    async with rig("postgres:chapter_unique") as r:
        await r.gated("events", "{a,b}")
        quick = {"deadlock_timeout": "20ms"}
        pair = [await chapter.connect(r.address.dsn, r.address.schema, POOL, quick) for _ in range(2)]
        pair[0]._order, pair[1]._order = _AsGiven(), _Reversed()
        both = [asyncio.ensure_future(s.append([*write(A, ABSENT), *write(B, ABSENT)])) for s in pair]
        await r.waiting(2)
        await r.open_gate()
        outcomes = await results(*both)
        for store in pair:
            await store.close()
        assert sorted(type(x).__name__ for x in outcomes) == ["AppendResult", "StoreError"]
        assert "DeadlockDetected" in str(next(x for x in outcomes if isinstance(x, StoreError)))


async def test_the_chapter_writes_the_streams_of_an_append_in_an_order_that_changes() -> None:
    async with rig("postgres:chapter") as r:
        for _ in range(20):
            await r.store.append([*write(A), *write(B)])
        pairs = zip(*(s.events for s in await r.store.read_streams([A, B])), strict=True)
        assert {a.position < b.position for a, b in pairs} == {True, False}


async def test_events_of_one_microsecond_are_lost_at_the_edge_of_a_page_of_the_chapter() -> None:
    async with rig("postgres:chapter") as r:
        stamped = Chapter(r.store._pool, 5, now_us=iter([1_000, 1_001, *[1_002] * 8]).__next__)
        await stamped.append(write(A, ABSENT, 10))
        first = await stamped.read_all(0, 4)
        assert [e.position for e in first] == [1_000, 1_001, 1_002, 1_002]
        assert await stamped.read_all(first[-1].position, 4) == []


@pytest.mark.parametrize(
    ("spec", "table"), [("postgres:chapter", "events"), ("postgres:eventcore", "eventcore_events")]
)
async def test_a_reader_never_sees_what_commits_behind_it(spec: str, table: str) -> None:
    """A position drawn before the commit, by the chapter's clock or as EventCore's UUIDv7."""
    async with rig(spec) as r:
        await r.gated(table, "{slow}")
        late = asyncio.ensure_future(r.store.append(write(SLOW, ABSENT)))
        await r.waiting(1)
        await r.store.append(write(B, ABSENT))
        seen = await r.store.read_all()
        await r.open_gate()
        (done,) = await results(late)
        seen += await r.store.read_all(seen[-1].position)
        assert done.versions == (1,)
        assert [e.stream for e in seen] == [B]
        assert [e.stream for e in await r.store.read_all()] == [SLOW, B]


@pytest.mark.parametrize("spec", ["postgres:chapter", "postgres:eventcore"])
async def test_appends_of_others_can_be_held_open_before_their_commit(spec: str) -> None:
    async with rig(f"{spec},hold_ms=1") as r:
        assert (await r.store.append(write(A, ABSENT, 2))).versions == (2,)
        assert await r.hand.fetchval("SELECT count(*) FROM pg_trigger WHERE tgname = 'hold_open'") >= 1


async def test_who_pages_through_a_stream_of_the_chapter_conflicts_for_ever() -> None:
    async with rig("postgres:chapter") as r:
        await r.store.append(write(A, ABSENT, 3))
        for _ in range(3):
            page = await r.store.read_stream(A, 1, 2)
            with pytest.raises(VersionConflict, match="expected 2, actual 3"):
                await r.store.append(write(A, page.version))


class _Overtaken(Chapter):
    """Between its two queries another writer commits."""

    between: Callable[[], Any]

    async def read_stream(self, stream: StreamId, from_version: int = 1, limit: int | None = None) -> StreamSlice:
        if stream == B:
            await self.between()
        return await super().read_stream(stream, from_version, limit)


async def test_several_streams_of_the_chapter_are_read_as_of_several_instants() -> None:
    async with rig("postgres:chapter") as r:
        reader = _Overtaken(r.store._pool, 5)

        async def between() -> None:
            await reader.read_stream(A)
            await r.store.append([*write(A, ABSENT), *write(B, ABSENT)])

        reader.between = between
        left, right = [s.version for s in await reader.read_streams([A, B])]
        assert (left, right) == (0, 1)


async def test_in_a_batch_of_the_chapter_one_failure_is_everybodys() -> None:
    async with rig("postgres:chapter") as r:
        await r.store.append(write(B))
        outcomes = await r.store.append_many([write(A, ABSENT), write(B, ABSENT)])
        assert [type(x) for x in outcomes] == [VersionConflict] * 2
        assert (await r.store.read_stream(A)).version == 0


async def test_what_the_chapter_has_no_code_for_is_refused() -> None:
    async with open_store("postgres:chapter", POOL) as store:
        for call in (store.load_checkpoint("x"), store.load_snapshot("x"), store.try_lead("x")):
            with pytest.raises(StoreError, match="the chapter's store has no"):
                await call


# EventCore


async def test_a_participant_that_eventcore_only_reads_is_locked_and_checked() -> None:
    """A writer of it is under way when the append begins: the append waits, and conflicts."""
    async with rig("postgres:eventcore") as r:
        await r.gated("eventcore_events", "{slow}")
        writing = asyncio.ensure_future(r.store.append(write(SLOW, ABSENT)))
        await r.waiting(1)
        deciding = asyncio.ensure_future(r.store.append([StreamWrite(SLOW, 0), *write(B, ABSENT)]))
        await r.waiting(2)
        await r.open_gate()
        written, decided = await results(writing, deciding)
        assert written.versions == (1,)
        assert str(decided) == "version conflict on 'slow': expected 0, actual 1"
        assert (await r.store.read_stream(B)).version == 0


@pytest.mark.parametrize(("streams", "events", "trips"), [(1, 1, 6), (3, 1, 10), (1, 2_500, 8)])
async def test_an_append_of_eventcore_makes_two_round_trips_per_stream_and_four(
    streams: int, events: int, trips: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[str] = []

    def noting(method: Any) -> Any:
        def noted(self: Any, sql: str, *arguments: Any, **options: Any) -> Any:
            sent.append(sql)
            return method(self, sql, *arguments, **options)

        return noted

    async with rig("postgres:eventcore") as r:
        with monkeypatch.context() as patch:
            for kind, name in ((Connection, "fetch"), (asyncpg.Connection, "execute")):
                patch.setattr(kind, name, noting(getattr(kind, name)))
            await r.store.append([w for n in range(streams) for w in write(StreamId(f"s{n}"), ABSENT, events)])
    assert len(sent) == trips
    assert [n for n, sql in enumerate(sent) if "advisory" in sql] == list(range(1, streams + 1))


async def test_writers_beside_eventcores_locks_are_caught_by_its_trigger_and_its_unique_key() -> None:
    async with rig("postgres:eventcore") as r:
        await r.store.append(write(A, ABSENT, 2))
        insert = "INSERT INTO eventcore_events (event_id, stream_id, event_type, event_data) VALUES ($1, $2, 'T', '{}')"
        async with r.hand.transaction():
            await r.hand.execute("""SELECT set_config('eventcore.expected_versions', '{"a": 1}', true)""")
            with pytest.raises(asyncpg.RaiseError) as raised:
                async with r.hand.transaction():
                    await r.hand.execute(insert, new_event_id(), A)
        assert raised.value.sqlstate == "P0001"
        assert str(eventcore._refusal(raised.value)) == "version conflict on 'a': expected 1, actual 2"
        beside = r.hand.transaction()
        await beside.start()
        await r.hand.execute(insert, new_event_id(), B)
        appending = asyncio.ensure_future(r.store.append(write(B, ABSENT)))
        await r.waiting(1)
        await beside.commit()
        (outcome,) = await results(appending)
        assert (outcome.stream, outcome.expected, outcome.actual) == ("unknown-conflict-stream", 0, 0)


async def test_events_of_eventcore_can_neither_be_changed_nor_removed() -> None:
    async with rig("postgres:eventcore") as r:
        await r.store.append(write(A))
        for sql in ("UPDATE eventcore_events SET event_type = 'other'", "DELETE FROM eventcore_events"):
            with pytest.raises(asyncpg.PostgresError, match="immutable") as raised:
                await r.hand.execute(sql)
            assert raised.value.sqlstate == "P0002"


async def test_a_position_of_eventcore_is_its_uuid_and_fits_the_journal() -> None:
    async with rig("postgres:eventcore") as r:
        result = await r.store.append(write(A))
        assert result.position == (await r.hand.fetchval("SELECT event_id FROM eventcore_events")).int
        assert await r.store.last_position() == result.position < 10**38


def test_the_key_of_a_lease_is_fnv_1a() -> None:
    assert eventcore.lease_key("") == 0xCBF29CE484222325 - 2**64
    assert eventcore.lease_key("a") == 0xAF63DC4C8601EC8C - 2**64
    assert eventcore.lease_key("foobar") == 0x85944171F73967E8 - 2**64


# An EventCore database that is there already

THEIRS = "Their events"
SPEC = f"env:LAB_DSN,store=eventcore,schema={THEIRS}"


@pytest.fixture
async def theirs(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[asyncpg.Connection[Any]]:
    """A schema made beforehand, with three events as EventCore writes them."""
    monkeypatch.setenv("LAB_DSN", shared_server().dsn)
    hand = await asyncpg.connect(shared_server().dsn)
    await hand.execute(f'CREATE SCHEMA "{THEIRS}"')
    try:
        await hand.execute(f'SET search_path = "{THEIRS}"')
        await hand.execute(eventcore.SCHEMA_SQL)
        for n, stream in enumerate("aba"):
            await hand.execute(
                "INSERT INTO eventcore_events (event_id, stream_id, event_type, event_data) VALUES ($1, $2, 'Old', $3)",
                new_event_id(),
                stream,
                f'{{"n": {n}}}',
            )
        yield hand
    finally:
        await hand.execute(f'DROP SCHEMA "{THEIRS}" CASCADE')
        await hand.close()


async def _content(hand: asyncpg.Connection[Any]) -> Sequence[Any]:
    sums = "SELECT count(*), md5(string_agg(t::text, '|' ORDER BY t::text)) FROM {} t"
    tables = ("eventcore_events", "eventcore_subscription_versions", "eventcore_command_state_snapshots")
    objects = "SELECT array_agg(relname::text ORDER BY relname) FROM pg_class WHERE relnamespace = $1::regnamespace"
    return [*[tuple(await hand.fetchrow(sums.format(t))) for t in tables], await hand.fetchval(objects, f'"{THEIRS}"')]


async def test_an_existing_eventcore_database_is_read_and_not_touched(theirs: asyncpg.Connection[Any]) -> None:
    before = await _content(theirs)
    driver = stores.make(SPEC)
    async with driver.provision() as place:
        assert place.facts["eventcore.events_at_start"] == "3"
        store = await driver.connect(place.address, POOL)
        events = await store.read_all()
        assert [(e.stream, e.version, e.data, e.meta) for e in events] == [
            ("a", 1, b'{"n": 0}', b""),
            ("b", 1, b'{"n": 1}', b""),
            ("a", 2, b'{"n": 2}', b""),
        ]
        assert all(e.position == e.id.int for e in events)
        assert [s.version for s in await store.read_streams([A, B])] == [2, 1]
        assert (await store.read_all(events[0].position, 1))[0].stream == "b"
        await _refuses_to_write(store)
        await store.close()
    assert await _content(theirs) == before


@pytest.mark.parametrize("workload", ["read_pages:limit=2", "read_streams:streams=10"])
async def test_an_existing_database_is_measured_by_reading_and_not_judged_for_what_was_there(
    theirs: asyncpg.Connection[Any], workload: str, tmp_path: Path
) -> None:
    before = await _content(theirs)
    e = Experiment(
        store=SPEC, workload=workload, pacer="saturate:concurrency=2", duration_s=0.3, warmup_s=0.1, connections=2
    )
    found = await asyncio.to_thread(run, e, Lab(tmp_path / "lab.duckdb"), Quiet())
    assert found.figure("events_per_second").estimate.value > 0
    assert set(found.samples["outcome"]) == {int(Outcome.OK)}
    assert "violated" not in set(found.invariants["status"])
    assert await _content(theirs) == before


async def test_what_writes_is_refused_on_a_database_that_is_only_read(
    theirs: asyncpg.Connection[Any], tmp_path: Path
) -> None:
    before = await _content(theirs)
    e = Experiment(store=SPEC, workload="write_events", duration_s=0.2, warmup_s=0.1, connections=2)
    with pytest.raises(StoreError, match="choose a workload that reads"):
        await asyncio.to_thread(run, e, Lab(tmp_path / "lab.duckdb"), Quiet())
    for spec in (SPEC, f"{SPEC},writes=true"):
        with pytest.raises(UsageError, match="had events before"):
            await conformance(stores.make(spec))
    assert await _content(theirs) == before


def test_reading_a_store_that_has_nothing_says_how_to_name_one_that_has(tmp_path: Path) -> None:
    e = Experiment(store="memory", workload="read_pages", pacer="constant:rate=100", duration_s=0.2, warmup_s=0.1)
    found = run(e, Lab(tmp_path / "lab.duckdb"), Quiet())
    assert "no event to read" in found.marks.filter(found.marks["name"] == "failed operations")["detail"][0]


async def _refuses_to_write(store: Store) -> None:
    for call in (store.append(write(A)), store.save_checkpoint("x", 1), store.try_lead("x")):
        with pytest.raises(StoreError, match="add writes=true"):
            await call
    assert isinstance((await store.append_many([write(A)]))[0], StoreError)
    store._is_writable = True  # type: ignore[attr-defined]
    with pytest.raises(StoreError, match="read-only transaction"):  # the server refuses too
        await store.append(write(A))


async def test_an_existing_eventcore_database_is_written_to_when_that_is_asked_for(
    theirs: asyncpg.Connection[Any],
) -> None:
    async with open_store(f"{SPEC},writes=true", POOL) as store:
        assert (await store.append(write(A, 2))).versions == (3,)
        with pytest.raises(VersionConflict, match="expected 2, actual 3"):
            await store.append(write(A, 2))
    assert await theirs.fetchval("SELECT count(*) FROM eventcore_events") == 4


async def test_a_schema_without_eventcores_table_is_said_to_have_none(theirs: asyncpg.Connection[Any]) -> None:
    with pytest.raises(StoreError, match="no table eventcore_events"):
        async with open_store("env:LAB_DSN,store=eventcore,schema=public"):
            pass
    await theirs.execute("ALTER TABLE eventcore_events DROP COLUMN metadata")
    with pytest.raises(StoreError, match="lacks metadata: not EventCore 2's"):
        async with open_store(SPEC):
            pass


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("postgres:chapters", "did you mean chapter"),
        ("env:LAB_DSN,store=chapters", "did you mean chapter"),
        ("env:LAB_DSN,schema=public", "store=eventcore,schema=public"),
        ("env:LAB_DSN,store=eventcore,writes=true", "store=eventcore,schema=public"),
    ],
)
def test_a_variant_that_cannot_be_is_refused_when_it_is_named(
    spec: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAB_DSN", "host=nowhere")
    with pytest.raises(UsageError, match=said):
        stores.make(spec)


# What is declared


@pytest.mark.parametrize("name", FLAVOURS)
def test_what_a_flavour_lacks_are_claims_that_there_are(name: str) -> None:
    assert set(FLAVOURS[name].lacks) <= set(CLAIMS)


@pytest.mark.parametrize(
    ("reason", "is_kept", "status", "is_met"),
    [
        ("sometimes: by chance", True, "kept this time", True),
        ("sometimes: by chance", False, "lacking", True),
        ("always", True, "kept after all", False),
        ("always", False, "lacking", True),
        ("", False, "broken", False),
    ],
)
async def test_a_fault_that_shows_by_chance_is_declared_as_such(
    reason: str, is_kept: bool, status: str, is_met: bool
) -> None:
    async def check(*_: Store) -> None:
        if not is_kept:
            raise NotKept("no")

    driver: Any = memory()
    driver.lacks = {"x": reason} if reason else {}
    finding = await examined(driver, Claim("x", "", check))
    assert (finding.status, finding.is_met) == (status, is_met)
