"""The one thread that writes to the file of the `sqlite` store, and the queue before it.

*Group commit*: what is queued while a transaction is on its way to the disk goes together into the next one, each append
checked and answered by itself, and one flush serves all. There is no timer: a lone append is taken up at once. What is
queued in one turn of the event loop goes to the thread in one piece, and all answers of a group come back in one call.
"""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from queue import SimpleQueue
from typing import Any

from eventcore_lab.clock import NS_PER_S, now_ns, pause_s
from eventcore_lab.events import OutcomeUnknown, StoreError, StoreUnreachable
from eventcore_lab.schema import Attempt
from eventcore_lab.stores.protocol import PoolSettings
from eventcore_lab.stores.sqlite_file import REFUSED, Part, is_busy, one_by_one, opened, together

QUEUE_MAX = 10_000
"""So many callers wait in the queue at most; whoever comes then waits outside for a place."""
GROUP_EVENTS_MAX = 10_000
"""A group takes up nobody more once it has so many events, so that no answer waits for a huge transaction."""
LOCK_PAUSES_S = (0.0002, 0.005)
"""The first and the longest pause between two tries to become the writer. SQLite's own wait grows to 0.1 s, and beside
another process that writes without a break it would rarely strike the moment between two of its transactions."""


class Job:
    """What one caller waits for: parts that go into one transaction."""

    __slots__ = ("future", "parts", "queued_ns", "taken_ns")

    def __init__(self, parts: Sequence[Part], future: asyncio.Future[list[Any]]) -> None:
        self.parts, self.future = parts, future
        self.queued_ns, self.taken_ns = now_ns(), 0

    @property
    def events(self) -> int:
        return sum([len(w.events) for part in self.parts if not callable(part) for w in part])


class Writer:
    """At most `group` parts to a transaction; `path` is opened with PRAGMA synchronous = `synchronous`. Belongs to the
    event loop in which it is made."""

    def __init__(
        self, path: str, synchronous: str, group: int, settings: PoolSettings, queue_max: int = QUEUE_MAX
    ) -> None:
        self._settings = settings
        self._loop = asyncio.get_running_loop()
        self._place = asyncio.Semaphore(queue_max)
        self._waiting: deque[Job] = deque()
        self._new: list[Job] = []
        self._watch: asyncio.TimerHandle | None = None
        self._is_closed = False
        self._ended: asyncio.Future[None] = self._loop.create_future()
        lock_s = settings.acquire_timeout_s
        self._thread = _Thread(_File(path, synchronous, lock_s), group, self._loop, self._answer, self._end)

    async def open(self) -> None:
        """Begin. Raises StoreUnreachable when the file cannot be opened."""
        await asyncio.to_thread(self._thread.file.open)
        self._thread.start()

    async def do(self, parts: Sequence[Part], attempt: Attempt | None = None) -> list[Any]:
        """The answer of each part. A StoreError among them is its part's own; raised is one that concerns them all.

        Cancelled, the parts are done or not done, each of them whole. When they were taken up is noted in `attempt`.
        """
        if self._place.locked():
            await self._wait_for_place()
        else:
            await self._place.acquire()
        if self._is_closed:
            self._place.release()
            raise StoreError("the store is closed")
        job = Job(parts, self._loop.create_future())
        self._waiting.append(job)
        if self._watch is None:
            self._watch = self._loop.call_later(self._answer_limit_s, self._look)
        # Not one by one: the thread would set off with the first, as soon as anything here lets go of Python's lock.
        if not self._new:
            self._loop.call_soon(self._hand_over)
        self._new.append(job)
        try:
            return await job.future
        finally:
            note(attempt, job.taken_ns)

    async def _wait_for_place(self) -> None:
        limit_s = self._settings.acquire_timeout_s
        try:
            async with asyncio.timeout(limit_s):
                await self._place.acquire()
        except TimeoutError:
            raise StoreUnreachable(
                f"no place in the queue became free within {limit_s:g} s (lower the load); nothing was written"
            ) from None

    def _hand_over(self) -> None:
        if self._new:
            new, self._new = self._new, []
            self._thread.queue.put(new)

    def _answer(self, jobs: Sequence[Job], answers: Sequence[list[Any]]) -> None:
        for job, answer in zip(jobs, answers, strict=True):
            self._waiting.popleft()  # jobs are taken up and answered in the order they came
            self._place.release()
            if not job.future.done():
                job.future.set_result(answer)

    @property
    def _answer_limit_s(self) -> float:
        return self._settings.acquire_timeout_s + self._settings.command_timeout_s

    def _look(self) -> None:
        """One timer for all who wait: nobody waits for ever on a disk that does not answer."""
        self._watch = None
        limit_s = self._answer_limit_s
        oldest_ns = now_ns() - int(limit_s * NS_PER_S)
        for job in self._waiting:
            if job.queued_ns > oldest_ns:
                break
            if not job.future.done():
                job.future.set_exception(OutcomeUnknown(f"no answer to an append within {limit_s:g} s"))
        if self._waiting:
            self._watch = self._loop.call_later(limit_s / 8, self._look)

    async def close(self) -> None:
        """Nobody new is let in, what is queued is done, the file is closed; within the time an answer may take."""
        if not self._is_closed:
            self._is_closed = True
            self._hand_over()
            self._thread.queue.put(None)
        await asyncio.wait([self._ended], timeout=self._answer_limit_s)
        if self._watch is not None and not self._waiting:
            self._watch.cancel()
            self._watch = None

    def _end(self) -> None:
        self._ended.set_result(None)


