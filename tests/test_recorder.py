"""Claims about what is recorded: rows of samples, how they are watched, the journal of appends, what is read back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventcore_lab.clock import now_ns
from eventcore_lab.events import (
    AppendResult,
    EventRejected,
    NewEvent,
    OutcomeUnknown,
    StoreError,
    StoreUnreachable,
    StreamId,
    StreamWrite,
    VersionConflict,
)
from eventcore_lab.load import evidence
from eventcore_lab.load import journal as journal_module
from eventcore_lab.load.journal import Journal, amount, digest, outcome_of, prefix, read_back
from eventcore_lab.load.recorder import Recorder, RecorderFull, Watcher
from eventcore_lab.schema import BEGUN, JOURNAL, SAMPLE_WORDS, Attempt, Outcome, Phase, current_attempt, packed
from eventcore_lab.stores.memory import Memory

A, B = StreamId("a"), StreamId("b")


def words(path: Path) -> list[list[int]]:
    return np.fromfile(path, np.int64).reshape(-1, len(SAMPLE_WORDS)).tolist()


COUNT = st.integers(0, 10_000)


@given(st.sampled_from(Outcome), st.sampled_from(Phase), COUNT, st.integers(0, 2**31 - 1), COUNT)
def test_the_packed_word_gives_back_what_was_put_in(
    outcome: int, phase: int, attempts: int, events: int, conflicts: int
) -> None:
    word = packed(outcome, phase, attempts, events, conflicts)
    assert (word & 0xFF, word >> 8 & 0x7F, word >> 16 & 0xFF, word >> 24 & 0xFF, word >> 32) == (
        outcome,
        phase,
        min(conflicts, 255),
        min(attempts, 255),
        events,
    )
    assert word & BEGUN
    assert -(2**63) <= word < 2**63


def test_a_row_that_has_begun_says_so_before_it_has_ended(tmp_path: Path) -> None:
    with Recorder(tmp_path / "s", 3) as recorder:
        recorder.begin(7, 10, 11, 12, Phase.STEADY)
        assert words(tmp_path / "s") == [
            [7, 10, 11, 12, 0, 0, 0, packed(Outcome.RUNNING, Phase.STEADY, 0, 0)],
            [0] * 8,
            [0] * 8,
        ]


def test_rows_stay_in_the_order_they_began_whatever_ends_first(tmp_path: Path) -> None:
    with Recorder(tmp_path / "s", 10) as recorder:
        first, second = (recorder.begin(k, k, k, k, Phase.WARMUP) for k in (1, 2))
        recorder.end(second, 2, 2, 2, 2, 3, 4, 5, packed(Outcome.OK, Phase.WARMUP, 1, 9))
        recorder.end(first, 1, 1, 1, 1, 6, 7, 8, packed(Outcome.CONFLICT, Phase.WARMUP, 5, 0))
    assert words(tmp_path / "s") == [
        [1, 1, 1, 1, 6, 7, 8, packed(Outcome.CONFLICT, Phase.WARMUP, 5, 0)],
        [2, 2, 2, 2, 3, 4, 5, packed(Outcome.OK, Phase.WARMUP, 1, 9)],
    ]


def test_an_arrival_that_was_dropped_has_a_row_that_began_and_ended_when_it_was_offered(tmp_path: Path) -> None:
    with Recorder(tmp_path / "s", 1) as recorder:
        recorder.drop(3, 100, 130, Phase.STEADY)
    assert words(tmp_path / "s") == [[3, 100, 130, 130, 0, 130, 0, packed(Outcome.DROPPED, Phase.STEADY, 0, 0)]]


def test_a_closed_recorder_leaves_a_file_of_what_was_begun(tmp_path: Path) -> None:
    with Recorder(tmp_path / "s", 1000) as recorder:
        for k in range(5):
            recorder.begin(k, 0, 0, 0, Phase.STEADY)
        assert (tmp_path / "s").stat().st_size == 64_000
    assert (tmp_path / "s").stat().st_size == 5 * 64


def test_a_recorder_for_what_nobody_did_leaves_an_empty_file(tmp_path: Path) -> None:
    Recorder(tmp_path / "s", 10).close()
    assert words(tmp_path / "s") == []


def test_a_full_recorder_takes_no_row_and_keeps_those_it_has(tmp_path: Path) -> None:
    with Recorder(tmp_path / "s", 2) as recorder:
        recorder.begin(0, 0, 0, 0, Phase.STEADY)
        recorder.drop(1, 0, 0, Phase.STEADY)
        for take in (recorder.begin, recorder.drop):
            with pytest.raises(RecorderFull):
                take(2, 0, 0, *([0] if take == recorder.begin else []), Phase.STEADY)
        assert recorder.begun == 2
    assert [row[0] for row in words(tmp_path / "s")] == [0, 1]


def test_no_recorder_writes_over_another(tmp_path: Path) -> None:
    Recorder(tmp_path / "s", 1).close()
    with pytest.raises(FileExistsError):
        Recorder(tmp_path / "s", 1)


# --- watcher --------------------------------------------------------------------------------------------------------


def test_a_watcher_sees_each_row_once(tmp_path: Path) -> None:
    watcher = Watcher(tmp_path / "s")
    assert watcher.new_rows().shape == (0, 8), "the worker has not made its file yet"
    with Recorder(tmp_path / "s", 20_000) as recorder:
        assert len(watcher.new_rows()) == 0
        seen = []
        for count in (3, 0, 10_000, 1):
            for _ in range(count):
                k = recorder.begun
                row = recorder.begin(k, 0, 0, 0, Phase.STEADY)
                recorder.end(row, k, 0, 0, 0, 0, 1, 0, packed(Outcome.OK, Phase.STEADY, 1, 1))
            rows = watcher.new_rows()
            assert len(rows) == count
            seen += rows[:, 0].tolist()
    assert seen == list(range(10_004))


def test_a_watcher_sees_the_last_rows_after_the_file_was_cut(tmp_path: Path) -> None:
    watcher = Watcher(tmp_path / "s")
    with Recorder(tmp_path / "s", 5000) as recorder:
        recorder.drop(0, 0, 0, Phase.STEADY)
        assert watcher.new_rows()[:, 0].tolist() == [0]
        recorder.drop(1, 0, 0, Phase.STEADY)
        recorder.drop(2, 0, 0, Phase.STEADY)
    assert watcher.new_rows()[:, 0].tolist() == [1, 2]
    assert len(watcher.new_rows()) == 0


def test_a_watcher_sees_a_slow_operation_when_it_has_ended(tmp_path: Path) -> None:
    watcher = Watcher(tmp_path / "s")
    with Recorder(tmp_path / "s", 10) as recorder:
        slow, _ = (recorder.begin(k, 0, 0, 0, Phase.STEADY) for k in (0, 1))
        recorder.drop(2, 0, 0, Phase.STEADY)
        assert watcher.new_rows()[:, 0].tolist() == [2]
        recorder.drop(3, 0, 0, Phase.STEADY)
        recorder.end(slow, 0, 0, 0, 0, 0, 9, 0, packed(Outcome.UNKNOWN, Phase.STEADY, 1, 0))
        rows = watcher.new_rows()
        assert rows[:, 0].tolist() == [0, 3]
        assert (rows[:, -1] & 0xFF).tolist() == [Outcome.UNKNOWN, Outcome.DROPPED]
        assert len(watcher.new_rows()) == 0


# --- journal --------------------------------------------------------------------------------------------------------


class Refuses(Memory):
    """A store whose every append raises `error`."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self._error = error

    async def append(self, writes: Sequence[StreamWrite]) -> AppendResult:
        raise self._error

    async def append_many(self, requests: Sequence[Sequence[StreamWrite]]) -> list[AppendResult | StoreError]:
        raise self._error


