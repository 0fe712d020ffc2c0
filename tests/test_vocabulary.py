"""Claims about the words everything is built on: ids and errors of events, the grammar of specs, the two clocks."""

from __future__ import annotations

import asyncio
import itertools
import re
import time
from uuid import RFC_4122, UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventcore_lab import events
from eventcore_lab.clock import NS_PER_S, VirtualClock, WallClock, now_ns, sleep_s
from eventcore_lab.events import (
    STREAM_ID_MAX_CHARS,
    EventRejected,
    NewEvent,
    OutcomeUnknown,
    StoreError,
    StoreUnreachable,
    StreamId,
    VersionConflict,
    new_event_id,
    stream_id,
)
from eventcore_lab.spec import Registry, Spec, UsageError, parse, shown, unknown, value_of

MS = 1_000_000

# --- events ---------------------------------------------------------------------------------------------------------


def test_event_ids_are_strictly_increasing_uuids_of_version_7() -> None:
    ids = [new_event_id() for _ in range(20_000)]
    assert all(a < b for a, b in itertools.pairwise(ids))
    assert {(i.version, i.variant) for i in ids} == {(7, RFC_4122)}


def test_event_ids_begin_with_the_time_in_ms() -> None:
    before_ms = time.time_ns() // MS
    made_ms = new_event_id().int >> 80
    assert made_ms >= before_ms


def test_event_ids_go_on_increasing_when_a_millisecond_is_full_or_the_clock_goes_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    instants = iter([9_000_000_000_000] * 10_000 + [8_000_000_000_000] * 10)
    monkeypatch.setattr(events, "_last_id_ms", 0)
    monkeypatch.setattr(events.time, "time_ns", lambda: next(instants) * MS)
    ids = [new_event_id() for _ in range(10_010)]
    assert all(a < b for a, b in itertools.pairwise(ids))
    assert {i.version for i in ids} == {7}
    assert ids[0x1000].int >> 80 == 9_000_000_000_001, "a full millisecond borrows the next"


def test_the_chance_part_of_event_ids_differs() -> None:
    assert len({new_event_id().int & (1 << 62) - 1 for _ in range(1000)}) == 1000


def test_an_event_has_its_id_before_it_is_stored() -> None:
    event = NewEvent("Happened", b"{}")
    assert isinstance(event.id, UUID)
    assert event.id != NewEvent("Happened", b"{}").id
    assert event.meta == b""


@pytest.mark.parametrize("text", ["a", "user-1", "ünïcode 名", "x" * STREAM_ID_MAX_CHARS, "with space", "a/b:c.d"])
def test_a_stream_id_is_any_short_text(text: str) -> None:
    assert stream_id(text) == text


@pytest.mark.parametrize("text", ["", "x" * (STREAM_ID_MAX_CHARS + 1), "a*", "a?", "[a", "a]", "a\nb", "a\x00", "\x1f"])
def test_a_stream_id_has_no_pattern_no_control_character_and_an_end(text: str) -> None:
    with pytest.raises(ValueError, match="stream id"):
        stream_id(text)


def test_a_conflict_says_where_what_and_instead_of_what() -> None:
    conflict = VersionConflict(StreamId("user-1"), 3, 5)
    assert (conflict.stream, conflict.expected, conflict.actual) == ("user-1", 3, 5)
    assert str(conflict) == "version conflict on 'user-1': expected 3, actual 5"


@pytest.mark.parametrize("kind", [VersionConflict, EventRejected, OutcomeUnknown, StoreUnreachable])
def test_whatever_a_store_says_no_with_is_a_store_error(kind: type[StoreError]) -> None:
    assert issubclass(kind, StoreError)


# --- spec -----------------------------------------------------------------------------------------------------------

NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_.-]{0,9}", fullmatch=True)
VALUES = st.text(st.characters(exclude_characters=",:", exclude_categories=("Z", "C")), min_size=1, max_size=12).filter(
    lambda v: v == v.strip()
)
SPECS = st.builds(
    lambda name, variant, options: Spec(name, variant, tuple(options.items())),
    NAMES,
    st.just("") | NAMES,
    st.dictionaries(NAMES, VALUES, max_size=4),
)


@given(SPECS)
def test_a_spec_written_and_parsed_is_the_same_spec(spec: Spec) -> None:
    assert parse(str(spec)) == spec


@given(SPECS)
def test_blanks_around_the_parts_of_a_spec_mean_nothing(spec: Spec) -> None:
    airy = re.sub(r",", " , ", str(spec))
    assert parse(f"  {airy} ") == spec


