"""Figures of the load generator and of taking a run in."""

from __future__ import annotations

import asyncio
import mmap
import statistics
import struct
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from eventcore_lab.clock import now_ns
from eventcore_lab.experiment import Experiment, measure
from eventcore_lab.lab.measures import Run
from eventcore_lab.load.recorder import ROW, Recorder
from eventcore_lab.schema import packed
from tests.bench.figure import TRIALS, Figure, a_lab


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
    with a_lab() as lab:
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
    from eventcore_lab.commands import direct
    from eventcore_lab.load.workloads import workloads
    from eventcore_lab.stores.memory import Null

    workload = workloads.make("write_events", seed=1)
    store = Null()
    perform = workload.start(store, direct(store))
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
        with a_lab() as lab:
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
