"""Claims about several notebooks in one call: what a suite's file may say, what is done again and what is not, how it comes
out. Most take a stand-in for the kernel that leaves a record, as a report does."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import browser
import pytest

from eventcore_lab import reports
from eventcore_lab.clock import now_ns
from eventcore_lab.reports import suite as suites
from eventcore_lab.schema import ExitCode
from eventcore_lab.spec import UsageError
from tests.test_cli import said
from tests.test_reports import HOSTILE, conclude, make

ROOT = Path(__file__).parent.parent
QUICK = "P:n = 1  # a number\nrates = [1.0]  # a list\nword = 'a'  # a text\nis_on = False  # a choice"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Notebooks `00-quick` and `01-slow`."""
    (tmp_path / "notebooks").mkdir()
    for name in ("00-quick", "01-slow"):
        make(
            tmp_path / "notebooks" / f"{name}.ipynb",
            f"# {name}?",
            QUICK,
            conclude(status="pass", exit_code=0, answer="Yes"),
        )
    return tmp_path / "notebooks"


@pytest.fixture
def read(folder: Path) -> Callable[[str], reports.Suite]:
    def made(text: str) -> reports.Suite:
        (folder.parent / "s.toml").write_text(text, encoding="utf-8", errors="surrogateescape")
        return reports.read_suite(folder.parent / "s.toml", folder)

    return made


class Kernel:
    """Leaves a record for each job, as a report does, and counts them; `codes` says how they come out, by label."""

    def __init__(self, out: Path, codes: Mapping[str, str] | None = None) -> None:
        self.out, self.codes, self.ran = out, codes or {}, list[str]()

    def __call__(self, job: reports.Job) -> Mapping[str, Any]:
        folder = self.out / f"job-{len(list(self.out.glob('job-*')))}"
        folder.mkdir(parents=True)
        status = next((s for part, s in self.codes.items() if part in job.label), "pass")
        is_over = status in suites._STATUS.values()
        code = {s: c for c, s in suites._STATUS.items()}.get(status)
        row = {
            "kind": "target",
            "name": "p99",
            "status": status,
            "limit": "",
            "measured": "",
            "reason": "",
            "run_id": "",
        }
        record = {
            "kind": "report",
            "name": job.notebook.stem,
            "title": job.label,
            "status": "complete" if is_over else status,
            "started": "2026-11-24T00:00:00",
            "seconds": 1.0,
            "conclusion": {"status": status, "exit_code": code, "answer": "So.", "rows": [row]} if is_over else None,
            "error": None if is_over else {"cell": 2, "source": "x", "name": "ValueError", "message": "no"},
            "fingerprint": job.fingerprint,
        }
        (folder / "report.json").write_text(json.dumps(record))
        (folder / "index.html").write_text("x")
        self.ran.append(job.label)
        return {**record, "folder": folder.name}


def done(suite: reports.Suite, out: Path, kernel: Kernel, **options: Any) -> tuple[ExitCode, list[str], Path]:
    """The exit code, what was told, and the suite's folder."""
    told: list[str] = []
    code = reports.run_suite(suite, out, kernel, progress=told.append, **options)
    return code, told, Path(told[-1].removeprefix("suite: ")).parent


TWO = """
name = "two"
[[notebooks]]
notebook = "00"
parameters = { word = "b" }
matrix = { n = [1, 2], is_on = [true, false] }
[[notebooks]]
notebook = "01-slow"
"""


# ---- the file


def test_a_matrix_is_every_combination_in_its_order(read: Callable[[str], reports.Suite]) -> None:
    suite = read(TWO)
    assert suite.name == "two"
    assert [job.label for job in suite.jobs] == [
        "00-quick word=b n=1 is_on=True",
        "00-quick word=b n=1 is_on=False",
        "00-quick word=b n=2 is_on=True",
        "00-quick word=b n=2 is_on=False",
        "01-slow",
    ]
    assert len({job.fingerprint for job in suite.jobs}) == 5


def test_values_have_the_types_of_the_notebook(read: Callable[[str], reports.Suite]) -> None:
    [job] = read('[[notebooks]]\nnotebook = "00"\nparameters = { n = "3", rates = [1, 2.5], is_on = "yes" }').jobs
    assert job.given == {"n": 3, "rates": [1.0, 2.5], "is_on": True}
    assert [type(rate) for rate in job.given["rates"]] == [float, float]  # type: ignore[attr-defined]


def test_a_notebook_may_stand_beside_the_file(read: Callable[[str], reports.Suite], tmp_path: Path) -> None:
    path = make(tmp_path / "own.ipynb", "x = 1")
    assert read('[[notebooks]]\nnotebook = "own.ipynb"').jobs[0].notebook == path


