"""Reading everything: how fast, with how much memory, and whether it was everything. For runs of `read_everything`."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np
import polars as pl

from eventcore_lab.clock import NS_PER_S
from eventcore_lab.lab import stats
from eventcore_lab.lab.arms import TRIALS_MIN, arms, value_of
from eventcore_lab.lab.claims import Claim, settled
from eventcore_lab.lab.footprints import TAKEN
from eventcore_lab.lab.measures import MIB, Run
from eventcore_lab.lab.numbers import Number, exactly, less
from eventcore_lab.lab.picture import Picture
from eventcore_lab.lab.sentences import NOTHING_MEASURED, Sentence
from eventcore_lab.lab.stats import NOTHING, Estimate
from eventcore_lab.lab.wording import percent, said
from eventcore_lab.schema import Outcome

NAMES = {
    "stream": "stream, in pages",
    "load": "load, into a list",
    "streams": "each stream whole",
    "stream_events": "each stream in pages",
}


def _reads(run: Run) -> pl.DataFrame:
    """The reads that came to their end. A read may take longer than the steady part, so all phases count."""
    return run.samples.filter(pl.col("outcome") == int(Outcome.OK))


def rate(run: Run) -> Estimate:
    """Events per second of a read, by the mean time that one takes; the interval is that of this mean."""
    reads = _reads(run)
    if not len(reads):
        return NOTHING
    took_s = (reads["ended_ns"] - reads["began_ns"]).to_numpy() / NS_PER_S
    events = float(np.mean(reads["events"].to_numpy()))
    e = stats.mean_with_interval(took_s, len(reads))
    high = events / e.low if e.low > 0 else math.nan
    return Estimate(
        events / e.value, events / e.high if math.isfinite(high) else math.nan, high, int(reads["events"].sum())
    )


def whole(run: Run) -> Estimate:
    """The fewest events that a read gave, in percent of those that were in the store; NaN where that is not known."""
    reads = _reads(run)
    filled = run.marks.filter(pl.col("name") == "store filled")["detail"].to_list()
    there = int(found.group()) if filled and (found := re.match(r"\d+", filled[0])) else 0
    if not there or not len(reads):
        return NOTHING
    return exactly(100 * int(reads["events"].to_numpy().min()) / there, len(reads))


RATE = Number("events read per second", "events read per second", "/s", rate)
WHOLE = Number("events read", "events read, % of all", "%", whole)


def memory_along(runs: Sequence[Run]) -> Picture:
    """The most memory above the start along the events in the store, a line for each way of reading."""
    return TAKEN.along(runs, "events", "how", "events in the store", names=NAMES)


def rate_along(runs: Sequence[Run], by: str = "events", label: str = "events in the store") -> Picture:
    """Events read per second along the events in the store, or the page, a line for each way of reading."""
    return RATE.along(runs, by, "how", label, names=NAMES)


def per_event(runs: Sequence[Run]) -> Estimate:
    """How many bytes more the process takes for each further event in the store: from the smallest store to the largest. NaN
    with stores of one size."""
    sizes = arms(runs, "events")
    if len(sizes) < 2:
        return NOTHING
    small, large = sizes[0], sizes[-1]
    more = less(TAKEN.together(large.runs), TAKEN.together(small.runs))
    times = MIB / (float(large.value) - float(small.value))
    value, low, high = (x if math.isnan(x) else round(x * times) for x in (more.value, more.low, more.high))
    return Estimate(value, low, high, more.n)


def flatness(runs: Sequence[Run]) -> Sentence:
    """What each way of reading takes of the largest store, and for each further event."""
    parts = []
    for way in arms(runs, "how"):
        largest = arms(way.runs, "events")[-1]
        more = per_event(way.runs)
        each = "" if math.isnan(more.value) else f" ({said(more, 'B')} for each further event)"
        parts.append(f"{NAMES.get(str(way.value), way.value)} {TAKEN.said(largest.runs)}{each}")
    if not parts:
        return NOTHING_MEASURED
    most = max(int(value_of(run, "events")) for run in runs)
    return Sentence(
        f"**At its highest, the process that reads {most:,} events has above its start: {'; '.join(parts)}.**"
    )


def speed(runs: Sequence[Run]) -> Sentence:
    """Events per second of each way of reading the largest store, and whether all events came."""
    largest = max((value_of(run, "events") for run in runs), default=0, key=float)
    at = [run for run in runs if value_of(run, "events") == largest]
    if not at:
        return NOTHING_MEASURED
    told = [f"{NAMES.get(str(a.value), a.value)} {RATE.said(a.runs)}" for a in arms(at, "how")]
    least = min((v for run in runs if not math.isnan(v := whole(run).value)), default=math.nan)
    text = f"**Events read per second from a store of {largest:,}: {'; '.join(told)}.**"
    return Sentence(
        text + ("" if math.isnan(least) else f" The read that gave least gave {least:.6g} % of all events.")
    )


def pages(runs: Sequence[Run]) -> Sentence:
    """What the smallest page costs against the best."""
    found = {a.value: RATE.together(a.runs) for a in arms(runs, "page")}
    known = {page: e for page, e in found.items() if not math.isnan(e.value)}
    if not known:
        return NOTHING_MEASURED
    best = max(known, key=lambda page: known[page].value)
    smallest = next(iter(known))
    share = known[smallest].value / known[best].value
    return Sentence(
        f"**Pages of {best:,} events are read fastest, {said(known[best], '/s')}; pages of {smallest:,} reach "
        f"{percent(share)} of it.**"
    )


def settings(runs: Sequence[Run], share: float = 0.9) -> Sentence:
    """The smallest page within `share` of the best rate: a larger one takes memory and gives nothing."""
    found = {a.value: RATE.together(a.runs).value for a in arms(runs, "page")}
    known = {page: value for page, value in found.items() if not math.isnan(value)}
    if not known:
        return NOTHING_MEASURED
    best = max(known.values())
    page, value = next((p, v) for p, v in known.items() if v >= share * best)
    return Sentence(
        f"The smallest page within {percent(1 - share)} of the best rate: {page:,} events ({value:,.0f}/s, best {best:,.0f}/s)."
    )


def claimed(runs: Sequence[Run], paged: Sequence[Run]) -> list[Claim]:
    """What is claimed of reading in pages, held against a list where both were run, and of small pages."""
    by = {str(a.value): a.runs for a in arms(runs, "how")}
    paged_reads, listed = by.get("stream", ()), by.get("load", ())
    found = []
    if "stream" in by:
        found.append(_bytes("reading in pages takes at most 50 B more for each further event", paged_reads, at_most=50))
    if "load" in by:
        found.append(_bytes("a list takes at least 300 B more for each further event", listed, at_least=300))
    if "stream" in by and "load" in by:
        large, of_list = arms(paged_reads, "events")[-1], arms(listed, "events")[-1]
        text = f"reading {large.value:,} events in pages is at least 0.8 times as fast as loading them"
        found.append(RATE.claim("streaming", text, large.runs, of_list.runs, at_least=0.8))
    by_page = arms(paged, "page")
    if len(by_page) > 1:
        best = max(by_page, key=lambda a: RATE.together(a.runs).value)
        text = f"pages of {by_page[0].value:,} events are read at least 0.9 times as fast as the best page"
        found.append(RATE.claim("reading", text, by_page[0].runs, best.runs, at_least=0.9))
    everything = [*runs, *paged]
    if everything:
        least = min(everything, key=lambda run: v if not math.isnan(v := whole(run).value) else math.inf)
        found.append(WHOLE.claim("streaming", "every read gives every event", [least], at_least=100))
    return found


def _bytes(text: str, runs: Sequence[Run], **bound: float) -> Claim:
    reason = "from the smallest store to the largest"
    if len(arms(runs, "events")[0].runs) < TRIALS_MIN:
        reason += "; too few trials for an interval"
    return settled("streaming", text, per_event(runs), "B", reason, runs[-1].run_id, **bound)
