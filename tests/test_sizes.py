"""Claims about sizes: each distribution is the one it says, exactly, from nothing but chance; payloads have exactly the bytes
asked for; appends conflict exactly when they are stale or overtaken."""

from __future__ import annotations

import asyncio
import zlib
from collections import Counter
from itertools import islice

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from eventcore_lab.commands import direct
from eventcore_lab.events import AppendResult, StreamId, StreamSlice, VersionConflict
from eventcore_lab.experiment import Experiment
from eventcore_lab.lab.database import Lab
from eventcore_lab.load.chance import mixed
from eventcore_lab.load.workloads import Workload, workloads
from eventcore_lab.load.workloads.payloads import PAYLOAD_BYTES_MAX, filling, payload
from eventcore_lab.load.workloads.sizes import EVENTS_MAX, lengths_of, sizes_of
from eventcore_lab.progress import Quiet
from eventcore_lab.stores import PoolSettings, Store, open_store
from eventcore_lab.stores.memory import Memory
from eventcore_lab.stores.wrapper import Wrapper
from eventcore_lab.workbench import run

DRAWS = 20_000
CHANCE = st.integers(0, 2**64 - 1)
TEXTS = [
    "constant",
    "uniform",
    "uniform/0",
    "uniform/1",
    "lognormal",
    "lognormal/3",
    "geometric",
    "64x50/256x30/4096x20",
]


def drawn(text: str, mean: int, most: int = PAYLOAD_BYTES_MAX, n: int = DRAWS) -> np.ndarray:
    draw = sizes_of(text, mean, most).draw
    return np.array([draw(mixed(11, k)) for k in range(n)])


def chi_squared(found: np.ndarray, probability: dict[int, float]) -> float:
    """The p-value of so many of each size, what is rare put together."""
    assert set(found.tolist()) <= probability.keys()
    often = [size for size, p in probability.items() if p * len(found) >= 5]
    counts = Counter(found.tolist())
    seen, expected = [counts[s] for s in often], [probability[s] * len(found) for s in often]
    if (rest := len(found) - sum(expected)) > 1:
        seen, expected = [*seen, len(found) - sum(seen)], [*expected, rest]
    return float(stats.chisquare(seen, np.array(expected) * sum(seen) / sum(expected)).pvalue)


def lognormal_up_to(size: np.ndarray, mean: int, sigma: float) -> np.ndarray:
    """The probability of at most `size`, of a lognormal with that mean rounded to whole numbers."""
    return stats.lognorm.cdf(size + 0.5, s=sigma, scale=mean * np.exp(-(sigma**2) / 2))


# --- distributions --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", TEXTS)
@given(chance=CHANCE, mean=st.integers(1, 5000), most=st.integers(10_000, PAYLOAD_BYTES_MAX))
def test_every_size_is_a_whole_number_within_the_bounds(text: str, chance: int, mean: int, most: int) -> None:
    size = sizes_of(text, mean, most).draw(chance)
    assert isinstance(size, int) and 1 <= size <= most


@pytest.mark.parametrize("text", TEXTS)
def test_more_chance_is_never_less_so_each_is_the_inverse_of_its_distribution_function(text: str) -> None:
    draw = sizes_of(text, 300, 3000 if "x" not in text else 4096).draw
    sizes = [draw(chance) for chance in [*range(0, 2**64, 2**54), 2**64 - 1]]
    assert sizes == sorted(sizes, reverse=text == "geometric")


@pytest.mark.parametrize(("text", "low", "high"), [("uniform", 20, 60), ("uniform/0.1", 36, 44), ("uniform/1", 1, 79)])
def test_uniform_sizes_are_all_alike_around_the_mean(text: str, low: int, high: int) -> None:
    found = drawn(text, 40)
    assert chi_squared(found, dict.fromkeys(range(low, high + 1), 1 / (high - low + 1))) > 0.001
    assert (found.min(), found.max()) == (low, high)


def test_a_histogram_has_the_shares_of_its_weights_whatever_the_mean_asked_for() -> None:
    found = drawn("64x50/256x30/4096x20", 1)
    assert chi_squared(found, {64: 0.5, 256: 0.3, 4096: 0.2}) > 0.001
    assert set(drawn("7x0.001/9x0.003", 1, n=100).tolist()) == {7, 9}, "weights need not be whole"


@pytest.mark.parametrize("mean", [2, 5, 40])
def test_geometric_sizes_begin_at_1_and_go_on_with_one_probability(mean: int) -> None:
    found = drawn("geometric", mean)
    assert chi_squared(found, {n: stats.geom.pmf(n, 1 / mean) for n in range(1, 100 * mean)}) > 0.001
    assert set(drawn("geometric", 1, n=100)) == {1}


