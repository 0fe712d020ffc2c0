"""What the sqlite store has to prove beyond the conformance suite: groups, crashes, other writers, the end."""

from __future__ import annotations

import asyncio
import os
import random
import re
import resource
import sqlite3
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from eventcore_lab.events import (
    ABSENT,
    ANY,
    AppendResult,
    EventRejected,
    Filter,
    NewEvent,
    OutcomeUnknown,
    Snapshot,
    StoreError,
    StoreUnreachable,
    StreamId,
    StreamWrite,
    VersionConflict,
)
from eventcore_lab.schema import Attempt, current_attempt
from eventcore_lab.spec import UsageError
from eventcore_lab.stores import Address, PoolSettings, Store, open_store, sqlite, sqlite_file, sqlite_writer, stores

A, B, C = StreamId("a"), StreamId("b"), StreamId("c")


def write(stream: str, expected: int = ANY, n: int = 1) -> list[StreamWrite]:
    return [StreamWrite(StreamId(stream), expected, tuple(NewEvent("Happened", b"{}") for _ in range(n)))]


@pytest.fixture
def path(tmp_path: Path) -> str:
    sqlite_file.create(tmp_path / "events.db")
    return str(tmp_path / "events.db")


@asynccontextmanager
async def opened(path: str, spec: str = "sqlite", pool: PoolSettings | None = None) -> AsyncIterator[Store]:
    store = await stores.make(spec).connect(Address(spec, schema=path), pool or PoolSettings())
    try:
        yield store
    finally:
        await store.close()


@contextmanager
def locked(path: str) -> Iterator[None]:
    """Somebody else writes, until the end of the block."""
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        other.execute("ROLLBACK")
        other.close()


