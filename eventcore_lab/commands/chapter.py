"""The executors of the chapter this project began with, faults included: the "before" of experiments, never advice.

`ChapterCached`: all streams of a command are read from the store before the cache is asked, so that a hit saves only the
fold; an entry keeps a stream's events beside its state, and entries are counted, not events; entries move within the LRU
under what is called a read lock; a write throws the entries of its streams away, and who read before that write puts his
old ones back after it.

`ChapterParallel`: a lock per stream ever seen, kept for good; commands are put together by identical sets of streams, and
a group keeps all its locks until its last command is done; the permit is taken behind the locks, for each command, so
that a group holds streams while it waits to go on; results come in the order of a hash map of groups. Only this
process's commands are kept apart.

`ChapterBatching`: a queue without a bound; batches go when full or at the next tick of an interval that runs all the
time, so that a lone caller waits for a tick, and ticks missed while a batch was written come in a burst and cut the next
batches small. A batch is one append: one error is everybody's, of a stream's expectations only the first is looked at, so
that later commands on it are acknowledged although decided on what is no longer so, and streams that are only read are
not checked at all. What is pending when it is closed is dropped.

Ours, where the chapter shows no code: conflicts are tried again as `direct` does (`retries=0` leaves the chapter's text);
the state is folded stream by stream and kept with the events (the text keeps only these); a state folded otherwise is a
miss; what is "current" is of the version just read. An item of a batch is all that one command writes, not one event,
which would tear commands apart; it is told the versions it expected to make, for the chapter answers with nothing. The
order of a hash map is a seeded shuffle. Between two awaits nobody else runs here, so the lock around the lock map is left
out, and one lock stands for the cache's two. The batch worker, and so its interval, begins with the first item.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import AsyncExitStack
from contextvars import Context
from random import Random
from typing import Generic, TypeVar

from msgspec import Struct

from eventcore_lab.commands.command import Command, CommandRejected, Executed, Fold, State, declared
from eventcore_lab.commands.executor import (
    Direct,
    Executor,
    after_events,
    conflicted,
    read_on,
    values_of,
    writes_of,
)
from eventcore_lab.commands.memory import NOTHING, Memory, States, Wanted
from eventcore_lab.events import NewEvent, StoredEvent, StoreError, StreamId, StreamSlice, StreamWrite, VersionConflict
from eventcore_lab.spec import UsageError
from eventcore_lab.stores.protocol import Store

T = TypeVar("T")
R = TypeVar("R")


def _plain(inner: Executor, name: str) -> Direct:
    """`inner`, which must read and remember nothing of its own."""
    if not isinstance(inner, Direct) or inner.memory is not NOTHING:
        raise UsageError(f"{name} reads and remembers by itself, as the chapter has it; write {name}(direct)")
    return inner


async def _tried_again(core: Direct, attempt: Callable[[int], Awaitable[Executed]]) -> Executed:
    """`attempt(n)` for n = 1, 2 …, as often as `core` would after conflicts, and with its waits."""
    tries = 1
    while True:
        try:
            return await attempt(tries)
        except VersionConflict:
            is_last = tries > core.retry.retries_max
            conflicted(tries, is_last)
            if is_last:
                raise
            await core.retry.back_off(tries, core.rng)
            tries += 1


# --- State Management: OptimizedCommandExecutor -----------------------------------------------------------------------


class _CachedStreamData(Struct, frozen=True):
    events: tuple[StoredEvent, ...]
    fold: Fold
    state: State


class ChapterCached:
    """Reads, then asks a cache of `size` streams for what these events fold into."""

    def __init__(self, inner: Executor, size: int = 1000) -> None:
        self._core, self._size = _plain(inner, "chapter_cached"), size
        self._lock = asyncio.Lock()
        self._state_cache: OrderedDict[StreamId, _CachedStreamData] = OrderedDict()
        self._hits = self._misses = 0

    @property
    def core(self) -> Direct:
        return self._core

    async def execute(self, command: Command) -> Executed:
        return await _tried_again(self._core, lambda attempt: self._execute_with_caching(command, attempt))

    async def _execute_with_caching(self, command: Command, attempt: int) -> Executed:
        wanted = declared(command)
        slices = await self._core.store.read_streams(list(wanted))
        states = await self._get_cached_state(wanted, slices)
        if states is None:
            states = {
                part.stream: after_events(fold, State(0, fold.initial), part.events)
                for part, fold in zip(slices, wanted.values(), strict=True)
            }
            await self._cache_state(wanted, slices, states)
        decided = command.decide(values_of(states))
        writes = writes_of(command, states, decided)
        result = await self._core.store.append(writes)
        await self._invalidate_cache_for_streams([write.stream for write in writes if write.events])
        return Executed(tuple([event for _, event in decided]), result.versions, attempt, tuple(wanted))

    async def _get_cached_state(self, wanted: Wanted, slices: Sequence[StreamSlice]) -> States | None:
        """The states of all streams if all are in the cache at the version just read, else None."""
        states: dict[StreamId, State] = {}
        async with self._lock:  # for reading, in the chapter, although this moves entries
            for part in slices:
                cached = self._state_cache.get(part.stream)
                if cached is None:
                    break
                self._state_cache.move_to_end(part.stream)
                if cached.state.version != part.version or cached.fold is not wanted[part.stream]:
                    break
                states[part.stream] = cached.state
        if len(states) < len(slices):
            self._misses += len(slices)
            return None
        self._hits += len(slices)
        return states

    async def _cache_state(self, wanted: Wanted, slices: Sequence[StreamSlice], states: States) -> None:
        async with self._lock:
            for part in slices:
                stream = part.stream
                self._state_cache[stream] = _CachedStreamData(part.events, wanted[stream], states[stream])
                self._state_cache.move_to_end(stream)
                if len(self._state_cache) > self._size:
                    self._state_cache.popitem(last=False)

    async def _invalidate_cache_for_streams(self, streams: Collection[StreamId]) -> None:
        async with self._lock:
            for stream in streams:
                self._state_cache.pop(stream, None)

    def remembering(self, make: Callable[[Memory, Store], Memory]) -> ChapterCached:
        """UsageError: it does not ask a memory."""
        return ChapterCached(self._core.remembering(make), self._size)

    def counts(self) -> dict[str, int]:
        """Streams of commands that found all of theirs in the cache and of those that did not; entries in it now, and the
        events they keep."""
        return {
            "cache_hits": self._hits,
            "cache_misses": self._misses,
            "cache_entries": len(self._state_cache),
            "cache_events": sum([len(cached.events) for cached in self._state_cache.values()]),
        }

    async def close(self) -> None:
        await self._core.close()


# --- Parallel Command Execution: ParallelCommandExecutor --------------------------------------------------------------


class ChapterParallel:
    """At most `limit` commands at a time, in groups with the same streams. `order` shuffles the groups."""

    def __init__(self, inner: Executor, limit: int = 10, order: Random | None = None) -> None:
        self._inner, self._limit = inner, limit
        self._concurrency_limit = asyncio.Semaphore(limit)
        self._stream_locks: dict[StreamId, asyncio.Lock] = {}
        self._order = order or Random(inner.core.seed)

    @property
    def core(self) -> Direct:
        return self._inner.core

    async def execute(self, command: Command) -> Executed:
        """A batch of one: one group."""
        [result] = await self._execute_stream_group(frozenset(declared(command)), [command])
        if isinstance(result, Exception):
            raise result
        return result

    async def execute_batch(self, commands: Sequence[Command]) -> list[Executed | CommandRejected | StoreError]:
        """What became of each command, group by group, not in the order of `commands`."""
        stream_groups: dict[frozenset[StreamId], list[Command]] = {}
        for command in commands:
            stream_groups.setdefault(frozenset(declared(command)), []).append(command)
        groups = list(stream_groups.items())
        self._order.shuffle(groups)
        results = await asyncio.gather(*[self._execute_stream_group(*group) for group in groups])
        return [result for of_group in results for result in of_group]

    async def _execute_stream_group(
        self, affected_streams: frozenset[StreamId], commands: Sequence[Command]
    ) -> list[Executed | CommandRejected | StoreError]:
        results: list[Executed | CommandRejected | StoreError] = []
        async with AsyncExitStack() as locks:
            for stream in sorted(affected_streams):
                await locks.enter_async_context(self._stream_locks.setdefault(stream, asyncio.Lock()))
            for command in commands:
                async with self._concurrency_limit:
                    try:
                        results.append(await self._inner.execute(command))
                    except (CommandRejected, StoreError) as error:
                        results.append(error)
        return results

    def remembering(self, make: Callable[[Memory, Store], Memory]) -> ChapterParallel:
        return ChapterParallel(self._inner.remembering(make), self._limit)

    def counts(self) -> dict[str, int]:
        """Locks in the map: one for every stream there ever was."""
        return {"locks": len(self._stream_locks), **self._inner.counts()}

    async def close(self) -> None:
        await self._inner.close()


# --- Async Batching: BatchProcessor -----------------------------------------------------------------------------------


class Cancelled(StoreError):
    """The batch processor was closed with this item pending; it was not processed."""


class BatchProcessor(Generic[T, R]):
    """`processor(items)` gives a result for each of up to `batch_size` items, which wait for one another until the next
    tick, one every `batch_timeout_s`. `rng` decides, as `select!` does, when an item and a tick are there at once."""

    def __init__(
        self,
        processor: Callable[[list[T]], Awaitable[Sequence[R]]],
        batch_size: int = 100,
        batch_timeout_s: float = 0.010,
        rng: Random | None = None,
    ) -> None:
        self._processor, self._batch_size, self._batch_timeout_s = processor, batch_size, batch_timeout_s
        self._rng = rng or Random(0)
        self._queue: deque[tuple[T, asyncio.Future[R]]] = deque()
        self._stirred = asyncio.Event()
        self._is_closed = False
        self._worker: asyncio.Task[None] | None = None
        self.batches = self.items = self.queued_max = self.ticks = 0

    @property
    def queued(self) -> int:
        """Items that the worker has not taken yet."""
        return len(self._queue)

    async def process(self, item: T) -> R:
        """Raises Cancelled when the processor is closed."""
        if self._is_closed:
            raise Cancelled("the batch processor is closed")
        loop = asyncio.get_running_loop()
        if self._worker is None:  # in nobody's context: a batch is not the operation of who came first
            self._worker = loop.create_task(self._batch_worker(), context=Context())
        answer: asyncio.Future[R] = loop.create_future()
        self._queue.append((item, answer))
        self.queued_max = max(self.queued_max, len(self._queue))
        self._stirred.set()
        return await answer

    async def _batch_worker(self) -> None:
        batch: list[tuple[T, asyncio.Future[R]]] = []
        loop = asyncio.get_running_loop()
        tick_s = loop.time()  # the first tick of an interval comes at once
        while True:
            is_tick_due, is_received = loop.time() >= tick_s, bool(self._queue) or self._is_closed
            if is_tick_due and not (is_received and self._rng.random() < 0.5):
                tick_s += self._batch_timeout_s  # of ticks that were missed none is left out
                self.ticks += 1
                await self._process_batch(batch)
            elif self._queue:
                batch.append(self._queue.popleft())
                if len(batch) >= self._batch_size:
                    await self._process_batch(batch)
            elif is_received:  # that the channel is closed
                break
            else:
                timer = loop.call_at(tick_s, self._stirred.set)
                await self._stirred.wait()
                self._stirred.clear()
                timer.cancel()
        for _, answer in batch:
            if not answer.done():
                answer.set_exception(Cancelled("the batch processor was closed before the batch was full"))

    async def _process_batch(self, batch: list[tuple[T, asyncio.Future[R]]]) -> None:
        if not batch:
            return
        taken = batch.copy()
        batch.clear()
        self.batches += 1
        self.items += len(taken)
        results = await self._processor([item for item, _ in taken])
        for (_, answer), result in zip(taken, results, strict=True):
            if not answer.done():
                answer.set_result(result)

    async def close(self) -> None:
        """Take what is queued, write what fills batches, drop the rest."""
        self._is_closed = True
        self._stirred.set()
        if self._worker is not None:
            await self._worker


class ChapterBatching:
    """Reads and decides command by command; the events of up to `size` commands are written as one batch."""

    def __init__(self, inner: Executor, size: int = 100, timeout_s: float = 0.010) -> None:
        self._core, self._size, self._timeout_s = _plain(inner, "chapter_batching"), size, timeout_s
        self._batches: BatchProcessor[list[StreamWrite], Exception | None] = BatchProcessor(
            self._write_events_batch, size, timeout_s, Random(self._core.seed)
        )

    @property
    def core(self) -> Direct:
        return self._core

    async def execute(self, command: Command) -> Executed:
        return await _tried_again(self._core, lambda attempt: self._execute(command, attempt))

    async def _execute(self, command: Command, attempt: int) -> Executed:
        wanted = declared(command)
        states = await read_on(self._core.store, wanted, {})
        decided = command.decide(values_of(states))
        writes = writes_of(command, states, decided)
        error = await self._batches.process([write for write in writes if write.events])
        if error is not None:
            raise error
        versions = tuple([write.expected + len(write.events) for write in writes])
        return Executed(tuple([event for _, event in decided]), versions, attempt, tuple(wanted))

    async def _write_events_batch(self, items: list[list[StreamWrite]]) -> list[Exception | None]:
        """One append of everything; the expectation of a stream is that of the first item that has it."""
        expected: dict[StreamId, int] = {}
        events: dict[StreamId, list[NewEvent]] = {}
        for write in (write for writes in items for write in writes):
            expected.setdefault(write.stream, write.expected)
            events.setdefault(write.stream, []).extend(write.events)
        try:
            if events:
                await self._core.store.append([StreamWrite(s, expected[s], tuple(events[s])) for s in events])
        except Exception as error:
            return [error] * len(items)
        return [None] * len(items)

    def remembering(self, make: Callable[[Memory, Store], Memory]) -> ChapterBatching:
        """UsageError: it does not ask a memory."""
        return ChapterBatching(self._core.remembering(make), self._size, self._timeout_s)

    def counts(self) -> dict[str, int]:
        """Batches that went, the commands in them, and the longest the queue has been."""
        batches = self._batches
        return {"batches": batches.batches, "batched": batches.items, "queued_max": batches.queued_max}

    async def close(self) -> None:
        await self._batches.close()
        await self._core.close()
