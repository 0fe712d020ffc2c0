"""A throw-away PostgreSQL server of our own: started in about a second, durable while it lives, gone without a trace.

What it leaves behind is nothing, however it ends. Three layers see to that, each for what the one before cannot do:

1. `stop`, called by the `with` block or at exit, also after an exception or Ctrl-C (the server has a session of its
   own, so the terminal's Ctrl-C does not reach it before us).
2. A watchdog, a small shell that reads from a pipe only we hold: when we die in any way, `kill -9` included, it sees
   the end of the pipe, ends the server and removes its files.
3. A sweep at each start, for servers whose owner and watchdog were both killed. An owner and its watchdog hold one
   lock (flock) on the server's directory; a directory of ours that can be locked belongs to nobody. Unlike a recorded
   pid this is never mistaken about a reused number, another container or a clock that was set.

PR_SET_PDEATHSIG is not used: it follows the forking thread, not the process, and would end the server with a thread.
Should all three fail, a server whose directory was removed ends by itself within a minute.
`binaries` finds the programs and their user, `directories` does the cleaning. POSIX only, and Linux for layers 2 and 3.
"""

from __future__ import annotations

import atexit
import os
import secrets
import subprocess
import tempfile
import threading
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType, TracebackType
from urllib.parse import quote

from eventcore_lab.clock import NS_PER_S, now_ns
from eventcore_lab.events import StoreUnreachable
from eventcore_lab.stores.binaries import (
    Account,
    Binaries,
    complaint,
    run,
    runnable,
    server_account,
    system_binaries,
    wheel_binaries,
)
from eventcore_lab.stores.directories import (
    CLEAN,
    CLEAN_TIMEOUT_S,
    clean,
    filesystem_of,
    make_directory,
    on_disk,
    sweep,
)
from eventcore_lab.stores.processes import family, free_port, kill_family, quit_at_once

USER = DATABASE = "postgres"
SOCKET_PATH_MAX_BYTES = 107
SHORT_PLACES = (Path("/tmp"), Path("/var/tmp"))
START_TIMEOUT_S = 60
POLL_S = 0.005
TCP_TRIES = 5

SETTINGS: Mapping[str, str] = MappingProxyType(
    {
        # Durable: what is measured is what a production server does.
        "fsync": "on",
        "synchronous_commit": "on",
        "full_page_writes": "on",
        # Room for a short run without a checkpoint forced by its WAL; the timed one (5 minutes) stays.
        "shared_buffers": "128MB",
        "max_wal_size": "2GB",
        "max_connections": "200",
        "max_prepared_transactions": "0",
        # What the probes read.
        "track_io_timing": "on",
        # Compiling a query now and then would show up as latency.
        "jit": "off",
        # Messages and times read the same on every machine.
        "lc_messages": "C",
        "timezone": "UTC",
        "log_timezone": "UTC",
        # Files in the data directory instead of /dev/shm: nothing is left there by a `kill -9` of the server.
        "dynamic_shared_memory_type": "mmap",
        "unix_socket_permissions": "0700",
    }
)
"""What our servers are started with; `EmbeddedServer(settings=…)` goes on top."""


