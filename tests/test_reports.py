"""Claims about reports, each on a toy notebook that is made here. Kernels are slow to start, so most claims share two."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import browser
import nbformat
import pytest

from eventcore_lab import reports
from eventcore_lab.reports import execution, page, passwords, stop
from eventcore_lab.spec import UsageError

HOSTILE = (
    "<img src=https://evil.example/x.png onerror=alert(1)> </script><b>bold</b> $x_1$ **md** `c`\nline2 שלום \u202eabc"
)
CONCLUDE = "import json, os\njson.dump({}, open(os.environ['EVENTCORE_LAB_REPORT'] + '/conclusion.json', 'w'))"


def make(path: Path, *cells: str, kernel: str = "python3") -> Path:
    """A notebook whose cells begin with `#` (Markdown), `P:` (parameters) or neither (code)."""
    made = nbformat.v4.new_notebook(metadata={"kernelspec": {"name": kernel, "display_name": kernel}})
    for cell in cells:
        if cell.startswith(("#", "M:")):
            made.cells.append(nbformat.v4.new_markdown_cell(cell.removeprefix("M:")))
        elif cell.startswith("P:"):
            made.cells.append(nbformat.v4.new_code_cell(cell[2:], metadata={"tags": ["parameters"]}))
        else:
            made.cells.append(nbformat.v4.new_code_cell(cell))
    nbformat.write(made, path)
    return path


def conclude(**facts: object) -> str:
    return CONCLUDE.replace("{}", repr(facts))


# ---- names and parameters: nothing runs


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("00-store-benchmark", "01-soak", "02-store"):
        make(tmp_path / f"{name}.ipynb", "x = 1")
    return tmp_path


@pytest.mark.parametrize("name", ["00-store-benchmark", "00", "store-benchmark", "00-store-benchmark.ipynb"])
def test_a_notebook_is_found_by_each_of_its_names(folder: Path, name: str) -> None:
    assert reports.find_notebook(name, folder) == folder / "00-store-benchmark.ipynb"


def test_a_notebook_is_found_by_its_path(folder: Path, tmp_path: Path) -> None:
    path = make(tmp_path / "elsewhere.ipynb", "x = 1")
    assert reports.find_notebook(str(path), folder / "none") == path


@pytest.mark.parametrize("name", ["stroe-benchmark", "", "x\n<b>", "y" * 10_000, "a\0b.ipynb", "/none/00.ipynb"])
def test_an_unknown_notebook_is_refused_in_one_short_line(folder: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"unknown notebook .*known: 00-store-benchmark, 01-soak, 02-store") as caught:
        reports.find_notebook(name, folder)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_the_nearest_notebook_is_proposed(folder: Path) -> None:
    with pytest.raises(UsageError, match="did you mean 00-store-benchmark"):
        reports.find_notebook("00-stroe-benchmark", folder)


def test_two_notebooks_of_one_number_are_ambiguous(folder: Path) -> None:
    make(folder / "00-other.ipynb", "x = 1")
    with pytest.raises(UsageError, match="ambiguous: 00-other, 00-store-benchmark"):
        reports.find_notebook("00", folder)


PARAMETERS = """P:import os
duration_s = 5.0  # how long, s
store = "memory"  # what is measured
trials = 3
is_quick = False
rates = [1, 10]  # events/s
names = ["a"]
limits = [0.5]
table = {"a": 1}
anything = None
seed: int | None = None
where = (
    "here"  # not this
)  # but this
computed = os.getpid()
"""


@pytest.fixture
def typed(tmp_path: Path) -> Path:
    return make(tmp_path / "typed.ipynb", "# Typed", PARAMETERS)


def test_parameters_are_the_literals_of_the_tagged_cell(typed: Path) -> None:
    found = {p.name: p for p in reports.declared_parameters(typed)}
    assert list(found) == [
        "duration_s",
        "store",
        "trials",
        "is_quick",
        "rates",
        "names",
        "limits",
        "table",
        "anything",
        "seed",
        "where",
    ]
    assert (found["duration_s"].type, found["duration_s"].default) == ("float", 5.0)
    assert found["duration_s"].help == "how long, s"
    assert (found["where"].default, found["where"].help) == ("here", "but this")
    assert (found["seed"].type, found["anything"].type) == ("int", "any")


@pytest.mark.parametrize(
    ("given", "value"),
    [
        ("duration_s=3", 3.0),
        ("duration_s= 1e2 ", 100.0),
        ("store=postgres:dsn=x,y=2", "postgres:dsn=x,y=2"),
        ("store=", ""),
        ("store=true", "true"),
        ("trials=-7", -7),
        ("is_quick=Yes", True),
        ("is_quick=0", False),
        ("rates=1,10,100", [1, 10, 100]),
        ("rates=[1, 10]", [1, 10]),
        ("rates=", []),
        ("rates=5", [5]),
        ("names=a, b", ["a", "b"]),
        ('names=["a, b"]', ["a, b"]),
        ("limits=1,2.5", [1.0, 2.5]),
        ('table={"b": [1, null]}', {"b": [1, None]}),
        ("anything=7", 7),
        ("anything=null", None),
        ("anything=text", "text"),
        ("seed=7", 7),
        ("seed=none", None),
    ],
)
def test_values_have_the_types_of_the_defaults(typed: Path, given: str, value: object) -> None:
    (found,) = reports.parse_parameters(typed, [given]).values()
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["duration_s=abc"], r"duration_s: 'abc' is not a number \(default 5.0\)"),
        (["duration_s=nan"], "is not a finite number"),
        (["duration_s=inf"], "is not a finite number"),
        (["trials=2.5"], r"trials: '2.5' is not a whole number \(default 3\)"),
        (["trials="], "is not a whole number"),
        (["is_quick=maybe"], "is not true or false"),
        (["rates=1,x"], "rates: 'x' is not a whole number"),
        (["rates=[1"], "is not a list"),
        (["rates=[1, null]"], "is not of type int"),
        (["limits=[NaN]"], "is not a list"),
        (["limits=1e999"], "finite"),
        (["table=[1]"], "is not a JSON object"),
        (['table={"a": 1e999}'], "is not a JSON object"),
        (["anything=-inf"], "is not a finite number"),
        (["trials"], "'trials' is not name=value"),
        (["=3"], "is not name=value"),
        (["trials=1", "trials=2"], "trials is given twice"),
        (
            ["duration=3"],
            r"unknown parameter 'duration': did you mean duration_s\? \(known: duration_s=5.0, store='mem",
        ),
        (["computed=3"], "unknown parameter 'computed'"),
    ],
)
def test_a_wrong_parameter_is_refused_with_the_fix(typed: Path, given: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        reports.parse_parameters(typed, given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "given",
    [
        "store=postgres://lab:hunter2@db/lab",
        "store=postgres:dsn=postgresql://lab:hunter2@db:5432/lab",
        "store=postgresql://lab:hun:ter2@db@host/lab",
        "store=postgresql://:hunter2@db/lab",
        "store=postgresql://db/lab?user=lab&password=hunter2",
        "store=host=db password=hunter2",
        "names=a,postgres://lab:hunter2@db/lab",
        "password=hunter2",
    ],
)
def test_a_password_is_refused_and_never_repeated(typed: Path, given: str) -> None:
    with pytest.raises(UsageError, match="pass it by name: export LAB_DSN=") as caught:
        reports.parse_parameters(typed, [given])
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("given", ["store=env:LAB_DSN", "store=postgres://lab@db/lab", "store=http://h:80/a@b"])
def test_a_store_without_a_password_is_accepted(typed: Path, given: str) -> None:
    assert reports.parse_parameters(typed, [given]) == {"store": given.partition("=")[2]}


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("postgres://u:hunter2@h/db", "postgres://u:***@h/db"),
        ("two: a://u:hunter2@h and b://v:hunter2@h/x", "two: a://u:***@h and b://v:***@h/x"),
        ('"postgresql://u:hunt@er2@h/db"', '"postgresql://u:***@h/db"'),
        ("<td>postgres://u:hunter2@h</td>", "<td>postgres://u:***@h</td>"),
        ("host=h password=hunter2 user=u", "host=h password=*** user=u"),
        ("host=h password='hunter 2' user=u", "host=h password=*** user=u"),
        ("postgres://h/db?password=hunter2&x=1", "postgres://h/db?password=***&x=1"),
        ("http://localhost:8080/a and me@example.org", "http://localhost:8080/a and me@example.org"),
        (["http://h:80", {"k": "a://u:hunter2@h"}], ["http://h:80", {"k": "a://u:***@h"}]),
    ],
)
def test_passwords_are_blanked(said: object, kept: object) -> None:
    assert passwords.blank(said) == kept


def test_a_file_that_is_no_notebook_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.ipynb").write_text("{")
    for path in (tmp_path / "a.ipynb", tmp_path / "none.ipynb"):
        with pytest.raises(UsageError):
            reports.declared_parameters(path)


def test_stripping_removes_what_a_run_leaves_and_nothing_else(tmp_path: Path) -> None:
    path = make(tmp_path / "a.ipynb", "# Title", "P:x = 1", "print(x)")
    assert reports.is_stripped(path)
    clean = path.read_text()
    assert not reports.strip(path)
    content = nbformat.read(path, as_version=4)
    content.cells[2].outputs = [nbformat.v4.new_output("stream", text="1\n")]
    content.cells[2].execution_count = 3
    content.cells[2].metadata["papermill"] = {"status": "completed"}
    nbformat.write(content, path)
    assert not reports.is_stripped(path)
    assert reports.strip(path)
    assert json.loads(path.read_text()) == json.loads(clean)


# ---- one report that comes to a conclusion


class Told(list[str]):
    """What `progress` was told, all of it so far in one text."""

    def __str__(self) -> str:
        return "\n".join(self)


@pytest.fixture(scope="module")
def paper(tmp_path_factory: pytest.TempPathFactory) -> tuple[reports.Report, Told, Path]:
    """A realistic report with everything that is hard: figures, a wide table, long words, hostile values."""
    folder = tmp_path_factory.mktemp("paper")
    wide = "|".join(f"a_long_column_{n}" for n in range(20))
    notebook = make(
        folder / "00-paper.ipynb",
        "# Does it hold <i>1000</i> events per `second`?\n\nA question, and [a link](https://example.org/).",
        "P:rates = [10, 100]  # events per second\nstore = 'memory'\nhostile = ''\nbig = ''\nseed = 7  # of the generator",
        "%matplotlib inline\nimport matplotlib.pyplot as plt, os, sys\nfrom IPython.display import HTML, Markdown, display",
        "M:## Latency grows\n\n![remote](https://evil.example/y.png)\n\nThe p99 stays under 100 ms. Then it grows.",
        "plt.plot([1, 2, 1]); plt.show()",
        "display(Markdown(f'The store kept up: {hostile}')); plt.bar(['a'], [1]); plt.show()",
        f"M:|{wide}|\n|{'---|' * 20}\n|{'1|' * 20}\n\n{'averylongword' * 30}\n\n```python\nx = 1{'0' * 300}\n```",
        "display(HTML(f'<script>alert(1)</script><style>body{{display:none}}</style><table><td>{hostile}</table>'))",
        "print(rates, store, seed, sys.executable, os.getcwd(), len(big), os.environ['LAB_EXTRA'])",
        "for n in range(3): print('step', n, flush=True)\nprint('dsn postgres://u:hunter2@h/db', file=sys.stderr)",
        conclude(status="pass", exit_code=0, title="T", answer=f"Yes {HOSTILE}", dsn="a://u:hunter2@h", rows=[]),
        kernel="a kernel nobody has",
    )
    before, told = notebook.read_bytes(), Told()
    given = {"hostile": HOSTILE, "rates": [1], "big": "x" * 10_000}
    environment = {"LAB_EXTRA": "extra"}
    report = reports.execute(notebook, given, folder / "out", progress=told.append, environment=environment)
    assert notebook.read_bytes() == before
    return report, told, notebook


def text_of(report: reports.Report) -> str:
    assert report.html
    return report.html.read_text(encoding="utf-8")


def test_a_report_is_complete(paper: tuple[reports.Report, Told, Path]) -> None:
    report, _, notebook = paper
    assert (report.status, report.error) == ("complete", None)
    assert re.fullmatch(r"\d{8}T\d{6}Z-00-paper", report.folder.name)
    assert report.notebook == report.folder / notebook.name
    assert report.conclusion is not None
    assert report.conclusion["status"] == "pass"
    assert sorted(path.name for path in report.folder.iterdir()) == [
        "00-paper.ipynb", "conclusion.json", "index.html", "junit.xml", "report.json", "report.md",
    ]  # fmt: skip
    nbformat.validate(nbformat.read(report.notebook, as_version=4))


def test_the_kernel_is_this_interpreter_in_the_notebook_s_folder(paper: tuple[reports.Report, Told, Path]) -> None:
    _, told, notebook = paper
    assert f"[1] memory 7 {sys.executable} {notebook.parent} 10000 extra" in told


def test_what_cells_print_is_told_line_by_line(paper: tuple[reports.Report, Told, Path]) -> None:
    _, told, _ = paper
    assert [line for line in told if line.startswith("step")] == ["step 0", "step 1", "step 2"]
    began = next(at for at, line in enumerate(told) if line.startswith("cell 7/8  for n in range(3)"))
    assert told[began + 1] == "step 0"


def test_the_environment_of_the_caller_is_as_before(paper: tuple[reports.Report, Told, Path]) -> None:
    assert paper[0].status == "complete"
    assert not {"LAB_EXTRA", "EVENTCORE_LAB_REPORT", "IPYTHONDIR", "JUPYTER_RUNTIME_DIR"} & set(os.environ)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_no_password_is_written_or_told(paper: tuple[reports.Report, Told, Path]) -> None:
    report, told, _ = paper
    assert "dsn postgres://u:***@h/db" in told
    for path in report.folder.iterdir():
        assert "hunter2" not in path.read_text(encoding="utf-8"), path.name


def test_the_page_is_one_small_document_with_title_verdict_and_alt_texts(
    paper: tuple[reports.Report, Told, Path],
) -> None:
    html = text_of(paper[0])
    assert "<title>Does it hold &lt;i&gt;1000&lt;/i&gt; events per second?</title>" in html
    assert '<html lang="en">' in html
    assert '<strong class="badge pass"><span aria-hidden="true">✓</span> Pass</strong>' in html
    images = re.findall(r"<img [^>]*>", html)
    assert [re.findall(r'src="(.{22})', image)[0] for image in images] == ["data:image/png;base64,"] * 2
    assert 'alt="Figure: The p99 stays under 100 ms."' in images[0]
    assert 'alt="Figure: The store kept up: bold' in images[1]
    assert len(html) < 300_000
    assert "\x1b" not in html


def test_nothing_of_a_value_becomes_markup(paper: tuple[reports.Report, Told, Path]) -> None:
    html = text_of(paper[0])
    assert "<script" not in html
    assert re.findall(r"<[^>]*\son\w+=", html) == []
    assert "evil.example/y" not in html
    assert "&lt;img src=https://evil.example/x.png onerror=alert(1)&gt;" in html  # in the answer and the table
    assert re.findall(r"<img[^>]*evil", html) == []
    assert html.count("<style>") == 1


def test_parameters_are_a_table_with_what_was_changed(paper: tuple[reports.Report, Told, Path]) -> None:
    report = paper[0]
    record = json.loads((report.folder / "report.json").read_text())
    assert record["changed"] == ["rates", "hostile", "big"]
    assert record["parameters"]["hostile"] == HOSTILE
    table = text_of(report).partition('id="parameters"')[2]
    rows = re.findall(r'<tr( class="changed")?>\s*<th scope="row"><code>(\w+)', table)
    assert [(name, bool(is_changed)) for is_changed, name in rows] == [
        ("rates", True), ("store", False), ("hostile", True), ("big", True), ("seed", False),
    ]  # fmt: skip
    assert "of the generator" in table
    assert "injected" not in text_of(report)


def test_code_is_folded_away(paper: tuple[reports.Report, Told, Path]) -> None:
    html = text_of(paper[0])
    assert html.count('<details class="code"><summary>') == 7
    assert "rates = [10, 100]" not in html


@browser.needs_chromium
def test_a_page_asks_nobody_for_anything_and_is_silent(paper: tuple[reports.Report, Told, Path]) -> None:
    report = paper[0]
    assert report.html
    for path in (report.html, report.folder.parent / "index.html"):
        visit = browser.visit(path)
        assert "Does it hold" in visit.dom
        assert (visit.requests, visit.console) == ([], [])


@browser.needs_chromium
def test_the_browser_would_notice(tmp_path: Path) -> None:
    bad = '<title>x</title><img src="http://127.0.0.1:9/a.png"><script>console.error("said")</script><b>' + "w" * 999
    (tmp_path / "bad.html").write_text(bad)
    visit = browser.visit(tmp_path / "bad.html")
    assert visit.requests == ["http://127.0.0.1:9/a.png"]
    assert any("said" in line for line in visit.console)
    assert browser.widths(tmp_path / "bad.html", 390)[0] > 390


@browser.needs_chromium
@pytest.mark.parametrize("width_px", [320, 390])
def test_no_page_scrolls_sideways_on_a_phone(paper: tuple[reports.Report, Told, Path], width_px: int) -> None:
    report = paper[0]
    assert report.html
    for path in (report.html, report.folder.parent / "index.html"):
        assert browser.widths(path, width_px) == (width_px, [])


# ---- what a conclusion looks like on the page


JUDGED = {
    "status": "fail",
    "exit_code": 1,
    "title": HOSTILE,
    "answer": "Not quite.",
    "rows": [
        {"kind": kind, "name": f"{status} {HOSTILE}", "limit": "< 1", "measured": "2", "status": status, "reason": HOSTILE}
        for kind, status in (
            ("target", "pass"), ("target", "fail"), ("target", "inconclusive"), ("invariant", "pass"),
            ("invariant", "violated"), ("claim", "held"), ("claim", "not held"), ("claim", "not settled"),
            ("claim", "\"><b>"),
        )
    ],
    "runs": [{"run_id": HOSTILE, "of": HOSTILE, "store": "s", "durability": "none: lost", "cautions": [HOSTILE]}],
    "environment": {"processor": HOSTILE},
}  # fmt: skip
QUESTION = "# Is it?\n\n**Question.** How <b>fast</b> is `it`?\n\n**Method.** We looked.\n\n**What would change.** A."


def rendered(**facts: object) -> str:
    """The page of a notebook with two sections and a verdict's table, without running it."""
    table = "<table class='verdict'><caption>again</caption><tr><td>x</td></tr></table>"
    output = nbformat.v4.new_output("display_data", data={"text/html": table})
    cells = [
        nbformat.v4.new_markdown_cell(QUESTION),
        nbformat.v4.new_markdown_cell("## First"),
        nbformat.v4.new_code_cell("verdict", outputs=[output]),
    ]
    record = {"title": "Is it?", "name": "n", "started": "2026-01-01T00:00:00", "seconds": 1, "status": "complete"}
    given = {**record, "error": None, "changed": [], "parameters": {}, "conclusion": JUDGED, **facts}
    return page.render(nbformat.v4.new_notebook(cells=cells), given, [], {2: 1}, None)


