"""Claims about what the person who waits is told: right totals, one line at a time, and notes that find their reader."""

from __future__ import annotations

import io
import json
import os
import pty
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from eventcore_lab import progress
from eventcore_lab.clock import NS_PER_S
from eventcore_lab.progress import (
    LOOKS_MAX,
    PROGRESS_VARIABLE,
    Bar,
    Lines,
    Notes,
    Progress,
    Quiet,
    Relay,
    Tally,
    chosen,
)
from eventcore_lab.schema import Outcome, Phase, packed

ERASE = "\r\x1b[K"


class Hands:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.at_ns = 1_000 * NS_PER_S

    def now_ns(self) -> int:
        return self.at_ns

    def move(self, seconds: float) -> None:
        self.at_ns += int(seconds * NS_PER_S)


@pytest.fixture
def hands(monkeypatch: pytest.MonkeyPatch) -> Hands:
    hands = Hands()
    monkeypatch.setattr(progress, "now_ns", hands.now_ns)
    return hands


class Terminal(io.StringIO):
    """Looks like a terminal of 40 columns to who writes into it; remembers everything."""

    def __init__(self) -> None:
        super().__init__()
        self._master, self._slave = pty.openpty()

    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._slave

    def close(self) -> None:
        if not self.closed:
            os.close(self._master)
            os.close(self._slave)
        super().close()


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    monkeypatch.setattr(os, "get_terminal_size", lambda _: os.terminal_size((40, 24)))
    with Terminal() as opened:
        yield opened


def rows(*outcomes: Outcome, events: int = 1) -> NDArray[np.int64]:
    words = [[0] * 7 + [packed(outcome, Phase.STEADY, 1, events)] for outcome in outcomes]
    return np.array(words, np.int64).reshape(-1, 8)


OK, CONFLICT, FAILED = Outcome.OK, Outcome.CONFLICT, Outcome.FAILED


# --- tally ----------------------------------------------------------------------------------------------------------


def test_a_tally_adds_up_all_it_has_seen() -> None:
    tally = Tally(1, 9)
    tally.add(rows(OK, OK, events=3))
    tally.add(rows())
    tally.add(rows(CONFLICT, FAILED, Outcome.UNKNOWN, Outcome.DROPPED, events=0))
    assert (tally.operations, tally.events, tally.unwell) == (6, 6, 3), "a conflict is an answer"


def test_a_rate_is_that_of_the_last_look(hands: Hands) -> None:
    tally = Tally(0, 10)
    for count in (100, 30, 0):
        hands.move(0.5)
        tally.add(rows(*[OK] * count))
        assert tally.rate == 2 * count


def test_two_looks_in_a_moment_do_not_make_a_rate(hands: Hands) -> None:
    tally = Tally(0, 10)
    hands.move(1)
    tally.add(rows(*[OK] * 50))
    hands.move(0.001)
    tally.add(rows(OK, OK))
    assert tally.rate == 50
    assert tally.operations == 52


def test_time_gone_is_never_more_than_the_run_lasts(hands: Hands) -> None:
    tally = Tally(1, 9)
    hands.move(4)
    assert tally.elapsed_s == 4
    hands.move(400)
    assert tally.elapsed_s == tally.total_s == 10


def test_a_tally_reads_as_a_sentence(hands: Hands) -> None:
    tally = Tally(0, 60)
    hands.move(2)
    tally.add(rows(*[OK] * 3000))
    assert str(tally) == " 2.0/60 s  3,000 operations, 1,500/s"
    tally.add(rows(FAILED, FAILED))
    assert str(tally).endswith(", 2 not well")


# --- lines and bar --------------------------------------------------------------------------------------------------


def test_a_log_gets_a_line_every_few_seconds_and_no_more(hands: Hands) -> None:
    out = io.StringIO()
    lines, tally = Lines(out, every_s=5), Tally(0, 60)
    lines.phase("memory", "warming up")
    for _ in range(48):
        hands.move(0.25)
        lines.update("memory", tally)
    lines.ended("complete", "")
    assert [line.partition(" s ")[0] for line in out.getvalue().splitlines()] == ["memory:  5.0/60", "memory: 10.0/60"]


