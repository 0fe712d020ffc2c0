"""Stores compared by what their readers get: every event, once, in order, and how late. Only a store that promises a safe
order is judged by it; of the others it is told."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence

import msgspec
import polars as pl
from matplotlib.axes import Axes

from eventcore_lab.lab.measures import Run
from eventcore_lab.lab.picture import BLUE, RED, Picture, nothing, plain, style
from eventcore_lab.lab.targets import Judgement, Targets, Verdict, judge
from eventcore_lab.schema import SAFE_ORDER
from eventcore_lab.spec import parse

WRONGS = ("skipped", "repeated", "reordered")


def compared(runs: Sequence[Run]) -> pl.DataFrame:
    """One row per run: store (without the options that all runs share), whether it promises a safe order, appends_per_s
    (operations; one append each), and over all its readers the worst lag_p50_ms and lag_p99_ms (null: that many were never
    delivered), the sums of delivered, skipped, repeated and reordered, and how many invariants were violated."""
    return pl.DataFrame([_row(run, name) for run, name in zip(runs, names(runs), strict=True)], schema=_COLUMNS)


def names(runs: Sequence[Run]) -> list[str]:
    """What tells the stores of `runs` apart: their specs without the options that are the same in all."""
    specs = [parse(run.row["store"], "store") for run in runs]
    shared = set.intersection(*(set(s.options) for s in specs)) if len(set(map(str, specs))) > 1 else set()
    return [
        str(msgspec.structs.replace(s, options=tuple(option for option in s.options if option not in shared)))
        for s in specs
    ]


class Table:
    """`compared` as people read it, in a notebook, a page and a terminal."""

    _HEADS = (
        ("store", "store"),
        ("safe order", "promises_order"),
        ("appends/s", "appends_per_s"),
        ("lag p50, ms", "lag_p50_ms"),
        ("lag p99, ms", "lag_p99_ms"),
        *((wrong, wrong) for wrong in WRONGS),
        ("violated", "violated"),
    )

    def __init__(self, runs: Sequence[Run]) -> None:
        self.frame = compared(runs)

    def _cells(self) -> list[list[str]]:
        rows = self.frame.iter_rows(named=True)
        return [[_shown(column, row[column], row["skipped"] == 0) for _, column in self._HEADS] for row in rows]

    def _repr_html_(self) -> str:
        head = "".join(f"<th scope='col'>{head}</th>" for head, _ in self._HEADS)
        rows = ["".join(f"<td>{html.escape(cell)}</td>" for cell in cells[1:]) for cells in self._cells()]
        firsts = [f"<th scope='row'>{html.escape(cells[0])}</th>" for cells in self._cells()]
        body = "".join(f"<tr>{first}{row}</tr>" for first, row in zip(firsts, rows, strict=True))
        return f"<table class='facts'><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"

    def __repr__(self) -> str:
        lines = [[head for head, _ in self._HEADS], *self._cells()]
        widths = [max(len(line[n]) for line in lines) for n in range(len(self._HEADS))]
        return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) for line in lines)


def _shown(column: str, value: bool | float | str | None, is_whole: bool) -> str:
    """`is_whole`: the reader got everything, so that a lag it does not have is one that two machines' clocks do not tell."""
    if value is None:
        if column.startswith("lag") and is_whole:
            return "not known"
        return "never" if column.startswith("lag") else "not read back"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value
    return f"{value:,.2f}" if column.startswith("lag") else f"{value:,.0f}"


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


