"""What the documents say is true: snippets run, commands would, links lead somewhere, notebooks are as they should be."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import nbformat
import polars as pl
import pytest

from eventcore_lab import batch, cli, listing, machine, selftest
from eventcore_lab.lab.database import Lab
from eventcore_lab.lab.targets import Targets
from eventcore_lab.monitor import beside, process
from eventcore_lab.monitor.rules import rules_of
from eventcore_lab.reports import declared_parameters, is_stripped
from eventcore_lab.schema import DATA_VARIABLE, LAB_VARIABLE, ExitCode
from eventcore_lab.spec import UsageError
from eventcore_lab.stores import conformance as claims
from eventcore_lab.stores import stores

ROOT = Path(__file__).parent.parent
DOCUMENTS = {name: (ROOT / name).read_text() for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")}
README, CONTRIBUTING = DOCUMENTS["README.md"], DOCUMENTS["CONTRIBUTING.md"]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
OF_MODULES = ("A workload of your own", "A notebook of your own", "A store of your own")
"""Headings whose snippets are files beside each other."""


def sections(document: str) -> dict[str, str]:
    """The text under each heading."""
    found = [section.partition("\n") for section in re.split(r"^## ", document, flags=re.MULTILINE)]
    return {heading: text for heading, _, text in found}


def snippets(document: str) -> dict[str, list[str]]:
    """The Python of a document by the heading it stands under."""
    found = {h: re.findall(r"```python\n(.*?)```", text, re.DOTALL) for h, text in sections(document).items()}
    return {heading: blocks for heading, blocks in found.items() if blocks}


def commands(program: str) -> list[str]:
    """Every command line of the documents that begins with `program`, indented or in backquotes."""
    text = "\n".join(re.sub(r"```.*?```", "", d, flags=re.DOTALL) for d in (README, CONTRIBUTING))
    lines = re.findall(rf"^ {{4,}}({program} .*?)\s*(?:#.*)?$", text, re.MULTILINE)
    return list(dict.fromkeys([*lines, *re.findall(rf"`({program} [^`]+)`", text)]))


def carried_out(snippet: str, name: str) -> None:
    exec(compile(snippet, name, "exec"), {})


def done_by(script: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, script.name, *arguments]
    return subprocess.run(command, cwd=script.parent, capture_output=True, text=True, timeout=120)


def test_the_script_of_the_readme_runs_as_it_stands(tmp_path: Path) -> None:
    script, _ = snippets(README)["Three ways in"]
    assert script.strip().count("\n") < 10
    (tmp_path / "data").mkdir()
    (tmp_path / "script.py").write_text(script)
    done = done_by(tmp_path / "script.py")
    assert done.returncode in (ExitCode.PASS, ExitCode.INCONCLUSIVE), done.stderr
    assert "p99" in done.stdout and (tmp_path / "data" / "lab.duckdb").exists()


def test_the_comparison_of_the_readme_tells_its_claim_and_leaves_a_picture(tmp_path: Path) -> None:
    _, script = snippets(README)["Three ways in"]
    assert script.strip().count("\n") < 10
    (tmp_path / "data").mkdir()
    (tmp_path / "script.py").write_text(script)
    done = done_by(tmp_path / "script.py")
    assert done.returncode == 0, done.stderr
    assert re.search(r"^100 events in one append .* ≥ 2 times .* (held|not settled) ", done.stdout, re.MULTILINE)
    assert (tmp_path / "batches.png").read_bytes().startswith(b"\x89PNG")


def test_the_store_of_the_readme_says_what_it_did(capsys: pytest.CaptureFixture[str]) -> None:
    [snippet] = snippets(README)["Stores"]
    carried_out(snippet, "README.md")
    printed = capsys.readouterr().out
    assert "version conflict on 'account-1': expected 0, actual 1" in printed
    assert "[(1, 'account-1', 1), (2, 'owner-me', 1)]" in printed


def test_the_executors_of_the_readme_are_compared(capsys: pytest.CaptureFixture[str]) -> None:
    [snippet] = snippets(README)["Commands"]
    carried_out(snippet, "README.md")
    *_, direct, batching = capsys.readouterr().out.splitlines()
    for line, executor in ((direct, "direct"), (batching, "batching(cached(direct)):delay_ms=0,in_flight=2")):
        assert re.fullmatch(re.escape(executor) + r": [\d,]+ commands/s, [\d.]+ % of the attempts met a conflict", line)


def test_the_projection_of_the_readme_tells_its_lag_and_is_what_the_events_say(
    capsys: pytest.CaptureFixture[str],
) -> None:
    [snippet] = snippets(README)["Projections"]
    assert snippet.count("\n") <= 7
    carried_out(snippet, "README.md")
    *_, lag, invariant = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"[\d.]+ ms behind in the median, [\d.]+ ms at worst", lag)
    assert invariant == "passed"


def test_the_alert_rules_of_the_readme_are_some(tmp_path: Path) -> None:
    file = tmp_path / "rules.toml"
    file.write_text(re.findall(r"```toml\n(all = .*?)```", README, re.DOTALL)[0])
    rules = {rule.name: rule for rule in rules_of(Targets.production(), str(file))}
    assert rules["far too slow"].cooldown_s == 300
    assert {rule.for_s for rule in rules.values()} == {5, 20}


def test_the_traffic_of_the_readme_comes_out_as_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    [snippet] = snippets(README)["Traffic"]
    carried_out(snippet, "README.md")
    *_, outcomes, invariant = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"\{'ok': \d+, 'conflict': \d+\}", outcomes)
    assert invariant == "passed"


@pytest.mark.parametrize("heading", [h for h in snippets(CONTRIBUTING) if h not in OF_MODULES])
def test_the_snippets_of_contributing_run(heading: str) -> None:
    for snippet in snippets(CONTRIBUTING)[heading]:
        carried_out(snippet, "CONTRIBUTING.md")


def test_a_workload_in_a_module_beside_the_script_is_run(tmp_path: Path) -> None:
    module, script = snippets(CONTRIBUTING)["A workload of your own"]
    (tmp_path / "visits.py").write_text(module)
    (tmp_path / "script.py").write_text(script)
    done = done_by(tmp_path / "script.py")
    assert done.returncode == 0, done.stderr
    assert re.search(r"^[\d,]+ visits/s$", done.stdout, re.MULTILINE)


def test_the_store_of_the_documents_keeps_its_claims(tmp_path: Path) -> None:
    module, script = snippets(CONTRIBUTING)["A store of your own"]
    (tmp_path / "journal.py").write_text(module)
    (tmp_path / "script.py").write_text(script)
    done = done_by(tmp_path / "script.py")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{len(claims.CLAIMS)} claims: kept\n"


def notebook_example(folder: Path) -> Path:
    """The notebook that the script of CONTRIBUTING.md makes."""
    [script] = snippets(CONTRIBUTING)["A notebook of your own"]
    (folder / "script.py").write_text(script)
    done = done_by(folder / "script.py")
    assert (done.returncode, done.stderr) == (0, "")
    [notebook] = folder.glob("*.ipynb")
    return notebook


def test_the_notebook_of_the_documents_comes_to_its_conclusion(tmp_path: Path) -> None:
    notebook = notebook_example(tmp_path)
    assert_is_as_it_should_be(notebook)
    given = ["store=memory", "sizes=200,2000", "trials=1", "duration_s=0.2", "warmup_s=0.05"]
    (tmp_path / "lab.py").write_text("from eventcore_lab.cli import main\nmain()\n")
    options = [word for each in given for word in ("-p", each)] + ["--out", "reports", "--lab", "lab.duckdb"]
    done = done_by(tmp_path / "lab.py", "run", f"./{notebook.name}", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "verdict: pass." in done.stdout and len(list((tmp_path / "reports").glob("*/index.html"))) == 1
    kept = Lab(tmp_path / "lab.duckdb").sql("SELECT topic, name FROM verdicts WHERE kind = 'claim'")
    assert kept.rows() == [("load", "large events: events of 2000 bytes cost no more than half of the throughput")]


def test_what_is_to_be_copied_is_short() -> None:
    assert max(block.count("\n") for blocks in snippets(CONTRIBUTING).values() for block in blocks) < 60


def test_every_command_is_in_the_readme_and_every_command_there_exists() -> None:
    commands = {c.name or c.callback.__name__ for c in cli.app.registered_commands if c.callback}
    mentioned = set(re.findall(r"^\s+eventcore-lab (\w+)", README, re.MULTILINE))
    assert mentioned == commands


def test_every_exit_code_is_in_the_readme() -> None:
    codes = re.findall(r"^\| (\d+) \|", sections(README)["Three ways in"], re.MULTILINE)
    assert {int(n) for n in codes} == {int(code) for code in ExitCode}


def test_every_notebook_has_its_line_in_the_readme() -> None:
    rows = re.findall(r"^\| (\d\d) \| \[(.+?)\?\]\(notebooks/(.+?)\)", sections(README)["The notebooks"], re.MULTILINE)
    assert [name for _, _, name in rows] == [path.name for path in NOTEBOOKS]
    for number, question, name in rows:
        heading = nbformat.read(ROOT / "notebooks" / name, as_version=4).cells[0].source.partition("\n")[0]
        assert name.startswith(number) and heading.startswith(f"# {question[:20]}")


STANDS_FOR = {"RUN": "20261124-0915", "STORE": "memory", "FILE.toml": "ci"}
"""What a word in capitals could be."""
LOOKS_ONLY = ("list", "runs", "report", "conformance")
"""Commands that may end by themselves when nothing is measured."""


class Begun(Exception):
    """Everything was checked, and the work would begin."""


def begins(*_: object, **__: object) -> Any:
    raise Begun


def begins_with_a_run(of: object, run_id: object = "") -> Any:
    named = of if isinstance(of, str) else run_id
    assert re.fullmatch(r"\d{8}-\d{4}.*", str(named)), f"{named} is no run's id"
    raise Begun


async def tries(_: object, only: str, *__: object) -> list[object]:
    assert any(only in name for name in claims.CLAIMS), f"no claim has {only!r} in its name"
    return []


@pytest.fixture
def without_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Sequence[str]], None]:
    """The real command line up to the moment when something would be measured, in a folder that has what the documents
    presuppose: a DSN, a log, the store and the notebook of CONTRIBUTING.md. Raises Begun there, UsageError before."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "reports").mkdir()
    for name, value in {
        DATA_VARIABLE: str(ROOT / "data"),
        LAB_VARIABLE: str(tmp_path / "lab.duckdb"),
        "LAB_DSN": "postgresql://me:secret@db.example/bench",
        "MONITOR_TOKEN": "0123456789abcdef",
        "SLACK_WEBHOOK_URL": "https://hooks.slack.com/services/T0000/B0000/abcdefgh",
    }.items():
        monkeypatch.setenv(name, value)
    times = [datetime(2026, 1, 1, 0, 0, s, tzinfo=UTC) for s in range(3)]
    pl.DataFrame({"time": times, "stream": ["a", "b", "a"]}).write_parquet("log.parquet")
    (tmp_path / "data").symlink_to(ROOT / "data")
    journal = ModuleType("journal")
    exec(snippets(CONTRIBUTING)["A store of your own"][0], journal.__dict__)
    monkeypatch.setitem(stores._makers, "journal", journal.journal)
    project = cli._project
    monkeypatch.setattr(cli, "_project", lambda name: tmp_path / name if name == "reports" else project(name))
    monkeypatch.setattr(batch, "load_baseline", lambda name, *_: SimpleNamespace(against=STANDS_FOR["RUN"] == name))
    monkeypatch.setattr(batch, "size_of", lambda _: 2)
    monkeypatch.setattr(claims, "conformance", tries)
    monkeypatch.setattr(beside, "live", lambda *_, **__: nullcontext())
    of_batch = [(batch, name) for name in ("_executed", "soak", "Soak")]
    for module, name in (*of_batch, (selftest, "selftest"), (machine, "examine"), (process.Monitor, "run")):
        monkeypatch.setattr(module, name, begins)
    for name in ("rerun", "Run"):
        monkeypatch.setattr(listing, name, begins_with_a_run)
    return lambda words: cli.app(words, standalone_mode=False)


