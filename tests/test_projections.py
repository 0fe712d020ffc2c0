"""Projections: every event has its effect once whatever crashes, and every read model is what the events fold into."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from eventcore_lab.commands.command import CommandRejected
from eventcore_lab.commands.executor import Direct, RetryPolicy
from eventcore_lab.commands.users import CreateUser, Profile, UpdateProfile, UserProfileUpdated, UserRegistered
from eventcore_lab.events import (
    ANY,
    EVERYTHING,
    EventRejected,
    Filter,
    NewEvent,
    OutcomeUnknown,
    Position,
    Snapshot,
    StoredEvent,
    StoreError,
    StoreUnreachable,
    StreamId,
    StreamWrite,
    new_event_id,
)
from eventcore_lab.lab.checkers import check
from eventcore_lab.load.evidence import write_rows
from eventcore_lab.load.projector import DENSE_MAX, lag, write_projected
from eventcore_lab.projections import Overtaken, Projection, Remembered, catch_up, chapter, read_models, rebuild, users
from eventcore_lab.projections.plain import folded
from eventcore_lab.projections.read_model import tables_of
from eventcore_lab.projections.table import CHECKPOINT, Statement, Worker, rows_sql
from eventcore_lab.projections.users import Row, changes_of
from eventcore_lab.schema import NOT_COMPARED
from eventcore_lab.spec import UsageError
from eventcore_lab.stores import PoolSettings, Store, open_store, stream_all
from eventcore_lab.stores.memory import Memory
from eventcore_lab.stores.wrapper import Wrapper

IN_POSTGRES = ("trigger", "worker:page=3", "matview", "memory:page=3,every=5")
POOL = PoolSettings.sized(3)
few = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))

# what users do

Act = tuple[str, int, str]
"""What happens, to which user, and a text."""

texts = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=5)
acts = st.lists(st.tuples(st.sampled_from(["joins", "joins", "changes", "changes", "other"]), st.integers(0, 3), texts))


def said(act: Act) -> tuple[StreamId, NewEvent]:
    what, n, text = act
    user_id, stream = f"u{n}", StreamId(f"user-u{n}")
    profile = Profile("", text, text)
    if what == "joins":
        data = msgspec.json.encode(UserRegistered(user_id, f"{text}@{n}", profile))
        return stream, NewEvent("UserRegistered", data)
    if what == "changes":
        return stream, NewEvent("UserProfileUpdated", msgspec.json.encode(UserProfileUpdated(user_id, profile)))
    return stream, NewEvent("SomethingElse", b"no JSON")


async def happens(store: Store, done: Sequence[Act]) -> None:
    for act in done:
        stream, event = said(act)
        await store.append([StreamWrite(stream, ANY, (event,))])


async def until(store: Store, position: Position) -> AsyncIterator[StoredEvent]:
    async for event in stream_all(store):
        if event.position <= position:
            yield event


async def truth(store: Store, position: Position = 2**200) -> list[Row]:
    return sorted((await folded(until(store, position))).values())


def _counted(counts: dict[str, int], event: StoredEvent, _: Any) -> None:
    counts[event.stream] = counts.get(event.stream, 0) + 1


COUNTS: Projection[dict[str, int]] = Projection(
    "counts",
    {"UserRegistered": UserRegistered, "UserProfileUpdated": UserProfileUpdated},
    dict,
    _counted,
    dict[str, int],
)
"""Events per stream: what shows an event that had its effect twice, which names and emails do not."""


async def counted(store: Store, position: Position = 2**200) -> dict[str, int]:
    counts: dict[str, int] = {}
    async for event in until(store, position):
        if event.type != "SomethingElse":
            _counted(counts, event, None)
    return counts


@pytest.fixture
async def postgres() -> AsyncIterator[Store]:
    async with open_store("postgres", POOL) as store:
        yield store


# a projection


@few
@given(acts)
def test_a_projection_is_the_plain_fold(done: list[Act]) -> None:
    async def main() -> None:
        store = Memory()
        await happens(store, done)
        state = users.initial()
        async for event in stream_all(store):
            users.apply(state, event)
        assert sorted(user.row for user in state.values()) == await truth(store)

    asyncio.run(main())


async def test_a_projection_changes_its_state_in_place() -> None:
    store = Memory()
    await happens(store, [("joins", 1, "a"), ("joins", 2, "b"), ("changes", 1, "c")])
    one, two, three = [event async for event in stream_all(store)]
    state = users.initial()
    users.apply(state, one)
    first = state["u1"]
    users.apply(state, two)
    users.apply(state, three)
    assert state["u1"] is first and first.display_name == "c"


@pytest.mark.parametrize("data", [b"no JSON", b"{}", b'{"user_id": 7, "profile": {}}'])
async def test_an_event_that_cannot_be_understood_is_refused_with_its_place(data: bytes) -> None:
    store, bad = Memory(), NewEvent("UserProfileUpdated", data)
    await happens(store, [("joins", 1, "a"), ("other", 1, "")])
    await store.append([StreamWrite(StreamId("user-u1"), ANY, (bad,))])
    await happens(store, [("changes", 1, "b")])
    found = Remembered(users, store)
    for _ in range(2):  # nor is it passed over the next time
        with pytest.raises(EventRejected, match="'user-u1' version 3, 'UserProfileUpdated'"):
            await found.step()
        assert (found.applied, found.position, found.state["u1"].display_name) == (1, 2, "a")
    with pytest.raises(EventRejected, match="version 3"):
        changes_of([event async for event in stream_all(store)])


@few
@given(acts, st.integers(1, 4))
def test_a_page_folded_beforehand_comes_to_the_same(done: list[Act], page: int) -> None:
    async def main() -> None:
        store, rows = Memory(), dict[str, Row]()
        await happens(store, done)
        events = [event async for event in stream_all(store)]
        for at in range(0, len(events), page):
            changes = changes_of(events[at : at + page])
            assert not changes.registered.keys() & changes.updated.keys()
            rows |= {user_id: user.row for user_id, user in changes.registered.items()}
            for user_id, (name, at_us) in changes.updated.items():
                if user_id in rows:
                    rows[user_id] = (*rows[user_id][:2], name, rows[user_id][3], at_us)
        assert sorted(rows.values()) == await truth(store)

    asyncio.run(main())


# rebuilding


class Watched(Wrapper):
    """Counts the events handed out."""

    handed = 0

    async def read_all(self, after: Position = 0, limit: int = 1000, where: Filter = EVERYTHING) -> list[StoredEvent]:
        events = await self.inner.read_all(after, limit, where)
        self.handed += len(events)
        return events


async def test_a_rebuild_has_two_pages_in_memory_and_no_more() -> None:
    store, most = Watched(Memory()), 0
    await happens(store, [("joins", n % 50, str(n)) for n in range(300)])
    found = Remembered(users, store, page=10)
    apply = found.projection.apply

    class Noting(Projection[Any]):
        def apply(self, state: Any, event: StoredEvent) -> bool:
            nonlocal most
            most = max(most, store.handed - found.applied)
            return apply(state, event)

    found.projection = Noting("users", {}, dict, lambda *_: None, Any)
    await catch_up(found)
    assert found.applied == 300
    assert most == 20, "the page that is worked on and the next"
    await found.close()


async def test_a_rebuild_goes_on_behind_events_nobody_wants() -> None:
    store = Memory()
    await happens(store, [("joins", 1, "a"), *[("other", 1, "")] * 5])
    found = await rebuild(users, store)
    assert (found.applied, found.position) == (1, 6)


async def test_checkpoints_count_events_applied_over_all_streams() -> None:
    """F20: many short streams. The chapter saves nothing at all; here every hundred events are saved."""
    store = Memory()
    await happens(store, [("joins", n % 30, str(n)) for n in range(900)])
    found = await rebuild(users, store, page=50, every=100)
    theirs = chapter.OptimizedUserProjection(checkpoint_interval=100)
    await theirs.rebuild_from_stream(stream_all(store))
    assert found.saves == 9 and theirs.saved == []
    assert sorted(theirs.users) == sorted(found.state)


async def test_the_chapters_checkpoint_goes_back() -> None:
    store = Memory()
    await happens(store, [("joins", 1, str(n)) for n in range(30)] + [("joins", 2, str(n)) for n in range(20)])
    theirs = chapter.OptimizedUserProjection(checkpoint_interval=10)
    await theirs.rebuild_from_stream(stream_all(store))
    assert theirs.saved == [10, 20, 30, 10, 20] and theirs.last_processed_version == 20


async def test_the_chapter_copies_every_user_for_every_event(monkeypatch: pytest.MonkeyPatch) -> None:
    """F21: the work of a rebuild grows with the square of the users, where ours grows with the events."""
    copies, copy = 0, chapter.replace

    def counting(user: Any) -> Any:
        nonlocal copies
        copies += 1
        return copy(user)

    monkeypatch.setattr(chapter, "replace", counting)
    store = Memory()
    await happens(store, [("joins", n, "a") for n in range(100)])
    await chapter.OptimizedUserProjection().rebuild_from_stream(stream_all(store))
    assert copies == 100 * 99 // 2
    await rebuild(users, store)
    assert copies == 100 * 99 // 2


async def test_a_rebuild_goes_on_from_its_snapshot(store: Store) -> None:
    watched = Watched(store)
    await happens(store, [("joins", n, "a") for n in range(20)])
    assert (await rebuild(users, watched, page=7)).applied == 20
    watched.handed = 0
    await happens(store, [("changes", 3, "b")])
    found = await rebuild(users, watched, page=7)
    assert (found.applied, watched.handed) == (21, 1)
    assert sorted(user.row for user in found.state.values()) == await truth(store)


async def test_saving_never_goes_back(store: Store) -> None:
    await happens(store, [("joins", n, "a") for n in range(10)])
    slow, fast = Remembered(COUNTS, store, page=4), Remembered(COUNTS, store, page=4)
    await slow.step()
    await catch_up(fast)
    assert await fast.save() and not await slow.save()
    late = Remembered(COUNTS, store)
    await late.make()
    assert (late.applied, late.position, late.state) == (10, fast.position, await counted(store))
    for each in (slow, fast):
        await each.close()


async def test_a_snapshot_is_saved_after_a_while_though_little_happens() -> None:
    store = Memory()
    await happens(store, [("joins", 1, "a")])
    assert (found := await rebuild(users, store, save_s=0)).saves == 1
    assert (await found.step(), found.saves) == (await found.step(), 1), "with nothing new there is nothing to save"


async def test_a_snapshot_of_something_else_is_refused() -> None:
    store = Memory()
    await store.save_snapshot(Snapshot("projection users", {}, b"[]"))
    with pytest.raises(StoreError, match="cannot be taken up"):
        await rebuild(users, store)


# crashes, in this process: between any two steps


class Killed(BaseException):
    """Nothing of the process happens after this."""


class Doom:
    """Kills at the `after`-th thing that is done to the store, before it is done or when it is done already."""

    def __init__(self) -> None:
        self.left, self.is_before = -1, True

    def comes(self, after: int, is_before: bool) -> None:
        self.left, self.is_before = after, is_before

    async def around(self, work: Awaitable[Any]) -> Any:
        is_now = self.left == 0
        self.left -= 1
        if is_now and self.is_before:
            asyncio.ensure_future(work).cancel()
            raise Killed
        found = await work
        if is_now:
            raise Killed
        return found


class Doomed(Wrapper):
    def __init__(self, inner: Store, doom: Doom) -> None:
        super().__init__(inner)
        self.doom = doom

    async def read_all(self, after: Position = 0, limit: int = 1000, where: Filter = EVERYTHING) -> list[StoredEvent]:
        found: list[StoredEvent] = await self.doom.around(self.inner.read_all(after, limit, where))
        return found

    async def save_snapshot(self, snapshot: Snapshot) -> bool:
        found: bool = await self.doom.around(self.inner.save_snapshot(snapshot))
        return found

    async def in_transaction(self, statements: Sequence[Statement]) -> list[list[Any]]:
        found: list[list[Any]] = await self.doom.around(tables_of(self.inner, "").in_transaction(statements))
        return found


crashes = st.lists(st.tuples(st.integers(0, 6), st.booleans(), acts), max_size=5)


async def one_life(kept: Any) -> None:
    try:
        await kept.make()
        await catch_up(kept)
    except Killed:
        pass
    finally:
        await kept.close()


@settings(few, max_examples=100)
@given(acts, crashes, st.integers(1, 4), st.integers(1, 6))
def test_a_projection_in_memory_is_the_fold_after_any_crashes(
    done: list[Act], lives: list[tuple[int, bool, list[Act]]], page: int, every: int
) -> None:
    async def main() -> None:
        doom, inner = Doom(), Memory()
        store = Doomed(inner, doom)
        await happens(inner, done)
        for after, is_before, more in lives:
            doom.comes(after, is_before)
            await one_life(Remembered(COUNTS, store, page=page, every=every))
            saved = Remembered(COUNTS, inner)
            await saved.make()
            assert saved.state == await counted(inner, saved.position), "state and position are of one instant"
            await happens(inner, more)
        doom.comes(-1, True)
        found = Remembered(COUNTS, store, page=page, every=every)
        await found.make()
        await catch_up(found)
        assert found.state == await counted(inner)
        assert found.applied == sum(found.state.values())

    asyncio.run(main())


async def kept_rows(store: Store) -> tuple[Position, list[Row]]:
    """The checkpoint and the table as of one instant: whoever would change them waits for the checkpoint's row."""
    look = ("SELECT position FROM checkpoints WHERE name = $1 FOR UPDATE", (CHECKPOINT,))
    [[[position]], rows] = await tables_of(store, "").in_transaction([look, (rows_sql("user_summaries"), ())])
    return int(position), sorted(tuple(row) for row in rows)


