"""Claims that a notebook puts to the test: that one way is so many times another, by a figure. Each is held, not held or not
settled; what was found is kept in the Lab under the topic that it is evidence for.

A claim that is not held is a finding and no failure: verdicts fail by targets and invariants.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from msgspec import Struct, structs

from eventcore_lab.lab.arms import TRIALS_MIN, ratio
from eventcore_lab.lab.measures import UNITS, Run
from eventcore_lab.lab.sentences import Sentence
from eventcore_lab.lab.stats import Estimate
from eventcore_lab.lab.targets import Judgement, Targets, Verdict, judge
from eventcore_lab.lab.wording import digits
from eventcore_lab.spec import UsageError, unknown

TOPICS = {
    "pooling": "A pool of the right size: connections bound what a server can do, more only wait",
    "batching": "Batch operations: fewer round trips to storage",
    "reading": "Read what is needed, in pages",
    "caching": "Cache wisely: remember expensive states, not everything",
    "streaming": "Stream large datasets: do not load everything into memory",
    "parallelism": "Execute independent commands in parallel",
    "async_batching": "Put concurrent commands together",
    "projections": "Update projections incrementally, serve reads from materialised views",
    "memory": "Memory stays bounded over many commands",
    "monitoring": "Measure first, monitor continuously",
    "load": "Test under load, with realistic workloads",
    "correctness": "It is still correct while it is fast",
}
"""The best practices and key strategies of EventCore's performance chapter, by the word that a claim is filed under."""


class Claim(Struct, frozen=True):
    """What was claimed, what was found, and by which run it can be looked up. `measured` is in `unit`, mostly `times`."""

    topic: str
    text: str
    limit: str
    measured: Estimate
    unit: str
    status: str
    reason: str
    run_id: str

    @property
    def judgement(self) -> Judgement:
        e = self.measured
        return Judgement(
            "claim",
            self.text,
            self.limit,
            e.value,
            e.low,
            e.high,
            self.unit,
            self.status,
            self.reason,
            self.run_id,
            self.topic,
        )


def claim(
    topic: str,
    text: str,
    of: Run | Sequence[Run],
    to: Run | Sequence[Run],
    figure: str = "commands_per_second",
    *,
    at_least: float | None = None,
    at_most: float | None = None,
) -> Claim:
    """That `figure` of the runs `of` is at least, or at most, so many times that of the runs `to`. It is not settled where
    there was too little for an interval: what is measured differs from one time to the next."""
    ours, theirs = ([r] if isinstance(r, Run) else list(r) for r in (of, to))
    if figure not in UNITS:
        raise unknown("figure", figure, UNITS)
    found = ratio(ours, theirs, figure)
    means = [_mean(runs, figure) for runs in (ours, theirs)]
    words = {"commands_per_second": "operations/s", "events_per_second": "events/s"}.get(figure, UNITS[figure])
    name = "" if figure in ("commands_per_second", "events_per_second") else f"{figure}: "
    reason = f"{name}{digits(means[0])} to {digits(means[1])} {words}"
    made = settled(topic, text, found, "times", reason, ours[0].run_id, at_least=at_least, at_most=at_most)
    return of_trials(made, min(len(ours), len(theirs)))


def of_trials(made: Claim, trials: int) -> Claim:
    """A claim about a ratio of what was measured, with what it rests on where that is not trials: not settled without an
    interval, and told with how few runs there are of each, for the interval is then from blocks of time within them."""
    if not made.measured.has_interval:
        reason = f"{made.reason}; too little was measured for an interval"
        return structs.replace(made, status="not settled", reason=reason)
    if trials >= TRIALS_MIN:
        return made
    runs = "one run" if trials == 1 else f"{trials} runs"
    return structs.replace(made, reason=f"{made.reason}; {runs} each")


def settled(
    topic: str,
    text: str,
    found: Estimate,
    unit: str,
    reason: str,
    run_id: str,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
) -> Claim:
    """A claim about any number with its interval: it is held if all of the interval is on the right side of the bound, not held
    if none is. A number without an interval is compared as it is."""
    if topic not in TOPICS:
        raise unknown("topic", topic, TOPICS)
    if (at_least is None) == (at_most is None):
        raise UsageError("a claim needs at_least or at_most")
    bound = at_least if at_least is not None else at_most
    assert bound is not None
    edges = [v for v in (found.low, found.high) if not math.isnan(v)] or [found.value]
    is_right = [v >= bound if at_least is not None else v <= bound for v in edges]
    status = "held" if all(is_right) else "not settled" if any(is_right) else "not held"
    if math.isnan(found.value):
        status = "not settled"
    sign = "≥" if at_least is not None else "≤"
    return Claim(topic, text, f"{sign} {bound:g} {unit}", found, unit, status, reason, run_id)


def concluded(title: str, claims: Sequence[Claim], runs: Sequence[Run], *found: Sentence) -> Verdict:
    """The claims with what the runs they come from have to say for themselves: a verdict that fails when an invariant does. Its
    answer is what was `found`, in short (see `Sentence.headline`), and how many of the claims held."""
    invariants = judge(Targets.of(name=title), *runs).judgements if runs else ()
    verdict = Verdict(title, (*[c.judgement for c in claims], *invariants))
    return structs.replace(verdict, answer=_answer(claims, verdict, found))


def _answer(claims: Sequence[Claim], verdict: Verdict, found: Sequence[Sentence]) -> str:
    """The sentence or two that somebody in a hurry reads."""
    broken = [j for j in verdict.judgements if j.status == "violated"]
    parts = [f"Not correct: {'; '.join(f'{j.name}: {j.reason}' for j in broken[:3])}"] if broken else []
    parts += [headline for headline in ["; ".join(sentence.headline for sentence in found)] if headline]
    return ". ".join([*parts, _tally(claims, has_answer=bool(parts))]) + "."


def _tally(claims: Sequence[Claim], has_answer: bool) -> str:
    """How many claims held; where there is no other answer, the first of each kind with what was found of it."""
    if not claims:
        return "No claim was put to the test: these settings leave nothing to compare"
    by_status = {s: [c for c in claims if c.status == s] for s in ("held", "not held", "not settled")}
    if has_answer:
        told = ", ".join(f"{len(those)} {status}" for status, those in by_status.items() if those)
        return f"Of {len(claims)} claim{'' if len(claims) == 1 else 's'} put to the test: {told}"
    parts = []
    for (_, those), word in zip(by_status.items(), ("Yes", "No", "Not settled"), strict=True):
        if those:
            more = f", and {len(those) - 1} more" if len(those) > 1 else ""
            parts.append(f"{word}: {those[0].text} ({those[0].judgement.shown}){more}")
    return ". ".join(parts)


def _mean(runs: Sequence[Run], figure: str) -> float:
    values = [v for run in runs if not math.isnan(v := run.figure(figure).estimate.value)]
    return sum(values) / len(values) if values else math.nan
