"""`make bench`: speed as a ratio to something in the same run, in interleaved trials; a line per figure, and a JSON file.

    name   median ratio [lowest – highest]   floor   what is compared

A figure below its floor makes the exit code 1. `make bench ONLY=load` picks the figures whose name contains the word.
"""

from __future__ import annotations

import asyncio
import json
import mmap
import os
import re
import statistics
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

from eventcore_lab.clock import now_ns
from eventcore_lab.experiment import Experiment, measure
from eventcore_lab.lab.database import Lab
from eventcore_lab.lab.measures import Run
from eventcore_lab.load.recorder import ROW, Recorder
from eventcore_lab.machine import environment
from eventcore_lab.schema import packed
from eventcore_lab.stores import postgres
from eventcore_lab.stores.embedded import EmbeddedServer
from eventcore_lab.stores.variants import variants

TRIALS = 5
SECONDS = 3.0
OUT = Path("reports/bench.json")


@dataclass
class Figure:
    """`ratios`: one per trial. `floor`: the least the median may be; None where there is none to hold."""

    name: str
    what: str
    floor: float | None
    ratios: list[float]
    notes: dict[str, float] = field(default_factory=dict)

    @property
    def median(self) -> float:
        return statistics.median(self.ratios)

    @property
    def is_met(self) -> bool:
        return self.floor is None or self.median >= self.floor

    def __str__(self) -> str:
        mark = " " if self.is_met else "!"
        floor = "–" if self.floor is None else f"{self.floor:g}"
        notes = "  ".join(f"{k} {v:,.4g}" for k, v in self.notes.items())
        spread = f"[{min(self.ratios):.2f} – {max(self.ratios):.2f}]"
        return f"{mark} {self.name:<28} {self.median:6.2f} {spread:<16} floor {floor:<5} {self.what}  ({notes})"


def stores_append_c10() -> Figure:
    """Our single append by ten callers on ten connections, against pgbench running the bare INSERT on the same server."""
    ratios, ours_all, theirs_all = [], [], []
    with EmbeddedServer() as server, _lab() as lab, _table(server) as schema:
        os.environ["BENCH_DSN"] = server.dsn
        for trial in range(TRIALS):
            pair: dict[str, float] = {}
            for who in ("ours", "pgbench") if trial % 2 else ("pgbench", "ours"):
                pair[who] = _ours(lab) if who == "ours" else _pgbench(server, schema, 10)
            ratios.append(pair["ours"] / pair["pgbench"])
            ours_all.append(pair["ours"])
            theirs_all.append(pair["pgbench"])
    notes = {"ours/s": statistics.median(ours_all), "pgbench/s": statistics.median(theirs_all)}
    what = "single append, 10 connections, to pgbench's bare INSERT"
    return Figure("stores.append_c10", what, 0.75, ratios, notes)


@contextmanager
def _lab() -> Iterator[Lab]:
    with tempfile.TemporaryDirectory() as folder:
        yield Lab(Path(folder) / "lab.duckdb")


@contextmanager
def _table(server: EmbeddedServer) -> Iterator[str]:
    asyncio.run(postgres.create(server.dsn, "bench", variants()[""].schema_sql(), 10))
    yield "bench"


def _ours(lab: Lab) -> float:
    e = Experiment(
        store="env:BENCH_DSN",
        workload="write_events:batch=1",
        pacer="saturate:concurrency=10",
        duration_s=SECONDS,
        warmup_s=0.5,
        connections=10,
    )
    run_id = lab.ingest(measure(e, lab.spool).folder)
    found = Run(lab, run_id)
    assert not set(found.invariants["status"]) & {"violated", "broken"}, found.invariants
    return found.figure("commands_per_second").estimate.value


_INSERT = """\\set s random(1, 4611686018427387904)
INSERT INTO {schema}.events (stream_id, version, event_id, event_type, data, meta)
VALUES ('test-' || :s, 1, gen_random_uuid(), 'TestHappened', '\\x{data}'::bytea, '\\x'::bytea);
"""


def _pgbench(server: EmbeddedServer, schema: str, clients: int) -> float:
    assert server.binaries is not None
    with tempfile.NamedTemporaryFile("w", suffix=".sql") as script:
        script.write(_INSERT.format(schema=schema, data="78" * 200))
        script.flush()
        command = [str(server.binaries.bindir / "pgbench"), "-n", "-M", "prepared", "-c", str(clients), "-j", "2"]
        command += ["-T", str(int(SECONDS)), "-f", script.name, "-h", server.host, "-p", str(server.port)]
        command += ["-U", server.user, server.database]
        out = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    found = re.search(r"tps = ([\d.]+)", out)
    assert found, out
    return float(found.group(1))