@few
@given(acts, crashes, st.integers(1, 4))
def test_a_table_is_the_fold_after_any_crashes(
    done: list[Act], lives: list[tuple[int, bool, list[Act]]], page: int
) -> None:
    async def main() -> None:
        async with open_store("postgres", POOL) as inner:
            doom = Doom()
            store = Doomed(inner, doom)
            await Worker(inner, tables_of(inner, "")).make()
            await happens(inner, done)
            for after, is_before, more in lives:
                doom.comes(after, is_before)
                await one_life(Worker(store, store, page=page))
                position, rows = await kept_rows(inner)
                assert rows == await truth(inner, position), "rows and checkpoint are of one instant"
                await happens(inner, more)
            doom.comes(-1, True)
            await one_life(Worker(store, store, page=page))
            assert (await kept_rows(inner))[1] == await truth(inner)

    asyncio.run(main())


class Turns(Wrapper):
    """A worker that waits for its turn before each thing it does to the store; `has_stopped` when it waits, or is done."""

    def __init__(self, inner: Store) -> None:
        super().__init__(inner)
        self.turn, self.has_stopped = asyncio.Event(), asyncio.Event()

    async def _mine(self) -> None:
        self.has_stopped.set()
        await self.turn.wait()
        self.turn.clear()

    async def read_all(self, after: Position = 0, limit: int = 1000, where: Filter = EVERYTHING) -> list[StoredEvent]:
        await self._mine()
        return await self.inner.read_all(after, limit, where)

    async def in_transaction(self, statements: Sequence[Statement]) -> list[list[Any]]:
        await self._mine()
        return await tables_of(self.inner, "").in_transaction(statements)

    async def goes_on(self) -> None:
        self.has_stopped.clear()
        self.turn.set()
        await self.has_stopped.wait()


