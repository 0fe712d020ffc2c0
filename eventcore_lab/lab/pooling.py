"""A pool of connections put to the test: its size against the callers who want one, and what its other settings change.

The settings are each tried in two states, since most of them show in one only: *full*, a closed loop of more callers than
there are connections, and *quiet*, an open loop at a rate that a few connections can take.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

from eventcore_lab.clock import NS_PER_S
from eventcore_lab.lab import claims
from eventcore_lab.lab.arms import TRIALS_MIN, Arm, Value, arms, ratio
from eventcore_lab.lab.claims import Claim
from eventcore_lab.lab.measures import Run
from eventcore_lab.lab.optimum import enough
from eventcore_lab.lab.sentences import NOTHING_MEASURED, Sentence
from eventcore_lab.lab.stats import Estimate
from eventcore_lab.lab.table import Table
from eventcore_lab.lab.views import parts_ms
from eventcore_lab.lab.wording import digits, named, percent, told
from eventcore_lab.spec import parse

MATTERS = 1.1
"""How many times another a figure must be before anybody should care."""
RATE, MEDIAN, TAIL, FAILED = "commands_per_second", "p50", "p95", "failures/attempts"
BASE = "all open before, none closed"


def sizes(runs: Sequence[Run]) -> Sentence:
    """For each number of callers where throughput is highest, and what one step less and more of the pool would have given."""
    parts = []
    for group in arms(runs, "concurrency"):
        values = [(a.value, e) for a in arms(group.runs, "connections") if (e := a.estimate(RATE)).value > 0]
        if values:
            at, top = max(values, key=lambda v: v[1].value)
            (least, low), (most, high) = values[0], values[-1]
            ends = [(n, e.value / top.value) for n, e in ((least, low), (most, high)) if n != at]
            others = f" ({' and '.join(f'{percent(v)} with {_connections(n)}' for n, v in ends)})" if ends else ""
            callers = f"{named(group.value)} caller{'s are' if group.value != 1 else ' is'}"
            parts.append(f"**{callers} served best by {_connections(at)}, {told(top, RATE)}**{others}.")
    return Sentence(" ".join(parts)) if parts else NOTHING_MEASURED


def _connections(n: Value) -> str:
    return f"{named(n)} connection{'' if n == 1 else 's'}"


def waiting(runs: Sequence[Run]) -> Sentence:
    """How much of an operation is waiting for a connection, and how long the store itself takes, with the least and the most
    connections, for the most callers."""
    if not runs:
        return NOTHING_MEASURED
    ends = arms(arms(runs, "concurrency")[-1].runs, "connections")
    said = []
    for arm in (ends[0], ends[-1]) if len(ends) > 1 else ends:
        parts = parts_ms(arm.runs)
        whole = sum(parts.values())
        if whole:
            wait = parts["waiting for a connection"] / whole
            said.append(
                f"with {_connections(arm.value)} an operation takes "
                f"{digits(whole)} ms, {percent(wait)} of it waiting for one and {digits(parts['in the store'])} ms in the store"
            )
    if not said:
        return NOTHING_MEASURED
    first, *rest = said
    return Sentence(
        f"**Of {named(arms(runs, 'concurrency')[-1].value)} callers: {first}**{''.join(f'; {t}' for t in rest)}."
    )


def _callers(runs: Sequence[Run]) -> dict[Value, str]:
    return {a.value: f"{named(a.value)} caller{'' if a.value == 1 else 's'}" for a in arms(runs, "concurrency")}


def crowd(runs: Sequence[Run]) -> list[Run]:
    """The runs with the most callers: where the size of a pool matters most."""
    return list(arms(runs, "concurrency")[-1].runs) if runs else []


def setting(run: Run) -> str:
    """What the run's pool was told besides its size."""
    spec = parse(run.row["store"], "store")
    return ", ".join(f"{name}={value}" for name, value in spec.options) if spec.name == "pooled" else BASE


def longest_wait_ms(runs: Sequence[Run]) -> float:
    """The longest that anybody waited for a connection, the warm-up included; NaN of none."""
    waits = [s["acquired_ns"] - s["began_ns"] for run in runs if len(s := run.samples)]
    return max((float(w.to_numpy().max()) for w in waits), default=math.nan) * 1000 / NS_PER_S


