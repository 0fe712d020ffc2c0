"""A report as Markdown for a comment of a pull request: question, answer, verdict, tables, warnings, run ids; no pictures.

What users wrote is text here and nothing else: no markup, no link, no image, no mention, no line of its own. It is never larger
than BYTES_MAX, as a comment must not be: rows are left out, and long texts are cut.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from eventcore_lab.reports.record import (
    SIGNS,
    answer_of,
    badge_of,
    comparison_of,
    is_kept_invariant,
    kept_invariants,
    plain,
    rows_of,
    runs_of,
    warnings_of,
)

T = TypeVar("T")

BYTES_MAX = 60_000
_BUDGETS = ((200, 400), (60, 200), (25, 120), (8, 60))
"""So many rows of each table, and so many characters of each text; the next is tried where the last was too much."""
_ORDER = ("violated", "fail", "not held", "inconclusive", "not settled")
_SPECIAL = re.compile(r"([\\`*_\[\]<>|~$&!#]|:(?=//|\w+:))")
_MENTION = re.compile(r"(@|\\#|GH-)(?=\w)", re.IGNORECASE)
_DIRECTIONS = re.compile("[\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def markdown(record: Mapping[str, Any]) -> str:
    """The record of a `report.json` as a comment."""
    return _fitting(lambda rows, characters: _Comment(rows, characters).of_report(record))


def summary(record: Mapping[str, Any]) -> str:
    """The record of a suite as a comment: a line per report."""
    return _fitting(lambda rows, characters: _Comment(rows, characters).of_suite(record))


def escaped(text: object, characters_max: int = 400) -> str:
    """Text that Markdown shows as it is, on one line. (A word joiner keeps `@name` and `#1` from becoming links.)"""
    cut = _line(text, characters_max)
    marked = _SPECIAL.sub(r"\\\1", cut).replace("www.", "www\\.")
    return _MENTION.sub("\\1\u2060", marked)


def code(text: object, characters_max: int = 120) -> str:
    """Text as a code span, in a table as well: the fence is longer than any run of backquotes within."""
    cut = _line(text, characters_max)
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", cut)), default=0))
    space = " " if cut.startswith("`") or cut.endswith("`") or not cut else ""
    return f"{fence}{space}{cut or '–'}{space}{fence}".replace("|", "\\|")


def _line(text: object, characters_max: int) -> str:
    """Text on one line, cut; nobody looks at all of a long one to show its beginning."""
    line = " ".join(_DIRECTIONS.sub("", plain(str(text)[: 10 * characters_max])).split())
    return line if len(line) <= characters_max else f"{line[: characters_max - 1]}…"


def _fitting(made: Callable[[int, int], str]) -> str:
    text = ""
    for rows, characters in _BUDGETS:
        text = made(rows, characters)
        if len(text.encode("utf-8", "backslashreplace")) <= BYTES_MAX:
            return text
    return text


class _Comment:
    """One attempt at a comment, of at most `rows_max` rows to a table and `characters_max` characters to a text."""

    def __init__(self, rows_max: int, characters_max: int) -> None:
        self.rows_max, self.characters_max = rows_max, characters_max

    def of_report(self, record: Mapping[str, Any]) -> str:
        return _joined(
            self._head(record),
            self._error(record),
            self._verdict(record),
            self._comparison(record),
            self._items("**Warnings**", warnings_of(record), lambda warning: f"⚠ {self._text(warning)}"),
            self._runs(record),
            self._parameters(record),
        )

    def of_suite(self, record: Mapping[str, Any]) -> str:
        jobs = [job for job in record.get("jobs") or () if isinstance(job, dict)]
        table = self._table(("verdict", "notebook", "parameters", "answer"), jobs, self._job)
        return _joined(self._head(record), table)

    def _job(self, job: Mapping[str, Any]) -> Sequence[str]:
        badge = badge_of(job)
        given = ", ".join(code(f"{name}={value}", 60) for name, value in dict(job.get("given") or {}).items())
        return f"{badge.sign} {badge.word}", self._text(job.get("name", "")), given, self._text(answer_of(job))

    def _text(self, text: object) -> str:
        return escaped(text, self.characters_max)

    def _head(self, record: Mapping[str, Any]) -> str:
        badge = badge_of(record)
        question = re.sub(r"[*`]+", "", str(record.get("question") or ""))
        lines = [f"### {self._text(record.get('title') or record.get('name') or 'Report')}"]
        lines += [f"**Question.** {self._text(question)}"] if question else []
        is_told_below = record.get("error") and record.get("kind") != "suite"
        answer = "" if is_told_below else answer_of(record)
        lines += [f"**{badge.sign} {badge.word}.** {self._text(answer)}".rstrip()]
        return "\n\n".join(lines)

    def _error(self, record: Mapping[str, Any]) -> str:
        error = record.get("error")
        if not isinstance(error, dict):
            return ""
        where = (
            f"Cell {self._text(error.get('cell'))} of {code(record.get('notebook', ''))}"
            if error.get("cell")
            else "Before any cell"
        )
        said = f"{error.get('name', '')}: {error.get('message', '')}"
        return f"**{where}** stopped it: {self._text(said)}"

    def _verdict(self, record: Mapping[str, Any]) -> str:
        listed = rows_of(record)
        kept, rows = kept_invariants(listed), sorted((r for r in listed if not is_kept_invariant(r)), key=_severity)
        table = self._table(("verdict", "what", "limit", "measured [95 %]", "why", "run"), rows, self._row)
        names = ", ".join(map(self._text, kept[: self.rows_max]))
        return _joined(table, f"✓ {len(kept)} invariants tested, none violated: {names}." if kept else "").rstrip()

    def _row(self, row: Mapping[str, str]) -> Sequence[str]:
        status = SIGNS.get(row["status"], self._text(row["status"]))
        told = [self._text(row[name]) for name in ("name", "limit", "measured", "reason")]
        return [status, *told, code(row["run_id"]) if row["run_id"] else ""]

    def _comparison(self, record: Mapping[str, Any]) -> str:
        baseline = record.get("baseline")
        if not isinstance(baseline, dict):
            return ""
        head = f"**Against {self._text(baseline.get('of', ''))}**, one run each, intervals from within them"
        names = ("name", "now", "then", "ratio", "change")
        rows = comparison_of(record)
        titles = ("figure", "now", "then", "ratio [95 %]", "change")
        table = self._table(titles, rows, lambda row: [self._text(row[name]) for name in names])
        return _joined(head, table or "No figure is in both.").rstrip()

    def _runs(self, record: Mapping[str, Any]) -> str:
        return self._items("**Runs**", runs_of(record), self._run)

    def _run(self, run: Mapping[str, Any]) -> str:
        durability = self._text(run.get("durability") or "unknown")
        return f"{code(run.get('run_id', ''))} {self._text(run.get('of', ''))}, durability: {durability}"

    def _parameters(self, record: Mapping[str, Any]) -> str:
        values, names = record.get("parameters"), record.get("changed")
        if not isinstance(values, dict) or not isinstance(names, list):
            return ""
        changed = [name for name in names if isinstance(name, str)][: self.rows_max]
        told = ", ".join(code(f"{name}={values.get(name)}") for name in changed)
        return f"Changed parameters: {told}" if changed else ""

    def _items(self, head: str, items: Sequence[T], said: Callable[[T], str]) -> str:
        if not items:
            return ""
        more = len(items) - self.rows_max
        lines = [f"- {said(item)}" for item in items[: self.rows_max]]
        return "\n".join([head, "", *lines, *([f"- … and {more} more"] if more > 0 else [])])

    def _table(self, head: Sequence[str], items: Sequence[T], cells: Callable[[T], Sequence[str]]) -> str:
        if not items:
            return ""
        more = len(items) - self.rows_max
        lines = [head, ["---"] * len(head), *map(cells, items[: self.rows_max])]
        text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        return text + (f"\n\n… and {more} rows more" if more > 0 else "")


def _severity(row: Mapping[str, str]) -> int:
    """What must be seen stays when rows are left out."""
    return _ORDER.index(row["status"]) if row["status"] in _ORDER else len(_ORDER)


def _joined(*parts: str) -> str:
    return "\n\n".join(part for part in parts if part) + "\n"
