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

OPEN = ("constant", "poisson", "gamma")
SHAPES = ("ramp", "ramp:start=100,end=0,over_s=2", "steps", "steps:steps=3,each_s=1", "spike", "sine", "day")
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
    assert {pacers.make(name).callers for name in (*OPEN, *SHAPES)} == {0}
    assert pacers.make("saturate:concurrency=17").callers == 17
    assert len(schedule("saturate:concurrency=17", NS_PER_S)) == 0


@pytest.mark.parametrize(
    "spec",
    [
        "constant:rate=0",
        "poisson:rate=-1",
        "saturate:concurrency=0",
        "saturate:concurrency=10001",
        "gamma:cv=0",
        "gamma:cv=21",
        "ramp:start=0,end=0",
        "ramp:start=-1",
        "steps:steps=0",
        "spike:peak=0",
        "spike:after_s=-1",
        "sine:swing=1.1",
        "sine:period_s=0",
        "day:rate=0",
    ],
)
def test_a_pace_that_cannot_be_is_refused(spec: str) -> None:
    with pytest.raises(UsageError, match="must be"):
        pacers.make(spec)


@pytest.mark.parametrize("name", OPEN)
def test_a_schedule_too_long_to_keep_is_refused_before_it_is_made(name: str) -> None:
    with pytest.raises(ValueError, match="at most"):
        schedule(f"{name}:rate={OPERATIONS_MAX}", 2 * NS_PER_S)


# rates that change


def evenly(spec: str) -> str:
    return f"{spec}{',' if ':' in spec else ':'}arrivals=even"


@pytest.mark.parametrize("spec", [*SHAPES, *map(evenly, SHAPES)])
@given(duration_ns=st.integers(1, 20 * NS_PER_S), seed=SEEDS)
@settings(max_examples=25)
def test_a_shape_is_ascending_within_the_run_and_the_same_for_a_seed(spec: str, duration_ns: int, seed: int) -> None:
    due = schedule(spec, duration_ns, seed)
    assert due.dtype == np.int64
    assert (np.diff(due) >= 0).all() and ((due >= 0) & (due < duration_ns)).all()
    assert (schedule(spec, duration_ns, seed) == due).all()


@pytest.mark.parametrize("spec", SHAPES)
@given(duration_s=st.floats(0.01, 20))
@settings(max_examples=25)
def test_even_arrivals_of_a_shape_are_as_many_as_expected(spec: str, duration_s: float) -> None:
    duration_ns = int(duration_s * NS_PER_S)
    expected = pacers.make(spec).expected(duration_ns)
    assert abs(len(schedule(evenly(spec), duration_ns)) - expected) <= 1.001


# spec, and how many arrivals are due in each of ten seconds
TABLE = [
    ("ramp:start=0,end=1000", [50, 150, 250, 350, 450, 550, 650, 750, 850, 950]),
    ("ramp:start=1000,end=0", [950, 850, 750, 650, 550, 450, 350, 250, 150, 50]),
    ("ramp:start=0,end=100,over_s=2", [25, 75, 100, 100, 100, 100, 100, 100, 100, 100]),
    ("ramp:start=100,end=300,over_s=20", [105, 115, 125, 135, 145, 155, 165, 175, 185, 195]),
    ("steps:start=100,end=500,steps=5", [100, 100, 200, 200, 300, 300, 400, 400, 500, 500]),
    ("steps:start=10,end=30,steps=3,each_s=2", [10, 10, 20, 20, 30, 30, 30, 30, 30, 30]),
    ("steps:start=10,end=90,steps=2,each_s=8", [10, 10, 10, 10, 10, 10, 10, 10, 90, 90]),
    ("spike:rate=10,peak=500,after_s=3,lasts_s=2", [10, 10, 10, 500, 500, 10, 10, 10, 10, 10]),
    ("spike:rate=10,peak=500,after_s=20", [10] * 10),
]


