"""What a trial of a fault writes down: numbers, and for whom and at which setting; what they mean is the judging half's."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
from msgspec import Struct

from eventcore_lab.events import NewEvent, StoreError, StreamId, StreamWrite
from eventcore_lab.stores.protocol import Place, PoolSettings, Store, stores

CHAPTER, OURS = "the chapter's", "ours"
POOL = PoolSettings.sized(10)
A, B = StreamId("a"), StreamId("b")


class Fact(Struct, frozen=True):
    """`value` of one arm at one setting: a count out of `of`, or where `of` is 0 a measure by itself."""

    fault: str
    arm: str
    at: float
    value: float
    of: float = 0.0


class Scale(Struct, frozen=True):
    """How much is done: `size` 1 is the default, less is quicker and rougher. Every random choice follows from `seed`."""

    size: float = 1.0
    seed: int = 1

    def times(self, n: int, least: int = 1) -> int:
        """`n` at size 1, at least `least`."""
        return max(round(n * self.size), least)


class Grounds(Struct, frozen=True):
    """A store, and the place it is in."""

    place: Place
    store: Store

    @asynccontextmanager
    async def hand(self) -> AsyncIterator[Any]:
        """A connection of nobody's pool, in the store's schema."""
        settings = {"search_path": self.place.address.schema}
        connection = await asyncpg.connect(self.place.address.dsn, server_settings=settings)
        try:
            yield connection
        finally:
            await connection.close()


@asynccontextmanager
async def grounds(spec: str, pool: PoolSettings = POOL) -> AsyncIterator[Grounds]:
    """A new, empty store, gone at the end."""
    driver = stores.make(spec)
    async with driver.provision() as place:
        store = await driver.connect(place.address, pool)
        try:
            yield Grounds(place, store)
        finally:
            await store.close()


def write(stream: StreamId, expected: int = -1, events: int = 1) -> StreamWrite:
    """`events` events for a stream, ANY by default."""
    return StreamWrite(stream, expected, tuple([NewEvent("Happened", b'{"n": 1}') for _ in range(events)]))


async def outcome(store: Store, writes: Sequence[StreamWrite]) -> StoreError | None:
    """What was wrong with an append, if anything."""
    try:
        await store.append(writes)
    except StoreError as error:
        return error
    return None
