"""The load generator against the theory of queues: the real pacers, loop and recorder drive a modelled server in virtual time,
and a table says whether what they recorded is what the theory says it must be.

`theory` has the formulas, `model` the server, `cases` what is asked, `judging` the rule, `table` the text.
"""

from __future__ import annotations

from eventcore_lab.schema import ExitCode
from eventcore_lab.selftest import table
from eventcore_lab.selftest.cases import CASES, Size
from eventcore_lab.selftest.judging import Row
from eventcore_lab.selftest.realtime import measured

QUICK = 0.12
REAL_TIME_S = 1.5


def selftest(quick: bool, seed: int) -> ExitCode:
    """Print the table, case by case. PASS if every claim holds, FAIL otherwise; `quick` drives QUICK of the samples."""
    share = QUICK if quick else 1.0
    rows: list[Row] = []
    print(table.preamble(seed))
    for made in CASES:
        case = made(Size(seed, share))
        print(table.heading(case), *map(table.line, case.rows), sep="\n", flush=True)
        rows += case.rows
    print(measured(REAL_TIME_S * (0.25 if quick else 1), seed))
    print("", table.verdict(rows), sep="\n")
    return ExitCode.PASS if all(row.holds for row in rows) else ExitCode.FAIL