class EmbeddedServer:
    """One PostgreSQL server with an empty database, for as long as the `with` block (or the process) lasts.

    Reached through a Unix socket in a directory that only the server's user (and root) can enter, so it needs no
    password. `tcp=True` opens 127.0.0.1 as well and makes `dsn` use it, with a random password that only this object
    has. `place` is the directory, and so the disk, that holds the data; the default is the temporary directory.
    After a fork the child may use the server, but it stays its parent's: `start`, `stop` in the child do nothing.
    """

    def __init__(
        self,
        binaries: Binaries | None = None,
        settings: Mapping[str, str] = MappingProxyType({}),
        *,
        tcp: bool = False,
        place: Path | None = None,
    ) -> None:
        self.binaries = binaries
        self.settings = dict(settings)
        self.tcp = tcp
        self.place = place
        self.host = ""
        """What a client is told: the socket's directory, or 127.0.0.1."""
        self.port = 0
        self.user = USER
        self.database = DATABASE
        self.startup_seconds = 0.0
        """How long the last `start` took, initdb included, in seconds."""
        self._password = ""
        self._paths: list[Path] = []  # of the data; then, if it needs its own, of the socket
        self._locks: list[int] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._watchdog: subprocess.Popen[bytes] | None = None
        self._pipe: int | None = None
        self._is_inherited = False
        self._lock = threading.RLock()
        _known.add(self)

    def start(self) -> EmbeddedServer:
        """Start (again, if it died) and return once clients are served. StoreUnreachable, with the reason, if not."""
        with self._lock:
            if self.is_running or self._is_inherited:
                return self
            self.stop()
            began_ns = now_ns()
            try:
                atexit.register(self.stop)
                self._start(server_account())
            except BaseException:
                self.stop()
                raise
            self.startup_seconds = (now_ns() - began_ns) / NS_PER_S
            return self

    def stop(self) -> None:
        """End the server at once, without a checkpoint, and remove its files. With nothing to end, do nothing."""
        with self._lock:
            if self._is_inherited:
                return
            atexit.unregister(self.stop)
            if self._process is not None:
                quit_at_once(self._process)
            self._let_go_of_pipe()
            if self._watchdog is not None:
                self._dismiss_watchdog(self._watchdog)
            self._remove_leftovers()
            self._process = self._watchdog = None
            self._paths, self._locks = [], []

    def kill(self) -> None:
        """End the server as a crash does: all its processes at once, by SIGKILL. Its files stay, for `restart`."""
        with self._lock:
            if self._process is not None and self.is_running:
                kill_family(self._process)

    def restart(self) -> EmbeddedServer:
        """After `kill`, or when it died: start it again on the data it had. Returns when what was committed is recovered
        and clients are served, at the same socket; with `tcp` the port is another one."""
        with self._lock:
            if self.is_running or self._is_inherited:
                return self
            self._require_started()
            assert self.binaries is not None
            began_ns = now_ns()
            self._start_postmaster(server_account(), self.binaries)
            self.startup_seconds = (now_ns() - began_ns) / NS_PER_S
            return self

    def __enter__(self) -> EmbeddedServer:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def dsn(self) -> str:
        """What asyncpg, psql and pgbench connect to. With `tcp` it holds the password: not for logs or reports."""
        self._require_started()
        if self.tcp:
            return f"postgresql://{self.user}:{self._password}@{self.host}:{self.port}/{self.database}"
        return f"postgresql://{self.user}@/{self.database}?host={quote(self.host, safe='')}&port={self.port}"

    @property
    def socket_dir(self) -> Path:
        """Where the Unix socket is."""
        self._require_started()
        return self._paths[-1]

    @property
    def data_dir(self) -> Path:
        self._require_started()
        return self._paths[0] / "data"

    @property
    def log_file(self) -> Path:
        """What the server has to say, beside its data and removed with it."""
        self._require_started()
        return self._paths[0] / "server.log"

    @property
    def filesystem(self) -> str:
        """The type of filesystem under the data ("ext4"). On "tmpfs" an fsync costs nothing and proves nothing."""
        return filesystem_of(self.data_dir)

    @property
    def postmaster_pid(self) -> int:
        self._require_started()
        assert self._process is not None
        return self._process.pid

    def pids(self) -> list[int]:
        """The postmaster and its children at this moment; empty when it has died."""
        return family(self.postmaster_pid) if self.is_running else []

    def _require_started(self) -> None:
        if self._process is None or not self._paths:
            raise StoreUnreachable("the embedded PostgreSQL server was not started: call start(), or use a with block")

    def _start(self, account: Account) -> None:
        self.binaries = binaries = runnable(self.binaries or wheel_binaries(), account)
        self._make_directories(account)
        self._start_watchdog(account)
        data_dir = self._paths[0] / "data"
        initdb = [binaries.program("initdb"), "-D", str(data_dir), "-U", USER, "--no-sync", "--locale=C", "-E", "UTF8"]
        run(account, [*initdb, "--auth-local=trust", "--auth-host=scram-sha-256"], cwd=data_dir.parent)
        self._start_postmaster(account, binaries)
        if self.tcp:
            self._set_password(account, binaries)

    def _make_directories(self, account: Account) -> None:
        """One directory for everything; the socket gets one of its own where the first has too long a name."""
        places = [self.place] if self.place else [Path(tempfile.gettempdir()), *SHORT_PLACES]
        sweep(account, [*places, *SHORT_PLACES])
        self._add_directory(account, places)
        if len(os.fsencode(self._paths[0] / ".s.PGSQL.65535")) > SOCKET_PATH_MAX_BYTES:
            self._add_directory(account, SHORT_PLACES)

    def _add_directory(self, account: Account, places: Sequence[Path]) -> None:
        path, lock = make_directory(account, places)
        self._paths.append(path)
        self._locks.append(lock)

    def _start_watchdog(self, account: Account) -> None:
        """Before the server, so that there is no moment without. It shares the locks: no sweep while it works."""
        reading, self._pipe = os.pipe()
        try:
            self._watchdog = subprocess.Popen(
                ["/bin/sh", "-c", CLEAN, "eventcore-lab-watchdog", *map(str, self._paths)],
                stdin=reading,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
                pass_fds=self._locks,
                **account.options(),
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise StoreUnreachable(
                f"cannot run /bin/sh as user {account.uid}: {error}; give the DSN of a running server instead"
            ) from error
        finally:
            os.close(reading)

    def _start_postmaster(self, account: Account, binaries: Binaries) -> None:
        for tries_left in reversed(range(TCP_TRIES)):
            self.port = free_port() if self.tcp else 5432
            self._process = self._launch(account, binaries)
            said = self._await_ready(self._process)
            if said is None:
                self.host = "127.0.0.1" if self.tcp else str(self.socket_dir)
                return
            if not (tries_left and self.tcp and "Address already in use" in said):
                raise StoreUnreachable(
                    f"PostgreSQL {binaries.version} ({binaries.bindir}) did not start in {self.data_dir.parent}: "
                    f"{complaint(said)}; mend its settings, or give the DSN of a running server"
                )

    def _launch(self, account: Account, binaries: Binaries) -> subprocess.Popen[bytes]:
        root = self._paths[0]
        settings = dict(SETTINGS)
        if binaries.major >= 14:
            settings["track_wal_io_timing"] = "on"
        settings |= self.settings | {
            "listen_addresses": "127.0.0.1" if self.tcp else "",
            "port": str(self.port),
            "unix_socket_directories": str(self._paths[-1]),
        }
        given = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        # Exclusive and without following links: as root we write in a directory that belongs to `nobody`.
        (root / "server.log").unlink(missing_ok=True)
        log = os.open(root / "server.log", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_NOFOLLOW, 0o600)
        try:
            return subprocess.Popen(
                [binaries.program("postgres"), "-D", str(root / "data"), *given],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=root,
                **account.options(),
            )
        finally:
            os.close(log)

    def _await_ready(self, process: subprocess.Popen[bytes]) -> str | None:
        """None once clients are served (line 8 of postmaster.pid, as pg_ctl has it), else the log of the failure."""
        root = self._paths[0]
        until_ns = now_ns() + START_TIMEOUT_S * NS_PER_S
        while process.poll() is None and now_ns() < until_ns:
            with suppress(subprocess.TimeoutExpired):
                process.wait(POLL_S)
            with suppress(FileNotFoundError):
                lines = (root / "data" / "postmaster.pid").read_text().splitlines()
                # The first line tells this server's file from the one that a server killed before left behind.
                if len(lines) > 7 and lines[7].strip() == "ready" and lines[0].strip() == str(process.pid):
                    return None
        return (root / "server.log").read_text(errors="replace")

    def _set_password(self, account: Account, binaries: Binaries) -> None:
        """Over standard input, so that neither a file nor a command line ever shows it."""
        self._password = secrets.token_urlsafe(24)
        psql = [binaries.program("psql"), "-X", "-q", "-v", "ON_ERROR_STOP=1", "-h", str(self.socket_dir)]
        statement = f"ALTER ROLE {USER} PASSWORD '{self._password}'"
        run(account, [*psql, "-p", str(self.port), "-U", USER, DATABASE], text=statement)

    def _dismiss_watchdog(self, watchdog: subprocess.Popen[bytes]) -> None:
        """Let it remove the files: what it does when we are killed is what it does every time."""
        try:
            watchdog.wait(CLEAN_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            watchdog.kill()
            watchdog.wait()

    def _remove_leftovers(self) -> None:
        """What the watchdog could not do, because it was killed or never started."""
        for path, lock in zip(self._paths, self._locks, strict=True):
            clean(path, server_account())
            os.close(lock)
        if self._process is not None and self._process.poll() is None:
            self._process.kill()  # only where there is no /proc to find it by
            self._process.wait()

    def _let_go_of_pipe(self) -> None:
        if self._pipe is not None:
            os.close(self._pipe)
            self._pipe = None

    def _disown(self) -> None:
        """In a forked child: let go of pipe and locks, or the parent's death goes unnoticed while the child lives."""
        self._lock = threading.RLock()  # another thread of the parent may have held it
        self._is_inherited = self._process is not None
        self._let_go_of_pipe()
        for lock in self._locks:
            os.close(lock)
        self._locks = []
        for process in (self._process, self._watchdog):
            if process is not None and process.returncode is None:
                process.returncode = 0  # not our child: keeps Popen from waiting for it and from warning about it


def shared_server(origin: str = "wheel") -> EmbeddedServer:
    """This process's server of that origin ("wheel" or "system"), started when first asked for, stopped at exit.

    If it has died, a new and empty one. Any thread may ask. StoreUnreachable when it cannot be had.
    """
    if origin not in _ORIGINS:
        raise ValueError(f"unknown origin {origin!r} (known: {', '.join(sorted(_ORIGINS))})")
    with _shared_lock:
        if origin not in _shared:
            _shared[origin] = EmbeddedServer(_ORIGINS[origin](), place=on_disk())
        return _shared[origin].start()


_ORIGINS = {"system": system_binaries, "wheel": wheel_binaries}
_shared: dict[str, EmbeddedServer] = {}
_shared_lock = threading.Lock()
_known: weakref.WeakSet[EmbeddedServer] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    global _shared_lock
    _shared_lock = threading.Lock()
    _shared.clear()
    for server in list(_known):
        server._disown()


os.register_at_fork(after_in_child=_after_fork_in_child)
