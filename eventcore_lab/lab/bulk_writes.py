"""Ways to store many events put side by side, by how many of them want to be stored at a time."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

from eventcore_lab.lab import claims
from eventcore_lab.lab.arms import Arm, Value, arms, ratio, value_of
from eventcore_lab.lab.claims import Claim
from eventcore_lab.lab.measures import Run
from eventcore_lab.lab.sentences import NOTHING_MEASURED, Sentence
from eventcore_lab.lab.wording import named, said, told

EACH = "an append each"
GROUPED = "group commit"
ONE = "one append of all"
MANY = "independent appends, one round trip"
COPY = "COPY"
"""The labels of the ways that are compared."""
SHORT = {MANY: "many, one round trip"}
AT_A_TIME = "events at a time"
RATE, MEDIAN = "events_per_second", "p50"
CHAPTERS_BATCH = 1000
"""What the chapter calls the optimal batch size for PostgreSQL."""


def at_a_time(runs: Sequence[Run]) -> list[Run]:
    """The runs, each with the number of events that want to be stored at a time as a column of its own: the events of an
    operation times the callers."""
    return [_with(run, AT_A_TIME, _number(run, "batch") * _number(run, "concurrency")) for run in runs]


def _with(run: Run, name: str, value: Value) -> Run:
    more = copy.copy(run)
    more.row = {**run.row, name: value}
    return more


def _number(run: Run, option: str) -> int:
    return int(value_of(run, option, 1))


def _ways(runs: Sequence[Run]) -> dict[str, dict[Value, Arm]]:
    """Way → events at a time → its runs."""
    return {str(way.value): {a.value: a for a in arms(way.runs, AT_A_TIME)} for way in arms(runs, "label")}


def checked(runs: Sequence[Run]) -> list[Run]:
    """Without COPY, which checks nothing: it is the limit, and no way to store events that somebody could choose."""
    return [run for run in runs if run.row["label"] != COPY]


def times(runs: Sequence[Run]) -> Sentence:
    """The way that has the most events that all ways were given stored soonest, and how long the others take."""
    ways = _ways(runs)
    common = set.intersection(*(set(arms_of) for arms_of in ways.values())) if ways else set()
    if not common:
        return NOTHING_MEASURED
    at = max(common, key=float)
    found = {way: e for way, by in ways.items() if not math.isnan((e := by[at].estimate(MEDIAN)).value)}
    soonest = sorted(found, key=lambda way: found[way].value)
    if not soonest:
        return NOTHING_MEASURED
    first, *rest = [f"{way} {told(found[way], MEDIAN)}" for way in soonest]
    text = f"**Of {named(at)} events at a time, an operation takes in the median: {first}**"
    return Sentence(text + "".join(f"; {t}" for t in rest) + ".")


def limit(runs: Sequence[Run]) -> Sentence:
    """How many times as long as COPY of the same rows an append of them all takes."""
    ways = _ways(runs)
    copies, ones = ways.get(COPY, {}), ways.get(ONE, {})
    found = [(at, e) for at in ones if at in copies and (e := ratio(ones[at].runs, copies[at].runs, MEDIAN)).value > 0]
    if not found:
        return Sentence("The same rows were not copied: this store takes no COPY, so the limit is not known.")
    (at, e), rest = found[-1], found[:-1]
    text = f"**{_append(at)} takes {said(e, 'times')} as long as COPY of the same rows, unchecked**"
    return Sentence(text + "".join(f"; of {named(n)}, {said(r, 'times')}" for n, r in reversed(rest)) + ".")


def _append(events: Value) -> str:
    return f"An append of {named(events)} event{'' if events == 1 else 's'}"


def claimed(runs: Sequence[Run]) -> list[Claim]:
    """That each way to put events together moves several times what single appends do, that the chapter's batch size is near
    the best, and that an append is not far from COPY. What was not run has no claim."""
    ways = _ways(runs)
    each, ones, copies = (ways.get(way, {}) for way in (EACH, ONE, COPY))
    listed = []
    hundred = next((at for at in sorted(each, key=float) if float(at) >= 100), max(each, key=float, default=1))
    for way, times_more in ((ONE, 3.0), (MANY, 2.0), (GROUPED, 2.0)):
        by = ways.get(way, {})
        if hundred in by and hundred in each and float(hundred) > 1:
            text = f"{way}, {named(hundred)} events at a time, moves at least {times_more:g} times what {EACH} moves"
            listed.append(
                claims.claim("batching", text, by[hundred].runs, each[hundred].runs, RATE, at_least=times_more)
            )
    best = max(ones, key=lambda at: _rate(ones[at]), default=0)
    if CHAPTERS_BATCH in ones and best != CHAPTERS_BATCH:
        text = f"appends of {CHAPTERS_BATCH:,} events move at least 0.9 times what the best size, {named(best)}, moves"
        listed.append(claims.claim("batching", text, ones[CHAPTERS_BATCH].runs, ones[best].runs, RATE, at_least=0.9))
    both = [at for at in ones if at in copies and float(at) <= CHAPTERS_BATCH]
    if both:
        at = max(both, key=float)
        text = f"{_append(at)[0].lower()}{_append(at)[1:]} takes at most twice as long as COPY of the same rows"
        listed.append(claims.claim("batching", text, ones[at].runs, copies[at].runs, MEDIAN, at_most=2))
    return listed


def _rate(arm: Arm) -> float:
    value = arm.estimate(RATE).value
    return -math.inf if math.isnan(value) else value
