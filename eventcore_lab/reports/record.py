"""What is known of a finished report: its `report.json`, and what every format says of it.

    kind          "report", or "suite" (whose `jobs` are reports of the same folder)
    name, title, question, notebook     the notebook's stem, its heading, the question it asks (Markdown), its executed copy
    status        complete, failed, interrupted: how the execution ended, whatever it found
    started, seconds                    UTC in ISO 8601; all of it, the kernel's start and this page included
    parameters, changed                 every parameter with its value; the names whose value is not the notebook's own
    conclusion    what the notebook concluded (lab/conclusion.py describes it), or null
    baseline      how that compares with an earlier report or run: of, rows (lab/baseline.py), or null
    error         cell, source (its first line), name, message of what stopped it, or null
    fingerprint   of the notebook's cells, its parameters and the package's version: equal ones ask the same

Text in it comes from users: each format escapes it in its own way.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from eventcore_lab.schema import ExitCode

ORDER = (
    ExitCode.INTERRUPTED,
    ExitCode.VIOLATED,
    ExitCode.BROKEN,
    ExitCode.USAGE,
    ExitCode.FAIL,
    ExitCode.INCONCLUSIVE,
    ExitCode.PASS,
)
"""From the worst: what several reports end with together is the first of these that one of them ended with."""

SIGNS = {
    "pass": "✓ pass",
    "fail": "✗ fail",
    "inconclusive": "? inconclusive",
    "violated": "! violated",
    "held": "✓ held",
    "not held": "✗ not held",
    "not settled": "? not settled",
}
"""Status of a line of a verdict → a sign and a word, so that it does not hang on its colour."""

_COLOURS = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)")
_CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


@dataclass(frozen=True)
class Badge:
    """A verdict as a word and a sign."""

    kind: str
    sign: str
    word: str


_VERDICTS = {
    "pass": Badge("pass", "✓", "Pass"),
    "fail": Badge("fail", "✗", "Fail"),
    "inconclusive": Badge("inconclusive", "?", "Inconclusive"),
    "violated": Badge("violated", "!", "Invariant violated"),
}
_BROKEN = Badge("none", "✗", "Broken")
_INTERRUPTED = Badge("none", "■", "Interrupted")
_NO_VERDICT = Badge("none", "–", "No verdict")


def badge_of(record: Mapping[str, Any]) -> Badge:
    """The badge of a `report.json`: how the run ended, and only if it did, what it found."""
    if record.get("status") == "failed":
        return _BROKEN
    if record.get("status") == "interrupted":
        return _INTERRUPTED
    status = conclusion_of(record).get("status")
    return _VERDICTS.get(status, _NO_VERDICT) if isinstance(status, str) else _NO_VERDICT


def answer_of(record: Mapping[str, Any]) -> str:
    """The sentence beside the badge."""
    if (error := record.get("error")) and isinstance(error, dict) and record.get("status") != "complete":
        return plain(error.get("message", "")).partition("\n")[0]
    return plain(conclusion_of(record).get("answer", ""))


def exit_code_of(record: Mapping[str, Any]) -> ExitCode:
    """What a command ends with that made only this report."""
    error = record.get("error")
    if record.get("status") == "interrupted":
        return ExitCode.INTERRUPTED
    if record.get("status") != "complete":
        is_usage = isinstance(error, dict) and error.get("name") == "UsageError"
        return ExitCode.USAGE if is_usage else ExitCode.BROKEN
    try:
        return ExitCode(conclusion_of(record).get("exit_code", ExitCode.INCONCLUSIVE))
    except ValueError:
        return ExitCode.INCONCLUSIVE


def worst(codes: Iterable[ExitCode]) -> ExitCode:
    """What several reports end with together: see ORDER. Of none, PASS."""
    found = set(codes)
    return next((code for code in ORDER if code in found), ExitCode.PASS)


def conclusion_of(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """What it concluded; empty where it did not, or where that is not what it should be."""
    found = record.get("conclusion")
    return found if isinstance(found, dict) else {}


def rows_of(record: Mapping[str, Any]) -> list[dict[str, str]]:
    """The lines of the verdict, everything as text: kind, name, limit, measured, status, reason, run_id."""
    names = ("kind", "name", "limit", "measured", "status", "reason", "run_id")
    rows = conclusion_of(record).get("rows")
    listed = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    return [{name: plain(row.get(name, "")) for name in names} for row in listed]


def kept_invariants(rows: Iterable[Mapping[str, str]]) -> list[str]:
    """The names of the invariants that were tested and hold: what nobody must read line by line."""
    return [row["name"] for row in rows if is_kept_invariant(row)]


def is_kept_invariant(row: Mapping[str, str]) -> bool:
    return row["kind"] == "invariant" and row["status"] == "pass"


def warnings_of(record: Mapping[str, Any]) -> list[str]:
    """What must be known before the figures are believed: cautions of the runs, and acknowledgements that are not durable."""
    found: dict[str, None] = {}
    for run in runs_of(record):
        cautions = run.get("cautions")
        listed = cautions if isinstance(cautions, list) else []
        found |= dict.fromkeys(f"{plain(run.get('of', ''))}: {plain(text)}" for text in listed)
        durability = plain(run.get("durability", ""))
        if durability and not durability.startswith("durable"):
            found[f"{plain(run.get('store', ''))}: durability: {durability}"] = None
    return list(found)


def runs_of(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The runs that were judged, as the conclusion keeps them."""
    runs = conclusion_of(record).get("runs")
    return [run for run in runs if isinstance(run, dict)] if isinstance(runs, list) else []


def comparison_of(record: Mapping[str, Any]) -> list[dict[str, str]]:
    """The rows of a comparison with a baseline as text: name, now, then, ratio, change, and `of` where the two differ."""
    baseline = record.get("baseline")
    rows = baseline.get("rows") if isinstance(baseline, dict) else None
    return [_compared(row) for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []


def _compared(row: Mapping[str, Any]) -> dict[str, str]:
    numbers = [row.get(name) for name in ("ratio", "low", "high")]
    value, low, high = (f"{n:.3g}" if isinstance(n, int | float) else "" for n in numbers)
    ratio = f"{value} [{low} – {high}]" if low and high else value
    then, now = (plain(row.get(name, "")) for name in ("of_then", "of_now"))
    texts = {name: plain(row.get(name, "")) for name in ("name", "now", "then", "change")}
    return {**texts, "ratio": ratio or "–", "of": "" if then == now else f"then: {then}"}


def plain(text: object) -> str:
    """Text without terminal colours and control characters, which no format can hold."""
    return _CONTROLS.sub("", _COLOURS.sub("", str(text)))
