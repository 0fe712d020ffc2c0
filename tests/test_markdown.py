"""Claims about what a report says outside of its page: Markdown for a pull request, JUnit XML for a CI server. Read by real
parsers; whatever users call their things stays text."""

from __future__ import annotations

import re
from typing import Any
from xml.etree import ElementTree

import pytest
from markdown_it import MarkdownIt

from eventcore_lab.reports.junit import junit
from eventcore_lab.reports.markdown import BYTES_MAX, code, escaped, markdown, summary
from eventcore_lab.reports.record import ORDER, exit_code_of, worst
from eventcore_lab.schema import ExitCode

HOSTILE = [
    "<img src=https://evil.example/x.png onerror=alert(1)> </script><b>bold</b>",
    "![i](https://evil.example/y.png) [l](javascript:alert(1)) https://evil.example www.evil.example me@evil.example",
    "a | b || `c` ``d | `` \\| \\` \\",
    "# head\n\n- item\n1. one\n> quote\n```\nfence\n```\n---\n| a |\n|---|",
    "@somebody @org/team #123 GH-7 :tada: $x_1$ $$y$$ ~~no~~ **md** _it_ &lt;b&gt; &#64;you",
    "שלום \u202eabc\u202c \u2067x\u2069 \u200f",
    "=1+1 +1 -1 @SUM(A1)",
    "\x00\x01\x08\x0b\x1b[31mred\x1b[0m\x7f\ufffe\ud800 ]]> <!-- &",
    "x" * 10_000,
    "",
]
PARSER = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])


def row(name: str = "p99", status: str = "pass", **facts: str) -> dict[str, str]:
    made = {"kind": "target", "name": name, "limit": "< 5 ms", "measured": "4 ms [3 – 5]", "status": status}
    return {**made, "reason": "", "run_id": "20261124-1", "topic": "", **facts}


def record(*rows: dict[str, str], **facts: Any) -> dict[str, Any]:
    """A report that came to an end."""
    run = {
        "run_id": "20261124-1",
        "of": "memory, users",
        "store": "memory",
        "durability": "none: lost",
        "cautions": ["late"],
    }
    concluded = {"status": "pass", "exit_code": 0, "title": "T", "answer": "It is.", "rows": list(rows), "runs": [run]}
    made = {"kind": "report", "name": "00-x", "title": "Is it?", "question": "Is it *fast*?", "notebook": "00-x.ipynb"}
    return {
        **made,
        "status": "complete",
        "started": "2026-11-24T00:00:00+00:00",
        "seconds": 1.5,
        "parameters": {"store": "memory"},
        "changed": ["store"],
        "conclusion": concluded,
        "error": None,
        **facts,
    }


def broken(**facts: Any) -> dict[str, Any]:
    error = {"cell": 3, "source": "1 / 0", "name": "ZeroDivisionError", "message": "division by zero"}
    return record(status="failed", error=error, conclusion=None, **facts)


def rendered(text: str) -> tuple[str, set[str]]:
    """The words that a reader sees, and the kinds of what is there besides words."""
    words, kinds = [], set()
    for token in PARSER.parse(text):
        kinds.add(token.type)
        for inner in token.children or ():
            kinds.add(inner.type)
            words.append(inner.content)
    return " ".join(words), kinds


# ---- Markdown


def test_a_comment_has_question_answer_badge_table_warnings_and_run_ids() -> None:
    words, kinds = rendered(markdown(record(row(), row("p50", "inconclusive", reason="too few"))))
    for part in (
        "Is it fast?",
        "It is.",
        "✓ Pass.",
        "? inconclusive",
        "too few",
        "< 5 ms",
        "late",
        "20261124-1",
        "none: lost",
    ):
        assert part in words
    assert words.index("p50") < words.index("p99")  # what is not well comes first
    assert "store=memory" in words and "table_open" in kinds and "image" not in kinds


