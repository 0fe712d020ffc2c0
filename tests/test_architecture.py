"""Who may import whom, as one dictionary; and the habits that can be checked by reading."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "eventcore_lab"

VOCABULARY = {"events", "clock", "spec", "schema"}
MAY_IMPORT: dict[str, set[str]] = {
    "events": set(),
    "clock": set(),
    "spec": set(),
    "schema": set(),
    "machine": VOCABULARY,
    "stores": VOCABULARY,
    "commands": VOCABULARY | {"stores"},
    "projections": VOCABULARY | {"stores", "commands"},
    "load": VOCABULARY | {"stores", "commands", "projections"},
    "companions": VOCABULARY | {"stores"},
    "progress": VOCABULARY,
    "live": VOCABULARY | {"progress"},
    "experiment": VOCABULARY | {"machine", "stores", "commands", "projections", "load", "companions", "progress"},
    "lab": VOCABULARY,
    "reports": VOCABULARY,
    "workbench": VOCABULARY | {"live", "experiment", "lab", "progress"},
    "batch": VOCABULARY
    | {"commands", "projections", "experiment", "lab", "load", "stores", "reports", "progress", "soak", "workbench"},
    "soak": VOCABULARY | {"experiment", "lab", "load", "progress", "workbench"},
    "listing": VOCABULARY | {"commands", "projections", "lab", "load", "stores", "reports", "workbench"},
    "selftest": VOCABULARY | {"lab", "load"},
    "monitor": VOCABULARY | {"lab", "load", "stores"},
    "cli": VOCABULARY
    | {"batch", "experiment", "lab", "listing", "machine", "monitor", "reports", "selftest", "stores"},
    "__main__": {"cli"},
    "__init__": {"events", "experiment", "lab", "monitor", "soak", "spec", "stores", "workbench"},
}
"""Room → the rooms it may import. The measuring half and `lab` meet only at the schema."""

MODULES = sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module] if node.module != "eventcore_lab" else [f"eventcore_lab.{a.name}" for a in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("eventcore_lab.")}
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_one_way(path: Path) -> None:
    assert imported_rooms(path) - {room(path)} <= MAY_IMPORT[room(path)]


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_module_opens_with_the_sentence_and_is_one_thing(path: Path) -> None:
    text = path.read_text()
    assert ast.get_docstring(ast.parse(text))
    assert text.count("\n") <= 420


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_only_the_clock_waits_and_knows_the_time(path: Path) -> None:
    if path.name in ("clock.py", "machine.py"):  # the doctor measures the loop's own sleep
        return
    called = {ast.unparse(n.func) for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)}
    assert not called & {"time.sleep", "asyncio.sleep", "time.time", "time.monotonic", "time.perf_counter"}


def test_loading_a_worker_does_not_load_the_judging_half() -> None:
    import sys

    code = "import eventcore_lab.load.worker, sys; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"duckdb", "polars", "matplotlib", "scipy", "papermill"} & set(loaded)


def test_what_is_in_git_names_no_index_no_machine_and_no_dsn_with_a_password() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    files = [ROOT / name for name in listed.stdout.splitlines()]
    if not files:
        pytest.skip("not a git checkout")
    banned = re.compile("index" + r"-url|find" + r"-links|/roo" + r"t/|/simpl" + r"e/[\"' ]")
    for path in files:
        if path.suffix in {".py", ".md", ".toml", ".txt", ".ipynb", ".sql", ""} and path.is_file():
            lines = [n for n, line in enumerate(path.read_text().splitlines(), 1) if banned.search(line)]
            assert not lines, f"{path.name}: {lines}"


def test_every_pin_is_a_version() -> None:
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        assert re.match(r"[\w.\[\]-]+==[\w.!+]+( ;.*)?\Z", line.strip()), line
