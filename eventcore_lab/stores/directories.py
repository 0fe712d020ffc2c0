"""The directory a throw-away server lives in: made, locked while somebody minds it, and removed with its processes.

`embedded` decides when; here is how. Linux for the processes (/proc), POSIX for the rest.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from eventcore_lab.events import StoreUnreachable
from eventcore_lab.stores.binaries import Account, run

PREFIX = "eventcore-lab-pg-"
"""How they are called. Anything called so, owned by the server's user and locked by nobody, is swept."""
CLEAN_TIMEOUT_S = 20
TRIES = 5

CLEAN = """
trap '' INT HUP TERM QUIT
read -r _
ours() {
    for process in /proc/[0-9]*; do
        if [ "$process/cwd" -ef "$1" ] || [ "$process/cwd" -ef "$1/data" ]; then
            program=$(readlink "$process/exe")
            case "${program##*/}" in postgres*|initdb*) echo "${process#/proc/}" ;; esac
        fi
    done
}
tries=0
while pids=$(ours "$1"); [ -n "$pids" ] && [ "$tries" -lt 160 ]; do
    if [ "$tries" -eq 0 ]; then kill -QUIT $pids; elif [ "$tries" -ge 60 ]; then kill -KILL $pids; fi
    tries=$((tries + 1))
    sleep 0.05
done
segment=$(sed -n '7s/.* //p' "$1/data/postmaster.pid")
while read -r _ id _ bytes _ _ attached _; do
    if [ "$id $bytes $attached" = "$segment 56 0" ]; then ipcrm -m "$id"; fi
done < /proc/sysvipc/shm
rm -rf -- "$@"
"""
"""Ends the server in directory $1 and removes all directories given, once its input ends. Run as the server's user.

Nothing is taken from a recorded pid, which may be somebody else's by now: ours is a PostgreSQL program whose working
directory is in $1. SIGQUIT is PostgreSQL's immediate shutdown; after 3 seconds SIGKILL. A server that was killed
leaves postmaster.pid and, named in its line 7, a SysV segment of 56 bytes; a normal end removes both. Its number too
may be somebody else's after a restart of the machine, so one that is attached or of another size is left alone.
"""


def make_directory(account: Account, places: Sequence[Path]) -> tuple[Path, int]:
    """A new directory (0700, the account's) in the first place where it can make one, and the open file that locks it.

    StoreUnreachable when there is no such place.
    """
    refusals = []
    for place in dict.fromkeys(places):
        for _ in range(TRIES):
            try:
                made = Path(run(account, ["mktemp", "-d", str(place / (PREFIX + "XXXXXXXX"))]).rstrip("\n"))
            except StoreUnreachable as error:
                refusals.append(str(error))
                break
            lock = _locked(made, account)
            if lock is not None:  # else somebody's sweep came between the two: make another
                return made, lock
    raise StoreUnreachable(
        f"user {account.uid} cannot keep a database in {' or '.join(map(str, dict.fromkeys(places)))}: set TMPDIR to a "
        f"directory it can write to ({'; '.join(refusals)})"
    )


def _locked(path: Path, account: Account) -> int | None:
    """The open, locked directory, or None when it is not of `account`, is somebody's, or is gone."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        mine = os.fstat(handle)
        if mine.st_uid == account.uid and os.path.samestat(mine, path.lstat()):
            return handle
    except OSError:
        pass
    os.close(handle)
    return None


def clean(path: Path, account: Account) -> None:
    """What the watchdog does, at once; nothing when the directory is gone already."""
    if path.exists():
        with suppress(OSError, subprocess.SubprocessError):
            subprocess.run(
                ["/bin/sh", "-c", CLEAN, "eventcore-lab-sweep", str(path)],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                cwd="/",
                timeout=CLEAN_TIMEOUT_S,
                **account.options(),
            )


def sweep(account: Account, places: Sequence[Path]) -> None:
    """End and remove the servers of `account` in `places` that have neither an owner nor a watchdog any more."""
    for path in sorted({found for place in places for found in place.glob(PREFIX + "*")}):
        lock = _locked(path, account)
        if lock is not None:
            try:
                clean(path, account)
            finally:
                os.close(lock)


IN_MEMORY = ("tmpfs", "ramfs")


def filesystem_of(path: Path) -> str:
    """The type of the filesystem that `path` lies on, "unknown" where the system does not tell."""
    mounts = [each for each in psutil.disk_partitions(all=True) if path.is_relative_to(each.mountpoint)]
    return str(max(mounts, key=lambda each: len(each.mountpoint)).fstype) if mounts else "unknown"


def on_disk() -> Path | None:
    """Where to put the data when the temporary directory is in memory, as on newer Debians; None where it is not."""
    places = [Path(tempfile.gettempdir()).resolve(), Path("/var/tmp")]
    disks = [place for place in places if place.is_dir() and filesystem_of(place) not in IN_MEMORY]
    return disks[0] if disks and disks[0] != places[0] else None
