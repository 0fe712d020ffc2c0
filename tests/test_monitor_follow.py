"""What is recorded is seen while it is, once, to its end, and whatever becomes of the folder it is in."""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from eventcore_lab.clock import NS_PER_S, sleep_s
from eventcore_lab.lab.database import Lab
from eventcore_lab.lab.measures import UNITS, Run
from eventcore_lab.load.recorder import Recorder, Watcher
from eventcore_lab.load.rotation import Rotation, _punched
from eventcore_lab.monitor import follow, tails
from eventcore_lab.monitor import state as state_room
from eventcore_lab.monitor.facts import News
from eventcore_lab.monitor.follow import Followed
from eventcore_lab.monitor.state import State
from eventcore_lab.schema import Outcome, Phase, packed

MS = 1_000_000
UNIX, MONOTONIC = 1_790_000_000 * NS_PER_S, 5_000 * NS_PER_S
WORD = packed(Outcome.OK, Phase.STEADY, 1, 2)


class Hands:
    """Clocks that stand still until they are moved."""

    def __init__(self) -> None:
        self.monotonic, self.wall = MONOTONIC, UNIX

    def __call__(self) -> tuple[int, int, int]:
        return self.monotonic, self.wall, self.monotonic

    def move(self, seconds: float) -> None:
        self.monotonic += int(seconds * NS_PER_S)
        self.wall += int(seconds * NS_PER_S)


class Recorded:
    """A run as its process leaves it in the spool, step by step."""

    def __init__(self, spool: Path, run_id: str, **facts: Any) -> None:
        self.folder = spool / run_id
        self.folder.mkdir(parents=True)
        self._lock = os.open(self.folder / "lock", os.O_CREAT | os.O_RDWR)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self.row = {"run_id": run_id, "status": "interrupted", "status_reason": "the run had not ended", "workers": 1}
        self.row |= {
            "store": "memory",
            "workload": "append",
            "pacer": "constant:rate=1",
            "warmup_s": 0.0,
            "duration_s": 9.0,
        }
        self.row |= {"is_closed_loop": False, "measured_ns": 9 * NS_PER_S, "schema_version": 4} | facts
        self.row["started_at"] = "2026-01-01T00:00:00+00:00"
        self.recorders: list[Recorder] = []
        self.keep()

    def keep(self, **facts: Any) -> None:
        self.row |= facts
        part = self.folder / "run.json.part"
        part.write_bytes(msgspec.json.encode(self.row))
        part.replace(self.folder / "run.json")

    def starts(self, workers: int = 1, at_ns: int = MONOTONIC) -> None:
        self.recorders = [Recorder(self.folder / f"samples-{n}.i64", 100_000) for n in range(workers)]
        self.keep(start_ns=at_ns, workers=workers)

    def ends(self, count: int, at_ms: float = 0.0, worker: int = 0) -> None:
        """So many operations, one a millisecond."""
        recorder = self.recorders[worker]
        for n in range(count):
            due = int((at_ms + n) * MS)
            row = recorder.begin(n, due, due, due, Phase.STEADY)
            recorder.end(row, n, due, due, due, due, due + MS, 0, WORD)

    def line(self, file: str, **facts: Any) -> None:
        with (self.folder / file).open("ab") as out:
            out.write(msgspec.json.encode(facts) + b"\n")

    def over(self, status: str = "", **facts: Any) -> None:
        for recorder in self.recorders:
            if self.folder.exists():
                recorder.close()
        self.recorders = []
        if status:
            self.keep(status=status, status_reason="", **facts)
        self.unlock()

    def unlock(self) -> None:
        if self._lock:
            os.close(self._lock)
            self._lock = 0


@pytest.fixture
def hands() -> Hands:
    return Hands()


@pytest.fixture
async def followed(lab: Lab, hands: Hands) -> AsyncIterator[Followed]:
    followed = Followed(lab.spool, lab, clocks=hands)
    yield followed
    await followed.close()


@pytest.fixture
def run(lab: Lab) -> Iterator[Recorded]:
    recorded = Recorded(lab.spool, "20260101-000000-aaaaaa")
    yield recorded
    recorded.over()


