"""The read model in memory: a projection's state in the process that keeps it, and now and then as a snapshot in the store.

State and position are one snapshot, written at once: after a crash both are taken up from the same instant, and what was
applied since then is applied to a state that does not have it yet. So every event has its effect once, however often it
was read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Generic, TypeVar

import msgspec
from msgspec import Struct

from eventcore_lab.clock import NS_PER_S, now_ns
from eventcore_lab.events import Position, Snapshot, StoreError, StreamId
from eventcore_lab.projections.projection import Pages, Projection
from eventcore_lab.projections.read_model import Kept, Step, read_models
from eventcore_lab.projections.users import Row, UserSummary, users
from eventcore_lab.stores.protocol import Store

S = TypeVar("S")

BYTES_PER_EVENT = 100
"""A snapshot waits until so many of its bytes fall on each event applied since the last: a rebuild's time then grows with
the events and not with the events times the state."""


class _Saved(Struct):
    """A snapshot's state. The position as text: in some stores it has 128 bits, and a number in JSON has 64."""

    position: str
    applied: int
    state: msgspec.Raw


class Remembered(Generic[S]):
    """A projection of one store, kept in memory. `state` belongs to `position`: every event up to there that is wanted,
    `applied` in all, is in it, and nothing else.

    It is saved after every `every` events applied, counted over all streams, and after `save_s` seconds if there was
    anything, at the end of a page; less often where the state is large, for a snapshot is all of it. Saving never goes
    back: a snapshot of more events stays. A store that cannot save it now is asked again when the next is due: all that is
    lost is the time of reading the events again.
    """

    relation = ""
    every_s = 0.0

    def __init__(
        self, projection: Projection[S], store: Store, *, page: int = 1000, every: int = 10_000, save_s: float = 10.0
    ) -> None:
        if every < 1:
            raise ValueError(f"every must be at least 1, not {every}")
        self.projection, self._store = projection, store
        self._pages = Pages(store, page)
        self._every, self._save_ns = every, int(save_s * NS_PER_S)
        self._key = f"projection {projection.name}"
        self.state: S = projection.initial()
        self.position: Position = 0
        self.applied = self._saved = 0  # _saved: what was applied when a snapshot was last saved, or tried
        self._saved_ns = now_ns()
        self._saved_bytes = 0
        self.saves = self._unsaved = 0

    @property
    def failures(self) -> Mapping[str, int]:
        return {"failed_snapshots": self._unsaved} if self._unsaved else {}

    async def make(self) -> None:
        """Take up the last snapshot, if there is one. StoreError when it is none of this projection's."""
        snapshot = await self._store.load_snapshot(self._key)
        if snapshot is None:
            return
        try:
            saved = msgspec.json.decode(snapshot.state, type=_Saved)
            self.state = msgspec.json.decode(saved.state, type=self.projection.kind)
        except msgspec.MsgspecError as error:
            raise StoreError(f"the snapshot {self._key!r} cannot be taken up: {error}") from None
        self.position, self.applied = int(saved.position), saved.applied
        self._saved = self.applied

    async def step(self) -> Step:
        """Apply the next page. When an event is refused, those before it are applied and `position` is theirs."""
        page = await self._pages.behind(self.position)
        state, apply, before = self.state, self.projection.apply, self.applied
        for event in page.events:
            self.applied += apply(state, event)
            self.position = event.position
        if self._is_due():
            await self._try_to_save()
        return Step(self.applied - before, is_behind=page.is_full)

    def _is_due(self) -> bool:
        new, since_ns = self.applied - self._saved, now_ns() - self._saved_ns
        is_many = new >= max(self._every, self._saved_bytes // BYTES_PER_EVENT)
        return is_many or (new > 0 and since_ns >= self._save_ns)

    async def _try_to_save(self) -> None:
        try:
            await self.save()
        except StoreError:
            self._unsaved += 1

    async def save(self) -> bool:
        """Keep state and position as one; whether they were kept, and not behind what is there already."""
        state = msgspec.Raw(msgspec.json.encode(self.state))
        saved = msgspec.json.encode(_Saved(str(self.position), self.applied, state))
        # The count stands for the position, which grows with it: it fits where a version does.
        snapshot = Snapshot(self._key, {StreamId(self._key): self.applied}, saved)
        self._saved, self._saved_bytes = self.applied, len(saved)
        try:
            is_kept = await self._store.save_snapshot(snapshot)
        finally:
            self._saved_ns = now_ns()
        self.saves += is_kept
        return is_kept

    async def reached(self) -> Position:
        return self.position

    async def close(self) -> None:
        await self._pages.close()


class _Users(Remembered[dict[str, UserSummary]]):
    async def rows(self) -> list[Row]:
        return [user.row for user in self.state.values()]


async def rebuild(
    projection: Projection[S], store: Store, *, page: int = 1000, every: int = 10_000, save_s: float = 10.0
) -> Remembered[S]:
    """A projection brought up to the store's end: from its snapshot if it has one, else from the first event, and saved if
    the store can (`failures` has it else).

    In memory are the state and two pages of events. To follow the store from there, go on with `step`.
    """
    found = Remembered(projection, store, page=page, every=every, save_s=save_s)
    try:
        await found.make()
        while (await found.step()).is_behind:
            pass
    finally:
        await found.close()
    if found.applied > found._saved:
        await found._try_to_save()
    return found


class _Memory(Struct, frozen=True):
    needs_tables: ClassVar[bool] = False
    page: int
    every: int
    save_s: float

    def kept_in(self, store: Store) -> Kept:
        return _Users(users, store, page=self.page, every=self.every, save_s=self.save_s)


@read_models.register("memory")
def memory(*, page: int = 1000, every: int = 10_000, save_s: float = 10.0) -> _Memory:
    """A projection in its keeper's memory, saved as a snapshot every so many events."""
    if page < 1 or every < 1 or save_s < 0:
        raise ValueError(f"page and every must be at least 1 and save_s at least 0, not {page}, {every} and {save_s:g}")
    return _Memory(page, every, save_s)