@pytest.mark.parametrize("hostile", HOSTILE, ids=range(len(HOSTILE)))
def test_no_name_becomes_markup_in_a_comment(hostile: str) -> None:
    names = dict.fromkeys(("name", "limit", "measured", "reason", "run_id"), hostile)
    made = record(
        row(**names, status="fail"),
        title=hostile,
        name=hostile,
        question=hostile,
        notebook=hostile,
        parameters={hostile: hostile},
        changed=[hostile],
        baseline={
            "of": hostile,
            "rows": [{"name": hostile, "now": hostile, "then": hostile, "ratio": 2.0, "of_then": hostile}],
        },
    )
    made["conclusion"] |= {"answer": hostile, "runs": [dict.fromkeys(("run_id", "of", "durability"), hostile)]}
    text = markdown(made)
    plain_kinds = rendered(markdown(record(row(status="fail"), baseline={"of": "a", "rows": [{"name": "b"}]})))[1]
    _, kinds = rendered(text)
    assert kinds <= plain_kinds | {"text_special"}, kinds - plain_kinds
    assert not re.search(r"(?<!`)@\w|[^\\]https?://|#\d", re.sub(r"(`+) ?.+? ?\1", "", text))
    assert not re.search("[\u202a-\u202e\u2066-\u2069\x00-\x08\x1b]", text)
    rows = [token for token in PARSER.parse(text) if token.type == "td_open"]
    assert len(rows) == 6 + 5  # no name has made a cell or a row


@pytest.mark.parametrize("hostile", HOSTILE[:7], ids=range(7))
def test_what_is_escaped_reads_as_it_was(hostile: str) -> None:
    shown = " ".join(re.sub("[\u200e\u200f\u202a-\u202e\u2066-\u2069]", "", hostile).split())
    words, _ = rendered(f"Answer: {escaped(hostile)}")
    assert words.replace("\u2060", "").replace(" ", "").removeprefix("Answer:") == shown.replace(" ", "")


@pytest.mark.parametrize("hostile", [*HOSTILE[:7], "`", "``a`", "|"])
def test_a_code_span_is_one_in_a_table_too(hostile: str) -> None:
    tokens = PARSER.parse(f"| a | b |\n| --- | --- |\n| {code(hostile)} | end |")
    inner = [token.children or [] for token in tokens if token.type == "inline"]
    assert [token.type for token in inner[2]] == ["code_inline"]
    assert inner[3][0].content == "end"


def test_a_comment_is_never_too_large_and_keeps_what_is_not_well() -> None:
    long = "𝄞|`" * 4_000
    rows = [row(f"{n} {long}", reason=long, measured=long) for n in range(900)] + [row("the one", "violated")]
    made = record(*rows, title=long, question=long, parameters={long: long}, changed=[long] * 500)
    made["conclusion"]["runs"] *= 900
    text = markdown(made)
    assert len(text.encode()) < BYTES_MAX
    assert "the one" in text and "rows more" in text
    jobs = [made | {"given": {long: long}, "folder": "f"}] * 900
    assert len(summary({"kind": "suite", "jobs": jobs, "title": long}).encode()) < BYTES_MAX


def test_a_comment_about_a_failure_names_the_cell_and_is_not_green() -> None:
    text = markdown(broken())
    assert (
        "**✗ Broken.**" in text and "**Cell 3 of `00-x.ipynb`** stopped it: ZeroDivisionError: division by zero" in text
    )
    assert "Pass" not in text


def test_invariants_that_hold_are_one_line() -> None:
    rows = [row(f"invariant {n}", kind="invariant") for n in range(12)]
    text = markdown(record(row(), *rows))
    assert "✓ 12 invariants tested, none violated: invariant 0," in text
    assert text.count("\n|") == 3


# ---- JUnit


def suites(text: str) -> ElementTree.Element:
    """The document, held to what CI servers expect of it: names, counts that add up, known elements."""
    root = ElementTree.fromstring(text)
    assert root.tag == "testsuites"
    counted = dict.fromkeys(("tests", "failures", "errors", "skipped"), 0)
    for suite in root:
        cases = suite.findall("testcase")
        assert suite.tag == "testsuite" and len(cases) == len(list(suite)) == int(suite.attrib["tests"])
        for name, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
            assert int(suite.attrib[name]) == len(suite.findall(f"testcase/{tag}"))
        for case in cases:
            assert case.get("classname") and case.get("name") is not None and float(case.attrib["time"]) >= 0
            assert len(list(case)) <= 1
        for name in counted:
            counted[name] += int(suite.attrib[name])
        float(suite.attrib["time"])
    assert {name: int(root.attrib[name]) for name in counted} == counted
    return root


