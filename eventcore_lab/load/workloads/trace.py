"""The workload that does again what a log says was done: operation k appends the events of its transaction k.

Behind the last operation it begins again, with streams of other names: each copy's versions begin at 0. With the pacer of
the same options the operations come when they came; with any other they come in the log's order; the operations of a closed
loop wrap around the same way.

`expect=read` looks up where the streams are and appends there, as an application does; what another operation appends
between the two is a conflict, recorded as one and not tried again. `expect=log` expects what the log had: an operation
that overtakes another of the same stream conflicts, and so does all that follows on that stream once one of its operations
was lost. That is the strict question, for logs that are played no faster than they were.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from hashlib import sha256
from typing import Any

import numpy as np

from eventcore_lab.commands import Executor
from eventcore_lab.events import STREAM_ID_MAX_CHARS, NewEvent, StreamId, StreamWrite
from eventcore_lab.load.replay import Replay
from eventcore_lab.load.traces import AUTO, EXAMPLE, Reading
from eventcore_lab.load.workloads.payloads import APPEND_BYTES_MAX, PAYLOAD_BYTES_MAX, filling, payload
from eventcore_lab.load.workloads.workload import EVENTS_PER_APPEND_MAX, Performer, Plain, mixed, within, workloads
from eventcore_lab.spec import unknown
from eventcore_lab.stores.protocol import Store

EXPECTS = ("read", "log")
NO_TYPE = "Happened"
"""The type of an event for which the log names none."""
TYPE_MAX_CHARS = 255
_PREFIX_CHARS = 17
_NO_STREAM_ID = re.compile(r"[\x00-\x1f*?\[\]%~]")
_NO_TYPE_NAME = re.compile(r"[\x00-\x1f%~]")


class Replayed(Plain):
    """The operations of a `Replay`, each a list of writes, one per stream."""

    def __init__(self, seed: int, replay: Replay, payload_bytes: int, expect: str) -> None:
        selection = replay.selection
        within("payload_bytes", payload_bytes, 1, PAYLOAD_BYTES_MAX)
        if expect not in EXPECTS:
            raise unknown("expect", expect, EXPECTS)
        most = int(np.diff(selection.begins).max())
        within(f"the events of one operation of {selection.trace.name}", most, 1, EVENTS_PER_APPEND_MAX)
        within("payload_bytes × the events of one operation", most * payload_bytes, 1, APPEND_BYTES_MAX)
        self._seed, self._replay, self._bytes, self._expect = seed, replay, payload_bytes, expect
        self._selection = selection
        filling()  # made before the load, not in it
        self._stream, self._type = _names(selection.trace.streams), _types(selection.trace.types)

    def prepare(self, k: int) -> Sequence[StreamWrite]:
        selection = self._selection
        copy, k = divmod(k, len(selection))
        prefix, first = f"{mixed(self._seed, copy):016x}-", copy * len(selection.stream)
        of_stream: dict[int, tuple[int, list[NewEvent]]] = {}
        begin, end = int(selection.begins[k]), int(selection.begins[k + 1])
        columns = (column[begin:end].tolist() for column in (selection.stream, selection.type, selection.before))
        for event, (stream, kind, before) in enumerate(zip(*columns, strict=True), first + begin):
            made = NewEvent(self._type[kind], payload(event, self._bytes))
            of_stream.setdefault(stream, (before, []))[1].append(made)
        return [
            StreamWrite(StreamId(prefix + self._stream(stream)), before, tuple(events))
            for stream, (before, events) in of_stream.items()
        ]

    def start(self, store: Store, executor: Executor) -> Performer:
        append, read_streams, is_read = store.append, store.read_streams, self._expect == "read"

        async def perform(prepared: Any) -> int:
            if is_read:  # behind where the log had them, so that versions come and, in the log's order, no events
                streams, behind = [w.stream for w in prepared], [w.expected + 1 for w in prepared]
                slices = await read_streams(streams, behind)
                prepared = [
                    StreamWrite(w.stream, found.version, w.events) for w, found in zip(prepared, slices, strict=True)
                ]
            await append(prepared)
            return sum(len(w.events) for w in prepared)

        return perform

    @property
    def notes(self) -> tuple[tuple[str, str], ...]:
        return (("trace replayed", f"{self._replay.said}; expect={self._expect}"),)


def _names(streams: list[str]) -> Callable[[int], str]:
    """The streams' names as they are in a store, made when first asked for; some logs have millions."""

    @lru_cache(maxsize=100_000)
    def name(n: int) -> str:
        return safe(streams[n], _NO_STREAM_ID, STREAM_ID_MAX_CHARS - _PREFIX_CHARS)

    return name


def _types(types: list[str]) -> list[str]:
    return [safe(name, _NO_TYPE_NAME, TYPE_MAX_CHARS) if name.strip() else NO_TYPE for name in types]


def safe(name: str, forbidden: re.Pattern[str], chars_max: int) -> str:
    """`name` as a store can have it, and no other name as the same: what is `forbidden` written as %2A, and one that is
    too long then cut, with ~ and half of its SHA-256 behind."""
    written = forbidden.sub(lambda found: f"%{ord(found[0]):02X}", name)
    if len(written) <= chars_max:
        return written
    digest = sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:32]
    return f"{written[: chars_max - 33]}~{digest}"


@workloads.register("trace")
def trace(
    *,
    file: str = EXAMPLE,
    payload_bytes: int = 200,
    expect: str = "read",
    speed: float = 1.0,
    keep: float = 1.0,
    thin: str = "operations",
    thin_seed: int = 0,
    from_s: float = 0.0,
    to_s: float = 0.0,
    repeat: bool = True,
    tz: str = "UTC",
    time: str = AUTO,
    stream: str = AUTO,
    type: str = AUTO,
    transaction: str = AUTO,
    seed: int,
) -> Replayed:
    """The appends of a log in `file` (Parquet or CSV): operation k is its transaction k, over the streams it was over."""
    reading = Reading(file=file, tz=tz, time=time, stream=stream, type=type, transaction=transaction)
    replay = Replay(
        reading=reading,
        speed=speed,
        keep=keep,
        thin=thin,
        thin_seed=thin_seed,
        from_s=from_s,
        to_s=to_s,
        repeat=repeat,
    )
    return Replayed(seed, replay, payload_bytes, expect)
