"""When somebody is told: the course of a rule in virtual time, rules from targets and files, and the history in the Lab."""

from __future__ import annotations

import asyncio
import fcntl
import json
import math
import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import duckdb
import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eventcore_lab.clock import NS_PER_S
from eventcore_lab.lab import alerts as alert_lines
from eventcore_lab.lab.database import Lab
from eventcore_lab.lab.measures import UNITS
from eventcore_lab.lab.stats import samples_needed
from eventcore_lab.lab.targets import Targets, Threshold
from eventcore_lab.monitor import judging, process
from eventcore_lab.monitor.alerts import NOT_TOLD, Alerts, Rule, in_vain, is_notice, rules_of, said_s
from eventcore_lab.monitor.facts import Alert, Held, News, Watched
from eventcore_lab.monitor.history import History
from eventcore_lab.monitor.state import State
from eventcore_lab.monitor.window import Basis
from eventcore_lab.schema import ALERTS_FILE, Outcome, Phase, data_folder, packed
from eventcore_lab.spec import UsageError

T = 1_800_000_000.0
LATENCY = Threshold.parse("p95 < 50ms")


class Scene:
    """What `Alerts` asks of a State, set by hand."""

    def __init__(self, run_id: str = "r1", status: str = "loading", closed: bool = False) -> None:
        self.watched: Watched | None = Watched(run_id=run_id, status=status, began=T - 1e6, is_closed_loop=closed)
        self.figures = dict.fromkeys(UNITS, math.nan)
        self.basis = Basis(samples=300, length_s=3.0, is_all_answered=True)
        self.is_loaded = status == "loading"
        self.error, self.catching_up, self.window_s = "", False, 30.0

    def at(self, **figures: float) -> Scene:
        self.figures |= figures
        return self

    def but(self, **facts: Any) -> Scene:
        """On another basis."""
        self.basis = msgspec.structs.replace(self.basis, **facts)
        return self

    def hold(self, targets: Targets) -> list[Held]:
        return judging.held(targets, self.figures, self.basis, self.watched)

    def over(self) -> Scene:
        self.is_loaded = False
        return self


def looked(alerts: Alerts, scene: Scene, now: float) -> list[Alert]:
    return alerts.look(now, scene)  # type: ignore[arg-type]


def course(rule: Rule, answers: str, every_s: float = 1.0) -> list[tuple[int, str]]:
    """What is said of answers, one look each: x missed, . kept, ? cannot be judged, ' ' no load. Gives (look, state)."""
    alerts, found = Alerts([rule]), []
    values = {"x": 90.0, ".": 10.0, "?": math.nan, " ": math.nan}
    for k, answer in enumerate(answers):
        scene = Scene().at(p95=values[answer])
        scene.is_loaded = answer != " "
        found += [(k, a.state) for a in looked(alerts, scene, T + k * every_s)]
    return found


def rule(for_s: float = 3, resolve_for_s: float = 2, cooldown_s: float = 300, **more: Any) -> Rule:
    times = {"for_s": for_s, "resolve_for_s": resolve_for_s, "cooldown_s": cooldown_s}
    return Rule(**({"name": "slow", "threshold": LATENCY} | times | more))


def test_it_fires_when_missed_for_so_long_and_resolves_when_kept_for_so_long() -> None:
    assert course(rule(), "..xxxxxx...") == [(2, "pending"), (5, "firing"), (10, "resolved")]


def test_a_spike_of_one_look_is_no_alert_and_a_good_look_begins_the_time_anew() -> None:
    assert course(rule(), "..x.....") == [(2, "pending")]
    assert course(rule(), "xx.xx.xx.xx.xxx") == [(0, "pending")]


def test_a_bad_look_begins_the_time_to_resolve_anew() -> None:
    assert course(rule(), "xxxx..x..x...")[-1] == (12, "resolved")


def test_without_a_duration_it_fires_and_resolves_at_once() -> None:
    assert course(rule(0, 0, 0), "x.x.") == [(0, "firing"), (1, "resolved"), (2, "firing"), (3, "resolved")]


def test_what_cannot_be_judged_neither_fires_nor_resolves() -> None:
    assert course(rule(), "xx????????") == [(0, "pending")]
    assert course(rule(), "xxxx" + "?" * 600) == [(0, "pending"), (3, "firing")]
    assert course(rule(), "xx???xxx")[-1] == (7, "firing"), "the time before a short gap counts, the gap does not"
    assert course(rule(), "xx" + "?" * 40 + "xx") == [(0, "pending")], "a long one begins it anew"


