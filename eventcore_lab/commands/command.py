"""A command: the streams it needs, how it folds their events into a state, and what it decides to append."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from msgspec import Struct

from eventcore_lab.events import NewEvent, StoredEvent, StreamId


class Command(Protocol):
    """Frozen input of one decision. The state is whatever `initial` makes and `fold` gives back."""

    @property
    def streams(self) -> Sequence[StreamId]:
        """Every stream the decision rests on, each once; those that get no event are read-only participants."""
        ...

    def initial(self) -> Any: ...
    def fold(self, state: Any, event: StoredEvent) -> Any: ...
    def decide(self, state: Any) -> Sequence[tuple[StreamId, NewEvent]]:
        """The events to append, each to one of `streams`. Raises CommandRejected when a rule forbids it."""
        ...


class CommandRejected(Exception):
    """A business rule said no. Nothing was written; trying again will not help."""


class Executed(Struct, frozen=True):
    """What became of a command: the events appended, the version of each of its streams, and how many tries it took."""

    events: tuple[NewEvent, ...]
    versions: tuple[int, ...]
    attempts: int
