"""What the server of a PostgreSQL store tells of itself while the load runs, looked at from beside once a second.

The looks go by a connection of their own that cannot write, outside the store's pool; each tells how long it took, and they
become rarer rather than take more than 1 % of the time. A server that cannot be looked at is no reason for a run to fail.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from itertools import count

from eventcore_lab.companions.series import Series
from eventcore_lab.stores import Address
from eventcore_lab.stores.observing import DIALECTS, Observer, Seen

LOOK_EVERY_S, LOOK_MAX_S = 1.0, 1.0
STREAMS_EVERY_LOOKS = 10
MARKS_MAX = 10
"""So often at most a run says that its server could not be looked at."""


@asynccontextmanager
async def server(series: Series, address: Address, every_s: float = LOOK_EVERY_S) -> AsyncIterator[Watch]:
    """Gauges of the source `server` every `every_s`, of `store` (events, streams, sizes) once at the end, and how long each
    look took as `probe.server_cost_ms`. In a longer run also `store.streams` now and then: counted while there are few
    events, then as the server's last ANALYZE has estimated it, which `store.streams_estimated` says. Of an address that has
    no DSN of PostgreSQL, nothing."""
    if not address.dsn.startswith(DIALECTS):
        yield Watch(series)
        return
    observer = Observer(address.dsn, _unquoted(address.schema), look_max_s=LOOK_MAX_S)
    watch = Watch(series, observer)
    is_over = asyncio.Event()
    # Not waited for: connecting must not make the load begin late.
    task = asyncio.ensure_future(_repeatedly(watch, observer, is_over, every_s))
    try:
        yield watch
    finally:
        is_over.set()  # not cancelled: a look ends by itself, and soon
        await task


async def _repeatedly(watch: Watch, observer: Observer, is_over: asyncio.Event, every_s: float) -> None:
    try:
        for look in count(1):
            if is_over.is_set():
                break
            watch.tell(await observer.look(events=False, streams=look % STREAMS_EVERY_LOOKS == 0))
            with suppress(TimeoutError):
                async with asyncio.timeout(every_s):
                    await is_over.wait()
        if watch.is_there:
            observer.make_due()
            watch.tell(await observer.look(events=True))
    finally:
        await observer.close()


class Watch:
    """Writes down what is seen. `pids`: our own backends, which are no part of what the load needs."""

    def __init__(self, series: Series, observer: Observer | None = None) -> None:
        self._series, self._observer = series, observer
        self.pids: set[int] = set()
        self.is_there = True
        self._marks = 0

    async def crashes(self) -> int:
        """How often the server has crashed since the load began; to be asked once it can be reached again."""
        return await self._observer.crashes() if self._observer is not None else 0

    def tell(self, seen: Seen) -> None:
        if self._observer is not None and (pid := self._observer.pid) is not None:
            self.pids.add(pid)
        for key, value in seen.gauges.items():
            source, _, name = key.partition(".")
            self._series.gauge(source, name, value)
        if seen.cost_ms:
            self._series.gauge("probe", "server_cost_ms", seen.cost_ms)
        if seen.error and self.is_there and self._marks < MARKS_MAX:
            self._marks += 1
            self._series.mark("the server could not be looked at", seen.error)
        self.is_there = not seen.error


def _unquoted(schema: str) -> str:
    """A schema's name as it is, of one that may stand as in SQL."""
    return schema[1:-1].replace('""', '"') if schema.startswith('"') else schema