async def works(turns: Turns, page: int) -> int:
    """Keeps the table to the end, taking up again whenever it was overtaken; how often it was."""
    worker, overtaken = Worker(turns, turns, page=page), 0
    try:
        await worker.make()
        while True:
            try:
                await catch_up(worker)
                return overtaken
            except Overtaken:
                overtaken += 1
                await worker.take_up()
    finally:
        await worker.close()
        turns.has_stopped.set()


@few
@given(acts, acts, st.integers(1, 3), st.lists(st.booleans(), max_size=40))
def test_two_workers_at_once_do_no_harm(done: list[Act], more: list[Act], page: int, order: list[bool]) -> None:
    async def main() -> None:
        async with asyncio.timeout(20), open_store("postgres", POOL) as inner:
            await Worker(inner, tables_of(inner, "")).make()
            await happens(inner, done)
            both = [Turns(inner), Turns(inner)]
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(works(turns, page)) for turns in both]
                for n, which in enumerate(order):
                    if not tasks[which].done():
                        await both[which].goes_on()
                    position, rows = await kept_rows(inner)
                    assert rows == await truth(inner, position)
                    if n == len(order) // 2:
                        await happens(inner, more)
                while not all(task.done() for task in tasks):
                    for turns in both:
                        turns.turn.set()
                    await asyncio.wait(tasks, timeout=0.001)
            assert (await kept_rows(inner))[1] == await truth(inner, (await kept_rows(inner))[0])

    asyncio.run(main())


