"""Claims about `machine`: texts of the system are read right, limits are where they are said to be, nothing escapes."""

from __future__ import annotations

import math
import os
import subprocess
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from eventcore_lab import machine
from eventcore_lab.machine import Facts, Finding

US, MS = 1_000, 1_000_000


def facts(**changes: str | int | float) -> Facts:
    """A good machine, but for the changes."""
    good: Facts = {
        "cores_affinity": 8,
        "cores_quota": 0.0,
        "cores_logical": 8,
        "cores_physical": 8,
        "load_average_1m": 0.1,
        "cpu_governor": "performance",
        "cpu_turbo": "on",
        "virtualisation": "none",
        "filesystem": "ext4",
        **{f"{name}_version": "1.0" for name in machine.PACKAGES},
    }
    return good | changes


def finding(name: str, **changes: str | int | float) -> Finding:
    """What is said under a name about a good machine with the changes."""
    return next(found for found in machine.judge_facts(facts(**changes), is_writable=True) if found.name == name)


# ---- texts of the system ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "cores"),
    [
        ("150000 100000", 1.5),
        ("50000 100000", 0.5),
        ("max 100000", 0.0),
        ("-1 100000", 0.0),
        ("", 0.0),
        (" ", 0.0),
        ("100000 0", 0.0),
        ("a b", 0.0),
    ],
)
def test_a_quota_is_cores_and_its_absence_is_zero(text: str, cores: float) -> None:
    assert machine.quota_cores(text) == cores


V1_MEMBER = "4:memory:/pod/one\n3:cpu,cpuacct:/pod/one\n1:name=systemd:/pod/one\n"


