"""The load of one run on other machines: stripes that an executor runs, started together and gathered.

Machines have no common clock. Each one's monotonic clock, which nobody sets, is compared with the run's by round trips of
`look`, before the load and after it, and each stripe is given its start by its own machine's clock. A stripe's times count
from its own start, so no latency mixes two clocks; what is left of doubt between machines widens the spans of its evidence,
which then accuses nobody of what two clocks may have made of it. One process here, the keeper, fills the store and reads it
back.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec

from eventcore_lab.clock import now_ns, sleep_s
from eventcore_lab.load.evidence import write_rows
from eventcore_lab.load.loaders import Loaded, all_or_first_error
from eventcore_lab.load.offsets import Offset, doubt_ns, offset_of, widened
from eventcore_lab.load.places import Places, aside
from eventcore_lab.load.stripe import STOP_FILE, Gathered, Order, Seen, Usage, gauges_of, look, stripe
from eventcore_lab.load.worker import Job
from eventcore_lab.load.workers import START_TIMEOUT_S, Worker, WorkerDied
from eventcore_lab.schema import CLOCK_DOUBT

REHEARSAL_TIMEOUT_S = 90.0
ROUND_TRIPS = 8
BEAT_EVERY_S, BEAT_TIMEOUT_S = 0.5, 15.0
LOST_GRACE_S = 20.0
"""When one stripe is lost the others have so long to bring what they have."""
RESULT_TIMEOUT_S = 300.0
START_DELAY_MIN_NS = 1_000_000_000
_POLL_S = 0.05
_SPANS = ("writes-", "reads-")


class Stripes:
    """Loaders wherever `places` are. `jobs` are those of n local processes, `keeper` that of the local one; `is_reachable`:
    the store can be reached from other machines. Use `spawned`."""

    def __init__(self, places: Places, jobs: Sequence[Job], keeper: Job, is_reachable: bool) -> None:
        self._places, self._jobs, self._keeper_job, self._is_reachable = places, jobs, keeper, is_reachable
        self._folder = Path(keeper.spool)
        self._run = f"eventcore-lab-{secrets.token_hex(8)}"
        self._here = look()
        self._hosts = [""] * len(jobs)
        self._offsets: dict[str, Offset] = {}
        self._at: dict[str, int] = {}
        self._compared_ns, self._comparing_ns, self._doubts = now_ns(), 0, dict[str, int]()
        self._futures: dict[int, Any] = {}
        """Of what is under way; those that are done hold what was brought back."""
        self._gathered: dict[int, Gathered] = {}
        self._gone: set[int] = set()
        self._silent = ""
        self._is_stopped = self._is_over = False
        self._acknowledged, self.start_delay_ns = 0, START_DELAY_MIN_NS
        self._notes: list[tuple[str, str]] = []
        self._keeper: Worker[Job] | None = None

    @asynccontextmanager
    async def spawned(self, lock: int) -> AsyncIterator[None]:
        """The keeper is ready and every stripe was once; all ended with the block. Raises WorkerDied or PlacesError."""
        try:
            self._keeper = await Worker.spawn(self._keeper_job, lock)
            await self._look_around()
            await all_or_first_error([self._kept_ready(self._keeper), self._rehearse()])
            yield
        finally:
            self._is_over = True
            await self._give_up()
            if self._keeper is not None:
                await self._keeper.end()
            with suppress(TimeoutError):
                await aside(self._places.close, BEAT_TIMEOUT_S)

    @property
    def notes(self) -> list[tuple[str, str]]:
        return self._notes

    def pids(self) -> list[list[int]]:
        return []  # each stripe looks at its own

    async def populate(self) -> int:
        assert self._keeper is not None
        await self._keeper.say("populate")
        return int((await self._keeper.heard("populated"))["events"])

    async def go(self, start_ns: int) -> None:
        assert self._keeper is not None
        await self._keeper.say("go", start_ns)
        if self._at:  # filling the store may have taken long enough for clocks to drift
            self._offsets |= await self._compared()
        starts = {machine: start_ns + offset.offset_ns for machine, offset in self._offsets.items()}
        self._futures = await self._submitted("load", starts)

    async def loaded(self) -> Loaded:
        results = [asyncio.ensure_future(self._result(n)) for n in range(len(self._jobs))]
        try:
            async with self._beating():
                done, others = await asyncio.wait(results, return_when=asyncio.FIRST_EXCEPTION)
                if others:  # half of a load is not the load that was asked for; what others have is kept
                    await self.stop()
                    await asyncio.wait(others, timeout=LOST_GRACE_S)
            await self._keep_all()
            for task in done:
                task.result()
        finally:
            for task in results:
                task.cancel()
            await asyncio.gather(*results, return_exceptions=True)
        said = [self._gathered[n].facts for n in range(len(self._jobs))]
        self._acknowledged = max(int(facts["acknowledged"]) for facts in said)
        together = Loaded.together(said)
        notes = [*together.notes, *self._told()]
        return msgspec.structs.replace(together, notes=notes, gauges=gauges_of(self._usages()))

    @property
    def silent(self) -> list[str]:
        return [self._who(n) for n in range(len(self._jobs)) if n not in self._gathered]

    async def read_back(self, keeps_events: bool) -> int:
        assert self._keeper is not None
        await self._keeper.say("verify", self._acknowledged if keeps_events else 0)
        return int((await self._keeper.heard("done"))["stored"])

    async def stop(self) -> None:
        self._is_stopped = True
        (self._folder / STOP_FILE).touch()
        if self._keeper is not None:
            await self._keeper.say("stop")
        for future in self._futures.values():  # one that has not begun by now would be late anyway
            if not future.done() and not self._places.has_beats:
                future.cancel()

    async def end(self, timeout_s: float) -> None:
        self._is_over = True
        if self._keeper is not None:
            await self._keeper.end(timeout_s)

    async def _give_up(self) -> None:
        """Nothing more is wanted of stripes that are not done: they are told, and not waited for."""
        under_way = [future for future in self._futures.values() if not future.done()]
        if not under_way:
            return
        self._is_stopped = True
        (self._folder / STOP_FILE).touch()
        with suppress(Exception):
            await aside(lambda: self._places.beat(self._tokens("load"), True), BEAT_TIMEOUT_S)
        for future in under_way:
            future.cancel()

    def _who(self, n: int) -> str:
        where = " of ".join(part for part in (self._places.name(n), self._hosts[n]) if part)
        return f"worker {n}" + (f" on {where}" if where else "")

    def _tokens(self, what: str) -> list[str]:
        return [f"{self._run}-{what}-{n}" for n in range(len(self._jobs))]

    async def _submitted(self, what: str, starts: dict[str, int] | None) -> dict[int, Any]:
        def submit() -> dict[int, Any]:
            return {
                n: self._places.submit(n, token, stripe, self._order(n, token, starts))
                for n, token in enumerate(self._tokens(what))
            }

        return await aside(submit, START_TIMEOUT_S)

    def _order(self, n: int, token: str, starts: dict[str, int] | None) -> Order:
        return Order(
            token=token,
            job=msgspec.json.encode(self._jobs[n]),
            home=self._keeper_job.spool,
            machine=self._here.machine,
            has_beats=self._places.has_beats,
            starts=starts,
        )

    async def _kept_ready(self, keeper: Worker[Job]) -> None:
        async with asyncio.timeout(START_TIMEOUT_S):
            await keeper.heard("ready")

    async def _look_around(self) -> None:
        """Which machines there are, and how their clocks differ from ours."""
        trips = await all_or_first_error([self._trip(n) for n in range(len(self._jobs))])
        seen = {trip[1].machine: n for n, trip in reversed(list(enumerate(trips)))}
        self._offsets[self._here.machine] = Offset(0, 0)  # one clock, looked at from two processes
        if elsewhere := {machine: n for machine, n in seen.items() if machine != self._here.machine}:
            if not self._is_reachable:
                host = trips[next(iter(elsewhere.values()))][1].host
                raise WorkerDied(
                    f"{self._keeper_job.store} can be reached on this machine alone, and worker "
                    f"{next(iter(elsewhere.values()))} is on {host}: use a server by env:NAME that every machine reaches"
                )
            self._at = elsewhere
            began_ns = now_ns()
            self._offsets |= await self._compared(trips)
            self._comparing_ns = now_ns() - began_ns

    async def _compared(self, first: Sequence[tuple[int, Seen, int]] = ()) -> dict[str, Offset]:
        """How the clocks of other machines differ from ours now, by `first` and ROUND_TRIPS more to each."""
        self._compared_ns = now_ns()
        trips: dict[str, list[tuple[int, int, int]]] = {}
        more = [await self._trip(n) for n in self._at.values() for _ in range(ROUND_TRIPS)]
        for sent_ns, seen, back_ns in [*first, *more]:
            trips.setdefault(seen.machine, []).append((sent_ns, seen.now_ns, back_ns))
        return {machine: offset_of(found) for machine, found in trips.items() if machine != self._here.machine}

    async def _trip(self, n: int) -> tuple[int, Seen, int]:
        def there_and_back() -> tuple[int, Seen, int]:
            sent_ns = now_ns()
            return sent_ns, self._places.look(n), now_ns()

        try:
            return await aside(there_and_back, REHEARSAL_TIMEOUT_S)
        except Exception as error:
            raise WorkerDied(f"{self._who(n)} cannot be used: {_said(error)}") from None

    async def _rehearse(self) -> None:
        """Have every stripe's process start, connect and be ready once: what is wrong there is found before the store is
        filled, and how long it takes is how long before the start they must be told to go."""
        self._futures = await self._submitted("rehearsal", None)
        try:
            async with asyncio.timeout(REHEARSAL_TIMEOUT_S), self._beating():
                found = await all_or_first_error([self._result(n) for n in range(len(self._jobs))])
        except TimeoutError:
            missing = ", ".join(self._who(n) for n, future in self._futures.items() if not future.done())
            raise WorkerDied(f"not ready within {REHEARSAL_TIMEOUT_S:g} s: {missing} (is the cluster busy?)") from None
        for n, one in enumerate(found):
            if one.seen.version != self._here.version:
                raise WorkerDied(
                    f"{self._who(n)} has eventcore_lab {one.seen.version}, and here it is {self._here.version}: install one "
                    "version"
                )
        self._notes = [(name, detail) for name, detail in found[0].facts["notes"]]
        slowest_ns = max(one.took_ns for one in found)
        self.start_delay_ns = max(START_DELAY_MIN_NS, 2 * (slowest_ns + self._comparing_ns))
        self._gathered.clear()

    async def _result(self, n: int) -> Gathered:
        """What stripe `n` brought back. WorkerDied, naming who and where, when it broke or is gone."""
        future = self._futures[n]
        while not future.done():
            if self._is_over:
                raise WorkerDied(f"{self._who(n)} was given up")
            if n in self._gone:
                raise WorkerDied(f"{self._who(n)} is gone, in the middle of its work")
            if self._silent:
                raise WorkerDied(f"{self._who(n)}: {self._silent}")
            await sleep_s(_POLL_S)
        try:
            found: Gathered = await aside(lambda: future.result(timeout=RESULT_TIMEOUT_S), RESULT_TIMEOUT_S)
        except Exception as error:
            raise WorkerDied(f"{self._who(n)} did not come to its end: {_said(error)}") from None
        del self._futures[n]
        self._gathered[n], self._hosts[n] = found, found.seen.host
        found = self._gathered[n] = await asyncio.to_thread(kept, found, n, self._folder, None)
        if found.error:
            raise WorkerDied(f"{self._who(n)}: {found.error}" + _importable(found.error))
        if found.facts.get("reason"):
            await self.stop()
        return found

    @asynccontextmanager
    async def _beating(self) -> AsyncIterator[None]:
        beating = asyncio.ensure_future(self._beat())
        try:
            yield
        finally:
            beating.cancel()
            await asyncio.gather(beating, return_exceptions=True)

    async def _beat(self) -> None:
        """Where words can be passed on: say that the run is there, and notice who is gone."""
        while self._places.has_beats:
            try:
                self._gone |= await aside(
                    lambda: self._places.beat(self._tokens("load"), self._is_stopped), BEAT_TIMEOUT_S
                )
            except Exception as error:
                self._silent = f"the cluster does not answer: {_said(error)}"
            await sleep_s(BEAT_EVERY_S)

    async def _keep_all(self) -> None:
        """What was brought back goes into the run's folder, spans widened by what is not known of their clock."""
        after: dict[str, Offset] = {self._here.machine: Offset(0, 0)}
        before_ns = self._compared_ns
        if self._at and not self._gone:  # for one that is gone the scheduler would be waiting long
            with suppress(WorkerDied):
                after |= await self._compared()
        since_ns = now_ns() - before_ns
        self._doubts = {machine: doubt_ns(o, after.get(machine), since_ns) for machine, o in self._offsets.items()}
        doubts = {n: self._doubts.get(found.seen.machine, 0) for n, found in sorted(self._gathered.items())}
        if rows := [(f"{CLOCK_DOUBT}{n}", doubt) for n, doubt in doubts.items() if doubt]:
            write_rows(self._folder / "counts-clocks.parquet", "counts", rows)
        for n, doubt in doubts.items():
            self._gathered[n] = await asyncio.to_thread(kept, self._gathered[n], n, self._folder, doubt)

    def _told(self) -> list[tuple[str, str]]:
        """A mark for each stripe: where it ran, and how well its clock is known."""
        return [
            (
                f"worker {n}",
                f"ran on {g.seen.host} (process {g.pid}, Python {g.seen.python}), "
                + (
                    "on the run's own clock"
                    if g.seen.machine == self._here.machine
                    else f"a clock known to ± {self._doubts[g.seen.machine] / 1e6:.3f} ms, from which no reader's lag is taken"
                ),
            )
            for n, g in sorted(self._gathered.items())
        ]

    def _usages(self) -> dict[int, list[Usage]]:
        return {n: found.usage for n, found in self._gathered.items()}


def kept(found: Gathered, n: int, folder: Path, doubt: int | None) -> Gathered:
    """Write the files of stripe `n` into the run's folder, each whole or not at all, and give it without them: together they
    may be large. While it is not known how much the spans are in doubt, only the samples, which are not compared with
    anybody's."""
    left = dict(found.files)
    for name, content in found.files.items():
        is_its_own = Path(name).name == name and name.endswith(f"-{n}.parquet")
        if not is_its_own or name.startswith("samples-") != (doubt is None):
            continue
        is_span = name.startswith(_SPANS)
        part = folder / f"{name}.part"
        part.write_bytes(widened(content, doubt) if doubt and is_span else content)
        part.replace(folder / name)
        del left[name]
    return msgspec.structs.replace(found, files=left)


def _said(error: BaseException) -> str:
    """What an executor's error says in one line, and of what kind it is: its text may be empty, or a list of frames."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    text = f"{type(error).__name__}: {lines[-1].strip()[:300]}" if lines else type(error).__name__
    return text + _importable(text)


def _importable(text: str) -> str:
    return " (it must be importable there as well)" if "No module named" in text else ""