def names(news: News) -> list[str]:
    return [mark.name for mark in news.marks]


# --- a run from its beginning to its end ----------------------------------------------------------------------------


async def test_a_run_is_told_from_its_first_moment_to_its_end(
    followed: Followed, hands: Hands, lab: Lab, run: Recorded
) -> None:
    news = await followed.look()
    assert news.watched is not None and (news.watched.status, news.watched.began) == ("preparing", None)
    assert news.watched.title == "append · constant:rate=1" and "status" not in news.watched.row
    run.starts(at_ns=MONOTONIC + NS_PER_S)
    hands.move(3)
    run.ends(20)
    slow = run.recorders[0].begin(99, 5 * MS, 5 * MS, 5 * MS, Phase.STEADY)
    run.line("gauges.ndjson", t_ns=NS_PER_S, source="loader", name="pss_bytes", value=7.0)
    run.line("marks.ndjson", t_ns=0, name="load begins", detail="append")
    news = await followed.look()
    assert news.t == UNIX / NS_PER_S + 3 and news.watched is not None
    assert news.watched.status == "loading" and news.watched.began == UNIX / NS_PER_S + 1
    assert len(news.rows) == 20 and news.waiting.tolist() == [5 * MS]
    assert [(g.t, g.value) for g in news.gauges] == [(UNIX / NS_PER_S + 2, 7.0)] and names(news) == ["load begins"]
    run.recorders[0].end(slow, 99, 5 * MS, 5 * MS, 5 * MS, 5 * MS, 9 * MS, 0, WORD)
    run.line("marks.ndjson", t_ns=1, name="load ends")
    news = await followed.look()
    assert news.watched is not None and news.watched.status == "ending"
    assert news.rows[:, 0].tolist() == [99] and not len(news.waiting)
    run.over("complete")
    lab.ingest(run.folder)
    news = await followed.look()
    assert news.watched is not None and news.watched.status == "complete" and news.watched.row["status"] == "complete"
    again = await followed.look()
    assert again.watched == news.watched and not len(again.rows) and not again.error


async def test_nothing_under_way_is_no_error(followed: Followed, lab: Lab) -> None:
    assert (await followed.look()).watched is None and not lab.spool.exists()


async def test_what_a_folder_held_last_is_read_after_it_is_gone(followed: Followed, lab: Lab, run: Recorded) -> None:
    run.starts(workers=2)
    await followed.look()
    for worker in (0, 1):
        run.ends(30, worker=worker)
    run.line("gauges.ndjson", t_ns=0, source="loader", name="pss_bytes", value=7.0)
    run.over()
    run.keep(status="broken", status_reason="WorkerDied")
    lab.ingest(run.folder)
    assert not run.folder.exists()
    news = await followed.look()
    assert news.watched is not None and news.watched.status == "broken" and len(news.rows) == 60
    assert news.watched.row["status_reason"] == "WorkerDied", "only the lab could tell"
    assert not names(news)


@pytest.mark.parametrize("is_end_seen", [False, True])
async def test_samples_that_were_not_opened_in_time_are_fetched_from_the_lab(
    followed: Followed, lab: Lab, run: Recorded, is_end_seen: bool
) -> None:
    run.keep(start_ns=MONOTONIC, workers=2)
    await followed.look()
    run.starts(workers=2)
    for worker in (0, 1):
        run.ends(30, worker=worker)
    run.recorders[1].drop(30, 5 * MS, 6 * MS, Phase.WARMUP)
    samples = [np.fromfile(run.folder / f"samples-{n}.i64", np.int64).reshape(-1, 8) for n in (0, 1)]
    run.over("complete")
    if is_end_seen:
        hidden = [path.rename(path.with_suffix(".hidden")) for path in run.folder.glob("*.i64")]
        followed._notice()
        for path in hidden:
            path.rename(path.with_suffix(".i64"))
    lab.ingest(run.folder)
    news = await followed.look()
    assert news.watched is not None and news.watched.status == "complete"
    recorded = np.concatenate([s[s[:, -1] != 0] for s in samples])
    order = [np.lexsort(rows.T) for rows in (recorded, news.rows)]
    assert (recorded[order[0]] == news.rows[order[1]]).all() and not names(news)


