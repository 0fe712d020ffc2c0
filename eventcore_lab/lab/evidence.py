"""A run's evidence as tables of a DuckDB connection of its own: those of schema.JOURNAL, its samples, and what is derived.

Derived are `acked` (events of acknowledged appends with the version each was given), `placed` (what each append that may
have happened wrote to each of its streams, and where that is stored), `spans` (between which times a stream can have had
a version) and `participants` (streams that an acknowledged append only checked).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from eventcore_lab.schema import CLOCK_DOUBT, JOURNAL, NOT_COMPARED, NOT_SETTLED, SAMPLE_WORDS, Outcome

MEMORY_MAX = "2GiB"
SAMPLES_AT_ONCE = 1 << 18
_SAMPLE_BYTES = 8 * len(SAMPLE_WORDS)
LOST = {
    "writes": "the journal of appends was lost",
    "stored": "the store was not read back",
    "samples": "the samples were lost",
    "restarted": "the server was not restarted",
    "followed": "no reader followed the store",
    "checkpointed": "no reader saved a checkpoint",
    "reads": "no stream was read whole",
    "joint_reads": "no streams were read together",
    "prefixes": "no digest was taken",
    "counts": "nothing was counted",
    "executed": "no command was executed",
    "projected": "no read model was kept",
}
"""Why an invariant is not tested when a table of evidence is not there."""
IN_DOUBT = f"""SELECT substr(name, {len(CLOCK_DOUBT) + 1})::SMALLINT AS worker
               FROM counts WHERE starts_with(name, '{CLOCK_DOUBT}') AND value > 0"""
"""The workers whose times are not to be taken from those of others: they had a clock of their own."""

_OK, _CONFLICT, _FAILED, _UNKNOWN = int(Outcome.OK), int(Outcome.CONFLICT), int(Outcome.FAILED), int(Outcome.UNKNOWN)

_DERIVED: dict[str, tuple[Sequence[str], str]] = {
    "refused": (
        ("writes",),
        f"CREATE TEMP VIEW refused AS SELECT * FROM writes WHERE outcome IN ({_CONFLICT}, {_FAILED})",
    ),
    "unanswered": (
        ("writes",),
        f"CREATE TEMP VIEW unanswered AS SELECT * FROM writes WHERE outcome = {_UNKNOWN}",
    ),
    "conflicts": (
        ("writes",),
        f"""CREATE TEMP VIEW conflicts AS
            SELECT worker, append, any_value(began_ns) AS began_ns, any_value(ended_ns) AS ended_ns,
                   any_value(stream) FILTER (actual IS NOT NULL) AS stream,
                   any_value(expected) FILTER (actual IS NOT NULL) AS expected, any_value(actual) AS actual
            FROM writes WHERE outcome = {_CONFLICT} GROUP BY worker, append""",
    ),
    "participants": (
        ("writes",),
        f"""CREATE TEMP VIEW participants AS
            SELECT worker, append, stream, expected, version, began_ns, ended_ns
            FROM writes WHERE outcome = {_OK} AND event_id IS NULL""",
    ),
    "acked": (
        ("writes",),
        f"""CREATE TEMP TABLE acked AS
            SELECT *, version - n + ordinal AS at_version
            FROM writes JOIN (SELECT worker, append, stream, max(ordinal) AS n FROM writes GROUP BY ALL) AS of_stream
                 USING (worker, append, stream)
            WHERE outcome = {_OK} AND event_id IS NOT NULL""",
    ),
    "placed": (
        ("writes", "stored"),
        f"""CREATE TEMP TABLE placed AS
            SELECT worker, append, w.stream, any_value(w.began_ns) AS began_ns,
                   any_value(CASE WHEN outcome = {_OK} THEN w.ended_ns END) AS ended_ns, count(*) AS events,
                   min(s.version) AS first_version, max(s.version) AS last_version,
                   min(s.position) AS first_position, max(s.position) AS last_position,
                   min(s.version - ordinal) AS low, max(s.version - ordinal) AS high
            FROM writes AS w JOIN stored AS s ON w.event_id = s.event_id AND w.stream = s.stream
            WHERE outcome IN ({_OK}, {_UNKNOWN}) GROUP BY worker, append, w.stream""",
    ),
    # A version can have been a stream's at a time only between the first beginning of the append that made it and the
    # last end of the one that made the next; the end is open when that had no answer, or there was none.
    "spans": (
        ("placed",),
        """CREATE TEMP TABLE spans AS
           SELECT coalesce(made.stream, passed.stream) AS stream, coalesce(made.version, passed.version) AS version,
                  began_ns, ended_ns
           FROM (SELECT stream, last_version AS version, min(began_ns) AS began_ns FROM placed GROUP BY ALL) AS made
                FULL JOIN
                (SELECT stream, first_version - 1 AS version,
                        CASE WHEN count(*) = count(ended_ns) THEN max(ended_ns) END AS ended_ns
                 FROM placed GROUP BY ALL) AS passed
                ON made.stream = passed.stream AND made.version = passed.version""",
    ),
}


class Evidence:
    """What a folder has. `con` sees every table, empty where there is nothing; `lacking` says of which it is so, and why."""

    def __init__(self, con: duckdb.DuckDBPyConnection, folder: Path) -> None:
        self.con = con
        self.lacking: dict[str, tuple[str, str]] = {}
        for table in JOURNAL:
            self._open(table, sorted([*folder.glob(f"{table}.parquet"), *folder.glob(f"{table}-*.parquet")]))
        workers = sample_workers(folder)
        self._open_samples(folder, workers)
        if len([*folder.glob("counts-[0-9]*.parquet")]) < len(workers):
            self.lacking.setdefault(
                "counts", ("not tested", "a load process ended before it could say what it counted")
            )
        if self.con.execute("SELECT 1 FROM counts WHERE name = ?", [NOT_COMPARED]).fetchall():
            self.lacking["projected"] = ("broken", "the read model had not caught up when its time was over")
        for [within_ms] in self.con.execute("SELECT value FROM counts WHERE name = ?", [NOT_SETTLED]).fetchall():
            self.lacking["stored"] = (
                "broken",
                f"the store had not settled up to what was acknowledged within {within_ms / 1000:g} s; is another transaction "
                "open on the server?",
            )
        for name, (needs, sql) in _DERIVED.items():
            self._derive(name, needs, sql)

    def lacks(self, needs: Sequence[str]) -> tuple[str, str] | None:
        """("not tested" or "broken", why) when one of these tables is not to be had."""
        return next((self.lacking[table] for table in needs if table in self.lacking), None)

    def _open(self, table: str, files: Sequence[Path]) -> None:
        kinds = JOURNAL[table]
        # Read once, into memory: most tables are gone through a dozen times. Ids of 16 bytes compare as numbers.
        named = [f"{name}::UUID AS {name}" if kind == "BLOB" else name for name, kind in kinds.items()]
        try:
            if files:
                paths = [str(path) for path in files]
                selected = f"SELECT {', '.join(named)} FROM read_parquet(?, hive_partitioning = false)"
                self.con.execute(f"CREATE TEMP TABLE {table} AS {selected}", [paths])
                return
            self.lacking[table] = ("not tested", LOST[table])
        except duckdb.Error as error:
            self.lacking[table] = ("broken", line_of(error))
        listed = ", ".join(f"{name} {'UUID' if kind == 'BLOB' else kind}" for name, kind in kinds.items())
        self.con.execute(f"CREATE TEMP TABLE {table} ({listed})")

    def _open_samples(self, folder: Path, workers: Sequence[int]) -> None:
        if not workers:
            self.lacking["samples"] = ("not tested", LOST["samples"])
        self.con.execute(
            "CREATE TEMP TABLE samples (operation BIGINT, began_ns BIGINT, ended_ns BIGINT, outcome BIGINT)"
        )
        lost: list[str] = []
        for _, rows in sampled(folder, lost):
            columns = {name: rows[:, SAMPLE_WORDS.index(name)] for name in ("operation", "began_ns", "ended_ns")}
            self.con.register("incoming", pa.table({**columns, "outcome": rows[:, -1] & 0xFF}))
            self.con.execute("INSERT INTO samples SELECT * FROM incoming")
            self.con.unregister("incoming")
        if lost:
            self.lacking["samples"] = ("broken", lost[0])

    def _derive(self, name: str, needs: Sequence[str], sql: str) -> None:
        if (why := self.lacks(needs)) is not None:
            self.lacking[name] = why
            return
        try:
            self.con.execute(sql)
        except duckdb.Error as error:
            self.lacking[name] = ("broken", line_of(error))


def line_of(error: Exception) -> str:
    """What went wrong, in one line."""
    return str(error).partition("\n")[0]


def sample_workers(folder: Path) -> list[int]:
    """The numbers of those whose samples are in a run's folder, recorded here or brought from elsewhere."""
    names = [path.name for path in folder.glob("samples-*") if path.suffix in (".i64", ".parquet")]
    return sorted({int(name.removeprefix("samples-").partition(".")[0]) for name in names})