# the table of the worker


async def test_a_worker_that_is_overtaken_changes_nothing(postgres: Store) -> None:
    """The second is what a worker is that was thought dead: it has read a page, and another has gone on meanwhile."""
    await happens(postgres, [("joins", 1, "first"), ("changes", 1, "second")])
    tables = tables_of(postgres, "")
    one, zombie = Worker(postgres, tables, page=1), Worker(postgres, tables, page=1)
    for worker in (one, zombie):
        await worker.make()
    await catch_up(one)
    before = await kept_rows(postgres)
    with pytest.raises(Overtaken, match="nothing was changed"):
        await zombie.step()
    assert await kept_rows(postgres) == before
    await zombie.take_up()
    await happens(postgres, [("changes", 1, "third")])
    await catch_up(zombie)
    assert [row[2] for row in await zombie.rows()] == ["third"]
    for worker in (one, zombie):
        await worker.close()


async def test_a_profile_changes_for_a_user_of_an_earlier_page(postgres: Store) -> None:
    kept = read_models.make("worker:page=1").kept_in(postgres)
    await kept.make()
    for done in [("changes", 1, "nobody's"), ("joins", 1, "a"), ("joins", 2, "b"), ("changes", 1, "c")]:
        await happens(postgres, [done])
        await catch_up(kept)
        assert sorted(await kept.rows()) == await truth(postgres)
    assert kept.applied == 4
    await kept.close()