BOOK = '[[notebooks]]\nnotebook = "00"\n'


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("name = ", "is not TOML: "),
        ("name = '\udcff'", "is not TOML: "),
        ("", "it needs [[notebooks]]"),
        ("notebooks = 3", "it needs [[notebooks]]"),
        ("notebooks = [1]", "it needs [[notebooks]]"),
        (
            BOOK.replace("notebooks", "notebook"),
            "unknown key 'notebook': did you mean notebooks? (known: name, notebooks)",
        ),
        ("[[notebooks]]\nparameters = {}", '[[notebooks]] 1: notebook = "…" is missing'),
        (
            BOOK + '[[notebooks]]\nnotebook = "00-quik"',
            "[[notebooks]] 2: unknown notebook '00-quik': did you mean 00-quick? (known: 00-quick, 01-slow)",
        ),
        (BOOK + "parameter = {}", "did you mean parameters? (known: again, matrix, notebook, parameters)"),
        (BOOK + "parameters = 3", "parameters is not a table"),
        (BOOK + "parameters = { m = 3 }", "unknown parameter 'm'"),
        (BOOK + 'parameters = { n = "x" }', "n: 'x' is not a whole number (default 1)"),
        (BOOK + "parameters = { n = 1.5 }", "n: '1.5' is not a whole number"),
        (BOOK + "parameters = { n = nan }", "n: 'nan' is not of type int"),
        (BOOK + "parameters = { n = 2026-11-24 }", "n: '2026-11-24' is not of type int"),
        (BOOK + "parameters = { word = 3 }", "word: '3' is not a text"),
        (BOOK + 'parameters = { word = "a://u:hunter2@h" }', "pass it by name"),
        (BOOK + "matrix = { n = 3 }", "matrix: n is not a list of values"),
        (BOOK + "matrix = { n = [] }", "matrix: n is not a list of values"),
        (BOOK + "parameters = { n = 1 }\nmatrix = { n = [2] }", "n is in parameters and in matrix"),
        (
            BOOK + f"matrix = {{ n = {list(range(101))}, rates = {[[n] for n in range(10)]} }}",
            "1010 reports; at most 1000",
        ),
        (BOOK + "again = 3", "again: '3' is not true or false"),
    ],
)
def test_a_mistake_in_a_suite_is_one_clear_line(read: Callable[[str], reports.Suite], text: str, part: str) -> None:
    with pytest.raises(UsageError, match=re.escape(part)) as caught:
        read(text)
    assert (
        "\n" not in str(caught.value) and str(caught.value).startswith("suite ") and "hunter2" not in str(caught.value)
    )


def test_the_suite_of_the_project_is_one() -> None:
    suite = reports.read_suite(ROOT / "data" / "suites" / "ci.toml", ROOT / "notebooks")
    assert {job.notebook.parent for job in suite.jobs} == {ROOT / "notebooks"}


def test_the_workflow_runs_that_suite_and_keeps_its_reports() -> None:
    yaml = pytest.importorskip("yaml")
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "benchmark.yml").read_text())
    assert set(workflow[True]) == {"pull_request", "workflow_dispatch"}  # YAML 1.1 takes `on` for a truth
    [job] = workflow["jobs"].values()
    assert job["env"]["SUITE"] == "${{ inputs.suite || 'ci' }}"
    commands = "\n".join(step.get("run", "") for step in job["steps"])
    assert '.venv/bin/eventcore-lab suite "$SUITE" --out reports' in commands
    assert any("upload-artifact" in step.get("uses", "") and step["if"] == "always()" for step in job["steps"])


# ---- what is done again


def test_what_is_done_is_not_done_again_unless_asked(read: Callable[[str], reports.Suite], tmp_path: Path) -> None:
    out, suite = tmp_path / "out", read(TWO)
    kernel = Kernel(out)
    done(suite, out, kernel)
    assert len(kernel.ran) == 5
    code, told, folder = done(suite, out, kernel)
    assert (len(kernel.ran), code) == (5, ExitCode.PASS)
    assert "5/5  01-slow  (done: job-4)" in told
    assert "There already: 5." in (folder / "index.html").read_text()
    done(suite, out, kernel, is_all_again=True)
    assert len(kernel.ran) == 10


def test_what_broke_or_was_interrupted_is_done_again(read: Callable[[str], reports.Suite], tmp_path: Path) -> None:
    out, suite = tmp_path / "out", read(TWO)
    code, _, folder = done(suite, out, Kernel(out, {"n=1 is_on=False": "failed", "n=2 is_on=False": "interrupted"}))
    assert code == ExitCode.INTERRUPTED
    assert "1 not run" in (folder / "summary.md").read_text()
    again = Kernel(out)
    assert done(suite, out, again)[0] == ExitCode.PASS
    assert again.ran == ["00-quick word=b n=1 is_on=False", "00-quick word=b n=2 is_on=False", "01-slow"]


