"""Temporary folders that go away with whoever made them: at once, or after a `kill -9` when the next of them is made.

Who made one holds its lock (flock), so one whose lock is free belongs to nobody. Unlike a recorded pid that is never mistaken
about another container or a number that was used again.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir

from eventcore_lab.clock import NS_PER_S, three_clocks_ns
from eventcore_lab.schema import LOCK_FILE

LEFT_AFTER_S = 60
"""Younger ones are left alone: whoever is making one may not hold its lock yet."""
_PREFIX = "eventcore-lab-"
KINDS = ("stripe", "dask")


@contextmanager
def taken(kind: str) -> Iterator[tuple[Path, int]]:
    """A new folder of one of KINDS, and the descriptor of its lock, which a child may inherit; both gone after the block. What
    others have left is removed first."""
    sweep(Path(gettempdir()))
    with TemporaryDirectory(prefix=f"{_PREFIX}{kind}-") as name:
        lock = os.open(Path(name) / LOCK_FILE, os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield Path(name), lock
        finally:
            os.close(lock)


def sweep(place: Path) -> None:
    """Remove the folders in `place` whose makers were killed."""
    for left in [folder for kind in KINDS for folder in place.glob(f"{_PREFIX}{kind}-*")]:
        with suppress(OSError):  # another's, or gone meanwhile
            age_ns = three_clocks_ns()[1] - left.stat().st_mtime_ns
            if age_ns > LEFT_AFTER_S * NS_PER_S and not is_held(left / LOCK_FILE):
                shutil.rmtree(left, ignore_errors=True)


def is_held(lock: Path) -> bool:
    """Whether somebody holds this lock, which may be another user's. Raises OSError when it cannot be seen."""
    looked_at = os.open(lock, os.O_RDONLY | os.O_NONBLOCK)  # whatever has that name
    try:
        # Shared, since two who look at once are not to take each other for its holder.
        fcntl.flock(looked_at, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    finally:
        os.close(looked_at)