def happened(n: int = 1) -> tuple[NewEvent, ...]:
    return tuple(NewEvent("Happened", b'{"n":%d}' % i) for i in range(n))


def written(journal: Journal, folder: Path, worker: int = 0) -> list[dict[str, Any]]:
    journal.write(folder, worker)
    rows: list[dict[str, Any]] = pq.read_table(folder / f"writes-{worker}.parquet").to_pylist()
    return rows


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (VersionConflict(A, 0, 1), Outcome.CONFLICT),
        (EventRejected("no"), Outcome.FAILED),
        (StoreUnreachable("no"), Outcome.FAILED),
        (StoreError("no"), Outcome.FAILED),
        (OutcomeUnknown("?"), Outcome.UNKNOWN),
        (TimeoutError(), Outcome.UNKNOWN),
        (KeyboardInterrupt(), Outcome.UNKNOWN),
    ],
)
def test_what_is_not_a_clear_answer_is_unknown(error: BaseException, outcome: Outcome) -> None:
    assert outcome_of(error) is outcome


def test_a_digest_is_of_what_the_json_says_and_not_how_it_is_written() -> None:
    said = digest("T", b'{"b":[1,2],"a":"\xc3\xa9"}', b"")
    assert said == digest("T", b'{"a": "\\u00e9", "b": [1, 2]}', b"")
    assert said != digest("T", b'{"b":[2,1],"a":"\xc3\xa9"}', b"")
    deep = b"[" * 100_000
    assert digest("T", deep, b"") != digest("T", deep + b" ", b"")  # no JSON: every byte counts


