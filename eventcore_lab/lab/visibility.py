"""Stores compared by what their readers get: every event, once, in order, and how late. Only a store that promises a safe
order is judged by it; of the others it is told."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
import polars as pl

from eventcore_lab.lab.measures import Run
from eventcore_lab.lab.targets import Judgement, Targets, Verdict, judge
from eventcore_lab.schema import SAFE_ORDER

WRONGS = ("skipped", "repeated", "reordered")


def compared(runs: Sequence[Run]) -> pl.DataFrame:
    """One row per run: store, whether it promises a safe order, appends_per_s (operations; one append each), and over all
    its readers the worst lag_p50_ms and lag_p99_ms (null: that many were never delivered), the sums of delivered, skipped,
    repeated and reordered, and how many invariants were violated."""
    return pl.DataFrame([_row(run) for run in runs], schema=_COLUMNS)


_COLUMNS = {
    "store": pl.String,
    "promises_order": pl.Boolean,
    "appends_per_s": pl.Float64,
    "lag_p50_ms": pl.Float64,
    "lag_p99_ms": pl.Float64,
    "delivered": pl.Int64,
    **dict.fromkeys(WRONGS, pl.Int64),
    "violated": pl.Int64,
}


def _row(run: Run) -> dict[str, object]:
    readers = run.readers
    sums = {name: _total(readers[name]) for name in ("delivered", *WRONGS)}
    return {
        "store": run.row["store"],
        "promises_order": run.promises(SAFE_ORDER),
        "appends_per_s": run.figure("commands_per_second").estimate.value,
        "lag_p50_ms": _worst_ms(readers["lag_p50_ns"]),
        "lag_p99_ms": _worst_ms(readers["lag_p99_ns"]),
        **sums,
        "violated": int((run.invariants["status"] == "violated").sum()),
    }


def _total(values: pl.Series) -> int | None:
    return None if values.null_count() or not len(values) else int(values.sum())


def _worst_ms(values: pl.Series) -> float | None:
    return None if values.null_count() or not len(values) else float(values.to_numpy().max()) / 1e6


def judged(runs: Sequence[Run]) -> Verdict:
    """The runs whose store promises a safe order, held to it and to their invariants. Inconclusive if there is none."""
    promising = [run for run in runs if run.promises(SAFE_ORDER)]
    kept = judge(Targets.of(name="invariants"), *promising).judgements if promising else ()
    rows = [_judged(run, wrong) for run in promising for wrong in WRONGS]
    verdict = Verdict("Readers beside writers", (*rows, *kept))
    return msgspec.structs.replace(verdict, answer=_answer(verdict, promising))


def _judged(run: Run, wrong: str) -> Judgement:
    measured = _total(run.readers[wrong])
    status, reason = "pass", f"of {_total(run.readers['delivered']) or 0:,} delivered"
    if measured is None:
        status, reason = "inconclusive", "no reader was given anything, or the store was not read back"
    elif measured:
        status = "violated"
    name, value = f"{run.row['store']}: {wrong}", math.nan if measured is None else float(measured)
    return Judgement("invariant", name, "= 0", value, math.nan, math.nan, "events", status, reason, run.run_id)


def _answer(verdict: Verdict, promising: Sequence[Run]) -> str:
    names = ", ".join(dict.fromkeys(run.row["store"] for run in promising))
    if not promising:
        return "No store here promises its readers a safe order, so there is nothing to hold it to."
    broken = [j for j in verdict.judgements if j.status == "violated"]
    if broken:
        return "Promised and not kept: " + "; ".join(f"{j.name} {j.shown} ({j.reason})" for j in broken[:3]) + "."
    if verdict.status == "inconclusive":
        return f"Not settled for {names}: " + "; ".join(
            f"{j.name}, {j.reason}" for j in verdict.judgements if j.status == "inconclusive"
        )
    return f"{names}: whoever promises its readers every event once and in order kept the promise."
