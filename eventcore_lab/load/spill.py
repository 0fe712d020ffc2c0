"""Evidence that is too much for memory waits in a file of the spool until it is written as what it will be.

A load of hours would else keep every append until its end. `spill` costs half a microsecond for each: it only packs (msgpack)
into a buffer. A thread compresses and writes what has come together, so that the loop never waits for a disk; while the disk
does not come after, whoever spills keeps what it has. The file is of no use to anybody else: one that a killed process has left
behind is ignored, and removed with its folder.
"""

from __future__ import annotations

import math
import queue
import struct
import threading
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Generic, TypeVar

import msgspec
import pyarrow as pa

from eventcore_lab.clock import NS_PER_S, now_ns

SPILLED = ".spill"
"""How the names of such files end."""
KEPT_MAX = 4_000
"""So many of the newest are kept in memory by whoever spills; a short run never gets there and packs nothing."""
AT_ONCE = 64
CHUNK_BYTES = 256 * 1024
CHUNKS_WAITING_MAX = 32
FLUSH_EVERY_NS = 2 * NS_PER_S
_LENGTH = struct.Struct("<I")
_HEAD = struct.Struct("<II")
"""Before each chunk in the file: its length as it was, and compressed."""
_codec = pa.Codec("zstd", compression_level=1)

T = TypeVar("T")


class Spill(Generic[T]):
    """Things of type `kind`, the newest of them in `kept`, the others on their way through the file at `path` if there is one.
    Whoever adds one to `kept` calls `spill` when they are more than `full`. Used by one thread."""

    def __init__(self, path: Path | None, kind: Any, kept_max: int = KEPT_MAX) -> None:
        self.kept: deque[T] = deque()
        self.full: float = kept_max + AT_ONCE if path is not None else math.inf
        self._path = path or Path()
        self._encode_into = msgspec.msgpack.Encoder(uuid_format="bytes").encode_into
        self._decode = msgspec.msgpack.Decoder(list[kind]).decode
        self._buffer = bytearray()
        self._flushed_ns = now_ns()
        self._waiting: queue.Queue[bytearray | None] = queue.Queue(maxsize=CHUNKS_WAITING_MAX)
        self._writer: threading.Thread | None = None
        self._error: OSError | None = None

    def spill(self) -> None:
        """Have AT_ONCE of the oldest leave, and as many again after the disk has kept us waiting; none while it does."""
        for _ in range(2):
            if (
                len(self.kept) <= self.full
                or (len(self._buffer) >= CHUNK_BYTES and self._waiting.full())
                or self._error
            ):
                return
            self._pack([self.kept.popleft() for _ in range(AT_ONCE)])

    def _pack(self, oldest: list[T]) -> None:
        buffer = self._buffer
        at = len(buffer)
        buffer += b"\0\0\0\0"
        self._encode_into(oldest, buffer, -1)
        _LENGTH.pack_into(buffer, at, len(buffer) - at - _LENGTH.size)
        if len(buffer) >= CHUNK_BYTES or now_ns() - self._flushed_ns > FLUSH_EVERY_NS:
            self._flush()

    def _flush(self) -> None:
        if self._writer is None:
            self._writer = threading.Thread(target=self._write, name=self._path.name, daemon=True)
            self._writer.start()
        if not self._waiting.full():  # nobody else puts anything in
            self._waiting.put_nowait(self._buffer)
            self._buffer, self._flushed_ns = bytearray(), now_ns()

    def _write(self) -> None:
        """The thread's work: until None comes."""
        try:
            with self._path.open("wb") as file:
                while (chunk := self._waiting.get()) is not None:
                    packed = _codec.compress(chunk, asbytes=True)
                    file.write(_HEAD.pack(len(chunk), len(packed)) + packed)
                    file.flush()
        except OSError as error:
            self._error = error
            while self._waiting.get() is not None:  # so that nobody waits for a place for ever
                continue

    def taken_out(self) -> Iterator[T]:
        """Everything there was, in its order; afterwards the file is gone. Raises OSError when it could not be kept."""
        if self._writer is not None:
            self._waiting.put(None)
            self._writer.join()
            self._writer = None
            if self._error is not None:
                raise self._error
            with self._path.open("rb") as file:
                for chunk in _chunks(file):
                    yield from self._things(chunk)
            self._path.unlink()
        rest, self._buffer = self._buffer, bytearray()
        yield from self._things(rest)
        yield from self.kept

    def _things(self, chunk: bytes | bytearray) -> Iterator[T]:
        at, view = 0, memoryview(chunk)
        while at < len(view):
            begin = at + _LENGTH.size
            at = begin + _LENGTH.unpack_from(view, at)[0]
            yield from self._decode(view[begin:at])


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    while head := file.read(_HEAD.size):
        length, packed = _HEAD.unpack(head)
        yield _codec.decompress(file.read(packed), length, asbytes=True)
