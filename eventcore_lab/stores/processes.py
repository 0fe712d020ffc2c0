"""The processes of a server of ours: who they are, and how they are ended, politely or as a crash does; and a port for
them."""

from __future__ import annotations

import signal
import socket
import subprocess
from contextlib import suppress

import psutil

from eventcore_lab.events import StoreUnreachable

QUIT_TIMEOUT_S = 5


def family(pid: int) -> list[int]:
    """The process and all below it at this moment; empty when it is gone."""
    try:
        parent = psutil.Process(pid)
        return [parent.pid, *(child.pid for child in parent.children(recursive=True))]
    except psutil.NoSuchProcess:
        return []


def quit_at_once(process: subprocess.Popen[bytes]) -> None:
    """PostgreSQL's immediate shutdown: nothing is worth a checkpoint. Who does not obey is left to the clean-up."""
    with suppress(subprocess.TimeoutExpired, PermissionError):
        process.send_signal(signal.SIGQUIT)
        process.wait(QUIT_TIMEOUT_S)


def kill_family(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL for the process and all below it, as one; returns when they are gone, StoreUnreachable if they are not."""
    parent = psutil.Process(process.pid)
    parent.suspend()  # from here on it starts no other process
    members = [*parent.children(recursive=True), parent]
    for member in members:
        with suppress(psutil.NoSuchProcess):
            member.kill()
    process.wait(QUIT_TIMEOUT_S)
    if psutil.wait_procs(members, QUIT_TIMEOUT_S)[1]:
        raise StoreUnreachable(f"a process of the embedded PostgreSQL server outlived SIGKILL by {QUIT_TIMEOUT_S} s")


def free_port() -> int:
    """A TCP port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
