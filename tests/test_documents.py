"""What the documents say is true: snippets run, commands exist, links lead somewhere, notebooks are as they should be."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from eventcore_lab import cli
from eventcore_lab.reports import declared_parameters, is_stripped
from eventcore_lab.schema import ExitCode

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()


def snippets(document: str) -> dict[str, list[str]]:
    """The Python of a document by the heading it stands under."""
    sections = [section.partition("\n") for section in re.split(r"^## ", document, flags=re.MULTILINE)]
    found = {heading: re.findall(r"```python\n(.*?)```", text, re.DOTALL) for heading, _, text in sections}
    return {heading: blocks for heading, blocks in found.items() if blocks}


def carried_out(snippet: str, name: str) -> None:
    exec(compile(snippet, name, "exec"), {})


def done_by(script: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, script.name], cwd=script.parent, capture_output=True, text=True, timeout=60)


def test_the_script_of_the_readme_runs_as_it_stands(tmp_path: Path) -> None:
    [script] = snippets(README)["Three ways in"]
    assert script.strip().count("\n") < 10
    (tmp_path / "data").mkdir()
    (tmp_path / "script.py").write_text(script)
    done = done_by(tmp_path / "script.py")
    assert done.returncode in (ExitCode.PASS, ExitCode.INCONCLUSIVE), done.stderr
    assert "p99" in done.stdout and (tmp_path / "data" / "lab.duckdb").exists()


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


def test_the_traffic_of_the_readme_comes_out_as_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    [snippet] = snippets(README)["Traffic"]
    carried_out(snippet, "README.md")
    *_, outcomes, invariant = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"\{'ok': \d+, 'conflict': \d+\}", outcomes)
    assert invariant == "passed"


@pytest.mark.parametrize("heading", [h for h in snippets(CONTRIBUTING) if h != "A workload of your own"])
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


def test_what_is_to_be_copied_is_short() -> None:
    assert max(block.count("\n") for blocks in snippets(CONTRIBUTING).values() for block in blocks) < 60


def test_every_command_is_in_the_readme_and_every_command_there_exists() -> None:
    commands = {c.name or c.callback.__name__ for c in cli.app.registered_commands if c.callback}
    mentioned = set(re.findall(r"^\s+eventcore-lab (\w+)", README, re.MULTILINE))
    assert mentioned == commands


def test_every_exit_code_is_in_the_readme() -> None:
    assert {int(n) for n in re.findall(r"^\| (\d+) \|", README, re.MULTILINE)} == {int(code) for code in ExitCode}


def test_every_make_target_has_its_line_of_help() -> None:
    makefile = (ROOT / "Makefile").read_text()
    [phony] = re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert set(re.findall(r"^([a-z]+):.*## ", makefile, re.MULTILINE)) == set(phony.split())
    for target in re.findall(r"`make (\w+)`", README):
        assert target in phony.split()


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_lead_to_files(name: str) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", (ROOT / name).read_text()):
        assert (ROOT / target).exists(), target


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_is_thin_has_no_outputs_and_explains_its_parameters(notebook: Path) -> None:
    import nbformat

    assert is_stripped(notebook)
    parameters = declared_parameters(notebook)
    assert parameters and all(p.help for p in parameters)
    content = nbformat.read(notebook, as_version=4)
    assert content.cells[0].cell_type == "markdown" and "**Question.**" in content.cells[0].source
    for cell in content.cells:
        if cell.cell_type == "code" and "parameters" not in cell.metadata.get("tags", []):
            assert cell.source.count("\n") < 7 and not re.search(r"^\s*(def|class) ", cell.source, re.MULTILINE)
