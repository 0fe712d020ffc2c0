"""Every driver keeps the claims of the conformance suite, but for those it declares to lack; and the suite can tell."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from eventcore_lab.stores import stores
from eventcore_lab.stores.conformance import CLAIMS, examined

EXTRA = pytest.mark.skipif(find_spec("eventsourcing") is None, reason="needs the extra eventsourcing")
SPECS = (
    "memory",
    "grouped(memory)",
    "postgres",
    "grouped(postgres)",
    "sqlite",
    "sqlite:normal",
    "postgres:table_lock",
    "postgres:counter",
    "postgres:xmin",
    "postgres:barrier",
    "postgres:chapter",
    "postgres:chapter_unique",
    "postgres:eventcore",
    *(pytest.param(f"eventsourcing:{v}", marks=EXTRA) for v in ("popo", "sqlite", "postgres", "functions")),
)


@pytest.mark.parametrize("name", CLAIMS)
@pytest.mark.parametrize("spec", SPECS)
async def test_the_driver_is_what_it_says_it_is(spec: str, name: str) -> None:
    finding = await examined(stores.make(spec), CLAIMS[name])
    assert finding.is_met, f"{finding.status}: {finding.detail}"