def test_the_page_begins_with_question_answer_and_table_and_ends_with_method_and_runs() -> None:
    html = rendered()
    parts = [
        "How <b>fast</b>",
        "Not quite.",
        "2 warnings",
        'id="verdict"',
        "<h2>First</h2>",
        'id="method"',
        "We looked",
        'id="runs"',
    ]
    assert [html.index(part) for part in parts] == sorted(html.index(part) for part in parts)
    assert html.count("Question.") == 0 and html.count("We looked") == 1


def test_each_status_has_its_sign_and_its_class_and_kept_invariants_are_folded() -> None:
    html = rendered()
    for kind, sign in (
        ("pass", "✓ pass"), ("fail", "✗ fail"), ("inconclusive", "? inconclusive"), ("violated", "! violated"),
        ("held", "✓ held"), ("not-held", "✗ not held"), ("not-settled", "? not settled"),
    ):  # fmt: skip
        assert re.search(
            rf'<tr class="{kind}">(?:(?!</tr>).)*<td data-label="verdict">{re.escape(sign)}</td>', html, re.S
        )
    folded = html.partition('<details class="kept">')[2].partition("</details>")[0]
    assert "1 invariant tested, none violated" in folded and folded.count("<tr class=") == 1
    style = (Path(page.__file__).parent / "template" / "style.css").read_text()
    assert all(f".{kind}" in style for kind in ("held", "not-held", "not-settled"))


