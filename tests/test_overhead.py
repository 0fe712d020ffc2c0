"""What a report costs besides its load, as claims about what is imported and how often the Lab is opened: never about times."""

from __future__ import annotations

import subprocess
import sys

import duckdb
import numpy as np
import pytest
from scipy.stats import theilslopes

from eventcore_lab.lab import conclusion, stats
from eventcore_lab.lab.measures import Run
from eventcore_lab.lab.targets import Targets, judge

HEAVY = ("scipy", "matplotlib", "lark", "nbconvert", "papermill", "IPython")


def said_by(code: str) -> list[str]:
    """The words that a new interpreter prints."""
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()


def imported_by(code: str) -> list[str]:
    return said_by(f"{code}\nimport sys; print(*(name for name in {HEAVY} if name in sys.modules))")


def test_a_command_line_that_only_checks_imports_no_pictures_no_statistics_and_no_jupyter() -> None:
    assert imported_by("import eventcore_lab.batch") == []


def test_what_makes_a_report_compiles_no_grammar_of_addresses() -> None:
    made = imported_by("import eventcore_lab.reports.kernel, eventcore_lab.reports.markup")
    assert {"nbconvert", "papermill"} <= set(made) and "lark" not in made


def test_what_was_not_compiled_is_there_for_who_asks() -> None:
    pytest.importorskip("rfc3987_syntax")
    asked = """
import eventcore_lab.reports.kernel, sys, jsonschema
was_there = "rfc3987_syntax" in sys.modules
checks = jsonschema.FormatChecker()
print(was_there, checks.conforms("http://example.org/é", "iri"), checks.conforms("no address", "iri"))
import rfc3987_syntax
print(rfc3987_syntax.is_valid_syntax("iri", "http://example.org/"))
"""
    assert said_by(asked) == ["False", "True", "False", "True"]


def test_the_slope_is_that_of_scipy_whatever_is_tied() -> None:
    rng = np.random.default_rng(2)
    for grain in (1, 10, 1000):
        for n in (6, 7, 40, 121):
            x = np.sort(rng.integers(0, 2 * n, n)).astype(np.float64)
            y = np.round(grain * (x / n + rng.normal(0, 1, n))) / grain
            known = theilslopes(y, x, alpha=stats.CONFIDENCE)
            grown, span = stats.growth(x, y), x[-1] - x[0]
            assert (grown.value / span, grown.low / span, grown.high / span) == pytest.approx(
                (known.slope, known.low_slope, known.high_slope)
            )


def test_a_run_that_somebody_has_is_not_read_again(open_run: Run) -> None:
    assert Run.of(open_run.lab, open_run.run_id) is open_run
    assert Run(open_run.lab, open_run.run_id) is not open_run
    with pytest.raises(Exception, match="no run begins"):
        Run.of(open_run.lab, "nobody")


def test_a_conclusion_opens_the_lab_once_for_its_environment_however_many_runs_it_has(
    open_run: Run, closed_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    verdict = judge(Targets.development(), open_run, closed_run)
    known = conclusion.content(verdict, open_run.lab)
    opened: list[str] = []
    connect = duckdb.connect
    monkeypatch.setattr(duckdb, "connect", lambda *at, **how: opened.append(str(at)) or connect(*at, **how))
    assert conclusion.content(verdict, open_run.lab) == known
    assert len(opened) == 1
