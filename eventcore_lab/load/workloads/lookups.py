"""The workload that asks a read model: look-ups of users who are registered already, by their ids."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from eventcore_lab.commands import Executor
from eventcore_lab.events import StreamWrite
from eventcore_lab.load.workloads.commands import Looks, Picked
from eventcore_lab.load.workloads.workload import Performer, Plain, mixed, workloads
from eventcore_lab.projections import read_models
from eventcore_lab.projections.read_model import tables_of
from eventcore_lab.stores.protocol import Store


class LookUps(Plain):
    """One user's rows in the read model `of`, which somebody else keeps; an operation counts no events."""

    def __init__(self, seed: int, of: str, known: Looks, pick: Picked, users: int) -> None:
        self._model, self._of = read_models.make(of), of
        if not self._model.needs_tables:
            raise ValueError(f"of must be a read model that is kept in tables, and {of} is not: nobody else can ask it")
        self._seed, self._known, self._pick = seed, known, pick.among(users)

    def populate(self) -> Iterator[Sequence[StreamWrite]]:
        return self._known.populate()

    def prepare(self, k: int) -> str:
        return self._known.name(self._pick(k, mixed(self._seed, k)))

    def start(self, store: Store, executor: Executor) -> Performer:
        tables, relation = tables_of(store, self._of), self._model.kept_in(store).relation
        sql = f"SELECT * FROM {relation} WHERE user_id = $1"

        async def perform(prepared: Any) -> int:
            await tables.in_transaction([(sql, (prepared,))])
            return 0

        return perform


@workloads.register("read_model")
def read_model(
    *, of: str = "worker", users: int = 1000, events: int = 1, pick: str = "uniform", theta: float = 0.99, seed: int
) -> LookUps:
    """Look-ups of one of `users` users, who have `events` events each, in the read model `of`, which a projection keeps."""
    picked = Picked(pick, theta)
    return LookUps(seed, of, Looks(seed, users, events, picked=picked), picked, users)