def test_the_table_of_the_verdict_is_there_once() -> None:
    assert "again" not in rendered() and 'href="#verdict"' in rendered()
    assert "again" in rendered(conclusion=None)


def test_nothing_of_a_conclusion_becomes_markup() -> None:
    row = {"name": HOSTILE, "now": HOSTILE, "then": HOSTILE, "ratio": 2.0, "low": 1.5, "high": 3.0, "change": "worse"}
    html = rendered(baseline={"of": HOSTILE, "rows": [{**row, "of_now": "", "of_then": HOSTILE}]})
    assert "<img" not in html and "<script" not in html and '"><b>' not in html
    assert "2 [1.5 – 3]" in html and "then: &lt;img" in html
    assert "No figure is in both." in rendered(baseline={"of": "x", "rows": []})


@browser.needs_chromium
def test_a_judged_page_fits_a_phone_and_asks_nobody(tmp_path: Path) -> None:
    (tmp_path / "x.html").write_text(rendered())
    assert browser.widths(tmp_path / "x.html", 320) == (320, [])
    found = browser.visit(tmp_path / "x.html")
    assert (found.requests, found.console) == ([], [])


def test_the_other_formats_are_beside_the_page(
    paper: tuple[reports.Report, Told, Path], broken: reports.Report
) -> None:
    from xml.etree import ElementTree

    folder = paper[0].folder
    assert "**✓ Pass.** Yes \\<img src=https\\://evil" in (folder / "report.md").read_text()
    assert ElementTree.parse(folder / "junit.xml").getroot().get("skipped") == "1"  # it judged nothing
    root = ElementTree.parse(broken.folder / "junit.xml").getroot()
    assert "cell 3 of 01-broken.ipynb: ValueError" in root.findall("*/*/error")[0].attrib["message"]
    assert "**✗ Broken.**" in (broken.folder / "report.md").read_text()


