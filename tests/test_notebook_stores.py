"""Every notebook on every kind of store: where it answers, where it must not, and what it says then. The table has it all; what
is executed elsewhere is named there."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pages
import pytest

from eventcore_lab import cli
from eventcore_lab.batch import _checked
from eventcore_lab.lab.database import Lab
from eventcore_lab.reports import declared_parameters, exit_code_of
from eventcore_lab.reports.notebooks import read_json
from eventcore_lab.schema import ExitCode
from eventcore_lab.spec import UsageError, parse

TESTS = Path(__file__).parent
NOTEBOOKS = {path.name[:2]: path for path in sorted((TESTS.parent / "notebooks").glob("*.ipynb"))}
STORES = ("memory", "sqlite", "postgres")
QUICK = {"duration_s": "0.1", "warmup_s": "0.05", "connections": "2", "rate": "200"}

POOL = ["settings=", "pool_sizes=2", "callers=4", "trials=1"]
BATCHES = ["batch_sizes=10"]
READS = ["streams=10", "events=5", "page_sizes=10", "together=4", "long_stream=0", "readers=1"]
CACHES = ["cache_sizes=20", "streams=30", "lengths=10", "streams_by_length=10", "streams_by_writers=10"]
CACHES += ["writers=1", "concurrency=2"]
STREAMS = ["ways=stream", "events=200", "pages=100"]
PARALLEL = ["limits=2", "streams=1", "processes=1", "callers=4", "inside=direct"]
BATCHED = ["kinds=batching", "sizes=20", "delays_ms=0", "callers=20", "articles=1", "stock=5"]
MEMORY = ["commands=100", "executors=direct"]
TRAFFIC = ["workload=write_events", "pacer=poisson:rate=200"]
MAIN = ["concurrency=2", "batch_sizes=10"]
READ_MODEL = ["projections=memory", "views=", "tables=", "trials=1", "callers=2"]
ORDER = ["stores=sqlite,postgres", "writers=2", "hold_ms=1"]

ONE_PROCESS = "a store that several processes can open"
TABLES = "needs postgres or env:"

WHERE: dict[str, dict[str, list[str] | str]] = {
    "00": {"memory": "test_cli.py", "sqlite": MAIN, "postgres": "test_cli.py"},
    "01": {"memory": POOL, "sqlite": POOL, "postgres": "test_notebook_01_03.py"},
    "02": {"memory": BATCHES, "sqlite": BATCHES, "postgres": "test_notebook_01_03.py"},
    "03": {"memory": READS, "sqlite": "test_notebook_01_03.py", "postgres": READS},
    "04": {"memory": CACHES, "sqlite": CACHES, "postgres": "test_notebook_04_05_09.py"},
    "05": {"memory": STREAMS, "sqlite": "test_notebook_04_05_09.py", "postgres": STREAMS},
    "06": {"memory": "test_notebook_06_08.py", "sqlite": PARALLEL, "postgres": PARALLEL},
    "07": {"memory": "test_notebook_06_08.py", "sqlite": BATCHED, "postgres": BATCHED},
    "08": {"memory": ONE_PROCESS, "sqlite": READ_MODEL, "postgres": "test_notebook_06_08.py"},
    "09": {"memory": "test_notebook_04_05_09.py", "sqlite": MEMORY, "postgres": MEMORY},
    "10": dict.fromkeys(STORES, "test_notebook_10_12.py"),  # all three in one execution: it compares them
    "11": {"memory": ONE_PROCESS, "sqlite": ORDER, "postgres": ORDER},  # both in one execution: it compares them
    "12": {"memory": "no parameter", "sqlite": "no parameter", "postgres": "test_notebook_10_12.py"},
    "13": dict.fromkeys(STORES, "test_summary.py"),  # it reads the Lab and puts nothing on a store
    "14": {"memory": "test_notebook_10_12.py", "sqlite": TRAFFIC, "postgres": TRAFFIC},
}
"""Notebook → store → the parameters it is executed with here; or the test file that executes it; or why it does not apply: the
words of the refusal, or that the notebook has no such parameter, being about PostgreSQL's own ways."""

HERE = [
    (n, s, how)
    for n, of in WHERE.items()
    for s, how in of.items()
    if isinstance(how, list) and (n, s) != ("11", "sqlite")
]

SOAKS = ("15",)
"""Executed with the soaks they show, in test_soak.py."""

