"""Reports as JUnit XML, which every CI server shows: a test case per line of a verdict.

A target that fails and an invariant that is violated are failures. What is inconclusive is skipped, with its reason, and so is
a claim that is not held or not settled: a finding decides nothing. A notebook that stopped is an error that names the cell.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any
from xml.etree import ElementTree as xml

from eventcore_lab.reports.record import answer_of, conclusion_of, plain, rows_of

_FAILURES = ("fail", "violated")
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_CHARACTERS_MAX = 10_000


def junit(records: Iterable[Mapping[str, Any]]) -> str:
    """The records of `report.json` files as one document, a suite each."""
    root = xml.Element("testsuites", name="eventcore_lab")
    totals = dict.fromkeys(("tests", "failures", "errors", "skipped"), 0)
    for record in records:
        suite = _suite(record)
        root.append(suite)
        for name in totals:
            totals[name] += int(suite.get(name, "0"))
    root.attrib.update({name: str(n) for name, n in totals.items()})
    xml.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + xml.tostring(root, encoding="unicode") + "\n"


def _suite(record: Mapping[str, Any]) -> xml.Element:
    name = allowed(record.get("label") or record.get("name") or "report")
    suite = xml.Element("testsuite", name=name)
    for row in rows_of(record):
        suite.append(_judged(name, row))
    if record.get("status") != "complete":
        suite.append(_stopped(name, record))
    elif not rows_of(record):
        suite.append(_unjudged(name, record))
    cases = list(suite)
    counts = {kind: sum(case.find(tag) is not None for case in cases) for kind, tag in _TAGS.items()}
    suite.attrib.update({"tests": str(len(cases)), **{kind: str(n) for kind, n in counts.items()}})
    seconds = record.get("seconds")
    suite.set("time", f"{seconds:.3f}" if isinstance(seconds, int | float) else "0")
    suite.set("timestamp", allowed(record.get("started", ""))[:19])
    return suite


_TAGS = {"failures": "failure", "errors": "error", "skipped": "skipped"}


def _judged(suite: str, row: Mapping[str, str]) -> xml.Element:
    case = _case(f"{suite}.{row['kind'] or 'target'}", row["name"])
    said = f"{row['measured']}, limit {row['limit']}" + (f": {row['reason']}" if row["reason"] else "")
    run = f"\nrun {row['run_id']}" if row["run_id"] else ""
    if row["status"] in _FAILURES:
        _told(case, "failure", row["status"], said, run)
    elif row["status"] in ("pass", "held"):
        xml.SubElement(case, "system-out").text = allowed(said + run)
    else:
        _told(case, "skipped", "", f"{row['status']}: {said}", "")
    return case


def _stopped(suite: str, record: Mapping[str, Any]) -> xml.Element:
    error = record.get("error")
    facts = error if isinstance(error, dict) else {}
    cell = f"cell {facts['cell']} of {record.get('notebook', '')}" if facts.get("cell") else "the notebook"
    case = _case(f"{suite}.notebook", "every cell runs")
    said = f"{cell}: {facts.get('name', '')}: {facts.get('message', '')}" if facts else str(record.get("status"))
    _told(case, "error", str(facts.get("name") or "stopped"), said, f"\n{facts.get('source', '')}")
    return case


def _unjudged(suite: str, record: Mapping[str, Any]) -> xml.Element:
    """A notebook without a conclusion, or with one that judged nothing, has passed nothing."""
    case = _case(f"{suite}.notebook", "there is a conclusion")
    why = answer_of(record) if conclusion_of(record) else "the notebook came to no conclusion"
    _told(case, "skipped", "", f"inconclusive: {why}", "")
    return case


def _case(classname: str, name: object) -> xml.Element:
    return xml.Element("testcase", classname=allowed(classname), name=allowed(name), time="0")


def _told(case: xml.Element, tag: str, kind: str, message: str, more: str) -> None:
    found = xml.SubElement(case, tag, message=allowed(" ".join(message.split())))
    if kind:
        found.set("type", allowed(kind))
        found.text = allowed(message + more)


def allowed(text: object) -> str:
    """Only what an XML document may hold; no longer than anybody reads."""
    found = _NOT_XML.sub("", plain(text))
    return found if len(found) <= _CHARACTERS_MAX else f"{found[:_CHARACTERS_MAX]}…"
