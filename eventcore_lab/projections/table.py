"""The read model `worker`: a table beside the events, kept by a process that reads them, each with its effect exactly once.

A page of events is folded to one entry per user here, and goes to the server in one statement together with the new
checkpoint. The statement first moves the checkpoint from where this worker found it; when it is not there any more,
another has been at work (a second worker, or the one that took over from this) and nothing is changed: Overtaken.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, Protocol

from msgspec import Struct

from eventcore_lab.events import OutcomeUnknown, Position
from eventcore_lab.projections.projection import Page, Pages
from eventcore_lab.projections.read_model import Kept, Overtaken, Step, read_models, tables_of
from eventcore_lab.projections.users import Changes, Row, changes_of
from eventcore_lab.stores.protocol import Store

Statement = tuple[str, Sequence[Any]]

CHECKPOINT = "projection user_summaries"
"""The name of the worker's checkpoint among the store's."""

ONE_AT_A_TIME: Statement = (
    "SELECT pg_advisory_xact_lock(hashtextextended(current_schema() || '/read models', 2))",
    (),
)
"""First in every transaction that makes something, for `IF NOT EXISTS` is no protection against two at once."""

# Plans are made when a table is small and kept while it grows: without these the second would go through all of it.
KEEPS_BY_INDEX = "SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off"
"""Of a function that changes a few rows of a table that may be large."""


def table_sql(name: str) -> str:
    """A table of users, one row each."""
    return f"""CREATE TABLE IF NOT EXISTS {name} (
        user_id      text COLLATE "C" PRIMARY KEY,
        email        text NOT NULL,
        display_name text NOT NULL,
        created_at   timestamptz NOT NULL,
        updated_at   timestamptz NOT NULL)"""


def rows_sql(name: str) -> str:
    """What is in a table or view of users, in the order of Row."""
    return f"""SELECT user_id, email, display_name, (extract(epoch FROM created_at) * 1000000)::bigint,
        (extract(epoch FROM updated_at) * 1000000)::bigint FROM {name}"""


_INSTANT = "timestamptz 'epoch' + {} * interval '1 microsecond'"
# The order of ids keeps two who write the same rows from waiting for each other in a circle.
_KEEP_PAGE = f"""CREATE OR REPLACE FUNCTION keep_user_summaries(
    p_after numeric, p_position numeric, p_ids text[], p_emails text[], p_names text[], p_created bigint[],
    p_updated bigint[], p_known text[], p_new_names text[], p_changed bigint[]
) RETURNS boolean LANGUAGE plpgsql VOLATILE {KEEPS_BY_INDEX} AS $$
BEGIN
    UPDATE checkpoints SET position = p_position WHERE name = '{CHECKPOINT}' AND position = p_after;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    INSERT INTO user_summaries
    SELECT id, email, name, {_INSTANT.format("created")}, {_INSTANT.format("updated")}
    FROM unnest(p_ids, p_emails, p_names, p_created, p_updated) AS r(id, email, name, created, updated) ORDER BY id
    ON CONFLICT (user_id) DO UPDATE SET email = excluded.email, display_name = excluded.display_name,
        created_at = excluded.created_at, updated_at = excluded.updated_at;
    UPDATE user_summaries SET display_name = name, updated_at = {_INSTANT.format("changed")}
    FROM unnest(p_known, p_new_names, p_changed) AS c(id, name, changed) WHERE user_id = id;
    RETURN true;
END $$"""
_KEEP = "SELECT keep_user_summaries($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)"
_BEGIN = "INSERT INTO checkpoints VALUES ($1, 0) ON CONFLICT (name) DO NOTHING"
# FOR UPDATE: a statement of ours that is still under way, though nobody waits for it any more, is waited for.
_WHERE = "SELECT position FROM checkpoints WHERE name = $1 FOR UPDATE"


class Tables(Protocol):
    """Where tables are kept: a PostgreSQL store has it."""

    async def in_transaction(self, statements: Sequence[Statement]) -> list[list[Any]]: ...


class Worker:
    """Keeps the table `user_summaries`. Rows and checkpoint change together or not at all."""

    relation = "user_summaries"
    every_s = 0.0
    failures: Mapping[str, int] = MappingProxyType({})

    def __init__(self, store: Store, tables: Tables, *, page: int = 1000) -> None:
        self._tables = tables
        self._pages = Pages(store, page)
        self.position: Position = 0
        self.applied = 0
        self._unanswered: tuple[Page, int] | None = None

    async def make(self) -> None:
        statements = [ONE_AT_A_TIME, (table_sql(self.relation), ()), (_KEEP_PAGE, ()), (_BEGIN, (CHECKPOINT,))]
        await self._tables.in_transaction(statements)
        await self.take_up()

    async def take_up(self) -> None:
        """Go on from where the table is, whoever brought it there."""
        [[[position]]] = await self._tables.in_transaction([(_WHERE, (CHECKPOINT,))])
        self.position = int(position)

    async def step(self) -> Step:
        """One page of events, in one statement. Without an answer it asks where the table is, in this step or, while the store
        is away, in one of the next, and goes on from there: the page was kept as a whole or not at all."""
        if self._unanswered is not None:
            return await self._asked(*self._unanswered)
        page = await self._pages.behind(self.position)
        if page.position == self.position:
            return Step()
        changes = changes_of(page.events)
        try:
            await self._keep(changes, page.position)
        except OutcomeUnknown:
            self._unanswered = page, changes.count
            return await self._asked(page, changes.count)
        return self._came_to(page, changes.count)

    async def _asked(self, page: Page, count: int) -> Step:
        """What became of a page, and of the `count` events of it, that were sent and not answered."""
        before = self.position
        await self.take_up()
        self._unanswered = None
        if self.position == before:
            return Step(is_behind=True)
        if self.position != page.position:
            raise Overtaken(self._overtaken(before))
        return self._came_to(page, count)

    def _came_to(self, page: Page, count: int) -> Step:
        self.position = page.position
        self.applied += count
        return Step(count, is_behind=page.is_full)

    async def _keep(self, changes: Changes, position: Position) -> None:
        registered, updated = changes.registered, changes.updated
        arguments = [
            self.position,
            position,
            *([list(column) for column in zip(*[u.row for u in registered.values()], strict=True)] or [[]] * 5),
            list(updated),
            [name for name, _ in updated.values()],
            [at_us for _, at_us in updated.values()],
        ]
        [[[is_kept]]] = await self._tables.in_transaction([(_KEEP, arguments)])
        if not is_kept:
            raise Overtaken(self._overtaken(self.position))

    def _overtaken(self, position: Position) -> str:
        return f"{self.relation} is not at position {position} any more: another worker keeps it; nothing was changed"

    async def reached(self) -> Position:
        return self.position

    async def rows(self) -> list[Row]:
        [rows] = await self._tables.in_transaction([(rows_sql(self.relation), ())])
        return [tuple(row) for row in rows]

    async def close(self) -> None:
        await self._pages.close()


class _Worker(Struct, frozen=True):
    needs_tables: ClassVar[bool] = True
    page: int

    def kept_in(self, store: Store) -> Kept:
        return Worker(store, tables_of(store, "worker"), page=self.page)


@read_models.register("worker")
def worker(*, page: int = 1000) -> _Worker:
    """A table kept by a process that follows the events: rows and checkpoint in one transaction."""
    if page < 1:
        raise ValueError(f"page must be at least 1, not {page}")
    return _Worker(page)