class Unanswered(Wrapper):
    """Every other transaction gets no answer; of these every other did happen."""

    count = 0

    async def in_transaction(self, statements: Sequence[Statement]) -> list[list[Any]]:
        self.count += 1
        if "keep_user_summaries" not in statements[0][0] or self.count % 2:
            return await tables_of(self.inner, "").in_transaction(statements)
        if self.count % 4:
            await tables_of(self.inner, "").in_transaction(statements)
        raise OutcomeUnknown("no answer")


async def test_a_page_without_an_answer_is_kept_once(postgres: Store) -> None:
    store = Unanswered(postgres)
    worker = Worker(store, store, page=2)
    await worker.make()
    await happens(postgres, [("joins", n % 3, str(n)) for n in range(24)])
    await catch_up(worker)
    position, rows = await kept_rows(postgres)
    assert (worker.applied, worker.position, rows) == (24, position, await truth(postgres))
    assert store.count > 14, "some had to be done again"
    await worker.close()


class AwayAfterwards(Unanswered):
    """And then the store is away for a while: what became of the page cannot be asked at once."""

    away = 0

    async def in_transaction(self, statements: Sequence[Statement]) -> list[list[Any]]:
        self.away -= 1
        if self.away >= 0:
            raise StoreUnreachable("the server is gone")
        try:
            return await super().in_transaction(statements)
        except OutcomeUnknown:
            self.away = 2
            raise


async def test_a_page_without_an_answer_is_kept_once_whenever_the_store_is_back(postgres: Store) -> None:
    store, away = AwayAfterwards(postgres), 0
    worker = Worker(store, store, page=2)
    await worker.make()
    await happens(postgres, [("joins", n % 3, str(n)) for n in range(24)])
    is_behind = True
    while is_behind:
        try:
            is_behind = (await worker.step()).is_behind
        except StoreUnreachable:
            away += 1
            is_behind = True
    position, rows = await kept_rows(postgres)
    assert (worker.applied, worker.position, rows) == (24, position, await truth(postgres))
    assert away > 4
    await worker.close()


# what a transaction beside the events promises


async def test_a_transaction_takes_effect_as_a_whole_or_not_at_all() -> None:
    async with open_store("postgres", PoolSettings.sized(1)) as store:
        run = tables_of(store, "").in_transaction
        put, count = "INSERT INTO checkpoints VALUES ($1, $2)", ("SELECT count(*) FROM checkpoints", ())
        [_, [[found]]] = await run([(put, ("a", 1)), count])
        assert found == 1
        with pytest.raises(StoreError, match="duplicate key"):
            await run([(put, ("b", 1)), (put, ("a", 1))])
        with pytest.raises(EventRejected):
            await run([(put, ("b", 1)), (put, ("\0", 1))])
        assert await run([count]) == [[(1,)]], "the only connection is usable, and in no transaction"


async def test_a_transaction_whose_connection_is_lost_is_unknown() -> None:
    async with open_store("postgres", PoolSettings.sized(1)) as store:
        run = tables_of(store, "").in_transaction
        with pytest.raises(OutcomeUnknown):
            await run([("SELECT 1", ()), ("SELECT pg_terminate_backend(pg_backend_pid())", ())])
        assert await run([("SELECT 1", ())]) == [[(1,)]]


