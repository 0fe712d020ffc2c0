"""Stores of others on PostgreSQL, as data: their tables, a way to connect, and which claims they do not keep.

A variant (variants.py) changes something in our own store; a flavour is another design altogether.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType

from msgspec import Struct

from eventcore_lab.stores import chapter, copying, eventcore
from eventcore_lab.stores.protocol import PoolSettings, Store

Connect = Callable[[str, str, PoolSettings, Mapping[str, str]], Awaitable[Store]]
"""(DSN, schema, pool, settings of each connection) → a store in that schema."""

_HOLD = """CREATE FUNCTION hold_open() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN PERFORM pg_sleep(random() * {seconds}); RETURN NULL; END $$;
CREATE TRIGGER hold_open AFTER INSERT ON {table} FOR EACH STATEMENT EXECUTE FUNCTION hold_open();"""


class Flavour(Struct, frozen=True):
    """One store of others: its tables as SQL, the one that holds the events, how to connect to a schema that has them."""

    what: str
    tables: str
    table: str
    connect: Connect
    lacks: Mapping[str, str]

    def schema_sql(self, hold_ms: float = 0.0) -> str:
        """The whole schema; each insert is then followed by 0 … `hold_ms` before its transaction can commit."""
        hold = _HOLD.format(seconds=hold_ms / 1000, table=self.table) if hold_ms else ""
        return f"{self.tables}\n{hold}"


FLAVOURS: Mapping[str, Flavour] = MappingProxyType(
    {
        "chapter": Flavour(
            "the chapter's code as written, without a unique key",
            chapter.SCHEMA_SQL,
            "events",
            chapter.connect,
            chapter.LACKS,
        ),
        "chapter_unique": Flavour(
            "the chapter's code on a table with a unique key",
            chapter.UNIQUE_SQL,
            "events",
            chapter.connect,
            chapter.LACKS_UNIQUE,
        ),
        "eventcore": Flavour(
            "EventCore 2.0.1's tables and statements",
            eventcore.SCHEMA_SQL,
            "eventcore_events",
            eventcore.connect,
            eventcore.LACKS,
        ),
        "copy": Flavour(
            "the limit: rows by COPY into our own table, unchecked",
            copying.SCHEMA_SQL,
            "events",
            copying.connect,
            copying.LACKS,
        ),
    }
)
