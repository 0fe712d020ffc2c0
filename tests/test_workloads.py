"""Claims about workloads: operation k is the same whoever performs it, no two collide, and they ask what they say."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventcore_lab.commands import CommandRejected, CreateUser
from eventcore_lab.events import StreamWrite, VersionConflict, stream_id
from eventcore_lab.load.workloads import EVENTS_PER_APPEND_MAX, WriteEvents, mixed, workloads
from eventcore_lab.spec import UsageError
from eventcore_lab.stores.memory import Memory

SPECS = ("create_user", "write_events", "write_events:batch=10,streams=3,payload_bytes=64")
SEEDS = st.integers(0, 2**63 - 1)
OPERATIONS = st.integers(0, 2**40)


def said(prepared: CreateUser | Sequence[StreamWrite]) -> object:
    """What an operation asks, without the ids of its events, which are new each time."""
    if isinstance(prepared, CreateUser):
        return prepared
    return [(w.stream, w.expected, [(e.type, e.data, e.meta) for e in w.events]) for w in prepared]


@pytest.mark.parametrize("spec", SPECS)
@given(seed=SEEDS, k=OPERATIONS, others=st.lists(OPERATIONS, max_size=5))
def test_operation_k_is_the_same_whoever_performs_it_and_after_whatever(
    spec: str, seed: int, k: int, others: list[int]
) -> None:
    alone, busy = workloads.make(spec, seed=seed), workloads.make(spec, seed=seed)
    for other in others:
        busy.prepare(other)
    assert said(alone.prepare(k)) == said(busy.prepare(k))


@pytest.mark.parametrize("spec", SPECS)
@given(seed=SEEDS, k=OPERATIONS, other=OPERATIONS)
def test_two_operations_and_two_seeds_share_no_stream(spec: str, seed: int, k: int, other: int) -> None:
    def streams(seed: int, k: int) -> set[str]:
        prepared = workloads.make(spec, seed=seed).prepare(k)
        return set(prepared.streams) if isinstance(prepared, CreateUser) else {w.stream for w in prepared}

    assert streams(seed, k).isdisjoint(streams(seed + 1, k))
    assert k == other or streams(seed, k).isdisjoint(streams(seed, other))
    assert all(stream_id(name) for name in streams(seed, k))


def test_mixed_numbers_are_64_bits_without_a_repetition() -> None:
    numbers = [mixed(seed, k) for seed in range(3) for k in range(50_000)]
    assert len(set(numbers)) == len(numbers)
    assert all(0 <= n < 2**64 for n in numbers)


def test_every_bit_of_a_mixed_number_is_set_half_the_time() -> None:
    numbers = [mixed(1, k) for k in range(10_000)]
    for bit in range(64):
        # 5 standard deviations of a fair coin thrown 10,000 times are 250.
        assert abs(sum(n >> bit & 1 for n in numbers) - 5_000) < 250, bit


@given(seed=SEEDS, k=OPERATIONS)
def test_no_rule_forbids_a_user_that_is_made(seed: int, k: int) -> None:
    command = workloads.make("create_user", seed=seed).prepare(k)
    assert [stream for stream, _ in command.decide(False)] == list(command.streams)


async def test_creating_users_writes_one_event_each_and_rejects_who_comes_twice() -> None:
    store, workload = Memory(), workloads.make("create_user", seed=1)
    perform = workload.start(store)
    assert [await perform(workload.prepare(k)) for k in range(5)] == [1] * 5
    with pytest.raises(CommandRejected):
        await perform(workload.prepare(3))
    assert len({e.stream for e in await store.read_all()}) == 5


@given(batch=st.integers(1, 40), data=st.data())
def test_a_batch_is_spread_over_its_streams_as_evenly_as_it_goes(batch: int, data: st.DataObject) -> None:
    streams = data.draw(st.integers(1, batch))
    writes = workloads.make(f"write_events:batch={batch},streams={streams}", seed=1).prepare(3)
    sizes = [len(w.events) for w in writes]
    assert (len(sizes), sum(sizes)) == (streams, batch)
    assert max(sizes) - min(sizes) <= 1
    assert {w.expected for w in writes} == {0}
    assert len({w.stream for w in writes}) == streams


async def test_writing_events_writes_as_many_as_it_says_and_only_into_new_streams() -> None:
    store, workload = Memory(), workloads.make("write_events:batch=10,streams=3", seed=1)
    perform = workload.start(store)
    assert [await perform(workload.prepare(k)) for k in range(4)] == [10] * 4
    assert len(await store.read_all()) == 40
    with pytest.raises(VersionConflict):
        await perform(workload.prepare(2))


@pytest.mark.parametrize("payload_bytes", [40, 200, 5000])
def test_a_payload_is_json_of_about_the_size_asked(payload_bytes: int) -> None:
    workload = WriteEvents(1, 1, 1, payload_bytes)
    for k in (0, 1_234_567):
        ((write,),) = ([w.events for w in workload.prepare(k)],)
        assert abs(len(write[0].data) - payload_bytes) <= 8
        assert msgspec.json.decode(write[0].data)["test"] == k


def test_events_are_numbered_through_all_operations() -> None:
    workload = workloads.make("write_events:batch=3", seed=1)
    numbers = [msgspec.json.decode(e.data)["test"] for k in range(4) for w in workload.prepare(k) for e in w.events]
    assert numbers == list(range(12))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("write_events:batch=0", "batch must be 1 to"),
        (f"write_events:batch={EVENTS_PER_APPEND_MAX + 1}", "batch must be 1 to"),
        ("write_events:batch=2,streams=3", "streams must be 1 to 2 for batch=2"),
        ("write_events:batch=1000,streams=501", "streams must be 1 to 500"),
        ("write_events:payload_bytes=0", "payload_bytes must be"),
        ("write_event", "did you mean write_events"),
    ],
)
def test_a_workload_that_cannot_be_is_refused(spec: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        workloads.make(spec, seed=1)