def test_an_alert_ends_with_the_load() -> None:
    alerts = Alerts([rule(0)])
    [fired] = looked(alerts, Scene().at(p95=90), T)
    [resolved] = looked(alerts, Scene().at(p95=90).over(), T + 5)
    assert (fired.state, resolved.state, resolved.detail) == ("firing", "resolved", "the load ended")
    assert resolved.text == "the load ended while p95 was 90 ms, limit < 50 ms, after 5 s"
    assert not looked(alerts, Scene().at(p95=90).over(), T + 6), "the window is still that of the load"


def test_what_nobody_was_told_of_ends_without_a_word() -> None:
    assert course(rule(), "xx   ") == [(0, "pending")]


def test_an_alert_of_a_run_that_is_left_for_another_is_not_resolved_and_not_carried_over() -> None:
    alerts = Alerts([rule(0, cooldown_s=0)])
    looked(alerts, Scene("r1").at(p95=92.9), T)
    left, fired = looked(alerts, Scene("r2").at(p95=90), T + 12)
    assert (left.state, left.run_id, is_notice(left)) == ("unwatched", "r1", True)
    assert left.text == ("no longer followed: another run is under way; p95 was 92.9 ms, limit < 50 ms, after 12 s")
    assert (fired.state, fired.run_id) == ("firing", "r2")
    [left] = looked(alerts, Scene("r3", status="preparing"), T + 13)
    assert left.state == "unwatched", "though no load is under way yet"
    assert alerts.states() == {"slow": "ok"}


def test_what_fires_when_the_monitor_ends_was_still_firing() -> None:
    rules = [rule(0, name="p99 bad"), rule(9, name="pending"), rule(0, name="off", enabled=False)]
    alerts = Alerts(rules)
    looked(alerts, Scene().at(p95=92.9), T)
    [left] = alerts.leave(T + 61)
    assert (left.state, left.name, left.run_id, is_notice(left)) == ("unwatched", "p99 bad", "r1", True)
    assert left.text.startswith(
        "the monitor ends; p99 bad was still firing; p95 was 92.9 ms, limit < 50 ms, after 1 min"
    )
    assert alerts.leave(T + 62) == []


def test_who_is_not_told_that_it_fires_is_not_told_that_nobody_looks_any_more() -> None:
    alerts = Alerts([rule(0, 0)])
    for k, value in enumerate([90.0, 10.0, 90.0]):
        looked(alerts, Scene().at(p95=value), T + k)
    [left] = alerts.leave(T + 9)
    assert left.detail == NOT_TOLD and not is_notice(left)


def test_what_it_is_about_is_said_and_stays_that_of_its_own_run() -> None:
    alerts, first = Alerts([rule(0)]), Scene("r1").at(p95=90)
    row = {"workload": "orders:" + "x" * 999, "pacer": "rate:200"}
    first.watched = Watched(run_id="r1", store="env:A", status="loading", began=T - 1e6, row=row)
    [fired] = looked(alerts, first, T)
    [left] = looked(alerts, Scene("r2"), T + 1)
    assert fired.about == left.about == f"store env:A, workload orders:{'x' * 93}, pacer rate:200; window 30 s"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0.00726, "about 0 ms"),
        (0.0123456, "0.012 ms"),
        (92.912, "92.9 ms"),
        (1234.5, "1,234 ms"),
        (0.0, "0 ms"),
    ],
)
def test_numbers_are_as_people_say_them(value: float, said: str) -> None:
    limit = Threshold.parse("p95 > 5000ms")
    [alert] = looked(Alerts([rule(0, threshold=limit)]), Scene().at(p95=value), T)
    assert alert.text == f"p95 is {said}; it should be above 5,000 ms, just now"


def test_a_fraction_of_a_second_is_not_counted_out() -> None:
    alerts = Alerts([rule(0, 0)])
    looked(alerts, Scene().at(p95=90), T)
    [resolved] = looked(alerts, Scene().at(p95=10), T + 0.00726)
    assert resolved.text == "p95 is 10 ms again, after less than 1 s"


