"""What a store promises, how a driver makes one, and where drivers register.

A *driver* is what a spec such as `postgres` or `memory` names. It *provisions* a place (a server, a fresh schema) once,
in the process that runs the experiment, and *connects* to that place in whichever process puts the load on it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from functools import cached_property, wraps
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Protocol

from msgspec import Struct

from eventcore_lab.events import (
    EVERYTHING,
    AppendResult,
    Filter,
    Position,
    Snapshot,
    StoredEvent,
    StoreError,
    StreamId,
    StreamSlice,
    StreamWrite,
    check_distinct,
)
from eventcore_lab.spec import Registry, UsageError, first_line, options_of

ENTRY_POINTS = "eventcore_lab.stores"


class Lease(Protocol):
    """Being the only one who does something, until `release` or the end of the connection or process."""

    async def release(self) -> None: ...


class Store(Protocol):
    """An event store, seen from one process. All methods may be called by many tasks at once.

    Raised by any of them: StoreUnreachable when no connection can be had, StoreError when the store refuses. Appends
    raise OutcomeUnknown when no answer came: they may have happened.
    """

    async def append(self, writes: Sequence[StreamWrite]) -> AppendResult:
        """All of `writes` (one per stream) or none. Raises VersionConflict with the true actual version, EventRejected
        for an event the store cannot hold."""
        ...

    async def append_many(self, requests: Sequence[Sequence[StreamWrite]]) -> list[AppendResult | StoreError]:
        """Independent appends, each with its own result in its own place: no conflict fails a neighbour. Requests that
        share a stream take effect in the order given."""
        ...

    async def read_stream(self, stream: StreamId, from_version: int = 1, limit: int | None = None) -> StreamSlice:
        """Events with version ≥ `from_version`, at most `limit`. A stream that does not exist is empty, version 0."""
        ...

    async def read_streams(
        self, streams: Sequence[StreamId], from_versions: Sequence[int] | None = None
    ) -> list[StreamSlice]:
        """Several streams as of one instant, in the order asked for: whole, or each from its version in `from_versions`.

        Each slice tells the version its stream had then, also when nothing is there from the version asked for."""
        ...

    async def read_all(self, after: Position = 0, limit: int = 1000, where: Filter = EVERYTHING) -> list[StoredEvent]:
        """Events behind `after` in position order that `where` wants, at most `limit` of them. Reading on from the last
        position misses nothing that is committed later."""
        ...

    async def last_position(self) -> Position:
        """The highest position behind which nothing can appear any more: read up to it, and go on from it. 0 = empty."""
        ...

    async def load_checkpoint(self, name: str) -> Position | None:
        """How far the reader `name` has come; None if it never saved."""
        ...

    async def save_checkpoint(self, name: str, position: Position) -> None:
        """Remember how far the reader `name` has come, whatever was there before."""
        ...

    async def load_snapshot(self, key: str) -> Snapshot | None: ...

    async def save_snapshot(self, snapshot: Snapshot) -> bool:
        """Keep it, unless the one already there has seen more of any stream; says whether it was kept."""
        ...

    async def try_lead(self, name: str) -> Lease | None:
        """Become the only one of all processes with the lease `name`; None if somebody else has it."""
        ...

    async def close(self) -> None: ...


async def one_by_one(
    append: Callable[[Sequence[StreamWrite]], Awaitable[AppendResult]], requests: Sequence[Sequence[StreamWrite]]
) -> list[AppendResult | StoreError]:
    """`append_many` for a store that has nothing for several: each request an append of its own, one after the other."""
    for writes in requests:
        check_distinct(writes)
    results: list[AppendResult | StoreError] = []
    for writes in requests:
        try:
            results.append(await append(writes))
        except StoreError as error:
            results.append(error)
    return results


def each_from(streams: Sequence[StreamId], from_versions: Sequence[int] | None) -> list[tuple[StreamId, int]]:
    """What `read_streams` is asked for, stream by stream."""
    return list(zip(streams, [1] * len(streams) if from_versions is None else from_versions, strict=True))


class PoolSettings(Struct, frozen=True, kw_only=True):
    """A connection pool, in the words of the chapter's OptimizedPostgresConfig. Times in seconds.

    `test_before_acquire`: a connection that was used before is asked for a sign of life each time it is handed out. That is
    what sqlx does unless it is told not to, so that it is part of the chapter's pool though its code does not say so.
    """

    max_connections: int = 20
    min_connections: int = 5
    acquire_timeout_s: float = 30.0
    idle_timeout_s: float = 600.0
    max_lifetime_s: float = 1800.0
    connect_timeout_s: float = 5.0
    command_timeout_s: float = 30.0
    test_before_acquire: bool = False
    application_name: str = "eventcore_lab"

    def __post_init__(self) -> None:
        if not self.max_connections > 0:
            raise ValueError(f"max_connections must be at least 1, not {self.max_connections}")
        if not 0 <= self.min_connections <= self.max_connections:
            raise ValueError(f"min_connections must be 0 to {self.max_connections}, not {self.min_connections}")
        times = ("acquire_timeout_s", "idle_timeout_s", "max_lifetime_s", "connect_timeout_s", "command_timeout_s")
        for name in times:
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, not {getattr(self, name)}")

    @classmethod
    def production(cls) -> PoolSettings:
        """The chapter's figures: 20 connections, 5 kept, 30 s to acquire, 10 min idle, 30 min of life, 5 s to connect."""
        return cls()

    @classmethod
    def sized(cls, connections: int) -> PoolSettings:
        """Exactly `connections`, all opened before the load, so that no operation pays for a connect."""
        return cls(max_connections=connections, min_connections=connections)