# ---- colours


def test_every_text_colour_has_the_contrast_of_wcag_aa() -> None:
    style = (Path(page.__file__).parent / "template" / "style.css").read_text()
    themes = [dict(re.findall(r"--([\w-]+): (#\w{6})", block)) for block in re.findall(r":root \{(.*?)\}", style, re.S)]
    assert len(themes) == 3  # light, dark, print
    for theme in themes:
        pairs = [(text, box) for text in ("text", "muted", "link", "fail") for box in ("page", "box")]
        pairs += [
            (kind, f"{kind}-box") for kind in ("pass", "fail", "inconclusive", "violated", "none", "held", "not-held")
        ]
        low = {pair: ratio for pair in pairs if (ratio := contrast(theme[pair[0]], theme[pair[1]])) < 4.5}
        assert low == {}


def contrast(one: str, other: str) -> float:
    lighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


# ---- reports that end early


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> reports.Report:
    folder = tmp_path_factory.mktemp("broken")
    notebook = make(
        folder / "01-broken.ipynb",
        "# Broken", "P:x = 1", "y = 2", "\n  \nraise ValueError('<b>no</b> postgres://u:hunter2@h\\nmore')", "print('never')",
    )  # fmt: skip
    return reports.execute(notebook, {"x": 3}, folder / "out", progress=lambda _: None)


