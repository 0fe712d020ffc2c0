"""Stores that are wrong on purpose are caught by the checker that is there for it; healthy ones are never accused."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import duckdb
import numpy as np
import pytest

from eventcore_lab.commands import Executed, direct
from eventcore_lab.events import ANY, NewEvent, StreamId, StreamWrite
from eventcore_lab.lab.checkers import CHECKERS, Finding, check, reported
from eventcore_lab.load.answers import Answers
from eventcore_lab.load.journal import Journal, read_back
from eventcore_lab.load.ordeal import Deaf, ordeal, ordeal_of
from eventcore_lab.load.projector import write_projected
from eventcore_lab.projections.users import Row
from eventcore_lab.schema import IN_SYSTEM, JOURNAL, SAMPLE_WORDS
from eventcore_lab.spec import UsageError
from eventcore_lab.stores import Store, open_store, stores
from eventcore_lab.stores.memory import Memory
from eventcore_lab.stores.mutants import MUTANTS

INNER = ("memory", "postgres")
CAUGHT_BY = {
    "ignored_expectation": "appends are where they expected",
    "repeated_versions": "versions are contiguous",
    "late_positions": "followers miss nothing",
    "lost_ack": "acknowledged appends are there",
    "repeated_delivery": "followers are given nothing twice",
    "torn_append": "appends over several streams are whole",
    "interleaved_batch": "appends stay together",
    "swallowed_conflict": "acknowledged appends are there",
    "unchecked_participant": "streams only checked did not change",
    "early_check": "appends are where they expected",
    "blind_retry": "event ids are unique",
    "blind_retry_with_new_ids": "nothing else was stored",
    "time_cursor": "followers miss nothing",
    "merged_batch": "appends are where they expected",
    "invented_conflict": "conflicts are honest",
    "old_conflict": "conflicts are honest",
    "torn_read": "joint reads do not split appends",
    "stale_read": "reads never go back",
    "unread_checkpoint": "restarted followers go on at their checkpoint",
    "eager_checkpoint": "restarted followers go on at their checkpoint",
    "rewritten_history": "what is stored does not change",
}
NOT_IN_THE_ORDEAL = {
    "holes are accounted for",
    "acknowledged appends survive a restart",
    "a restart changes nothing",
    "projections equal the fold of the events",
    "executed commands are where their answers say",
}


async def judged(spec: str, folder: Path, seed: int = 1) -> dict[str, Finding]:
    await ordeal_of(stores.make(spec), folder, seed)
    return {f.name: f for f in check(folder)}


@pytest.mark.parametrize("fault", MUTANTS)
@pytest.mark.parametrize("inner", INNER)
async def test_a_mutant_is_caught_by_the_checker_that_is_there_for_it(inner: str, fault: str, tmp_path: Path) -> None:
    for seed in (1, 2, 3):  # some faults need a moment that a busy machine does not always give
        folder = tmp_path / str(seed)
        folder.mkdir()
        found = await judged(f"mutant({inner}):{fault}", folder, seed)
        if found[CAUGHT_BY[fault]].status == "violated":
            break
    assert found[CAUGHT_BY[fault]].status == "violated", found
    assert found[CAUGHT_BY[fault]].detail
    assert "broken" not in {f.status for f in found.values()}


@pytest.mark.parametrize(
    ("inner", "seed"),
    [("memory", n) for n in range(6)] + [("postgres", n) for n in range(4)] + [("sqlite", n) for n in range(4)],
)
async def test_a_healthy_store_is_never_accused_and_nothing_is_left_out(inner: str, seed: int, tmp_path: Path) -> None:
    found = await judged(inner, tmp_path, seed)
    assert {name: f for name, f in found.items() if f.status != "passed"}.keys() == NOT_IN_THE_ORDEAL, found
    assert {found[name].status for name in NOT_IN_THE_ORDEAL} == {"not tested"}


async def test_readers_that_go_by_a_plain_sequence_are_caught_losing_events(tmp_path: Path) -> None:
    found = await judged("postgres:none,hold_ms=5", tmp_path)
    assert found["followers miss nothing"].status == "violated"
    assert "ms after the reader had passed" in found["followers miss nothing"].detail


def test_a_mutant_is_a_store_like_the_one_it_spoils() -> None:
    shared, own = stores.make("mutant(postgres):lost_ack"), stores.make("mutant(memory):lost_ack,every=3")
    assert (shared.is_shared, own.is_shared) == (True, False)
    assert shared.lacks == stores.make("postgres").lacks


@pytest.mark.parametrize("spec", ["mutant(memory)", "mutant(memory):no_fault", "mutant(memory):lost_ack,every=1"])
def test_a_mutant_without_a_fault_is_refused(spec: str) -> None:
    with pytest.raises(UsageError, match="fault|every"):
        stores.make(spec)


# planted evidence


async def _clean(folder: Path) -> None:
    async with open_store("memory") as store:
        await ordeal(store, store, folder)
        await read_back(store, folder, "restarted")
        drawn = await store.last_position()
        await _commands(store, folder)
    rows: list[Row] = [(user, f"{user}@example.org", user, n, n) for n, user in enumerate(("ada", "bob", "eve"))]
    write_projected(folder / "projected-0.parquet", "worker", rows, {row[0]: row for row in rows})
    Journal(Memory()).write(folder, 9, counts={"positions drawn": drawn})


async def _commands(store: Store, folder: Path) -> None:
    """What commands on the events that are there would have been told; the store itself stays as it is."""
    answers = Answers(direct(store))
    for n, part in enumerate(await store.read_streams([StreamId("hot-0"), StreamId("account-0")])):
        event = part.events[-1]
        told = Executed((NewEvent(event.type, event.data, event.meta, event.id),), (part.version,), 1, (part.stream,))
        answers.told.append((n, told))
    answers.write(folder, 0)


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The evidence of a healthy store, with a restart and its sequence's count in it."""
    folder = tmp_path_factory.mktemp("clean")
    asyncio.run(_clean(folder))
    return folder


