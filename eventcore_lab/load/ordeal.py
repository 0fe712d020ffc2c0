"""An ordeal for a store: a short, mean, seeded load that touches every promise, and the evidence for the checkers.

    await ordeal_of(stores.make("postgres"), folder, seed=1)
    findings = check(folder)                      # lab.checkers

Many tasks contend for few streams over two connections: appends that expect a version and appends that do not, batches,
transfers over two streams, decisions that hang on a stream they only check, several appends at once, answers that are
lost; reads beside them, one reader that follows all the time and one that is stopped and started again. It takes a
second or two and is no measurement.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from random import Random
from typing import Any

from eventcore_lab.clock import now_ns, sleep_s
from eventcore_lab.events import (
    ANY,
    AppendResult,
    NewEvent,
    OutcomeUnknown,
    StoreError,
    StreamId,
    StreamWrite,
)
from eventcore_lab.load.drive import InSystem
from eventcore_lab.load.evidence import write_rows
from eventcore_lab.load.journal import Journal, outcome_of, prefix, read_back
from eventcore_lab.load.recorder import Recorder
from eventcore_lab.schema import IN_SYSTEM, Attempt, Outcome, Phase, current_attempt, packed
from eventcore_lab.stores.protocol import Driver, PoolSettings, Store
from eventcore_lab.stores.wrapper import Wrapper

TIMEOUT_S = 120.0
POOL = PoolSettings.sized(6)
HOT = [StreamId(f"hot-{n}") for n in range(3)]
ACCOUNTS = [StreamId(f"account-{n}") for n in range(4)]
POLICIES = [StreamId(f"policy-{n}") for n in range(2)]


class Deaf(Wrapper):
    """The network between: every so many appends get no answer, half of them did happen."""

    def __init__(self, inner: Store, every: int) -> None:
        super().__init__(inner)
        self._every, self._count = every, 0

    async def append(self, writes: Sequence[StreamWrite]) -> AppendResult:
        self._count += 1
        turn = self._count % (2 * self._every)
        if turn == self._every:
            raise OutcomeUnknown("the request was lost")
        result = await self.inner.append(writes)
        if turn == 0:
            raise OutcomeUnknown("the answer was lost")
        return result


class _Caller:
    """One task of the ordeal: what it does next is its own chance's choice."""

    def __init__(self, store: Store, seed: str) -> None:
        self._store, self._chance = store, Random(seed)
        self._acts: list[Callable[[], Awaitable[None]]] = [
            self._add,
            self._add_batch,
            self._add_expecting,
            self._add_expecting,
            self._transfer,
            self._transfer,
            self._obey,
            self._obey,
            self._legislate,
            self._add_many,
            self._read,
            self._audit,
        ]

    async def act(self) -> None:
        await self._chance.choice(self._acts)()

    async def _hesitate(self) -> None:
        """Time for others between a look and an append, whatever the store."""
        for _ in range(self._chance.randrange(4)):
            await sleep_s(0)

    def _happened(self, n: int = 1) -> tuple[NewEvent, ...]:
        return tuple([NewEvent("Happened", b'{"n": %d}' % self._chance.randrange(1000)) for _ in range(n)])

    async def _add(self) -> None:
        await self._store.append([StreamWrite(self._chance.choice(HOT), ANY, self._happened())])

    async def _add_batch(self) -> None:
        await self._store.append([StreamWrite(self._chance.choice(HOT), ANY, self._happened(4))])

    async def _add_expecting(self) -> None:
        stream = self._chance.choice(HOT)
        version = (await self._store.read_stream(stream)).version
        await self._hesitate()
        await self._store.append([StreamWrite(stream, version, self._happened(self._chance.randrange(1, 3)))])

    async def _transfer(self) -> None:
        payer, payee = await self._store.read_streams(self._chance.sample(ACCOUNTS, 2))
        await self._hesitate()
        sum_moved = self._chance.randrange(1, 100)
        paid = NewEvent("Paid", b'{"amount": %d}' % -sum_moved)
        received = NewEvent("Received", b'{"amount": %d}' % sum_moved)
        await self._store.append(
            [StreamWrite(payer.stream, payer.version, (paid,)), StreamWrite(payee.stream, payee.version, (received,))]
        )

    async def _obey(self) -> None:
        """Write what only holds while a policy stays as it is."""
        policy = self._chance.choice(POLICIES)
        version = (await self._store.read_stream(policy)).version
        await self._hesitate()
        written = StreamWrite(self._chance.choice(HOT), ANY, self._happened())
        await self._store.append([StreamWrite(policy, version), written])

    async def _legislate(self) -> None:
        await self._store.append([StreamWrite(self._chance.choice(POLICIES), ANY, self._happened())])

    async def _add_many(self) -> None:
        """Two of these expect the same, so that one of them must be refused."""
        one, other = self._chance.sample(HOT, 2)
        version = (await self._store.read_stream(one)).version
        requests = [(one, version), (one, version), (other, ANY)]
        results = await self._store.append_many(
            [[StreamWrite(stream, expected, self._happened())] for stream, expected in requests]
        )
        for result in results:
            if isinstance(result, StoreError):
                raise result

    async def _read(self) -> None:
        await self._store.read_stream(self._chance.choice(HOT))

    async def _audit(self) -> None:
        await self._store.read_streams(ACCOUNTS)


