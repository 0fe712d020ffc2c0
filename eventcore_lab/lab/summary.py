"""What held here: for each topic of claims.py the latest claims that the Lab has, by how much, and where the evidence is.

A claim is evidence about the store it was tried on: of each claim the latest for each store counts. Topics without one were not
tested here. Nothing is measured, and what is told again is not kept again.
"""

from __future__ import annotations

import html
import json
import math
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

from msgspec import Struct, structs

from eventcore_lab.lab.claims import TOPICS
from eventcore_lab.lab.database import Lab, UnknownRun
from eventcore_lab.lab.measures import Run
from eventcore_lab.lab.sentences import Sentence
from eventcore_lab.lab.targets import Judgement, Targets, Verdict, judge
from eventcore_lab.lab.unpromised import as_promised
from eventcore_lab.schema import data_folder

TITLE = "what held here"
SIGNS = {"held": "✓ held", "not held": "✗ not held", "not settled": "? not settled"}
_HEADS = ("Claim", "Limit", "Found [95 %]", "Verdict", "Measured on", "Evidence")


class Evidence(Struct, frozen=True):
    """One claim as it was found on one store, and the address of the report it is from ("" if there is none any more)."""

    claim: Judgement
    store: str
    link: str


class Summary(Struct, frozen=True):
    """What a Lab has to say about the topics, as a table; `verdict` is for `conclude`."""

    evidence: tuple[Evidence, ...]
    verdict: Verdict

    @property
    def untested(self) -> list[str]:
        """The topics that nothing was claimed about."""
        tested = {e.claim.topic for e in self.evidence}
        return [topic for topic in TOPICS if topic not in tested]

    def __str__(self) -> str:
        lines = [self.verdict.answer]
        for topic, text in TOPICS.items():
            lines += ["", f"{topic}: {text}"]
            found = [e for e in self.evidence if e.claim.topic == topic]
            for e in found:
                j = e.claim
                lines.append(f"  {SIGNS[j.status]}  {j.name}: {j.shown}, {j.limit} ({e.store}, run {j.run_id})")
            lines += [] if found else ["  – not tested here"]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        head = "".join(f"<th scope='col'>{name}</th>" for name in _HEADS)
        groups = "".join(self._group(topic, text) for topic, text in TOPICS.items())
        return f"<table class='verdict topics'><thead><tr>{head}</tr></thead>{groups}</table>"

    def _group(self, topic: str, text: str) -> str:
        found, half = [e for e in self.evidence if e.claim.topic == topic], len(_HEADS) // 2
        title = html.escape(text)
        if not found:
            nothing = f"<td colspan='{half}'>– not tested here</td>"
            return f"<tbody><tr><th colspan='{half}' scope='row'>{title}</th>{nothing}</tr></tbody>"
        rows = "".join(map(_html_row, found))
        return f"<tbody><tr><th colspan='{len(_HEADS)}' scope='rowgroup'>{title}</th></tr>{rows}</tbody>"


def what_held(lab: Lab | None = None, store: str = "", reports: Path | None = None) -> Summary:
    """The latest claims in `lab`, of all stores or of one. Reports are looked for in the folder that this one is being made in,
    else in the project's `reports`."""
    lab = lab or Lab()
    rows = [row for row in lab.claims().iter_rows(named=True) if not store or row["store"] == store]
    links = _links(reports)
    found = [Evidence(_judgement(row), row["store"] or "unknown", links.get(row["run_id"], "")) for row in rows]
    order = list(TOPICS)
    found.sort(key=lambda e: order.index(e.claim.topic) if e.claim.topic in TOPICS else len(order))
    verdict = Verdict(TITLE, (*(e.claim for e in found), *_invariants(lab, found)))
    return Summary(tuple(found), structs.replace(verdict, answer=_answer(found, verdict)))


def sentence(found: Summary) -> Sentence:
    """What is to be known before the table is read."""
    return Sentence(found.verdict.answer)


