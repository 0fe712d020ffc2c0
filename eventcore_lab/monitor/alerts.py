"""When somebody is told: rules that hold a figure of the sliding window to a limit, and the course each of them takes.

`Alerts.look` is asked once a second, waits for nothing and knows the time only from its argument. What it finds is handed on by
delivery.py and kept by history.py. The course of a rule:

    ok → pending            the figure misses its limit
    pending → ok            one look at which it is kept
    pending → firing        missed for `for_s` without a break
    firing → ok             kept for `resolve_for_s` without a break, or the load ended, or nobody looks at it any more

A look that cannot be judged (it failed, or shows what was a while ago; nothing to compute the figure from, warming up, too few
samples, everything that was offered was answered, a latency of a closed loop) is neither: it adds to no time, and a pending or
firing rule stays as it is. A break of LOOK_GAP_MAX_S without a judged look begins the time anew. Whoever was told of `firing`
is told of its end once: `resolved`, or `unwatched` where another run is followed, or the monitor ends, and nobody knows. Within
`cooldown_s` of having been told, the same rule does not tell again, which `silenced` says once. If it still fires when that is
over, it tells then.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from eventcore_lab.lab.measures import PERCENTILES, UNITS
from eventcore_lab.lab.targets import Targets
from eventcore_lab.monitor.facts import Alert, Held, Watched
from eventcore_lab.monitor.judging import OBSERVABLE
from eventcore_lab.monitor.rules import Rule as Rule
from eventcore_lab.monitor.rules import rules_of as rules_of
from eventcore_lab.monitor.state import State
from eventcore_lab.monitor.window import OBSERVED
from eventcore_lab.spec import shown

LOOK_GAP_MAX_S = 30.0
PENDING_EVERY_S = 60.0
"""A rule that comes and goes is shown as pending this often, at most."""
ABOUT_MAX = 100
"""Characters of a store, a workload or a pacer in what an alert is about."""
THE_LOAD_ENDED = "the load ended"
ANOTHER_RUN = "no longer followed: another run is under way"
NOT_TOLD = "nobody was told of it"


def is_over(state: State) -> bool:
    """Whether no load is under way; of an existing store nobody knows, so it never is."""
    return not state.is_loaded and (state.watched is None or state.watched.status != OBSERVED)


def is_notice(alert: Alert) -> bool:
    """Whether somebody is to be told of this change; the others are shown and kept."""
    return alert.state == "firing" or (alert.state in ("resolved", "unwatched") and alert.detail != NOT_TOLD)


def in_vain(rules: Sequence[Rule]) -> str:
    """In one line which of the rules can never fire where a store is only observed, and why; "" if each can."""
    whys = [(rule.name, why) for rule in rules if rule.enabled and (why := _never(rule))]
    if not whys:
        return ""
    ending = "cannot be judged of a store that is only observed"
    if len(whys) == 1:
        [(name, why)] = whys
        return f"rule {shown(name)} {ending} ({why}); it will never fire"
    named = ", ".join(f"{shown(name)} ({why})" for name, why in whys)
    return f"rules {named} {ending}; they will never fire"


def _never(rule: Rule) -> str:
    figure = rule.threshold.name
    if figure in PERCENTILES:
        return "no latency is known"
    if figure not in OBSERVABLE:
        return f"no {figure} is known"
    return "" if rule.threshold.is_max else "more may not have been asked for"


class _Course:
    """Where one rule stands. `lasted_s`: how long the answer has been the same, in looks that were judged."""

    def __init__(self, rule: Rule) -> None:
        self.rule, self.targets = rule, Targets("alerts", (rule.threshold,))
        self.told_at: float | None = None
        self.shown_at: float | None = None
        self.silenced = 0
        self.end()

    def end(self) -> None:
        """Back to ok; when it was last told of stays."""
        self.phase, self.since, self.run_id, self.value, self.about = "ok", 0.0, "", None, ""
        self.is_told = self.is_silenced = self.was_silent = False
        self.answer, self.lasted_s, self.judged_at, self.was_judged = "", 0.0, 0.0, False

    phase: str
    since: float
    run_id: str
    value: float | None
    about: str

    def lasts(self, answer: str, t: float) -> float:
        """Seconds for which the answer has been this one without a break."""
        if answer != self.answer or t - self.judged_at > LOOK_GAP_MAX_S:
            self.lasted_s = 0.0
        elif self.was_judged:
            self.lasted_s += t - self.judged_at
        self.answer, self.judged_at, self.was_judged = answer, t, True
        return self.lasted_s

    def silent_s(self, t: float) -> float:
        """For how long it may not tell yet."""
        return 0.0 if self.told_at is None else max(self.told_at + self.rule.cooldown_s - t, 0.0)


class Alerts:
    """Every rule's course. `enabled` may be switched at any time: off, nothing is said and every course begins anew; when
    somebody was last told is not forgotten."""

    def __init__(self, rules: Sequence[Rule], enabled: bool = True) -> None:
        self.rules, self.enabled = tuple(rules), enabled
        self._courses = [_Course(rule) for rule in self.rules if rule.enabled]
        self._t, self._seen = 0.0, math.nan

    def states(self) -> dict[str, str]:
        """Of each rule `ok`, `pending`, `firing`, or `off`."""
        found = {rule.name: "off" for rule in self.rules}
        return found | {c.rule.name: c.phase for c in self._courses if self.enabled}

    def look(self, now: float, state: State) -> list[Alert]:
        """What has changed, as of `now` (Unix time). A clock that was set back only makes this look add to no time."""
        self._t += max(now - self._seen, 0.0) if not math.isnan(self._seen) else 0.0
        self._seen = now
        if not self.enabled:
            for course in self._courses:
                course.end()
            return []
        found = [self._step(course, now, state) for course in self._courses]
        return [alert for alerts in found for alert in alerts]

    def _step(self, course: _Course, now: float, state: State) -> list[Alert]:
        run_id = state.watched.run_id if state.watched is not None else ""
        found = []
        if course.phase != "ok" and run_id and course.run_id != run_id:
            found += self._unwatched(course, now, ANOTHER_RUN)  # had it ended, that would have been seen before
        elif course.phase != "ok" and is_over(state):
            found += self._resolved(course, now, THE_LOAD_ENDED)
        if is_over(state):
            return found
        if state.error or state.catching_up:
            course.was_judged = False
            return found
        [held] = state.hold(course.targets)
        if held.status == "fail":
            course.run_id, course.value, course.about = run_id, held.value, about(state.watched, state.window_s)
            return found + self._missed(course, now)
        if held.status == "pass":
            return found + self._kept(course, now, held)
        course.was_judged = False
        return found

    def leave(self, now: float) -> list[Alert]:
        """The end of the monitor: of whatever fires it is said that nobody looks any more. Every course begins anew."""
        fires = [course for course in self._courses if course.phase == "firing"]
        why = "the monitor ends; {} was still firing"
        return [alert for c in fires for alert in self._unwatched(c, now, why.format(c.rule.name))]

    def _missed(self, course: _Course, now: float) -> list[Alert]:
        rule, lasted_s, found = course.rule, course.lasts("fail", self._t), []
        if course.phase == "ok":
            course.phase, course.since = "pending", now
            if rule.for_s and (course.shown_at is None or self._t - course.shown_at >= PENDING_EVERY_S):
                course.shown_at = self._t
                found.append(_alert(course, now, "pending", _missing(course), f"fires after {said_s(rule.for_s)}"))
        if course.phase == "pending":
            course.since = now if not lasted_s else course.since
            course.phase = "firing" if lasted_s >= rule.for_s else "pending"
            if course.phase == "firing" and course.silent_s(self._t):
                course.is_silenced, course.was_silent = not course.silenced, True
                course.silenced += 1
                found += self._silenced(course, now) if course.is_silenced else []
        if course.phase == "firing" and not course.is_told and not course.silent_s(self._t):
            found.append(self._told(course, now, lasted_s))
        return found

    def _told(self, course: _Course, now: float, lasted_s: float) -> Alert:
        course.is_told, course.told_at = True, self._t
        before, course.silenced = course.silenced - course.was_silent, 0
        detail = f"fired {before} more time{'s' if before > 1 else ''} since it was last told of" if before else ""
        lasted = f"for {said_s(lasted_s)} now" if lasted_s >= 1 else "just now"
        return _alert(course, now, "firing", f"{_missing(course)}, {lasted}", detail)

    def _silenced(self, course: _Course, now: float) -> list[Alert]:
        detail = f"not told: somebody was told less than {said_s(course.rule.cooldown_s)} ago; silent for "
        return [_alert(course, now, "silenced", _missing(course), detail + said_s(course.silent_s(self._t)))]

    def _kept(self, course: _Course, now: float, held: Held) -> list[Alert]:
        lasted_s = course.lasts("pass", self._t)
        if course.phase == "pending":
            course.phase = "ok"
        elif course.phase == "firing" and lasted_s >= course.rule.resolve_for_s:
            course.value = held.value
            return self._resolved(course, now, "")
        return []

    def _resolved(self, course: _Course, now: float, why: str) -> list[Alert]:
        """The end of a course; said to whoever was told of its beginning, and shown to whoever was shown it."""
        what = f"{course.rule.threshold.name} {said(course, 'was' if why else 'is')}"
        text = f"{why} while {what}, limit {course.rule.threshold}" if why else f"{what} again"
        return self._over(course, now, "resolved", text, why)

    def _unwatched(self, course: _Course, now: float, why: str) -> list[Alert]:
        """The end of looking at it, of which nobody knows how it goes on."""
        threshold = course.rule.threshold
        text = f"{why}; {threshold.name} {said(course, 'was')}, limit {threshold}"
        return self._over(course, now, "unwatched", text, "")

    def _over(self, course: _Course, now: float, state: str, text: str, detail: str) -> list[Alert]:
        is_told, is_shown = course.is_told, course.is_told or course.is_silenced
        lasted = said_s(max(now - course.since, 0.0))
        alert = _alert(course, now, state, f"{text}, after {lasted}", detail if is_told else NOT_TOLD)
        course.end()
        return [alert] if is_shown else []


def about(watched: Watched | None, window_s: float) -> str:
    """What an alert is about, in a line for whoever has only its message: store, workload, pacer; over which window."""
    row = watched.row if watched is not None else {}
    facts = {"store": watched.store if watched is not None else "", **{k: row.get(k) for k in ("workload", "pacer")}}
    named = ", ".join(f"{name} {str(value)[:ABOUT_MAX]}" for name, value in facts.items() if value)
    return f"{named}; window {said_s(window_s)}" if named else f"window {said_s(window_s)}"


def _alert(course: _Course, now: float, state: str, text: str, detail: str = "") -> Alert:
    rule = course.rule
    return Alert(
        t=now,
        name=rule.name,
        severity=rule.severity,
        state=state,
        text=text,
        value=course.value,
        limit=str(rule.threshold),
        since=course.since or now,
        run_id=course.run_id,
        detail=detail,
        about=course.about,
    )


def _missing(course: _Course) -> str:
    limit = course.rule.threshold
    amount = str(limit)[2:]
    return f"{limit.name} {said(course)}; it should be {'below' if limit.is_max else 'above'} {amount}"


def said(course: _Course, verb: str = "is") -> str:
    """The value for people, three digits of it, and no more than two after the point."""
    value, unit = course.value, UNITS[course.rule.threshold.name]
    if value is None:
        return "is not known"
    if math.isinf(value):
        return "has no end yet: that many operations are still without an answer"
    return f"{verb} {_digits(value)}{'' if unit == '/s' else ' '}{unit}"


def _digits(value: float) -> str:
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    if abs(value) >= 1 or not value:
        return f"{value:.3g}"
    return f"{value:.2g}" if abs(value) >= 0.01 else "about 0"


def said_s(seconds: float) -> str:
    """A time for people: less than 1 s, 12 s, 3 min 5 s, 2 h 10 min."""
    whole = math.floor(seconds + 0.5)
    if whole < 60:
        return f"{whole} s" if whole or not seconds else "less than 1 s"
    parts = (whole // 3600, "h"), (whole % 3600 // 60, "min"), (whole % 60, "s")
    return " ".join(f"{n} {unit}" for n, unit in parts if n)
