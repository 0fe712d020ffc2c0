"""Time stamps of a log, whatever they are written as, to nanoseconds since 1970. traces.py reads the log around them.

Text is ISO 8601, from a date alone to nine digits of a second (more are cut off), with T or a blank, with or without an
offset; or a number, for the whole column. A number counts since 1970: in seconds, ms, µs or ns, which its size tells. A
stamp without an offset is local to a time zone. Nothing is guessed: what is no time, and a local time that a clock put
forward has left out, is rejected under its reason; one that a clock put back shows twice keeps both of its instants until
`settled`. A stamp that is `far` from the others says "never" or "not known" in most systems (1900-01-01, 0, 9999-12-31).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from eventcore_lab.clock import NS_PER_S

Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]

EMPTY, NO_TIME, LEFT_OUT = "without a stamp", "with a stamp that is no time", "at a local time that does not exist"
YEARS = 1678, 2261
"""Whole years that 64 bits of nanoseconds hold."""
FAR_YEARS = 30
FAR_NS = FAR_YEARS * 31_556_952 * NS_PER_S
FAR = f"more than {FAR_YEARS} years from the log's median"

_ISO = (
    r"^(?P<year>\d{4})[-/](?P<month>\d{1,2})[-/](?P<day>\d{1,2})"
    r"(?:[Tt ] *(?P<hour>\d{1,2}):(?P<minute>\d{2})(?::(?P<second>\d{2})(?:\.(?P<fraction>\d{1,9})\d*)?)?)?"
    r" ?(?P<utc>[Zz]|UTC)?(?:(?P<sign>[+-])(?P<hours>\d{2}):?(?P<minutes>\d{2})?)?$"
)
_NUMBER = r"^(?P<sign>[+-]?)0*(?P<whole>\d{1,18}|[1-8]\d{18})(?:\.(?P<fraction>\d{0,9})\d*)?$"
_EXPONENT = r"^[+-]?(?:\d+\.?\d*|\.\d+)[eE][+-]?\d{1,3}$"
_LIKE_A_NUMBER = r"^[+-]?(?:\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?$"
_UNITS = ((1e11, "s", NS_PER_S), (1e14, "ms", 1_000_000), (1e17, "µs", 1_000), (np.inf, "ns", 1))
"""Below which size a number counts what, in ns: seconds up to the year 5138, and so on; the median decides."""


class Instants(Struct, frozen=True):
    """One entry per row. `late` is `early` but for a local time that there was twice. `wrong`: reason → its rows, of which
    none has two; their instants mean nothing. `unit`: what numbers count, "" for anything else."""

    early: Ints
    late: Ints
    wrong: dict[str, Mask]
    unit: str = ""

    @property
    def is_kept(self) -> Mask:
        return np.asarray(~np.logical_or.reduce(list(self.wrong.values())))


def instants(column: Any, zone: str, name: str) -> Instants:
    """A column of Arrow (chunked array) as instants; ValueError for one of a type that tells no time, and for a time zone
    that nobody knows."""
    import pyarrow as pa

    kind = column.type
    if pa.types.is_dictionary(kind):
        column, kind = column.cast(kind.value_type), kind.value_type
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return _of_times(column, zone)
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return _of_numbers(column)
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_decimal(kind)):
        raise ValueError(f"the column {name!r} is of type {kind}, which tells no time")
    return _of_text(column.cast(pa.large_string()), zone)


def _of_times(column: Any, zone: str) -> Instants:
    import pyarrow as pa

    unit = "s" if pa.types.is_date(column.type) else column.type.unit
    has_zone = not pa.types.is_date(column.type) and column.type.tz is not None
    ticks = column.cast(pa.timestamp(unit)).cast(pa.int64())
    per_tick = NS_PER_S // {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[unit]
    ns, wrong = _scaled(ticks.fill_null(0).to_numpy(), per_tick), {EMPTY: _mask(ticks.is_null())}
    wrong[NO_TIME] = _outside(ticks.fill_null(0).to_numpy().astype(np.float64), per_tick)
    return Instants(ns, ns, wrong) if has_zone else _local(ns, wrong, np.ones(len(ns), np.bool_), zone)


def _of_numbers(column: Any) -> Instants:
    import pyarrow as pa
    import pyarrow.compute as pc

    is_float = pa.types.is_floating(column.type)
    empty = _mask(pc.is_null(column, nan_is_null=True))
    values = column.cast(pa.float64() if is_float else pa.int64(), safe=False).fill_null(0).to_numpy()
    values = np.where(empty, values.dtype.type(0), values)
    unit, per_tick = _unit(values[~empty & np.isfinite(values)].astype(np.float64))
    wrong = {EMPTY: empty, NO_TIME: ~empty & _outside(values.astype(np.float64), per_tick)}
    if is_float:
        ns = _rounded(values, per_tick)
    else:
        ns = np.where(wrong[NO_TIME], 0, values) * per_tick
    return Instants(ns, ns, wrong, unit)


def _of_text(column: Any, zone: str) -> Instants:
    import pyarrow.compute as pc

    text = pc.utf8_trim_whitespace(column.fill_null("")).combine_chunks()
    empty = _mask(pc.equal(text, ""))
    numbers = np.count_nonzero(_mask(pc.match_substring_regex(text, _LIKE_A_NUMBER)))
    if 2 * numbers > len(text) - np.count_nonzero(empty):
        return _of_written_numbers(text, empty)
    found = pc.extract_regex(text, _ISO)
    part = {name: _group(found, name) for name in ("year", "month", "day", "hour", "minute", "second")}
    ns, is_time = _civil(part)
    ns += _group(found, "fraction", digits=9)
    hours, minutes = _group(found, "hours"), _group(found, "minutes")
    is_time &= _mask(found.is_valid()) & (hours < 24) & (minutes < 60)
    ns -= (hours * 60 + minutes) * 60 * NS_PER_S * np.where(_is(found, "sign", "-"), -1, 1)
    wrong = {EMPTY: empty, NO_TIME: ~empty & ~is_time}
    return _local(ns, wrong, _is(found, "sign", "") & _is(found, "utc", "") & is_time, zone)


def _civil(part: dict[str, Ints]) -> tuple[Ints, Mask]:
    """Year to second as ns since 1970, and whether the calendar and the clock have that."""
    is_time = (part["year"] >= YEARS[0]) & (part["year"] <= YEARS[1]) & (part["month"] >= 1) & (part["month"] <= 12)
    months = np.where(is_time, (part["year"] - 1970) * 12 + part["month"] - 1, 0).astype("datetime64[M]")
    days = months.astype("datetime64[D]") + np.where(is_time, part["day"] - 1, 0)
    is_time &= days.astype("datetime64[M]") == months
    is_time &= (part["hour"] < 24) & (part["minute"] < 60) & (part["second"] < 60)
    seconds = days.astype(np.int64) * 86_400 + part["hour"] * 3_600 + part["minute"] * 60 + part["second"]
    return np.where(is_time, seconds, 0) * NS_PER_S, is_time


def _of_written_numbers(text: Any, empty: Mask) -> Instants:
    """Whole and fraction apart, so that no digit is lost; but with an exponent as a float is read, for it was one."""
    import pyarrow as pa
    import pyarrow.compute as pc

    found = pc.extract_regex(text, _NUMBER)
    whole, is_number = _group(found, "whole"), _mask(found.is_valid())
    is_float = _mask(pc.match_substring_regex(text, _EXPONENT))
    floats = pc.if_else(pa.array(is_float), text, "0").cast(pa.float64()).to_numpy(zero_copy_only=False)
    sizes = np.where(is_float, np.abs(floats), whole)
    is_number |= is_float
    unit, per_tick = _unit(sizes[is_number])
    is_number &= ~_outside(sizes, per_tick)
    size = _scaled(np.where(is_number, whole, 0), per_tick) + _group(found, "fraction", digits=9) * per_tick // NS_PER_S
    ns = np.where(is_float, _rounded(floats, per_tick), np.where(_is(found, "sign", "-"), -size, size))
    return Instants(ns, ns, {EMPTY: empty, NO_TIME: ~empty & ~is_number}, unit)


def _rounded(values: NDArray[np.float64], per_tick: int) -> Ints:
    """Ticks as nanoseconds; 0 for what 64 bits do not hold."""
    return np.round(np.where(_outside(values, per_tick), 0, values) * per_tick).astype(np.int64)


def _unit(sizes: NDArray[np.float64]) -> tuple[str, int]:
    median = float(np.median(np.abs(sizes))) if len(sizes) else 0.0
    return next((f"epoch {unit}", ns) for most, unit, ns in _UNITS if median < most)


def _outside(ticks: NDArray[np.float64], per_tick: int) -> Mask:
    """Whether so many are too many nanoseconds for 64 bits; a little is left for an offset."""
    return ~(np.abs(ticks) < 9.2e18 / per_tick)


def _scaled(ticks: Ints, per_tick: int) -> Ints:
    return np.where(_outside(ticks.astype(np.float64), per_tick), 0, ticks) * per_tick


def _local(ns: Ints, wrong: dict[str, Mask], is_local: Mask, zone: str) -> Instants:
    """`ns`, of which those that are local show a clock of `zone`, as instants."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if zone == "UTC":
        return Instants(ns, ns, wrong)
    shown = pa.array(ns[is_local], pa.timestamp("ns"))
    try:
        both = [pc.assume_timezone(shown, zone, ambiguous=one, nonexistent=one) for one in ("earliest", "latest")]
    except pa.ArrowInvalid:
        raise ValueError(f"tz={zone} is no time zone (write one such as Europe/Berlin)") from None
    early, late, left_out = ns.copy(), ns.copy(), np.zeros(len(ns), np.bool_)
    early[is_local], late[is_local] = (each.cast(pa.int64()).to_numpy() for each in both)
    left_out[is_local] = _mask(pc.not_equal(pc.local_timestamp(both[0]), shown))
    return Instants(early, late, {**wrong, LEFT_OUT: left_out & ~np.logical_or.reduce(list(wrong.values()))})