# read models in PostgreSQL


async def commands(store: Store, seed: int) -> None:
    """Users register and change their profile, several at a time."""
    rng = random.Random(seed)
    words = ["Ada", "Łukasz", "O'Neil", '"; DROP', "\\u0041", "名前", "\n", "🦉", "\x7f\u2028"]

    async def one(chance: random.Random) -> None:
        executor = Direct(store, retry=RetryPolicy(first_s=0.001), seed=seed)
        for _ in range(8):
            user_id, first, last = str(chance.randrange(6)), chance.choice(words), chance.choice(words)
            command = CreateUser(user_id, f"u{user_id}@example.org", first, last)
            with suppress(CommandRejected, StoreError):
                await executor.execute(chance.choice([command, UpdateProfile(user_id, first, last)]))

    async with asyncio.TaskGroup() as group:
        for _ in range(4):
            group.create_task(one(random.Random(rng.random())))


@asynccontextmanager
async def made(spec: str, store: Store) -> AsyncIterator[Any]:
    kept = read_models.make(spec).kept_in(store)
    try:
        await kept.make()
        yield kept
    finally:
        await kept.close()


@pytest.mark.parametrize("spec", IN_POSTGRES)
@pytest.mark.parametrize("inner", ["postgres", "grouped(postgres)"])
async def test_every_read_model_is_what_the_events_fold_into(spec: str, inner: str) -> None:
    async with open_store(inner, POOL) as store:
        await commands(store, 1)  # what is there before it is made belongs to it too
        async with made(spec, store) as kept:
            for seed in (2, 3):
                await commands(store, seed)
                await catch_up(kept)
                assert await kept.reached() == await store.last_position()
                assert sorted(await kept.rows()) == await truth(store)
            await happens(store, [("joins", 9, "x"), ("other", 9, "")])
        async with made(spec, store) as again:
            await catch_up(again)
            assert sorted(await again.rows()) == await truth(store)
            assert len(await again.rows()) > 3


@few
@given(
    st.lists(st.lists(st.tuples(st.sampled_from(["joins", "changes", "other"]), st.integers(0, 3), texts), min_size=1))
)
@example([[("changes", 1, "a"), ("joins", 1, "b")], [("changes", 1, "c"), ("joins", 1, "d")]])
def test_a_trigger_keeps_what_one_statement_adds(groups: list[list[Act]]) -> None:
    """Several events of a user in one statement, in any order; and it fires once for all of them."""

    async def main() -> None:
        async with open_store("postgres", POOL) as store, made("trigger", store) as kept:
            for group in groups:
                streams: dict[StreamId, list[NewEvent]] = {}
                for stream, event in map(said, group):
                    streams.setdefault(stream, []).append(event)
                for stream, events in streams.items():
                    await store.append([StreamWrite(stream, ANY, tuple(events))])
                    assert sorted(await kept.rows()) == await truth(store)
                requests = [[StreamWrite(stream, ANY, (event,))] for stream, event in map(said, group)]
                await store.append_many(requests)
                assert sorted(await kept.rows()) == await truth(store)

    asyncio.run(main())


async def test_a_trigger_fires_once_for_all_events_of_a_statement(postgres: Store) -> None:
    async with made("trigger", postgres):
        tables = tables_of(postgres, "")
        await tables.in_transaction([("CREATE TABLE fired (n bigint)", ())])
        counting = """CREATE FUNCTION fires() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN INSERT INTO fired VALUES (1); RETURN NULL; END $$"""
        on = "CREATE TRIGGER fires AFTER INSERT ON user_summaries_triggered EXECUTE FUNCTION fires()"
        await tables.in_transaction([(counting, ()), (on, ())])
        requests = [
            [StreamWrite(stream, ANY, (event,))] for stream, event in map(said, [("joins", n, "") for n in range(50)])
        ]
        await postgres.append_many(requests)
        assert await tables.in_transaction([("SELECT count(*) FROM fired", ())]) == [[(1,)]]