@pytest.mark.parametrize(("mean", "sigma"), [(200, 1.0), (2000, 0.5), (50, 2.0), (4, 1.0)])
def test_lognormal_sizes_follow_their_law_rounded(mean: int, sigma: float) -> None:
    """Kolmogorov and Smirnov's distance at the whole numbers, where it is smaller than that of the law itself: cautious."""
    found = np.sort(drawn(f"lognormal/{sigma}", mean))
    values = np.unique(found)
    share = np.searchsorted(found, values, side="right") / DRAWS
    assert np.abs(share - lognormal_up_to(values, mean, sigma)).max() < stats.kstwobign.ppf(0.999) / DRAWS**0.5


def test_lognormal_without_a_width_has_sigma_1_and_with_none_it_is_constant() -> None:
    assert (drawn("lognormal", 500) == drawn("lognormal/1", 500)).all()
    assert set(drawn("lognormal/0", 500)) == set(drawn("uniform/0", 500)) == set(drawn("constant", 500)) == {500}


@pytest.mark.parametrize("text", TEXTS)
def test_the_mean_is_what_it_says(text: str) -> None:
    sizes, found = sizes_of(text, 300, PAYLOAD_BYTES_MAX), drawn(text, 300)
    if text == "lognormal/3":  # half of it is in a hundredth of the sizes: known from its law, not from draws
        assert sizes.mean == 300
        return
    assert abs(found.mean() - sizes.mean) <= 5 * found.std() / DRAWS**0.5 + 1e-9
    assert sizes.mean == pytest.approx(0.5 * 64 + 0.3 * 256 + 0.2 * 4096 if "x" in text else 300)


@pytest.mark.parametrize("most", [10, 100])
def test_what_goes_beyond_the_bound_is_at_the_bound(most: int) -> None:
    for text, beyond in [
        ("geometric", stats.geom.sf(most - 1, 1 / 10)),
        ("lognormal", 1 - lognormal_up_to(np.array([most - 1]), 10, 1.0)[0]),
    ]:
        found = drawn(text, 10, most)
        assert found.max() <= most
        assert stats.binomtest(int((found == most).sum()), DRAWS, beyond).pvalue > 0.001
    geometric = stats.geom.expect(lambda n: np.minimum(n, most), (1 / 10,), maxcount=5000)
    assert sizes_of("geometric", 10, most).mean == pytest.approx(geometric)


# --- payloads -------------------------------------------------------------------------------------------------------


@given(number=st.integers(0, 10**15), size=st.integers(1, 3000))
def test_a_payload_is_json_of_exactly_the_bytes_asked_or_of_the_fewest(number: int, size: int) -> None:
    data = payload(number, size)
    assert msgspec.json.decode(data)["test"] == number
    assert len(data) == max(size, 18 + len(str(number)))


def test_the_largest_payload_is_json_too_and_no_payload_compresses() -> None:
    data = payload(7, PAYLOAD_BYTES_MAX)
    assert len(data) == PAYLOAD_BYTES_MAX and len(msgspec.json.decode(data)["pad"]) == PAYLOAD_BYTES_MAX - 19
    assert len(zlib.compress(payload(7, 5000))) > 0.7 * 5000
    assert len(filling()) == PAYLOAD_BYTES_MAX


SIZED = ["sizes=constant", "sizes=uniform", "sizes=lognormal/0.5", "sizes=geometric", "sizes=64x50/256x30/4096x20"]


@pytest.mark.parametrize("name", ["write_events", "append"])
@pytest.mark.parametrize("sizes", SIZED)
def test_the_payloads_of_a_workload_have_the_sizes_of_its_distribution(name: str, sizes: str) -> None:
    workload = workloads.make(f"{name}:batch=7,payload_bytes=100,{sizes}", seed=3)
    found = [e.data for k in range(400) for e in events_of(workload, k)]
    draw = sizes_of(sizes.removeprefix("sizes="), 100, PAYLOAD_BYTES_MAX).draw
    own = mixed(3, -2)
    assert [len(data) for data in found] == [max(draw(mixed(own, n)), 18 + len(str(n))) for n in range(2800)]
    assert [msgspec.json.decode(data)["test"] for data in found] == list(range(2800))


@pytest.mark.parametrize("sizes", SIZED)
@pytest.mark.parametrize("name", ["write_events", "append"])
@given(seed=st.integers(0, 2**63 - 1), first=st.integers(0, 10**9), batch=st.integers(1, 12))
def test_event_n_is_the_same_in_whatever_batch(name: str, sizes: str, seed: int, first: int, batch: int) -> None:
    one, many = (workloads.make(f"{name}:payload_bytes=90,{sizes},batch={n}", seed=seed) for n in (1, batch))
    singly = [e.data for k in range(first * batch, (first + 1) * batch) for e in events_of(one, k)]
    assert singly == [e.data for e in events_of(many, first)]


