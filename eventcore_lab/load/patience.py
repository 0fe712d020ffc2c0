"""Going on when the store is away for a while: who reads beside the load asks again, less and less often, for a bounded time.

A server that is killed and started again ends every connection. Readers know how far they are, and a read model where its
checkpoint is, so that asking again gives nothing twice. How long a store was away shows as their lag.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

from eventcore_lab.clock import NS_PER_S, now_ns, sleep_s
from eventcore_lab.events import EVERYTHING, Filter, OutcomeUnknown, Position, StoredEvent, StoreError, StoreUnreachable
from eventcore_lab.projections import Kept, read_models
from eventcore_lab.projections.read_model import Step
from eventcore_lab.projections.users import Row
from eventcore_lab.spec import parse
from eventcore_lab.stores.protocol import Lease, Store
from eventcore_lab.stores.wrapper import Wrapper

AWAY = (StoreUnreachable, OutcomeUnknown)
"""What a store raises that is not there, or no longer. Whatever else it says, it says it every time."""
AWAY_MAX_S = 60.0
"""For so long nobody gives up, and the last try may take as long as the pool's time-outs say on top."""
FIRST_WAIT_S, LONGEST_WAIT_S = 0.1, 2.0
_LEASE_EVERY_S = 0.020

T = TypeVar("T")


async def patiently(work: Callable[[], Awaitable[T]], away_max_s: float = AWAY_MAX_S) -> T:
    """What `work` gives, which does no harm when it is done again. Raises StoreUnreachable, with what was said last, when the
    store has been away for longer than `away_max_s`, and at once what another try would raise again."""
    now_s, since_s, wait_s = asyncio.get_running_loop().time, math.inf, FIRST_WAIT_S
    while True:
        try:
            return await work()
        except AWAY as error:
            since_s = min(since_s, now_s())
            away_s = now_s() - since_s
            if away_s >= away_max_s:
                raise StoreUnreachable(f"the store has been away for {away_s:,.0f} s: {error}") from None
        await sleep_s(min(wait_s, max(away_max_s - away_s, 0)))
        wait_s = min(2 * wait_s, LONGEST_WAIT_S)


class PatientReader(Wrapper):
    """A store whose events can be read on when it comes back; everything else is as it is."""

    def __init__(self, inner: Store, away_max_s: float = AWAY_MAX_S) -> None:
        super().__init__(inner)
        self._away_max_s = away_max_s

    async def read_all(self, after: Position = 0, limit: int = 1000, where: Filter = EVERYTHING) -> list[StoredEvent]:
        return await patiently(lambda: self.inner.read_all(after, limit, where), self._away_max_s)

    async def last_position(self) -> Position:
        return await patiently(self.inner.last_position, self._away_max_s)


class PatientKeeper:
    """The read model `projection` (its spec), `kept`, which is brought on when the store comes back. One keeps it, by a lease,
    but for what is in memory, which is everybody's own; a lease ends with the server, and is taken again before anything else.

    The lease of one who was killed is free once the server has noticed; that is waited for, `lease_max_s` at most.
    """

    def __init__(self, kept: Kept, store: Store, projection: str, away_max_s: float, lease_max_s: float) -> None:
        self._kept, self._store, self._projection = kept, store, projection
        self._away_max_s, self._lease_max_s = away_max_s, lease_max_s
        self._lease: Lease | None = None
        self.relation, self.every_s, self.applied = kept.relation, kept.every_s, kept.applied

    @property
    def failures(self) -> Mapping[str, int]:
        return self._kept.failures

    async def make(self) -> None:
        await self._lead()
        await self._kept.make()
        self.applied = self._kept.applied

    async def step(self) -> Step:
        return await patiently(self._step, self._away_max_s)

    async def _step(self) -> Step:
        await self._lead()
        try:
            step = await self._kept.step()
        except AWAY:
            await self._leave()
            raise
        self.applied = self._kept.applied
        return step

    async def _lead(self) -> None:
        if self._lease is not None or not self.relation:
            return
        name = f"projection {parse(self._projection, read_models.kind).name}"
        deadline_ns = now_ns() + int(self._lease_max_s * NS_PER_S)
        while (lease := await self._store.try_lead(name)) is None:
            if now_ns() > deadline_ns:
                who = f"somebody else keeps the read model {self._projection}"
                raise StoreError(f"{who}, for {self._lease_max_s:g} s now")
            await sleep_s(_LEASE_EVERY_S)
        self._lease = lease

    async def _leave(self) -> None:
        lease, self._lease = self._lease, None
        if lease is not None:
            await lease.release()

    async def reached(self) -> Position:
        return await patiently(self._kept.reached, self._away_max_s)

    async def rows(self) -> list[Row]:
        return await patiently(self._kept.rows, self._away_max_s)

    async def close(self) -> None:
        try:
            await self._kept.close()
        finally:
            await self._leave()
