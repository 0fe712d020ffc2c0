"""The parent's side of the processes it starts, workers and followers: talk to them, and notice at once when one dies."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import msgspec

from eventcore_lab.events import OutcomeUnknown, StoreError, StoreUnreachable

START_TIMEOUT_S = 60.0
SETTLE_TIMEOUT_S = 300.0
FINISH_TIMEOUT_S = 1200.0
"""For what processes bound themselves, and sooner: these are for one that hangs."""
_ERRORS = {kind.__name__: kind for kind in (StoreError, StoreUnreachable, OutcomeUnknown)}


class WorkerDied(Exception):
    """A worker process ended without having said so; the message has its last words."""


class Task(Protocol):
    """A job as the parent sees it: a msgspec Struct whose process runs `module` and is called `name`; what it says is wrong
    is told as of `complains_as`, "" for the run as a whole."""

    @property
    def module(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def complains_as(self) -> str: ...
    @property
    def spool(self) -> str: ...


J = TypeVar("J", bound=Task)
T = TypeVar("T")


class Worker(Generic[J]):
    """One running process with its job. Made by `spawn`, ended by `end`, which may be called at any time."""

    def __init__(self, job: J, process: asyncio.subprocess.Process, log: Path) -> None:
        self.job, self._process, self._log = job, process, log

    @classmethod
    async def spawn(cls, job: J, lock: int) -> Worker[J]:
        """Start the process and hand it its job, DSN included, through a pipe that nobody else can read. It inherits
        the descriptor `lock`, so that the folder counts as in use for as long as either process lives."""
        log = Path(job.spool) / f"{job.name.replace(' ', '-')}.log"
        with log.open("wb") as errors:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                job.module,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=errors,
                pass_fds=(lock,),
                start_new_session=True,  # the terminal's Ctrl-C is for the parent, which then says `stop`
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )
        worker = cls(job, process, log)
        await worker._send(msgspec.json.encode(job))
        return worker

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def who(self) -> str:
        """How a message calls it."""
        return self.job.complains_as or self.job.name

    async def say(self, *words: str | int) -> None:
        await self._send(" ".join(str(word) for word in words).encode())

    async def _send(self, line: bytes) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # `heard` tells of the death
            self._process.stdin.write(line + b"\n")
            await self._process.stdin.drain()

    async def heard(self, event: str) -> dict[str, Any]:
        """Wait for the worker to say `event`. Raises what it says instead, or WorkerDied."""
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        if not line:
            raise WorkerDied(await self._last_words())
        facts: dict[str, Any] = msgspec.json.decode(line)
        if facts["event"] == "broken":
            said_by = f"{self.job.complains_as}: " if self.job.complains_as else ""
            raise _ERRORS.get(facts["kind"], StoreError)(said_by + facts["message"])
        if facts["event"] != event:
            raise WorkerDied(f"{self.who} said {facts['event']!r} where {event!r} was due")
        return facts

    async def _last_words(self) -> str:
        code = await self._process.wait()
        how = f"was ended by signal {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        try:
            lines = [line for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
        except FileNotFoundError:  # empty, and removed by `end`
            lines = []
        return f"{self.who} {how}" + (f": {lines[-1][:300]}" if lines else "")

    async def end(self, timeout_s: float = 5.0) -> None:
        """Close its input and wait; then ask, then kill. Its empty log is removed."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        for signal_now in (None, signal.SIGTERM, signal.SIGKILL):
            if signal_now is not None and self._process.returncode is None:
                self._process.send_signal(signal_now)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._process.wait()
                    break
        with contextlib.suppress(FileNotFoundError):
            if not self._log.stat().st_size:
                self._log.unlink()


class Followers(Generic[J]):
    """Those who follow the store while the load runs, readers and projectors; with no jobs, nothing. Use `spawned`."""

    def __init__(self, followers: list[Worker[J]]) -> None:
        self._followers = followers
        self._ends: list[asyncio.Future[dict[str, Any]]] = []
        self._is_over = False

    def __len__(self) -> int:
        return len(self._followers)

    @classmethod
    @asynccontextmanager
    async def spawned(cls, jobs: Sequence[J], lock: int) -> AsyncIterator[Followers[J]]:
        """One process per job, ready to follow; ended with the block. Raises what they say instead, or WorkerDied."""
        found = cls([])
        async with found.spawning(jobs, lock):
            yield found

    @asynccontextmanager
    async def spawning(self, jobs: Sequence[J], lock: int) -> AsyncIterator[None]:
        """As `spawned`, for somebody who wants to `end` them also while they start."""
        try:
            for job in jobs:
                self._followers.append(await Worker.spawn(job, lock))
                if self._is_over:
                    raise WorkerDied(f"{job.name} was ended before it began")
            async with _within(START_TIMEOUT_S, self._followers, "ready"):
                for follower in self._followers:
                    await follower.heard("ready")
            yield
        finally:
            for end in self._ends:
                end.cancel()
            await asyncio.gather(*self._ends, *[f.end() for f in self._followers], return_exceptions=True)

    async def settle(self) -> list[tuple[J, bool]]:
        """Have them come to the end of what is stored already, before the load; each job and whether it got there."""
        for follower in self._followers:
            await follower.say("settle")
        async with _within(SETTLE_TIMEOUT_S, self._followers, "settled"):
            said = await asyncio.gather(*(follower.heard("settled") for follower in self._followers))
        return [(f.job, bool(facts["has_caught_up"])) for f, facts in zip(self._followers, said, strict=True)]

    async def go(self, start_ns: int) -> None:
        """Let them follow; `start_ns` is the run's start, from which they count."""
        for follower in self._followers:
            await follower.say("go", start_ns)
            self._ends.append(asyncio.ensure_future(follower.heard("done")))

    async def beside(self, work: Awaitable[T]) -> T:
        """The result of `work`, or at once what became of a follower that ended before it."""
        main = asyncio.ensure_future(work)
        try:
            all_ends: list[asyncio.Future[Any]] = [main, *self._ends]
            done, _ = await asyncio.wait(all_ends, return_when=asyncio.FIRST_COMPLETED)
            for follower, end in zip(self._followers, self._ends, strict=True):
                if end in done and not main.done():
                    end.result()
                    raise WorkerDied(f"{follower.job.name} was done before it was asked to be")
            return await main
        finally:
            main.cancel()
            await asyncio.gather(main, return_exceptions=True)

    async def finish(self) -> list[tuple[J, dict[str, Any]]]:
        """Have them catch up with what is stored now; each job and what its process says in the end."""
        for follower in self._followers:
            await follower.say("finish")
        async with _within(FINISH_TIMEOUT_S, self._followers, "done"):
            said = await asyncio.gather(*self._ends)
        return [(follower.job, facts) for follower, facts in zip(self._followers, said, strict=True)]

    async def stop(self) -> None:
        """Whoever is catching up gives it up, and says how far it came."""
        for follower in self._followers:
            await follower.say("stop")

    async def end(self, timeout_s: float) -> None:
        """End their processes, whatever they are doing; no more are started."""
        self._is_over = True
        await asyncio.gather(*[follower.end(timeout_s) for follower in self._followers])


@asynccontextmanager
async def _within(timeout_s: float, followers: Sequence[Worker[Any]], what: str) -> AsyncIterator[None]:
    """TimeoutError as a WorkerDied that names who was waited for."""
    try:
        async with asyncio.timeout(timeout_s):
            yield
    except TimeoutError:
        names = ", ".join(follower.who for follower in followers)
        raise WorkerDied(f"not {what} within {timeout_s:g} s: {names}") from None