def test_a_cell_that_fails_is_named_by_number_line_and_message(broken: reports.Report) -> None:
    line = "raise ValueError('<b>no</b> postgres://u:***@h\\nmore')"
    assert broken.status == "failed"
    assert broken.error == reports.CellError(3, line, "ValueError", "<b>no</b> postgres://u:***@h\nmore")


def test_the_page_of_a_failure_says_so_first(broken: reports.Report) -> None:
    html = text_of(broken)
    header = html.partition("</header>")[0]
    assert '<a href="#cell-3">Cell 3</a>' in header
    assert "ValueError: &lt;b&gt;no&lt;/b&gt; postgres://u:***@h" in header
    assert "✗</span> Broken" in header
    assert '<details class="code" open><summary>code <span class="number">3</span>' in html
    assert "Traceback (most recent call last)" in html
    assert "4</span> · not run" in html
    assert "\x1b" not in html
    assert "[31m" not in html
    assert "papermill-error" not in html


def test_a_failure_leaves_notebook_and_record(broken: reports.Report) -> None:
    assert nbformat.read(broken.notebook, as_version=4).cells[4].outputs[0].ename == "ValueError"
    record = json.loads((broken.folder / "report.json").read_text())
    assert (record["status"], record["error"]["cell"], record["conclusion"]) == ("failed", 3, None)