def load_record() -> Figure:
    """One sample recorded (begun and ended), against one write of the same eight integers into the same kind of memory."""
    n = 200_000
    ratios, costs = [], []
    with tempfile.TemporaryDirectory() as folder:
        for trial in range(TRIALS):
            with Recorder(Path(folder) / f"{trial}.i64", n) as recorder:
                recorded = _timed(partial(_record, recorder, n))
            bare = _timed(partial(_write_bare, n))
            ratios.append(bare / recorded)
            costs.append(recorded / n)
    notes = {"ns per sample": statistics.median(costs)}
    return Figure("load.record", "recording a sample, to a bare preallocated write", 0.33, ratios, notes)


def _record(recorder: Recorder, n: int) -> None:
    begin, end, word = recorder.begin, recorder.end, packed(1, 1, 1, 1)
    for k in range(n):
        end(begin(k, k, k, k, 1), k, k, k, k, k, k, 0, word)


def _write_bare(n: int) -> None:
    memory = mmap.mmap(-1, n * ROW.size)
    pack = struct.Struct("<8q").pack_into
    for k in range(n):
        pack(memory, k * 64, k, k, k, k, k, k, 0, 1)
    memory.close()


def _timed(work: Callable[[], object]) -> float:
    began = now_ns()
    work()
    return float(now_ns() - began)


def load_null() -> Figure:
    """A closed loop on the null store, against a bare loop that awaits the same coroutine."""
    ratios, rates = [], []
    with _lab() as lab:
        for _ in range(TRIALS):
            e = Experiment(
                store="null", workload="write_events", pacer="saturate:concurrency=1", duration_s=1, warmup_s=0.2
            )
            ours = Run(lab, lab.ingest(measure(e, lab.spool).folder)).figure("commands_per_second").estimate.value
            bare = asyncio.run(_bare_rate())
            ratios.append(ours / bare)
            rates.append(ours)
    notes = {"ours/s": statistics.median(rates)}
    return Figure(
        "load.null", "driving the null store, to a bare loop preparing and awaiting the same", 0.5, ratios, notes
    )


async def _bare_rate(n: int = 50_000) -> float:
    from eventcore_lab.load.workloads import workloads
    from eventcore_lab.stores.memory import Null

    workload = workloads.make("write_events", seed=1)
    perform = workload.start(Null())
    began = now_ns()
    for k in range(n):
        await perform(workload.prepare(k))
    return n * 1e9 / (now_ns() - began)


def lab_ingest() -> Figure:
    """Taking a run into the Lab with all its checks, against copying its files with DuckDB's fastest way and none."""
    import duckdb
    import numpy as np
    import pyarrow as pa

    ratios, per_sample, size = [], [], []
    for _ in range(3):
        with _lab() as lab:
            lab.check()
            e = Experiment(store="memory", pacer="constant:rate=20000", duration_s=5, warmup_s=0)
            folder = measure(e, lab.spool).folder
            rows = np.fromfile(next(folder.glob("*.i64")), np.int64).reshape(-1, 8)
            bare_rows = pa.table({f"c{i}": rows[:, i] for i in range(8)})
            with duckdb.connect(str(lab.path.with_name("bare.duckdb"))) as con:
                con.register("bare_rows", bare_rows)
                bare = _timed(partial(con.execute, "CREATE TABLE t AS SELECT * FROM bare_rows"))
            before = lab.path.stat().st_size
            ours = _timed(lambda lab=lab, folder=folder: lab.ingest(folder))
            ratios.append(bare / ours)
            per_sample.append(ours / len(rows))
            size.append((lab.path.stat().st_size - before) / len(rows))
    notes = {"ns per sample": statistics.median(per_sample), "bytes per sample": statistics.median(size)}
    return Figure("lab.ingest", "ingest with every check, to DuckDB's bare copy of the samples", None, ratios, notes)


FIGURES = (stores_append_c10, load_record, load_null, lab_ingest)


def main(only: str) -> int:
    chosen = [f for f in FIGURES if only in f.__name__]
    if not chosen:
        print(f"no figure contains {only!r} (there are {', '.join(f.__name__ for f in FIGURES)})", file=sys.stderr)
        return 2
    found = []
    for work in chosen:
        found.append(work())
        print(found[-1], flush=True)
    OUT.parent.mkdir(exist_ok=True)
    content = {"environment": environment(), "figures": [{**asdict(f), "median": f.median} for f in found]}
    OUT.write_text(json.dumps(content, indent=1) + "\n")
    return 0 if all(f.is_met for f in found) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else ""))