def note(attempt: Attempt | None, taken_ns: int) -> None:
    """Keep when the work on an operation began, unless something of it began before."""
    if attempt is not None and not attempt.acquired_ns:
        attempt.acquired_ns = taken_ns


class _Thread(threading.Thread):
    """Takes up jobs in their order until it finds None. `answer` and `end` are called in `loop`."""

    def __init__(
        self,
        file: _File,
        group: int,
        loop: asyncio.AbstractEventLoop,
        answer: Callable[[Sequence[Job], Sequence[list[Any]]], None],
        end: Callable[[], None],
    ) -> None:
        super().__init__(name="sqlite writer", daemon=True)
        self.file, self._group, self._loop = file, group, loop
        self._tell_answers, self._tell_end = answer, end
        self.queue: SimpleQueue[list[Job] | None] = SimpleQueue()
        self._next: deque[Job] = deque()
        self._is_last = False

    def run(self) -> None:
        while self._next or not self._is_last:
            jobs = self._taken()
            if jobs:
                self._tell(self._tell_answers, jobs, self._done(jobs))
        self.file.close()
        self._tell(self._tell_end)

    def _taken(self) -> list[Job]:
        """Everything there is, up to the limits of a group; waits for the first."""
        while not self._is_last and not (self._next and self.queue.empty()):
            handed = self.queue.get()
            if handed is None:
                self._is_last = True
            else:
                self._next += handed
        jobs: list[Job] = []
        parts = events = 0
        while self._next and parts < self._group and events < GROUP_EVENTS_MAX:
            job = self._next.popleft()
            jobs.append(job)
            parts, events = parts + len(job.parts), events + job.events
        now = now_ns()
        for job in jobs:
            job.taken_ns = now
        return jobs

    def _done(self, jobs: Sequence[Job]) -> list[list[Any]]:
        """The answers to each job; those whose callers have gone are left out."""
        wanted = [[] if job.future.done() else job.parts for job in jobs]
        parts = [part for of_job in wanted for part in of_job]
        answers = iter(self.file.commit(parts, jobs[0].queued_ns) if parts else ())
        return [[next(answers) for _ in of_job] for of_job in wanted]

    def _tell(self, said: Callable[..., None], *what: Any) -> None:
        with suppress(RuntimeError):  # the loop has been closed: nobody is there to hear it
            self._loop.call_soon_threadsafe(said, *what)


class _File:
    """The writing connection: made anew after a commit that failed, since what it holds is then in doubt."""

    def __init__(self, path: str, synchronous: str, lock_timeout_s: float) -> None:
        self._path, self._synchronous, self._lock_timeout_s = path, synchronous, lock_timeout_s
        self._connection: sqlite3.Connection | None = None

    def open(self) -> sqlite3.Connection:
        if self._connection is None:
            self._connection = opened(self._path, self._synchronous, timeout_s=self._lock_timeout_s)
        return self._connection

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(sqlite3.Error):
                connection.close()

    def commit(self, parts: Sequence[Part], since_ns: int) -> list[Any]:
        """The answer of each part, after one commit for all. An error before the commit says that nothing was written,
        one of the commit itself that nobody knows. The lock is waited for until its time has passed since `since_ns`."""
        try:
            connection = self.open()
            answers = self._written(connection, parts, since_ns + int(self._lock_timeout_s * NS_PER_S))
        except StoreError as error:
            return [error] * len(parts)
        except Exception as error:  # the disk, the file, or a fault of ours: each caller must hear of it
            self.close()
            return [StoreError(f"SQLite wrote nothing: {error}")] * len(parts)
        try:
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            self.close()
            return [OutcomeUnknown(f"SQLite could not say whether it wrote this: {error}")] * len(parts)
        return answers

    def _written(self, connection: sqlite3.Connection, parts: Sequence[Part], deadline_ns: int) -> list[Any]:
        self._begin(connection, deadline_ns)
        try:
            return together(connection, parts)
        except REFUSED:
            connection.execute("ROLLBACK")
        self._begin(connection, deadline_ns)
        return one_by_one(connection, parts)

    def _begin(self, connection: sqlite3.Connection, deadline_ns: int) -> None:
        """Become the one writer of all processes; StoreError if somebody else is, and stays it."""
        wait_s, longest_s = LOCK_PAUSES_S
        while True:
            try:
                connection.execute("BEGIN IMMEDIATE")
                return
            except sqlite3.OperationalError as error:
                if not is_busy(error):
                    raise
                if now_ns() >= deadline_ns:
                    raise StoreError(
                        f"the file is locked by another writer (for {self._lock_timeout_s:g} s); nothing was written"
                    ) from None
            pause_s(wait_s)
            wait_s = min(2 * wait_s, longest_s)
