"""Events that say nothing but their number, with payloads of exactly as many bytes as a distribution of sizes says.

Event n is a pure function of the seed and n (but for its id), however many of them go into one append. A payload is JSON,
filled up with text that does not compress: PostgreSQL would make 80 bytes of 5,000 times the same letter (TOAST, from about
2 kB on), and a large event would cost the server next to nothing.
"""

from __future__ import annotations

from base64 import b64encode
from functools import lru_cache
from random import Random

from eventcore_lab.events import NewEvent
from eventcore_lab.load.chance import mixed
from eventcore_lab.load.workloads.sizes import Sizes
from eventcore_lab.load.workloads.workload import within

PAYLOAD_BYTES_MAX = 1_000_000
APPEND_BYTES_MAX = 100_000_000
TYPE = "TestHappened"

_FORM = b'{"test":%d,"pad":"%b"}'
_FORM_BYTES = len(_FORM % (0, b"")) - 1
_SIZES = -2
"""A number that no operation has, as sizes._LENGTHS."""


def check_bytes(batch: int, sizes: Sizes) -> None:
    """ValueError if an append of `batch` events would be larger, on average, than any process should hold at once."""
    within("batch × payload_bytes", batch * sizes.mean, 1, APPEND_BYTES_MAX)


@lru_cache(maxsize=1)
def filling() -> bytes:
    """PAYLOAD_BYTES_MAX bytes that do not compress, and need no escape in JSON; the same for every seed and process."""
    return b64encode(Random(0).randbytes(PAYLOAD_BYTES_MAX * 3 // 4))


def payload(number: int, size: int) -> bytes:
    """JSON of exactly `size` bytes, or of as few as there can be: 19 and what the number has in digits after its first."""
    return _FORM % (number, _fill(size, len(str(number))))


def _fill(size: int, digits: int) -> bytes:
    """What makes a payload with a number of so many digits `size` bytes long."""
    return filling()[: max(0, size - _FORM_BYTES - digits)]


class Numbered:
    """The events of one seed: `numbered(first, end)` makes those from number `first` up to but without `end`."""

    def __init__(self, seed: int, sizes: Sizes) -> None:
        self._draw, self._own, self._constant = sizes.draw, mixed(seed, _SIZES), sizes.constant
        filling()  # made before the load, not in it
        self._alike = (0, 0, b"")

    def __call__(self, first: int, end: int) -> list[NewEvent]:
        if self._constant:  # which costs no more than it must: numbers of as many digits have one filling
            low, high, fill = self._alike
            if low <= first and end <= high:
                return [NewEvent(TYPE, _FORM % (n, fill)) for n in range(first, end)]
            digits = len(str(first))
            self._alike = 10 ** (digits - 1), 10**digits, _fill(self._constant, digits)
        draw, own = self._draw, self._own
        return [NewEvent(TYPE, payload(n, draw(mixed(own, n)))) for n in range(first, end)]