def far(ns: Ints, is_kept: Mask) -> Mask:
    """Which of the instants that are kept are more than FAR_YEARS from the median of these (of an even number the later, so
    that it is one of them): no log of one system is that long, and one such row would be all that a replay comes to."""
    kept = ns[is_kept]
    if not len(kept):
        return np.zeros(len(ns), np.bool_)
    median = int(np.partition(kept, len(kept) // 2)[len(kept) // 2])
    return is_kept & (
        (ns < median - FAR_NS) | (ns > median + FAR_NS)
    )  # NumPy compares also with what 64 bits do not hold


def settled(early: Ints, late: Ints, streams: NDArray[np.int32]) -> tuple[Ints, int]:
    """Instants of rows in the order of their file, and how many of them were a local time that there was twice.

    Such a row is at the later of its two instants if the row before it is behind the earlier one and not behind the later:
    the order of the file tells. A file whose certain rows do not ascend tells it only within a stream.
    """
    twice = late > early
    if not twice.any():
        return early, 0
    is_sorted = bool((np.diff(early[~twice]) >= 0).all())
    order = np.arange(len(early)) if is_sorted else np.argsort(streams, kind="stable")
    groups = np.zeros_like(order) if is_sorted else streams[order]
    ns, later = early[order], late[order]
    for row in np.flatnonzero(twice[order]).tolist():
        if row and groups[row - 1] == groups[row] and ns[row] < ns[row - 1] <= later[row]:
            ns[row] = later[row]
    found = np.empty_like(ns)
    found[order] = ns
    return found, int(np.count_nonzero(twice))


def _group(found: Any, name: str, digits: int = 0) -> Ints:
    """A group of a regular expression as whole numbers, 0 where there is none; of a fraction as many `digits`."""
    import pyarrow as pa
    import pyarrow.compute as pc

    text = pc.struct_field(found, name).fill_null("")
    text = pc.utf8_rpad(text, digits, "0") if digits else text
    return np.asarray(pc.if_else(pc.equal(text, ""), "0", text).cast(pa.int64()).to_numpy(zero_copy_only=False))


def _is(found: Any, name: str, text: str) -> Mask:
    import pyarrow.compute as pc

    return _mask(pc.equal(pc.struct_field(found, name).fill_null(""), text))


def _mask(column: Any) -> Mask:
    """Booleans of Arrow, in one piece or several, as NumPy has them."""
    import pyarrow as pa

    whole = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return np.array(whole.to_numpy(zero_copy_only=False), np.bool_)
