"""Claims about which streams operations are about: the shares that theory says, from nothing but the number and its chance."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from eventcore_lab.commands import Transfer, UpdateProfile
from eventcore_lab.load.workloads import mixed, workloads
from eventcore_lab.load.workloads.picks import PICKS, picking, zipf_edges
from eventcore_lab.spec import UsageError

OPERATIONS = 20_000


def picked(n: int, pick: str, theta: float = 0.99, operations: int = OPERATIONS) -> list[int]:
    choose = picking(n, pick, theta)
    return [choose(k, mixed(1, k)) for k in range(operations)]


@pytest.mark.parametrize("pick", PICKS)
@given(n=st.integers(1, 2000), k=st.integers(0, 2**40), chance=st.integers(0, 2**64 - 1), theta=st.floats(0, 5))
def test_every_pick_is_one_of_the_streams(pick: str, n: int, k: int, chance: int, theta: float) -> None:
    assert 0 <= picking(n, pick, theta)(k, chance) < n


# n, the share of the first, of the first hundredth, of the first tenth (theta 0.99)
ZIPF = [(1_000, 0.129384, 0.3825, 0.6850), (100_000, 0.078257, 0.6048, 0.8001)]


@pytest.mark.parametrize(("n", "first", "hundredth", "tenth"), ZIPF)
def test_zipf_has_the_shares_of_its_law(n: int, first: float, hundredth: float, tenth: float) -> None:
    edges = zipf_edges(n, 0.99)
    assert edges[0] == pytest.approx(first, abs=1e-6)
    assert edges[n // 100 - 1] == pytest.approx(hundredth, abs=1e-4)
    assert edges[n // 10 - 1] == pytest.approx(tenth, abs=1e-4)
    assert edges[-1] == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("theta", [0.5, 0.99, 1.5])
def test_streams_picked_by_zipf_are_as_many_as_the_law_says(theta: float) -> None:
    """Chi-squared over 50 streams."""
    counts = np.bincount(picked(50, "zipf", theta), minlength=50)
    expected = np.diff([0.0, *zipf_edges(50, theta)]) * OPERATIONS
    assert stats.chisquare(counts, expected).pvalue > 0.001


@pytest.mark.parametrize("pick", ["uniform", "sequential"])
def test_uniform_and_sequential_picks_are_even(pick: str) -> None:
    assert stats.chisquare(np.bincount(picked(40, pick), minlength=40)).pvalue > 0.001


def test_zipf_with_theta_0_is_even() -> None:
    assert stats.chisquare(np.bincount(picked(40, "zipf", 0.0), minlength=40)).pvalue > 0.001


def test_a_hotspot_gets_four_fifths_on_a_fifth_and_both_evenly() -> None:
    counts = np.bincount(picked(50, "hotspot"), minlength=50)
    hot, cold = counts[:10], counts[10:]
    assert hot.sum() / OPERATIONS == pytest.approx(0.8, abs=0.015)  # five standard deviations
    assert stats.chisquare(hot).pvalue > 0.001 and stats.chisquare(cold).pvalue > 0.001


def test_the_latest_are_those_named_most_recently_by_the_law_of_zipf() -> None:
    behind = Counter((k - stream) % 1000 for k, stream in enumerate(picked(1000, "latest")))
    edges = zipf_edges(1000, 0.99)
    for first in (1, 10, 100):
        share = sum(behind[n] for n in range(first)) / OPERATIONS
        assert share == pytest.approx(edges[first - 1], abs=0.02)
    assert [picking(5, "sequential", 1)(k, 0) for k in range(7)] == [0, 1, 2, 3, 4, 0, 1]


def test_workloads_pick_as_they_are_told_and_transfers_never_to_oneself() -> None:
    users = workloads.make("update_profile:users=100,pick=zipf,theta=1.2", seed=3)
    named = Counter(op.user_id for k in range(5000) if isinstance(op := users.prepare(k), UpdateProfile))
    first = named.most_common(1)[0][1] / 5000
    assert first == pytest.approx(zipf_edges(100, 1.2)[0], abs=0.035)
    for pick in PICKS:
        bank = workloads.make(f"transfer:accounts=3,pick={pick}", seed=3)
        moves = [op for k in range(300) if isinstance(op := bank.prepare(k), Transfer)]
        assert len(moves) == 300 and all(op.payer != op.payee and 1 <= op.cents <= 100 for op in moves)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("update_profile:pick=zip", "did you mean zipf"),
        ("transfer:pick=zipf,theta=-1", "theta must be 0 to 5"),
        ("mixed:pick=late", "did you mean latest"),
    ],
)
def test_a_pick_that_cannot_be_is_refused(spec: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        workloads.make(spec, seed=1)
