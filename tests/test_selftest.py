"""Claims about the self-test: its formulas are right, its rule seldom accuses, and a load generator that is wrong is found."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.integrate import quad

from eventcore_lab import cli, selftest
from eventcore_lab.clock import NS_PER_S, VirtualClock
from eventcore_lab.lab import stats
from eventcore_lab.load import drive
from eventcore_lab.load.pacers import Constant, Poisson
from eventcore_lab.load.recorder import Recorder
from eventcore_lab.schema import ExitCode
from eventcore_lab.selftest import cases, judging, model, table, theory
from eventcore_lab.selftest.cases import Size
from eventcore_lab.selftest.judging import LIMIT, Case, Row, estimated, mean

SMALL = Size(seed=3, share=0.06)
mm1_in_server, mm1_in_backlog = cases.CASES[1:3]


# --- theory ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rho", "expected"), [(0.5, (1.3863, 5.9915, 9.2103, 13.8155)), (0.8, (3.4657, 14.9787, 23.0259, 34.5388))]
)
def test_percentiles_of_one_server_are_those_of_the_textbook(rho: float, expected: tuple[float, ...]) -> None:
    found = [theory.mm1_response(p, rho) for p in (0.5, 0.95, 0.99, 0.999)]
    assert found == pytest.approx(expected, abs=5e-5)


def test_several_servers_of_which_there_is_one_are_one_server() -> None:
    assert theory.erlang_c(1, 0.7) == pytest.approx(0.7)
    assert theory.mmc_wait_mean(1, 0.7) == pytest.approx(theory.mm1_response_mean(0.7) - 1)
    assert theory.mmc_response(0.99, 1, 0.7) == pytest.approx(theory.mm1_response(0.99, 0.7))


def test_the_share_that_waits_is_that_of_erlangs_table() -> None:
    assert theory.erlang_c(2, 0.5) == pytest.approx(1 / 3)
    assert theory.erlang_c(4, 0.8) == pytest.approx(0.5964, abs=5e-5)


@pytest.mark.parametrize("rho", [0.3, 0.8])
def test_distributions_have_the_means_that_are_told_beside_them(rho: float) -> None:
    waits = sum(quad(lambda x: 1 - theory.md1_waits_at_most(x, rho), n, n + 1)[0] for n in range(20))
    assert waits == pytest.approx(theory.md1_wait_mean(rho), rel=1e-3)
    responses = quad(theory.mmc_takes_longer, 0, np.inf, args=(4, rho))[0]
    assert responses == pytest.approx(theory.mmc_wait_mean(4, rho) + 1)
    for p in (0.5, 0.99):
        assert theory.md1_waits_at_most(theory.md1_response(p, 0.8) - 1, 0.8) == pytest.approx(p)
    assert theory.md1_response(0.1, 0.8) == 1, "who need not wait takes one service"


def test_a_room_that_is_never_full_is_no_bound_and_one_for_a_single_customer_is_erlangs_loss() -> None:
    assert sum(theory.mm1k_share(n, 1.2, 5) for n in range(6)) == pytest.approx(1)
    assert theory.mm1k_share(1, 0.5, 1) == pytest.approx(0.5 / 1.5)
    assert theory.mm1k_response_mean(0.5, 1) == pytest.approx(1)
    assert theory.mm1k_response_mean(0.5, 200) == pytest.approx(2)


def test_callers_that_think_keep_a_server_as_busy_as_the_textbook_says() -> None:
    assert theory.callers_busy(1, 3.0) == pytest.approx(1 / 4)
    assert theory.callers_response_mean(1, 3.0) == pytest.approx(1)
    assert theory.callers_response_mean(50, 0.001) == pytest.approx(50, rel=1e-3), "those who do not think all wait"


def test_the_replays_agree_with_each_other_and_with_arithmetic() -> None:
    due, service = np.array([0, 1, 10, 11]), np.array([5, 2, 1, 3])
    assert theory.lindley(due, service).tolist() == [5, 7, 11, 14]
    assert theory.kiefer_wolfowitz(due.tolist(), service.tolist(), 2).tolist() == [5, 3, 11, 14]
    rng = np.random.default_rng(1)
    due, service = np.sort(rng.integers(0, 10**9, 2000)), rng.integers(0, 10**6, 2000)
    assert (theory.lindley(due, service) == theory.kiefer_wolfowitz(due.tolist(), service.tolist(), 1)).all()


# --- the rule -------------------------------------------------------------------------------------------------------


def queue(rho: float, count: int, seed: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Responses, in services, of a settled queue: what the load would record, without it."""
    rng = np.random.default_rng(seed)
    due = np.sort(rng.integers(0, int((count + 1000) / rho * 1e6), count + 1000))
    service = rng.exponential(1e6, len(due)).astype(np.int64)
    return ((theory.lindley(due, service) - due) / 1e6)[1000:]