REFUSED = [
    ("04", "store=memory", ONE_PROCESS),  # as its defaults are: with one writer it answers
    ("06", "store=memory", ONE_PROCESS),  # with one process it answers
    ("08", "store=memory", ONE_PROCESS),
    ("08", "store=sqlite", TABLES),  # as its defaults are: with the read model in memory it answers
    ("10", "stores=memory,sqlit", "did you mean sqlite?"),
    ("11", "stores=memory", ONE_PROCESS),
    ("12", "store=memory", "unknown parameter 'store'"),
    ("14", "store=memry", "did you mean memory?"),
]


def test_no_notebook_and_no_store_is_left_out() -> None:
    assert list(WHERE) == [number for number in NOTEBOOKS if number not in SOAKS]
    assert all(tuple(of) == STORES for of in WHERE.values())
    elsewhere = {(n, how) for n, of in WHERE.items() for how in of.values() if str(how).startswith("test_")}
    for number, file in elsewhere:
        text = (TESTS / str(file)).read_text(encoding="utf-8")
        assert re.search(rf'"{number}"|{NOTEBOOKS[number].stem}', text), (number, file)


@pytest.mark.parametrize(("number", "store", "how"), HERE, ids=[f"{n}-{s}" for n, s, _ in HERE])
def test_a_notebook_answers_on_every_store_that_it_applies_to(
    number: str, store: str, how: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    lab = Lab(tmp_path / "lab.duckdb")
    said = {**{name: value for name, value in QUICK.items() if name in declared(number)}, "store": store}
    said |= dict(text.split("=", 1) for text in how)
    if "store" not in declared(number):
        del said["store"]
    sys.argv = ["eventcore-lab", "run", number, "--out", str(tmp_path), "--lab", str(lab.path)]
    sys.argv += [word for name, value in said.items() for word in ("-p", f"{name}={value}")]
    with pytest.raises(SystemExit) as done:
        cli.main()
    out, err = capsys.readouterr()
    assert done.value.code in (ExitCode.PASS, ExitCode.FAIL, ExitCode.INCONCLUSIVE), out + err
    [page] = tmp_path.glob("2*/index.html")
    pages.reads_well(page)
    kept = json.loads((page.parent / "conclusion.json").read_text())
    assert kept["answer"] and "Nothing was measured" not in kept["answer"]
    statuses = [row["status"] for row in kept["rows"] if row["kind"] == "invariant"]
    assert set(statuses) == {"pass"} and len(statuses) > 5
    assert {innermost(name) for name in lab.runs()["store"]} - {"null"} >= {store}


def declared(number: str) -> set[str]:
    return {parameter.name for parameter in declared_parameters(NOTEBOOKS[number])}


def innermost(store: str) -> str:
    spec = parse(store, "store")
    while spec.inner is not None:
        spec = spec.inner
    return spec.name


@pytest.mark.parametrize(("number", "given", "message"), REFUSED)
def test_a_store_that_a_notebook_does_not_apply_to_is_refused_in_one_line_before_anything_runs(
    number: str, given: str, message: str
) -> None:
    with pytest.raises(UsageError) as refused:
        planned(number, given)
    assert message in str(refused.value) and "\n" not in str(refused.value)


def planned(number: str, given: str) -> None:
    """What the notebook does before it measures: its parameters checked as the command line does, its cells up to the first
    that runs something. A UsageError of a cell ends the command with 2, as one of the parameters does."""
    namespace: dict[str, Any] = {}
    parameters = _checked(number, TESTS.parent / "notebooks", [given], "")[1]
    for cell in read_json(NOTEBOOKS[number])["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "code" and re.search(r"\b(run|run_each|show)\(", source):
            return
        if cell["cell_type"] == "code":
            exec(source, namespace)
            namespace |= parameters


@pytest.mark.parametrize("number", ["05", "08", "11"])
def test_the_cells_before_the_first_run_make_a_plan(number: str) -> None:
    planned(number, "seed=2")


HAVE_NO_INTERVALS = ("11",)
"""Their trials are compared event by event."""


def test_a_notebook_that_can_be_run_with_few_trials_says_what_its_intervals_rest_on() -> None:
    for number in (n for n in NOTEBOOKS if any(name.startswith("trials") for name in declared(n))):
        text = NOTEBOOKS[number].read_text(encoding="utf-8")
        says = re.search(r"sentences\.rests\([^)]*=trials", text) or "comparison.caution(" in text
        assert says or number in HAVE_NO_INTERVALS, number


@pytest.mark.parametrize(("name", "code"), [("UsageError", ExitCode.USAGE), ("ValueError", ExitCode.BROKEN)])
def test_a_cell_that_refuses_ends_as_a_wrong_parameter_does(name: str, code: ExitCode) -> None:
    assert exit_code_of({"status": "failed", "error": {"name": name}}) is code