PLANTED: list[tuple[str, str, str]] = [
    (
        "every operation has one outcome",
        "counts",
        "SELECT * REPLACE (value + (name = 'offered')::BIGINT AS value) FROM t",
    ),
    ("acknowledged appends are there", "stored", "SELECT * FROM t WHERE position % 10 <> 3"),
    (
        "acknowledged appends are there",
        "stored",
        "SELECT * REPLACE (digest + (position % 10 = 3)::BIGINT AS digest) FROM t",
    ),
    (
        "refused appends left nothing",
        "stored",
        """SELECT * FROM t UNION ALL SELECT 100000 + append, stream, 100000, event_id, digest, amount, 0
           FROM writes WHERE outcome = 2 AND event_id IS NOT NULL""",
    ),
    (
        "nothing else was stored",
        "stored",
        "SELECT * REPLACE (CASE position WHEN 3 THEN unhex(md5('3')) ELSE event_id END AS event_id) FROM t",
    ),
    ("event ids are unique", "stored", "SELECT * FROM t UNION ALL SELECT * FROM t WHERE position = 3"),
    ("unknown appends are whole or absent", "unknown", ""),
    ("versions are contiguous", "stored", "SELECT * REPLACE (version + (version > 3)::BIGINT AS version) FROM t"),
    ("versions are contiguous", "stored", "SELECT * REPLACE (version + 1 AS version) FROM t"),
    (
        "one winner per version",
        "writes",
        "SELECT * REPLACE (version - (append % 7 = 3)::BIGINT AS version) FROM t",
    ),
    (
        "appends are where they expected",
        "writes",
        "SELECT * REPLACE (CASE WHEN expected > 0 THEN expected - 1 ELSE expected END AS expected) FROM t",
    ),
    ("appends over several streams are whole", "stored", "SELECT * FROM t WHERE stream <> 'account-1'"),
    (
        "joint reads do not split appends",
        "joint_reads",
        "SELECT * REPLACE (version - (stream = 'account-0' AND version > 0)::BIGINT AS version) FROM t",
    ),
    (
        "reads do not split appends",
        "reads",
        "SELECT * REPLACE (version - (version > 0)::BIGINT AS version) FROM t",
    ),
    ("positions are unique and follow versions", "stored", "SELECT * REPLACE (100000 - position AS position) FROM t"),
    (
        "positions are unique and follow versions",
        "stored",
        "SELECT * REPLACE (floor(position / 2)::BIGINT AS position) FROM t",
    ),
    (
        "appends stay together",
        "writes",
        """SELECT * REPLACE (CASE count(*) OVER (PARTITION BY worker, append, stream)
                             WHEN 4 THEN 5 - ordinal ELSE ordinal END AS ordinal) FROM t""",
    ),
    ("conflicts are honest", "writes", "SELECT * REPLACE (NULL::BIGINT AS actual) FROM t"),
    ("conflicts are honest", "writes", "SELECT * REPLACE (if(actual IS NULL, actual, expected) AS actual) FROM t"),
    ("conflicts are honest", "writes", "SELECT * REPLACE (if(actual IS NULL, expected, -1) AS expected) FROM t"),
    ("conflicts are honest", "writes", "SELECT * REPLACE (if(actual IS NULL, actual, 100000) AS actual) FROM t"),
    ("conflicts are honest", "writes", "SELECT * REPLACE (if(actual IS NULL, actual, 0) AS actual) FROM t"),
    (  # a version that came later
        "conflicts are honest",
        "writes",
        """SELECT t.* REPLACE (if(actual IS NULL, actual, last) AS actual) FROM t
           JOIN (SELECT stream, max(version) AS last FROM stored GROUP BY stream) USING (stream)""",
    ),
    (
        "streams only checked did not change",
        "writes",
        "SELECT * REPLACE (expected - (event_id IS NULL AND expected > 0)::BIGINT AS expected) FROM t",
    ),
    (  # at a time when it had gone on, wherever it stands
        "streams only checked did not change",
        "writes",
        """SELECT * REPLACE (began_ns + if(event_id IS NULL, 10000000000, 0) AS began_ns,
                             ended_ns + if(event_id IS NULL, 10000000000, 0) AS ended_ns) FROM t""",
    ),
    (
        "holes are accounted for",
        "counts",
        "SELECT * REPLACE (value * if(name = 'positions drawn', 10, 1) AS value) FROM t",
    ),
    (
        "the times of all operations add up (Little's law)",
        "counts",
        f"SELECT * REPLACE (value + (name = '{IN_SYSTEM}')::BIGINT AS value) FROM t",
    ),
    ("amounts are conserved", "stored", "SELECT * REPLACE (amount + 1 AS amount) FROM t"),
    ("amounts are conserved", "stored", "SELECT * REPLACE (if(stream = 'account-1', NULL, amount) AS amount) FROM t"),
    (  # a pair that is lost as a whole still sums up to nothing
        "amounts are conserved",
        "stored",
        "SELECT * FROM t WHERE NOT starts_with(stream, 'account')",
    ),
    ("followers miss nothing", "followed", "SELECT * FROM t WHERE position <> 33"),
    ("followers are given nothing twice", "followed", "SELECT * FROM t UNION ALL SELECT * FROM t WHERE position = 33"),
    (
        "followers are given events in order",
        "followed",
        "SELECT * REPLACE (CASE position WHEN 33 THEN 34 WHEN 34 THEN 33 ELSE position END AS position) FROM t",
    ),
    ("followers are given what is stored", "followed", "SELECT * REPLACE (position + 100000 AS position) FROM t"),
    ("checkpoints follow what was read", "checkpointed", "SELECT * REPLACE (position + 100 AS position) FROM t"),
    ("checkpoints follow what was read", "checkpointed", "SELECT * REPLACE (-position AS position) FROM t"),
    (
        "restarted followers go on at their checkpoint",
        "followed",
        "SELECT * FROM t WHERE life = 0 OR nth > 30",
    ),
    (
        "restarted followers go on at their checkpoint",
        "checkpointed",
        "SELECT * REPLACE (position + 5 AS position) FROM t",
    ),
    ("reads are how the stream begins", "reads", "SELECT * REPLACE (version + 1 AS version) FROM t"),
    (
        "reads are how the stream begins",
        "reads",
        "SELECT * REPLACE (version + 1 AS version, events + 1 AS events) FROM t",
    ),
    ("reads are how the stream begins", "reads", "SELECT * REPLACE (unhex(md5('')) AS last_id) FROM t"),
    ("reads see what was acknowledged before", "reads", "SELECT * REPLACE (began_ns + 10000000000 AS began_ns) FROM t"),
    ("reads never go back", "reads", "SELECT * REPLACE (if(session % 2 = 1, version, version // 2) AS version) FROM t"),
    ("acknowledged appends survive a restart", "restarted", "SELECT * FROM t WHERE position % 10 <> 3"),
    ("acknowledged appends survive a restart", "restarted", "SELECT * REPLACE (digest + 1 AS digest) FROM t"),
    ("a restart changes nothing", "restarted", "SELECT * FROM t WHERE position <> 3"),
    ("a restart changes nothing", "restarted", "SELECT * REPLACE (position + (position > 9)::INT AS position) FROM t"),
    ("what is stored does not change", "prefixes", "SELECT * REPLACE (digest + taken_ns AS digest) FROM t"),
    ("what is stored does not change", "prefixes", "SELECT * REPLACE (events + taken_ns AS events) FROM t"),
    (
        "projections equal the fold of the events",
        "projected",
        "SELECT * REPLACE (digest + (key = 'bob')::BIGINT AS digest) FROM t",
    ),
    (
        "projections equal the fold of the events",
        "projected",
        "SELECT * REPLACE (if(key = 'bob', NULL, digest) AS digest) FROM t",
    ),
    (
        "projections equal the fold of the events",
        "projected",
        "SELECT * REPLACE (if(key = 'bob', NULL, expected) AS expected) FROM t",
    ),
    (
        "projections equal the fold of the events",
        "projected",
        "SELECT * FROM t UNION ALL SELECT * FROM t WHERE key = 'bob'",
    ),
    (
        "executed commands are where their answers say",
        "executed",
        "SELECT * REPLACE (version - (stream = 'hot-0')::BIGINT AS version) FROM t",
    ),
]


