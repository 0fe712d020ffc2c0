"""Ways to read put side by side: pages of everything, several streams at a time, and one long stream."""

from __future__ import annotations

import math
from collections.abc import Sequence

from eventcore_lab.lab import claims
from eventcore_lab.lab.arms import Arm, Value, arms, ratio
from eventcore_lab.lab.claims import Claim
from eventcore_lab.lab.measures import Run
from eventcore_lab.lab.optimum import enough
from eventcore_lab.lab.sentences import NOTHING_MEASURED, Sentence
from eventcore_lab.lab.wording import digits, named, told

WAYS = ("one_by_one", "parallel", "joint")
NAMES: dict[Value, str] = {"one_by_one": "one by one", "parallel": "at the same time", "joint": "in one statement"}
RATE, MEDIAN = "events_per_second", "p50"


def price(runs: Sequence[Run]) -> Sentence:
    """What a page costs whatever is in it, and what each event in it costs, from the smallest and the largest page. A page may
    be larger than what is left to read: it is the events that came that count."""
    found = [(_events(a), a.value, e.value) for a in arms(runs, "limit") if (e := a.estimate(MEDIAN)).value > 0]
    if not found:
        return NOTHING_MEASURED
    (few, small, first), (many, large, last) = found[0], found[-1]
    text = f"**A page of {named(small)} takes {digits(first)} ms in the median, a page of {named(large)} {digits(last)} ms**"
    if many > few and last > first:
        each_us = 1000 * (last - first) / (many - few)
        text += f" ({digits(many)} events on average): an event costs {digits(each_us)} µs, and a page by itself as much as "
        text += f"{1000 * first / each_us:,.0f} events"
    return Sentence(text + ".")


def _events(arm: Arm) -> float:
    """How many events an operation read on average."""
    operations = arm.estimate("commands_per_second").value
    return arm.estimate(RATE).value / operations if operations > 0 else math.nan


def page_names(runs: Sequence[Run]) -> dict[Value, str]:
    """What the pages of a long stream are called beside a picture."""
    return {a.value: _page(a.value) for a in arms(runs, "page")}


def _by_way(several: Sequence[Run]) -> dict[Value, dict[str, Arm]]:
    """Streams at a time → way → its runs."""
    return {n.value: {str(a.value): a for a in arms(n.runs, "way")} for n in arms(several, "together")}


def fastest(several: Sequence[Run]) -> Sentence:
    """The way in which several streams come fastest, and how fast."""
    found = [(n, way, a.estimate(RATE)) for n, ways in _by_way(several).items() for way, a in ways.items()]
    known = [f for f in found if f[2].value > 0]
    if not known:
        return NOTHING_MEASURED
    n, way, rate = max(known, key=lambda f: f[2].value)
    return Sentence(f"several streams come fastest {named(way, NAMES)}, {told(rate, RATE)} with {named(n)} at a time.")


def long_stream(runs: Sequence[Run]) -> Sentence:
    """How long the whole stream takes at once and in pages."""
    found = {a.value: e for a in arms(runs, "page") if (e := a.estimate(MEDIAN)).value > 0}
    if not found:
        return Sentence("No long stream was read.")
    said = [f"{_page(at)} {told(e, MEDIAN)}" for at, e in sorted(found.items(), key=lambda f: f[1].value)]
    length = int(arms(runs, "events")[0].value)
    return Sentence(f"**A stream of {length:,} events takes {said[0]}**{''.join(f'; {t}' for t in said[1:])}.")


def _page(events: Value) -> str:
    return f"in pages of {named(events)}" if events else "whole"


def claimed(pages: Sequence[Run], several: Sequence[Run], lengthy: Sequence[Run]) -> list[Claim]:
    """That pages pay, that several streams in one statement beat the same in several, and that a long stream in pages costs
    little more than whole."""
    by_limit = {a.value: a for a in arms(pages, "limit")}
    listed = []
    if 10 in by_limit and 1000 in by_limit:
        text = "pages of 1,000 deliver at least 5 times the events of pages of 10"
        listed.append(claims.claim("reading", text, by_limit[1000].runs, by_limit[10].runs, RATE, at_least=5))
    if 1000 in by_limit and max(by_limit, key=float) != 1000:
        most = max(by_limit, key=float)
        text = f"pages of {named(most)} deliver at most 1.1 times the events of pages of 1,000"
        listed.append(claims.claim("reading", text, by_limit[most].runs, by_limit[1000].runs, RATE, at_most=1.1))
    for n, ways in _by_way(several).items():
        if n == 10 and set(WAYS) <= set(ways):
            for other, times in (("one_by_one", 2.0), ("parallel", 1.2)):
                text = f"{n} streams in one statement come at least {times:g} times as fast as {named(other, NAMES)}"
                listed.append(claims.claim("reading", text, ways["joint"].runs, ways[other].runs, RATE, at_least=times))
    by_page = {a.value: a for a in arms(lengthy, "page")}
    if 0 in by_page and 1000 in by_page:
        text = "a long stream in pages of 1,000 takes at most 1.25 times as long as whole"
        listed.append(claims.claim("reading", text, by_page[1000].runs, by_page[0].runs, MEDIAN, at_most=1.25))
    return listed


def settings(pages: Sequence[Run], several: Sequence[Run], lengthy: Sequence[Run]) -> Sentence:
    """What to set: the smallest page that delivers nearly the most, the way for several streams, the page of a long stream."""
    lines = [str(enough(pages, "limit", RATE, "Everything: in pages of {}"))] if pages else []
    by_way = _by_way(several)
    for n, ways in by_way.items():
        rates = {way: a.estimate(RATE) for way, a in ways.items() if a.estimate(RATE).value > 0}
        if len(rates) > 1 and n != 1:
            best = max(rates, key=lambda way: rates[way].value)
            lines.append(
                f"- {named(n)} streams at a time: **{named(best, NAMES)}** ({digits(rates[best].value)} events/s)."
            )
    found = {a.value: a for a in arms(lengthy, "page") if not math.isnan(a.estimate(MEDIAN).value)}
    if 0 in found and len(found) > 1:
        paged = {at: ratio(a.runs, found[0].runs, MEDIAN).value for at, a in found.items() if at}
        at = min(paged, key=lambda page: paged[page])
        lines.append(f"- A long stream: pages of **{named(at)}** take {paged[at]:.2f} times as long as whole.")
    return Sentence("\n".join(lines)) if lines else NOTHING_MEASURED