def test_a_failure_that_its_cell_s_tag_expects_is_a_failure_all_the_same(tmp_path: Path) -> None:
    notebook = make(tmp_path / "a.ipynb", conclude(status="pass", exit_code=0, answer="Yes", rows=[]), "1 / 0", "3")
    found = nbformat.read(notebook, as_version=4)
    found.cells[1].metadata["tags"] = ["raises-exception"]
    nbformat.write(found, notebook)
    report = reports.execute(notebook, {}, tmp_path / "out", progress=lambda _: None)
    assert report.status == "failed" and report.error and report.error.cell == 2
    assert "badge pass" not in text_of(report)


def test_a_kernel_that_dies_is_told_and_leaves_no_process(tmp_path: Path) -> None:
    die = "import os, signal, subprocess\nsubprocess.Popen(['sleep', '1000'])\nos.kill(os.getpid(), signal.SIGKILL)"
    notebook = make(tmp_path / "dies.ipynb", "print('alive')", die)
    report = reports.execute(notebook, {}, tmp_path / "out", progress=lambda _: None)
    assert processes_of(report.folder) == []
    assert report.status == "failed"
    assert report.error
    assert report.error.message.startswith("the kernel died in cell 2 (killed by SIGKILL): out of memory?")
    assert "the kernel died in cell 2" in text_of(report)
    assert "alive" in text_of(report)


def test_a_kernel_that_cannot_start_is_told(tmp_path: Path) -> None:
    notebook = make(tmp_path / "a.ipynb", "1")
    (tmp_path / "ipykernel.py").write_text("raise ImportError('no such kernel here')")
    environment = {"PYTHONPATH": str(tmp_path)}
    report = reports.execute(notebook, {}, tmp_path / "out", progress=lambda _: None, environment=environment)
    assert report.status == "failed"
    assert report.error
    assert report.error.message.startswith("the kernel did not start")
    assert "no such kernel here" in report.error.message


def test_a_timeout_lets_the_cell_finish_and_then_kills(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execution, "GRACE_S", 0.2)
    cell = (
        "import time\nwhile True:\n    try: time.sleep(0.05)\n    except KeyboardInterrupt: print('asked', flush=True)"
    )
    told = Told()
    report = reports.execute(
        make(tmp_path / "a.ipynb", "1", cell), {}, tmp_path / "o", timeout_s=4, progress=told.append
    )
    assert report.status == "failed"
    assert report.error == reports.CellError(
        2, "import time", "Timeout", "stopped in cell 2: the report took longer than 4 s"
    )
    assert "asked" in told
    assert not processes_of(report.folder)


SYNCHRONOUS = """
    import time
    print("running", flush=True)
    try:
        while True: time.sleep(0.05)
    except BaseException as e:
        for n in range(4): time.sleep(0.05)
        print("drained after", type(e).__name__, flush=True)
        raise
"""
ASYNCHRONOUS = SYNCHRONOUS.replace("import time", "import time, asyncio").replace("True: time", "True: await asyncio")
DEAF = """
    import subprocess, time
    subprocess.Popen(["sleep", "1000"])
    print("running", flush=True)
    while True:
        try: time.sleep(0.05)
        except KeyboardInterrupt: print("not yet", flush=True)
"""
MAIN = """
    import sys
    from pathlib import Path
    from eventcore_lab import reports
    from eventcore_lab.reports import execution
    execution.GRACE_S = float(sys.argv[3])
    try:
        report = reports.execute(Path(sys.argv[1]), {}, Path(sys.argv[2]), progress=lambda line: print(line, flush=True))
        print("status", report.status, report.error, flush=True)
    finally:
        print("end", flush=True)
"""


def run_and_signal(
    tmp_path: Path, cell: str, *signals: tuple[str, signal.Signals], grace_s: float = 20
) -> tuple[str, Path]:
    """Executes a notebook of one long cell in a process of its own, which gets each signal after it has said a word."""
    notebook = make(tmp_path / "long.ipynb", "x = 1", textwrap.dedent(cell), "print('never')")
    command = [sys.executable, "-c", textwrap.dedent(MAIN), str(notebook), str(tmp_path / "out"), str(grace_s)]
    said: list[str] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout
        watchdog = threading.Timer(60, process.kill)
        watchdog.start()
        waiting = list(signals)
        for line in process.stdout:
            said.append(line)
            if waiting and waiting[0][0] in line:
                process.send_signal(waiting.pop(0)[1])
        watchdog.cancel()
    (folder,) = (tmp_path / "out").glob("*-long")
    return "".join(said), folder