def planted(clean: Path, folder: Path, table: str, sql: str) -> Path:
    """A copy of the evidence where `table` is what `sql` says; `t` is the table as it was, others by their names."""
    shutil.copytree(clean, folder)
    with duckdb.connect() as con:
        for name in JOURNAL:
            con.execute(f"CREATE TEMP TABLE {name} AS SELECT * FROM read_parquet('{clean}/{name}*.parquet')")
        con.execute(f"CREATE TEMP VIEW t AS SELECT * FROM {table}")
        for file in folder.glob(f"{table}*.parquet"):
            file.unlink()
        con.execute(f"COPY ({sql}) TO '{folder}/{table}-0.parquet' (FORMAT parquet)")
    return folder


def test_evidence_nobody_touched_passes_every_checker(clean: Path) -> None:
    assert {f.name: f for f in check(clean) if f.status != "passed"} == {}


@pytest.mark.parametrize(("name", "table", "sql"), PLANTED)
def test_planted_evidence_is_found(name: str, table: str, sql: str, clean: Path, tmp_path: Path) -> None:
    if table == "unknown":
        folder = planted(clean, tmp_path / "a", "writes", "SELECT * REPLACE (4::UTINYINT AS outcome) FROM t")
        folder = planted(folder, tmp_path / "b", "stored", "SELECT * FROM t WHERE position % 2 = 0")
    else:
        folder = planted(clean, tmp_path / "a", table, sql)
    found = {f.name: f for f in check(folder)}
    assert found[name].status == "violated", found
    assert found[name].wrong > 0 and found[name].detail
    assert "broken" not in {f.status for f in found.values()}


