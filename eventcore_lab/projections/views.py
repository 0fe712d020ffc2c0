"""Read models of the users that the server keeps: by a trigger, as a materialised view, and as the chapter's view.

`trigger` changes its table in the transaction of each append, so it is never behind and every append pays for it, once
for all events of a statement. `matview` has one row per user and is refreshed CONCURRENTLY: readers go on meanwhile.
`chapter_matview` is the chapter's, to the word: two kinds of rows for one user, NULLs, no unique index, and so a REFRESH
that no reader can pass.

All take it that a user's events are in one stream, as `commands.users` puts them: their order is that of the positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from msgspec import Struct

from eventcore_lab.clock import now_ns
from eventcore_lab.events import OutcomeUnknown, Position
from eventcore_lab.projections.read_model import Kept, Step, read_models, tables_of
from eventcore_lab.projections.table import KEEPS_BY_INDEX, ONE_AT_A_TIME, Statement, rows_sql, table_sql
from eventcore_lab.projections.users import Row
from eventcore_lab.stores.protocol import Store

_EVERY_S_MAX = 3600.0
_JSON = "convert_from(data, 'UTF8')::jsonb"


def _users_of(events: str) -> str:
    """One row per user registered in the table `events`: the last registration, with the latest profile from then on."""
    said = f"""SELECT {_JSON} ->> 'user_id' AS user_id, {_JSON} ->> 'email' AS email,
            {_JSON} -> 'profile' ->> 'display_name' AS display_name, event_type, position, recorded_at
        FROM {events} WHERE event_type IN ('UserRegistered', 'UserProfileUpdated')"""
    return f"""WITH said AS MATERIALIZED ({said}),
        registered AS (SELECT DISTINCT ON (user_id) user_id, email, recorded_at FROM said
                       WHERE event_type = 'UserRegistered' ORDER BY user_id, position DESC),
        latest AS (SELECT DISTINCT ON (user_id) user_id, display_name, recorded_at FROM said
                   ORDER BY user_id, position DESC)
    SELECT r.user_id, r.email, l.display_name, r.recorded_at AS created_at, l.recorded_at AS updated_at
    FROM registered AS r JOIN latest AS l USING (user_id)"""


_MATVIEW: tuple[str, ...] = (
    f"CREATE MATERIALIZED VIEW IF NOT EXISTS user_summaries_view AS {_users_of('events')}",
    "CREATE UNIQUE INDEX IF NOT EXISTS user_summaries_view_user_id ON user_summaries_view (user_id)",
)
# The chapter's `payload` is our `data`, bytes of JSON; its `occurred_at` our `recorded_at`; user ids are text here.
_CHAPTER: tuple[str, ...] = (
    f"""CREATE MATERIALIZED VIEW IF NOT EXISTS user_summaries_chapter AS
        SELECT
            {_JSON} ->> 'user_id' AS user_id,
            {_JSON} ->> 'email' AS email,
            {_JSON} -> 'profile' ->> 'display_name' AS display_name,
            recorded_at AS created_at,
            recorded_at AS updated_at
        FROM events
        WHERE event_type = 'UserRegistered'
        UNION ALL
        SELECT
            {_JSON} ->> 'user_id' AS user_id,
            NULL AS email,
            {_JSON} -> 'profile' ->> 'display_name' AS display_name,
            NULL AS created_at,
            recorded_at AS updated_at
        FROM events
        WHERE event_type = 'UserProfileUpdated'""",
    "CREATE INDEX IF NOT EXISTS idx_user_summaries_user_id ON user_summaries_chapter (user_id)",
    "CREATE INDEX IF NOT EXISTS idx_user_summaries_email ON user_summaries_chapter (email)",
)

_KEEP_TRIGGERED = f"""CREATE OR REPLACE FUNCTION keep_user_summaries_triggered() RETURNS trigger
LANGUAGE plpgsql VOLATILE {KEEPS_BY_INDEX} AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM added WHERE event_type IN ('UserRegistered', 'UserProfileUpdated')) THEN
        RETURN NULL;
    END IF;
    INSERT INTO user_summaries_triggered SELECT * FROM ({_users_of("added")}) AS u ORDER BY user_id
    ON CONFLICT (user_id) DO UPDATE SET email = excluded.email, display_name = excluded.display_name,
        created_at = excluded.created_at, updated_at = excluded.updated_at;
    WITH said AS MATERIALIZED (
        SELECT {_JSON} AS said, event_type, position, recorded_at FROM added
        WHERE event_type IN ('UserRegistered', 'UserProfileUpdated')),
    latest AS (
        SELECT DISTINCT ON (said ->> 'user_id') said ->> 'user_id' AS id, recorded_at,
               said -> 'profile' ->> 'display_name' AS name
        FROM said WHERE event_type = 'UserProfileUpdated' ORDER BY said ->> 'user_id', position DESC)
    UPDATE user_summaries_triggered SET display_name = name, updated_at = recorded_at FROM latest
    WHERE user_id = id AND NOT EXISTS (  -- whoever registered in this statement is as he should be already
        SELECT FROM said WHERE event_type = 'UserRegistered' AND said ->> 'user_id' = id);
    RETURN NULL;
