"""The stores over the package `eventsourcing`, beyond the conformance suite: what is refused, what is unknown, and that no
thread or connection is lost on the way."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from eventcore_lab.clock import sleep_s
from eventcore_lab.events import (
    ABSENT,
    ANY,
    NewEvent,
    OutcomeUnknown,
    StoredEvent,
    StoreError,
    StoreUnreachable,
    StreamId,
    StreamSlice,
    StreamWrite,
)
from eventcore_lab.schema import Attempt, current_attempt
from eventcore_lab.spec import UsageError
from eventcore_lab.stores import PoolSettings, Store, open_store, stores
from eventcore_lab.stores.conformance import CLAIMS
from eventcore_lab.stores.protocol import each_from
from eventcore_lab.stores.retry import append_once
from eventcore_lab.stores.threads import Threads
from eventcore_lab.stores.wrapper import Wrapper

S = StreamId("s")


def write(expected: int = ANY, n: int = 1, stream: StreamId = S) -> list[StreamWrite]:
    return [StreamWrite(stream, expected, tuple([NewEvent("T", b"{}") for _ in range(n)]))]


# Threads


async def test_as_many_run_as_there_are_threads_and_the_rest_wait_in_their_order() -> None:
    threads, gate, order = Threads(2, 5, 5), threading.Event(), []
    running = [asyncio.ensure_future(threads.run(gate.wait, 5)) for _ in range(2)]
    waiting = [asyncio.ensure_future(threads.run(order.append, n)) for n in range(20)]
    for _ in range(5):
        await sleep_s(0)
    assert order == []
    gate.set()
    await asyncio.gather(*running, *waiting)
    assert sorted(order) == list(range(20))
    await threads.close()


async def test_who_gets_no_thread_in_time_is_told_that_nothing_was_done() -> None:
    threads, gate = Threads(1, 0.01, 5), threading.Event()
    running = asyncio.ensure_future(threads.run(gate.wait, 5))
    await sleep_s(0)
    with pytest.raises(StoreUnreachable, match="no connection became free within 0.01 s"):
        await threads.run(len, "")
    gate.set()
    await running
    assert await threads.run(len, "ab") == 2
    await threads.close()


async def test_a_call_that_nobody_waits_for_any_more_keeps_its_thread_until_it_ends() -> None:
    threads, gate = Threads(1, 0.01, 0.01), threading.Event()
    with pytest.raises(TimeoutError):
        await threads.run(gate.wait, 5)
    with pytest.raises(StoreUnreachable):
        await threads.run(len, "")
    gate.set()
    await threads.close()


async def test_the_moment_a_thread_was_had_is_noted() -> None:
    threads, attempt = Threads(1, 1, 1), Attempt()
    token = current_attempt.set(attempt)
    try:
        await threads.run(len, "")
    finally:
        current_attempt.reset(token)
        await threads.close()
    assert attempt.acquired_ns > 0


# The stores


@pytest.fixture(params=["popo", "sqlite", "postgres", "functions"])
async def spec(request: pytest.FixtureRequest) -> str:
    pytest.importorskip("eventsourcing", reason="needs the extra eventsourcing")
    return f"eventsourcing:{request.param}"


class Placed(Wrapper):
    """Fills in the one thing that select_events does not tell, from a reading of everything."""

    async def read_stream(self, stream: StreamId, from_version: int = 1, limit: int | None = None) -> StreamSlice:
        found = await self.inner.read_stream(stream, from_version, limit)
        return StreamSlice(found.stream, found.version, tuple(await self._placed(found.events)))

    async def read_streams(
        self, streams: Sequence[StreamId], from_versions: Sequence[int] | None = None
    ) -> list[StreamSlice]:
        return [await self.read_stream(*each) for each in each_from(streams, from_versions)]

    async def _placed(self, events: Sequence[StoredEvent]) -> list[StoredEvent]:
        there = {(e.stream, e.version): e for e in await self.inner.read_all(0, 100_000)}
        for e in events:
            assert (e.position, e.id) == (0, there[e.stream, e.version].id)
        return [there[e.stream, e.version] for e in events]


@pytest.mark.parametrize(
    "name",
    [
        "events come back as they were written",
        "versions and positions of concurrent appends agree",
        "an append is found by its event ids",
    ],
)
async def test_only_the_position_is_missing_from_what_is_read_of_a_stream(spec: str, name: str) -> None:
    async with open_store(spec, PoolSettings.sized(4)) as store:
        await CLAIMS[name].check(Placed(store), Placed(store))


async def test_what_only_expects_a_version_is_refused_and_nothing_written(spec: str) -> None:
    async with open_store(spec) as store:
        with pytest.raises(StoreError, match="without writing to it"):
            await store.append([*write(ABSENT), StreamWrite(StreamId("t"), 0)])
        assert (await store.read_stream(S)).version == 0


async def test_a_checkpoint_goes_forward_and_never_back(spec: str) -> None:
    async with open_store(spec) as store:
        for position in (3, 5, 5):
            await store.save_checkpoint("r", position)
        with pytest.raises(StoreError, match="never goes back: 'r' is at 5"):
            await store.save_checkpoint("r", 4)
        assert (await store.load_checkpoint("r"), await store.load_checkpoint("q")) == (5, None)


async def test_a_recorder_that_meets_its_own_first_attempt_is_no_conflict(
    spec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_store(spec) as store:
        await store.append(write(ABSENT, 3))
        for expected, stream in ((3, S), (ANY, S), (ABSENT, StreamId("t"))):
            for later in (0, 4):
                await _meets_itself(store, monkeypatch, write(expected, 2, StreamId(f"{stream}{later}")), later)


async def _meets_itself(store: Store, monkeypatch: Any, writes: list[StreamWrite], later: int) -> None:
    """The first insert is committed but its answer lost; `later` more events come; then the recorder tries again."""
    recorder = store._application  # type: ignore[attr-defined]
    stream, expected = writes[0].stream, writes[0].expected
    if expected > 0:
        await store.append(write(ABSENT, expected, stream))
    insert = type(recorder).insert_events

    def twice(events: Sequence[Any]) -> Any:
        insert(recorder, events)
        last = max(e.originator_version for e in events)
        more = [type(events[0])(stream, last + n, "T", events[0].state) for n in range(1, later + 1)]
        if more:
            insert(recorder, more)
        return insert(recorder, events)

    monkeypatch.setattr(recorder, "insert_events", twice)
    before = (await store.read_stream(stream)).version
    try:
        with pytest.raises(OutcomeUnknown, match="met its own events"):
            await store.append(writes)
    finally:
        monkeypatch.delattr(recorder, "insert_events")
    result = await append_once(_Losing(store), writes)
    assert result.versions == (before + 2,)
    assert (await store.read_stream(stream)).version == before + 2 + later


class _Losing(Wrapper):
    """Its first append has no answer; it was made already."""

    is_first = True

    async def append(self, writes: Sequence[StreamWrite]) -> Any:
        if self.is_first:
            self.is_first = False
            raise OutcomeUnknown("lost")
        return await self.inner.append(writes)


async def test_many_writers_of_one_stream_over_few_connections_all_come_through(spec: str) -> None:
    async with open_store(spec, PoolSettings.sized(2)) as store:
        results = await asyncio.gather(*(store.append(write(ANY)) for _ in range(30)))
        assert sorted(r.versions for r in results) == [(n,) for n in range(1, 31)]


@pytest.mark.parametrize("variant", ["postgres", "functions"])
async def test_an_append_larger_than_any_socket_buffer_is_sent_whole(variant: str) -> None:
    pytest.importorskip("eventsourcing", reason="needs the extra eventsourcing")
    async with open_store(f"eventsourcing:{variant}", PoolSettings.sized(1)) as store:
        events = (NewEvent("T", b"x" * 8_000_000),)
        assert (await store.append([StreamWrite(S, ABSENT, events)])).versions == (1,)
        assert (await store.read_stream(S)).events[0].data == events[0].data


async def test_no_thread_and_no_file_is_left(spec: str) -> None:
    driver = stores.make(spec)
    async with driver.provision() as place:
        store = await driver.connect(place.address, PoolSettings.sized(3))
        await store.append(write())
        await store.close()
        path = Path(place.address.schema or "nowhere")
    left = [t.name for t in threading.enumerate() if t.name.startswith("eventcore_lab-store") and t.is_alive()]
    await asyncio.to_thread(lambda: [t.join(5) for t in threading.enumerate() if t.name in left])
    assert not [t for t in threading.enumerate() if t.name.startswith("eventcore_lab-store") and t.is_alive()]
    assert not await asyncio.to_thread(path.exists)


def test_what_a_place_is_is_said_like_that_of_ours() -> None:
    pytest.importorskip("eventsourcing", reason="needs the extra eventsourcing")

    async def place(spec: str) -> Any:
        async with stores.make(spec).provision() as found:
            return found

    theirs = asyncio.run(place("eventsourcing:functions,synchronous_commit=off"))
    ours = asyncio.run(place("postgres:synchronous_commit=off"))
    assert (theirs.server, theirs.durability) == (ours.server, ours.durability)
    assert theirs.facts.items() > ours.facts.items() and theirs.facts["eventsourcing.version"]
    assert asyncio.run(place("eventsourcing:sqlite")).server.startswith("SQLite")


@pytest.mark.parametrize(
    ("spec", "part"),
    [
        ("eventsourcing:popos", "did you mean popo?"),
        ("eventsourcing:popo,server=system", "is on no server"),
        ("eventsourcing:sqlite,synchronous_commit=off", "is on no server"),
        ("eventsourcing:functions,server=sistem", "did you mean system?"),
        ("eventsourcing:server=env:NOT_SET", "not set or empty"),
        ("eventsourcing:synchronous_commit=maybe", "synchronous_commit"),
    ],
)
def test_a_mistake_is_said(spec: str, part: str) -> None:
    pytest.importorskip("eventsourcing", reason="needs the extra eventsourcing")
    with pytest.raises(UsageError) as raised:
        stores.make(spec)
    assert part in str(raised.value)


async def test_a_server_that_is_not_there_is_unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("eventsourcing", reason="needs the extra eventsourcing")
    monkeypatch.setenv("LAB_DSN", "postgresql://me:geheim@127.0.0.1:1/db")
    with pytest.raises(StoreUnreachable) as raised:
        async with open_store("eventsourcing:server=env:LAB_DSN"):
            pass
    assert "geheim" not in str(raised.value)