def held_back(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """No transaction begins before the event is set."""
    answers, real = threading.Event(), sqlite_writer._File.commit
    monkeypatch.setattr(sqlite_writer._File, "commit", lambda *a: answers.wait(60) and real(*a))
    return answers


@pytest.fixture
def groups(monkeypatch: pytest.MonkeyPatch) -> Groups:
    return Groups(monkeypatch)


class Groups:
    """How many parts each transaction of this test had, and a way to wait until one is under way."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sizes: list[int] = []
        self._began, real = threading.Event(), sqlite_writer._File.commit

        def commit(file: Any, parts: Any, since_ns: int) -> Any:
            self.sizes.append(len(parts))
            self._began.set()
            return real(file, parts, since_ns)

        monkeypatch.setattr(sqlite_writer._File, "commit", commit)

    async def begin(self, first: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """`first` as a task that the writer has taken up by itself: whatever comes now waits for the next group."""
        task = asyncio.ensure_future(first)
        assert await asyncio.to_thread(self._began.wait, 10)
        return task


async def queued(*appends: Coroutine[Any, Any, Any]) -> list[asyncio.Task[Any]]:
    """As tasks that have come as far as the queue."""
    tasks = [asyncio.ensure_future(append) for append in appends]
    await asyncio.sleep(0)
    return tasks


# Groups


async def test_appends_that_wait_share_a_commit_and_are_answered_each_by_itself(path: str, groups: Groups) -> None:
    async with opened(path) as store:
        with locked(path):
            first = await groups.begin(store.append(write(A, ABSENT)))
            tasks = await queued(
                store.append(write(A, 1, 2)),  # on the version of the append before it
                store.append(write(A, 1)),  # stale by then
                store.append([StreamWrite(A, 1), *write(B, ABSENT)]),  # a stale read-only participant
                store.append([StreamWrite(A, 3), *write(B, ABSENT)]),
                store.append_many([write(C, ABSENT), write(C, ABSENT), write(C, 1)]),
                store.save_checkpoint("reader", 2**70),
                store.save_snapshot(Snapshot("k", {A: 1}, b"s")),
            )
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert (await first).versions == (1,)
        assert groups.sizes == [1, 9]
        assert results[0] == AppendResult((3,), 3)
        assert str(results[1]) == str(VersionConflict(A, 1, 3))
        assert str(results[2]) == str(VersionConflict(A, 1, 3))
        assert results[3] == AppendResult((3, 1), 4)
        assert [getattr(r, "versions", str(r)) for r in results[4]] == [(1,), str(VersionConflict(C, 0, 1)), (2,)]
        assert (results[5], results[6]) == (None, True)
        assert await store.load_checkpoint("reader") == 2**70
        assert [e.position for e in await store.read_all()] == [1, 2, 3, 4, 5, 6]


async def test_what_is_queued_in_one_turn_is_one_group(path: str, groups: Groups) -> None:
    async with opened(path) as store:
        for _ in range(10):
            await asyncio.gather(*[store.append(write(A)) for _ in range(50)])
        assert groups.sizes == [50] * 10


async def test_a_bad_event_in_a_group_fails_alone(path: str, groups: Groups) -> None:
    bad: list[Any] = [NewEvent("\ud800", b"{}"), NewEvent("T", "text"), NewEvent("T", None), NewEvent(None, b"{}")]  # type: ignore[arg-type]
    async with opened(path) as store:
        with locked(path):
            await groups.begin(store.append(write(A)))
            good = await queued(*[store.append(write(A)) for _ in range(5)])
            rejected = await queued(*[store.append([*write(A), StreamWrite(B, ANY, (event,))]) for event in bad])
            rejected += await queued(store.append(write("nul\x00")), store.append(write("\ud800")))
            good += await queued(*[store.append(write(A)) for _ in range(5)])
        assert [r.versions for r in await asyncio.gather(*good)] == [(n,) for n in range(2, 12)]
        for result in await asyncio.gather(*rejected, return_exceptions=True):
            assert isinstance(result, EventRejected)
        assert groups.sizes == [1, 16]
        assert [s.version for s in await store.read_streams([A, B])] == [11, 0]
        assert (await store.last_position()) == 11


async def test_whoever_leaves_before_the_group_begins_takes_nothing_and_nobody_along(path: str, groups: Groups) -> None:
    async with opened(path) as store:
        with locked(path):
            taken = await groups.begin(store.append([*write(A), *write(B)]))
            waiting = await queued(
                *[store.append([*write("x"), *write("y")]) for _ in range(3)], store.append(write(C))
            )
            for task in (taken, *waiting[:3]):
                task.cancel()
        await waiting[3]
        assert groups.sizes == [1, 1]
        found = await store.read_streams([A, B, StreamId("x"), StreamId("y"), C])
        assert [s.version for s in found] == [1, 1, 0, 0, 1]


@pytest.mark.parametrize(("spec", "sizes"), [("sqlite:group=1", [1] * 6), ("sqlite:group=3", [1, 3, 2])])
async def test_a_group_has_a_size_at_most(spec: str, sizes: list[int], path: str, groups: Groups) -> None:
    async with opened(path, spec) as store:
        with locked(path):
            first = await groups.begin(store.append(write(A)))
            tasks = await queued(*[store.append(write(A)) for _ in range(5)])
        await asyncio.gather(first, *tasks)
        assert groups.sizes == sizes


async def test_the_queue_has_an_end(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = held_back(monkeypatch)
    writer = sqlite_writer.Writer(path, "full", 500, PoolSettings(acquire_timeout_s=0.05), queue_max=2)
    await writer.open()
    let_in = await queued(*[writer.do([write(A)]) for _ in range(2)])
    with pytest.raises(StoreUnreachable, match="no place in the queue became free within 0.05 s"):
        await writer.do([write(A)])
    answers.set()
    await asyncio.gather(*let_in)
    await writer.do([write(A)])
    await writer.close()


async def test_the_moment_an_operation_was_taken_up_is_noted(path: str) -> None:
    async with opened(path) as store:
        writing, reading = Attempt(), Attempt()
        current_attempt.set(writing)
        await store.append(write(A))
        current_attempt.set(reading)
        await store.read_stream(A)
        assert 0 < writing.acquired_ns < reading.acquired_ns


# Other writers, and the end


async def test_a_file_that_somebody_else_writes_is_said_to_be_locked_and_nothing_is_written(path: str) -> None:
    async with opened(path, pool=PoolSettings(acquire_timeout_s=0.05)) as store:
        with locked(path), pytest.raises(StoreError, match="locked by another writer") as error:
            await store.append(write(A))
        assert type(error.value) is StoreError
        assert (await store.append(write(A, ABSENT))).versions == (1,)


async def test_closing_writes_what_is_queued_and_lets_nobody_in(path: str, groups: Groups) -> None:
    async with opened(path, "sqlite:group=10") as store:
        with locked(path):
            first = await groups.begin(store.append(write(A)))
            tasks = await queued(*[store.append(write(A)) for _ in range(45)])
            closing = (await queued(store.close()))[0]
            with pytest.raises(StoreError, match="closed"):
                await store.append(write(A))
        await closing
        results = await asyncio.gather(first, *tasks)
        assert [r.versions for r in results] == [(n,) for n in range(1, 47)]
        for late in (store.append(write(A)), store.read_stream(A), store.save_checkpoint("r", 1)):
            with pytest.raises(StoreError, match="closed"):
                await late
    async with opened(path) as store:
        assert (await store.read_stream(A)).version == 46


async def test_a_commit_that_fails_leaves_the_outcome_unknown_and_the_store_working(path: str) -> None:
    """The limit on the size of files makes the disk full, for this process."""
    async with opened(path) as store:
        await store.append(write(A))
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (os.stat(path + "-wal").st_size + 20_000, hard))  # noqa: PTH116
        try:
            big = [StreamWrite(A, ANY, (NewEvent("T", b"x" * 100_000),))]
            with pytest.raises(OutcomeUnknown, match="could not say"):
                await store.append(big)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert (await store.append(write(A, 1))).versions == (2,)


async def test_a_disk_that_does_not_answer_leaves_the_outcome_unknown(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = held_back(monkeypatch)
    async with opened(path, pool=PoolSettings(acquire_timeout_s=0.05, command_timeout_s=0.05)) as store:
        for _ in range(2):
            with pytest.raises(OutcomeUnknown, match=r"no answer to an append within 0.1 s"):
                await store.append(write(A))
        answers.set()


async def test_a_file_that_is_not_there_is_unreachable(tmp_path: Path) -> None:
    with pytest.raises(StoreUnreachable, match=r"nothing.db cannot be opened|not a file of this store"):
        async with opened(str(tmp_path / "nothing.db")):
            pass
    (tmp_path / "text.db").write_text("this is no database" * 100)
    with pytest.raises(StoreUnreachable, match=r"text.db is not a file of this store"):
        async with opened(str(tmp_path / "text.db")):
            pass
    assert not (tmp_path / "nothing.db").exists()


async def test_a_file_that_stays_locked_is_unreachable(path: str) -> None:
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("PRAGMA locking_mode = EXCLUSIVE")
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(StoreUnreachable, match=r"events.db is locked"):
        async with opened(path, pool=PoolSettings(acquire_timeout_s=0.05)):
            pass
    other.close()
    async with opened(path) as store:
        assert (await store.append(write(A, ABSENT))).versions == (1,)


# Other processes

CHILD = """
import asyncio, sys
from uuid import uuid4
from eventcore_lab.events import ANY, NewEvent, StreamId, StreamWrite
from eventcore_lab.stores import Address, PoolSettings, stores

async def caller(store, appends):
    for _ in range(appends):
        pair = str(uuid4())
        await store.append([StreamWrite(StreamId(s), ANY, (NewEvent(pair, b"x" * 300),)) for s in ("left", "right")])
        print(pair, flush=True)

async def main(path, appends):
    store = await stores.make("sqlite:full").connect(Address("sqlite", schema=path), PoolSettings())
    await asyncio.gather(*(caller(store, appends) for _ in range(10)))
    await store.close()

asyncio.run(main(sys.argv[1], int(sys.argv[2])))
"""

LEADER = """
import asyncio, sys
from eventcore_lab.stores import Address, PoolSettings, stores

async def main(path):
    store = await stores.make("sqlite").connect(Address("sqlite", schema=path), PoolSettings())
    print(await store.try_lead("projector") is not None, flush=True)
    sys.stdin.read()

asyncio.run(main(sys.argv[1]))
"""


def child(code: str, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


async def pairs_of(path: str) -> list[str]:
    """The pairs in the file, after a look whether it is whole."""
    async with opened(path) as store:
        left, right = await store.read_streams([StreamId("left"), StreamId("right")])
        top = await store.last_position()
    for part in (left, right):
        assert [e.version for e in part.events] == list(range(1, part.version + 1))
    assert [e.type for e in left.events] == [e.type for e in right.events]
    assert top == left.version + right.version
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()
    return [e.type for e in left.events]


async def test_what_was_acknowledged_survives_every_kill(path: str) -> None:
    seed = random.randrange(2**32)
    print("seed", seed)
    rng, acknowledged = random.Random(seed), set[str]()
    for _ in range(10):
        process = child(CHILD, path, "1000000")
        with process:
            assert process.stdout is not None
            for _ in range(rng.randrange(1, 400)):
                acknowledged.add(process.stdout.readline().strip())
            process.kill()
            acknowledged |= {line.strip() for line in process.stdout if line.endswith("\n")}
        assert process.returncode == -9
        stored = await pairs_of(path)
        assert acknowledged <= set(stored), f"seed {seed}"
        assert len(stored) == len(set(stored)), f"seed {seed}"


async def test_two_processes_write_one_file(path: str) -> None:
    both = [child(CHILD, path, "20") for _ in range(2)]
    acknowledged = [process.communicate(timeout=60)[0].split() for process in both]
    assert [len(of_one) for of_one in acknowledged] == [200, 200]
    assert sorted(await pairs_of(path)) == sorted(acknowledged[0] + acknowledged[1])


async def test_a_lease_ends_with_its_process(path: str) -> None:
    async with opened(path) as store:
        process = child(LEADER, path)
        with process:
            assert process.stdout is not None
            assert process.stdout.readline() == "True\n"
            assert await store.try_lead("projector") is None
            process.kill()
        lease = await store.try_lead("projector")
        assert lease is not None
        await lease.release()
        await lease.release()


async def test_a_lease_ends_with_its_store(path: str) -> None:
    async with opened(path) as store:
        async with opened(path) as leader:
            assert await leader.try_lead("projector") is not None
            assert await store.try_lead("projector") is None
        assert await store.try_lead("projector") is not None


# Texts


async def test_patterns_mean_what_they_mean_everywhere(path: str) -> None:
    seed = random.randrange(2**32)
    print("seed", seed)
    rng = random.Random(seed)
    alphabet, pieces = "aA1-_.^%\\!é", ("*", "?", "[a1]", "[!a-z]", "[^A]", "[0-9^]", "[%-]", "[\\\\]", *"aA1-_.^%\\!é")
    names = {"".join(rng.choices(alphabet, k=rng.randrange(1, 5))) for _ in range(200)}
    filters = [Filter(glob="".join(rng.choices(pieces, k=rng.randrange(1, 4)))) for _ in range(100)]
    filters += [Filter(prefix="".join(rng.choices(alphabet, k=rng.randrange(1, 3)))) for _ in range(50)]
    async with opened(path) as store:
        await store.append_many([write(name) for name in sorted(names)])
        for where in filters:
            found = [e.stream for e in await store.read_all(0, 1000, where)]
            assert found == [name for name in sorted(names) if where.matches(name, "Happened")], f"seed {seed}: {where}"


async def test_a_nul_in_a_type_is_kept_and_in_a_pattern_refused(path: str) -> None:
    kinds = ("nul\x00a", "nul\x00b", "nul")
    async with opened(path) as store:
        await store.append([StreamWrite(A, ABSENT, tuple(NewEvent(kind, b"{}") for kind in kinds))])
        assert [e.type for e in await store.read_all()] == list(kinds)
        for kind in kinds:
            assert [e.type for e in await store.read_all(where=Filter(types=(kind,)))] == [kind]
        assert await store.read_all(where=Filter(prefix="a\x00")) == []
        with pytest.raises(StoreError, match="a pattern has no NUL"):
            await store.read_all(where=Filter(glob="*\x00"))


# The driver


async def test_durability_is_what_was_set() -> None:
    for spec, said in (("sqlite", "durable (synchronous=FULL, WAL)"), ("sqlite:normal", "flushed later (synchronous=")):
        async with stores.make(spec).provision() as place:
            assert place.durability.startswith((said, "not durable (the data is on "))
            assert re.match(r"SQLite \d+\.\d+", place.server)
            assert not any(value.startswith("/") for value in place.facts.values())
        assert not Path(place.address.schema).parent.exists()
    assert sqlite.durability({"synchronous": "FULL", "journal_mode": "wal"}, "ext4").startswith("durable")
    assert sqlite.durability({"synchronous": "FULL", "journal_mode": "wal"}, "tmpfs").startswith("not durable")


async def test_the_writer_flushes_as_its_variant_says() -> None:
    for spec, wanted in (("sqlite", 2), ("sqlite:full", 2), ("sqlite:normal", 1)):
        async with open_store(spec) as store:
            assert isinstance(store, sqlite.Sqlite)
            connection = store._writer._thread.file._connection
            assert connection is not None
            assert connection.execute("PRAGMA synchronous").fetchone() == (wanted,)
            assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


@pytest.mark.parametrize(
    ("spec", "said"), [("sqlite:ful", "did you mean full"), ("sqlite:group=0", "group must be at least 1")]
)
def test_a_store_that_cannot_be_is_refused_when_it_is_named(spec: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        stores.make(spec)
