"""A command: the streams it needs, how the events of each fold into a state, and what it decides to append."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Protocol

from msgspec import Struct

from eventcore_lab.events import NewEvent, StreamId


class Said(Protocol):
    """What a fold may know of an event: what it says, stored already or about to be. (Where it is stored is not known
    when a command's own events are folded onto the state that a cache keeps.)"""

    @property
    def type(self) -> str: ...
    @property
    def data(self) -> bytes: ...
    @property
    def meta(self) -> bytes: ...


class Fold(Struct, frozen=True, eq=False):
    """How the events of one stream become a state: `initial`, then `apply(state, event)` for each.

    States are shared between commands that know the same stream: `apply` gives a new one and never changes the old.
    `kind` is what msgspec needs to read a state back from JSON, for snapshots, which are kept under the name.
    """

    name: str
    initial: Any
    apply: Callable[[Any, Said], Any]
    kind: Any = Any


class State(Struct, frozen=True, gc=False):
    """What a stream's first `version` events fold into."""

    version: int
    value: Any


class Command(Protocol):
    """The frozen input of one decision."""

    @property
    def streams(self) -> Mapping[StreamId, Fold]:
        """Every stream the decision rests on and how it is folded. Those that get no event are read-only participants."""
        ...

    def decide(self, states: Mapping[StreamId, Any]) -> Sequence[tuple[StreamId, NewEvent]]:
        """The events to append, each to one of `streams`. Raises CommandRejected when a rule forbids it."""
        ...


def declared(command: Command) -> Mapping[StreamId, Fold]:
    """Its streams; ValueError if there are none, for then no append could tell whether the decision still holds."""
    if not (streams := command.streams):
        raise ValueError(f"{type(command).__name__} declares no stream; a command rests on at least one")
    return streams


def only_reads(command: Command) -> Collection[StreamId]:
    """The streams that a command promises never to write: its optional `only_reads`. Whoever keeps commands with common
    streams apart need not keep those apart that only read them."""
    found: Collection[StreamId] = getattr(command, "only_reads", ())
    if isinstance(found, str):
        raise ValueError(f"{type(command).__name__}.only_reads is a stream's name; it is a collection of names")
    return found


class CommandRejected(Exception):
    """A business rule said no. Nothing was written; trying again will not help."""


class Executed(Struct, frozen=True):
    """What became of a command: the events appended, the version of each of its `streams` afterwards, the tries it took."""

    events: tuple[NewEvent, ...]
    versions: tuple[int, ...]
    attempts: int
    streams: tuple[StreamId, ...] = ()