@pytest.mark.parametrize(
    ("expected", "line"),
    [
        (
            ["p99 < 1s"],
            "rule 'p99 < 1s' cannot be judged of a store that is only observed (no latency is known); it will never fire",
        ),
        (
            ["p99 < 1s", "commands_per_second > 5", "events_per_second > 5", "events_per_second < 9"],
            "rules 'p99 < 1s' (no latency is known), 'commands_per_second > 5' (no commands_per_second is known), "
            "'events_per_second > 5' (more may not have been asked for) cannot be judged of a store that is only observed; "
            "they will never fire",
        ),
        (["events_per_second < 9"], ""),
    ],
)
def test_a_rule_that_can_never_fire_of_an_observed_store_is_named(expected: list[str], line: str) -> None:
    rules = [rule(0, name=text, threshold=Threshold.parse(text)) for text in expected]
    assert in_vain([*rules, rule(name="off", enabled=False)]) == line
    scene = Scene(run_id="", status="observed").at(events_per_second=7.0)
    fired = looked(Alerts(rules), scene, T) + looked(Alerts(rules), scene.at(events_per_second=1e6), T)
    assert {a.name for a in fired} == {r.name for r in rules if r.name not in line}, "as it is judged"


def test_the_same_rule_does_not_tell_again_within_its_cooldown() -> None:
    found = course(rule(1, 1, 60), ("xx.." * 30) + "....")
    firing = [k for k, state in found if state == "firing"]
    assert firing == [1, 61]
    assert [state for _, state in found if state == "silenced"] == ["silenced"] * 2, "said once per cooldown"


def test_what_still_fires_when_the_cooldown_is_over_is_told_then() -> None:
    alerts, found = Alerts([rule(0, 0, 60)]), []
    for k, value in enumerate([90.0, 10.0, *[90.0] * 100]):
        found += [(k, a) for a in looked(alerts, Scene().at(p95=value), T + k)]
    assert [(k, a.state) for k, a in found] == [(0, "firing"), (1, "resolved"), (2, "silenced"), (60, "firing")]
    assert found[2][1].detail.endswith("silent for 58 s")
    assert found[3][1].since == T + 2 and found[3][1].text.endswith("for 58 s now")


def test_the_end_of_what_nobody_was_told_of_is_no_notice() -> None:
    alerts, found = Alerts([rule(0, 0)]), []
    for k, value in enumerate([90.0, 10.0, 90.0, 10.0]):
        found += looked(alerts, Scene().at(p95=value), T + k)
    assert [(a.state, is_notice(a)) for a in found] == [
        ("firing", True),
        ("resolved", True),
        ("silenced", False),
        ("resolved", False),
    ]
    assert found[-1].detail == NOT_TOLD


def test_switched_off_nothing_is_said_and_the_cooldown_is_kept() -> None:
    alerts = Alerts([rule(0)], enabled=False)
    assert not looked(alerts, Scene().at(p95=90), T)
    alerts.enabled = True
    assert [a.state for a in looked(alerts, Scene().at(p95=90), T + 1)] == ["firing"]
    alerts.enabled = False
    assert not looked(alerts, Scene().at(p95=10), T + 2)
    alerts.enabled = True
    assert [a.state for a in looked(alerts, Scene().at(p95=90), T + 3)] == ["silenced"]
    off = Alerts([rule(0, enabled=False)])
    assert not looked(off, Scene().at(p95=90), T) and off.states() == {"slow": "off"}


def test_a_clock_that_is_set_back_or_far_ahead_does_no_harm() -> None:
    alerts, found = Alerts([rule(3, 2, 60)]), []
    for now in [T, T + 1, T - 86_400, T - 86_399, T - 86_398, T - 86_397]:
        found += looked(alerts, Scene().at(p95=90), now)
    assert [a.state for a in found] == ["pending", "firing"]
    looked(alerts, Scene().at(p95=10), T - 86_396)
    assert [a.state for a in looked(alerts, Scene().at(p95=10), T - 86_394)] == ["resolved"]
    later = T - 86_394 + 61  # the cooldown is over although the clock reads less than when it was told
    assert [a.state for k in range(5) for a in looked(alerts, Scene().at(p95=90), later + k)] == ["pending", "firing"]
    alerts = Alerts([rule(3)])
    looked(alerts, Scene().at(p95=90), T)
    assert not looked(alerts, Scene().at(p95=90), T + 86_400), "of a day nobody looked at one does not know"