@pytest.mark.parametrize("kind", [Lines, Bar])
def test_an_end_that_is_no_end_is_told(kind: type[Lines] | type[Bar]) -> None:
    out = io.StringIO()
    kind(out).ended("interrupted", "stopped by hand")
    assert out.getvalue().removeprefix(ERASE) == "interrupted: stopped by hand\n"


def test_a_bar_fills_as_time_goes_and_writes_over_itself(hands: Hands) -> None:
    out = io.StringIO()
    bar, tally = Bar(out), Tally(0, 24)
    fills = []
    for _ in range(5):
        bar.update("m", tally)
        fills.append(out.getvalue().rpartition(ERASE)[2].count("━"))
        hands.move(6)
    assert fills == [0, 6, 12, 18, 24]
    assert "\n" not in out.getvalue()
    bar.ended("complete", "")
    assert out.getvalue().endswith(ERASE), "nothing is left behind"


def test_a_bar_is_cut_where_the_terminal_ends(terminal: Terminal) -> None:
    Bar(terminal).phase("m", "a very long text " * 10)
    assert len(terminal.getvalue().removeprefix(ERASE)) == 39


# --- notes and relay ------------------------------------------------------------------------------------------------


def test_notes_are_one_json_object_a_line(tmp_path: Path, hands: Hands) -> None:
    notes, tally = Notes(tmp_path / "n"), Tally(0, 10)
    notes.phase("memory", "warming\nup")
    hands.move(4)
    notes.update("memory", tally)
    notes.ended("broken", "why")
    first, second, third = map(json.loads, (tmp_path / "n").read_text().splitlines())
    assert first == {"kind": "phase", "title": "memory", "text": "warming\nup"}
    assert (second["kind"], second["elapsed_s"], second["total_s"]) == ("update", 4, 10)
    assert second["text"] == str(tally)
    assert third == {"kind": "ended", "status": "broken", "reason": "why"}


def look(relay: Relay) -> None:
    """What the relay's thread does at each poll."""
    if note := relay._newest():
        relay._show(note)


def test_a_relay_waits_for_a_file_and_for_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "n"
    relay = Relay(path, io.StringIO())
    assert relay._newest() is None
    path.write_bytes(b'{"kind":"pha')
    assert relay._newest() is None
    with path.open("ab") as file:
        file.write(b'se","title":"a","text":"b"}\n{"kind"')
    assert relay._newest() == {"kind": "phase", "title": "a", "text": "b"}
    assert relay._newest() is None


def test_a_relay_shows_only_the_newest_note(tmp_path: Path) -> None:
    notes = Notes(tmp_path / "n")
    for text in ("one", "two", "three"):
        notes.phase("m", text)
    newest = Relay(tmp_path / "n", io.StringIO())._newest()
    assert newest is not None
    assert newest["text"] == "three"


def test_a_relay_draws_the_bar_of_another_process_on_a_terminal(
    tmp_path: Path, hands: Hands, terminal: Terminal
) -> None:
    notes, tally, relay = Notes(tmp_path / "n"), Tally(0, 24), Relay(tmp_path / "n", terminal)
    notes.phase("m", "warming up")
    look(relay)
    assert terminal.getvalue() == f"{ERASE}  m: warming up"
    hands.move(12)
    notes.update("m", tally)
    look(relay)
    drawn = terminal.getvalue().rpartition(ERASE)[2]
    assert drawn.count("━") == drawn.count("╌") == 12
    assert len(drawn) <= 39
    relay.line("a whole line\n")
    assert terminal.getvalue().endswith(f"{ERASE}a whole line\n")
    notes.ended("complete", "")
    look(relay)
    assert terminal.getvalue().endswith("a whole line\n")