def test_an_interval_has_theory_in_it_as_often_as_it_says_although_neighbours_are_alike() -> None:
    off = np.array(
        [
            row.off
            for seed in range(100)
            for responses in [queue(0.5, 20_000, seed)]
            for row in (
                estimated("mean", 2, responses, mean, ""),
                judging.percentile(0.95, theory.mm1_response(0.95, 0.5), responses, 4, ""),
            )
        ]
    )
    shown = estimated("", 0, np.arange(100), mean, "")
    half = (shown.interval[1] - shown.measured) / shown.error
    assert 0.01 <= (abs(off) > half).mean() <= 0.10
    assert abs(off).max() < LIMIT


@pytest.mark.parametrize("p", [0.95, 0.99])
def test_a_percentile_that_is_seldom_reached_is_told_and_not_judged(p: float) -> None:
    """1 % of 250,000 are 2,500 responses in 100 visits above."""
    responses = queue(0.8, 250_000, 1)
    in_a_row = judging.samples_in_a_row(0.8)
    assert in_a_row == pytest.approx(25)
    assert judging.percentile(p, theory.mm1_response(p, 0.8), responses, in_a_row, "").is_judged
    seldom = judging.percentile(p, 1000.0, responses[:19_000], in_a_row, "")
    assert not seldom.is_judged and seldom.holds and seldom.measured > 0
    assert table.line(seldom).startswith("· ")


@pytest.mark.parametrize(
    ("theory_says", "measured", "error", "holds"),
    [
        (1, 1, 0, True),
        (1, 1 + 1e-12, 0, False),
        (1, math.nan, 0, False),
        (1, math.nan, math.nan, False),
        (1, 1 + 0.9 * LIMIT, 1, True),
        (1, 1 - 1.1 * LIMIT, 1, False),
    ],
)
def test_a_claim_holds_within_the_limit_or_to_the_last_digit(
    theory_says: float, measured: float, error: float, holds: bool
) -> None:
    row = Row("q", theory_says, measured, "s", error)
    assert (row.holds, table.line(row)[0]) == (holds, "✓" if holds else "✗")


# --- the real load --------------------------------------------------------------------------------------------------


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    sys.argv = ["eventcore-lab", "selftest", *arguments]
    with pytest.raises(SystemExit) as done:
        cli.main()
    return int(done.value.code or 0), capsys.readouterr().out


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selftest, "QUICK", SMALL.share)
    monkeypatch.setattr(selftest, "REAL_TIME_S", 0.4)


@pytest.mark.usefixtures("short")
def test_the_load_generator_measures_what_theory_says(capsys: pytest.CaptureFixture[str]) -> None:
    code, text = said(capsys, "--quick", "--seed", str(SMALL.seed))
    *_, last = lines = text.splitlines()
    assert (code, "✗ " in text.partition("\n\n")[2]) == (ExitCode.PASS, False), text
    assert last.startswith("✓ all ") and max(map(len, lines)) <= table.WIDTH
    assert sum(line.startswith("✓ ") for line in lines) - 2 == int(last.split()[2]), "the rule and the verdict"
    assert "not judged" in text and "µs (p99)" in text
    estimates = [line for line in lines if " … " in line or "too few samples" in line]
    assert len(estimates) <= judging.ROWS_MAX


