"""Event stores: the protocol, the drivers, and the servers they run on. Importing this registers every driver."""

from eventcore_lab.stores import grouped as grouped
from eventcore_lab.stores import memory as memory
from eventcore_lab.stores import mutants as mutants
from eventcore_lab.stores import pooled as pooled
from eventcore_lab.stores import servers as servers
from eventcore_lab.stores import sqlite as sqlite
from eventcore_lab.stores.protocol import (
    Address,
    Driver,
    Lease,
    Place,
    PoolSettings,
    Store,
    open_store,
    stores,
)
from eventcore_lab.stores.reading import Polling, follow, stream_all, stream_events

__all__ = [
    "Address",
    "Driver",
    "Lease",
    "Place",
    "Polling",
    "PoolSettings",
    "Store",
    "follow",
    "open_store",
    "stores",
    "stream_all",
    "stream_events",
]