def test_a_relay_into_a_log_says_a_line_every_few_seconds(tmp_path: Path, hands: Hands) -> None:
    out = io.StringIO()
    notes, tally, relay = Notes(tmp_path / "n"), Tally(0, 60), Relay(tmp_path / "n", out)
    for _ in range(48):
        hands.move(0.25)
        notes.update("m", tally)
        look(relay)
    assert [line.partition("/")[0] for line in out.getvalue().splitlines()] == ["  m:  0.2", "  m:  5.2", "  m: 10.2"]


def test_a_relay_survives_a_reader_that_went_away(tmp_path: Path) -> None:
    out = io.StringIO()
    relay = Relay(tmp_path / "n", out)
    out.close()
    relay.line("to nobody")


class Heard(io.StringIO):
    """Tells when `text` has been written."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self._text, self.heard = text, threading.Event()

    def write(self, text: str) -> int:
        if self._text in text:
            self.heard.set()
        return super().write(text)


def test_a_relay_follows_in_a_thread_that_ends_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Relay, "POLL_S", 0.001)
    out = Heard("here I am")
    with Relay(tmp_path / "n", out) as relay:
        Notes(tmp_path / "n")._note(kind="update", title="m", text="here I am", elapsed_s=1, total_s=2)
        assert out.heard.wait(30)
        assert relay._thread.is_alive()
    assert out.getvalue() == "  m: here I am\n"
    assert not relay._thread.is_alive()


# --- the choice -----------------------------------------------------------------------------------------------------


def test_progress_goes_where_a_parent_asked_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PROGRESS_VARIABLE, str(tmp_path / "n"))
    chosen().phase("m", "here")
    assert json.loads((tmp_path / "n").read_text())["text"] == "here"


@pytest.mark.parametrize(("is_terminal", "kind"), [(True, Bar), (False, Lines)])
def test_a_terminal_gets_a_bar_and_a_log_gets_lines(
    monkeypatch: pytest.MonkeyPatch, is_terminal: bool, kind: type[Progress]
) -> None:
    monkeypatch.delenv(PROGRESS_VARIABLE, raising=False)
    out = io.StringIO()
    monkeypatch.setattr(out, "isatty", lambda: is_terminal)
    monkeypatch.setattr(progress.sys, "stderr", out)
    assert type(chosen()) is kind


def test_quiet_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    quiet = Quiet()
    quiet.phase("m", "t")
    quiet.update("m", Tally(0, 1))
    quiet.ended("broken", "why")
    assert capfd.readouterr() == ("", "")


def test_a_load_that_runs_elsewhere_is_not_told_to_do_nothing() -> None:
    tally = Tally(1, 9, "dask:tcp://scheduler:8786")
    assert str(tally).endswith("/10 s  on dask:tcp://scheduler:8786; its samples come at the end")


def test_looks_are_bounded_and_forget_what_they_have_looked_at(hands: Hands) -> None:
    tally = Tally(0, 10)
    for _ in range(2 * LOOKS_MAX):
        hands.move(10 / LOOKS_MAX)
        tally.add(rows(OK, OK))
    assert 0 < len(tally.looks) <= LOOKS_MAX
    assert tally.looks[0].rate == pytest.approx(2 * LOOKS_MAX / 10)
    assert sum(len(part) for part in tally._unlooked._latencies) <= 2


def test_a_look_tells_how_slow_what_ended_in_it_was(hands: Hands) -> None:
    tally = Tally(0, LOOKS_MAX)  # a look each second
    samples = rows(*[OK] * 100)
    samples[:, 5] = (np.arange(100) + 1) * 1_000_000  # ended, ns after it was due
    for n, part in enumerate((samples, rows(FAILED), rows())):
        hands.move(1)
        tally.add(part)
        assert len(tally.looks) == n + 1
    assert (tally.looks[0].p50_ms, tally.looks[0].p99_ms) == (50, 99)
    assert np.isnan(tally.looks[1].p50_ms) and tally.looks[2].rate == 0
