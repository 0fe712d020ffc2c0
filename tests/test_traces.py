"""Claims about logs that are replayed: what is read of them, what is rejected and why, when operations are due again, and
what a store holds afterwards."""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta, timezone
from fractions import Fraction
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from eventcore_lab.clock import NS_PER_S
from eventcore_lab.commands import Direct
from eventcore_lab.events import VersionConflict, stream_id
from eventcore_lab.experiment import Experiment
from eventcore_lab.lab.database import Lab
from eventcore_lab.load import traces
from eventcore_lab.load.pacers import HasNotes, Schedule, pacers
from eventcore_lab.load.replay import Replay, Selection, mixed_each
from eventcore_lab.load.stamps import EMPTY, FAR, FAR_NS, LEFT_OUT, NO_TIME, instants
from eventcore_lab.load.traces import (
    LONG,
    NO_STREAM,
    NO_TEXT,
    ODD_QUOTES,
    TOO_FEW,
    TOO_MANY,
    TWICE,
    UNSORTED,
    Reading,
    Trace,
    read_trace,
)
from eventcore_lab.load.workloads import Workload, mixed, workloads
from eventcore_lab.load.workloads.trace import Replayed
from eventcore_lab.progress import Quiet
from eventcore_lab.spec import UsageError
from eventcore_lab.stores import Store
from eventcore_lab.stores.memory import Memory
from eventcore_lab.workbench import run

SHARED = Path(__file__).parent.parent.parent / "shared" / "data"
HEAD = "ts,stream_id,event_type\n"
MINUTE = 60 * NS_PER_S


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("logs")


def written(folder: Path, text: str | bytes, name: str = "log.csv") -> str:
    """A file with that in it; each has a name of its own, for two of one size may be written within one tick of the clock."""
    path = folder / f"{len(list(folder.iterdir()))}-{name}"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def read(folder: Path, text: str | bytes, **options: str) -> Trace:
    return read_trace(Reading(file=written(folder, text), **options))


def rows_of(trace: Trace) -> list[tuple[int, str, str]]:
    """(ns since the first, stream, type) of every event."""
    return [(int(trace.at_ns[k]), *event) for k in range(len(trace)) for event in trace.events(k)]


def odd(trace: Trace) -> dict[str, int]:
    """What is counted beside what was kept."""
    return {what: n for what, n in trace.counts.items() if what not in ("operations", "events", "streams")}


def minutes(trace: Trace) -> list[float]:
    return (trace.at_ns / MINUTE).tolist()


def log_of(folder: Path, seconds: Sequence[float], streams: Sequence[str] = ("a",), tail: Sequence[str] = ()) -> str:
    """A log with an operation at each time, on the streams in turn; `tail`: the transaction of each."""
    head = "ts,stream,type" + (",txn" if tail else "")
    lines = [f"{s!r},{streams[n % len(streams)]},T{n}" + (f",{tail[n]}" if tail else "") for n, s in enumerate(seconds)]
    return written(folder, "\n".join([head, *lines]))


# --- reading CSV ----------------------------------------------------------------------------------------------------

TWO = [(0, "a", "X"), (NS_PER_S, "b", "Y")]
DIRT = {
    "plain": (HEAD + "2021-01-01T00:00:00Z,a,X\n2021-01-01T00:00:01Z,b,Y\n", {}),
    "a byte order mark": ("\ufeff" + HEAD + "2021-01-01T00:00:00Z,a,X\n2021-01-01T00:00:01Z,b,Y\n", {}),
    "semicolons": ("ts;stream;type\n2021-01-01 00:00:00;a;X\n2021-01-01 00:00:01;b;Y\n", {}),
    "tabs": ("ts\tstream\ttype\n2021-01-01 00:00:00\ta\tX\n2021-01-01 00:00:01\tb\tY\n", {}),
    "pipes": ("ts|stream|type\n2021-01-01 00:00:00|a|X\n2021-01-01 00:00:01|b|Y\n", {}),
    "commas in a name": ('ts;"stream,id";a,b,c,d,e;stream;type\n1;2,5;;a;X\n2;3,5;;b;Y\n', {}),
    "CRLF and no last end of line": (HEAD.replace("\n", "\r\n") + "1,a,X\r\n2,b,Y", {}),
    "blank lines": ("\n\n" + HEAD + "\n1,a,X\n\n   \n2,b,Y\n\n", {}),
    "quotes": ('"ts","stream","type"\n"1","a","X"\n"2","b","Y"\n', {}),
    "fields of several lines": ('ts,note,stream,type\n1,"so\n""it"", goes",a,X\n2,"",b,Y\n', {}),
    "other columns, in any order": ("id,event type,Case ID,Timestamp\n9,X,a,1\n8,Y,b,2\n", {}),
    "names of XES": ("case:concept:name,concept:name,time:timestamp\na,X,1\nb,Y,2\n", {}),
    "two columns of one name": ("ts,stream,type,type\n1,a,X,P\n2,b,Y,Q\n", {}),
    "too few and too many fields": (HEAD + "1,a,X\n3,a\n4,a,X,,\n5,a,X,1\n2,b,Y\n", {TOO_FEW: 1, TOO_MANY: 2}),
    "no stamp": (HEAD + "1,a,X\n,a,X\n  ,a,X\n2,b,Y\n", {EMPTY: 2}),
    "no stream": (HEAD + "1,a,X\n1,,X\n2,  ,X\n2,b,Y\n", {NO_STREAM: 2}),
    "no stamp and no stream": (HEAD + "1,a,X\n,,\n2,b,Y\n", {EMPTY: 1}),
    "no order": (HEAD + "2,b,Y\n1,a,X\n", {UNSORTED: 1}),
    "no times": (HEAD + "2021-01-01,a,X\n2021-02-30,a,X\n2021-13-01,a,X\nsoon,a,X\n2021-01-01 00:00:01,b,Y\n", {NO_TIME: 3}),
    "no times of day": (HEAD + "2021-01-01,a,X\n2021-01-01 24:00,a,X\n2021-01-01 00:60,a,X\n2021-01-01 00:00:01,b,Y\n",
                        {NO_TIME: 2}),
    "a decimal comma": ('ts;stream;type\n1;a;X\n"1,5";a;X\n2;b;Y\n', {NO_TIME: 1}),
    "offsets": (HEAD + "2021-01-01T01:00:00+01:00,a,X\n2020-12-31T18:00:01.0-0600,b,Y\n", {}),
    "some with offsets": (HEAD + "2021-01-01T01:00:00+01,a,X\n2021-01-01 00:00:01,b,Y\n", {}),
    "words of UTC": (HEAD + "2021-01-01 00:00:00 UTC,a,X\n2021-01-01t00:00:01z,b,Y\n", {}),
    "slashes": (HEAD + "2021/1/1 0:00,a,X\n2021/1/1 0:00:01,b,Y\n", {}),
    "a quotation mark too many": (HEAD + '1,a,X\n2,b,Y\n3,c,"Z\n', {ODD_QUOTES: 1}),
}  # fmt: skip


