"""The words of an event store: streams, events, what an append expects, and how it can fail.

Everything else is built on these values; this module imports nothing of ours and does nothing but name things.
A *version* counts the events of one stream (0 = no event yet), a *position* orders all events of a store
(0 = before the first). Both are plain integers; a store whose own cursor is a pair or a UUID packs it into one.
"""

from __future__ import annotations

import os
import re
import struct
import time
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import NewType
from uuid import UUID, SafeUUID

from msgspec import Struct, field

StreamId = NewType("StreamId", str)
Position = int

ANY = -1
"""Expectation: append wherever the stream is."""
ABSENT = 0
"""Expectation: the stream has no event yet. Any larger number means: exactly that version."""

STREAM_ID_MAX_CHARS = 255


def stream_id(text: str) -> StreamId:
    """`text` as a stream id, or ValueError: 1 to 255 characters, none of `* ? [ ]` (kept for patterns), none of control.

    The limits are EventCore's, so that a stream of ours can be a stream of theirs.
    """
    if not 0 < len(text) <= STREAM_ID_MAX_CHARS:
        raise ValueError(f"a stream id has 1 to {STREAM_ID_MAX_CHARS} characters, this one has {len(text)}")
    if any(c in "*?[]" or ord(c) < 32 for c in text):
        raise ValueError(f"a stream id has none of * ? [ ] and no control character: {text!r}")
    return StreamId(text)


_last_id_ms = 0
_id_counter = 0
_chances: Iterator[tuple[int]] = iter(())


def _chance() -> int:
    """64 bits from the system, fetched 4 kB at a time: each fetch is a system call, in which other threads get their turn."""
    global _chances
    for (bits,) in _chances:
        return bits
    _chances = struct.iter_unpack("<Q", os.urandom(4096))
    return next(_chances)[0]


def _forget_chances() -> None:
    global _chances
    _chances = iter(())


os.register_at_fork(after_in_child=_forget_chances)  # else parent and child would draw the same

_new, _set = object.__new__, object.__setattr__


def new_event_id() -> UUID:
    """A UUIDv7 (RFC 9562): 48 bits of milliseconds, then a counter that keeps one process's ids increasing, then chance.

    The counter takes the 12 bits after the version (RFC 9562, 6.2, method 1) and borrows from the clock when it is
    full, so ids of one process are strictly increasing whatever the rate.
    """
    global _last_id_ms, _id_counter
    now_ms = time.time_ns() // 1_000_000
    if now_ms > _last_id_ms:
        _last_id_ms, _id_counter = now_ms, 0
    else:
        _id_counter += 1
        if _id_counter > 0xFFF:
            _last_id_ms, _id_counter = _last_id_ms + 1, 0
    made = _new(UUID)  # as UUID(int=…) makes it, without looking through seven ways to be called: half the time
    _set(made, "int", _last_id_ms << 80 | 0x7 << 76 | _id_counter << 64 | 0x2 << 62 | _chance() >> 2)
    _set(made, "is_safe", SafeUUID.unknown)
    return made


class NewEvent(Struct, frozen=True, gc=False):
    """An event not yet stored. `data` and `meta` are JSON as bytes; the id is made before the first try, so that a
    retry after an unknown outcome can be recognised."""

    type: str
    data: bytes
    meta: bytes = b""
    id: UUID = field(default_factory=new_event_id)


class StoredEvent(Struct, frozen=True, gc=False):
    """An event as the store gives it back. `recorded_at_us` is the store's clock, microseconds since 1970 (0 = none)."""

    position: Position
    stream: StreamId
    version: int
    id: UUID
    type: str
    data: bytes
    meta: bytes = b""
    recorded_at_us: int = 0


class StreamWrite(Struct, frozen=True):
    """What one append does to one stream: what it expects to find, and 0…n events.

    With no events the stream is a *read-only participant*: its version is checked with the rest, nothing is written.
    """

    stream: StreamId
    expected: int = ANY
    events: tuple[NewEvent, ...] = ()


def check_distinct(writes: Sequence[StreamWrite]) -> None:
    """ValueError when an append names a stream twice: which of the two expectations would hold?"""
    if len({w.stream for w in writes}) != len(writes):
        twice = next(w.stream for i, w in enumerate(writes) if any(w.stream == v.stream for v in writes[:i]))
        raise ValueError(f"an append names each stream once, this one names {twice!r} twice")