class _Follower:
    """A reader that notes what it is given; every `lives_pages` pages it forgets where it was and asks its checkpoint."""

    def __init__(self, store: Store, reader: int, page: int, lives_pages: int, start_ns: int) -> None:
        self._store, self._reader, self._page, self._lives_pages = store, reader, page, lives_pages
        self._start_ns = start_ns
        self._name = f"ordeal-{reader}"
        self.followed: list[tuple[Any, ...]] = []
        self.checkpointed: list[tuple[Any, ...]] = []

    async def follow(self, is_over: asyncio.Event) -> None:
        life = 0
        while not await self._live(life, is_over):
            life += 1

    async def _live(self, life: int, is_over: asyncio.Event) -> bool:
        """Whether it came to the end, and not only to that of its life."""
        after, given, pages = await self._store.load_checkpoint(self._name) or 0, 0, 0
        while not self._lives_pages or pages < self._lives_pages:
            was_over = is_over.is_set()
            events = await self._store.read_all(after, self._page)
            if not events and was_over:
                return True
            for event in events:
                given += 1
                seen_ns = now_ns() - self._start_ns
                self.followed.append((self._reader, life, given, event.position, event.id.bytes, seen_ns))
            if events:
                after, pages = events[-1].position, pages + 1
                if pages % 3 == 1:
                    await self._store.save_checkpoint(self._name, after)
                    self.checkpointed.append((self._reader, life, given + 1, after))
            await sleep_s(0 if len(events) == self._page else 0.001)
        return False


async def ordeal_of(driver: Driver, folder: Path, seed: int = 1) -> None:
    """`ordeal` on a new place of `driver`; the evidence is in `folder`, which must be there, afterwards."""
    async with driver.provision() as place, AsyncExitStack() as stack:
        store = await driver.connect(place.address, POOL)
        stack.push_async_callback(store.close)
        other = store
        if driver.is_shared:
            other = await driver.connect(place.address, POOL)
            stack.push_async_callback(other.close)
        await ordeal(store, other, folder, seed)


async def ordeal(
    store: Store, other: Store, folder: Path, seed: int = 1, callers: int = 12, operations: int = 720
) -> None:
    """Put a new, empty store through it; the evidence is in `folder` afterwards, in the files of schema.JOURNAL.

    `other` is a second connection to the same store, or `store` again where there can be none. Followers read by it.
    """
    async with asyncio.timeout(TIMEOUT_S):
        await _Ordeal(store, other, folder, seed, callers, operations).whole()


class _Ordeal:
    def __init__(self, store: Store, other: Store, folder: Path, seed: int, callers: int, operations: int) -> None:
        self._other, self._folder, self._seed = other, folder, seed
        self._callers, self._operations = callers, operations // callers * callers
        self._start_ns = now_ns()
        self._journals = [Journal(Deaf(store, 19)), Journal(Deaf(other, 23))]
        self._followers = [
            _Follower(other, reader, page, lives_pages, self._start_ns)
            for reader, page, lives_pages in ((0, 7, 0), (1, 11, 4))
        ]
        self._in_system = InSystem()
        self._recorder = Recorder(folder / "samples-0.i64", self._operations)
        self._prefixes: list[tuple[int, int, int, int]] = []

    async def whole(self) -> None:
        """The table of contents."""
        is_over = asyncio.Event()
        async with asyncio.TaskGroup() as following:
            for follower in self._followers:
                following.create_task(follower.follow(is_over))
            try:
                async with asyncio.TaskGroup() as calling:
                    for n in range(self._callers):
                        calling.create_task(self._call(n))
            finally:
                is_over.set()
        self._recorder.close()
        self._prefixes.append(await prefix(self._other, start_ns=self._start_ns))
        await self._write()

    async def _call(self, n: int) -> None:
        attempt = Attempt()
        current_attempt.set(attempt)
        caller = _Caller(self._journals[n % 2], f"{self._seed}-{n}")
        each = self._operations // self._callers
        for k in range(n * each, (n + 1) * each):
            attempt.reset(k)
            began_ns = now_ns() - self._start_ns
            row = self._recorder.begin(k, began_ns, began_ns, began_ns, Phase.STEADY)
            self._in_system.enter(began_ns)
            outcome = Outcome.OK
            try:
                await caller.act()
            except StoreError as error:
                outcome = outcome_of(error)
            word = packed(outcome, Phase.STEADY, 1, 0)
            ended_ns = now_ns() - self._start_ns
            self._in_system.leave(ended_ns)
            self._recorder.end(row, k, began_ns, began_ns, began_ns, began_ns, ended_ns, 0, word)
            if self._recorder.begun == self._operations // 2:
                self._prefixes.append(await prefix(self._other, start_ns=self._start_ns))
            await sleep_s(0)

    async def _write(self) -> None:
        await read_back(self._other, self._folder, prefixes=self._prefixes, start_ns=self._start_ns)
        for worker, journal in enumerate(self._journals):
            counts = {"offered": self._operations, IN_SYSTEM: self._in_system.area_ns} if not worker else {}
            journal.write(self._folder, worker, self._start_ns, counts)
        for table in ("followed", "checkpointed"):
            rows = [row for follower in self._followers for row in getattr(follower, table)]
            write_rows(self._folder / f"{table}-0.parquet", table, rows)