def test_a_digest_tells_events_apart_by_type_data_and_meta() -> None:
    one = ("T", b"data", b"meta")
    assert digest(*one) == digest(*one)
    assert len({digest(*one), digest("U", *one[1:]), digest("T", b"datb", b"meta"), digest("T", b"data", b"")}) == 4


async def test_the_journal_has_a_row_per_event_of_an_acknowledged_append(tmp_path: Path) -> None:
    journal, events = Journal(Memory()), happened(3)
    await journal.append([StreamWrite(A, 0, events[:2]), StreamWrite(B, -1, events[2:])])
    rows = written(journal, tmp_path, worker=4)
    assert [(r["stream"], r["expected"], r["version"], r["ordinal"]) for r in rows] == [
        ("a", 0, 2, 1),
        ("a", 0, 2, 2),
        ("b", -1, 1, 1),
    ]
    assert [r["event_id"] for r in rows] == [e.id.bytes for e in events]
    assert [r["digest"] for r in rows] == [digest(e.type, e.data, e.meta) for e in events]
    assert {(r["worker"], r["operation"], r["append"], r["outcome"]) for r in rows} == {(4, -1, 0, Outcome.OK)}


async def test_the_journal_has_the_columns_of_the_schema(tmp_path: Path) -> None:
    Journal(Memory()).write(tmp_path, 0)
    for table in ("stored", "restarted"):
        await read_back(Memory(), tmp_path, table, [(0, 0, 0, 0)])
    files = (*(f"{table}-0" for table in ("writes", "reads", "joint_reads", "counts")), "stored", "restarted")
    for name in (*files, "prefixes-stored", "prefixes-restarted"):
        assert pq.read_schema(tmp_path / f"{name}.parquet").names == list(JOURNAL[name.partition("-")[0]])


async def test_a_read_only_participant_has_a_row_without_an_event(tmp_path: Path) -> None:
    journal = Journal(Memory())
    await journal.append([StreamWrite(A, 0), StreamWrite(B, 0, happened())])
    rows = written(journal, tmp_path)
    assert [(r["stream"], r["version"], r["ordinal"], r["event_id"] is None) for r in rows] == [
        ("a", 0, 0, True),
        ("b", 1, 1, False),
    ]


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (EventRejected("no"), Outcome.FAILED),
        (OutcomeUnknown("?"), Outcome.UNKNOWN),
        (ValueError("a bug"), Outcome.UNKNOWN),
    ],
)
async def test_a_refused_append_is_noted_and_raised(tmp_path: Path, error: Exception, outcome: Outcome) -> None:
    journal = Journal(Refuses(error))
    writes = [StreamWrite(A, 0, happened(2))]
    with pytest.raises(type(error)):
        await journal.append(writes)
    with pytest.raises(type(error)):
        await journal.append_many([writes, writes])
    rows = written(journal, tmp_path)
    assert [(r["append"], r["outcome"], r["version"]) for r in rows] == [(n, outcome, None) for n in (0, 0, 1, 1, 2, 2)]