class Address(Struct, frozen=True):
    """Where a provisioned store is. Handed to worker processes in memory only: the DSN may hold a password. `schema` is
    the place within the server: a schema's name, a file's path."""

    spec: str
    dsn: str = ""
    schema: str = ""


@dataclass(frozen=True)
class Place:
    """A provisioned store: its address, and the facts recorded with every run on it (never a password). `is_new`: nothing
    was in it before; a place that is not is never read back whole, for what others wrote is not ours to judge.
    `takes_appends`: False where the store is only to be read."""

    address: Address
    durability: str
    server: str = ""
    keeps_events: bool = True
    is_new: bool = True
    takes_appends: bool = True
    facts: Mapping[str, str] = field(default_factory=dict)
    server_pids: Callable[[], list[int]] = list


class Driver(Protocol):
    """What a store's spec stands for.

    `is_shared`: several processes see the same events at one address. `lacks`: the claims of the conformance suite that
    this store does not keep, by name, each with the reason; {} for a store that keeps them all. A reason that begins with
    "sometimes: " says that the claim is broken only by chance.
    """

    @property
    def is_shared(self) -> bool: ...
    @property
    def lacks(self) -> Mapping[str, str]: ...
    def provision(self) -> AbstractAsyncContextManager[Place]: ...
    async def connect(self, address: Address, pool: PoolSettings) -> Store: ...


def has_tables(driver: Driver) -> bool:
    """Whether a store of this driver has a place for tables beside its events, of which a driver need not say anything."""
    return bool(getattr(driver, "has_tables", False))


class _Stores(Registry[Driver]):
    """The drivers of this package, and those that installed packages offer under ENTRY_POINTS: a name, and a function like
    those that are registered here. Theirs are imported when first asked for. A name registered here is always ours; a
    name that two packages offer is neither's. Whatever is wrong with theirs is a UsageError that names the package."""

    def __init__(self) -> None:
        super().__init__("store")
        self._foreign: dict[str, Callable[..., Driver]] = {}

    def names(self) -> list[str]:
        return sorted({*super().names(), *self._offered})

    def describe(self) -> Mapping[str, tuple[str, str]]:
        """As of any registry; a name that cannot be used comes with the reason."""
        return {name: self._described(name) for name in self.names()}

    @cached_property
    def _offered(self) -> dict[str, list[EntryPoint]]:
        found: dict[str, list[EntryPoint]] = {}
        for each in entry_points(group=ENTRY_POINTS):
            if each not in found.setdefault(each.name, []):
                found[each.name].append(each)
        return found

    def _described(self, name: str) -> tuple[str, str]:
        try:
            usage, text = self._usage(name), first_line(self._maker(name))
        except UsageError as error:
            return name, f"cannot be used: {error}"
        hidden = [_origin(e) for e in self._offered.get(name, ()) if self._makers[name] is not self._foreign.get(name)]
        return usage, text + (f" (not used: the {name} of {' and '.join(hidden)})" if hidden else "")

    def _maker(self, name: str) -> Callable[..., Driver]:
        if name not in self._makers and (offered := self._offered.get(name)):
            self._makers[name] = self._foreign[name] = self._loaded(name, offered)
        return super()._maker(name)

    def _loaded(self, name: str, offered: Sequence[EntryPoint]) -> Callable[..., Driver]:
        if len(offered) > 1:
            raise UsageError(f"store {name} is offered by {' and '.join(map(_origin, offered))}: uninstall one")
        [entry] = offered
        try:
            maker = entry.load()
            options_of(maker)
        except UsageError:
            raise
        except Exception as error:
            raise UsageError(f"store {name} of {_origin(entry)} {_wrong(error)}") from error
        return _guarded(maker, f"store {name} of {_origin(entry)}")


def _origin(entry: EntryPoint) -> str:
    return f"{entry.dist.name if entry.dist is not None else 'an unknown package'} ({entry.value})"


def _wrong(error: Exception) -> str:
    return f"does not work: {type(error).__name__}: {error}"


def _guarded(maker: Callable[..., Driver], what: str) -> Callable[..., Driver]:
    """`maker`, with whatever goes wrong in it as a UsageError, and what it makes looked at."""

    @wraps(maker)
    def made(**options: Any) -> Driver:
        try:
            driver = maker(**options)
            missing = [name for name in ("is_shared", "lacks", "provision", "connect") if not hasattr(driver, name)]
        except UsageError:
            raise
        except Exception as error:
            raise UsageError(f"{what} {_wrong(error)}") from error
        if missing:
            raise UsageError(f"{what} is no driver: a {type(driver).__name__} has no {', '.join(missing)}")
        return driver

    return made


stores: Registry[Driver] = _Stores()


@asynccontextmanager
async def open_store(spec: str, pool: PoolSettings | None = None) -> AsyncIterator[Store]:
    """A store from its spec for a script or a test: provisioned, connected, and both undone at the end."""
    driver = stores.make(spec)
    async with driver.provision() as place:
        store = await driver.connect(place.address, pool or PoolSettings())
        try:
            yield store
        finally:
            await store.close()
