"""The `postgres:copy` store: the rows of an append by COPY into our own table, and nothing else done for them.

No lock, no version looked at, no conflict told, no position given back: what is left is what the server needs for the rows
themselves, their two indexes and the commit. It is the limit that an append of many events is held against, and no store to
keep events in. Everything else is as in `postgres`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import asyncpg
from msgspec import structs

from eventcore_lab.events import AppendResult, EventRejected, OutcomeUnknown, StoreError, StreamWrite, check_distinct
from eventcore_lab.spec import parse
from eventcore_lab.stores.pool import Pool
from eventcore_lab.stores.postgres import Postgres
from eventcore_lab.stores.protocol import PoolSettings, one_by_one
from eventcore_lab.stores.variants import SAFE_ORDER, variants
from eventcore_lab.stores.wrapper import Wrapper

SCHEMA_SQL = variants()[""].schema_sql()
_TABLE = "events"
_COLUMNS = ("stream_id", "version", "event_id", "event_type", "data", "meta")
_STATEMENTS = 10  # asyncpg asks for the columns' types before each COPY unless it may keep the answer

_SOMETIMES = "sometimes: "
_NO_POSITION = "COPY gives no positions back"
_NO_CONFLICT = "no version is looked at: a version that is there already is a duplicate key"
_NOT_LOOKED_AT = "a stream that is only read is not looked at"
_UNLOCKED = _SOMETIMES + "nothing is locked: of writers on one stream all but one meet a duplicate key"
LACKS: Mapping[str, str] = MappingProxyType(
    {
        "events come back as they were written": _NO_POSITION,
        "an append is found by its event ids": _NO_POSITION,
        "a stale version conflicts and names the actual one": _NO_CONFLICT,
        "of many writers with one expectation one wins": _NO_CONFLICT,
        "a conflict on one stream leaves nothing on the others": _NO_CONFLICT,
        "independent appends have each their own result": _NO_CONFLICT,
        "a stale read only participant conflicts": _NOT_LOOKED_AT,
        "a read only participant cannot change before the commit": _NOT_LOOKED_AT,
        "any version appends wherever the stream is": _UNLOCKED,
        "crossing appends over the same streams do not deadlock": _UNLOCKED,
        "versions and positions of concurrent appends agree": _UNLOCKED,
        "a retry after an unknown outcome stores nothing twice": _SOMETIMES + _NO_CONFLICT,
        SAFE_ORDER: _SOMETIMES + "a position is drawn before the transaction has its id",
    }
)


class Copying(Wrapper):
    """A Postgres whose appends are COPY. Where no version is expected, the stream's head is asked for before."""

    def __init__(self, inner: Postgres, pool: Pool) -> None:
        super().__init__(inner)
        self._pool = pool

    async def append(self, writes: Sequence[StreamWrite]) -> AppendResult:
        check_distinct(writes)
        heads = [
            w.expected if w.expected >= 0 else (await self.inner.read_stream(w.stream, 1, 0)).version for w in writes
        ]
        await self._copied(
            [
                (w.stream, version, e.id, e.type, e.data, e.meta)
                for w, head in zip(writes, heads, strict=True)
                for version, e in enumerate(w.events, head + 1)
            ]
        )
        return AppendResult(tuple([head + len(w.events) for w, head in zip(writes, heads, strict=True)]))

    async def append_many(self, requests: Sequence[Sequence[StreamWrite]]) -> list[AppendResult | StoreError]:
        return await one_by_one(self.append, requests)

    async def _copied(self, rows: Sequence[tuple[object, ...]]) -> None:
        connection = self._pool.take() or await self._pool.acquire()
        is_usable = False
        try:
            await connection.raw.copy_records_to_table(_TABLE, records=rows, columns=_COLUMNS)
            is_usable = True
        except (asyncpg.DataError, asyncpg.ProgramLimitExceededError) as error:
            is_usable = True
            raise EventRejected(str(error)) from None
        except (asyncpg.PostgresConnectionError, asyncpg.OperatorInterventionError, asyncpg.InterfaceError) as error:
            raise OutcomeUnknown(f"rows may or may not have been copied, the connection was lost: {error}") from None
        except asyncpg.PostgresError as error:  # a version that is there already, for one: nothing of it was kept
            is_usable = True
            raise StoreError(f"{type(error).__name__}: {error}") from None
        except (TimeoutError, OSError, asyncpg.InternalClientError) as error:
            raise OutcomeUnknown(f"no answer to a COPY: {error or type(error).__name__}") from None
        finally:
            self._pool.release(connection, is_usable)


async def connect(dsn: str, schema: str, pool: PoolSettings, server_settings: Mapping[str, str]) -> Copying:
    """A store in a schema made of SCHEMA_SQL, its connections opened."""
    connections = Pool(dsn, schema, pool, server_settings, statements_kept=_STATEMENTS)
    await connections.warm()
    return Copying(Postgres(connections, variants()[""].horizon()), connections)


def limit_of(store: str) -> list[str]:
    """The store that copies the same rows on the same server as `store`, as a list of one spec; of none where there is no
    such server, or nothing may be made there."""
    spec = parse(store, "store")
    while spec.inner is not None:
        spec = spec.inner
    options = {name: value for name, value in spec.options if name not in ("gap_ms", "store")}
    if spec.name == "postgres":
        return [str(structs.replace(spec, variant="copy", options=tuple(options.items())))]
    if spec.name == "env" and not {"schema", "writes"} & set(options):
        return [str(structs.replace(spec, options=(("store", "copy"), *options.items())))]
    return []
