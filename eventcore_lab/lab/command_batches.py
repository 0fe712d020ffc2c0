"""Commands put together: what batching and group commit bring when many come and cost when few do, by size and delay, and
whether everybody is still answered truly. A run's `label` says how its commands were put together."""

from __future__ import annotations

import math
from collections.abc import Sequence

from eventcore_lab.lab.arms import Arm, arms, ratio, value_of, values_of, where
from eventcore_lab.lab.claims import Claim, claim, settled
from eventcore_lab.lab.contention import SHARE, counted
from eventcore_lab.lab.measures import Run
from eventcore_lab.lab.sentences import NOTHING_MEASURED, Sentence
from eventcore_lab.lab.stats import Estimate
from eventcore_lab.lab.table import Table
from eventcore_lab.lab.targets import Judgement
from eventcore_lab.lab.wording import digits, percent, said
from eventcore_lab.schema import Outcome
from eventcore_lab.spec import unknown

TOPIC = "async_batching"
BY_ITSELF, GROUPED, CHAPTERS = "each by itself", "group commit", "the chapter's"
_BATCHING = "batching, "


def named(delay_ms: float) -> str:
    """The label of batching with this delay."""
    return f"{_BATCHING}{delay_ms:g} ms" if delay_ms else f"{_BATCHING}no timer"


KINDS = ("direct", "grouped", "batching", "chapter")


def ways(
    store: str, sizes: Sequence[int], delays_ms: Sequence[float], kinds: Sequence[str] = KINDS
) -> list[dict[str, str]]:
    """Label, store and executor of each way to put commands together: not at all (`direct`); appends in the store (`grouped`);
    commands, in batches of each size and delay (`batching`); as the chapter has it, of the largest size and with its 10 ms."""
    for kind in kinds:
        if kind not in KINDS:
            raise unknown("kind", kind, KINDS)
    listed: dict[str, list[tuple[str, str, str]]] = {
        "direct": [(BY_ITSELF, store, "direct")],
        "grouped": [(GROUPED, f"grouped({store}):size={max(sizes)}", "direct")],
        "batching": [(named(d), store, f"batching(direct):size={n},delay_ms={d:g}") for n in sizes for d in delays_ms],
        "chapter": [(CHAPTERS, store, f"chapter_batching(direct):size={max(sizes)}")],
    }
    return [dict(zip(("label", "store", "executor"), way, strict=True)) for kind in kinds for way in listed[kind]]


def in_batches(runs: Sequence[Run]) -> list[Run]:
    """The runs with batching, of every size and delay."""
    return [run for run in runs if str(run.row["label"]).startswith(_BATCHING)]


def at_largest(runs: Sequence[Run]) -> list[Run]:
    """One setting of each way: of batching the largest size with each delay."""
    batching = in_batches(runs)
    largest = values_of(batching, "size")[-1:]
    return [run for run in runs if run not in batching or value_of(run, "size") in largest]


def throughput(runs: Sequence[Run]) -> Sentence:
    """What each way does, and how many times that is what commands do each by itself."""
    alone, told = where(runs, label=BY_ITSELF), []
    for way in arms(at_largest(runs), "label"):
        times = f", {said(ratio(way.runs, alone, _RATE), 'times')}" if alone and way.value != BY_ITSELF else ""
        told.append(f"{way.value} {digits(way.estimate(_RATE).value)} commands/s{times}")
    return Sentence(f"**With many callers: {'; '.join(told)}.**" if told else "Nothing was measured.")


_RATE = "commands_per_second"


