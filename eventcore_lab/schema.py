"""The waist: which facts are recorded, in which columns, with which types.

The measuring half writes these columns as Parquet into a run's spool folder, the judging half reads them from the Lab;
neither imports the other. Times are integer nanoseconds since the run's start unless a name says otherwise. What can
be computed from these facts (latency, service time, queueing, pool wait) is not stored.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextvars import ContextVar
from enum import IntEnum
from pathlib import Path

SCHEMA_VERSION = 5
"""2: `runs` has followers and lacks, there is a table `readers`. 3: `runs` has executor and projection, `samples` has
conflicts. 4: `runs` has operation_timeout_s, workers, cluster and spins. 5: there is a table `alerts`. A file of an older
version gets what is missing."""


class Outcome(IntEnum):
    """How an attempt came out. 0 is what a slot holds before its operation has ended."""

    RUNNING = 0
    OK = 1
    CONFLICT = 2
    FAILED = 3
    UNKNOWN = 4
    DROPPED = 5


CENSORED = (Outcome.RUNNING, Outcome.UNKNOWN, Outcome.DROPPED)
"""Outcomes without a known end: percentiles count them as *at least this slow*, never leave them out."""


class Phase(IntEnum):
    """Which part of the run an operation was due in. Warm-up rows are marked, never deleted."""

    WARMUP = 0
    STEADY = 1


class ExitCode(IntEnum):
    """What the command line ends with."""

    PASS = 0
    FAIL = 1
    USAGE = 2
    INCONCLUSIVE = 3
    BROKEN = 4
    VIOLATED = 5
    INTERRUPTED = 130


SAFE_ORDER = "a reader beside writers sees each event once and in order"
"""The claim of the conformance suite by which the readers beside a load are judged; `runs.lacks` may name it."""

RUN_STATUS = ("complete", "interrupted", "broken")

TABLES: dict[str, dict[str, str]] = {
    "runs": {
        "run_id": "VARCHAR",
        "started_at": "TIMESTAMP WITH TIME ZONE",
        "status": "VARCHAR",
        "status_reason": "VARCHAR",
        "experiment_id": "VARCHAR",
        "label": "VARCHAR",
        "trial": "INTEGER",
        "store": "VARCHAR",
        "workload": "VARCHAR",
        "executor": "VARCHAR",
        "pacer": "VARCHAR",
        "duration_s": "DOUBLE",
        "warmup_s": "DOUBLE",
        "seed": "BIGINT",
        "connections": "INTEGER",
        "in_flight_max": "INTEGER",
        "backlog_max": "INTEGER",
        "backlog_policy": "VARCHAR",
        "timeout_s": "DOUBLE",
        "operation_timeout_s": "DOUBLE",
        "workers": "INTEGER",
        "cluster": "VARCHAR",
        "spins": "BOOLEAN",
        "followers": "INTEGER",
        "projection": "VARCHAR",
        "is_closed_loop": "BOOLEAN",
        "measured_ns": "BIGINT",
        "durability": "VARCHAR",
        "keeps_events": "BOOLEAN",
        "lacks": "VARCHAR",
        "server": "VARCHAR",
        "environment_id": "VARCHAR",
        "schema_version": "INTEGER",
    },
    "samples": {
        "run_id": "VARCHAR",
        "worker": "SMALLINT",
        "operation": "BIGINT",
        "phase": "UTINYINT",
        "due_ns": "BIGINT",
        "offered_ns": "BIGINT",
        "began_ns": "BIGINT",
        "acquired_ns": "BIGINT",
        "ended_ns": "BIGINT",
        "backoff_ns": "BIGINT",
        "events": "INTEGER",
        "attempts": "INTEGER",
        "conflicts": "INTEGER",
        "outcome": "UTINYINT",
    },
    "gauges": {
        "run_id": "VARCHAR",
        "t_ns": "BIGINT",
        "source": "VARCHAR",
        "name": "VARCHAR",
        "value": "DOUBLE",
    },
    "marks": {
        "run_id": "VARCHAR",
        "t_ns": "BIGINT",
        "name": "VARCHAR",
        "detail": "VARCHAR",
    },
    "readers": {
        "run_id": "VARCHAR",
        "reader": "SMALLINT",
        "delivered": "BIGINT",
        "skipped": "BIGINT",
        "repeated": "BIGINT",
        "reordered": "BIGINT",
        "lag_p50_ns": "BIGINT",
        "lag_p95_ns": "BIGINT",
        "lag_p99_ns": "BIGINT",
        "lag_max_ns": "BIGINT",
        "late_ns": "BIGINT",
    },
    "verdicts": {
        "run_id": "VARCHAR",
        "kind": "VARCHAR",
        "topic": "VARCHAR",
        "name": "VARCHAR",
        "unit": "VARCHAR",
        "limit_text": "VARCHAR",
        "measured": "DOUBLE",
        "low": "DOUBLE",
        "high": "DOUBLE",
        "status": "VARCHAR",
        "reason": "VARCHAR",
    },
    "alerts": {
        "alert_id": "VARCHAR",
        "run_id": "VARCHAR",
        "alerted_at": "TIMESTAMP WITH TIME ZONE",
        "name": "VARCHAR",
        "severity": "VARCHAR",
        "state": "VARCHAR",
        "value": "DOUBLE",
        "limit_text": "VARCHAR",
        "text": "VARCHAR",
        "detail": "VARCHAR",
        "delivered": "VARCHAR",
    },
    "environments": {
        "environment_id": "VARCHAR",
        "name": "VARCHAR",
        "value": "VARCHAR",
    },
}
RUN_FILE = "run.json"
"""The run's row of `runs`, in its spool folder from the first moment, with status `interrupted` until it has ended."""
START_KEY = "start_ns"
"""In RUN_FILE once the load is about to begin, and no column: what times count from, on this machine's monotonic clock."""
GAUGES_FILE, MARKS_FILE = "gauges.ndjson", "marks.ndjson"
ENVIRONMENT_FILE = "environment.json"
ALERTS_FILE = "alerts.ndjson"
"""In the spool beside the folders of the runs: what a monitor alerted, until a Lab takes it in."""
LOCK_FILE = "lock"
"""Held (flock) by everybody who writes into the folder; whoever gets it finds a run that nobody is working on."""