@pytest.mark.parametrize("what", DIRT)
def test_what_can_be_used_of_a_dirty_csv_is_read_and_the_rest_counted(what: str, folder: Path) -> None:
    text, counts = DIRT[what]
    trace = read(folder, text)
    assert rows_of(trace)[:2] == TWO
    assert odd(trace) == counts
    kept = 2 + (ODD_QUOTES in counts)
    assert (trace.counts["operations"], trace.counts["events"], trace.counts["streams"]) == (kept,) * 3
    assert all(f"{n} {reason}" in trace.said for reason, n in counts.items())


def test_a_field_of_several_lines_may_be_anywhere_in_a_large_file(folder: Path) -> None:
    """The reader of Arrow takes a MiB at a time, and must not part such a field."""
    text = "ts,note,stream\n" + "".join(f'{n},"so\n""{"it" * 20}""\ngoes",s{n % 7}\n' for n in range(25_000))
    trace = read(folder, text)
    assert trace.counts == {"operations": 25_000, "events": 25_000, "streams": 7}


def test_rows_with_bytes_that_are_no_text_are_rejected_and_the_others_read(folder: Path) -> None:
    """Wherever they are: the reader of Arrow would give up the whole file, also for one in a row that it skips."""
    rows = [b"1,a,X,\xff\n", b"2,\xe9,X,\n", b"\xff,a,X,\n", b"3,a,\xc3\x28,\n", b"\xff\n", b"4,b,\xff,,\xff\n"]
    rows += ["5,ü🙂,\ufffd,\n".encode(), b"6,cut,X,\xe2\x82"]
    trace = read(folder, b"ts,stream,type,note\n" + b"".join(rows))
    assert rows_of(trace) == [(0, "a", "X"), (4 * NS_PER_S, "ü🙂", "\ufffd"), (5 * NS_PER_S, "cut", "X")]
    assert odd(trace) == {NO_TEXT: 3, TOO_FEW: 1, TOO_MANY: 1}
    assert "3 with bytes that are no UTF-8" in trace.said


