"""A store that is away for a while: who reads beside the load waits for it, not for ever, and does nothing twice."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from eventcore_lab.clock import VirtualClock
from eventcore_lab.events import EventRejected, OutcomeUnknown, StoreError, StoreUnreachable
from eventcore_lab.load.patience import AWAY_MAX_S, LONGEST_WAIT_S, PatientKeeper, patiently
from eventcore_lab.projections import Overtaken, Step


class Store:
    """Away until so many seconds have passed of the virtual clock; counts how often it was asked."""

    def __init__(self, clock: VirtualClock, back_s: float, error: type[StoreError] = StoreUnreachable) -> None:
        self._clock, self._back_ns, self._error = clock, int(back_s * 1e9), error
        self.asked: list[float] = []
        self.leases = self.steps = 0

    async def answer(self) -> str:
        self.asked.append(self._clock.now_ns() / 1e9)
        if self._clock.now_ns() < self._back_ns:
            raise self._error("nobody there")
        return "here"

    async def try_lead(self, _: str) -> Any:
        await self.answer()
        self.leases += 1
        return self

    async def release(self) -> None:
        self.leases -= 1

    # what a read model needs
    relation, every_s, applied = "a_table", 0.0, 0

    async def step(self) -> Step:
        await self.answer()
        self.steps += 1
        self.applied += 1
        return Step(1)

    async def close(self) -> None:
        return


def waited(back_s: float, error: type[StoreError] = StoreUnreachable) -> Store:
    clock = VirtualClock()
    store = Store(clock, back_s, error)
    assert clock.run(patiently(store.answer)) == "here"
    return store


@pytest.mark.parametrize("error", [StoreUnreachable, OutcomeUnknown])
def test_a_store_that_comes_back_is_asked_again_less_and_less_often(error: type[StoreError]) -> None:
    asked = waited(50.0, error).asked
    waits = [round(after - before, 3) for before, after in pairwise(asked)]
    assert 50.0 <= asked[-1] < 50.0 + LONGEST_WAIT_S
    assert waits == sorted(waits) and max(waits) == LONGEST_WAIT_S and len(waits) < 40


def test_a_store_that_stays_away_is_given_up_with_a_reason() -> None:
    clock = VirtualClock()
    store = Store(clock, 3600.0)
    with pytest.raises(StoreUnreachable, match="the store has been away for 60 s: nobody there"):
        clock.run(patiently(store.answer))
    assert store.asked[-1] == pytest.approx(AWAY_MAX_S, abs=0.001)


@pytest.mark.parametrize("error", [StoreError, EventRejected, Overtaken])
def test_what_another_try_would_not_change_is_raised_at_once(error: type[StoreError]) -> None:
    clock = VirtualClock()
    store = Store(clock, 3600.0, error)
    with pytest.raises(error, match="nobody there"):
        clock.run(patiently(store.answer))
    assert len(store.asked) == 1


def test_a_read_model_is_kept_by_one_also_after_the_server_that_had_the_lease_was_away() -> None:
    clock = VirtualClock()
    store: Any = Store(clock, 0.0)

    async def kept() -> None:
        keeper = PatientKeeper(store, store, "worker", AWAY_MAX_S, 1.0)
        await keeper.step()
        assert store.leases == 1
        store._back_ns = clock.now_ns() + 5 * 10**9
        await keeper.step()
        assert (store.leases, store.steps, keeper.applied) == (1, 2, 2)
        await keeper.close()
        assert store.leases == 0

    clock.run(kept())
    at = [n for n, s in enumerate(store.asked) if s >= 5]
    assert len(at) == 2, "the lease, then the step"