def processes_of(folder: Path) -> list[str]:
    """Command lines of the processes that have this report's folder in their environment."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if f"EVENTCORE_LAB_REPORT={folder}".encode() in (entry / "environ").read_bytes():
                found.append((entry / "cmdline").read_text())
        except OSError:
            continue
    return [line for line in found if line]


@pytest.mark.parametrize(
    ("cell", "number"),
    [(SYNCHRONOUS, signal.SIGINT), (ASYNCHRONOUS, signal.SIGINT), (SYNCHRONOUS, signal.SIGTERM)],
    ids=["synchronous", "asynchronous", "SIGTERM"],
)
def test_a_signal_lets_the_cell_drain_and_leaves_what_there_is(
    tmp_path: Path, cell: str, number: signal.Signals
) -> None:
    said, folder = run_and_signal(tmp_path, cell, ("running", number))
    assert "drained after" in said
    assert "status interrupted CellError(cell=2, source='import time" in said
    assert "Traceback" not in said
    html = (folder / "index.html").read_text()
    assert "■</span> Interrupted" in html
    assert "drained after" in html
    assert "never" not in (folder / "long.ipynb").read_text().replace("print('never')", "")
    assert json.loads((folder / "report.json").read_text())["status"] == "interrupted"
    assert processes_of(folder) == []


def test_a_second_ctrl_c_kills_at_once_and_leaves_what_there_is(tmp_path: Path) -> None:
    said, folder = run_and_signal(tmp_path, DEAF, ("running", signal.SIGINT), ("not yet", signal.SIGINT), grace_s=600)
    assert "interrupted: the running cell has 600 s to finish; Ctrl-C again kills it" in said
    assert "status interrupted" in said
    assert "not yet" in (folder / "index.html").read_text()
    assert processes_of(folder) == []


def test_ctrl_c_among_quick_cells_leaves_a_report(tmp_path: Path) -> None:
    said, folder = run_and_signal(tmp_path, "print('never')", ("cell 1/3", signal.SIGINT))
    assert "status interrupted" in said
    assert (folder / "index.html").exists()
    assert processes_of(folder) == []


def test_a_cell_that_drains_and_returns_is_the_last_one(tmp_path: Path) -> None:
    said, folder = run_and_signal(tmp_path, SYNCHRONOUS.replace("        raise", ""), ("running", signal.SIGINT))
    assert "drained after KeyboardInterrupt" in said
    assert "status interrupted" in said
    assert "never\n" not in said
    assert processes_of(folder) == []


def test_a_stop_while_the_kernel_starts_leaves_a_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    launched, kernels = stop.Stop.kernel_launched, list[subprocess.Popen[bytes]]()

    def launched_and_stopped(self: stop.Stop, kernel: subprocess.Popen[bytes]) -> None:
        launched(self, kernel)
        kernels.append(kernel)
        self.ask("interrupted")

    monkeypatch.setattr(stop.Stop, "kernel_launched", launched_and_stopped)
    told = Told()
    report = reports.execute(make(tmp_path / "a.ipynb", "print('never')"), {}, tmp_path / "out", progress=told.append)
    assert report.status == "interrupted"
    assert report.html
    assert told == []
    assert [kernel.returncode for kernel in kernels] == [-signal.SIGKILL]
    assert processes_of(report.folder) == []


# ---- where it runs and where it writes


def test_it_runs_without_environment_home_and_kernelspecs(tmp_path: Path) -> None:
    spec = tmp_path / "share" / "kernels" / "python3"
    spec.mkdir(parents=True)
    (spec / "kernel.json").write_text('{"argv": ["/bin/false"], "display_name": "wrong", "language": "python"}')
    notebook = make(tmp_path / "long.ipynb", "import matplotlib.pyplot as plt, sys\nprint('by', sys.executable)")
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(MAIN), str(notebook), str(tmp_path / "out"), "20"]
    bare = {name: os.environ[name] for name in ("PYTHONPATH",) if name in os.environ} | {
        "HOME": "/proc/nowhere",
        "JUPYTER_PATH": str(tmp_path / "share"),
    }
    done = subprocess.run(command, env=bare, capture_output=True, text=True, cwd="/", check=False)
    assert (done.stderr, done.returncode) == ("", 0)
    assert f"by {sys.executable}\nstatus complete None\n" in done.stdout
    assert "Matplotlib" not in done.stdout


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/none"])
def test_a_folder_that_cannot_be_written_is_told_before_anything_starts(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("in the way")
    told = Told()
    with pytest.raises(reports.ReportFolderError, match="no report can be written to ") as caught:
        reports.execute(make(tmp_path / "a.ipynb", "1"), {}, tmp_path / place, progress=told.append)
    assert "\n" not in str(caught.value)
    assert told == []


def test_a_full_disk_is_told_before_anything_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(reports.ReportFolderError, match="only 1 MiB free"):
        reports.execute(make(tmp_path / "a.ipynb", "1"), {}, tmp_path / "out")


@pytest.mark.parametrize("given", [{"y": 1}, {"x": "postgres://u:hunter2@h"}], ids=["unknown", "password"])
def test_execute_refuses_what_the_command_line_refuses(tmp_path: Path, given: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        reports.execute(make(tmp_path / "a.ipynb", "P:x = ''"), given, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_two_reports_of_one_second_have_two_folders(tmp_path: Path) -> None:
    now = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    names = [execution.new_folder(tmp_path, now, "a <b>/../c").name for _ in range(3)]
    assert names == ["20260102T030405Z-a-b-..-c", "20260102T030405Z-a-b-..-c-2", "20260102T030405Z-a-b-..-c-3"]


# ---- the index


@pytest.fixture
def write_record(tmp_path: Path) -> Callable[..., Path]:
    numbers = itertools.count()

    def write(**facts: object) -> Path:
        folder = tmp_path / f"{next(numbers)}-report"
        folder.mkdir()
        record = {"name": "n", "title": "t", "status": "complete", "started": "2026-01-01T00:00:00+00:00", "seconds": 1}
        (folder / "report.json").write_text(json.dumps({**record, **facts}))
        (folder / "index.html").write_text("x")
        return folder

    return write


def test_the_index_has_the_newest_first_with_badge_answer_and_changes(
    tmp_path: Path, write_record: Callable[..., Path]
) -> None:
    passed = {"status": "pass", "answer": "Yes <b>"}
    write_record(title="old", conclusion=passed, parameters={"a": 1, "b": 2}, changed=["b"])
    write_record(title="new", started="2026-01-02T00:00:00+00:00", conclusion={"status": "violated"})
    html = reports.rewrite_index(tmp_path).read_text()
    assert html.index(">new</a>") < html.index(">old</a>")
    assert "Yes &lt;b&gt;" in html
    assert "<bdi>b=2</bdi>" in html
    assert "a=1" not in html
    assert re.search(r"!</span> Invariant violated", html)
    assert 'href="0-report/index.html"' in html


@pytest.mark.parametrize("content", ["{", "[]", "null", "\udcff", "[" * 100_000])
def test_the_index_tolerates_broken_folders(tmp_path: Path, write_record: Callable[..., Path], content: str) -> None:
    write_record(title="good")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "report.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    write_record(
        title={"odd": 1}, conclusion={"status": []}, started=7, seconds="x", parameters=3, changed=[[]], error=1
    )
    html = reports.rewrite_index(tmp_path).read_text()
    assert ">good</a>" in html
    assert "Unreadable" in html
    assert ">empty" not in html


def test_an_empty_index_says_so(tmp_path: Path) -> None:
    assert "There are no reports here yet." in reports.rewrite_index(tmp_path).read_text()


def test_nothing_half_written_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = reports.rewrite_index(tmp_path).read_text()
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("no space")))
    with pytest.raises(OSError, match="no space"):
        reports.rewrite_index(tmp_path)
    assert (tmp_path / "index.html").read_text() == before
    assert [path.name for path in tmp_path.iterdir()] == ["index.html"]


# ---- markup


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("<p onclick=x>a</p>", "<p>a</p>"),
        ("<a href='javascript:x'>a</a>", "<a>a</a>"),
        ("<a href='https://e.org'>a</a>", '<a href="https://e.org">a</a>'),
        ("<svg><script>x</script><path d='M0 0'/></svg>", '<svg><path d="M0 0"></path></svg>'),
        ("<p style='background:url(https://e)'>a</p>", "<p>a</p>"),
        ("<p style='color:red'>a</p>", '<p style="color:red">a</p>'),
        ("a<!-- c --><b>b", "a<b>b</b>"),
        ("<iframe src='x'>a</iframe><custom>b</custom>", "b"),
        ("<img src='file:///etc/passwd' alt='&lt;b&gt;'>", "&lt;b&gt;"),
        ("&lt;script&gt;", "&lt;script&gt;"),
    ],
)
def test_html_is_cleaned(given: str, kept: str) -> None:
    from eventcore_lab.reports.markup import clean

    assert clean(given) == kept


def test_images_beside_the_notebook_are_put_into_the_page_and_no_others(tmp_path: Path) -> None:
    from eventcore_lab.reports.markup import markdown

    (tmp_path / "nb").mkdir()
    for path in (tmp_path / "nb" / "a.png", tmp_path / "secret.png"):
        path.write_bytes(b"\x89PNG")
    html = markdown("![A](a.png) ![B](../secret.png) ![C](none.png)", folder=tmp_path / "nb")
    assert html.count("<img") == 1
    assert 'alt="A" src="data:image/png;base64,iVBORw=="' in html


def test_a_duration_is_said_as_people_do() -> None:
    assert [page.duration(s) for s in (0.04, 59.9, 60, 3599.6, 7500, None)] == [
        "0.0 s", "59.9 s", "1 min 00 s", "1 h 00 min", "2 h 05 min", "",
    ]  # fmt: skip