async def test_if_nobody_can_tell_how_a_run_ended_a_mark_says_so(hands: Hands, lab: Lab, run: Recorded) -> None:
    followed = Followed(lab.spool, lab, clocks=hands)
    run.starts()
    run.ends(3)
    await followed.look()
    run.over("complete")
    shutil.rmtree(run.folder)
    for status in ("ending", "ending", "interrupted"):
        news = await followed.look()
        assert news.watched is not None and news.watched.status == status
    assert names(news) == ["the end of a run was not seen"] and not lab.path.exists()
    await followed.close()


async def test_a_run_whose_process_was_killed_is_interrupted(followed: Followed, run: Recorded) -> None:
    run.starts()
    run.ends(5)
    run.recorders[0].begin(6, 0, 0, 0, Phase.STEADY)
    assert len((await followed.look()).rows) == 5
    run.unlock()
    news = await followed.look()
    assert news.watched is not None and news.watched.status == "interrupted"
    assert names(news) == ["operations never ended"] and not len(news.waiting)


async def test_a_folder_left_by_a_dead_process_is_not_live(followed: Followed, lab: Lab, run: Recorded) -> None:
    run.starts()
    run.ends(5)
    run.unlock()
    assert (await followed.look()).watched is None
    lock = os.open(run.folder / "lock", os.O_RDWR)  # somebody takes it in
    fcntl.flock(lock, fcntl.LOCK_EX)
    assert (await followed.look()).watched is None
    os.close(lock)
    lab.recover()
    assert (await followed.look()).watched is None


# --- several --------------------------------------------------------------------------------------------------------


async def test_of_several_at_once_the_newest_is_followed_and_it_is_said(
    followed: Followed, lab: Lab, run: Recorded
) -> None:
    run.starts()
    run.ends(3)
    await followed.look()
    newer = Recorded(lab.spool, "20260102-000000-bbbbbb")
    newer.starts()
    newer.ends(4)
    run.ends(5, at_ms=10)
    news = await followed.look()
    assert news.watched is not None and news.watched.run_id == newer.folder.name and len(news.rows) == 4
    assert names(news) == ["another run is under way"] and not names(await followed.look())
    newer.over("complete")
    assert (await followed.look()).watched.status == "complete"  # type: ignore[union-attr]
    news = await followed.look()
    assert news.watched is not None and news.watched.run_id == run.folder.name and len(news.rows) == 5


async def test_a_run_that_is_not_followed_ends_unheard(followed: Followed, lab: Lab, run: Recorded) -> None:
    newer = Recorded(lab.spool, "20260102-000000-bbbbbb")
    newer.starts()
    await followed.look()
    run.over("complete")
    newer.ends(2)
    news = await followed.look()
    assert news.watched is not None and news.watched.run_id == newer.folder.name and len(news.rows) == 2
    newer.over("complete")


async def test_runs_that_ended_meanwhile_are_told_one_after_the_other(followed: Followed, lab: Lab) -> None:
    await followed.look()
    for n in range(3):
        run = Recorded(lab.spool, f"2026010{n}-000000-aaaaaa")
        run.starts()
        followed._notice()  # as it does ten times a second
        run.ends(10 + n)
        run.over("complete")
        lab.ingest(run.folder)
    told = [await followed.look() for _ in range(4)]
    assert [len(news.rows) for news in told] == [10, 11, 12, 0]
    assert [news.watched.status for news in told if news.watched] == ["complete"] * 4


# --- bounded --------------------------------------------------------------------------------------------------------