class AppendResult(Struct, frozen=True, gc=False):
    """An acknowledged append: the version of each stream after it, in the order of its writes, and its last position."""

    versions: tuple[int, ...]
    position: Position = 0


class Snapshot(Struct, frozen=True):
    """A folded state kept under a key, and the version of every stream it was folded from."""

    key: str
    versions: dict[StreamId, int]
    state: bytes

    def is_behind(self, other: Snapshot) -> bool:
        """Whether `other` has seen more of any stream than this one, so that saving this one would go back."""
        return any(self.versions.get(stream, 0) < version for stream, version in other.versions.items())


class Filter(Struct, frozen=True, dict=True):
    """Which events of a store a reader wants; an empty field asks for nothing, and all fields must hold.

    `prefix` is the start of the stream's id, character by character. `glob` is a pattern for the whole id: `*` any
    characters, `?` one, `[0-9]` one of these, `[!0-9]` one of the others. `types` are event types, any of which will do.
    """

    prefix: str = ""
    glob: str = ""
    types: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.glob:
            try:
                re.compile(self.regex)
            except re.error as error:
                raise ValueError(
                    f"the pattern {self.glob!r} has a set of characters that is none: {error.msg}"
                ) from None

    def matches(self, stream: str, event_type: str) -> bool:
        """Whether an event of `stream` is wanted."""
        if self.types and event_type not in self.types:
            return False
        return stream.startswith(self.prefix) and (not self.glob or self._compiled.fullmatch(stream) is not None)

    @cached_property
    def regex(self) -> str:
        """`glob` as a regular expression for the whole id, in the words that Python and PostgreSQL share; "" for none."""
        parts: list[str] = []
        at = 0
        for match in _GLOB_PART.finditer(self.glob):
            if match.group() == "*" and parts and parts[-1] == ".*":
                at = match.end()
                continue
            if match.start() != at:
                raise ValueError(f"the pattern {self.glob!r} has a [ or ] that nothing closes or opens")
            at = match.end()
            parts.append(_as_regex(match.group()))
        if at != len(self.glob):
            raise ValueError(f"the pattern {self.glob!r} has a [ or ] that nothing closes or opens")
        return "".join(parts)

    @cached_property
    def _compiled(self) -> re.Pattern[str]:
        return re.compile(self.regex, re.DOTALL)


EVERYTHING = Filter()

_GLOB_PART = re.compile(r"\[[!^]?[^\[\]]+\]|[^\[\]]", re.DOTALL)


def _as_regex(part: str) -> str:
    if part == "*":
        return ".*"
    if part == "?":
        return "."
    if len(part) > 1:
        negated = part[1] in "!^"
        inside = part[2 if negated else 1 : -1].replace("\\", r"\\").replace("^", r"\^")
        return f"[{'^' if negated else ''}{inside}]"
    return part if part.isalnum() or part == "_" or ord(part) > 127 else "\\" + part


class StreamSlice(Struct, frozen=True):
    """Events of one stream in version order, and the version the stream had when they were read (not that of the page)."""

    stream: StreamId
    version: int
    events: tuple[StoredEvent, ...] = ()


class StoreError(Exception):
    """Something a store says no to. Each kind below is one thing a caller can do about it."""


class VersionConflict(StoreError):
    """The stream was not where the append expected it: read again and decide again. An expected result, not a fault."""

    def __init__(self, stream: StreamId, expected: int, actual: int) -> None:
        super().__init__(stream, expected, actual)
        self.stream, self.expected, self.actual = stream, expected, actual

    def __str__(self) -> str:
        return f"version conflict on {self.stream!r}: expected {self.expected}, actual {self.actual}"


class EventRejected(StoreError):
    """The store cannot hold this event (for example JSON with \\u0000 in PostgreSQL); retrying will not help."""


class OutcomeUnknown(StoreError):
    """The append may or may not have happened (time-out, lost connection): look for its event ids, never retry blindly."""


class StoreUnreachable(StoreError):
    """No connection to the store could be had, or no answer to a read; nothing was written."""