async def test_a_stale_append_is_noted_as_a_conflict(tmp_path: Path) -> None:
    journal = Journal(Memory())
    await journal.append([StreamWrite(A, 0, happened())])
    with pytest.raises(VersionConflict):
        await journal.append([StreamWrite(A, 0, happened())])
    assert [r["outcome"] for r in written(journal, tmp_path)] == [Outcome.OK, Outcome.CONFLICT]


async def test_each_append_of_many_is_noted_with_its_own_outcome(tmp_path: Path) -> None:
    journal = Journal(Memory())
    results = await journal.append_many(
        [[StreamWrite(A, 0, happened())], [StreamWrite(A, 0, happened())], [StreamWrite(A, 1, happened())]]
    )
    assert isinstance(results[1], VersionConflict)
    rows = written(journal, tmp_path)
    assert [(r["append"], r["outcome"], r["version"]) for r in rows] == [
        (0, Outcome.OK, 1),
        (1, Outcome.CONFLICT, None),
        (2, Outcome.OK, 2),
    ]


async def test_an_append_is_noted_with_the_operation_it_belongs_to(tmp_path: Path) -> None:
    journal, attempt = Journal(Memory()), Attempt()
    token = current_attempt.set(attempt)
    try:
        for k in (12, 40):
            attempt.reset(k)
            await journal.append([StreamWrite(A, -1, happened())])
            await journal.append_many([[StreamWrite(A, -1, happened())]])
    finally:
        current_attempt.reset(token)
    assert [r["operation"] for r in written(journal, tmp_path)] == [12, 12, 40, 40]


async def test_a_journal_is_a_store_to_read_from() -> None:
    journal = Journal(Memory())
    await journal.append([StreamWrite(A, 0, happened(2))])
    assert (await journal.read_stream(A)).version == 2
    assert [part.version for part in await journal.read_streams([B, A])] == [0, 2]
    assert len(await journal.read_all()) == 2


async def test_times_are_those_of_the_call_since_the_start_of_the_run(tmp_path: Path) -> None:
    journal, before_ns = Journal(Memory()), now_ns()
    await journal.append([StreamWrite(A, 0, happened())])
    await journal.append_many([[StreamWrite(A, 1, happened())], [StreamWrite(A, 0, happened())]])
    await journal.read_stream(A)
    after_ns = now_ns()
    journal.write(tmp_path, 0, start_ns=before_ns)
    times = [
        t
        for table in ("writes", "reads")
        for row in pq.read_table(tmp_path / f"{table}-0.parquet").to_pylist()
        for t in (row["began_ns"], row["ended_ns"])
    ]
    assert len(times) == 8 and times == sorted(times[:2]) + times[2:]
    assert all(0 <= t <= after_ns - before_ns for t in times)


async def test_the_stream_that_conflicted_has_its_actual_version(tmp_path: Path) -> None:
    journal = Journal(Memory())
    await journal.append([StreamWrite(A, 0, happened(2))])
    stale = [StreamWrite(B, 0, happened()), StreamWrite(A, 1, happened())]
    with pytest.raises(VersionConflict):
        await journal.append(stale)
    await journal.append_many([stale])
    rows = written(journal, tmp_path)
    assert [(r["stream"], r["actual"]) for r in rows] == [("a", None)] * 2 + [("b", None), ("a", 2)] * 2


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        (b'{"amount": 7}', 7),
        (b'{"to": "x", "amount": -7}', -7),
        (b'{"amount": 1.5}', None),
        (b'{"amount": "7"}', None),
        (b'{"amount": null}', None),
        (b'{"amount": 9223372036854775808}', None),
        (b'{"note": "the \\"amount\\""}', None),
        (b'"amount"', None),
        (b'{"amount', None),
        (b"{}", None),
    ],
)
def test_an_amount_is_a_whole_number_of_the_event(data: bytes, wanted: int | None) -> None:
    assert amount(data) == wanted