@pytest.mark.parametrize(
    ("status", "kind", "tag"),
    [
        ("pass", "target", "system-out"),
        ("fail", "target", "failure"),
        ("violated", "invariant", "failure"),
        ("inconclusive", "target", "skipped"),
        ("held", "claim", "system-out"),
        ("not held", "claim", "skipped"),
        ("not settled", "claim", "skipped"),
    ],
)
def test_each_line_of_a_verdict_is_a_case(status: str, kind: str, tag: str) -> None:
    [case] = suites(junit([record(row("a <b>", status, kind=kind, reason="why"))])).findall("*/testcase")
    assert (case.get("classname"), case.get("name"), case[0].tag) == (f"00-x.{kind}", "a <b>", tag)
    said = case[0].get("message") or case[0].text or ""
    assert "4 ms [3 – 5], limit < 5 ms: why" in said


def test_a_notebook_that_stopped_is_an_error_that_names_the_cell() -> None:
    [error] = suites(junit([broken()])).findall("*/testcase/error")
    assert error.get("message") == "cell 3 of 00-x.ipynb: ZeroDivisionError: division by zero"
    assert "1 / 0" in (error.text or "")


def test_a_notebook_that_failed_after_its_conclusion_is_an_error_all_the_same() -> None:
    found = broken() | {"conclusion": record(row())["conclusion"]}
    root = suites(junit([found]))
    assert (root.get("tests"), root.get("errors")) == ("2", "1")
    assert exit_code_of(found) == ExitCode.BROKEN


def test_a_notebook_without_a_conclusion_has_passed_nothing() -> None:
    [skipped] = suites(junit([record(conclusion=None)])).findall("*/testcase/skipped")
    assert skipped.get("message") == "inconclusive: the notebook came to no conclusion"


@pytest.mark.parametrize("hostile", HOSTILE, ids=range(len(HOSTILE)))
def test_any_name_is_xml(hostile: str) -> None:
    names = dict.fromkeys(("name", "limit", "measured", "reason", "run_id", "kind"), hostile)
    made = [
        record(row(**names, status=s), name=hostile or "x", started=hostile) for s in ("fail", "pass", "inconclusive")
    ]
    made[0] |= {"status": "failed", "error": dict.fromkeys(("cell", "source", "name", "message"), hostile)}
    text = junit(made)
    text.encode("utf-8")
    assert suites(text).get("tests") == "4"


# ---- exit codes


def test_the_worst_exit_code_of_several_is_the_first_in_the_order() -> None:
    assert set(ORDER) == set(ExitCode)
    names = [code.name for code in ORDER]
    assert names == ["INTERRUPTED", "VIOLATED", "BROKEN", "USAGE", "FAIL", "INCONCLUSIVE", "PASS"]
    for n, code_ in enumerate(ORDER):
        assert worst(reversed(ORDER[n:])) == code_
    assert worst([]) == ExitCode.PASS


@pytest.mark.parametrize(
    ("facts", "code_"),
    [
        ({}, ExitCode.PASS),
        ({"conclusion": {"exit_code": 5}}, ExitCode.VIOLATED),
        ({"conclusion": {"exit_code": "x"}}, ExitCode.INCONCLUSIVE),
        ({"conclusion": []}, ExitCode.INCONCLUSIVE),
        ({"status": "interrupted"}, ExitCode.INTERRUPTED),
        ({"status": "failed", "error": {"name": "UsageError"}}, ExitCode.USAGE),
        ({"status": "failed", "error": 3}, ExitCode.BROKEN),
    ],
)
def test_a_report_has_the_exit_code_of_how_it_came_out(facts: dict[str, Any], code_: ExitCode) -> None:
    assert exit_code_of(record(**facts)) == code_