DATA_VARIABLE, LAB_VARIABLE = "EVENTCORE_LAB_DATA", "EVENTCORE_LAB_FILE"


def data_folder() -> Path:
    """Where the Lab's file and the spool are: EVENTCORE_LAB_DATA, else `data` of the project around, else `./data`."""
    if named := os.environ.get(DATA_VARIABLE):
        return Path(named)
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "data").is_dir() and (folder / "notebooks").is_dir():
            return folder / "data"
    return here / "data"


def lab_file() -> Path:
    """The results file used when none is named: EVENTCORE_LAB_FILE, else `lab.duckdb` in the data folder."""
    named = os.environ.get(LAB_VARIABLE)
    return Path(named) if named else data_folder() / "lab.duckdb"


"""Table → column → DuckDB type, in the order of the file. `verdicts.kind` is `invariant`, `target`, `claim` (with a `topic`),
or `fact` for what is told and not judged. `runs.lacks` names the claims of the conformance suite that the store does not
make, a line each."""


SAMPLE_WORDS = ("operation", "due_ns", "offered_ns", "began_ns", "acquired_ns", "ended_ns", "backoff_ns", "packed")
"""A sample as the load records it: eight little-endian int64 in this order, one cache line. `samples-<worker>.i64` in the
spool is an array of them, in memory shared with the file, so that it survives the process that wrote it; those that come
from another machine are the same words as columns of `samples-<worker>.parquet`. A row of zeros was never begun. Of a load of
hours the rows `first` to `end` (that one not included) may have been taken to `samples-<worker>.<first>-<end>.parquet`, and be
zeros in the file; how many from the beginning says `samples-<worker>.taken`, as text.
`packed` is from the low end: outcome (8 bits), phase (7), 1 (1, "begun"), conflicts (8), attempts (8), events (32)."""

BEGUN = 1 << 15


def packed(outcome: int, phase: int, attempts: int, events: int, conflicts: int = 0) -> int:
    """The last word of a sample; more than 255 attempts or conflicts are recorded as 255."""
    return outcome | phase << 8 | BEGUN | min(conflicts, 255) << 16 | min(attempts, 255) << 24 | events << 32