def sampled(folder: Path, lost: list[str]) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """(worker, rows) of a run's samples, each row once, not too many at a time, as `raw_samples` gives them. What of a load of
    hours was taken out of its file meanwhile (load/rotation.py) is in parts and comes first. What is missing, or cannot be
    read, is told in `lost`."""
    for worker in sample_workers(folder):
        stem, next_row = f"samples-{worker}", 0
        raw, parts = folder / f"{stem}.i64", _parts(folder, stem)
        for first, end, part in [*parts, (taken := _taken(raw, parts), taken, None)]:
            if (
                first > next_row
            ):  # a part that is gone, or was torn by a power cut: its rows may still be where they were
                again = [*_recorded(raw, next_row, first)]
                yield from [(worker, rows) for rows in again]
                if sum(map(len, again)) < first - next_row:
                    lost.append(f"of the samples {next_row} to {first} of worker {worker} some are gone")
                next_row = first
            if part is not None and end > next_row and (whole := _whole(part, end - first)) is not None:
                yield worker, whole[next_row - first :]
                next_row = end
        yield from [(worker, rows) for rows in _recorded(raw, next_row)]
        if (gathered := folder / f"{stem}.parquet").exists():
            yield worker, raw_samples(gathered)


def _taken(raw: Path, parts: Sequence[tuple[int, int, Path]]) -> int:
    """How many rows from the beginning may not be in the file any more."""
    told = raw.with_suffix(".taken")
    return max([int(told.read_text()) if told.exists() else 0, *(end for _, end, _ in parts)])


