"""The faults of the chapter's own code (F1 to F30), each provoked on the code as it stands, beside what ours does instead.

    shown = faults.show(seed=1)      # a few facts per fault, and why those that broke have none

Counts come from the real thing (PostgreSQL) or from virtual time. It is no measurement: the load runs in this process.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from msgspec import Struct

from eventcore_lab.clock import now_ns
from eventcore_lab.load.faults.executing import VIRTUAL
from eventcore_lab.load.faults.fact import CHAPTER, OURS, Fact, Scale
from eventcore_lab.load.faults.measuring import MEASURED
from eventcore_lab.load.faults.projecting import PROJECTED
from eventcore_lab.load.faults.storing import REAL
from eventcore_lab.spec import UsageError, unknown

__all__ = ["CHAPTER", "OURS", "Fact", "Scale", "Shown", "show"]

TIMEOUT_S = 60.0
TRIALS: dict[str, Callable[[Scale], Any]] = dict(
    sorted([*REAL, *VIRTUAL, *PROJECTED, *MEASURED], key=lambda each: int(each[0][1:]))
)


class Shown(Struct, frozen=True):
    """Every fact, and for each trial that broke the reason; `asked`: the faults that were tried."""

    asked: tuple[str, ...]
    facts: tuple[Fact, ...]
    broken: dict[str, str]


def show(only: Collection[str] = (), size: float = 1.0, seed: int = 1) -> Shown:
    """Try every fault, or `only` some, a line for each. `size` below 1 is quicker and rougher. Works in a notebook's cell, for
    it has a thread, and loops, of its own. A trial that breaks is told and does not stop the others."""
    for name in only:
        if name not in TRIALS:
            raise unknown("fault", name, list(TRIALS))
    if not 0 < size <= 100:
        raise UsageError(f"size must be above 0 and at most 100, not {size:g}")
    asked = tuple(name for name in TRIALS if not only or name in only)
    with ThreadPoolExecutor(1, thread_name_prefix="faults") as thread:
        return thread.submit(_tried, asked, Scale(size, seed)).result()


def _tried(asked: tuple[str, ...], scale: Scale) -> Shown:
    facts: list[Fact] = []
    broken: dict[str, str] = {}
    for name in asked:
        began_ns = now_ns()
        try:
            found = _facts_of(TRIALS[name], scale)
        except Exception as error:  # whatever it is, it belongs to this trial
            broken[name] = f"{type(error).__name__}: {error}".partition("\n")[0]
        else:
            facts += found
        print(f"{name}: {broken.get(name) or f'tried in {(now_ns() - began_ns) / 1e9:.1f} s'}", flush=True)
    return Shown(asked, tuple(facts), broken)


def _facts_of(trial: Callable[[Scale], Any], scale: Scale) -> list[Fact]:
    if not inspect.iscoroutinefunction(trial):
        found: list[Fact] = trial(scale)
        return found

    async def within_time() -> list[Fact]:
        async with asyncio.timeout(TIMEOUT_S):
            given: list[Fact] = await trial(scale)
            return given

    return asyncio.run(within_time())
