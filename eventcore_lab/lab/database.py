"""The Lab: one DuckDB file with every run, and all the SQL about results.

DuckDB admits one writing process, and readers only while nobody writes, so connections are opened late and closed
early, and a busy file is tried again for a while. Runs come in from the spool, each in one transaction, after which its
folder is removed; a folder whose writers are dead is taken in as `interrupted` the next time somebody looks.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import duckdb
import msgspec
import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from eventcore_lab.clock import NS_PER_S, now_ns, pause_s
from eventcore_lab.lab import alerts as alert_lines
from eventcore_lab.lab.checkers import examined
from eventcore_lab.lab.evidence import sampled
from eventcore_lab.lab.readers import take_in
from eventcore_lab.schema import (
    ENVIRONMENT_FILE,
    GAUGES_FILE,
    LOCK_FILE,
    MARKS_FILE,
    RUN_FILE,
    SAMPLE_WORDS,
    SCHEMA_VERSION,
    TABLES,
    lab_file,
)

BUSY_TIMEOUT_S = 15.0
_BUSY_POLL_S = 0.05
_CONFIG: dict[str, str | bool | int | float | list[str]] = {
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
}


class LabError(Exception):
    """The Lab's file cannot be used; the message says which and how to mend it."""


class UnknownRun(LabError):
    """No run of that id."""