def _judgement(row: Mapping[str, object]) -> Judgement:
    measured, low, high = (math.nan if (v := row[k]) is None else float(str(v)) for k in ("measured", "low", "high"))
    texts = {k: str(row[k] or "") for k in ("name", "limit_text", "unit", "status", "reason", "run_id", "topic")}
    return Judgement(
        "claim",
        texts["name"],
        texts["limit_text"],
        measured,
        low,
        high,
        texts["unit"],
        texts["status"],
        texts["reason"],
        texts["run_id"],
        texts["topic"],
    )


def _invariants(lab: Lab, found: list[Evidence]) -> tuple[Judgement, ...]:
    """A run that lost an event is evidence for nothing: the runs that claims come from are held to what was promised in them.
    Stores that say what they do not keep are left out: how they fail is what the claims about them are evidence for."""
    runs = []
    for run_id in dict.fromkeys(e.claim.run_id for e in found):
        try:
            runs.append(Run(lab, run_id))
        except UnknownRun:
            continue
    promising = as_promised([run for run in runs if not run.row["lacks"]])
    return judge(Targets.of(name=TITLE), *promising).judgements if promising else ()


TOLD_MAX = 3


def _answer(found: list[Evidence], verdict: Verdict) -> str:
    if not found:
        return "Nothing was claimed in this Lab yet: the other notebooks do, each about its topic."
    tested = {e.claim.topic for e in found}
    counts = Counter(e.claim.status for e in found)
    said = ", ".join(f"{counts[status]} {status}" for status in SIGNS if counts[status])
    text = f"{len(tested)} of {len(TOPICS)} topics were tested here; of {len(found)} claims {said}."
    names = [f"{e.claim.name} ({e.claim.shown}; {e.store})" for e in found if e.claim.status == "not held"]
    text += f" Not held: {'; '.join(names[:TOLD_MAX])}{' …' if len(names) > TOLD_MAX else ''}." if names else ""
    broken = [j for j in verdict.judgements if j.status == "violated"]
    text += f" Evidence from runs that were not correct: {'; '.join(j.name for j in broken)}." if broken else ""
    untested = [topic for topic in TOPICS if topic not in tested]
    return text + (f" Not tested here: {', '.join(untested)}." if untested else "")


def _html_row(e: Evidence) -> str:
    j, whole = e.claim, "style='white-space:nowrap'"
    reason = f"<br><small>{html.escape(j.reason)}</small>" if j.reason else ""
    run = f"<code>{html.escape(j.run_id)}</code>"
    link = f"<a href='{html.escape(e.link)}'>report</a>, run {run}" if e.link else f"run {run}"
    return (
        f"<tr class='{j.status.replace(' ', '-')}'>"
        f"<th scope='row' style='min-width:14em;font-weight:400'>{html.escape(j.name)}</th>"
        f"<td {whole}>{html.escape(j.limit)}</td><td>{html.escape(j.shown)}{reason}</td>"
        f"<td {whole}>{SIGNS.get(j.status, html.escape(j.status))}</td><td>{html.escape(e.store)}</td><td>{link}</td></tr>"
    )


def _links(reports: Path | None) -> dict[str, str]:
    """Run id → address, as a notebook or a report says it, of the first report that judged the run."""
    own = os.environ.get("EVENTCORE_LAB_REPORT")  # the report that is being made is a neighbour of those it links to
    folder = reports or (Path(own).parent if own else data_folder().parent / "reports")
    found: dict[str, str] = {}
    for path in sorted(folder.glob("*/report.json")):
        for run_id in _run_ids(path):
            found.setdefault(run_id, f"../{'' if own else 'reports/'}{quote(path.parent.name)}/index.html")
    return found


def _run_ids(path: Path) -> set[str]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return {str(row["run_id"]) for row in record["conclusion"]["rows"] if row.get("kind") == "claim"}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return set()  # no report, a suite, one of an older version, or one that came to nothing