@pytest.mark.parametrize("line", commands("eventcore-lab"))
def test_a_command_line_of_the_documents_is_one(
    line: str, without_load: Callable[[Sequence[str]], None], tmp_path: Path
) -> None:
    _, command, *words = (STANDS_FOR.get(word, word) for word in shlex.split(line))
    if any(word.startswith("./") for word in words):
        notebook_example(tmp_path)
    began = False
    try:
        assert without_load([command, *words]) in (None, ExitCode.PASS)
    except Begun:
        began = True
    assert began or command in LOOKS_ONLY


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("run 00-store-benchmarks", "unknown notebook"),
        ("run 00 -p stores=postgres", "unknown parameter"),
        ("run 00 -p store=possgres", "unknown store"),
        ("run 14 -p pacer=trace:file=nolog.parquet", "nolog.parquet"),
        ("suite no-such-suite", "does not exist"),
        ("conformance possgres", "unknown store"),
    ],
)
def test_a_command_line_that_is_none_would_be_found(
    line: str, part: str, without_load: Callable[[Sequence[str]], None]
) -> None:
    with pytest.raises(UsageError, match=part):
        without_load(line.split())


@pytest.mark.parametrize("line", ["run 00 --base x", "rerun", "measure 00", "selftest --fast"])
def test_a_command_line_that_cannot_be_parsed_would_be_found(
    line: str, without_load: Callable[[Sequence[str]], None]
) -> None:
    with pytest.raises(Exception, match="(?i)no such option|missing|no such command"):
        without_load(line.split())


