"""Claims about schedules: ascending, inside the run, the rate that was asked, the same for a seed, whole in stripes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from eventcore_lab.clock import NS_PER_S
from eventcore_lab.load.pacers import OPERATIONS_MAX, Schedule, pacers
from eventcore_lab.spec import UsageError

OPEN = ("constant", "poisson")
RATES = st.floats(0.01, 5_000, allow_nan=False)
DURATIONS_NS = st.integers(1, 3 * NS_PER_S)
SEEDS = st.integers(0, 2**63 - 1)


def schedule(spec: str, duration_ns: int, seed: int = 1) -> Schedule:
    return pacers.make(spec).schedule(duration_ns, np.random.default_rng(seed))


@pytest.mark.parametrize("name", OPEN)
@given(rate=RATES, duration_ns=DURATIONS_NS, seed=SEEDS)
@settings(max_examples=60)
def test_due_times_ascend_and_lie_within_the_run(name: str, rate: float, duration_ns: int, seed: int) -> None:
    due = schedule(f"{name}:rate={rate}", duration_ns, seed)
    assert due.dtype == np.int64
    assert (np.diff(due) >= 0).all()
    assert ((due >= 0) & (due < duration_ns)).all()


@pytest.mark.parametrize("name", OPEN)
@given(rate=RATES, seed=SEEDS)
@settings(max_examples=30)
def test_a_seed_gives_one_schedule(name: str, rate: float, seed: int) -> None:
    spec = f"{name}:rate={rate}"
    assert (schedule(spec, NS_PER_S, seed) == schedule(spec, NS_PER_S, seed)).all()


def test_another_seed_gives_another_poisson_schedule() -> None:
    first, second = (schedule("poisson:rate=100", 10 * NS_PER_S, seed) for seed in (1, 2))
    assert len(first) != len(second) or (first != second).any()


@given(rate=RATES, duration_ns=DURATIONS_NS)
@settings(max_examples=100)
def test_constant_arrivals_are_evenly_spaced_at_the_rate_asked(rate: float, duration_ns: int) -> None:
    due = schedule(f"constant:rate={rate}", duration_ns)
    assert due[0] == 0
    assert abs(len(due) - rate * duration_ns / NS_PER_S) <= 1
    assert np.abs(due - np.arange(len(due)) * NS_PER_S / rate).max() <= 1.001  # whole ns


def test_an_arrival_that_rounding_puts_at_the_end_of_the_run_is_not_in_it() -> None:
    assert len(schedule("constant:rate=4351.6", 7_500_000_000)) == 32_637


def test_a_whole_number_of_constant_arrivals_is_exactly_that_many() -> None:
    for rate in (1, 3, 7, 10, 99, 100, 1000, 3333):
        assert len(schedule(f"constant:rate={rate}", 10 * NS_PER_S)) == 10 * rate


@given(rate=st.floats(50, 5_000), seed=SEEDS)
@settings(max_examples=60)
def test_poisson_arrivals_come_at_the_rate_asked(rate: float, seed: int) -> None:
    expected = rate * 2
    # 6 standard deviations: once in 5·10⁸ examples by chance.
    assert abs(len(schedule(f"poisson:rate={rate}", 2 * NS_PER_S, seed)) - expected) < 6 * expected**0.5 + 1


@pytest.fixture(scope="module")
def poisson_due() -> Schedule:
    """100 s at 500/s: 50,000 arrivals."""
    return schedule("poisson:rate=500", 100 * NS_PER_S, seed=7)


def test_times_between_poisson_arrivals_are_exponential(poisson_due: Schedule) -> None:
    gaps_s = np.diff(poisson_due) / NS_PER_S
    assert stats.kstest(gaps_s, stats.expon(scale=1 / 500).cdf).pvalue > 0.01


def test_counts_of_poisson_arrivals_vary_as_much_as_their_mean(poisson_due: Schedule) -> None:
    counts = np.bincount(poisson_due // (NS_PER_S // 10), minlength=1000)
    # The index of 1,000 counts has a standard deviation of √(2/999) ≈ 0.045.
    assert counts.var(ddof=1) / counts.mean() == pytest.approx(1, abs=0.15)


def test_poisson_arrivals_have_no_memory(poisson_due: Schedule) -> None:
    gaps = np.diff(poisson_due).astype(float)
    assert abs(np.corrcoef(gaps[:-1], gaps[1:])[0, 1]) < 4 / len(gaps) ** 0.5


@pytest.mark.parametrize("name", OPEN)
@given(rate=RATES, seed=SEEDS, workers=st.integers(1, 7))
@settings(max_examples=40)
def test_workers_together_offer_what_one_would(name: str, rate: float, seed: int, workers: int) -> None:
    due = schedule(f"{name}:rate={rate}", NS_PER_S, seed)
    stripes = [list(zip(range(k, len(due), workers), due[k::workers].tolist(), strict=True)) for k in range(workers)]
    assert sorted(pair for stripe in stripes for pair in stripe) == list(enumerate(due.tolist()))


def test_an_open_pacer_has_no_callers_and_a_closed_one_no_schedule() -> None:
    assert [pacers.make(name).callers for name in OPEN] == [0, 0]
    assert pacers.make("saturate:concurrency=17").callers == 17
    assert len(schedule("saturate:concurrency=17", NS_PER_S)) == 0


@pytest.mark.parametrize(
    "spec", ["constant:rate=0", "poisson:rate=-1", "saturate:concurrency=0", "saturate:concurrency=10001"]
)
def test_a_pace_that_cannot_be_is_refused(spec: str) -> None:
    with pytest.raises(UsageError, match="must be"):
        pacers.make(spec)


@pytest.mark.parametrize("name", OPEN)
def test_a_schedule_too_long_to_keep_is_refused_before_it_is_made(name: str) -> None:
    with pytest.raises(ValueError, match="at most"):
        schedule(f"{name}:rate={OPERATIONS_MAX}", 2 * NS_PER_S)
