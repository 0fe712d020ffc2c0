"""Was it still correct? Each checker holds one invariant against the appends tried and what the store holds afterwards.

Checkers see only the two tables of `schema.JOURNAL`. One that found nothing to look at says `not tested`, never
`passed`; one that breaks makes the verdict inconclusive.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import duckdb
from msgspec import Struct

from eventcore_lab.schema import Outcome

EXAMPLES_MAX = 3


class Finding(Struct, frozen=True):
    """What one checker found: `passed`, `violated`, `not tested` or `broken`; `looked_at` things, `wrong` of them."""

    name: str
    status: str
    looked_at: int
    wrong: int
    detail: str = ""


class _Checker(Struct, frozen=True):
    """`population` counts what there is to look at; `violations` gives one row of text for each thing that is wrong."""

    name: str
    claim: str
    population: str
    violations: str


_OK, _CONFLICT, _FAILED, _UNKNOWN = int(Outcome.OK), int(Outcome.CONFLICT), int(Outcome.FAILED), int(Outcome.UNKNOWN)

CHECKERS = (
    _Checker(
        "acknowledged appends are there",
        "every event of every acknowledged append is stored once, at the version acknowledged, as it was given",
        f"SELECT count(*) FROM writes WHERE outcome = {_OK} AND event_id IS NOT NULL",
        f"""WITH acked AS (
                SELECT *, version - max(ordinal) OVER (PARTITION BY worker, append, stream) + ordinal AS at_version
                FROM writes WHERE outcome = {_OK} AND event_id IS NOT NULL)
            SELECT format('{{}} version {{}}: {{}}', a.stream, a.at_version,
                          CASE WHEN s.event_id IS NULL THEN 'acknowledged, but not there'
                               WHEN s.stream <> a.stream OR s.version <> a.at_version
                               THEN 'is at ' || s.stream || ' version ' || s.version
                               ELSE 'its content differs' END)
            FROM acked a LEFT JOIN stored s USING (event_id)
            WHERE s.event_id IS NULL OR s.stream <> a.stream OR s.version <> a.at_version OR s.digest <> a.digest""",
    ),
    _Checker(
        "refused appends left nothing",
        "no event of an append that conflicted or failed is stored",
        f"SELECT count(*) FROM writes WHERE outcome IN ({_CONFLICT}, {_FAILED}) AND event_id IS NOT NULL",
        f"""SELECT format('{{}}: an event of a refused append is there', w.stream)
            FROM writes w JOIN stored s USING (event_id) WHERE w.outcome IN ({_CONFLICT}, {_FAILED})
            AND w.event_id NOT IN (SELECT event_id FROM writes WHERE outcome IN ({_OK}, {_UNKNOWN})
                                   AND event_id IS NOT NULL)""",
    ),
    _Checker(
        "unknown appends are whole or absent",
        "of an append without an answer either every event is stored or none",
        f"SELECT count(DISTINCT (worker, append)) FROM writes WHERE outcome = {_UNKNOWN} AND event_id IS NOT NULL",
        f"""SELECT format('{{}}: {{}} of {{}} events are there', any_value(w.stream), count(s.event_id), count(*))
            FROM writes w LEFT JOIN stored s USING (event_id) WHERE w.outcome = {_UNKNOWN} AND w.event_id IS NOT NULL
            GROUP BY w.worker, w.append HAVING count(s.event_id) NOT IN (0, count(*))""",
    ),
    _Checker(
        "nothing else was stored",
        "every stored event belongs to an append of this run",
        "SELECT count(*) FROM stored",
        """SELECT format('{} version {}: nobody wrote it', stream, version)
           FROM stored WHERE event_id NOT IN (SELECT event_id FROM writes WHERE event_id IS NOT NULL)""",
    ),
    _Checker(
        "versions are contiguous",
        "the versions of each stream are 1, 2, … without a gap or a repeat",
        "SELECT count(DISTINCT stream) FROM stored",
        """SELECT format('{}: {} events, {} versions from {} to {}', stream, count(*), count(DISTINCT version),
                         min(version), max(version))
           FROM stored GROUP BY stream
           HAVING count(*) <> max(version) OR min(version) <> 1 OR count(DISTINCT version) <> count(*)""",
    ),
    _Checker(
        "event ids are unique",
        "no event id is stored twice",
        "SELECT count(*) FROM stored",
        """SELECT format('{} is stored {} times', hex(event_id), count(*))
           FROM stored GROUP BY event_id HAVING count(*) > 1""",
    ),
    _Checker(
        "positions are unique and follow versions",
        "no two events share a position, and in each stream a later version has a later position",
        "SELECT count(*) FROM stored",
        """SELECT format('position {} is taken {} times', position::VARCHAR, count(*))
           FROM stored GROUP BY position HAVING count(*) > 1
           UNION ALL
           SELECT format('{} version {} lies before version {}', stream, version, before)
           FROM (SELECT stream, version, position,
                        lag(position) OVER (PARTITION BY stream ORDER BY version) AS position_before,
                        lag(version) OVER (PARTITION BY stream ORDER BY version) AS before FROM stored)
           WHERE position < position_before""",
    ),
    _Checker(
        "one winner per version",
        "no two acknowledged appends were given the same versions of a stream",
        f"SELECT count(*) FROM writes WHERE outcome = {_OK} AND event_id IS NOT NULL",
        f"""SELECT format('{{}} version {{}} was acknowledged {{}} times', stream, at_version, count(*))
            FROM (SELECT stream, version - max(ordinal) OVER (PARTITION BY worker, append, stream) + ordinal AS at_version
                  FROM writes WHERE outcome = {_OK} AND event_id IS NOT NULL)
            GROUP BY stream, at_version HAVING count(*) > 1""",
    ),
)


def check(writes: Sequence[Path], stored: Path | None, keeps_events: bool) -> list[Finding]:
    """Every checker's finding. Without evidence (no journal, nothing read back) all are `not tested`, with the reason."""
    reason = ""
    if not keeps_events:
        reason = "this store keeps nothing"
    elif not writes:
        reason = "the journal of appends was lost"
    elif stored is None:
        reason = "the store was not read back"
    if reason:
        return [Finding(checker.name, "not tested", 0, 0, reason) for checker in CHECKERS]
    try:
        return _found_by_all(writes, stored)
    except duckdb.Error as error:  # the evidence cannot be read
        return [Finding(checker.name, "broken", 0, 0, str(error).partition("\n")[0]) for checker in CHECKERS]


