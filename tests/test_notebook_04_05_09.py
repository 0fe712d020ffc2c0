"""Claims about caches, streaming and memory: what the notebooks 04, 05 and 09 say of them, and the notebooks once."""

from __future__ import annotations

import json
import math
import os
import random
import re
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pages
import polars as pl
import pytest

from eventcore_lab import cli
from eventcore_lab.clock import VirtualClock, sleep_s
from eventcore_lab.commands import CreateUser, Direct, Executor, executors
from eventcore_lab.companions import probes
from eventcore_lab.companions.series import Series
from eventcore_lab.events import AppendResult
from eventcore_lab.lab import caching, footprints, streaming
from eventcore_lab.lab.database import Lab
from eventcore_lab.lab.measures import MIB, Run
from eventcore_lab.lab.numbers import Number, exactly, less
from eventcore_lab.lab.stats import NOTHING, Estimate
from eventcore_lab.lab.wording import said
from eventcore_lab.load.workloads import workloads
from eventcore_lab.load.workloads.everything import WAYS
from eventcore_lab.schema import GAUGES_FILE, ExitCode, Outcome
from eventcore_lab.spec import UsageError
from eventcore_lab.stores.memory import Memory
from eventcore_lab.stores.wrapper import Wrapper

MS = 1_000_000


class Made(Run):
    """A run by hand, in no Lab: operations of 10 ms one after the other for a second; gauges are (source, name, ms, value)."""

    def __init__(self, *gauges: tuple[str, str, int, float], events: int = 1, filled: int = 0, **row: Any) -> None:
        base = {
            "store": "memory",
            "workload": "create_user",
            "executor": "direct",
            "pacer": "saturate",
            "durability": "",
        }
        self.run_id = "made"
        self.row = {
            **base,
            "warmup_s": 0.0,
            "measured_ns": 1000 * MS,
            "status": "complete",
            "projection": "",
            "is_closed_loop": True,
            **row,
        }
        began = pl.Series(range(100), dtype=pl.Int64) * (10 * MS)
        times = dict.fromkeys(("due_ns", "began_ns", "acquired_ns"), began) | {"ended_ns": began + 10 * MS}
        self.samples = pl.DataFrame(
            {
                **times,
                "phase": 1,
                "outcome": int(Outcome.OK),
                "events": events,
                "backoff_ns": 0,
                "attempts": 1,
                "conflicts": 0,
            }
        )
        columns = ["source", "name", "t_ns", "value"]
        rows = [(source, name, t_ms * MS, float(value)) for source, name, t_ms, value in gauges]
        self.gauges = pl.DataFrame(rows, schema=columns, orient="row") if rows else pl.DataFrame(
            schema=dict(zip(columns, (pl.String, pl.String, pl.Int64, pl.Float64), strict=True))
        )  # fmt: skip
        self.marks = pl.DataFrame({"t_ns": [0], "name": ["store filled"], "detail": [f"{filled} events"]})


def looked_at(*sizes_mib: float, peak: float = 0.0, after: float = 0.0) -> list[tuple[str, str, int, float]]:
    """Looks at the load process: before the load, ten times a second during it, and one after its end."""
    seen = [("loader", "resident_bytes", -50 + 100 * n, mib * MIB) for n, mib in enumerate(sizes_mib)]
    most = [("loader", "resident_peak_bytes", t, max(v, peak * MIB)) for _, _, t, v in seen]
    pss = [("loader", "pss_bytes", t, v / 2) for _, _, t, v in seen]
    end = [("loader", name, 1200, after * MIB) for name in ("resident_bytes", "resident_peak_bytes", "pss_bytes")]
    return [*seen, *most, *pss, *(end if after else [])]


# numbers