END $$"""
_TRIGGER: tuple[str, ...] = (
    # Nothing may be appended between the rows of what is there and the trigger for what comes.
    "LOCK TABLE events IN SHARE ROW EXCLUSIVE MODE",
    table_sql("user_summaries_triggered"),
    _KEEP_TRIGGERED,
    "DROP TRIGGER IF EXISTS keep_user_summaries ON events",
    "DELETE FROM user_summaries_triggered",
    f"INSERT INTO user_summaries_triggered {_users_of('events')}",
    """CREATE TRIGGER keep_user_summaries AFTER INSERT ON events REFERENCING NEW TABLE AS added
        FOR EACH STATEMENT EXECUTE FUNCTION keep_user_summaries_triggered()""",
)
_TRIGGER_IS_THERE: Statement = (
    "SELECT FROM pg_trigger WHERE tgname = 'keep_user_summaries' AND tgrelid = 'events'::regclass",
    (),
)


class _InServer:
    """What is common to those that the server keeps."""

    applied = 0

    @property
    def failures(self) -> Mapping[str, int]:
        return {}

    def __init__(self, store: Store, name: str, relation: str, made_by: tuple[str, ...]) -> None:
        self.relation, self._made_by = relation, made_by
        self._store, self._tables = store, tables_of(store, name)

    async def make(self) -> None:
        made_by: list[Statement] = [(sql, ()) for sql in self._made_by]
        await self._tables.in_transaction([ONE_AT_A_TIME, *made_by])

    async def rows(self) -> list[Row]:
        [rows] = await self._tables.in_transaction([(rows_sql(self.relation), ())])
        return [tuple(row) for row in rows]

    async def close(self) -> None:
        return


class Triggered(_InServer):
    """The table `user_summaries_triggered`. There is nothing to do once it is made."""

    every_s = 0.0

    async def make(self) -> None:
        [there] = await self._tables.in_transaction([_TRIGGER_IS_THERE])
        if not there:  # making it anew would be right, and stop all appends meanwhile
            await super().make()

    async def step(self) -> Step:
        return Step()

    async def reached(self) -> Position:
        """Whatever is committed is in it."""
        return await self._store.last_position()


class View(_InServer):
    """A materialised view, refreshed as a whole: what it holds is the store as it was when the last refresh began."""

    def __init__(
        self, store: Store, name: str, relation: str, made_by: tuple[str, ...], every_s: float, concurrently: str
    ) -> None:
        super().__init__(store, name, relation, made_by)
        self.every_s = every_s
        self._refresh: Statement = (f"REFRESH MATERIALIZED VIEW {concurrently} {relation}", ())
        self._position: Position = 0
        self._unknown = 0

    @property
    def failures(self) -> Mapping[str, int]:
        return {"failed_refreshes": self._unknown} if self._unknown else {}

    async def step(self) -> Step:
        """Refresh it. One without an answer has happened or not, and either way the next makes up for it."""
        top, began_ns = await self._store.last_position(), now_ns()
        try:
            await self._tables.in_transaction([self._refresh])
        except OutcomeUnknown:
            self._unknown += 1
            return Step()
        self._position = max(self._position, top)
        return Step(refresh_ns=now_ns() - began_ns)

    async def reached(self) -> Position:
        return self._position


class _Trigger(Struct, frozen=True):
    needs_tables: ClassVar[bool] = True

    def kept_in(self, store: Store) -> Kept:
        return Triggered(store, "trigger", "user_summaries_triggered", _TRIGGER)


class _Matview(Struct, frozen=True):
    needs_tables: ClassVar[bool] = True
    every_s: float

    def kept_in(self, store: Store) -> Kept:
        return View(store, "matview", "user_summaries_view", _MATVIEW, self.every_s, "CONCURRENTLY")


class _ChapterMatview(Struct, frozen=True):
    needs_tables: ClassVar[bool] = True
    every_s: float

    def kept_in(self, store: Store) -> Kept:
        return View(store, "chapter_matview", "user_summaries_chapter", _CHAPTER, self.every_s, "")


@read_models.register("trigger")
def trigger() -> _Trigger:
    """A table that a trigger keeps in the transaction of each append: never behind, and every append pays."""
    return _Trigger()


@read_models.register("matview")
def matview(*, every_s: float = 1.0) -> _Matview:
    """A materialised view with one row per user, refreshed CONCURRENTLY every so often."""
    return _Matview(_interval(every_s))


@read_models.register("chapter_matview")
def chapter_matview(*, every_s: float = 1.0) -> _ChapterMatview:
    """The chapter's materialised view: a row per event, and a REFRESH that readers must wait for."""
    return _ChapterMatview(_interval(every_s))


def _interval(every_s: float) -> float:
    if not 0 < every_s <= _EVERY_S_MAX:
        raise ValueError(f"every_s must be above 0 and at most {_EVERY_S_MAX:g}, not {every_s:g}")
    return every_s
