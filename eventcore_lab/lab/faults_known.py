"""The thirty faults of the chapter's own code, F1 to F30: what each is, what its figure means, when it is shown."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct


class Fault(Struct, frozen=True):
    """`what` goes wrong; `figure` of what is counted or measured (`unit`), along `setting`. It is claimed that the figure at
    its worst setting is at least `least`: a share in %, a value, or how many times `to` (another arm, or another figure of the
    same arm). `is_certain`: no chance is in it, so that its shares have no intervals. `line`: a value that a picture draws, and
    its name. `beyond`: what of it is no matter of a running system."""

    what: str
    topic: str
    figure: str
    setting: str
    least: float
    unit: str = "%"
    to: str = ""
    is_certain: bool = False
    line: tuple[float, str] | None = None
    is_at_most: bool = False
    beyond: str = ""


OURS, TEST_LIMIT_MIB = "ours", 100.0

KNOWN: Mapping[str, Fault] = {
    "F1": Fault(
        "a reader that goes on from the last time skips events of the same microsecond at the edge of a page",
        "correctness", "events never delivered", "events per page", 1),
    "F2": Fault(
        "times are taken before the commit, so a reader that has passed one never sees what commits later",
        "correctness", "events never delivered", "ms an append may stay open", 1),
    "F3": Fault(
        "SELECT, then INSERT, and no unique key: two writers win with one expectation; with a key, a raw error and no conflict",
        "correctness", "events of a version taken twice (with a key: refusals that are no conflict)",
        "writers on one stream", 1),
    "F4": Fault(
        "of a stream's expectations in a batch only the first is looked at: the second one's decision was on what is no more",
        "correctness", "pairs of which both were acknowledged", "commands per batch and stream", 50, is_certain=True),
    "F5": Fault(
        "a batch is a SELECT and an INSERT per stream",
        "batching", "an append of 200 events", "streams it is spread over", 2, "ms", OURS),
    "F6": Fault(
        "seven parameters per event: a batch ends where a statement has no more (4,681 events here, 9,362 with sqlx)",
        "batching", "appends that were refused", "events per append", 50, is_certain=True),
    "F7": Fault(
        "a multi-stream append goes by a hash map's order, so that two wait for each other until the server ends one",
        "correctness", "appends that ended in a deadlock", "callers on two streams", 1),
    "F8": Fault(
        "the map of locks never shrinks", "memory", "locks kept, of streams ever seen", "streams seen", 50, is_certain=True),
    "F9": Fault(
        "results come in the order of a hash map of groups, not of the commands",
        "correctness", "results at the wrong place", "commands per batch", 50, is_certain=True),
    "F10": Fault(
        "a group keeps its streams' locks until its last command is done, and waits for permits with them held",
        "parallelism", "wait of a command that comes second", "commands in the group before it", 2, "ms", OURS),
    "F11": Fault(
        "the queue has no bound", "async_batching", "longest queue at 1.2 times the capacity", "ms of overload", 2,
        "items", OURS),
    "F12": Fault(
        "one failure is everybody's in a batch", "correctness", "innocent commands that failed, 1 % of streams touched",
        "commands per batch", 20),
    "F13": Fault(
        "a batch waits for the next tick of a timer that runs all the time",
        "async_batching", "added wait of a lone caller", "commands per second", 2, "ms"),
    "F14": Fault(
        "the benchmark writes the same streams again, expects version 0 and throws the result away: it measures conflicts",
        "load", "iterations that were refused, and counted as throughput", "iterations", 50, is_certain=True),
    "F15": Fault(
        "the benchmark of commands gives the time of all, divided by how many: nothing of any one command",
        "load", "the number it gives", "commands at once", 0.5, "ms", "a command at p99", is_at_most=True),
    "F16": Fault(
        "the peak is taken before the work, and the test asks for growth below 100 MiB: a leak of 9 kB per command passes",
        "memory", "memory that the work left, with the leak", "commands executed", TEST_LIMIT_MIB, "MiB",
        line=(TEST_LIMIT_MIB, "what the test allows"), is_at_most=True),
    "F17": Fault(
        "all streams are read before the cache is asked", "caching", "store reads, of commands that found all in the cache",
        "commands", 50, is_certain=True),
    "F18": Fault(
        "who has read before a write puts the old state back after it", "caching", "entries that were of no use",
        "callers", 50, is_certain=True),
    "F19": Fault(
        "the cache counts entries and keeps events", "caching", "events per entry", "events per stream", 100, "events"),
    "F20": Fault(
        "a checkpoint when a stream's version is a multiple of 1000: over many short streams never",
        "projections", "checkpoints due and not written", "events per stream", 50, is_certain=True),
    "F21": Fault(
        "every event copies the whole map", "projections", "a rebuild", "users", 3, "ms", OURS),
    "F22": Fault(
        "UNION ALL: a row per event of a user, with NULL for what it does not say",
        "projections", "rows without an email", "profile changes per user", 20, is_certain=True),
    "F23": Fault(
        "REFRESH without CONCURRENTLY locks readers out, and this view cannot have the unique index that the other needs",
        "projections", "longest wait of a reader", "events", 0.5, "ms", "F23 refresh"),
    "F24": Fault(
        "a page tells its own last version, and whoever appends at that conflicts for ever",
        "correctness", "appends in conflict, nobody else writing", "events per page", 50, is_certain=True),
    "F25": Fault(
        "several streams are read by parallel queries, as of several instants",
        "correctness", "reads in which two streams that go together differ", "streams per read", 0.5),
    "F26": Fault(
        "a command takes a connection for every stream it reads",
        "pooling", "a read by each of 20 callers, 20 connections", "streams per read", 3, "ms", OURS),
    "F27": Fault(
        "the command time-out is declared and never applied", "pooling", "time until a caller behind a lock of 1 s knows",
        "ms of time-out", 400, "ms", line=(200, "the time-out")),
    "F28": Fault(
        "histograms with default buckets say where in a bucket a percentile is by a straight line",
        "monitoring", "the p95 it says", "known p95, ms", 1.2, "ms", OURS),
    "F29": Fault(
        "alerts have no duration, idle is low throughput, and the lock is held while an alert is delivered",
        "monitoring", "alarms in an hour in which nothing is wrong", "commands per second", 1, "alarms"),
    "F30": Fault(
        "values are bound as text to uuid, bigint, jsonb and timestamptz columns",
        "correctness", "statements refused with 42804", "parameters", 50, is_certain=True,
        beyond="std::collections::LRU and Duration::from_minutes do not compile, so they are no matter of a running system"),
}  # fmt: skip
"""Fault → what is known of it. The facts are load.faults'."""

FIRST = ("F1", "F2", "F3", "F7", "F14", "F16")
"""The six to show first."""