def test_every_rule_takes_its_own_course() -> None:
    rules = [
        rule(0, name="a"),
        Rule(name="b", threshold=Threshold.parse("memory < 10MiB"), for_s=0, severity="critical"),
    ]
    alerts = Alerts(rules)
    [a] = looked(alerts, Scene().at(p95=90, memory=5), T)
    [b] = looked(alerts, Scene().at(p95=90, memory=12345.6), T + 1)
    assert (a.name, a.severity, a.value, a.limit) == ("a", "warning", 90, "< 50 ms")
    assert (b.name, b.severity, b.text) == (
        "b",
        "critical",
        "memory is 12,346 MiB; it should be below 10 MiB, just now",
    )
    assert alerts.states() == {"a": "firing", "b": "firing"}


def test_a_store_that_stands_still_is_high_latency() -> None:
    [alert] = looked(Alerts([rule(0)]), Scene().at(p95=math.inf), T)
    assert alert.state == "firing" and "has no end yet" in alert.text


# F29: what the chapter's alerting gets wrong

THROUGHPUT = rules_of(Targets.of("commands_per_second > 100"))


def low_throughput(scene: Scene) -> list[str]:
    alerts = Alerts(THROUGHPUT)
    return [a.state for k in range(60) for a in looked(alerts, scene, T + k)]


def test_low_throughput_is_no_alert_while_idle_or_when_everything_offered_was_answered() -> None:
    assert low_throughput(Scene().at(commands_per_second=0.0).over()) == []
    assert low_throughput(Scene(status="preparing").at(commands_per_second=math.nan)) == []
    assert low_throughput(Scene().at(commands_per_second=20.0)) == []
    assert low_throughput(Scene(run_id="", status="observed").at(commands_per_second=0.0)) == []


def test_low_throughput_is_an_alert_when_operations_wait_fail_or_a_closed_loop_gets_no_further() -> None:
    unanswered = Scene().at(commands_per_second=20.0).but(is_all_answered=False)
    for scene in (unanswered, Scene(closed=True).at(commands_per_second=20.0)):
        assert low_throughput(scene) == ["pending", "firing"]


def test_warming_up_and_too_few_samples_are_no_alert() -> None:
    for scene in (Scene().but(is_warming_up=True), Scene().at(p95=90).but(samples=samples_needed(0.95) - 1)):
        assert not looked(Alerts([rule(0)]), scene, T)
    assert looked(Alerts([rule(0)]), Scene().at(p95=90).but(samples=samples_needed(0.95)), T)


def test_what_cannot_be_read_or_is_of_long_ago_is_not_judged() -> None:
    unreadable, late = Scene().at(p95=90), Scene().at(p95=90)
    unreadable.error, late.catching_up = "the spool cannot be read", True
    for scene in (unreadable, late):
        alerts = Alerts([rule(2)])
        assert not [a for k in range(9) for a in looked(alerts, scene, T + k)]
        looked(alerts, Scene().at(p95=90), T + 9)
        assert not looked(alerts, scene, T + 12), "adds to no time"
        assert alerts.states() == {"slow": "pending"}


def test_service_time_of_a_closed_loop_is_no_latency_and_alerts_nobody() -> None:
    alerts = Alerts([rule(0, 0), *THROUGHPUT])
    for k in range(60):
        looked(alerts, Scene(closed=True).at(p95=90, commands_per_second=9e9), T + k)
    assert alerts.states() == {"slow": "ok", "low_throughput": "ok"}
    alerts = Alerts([rule(0, 0)])
    looked(alerts, Scene().at(p95=90), T)
    assert not looked(alerts, Scene(closed=True).at(p95=1), T + 1), "nor is anything resolved by it"
    assert alerts.states() == {"slow": "firing"}


def test_a_monitor_that_cannot_read_while_a_closed_loop_goes_on_says_nothing_of_its_rate() -> None:
    state, alerts = State(window_s=5), Alerts(THROUGHPUT)
    watched = Watched(run_id="r1", status="loading", began=T, duration_s=600.0, is_closed_loop=True)
    due = np.arange(1000) * NS_PER_S // 200
    columns = [due * 0, due, due, due, due, due + 1, due * 0, due * 0 + packed(Outcome.OK, Phase.STEADY, 1, 1)]
    state.add(News(t=T + 5, watched=watched, rows=np.column_stack(columns)))
    assert not alerts.look(T + 5, state)
    for k in range(6, 60):
        state.add(News(t=T + k, watched=watched, error="the spool cannot be read"))
        assert not alerts.look(T + k, state)