def _row(run: Run, name: str) -> dict[str, object]:
    readers = run.readers
    sums = {name: _total(readers[name]) for name in ("delivered", *WRONGS)}
    return {
        "store": name,
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
    named = dict(zip([run.run_id for run in runs], names(runs), strict=True))
    rows = [_judged(run, named[run.run_id], wrong) for run in promising for wrong in WRONGS]
    verdict = Verdict("Readers beside writers", (*rows, *kept))
    answer = _answer(verdict, [named[run.run_id] for run in promising]) + _not_judged(runs, named)
    return msgspec.structs.replace(verdict, answer=answer)


def _not_judged(runs: Sequence[Run], named: Mapping[str, str]) -> str:
    """The stores that promise no order, with what their readers missed."""
    missed: dict[str, int] = {}
    for run in runs:
        if not run.promises(SAFE_ORDER):
            missed[named[run.run_id]] = missed.get(named[run.run_id], 0) + (_total(run.readers["skipped"]) or 0)
    listed = ", ".join(f"{store} (skipped {count:,})" for store, count in missed.items())
    return f" Not judged, for they promise no order: {listed}." if missed else ""


def _judged(run: Run, store: str, wrong: str) -> Judgement:
    measured = _total(run.readers[wrong])
    status, reason = "pass", f"of {_total(run.readers['delivered']) or 0:,} delivered"
    if measured is None:
        status, reason = "inconclusive", "no reader was given anything, or the store was not read back"
    elif measured:
        status = "violated"
    name, value = f"{store}: {wrong}", math.nan if measured is None else float(measured)
    return Judgement("invariant", name, "= 0", value, math.nan, math.nan, "events", status, reason, run.run_id)


def _answer(verdict: Verdict, stores: Sequence[str]) -> str:
    listed = ", ".join(dict.fromkeys(stores))
    if not stores:
        return "No store here promises its readers a safe order, so there is nothing to hold it to."
    broken = [j for j in verdict.judgements if j.status == "violated"]
    if broken:
        return "Promised and not kept: " + "; ".join(f"{j.name} {j.shown} ({j.reason})" for j in broken[:3]) + "."
    if verdict.status == "inconclusive":
        return f"Not settled for {listed}: " + "; ".join(
            f"{j.name}, {j.reason}" for j in verdict.judgements if j.status == "inconclusive"
        )
    return f"Promised and kept, every event once and in order: {listed}."


def lag_against_throughput(runs: Sequence[Run]) -> Picture:
    """How late readers are (median, ms) against how fast writers go: a point per run, named with what its readers skipped."""
    with style():
        picture = Picture("reader lag against writer throughput", height=1.2)
        lags(compared(runs), picture.add_subplot())
        picture.supxlabel(f"{len(runs)} runs, {runs[0].row['pacer'] if runs else ''}", x=0.99, ha="right", fontsize=8)
    return picture


def lags(frame: pl.DataFrame, axes: Axes) -> Axes:
    """Columns of compared. A run whose median event was never delivered stands at the upper edge. The names
    stand beside the picture in the order of the points, for stores that do alike lie close together."""
    known = frame.filter(pl.col("appends_per_s").is_not_nan() & pl.col("delivered").is_not_null())
    if not len(known):
        return nothing(axes)
    highest = max((v for v in known["lag_p50_ms"] if v), default=1.0)
    top = 1.15 * highest if known["lag_p50_ms"].null_count() == 0 else 1.5 * highest
    points = known.with_columns(pl.col("lag_p50_ms").fill_null(top)).sort("lag_p50_ms", "appends_per_s")
    for n, row in enumerate(points.iter_rows(named=True)):
        is_whole, x, y = row["skipped"] == 0, row["appends_per_s"], row["lag_p50_ms"]
        colour = BLUE if is_whole else RED
        axes.plot([x], [y], color=colour, marker="o" if is_whole else "X", ms=7, ls="", clip_on=False)
        skipped = "not read back" if row["skipped"] is None else f"skipped {row['skipped']:,}"
        name = f"{plain(row['store'], 32)}: {skipped}"
        at, leader = (
            (1.04, (n + 1) / (len(points) + 1)),
            {"arrowstyle": "-", "color": colour, "lw": 0.5, "relpos": (0, 0.5)},
        )
        axes.annotate(name, (x, y), at, textcoords="axes fraction", va="center", fontsize=8, arrowprops=leader)
    axes.set_xlabel("appends per second")
    axes.set_ylabel("reader lag, median, ms")
    axes.set_xlim(0, 1.1 * float(known["appends_per_s"].to_numpy().max()) or 1.0)
    axes.set_ylim(0, top)
    return axes