def test_every_checker_has_evidence_planted_for_it_and_every_mutant_a_checker() -> None:
    assert {name for name, _, _ in PLANTED} == {c.name for c in CHECKERS}
    assert CAUGHT_BY.keys() == MUTANTS.keys()
    assert {c.id for c in CHECKERS} == {f"V{n}" for n in range(1, 19)} and len({c.name for c in CHECKERS}) == len(
        CHECKERS
    )


@pytest.mark.parametrize("row", ["running", "twice"])
def test_an_operation_without_an_end_or_with_two_is_found(row: str, clean: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(clean, folder)
    words = np.fromfile(folder / "samples-0.i64", np.int64).reshape(-1, len(SAMPLE_WORDS))
    if row == "running":
        words[5, -1] &= ~0xFF
    else:
        words[5, 0] = words[6, 0]
    words.tofile(folder / "samples-0.i64")
    times = {"the times of all operations add up (Little's law)"} if row == "running" else set()
    found = {f.name for f in check(folder) if f.status == "violated"}
    assert found == {"every operation has one outcome"} | times


def test_a_store_that_promises_nothing_is_not_held_to_surviving(clean: Path) -> None:
    found = {f.status for f in check(clean, is_durable=False) if f.id == "V15"}
    assert found == {"not tested"}


def test_a_lost_event_is_told_with_how_late_it_was(clean: Path, tmp_path: Path) -> None:
    folder = planted(clean, tmp_path / "a", "followed", "SELECT * FROM t WHERE position <> 33")
    [finding] = [f for f in check(folder) if f.name == "followers miss nothing"]
    assert finding.wrong == 2, "two readers"
    assert "position 33, acknowledged" in finding.detail and "the reader" in finding.detail


async def test_appends_that_share_the_ids_of_a_lost_one_are_no_violation(tmp_path: Path) -> None:
    """A retry after an unknown outcome writes the same events; whichever attempt it was, they are there once."""
    from eventcore_lab.stores.retry import append_once

    store = Memory()
    journal = Journal(Deaf(store, 2))
    for n in range(12):
        events = tuple(NewEvent("T", b'{"amount": 1}') for _ in range(2))
        await append_once(journal, [StreamWrite(StreamId(f"s{n % 2}"), ANY, events)])
    journal.write(tmp_path, 0)
    await read_back(store, tmp_path)
    found = {f.name: f for f in check(tmp_path)}
    assert not [f for f in found.values() if f.status in ("violated", "broken")]
    assert found["unknown appends are whole or absent"].looked_at >= 3
    assert found["amounts are conserved"].status == "passed"


def test_what_is_reported_is_told_and_not_judged(clean: Path, tmp_path: Path) -> None:
    facts = reported(clean)
    assert facts["events stored"] > 300 and facts["holes in the positions"] == 0
    assert facts["unknown appends that happened"] > 0 and facts["unknown appends that did not happen"] > 0
    assert 0 <= facts["reader lag p50 ms"] <= facts["reader lag p99 ms"]
    sql = "SELECT * REPLACE (if(position % 2 = 0, 1000, 2000 + position) AS recorded_at_us) FROM t WHERE position <> 7"
    facts = reported(planted(clean, tmp_path / "a", "stored", sql))
    assert facts["holes in the positions"] == 1
    assert facts["recorded times behind an earlier position's"] > 100
    assert reported(tmp_path / "nothing") == {}
