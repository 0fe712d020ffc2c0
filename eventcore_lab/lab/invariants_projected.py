"""The invariant of what was kept beside the events: V17. A read model is what its events fold into, however it was kept."""

from __future__ import annotations

from eventcore_lab.lab.invariant import Invariant

INVARIANTS_PROJECTED = (
    Invariant(
        "V17",
        "projections equal the fold of the events",
        "a read model that has caught up has one row for each key, as a plain fold of all events has it, and no other",
        ("projected",),
        "SELECT count(*) FROM projected",
        """SELECT format('{} {}: {}', projection, key,
                         CASE WHEN digest IS NULL THEN 'is missing' WHEN expected IS NULL THEN 'should not be there'
                              ELSE 'is not what the events fold into' END)
           FROM projected WHERE digest IS DISTINCT FROM expected
           UNION ALL
           SELECT format('{} {}: {} rows', projection, key, count(*))
           FROM projected GROUP BY projection, key HAVING count(*) > 1""",
    ),
)