async def test_the_chapters_view_has_a_row_per_event_and_cannot_be_refreshed_beside_readers(postgres: Store) -> None:
    """F22 and F23. Ours has one row per user, and can."""
    await happens(postgres, [("joins", 1, "a"), ("changes", 1, "b"), ("changes", 1, "c"), ("joins", 2, "d")])
    async with made("chapter_matview", postgres) as kept, made("matview", postgres) as ours:
        assert (await kept.step()).refresh_ns > 0 and (await ours.step()).refresh_ns > 0
        rows = await kept.rows()
        assert sorted(row[0] for row in rows) == ["u1", "u1", "u1", "u2"]
        assert [row[1] for row in rows if row[0] == "u1"].count(None) == 2
        assert sorted(await ours.rows()) == await truth(postgres) != sorted(rows, key=str)
        refresh = f"REFRESH MATERIALIZED VIEW CONCURRENTLY {kept.relation}"
        with pytest.raises(StoreError, match="cannot refresh materialized view .* concurrently(.|\n)*unique index"):
            await tables_of(postgres, "").in_transaction([(refresh, ())])
        unique = f"CREATE UNIQUE INDEX one_row_per_user ON {kept.relation} (user_id)"
        with pytest.raises(StoreError, match="could not create unique index"):
            await tables_of(postgres, "").in_transaction([(unique, ())])


async def test_a_view_tells_the_position_before_its_refresh(postgres: Store) -> None:
    await happens(postgres, [("joins", 1, "a")])
    async with made("matview", postgres) as kept:
        refresh = kept._tables.in_transaction

        async def and_then(statements: Sequence[Statement]) -> list[list[Any]]:
            found: list[list[Any]] = await refresh(statements)
            await happens(postgres, [("joins", 2, "a")])
            return found

        kept._tables.in_transaction = and_then
        await kept.step()
        assert (await kept.reached(), await postgres.last_position()) == (1, 2)


async def test_a_refresh_without_an_answer_does_no_harm_and_is_counted(postgres: Store) -> None:
    await happens(postgres, [("joins", 1, "a")])
    async with made("matview", postgres) as kept:
        refresh, answers = kept._tables.in_transaction, iter([False, True, False])

        async def sometimes(statements: Sequence[Statement]) -> list[list[Any]]:
            if not next(answers):
                raise OutcomeUnknown("no answer in time")
            found: list[list[Any]] = await refresh(statements)
            return found

        kept._tables.in_transaction = sometimes
        assert (await kept.step()).refresh_ns == 0 and await kept.reached() == 0
        assert (await kept.step()).refresh_ns > 0 and await kept.reached() == 1
        await kept.step()
        assert kept.failures == {"failed_refreshes": 2} and await kept.reached() == 1


class ReadOnly(Wrapper):
    async def save_snapshot(self, snapshot: Snapshot) -> bool:
        raise StoreError("this store is only to be read")


async def test_a_snapshot_that_cannot_be_saved_does_no_harm_and_is_tried_as_seldom_as_before(store: Store) -> None:
    await happens(store, [("joins", n % 5, str(n)) for n in range(20)])
    async with made("memory:page=3,every=4", ReadOnly(store)) as kept:
        await catch_up(kept)
        assert sorted(await kept.rows()) == await truth(store)
        assert kept.failures == {"failed_snapshots": 3}, "of every fourth event at the end of a page of three"
    found = await rebuild(users, ReadOnly(store))
    assert (found.applied, found.saves, found.failures) == (20, 0, {"failed_snapshots": 1})


@pytest.mark.parametrize("spec", ["worker", "trigger", "matview", "chapter_matview"])
@pytest.mark.parametrize("inner", ["memory", "sqlite", "postgres:eventcore", "postgres:chapter"])
async def test_only_memory_is_for_every_store(spec: str, inner: str) -> None:
    async with open_store(inner, POOL) as store:
        with pytest.raises(UsageError, match=f"read model {spec} needs the store postgres"):
            read_models.make(spec).kept_in(store)


@pytest.mark.parametrize("inner", ["memory", "sqlite", "postgres:eventcore", "postgres:xmin"])
async def test_a_read_model_in_memory_is_kept_on_every_store(inner: str) -> None:
    async with open_store(inner, POOL) as store:
        await happens(store, [("joins", n % 5, str(n)) for n in range(20)])
        for _ in range(2):
            async with made("memory:page=3,every=4", store) as kept:
                await catch_up(kept)
                assert kept.applied == 20
                assert sorted(await kept.rows()) == await truth(store)


@pytest.mark.parametrize("spec", ["matview:every_s=0", "memory:every=0", "worker:page=0", "trigger:every_s=1", "views"])
def test_a_read_model_that_cannot_be_is_refused(spec: str) -> None:
    with pytest.raises(UsageError):
        read_models.make(spec)