@pytest.mark.parametrize("content", ["{", "[]", '{"status": "complete", "fingerprint": "FP"}'])
def test_what_came_to_no_conclusion_is_done_again(
    read: Callable[[str], reports.Suite], tmp_path: Path, content: str
) -> None:
    out, suite = tmp_path / "out", read(BOOK)
    (out / "x").mkdir(parents=True)
    (out / "x" / "report.json").write_text(content.replace("FP", suite.jobs[0].fingerprint))
    kernel = Kernel(out)
    done(suite, out, kernel)
    assert len(kernel.ran) == 1


def test_what_failed_after_its_conclusion_is_done_again(read: Callable[[str], reports.Suite], tmp_path: Path) -> None:
    out, suite = tmp_path / "out", read(BOOK)
    record = Kernel(out)(suite.jobs[0])
    (out / "job-0" / "report.json").write_text(json.dumps({**record, "status": "failed"}))
    kernel = Kernel(out)
    done(suite, out, kernel)
    assert len(kernel.ran) == 1


def test_another_notebook_parameter_or_version_is_another_report(
    read: Callable[[str], reports.Suite], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, kernel = tmp_path / "out", Kernel(tmp_path / "out")
    text = '[[notebooks]]\nnotebook = "00"\nparameters = { n = 1 }'
    done(read(text), out, kernel)
    done(read(text.replace("{ n = 1 }", "{}")), out, kernel)  # which is its default
    assert len(kernel.ran) == 1
    done(read(text.replace("1", "2")), out, kernel)
    assert len(kernel.ran) == 2
    make(folder / "00-quick.ipynb", "# other", QUICK)
    done(read(text), out, kernel)
    assert len(kernel.ran) == 3
    monkeypatch.setattr(metadata, "version", lambda _: "999")
    done(read(text), out, kernel)
    assert len(kernel.ran) == 4


def test_what_says_again_is_run_each_time(read: Callable[[str], reports.Suite], tmp_path: Path) -> None:
    out, kernel = tmp_path / "out", Kernel(tmp_path / "out")
    for _ in range(2):
        done(read('[[notebooks]]\nnotebook = "00"\nagain = true'), out, kernel)
    assert len(kernel.ran) == 2


# ---- how it comes out


@pytest.mark.parametrize(
    ("codes", "code", "word"),
    [
        ({}, ExitCode.PASS, "Pass"),
        ({"n=2": "inconclusive"}, ExitCode.INCONCLUSIVE, "Inconclusive"),
        ({"n=2": "inconclusive", "slow": "fail"}, ExitCode.FAIL, "Fail"),
        ({"n=2": "failed", "slow": "fail"}, ExitCode.BROKEN, "Broken"),
        ({"n=1": "violated", "slow": "failed"}, ExitCode.VIOLATED, "Invariant violated"),
    ],
)
def test_a_suite_comes_out_as_its_worst_report(
    read: Callable[[str], reports.Suite], tmp_path: Path, codes: dict[str, str], code: ExitCode, word: str
) -> None:
    out = tmp_path / "out"
    found, _, folder = done(read(TWO), out, Kernel(out, codes))
    assert found == code
    page = (folder / "index.html").read_text()
    assert f"</span> {word}</strong>" in page.partition("</header>")[0]
    assert set(re.findall(r'href="\.\./(job-\d)/index.html"', page)) == {f"job-{n}" for n in range(5)}
    root = ElementTree.parse(folder / "junit.xml").getroot()
    assert len(root) == 5 and root[0].get("name") == "00-quick word=b n=1 is_on=True"
    assert json.loads((folder / "report.json").read_text())["conclusion"]["exit_code"] == int(code)
    index = (out / "index.html").read_text()
    assert "Suite two" in index and "suite of 5" in index and f"{folder.name}/index.html" in index


def test_no_name_in_a_suite_becomes_markup(read: Callable[[str], reports.Suite], tmp_path: Path) -> None:
    out, text = tmp_path / "out", json.dumps(HOSTILE)
    _, _, folder = done(
        read(f'name = {text}\n[[notebooks]]\nnotebook = "00"\nparameters = {{ word = {text} }}'), out, Kernel(out)
    )
    for path in (folder / "index.html", out / "index.html"):
        page = path.read_text()
        assert "<img" not in page and "<script" not in page and page.count("<style>") == 1
    ElementTree.parse(folder / "junit.xml")
    assert "<img" not in (folder / "summary.md").read_text().replace("\\<img", "").replace("`word=<img", "")


@browser.needs_chromium
def test_the_page_of_a_suite_asks_nobody_and_fits_a_phone(read: Callable[[str], reports.Suite], tmp_path: Path) -> None:
    out = tmp_path / "out"
    _, _, folder = done(read(TWO), out, Kernel(out, {"slow": "failed"}))
    found = browser.visit(folder / "index.html")
    assert "Suite two" in found.dom and (found.requests, found.console) == ([], [])
    assert browser.widths(folder / "index.html", 320) == (320, [])


def test_the_work_of_a_suite_itself_is_little(read: Callable[[str], reports.Suite], tmp_path: Path) -> None:
    """Per report, as a multiple of rewriting the index, which every report does as well."""
    out, suite = tmp_path / "out", read(TWO)
    done(suite, out, Kernel(out))
    reports.rewrite_index(out)
    times = []
    for work in (lambda: reports.rewrite_index(out), lambda: done(suite, out, Kernel(out))):
        began = now_ns()
        work()
        times.append(now_ns() - began)
    assert times[1] / len(suite.jobs) < 25 * times[0]


# ---- the command line, with kernels


def test_a_suite_from_the_command_line_is_run_once(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(folder / "01-slow.ipynb", "# Slow?", "P:n = 1  # a number", "1 / 0")
    text = f'[[notebooks]]\nnotebook = "{folder}/00-quick.ipynb"\n[[notebooks]]\nnotebook = "{folder}/01-slow.ipynb"'
    (tmp_path / "s.toml").write_text(text)
    arguments = ["suite", str(tmp_path / "s.toml"), "--out", str(tmp_path / "out")]
    code, out, err = said(capsys, *arguments)
    assert (
        code == ExitCode.BROKEN
        and "ZeroDivisionError in cell 2 of 01-slow.ipynb" in err
        and "verdict: pass. Yes" in out
    )
    code, out, _ = said(capsys, *arguments)
    assert code == ExitCode.BROKEN and "1/2  00-quick  (done: " in out and "2/2  01-slow\n" in out


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["suite", "none"], "suite 'none' does not exist"),
        (["suite", "x" * 10_000], "does not exist"),
        (["run", "00", "11", "-p", "store=memory"], "unknown parameter 'store'"),
        (["run", "00", "77"], "unknown notebook '77'"),
        (["run", "00", "--baseline", "nothing"], "baseline: 'nothing' is no report, and no run begins with 'nothing'"),
    ],
)
def test_wrong_usage_is_found_before_anything_starts(
    arguments: list[str], part: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, out, err = said(capsys, *arguments, "--out", str(tmp_path / "out"))
    assert (code, out, err.count("\n")) == (ExitCode.USAGE, "", 1), err
    assert part in err and not (tmp_path / "out").exists()


def test_a_parameter_that_the_store_refuses_is_found_before_a_suite_starts(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "s.toml").write_text('[[notebooks]]\nnotebook = "00"\nmatrix = { store = ["memory", "postgrs"] }')
    code, out, err = said(capsys, "suite", str(tmp_path / "s.toml"), "--out", str(tmp_path / "out"))
    assert (code, out) == (ExitCode.USAGE, "")
    assert "suite s: 00-store-benchmark store=postgrs: " in err and "did you mean postgres?" in err


def test_several_notebooks_come_out_as_the_worst(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(
        folder / "01-slow.ipynb",
        "# S",
        "P:n = 1  # a number",
        conclude(status="fail", exit_code=1, answer="No", rows=[]),
    )
    names = [str(folder / f"{name}.ipynb") for name in ("01-slow", "00-quick")]
    code, out, _ = said(capsys, "run", *names, "-p", "n=2", "--out", str(tmp_path / "out"))
    assert code == ExitCode.FAIL and out.count("report: ") == 2 and out.index("fail. No") < out.index("pass. Yes")


def test_a_report_is_held_against_an_earlier_one(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def concluding(value: float) -> str:
        figures = {
            "p50": {"value": value, "low": value - 0.1, "high": value + 0.1, "unit": "ms", "run_id": "r", "of": "o"}
        }
        return conclude(status="pass", exit_code=0, answer="Yes", rows=[], figures=figures)

    out, name = tmp_path / "out", str(make(folder / "00-quick.ipynb", "# Q?", concluding(2.0)))
    assert said(capsys, "run", name, "--out", str(out))[0] == ExitCode.PASS
    [earlier] = out.glob("2*")
    make(folder / "00-quick.ipynb", "# Q?", concluding(3.0))
    assert said(capsys, "run", name, "--out", str(out), "--baseline", earlier.name)[0] == ExitCode.PASS
    [now] = set(out.glob("2*")) - {earlier}
    [row] = json.loads((now / "report.json").read_text())["baseline"]["rows"]
    assert row["ratio"] == pytest.approx(1.5) and row["low"] < 1.5 < row["high"] and row["change"] == "worse"
    for file, part in (
        ("index.html", f"Against report {earlier.name}"),
        ("report.md", f"**Against report {earlier.name}**"),
    ):
        assert part in (now / file).read_text() and "1.5 " in (now / file).read_text()