JOURNAL: dict[str, dict[str, str]] = {
    "writes": {
        "worker": "SMALLINT",
        "operation": "BIGINT",
        "append": "BIGINT",
        "outcome": "UTINYINT",
        "began_ns": "BIGINT",
        "ended_ns": "BIGINT",
        "stream": "VARCHAR",
        "expected": "BIGINT",
        "actual": "BIGINT",
        "version": "BIGINT",
        "ordinal": "INTEGER",
        "event_id": "BLOB",
        "digest": "BIGINT",
        "amount": "BIGINT",
    },
    "stored": {
        "position": "HUGEINT",
        "stream": "VARCHAR",
        "version": "BIGINT",
        "event_id": "BLOB",
        "digest": "BIGINT",
        "amount": "BIGINT",
        "recorded_at_us": "BIGINT",
    },
    "restarted": {
        "position": "HUGEINT",
        "stream": "VARCHAR",
        "version": "BIGINT",
        "event_id": "BLOB",
        "digest": "BIGINT",
        "amount": "BIGINT",
        "recorded_at_us": "BIGINT",
    },
    "followed": {
        "reader": "SMALLINT",
        "life": "SMALLINT",
        "nth": "BIGINT",
        "position": "HUGEINT",
        "event_id": "BLOB",
        "seen_ns": "BIGINT",
    },
    "checkpointed": {
        "reader": "SMALLINT",
        "life": "SMALLINT",
        "nth": "BIGINT",
        "position": "HUGEINT",
    },
    "reads": {
        "worker": "SMALLINT",
        "session": "BIGINT",
        "stream": "VARCHAR",
        "version": "BIGINT",
        "events": "BIGINT",
        "last_id": "BLOB",
        "began_ns": "BIGINT",
        "ended_ns": "BIGINT",
    },
    "joint_reads": {
        "worker": "SMALLINT",
        "read": "BIGINT",
        "stream": "VARCHAR",
        "version": "BIGINT",
    },
    "prefixes": {
        "taken_ns": "BIGINT",
        "position": "HUGEINT",
        "events": "BIGINT",
        "digest": "BIGINT",
    },
    "counts": {
        "name": "VARCHAR",
        "value": "BIGINT",
    },
    "executed": {
        "worker": "SMALLINT",
        "operation": "BIGINT",
        "stream": "VARCHAR",
        "version": "BIGINT",
        "event_id": "BLOB",
    },
    "projected": {
        "projection": "VARCHAR",
        "key": "VARCHAR",
        "digest": "BIGINT",
        "expected": "BIGINT",
    },
}
"""What the checkers read, a Parquet file (or several, `<table>-<n>.parquet`) per table in the spool, kept only until the
run is judged: the findings stay, the rows do not. A table nobody wrote is empty.

writes        one row per event of every append tried; a read-only participant has one row with a NULL event_id and
              ordinal 0. `version`: the stream's after the append if it was acknowledged, else NULL. `actual`: only on the
              rows of the stream that conflicted. `amount`: the event's "amount", if it has one. A `worker` below 0 filled the
              store before the load
stored        one row per event read back after the load, in position order; `restarted` the same after the server was
              ended and started again
followed      what a reader that tails the whole store was given, in the order it was given (`nth`, from 1); `life` counts its
              restarts, from 0
checkpointed  the checkpoints it saved: before the `nth` event it was given in this life came the save of `position`. One
              that does not begin before everything notes where it begins, as saved before its first event
reads         whole-stream reads, the first so many of each worker: the version told, the number of events, the id of the
              last; a `session` is one caller (0: not known which)
joint_reads   the versions of streams that were read at one instant, by a worker's `read` number
prefixes      a digest over the first `events` events, up to `position`, taken at some time; for each `position` at least twice
counts        numbers of the run, added up over its workers: `offered` operations, `positions drawn` by the store's sequence,
              `server crashes`, `reads left out` of the evidence, NOT_COMPARED read models; IN_SYSTEM, the number of
              operations under way, summed up over time by the load itself; NOT_SETTLED and CLOCK_DOUBT
executed      what commands were told: for each of its streams a row with the version it has afterwards, and for each of its
              events a row with the id and no stream
projected     one row per row of a read model, or of what the events fold into without one: digests over what the read model has
              under the key (NULL: nothing) and over what it should have (NULL: nothing). A key that it has twice is here twice
"""


SUSPENDED = "the machine was suspended"
WALL_CLOCK_SET = "the wall clock was set"
STOOD_STILL = "the measuring process stood still"
LOADER_STOOD_STILL = "a load process stood still"
"""Marks of what no store can be blamed for; their detail says for how long or by how much."""

CLOCK_MARKS: dict[str, Callable[[float], tuple[str, str]]] = {
    "suspended": lambda seconds: (SUSPENDED, f"for {seconds:.3f} s"),
    "set": lambda seconds: (WALL_CLOCK_SET, f"by {seconds:+.3f} s"),
    "still": lambda seconds: (STOOD_STILL, f"for {seconds:.3f} s"),
}
"""What `clock.Clocks` finds → the name and the detail of its mark."""

IN_SYSTEM = "operations in the system × ns"
NOT_COMPARED = "not compared"
"""Counted: read models that had not caught up with the store when their time was over."""
NOT_SETTLED = "not settled within ms"
"""Counted: how long it was waited in vain for the store to let readers go as far as what was acknowledged."""
CLOCK_DOUBT = "clock doubt ns of worker "
"""Counted, with the worker's number behind it: how far its times can be off those of others, if it had another clock."""


class Attempt:
    """Facts of the operation under way that only the inside of a store or executor knows. All times absolute, ns."""

    __slots__ = ("acquired_ns", "attempts", "backoff_ns", "conflicts", "operation")

    def __init__(self) -> None:
        self.reset(0)

    def reset(self, operation: int) -> None:
        self.operation = operation
        self.acquired_ns = 0
        self.attempts = 1
        self.conflicts = 0
        self.backoff_ns = 0


current_attempt: ContextVar[Attempt | None] = ContextVar("current_attempt", default=None)
"""Set by the load around each operation, so that a pool deep inside can note when a connection was had."""