async def test_who_joins_late_catches_up_over_several_looks_in_the_order_of_time(
    followed: Followed, run: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    for room in (follow, state_room):
        monkeypatch.setattr(room, "LOOK_ROWS_MAX", 4000)
    monkeypatch.setattr(follow, "SMALL_ROWS", 500)
    monkeypatch.setattr(tails, "ROWS_AT_ONCE", 250)
    monkeypatch.setattr(Watcher, "_ROWS_AT_ONCE", 250)
    run.starts(workers=2)
    run.ends(9000)
    run.ends(900, worker=1)
    run.line("marks.ndjson", t_ns=0, name="load begins")
    run.line("gauges.ndjson", t_ns=0, source="loader", name="pss_bytes", value=7.0)
    state, sizes, reached = State(window_s=1), [], -1
    for _ in range(4):
        news = await followed.look()
        state.add(news)
        sizes.append(len(news.rows))
        assert not len(news.rows) or news.rows[:, 5].min() >= reached - 500 * MS
        reached = int(news.rows[:, 5].max()) if len(news.rows) else reached
    assert sum(sizes) == 9900 and sizes[-1] == 0 and all(4000 <= size <= 4500 for size in sizes[:2])
    assert state.late == 0 and not state.catching_up and state.totals.outcomes["ok"] == 9900
    assert [mark.name for mark in state.marks] == ["load begins"] and [*state.gauges] == ["loader.pss_bytes"]


def test_lines_are_told_when_they_are_whole_and_others_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tails, "LOOK_BYTES", 400)
    path = tmp_path / "gauges.ndjson"
    lines = tails.Lines(path, tails.GaugeLine)
    lines.hold()
    assert lines.new() == []
    good = b'{"t_ns":%d,"source":"a","name":"b","value":1.5}'
    path.write_bytes(
        good % 1 + b"\n" + b"nonsense\n" + b'{"t_ns":2,"source":"a","name":"b","value":null}\n\xff\xff\n' + good % 3
    )
    lines.hold()
    assert [g.t_ns for g in lines.new()] == [1]
    with path.open("ab") as file:
        file.write(b"\n" + b"x" * 1000 + b"\n" + b"\n".join(good % n for n in range(4, 20)) + b"\n")
    found: list[int] = []
    while more := lines.new() or lines.is_behind:
        found += [g.t_ns for g in more] if isinstance(more, list) else []
    assert found == [3, *range(4, 20)]
    lines.close()


def test_of_a_long_file_only_the_end_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tails, "LATE_BYTES", 1000)
    path = tmp_path / "marks.ndjson"
    path.write_bytes(b"".join(b'{"t_ns":%d,"name":"m"}\n' % n for n in range(500)))
    lines = tails.Lines(path, tails.MarkLine)
    lines.hold()
    found = [mark.t_ns for mark in lines.new()]
    assert found == list(range(500 - len(found), 500)) and 30 < len(found) < 50
    lines.close()


async def test_a_spool_that_cannot_be_read_is_an_error_and_not_raised(followed: Followed, lab: Lab) -> None:
    lab.spool.parent.mkdir(exist_ok=True)
    lab.spool.write_text("no folder")
    news = await followed.look()
    assert news.error == "the spool cannot be read: Not a directory"


@pytest.mark.parametrize(
    "facts", [{"workers": "many", "warmup_s": None, "label": 7}, {"workers": 10**9, "start_ns": "x"}]
)
async def test_a_row_that_says_nonsense_is_borne(followed: Followed, run: Recorded, facts: dict[str, Any]) -> None:
    run.keep(**facts)
    assert not (await followed.look()).error
    for nonsense in (b"{", b"[]", b'{"label": "\xff"}'):
        (run.folder / "run.json").write_bytes(nonsense)
        assert not (await followed.look()).error


async def test_a_row_written_twice_within_one_tick_of_the_file_systems_clock_is_read_twice(
    followed: Followed, run: Recorded
) -> None:
    await followed.look()
    file = run.folder / "run.json"
    before = file.stat().st_mtime_ns
    file.write_bytes(msgspec.json.encode(run.row | {"label": "later"}))
    os.utime(file, ns=(before, before))
    news = await followed.look()
    assert news.watched is not None and news.watched.title == "later"