def events_of(workload: Workload, k: int) -> list:
    prepared = workload.prepare(k)
    return [e for write in prepared for e in write.events] if isinstance(prepared, list) else list(prepared.events)


# --- lengths --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["uniform", "lognormal/0.7", "geometric", "1x9/50x1"])
@pytest.mark.parametrize(
    ("name", "streams"),
    [("append", "streams"), ("update_profile", "users"), ("users", "users"), ("read_mostly", "users")],
)
def test_populated_streams_have_the_lengths_of_the_distribution(name: str, streams: str, text: str) -> None:
    workload = workloads.make(f"{name}:{streams}=300,events=20,lengths={text}", seed=4)
    length = lengths_of(text, 4, 300, 20, streams)
    found = Counter(w.stream for writes in workload.populate() for w in writes for _ in w.events)
    assert list(found.values()) == [length(n) for n in range(300)]
    assert len(set(found.values())) > 1


@pytest.mark.parametrize(
    ("text", "cdf"),
    [
        ("geometric", lambda n: stats.geom.cdf(n, 1 / 20)),
        ("uniform", lambda n: stats.randint.cdf(n, 10, 31)),
        ("lognormal", lambda n: lognormal_up_to(n, 20, 1.0)),
    ],
)
def test_lengths_follow_their_law_and_have_nothing_to_do_with_what_is_picked(text: str, cdf) -> None:
    length = lengths_of(text, 9, DRAWS, 20, "streams")
    found = np.array([length(n) for n in range(DRAWS)])
    values = np.unique(found)
    share = np.searchsorted(np.sort(found), values, side="right") / DRAWS
    assert np.abs(share - cdf(values)).max() < stats.kstwobign.ppf(0.999) / DRAWS**0.5
    chances = [mixed(9, k) for k in range(DRAWS)]  # what operations pick by
    assert stats.spearmanr(found, chances).pvalue > 0.001


def test_lengths_differ_between_seeds_and_are_constant_unless_told() -> None:
    one, other = (lengths_of("geometric", seed, 100, 20, "users") for seed in (1, 2))
    assert [one(n) for n in range(100)] != [other(n) for n in range(100)]
    assert {lengths_of("constant", 1, 100, 20, "users")(n) for n in range(100)} == {20}


def test_the_events_of_all_streams_are_counted_one_by_one() -> None:
    """Of 99 streams that are 100,000 or 1 event long, half each, it depends on the seed whether there is room for them."""
    fits = set()
    for seed in range(40):
        try:
            length = lengths_of(f"{EVENTS_MAX}x1/1x1", seed, 99, 1, "users")
        except ValueError as error:
            assert "the events of all streams must be 1 to 5000000, not " in str(error)
            fits.add(False)
        else:
            assert sum(map(length, range(99))) <= 5_000_000
            fits.add(True)
    assert fits == {True, False}


# --- what appends expect --------------------------------------------------------------------------------------------

CONTENDED = "append:streams=9,events=3,lengths=uniform,batch=2"


async def populated(workload: Workload, store: Store) -> None:
    requests = workload.populate()
    while some := list(islice(requests, 500)):
        assert all(isinstance(result, AppendResult) for result in await store.append_many(some))


async def outcomes(workload: Workload, store: Store, operations: range) -> list[bool]:
    """Whether each operation, one after the other, met a conflict."""
    perform, found = workload.start(store, direct(store)), []
    for k in operations:
        try:
            assert await perform(workload.prepare(k)) == 2
            found.append(False)
        except VersionConflict:
            found.append(True)
    return found


@pytest.mark.parametrize("stale", [0, 0.25, 1])
async def test_one_caller_alone_has_exactly_the_conflicts_that_are_stale(store: Store, stale: float) -> None:
    workload = workloads.make(f"{CONTENDED},stale={stale}", seed=5)
    await populated(workload, store)
    before, k = await store.last_position(), range(120)
    found = await outcomes(workload, store, k)
    assert found == [workload.prepare(n).is_stale for n in k]
    assert len(await store.read_all(before)) == 2 * found.count(False)


@pytest.mark.parametrize("stale", [0.001, 0.1, 0.5, 0.99])
def test_operations_are_stale_as_often_as_said(stale: float) -> None:
    workload = workloads.make(f"append:stale={stale},pick=zipf", seed=5)
    asked = [workload.prepare(k) for k in range(DRAWS)]
    assert stats.binomtest(sum(a.is_stale for a in asked), DRAWS, stale).pvalue > 0.001
    first = [a.is_stale for a in asked if a.n == 0]
    assert stats.binomtest(sum(first), len(first), stale).pvalue > 0.001, "whatever stream they are about"


