"""What some parts of a run never promised, because they are the chapter's as they stand there: run as the "before" of a
comparison. That they do not keep it is a finding about them, told as a claim that is not held; no store is judged by it.

Everything else about such a run is judged as ever: what its store acknowledged must be there, whoever asked for it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property

import polars as pl
from msgspec import structs

from eventcore_lab.lab.claims import Claim, concluded, settled
from eventcore_lab.lab.measures import Run
from eventcore_lab.lab.sentences import Sentence
from eventcore_lab.lab.stats import Estimate
from eventcore_lab.lab.targets import Judgement, Verdict
from eventcore_lab.spec import Spec, parse

NEVER_PROMISED: dict[tuple[str, str], str] = {
    ("executor", "chapter_batching"): "executed commands are where their answers say",
    ("projection", "chapter_matview"): "projections equal the fold of the events",
}
"""A part (a column of `runs`, a name in its spec) → the invariant that it is known not to keep."""


def parts(run: Run) -> Iterator[tuple[str, str]]:
    """The (column, name) of everything in the run's specs that never promised something."""
    for column in ("executor", "projection"):
        spec: Spec | None = parse(run.row[column], column) if run.row.get(column) else None
        while spec is not None:
            if (column, spec.name) in NEVER_PROMISED:
                yield column, spec.name
            spec = spec.inner


class _AsPromised(Run):
    """A run with the invariants that its parts promise."""

    @cached_property
    def invariants(self) -> pl.DataFrame:
        without = [NEVER_PROMISED[part] for part in parts(self)]
        return self.lab.invariants(self.run_id).filter(~pl.col("name").is_in(without))


def as_promised(runs: Iterable[Run]) -> list[Run]:
    """The runs, to be judged by what was promised in them."""
    return [_AsPromised(run.lab, run.run_id) if any(parts(run)) else run for run in runs]


def findings(topic: str, runs: Sequence[Run]) -> list[Claim]:
    """A claim for each part that never promised an invariant: that it is kept all the same. Not settled where no run tested
    it."""
    by_part: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        for part in parts(run):
            by_part.setdefault(part, []).append(run)
    return [_finding(topic, name, NEVER_PROMISED[column, name], of) for (column, name), of in by_part.items()]


def _finding(topic: str, part: str, invariant: str, runs: Sequence[Run]) -> Claim:
    rows = [
        (run, row)
        for run in runs
        for row in run.invariants.filter(pl.col("name") == invariant).iter_rows(named=True)
        if row["status"] in ("passed", "violated")
    ]
    wrong = float(sum(row["wrong"] for _, row in rows)) if rows else math.nan
    worst, row = max(rows, key=lambda r: int(r[1]["wrong"]), default=(runs[0], {"reason": "no run tested it"}))
    text = f"{part}, which never promised it: {invariant}"
    found = Estimate(wrong, math.nan, math.nan, len(rows))
    example = str(row["reason"]).partition("; ")[0]
    return settled(topic, text, found, "violations", example, worst.run_id, at_most=0)


def concluded_as_promised(
    title: str,
    topic: str,
    claims: Sequence[Claim],
    runs: Sequence[Run],
    *found: Sentence,
    kept: Sequence[Judgement] = (),
) -> Verdict:
    """`claims.concluded`, with what was never promised among the claims instead of among what decides; `kept` are invariants
    that were looked at beside those of the runs."""
    verdict = concluded(title, [*claims, *findings(topic, runs)], as_promised(runs), *found)
    named = sorted({name for run in runs for _, name in parts(run)})
    suffix = f" Not judged by what it never promised, only told of: {', '.join(named)}." if named else ""
    broken = "; ".join(f"{j.name}: {j.reason}" for j in kept if j.status == "violated")
    answer = f"{f'Not correct: {broken}. ' if broken else ''}{verdict.answer}{suffix}"
    return structs.replace(verdict, judgements=(*verdict.judgements, *kept), answer=answer)