async def test_a_folder_that_is_no_runs_hides_no_other(
    followed: Followed, lab: Lab, run: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    (lab.spool / "20260109-000000-cccccc" / "run.json").mkdir(parents=True)
    (lab.spool / "20260109-000000-dddddd").mkdir()
    locked = Recorded(lab.spool, "20260109-000000-eeeeee")
    is_file = Path.is_file

    def refused(path: Path) -> bool:
        if path.parent == locked.folder:
            raise PermissionError(13, "Permission denied")
        return is_file(path)

    monkeypatch.setattr(Path, "is_file", refused)
    run.starts()
    run.ends(4)
    news = await followed.look()
    assert not news.error and len(news.rows) == 4
    locked.over()


async def test_if_the_wall_clock_is_set_the_run_moves_with_it(followed: Followed, hands: Hands, run: Recorded) -> None:
    run.starts()
    assert (await followed.look()).watched.began == UNIX / NS_PER_S  # type: ignore[union-attr]
    hands.wall += 50 * MS  # a correction, or the clocks were not read at the very same moment
    assert (await followed.look()).watched.began == UNIX / NS_PER_S  # type: ignore[union-attr]
    hands.wall += 3600 * NS_PER_S
    assert (await followed.look()).watched.began == UNIX / NS_PER_S + 3600.05  # type: ignore[union-attr]


# --- a watcher of a file whose beginning was taken away ----------------------------------------------------------------


def punched(folder: Path, rows: int) -> None:
    """Say that so many rows were taken, and make zeros of them."""
    (folder / "s.taken").write_text(str(rows))
    with (folder / "s.i64").open("r+b") as file:
        file.write(bytes(64 * rows))


def test_a_watcher_begins_behind_what_was_taken(tmp_path: Path) -> None:
    with Recorder(tmp_path / "s.i64", 10_000) as recorder:
        for n in range(6000):
            recorder.drop(n, 0, 0, Phase.STEADY)
        early, late = Watcher(tmp_path / "s.i64"), Watcher(tmp_path / "s.i64")
        assert len(early.new_rows()) == 6000
        punched(tmp_path, 5000)
        assert late.new_rows()[:, 0].tolist() == list(range(5000, 6000)) and late.skipped == 5000
        recorder.drop(6000, 0, 0, Phase.STEADY)
        assert [w.new_rows()[:, 0].tolist() for w in (early, late)] == [[6000], [6000]] and early.skipped == 0


def test_a_row_that_was_written_while_it_was_read_is_told_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Watcher._read

    def torn(self: Watcher, file: int, row: int, count: int) -> NDArray[np.int64]:
        rows = read(self, file, row, count).copy()
        monkeypatch.setattr(Watcher, "_read", read)
        rows[:, :-1] = 0  # the words before the last were read before they were written
        return rows

    with Recorder(tmp_path / "s.i64", 100) as recorder:
        recorder.begin(1, 7, 7, 7, Phase.STEADY)
        recorder.drop(2, 9, 10, Phase.STEADY)
        watcher = Watcher(tmp_path / "s.i64")
        monkeypatch.setattr(Watcher, "_read", torn)
        assert watcher.new_rows()[:, :6].tolist() == [[2, 9, 10, 10, 0, 10]] and watcher.waiting.tolist() == [7]


def test_a_watcher_does_not_wait_for_an_operation_that_was_taken(tmp_path: Path) -> None:
    watcher = Watcher(tmp_path / "s.i64")
    with Recorder(tmp_path / "s.i64", 100) as recorder:
        recorder.begin(0, 7, 7, 7, Phase.STEADY)
        recorder.begin(1, 9, 9, 9, Phase.STEADY)
        assert len(watcher.new_rows()) == 0 and watcher.waiting.tolist() == [7, 9]
        punched(tmp_path, 1)
        assert len(watcher.new_rows()) == 0 and watcher.waiting.tolist() == [9] and watcher.skipped == 1


def test_a_watcher_that_holds_its_file_reads_it_after_it_is_gone_and_no_more_than_it_is_asked(tmp_path: Path) -> None:
    watcher = Watcher(tmp_path / "s.i64")
    assert not watcher.hold()
    with Recorder(tmp_path / "s.i64", 10_000) as recorder:
        assert watcher.hold()
        for n in range(9000):
            recorder.drop(n, 0, 0, Phase.STEADY)
        (tmp_path / "s.i64").unlink()
        assert len(watcher.new_rows(4096)) == 4096 and watcher.is_behind
        assert len(watcher.new_rows()) == 4904 and not watcher.is_behind
        (tmp_path / "s.i64").touch()  # for the recorder, which cuts it when it closes
    watcher.close()


async def test_joining_late_beside_a_rotation_is_said(followed: Followed, run: Recorded) -> None:
    run.starts()
    run.ends(200)
    (run.folder / "samples-0.taken").write_text("128")
    with (run.folder / "samples-0.i64").open("r+b") as file:
        file.write(bytes(64 * 128))
    news = await followed.look()
    assert len(news.rows) == 72 and names(news) == ["joined late"] and "128 operations" in news.marks[0].detail
    assert not names(await followed.look())


def test_ten_thousand_under_way_are_looked_at_with_a_few_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, reads = Watcher._read, []

    def counted(self: Watcher, file: int, row: int, count: int) -> NDArray[np.int64]:
        reads.append(count)
        return read(self, file, row, count)

    watcher = Watcher(tmp_path / "s.i64")
    with Recorder(tmp_path / "s.i64", 10_000) as recorder:
        offsets = [recorder.begin(n, n, n, n, Phase.STEADY) for n in range(10_000)]
        assert not len(watcher.new_rows()) and len(watcher.waiting) == 10_000
        for n in range(0, 10_000, 3):
            recorder.end(offsets[n], n, n, n, n, n, n, 0, WORD)
        monkeypatch.setattr(Watcher, "_read", counted)
        assert watcher.new_rows()[:, 0].tolist() == list(range(0, 10_000, 3))
        assert watcher.waiting.tolist() == [n for n in range(10_000) if n % 3] and len(reads) < 10


# --- beside a real rotation -------------------------------------------------------------------------------------------


@pytest.fixture
def holes(tmp_path: Path) -> None:
    with (tmp_path / "holed").open("w+b", buffering=0) as file:
        file.write(bytes(8192))
        if not _punched(file, 0, 4096):
            pytest.skip("this file system gives nothing back in the middle of a file")


async def test_of_a_run_that_is_rotated_every_row_is_counted_once(
    followed: Followed, hands: Hands, lab: Lab, run: Recorded
) -> None:
    state, rotation, chance, ended_ms = State(window_s=5), Rotation(run.folder, rows_per_part=256), Random(5), 0
    run.starts(workers=2)
    for k in range(40):
        count = chance.randrange(400)
        for worker in (0, 1):
            run.ends(count, at_ms=ended_ms, worker=worker)
        slow = run.recorders[0].begin(k, ended_ms * MS, 0, 0, Phase.STEADY)
        ended_ms += 1000
        hands.move(1)
        state.add(await followed.look())
        rotation.turn()
        run.recorders[0].end(slow, k, ended_ms * MS, 0, 0, 0, ended_ms * MS, 0, WORD)
    run.over("complete")
    rotation.turn()
    parts = [*run.folder.glob("*.parquet")]
    lab.ingest(run.folder)
    state.add(await followed.look())
    assert len(parts) > 20 and state.watched is not None and state.watched.status == "complete"
    wanted = lab.samples(run.folder.name)
    assert state.totals.outcomes["ok"] == len(wanted) > 10_000
    assert state.totals.events == wanted["events"].sum() and state.late == 0 and not state.is_cut
    assert "joined late" not in [mark.name for mark in state.marks]


@pytest.mark.usefixtures("holes")
async def test_who_was_away_for_several_turns_says_what_is_missing_and_counts_the_rest_once(
    followed: Followed, hands: Hands, run: Recorded
) -> None:
    state, rotation = State(window_s=30), Rotation(run.folder, rows_per_part=256)
    run.keep(duration_s=100.0)
    run.starts()
    run.ends(640)
    hands.move(1)
    state.add(await followed.look())
    for k in range(1, 20):  # so many seconds nobody looked
        run.ends(640, at_ms=1000 * k)
        rotation.turn()
    hands.move(20)
    state.add(await followed.look())
    [missing] = [int(m.detail.split()[0].replace(",", "")) for m in state.marks if m.name == "joined late"]
    assert 10_000 < missing < 640 * 18 and state.totals.outcomes["ok"] == 640 * 20 - missing
    assert state.is_cut and state.figures["commands_per_second"] == pytest.approx(640, rel=0.7), "not over 30 s"
    for _ in range(31):
        hands.move(1)
        state.add(await followed.look())
    assert not state.is_cut and state.figures["commands_per_second"] == 0.0


@pytest.mark.usefixtures("holes")
async def test_behind_what_was_given_back_it_goes_on_although_the_folder_is_gone(
    followed: Followed, lab: Lab, run: Recorded
) -> None:
    run.starts()
    followed._notice()  # it has opened the files and read nothing
    rotation = Rotation(run.folder, rows_per_part=256)
    for n in range(8):
        run.ends(300, at_ms=300 * n)
        rotation.turn()
    run.over("complete")
    lab.ingest(run.folder)
    news = await followed.look()
    assert names(news) == ["joined late"] and 300 < len(news.rows) < 1000
    assert news.rows[-1, 5] == 2400 * MS and f"{2400 - len(news.rows):,} operations" in news.marks[0].detail


async def test_a_run_that_is_come_back_to_has_a_window_that_begins_then(
    followed: Followed, hands: Hands, lab: Lab, run: Recorded
) -> None:
    state = State(window_s=60)
    run.starts()
    for k in range(3):
        run.ends(500, at_ms=1000 * k)
        hands.move(1)
        state.add(await followed.look())
    newer = Recorded(lab.spool, "20260102-000000-bbbbbb")
    newer.starts()
    run.ends(500, at_ms=3000)
    hands.move(1)
    state.add(await followed.look())
    newer.over("complete")
    state.add(await followed.look())
    run.ends(500, at_ms=4000)
    hands.move(1)
    state.add(await followed.look())
    assert state.watched is not None and state.watched.run_id == run.folder.name and state.totals.outcomes["ok"] == 2500
    assert state.is_cut and state.figures["commands_per_second"] == pytest.approx(500, rel=0.25), "not 1,000 in 5 s"


# --- real runs ------------------------------------------------------------------------------------------------------

CAMPAIGN = """
import sys
from pathlib import Path
from eventcore_lab import Experiment, Lab, run
from eventcore_lab.progress import Quiet
lab = Lab(Path(sys.argv[1]))
for store, pacer, workers in (("memory", "saturate", 1), ("sqlite", "poisson:rate=500", 2)):
    run(Experiment(store=store, pacer=pacer, duration_s=0.3, warmup_s=0.1, workers=workers), lab, Quiet())
"""


async def test_a_campaign_of_short_runs_loses_no_row_and_has_the_figures_of_the_lab(lab: Lab) -> None:
    followed, state = Followed(lab.spool, lab), State(window_s=3600)
    figures: dict[str, dict[str, float]] = {}
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", CAMPAIGN, str(lab.path))
    ended = asyncio.ensure_future(process.wait())
    beats_after = 0
    while beats_after < 5:
        await sleep_s(0.02 if ended.done() else 1.0)  # a monitor looks once a second
        beats_after += ended.done()
        news = await followed.look()
        state.add(news)
        assert not news.error and "the end of a run was not seen" not in names(news)
        if news.watched is not None and news.watched.status == "complete":
            figures[news.watched.run_id] = dict(state.figures)
    await followed.close()
    assert ended.result() == 0
    runs = [Run(lab, run_id) for run_id in lab.runs()["run_id"].to_list()]
    assert len(runs) == 2 == state.totals.runs and figures.keys() == {run.run_id for run in runs}
    assert sum(state.totals.outcomes.values()) == sum(len(run.samples) for run in runs)
    assert sum(s.ended for s in state.history) <= sum(state.totals.latency) == sum(len(run.samples) for run in runs)
    for run in runs:
        for name in UNITS:
            wanted = run.figure(name).estimate.value
            tolerance = 0.0 if name.startswith("p") else 1e-9
            found = figures[run.run_id][name]
            assert found == pytest.approx(wanted, rel=tolerance, abs=0, nan_ok=True), f"{name} of {run}"
