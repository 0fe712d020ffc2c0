"""What a read model of the users promises, and where the kinds of it register: a spec such as `worker` or `matview:every_s=1`.

A *read model* is what a spec names; `kept_in` a store it is *kept*: made, brought up to date step by step, asked how far
it has come. What is in the store one process keeps, by a lease; whoever is overtaken by another changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from msgspec import Struct

from eventcore_lab.events import Position, StoreError
from eventcore_lab.projections.users import Row
from eventcore_lab.spec import Registry, UsageError
from eventcore_lab.stores.postgres import Postgres
from eventcore_lab.stores.protocol import Store
from eventcore_lab.stores.wrapper import Wrapper


class Overtaken(StoreError):
    """Somebody else keeps this read model and is elsewhere: nothing was changed. Ask again where it stands, or leave it."""


class Step(Struct, frozen=True):
    """What one step did: events applied, how long a refresh took (0: there was none), whether there is more to do at once."""

    applied: int = 0
    refresh_ns: int = 0
    is_behind: bool = False


class Kept(Protocol):
    """A read model in one store, kept by one process. Not for several tasks at once.

    `relation`: the table or view that a reader asks; "" where it is in memory. `every_s`: how long from the beginning of
    one step to that of the next; 0 means that a step is taken whenever there is something. `applied`: events applied by
    this process, and by those before it where that is saved; 0 where the server applies them. `failures`: what could not
    be done, did no harm and will be tried again, as a name to say it by → how often.
    """

    relation: str
    every_s: float
    applied: int

    @property
    def failures(self) -> Mapping[str, int]: ...

    async def make(self) -> None:
        """Everything it needs is there afterwards, and what was kept before is taken up. Once, before anything else."""
        ...

    async def step(self) -> Step:
        """Bring it on by one page, or refresh it. Raises Overtaken, and EventRejected for an event it cannot understand."""
        ...

    async def reached(self) -> Position:
        """Every event up to this position is in it."""
        ...

    async def rows(self) -> list[Row]:
        """All of it, in no order: as much memory as there are users."""
        ...

    async def close(self) -> None:
        """Nothing of it goes on in this process. What is saved stays."""
        ...


class ReadModel(Protocol):
    """What a spec stands for. `needs_tables`: it keeps something beside the events, and only a store of our own tables has a
    place for that."""

    @property
    def needs_tables(self) -> bool: ...

    def kept_in(self, store: Store) -> Kept:
        """Nothing is done yet. Raises UsageError when this store cannot have it."""
        ...


read_models: Registry[ReadModel] = Registry("projection")


async def catch_up(kept: Kept) -> None:
    """Step until there is nothing more to do at once; at least one step."""
    while (await kept.step()).is_behind:
        pass


def tables_of(store: Store, read_model: str) -> Postgres:
    """The PostgreSQL store under whatever is wrapped around it: the place for tables beside its events."""
    while isinstance(store, Wrapper):
        store = store.inner
    if not isinstance(store, Postgres):
        raise UsageError(f"read model {read_model} needs the store postgres; memory is the one for every store")
    return store