def in_short(busy: Sequence[Run], quiet: Sequence[Run]) -> Sentence:
    """The way that does most with many callers and answers truly, what that is to commands each by itself, and what a lone
    command takes by it."""
    ways_of = [way for way in arms(at_largest(busy), "label") if way.value != CHAPTERS]
    rates = {way.value: e.value for way in ways_of if not math.isnan((e := way.estimate(_RATE)).value)}
    if not rates:
        return NOTHING_MEASURED
    best = max(rates, key=lambda label: rates[label])
    few = at_largest(quiet)
    text = f"With many callers {best} does most, {digits(rates[best])} commands/s"
    if best != BY_ITSELF and where(busy, label=BY_ITSELF):
        many_times, few_times = (
            ratio(where(runs, label=best), where(runs, label=BY_ITSELF), figure)
            for runs, figure in ((at_largest(busy), _RATE), (few, "p50"))
        )
        text += f": {said(many_times, 'times')} what each by itself does"
        text += f"; a lone command takes {said(few_times, 'times')} as long" if few_times.n else ""
    return Sentence(f"{text}.")


def best_setting(runs: Sequence[Run]) -> Sentence:
    """The size and delay that do most, and what the longest delay does to the shortest, at the largest size."""
    batching = in_batches(runs)
    settings = [(a.estimate(_RATE).value, a) for a in arms(batching, "executor")]
    known = [(rate, arm) for rate, arm in settings if not math.isnan(rate)]
    if not known:
        return NOTHING_MEASURED
    rate, most = max(known, key=lambda k: k[0])
    size, delay = value_of(most.runs[0], "size"), value_of(most.runs[0], "delay_ms")
    text = f"**Most, {digits(rate)} commands/s, does a size of {size:,} with a delay of {delay:g} ms.**"
    delays = values_of(batching, "delay_ms")
    if len(delays) > 1:
        largest = at_largest(batching)
        times = ratio(where(largest, delay_ms=delays[-1]), where(largest, delay_ms=delays[0]), _RATE)
        text += (
            f" With {delays[-1]:g} ms instead of {delays[0]:g} ms the largest size does {said(times, 'times')} as much."
        )
    return Sentence(text)


def latency(runs: Sequence[Run]) -> Sentence:
    """The median time of a command of each way at a given rate."""
    told = [f"{way.value} {said(way.estimate('p50'), 'ms')}" for way in arms(at_largest(runs), "label")]
    if not told:
        return NOTHING_MEASURED
    return Sentence(f"**At {value_of(runs[0], 'rate'):g} commands per second, in the median: {'; '.join(told)}.**")


def table(busy: Sequence[Run], quiet: Sequence[Run]) -> Table:
    """One row per way: what it does and how full its batches are when many come, how long it takes when few do."""
    heads = ("put together", "commands/s", "in a batch", "p50, ms", "p99, ms", "p50 at a low rate, ms", "p99 there, ms")
    rows = []
    calm = {way.value: way for way in arms(at_largest(quiet), "label")}
    for way in arms(at_largest(busy), "label"):
        filled = counted(way.runs, "batched") / counted(way.runs, "batches")
        rates = [way.estimate(_RATE).value, filled, *_percentiles(way)]
        there = _percentiles(calm[way.value]) if way.value in calm else [math.nan, math.nan]
        rows.append([str(way.value), *map(digits, [*rates, *there])])
    return Table(heads, rows)


def _percentiles(way: Arm) -> list[float]:
    return [way.estimate(name).value for name in ("p50", "p99")]


# whether everybody is answered truly


def sold(runs: Sequence[Run]) -> Sentence:
    """Of how many pieces how many reservations were confirmed, way by way."""
    told = [f"{way.value} {_most_sold(way.runs)[0]:,} of {_most_sold(way.runs)[1]:,}" for way in arms(runs, "label")]
    return Sentence(
        f"**Reservations confirmed, of the pieces there were: {'; '.join(told)}.**" if told else "Nothing was sold."
    )


def _most_sold(runs: Sequence[Run]) -> tuple[int, int, str]:
    """(confirmed, pieces, run id) of the run that confirmed most. Each reservation is of one piece."""
    found = []
    for run in runs:
        pieces = int(float(value_of(run, "articles", 1))) * int(float(value_of(run, "stock")))
        found.append((int((run.samples["outcome"] == int(Outcome.OK)).sum()), pieces, run.run_id))
    return max(found, key=lambda f: f[0] / f[1])