async def test_reads_of_whole_streams_are_noted_and_others_are_not(tmp_path: Path) -> None:
    journal, attempt = Journal(Memory()), Attempt()
    events = happened(3)
    await journal.append([StreamWrite(A, 0, events)])
    await journal.read_stream(A)
    token = current_attempt.set(attempt)
    try:
        await journal.read_streams([B, A])
    finally:
        current_attempt.reset(token)
    await journal.read_stream(A, 2)
    await journal.read_stream(A, 1, 3)  # a page that is full may not be all
    await journal.read_stream(A, 1, 4)
    journal.write(tmp_path, 5)
    reads = pq.read_table(tmp_path / "reads-5.parquet").to_pylist()
    last = events[-1].id.bytes
    assert [(r["session"], r["stream"], r["version"], r["events"], r["last_id"]) for r in reads] == [
        (0, "a", 3, 3, last),
        (1, "b", 0, 0, None),
        (1, "a", 3, 3, last),
        (0, "a", 3, 3, last),
    ]
    joint = pq.read_table(tmp_path / "joint_reads-5.parquet").to_pylist()
    assert [tuple(r.values()) for r in joint] == [(5, 0, "b", 0), (5, 0, "a", 3)]


async def test_a_journal_keeps_so_many_reads_and_says_how_many_more_there_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "READS_MAX", 3)
    journal = Journal(Memory())
    for _ in range(2):
        await journal.read_streams([A, B])
        await journal.read_stream(A)
    journal.write(tmp_path, 0, counts={"offered": 9})
    assert len(pq.read_table(tmp_path / "reads-0.parquet")) == 3
    assert len(pq.read_table(tmp_path / "joint_reads-0.parquet")) == 2
    counts = pq.read_table(tmp_path / "counts-0.parquet").to_pylist()
    assert counts == [{"name": "offered", "value": 9}, {"name": "reads left out", "value": 3}]


async def test_the_digest_of_how_a_store_begins_is_the_same_later(tmp_path: Path) -> None:
    store = Memory()
    await store.append([StreamWrite(A, 0, happened(7))])
    taken = [await prefix(store, events_max=n) for n in (3, 100)]
    await store.append([StreamWrite(B, 0, happened(2))])
    taken.append(await prefix(store))
    await read_back(store, tmp_path, prefixes=taken)
    rows = pq.read_table(tmp_path / "prefixes-stored.parquet").to_pylist()
    found = sorted((int(r["position"]), r["events"], r["digest"]) for r in rows)
    assert [f[:2] for f in found] == [(3, 3), (3, 3), (7, 7), (7, 7), (9, 9), (9, 9)]
    assert found[::2] == found[1::2] and len(set(found)) == 3


async def test_what_is_read_back_is_everything_in_position_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evidence, "ROWS_PER_PART", 4)  # several parts of several pages
    monkeypatch.setattr(journal_module, "PAGE", 3)
    store = Memory()
    for n in range(5):
        await store.append([StreamWrite(A, -1, happened(2)), StreamWrite(StreamId(f"b{n}"), 0, happened())])
    assert await read_back(store, tmp_path) == 15
    rows = pq.read_table(tmp_path / "stored.parquet").to_pylist()
    everything = await store.read_all(0, 100)
    assert [int(r["position"]) for r in rows] == [e.position for e in everything] == list(range(1, 16))
    assert [(r["stream"], r["version"], r["event_id"]) for r in rows] == [
        (e.stream, e.version, e.id.bytes) for e in everything
    ]
    assert [r["digest"] for r in rows] == [digest(e.type, e.data, e.meta) for e in everything]


async def test_a_long_journal_is_written_in_parts_and_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evidence, "ROWS_PER_PART", 4)
    journal = Journal(Memory())
    for _ in range(11):
        await journal.append([StreamWrite(A, -1, happened())])
    assert [r["version"] for r in written(journal, tmp_path)] == list(range(1, 12))
