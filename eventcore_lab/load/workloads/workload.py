"""What a workload is, and the names of all. Operation k is a pure function of the seed and k, whoever performs it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from eventcore_lab.commands import CommandRejected, Executor
from eventcore_lab.events import StreamWrite
from eventcore_lab.load.chance import mixed as mixed
from eventcore_lab.spec import Registry
from eventcore_lab.stores.protocol import Store

EVENTS_PER_APPEND_MAX = 100_000


class Workload(Protocol):
    """`prepare` makes operation k before its time is taken; `start` gives what performs a prepared one on a store.

    `only_reads`: it can be put on a store that is not to be written to. `uses_commands`: what it does goes through the
    executor; otherwise it does without. Performing returns the number of events written, or read by an operation that
    reads, and raises what the store raises.
    """

    @property
    def only_reads(self) -> bool: ...
    @property
    def uses_commands(self) -> bool: ...
    def populate(self) -> Iterator[Sequence[StreamWrite]]:
        """The appends, on streams without events, that must be in the store before operation 0; none for many."""
        ...

    def prepare(self, k: int) -> Any: ...
    def start(self, store: Store, executor: Executor) -> Performer: ...


class Performer(Protocol):
    async def __call__(self, prepared: Any) -> int: ...


workloads: Registry[Workload] = Registry("workload")

REJECTED = CommandRejected
"""What an operation raises when a business rule, not the store, refused it."""


def within(name: str, value: float, least: float, most: float, of: str = "") -> None:
    """ValueError unless `value` is an option's value that can be."""
    if not least <= value <= most:
        raise ValueError(f"{name} must be {least:.10g} to {most:.10g}{of}, not {value:.10g}")


class Plain:
    """What a workload is unless it says otherwise: it needs nothing in the store, writes, and uses no commands."""

    only_reads = False
    uses_commands = False

    def populate(self) -> Iterator[Sequence[StreamWrite]]:
        return iter(())