def _found_by_all(writes: Sequence[Path], stored: Path | None) -> list[Finding]:
    with duckdb.connect() as con:
        con.execute(f"CREATE TEMP VIEW writes AS SELECT * FROM read_parquet({_listed(writes)})")
        con.execute(f"CREATE TEMP VIEW stored AS SELECT * FROM read_parquet({_listed([stored] if stored else [])})")
        return [_found(con, checker) for checker in CHECKERS]


def _listed(paths: Sequence[Path]) -> str:
    """Paths as a list of SQL strings; a view's text takes no parameters."""
    return "[" + ", ".join("'" + str(path).replace("'", "''") + "'" for path in paths) + "]"


def _found(con: duckdb.DuckDBPyConnection, checker: _Checker) -> Finding:
    try:
        looked_at = con.sql(checker.population).fetchall()[0][0]
        if not looked_at:
            return Finding(checker.name, "not tested", 0, 0, "no part of the run exercised it")
        wrong = con.sql(f"SELECT count(*) FROM ({checker.violations})").fetchall()[0][0]
        if not wrong:
            return Finding(checker.name, "passed", looked_at, 0)
        examples = con.sql(f"SELECT * FROM ({checker.violations}) AS v(text) ORDER BY text LIMIT {EXAMPLES_MAX}")
        detail = "; ".join(str(row[0]) for row in examples.fetchall())
        return Finding(checker.name, "violated", looked_at, wrong, detail)
    except duckdb.Error as error:
        return Finding(checker.name, "broken", 0, 0, str(error).partition("\n")[0])