def test_a_number_is_told_to_arms_claims_and_pictures_as_a_figure_is() -> None:
    runs = [Made(events=n, workload=f"read_everything:events={size}") for n, size in ((10, 100), (30, 300))]

    def counted(run: Run) -> Estimate:
        n = float(run.samples["events"][0])
        return Estimate(n, n - 0.1, n + 0.1, 1)

    events = Number("events of the first", "events", "events", counted)
    assert events.together(runs).value == 20
    assert events.times(runs[1:], runs[:1]).value == pytest.approx(3)
    claim = events.claim("streaming", "more of more", runs[1:], runs[:1], at_least=2)
    reason = "events of the first: 30 events [29.9 – 30.1] to 10 events [9.9 – 10.1]; one run each"
    assert (claim.status, claim.unit, claim.reason) == ("held", "times", reason)
    without = Number("events", "events", "events", lambda run: exactly(float(run.samples["events"][0]), 1))
    assert without.claim("streaming", "more", runs[1:], runs[:1], at_least=2).status == "not settled"
    axes = events.along(runs, "events").axes[0]
    assert axes.get_ylabel() == "events" and list(axes.get_lines()[0].get_ydata()) == [10, 30]


def test_what_is_said_has_three_digits_its_unit_and_its_interval() -> None:
    assert said(Estimate(1234.5, 1000.0, 1500.0, 9), "B") == "1,234 B [1,000 – 1,500]"
    assert said(exactly(0.00004, 1), "MiB") == "0 MiB" and said(exactly(12.34, 1), "/s") == "12.3/s"
    assert said(NOTHING, "B") == "not measured"
    assert less(Estimate(10, 7, 13, 1), Estimate(4, 0, 8, 1)) == Estimate(6, 1, 11, 2)


# caches


def cached_run(hits: int, misses: int, size: int, streams: int, pick: str) -> Made:
    counted = [("executor", "cache_hits", 1000, hits), ("executor", "cache_misses", 1000, misses)]
    workload = f"update_profile:users={streams},pick={pick}"
    return Made(*counted, workload=workload, executor=f"cached(direct):size={size}")


@pytest.mark.parametrize(("size", "streams"), [(10, 100), (100, 100), (50, 1000), (1000, 1000)])
@pytest.mark.parametrize("pick", ["uniform", "zipf"])
def test_what_the_picks_allow_is_what_a_cache_played_through_has(size: int, streams: int, pick: str) -> None:
    rng, looks, entries, hits = random.Random(1), 4000, OrderedDict[int, None](), 0
    weights = [(n + 1) ** -(0.99 if pick == "zipf" else 0.0) for n in range(streams)]
    for n in rng.choices(range(streams), weights, k=looks):
        hits += n in entries
        entries[n] = None
        entries.move_to_end(n)
        if len(entries) > size:
            entries.popitem(last=False)
    run = cached_run(hits, looks - hits, size, streams, pick)
    assert caching.possible_hits(run) == pytest.approx(100 * hits / looks, abs=1.5)
    assert caching.hits(run).value == pytest.approx(100 * hits / looks)


def test_of_picks_that_hang_together_and_of_no_cache_nothing_is_foretold() -> None:
    assert math.isnan(caching.possible_hits(cached_run(1, 9, 10, 100, "sequential")))
    assert math.isnan(caching.possible_hits(Made()))
    assert caching.found_in_cache([Made(workload="update_profile:users=1")]).text == "No cache was asked for anything."


def test_hits_that_are_not_what_the_picks_allow_are_found() -> None:
    ways = ["direct", "cached(direct)", "chapter_cached(direct)"]
    by_length = [Made(workload="update_profile:events=9", executor=way) for way in ways]
    [told, *others] = caching.claimed([cached_run(900, 100, 10, 1000, "uniform")], by_length, [], ways)
    assert told.status == "not held" and told.measured.value > 85
    assert [c.text.startswith("on streams of 9 events") for c in others] == [True, True]


# memory