def claims_of(busy: Sequence[Run], quiet: Sequence[Run], stock: Sequence[Run]) -> list[Claim]:
    """What is said of putting commands together, put to the test with many callers, at a low rate, and on a stock that runs
    out."""
    many, few = at_largest(busy), at_largest(quiet)
    delays = values_of(in_batches(busy), "delay_ms") or [0.0]
    first, last = named(delays[0]), named(delays[-1])
    asked = [
        (
            f"many callers: {first} does at least 1.5 times what each by itself does",
            first,
            BY_ITSELF,
            {"at_least": 1.5},
        ),
        (
            f"many callers: {GROUPED} does at least 1.5 times what each by itself does",
            GROUPED,
            BY_ITSELF,
            {"at_least": 1.5},
        ),
        (f"many callers: {first} does at least what the chapter's does", first, CHAPTERS, {"at_least": 1.0}),
    ]
    calm = [
        (f"low rate: {first} takes at most 1.2 times what each by itself takes", first, BY_ITSELF, {"at_most": 1.2}),
        (
            f"low rate: {GROUPED} takes at most 1.2 times what each by itself takes",
            GROUPED,
            BY_ITSELF,
            {"at_most": 1.2},
        ),
    ]
    if last != first:
        asked.append((f"many callers: {last} does more than {first}", last, first, {"at_least": 1.0}))
        calm.append(
            (f"low rate: {last} takes at most 2 times what each by itself takes", last, BY_ITSELF, {"at_most": 2.0})
        )
    found = []
    for runs, figure, listed in ((many, _RATE, asked), (few, "p50", calm)):
        for text, of, to, bound in listed:
            ours, theirs = where(runs, label=of), where(runs, label=to)
            if ours and theirs:
                found.append(claim(TOPIC, text, ours, theirs, figure, **bound))
    return found + [_not_oversold(way) for way in arms(where(stock, label=CHAPTERS), "label")]


def _not_oversold(way: Arm) -> Claim:
    confirmed, pieces, run_id = _most_sold(way.runs)
    found, reason = Estimate(confirmed / pieces, math.nan, math.nan, confirmed), f"{confirmed:,} of {pieces:,} pieces"
    text = f"{way.value} confirms no more reservations than there are pieces"
    return settled(TOPIC, text, found, "times", reason, run_id, at_most=1)


def kept_stock(stock: Sequence[Run]) -> list[Judgement]:
    """The invariant that no more reservations are confirmed than there are pieces, over all ways but the chapter's."""
    judged = [run for run in stock if run.row["label"] != CHAPTERS]
    if not judged:
        return []
    confirmed, pieces, run_id = _most_sold(judged)
    over, nan = max(confirmed - pieces, 0), math.nan
    is_empty = confirmed >= pieces
    status = "violated" if over else "pass" if is_empty else "inconclusive"
    reason = f"{confirmed:,} confirmed of {pieces:,} pieces" + ("" if is_empty else ": no run sold out; run it longer")
    name = "no more reservations are confirmed than there are pieces"
    return [Judgement("invariant", name, "= 0", float(over), nan, nan, "violations", status, reason, run_id)]


def settings(busy: Sequence[Run], quiet: Sequence[Run]) -> Sentence:
    """Of the ways that answer truly and do SHARE of the best with many callers, the one that is soonest at a low rate."""
    rates = {way.value: way.estimate(_RATE).value for way in arms(at_largest(busy), "label") if way.value != CHAPTERS}
    calm = {way.value: way.estimate("p50") for way in arms(at_largest(quiet), "label")}
    known = {name: rate for name, rate in rates.items() if name in calm and not math.isnan(rate + calm[name].value)}
    if not known:
        return NOTHING_MEASURED
    best = max(known.values())
    soonest = min((name for name, rate in known.items() if rate >= SHARE * best), key=lambda name: calm[name].value)
    return Sentence(
        f"Of the ways within {percent(1 - SHARE)} of the best with many callers, **{soonest}** is soonest at a low rate: "
        f"{digits(known[soonest])} commands/s of at most {digits(best)}, and {said(calm[soonest], 'ms')} for a lone command."
    )