class Effect:
    """What one setting changed in one state, as ratios to the pool that was told nothing."""

    def __init__(self, name: str, full: Sequence[Run], quiet: Sequence[Run], base: tuple[Arm, Arm]) -> None:
        self.name, self.full, self.quiet, self.base = name, full, quiet, base

    @property
    def is_base(self) -> bool:
        return self.name == self.base[0].value

    @property
    def ratios(self) -> dict[str, Estimate]:
        """What is compared → how many times it is the base's."""
        full, quiet = self.base
        return {
            "throughput when full": ratio(self.full, full.runs, RATE),
            "p95 when full": ratio(self.full, full.runs, TAIL),
            "median when quiet": ratio(self.quiet, quiet.runs, MEDIAN),
            "p95 when quiet": ratio(self.quiet, quiet.runs, TAIL),
        }

    @property
    def failed(self) -> float:
        """The share of operations that were not done, percent, in the worse state."""
        return max(Arm("", tuple(r)).estimate(FAILED).value for r in (self.full, self.quiet))

    @property
    def trials(self) -> int:
        """How many pairs of runs there are in the state that has fewer."""
        return min(len(runs) for runs in (self.full, self.quiet, *(arm.runs for arm in self.base)))

    @property
    def changed(self) -> list[str]:
        """What is settled to be different by more than MATTERS, in words: of fewer than TRIALS_MIN trials nothing is, since one
        run differs from the next by more than its blocks of time from each other."""
        shown = [f"{what} {e.value:.2f} times" for what, e in self.ratios.items() if _is_beyond(e)]
        shown = shown if self.trials >= TRIALS_MIN else []
        return shown + ([f"{self.failed:.1f} % of operations not done"] if self.failed > 0 else [])

    @property
    def is_without(self) -> bool:
        """Whether all that is compared is settled to be alike."""
        return self.trials >= TRIALS_MIN and not self.failed and all(_is_within(e) for e in self.ratios.values())


def _is_beyond(e: Estimate) -> bool:
    return e.has_interval and (e.low > MATTERS or e.high < 1 / MATTERS)


def _is_within(e: Estimate) -> bool:
    return e.has_interval and e.low > 1 / MATTERS and e.high < MATTERS


class Effects:
    """What each setting of the pool changed: a row for each, what they are compared with (the first run's) first."""

    _HEADS = (
        "setting",
        "full: operations/s",
        "p95, ms",
        "longest wait for a connection, ms",
        "quiet: p50, ms",
        "p95, ms",
        "longest wait, ms",
        "not done, %",
        "so it changed",
    )

    def __init__(self, full: Sequence[Run], quiet: Sequence[Run]) -> None:
        self.rows: list[Effect] = []
        groups = [_by_setting(runs) for runs in (full, quiet)]
        names = [name for name in groups[0] if name in groups[1]]
        for name in names:
            base = (Arm(names[0], tuple(groups[0][names[0]])), Arm(names[0], tuple(groups[1][names[0]])))
            self.rows.append(Effect(name, groups[0][name], groups[1][name], base))

    def of(self, option: str) -> list[Effect]:
        """The settings that say something about `option`."""
        return [row for row in self.rows if option in row.name]

    def cells(self, row: Effect) -> list[str]:
        found = [Arm("", tuple(runs)).estimate(f).value for runs, f in (
            (row.full, RATE), (row.full, TAIL), (row.quiet, MEDIAN), (row.quiet, TAIL))]  # fmt: skip
        waits = [longest_wait_ms(runs) for runs in (row.full, row.quiet)]
        changed = "; ".join(row.changed) or ("nothing" if row.is_without else "nothing settled")
        numbers = [*found[:2], waits[0], *found[2:], waits[1], row.failed]
        return [row.name, *map(digits, numbers), "–" if row.is_base else changed]

    def _repr_html_(self) -> str:
        head = "".join(f"<th scope='col'>{head}</th>" for head in self._HEADS)
        body = ""
        for first, *rest in map(self.cells, self.rows):
            cells = "".join(f"<td>{html.escape(cell)}</td>" for cell in rest)
            name = html.escape(first).replace("=", "=<wbr>")  # a setting is long, and this is the widest table
            body += f"<tr><th scope='row'>{name}</th>{cells}</tr>"
        # Not of the class `verdict`: of those a page shows one, at its top.
        return f"<table class='settings'><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"

    def __repr__(self) -> str:
        return repr(Table(self._HEADS, map(self.cells, self.rows)))