def test_text_of_several_bytes_may_be_anywhere_in_a_large_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are gone through in pieces, and a character may be in two of these."""
    monkeypatch.setattr(traces, "_ROW_BYTES_MAX", 1 << 16)
    text = "ts,stream\n" + "".join(f"{n},s{'€🙂' * (n % 40)}\n" for n in range(30_000))
    assert odd(read(folder, text)) == {}
    trace = read(folder, text.encode() + b"1,\xff\n")
    assert odd(trace) == {NO_TEXT: 1} and trace.counts["events"] == 30_000
    assert odd(read(folder, b"ts,stream\n1,a\n2,cut\xe2\x82")) == {NO_TEXT: 1}


def test_a_row_of_some_mib_is_read_and_one_too_long_is_refused_in_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    note = "x" * 3_000_000
    assert len(read(folder, f"ts,stream,note\n1,a,{note}\n2,b,\n")) == 2
    monkeypatch.setattr(traces, "_ROW_BYTES_MAX", 1 << 20)
    for quote, hint in ("", ""), ('"', " .a quotation mark is missing, or there is one too many."):
        with pytest.raises(ValueError, match=f"log.csv cannot be read: a row has more than 1 MiB{hint}$"):
            read(folder, f"ts,stream,note\n1,a,{quote}{note}\n2,b,\n")


def test_what_is_said_of_a_log_is_one_line_that_adds_up(folder: Path) -> None:
    trace = read(folder, HEAD + "1000,a,X\n,a,X\n3,,Y\n4\nx,a,X\n2,a,Z\n5,b,Y\n")
    assert trace.said == (
        "3 operations with 3 events on 2 streams; 4 rows rejected (1 with too few fields, 1 without a stamp, 1 with a stamp "
        "that is no time, 1 without a stream); 2 out of order; times read as epoch s"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("\n\n", "is empty"),
        (HEAD, "no row that can be used .it has none"),
        (HEAD + ",a,X\n1,,X\n", "no row that can be used .1 without a stamp, 1 without a stream"),
        (HEAD + "1,a,X,\n2,b,Y,\n", "2 with too many fields"),
        ("when,stream\n1,a\n", "no column for the time .name it: time=….; its columns are 'when', 'stream'"),
        ("ts,who\n1,a\n", "no column for the stream"),
        (HEAD.encode() + b"1,\xff,X\n", "no row that can be used .1 with bytes that are no UTF-8"),
        (HEAD.encode("utf-16"), "neither Parquet nor text"),
        (b"\x1f\x8b\x08\x00", "neither Parquet nor text"),
        (b"PAR1 but no more", "cannot be read: "),
    ],
)
def test_a_file_of_which_nothing_can_be_used_is_refused_in_one_line(
    text: str | bytes, message: str, folder: Path
) -> None:
    with pytest.raises(UsageError, match=message) as refused:
        pacers.make(f"trace:file={written(folder, text)}")
    assert "\n" not in str(refused.value)


def test_columns_can_be_named_and_left_out(folder: Path) -> None:
    text = "ts,stream,type,time2,who,what,txn\n1,a,X,20,p,M,1\n2,a,X,10,q,N,1\n"
    assert len(read(folder, text)) == 1
    named = read(folder, text, time="time2", stream="Who", type="what", transaction="none")
    assert rows_of(named) == [(0, "q", "N"), (10 * NS_PER_S, "p", "M")]
    assert rows_of(read(folder, text, type="none", transaction="none"))[0] == (0, "a", "")
    with pytest.raises(ValueError, match="no column 'whom'; its columns are 'ts', 'stream'"):
        read(folder, text, stream="whom")
    with pytest.raises(ValueError, match="no column 'x'"):
        read(folder, text, transaction="x")


def test_no_file_and_too_many_rows_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for make in (pacers.make, lambda spec: workloads.make(spec, seed=1)):
        with pytest.raises(UsageError, match="there is no file 'nowhere.csv'"):
            make("trace:file=nowhere.csv,repeat=false")
    monkeypatch.setattr(traces, "EVENTS_MAX", 2)
    assert len(read(folder, HEAD + "1,a,X\n2,a,X\n")) == 2
    with pytest.raises(ValueError, match="more than 2 rows"):
        read(folder, HEAD + "1,a,X\n2,a,X\n3,a,X\n")


def test_a_log_is_read_once_and_again_when_it_has_changed(folder: Path) -> None:
    file = written(folder, HEAD + "1,a,X\n")
    first = read_trace(Reading(file=file))
    assert read_trace(Reading(file=file)) is first
    Path(file).write_text(HEAD + "1,a,X\n2,b,Y\n")
    second = read_trace(Reading(file=file))
    assert (len(first), len(second)) == (1, 2)
    assert first.digest != second.digest and len(first.digest) == 16


WORDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=6)
NANOSECONDS = st.integers(-(2**58), 2**59)
LOGS = st.lists(st.tuples(NANOSECONDS, WORDS, WORDS, st.sampled_from(["", "1", "2", "é"])), min_size=1, max_size=12)


def iso(ns: int, style: int) -> str:
    seconds, fraction = divmod(ns, NS_PER_S)
    shift_s = (0, 0, 0, 5400, -36_000)[style]
    moment = datetime(1970, 1, 1) + timedelta(seconds=seconds + shift_s)
    text = moment.isoformat(sep="T" if style % 2 else " ") + f".{fraction:09}"
    return text + ("", "Z", " UTC", "+01:30", "-1000")[style]


@given(
    log=LOGS,
    style=st.integers(-1, 4),
    delimiter=st.sampled_from(",;\t|"),
    end=st.sampled_from(["\n", "\r\n"]),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    bom=st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_a_log_written_in_any_dialect_reads_back_as_it_was(
    folder: Path, log: list[tuple[int, str, str, str]], style: int, delimiter: str, end: str, quoting: Any, bom: bool
) -> None:
    text = io.StringIO()
    if any("\r" in word for _, *words in log for word in words):
        quoting = csv.QUOTE_ALL  # the writer of Python 3.11 would not think that it needs quotes
    writer = csv.writer(text, delimiter=delimiter, lineterminator=end, quoting=quoting)
    writer.writerow(["ts", "stream", "type", "txn"])
    writer.writerows([str(ns) if style < 0 else iso(ns, style), *words] for ns, *words in log)
    kept = [row for row in log if row[1].strip()]
    # numbers of which half are below 10^17 are no nanoseconds
    assume(kept and (style >= 0 or np.median(np.abs([ns for ns, *_ in log])) >= 1e17))
    trace = read(folder, ("\ufeff" if bom else "") + text.getvalue())

    operations: dict[object, tuple[int, list[tuple[str, str]]]] = {}
    for n, (ns, stream, kind, transaction) in sorted(enumerate(kept), key=lambda row: row[1][0]):
        operations.setdefault(transaction or n, (ns, []))[1].append((stream, kind if kind.strip() else ""))
    found = [(int(at), trace.events(k)) for k, at in enumerate(trace.at_ns)]
    first = next(iter(operations.values()))[0]
    assert found == [(ns - first, events) for ns, events in operations.values()]
    assert trace.counts["events"] == len(kept) and trace.counts.get(NO_STREAM, 0) == len(log) - len(kept)


# --- stamps ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("unit", "per_s"), [("s", 1), ("ms", 10**3), ("µs", 10**6), ("ns", 10**9)])
@pytest.mark.parametrize("digits", ["", ".0", ".5", ".25"])
def test_the_unit_of_numbers_is_found_by_their_size(unit: str, per_s: int, digits: str, folder: Path) -> None:
    first = 1_700_000_000 * per_s
    trace = read(folder, HEAD + f"{first},a,X\n{first + 7 * per_s}{digits},b,Y\n{first // 2},c,Z\n")
    assert trace.unit == f"epoch {unit}" and f"times read as epoch {unit}" in trace.said
    gap = int(Fraction(7) * NS_PER_S + Fraction(digits or "0") * NS_PER_S / per_s)
    assert np.diff(trace.at_ns).tolist() == [first // 2 * (NS_PER_S // per_s), gap]


def test_no_digit_of_a_number_is_lost_and_one_too_large_is_no_time(folder: Path) -> None:
    trace = read(folder, HEAD + "170000000.123456789,a,X\n-1.5,b,Y\n170000000.1234567891,c,X\n99999999999999,d,X\n")
    assert rows_of(trace) == [(0, "b", "Y"), *((170_000_001_623_456_789, s, "X") for s in "ac")]
    assert odd(trace) == {NO_TIME: 1, UNSORTED: 1}


FLOATS = st.floats(1e9, 2e9) | st.floats(-1e8, 1e8) | st.sampled_from([0.0, 1e11, 1e300, math.inf])


@example(stamps=[1e9] * 3 + [1e300] * 2 + [math.inf], form="{:.16e}")
@given(stamps=st.lists(FLOATS, min_size=3, max_size=8), form=st.sampled_from(["{:.16e}", "{:.16E}", "+{:.16e}"]))
@settings(max_examples=60, deadline=None)
def test_numbers_with_an_exponent_mean_in_text_what_they_mean_as_floats(stamps: list[float], form: str) -> None:
    texts = [form.format(stamp).replace("+-", "-") for stamp in stamps]
    assume(sum(map(math.isfinite, stamps)) > len(stamps) / 2)  # else they are not numbers but for a few
    as_floats, as_texts = (instants(pa.chunked_array([column]), "UTC", "ts") for column in (stamps, texts))
    assert as_texts.is_kept.tolist() == as_floats.is_kept.tolist()
    assert as_texts.early[as_texts.is_kept].tolist() == as_floats.early[as_floats.is_kept].tolist()
    assert as_texts.unit == as_floats.unit


def test_a_column_may_have_numbers_with_an_exponent_and_without(folder: Path) -> None:
    trace = read(folder, HEAD + "1.7e9,a,X\n1700000001,b,Y\n17000000025E-1,c,Z\n1e,d,X\n1e9999,e,X\n")
    assert rows_of(trace) == [(0, "a", "X"), (NS_PER_S, "b", "Y"), (NS_PER_S * 5 // 2, "c", "Z")]
    assert odd(trace) == {NO_TIME: 2}


@pytest.mark.parametrize("stamp", ["1700-01-01", "1900-01-01", "1970-01-01", "2199-12-31", "2261-12-31"])
@pytest.mark.parametrize("place", [0, 25, 50])
def test_a_stamp_that_is_far_from_all_others_is_rejected_and_the_rest_is_due(
    stamp: str, place: int, folder: Path
) -> None:
    """One such row made the log so long that 64 bits of nanoseconds did not hold it, and nothing else was ever due."""
    rows = [f"2024-01-01T00:00:{n:02d},a,X\n" for n in range(50)]
    file = written(folder, HEAD + "".join([*rows[:place], f"{stamp},never,X\n", *rows[place:]]))
    trace = read_trace(Reading(file=file))
    assert (trace.at_ns // NS_PER_S).tolist() == [*range(50)]
    assert odd(trace) == {FAR: 1} and "1 rows rejected (1 more than 30 years from the log's median)" in trace.said
    assert len(schedule(f"trace:file={file}", 100)) == 100


@given(stamps=st.lists(st.integers(-9_199, 9_199).map(lambda n: n * 10**15), min_size=1, max_size=9))
@settings(max_examples=100, deadline=None)
def test_whatever_the_stamps_are_times_ascend_from_zero_and_each_row_is_counted(
    stamps: list[int], folder: Path
) -> None:
    pq.write_table(
        pa.table({"ts": pa.array(stamps, pa.timestamp("ns")), "stream": ["a"] * len(stamps)}),
        path := folder / "far.parquet",
    )
    traces._remembered.cache_clear()  # which a file rewritten within one tick of the clock would not notice
    trace, median = read_trace(Reading(file=str(path))), sorted(stamps)[len(stamps) // 2]
    kept = sorted(ns for ns in stamps if abs(ns - median) <= FAR_NS)
    assert trace.at_ns.tolist() == [ns - kept[0] for ns in kept]
    assert trace.counts["events"] + trace.counts.get(FAR, 0) == len(stamps)


@given(moment=st.datetimes(datetime(1700, 1, 1), datetime(2200, 1, 1)), offset_minutes=st.integers(-1439, 1439))
@settings(max_examples=100)
def test_iso_stamps_mean_what_the_standard_library_says(moment: datetime, offset_minutes: int) -> None:
    there = moment.replace(tzinfo=timezone(timedelta(minutes=offset_minutes)))
    found = instants(
        pa.chunked_array([[there.isoformat(), there.isoformat(" "), moment.isoformat() + "Z"]]), "UTC", "t"
    )
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    expected = [(t - epoch) // timedelta(microseconds=1) * 1000 for t in (there, there, moment.replace(tzinfo=UTC))]
    assert found.early.tolist() == found.late.tolist() == expected and found.is_kept.all()


@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kolkata"])
@given(moment=st.datetimes(datetime(2021, 1, 1), datetime(2022, 1, 1)))
@settings(max_examples=60)
def test_local_times_mean_what_the_standard_library_says(zone: str, moment: datetime) -> None:
    local = [moment, datetime(2021, 3, 28, 2, 30), datetime(2021, 10, 31, 2, 30), datetime(2021, 4, 4, 1, 45)]
    found = instants(pa.chunked_array([[t.isoformat() for t in local]]), zone, "ts")
    for n, shown in enumerate(local):
        folds = [shown.replace(tzinfo=ZoneInfo(zone), fold=fold) for fold in (0, 1)]
        exists = folds[0].astimezone(UTC).astimezone(ZoneInfo(zone)).replace(tzinfo=None) == shown
        assert exists == (not found.wrong[LEFT_OUT][n])
        if exists:
            both = [(f.astimezone(UTC) - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1) for f in folds]
            assert [found.early[n] // 1000, found.late[n] // 1000] == both


def berlin(folder: Path, day: str, times: str, streams: str = "") -> Trace:
    rows = [f"{day} {t},{streams[n] if streams else 'a'},T{n}\n" for n, t in enumerate(times.split())]
    return read(folder, HEAD + "".join(rows), tz="Europe/Berlin")


def test_the_hour_that_a_clock_put_forward_leaves_out_is_rejected(folder: Path) -> None:
    trace = berlin(folder, "2021-03-28", "01:59 02:00 02:30 02:59:59 03:00 03:01")
    assert minutes(trace) == [0, 1, 2]
    assert odd(trace) == {LEFT_OUT: 3}


def test_the_hour_that_a_clock_put_back_shows_twice_is_told_apart_by_the_order_of_the_file(folder: Path) -> None:
    trace = berlin(folder, "2021-10-31", "01:30 02:10 02:50 02:10 02:50 03:10")
    assert minutes(trace) == [0, 40, 80, 100, 140, 160]
    assert odd(trace) == {TWICE: 4}


def test_an_hour_that_nothing_tells_is_the_earlier(folder: Path) -> None:
    assert minutes(berlin(folder, "2021-10-31", "01:30 02:10 02:50 03:10")) == [0, 40, 80, 160]
    assert minutes(berlin(folder, "2021-10-31", "02:10 03:10")) == [0, 120]


def test_in_a_file_sorted_by_stream_the_order_within_the_stream_tells(folder: Path) -> None:
    trace = berlin(folder, "2021-10-31", "01:00 02:50 02:10 04:00 01:30 02:20 02:40", "aaaabbb")
    assert [(t, e[0]) for t, (_, *e) in zip(minutes(trace), rows_of(trace), strict=True)] == [
        (0, "a"), (30, "b"), (80, "b"), (100, "b"), (110, "a"), (130, "a"), (240, "a"),
    ]  # fmt: skip


def test_a_row_of_certain_time_that_is_behind_both_hours_tells_nothing(folder: Path) -> None:
    assert minutes(berlin(folder, "2021-10-31", "01:00 04:00 02:20")) == [0, 80, 240]


def test_in_a_file_in_no_order_only_the_rows_of_the_stream_tell(folder: Path) -> None:
    trace = berlin(folder, "2021-10-31", "04:00 01:00 02:50 02:20 02:10", "abbcb")
    assert list(zip(minutes(trace), "bcbba", strict=True)) == [(0, "b"), (80, "c"), (110, "b"), (130, "b"), (240, "a")]
    assert [stream for _, stream, _ in rows_of(trace)] == list("bcbba")


def test_an_offset_beats_the_time_zone_and_an_unknown_zone_is_refused(folder: Path) -> None:
    trace = read(folder, HEAD + "2021-07-01T00:00:00Z,a,X\n2021-07-01T02:30:00,b,Y\n", tz="Europe/Berlin")
    assert minutes(trace) == [0, 30]
    times = pa.array([JULY, JULY + timedelta(hours=1)], pa.timestamp("us", "UTC"))
    found = instants(pa.chunked_array([times]), "Europe/Berlin", "ts")
    assert (found.early // 1000).tolist() == times.cast(pa.int64()).to_pylist()
    with pytest.raises(ValueError, match="tz=Europe/Berln is no time zone"):
        read(folder, HEAD + "2021-07-01,a,X\n", tz="Europe/Berln")


# --- Parquet --------------------------------------------------------------------------------------------------------

JULY = datetime(2021, 7, 1)
TIMES: dict[str, tuple[Any, int]] = {
    "timestamps in UTC": (pa.array([JULY, None, JULY + timedelta(hours=1)], pa.timestamp("us", "UTC")), 60),
    "timestamps in a zone": (pa.array([JULY, None, JULY + timedelta(hours=1)], pa.timestamp("ns", "Asia/Tokyo")), 60),
    "timestamps of seconds without one": (pa.array([JULY, None, JULY + timedelta(hours=1)], pa.timestamp("s")), 60),
    "dates": (pa.array([JULY.date(), None, JULY.date() + timedelta(days=1)]), 24 * 60),
    "whole numbers": (pa.array([1_700_000_000_000, None, 1_700_000_060_000]), 1),
    "floats": (pa.array([1_700_000_000.0, None, 1_700_000_060.0]), 1),
    "floats that are none": (pa.array([1_700_000_000.0, math.nan, 1_700_000_060.0]), 1),
    "texts": (pa.array(["2021-07-01T00:00:00", None, "2021-07-01T01:00:00"]), 60),
    "texts of a dictionary": (pa.array(["2021-07-01", "", "2021-07-01 01:00"]).dictionary_encode(), 60),
}


@pytest.mark.parametrize("what", TIMES)
def test_a_parquet_file_is_read_whatever_its_times_are(what: str, folder: Path) -> None:
    times, gap = TIMES[what]
    table = pa.table(
        {"ts": times, "stream_id": [1, 2, 3], "event_type": pa.array(["X", "Y", None]).dictionary_encode()}
    )
    pq.write_table(table, path := folder / f"{what}.parquet")
    trace = read_trace(Reading(file=str(path)))
    assert rows_of(trace) == [(0, "1", "X"), (gap * MINUTE, "3", "")]
    assert odd(trace) == {EMPTY: 1}


def test_parquet_and_csv_of_the_same_log_are_the_same_trace(folder: Path) -> None:
    text = HEAD + "2021-03-28 01:59:00.000000001,a,X\n2021-03-28 02:30:00,a,Y\n2021-03-28 03:00:00,b,Z\n"
    at_ns = [1_616_896_740_000_000_001, 1_616_898_600 * NS_PER_S, 1_616_900_400 * NS_PER_S]
    times = pa.array(at_ns, pa.timestamp("ns"))
    table = pa.table({"ts": times, "stream_id": ["a", "a", "b"], "event_type": ["X", "Y", "Z"]})
    pq.write_table(table, path := folder / "same.parquet")
    for zone in ("UTC", "Europe/Berlin"):
        other = read_trace(Reading(file=str(path), tz=zone))
        assert (rows_of(other), odd(other)) == (rows_of(read(folder, text, tz=zone)), odd(read(folder, text, tz=zone)))


@pytest.mark.parametrize("column", ["ts", "stream_id"])
def test_a_column_that_cannot_be_what_it_is_for_is_refused(column: str, folder: Path) -> None:
    columns = {"ts": [1], "stream_id": ["a"], column: [[1, 2]]}
    pq.write_table(pa.table(columns), path := folder / f"nested-{column}.parquet")
    with pytest.raises(ValueError, match=f"the column '{column}' is of type list"):
        read_trace(Reading(file=str(path)))


# --- transactions ---------------------------------------------------------------------------------------------------


def test_rows_of_one_transaction_are_one_operation_where_its_first_row_is(folder: Path) -> None:
    trace = read_trace(Reading(file=log_of(folder, [3, 1, 2, 1, 5, 1], "abcdef", ["x", "y", "x", "y", "", ""])))
    assert [trace.events(k) for k in range(4)] == [
        [("b", "T1"), ("d", "T3")],
        [("f", "T5")],
        [("c", "T2"), ("a", "T0")],
        [("e", "T4")],
    ]
    assert (trace.at_ns // NS_PER_S).tolist() == [0, 0, 1, 4]
    assert odd(trace) == {UNSORTED: 4, LONG: 1}


def test_equal_stamps_stay_as_many_and_in_the_order_of_the_file(folder: Path) -> None:
    seconds = [1, 1, 1, 0, 1, 2, 2]
    trace = read_trace(Reading(file=log_of(folder, seconds, "gfedcba")))
    assert [stream for _, stream, _ in rows_of(trace)] == list("dgfecba")
    assert (trace.at_ns // NS_PER_S).tolist() == sorted(seconds)


# --- when -----------------------------------------------------------------------------------------------------------


def schedule(spec: str, duration_s: float, seed: int = 1) -> Schedule:
    pacer, duration_ns = pacers.make(spec), int(duration_s * NS_PER_S)
    due = pacer.schedule(duration_ns, np.random.default_rng(seed))
    assert pacer.callers == 0 and pacer.expected(duration_ns) == len(due)
    assert due.dtype == np.int64 and (np.diff(due) >= 0).all() and ((due >= 0) & (due < duration_ns)).all()
    return due


def test_operations_are_due_when_they_came_faster_by_the_speed(folder: Path) -> None:
    file = log_of(folder, [10, 10, 11, 14, 20])
    assert (schedule(f"trace:file={file},repeat=false", 60) / NS_PER_S).tolist() == [0, 0, 1, 4, 10]
    assert (schedule(f"trace:file={file},repeat=false,speed=100", 60) / NS_PER_S).tolist() == [0, 0, 0.01, 0.04, 0.1]
    assert (schedule(f"trace:file={file},repeat=false,speed=0.5", 60) / NS_PER_S).tolist() == [0, 0, 2, 8, 20]
    assert len(schedule(f"trace:file={file},repeat=false,speed=0.5", 20)) == 4, (
        "what is due at the end is not in the run"
    )


def selection_at(at_ns: Sequence[int]) -> Selection:
    """Operations of one event at those times."""
    n = len(at_ns)
    events = np.zeros(n, np.int32)
    times, begins = np.array(at_ns, np.int64), np.arange(n + 1)
    trace = Trace("t", "", times, begins, events, events, ["a"], [""], {})
    return Selection(trace, times, begins, events, events, np.arange(n))


@given(
    gaps=st.lists(st.one_of(st.integers(0, 5), st.integers(10**9, 10**15)), min_size=1, max_size=6),
    first=st.integers(0, 10**12),
    speed=st.one_of(st.sampled_from([1.0, 2.0, 3.0, 0.1, 0.7, 1e-6, 1e9]), st.floats(1e-6, 1e9)),
    repeat=st.booleans(),
    copies=st.floats(0, 5),
)
@settings(max_examples=200)
def test_due_times_and_copies_are_exact_whatever_the_speed(
    gaps: list[int], first: int, speed: float, repeat: bool, copies: float
) -> None:
    selection = selection_at([first, *(first + sum(gaps[: n + 1]) for n in range(len(gaps)))])
    span, n = sum(gaps), len(gaps) + 1
    assume(span and selection.pass_ns == span + round(span / (n - 1)))
    end_ns = int(min((first + copies * selection.pass_ns) / speed, 9e13)) + 1
    exact = Fraction(repr(speed)).limit_denominator(int((2**62 // max(1, int(speed) + 1)) ** 0.5))
    assert abs(float(exact) / speed - 1) < 1e-9
    passes = math.ceil(end_ns * exact / selection.pass_ns) + 1 if repeat else 1
    assume(passes < 30)
    ideal = [math.floor((t + n * selection.pass_ns) / exact) for n in range(passes) for t in selection.at_ns.tolist()]
    expected = [due for due in ideal if due < end_ns]
    assert selection.due(end_ns, speed, repeat).tolist() == expected
    assert selection.due_below(end_ns, speed, repeat) == len(expected)


def test_copies_follow_one_another_after_the_mean_gap(folder: Path) -> None:
    due = schedule(f"trace:file={log_of(folder, [5, 6, 11])}", 20) / NS_PER_S
    assert due.tolist() == [0, 1, 6, 9, 10, 15, 18, 19]
    once = schedule(f"trace:file={log_of(folder, [5, 6, 11])},repeat=false", 20) / NS_PER_S
    assert once.tolist() == [0, 1, 6]


def test_a_window_keeps_its_own_beginning(folder: Path) -> None:
    file = log_of(folder, [100, 101, 103, 104, 110])
    assert (schedule(f"trace:file={file},from_s=2,to_s=10,repeat=false", 60) / NS_PER_S).tolist() == [1, 2]
    assert (schedule(f"trace:file={file},from_s=3,repeat=false", 60) / NS_PER_S).tolist() == [0, 1, 7]
    assert (schedule(f"trace:file={file},to_s=3,repeat=false", 60) / NS_PER_S).tolist() == [0, 1]
    [write] = workloads.make(f"trace:file={file},from_s=2,to_s=10", seed=1).prepare(0)
    assert (write.expected, write.events[0].type) == (0, "T2")


def test_every_seed_and_every_number_of_workers_has_the_one_schedule() -> None:
    due = schedule("trace:speed=3", 7, seed=1)
    assert (due == schedule("trace:speed=3", 7, seed=2)).all()
    assert sorted(t for worker in range(3) for t in due[worker::3].tolist()) == due.tolist()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("speed=0", "speed must be 1e-06 to 1e.09, not 0"),
        ("keep=0", "keep must be above 0"),
        ("keep=1.1", "keep must be above 0 and at most 1, not 1.1"),
        ("thin=stream", "did you mean streams"),
        ("thin_seed=-1", "thin_seed must be 0 to"),
        ("from_s=-1", "a window goes from"),
        ("from_s=5,to_s=5", "from 5 s to 5 s"),
        ("from_s=100", "nothing is left"),
        ("from_s=11,repeat=false", "nothing is left"),
    ],
)
def test_a_replay_that_cannot_be_is_refused_by_pacer_and_workload(options: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        pacers.make(f"trace:{options}")
    with pytest.raises(UsageError, match=message):
        workloads.make(f"trace:{options}", seed=1)


def test_a_log_of_one_instant_and_one_too_short_for_its_speed_are_refused(folder: Path) -> None:
    instant = log_of(folder, [7, 7, 7])
    with pytest.raises(UsageError, match="at one instant, which cannot be repeated .say repeat=false"):
        pacers.make(f"trace:file={instant}")
    assert schedule(f"trace:file={instant},repeat=false", 1).tolist() == [0, 0, 0]
    with pytest.raises(ValueError, match="copies of the log"):
        schedule(f"trace:file={log_of(folder, [0, 1])},speed=1e6", 1)
    with pytest.raises(ValueError, match="at most"):
        schedule("trace:speed=1e9", 60)


# --- which ----------------------------------------------------------------------------------------------------------


def said(workload: Workload, operations: Sequence[int]) -> list[Any]:
    """What they ask, without the ids of the events."""
    asked = (workload.prepare(k) for k in operations)
    return [[(w.stream, w.expected, [(e.type, e.data) for e in w.events]) for w in writes] for writes in asked]


@given(seed=st.integers(0, 2**63 - 1), ks=st.lists(st.integers(0, 2**40), max_size=20))
def test_chance_for_many_is_chance_for_each(seed: int, ks: list[int]) -> None:
    assert mixed_each(seed, np.array(ks, np.uint64)).tolist() == [mixed(seed, k) for k in ks]


@pytest.mark.parametrize("keep", [0.05, 0.5, 0.9])
@pytest.mark.parametrize("seed", [0, 1])
def test_thinning_keeps_the_share_asked_and_less_of_it_is_a_part_of_more(keep: float, seed: int, folder: Path) -> None:
    file = log_of(folder, range(5_000), ["a", "b"])
    whole = schedule(f"trace:file={file},repeat=false", 6_000)

    def kept(keep: float, thin_seed: int = seed) -> set[int]:
        spec = f"trace:file={file},repeat=false,keep={keep},thin_seed={thin_seed}"
        return set(schedule(spec, 6_000).tolist())

    assert abs(len(kept(keep)) - keep * 5_000) < 5 * (5_000 * keep * (1 - keep)) ** 0.5
    assert kept(keep) == kept(keep) != kept(keep, seed + 2)
    assert kept(keep / 2) < kept(keep) < set(whole.tolist())


def test_a_thinned_window_is_the_window_of_what_was_thinned(folder: Path) -> None:
    file = log_of(folder, range(200))
    thinned = schedule(f"trace:file={file},repeat=false,keep=0.5", 1_000)
    window = schedule(f"trace:file={file},repeat=false,keep=0.5,from_s=50,to_s=150", 1_000) + 50 * NS_PER_S
    assert window.tolist() == [t for t in thinned.tolist() if 50 * NS_PER_S <= t < 150 * NS_PER_S]


def test_thinning_by_streams_keeps_whole_stories() -> None:
    whole, thinned = Replay(reading=Reading()).selection, Replay(reading=Reading(), keep=0.3, thin="streams").selection
    lengths = np.bincount(whole.stream, minlength=200)
    left = np.bincount(thinned.stream, minlength=200)
    assert (left[left > 0] == lengths[left > 0]).all()
    assert abs(np.count_nonzero(left) - 0.3 * 200) < 5 * (200 * 0.3 * 0.7) ** 0.5
    assert set(np.diff(whole.begins)) == {1, 2} and (np.diff(thinned.begins) > 0).all()
    assert len(schedule("trace:keep=0.3,thin=streams,repeat=false", 60)) == len(thinned) < len(whole)


@pytest.mark.parametrize("thin", ["operations", "streams"])
def test_pacer_and_workload_of_the_same_options_mean_the_same_operation(thin: str, folder: Path) -> None:
    """Each stream says when it is, so that each due time can be told its operation's."""
    seconds = [n * (n % 7) for n in range(60)]
    file = log_of(folder, seconds, [f"s{s}" for s in seconds])
    options = f"file={file},keep=0.4,from_s=10,to_s=300,thin={thin},thin_seed=3"
    due = schedule(f"trace:{options},speed=4", 200)
    workload = workloads.make(f"trace:{options}", seed=1)
    replay = Replay(reading=Reading(file=file), keep=0.4, from_s=10, to_s=300, thin=thin, thin_seed=3)
    n = len(replay.selection)
    times = [int(workload.prepare(k)[0].stream.partition("-s")[2]) for k in range(2 * n)]
    assert (due[:n] * 4 / NS_PER_S).tolist() == [t - 10 for t in times[:n]] and times[n:] == times[:n]