@pytest.mark.parametrize(
    ("membership", "files", "cores"),
    [
        ("0::/pod/one", {"pod/one/cpu.max": "max 100000", "pod/cpu.max": "200000 100000"}, 2.0),
        ("0::/pod/one", {"pod/one/cpu.max": "300000 100000", "pod/cpu.max": "200000 100000"}, 2.0),
        ("0::/pod/one", {"pod/one/cpu.max": "100000 100000", "pod/cpu.max": "200000 100000"}, 1.0),
        ("0::/of/the/host", {"cpu.max": "150000 100000"}, 1.5),
        ("0::/pod/one", {"pod/two/cpu.max": "100000 100000"}, 0.0),
        (V1_MEMBER, {"cpu/pod/one/cpu.cfs_quota_us": "50000\n", "cpu/pod/one/cpu.cfs_period_us": "100000\n"}, 0.5),
        (V1_MEMBER, {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 0.0),
        (V1_MEMBER, {"memory/cpu.cfs_quota_us": "50000\n", "memory/cpu.cfs_period_us": "100000\n"}, 0.0),
        ("5:cpu:/", {"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4.0),
        ("", {}, 0.0),
    ],
)
def test_the_tightest_quota_on_the_way_to_the_root_binds(
    tmp_path: Path, membership: str, files: dict[str, str], cores: float
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert machine.cgroup_quota(membership, tmp_path) == cores


BEFORE = "cpu  1000 0 500 8000 100 0 50 10 400 0\ncpu0 500 0 250 4000 50 0 25 5 200 0\n"


@pytest.mark.parametrize(
    ("after", "own_ticks", "steal", "others"),
    [
        ("cpu  1000 0 500 8100 100 0 50 10 400 0", 0, 0, 0),
        ("cpu  1030 0 510 8060 100 0 50 10 400 0", 30, 0, 9),  # 40 busy, 30 of them ours, one forgiven
        ("cpu  1030 0 510 8060 200 0 50 10 400 0", 30, 0, 4.5),  # waiting for I/O is not being busy
        ("cpu  1000 0 500 8080 100 0 50 30 400 0", 0, 20, 0),  # nor is being robbed
        ("cpu  1050 0 500 8050 100 0 50 10 450 0", 0, 0, 49),  # a guest's time is within user's
        ("cpu  1010 0 500 8090 100 0 50 10 400 0", 15, 0, 0),  # never less than nothing
    ],
)
def test_ticks_are_shared_between_us_others_and_the_hypervisor(
    after: str, own_ticks: float, steal: float, others: float
) -> None:
    assert machine.cpu_percents(BEFORE, after + "\ncpu0 9 9 9\n", own_ticks) == (steal, others)


@pytest.mark.parametrize(("before", "after"), [("", ""), (BEFORE, BEFORE)])
def test_without_ticks_shares_are_unknown(before: str, after: str) -> None:
    shares = machine.cpu_percents(before, after, 0)
    assert all(map(math.isnan, shares))
    levels = {found.name: found.level for found in machine.judge_noise(*shares, gaps_ns=[], spent_ns=MS)}
    assert levels == {"other processes": "unknown", "steal": "unknown", "interruptions": "good"}


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ("# branch.oid abc123\n# branch.head main", ("abc123", "clean")),
        ("# branch.oid abc123\n1 .M N... 100644 100644 100644 a b file.py", ("abc123", "dirty")),
        ("# branch.oid (initial)\n# branch.head main", ("", "")),
        ("", ("", "")),
    ],
)
def test_a_commit_is_named_with_its_state(status: str, expected: tuple[str, str]) -> None:
    assert machine.git_facts(status) == expected


@pytest.mark.parametrize(
    ("path", "kind"),
    [("/home/me", "ext4"), ("/data", "tmpfs"), ("/data/lab/run", "xfs"), ("/database", "ext4"), ("/", "ext4")],
)
def test_the_deepest_and_last_mount_holds_a_path(path: str, kind: str) -> None:
    mounts = [("/", "overlay"), ("/", "ext4"), ("/data/lab", "xfs"), ("/data", "nfs"), ("/data", "tmpfs")]
    assert machine.filesystem(PurePosixPath(path), mounts) == kind


def test_without_mounts_a_file_system_is_not_known() -> None:
    assert machine.filesystem(PurePosixPath("/data"), []) == ""


@pytest.mark.parametrize(
    ("no_turbo", "boost", "state"),
    [("0", "", "on"), ("1", "", "off"), ("", "1", "on"), ("", "0", "off"), ("", "", ""), ("?", "?", "")],
)
def test_turbo_is_read_from_either_driver(no_turbo: str, boost: str, state: str) -> None:
    assert machine.turbo_state(no_turbo, boost) == state


@pytest.mark.parametrize(
    ("flags", "init_cgroup", "is_marked", "kind"),
    [
        ("fpu sse hypervisor", "0::/init.scope", False, "hypervisor"),
        ("fpu sse", "0::/init.scope", False, "none"),
        ("fpu sse", "1:cpu:/docker/0123", False, "container"),
        ("fpu sse", "0::/kubepods/pod1", False, "container"),
        ("fpu hypervisor", "0::/", True, "hypervisor + container"),
        ("", "0::/", True, "container"),
        ("", "", False, ""),
    ],
)
def test_what_lies_between_us_and_the_metal_is_named(flags: str, init_cgroup: str, is_marked: bool, kind: str) -> None:
    assert machine.virtualisation(flags, init_cgroup, is_marked) == kind


def test_a_field_is_the_first_of_its_name_without_quotes() -> None:
    text = 'NAME="Debian"\nPRETTY_NAME="Debian 12 = bookworm"\nPRETTY_NAME=other\n'
    assert machine.field(text, "PRETTY_NAME", "=") == "Debian 12 = bookworm"
    assert machine.field("model\t\t: 85\nmodel name\t: Xeon: fast\n", "model name", ":") == "Xeon: fast"
    assert machine.field("", "model name", ":") == ""


# ---- facts -----------------------------------------------------------------------------------------------------------


def test_facts_are_flat_and_tell_nobody_who_or_where(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "hunter2-hunter2")
    found = machine.environment()
    assert {type(value) for value in found.values()} <= {str, int, float}
    assert all(name.isidentifier() and name == name.lower() for name in found)
    assert set(facts()) <= set(found)
    private = {os.uname().nodename, "hunter2-hunter2", str(Path.cwd()), str(Path.home())} - {"/", "localhost"}
    assert not private & {str(value) for value in found.values()}


def test_without_git_or_a_repository_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert (machine.environment()["git_commit"], machine.environment()["git_state"]) == ("", "")
    monkeypatch.setenv("PATH", "")
    assert (machine.environment()["git_commit"], machine.environment()["git_state"]) == ("", "")


def test_a_git_that_hangs_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: object, timeout: float, **__: object) -> None:
        raise subprocess.TimeoutExpired("git", timeout)

    monkeypatch.setattr(subprocess, "run", run)
    assert machine.environment()["git_commit"] == ""


def test_the_id_knows_what_lasts_and_not_the_load() -> None:
    same = machine.environment_id(facts())
    assert len(same) == 12 and int(same, 16) >= 0
    assert same == machine.environment_id(dict(reversed(facts().items())))
    assert same == machine.environment_id(facts(load_average_1m=7.5))
    assert same == machine.environment_id({name: str(value) for name, value in facts().items()})
    assert same != machine.environment_id(facts(cpu_governor="powersave"))
    assert same != machine.environment_id(facts(git_commit="abc123"))


# ---- limits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "measure", "level"),
    [
        ("interruptions", 0.29, "good"),
        ("interruptions", 0.3, "fair"),
        ("interruptions", 3, "poor"),
        ("steal", 0.9, "good"),
        ("steal", 1, "fair"),
        ("steal", 5, "poor"),
        ("other processes", 4.9, "good"),
        ("other processes", 5, "fair"),
        ("other processes", 20, "poor"),
        ("clock", 299, "good"),
        ("clock", 300, "fair"),
        ("clock", 2000, "poor"),
        ("timers", MS - 1, "good"),
        ("timers", MS, "fair"),
        ("timers", 10 * MS, "poor"),
        ("disk space", 5 * 2**30 + 1, "good"),
        ("disk space", 5 * 2**30, "fair"),
        ("disk space", 2**30, "poor"),
        ("memory", 2**31 + 1, "good"),
        ("memory", 2**31, "fair"),
        ("memory", 2**29, "poor"),
        ("postgres", 1, "good"),
        ("postgres", 0, "fair"),
        ("python", 0, "good"),
        ("python", 3, "fair"),
        ("steal", math.nan, "unknown"),
    ],
)
def test_a_limit_belongs_to_the_worse_side(name: str, measure: float, level: str) -> None:
    found = machine.judge(name, measure, "text")
    assert (found.name, found.level) == (name, level)
    assert (found.advice == "") == (level == "good")
    assert found.value == ("not visible here" if level == "unknown" else "text")


