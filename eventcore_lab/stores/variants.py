"""The variants of the `postgres` store, as data: what each changes in the schema, and how its readers know where to stop.

`postgres` itself is the first. The others are the cures for late visibility that event stores use, so that "what does a
safe global order cost?" has a measured answer, and two broken ones that a checker must catch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.resources import files
from types import MappingProxyType

from msgspec import Struct

from eventcore_lab.stores.horizon import Asked, Fence, Horizon, Open, Patience
from eventcore_lab.stores.pool import Pool
from eventcore_lab.stores.postgres import Postgres
from eventcore_lab.stores.protocol import PoolSettings

SAFE_ORDER = "a reader beside writers sees each event once and in order"
"""The claim of the conformance suite that is in question here."""

_NONE: Mapping[str, str] = MappingProxyType({})
_POSITION = "bigint NOT NULL GENERATED ALWAYS AS IDENTITY"
_GATE, _XID, _HOLD = "-- gate", "    IF pg_current_xact_id() IS NULL THEN END IF;  -- xid\n", "-- hold"
_BARRIER_KEY = 4_919_131_752_989_213_764  # any key that no stream's hash is likely to be


class Variant(Struct, frozen=True):
    """One way to give readers a safe order, or not. `gate` runs first in every append, `before` and `behind` stand around
    the rest of the schema, `position` is the column's definition, `takes_xid` whether an append has its transaction id
    before its first position."""

    what: str
    horizon: Callable[[], Horizon]
    gate: str = ""
    position: str = _POSITION
    before: str = ""
    behind: str = ""
    takes_xid: bool = True
    lacks: Mapping[str, str] = _NONE

    def schema_sql(self, hold_ms: float = 0.0) -> str:
        """The whole schema; each append then stays open for 0 … `hold_ms` between its inserts and its commit."""
        sql = files("eventcore_lab.stores").joinpath("sql/postgres.sql").read_text()
        if not self.takes_xid:
            sql = sql.replace(_XID, "")
        hold = f"PERFORM pg_sleep(random() * {hold_ms} / 1000);" if hold_ms else ""
        sql = sql.replace(_POSITION, self.position).replace(_GATE, self.gate).replace(_HOLD, hold)
        return f"{self.before}\n{sql}\n{self.behind}"

    async def connect(self, dsn: str, schema: str, pool: PoolSettings, server_settings: Mapping[str, str]) -> Postgres:
        """A store in a schema made of `schema_sql`, its connections opened."""
        connections = Pool(dsn, schema, pool, server_settings)
        await connections.warm()
        return Postgres(connections, self.horizon())


def _lossy(reason: str) -> Mapping[str, str]:
    return MappingProxyType({SAFE_ORDER: f"sometimes: {reason}"})


_COUNTER = """CREATE TABLE position_counter (last bigint NOT NULL);
INSERT INTO position_counter VALUES (0);
CREATE FUNCTION next_position() RETURNS bigint LANGUAGE sql VOLATILE AS
$$ UPDATE position_counter SET last = last + 1 RETURNING last $$;"""

# The pair of transaction id and sequence in one bigint: 31 bits of ids since the schema was made, 32 of sequence.
_XMIN = """CREATE SEQUENCE event_sequence;
CREATE TABLE first_xid AS SELECT pg_current_xact_id()::text::bigint AS xid;
CREATE FUNCTION place_of(id bigint) RETURNS bigint LANGUAGE sql STABLE AS
$$ SELECT (id - (SELECT xid FROM first_xid)) << 32 $$;"""
_XMIN_SETTLED = """CREATE FUNCTION settled() RETURNS bigint LANGUAGE sql STABLE AS
$$ SELECT coalesce((SELECT max(position) FROM events
    WHERE position < place_of(pg_snapshot_xmin(pg_current_snapshot())::text::bigint)), 0) $$;"""

_BARRIER_SETTLED = f"""CREATE FUNCTION settled() RETURNS bigint LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    PERFORM pg_advisory_xact_lock({_BARRIER_KEY});
    RETURN (SELECT coalesce(max(position), 0) FROM events);
END $$;"""


def variants(gap_ms: float = 100.0) -> dict[str, Variant]:
    """Every variant by its name; "" is the store's own. `gap_ms`: how long `timeout` waits at a gap."""
    return {
        "": Variant("contiguous run, and a transaction id as fence at a hole", Fence),
        "none": Variant(
            "no cure: a sequence, and readers that take what they see",
            Open,
            lacks=_lossy("positions become visible out of order"),
        ),
        "table_lock": Variant(
            "every append locks the table until its commit", Open, gate="LOCK TABLE events IN EXCLUSIVE MODE;"
        ),
        "counter": Variant(
            "positions from one counter row, locked until the commit",
            Open,
            position="bigint NOT NULL DEFAULT next_position()",
            before=_COUNTER,
        ),
        "xmin": Variant(
            "pair of transaction id and sequence; readers stop at the oldest running transaction",
            Asked,
            position="bigint NOT NULL DEFAULT (place_of(pg_current_xact_id()::text::bigint) | nextval('event_sequence'))",
            before=_XMIN,
            behind=_XMIN_SETTLED,
            lacks=_NONE,
        ),
        "barrier": Variant(
            "appends share a lock that each page of a reader takes alone for a moment",
            Asked,
            gate=f"PERFORM pg_advisory_xact_lock_shared({_BARRIER_KEY});",
            behind=_BARRIER_SETTLED,
        ),
        "timeout": Variant(
            "readers wait at a gap for a while, then take it for dead",
            lambda: Patience(int(gap_ms * 1e6)),
            lacks=_lossy("a transaction that takes longer than the wait loses its events"),
        ),
        "xmax_fence": Variant(
            "broken on purpose: the fence is the snapshot's xmax",
            lambda: Fence("pg_snapshot_xmax(pg_current_snapshot())"),
            lacks=_lossy("transactions above the snapshot's xmax may be running already"),
        ),
        "late_xid": Variant(
            "broken on purpose: the transaction id is taken after the position",
            Fence,
            takes_xid=False,
            lacks=_lossy("whoever fills a hole may be younger than the fence"),
        ),
    }