# how far behind


class Composed(Wrapper):
    """Positions that count nothing."""

    async def last_position(self) -> Position:
        return DENSE_MAX + await self.inner.last_position()


async def test_lag_counts_what_waits_and_how_long_it_has(postgres: Store) -> None:
    async with made("worker", postgres) as kept:
        assert await lag(postgres, kept) == {"lag_events": 0, "lag_ms": 0.0}
        await happens(postgres, [("other", 1, ""), ("joins", 1, "a"), ("joins", 2, "a")])
        found = await lag(postgres, kept)
        assert found["lag_events"] == 3 and found["lag_ms"] > 0
        assert "lag_events" not in await lag(Composed(postgres), kept)
        await catch_up(kept)
        assert await lag(postgres, kept) == {"lag_events": 0, "lag_ms": 0.0}
        await happens(postgres, [("other", 1, "")])
        assert await lag(postgres, kept) == {"lag_events": 1, "lag_ms": 0.0}, "nobody waits for it"


async def test_what_a_trigger_keeps_is_never_behind(postgres: Store) -> None:
    async with made("trigger", postgres) as kept:
        await happens(postgres, [("joins", 1, "a")])
        assert await lag(postgres, kept) == {"lag_events": 0, "lag_ms": 0.0}


# what the checkers say


GOOD: list[Row] = [("u1", "a@1", "a", 1, 2), ("u2", "b@2", "b", 3, 3)]


@pytest.mark.parametrize(
    ("change", "said_of_it"),
    [
        (lambda rows: rows, ""),
        (lambda rows: rows[:1], "worker u2: is missing"),
        (lambda rows: [*rows, ("u3", "c@3", "c", 4, 4)], "worker u3: should not be there"),
        (lambda rows: [*rows, rows[0]], "worker u1: 2 rows"),
        (lambda rows: [rows[0], ("u2", None, "b", None, 3)], "worker u2: is not what the events fold into"),
    ],
)
def test_a_read_model_is_held_against_the_fold(
    change: Callable[[list[Row]], list[Row]], said_of_it: str, tmp_path: Path
) -> None:
    write_projected(tmp_path / "projected-0.parquet", "worker", change(GOOD), {row[0]: row for row in GOOD})
    [finding] = [f for f in check(tmp_path) if f.id == "V17"]
    assert (finding.status, finding.detail) == ("violated" if said_of_it else "passed", said_of_it)


def test_a_read_model_that_was_not_compared_is_no_pass_and_not_nothing(tmp_path: Path) -> None:
    [finding] = [f for f in check(tmp_path) if f.id == "V17"]
    assert (finding.status, finding.detail) == ("not tested", "no read model was kept")
    write_rows(tmp_path / "counts-projector-0.parquet", "counts", [(NOT_COMPARED, 1)])
    [finding] = [f for f in check(tmp_path) if f.id == "V17"]
    assert (finding.status, finding.detail) == ("broken", "the read model had not caught up when its time was over")


async def test_a_store_that_loses_events_for_its_readers_is_told_from_the_read_model(tmp_path: Path) -> None:
    """The mutant that repeats nothing but forgets: what the worker was not given is not in its table."""

    class Forgets(Wrapper):
        async def read_all(
            self, after: Position = 0, limit: int = 1000, where: Filter = EVERYTHING
        ) -> list[StoredEvent]:
            events = await self.inner.read_all(after, limit, where)
            return [e for e in events if e.position % 7]

    async with open_store("postgres", POOL) as store:
        await happens(store, [("joins", n, "a") for n in range(10)])
        async with made("worker", Forgets(store)) as kept:
            await catch_up(kept)
            write_projected(
                tmp_path / "projected-0.parquet", "worker", await kept.rows(), await folded(stream_all(store))
            )
    [finding] = [f for f in check(tmp_path) if f.id == "V17"]
    assert (finding.status, finding.wrong, finding.detail) == ("violated", 1, "worker u6: is missing")


@pytest.mark.parametrize("data", [b'{"user_id": "\xff"}', b"", b'{"user_id": 1}'])
def test_an_event_that_is_no_text_or_says_something_else_is_refused_by_name(data: bytes) -> None:
    event = StoredEvent(1, StreamId("user-7"), 3, new_event_id(), "UserRegistered", data)
    with pytest.raises(EventRejected, match="'user-7' version 3"):
        users.apply({}, event)