@pytest.mark.usefixtures("short")
def test_one_claim_that_does_not_hold_fails_the_whole(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(_: Size) -> Case:
        return Case("a case", "nothing", [Row("a claim", 1, 2, "nobody"), Row("another", 1, 1, "nobody")])

    monkeypatch.setattr(selftest, "CASES", (wrong,))
    code, text = said(capsys, "--quick")
    assert code == ExitCode.FAIL
    assert text.splitlines()[-1].startswith("✗ 1 of 2 claims do not hold")


def test_the_same_seed_gives_the_same_table_and_another_seed_another() -> None:
    small, other = Size(3, 0.01), Size(4, 0.01)
    assert cases.mm1k(small).rows == cases.mm1k(small).rows != cases.mm1k(other).rows


# --- load generators that are wrong ---------------------------------------------------------------------------------

Break = Callable[[pytest.MonkeyPatch], None]


def pacer_at(share: float) -> Break:
    """Its rate is another by that share."""

    def broken(patch: pytest.MonkeyPatch) -> None:
        right = Poisson.schedule
        patch.setattr(Poisson, "schedule", lambda self, ns, rng: right(Poisson(self.rate * share), ns, rng))

    broken.__name__ = f"pacer_at_{share}"
    return broken


def arrivals_without_chance(patch: pytest.MonkeyPatch) -> None:
    def schedule(self: Poisson, ns: int, rng: np.random.Generator) -> Any:
        return Constant(self.rate).schedule(ns, rng) + rng.integers(0, 2, int(self.rate * ns / NS_PER_S))

    patch.setattr(Poisson, "schedule", schedule)


def arrivals_in_pairs(patch: pytest.MonkeyPatch) -> None:
    right = Poisson.schedule
    patch.setattr(Poisson, "schedule", lambda self, ns, rng: np.repeat(right(Poisson(self.rate / 2), ns, rng), 2))


class Omitting(Recorder):
    """Latency counts from when an operation began, not from when it was due."""

    def __init__(self, path: Path, capacity: int) -> None:
        super().__init__(path, capacity)
        right = self.end
        self.end = lambda row, k, _, offered, began, *rest: right(row, k, began, offered, began, *rest)


class Losing(Recorder):
    """One row in a hundred is written over by the next."""

    def begin(self, *facts: int) -> int:
        offset = super().begin(*facts)
        if offset // 64 % 100 == 50:
            self._lost = not getattr(self, "_lost", False)
            self._next -= 64 * self._lost
        return offset


class Twice(Recorder):
    """Says of the fiftieth that it was the one before."""

    def __init__(self, path: Path, capacity: int) -> None:
        super().__init__(path, capacity)
        right = self.end
        self.end = lambda row, k, *rest: right(row, k - (k == 50), *rest)


class Silent(Recorder):
    """What is dropped has no row."""

    def drop(self, *facts: int) -> None: ...


class Rounding(Recorder):
    """Keeps µs."""

    def __init__(self, path: Path, capacity: int) -> None:
        super().__init__(path, capacity)
        right = self.end
        self.end = lambda row, k, due, offered, began, acquired, ended, *rest: right(
            row, k, due, offered, began, acquired, ended // 1000 * 1000, *rest
        )


def recorder(kind: type[Recorder]) -> Break:
    def broken(patch: pytest.MonkeyPatch) -> None:
        patch.setattr(model, "Recorder", kind)

    broken.__name__ = f"recorder_{kind.__name__}"
    return broken


def percentile_one_rank_off(patch: pytest.MonkeyPatch) -> None:
    right = stats.percentile
    patch.setattr(stats, "percentile", lambda ascending, p: right(ascending[:-1], p))


def services_alike(patch: pytest.MonkeyPatch) -> None:
    """Two neighbours are of one length."""
    right = model.exponential_ns
    patch.setattr(cases, "exponential_ns", lambda rng, count: np.repeat(right(rng, count // 2 + 1), 2)[:count])


def last_come_first_served(patch: pytest.MonkeyPatch) -> None:
    """The mean is the same then, and only some percentiles are not."""

    class Stack(drive.deque):  # type: ignore[type-arg, name-defined]
        popleft = drive.deque.pop  # type: ignore[attr-defined]

    patch.setattr(drive, "deque", Stack)


def late_by_a_microsecond(patch: pytest.MonkeyPatch) -> None:
    right = VirtualClock.sleep_until
    patch.setattr(VirtualClock, "sleep_until", lambda self, due_ns: right(self, due_ns + 1000))


@pytest.mark.parametrize(
    ("broken", "case"),
    [
        (pacer_at(0.97), cases.pacers_alone),
        (pacer_at(1.03), cases.pacers_alone),
        (arrivals_without_chance, cases.pacers_alone),
        (arrivals_in_pairs, cases.pacers_alone),
        (recorder(Omitting), cases.freeze),
        (recorder(Omitting), mm1_in_backlog),
        (recorder(Losing), cases.dd1),
        (recorder(Losing), mm1_in_server),
        (recorder(Losing), cases.mm1k),
        (recorder(Losing), cases.callers_without_a_pause),
        (recorder(Twice), cases.mmc),
        (recorder(Silent), cases.mm1k),
        (recorder(Rounding), mm1_in_server),
        (percentile_one_rank_off, cases.freeze),
        (last_come_first_served, mm1_in_backlog),
        (late_by_a_microsecond, cases.md1),
    ],
)
def test_what_is_wrong_with_a_load_generator_is_found(
    broken: Break, case: Callable[[Size], Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken(monkeypatch)
    assert not all(row.holds for row in case(SMALL).rows)


def test_a_server_whose_services_are_alike_is_found_by_the_quick_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is served as it was drawn, so that only the waits tell."""
    services_alike(monkeypatch)
    missed = {row.quantity for row in mm1_in_server(Size(3, selftest.QUICK)).rows if not row.holds}
    assert "mean response, ms" in missed
    assert not missed & {"ends that a replay has otherwise", "share that need not wait"}


def test_virtual_seconds_are_not_waited_for() -> None:
    clock = model.virtual_clock()
    before_ns = clock.now_ns()
    model.in_virtual_time(
        clock,
        model.Setting(pacer="constant:rate=1", per_s=1, samples=1000),
        model.Server(clock, [NS_PER_S] * 1000).perform,
        np.arange(1000) * NS_PER_S,
    )
    assert clock.now_ns() - before_ns >= 1000 * NS_PER_S