@pytest.mark.parametrize(("spec", "counts"), TABLE, ids=[spec for spec, _ in TABLE])
def test_even_arrivals_of_a_shape_come_second_by_second_as_the_table_says(spec: str, counts: list[int]) -> None:
    due = schedule(evenly(spec), 10 * NS_PER_S)
    found = np.bincount(due // NS_PER_S, minlength=10)
    assert np.abs(found - counts).max() <= 1
    assert abs(len(due) - sum(counts)) <= 1


def test_an_even_shape_of_one_rate_is_the_constant_one() -> None:
    constant, ramp = (
        schedule("constant:rate=250", 4 * NS_PER_S),
        schedule("ramp:start=250,end=250,arrivals=even", 4 * NS_PER_S),
    )
    assert np.abs(constant - ramp).max() <= 1


def test_a_wave_goes_up_first_and_a_day_begins_and_ends_at_night() -> None:
    wave = np.bincount(schedule("sine:rate=1000,swing=0.5,period_s=4,arrivals=even", 4 * NS_PER_S) // NS_PER_S)
    share = 0.5 * 2 / np.pi  # the mean of half a sine, times the swing
    assert np.abs(wave - 1000 * np.array([1 + share, 1 + share, 1 - share, 1 - share])).max() <= 2
    noon = np.bincount(schedule("day:rate=1000,swing=1,arrivals=even", 4 * NS_PER_S) // NS_PER_S)
    night = 1 - 2 / np.pi
    assert np.abs(noon - 1000 * np.array([night, 2 - night, 2 - night, night])).max() <= 2


@pytest.mark.parametrize("spec", ["ramp:start=10,end=2000", "spike:rate=200,peak=3000,after_s=20,lasts_s=5", "day"])
def test_poisson_arrivals_of_a_shape_are_exponential_in_the_time_of_the_shape(spec: str) -> None:
    """Time measured in operations offered makes any Poisson process the one of rate 1 (time rescaling theorem)."""
    duration_ns = 40 * NS_PER_S
    due, even = schedule(spec, duration_ns, seed=5), schedule(evenly(spec), duration_ns)
    rescaled = np.interp(due, even, np.arange(len(even)))
    assert stats.kstest(np.diff(rescaled), stats.expon.cdf).pvalue > 0.01


@pytest.mark.parametrize("cv", [0.3, 1.0, 3.0])
def test_times_between_gamma_arrivals_are_gamma_and_as_bursty_as_asked(cv: float) -> None:
    gaps_s = np.diff(schedule(f"gamma:rate=500,cv={cv}", 100 * NS_PER_S, seed=11)) / NS_PER_S
    assert gaps_s.mean() == pytest.approx(1 / 500, rel=0.1)
    cdf, least_s = stats.gamma(cv**-2, scale=cv**2 / 500).cdf, 1e-6  # of shorter ones whole nanoseconds make a grid
    above = cdf(least_s)
    assert stats.kstest(gaps_s[gaps_s > least_s], lambda x: (cdf(x) - above) / (1 - above)).pvalue > 0.01
    assert np.mean(gaps_s > least_s) == pytest.approx(1 - above, abs=0.01)
    assert gaps_s.std() / gaps_s.mean() == pytest.approx(cv, rel=0.05)


@pytest.mark.parametrize("cv", [0.2, 1.0, 5.0])
def test_gamma_arrivals_have_their_rate_from_the_first_second_on(cv: float) -> None:
    """An ordinary renewal process, begun with a whole gap, would be off by (cv² − 1)/2 arrivals: 12 at cv 5."""
    counts = np.array([len(schedule(f"gamma:rate=100,cv={cv}", NS_PER_S, seed)) for seed in range(4000)])
    assert counts.mean() == pytest.approx(100, abs=4 * counts.std() / len(counts) ** 0.5)


def test_a_wave_too_short_for_its_run_and_a_shape_too_long_are_refused() -> None:
    with pytest.raises(ValueError, match="waves in one run"):
        schedule("sine:period_s=0.001", 10 * NS_PER_S)
    with pytest.raises(ValueError, match="at most"):
        schedule("ramp:start=0,end=1e7", 10 * NS_PER_S)
    with pytest.raises(UsageError, match="unknown kind of arrivals"):
        pacers.make("ramp:arrivals=evn")
