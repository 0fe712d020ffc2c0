"""What a pool is told besides its size, as a wrapper of any store: `pooled(postgres):min_connections=5,idle_timeout_s=60`.

The size stays the experiment's `connections`, and what is not said here stays as the experiment has it: every connection
opened before the load, none closed for being idle or old within minutes.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec

from eventcore_lab.stores.protocol import Address, Driver, Place, PoolSettings, Store, has_tables, stores

ALL = -1
"""As `min_connections`: as many as there may be."""
AS_BEFORE = 0.0
_TIMES = ("acquire_timeout_s", "idle_timeout_s", "max_lifetime_s", "connect_timeout_s", "command_timeout_s")


class _PooledDriver:
    def __init__(self, inner: Driver, min_connections: int, times: dict[str, float], test_before_acquire: bool) -> None:
        self._inner, self._min_connections, self._times = inner, min_connections, times
        self._test_before_acquire = test_before_acquire
        self.is_shared, self.lacks = inner.is_shared, inner.lacks
        self.has_tables = has_tables(inner)

    @asynccontextmanager
    async def provision(self) -> AsyncIterator[Place]:
        async with self._inner.provision() as place:
            yield place

    async def connect(self, address: Address, pool: PoolSettings) -> Store:
        return await self._inner.connect(address, self.told(pool))

    def told(self, pool: PoolSettings) -> PoolSettings:
        """`pool` with what is said here. A pool smaller than `min_connections` (a follower's) opens all it has."""
        least = self._min_connections
        return msgspec.structs.replace(
            pool,
            min_connections=pool.min_connections if least == ALL else min(least, pool.max_connections),
            test_before_acquire=self._test_before_acquire,
            **{name: value for name, value in self._times.items() if value != AS_BEFORE},
        )


@stores.register("pooled")
def _pooled(
    inner: Driver,
    *,
    min_connections: int = ALL,
    acquire_timeout_s: float = AS_BEFORE,
    idle_timeout_s: float = AS_BEFORE,
    max_lifetime_s: float = AS_BEFORE,
    connect_timeout_s: float = AS_BEFORE,
    command_timeout_s: float = AS_BEFORE,
    test_before_acquire: bool = False,
) -> _PooledDriver:
    """Any store with a pool that is told more than its size; -1 and 0: as the experiment has it."""
    given = (acquire_timeout_s, idle_timeout_s, max_lifetime_s, connect_timeout_s, command_timeout_s)
    times = dict(zip(_TIMES, given, strict=True))
    if min_connections < ALL:
        raise ValueError(f"min_connections must be 0 or more, or {ALL} for all, not {min_connections}")
    for name, value in times.items():
        if value < 0:
            raise ValueError(f"{name} must be above 0, or 0 for what the experiment has, not {value:g}")
    return _PooledDriver(inner, min_connections, times, test_before_acquire)
