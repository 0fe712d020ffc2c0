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


def snippets() -> dict[str, str]:
    """The Python of the README by its first line."""
    return {s.partition("\n")[0]: s for s in re.findall(r"```python\n(.*?)```", README, re.DOTALL)}


def test_the_script_of_the_readme_runs_as_it_stands(tmp_path: Path) -> None:
    script = snippets()["from eventcore_lab import Experiment, Lab, Targets, judge, run"]
    assert script.strip().count("\n") < 10
    (tmp_path / "data").mkdir()
    (tmp_path / "script.py").write_text(script)
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode in (ExitCode.PASS, ExitCode.INCONCLUSIVE), done.stderr
    assert "p99" in done.stdout and (tmp_path / "data" / "lab.duckdb").exists()


def test_the_store_of_the_readme_says_what_it_did(capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(snippets()["import asyncio"], "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert "version conflict on 'account-1': expected 0, actual 1" in printed
    assert "[(1, 'account-1', 1), (2, 'owner-me', 1)]" in printed


def test_the_executors_of_the_readme_are_compared(capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(snippets()["from eventcore_lab import Experiment, run"], "README.md", "exec"), {})
    *_, direct, batching = capsys.readouterr().out.splitlines()
    assert direct.startswith("direct ") and batching.startswith("batching(cached(direct))")


def test_the_snippets_of_contributing_run() -> None:
    for snippet in re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL):
        exec(compile(snippet, "CONTRIBUTING.md", "exec"), {})


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
