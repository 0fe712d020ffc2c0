"""The processes that put the load on, as one: they start together, one fills the store and reads it back for all, and one
that dies or gives up ends the load of all."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any, Protocol, TypeVar

from msgspec import Struct

from eventcore_lab.load.worker import Job
from eventcore_lab.load.workers import START_TIMEOUT_S, Worker, WorkerDied
from eventcore_lab.schema import LOADER_STOOD_STILL

T = TypeVar("T")
START_DELAY_NS = 100_000_000


class Loaded(Struct, frozen=True):
    """What all of them came to: why the load ended early, if it did; failed operations by their text; counts of executors;
    what happened beside (name, detail); what others than `pids` used, as gauges (source, name, value, ns since the start)."""

    reason: str
    failures: dict[str, int]
    counts: dict[str, int]
    notes: list[tuple[str, str]] = []
    gauges: list[tuple[str, str, float, int]] = []

    @classmethod
    def together(cls, said: Sequence[dict[str, Any]]) -> Loaded:
        """What each of them said, added up; the first reason is the reason."""
        reasons = [facts["reason"] for facts in said if facts["reason"]]
        failures: Counter[str] = Counter()
        counts: Counter[str] = Counter()
        for facts in said:
            failures.update(facts["failures"])
            counts.update(facts["counts"])
        notes = [_still(n, seconds) for n, facts in enumerate(said) for seconds in facts.get("still_s", ())]
        return cls(reasons[0] if reasons else "", dict(failures), dict(counts), notes)


def _still(worker: int, seconds: float) -> tuple[str, str]:
    return LOADER_STOOD_STILL, f"for {seconds:.3f} s (worker {worker})"


class Loaders(Protocol):
    """Whoever puts the load on: processes here, or elsewhere (cluster.py)."""

    @property
    def notes(self) -> list[tuple[str, str]]:
        """(name, detail) of what there is to tell before the load."""
        ...

    @property
    def start_delay_ns(self) -> int:
        """How long before its start they want to be told to go."""
        ...

    def pids(self) -> list[list[int]]:
        """Whom the probes of this machine should watch, worker by worker."""
        ...

    async def populate(self) -> int:
        """Fill the store; the number of events."""
        ...

    async def go(self, start_ns: int) -> None: ...
    async def loaded(self) -> Loaded:
        """Wait for the end of the load. Raises WorkerDied as soon as one of them is gone."""
        ...

    @property
    def silent(self) -> list[str]:
        """Who has not ended its load yet."""
        ...

    async def read_back(self, keeps_events: bool) -> int:
        """Write down what the store holds, once it has come to the last that was acknowledged if it `keeps_events`; the number
        of events."""
        ...

    async def stop(self) -> None:
        """No new operations; those under way are waited for."""
        ...

    async def end(self, timeout_s: float) -> None:
        """End them, whatever they are doing."""
        ...


class Processes:
    """Loaders of this machine, a process each. Use `spawned`."""

    def __init__(self) -> None:
        self._workers: list[Worker[Job]] = []
        self._ready: list[dict[str, Any]] = []
        self._acknowledged = 0
        self._loaded: set[int] = set()
        self._is_over = False

    @asynccontextmanager
    async def spawned(self, jobs: Sequence[Job], lock: int) -> AsyncIterator[None]:
        """One process per job, all ready; ended with the block."""
        try:
            for job in jobs:
                self._workers.append(await Worker.spawn(job, lock))
                if self._is_over:
                    raise WorkerDied(f"{job.name} was ended before it began")
            async with asyncio.timeout(START_TIMEOUT_S):
                self._ready = await all_or_first_error([worker.heard("ready") for worker in self._workers])
            yield
        finally:
            await asyncio.gather(*[worker.end() for worker in self._workers])

    @property
    def notes(self) -> list[tuple[str, str]]:
        return [(name, detail) for name, detail in self._ready[0]["notes"]]

    def pids(self) -> list[list[int]]:
        return [[worker.pid] for worker in self._workers]

    @property
    def start_delay_ns(self) -> int:
        return START_DELAY_NS

    async def populate(self) -> int:
        await self._workers[0].say("populate")
        return int((await self._workers[0].heard("populated"))["events"])

    async def go(self, start_ns: int) -> None:
        for worker in self._workers:
            await worker.say("go", start_ns)

    async def loaded(self) -> Loaded:
        async def said_by(worker: Worker[Job]) -> dict[str, Any]:
            facts = await worker.heard("loaded")
            self._loaded.add(worker.pid)
            if facts["reason"]:  # half of a load is not the load that was asked for
                await self.stop()
            return facts

        said = await all_or_first_error([said_by(worker) for worker in self._workers])
        self._acknowledged = max(int(facts["acknowledged"]) for facts in said)
        return Loaded.together(said)

    @property
    def silent(self) -> list[str]:
        return [worker.who for worker in self._workers if worker.pid not in self._loaded]

    async def read_back(self, keeps_events: bool) -> int:
        await self._workers[0].say("verify", self._acknowledged if keeps_events else 0)
        return int((await self._workers[0].heard("done"))["stored"])

    async def stop(self) -> None:
        for worker in self._workers:
            await worker.say("stop")

    async def end(self, timeout_s: float) -> None:
        self._is_over = True
        await asyncio.gather(*[worker.end(timeout_s) for worker in self._workers])


async def all_or_first_error(coroutines: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Their results in order, or at once what the first that fails raises."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
