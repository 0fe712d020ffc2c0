"""Claims about workloads: operation k is the same whoever performs it, none is refused on what `populate` made, and they
ask what they say."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from itertools import islice
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2

from eventcore_lab.commands import (
    CommandRejected,
    CreateUser,
    Direct,
    ReserveStock,
    Transfer,
    UpdateProfile,
    executors,
)
from eventcore_lab.commands.users import user_stream
from eventcore_lab.events import AppendResult, StreamId, StreamWrite, VersionConflict, stream_id
from eventcore_lab.load.workloads import EVENTS_PER_APPEND_MAX, Workload, mixed, workloads
from eventcore_lab.load.workloads.appends import Append
from eventcore_lab.load.workloads.commands import OPENING_CENTS, STOCK, StreamRead
from eventcore_lab.spec import UsageError
from eventcore_lab.stores.memory import Memory, Null

NEW_STREAMS = (
    "create_user",
    "write_events",
    "write_events:batch=10,streams=3,payload_bytes=64",
    "write_events:batch=3,sizes=lognormal/0.5",
    "append_many:batch=5",
)
"""Whose operations are each on streams of their own."""
COMMANDS = (
    "create_user",
    "update_profile:users=50",
    "update_profile:users=50,events=5,lengths=geometric",
    "users:users=50",
    "long_streams:streams=2,events=1500",
    "transfer:accounts=20",
    "transfer:accounts=2,policy=true",
    "reserve",
    "reserve:articles=7",
    "read_mostly:users=50,events=10",
    "mixed:streams=50,articles=3",
)
APPENDS = (
    "append:streams=50",
    "append:streams=20,batch=3,pick=zipf,events=9,lengths=uniform/1,sizes=64x50/256x30/4096x20",
)
STALE = "append:streams=20,batch=2,stale=0.3"
"""Whose operations come to a conflict, some of them, also where nobody else is."""
SPECS = (
    *NEW_STREAMS,
    *COMMANDS[1:],
    *APPENDS,
    "trace",
    "read_pages",
    "read_streams",
    "read_everything:events=60,streams=3",
)
SEEDS = st.integers(0, 2**63 - 1)
OPERATIONS = st.integers(0, 2**40)


def said(prepared: Any) -> object:
    """What an operation asks, without the ids of its events, which are new each time."""
    if isinstance(prepared, list) and isinstance(prepared[0], list):
        return [said(writes) for writes in prepared]
    if isinstance(prepared, list):
        return [(w.stream, w.expected, [(e.type, e.data, e.meta) for e in w.events]) for w in prepared]
    if isinstance(prepared, Append):
        return prepared.n, prepared.stream, prepared.is_stale, [(e.type, e.data, e.meta) for e in prepared.events]
    return prepared


def streams_of(prepared: Any) -> set[StreamId]:
    if isinstance(prepared, list) and isinstance(prepared[0], list):
        return {w.stream for writes in prepared for w in writes}
    if isinstance(prepared, StreamRead | Append):
        return {prepared.stream}
    return {w.stream for w in prepared} if isinstance(prepared, list) else set(prepared.streams)


async def populated(workload: Workload, chunk: int = 500) -> Memory:
    """A store with all that the workload needs there, each request as it was expected."""
    store, requests = Memory(), workload.populate()
    while some := list(islice(requests, chunk)):
        results = await store.append_many(some)
        assert all(isinstance(result, AppendResult) for result in results), results
    return store


def within_5_sigma(count: int, share: float, of: int) -> bool:
    """Whether so many of so many throws are no surprise, when each comes up with probability `share`."""
    return abs(count - share * of) <= 5 * (of * share * (1 - share)) ** 0.5


@pytest.mark.parametrize("spec", SPECS)
@given(seed=SEEDS, k=OPERATIONS, others=st.lists(OPERATIONS, max_size=5))
def test_operation_k_is_the_same_whoever_performs_it_and_after_whatever(
    spec: str, seed: int, k: int, others: list[int]
) -> None:
    alone, busy = workloads.make(spec, seed=seed), workloads.make(spec, seed=seed)
    for other in others:
        busy.prepare(other)
    assert said(alone.prepare(k)) == said(busy.prepare(k))


@pytest.mark.parametrize("spec", [*SPECS, STALE])
@given(seed=SEEDS, first=OPERATIONS, workers=st.integers(1, 5), data=st.data())
def test_workers_ask_together_what_one_would_ask_alone(
    spec: str, seed: int, first: int, workers: int, data: st.DataObject
) -> None:
    """Worker w does the operations w, w + workers … of one schedule; which of them is ahead of the others is chance."""
    asked = range(first, first + 12)
    turns = data.draw(st.permutations([k % workers for k in asked]), "whose turn it is")
    each = [workloads.make(spec, seed=seed) for _ in range(workers)]
    stripes = [iter([k for k in asked if k % workers == w]) for w in range(workers)]
    together = {}
    for w in turns:
        k = next(stripes[w])
        together[k] = said(each[w].prepare(k))
    alone = workloads.make(spec, seed=seed)
    assert [together[k] for k in asked] == [said(alone.prepare(k)) for k in asked]


@pytest.mark.parametrize("spec", [spec for spec in (*SPECS, STALE) if not spec.startswith("read_")])
async def test_operation_k_is_the_same_after_populating_and_performing(spec: str) -> None:
    alone, busy = workloads.make(spec, seed=9), workloads.make(spec, seed=9)
    store = await populated(busy)
    perform = busy.start(store, Direct(store))
    for k in range(20):
        with suppress(VersionConflict):
            await perform(busy.prepare(k))
    assert [said(alone.prepare(k)) for k in range(100)] == [said(busy.prepare(k)) for k in range(100)]


@pytest.mark.parametrize("spec", NEW_STREAMS)
@given(seed=SEEDS, k=OPERATIONS, other=OPERATIONS)
def test_two_operations_and_two_seeds_share_no_stream(spec: str, seed: int, k: int, other: int) -> None:
    def streams(seed: int, k: int) -> set[StreamId]:
        return streams_of(workloads.make(spec, seed=seed).prepare(k))

    assert streams(seed, k).isdisjoint(streams(seed + 1, k))
    assert k == other or streams(seed, k).isdisjoint(streams(seed, other))
    assert all(stream_id(name) for name in streams(seed, k))


@pytest.mark.parametrize("spec", [*COMMANDS, *APPENDS])
def test_workloads_of_two_seeds_share_no_stream(spec: str) -> None:
    def streams(seed: int) -> set[StreamId]:
        workload = workloads.make(spec, seed=seed)
        there = {write.stream for writes in workload.populate() for write in writes}
        return there.union(*[streams_of(workload.prepare(k)) for k in range(200)])

    assert streams(1).isdisjoint(streams(2))
    assert all(stream_id(name) for name in streams(1))


def test_mixed_numbers_are_64_bits_without_a_repetition() -> None:
    numbers = [mixed(seed, k) for seed in range(3) for k in range(50_000)]
    assert len(set(numbers)) == len(numbers)
    assert all(0 <= n < 2**64 for n in numbers)


def test_every_bit_of_a_mixed_number_is_set_half_the_time() -> None:
    numbers = [mixed(1, k) for k in range(10_000)]
    for bit in range(64):
        # 5 standard deviations of a fair coin thrown 10,000 times are 250.
        assert abs(sum(n >> bit & 1 for n in numbers) - 5_000) < 250, bit


# --- what must be there ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", SPECS)
def test_populate_is_the_same_for_the_same_seed_but_for_the_ids_of_events(spec: str) -> None:
    first, second = ([*workloads.make(spec, seed=5).populate()] for _ in range(2))
    assert [said(writes) for writes in first] == [said(writes) for writes in second]
    ids = [e.id for requests in (first, second) for writes in requests for w in writes for e in w.events]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("chunk", [1, 7, 500])
async def test_each_request_of_populate_finds_the_version_it_expects(spec: str, chunk: int) -> None:
    workload = workloads.make(spec, seed=5)
    store = await populated(workload, chunk)
    assert await store.last_position() == sum(len(w.events) for writes in workload.populate() for w in writes)
    assert all(write.expected >= 0 for writes in workload.populate() for write in writes)


@pytest.mark.parametrize(
    ("spec", "streams", "events"),
    [
        ("create_user", 0, 0),
        ("write_events", 0, 0),
        ("update_profile:users=5", 5, 1),
        ("update_profile:users=5,events=10", 5, 10),
        ("users:users=3,events=999", 3, 999),
        ("users:users=3,events=1000", 3, 1000),
        ("users:users=3,events=1001", 3, 1001),
        ("users:users=3,update=0", 0, 0),
        ("append:streams=5", 5, 1),
        ("append:streams=3,events=2500", 3, 2500),
        ("long_streams:streams=3,events=1500", 3, 1500),
        ("long_streams:streams=2,events=3000", 2, 3000),
        ("transfer:accounts=4", 4, 1),
        ("transfer:accounts=4,policy=true", 5, 1),
        ("reserve:articles=6", 6, 1),
        ("read_mostly:users=4,events=1500", 4, 1500),
        ("read_mostly:users=4,events=10,reads=1", 4, 10),
        ("mixed:streams=7,articles=2", 7 + 7 + 2, 1),
        ("mixed:streams=7,articles=2,transfer=0,update=0", 7 + 2, 1),
        ("mixed:streams=1,transfer=0,reserve=0", 1, 1),
    ],
)
async def test_populated_streams_are_as_many_and_as_long_as_said(spec: str, streams: int, events: int) -> None:
    workload = workloads.make(spec, seed=5)
    store = await populated(workload)
    lengths = Counter(e.stream for e in await store.read_all(0, 1_000_000))
    assert (len(lengths), set(lengths.values())) == (streams, {events} if events else set())
    assert all(len(w.events) <= 1000 for writes in workload.populate() for w in writes), "an append of moderate size"


# --- what is asked --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [*COMMANDS, *APPENDS])
async def test_none_of_2000_operations_is_refused_by_a_rule_or_the_store(spec: str) -> None:
    workload = workloads.make(spec, seed=5)
    store = await populated(workload)
    perform = workload.start(store, executors.make("direct", store=store, seed=5))
    before, written = await store.last_position(), 0
    for k in range(2000):
        prepared = workload.prepare(k)
        events = await perform(prepared)
        assert events >= 1
        written += 0 if isinstance(prepared, StreamRead) else events
    assert await store.last_position() - before == written


async def test_what_populate_makes_is_needed() -> None:
    """Without it every operation but a registration is rejected, and reads find nothing."""
    workload = workloads.make("mixed:streams=50,articles=3", seed=5)
    store = Memory()
    perform = workload.start(store, Direct(store))
    for k in range(200):
        prepared = workload.prepare(k)
        if isinstance(prepared, CreateUser):
            assert await perform(prepared) == 1
        elif isinstance(prepared, StreamRead):
            assert await perform(prepared) == 0
        else:
            with pytest.raises(CommandRejected):
                await perform(prepared)


async def test_creating_users_writes_one_event_each_and_rejects_who_comes_twice() -> None:
    store, workload = Memory(), workloads.make("create_user", seed=1)
    perform = workload.start(store, Direct(store))
    assert [await perform(workload.prepare(k)) for k in range(5)] == [1] * 5
    with pytest.raises(CommandRejected):
        await perform(workload.prepare(3))
    assert len({e.stream for e in await store.read_all()}) == 5


@given(seed=SEEDS, k=OPERATIONS)
def test_no_rule_forbids_a_user_that_is_made(seed: int, k: int) -> None:
    command = workloads.make("create_user", seed=seed).prepare(k)
    assert [stream for stream, _ in command.decide(dict.fromkeys(command.streams))] == list(command.streams)


@given(seed=SEEDS, first=OPERATIONS)
def test_who_registers_is_nobody_who_is_known_or_has_registered(seed: int, first: int) -> None:
    workload = workloads.make("users:users=50", seed=seed)
    known = {write.stream for writes in workload.populate() for write in writes}
    asked = [workload.prepare(k) for k in range(first, first + 200)]
    new = [user_stream(command.user_id) for command in asked if isinstance(command, CreateUser)]
    assert known.isdisjoint(new) and len(set(new)) == len(new)
    assert all(user_stream(command.user_id) in known for command in asked if isinstance(command, UpdateProfile))


@given(seed=SEEDS, accounts=st.integers(2, 30), first=OPERATIONS)
def test_a_transfer_names_two_accounts_that_are_there(seed: int, accounts: int, first: int) -> None:
    workload = workloads.make(f"transfer:accounts={accounts}", seed=seed)
    there = {write.stream for writes in workload.populate() for write in writes}
    assert len(there) == accounts
    for k in range(first, first + 100):
        command = workload.prepare(k)
        assert command.payer != command.payee and len(command.streams) == 2 and command.streams.keys() <= there
        assert 1 <= command.cents <= 100


@pytest.mark.parametrize(("spec", "read_only"), [("transfer:accounts=3", 0), ("transfer:accounts=3,policy=true", 1)])
async def test_transfers_conserve_the_sum_and_leave_what_they_only_read(spec: str, read_only: int) -> None:
    workload = workloads.make(spec, seed=5)
    store = await populated(workload)
    perform = workload.start(store, Direct(store))
    asked = [workload.prepare(k) for k in range(500)]
    assert {await perform(command) for command in asked} == {2}
    assert {len(command.only_reads) for command in asked} == {read_only}
    events = await store.read_all(0, 10_000)
    amounts = [msgspec.json.decode(e.data).get("amount", 0) for e in events]
    assert sum(amounts) == 3 * OPENING_CENTS
    assert sum(map(abs, amounts)) - 3 * OPENING_CENTS == 2 * sum(command.cents for command in asked)
    lengths = Counter(e.stream for e in events)
    assert [lengths[s] for s in asked[0].only_reads] == [1] * read_only


async def test_reservations_take_one_piece_each_and_stock_for_any_run() -> None:
    workload = workloads.make("reserve", seed=5)
    store = await populated(workload)
    perform = workload.start(store, Direct(store))
    for k in range(50):
        await perform(workload.prepare(k))
    [stream] = {e.stream for e in await store.read_all()}
    left = (await Direct(store).execute(ReserveStock(stream.removeprefix("stock-"), "all", STOCK - 50))).versions
    assert left == (52,)
    with pytest.raises(CommandRejected, match="0 pieces"):
        await perform(workload.prepare(50))


async def test_a_read_tells_how_many_events_it_found() -> None:
    workload = workloads.make("read_mostly:users=3,events=1500,reads=1", seed=5)
    store = await populated(workload)
    perform = workload.start(store, Direct(store))
    assert [await perform(workload.prepare(k)) for k in range(5)] == [1500] * 5


# --- how often and where --------------------------------------------------------------------------------------------

KINDS = {
    "register": CreateUser,
    "update": UpdateProfile,
    "transfer": Transfer,
    "reserve": ReserveStock,
    "read": StreamRead,
}


@pytest.mark.parametrize(
    ("spec", "weights"),
    [
        ("create_user", {"register": 1}),
        ("users:users=50", {"update": 0.8, "register": 0.2}),
        ("users:users=50,update=0.01", {"update": 0.01, "register": 0.99}),
        ("users:users=50,update=1", {"update": 1}),
        ("users:users=50,update=0", {"register": 1}),
        ("read_mostly:users=50", {"read": 0.95, "update": 0.05}),
        ("read_mostly:users=50,reads=0.5", {"read": 0.5, "update": 0.5}),
        ("read_mostly:users=50,reads=0", {"update": 1}),
        ("mixed", {"register": 1, "update": 4, "transfer": 2, "reserve": 1, "read": 2}),
        ("mixed:register=0,reserve=0.5", {"update": 4, "transfer": 2, "reserve": 0.5, "read": 2}),
        ("mixed:update=0,transfer=0,register=0,read=1000", {"reserve": 1, "read": 1000}),
    ],
)
@pytest.mark.parametrize("seed", [1, 2])
def test_kinds_of_operations_come_as_often_as_said(spec: str, weights: dict[str, float], seed: int) -> None:
    workload = workloads.make(spec, seed=seed)
    kinds = Counter(type(workload.prepare(k)) for k in range(10_000))
    for name, kind in KINDS.items():
        share = weights.get(name, 0) / sum(weights.values())
        assert within_5_sigma(kinds[kind], share, 10_000), (name, kinds[kind])


@pytest.mark.parametrize(
    ("spec", "kind", "choices"),
    [
        ("update_profile:users=50", UpdateProfile, 50),
        ("users:users=50", UpdateProfile, 50),
        ("long_streams:streams=10,events=10", UpdateProfile, 10),
        ("transfer:accounts=20", Transfer, 20 * 19),
        ("reserve:articles=7", ReserveStock, 7),
        ("read_mostly:users=50", StreamRead, 50),
        ("read_mostly:users=50", UpdateProfile, 50),
        ("mixed:streams=20,articles=5", UpdateProfile, 20),
        ("mixed:streams=20,articles=5", Transfer, 20 * 19),
        ("mixed:streams=20,articles=5", ReserveStock, 5),
        ("mixed:streams=20,articles=5", StreamRead, 20),
        ("mixed:streams=64,articles=8", UpdateProfile, 64),
        ("append:streams=40", Append, 40),
        ("append:streams=40,stale=0.5,sizes=lognormal", Append, 40),
    ],
)
def test_streams_are_picked_evenly_within_each_kind(spec: str, kind: type, choices: int) -> None:
    """Of transfers the pairs are, in their order: who pays, and whom."""
    workload = workloads.make(spec, seed=5)
    asked = [prepared for k in range(20_000) if isinstance(prepared := workload.prepare(k), kind)]
    picked = Counter(tuple(c.streams) if isinstance(c, Transfer) else tuple(streams_of(c)) for c in asked)
    assert len(picked) == choices
    expected = len(asked) / choices
    assert sum((n - expected) ** 2 / expected for n in picked.values()) < chi2.ppf(0.9999, choices - 1)


# --- appends --------------------------------------------------------------------------------------------------------


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
    perform = workload.start(store, Direct(store))
    assert [await perform(workload.prepare(k)) for k in range(4)] == [10] * 4
    assert len(await store.read_all()) == 40
    with pytest.raises(VersionConflict):
        await perform(workload.prepare(2))


@pytest.mark.parametrize("payload_bytes", [40, 200, 5000])
def test_a_payload_is_json_of_exactly_the_size_asked(payload_bytes: int) -> None:
    workload = workloads.make(f"write_events:payload_bytes={payload_bytes}", seed=1)
    for k in (0, 9, 10, 1_234_567, 9):
        [event] = [e for w in workload.prepare(k) for e in w.events]
        assert len(event.data) == payload_bytes
        assert msgspec.json.decode(event.data)["test"] == k


def test_events_are_numbered_through_all_operations() -> None:
    workload = workloads.make("write_events:batch=3", seed=1)
    numbers = [msgspec.json.decode(e.data)["test"] for k in range(4) for w in workload.prepare(k) for e in w.events]
    assert numbers == list(range(12))


@given(first=st.integers(0, 2000), batch=st.integers(1, 300))
def test_payloads_are_as_long_where_numbers_get_a_digit_more(first: int, batch: int) -> None:
    workload = workloads.make(f"write_events:batch={batch},payload_bytes=40", seed=1)
    sizes = {len(e.data) for k in (first, first // 7, first + 1) for w in workload.prepare(k) for e in w.events}
    assert sizes == {40}


# --- what they say of themselves ------------------------------------------------------------------------------------


class Refuses:
    """An executor, or a store, that must not be asked."""

    def __getattr__(self, name: str) -> Any:
        async def refuse(*_: Any, **__: Any) -> None:
            raise AssertionError(f"{name} was asked")

        return refuse


@pytest.mark.parametrize(
    "spec", [*SPECS, "read_mostly:users=5,reads=1", "mixed:register=0,update=0,transfer=0,reserve=0"]
)
async def test_it_uses_the_executor_if_it_says_so_and_only_then(spec: str) -> None:
    workload = workloads.make(spec, seed=5)
    store = await populated(workload)
    await store.append(
        [StreamWrite(StreamId("something"), 0, workloads.make("write_events", seed=1).prepare(0)[0].events)]
    )
    perform = workload.start(store, Refuses())
    was_asked = False
    for k in range(300):
        try:
            await perform(workload.prepare(k))
        except AssertionError as asked:
            assert str(asked) == "execute was asked"
            was_asked = True
    assert was_asked == workload.uses_commands


@pytest.mark.parametrize("spec", SPECS)
async def test_it_writes_nothing_if_it_only_reads_and_needs_nothing_written(spec: str) -> None:
    workload = workloads.make(spec, seed=5)
    store = await populated(workload)
    is_populated = bool(await store.last_position())
    await store.append(
        [StreamWrite(StreamId("something"), 0, workloads.make("write_events", seed=1).prepare(0)[0].events)]
    )
    before = await store.last_position()
    perform = workload.start(store, Direct(store))
    for k in range(50):
        await perform(workload.prepare(k))
    is_written = await store.last_position() > before
    assert workload.only_reads == (not is_written and not is_populated)


def test_reads_of_populated_streams_need_a_store_that_takes_appends() -> None:
    assert not workloads.make("read_mostly:reads=1", seed=1).only_reads


def test_every_workload_has_a_line_of_help_and_is_made_by_its_name_alone() -> None:
    described = workloads.describe()
    without_tables = {spec.partition(":")[0] for spec in SPECS}
    assert set(described) == without_tables | {"read_model"}  # which asks a table: test_notebook_06_08.py
    for name, (usage, text) in described.items():
        assert usage.partition(":")[0] == name
        assert 20 < len(text) <= 120 and text.endswith(".")
        written = said(workloads.make(usage, seed=1).prepare(3))
        assert written == said(workloads.make(name, seed=1).prepare(3)), "the usage shows the defaults"
    assert described["mixed"][0].startswith(
        "mixed:register=1.0,update=4.0,transfer=2.0,reserve=1.0,read=2.0,streams=1000"
    )


async def test_registrations_run_on_a_store_that_keeps_nothing() -> None:
    store, workload = Null(), workloads.make("create_user", seed=1)
    perform = workload.start(store, Direct(store))
    assert [await perform(workload.prepare(k)) for k in (0, 0, 1)] == [1, 1, 1]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("write_events:batch=0", "batch must be 1 to"),
        (f"write_events:batch={EVENTS_PER_APPEND_MAX + 1}", "batch must be 1 to"),
        ("write_events:batch=2,streams=3", "streams must be 1 to 2 for batch=2"),
        ("write_events:batch=1000,streams=501", "streams must be 1 to 500"),
        ("write_events:payload_bytes=0", "payload_bytes must be"),
        ("write_event", "did you mean write_events"),
        ("update_profile:users=0", "users must be 1 to"),
        ("update_profile:events=0", "events must be 1 to 100000, not 0"),
        ("update_profile:users=100000,events=100", "users × events must be 1 to"),
        ("users:update=1.5", "update must be 0 to 1, not 1.5"),
        ("users:update=-0.1", "update must be 0 to 1, not -0.1"),
        ("users:update=nan", "is not a finite number"),
        ("long_streams:streams=0", "streams must be 1 to"),
        ("long_streams:events=9", "events must be 10 to 100000, not 9"),
        ("long_streams:streams=1000,events=100000", "streams × events must be 1 to"),
        ("transfer:accounts=1", "accounts must be 2 to"),
        ("transfer:policy=maybe", "is not true or false"),
        ("reserve:articles=0", "articles must be 1 to 100000, not 0"),
        ("read_mostly:reads=2", "reads must be 0 to 1, not 2"),
        ("mixed:register=-1", "register must be 0 to"),
        ("mixed:read=-1", "read must be 0 to"),
        ("mixed:streams=1", "streams must be 2 to"),
        ("mixed:streams=0,transfer=0", "streams must be 1 to"),
        ("mixed:articles=0", "articles must be 1 to"),
        (
            "mixed:register=0,update=0,transfer=0,reserve=0,read=0",
            "at least one kind of operation needs a weight above 0",
        ),
        ("write_events:payload_bytes=1000001", "payload_bytes must be 1 to 1000000, not 1000001"),
        ("write_events:batch=1000,payload_bytes=200000", "batch × payload_bytes must be 1 to 100000000, not 200000000"),
        (
            "write_events:sizes=lognorml",
            r"unknown sizes 'lognorml': did you mean lognormal\? \(known: a histogram .*\)",
        ),
        ("write_events:sizes=constant/2", "sizes: constant has no width, so write sizes=constant, not 'constant/2'"),
        ("append:sizes=geometric/2", "sizes: geometric has no width"),
        (
            "append:sizes=uniform/1.5",
            "sizes: the width of uniform must be 0 to 1, as in uniform/0.5, not 'uniform/1.5'",
        ),
        ("append:sizes=uniform/nan", "sizes: the width of uniform must be 0 to 1"),
        ("append:sizes=lognormal/", "sizes: the width of lognormal must be 0 to 3"),
        ("append:sizes=lognormal/wide", "sizes: the width of lognormal must be 0 to 3"),
        ("append:sizes=lognormal/-1", "sizes: the width of lognormal must be 0 to 3"),
        (
            "append:sizes=uniform,payload_bytes=900000",
            "sizes: uniform/0.5 around 900000 goes up to 1350000, and 1000000",
        ),
        (
            "append:sizes=64x50/0x30",
            "sizes: '0x30' is not SIZExWEIGHT with a size of 1 to 1000000 and a weight above 0",
        ),
        ("append:sizes=64x50/1000001x1", "sizes: '1000001x1' is not SIZExWEIGHT"),
        ("append:sizes=64x0", "sizes: '64x0' is not SIZExWEIGHT"),
        ("append:sizes=64xinf", "sizes: '64xinf' is not SIZExWEIGHT"),
        ("append:sizes=64", "sizes: '64' is not SIZExWEIGHT"),
        ("append:sizes=64x50/", "sizes: '' is not SIZExWEIGHT"),
        ("append:streams=0", "streams must be 1 to 1000000, not 0"),
        ("append:batch=0", "batch must be 1 to 100000 events, not 0"),
        ("append:events=0", "events must be 1 to 100000, not 0"),
        ("append:streams=100000,events=100", "streams × events must be 1 to 5000000, not 10000000"),
        ("append:streams=100000,lengths=100x1", "streams × events must be 1 to 5000000, not 10000000"),
        ("append:payload_bytes=0", "payload_bytes must be 1 to"),
        ("append:stale=1.1", "stale must be 0 to 1, not 1.1"),
        ("append:stale=-0.1", "stale must be 0 to 1, not -0.1"),
        ("append:pick=zip", "unknown pick 'zip'.*did you mean zipf"),
        ("append:theta=6", "theta must be 0 to 5, not 6"),
        ("append:lengths=long", "unknown lengths 'long'"),
        ("update_profile:lengths=constant/1", "lengths: constant has no width"),
        ("users:lengths=100001x1", "lengths: '100001x1' is not SIZExWEIGHT with a size of 1 to 100000 and"),
        ("read_mostly:lengths=uniform/2", "lengths: the width of uniform must be 0 to 1"),
        ("long_streams:lengths=uniform,events=80000,streams=1", "lengths: uniform/0.5 around 80000 goes up to 120000"),
        ("read_pages:limit=0", "limit must be 1 to"),
        ("read_streams:streams=0", "streams must be 1 to"),
    ],
)
def test_a_workload_that_cannot_be_is_refused(spec: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as refused:
        workloads.make(spec, seed=1)
    assert "\n" not in str(refused.value)