def _by_setting(runs: Sequence[Run]) -> dict[str, list[Run]]:
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(setting(run), []).append(run)
    return found


def effects(found: Effects) -> Sentence:
    """Which settings changed what, which changed nothing, and of which nothing is settled."""
    others = [row for row in found.rows if not row.is_base]
    changed = [f"{row.name} ({', '.join(row.changed)})" for row in others if row.changed]
    without = [row.name for row in others if not row.changed and row.is_without]
    unsettled = [row.name for row in others if not row.changed and not row.is_without]
    parts = [f"**Changed by more than {percent(MATTERS - 1)}: {'; '.join(changed)}.**"] if changed else []
    parts += [f"Changed nothing: {'; '.join(without)}."] if without else []
    parts += [f"No change is settled for: {'; '.join(unsettled)}."] if unsettled else []
    if others and others[0].trials < TRIALS_MIN:
        parts.append(f"With {others[0].trials} of at least {TRIALS_MIN} trials no difference of time can be settled.")
    return Sentence(" ".join(parts)) if parts else NOTHING_MEASURED


def claimed(runs: Sequence[Run], found: Effects, connections: int) -> list[Claim]:
    """That connections pay, that a pool larger than `connections` pays no more, that `connections` are enough, and that a test
    before each use is dear."""
    by_size = {arm.value: arm for arm in arms(crowd(runs), "connections")}
    listed, values = [], list(by_size)
    if len(values) > 1 and connections in by_size:
        ours, callers = by_size[connections].runs, named(arms(runs, "concurrency")[-1].value)
        best = max(values, key=lambda n: _value(by_size[n]))
        if connections != values[0]:
            text = (
                f"with {callers} callers, {connections} connections take at least twice what {named(values[0])} takes"
            )
            listed.append(claims.claim("pooling", text, ours, by_size[values[0]].runs, RATE, at_least=2))
        if connections != values[-1]:
            text = f"{named(values[-1])} connections take at most {MATTERS:g} times what {connections} take"
            listed.append(claims.claim("pooling", text, by_size[values[-1]].runs, ours, RATE, at_most=MATTERS))
        if connections != best:
            text = f"{connections} connections take at least 0.9 times what the best size, {named(best)}, takes"
            listed.append(claims.claim("pooling", text, ours, by_size[best].runs, RATE, at_least=0.9))
    for row in found.of("test_before_acquire=true"):
        text = "at a quiet rate an append takes at least 1.1 times as long when its connection is tested before"
        listed.append(claims.claim("pooling", text, row.quiet, row.base[1].runs, MEDIAN, at_least=MATTERS))
    return listed


def _value(arm: Arm) -> float:
    value = arm.estimate(RATE).value
    return -math.inf if math.isnan(value) else value


def settings(runs: Sequence[Run], found: Effects) -> Sentence:
    """What to set: for each number of callers the smallest pool within a tenth of the best, and which settings need care."""
    lines = [str(enough(runs, "connections", RATE, "{} connections", "concurrency", _callers(runs)))] if runs else []
    dear = [row.name for row in found.rows if not row.is_base and row.changed]
    if dear:
        lines.append(f"- With care, for they changed something here: {'; '.join(dear)}.")
    return Sentence("\n".join(lines)) if lines else NOTHING_MEASURED


def caution(found: Effects) -> Sentence:
    """How many of the comparisons are wrong by chance, and what a setting that shows here may be elsewhere."""
    n = sum(len(row.ratios) for row in found.rows if not row.is_base)
    lines = [f"- {n} comparisons of settings at 95 % each: by chance alone {0.05 * n:.1f} of them would look settled."]
    lines.append(
        "- A connection to a server that is far away takes longer to open and to test than one to a server beside it."
    )
    return Sentence("\n".join(lines))