def _whole(part: Path, count: int) -> NDArray[np.int64] | None:
    """The rows of a part, None if they cannot be read."""
    try:
        rows = raw_samples(part)
    except (OSError, pa.ArrowException):
        return None
    return rows if len(rows) == count else None


def _parts(folder: Path, stem: str) -> list[tuple[int, int, Path]]:
    """(first row, row behind the last, file) of what was taken from a worker's samples, by row."""
    parts = []
    for path in folder.glob(f"{stem}.*-*.parquet"):
        first, _, end = path.name.split(".")[1].partition("-")
        parts.append((int(first), int(end), path))
    return sorted(parts)


def raw_samples(part: Path) -> NDArray[np.int64]:
    """A worker's rows as they were recorded, shape (n, 8), without those that never began; see schema.SAMPLE_WORDS."""
    if part.suffix == ".parquet":
        table = pq.read_table(part, columns=list(SAMPLE_WORDS))
        return np.column_stack([table[name].to_numpy() for name in SAMPLE_WORDS])
    return np.concatenate([np.empty((0, len(SAMPLE_WORDS)), np.int64), *_recorded(part, 0)])


def _recorded(path: Path, first: int, end: int | None = None) -> Iterator[NDArray[np.int64]]:
    """The rows of a file as it was recorded, from row `first` on, up to `end`; its holes are not read."""
    if not path.exists():
        return
    with path.open("rb") as file:
        offset = first * _SAMPLE_BYTES
        while (offset := _data_from(file.fileno(), offset)) >= 0:
            at_once = SAMPLES_AT_ONCE if end is None else min(SAMPLES_AT_ONCE, end - offset // _SAMPLE_BYTES)
            data = os.pread(file.fileno(), max(0, at_once) * _SAMPLE_BYTES, offset)
            whole = len(data) // _SAMPLE_BYTES
            if not whole:
                return
            rows = np.frombuffer(data, np.int64, whole * len(SAMPLE_WORDS)).reshape(-1, len(SAMPLE_WORDS))
            offset += whole * _SAMPLE_BYTES
            if len(begun := rows[rows[:, -1] != 0]):
                yield begun


def _data_from(file: int, offset: int) -> int:
    """Where in a sparse file there is something again from `offset` on, as the beginning of a row; -1 for nowhere."""
    if not hasattr(os, "SEEK_DATA"):
        return offset
    try:
        return max(offset, os.lseek(file, offset, os.SEEK_DATA) // _SAMPLE_BYTES * _SAMPLE_BYTES)
    except OSError:  # ENXIO: only a hole, or the end
        return -1


@contextmanager
def opened(folder: Path) -> Iterator[Evidence]:
    """The evidence in `folder`, in a database of its own that is gone afterwards."""
    with duckdb.connect() as con:
        con.execute(f"SET memory_limit = '{MEMORY_MAX}'")
        # What does not fit goes to the folder, which is removed with the run.
        con.execute("SET temp_directory = ?", [str(folder)])
        yield Evidence(con, folder)
