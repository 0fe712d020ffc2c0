"""Was it still correct? Each checker holds one invariant against a run's evidence: what was asked, what is there now.

Checkers see only the tables of `lab.evidence`. One that found nothing to look at says `not tested`, never `passed`; one
that breaks makes the verdict inconclusive. `invariants_written`, `invariants_read` and `invariants_projected` have the checkers
themselves.
"""

from __future__ import annotations

from pathlib import Path

import duckdb
from msgspec import Struct

from eventcore_lab.lab.evidence import IN_DOUBT, Evidence, line_of, opened
from eventcore_lab.lab.invariant import Invariant
from eventcore_lab.lab.invariants_projected import INVARIANTS_PROJECTED
from eventcore_lab.lab.invariants_read import INVARIANTS_READ
from eventcore_lab.lab.invariants_written import INVARIANTS_WRITTEN

EXAMPLES_MAX = 3
_OF_THE_LOAD = ("counts", "samples")
"""Evidence that is of the load alone: also a store that keeps nothing is judged by it."""
CHECKERS: tuple[Invariant, ...] = (*INVARIANTS_WRITTEN, *INVARIANTS_READ, *INVARIANTS_PROJECTED)


class Finding(Struct, frozen=True):
    """What one checker found: `passed`, `violated`, `not tested` or `broken`; `looked_at` things, `wrong` of them. `id`
    is the invariant's number, V1 to V18; some have several checkers."""

    id: str
    name: str
    status: str
    looked_at: int = 0
    wrong: int = 0
    detail: str = ""


def check(folder: Path, keeps_events: bool = True, is_durable: bool = True) -> list[Finding]:
    """Every checker's finding over the evidence in `folder`, in the order of CHECKERS. What there is no evidence for is
    `not tested`, with the reason."""
    return examined(folder, keeps_events, is_durable)[0]


def reported(folder: Path) -> dict[str, float]:
    """Facts about a run that are told, not judged: name → value. Those there is no evidence for are left out."""
    with opened(folder) as evidence:
        return _facts(evidence)


def examined(folder: Path, keeps_events: bool, is_durable: bool) -> tuple[list[Finding], dict[str, float]]:
    """What `check` finds and what is `reported`, for the price of reading the evidence once."""
    with opened(folder) as evidence:
        if not is_durable:
            evidence.lacking["restarted"] = ("not tested", "this store does not promise to survive a restart")
        if not keeps_events:
            nothing = ("not tested", "this store keeps nothing")
            evidence.lacking |= {table: nothing for c in CHECKERS for table in c.needs if table not in _OF_THE_LOAD}
        return [_found(evidence, checker) for checker in CHECKERS], _facts(evidence) if keeps_events else {}


def _found(evidence: Evidence, checker: Invariant) -> Finding:
    if (why := evidence.lacks(checker.needs)) is not None:
        return Finding(checker.id, checker.name, why[0], detail=why[1])
    try:
        return _looked(evidence.con, checker)
    except duckdb.Error as error:
        return Finding(checker.id, checker.name, "broken", detail=line_of(error))


def _looked(con: duckdb.DuckDBPyConnection, checker: Invariant) -> Finding:
    looked_at = int(con.sql(checker.population).fetchall()[0][0] or 0)
    if not looked_at:
        return Finding(checker.id, checker.name, "not tested", detail="no part of the run exercised it")
    con.execute(f"CREATE OR REPLACE TEMP TABLE wrong AS SELECT * FROM ({checker.violations}) AS v(text)")
    [[wrong]] = con.sql("SELECT count(*) FROM wrong").fetchall()
    if not wrong:
        return Finding(checker.id, checker.name, "passed", looked_at)
    examples = con.sql("SELECT text FROM wrong ORDER BY text LIMIT $n", params={"n": EXAMPLES_MAX}).fetchall()
    return Finding(checker.id, checker.name, "violated", looked_at, wrong, "; ".join(str(row[0]) for row in examples))


def _facts(evidence: Evidence) -> dict[str, float]:
    facts: dict[str, float] = {}
    for needs, sql in _FACTS:
        if evidence.lacks(needs) is None:
            relation = evidence.con.sql(sql)
            values = relation.fetchall()[0]
            facts |= {n: float(v) for n, v in zip(relation.columns, values, strict=True) if v is not None}
    return facts


_FACTS: tuple[tuple[tuple[str, ...], str], ...] = (
    # Why a reader must not go by time: what it would skip (ties at the edge of a page) or never see (inversions).
    (
        ("stored",),
        """SELECT count(*) AS "events stored",
                  count(*) FILTER (recorded_at_us = before) AS "recorded times that tie with the position before",
                  count(*) FILTER (recorded_at_us < latest) AS "recorded times behind an earlier position's"
           FROM (SELECT recorded_at_us, lag(recorded_at_us) OVER w AS before, max(recorded_at_us) OVER (
                     ORDER BY position ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS latest
                 FROM stored WHERE recorded_at_us > 0 WINDOW w AS (ORDER BY position))""",
    ),
    (
        ("stored",),
        """SELECT count(*) FILTER (position > before + 1) AS "holes in the positions"
           FROM (SELECT position, lag(position, 1, 0) OVER (ORDER BY position) AS before FROM stored)""",
    ),
    (
        ("writes", "stored"),
        """SELECT count(*) FILTER (there) AS "unknown appends that happened",
                   count(*) FILTER (NOT there) AS "unknown appends that did not happen"
            FROM (SELECT bool_or(event_id IN (SELECT event_id FROM stored)) AS there FROM unanswered
                  WHERE event_id IS NOT NULL GROUP BY worker, append)""",
    ),
    (
        ("followed", "acked"),
        f"""SELECT median(lag_ms) AS "reader lag p50 ms", quantile_disc(lag_ms, 0.99) AS "reader lag p99 ms"
           FROM (SELECT greatest(min(seen_ns) - any_value(ended_ns), 0) / 1e6 AS lag_ms
                 FROM followed JOIN acked USING (event_id) ANTI JOIN ({IN_DOUBT}) USING (worker)
                 WHERE began_ns >= 0  -- not what the store was filled with
                 GROUP BY reader, event_id)""",
    ),
    (("counts",), """SELECT sum(value) FILTER (name = 'reads left out') AS "reads left out" FROM counts"""),
)