def test_more_stale_operations_are_those_that_were_stale_and_others() -> None:
    few, many = (workloads.make(f"append:stale={stale}", seed=5) for stale in (0.1, 0.3))
    assert all(many.prepare(k).is_stale >= few.prepare(k).is_stale for k in range(2000))


class Together(Wrapper):
    """A store that lets so many read before it answers any of them; it notes from which version they read."""

    def __init__(self, inner: Store, parties: int) -> None:
        super().__init__(inner)
        self._barrier = asyncio.Barrier(parties)
        self.read_from: list[int] = []

    async def read_stream(self, stream: StreamId, from_version: int = 1, limit: int | None = None) -> StreamSlice:
        self.read_from.append(from_version)
        found = await self.inner.read_stream(stream, from_version, limit)
        await self._barrier.wait()
        return found


@pytest.mark.parametrize("spec", ["memory", "sqlite", "postgres"])
async def test_of_operations_that_read_together_one_is_acknowledged_and_the_others_conflict(spec: str) -> None:
    """In whichever process they are."""
    workload = workloads.make("append:streams=1", seed=5)
    async with open_store(spec, PoolSettings.sized(4)) as inner:
        await populated(workload, inner)
        store = Together(inner, 4)
        performers = [workload.start(store, direct(store)) for _ in range(2)]
        for first in (0, 4, 8):
            together = [performers[k % 2](workload.prepare(k)) for k in range(first, first + 4)]
            results = Counter(map(type, await asyncio.gather(*together, return_exceptions=True)))
            assert results == {int: 1, VersionConflict: 3}
        assert (await inner.read_stream(workload.prepare(0).stream)).version == 1 + 3


@pytest.mark.parametrize("stale", [0, 0.3])
async def test_what_an_operation_expects_does_not_depend_on_the_process_it_is_in(store: Store, stale: float) -> None:
    """When each process expected what it knew itself, a third of what two did by turns conflicted."""
    workload = workloads.make(f"append:streams=5,stale={stale}", seed=5)
    await populated(workload, store)
    performers = [workload.start(store, direct(store)) for _ in range(3)]
    for k in range(90):
        operation = workload.prepare(k)
        try:
            await performers[mixed(6, k) % 3](operation)
        except VersionConflict as conflict:
            assert operation.is_stale and conflict.expected == conflict.actual - 1
        else:
            assert not operation.is_stale


def test_several_workers_have_the_conflicts_that_one_has(lab: Lab) -> None:
    """Within what chance and a busy machine do: when workers expected what they knew themselves, three had twice as many."""
    tables = []
    for workers in (1, 3):
        e = Experiment(
            store="postgres",
            workload="append:streams=100,stale=0.2",
            pacer="poisson:rate=600",
            workers=workers,
            duration_s=0.5,
            warmup_s=0.2,
        )
        found = run(e, lab, Quiet()).outcomes
        tables.append([found["ok"], found["conflict"]])
    assert stats.fisher_exact(tables).pvalue > 1e-6, tables


async def test_a_stream_is_read_from_where_this_process_last_knew_it() -> None:
    """However long it is; and one that has lost events is read from where it ends now."""
    workload = workloads.make("append:streams=1,events=7,batch=2", seed=5)
    inner = Memory()
    await populated(workload, inner)
    store = Together(inner, 1)
    ours, theirs = (workload.start(store, direct(store)) for _ in range(2))
    for k, perform in enumerate((ours, ours, theirs, ours)):
        await perform(workload.prepare(k))
    assert store.read_from == [7, 9, 7, 11]
    store.inner = Memory()
    for k in range(4, 7):
        await ours(workload.prepare(k))
    assert store.read_from[4:] == [15, 2, 4]


async def test_a_stale_append_to_a_stream_of_one_event_expects_none() -> None:
    workload = workloads.make("append:streams=1,stale=1", seed=5)
    store = Memory()
    await populated(workload, store)
    with pytest.raises(VersionConflict) as conflict:
        await workload.start(store, direct(store))(workload.prepare(0))
    assert (conflict.value.expected, conflict.value.actual) == (0, 1)


async def test_on_a_stream_that_is_lost_altogether_the_next_append_expects_none_stale_or_not() -> None:
    workload = workloads.make("append:streams=1,events=2,stale=1", seed=5)
    store = Memory()
    assert await workload.start(store, direct(store))(workload.prepare(0)) == 1
    assert (await store.read_stream(workload.prepare(0).stream)).version == 1


def test_what_appends_find_has_small_payloads_whatever_they_add() -> None:
    workload = workloads.make("append:streams=3,events=1500,payload_bytes=1000000", seed=5)
    sizes = [len(e.data) for writes in workload.populate() for w in writes for e in w.events]
    assert (set(sizes), len(sizes)) == ({200}, 3 * 1500)
    assert len(workload.prepare(0).events[0].data) == 1_000_000
