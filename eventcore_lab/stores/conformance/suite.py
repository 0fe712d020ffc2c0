"""What a store must keep to be measured fairly: every claim as a function that tries it on a real store.

    eventcore-lab conformance postgres
    findings = await conformance(stores.make("mine"))

A driver says in `lacks` which claims it does not keep and why; the report then shows the failure as expected, and says
so when such a claim is kept after all. A reason that begins with "sometimes: " declares a fault that shows only by chance
(two writers at the same moment, a reader that overtakes a commit): either outcome is then what was declared. Claims
take a new, empty store, and a second connection to the same place.
The list has what the contract suite of EventCore 2 checks, and what it leaves out: readers beside writers, write skew,
unknown outcomes, torn reads, large appends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any
from uuid import UUID

import msgspec
from msgspec import Struct

from eventcore_lab.events import (
    ANY,
    AppendResult,
    NewEvent,
    StoredEvent,
    StreamId,
    StreamSlice,
    StreamWrite,
    VersionConflict,
)
from eventcore_lab.spec import UsageError
from eventcore_lab.stores.protocol import Driver, PoolSettings, Store

A, B, C = StreamId("a"), StreamId("b"), StreamId("c")
CLAIM_TIMEOUT_S = 60.0
SOMETIMES = "sometimes: "
"""How a reason in `lacks` begins when the claim is broken only now and then."""
LACKING_TRIES_MAX = 3  # what a store lacks may need luck to show: a race is not lost every time
POOL = PoolSettings(max_connections=4, min_connections=1, command_timeout_s=20)


class NotKept(AssertionError):
    """The store did something else than the claim says."""


Check = Callable[[Store, Store], Awaitable[None]]


class Claim(Struct, frozen=True):
    """One promise. `check(store, other)` raises NotKept (or whatever the store raises) if it is not kept."""

    name: str
    promise: str
    check: Check


class Finding(Struct, frozen=True):
    """What came of one claim: `kept`, `broken`; and of one that the driver declares to lack: `lacking` (broken, as it
    says), `kept this time` (it says sometimes), `kept after all` (it says always)."""

    claim: str
    status: str
    detail: str = ""

    @property
    def is_met(self) -> bool:
        """Whether the driver is what it says it is."""
        return self.status in ("kept", "lacking", "kept this time")


CLAIMS: dict[str, Claim] = {}


def claim(check: Check) -> Check:
    """Registers a claim under its function's name; the docstring is the promise."""
    name = check.__name__.replace("_", " ")
    CLAIMS[name] = Claim(name, (check.__doc__ or "").strip(), check)
    return check


async def conformance(
    driver: Driver, only: str = "", told: Callable[[Finding], None] = lambda _: None
) -> list[Finding]:
    """Every claim whose name contains `only`, each on a new place of `driver`; `told` hears of each at once. UsageError for
    a name no claim has, StoreUnreachable when there is no place to begin with."""
    if unknown := set(driver.lacks) - set(CLAIMS):
        raise UsageError(f"lacks names a claim that there is not: {', '.join(sorted(unknown))}")
    if not (chosen := [c for c in CLAIMS.values() if only in c.name]):
        raise UsageError(f"no claim has {only!r} in its name (such as: {next(iter(CLAIMS))})")
    async with asyncio.timeout(CLAIM_TIMEOUT_S):
        await _tried(driver, _nothing)
    findings = []
    for each in chosen:
        findings.append(await examined(driver, each))
        told(findings[-1])
    return findings


async def _nothing(store: Store, other: Store) -> None:
    """Whether there is a store at all."""


async def examined(driver: Driver, one: Claim) -> Finding:
    """What comes of one claim on a new place of `driver`; tried again when it is kept against what the driver says."""
    for _ in range(LACKING_TRIES_MAX):
        finding = await _examined_once(driver, one)
        if finding.status != "kept after all":
            break
    return finding


async def _examined_once(driver: Driver, one: Claim) -> Finding:
    reason = driver.lacks.get(one.name, "")
    try:
        async with asyncio.timeout(CLAIM_TIMEOUT_S):
            await _tried(driver, one.check)
    except Exception as error:
        detail = f"{type(error).__name__}: {error}" if not isinstance(error, NotKept) else str(error)
        return Finding(one.name, "lacking" if reason else "broken", reason or detail)
    if not reason:
        return Finding(one.name, "kept")
    return Finding(one.name, "kept this time" if reason.startswith(SOMETIMES) else "kept after all", reason)


async def _tried(driver: Driver, check: Check) -> None:
    async with driver.provision() as place:
        if not place.is_new:
            raise UsageError("conformance appends, and this place had events before: name the store without schema=")
        if not place.keeps_events:
            raise UsageError("this store keeps nothing by design, so there is nothing to try")
        store = await driver.connect(place.address, POOL)
        other = await driver.connect(place.address, POOL) if driver.is_shared else store
        try:
            await check(store, other)
        finally:
            await store.close()
            if other is not store:
                await other.close()


def same(actual: Any, wanted: Any, what: str) -> None:
    """NotKept when `actual` is not `wanted`."""
    if actual != wanted:
        raise NotKept(f"{what}: {_short(actual)} where {_short(wanted)} was due")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 200 else text[:199] + "…"


def happened(n: int = 1, kind: str = "Happened") -> tuple[NewEvent, ...]:
    return tuple([NewEvent(kind, b'{"n": %d}' % i, b'{"by": "me"}') for i in range(n)])


def write(stream: str, expected: int = ANY, n: int = 1, kind: str = "Happened") -> list[StreamWrite]:
    return [StreamWrite(StreamId(stream), expected, happened(n, kind))]


async def conflict_of(append: Awaitable[AppendResult]) -> tuple[str, int, int]:
    """(stream, expected, actual) of the conflict the append must end with."""
    try:
        result = await append
    except VersionConflict as conflict:
        return conflict.stream, conflict.expected, conflict.actual
    raise NotKept(f"the append was acknowledged ({result}) where a version conflict was due")


def versions(slices: Sequence[StreamSlice]) -> list[int]:
    return [s.version for s in slices]


def said(events: Sequence[NewEvent | StoredEvent]) -> Iterator[tuple[UUID, str, Any, Any]]:
    """What events say, JSON compared as JSON."""
    for e in events:
        yield e.id, e.type, msgspec.json.decode(e.data), msgspec.json.decode(e.meta)