def test_growth_is_by_the_commands_done_meanwhile_and_ends_with_the_load() -> None:
    run = Made(*looked_at(*[50 + 0.1 * n for n in range(11)], after=90.0))
    # a tenth of a MiB with each look, ten commands between two looks
    assert footprints.per_command(run).value == pytest.approx(0.1 * MIB / 10, rel=0.02)
    assert footprints.grown(1000).of(run).value == pytest.approx(10, rel=0.02)
    assert footprints.taken(run).value == pytest.approx(1.0)
    assert footprints.peaks(run) == {"loader": pytest.approx(26)}


def test_what_the_warm_up_takes_and_when_commands_come_does_not_matter() -> None:
    run = Made(*looked_at(50, 60, 70, 80, 90, *[90 + 0.1 * n for n in range(1, 7)]), warmup_s=0.35)
    assert footprints.per_command(run).value == pytest.approx(0.1 * MIB / 10, rel=0.02)
    early = Made(*looked_at(50, 50.25, 50.75, *[51] * 8))
    early.samples = early.samples.with_columns(ended_ns=pl.col("ended_ns") // 5)  # all in the first fifth of the time
    assert footprints.per_command(early).value == pytest.approx(0.01 * MIB)


def test_the_highest_between_two_looks_counts() -> None:
    run = Made(*looked_at(50, 50, 50, peak=80))
    assert footprints.taken(run).value == pytest.approx(30)
    assert footprints.peaks(run)["loader"] == pytest.approx(25 + 30)
    assert "55.0 MiB (looks at its PSS saw 25.0)" in footprints.highest(run).text


def test_memory_that_nobody_looked_at_is_not_judged() -> None:
    run = Made()
    assert math.isnan(footprints.per_command(run).value) and math.isnan(footprints.taken(run).value)
    assert footprints.highest(run).text == "Memory was not recorded."
    assert footprints.what_a_count_sees(run).text == "Nothing was counted."
    for picture in (footprints.over_time([run]), footprints.services_over_time(run), footprints.seen_and_taken(run)):
        assert [t.get_text() for t in picture.axes[0].texts] == ["nothing was measured"]


@pytest.mark.parametrize(
    ("own", "told"),
    [
        (Estimate(12, 8, 16, 9), "12 B [8 – 16]"),
        (Estimate(-2, -50, 46, 9), "nothing that shows (-2 B [-50 – 46])"),
        (NOTHING, "not measured"),
    ],
)
def test_what_a_command_leaves_is_nothing_only_as_far_as_the_interval_says(
    own: Estimate, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(footprints, "net", lambda *_: own)
    run = Made(*looked_at(50, 51))
    assert f"each command leaves {told}. " in str(footprints.settings([run], []))


async def executed(executor: Executor, commands: int) -> None:
    for n in range(commands):
        await executor.execute(CreateUser(f"u{n}", f"u{n}@example.com", "U", "N"))
    await executor.close()


async def test_a_count_sees_the_leak_and_the_chapters_peak_is_from_before() -> None:
    executor = executors.make("chapter_memory(leaking(direct):bytes=5000)", store=Memory(), seed=1)
    await executed(executor, 100)
    counted = executor.counts()
    assert counted["leaked_bytes"] == 500_000
    assert counted["counted_peak_bytes"] == counted["counted_initial_bytes"] < 50_000
    assert 500_000 < counted["counted_final_bytes"] <= counted["counted_highest_bytes"]
    assert counted["counter_bytes"] > 0


async def test_what_counts_or_leaks_keeps_the_shape_of_what_is_inside() -> None:
    executor = executors.make("cached(chapter_memory(leaking(direct)))", store=Memory(), seed=1)
    assert isinstance(executor.core, Direct)
    await executed(executor, 3)
    assert executor.counts()["cache_misses"] == 3 and executor.counts()["leaked_bytes"] == 27_000
    unused = executors.make("chapter_memory(direct)", store=Memory(), seed=1)
    await unused.close()
    assert unused.counts() == {}


def test_the_kernel_s_own_mark_begins_with_the_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, series = VirtualClock(), Series(tmp_path)
    monkeypatch.setattr(probes, "now_ns", clock.now_ns)
    series.start_ns = 0
    np.ones(200 * MIB // 8)  # before the load, and gone

    async def load() -> None:
        async with probes.resources(series, {"loader": lambda: [os.getpid()], "server": lambda: [os.getpid()]}):
            await sleep_s(1)
            np.ones(50 * MIB // 8)  # between two looks
            await sleep_s(1)

    clock.run(load())
    series.close()
    rows = [msgspec.json.decode(line) for line in (tmp_path / GAUGES_FILE).read_bytes().splitlines()]
    found = [r for r in rows if r["name"].startswith("resident")]
    assert {r["source"] for r in found} == {"loader"}
    now, peak = ([r["value"] for r in found if r["name"] == name] for name in ("resident_bytes", "resident_peak_bytes"))
    assert len(now) == len(peak) > 6
    assert peak[0] < now[0] + 20 * MIB and max(now) < now[0] + 20 * MIB
    assert 40 * MIB < peak[-1] - now[0] < 70 * MIB


# reading everything


class Counted(Wrapper):
    """A store that notes how many events it gave at once, at the most, and how often it was asked."""

    most = reads = 0

    def _note(self, n: int) -> None:
        self.most, self.reads = max(self.most, n), self.reads + 1

    async def read_all(self, *asked: Any, **options: Any) -> Any:
        found = await super().read_all(*asked, **options)
        self._note(len(found))
        return found

    async def read_stream(self, *asked: Any, **options: Any) -> Any:
        found = await super().read_stream(*asked, **options)
        self._note(len(found.events))
        return found


@pytest.mark.parametrize(
    ("how", "most", "reads"), [("stream", 10, 11), ("load", 103, 1), ("streams", 26, 4), ("stream_events", 10, 12)]
)
async def test_each_way_gives_every_event_so_many_at_once(how: str, most: int, reads: int) -> None:
    store = Counted(Memory())
    workload = workloads.make(f"read_everything:how={how},events=103,streams=4,page=10", seed=1)
    for result in await store.append_many(list(workload.populate())):
        assert isinstance(result, AppendResult)
    assert await store.last_position() == 103
    perform = workload.start(store, Direct(store))
    assert await perform(workload.prepare(0)) == 103
    assert (store.most, abs(store.reads - reads)) <= (most, 1)
    assert store.most == most and how in WAYS


def test_streams_lie_between_one_another() -> None:
    requests = [*workloads.make("read_everything:events=1000,streams=2", seed=1).populate()]
    assert len({r[0].stream for r in requests[:2]}) == 2 and len(requests) == 20


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("how=lode", "unknown how 'lode'.*did you mean load"),
        ("events=0", "events must be 1 to"),
        ("events=5,streams=6", "streams must be 1 to 5 for events=5"),
        ("page=0", "page must be 1 to"),
        ("payload_bytes=0", "payload_bytes must be 1 to"),
    ],
)
def test_a_read_that_cannot_be_is_refused(spec: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        workloads.make(f"read_everything:{spec}", seed=1)


def read(how: str, events: int, taken: float, gives: int) -> Made:
    return Made(
        *looked_at(50, 50 + taken),
        events=gives,
        filled=events,
        workload=f"read_everything:how={how},events={events},page=10",
    )


def test_a_list_grows_with_the_store_and_pages_do_not() -> None:
    runs = [read("stream", 1000, 1, 1000), read("stream", 11_000, 1, 11_000)]
    runs += [read("load", 1000, 1, 1000), read("load", 11_000, 11, 11_000)]
    told = {c.text: c for c in streaming.claimed(runs, [])}
    assert [c.status for c in told.values()] == ["held"] * 4
    assert streaming.per_event(runs[2:]).value == round(10 * MIB / 10_000)
    assert "load, into a list 11 MiB (1,049 B for each further event)" in streaming.flatness(runs).text
    # an operation of 10 ms that gives 11,000 events
    assert streaming.rate(runs[1]).value == pytest.approx(1_100_000)


def test_a_read_that_misses_events_is_found() -> None:
    *_, told = streaming.claimed([read("stream", 1000, 1, 999)], [read("stream_events", 1000, 1, 1000)])
    assert (told.text, told.status, told.measured.value) == ("every read gives every event", "not held", 99.9)
    assert math.isnan(streaming.per_event([read("load", 1000, 1, 1000)]).value)


# the notebooks


def answered(capsys: pytest.CaptureFixture[str], folder: Path, notebook: str, *parameters: str) -> tuple[str, str, Lab]:
    """The notebook's answer, its page and what is in the Lab."""
    lab = folder / "lab.duckdb"
    sys.argv = ["eventcore-lab", "run", notebook, "--out", str(folder), "--lab", str(lab)]
    sys.argv += [word for pair in parameters for word in ("-p", pair)]
    with pytest.raises(SystemExit) as done:
        cli.main()
    out, err = capsys.readouterr()
    assert done.value.code == ExitCode.PASS, out + err
    [page] = folder.glob("2*/index.html")
    pages.check(page)
    answer = json.loads((page.parent / "conclusion.json").read_text())["answer"]
    return answer, page.read_text(), Lab(lab)


def topics(lab: Lab) -> set[str]:
    return set(lab.sql("SELECT DISTINCT topic FROM verdicts WHERE kind = 'claim'")["topic"])


def test_the_notebook_of_caches_tells_hits_gains_and_stale_states(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    few = ["cache_sizes=20", "streams=50", "lengths=60", "streams_by_length=20", "streams_by_writers=20"]
    few += ["writers=2", "connections=4", "duration_s=0.3", "warmup_s=0.1"]
    answer, page, lab = answered(capsys, tmp_path, "04", *few)
    assert topics(lab) == {"caching"}
    assert re.match(r"A cache answers [\d.]+ times .* the commands of direct on streams of 60 events\.", answer)
    assert "a cache has what the picks allow" in page and "with 2 processes" in page
    assert "Found in the cache of what it was asked for" in page
    counted = (
        "SELECT executor || ' ' || name, sum(value) FROM gauges JOIN runs USING (run_id) WHERE source = 'executor'"
    )
    hits = dict(lab.sql(counted + " GROUP BY ALL").iter_rows())
    ours, chapters = "cached(direct):size=10000", "chapter_cached(direct):size=10000"
    assert hits[f"{ours} cache_hits"] > hits[f"{ours} cache_misses"]
    assert hits[f"{chapters} cache_hits"] < hits[f"{chapters} cache_misses"]  # emptied by every write
    assert lab.sql("SELECT sum(conflicts) FROM samples JOIN runs USING (run_id) WHERE workers = 2").item() > 0


def test_the_notebook_of_streaming_reads_all_of_it_each_way(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    few = ["store=sqlite", "ways=stream,load", "events=200,2000", "pages=10,1000", "duration_s=0.2"]
    answer, page, lab = answered(capsys, tmp_path, "05", *few)
    assert topics(lab) == {"streaming", "reading"} and len(lab.runs()) == 6
    assert answer.startswith("At its highest, the process that reads 2,000 events has above its start: ")
    assert "every read gives every event" in page and "Pages of 1,000 events are read fastest" in page


def test_the_notebook_of_memory_finds_the_leak_that_the_chapters_test_lets_pass(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    few = ["store=memory", "commands=1200", "rate=2000", "warmup_s=0.2", "executors=direct,cached(direct):size=100"]
    answer, page, lab = answered(capsys, tmp_path, "09", *few, "leak_bytes=50000")
    assert topics(lab) == {"caching", "memory"} and len(lab.runs()) == 6
    found = dict(lab.sql("SELECT name, status FROM verdicts WHERE kind = 'claim'").iter_rows())
    assert found["memory: the slope finds nine tenths of a leak of 50,000 B per command"] == "held", answer
    missed = "memory: the chapter's assertion (growth below 100 MiB) notices a leak of 50,000 B per command"
    assert found[missed] == "not held"
    assert "captured before the first command" in page