def test_nothing_watched_yet_is_nothing_to_say() -> None:
    state = State(Targets.production())
    assert Alerts(rules_of(Targets.production())).look(T, state) == []


def test_a_real_state_fires_at_slow_rows_and_resolves_with_the_end_of_the_load() -> None:
    """Of a target as the state holds it, and of a limit that is none of its targets."""
    targets = Targets.of("p95 < 50ms")
    rules = [*rules_of(targets), rule(5, name="far too slow", threshold=Threshold.parse("p99 < 80ms"))]
    state, alerts, found = State(targets, window_s=10.0), Alerts(rules), []
    for k in range(1, 21):
        due = (k - 1) * NS_PER_S + np.arange(200) * NS_PER_S // 250
        slow = 10 if k <= 5 else 90
        columns = [np.arange(200) + 200 * k, due, due, due, due, due + slow * NS_PER_S // 1000, due * 0]
        rows = np.column_stack([*columns, np.full(200, packed(Outcome.OK, Phase.STEADY, 1, 1))])
        watched = Watched(run_id="r1", status="loading" if k < 20 else "complete", began=T, duration_s=20.0)
        state.add(News(t=T + k, watched=watched, rows=rows if k < 20 else rows[:0]))
        found += [(k, a.name, a.state, a.detail) for a in alerts.look(T + k, state)]
    notices = [(name, what, detail) for _, name, what, detail in found if what != "pending"]
    assert sorted(notices) == [
        ("far too slow", "firing", ""),
        ("far too slow", "resolved", "the load ended"),
        ("high_latency", "firing", ""),
        ("high_latency", "resolved", "the load ended"),
    ]
    assert {k for k, _, what, _ in found if what == "resolved"} == {20}
    assert all(k > 6 for k, _, what, _ in found if what == "firing")


# properties

ANSWERS = st.lists(st.sampled_from("xx.? "), max_size=200)
STEPS = st.lists(st.sampled_from([0.0, 0.5, 1.0, 1.0, 1.0, 7.0, 45.0, -3.0, -4000.0, 90.0]), min_size=200, max_size=200)


@settings(deadline=None, max_examples=60)
@given(
    answers=ANSWERS,
    steps=STEPS,
    for_s=st.sampled_from([0, 1, 3, 10]),
    resolve_for_s=st.sampled_from([0, 2]),
    cooldown_s=st.sampled_from([0, 5, 60, 300]),
    switched=st.sets(st.integers(0, 199), max_size=4),
)
def test_whatever_happens_notices_keep_their_distance_and_their_order(
    answers: list[str], steps: list[float], for_s: int, resolve_for_s: int, cooldown_s: int, switched: set[int]
) -> None:
    alerts = Alerts([rule(for_s, resolve_for_s, cooldown_s)])
    now, passed, told, notices = T, 0.0, [], []
    values = {"x": 90.0, ".": 10.0, "?": math.nan, " ": math.nan}
    for k, (answer, step) in enumerate(zip(answers, steps, strict=False)):
        now, passed = now + step, passed + (max(step, 0.0) if k else 0.0)
        alerts.enabled = alerts.enabled != (k in switched)
        scene = Scene().at(p95=values[answer])
        scene.is_loaded = answer != " "
        found = looked(alerts, scene, now)
        assert alerts.enabled or not found
        told += [passed for a in found if a.state == "firing"]
        notices += [a.state for a in found if is_notice(a)]
        assert all(a.t == now and (a.since <= now or min(steps[: k + 1]) < 0) for a in found)
    assert all(b - a >= cooldown_s - 1e-6 for a, b in pairwise(told))
    assert not any(a == b == "resolved" for a, b in pairwise(notices))
    assert notices[:1] != ["resolved"]
    if not switched:
        assert not any(a == b for a, b in pairwise(notices))


@settings(deadline=None, max_examples=8)
@given(period=st.integers(1, 40), seed=st.integers(0, 1000))
def test_a_flapping_figure_gives_few_lines_however_it_flaps(period: int, seed: int) -> None:
    seconds, alerts, found = 1800, Alerts([rule(2, 2, 300)]), []
    for k in range(seconds):
        bad = (k + seed) % period < period / 2
        found += looked(alerts, Scene().at(p95=90 if bad else 10), T + k)
    cooldowns = seconds / 300
    assert sum(is_notice(a) for a in found) <= 2 * (cooldowns + 1)
    assert len(found) <= 4 * (cooldowns + 1) + seconds / 60 + 1


# rules


def test_the_chapters_three_rules_come_from_the_targets() -> None:
    rules = {r.name: r for r in rules_of(Targets.production())}
    assert {name: (r.threshold.name, str(r.threshold)) for name, r in rules.items()} == {
        "low_throughput": ("commands_per_second", "> 100/s"),
        "high_latency": ("p95", "< 50 ms"),
        "high_memory": ("memory", "< 1,024 MiB"),
    }
    assert {(r.for_s, r.cooldown_s, r.severity, r.enabled) for r in rules.values()} == {(10, 300, "warning", True)}
    assert rules_of(None) == [] and rules_of(Targets.of("p99 < 1s")) == []


def written(tmp_path: Path, text: str) -> str:
    path = tmp_path / "rules.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_rules_from_a_file_with_defaults_and_with_every_target(tmp_path: Path) -> None:
    file = written(
        tmp_path,
        """all = true
        for_s = 20
        [[rules]]
        name = "many conflicts"
        expect = "conflicts/attempts < 1%"
        severity = "critical"
        cooldown_s = 60
        [[rules]]
        name = "few events"
        expect = "events_per_second > 1000"
        for_s = 5
        enabled = false
        """,
    )
    rules = {r.name: r for r in rules_of(Targets.of("p95 < 50ms", "p99 < 100ms"), file)}
    assert list(rules) == ["many conflicts", "few events", "high_latency", "p99"]
    assert [r.for_s for r in rules.values()] == [20, 5, 20, 20]
    assert (rules["many conflicts"].severity, rules["many conflicts"].cooldown_s) == ("critical", 60)
    assert not rules["few events"].enabled


RULE = '[[rules]]\nname = "slow"\nexpect = "p95 < 50ms"\n'


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("rules = 3", "rules are tables"),
        ("[[rules]]\nexpect = 'p95 < 50ms'", "rule 1: give it a name"),
        ("[[rules]]\nname = 'a'", "rule 1 ('a'): write what should hold as expect"),
        ("[[rules]]\nname = 'a'\nexpect = 'p95 below 50'", "rule 1 ('a'): threshold 'p95 below 50'"),
        ("[[rules]]\nname = 'a'\nexpect = 'p94 < 50ms'", "rule 1 ('a'): unknown figure 'p94'"),
        ("[[rules]]\nname = 'a'\nwhen = 'p95 < 50ms'", "unknown key 'when'"),
        (RULE + "for_s = -1", "for_s is '-1'; give seconds from 0 to 86,400"),
        (RULE + "cooldown_s = 'long'", "cooldown_s is 'long'"),
        (RULE + "for_s = nan", "for_s is 'nan'"),
        (RULE + "for_s = true", "for_s is 'True'"),
        (RULE + "severity = 'fatal'", "give one of info, warning, critical"),
        (RULE + "enabled = 1", "enabled is '1'; give true or false"),
        (RULE + RULE, "two rules are called 'slow'"),
        ("all = 'yes'\n" + RULE, "all is 'yes'; give true or false"),
        ("windows = 3\n" + RULE, "unknown key 'windows'"),
        ("", "has no rules"),
        ("[[rules]", "is not TOML"),
        (f"[[rules]]\nname = '{'x' * 200}'\nexpect = 'p95 < 50ms'", "text of 1 to 100 characters"),
    ],
)
def test_a_mistake_in_a_file_says_where_and_how_to_mend_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, says: str
) -> None:
    written(tmp_path, text)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as error:
        rules_of(None, "rules.toml")
    assert says in str(error.value) and "rules.toml" in str(error.value) and "\n" not in str(error.value)


