"""How far another machine's clock is ahead of ours, how well that is known, and what the doubt does to evidence."""

from __future__ import annotations

import io
from collections.abc import Iterable

import pyarrow as pa
import pyarrow.parquet as pq
from msgspec import Struct

DRIFT_ONE_IN = 1000
"""A clock that is being corrected gains or loses at most 500 ppm (adjtime(3)), and so does ours."""


class Offset(Struct, frozen=True):
    """How far another clock is ahead of ours, within ± `error_ns`."""

    offset_ns: int
    error_ns: int


def offset_of(trips: Iterable[tuple[int, int, int]]) -> Offset:
    """From round trips: when it was sent and came back by our clock, and in between what the other clock said. The shortest
    says most: the other clock was looked at somewhere in it, so half of it is the error (Mills, RFC 5905, section 8)."""
    sent_ns, said_ns, back_ns = min(trips, key=lambda trip: trip[2] - trip[0])
    middle_ns, half_ns = (sent_ns + back_ns) // 2, (back_ns - sent_ns + 1) // 2
    return Offset(said_ns - middle_ns, half_ns + 1)


def doubt_ns(before: Offset, after: Offset | None, between_ns: int) -> int:
    """How far a time of the other clock, taken between the two comparisons and put on ours by the first, can be from the
    truth: the clock may have drifted from the one to the other. Without the second, as far as clocks can in that time."""
    if after is None:
        return before.error_ns + between_ns // DRIFT_ONE_IN
    return max(before.error_ns, abs(after.offset_ns - before.offset_ns) + after.error_ns)


def widened(content: bytes, by_ns: int) -> bytes:
    """A file of evidence whose spans reach `by_ns` further at both ends."""
    table = pq.read_table(io.BytesIO(content))
    for name, far_ns in (("began_ns", -by_ns), ("ended_ns", by_ns)):
        further = pa.array(table[name].to_numpy() + far_ns, table.schema.field(name).type)
        table = table.set_column(table.column_names.index(name), table.schema.field(name), further)
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()
