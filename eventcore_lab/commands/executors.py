"""The executors by name: `direct`, and what can be put around it, as in `parallel(cached(direct)):limit=20`.

executor = parallel(batching(cached(direct(store)), delay_ms=0))
executor = executors.make("parallel(batching(cached(direct)):delay_ms=0)", store=store, seed=1)
"""

from __future__ import annotations

from eventcore_lab.commands.batching import Batching
from eventcore_lab.commands.chapter import ChapterBatching, ChapterCached, ChapterParallel
from eventcore_lab.commands.executor import Direct, Executor, RetryPolicy
from eventcore_lab.commands.footprint import ChapterMemory, Leaking
from eventcore_lab.commands.memory import Cache, Snapshots
from eventcore_lab.commands.parallel import Parallel
from eventcore_lab.spec import Registry
from eventcore_lab.stores.protocol import Store

executors: Registry[Executor] = Registry("executor")

CACHE_MAX = 10_000_000
_RETRY = RetryPolicy()


@executors.register("direct")
def direct(
    store: Store,
    seed: int = 0,
    *,
    retries: int = _RETRY.retries_max,
    first_ms: float = _RETRY.first_s * 1e3,
    longest_ms: float = _RETRY.longest_s * 1e3,
    jitter: float = _RETRY.jitter,
) -> Direct:
    """Each command by itself: read its streams, decide, append; on a conflict back off, read what is new, decide again."""
    _within("retries", retries, 0, 1000)
    _within("first_ms", first_ms, 0, 60_000)
    _within("longest_ms", longest_ms, 0, 60_000)
    _within("jitter", jitter, 0, 1)
    retry = RetryPolicy(retries_max=retries, first_s=first_ms / 1e3, longest_s=longest_ms / 1e3, jitter=jitter)
    return Direct(store, retry=retry, seed=seed)


@executors.register("cached")
def cached(inner: Executor, *, size: int = 1000) -> Executor:
    """Remembers the folded states of the `size` streams used last, so that commands on them need no read."""
    _within("size", size, 1, CACHE_MAX)
    return inner.remembering(lambda memory, _: Cache(memory, size))


@executors.register("snapshots")
def snapshots(inner: Executor, *, every: int = 100) -> Executor:
    """Saves a stream's state in the store every `every` events, and reads from there on. Goes inside cached(…)."""
    _within("every", every, 1, 1_000_000)
    return inner.remembering(lambda memory, store: Snapshots(memory, store, every))


@executors.register("parallel")
def parallel(inner: Executor, *, limit: int = 10) -> Parallel:
    """At most `limit` commands at a time; those with a stream in common one after the other, in the order they came.

    Around batching(…) no batch has more than `limit` commands."""
    _within("limit", limit, 1, 100_000)
    return Parallel(inner, limit)


@executors.register("batching")
def batching(
    inner: Executor, *, size: int = 100, delay_ms: float = 10.0, in_flight: int = 1, queue_max: int = 10_000
) -> Batching:
    """Commands that wait together share one read and one append; delay_ms=0: no timer, a batch goes when none is under way.

    The default delay is that of the performance chapter; without one commands are answered sooner and batches still fill."""
    _within("size", size, 1, 10_000)
    _within("delay_ms", delay_ms, 0, 60_000)
    _within("in_flight", in_flight, 1, 16)
    _within("queue_max", queue_max, 1, 1_000_000)
    return Batching(inner, size=size, delay_s=delay_ms / 1e3, in_flight=in_flight, queue_max=queue_max)


@executors.register("chapter_cached")
def chapter_cached(inner: Executor, *, size: int = 1000) -> ChapterCached:
    """The chapter's, to compare with cached: reads all streams first, so that its cache saves only the fold."""
    _within("size", size, 1, CACHE_MAX)
    return ChapterCached(inner, size)


@executors.register("chapter_parallel")
def chapter_parallel(inner: Executor, *, limit: int = 10) -> ChapterParallel:
    """The chapter's, to compare with parallel: a lock for every stream ever seen, kept for good."""
    _within("limit", limit, 1, 100_000)
    return ChapterParallel(inner, limit)


@executors.register("chapter_batching")
def chapter_batching(inner: Executor, *, size: int = 100, delay_ms: float = 10.0) -> ChapterBatching:
    """The chapter's, to compare with batching: one append at each tick for all that wait, one error for all, no bound."""
    _within("size", size, 1, 10_000)
    _within("delay_ms", delay_ms, 0.1, 60_000)
    return ChapterBatching(inner, size, delay_ms / 1e3)


@executors.register("chapter_memory")
def chapter_memory(inner: Executor) -> ChapterMemory:
    """The chapter's, to compare with what a process takes: counts what is allocated, before the first and after the last."""
    return ChapterMemory(inner)


@executors.register("leaking")
def leaking(inner: Executor, *, bytes: int = 9000) -> Leaking:
    """Wrong on purpose: keeps `bytes` for every command for good, to see who notices."""
    _within("bytes", bytes, 0, 10_000_000)
    return Leaking(inner, bytes)


def _within(name: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:
        raise ValueError(f"{name} must be {least:.10g} to {most:.10g}, not {value:.10g}")