def test_a_file_that_is_not_there_or_not_text_is_a_mistake_of_whoever_named_it(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        rules_of(None, "nowhere.toml")
    (tmp_path / "rules.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="is not TOML"):
        rules_of(None, str(tmp_path / "rules.toml"))


def test_a_file_is_found_by_its_name_among_the_projects_own() -> None:
    folder = data_folder() / "alerts"
    folder.mkdir(parents=True)
    (folder / "mine.toml").write_text(RULE)
    assert [r.name for r in rules_of(None, "mine.toml")] == ["slow"]


def test_the_files_that_come_with_the_project_are_right() -> None:
    files = sorted((Path(__file__).parent.parent / "data" / "alerts").glob("*.toml"))
    assert files and all(rules_of(Targets.production(), str(file)) for file in files)


def test_times_for_people() -> None:
    assert [said_s(s) for s in (0, 0.00726, 0.9, 12, 59.4, 59.6, 60, 185, 7800)] == [
        "0 s",
        "less than 1 s",
        "1 s",
        "12 s",
        "59 s",
        "1 min",
        "1 min",
        "3 min 5 s",
        "2 h 10 min",
    ]


# the history


def alert(k: int = 0, state: str = "firing", run_id: str = "r1", **more: Any) -> Alert:
    return Alert(t=T + k, name="slow", severity="warning", state=state, text=f"text {k}", run_id=run_id, **more)


def test_the_lab_keeps_what_was_alerted_and_what_became_of_telling_it(lab: Lab) -> None:
    history = History(lab)
    fired = alert(0, value=90.0, limit="< 50 ms", detail="once")
    assert history.add([alert(0, "pending"), fired, alert(9, "resolved"), alert(5, "silenced", "r2")])
    history.delivered(fired, "env:A", "delivered")
    history.delivered(fired, "env:B", "failed after 3 tries: it answered 500")
    assert lab.recover() == []
    rows = lab.alerts().rows(named=True)
    assert [(r["state"], r["run_id"]) for r in rows] == [("firing", "r1"), ("silenced", "r2"), ("resolved", "r1")]
    assert rows[0]["alerted_at"].timestamp() == T
    assert rows[0]["delivered"] == "env:A: delivered; env:B: failed after 3 tries: it answered 500"
    assert (rows[0]["value"], rows[0]["limit_text"], rows[0]["detail"]) == (90.0, "< 50 ms", "once")
    assert lab.alerts("r2")["state"].to_list() == ["silenced"]
    assert not list(lab.spool.iterdir())


def test_what_became_of_it_may_come_later_than_the_lab_took_it_in(lab: Lab) -> None:
    history = History(lab)
    history.add([alert()])
    assert lab.take_alerts() == 1
    history.delivered(alert(), "env:A", "delivered")
    assert lab.take_alerts() == 0
    assert lab.alerts()["delivered"].to_list() == ["env:A: delivered"]


def killed(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def test_two_monitors_that_say_the_same_are_two(lab: Lab) -> None:
    History(lab).add([alert()])
    History(lab).add([alert()])
    assert lab.take_alerts() == 2


def test_killed_between_taking_in_and_removing_each_line_is_there_once(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    History(lab).add([alert(k) for k in range(5)])

    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", killed)
        with pytest.raises(KeyboardInterrupt):
            lab.take_alerts()
    assert len(lab.alerts()) == 5 and len(list(lab.spool.iterdir())) == 1
    History(lab).add([alert(7)])
    assert lab.take_alerts() == 1
    assert len(lab.alerts()) == 6 and not list(lab.spool.iterdir())


def test_killed_before_the_lab_had_them_nothing_is_lost(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    History(lab).add([alert(0)])
    with monkeypatch.context() as patched:
        patched.setattr(alert_lines, "take_in", killed)
        with pytest.raises(KeyboardInterrupt):
            lab.take_alerts()
    lab.check()
    assert len(lab.alerts()) == 1


@pytest.mark.parametrize("cut", [2, 30, 150])
def test_a_monitor_killed_while_it_wrote_loses_that_line_alone(lab: Lab, cut: int) -> None:
    History(lab).add([alert(0), alert(1)])
    file = lab.spool / ALERTS_FILE
    file.write_bytes(file.read_bytes()[:-cut])
    History(lab).add([alert(2)])
    assert lab.take_alerts() == 2
    assert lab.alerts()["text"].to_list() == ["text 0", "text 2"]


def test_a_line_of_somebody_else_is_left_out(lab: Lab) -> None:
    lab.spool.mkdir(parents=True)
    junk = [b"\xff\xfe", b"3", b'{"alert_id": 3}', b'{"state":"firing"}', b"\0" * 20]
    (lab.spool / ALERTS_FILE).write_bytes(b"\n".join(junk))
    far = json.dumps({"alert_id": "far", "state": "firing", "alerted_at": 1e300}).encode()
    with (lab.spool / ALERTS_FILE).open("ab") as file:
        file.write(b"\n" + far + b"\n")
    History(lab).add([alert()])
    assert lab.take_alerts() == 2
    assert lab.alerts()["alerted_at"].null_count() == 1


def test_who_holds_the_file_keeps_nobody_waiting_and_nothing_is_lost(lab: Lab) -> None:
    history = History(lab)
    history.add([alert(0)])
    with (lab.spool / ALERTS_FILE).open() as held:
        fcntl.flock(held, fcntl.LOCK_SH)
        assert not history.add([alert(1)])
        history.delivered(alert(0), "env:A", "delivered")
    assert history.add()
    assert lab.take_alerts() == 2
    assert lab.alerts()["delivered"].to_list()[0] == "env:A: delivered"


def test_a_writer_whose_file_is_set_aside_before_it_has_the_lock_writes_into_the_new_one(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    History(lab).add([alert(0)])
    opened, aside = os.open, lab.spool / f"{ALERTS_FILE}.taken-1"

    def overtaken(path: Path, *more: Any) -> int:
        file = opened(path, *more)
        if not aside.exists():
            path.rename(aside)
        return file

    with monkeypatch.context() as patched:
        patched.setattr(alert_lines.os, "open", overtaken)
        assert History(lab).add([alert(1)])
    assert aside.read_bytes().count(b"\n") == 1
    assert lab.take_alerts() == 2


def test_what_became_of_telling_it_may_be_taken_in_before_the_change(lab: Lab) -> None:
    history, fired = History(lab), alert(0)
    history.delivered(fired, "env:A", "delivered")  # quicker than whoever writes the change down
    assert history.take_in() == 1
    history.add([fired])
    assert history.take_in() == 0
    assert lab.alerts()[["text", "delivered"]].rows() == [("text 0", "env:A: delivered")]


async def test_the_lab_takes_in_a_lone_result_too_and_rests_in_between(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, waited, taken = process._Kept(lab, is_beside=False), list[float](), list[Any]()
    take_in = Lab.take_alerts
    monkeypatch.setattr(Lab, "take_alerts", lambda self: taken.append(take_in(self)) or taken[-1])

    async def passes(seconds: float) -> None:
        waited.append(seconds)
        if len(waited) == 2:
            kept.history.delivered(alert(0), "env:A", "delivered")
        if len(waited) == 5:
            raise asyncio.CancelledError

    monkeypatch.setattr(process, "sleep_s", passes)
    kept.add([alert(0)])
    with pytest.raises(asyncio.CancelledError):
        await kept.taking_in()
    assert taken == [1, 0] and waited == [process.TAKE_EVERY_S] * 5, "nothing new, nothing opened"
    assert lab.alerts()["delivered"].to_list() == ["env:A: delivered"]
    kept.close()
    await process._Kept(lab, is_beside=True).taking_in()
    assert len(waited) == 5


def test_the_monitor_takes_in_only_if_the_lab_is_free(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    history = History(lab)
    history.add([alert()])
    monkeypatch.setattr("eventcore_lab.monitor.history.TAKE_TIMEOUT_S", 0.01)
    lab.path.write_text("not a database")
    assert history.take_in() == 0
    lab.path.unlink()
    assert history.take_in() == 1


def test_a_disk_that_takes_nothing_stops_nobody(lab: Lab) -> None:
    lab.spool.parent.mkdir(parents=True, exist_ok=True)
    lab.spool.write_text("a file where the spool should be")
    history = History(lab)
    for k in range(1100):
        assert not history.add([alert(k)])
    assert len(history._unwritten) == 1000
    lab.spool.unlink()
    assert history.close() and lab.take_alerts() == 1000


def test_a_file_that_nobody_takes_in_stops_growing(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alert_lines, "FILE_BYTES_MAX", 100)
    history = History(lab)
    assert history.add([alert(0)]) and not history.add([alert(1)])
    assert lab.take_alerts() == 1
    assert history.add() and lab.take_alerts() == 1


def test_hostile_text_is_kept_as_it_is_but_for_what_cannot_be_written(lab: Lab) -> None:
    text = "'; DROP TABLE alerts; -- \n\0 \ud800 <script> ‮"
    History(lab).add([alert(0, detail=text), alert(1, detail="x" * 10_000)])
    lab.take_alerts()
    assert lab.alerts()["detail"].to_list() == [text.replace("\ud800", "?"), "x" * 2000]


def test_a_lab_of_an_older_version_gets_the_table(lab: Lab) -> None:
    lab.sql("SELECT 1")
    with duckdb.connect(str(lab.path)) as con:
        con.execute("DROP TABLE alerts")
    assert len(lab.alerts()) == 0
