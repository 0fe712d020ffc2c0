"""What an executor remembers of streams from one command to the next, so that it need not read them from the beginning:
a cache of folded states, and snapshots in the store.

A memory may be wrong about what is there *now*, never about what was: a state says which version it is the state of, and
the store refuses an append that expects an old one. That holds as long as the store keeps what it has acknowledged. Where a
stream turns out to be shorter than it was, what was remembered is forgotten; where others have made it as long again, no
version tells.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Collection, Mapping
from contextvars import Context
from typing import Protocol

import msgspec

from eventcore_lab.commands.command import Fold, State
from eventcore_lab.events import Snapshot, StreamId
from eventcore_lab.stores.protocol import Store

SNAPSHOTS_IN_FLIGHT = 8
"""Snapshots that are being saved at a time, at most; one more is left out, which costs a longer read and nothing else."""
SNAPSHOT_TIMEOUT_S = 30.0

Wanted = Mapping[StreamId, Fold]
States = Mapping[StreamId, State]
Recalled = tuple[States, Collection[StreamId]]


class Memory(Protocol):
    """What commands ask before they read, and tell when they have read or written."""

    async def recall(self, wanted: Wanted) -> Recalled:
        """The states known of these streams, some or none of them; and which of them are recent enough to decide on at
        once, leaving it to the append to find out."""
        ...

    def keep(self, wanted: Wanted, states: States, since: States) -> None:
        """Remember `states`; `since` is what was known before reading on or writing."""
        ...

    def forget(self, wanted: Wanted) -> None:
        """What was remembered of these streams was of events that the store has lost."""
        ...

    def counts(self) -> dict[str, int]:
        """What happened, by name."""
        ...

    async def close(self) -> None: ...


class _Nothing:
    """Remembers nothing."""

    async def recall(self, wanted: Wanted) -> Recalled:
        return {}, ()

    def keep(self, wanted: Wanted, states: States, since: States) -> None:
        return

    def forget(self, wanted: Wanted) -> None:
        return

    def counts(self) -> dict[str, int]:
        return {}

    async def close(self) -> None:
        return


NOTHING: Memory = _Nothing()


class Cache:
    """The states of the `size` streams used last, above another memory. All operations are O(1).

    An entry is a version and a state folded once, however long the stream. It is replaced by a newer one, also after a
    write of one's own, and never by an older one, in whatever order commands that ran at once report back.
    """

    def __init__(self, inner: Memory, size: int) -> None:
        self._inner, self._size = inner, size
        self._entries: OrderedDict[tuple[StreamId, Fold], State] = OrderedDict()
        self.hits = self.misses = 0

    def __len__(self) -> int:
        return len(self._entries)

    async def recall(self, wanted: Wanted) -> Recalled:
        entries = self._entries
        known: dict[StreamId, State] = {}
        for key in wanted.items():
            state = entries.get(key)
            if state is not None:
                entries.move_to_end(key)
                known[key[0]] = state
        self.hits += len(known)
        if len(known) == len(wanted):
            return known, known
        self.misses += len(wanted) - len(known)
        found, _ = await self._inner.recall({s: fold for s, fold in wanted.items() if s not in known})
        return {**known, **found}, known

    def keep(self, wanted: Wanted, states: States, since: States) -> None:
        entries = self._entries
        for key in wanted.items():
            state, there = states[key[0]], entries.get(key)
            if there is None or there.version < state.version:
                entries[key] = state
                entries.move_to_end(key)
        while len(entries) > self._size:
            entries.popitem(last=False)
        self._inner.keep(wanted, states, since)

    def forget(self, wanted: Wanted) -> None:
        for key in wanted.items():
            self._entries.pop(key, None)
        self._inner.forget(wanted)

    def counts(self) -> dict[str, int]:
        """Streams that were in the cache and that were not, and how many are in it now."""
        counted = {"cache_hits": self.hits, "cache_misses": self.misses, "cache_entries": len(self._entries)}
        return {**counted, **self._inner.counts()}

    async def close(self) -> None:
        await self._inner.close()


class Snapshots:
    """States saved in the store every `every` events of a stream, so that reading begins there. Saving is nobody's wait:
    it goes on beside the commands, a few at a time, and what is left out or fails only makes the next read longer."""

    def __init__(self, inner: Memory, store: Store, every: int) -> None:
        self._inner, self._store, self._every = inner, store, every
        self._saving: set[asyncio.Task[None]] = set()
        self.loaded = self.saved = self.left_out = self.failed = 0

    async def recall(self, wanted: Wanted) -> Recalled:
        found, recent = await self._inner.recall(wanted)
        known = dict(found)
        missing = [(stream, fold) for stream, fold in wanted.items() if stream not in known]
        for (stream, _), state in zip(missing, await asyncio.gather(*[self._load(*m) for m in missing]), strict=True):
            if state is not None:
                known[stream] = state
        return known, recent

    async def _load(self, stream: StreamId, fold: Fold) -> State | None:
        snapshot = await self._store.load_snapshot(_key(stream, fold))
        if snapshot is None:
            return None
        try:
            value = msgspec.json.decode(snapshot.state, type=fold.kind)
        except (msgspec.MsgspecError, UnicodeDecodeError):  # of an older form of this state: as if there were none
            return None
        self.loaded += 1
        return State(snapshot.versions[stream], value)

    def keep(self, wanted: Wanted, states: States, since: States) -> None:
        for stream, fold in wanted.items():
            before = since[stream].version if stream in since else 0
            if states[stream].version // self._every > before // self._every:
                self._save_soon(stream, fold, states[stream])
        self._inner.keep(wanted, states, since)

    def _save_soon(self, stream: StreamId, fold: Fold, state: State) -> None:
        if len(self._saving) >= SNAPSHOTS_IN_FLIGHT:
            self.left_out += 1
            return
        # In nobody's context: a connection it waits for is not the operation's.
        task = asyncio.get_running_loop().create_task(self._save(stream, fold, state), context=Context())
        self._saving.add(task)
        task.add_done_callback(self._saving.discard)

    async def _save(self, stream: StreamId, fold: Fold, state: State) -> None:
        try:
            snapshot = Snapshot(_key(stream, fold), {stream: state.version}, msgspec.json.encode(state.value))
            is_saved = await self._store.save_snapshot(snapshot)
        except Exception:  # also a state that cannot be encoded: the command that came to it has happened
            self.failed += 1
        else:
            self.saved += is_saved

    def forget(self, wanted: Wanted) -> None:
        """Snapshots stay: they never go back, and reading on from one that is ahead finds out again."""
        self._inner.forget(wanted)

    def counts(self) -> dict[str, int]:
        """Snapshots that were loaded, saved, left out because too many were being saved, and not to be saved."""
        counted = {
            "snapshots_loaded": self.loaded,
            "snapshots_saved": self.saved,
            "snapshots_left_out": self.left_out,
            "snapshots_failed": self.failed,
        }
        return {**counted, **self._inner.counts()}

    async def close(self) -> None:
        """Wait for those being saved, at most SNAPSHOT_TIMEOUT_S."""
        if self._saving:
            _, late = await asyncio.wait(self._saving, timeout=SNAPSHOT_TIMEOUT_S)
            for task in late:
                task.cancel()
        await self._inner.close()


def _key(stream: StreamId, fold: Fold) -> str:
    return f"{fold.name}/{stream}"