def test_each_copy_has_streams_of_its_own_whose_versions_begin_anew(folder: Path) -> None:
    file = log_of(folder, [0, 1, 1, 2, 3], ["a", "b", "a"], ["1", "2", "2", "2", "3"])
    workload = workloads.make(f"trace:file={file}", seed=5)
    expected = [[("a", 0, ["T0"])], [("b", 0, ["T1"]), ("a", 1, ["T2", "T3"])], [("b", 1, ["T4"])]]
    for copy in range(3):
        asked = said(workload, range(3 * copy, 3 * copy + 3))
        assert [[(s[17:], v, [t for t, _ in e]) for s, v, e in writes] for writes in asked] == expected
        assert {s[:17] for writes in asked for s, *_ in writes} == {f"{mixed(5, copy):016x}-"}
    numbers = [msgspec.json.decode(d)["test"] for w in said(workload, range(9)) for *_, e in w for _, d in e]
    assert sorted(numbers) == list(range(15))


@given(seed=st.integers(0, 2**63 - 1), ks=st.lists(st.integers(0, 2**40), min_size=1, max_size=8))
@settings(deadline=None)
def test_a_seed_gives_the_same_operations_byte_for_byte_in_whatever_order(seed: int, ks: list[int]) -> None:
    one, other = (workloads.make("trace:payload_bytes=50", seed=seed) for _ in range(2))
    assert said(one, ks) == said(other, ks[::-1])[::-1]
    assert all(len(data) == 50 for writes in said(one, ks) for *_, events in writes for _, data in events)
    names = {s for writes in said(one, ks) for s, *_ in writes}
    assert names.isdisjoint(s for writes in said(workloads.make("trace", seed=seed + 1), ks) for s, *_ in writes)