@given(st.text(max_size=40))
def test_any_text_is_a_spec_or_a_usage_error(text: str) -> None:
    try:
        spec = parse(text)
    except UsageError as error:
        assert not re.search(r"[\x00-\x1f\x7f]", str(error)), "control characters must not reach a terminal"
        return
    assert parse(str(spec)) == spec


def test_a_spec_has_a_name_a_variant_and_options() -> None:
    assert parse("postgres:chapter,sync=off,rows=10") == Spec("postgres", "chapter", (("sync", "off"), ("rows", "10")))
    assert parse("memory") == Spec("memory")
    assert parse("env:LAB_DSN") == Spec("env", "LAB_DSN")
    assert parse("trace:file=a=b") == Spec("trace", "", (("file", "a=b"),))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "does not start with a name"),
        (":rate=1", "does not start with a name"),
        ("1st", "does not start with a name"),
        ("poisson:", "neither key=value nor"),
        ("poisson:rate=", "neither key=value nor"),
        ("poisson:=5", "neither key=value nor"),
        ("poisson:rate=1,", "neither key=value nor"),
        ("poisson:rate=1,rate=2", "rate is given twice"),
        ("postgres:a,b", "two variants"),
    ],
)
def test_what_is_no_spec_is_refused_with_the_reason(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse(text, "pacer")


@pytest.mark.parametrize(
    "text",
    [
        "postgres://bob:hunter2@db/x",
        "  PostgreSQL://bob:hunter2@db/x",
        "postgresql+asyncpg://bob:hunter2@db/x",
        "postgres:postgresql://bob:hunter2@db/x",
        "postgres:dsn=postgresql://bob:hunter2@db/x",
        "'postgresql://bob:hunter2@db/x'",
        "host=db password=hunter2",
        "postgres:password=hunter2",
    ],
)
def test_a_dsn_is_refused_and_its_password_not_repeated(text: str) -> None:
    with pytest.raises(UsageError, match="env:LAB_DSN") as refusal:
        parse(text, "store")
    assert "hunter2" not in str(refusal.value)


def test_an_unknown_name_names_the_known_and_the_nearest() -> None:
    text = str(unknown("pacer", "possion", {"poisson", "constant"}))
    assert text == "unknown pacer 'possion': did you mean poisson? (known: constant, poisson)"
    assert "did you mean" not in str(unknown("pacer", "zzz", {"poisson"}))


def test_what_is_shown_of_a_long_text_is_short_and_harmless() -> None:
    assert len(shown("x" * 1000)) <= 62
    assert "\x1b" not in shown("\x1b[31m")


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [("7", int, 7), ("1e3", float, 1000.0), ("Yes", bool, True), ("0", bool, False), ("007", str, "007")],
)
def test_an_option_has_the_type_of_its_parameter(text: str, kind: type, value: object) -> None:
    found = value_of(text, kind, "it")
    assert found == value
    assert type(found) is kind


@pytest.mark.parametrize(
    ("text", "kind"), [("1.5", int), ("many", float), ("nan", float), ("inf", float), ("-inf", float), ("maybe", bool)]
)
def test_a_value_of_the_wrong_type_is_refused_by_name(text: str, kind: type) -> None:
    with pytest.raises(UsageError, match="rate"):
        value_of(text, kind, "rate")


def colours() -> Registry[tuple[object, ...]]:
    registry: Registry[tuple[object, ...]] = Registry("colour")

    @registry.register("mix")
    def mix(*, variant: str = "rgb", red: int = 0, is_dark: bool = False, seed: int) -> tuple[object, ...]:
        """Made of parts.

        And more of it."""
        if red > 255:
            raise ValueError("red must be at most 255")
        return variant, red, is_dark, seed

    @registry.register("black")
    def black() -> tuple[object, ...]:
        """None at all."""
        return ()

    return registry


def test_a_registry_makes_what_a_spec_describes() -> None:
    made = colours().make("mix:cmyk,red=9,is_dark=yes", seed=3)
    assert made == ("cmyk", 9, True, 3)
    assert colours().make(Spec("black"), seed=3) == ()


