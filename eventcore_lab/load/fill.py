"""Filling a store with what a workload needs to find there: no part of what is measured, and part of the evidence.

What was appended is written down and forgotten as it goes, so that the load begins with the memory it had before.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from eventcore_lab.events import AppendResult, StoreError, StreamWrite, VersionConflict
from eventcore_lab.load.drive import Stop
from eventcore_lab.load.evidence import early, give_back
from eventcore_lab.load.journal import Journal
from eventcore_lab.stores.protocol import Store

FILLERS = -1
"""Who appended what the store was filled with: a worker of this number, or one of those below it, a number for each part."""
FILLED = "*--*.parquet"
"""The files that `filled` leaves in the folder EARLY of the spool."""
REQUESTS_MAX, EVENTS_MAX = 500, 5_000
"""Appends, and events unless it is one append, to a round trip."""
EVENTS_PER_PART = 10_000

Requests = list[Sequence[StreamWrite]]


async def filled(store: Store, requests: Iterator[Sequence[StreamWrite]], spool: Path, stop: Stop) -> int:
    """Append all of `requests` or what was done until `stop`, many to a round trip; the number of events. Raises StoreError
    for the first that is refused."""
    events = parts = waiting = 0
    journal = Journal(store)
    for chunk in _chunks(requests):
        if stop.is_set:
            break
        for result in await journal.append_many(chunk):
            _check_done(result)
        waiting += _events(chunk)
        if waiting >= EVENTS_PER_PART:
            journal.write(early(spool), FILLERS - parts)
            events, parts, waiting, journal = events + waiting, parts + 1, 0, Journal(store)
    if waiting:
        journal.write(early(spool), FILLERS - parts)
    del journal
    give_back()
    return events + waiting


def _check_done(result: AppendResult | StoreError) -> None:
    if isinstance(result, VersionConflict):
        raise StoreError(
            f"{result.stream!r} has {result.actual} events where {result.expected} were expected: the store has been "
            "filled with this seed before; choose another seed"
        )
    if isinstance(result, StoreError):
        raise result


def _chunks(requests: Iterator[Sequence[StreamWrite]]) -> Iterator[Requests]:
    chunk: Requests = []
    events = 0
    for writes in requests:
        more = _events([writes])
        if chunk and (len(chunk) >= REQUESTS_MAX or events + more > EVENTS_MAX):
            yield chunk
            chunk, events = [], 0
        chunk.append(writes)
        events += more
    if chunk:
        yield chunk


def _events(chunk: Requests) -> int:
    return sum([len(write.events) for writes in chunk for write in writes])