@pytest.mark.parametrize(
    ("name", "changes", "level"),
    [
        ("cores", {"cores_affinity": 1}, "poor"),
        ("cores", {"cores_affinity": 2}, "fair"),
        ("cores", {"cores_affinity": 3}, "fair"),
        ("cores", {"cores_affinity": 4}, "good"),
        ("cores", {"cores_quota": 1.5}, "poor"),
        ("cores", {"cores_quota": 3.5}, "fair"),
        ("cores", {"cores_quota": 16.0}, "good"),
        ("load", {"load_average_1m": 1.9}, "good"),
        ("load", {"load_average_1m": 2.0}, "fair"),
        ("load", {"load_average_1m": 6.0}, "poor"),
        ("load", {"load_average_1m": 1.9, "cores_quota": 2.0}, "poor"),
        ("frequency scaling", {}, "good"),
        ("frequency scaling", {"cpu_governor": "powersave"}, "fair"),
        ("frequency scaling", {"cpu_governor": "performance,powersave"}, "fair"),
        ("frequency scaling", {"cpu_governor": ""}, "unknown"),
        ("virtualisation", {}, "good"),
        ("virtualisation", {"virtualisation": "container"}, "fair"),
        ("virtualisation", {"virtualisation": ""}, "unknown"),
        ("directory", {}, "good"),
        ("directory", {"filesystem": ""}, "good"),
        ("directory", {"filesystem": "nfs4"}, "fair"),
        ("directory", {"filesystem": "tmpfs"}, "poor"),
        ("versions", {}, "good"),
        ("versions", {"asyncpg_version": ""}, "poor"),
    ],
)
def test_facts_are_judged(name: str, changes: dict[str, str | int | float], level: str) -> None:
    assert finding(name, **changes).level == level


def test_a_missing_package_is_named() -> None:
    assert "asyncpg MISSING" in finding("versions", asyncpg_version="").value


@pytest.mark.parametrize(
    ("p50_ns", "level", "advice"),
    [
        (50 * US, "fair", "not a physical disk's"),
        (51 * US, "good", ""),
        (5 * MS, "fair", "bounds lone durable commits"),
        (20 * MS, "poor", "bounds lone durable commits"),
    ],
)
def test_a_disk_can_be_too_slow_and_too_fast(p50_ns: int, level: str, advice: str) -> None:
    found = machine.judge_fsync([p50_ns] * 9)
    assert (found.name, found.level) == ("fsync", level)
    assert advice in found.advice


def test_commits_per_second_are_one_after_another() -> None:
    assert "p50 1.0 ms, p99 7.0 ms" in machine.judge_fsync([MS, MS, MS, 7 * MS]).value
    assert "about 400 durable commits per second" in machine.judge_fsync([MS, MS, MS, 7 * MS]).value


def test_pauses_are_counted_and_weighed_together() -> None:
    found = machine.judge_noise(0.0, 0.0, gaps_ns=[200 * US, 3 * MS, 300 * US], spent_ns=100 * MS)[-1]
    assert (found.name, found.level) == ("interruptions", "poor")
    assert found.value == "pauses over 100 µs in a busy loop of 100 ms: 3, the longest 3.0 ms"


@pytest.mark.parametrize(
    ("values", "p50", "p99"),
    [([7], 7, 7), ([4, 1, 3, 2], 2, 4), (list(range(100, 0, -1)), 50, 99), (list(range(1, 102)), 51, 100)],
)
def test_percentiles_are_order_statistics(values: list[int], p50: int, p99: int) -> None:
    assert machine.spread(values)[:2] == (p50, p99)