@pytest.mark.parametrize("line", commands("make"))
def test_a_make_of_the_documents_can_be_made(line: str) -> None:
    """`make -n` reads the Makefile and prints; nothing is done."""
    _, *words = shlex.split(line)
    done = subprocess.run(["make", "-n", *words], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_every_make_target_has_its_line_of_help() -> None:
    makefile = (ROOT / "Makefile").read_text()
    [phony] = re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert set(re.findall(r"^([a-z]+):.*## ", makefile, re.MULTILINE)) == set(phony.split())
    for target in re.findall(r"`make (\w+)`", README):
        assert target in phony.split()


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_to_files_and_headings(name: str) -> None:
    for target, heading in re.findall(r"\]\((?!https?:)([^)#]+)(#[^)]+)?\)", DOCUMENTS[name]):
        assert (ROOT / target).exists(), target
        if heading:
            assert heading[1:] in {h.lower().replace(" ", "-") for h in sections(DOCUMENTS[target])}, heading


@pytest.mark.parametrize("name", DOCUMENTS)
def test_lines_are_at_most_140_characters(name: str) -> None:
    assert [line for line in DOCUMENTS[name].splitlines() if len(line) > 140] == []


def assert_is_as_it_should_be(notebook: Path) -> None:
    assert is_stripped(notebook)
    parameters = declared_parameters(notebook)
    assert parameters and all(p.help for p in parameters)
    content = nbformat.read(notebook, as_version=4)
    assert content.cells[0].cell_type == "markdown" and "**Question.**" in content.cells[0].source
    for cell in content.cells:
        if cell.cell_type == "code" and "parameters" not in cell.metadata.get("tags", []):
            assert cell.source.count("\n") < 7 and not re.search(r"^\s*(def|class) ", cell.source, re.MULTILINE)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_is_thin_has_no_outputs_and_explains_its_parameters(notebook: Path) -> None:
    assert_is_as_it_should_be(notebook)