# --- on a store -----------------------------------------------------------------------------------------------------


async def performed(store: Store, workload: Workload, operations: Sequence[int]) -> int:
    perform = workload.start(store, Direct(store))
    return sum([await perform(workload.prepare(k)) for k in operations])


@pytest.mark.parametrize("expect", ["read", "log"])
async def test_a_store_holds_the_log_after_its_replay(store: Store, expect: str) -> None:
    workload = workloads.make(f"trace:expect={expect}", seed=1)
    assert await performed(store, workload, range(150)) == 165
    trace = read_trace(Reading())
    stored = await store.read_all(0, 1_000)
    assert [(e.stream[17:], e.type) for e in stored] == [event for k in range(150) for event in trace.events(k)]
    for stream, n in Counter(e.stream for e in stored).items():
        assert [e.version for e in stored if e.stream == stream] == list(range(1, n + 1))


async def test_a_transaction_over_many_streams_is_one_append_or_nothing(store: Store, folder: Path) -> None:
    streams = [f"s{n}" for n in range(900)]
    file = log_of(folder, [1] * 1_000, streams, ["1"] * 1_000)
    strict = workloads.make(f"trace:file={file},expect=log,repeat=false", seed=1)
    [*writes] = strict.prepare(0)
    assert len(writes) == 900 and [len(w.events) for w in writes] == [2] * 100 + [1] * 800
    await store.append([msgspec.structs.replace(writes[450])])
    with pytest.raises(VersionConflict):
        await performed(store, strict, [0])
    assert await store.last_position() == (await store.read_all(0, 10))[-1].position
    assert await performed(store, workloads.make(f"trace:file={file},repeat=false", seed=1), [0]) == 1_000
    assert (await store.read_stream(writes[450].stream)).version == 2