def test_a_registry_says_how_to_write_what_it_knows() -> None:
    assert colours().names() == ["black", "mix"]
    assert colours().describe() == {
        "black": ("black", "None at all."),
        "mix": ("mix:[rgb],red=0,is_dark=False", "Made of parts."),
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mux", "did you mean mix"),
        ("mix:rad=1", "did you mean red"),
        ("mix:seed=1", "unknown option of colour mix 'seed'"),
        ("mix:variant=x", "unknown option of colour mix 'variant'"),
        ("mix:red=x", "colour mix, red: 'x' is not a whole number"),
        ("mix:red=256", "colour mix: red must be at most 255"),
        ("black:soft", "black has no variants"),
    ],
)
def test_a_registry_refuses_what_it_does_not_know_and_says_what_it_does(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        colours().make(text, seed=1)


def test_a_name_is_registered_once() -> None:
    with pytest.raises(ValueError, match="registered twice"):
        colours().register("mix")(lambda: ())
        registry = colours()
        registry.register("mix")(lambda: ())


# --- clock ----------------------------------------------------------------------------------------------------------


def test_ten_virtual_minutes_take_no_time_and_end_exactly_when_due() -> None:
    clock = VirtualClock(start_ns=5)

    async def main() -> int:
        await clock.sleep_until(600 * NS_PER_S)
        return clock.now_ns()

    assert clock.run(main()) == 600 * NS_PER_S


def test_who_sleeps_virtually_wakes_in_order_of_due_times_and_of_arrival_when_they_are_equal() -> None:
    clock = VirtualClock()
    woken: list[tuple[str, int]] = []

    async def sleeper(name: str, due_ns: int) -> None:
        await clock.sleep_until(due_ns)
        woken.append((name, clock.now_ns()))

    async def main() -> None:
        await asyncio.gather(sleeper("c", 30), sleeper("a", 10), sleeper("b", 20), sleeper("b2", 20))

    clock.run(main())
    assert woken == [("a", 10), ("b", 20), ("b2", 20), ("c", 30)]


def test_a_due_time_that_has_passed_is_not_waited_for() -> None:
    clock = VirtualClock(start_ns=100)

    async def main() -> int:
        await clock.sleep_until(99)
        return clock.now_ns()

    assert clock.run(main()) == 100


def test_sleeps_and_timeouts_of_asyncio_follow_the_virtual_clock() -> None:
    clock = VirtualClock()

    async def main() -> tuple[int, int]:
        await sleep_s(30)
        after_sleep = clock.now_ns()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(5):
                await clock.sleep_until(1_000 * NS_PER_S)
        return after_sleep, clock.now_ns()

    slept_ns, timed_out_ns = clock.run(main())
    assert 30 * NS_PER_S <= slept_ns < 30 * NS_PER_S + 1_000
    assert 35 * NS_PER_S <= timed_out_ns < 35 * NS_PER_S + 1_000


def test_a_cancelled_virtual_sleeper_does_not_hold_up_the_others() -> None:
    clock = VirtualClock()

    async def main() -> int:
        sleeper = asyncio.ensure_future(clock.sleep_until(10))
        await sleep_s(0)
        sleeper.cancel()
        await clock.sleep_until(20)
        return clock.now_ns()

    assert clock.run(main()) == 20


def test_a_cancelled_virtual_sleeper_does_not_move_the_time() -> None:
    clock = VirtualClock()

    async def main() -> None:
        sleeper = asyncio.ensure_future(clock.sleep_until(10))
        await sleep_s(0)
        sleeper.cancel()
        await asyncio.get_running_loop().create_future()

    with pytest.raises(RuntimeError, match="deadlock"):
        clock.run(main())
    assert clock.now_ns() == 0


def test_waiting_for_nothing_in_virtual_time_is_a_deadlock_and_says_so() -> None:
    clock = VirtualClock()

    async def main() -> None:
        await asyncio.get_running_loop().create_future()

    with pytest.raises(RuntimeError, match="deadlock"):
        clock.run(main())


async def test_a_clock_that_spins_is_never_early_and_lets_others_go_on() -> None:
    clock = WallClock(spin_ns=2_000_000)
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await sleep_s(0)

    beside = asyncio.ensure_future(others())
    for wait_ns in (0, 500_000, 3_000_000, -1):
        due_ns, before = now_ns() + wait_ns, turns
        await clock.sleep_until(due_ns)
        assert now_ns() >= due_ns
        assert turns > before or wait_ns <= 0  # all of the second wait is spent spinning
    beside.cancel()
    clock.close()


async def test_the_wall_clock_wakes_nobody_early_and_everybody_in_order() -> None:
    clock = WallClock()
    woken: list[int] = []
    start_ns = now_ns()

    async def sleeper(n: int) -> int:
        due_ns = start_ns + n * 2 * MS
        await clock.sleep_until(due_ns)
        woken.append(n)
        return clock.now_ns() - due_ns

    try:
        lateness_ns = await asyncio.gather(*[sleeper(n) for n in (3, 1, 5, 2, 4)])
        cancelled = asyncio.ensure_future(clock.sleep_until(now_ns() + MS))
        await sleep_s(0)
        cancelled.cancel()
        await clock.sleep_until(now_ns() + 2 * MS)
    finally:
        clock.close()
    assert all(late_ns >= 0 for late_ns in lateness_ns)
    assert woken == [1, 2, 3, 4, 5]
    clock.close()