@pytest.mark.parametrize(
    ("ns", "text"),
    [(0, "0.0 ns"), (62, "62 ns"), (1_400, "1.4 µs"), (62_000, "62 µs"), (1_400_000, "1.4 ms"), (3 * 10**9, "3.0 s")],
)
def test_times_are_written_for_people(ns: float, text: str) -> None:
    assert machine.human(ns) == text


# ---- the examination -------------------------------------------------------------------------------------------------


NAMES = set(machine.RULES) - {"fsync too fast"}


def test_every_name_is_found_exactly_once_and_in_order(tmp_path: Path) -> None:
    found = machine.examine(tmp_path, quick=True)
    assert Counter(each.name for each in found) == dict.fromkeys(NAMES, 1)
    assert [each.name for each in found] == [name for name in machine.RULES if name in NAMES]
    assert [each for each in found if each.value == "not measured"] == []
    assert all((each.advice == "") == (each.level == "good") for each in found)
    assert list(tmp_path.iterdir()) == []


async def test_a_notebook_with_its_loop_running_may_ask_too(tmp_path: Path) -> None:
    timers = next(each for each in machine.examine(tmp_path, quick=True) if each.name == "timers")
    assert timers.value != "not measured"


def test_timers_are_tried_on_the_loop_of_the_load(tmp_path: Path) -> None:
    uvloop: Any = pytest.importorskip("uvloop")
    made = []

    def loop_factory() -> Any:
        made.append(uvloop.new_event_loop())
        return made[-1]

    timers = next(each for each in machine.examine(tmp_path, True, loop_factory) if each.name == "timers")
    assert timers.value != "not measured" and [loop.is_closed() for loop in made] == [True]


@pytest.mark.parametrize("kind", ["absent", "file", "forbidden"])
def test_a_directory_that_cannot_be_used_is_poor_and_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    target = tmp_path / kind
    if kind == "file":
        target.write_text("")
        target.chmod(0o777)
    if kind == "forbidden":  # said, not done: root may write everywhere
        target.mkdir()
        monkeypatch.setattr(os, "access", lambda *_: False)
    found = {each.name: each for each in machine.examine(target, quick=True)}
    assert (found["directory"].level, found["directory"].value) == ("poor", "missing or not writable")
    assert kind == "forbidden" or (found["fsync"].level == "unknown" and found["fsync"].advice)
    assert set(found) == NAMES


def test_a_part_that_crashes_is_unknown_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: object, **__: object) -> None:
        raise RuntimeError("no such thing here")

    for part in ("judge_facts", "judge_noise", "_clock", "_timers", "judge_fsync", "_software", "judge"):
        monkeypatch.setattr(machine, part, crash)
    found = machine.examine(tmp_path, quick=True)
    assert Counter(each.name for each in found) == dict.fromkeys(NAMES, 1)
    assert {each.level for each in found} == {"unknown"}
    assert all("no such thing here" in each.advice for each in found)


def test_without_the_files_of_linux_there_are_findings_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine._lasting_facts.cache_clear()
    monkeypatch.setattr(machine, "_read", lambda _: "")
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.delattr(os, "fdatasync", raising=False)
    try:
        found = {each.name: each for each in machine.examine(tmp_path, quick=True)}
    finally:
        machine._lasting_facts.cache_clear()
    assert set(found) == NAMES
    assert [name for name, each in found.items() if each.value == "not measured"] == []
    assert (found["steal"].level, found["other processes"].level) == ("unknown", "unknown")


# ---- the table -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("levels", "level"),
    [
        (["good", "good"], "good"),
        (["good", "unknown"], "unknown"),
        (["unknown", "fair", "good"], "fair"),
        (["poor", "fair", "unknown"], "poor"),
        ([], "unknown"),
    ],
)
def test_the_worst_counts_and_nothing_examined_is_unknown(levels: list[machine.Level], level: str) -> None:
    assert machine.worst([Finding("x", "1", each, "") for each in levels]) == level


def test_the_table_is_aligned_and_fits_a_terminal() -> None:
    words = "a long text " * 30
    findings = [Finding("steal", "0 %", "good", ""), Finding("frequency scaling", words, "unknown", words * 2)]
    lines = machine.as_table(findings).splitlines()
    assert max(map(len, lines)) <= 100
    assert lines[0].index("0 %") == lines[1].index("a long") == 28
    assert lines[0].startswith("good ") and lines[1].startswith("unknown ")
    assert all(line.startswith(" " * 28) for line in lines[2:])
    assert sum("→" in line for line in lines) == 1


def test_the_table_sends_no_control_characters_to_the_terminal() -> None:
    table = machine.as_table([Finding("steal", "a\x1b[31mb\nc\td", "poor", "e\u202ef\x07")])
    assert all(char == "\n" or char.isprintable() for char in table)
    assert r"a\x1b[31mb\nc\td" in table and r"e\u202ef\x07" in table