class Lab:
    """One results file. `Lab()` is the project's own; making one touches nothing until it is first used."""

    def __init__(self, path: str | os.PathLike[str] | None = None, *, busy_timeout_s: float = BUSY_TIMEOUT_S) -> None:
        self.path = Path(path) if path is not None else lab_file()
        self.spool = self.path.parent / "spool"
        self._busy_timeout_s = busy_timeout_s

    def __repr__(self) -> str:
        return f"Lab({str(self.path)!r})"

    def check(self) -> None:
        """Raise LabError now, before anything is measured, if results could not be stored here; take in what a dead
        process left in the spool."""
        try:
            self.spool.mkdir(parents=True, exist_ok=True)
            probe = self.spool / f".writable-{os.getpid()}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise LabError(
                f"cannot write to {self.path.parent}: {error.strerror} (choose another with --lab)"
            ) from None
        with self._writing():
            pass
        self.recover()

    @contextmanager
    def _connected(self, read_only: bool) -> Iterator[duckdb.DuckDBPyConnection]:
        deadline_ns = now_ns() + int(self._busy_timeout_s * NS_PER_S)
        while True:
            try:
                con = duckdb.connect(str(self.path), read_only=read_only, config=_CONFIG)
                break
            except duckdb.Error as error:
                if "lock" not in str(error).lower() or "not a valid" in str(error).lower():
                    raise LabError(_unusable(self.path, error)) from None
                if now_ns() > deadline_ns:
                    raise LabError(
                        f"{self.path} is in use by another process for more than {self._busy_timeout_s:g} s; close it "
                        f"there (a DuckDB shell, a notebook's open connection), or choose another file with --lab"
                    ) from None
                pause_s(_BUSY_POLL_S)
        try:
            yield con
        finally:
            con.close()

    @contextmanager
    def _writing(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """One transaction, on a file that has every table."""
        with self._connected(read_only=False) as con:
            con.execute("BEGIN")
            for table, columns in TABLES.items():
                listed = ", ".join(f'"{name}" {kind}' for name, kind in columns.items())
                con.execute(f"CREATE TABLE IF NOT EXISTS {table} ({listed})")
            _add_missing_columns(con)
            newest = con.execute("SELECT coalesce(max(schema_version), 0) FROM runs").fetchall()[0][0]
            if newest > SCHEMA_VERSION:
                raise LabError(
                    f"{self.path} was written by a newer eventcore_lab; update this one, or use another file"
                )
            yield con
            con.execute("COMMIT")

    def sql(self, query: str, parameters: Sequence[Any] = ()) -> pl.DataFrame:
        """The result of any reading query over the tables of schema.TABLES."""
        if not self.path.exists():
            with self._writing():
                pass
        try:
            return self._read(query, parameters)
        except duckdb.CatalogException:  # perhaps a file of an older version, which lacks a table
            with self._writing():
                pass
            return self._read(query, parameters)

    def _read(self, query: str, parameters: Sequence[Any]) -> pl.DataFrame:
        with self._connected(read_only=True) as con:
            # Without parameters DuckDB plans lazily; the frame is made before the connection closes.
            relation = con.sql(query, params=list(parameters)) if parameters else con.sql(query)
            frame: pl.DataFrame = relation.pl()
            return frame

    def ingest(self, folder: Path) -> str:
        """Take a run from the spool in one transaction, judge its invariants, remove its folder; gives the run's id.
        A folder that somebody else took in meanwhile is no error."""
        run_id = folder.name
        with _locked(folder) as is_ours:
            if is_ours:
                with _untouched(folder):
                    with self._writing() as con:
                        if not con.execute("SELECT 1 FROM runs WHERE run_id = ?", [run_id]).fetchall():
                            _ingest(con, folder, run_id)
                    shutil.rmtree(folder)
        return run_id

    def recover(self) -> list[str]:
        """Take in every run in the spool that nobody is working on any more, and alerts; gives the runs' ids."""
        self.take_alerts()
        folders = sorted(self.spool.iterdir()) if self.spool.is_dir() else []
        return [self.ingest(f) for f in folders if (f / RUN_FILE).exists() and not _is_in_use(f)]

    def take_alerts(self) -> int:
        """Take in what monitors have left in the spool; gives how many changes of alerts are new."""
        files = alert_lines.set_aside(self.spool)
        if not files:
            return 0
        with self._writing() as con:
            taken = alert_lines.take_in(con, files)
        for file in files:
            file.unlink(missing_ok=True)
        return taken

    def runs(self, limit: int = 1000) -> pl.DataFrame:
        """The newest runs, newest first, one row each with its parameters and status."""
        return self.sql("SELECT * FROM runs ORDER BY run_id DESC LIMIT ?", [limit])

    def run_row(self, run_id: str) -> dict[str, Any]:
        """The run's row of `runs`; a unique beginning of the id will do, and `last` is the newest. Raises UnknownRun."""
        begins = "" if run_id == "last" else run_id
        found = self.sql("SELECT * FROM runs WHERE starts_with(run_id, ?) ORDER BY run_id DESC LIMIT 4", [begins])
        if not len(found):
            raise UnknownRun(f"no run begins with {run_id!r} in {self.path}")
        if len(found) > 1 and run_id != "last":
            newest = ", ".join(found["run_id"][:3])
            raise UnknownRun(f"several runs begin with {run_id!r} in {self.path}, the newest: {newest}")
        return found.row(0, named=True)

    def samples(self, run_id: str) -> pl.DataFrame:
        """Every sample of a run, warm-up included, by due time."""
        return self.sql("SELECT * EXCLUDE run_id FROM samples WHERE run_id = ? ORDER BY due_ns, operation", [run_id])

    def gauges(self, run_id: str) -> pl.DataFrame:
        """Every gauge of a run, by time."""
        return self.sql("SELECT * EXCLUDE run_id FROM gauges WHERE run_id = ? ORDER BY t_ns, source, name", [run_id])

    def marks(self, run_id: str) -> pl.DataFrame:
        """What happened during a run, by time."""
        return self.sql("SELECT * EXCLUDE run_id FROM marks WHERE run_id = ? ORDER BY t_ns", [run_id])

    def alerts(self, run_id: str = "") -> pl.DataFrame:
        """What monitors alerted, by time; of one run, or of all. `delivered` says what became of telling it."""
        return self.sql(
            "SELECT * EXCLUDE alert_id FROM alerts WHERE run_id = ? OR ? = '' ORDER BY alerted_at, rowid",
            [run_id, run_id],
        )

    def invariants(self, run_id: str) -> pl.DataFrame:
        """What the checkers found in a run."""
        return self.sql(
            """SELECT name, status, measured::BIGINT AS wrong, reason FROM verdicts
               WHERE run_id = ? AND kind = 'invariant' ORDER BY rowid""",
            [run_id],
        )

    def claims(self) -> pl.DataFrame:
        """Of each claim the latest on each store: run_id, topic, name, unit, limit_text, measured, low, high, status, reason,
        store."""
        return self.sql(
            """SELECT v.* EXCLUDE kind, r.store FROM verdicts v LEFT JOIN runs r USING (run_id) WHERE v.kind = 'claim'
               QUALIFY row_number() OVER (PARTITION BY v.topic, v.name, r.store ORDER BY run_id DESC) = 1
               ORDER BY v.topic, v.name, r.store"""
        )

    def facts(self, run_id: str) -> dict[str, float]:
        """What was found out about a run beside its invariants, and is told without being judged."""
        found = self.sql("SELECT name, measured FROM verdicts WHERE run_id = ? AND kind = 'fact'", [run_id])
        return dict(found.iter_rows())

    def readers(self, run_id: str) -> pl.DataFrame:
        """What each follower of a run was given: see readers.py for the columns."""
        return self.sql("SELECT * EXCLUDE run_id FROM readers WHERE run_id = ? ORDER BY reader", [run_id])

    def environment(self, run_id: str) -> dict[str, str]:
        """The machine, versions and server settings of a run."""
        found = self.sql(
            """SELECT name, value FROM environments
               WHERE environment_id = (SELECT environment_id FROM runs WHERE run_id = ?) ORDER BY name""",
            [run_id],
        )
        return dict(found.iter_rows())

    def percentiles(self, run_id: str, ps: Sequence[float] = (0.5, 0.9, 0.95, 0.99, 0.999)) -> pl.DataFrame:
        """Columns `p`, `latency_ms`: the order statistic ⌈pn⌉ of ended − due over every steady sample that was
        answered well or not at all, or gave up after conflicts; null where it falls among those."""
        return self.sql(
            """WITH steady AS (
                   SELECT CASE WHEN outcome = 1 THEN ended_ns - due_ns END AS latency_ns FROM samples
                   WHERE run_id = ? AND phase = 1 AND (outcome IN (0, 1, 4, 5) OR outcome = 2 AND attempts > 1)),
               ranked AS (SELECT latency_ns, row_number() OVER (ORDER BY latency_ns NULLS LAST) AS rank FROM steady)
               SELECT p, latency_ns / 1e6 AS latency_ms
               FROM (SELECT unnest(?::DOUBLE[]) AS p) JOIN ranked
                    ON rank = greatest(ceil(p * (SELECT count(*) FROM steady) - 1e-9), 1) ORDER BY p""",
            [run_id, list(ps)],
        )

    def add_verdicts(self, rows: Sequence[dict[str, Any]]) -> None:
        """Keep judgements against targets; those of the same run and name are replaced."""
        if not rows:
            return
        frame = pa.Table.from_pylist([{"kind": "target", **row} for row in rows])  # noqa: F841 (read by DuckDB)
        with self._writing() as con:
            con.execute(
                """DELETE FROM verdicts USING frame
                   WHERE verdicts.run_id = frame.run_id AND verdicts.name = frame.name AND verdicts.kind = frame.kind"""
            )
            con.execute("INSERT INTO verdicts BY NAME SELECT * FROM frame")


def _unusable(path: Path, error: duckdb.Error) -> str:
    text = str(error).partition("\n")[0]
    if path.is_file() and "not a valid" in str(error).lower():
        return f"{path} is not a DuckDB file; move it away or choose another with --lab"
    return f"cannot open {path}: {text} (choose another with --lab)"


@contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Whether the folder is there and nobody else works in it; held until the end of the block."""
    try:
        lock = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o644)
    except FileNotFoundError:
        yield False
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the other is a Lab that ends soon, or a run, which `recover` leaves out
        yield folder.exists()
    finally:
        os.close(lock)


@contextmanager
def _untouched(folder: Path) -> Iterator[None]:
    """Nobody takes parts of a run's samples away from now until the end of the block (load/rotation.py)."""
    with ExitStack() as stack:
        for path in folder.glob("samples-*.i64"):
            fcntl.flock(stack.enter_context(path.open("r+b")), fcntl.LOCK_EX)
        yield


def _is_in_use(folder: Path) -> bool:
    try:
        lock = os.open(folder / LOCK_FILE, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    finally:
        os.close(lock)


def _ingest(con: duckdb.DuckDBPyConnection, folder: Path, run_id: str) -> None:
    row = msgspec.json.decode((folder / RUN_FILE).read_bytes())
    run = pa.Table.from_pylist([{name: row.get(name) for name in TABLES["runs"]}])  # noqa: F841 (read by DuckDB)
    con.execute("INSERT INTO runs BY NAME SELECT * FROM run")
    for worker, rows in sampled(folder, []):  # what is missing is told by the checkers
        incoming = _samples(worker, rows, row.get("schema_version") or 0)  # noqa: F841 (read by DuckDB, which finds a table of the file first)
        con.execute("INSERT INTO samples BY NAME SELECT ? AS run_id, * FROM incoming", [run_id])
    for table, file in (("gauges", GAUGES_FILE), ("marks", MARKS_FILE)):
        path = folder / file
        if path.exists() and path.stat().st_size:
            kinds = {name: kind for name, kind in TABLES[table].items() if name != "run_id"}
            con.execute(
                f"""INSERT INTO {table} BY NAME SELECT ? AS run_id, *
                    FROM read_json(?, format = 'newline_delimited', hive_partitioning = false, ignore_errors = true,
                                   columns = {kinds})
                    WHERE t_ns IS NOT NULL""",  # a line cut off by a kill is left out
                [run_id, str(path)],
            )
    _ingest_environment(con, folder, row.get("environment_id"))
    take_in(con, folder, run_id)
    _ingest_findings(con, folder, run_id, row)


def _add_missing_columns(con: duckdb.DuckDBPyConnection) -> None:
    """What a file of an older version lacks; its runs have NULL there."""
    known = set(con.execute("SELECT table_name, column_name FROM duckdb_columns()").fetchall())
    for table, columns in TABLES.items():
        for name, kind in columns.items():
            if (table, name) not in known:
                con.execute(f'ALTER TABLE {table} ADD COLUMN "{name}" {kind}')


def _samples(worker: int, rows: NDArray[np.int64], schema_version: int) -> pa.Table:
    """The columns of `samples` from a worker's raw rows; see schema.SAMPLE_WORDS."""
    columns = {name: rows[:, i] for i, name in enumerate(SAMPLE_WORDS[:-1])}
    word = rows[:, -1]
    columns["worker"] = np.full(len(rows), worker)
    columns["outcome"], columns["phase"] = word & 0xFF, word >> 8 & 0x7F
    columns["attempts"], columns["events"] = word >> 24 & 0xFF, word >> 32
    if schema_version >= 3:  # before, this was where a sample said that it had begun
        columns["conflicts"] = word >> 16 & 0xFF
    return pa.table(columns)


def _ingest_environment(con: duckdb.DuckDBPyConnection, folder: Path, environment_id: str | None) -> None:
    path = folder / ENVIRONMENT_FILE
    known = con.execute("SELECT 1 FROM environments WHERE environment_id = ? LIMIT 1", [environment_id]).fetchall()
    if environment_id is None or known or not path.exists():
        return
    facts = msgspec.json.decode(path.read_bytes())
    frame = pa.table(  # noqa: F841
        {
            "environment_id": [environment_id] * len(facts),
            "name": list(facts),
            "value": [str(value) for value in facts.values()],
        }
    )
    con.execute("INSERT INTO environments BY NAME SELECT * FROM frame")


def _ingest_findings(con: duckdb.DuckDBPyConnection, folder: Path, run_id: str, row: dict[str, Any]) -> None:
    durability = row.get("durability") or "durable"
    findings, facts = examined(folder, row.get("keeps_events") is not False, durability.startswith("durable"))
    rows: list[dict[str, Any]] = [
        {
            "kind": "invariant",
            "name": f.name,
            "unit": "violations",
            "limit_text": "= 0",
            "measured": float(f.wrong),
            "status": f.status,
            "reason": f.detail,
        }
        for f in findings
    ]
    rows += [{"kind": "fact", "name": name, "measured": value, "status": "reported"} for name, value in facts.items()]
    frame = pa.Table.from_pylist([{"run_id": run_id, **r} for r in rows])  # noqa: F841
    con.execute("INSERT INTO verdicts BY NAME SELECT * FROM frame")