async def test_an_operation_that_overtakes_another_conflicts_only_if_the_log_is_expected(folder: Path) -> None:
    file = log_of(folder, range(4))
    for expect, lost in (("read", 0), ("log", 1)):
        store = Memory()
        workload = workloads.make(f"trace:file={file},expect={expect}", seed=1)
        conflicts = 0
        for k in (1, 0, 2, 3):
            try:
                await performed(store, workload, [k])
            except VersionConflict:
                conflicts += 1
        assert conflicts == (3 if lost else 0), "what follows on the stream is lost, too"
        assert len(await store.read_all()) == 4 - conflicts


HOSTILE = [
    "*", "?", "[a]", "%2A", "%", "~", "a b", "a/b\\c", "'; DROP TABLE events; --", '"quoted"', "tab\tin", "line\nin", "\x01",
    "ünïcødé", "🙂", "\u202eabc", "x" * 300, "x" * 299 + "y", "*" * 200, "🙂" * 300, "NULL", "-", " lead", "{}", "$1", "a%b_",
]  # fmt: skip


async def test_any_name_is_a_stream_of_its_own_and_any_type_a_type(store: Store, folder: Path) -> None:
    text = io.StringIO()
    writer = csv.writer(text, quoting=csv.QUOTE_ALL)
    writer.writerows(
        [["ts", "stream", "type"], *([n, name, name] for n, name in enumerate(HOSTILE)), [99, "last", " "]]
    )
    workload = workloads.make(f"trace:file={written(folder, text.getvalue())}", seed=1)
    assert await performed(store, workload, range(len(HOSTILE) + 1)) == len(HOSTILE) + 1
    stored = await store.read_all(0, 100)
    assert len({stream_id(e.stream) for e in stored}) == len({e.type for e in stored}) == len(HOSTILE) + 1
    assert {e.version for e in stored} == {1} and stored[-1].type == "Happened"
    assert [e.stream[17:] for e in stored[:6]] == ["%2A", "%3F", "%5Ba%5D", "%252A", "%25", "%7E"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("expect=any", "unknown expect 'any' .known: log, read"),
        ("payload_bytes=0", "payload_bytes must be 1 to"),
        ("payload_bytes=1000001", "payload_bytes must be 1 to 1000000, not 1000001"),
    ],
)
def test_a_workload_that_cannot_be_is_refused(options: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        workloads.make(f"trace:{options}", seed=1)


def test_a_transaction_too_large_for_any_append_is_refused(folder: Path) -> None:
    file = log_of(folder, [1] * 300, "a", ["1"] * 300)
    with pytest.raises(UsageError, match="payload_bytes × the events of one operation must be"):
        workloads.make(f"trace:file={file},payload_bytes=1000000", seed=1)


# --- what is told ---------------------------------------------------------------------------------------------------


def test_pacer_and_workload_note_what_was_read_without_saying_where_it_is(folder: Path) -> None:
    file = log_of(folder, [3, 1, 2])
    for made in (pacers.make(f"trace:file={file},speed=2"), workloads.make(f"trace:file={file},keep=0.99", seed=1)):
        assert isinstance(made, HasNotes)
        [(name, detail)] = made.notes
        assert name == ("trace replayed" if isinstance(made, Replayed) else "trace paced")
        assert "log.csv, sha256 " in detail and "3 operations with 3 events on 1 streams; 2 out of order" in detail
        assert str(folder) not in detail and "\n" not in detail
    assert "speed=2: 1.500 s, then again" in pacers.make(f"trace:file={file},speed=2").notes[0][1]  # type: ignore[attr-defined]


def test_a_run_replays_the_example_and_tells_of_it(lab: Lab) -> None:
    e = Experiment(store="sqlite", workload="trace", pacer="trace:speed=5", duration_s=0.4, warmup_s=0.1, workers=2)
    found = run(e, lab, Quiet())
    count = pacers.make(e.pacer).expected(NS_PER_S // 2)
    assert found.row["status"] == "complete"
    assert len(found.samples) == count
    assert {"trace paced", "trace replayed"} <= set(found.marks["name"])


# --- the logs that are there on some machines -----------------------------------------------------------------------

REAL = {
    "hospital_sim": (69_528, 69_528, 10_000),
    "lending_sim": (58_822, 58_822, 10_000),
    "git_marten": (4_000, 30_171, 5_462),
}


@pytest.mark.parametrize("name", REAL)
def test_real_logs_are_read_whole(name: str) -> None:
    path = SHARED / f"{name}.parquet"
    if not path.is_file():
        pytest.skip("the example logs are not on this machine")
    trace = read_trace(Reading(file=str(path)))
    assert trace.counts == dict(zip(("operations", "events", "streams"), REAL[name], strict=True))
    raw = pq.read_table(path).sort_by("ts").to_pydict()
    selection = Replay(reading=Reading(file=str(path))).selection
    assert Counter(trace.streams[s] for s in trace.stream) == Counter(raw["stream_id"])
    if name == "git_marten":
        assert int(np.diff(trace.begins).max()) == 859 and int(np.median(np.diff(trace.begins))) == 2
        assert Counter(np.diff(trace.begins).tolist()) == Counter(Counter(raw["txn"]).values())
    else:  # the place of each event in its stream is what the log says, as a set: stamps of whole seconds are often equal
        assert Counter(selection.before.tolist()) == Counter(raw["seq_in_stream"])
