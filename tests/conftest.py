"""Fixtures that more than one room's tests need: a store of every driver, a Lab of one's own, finished runs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from eventcore_lab.experiment import Experiment
from eventcore_lab.lab.database import Lab
from eventcore_lab.lab.measures import Run
from eventcore_lab.progress import Quiet
from eventcore_lab.stores import PoolSettings, Store, open_store
from eventcore_lab.workbench import run

STORES = ("memory", "postgres", "sqlite")


@pytest.fixture(params=STORES)
async def store(request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    """An empty store of every driver that keeps events."""
    async with open_store(request.param, PoolSettings.sized(4)) as opened:
        yield opened


@pytest.fixture(autouse=True)
def own_data_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """No test touches the project's own results."""
    folder = tmp_path_factory.mktemp("data")
    monkeypatch.setenv("EVENTCORE_LAB_DATA", str(folder))
    monkeypatch.delenv("EVENTCORE_LAB_FILE", raising=False)
    yield folder


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path / "lab.duckdb")


@pytest.fixture(scope="session")
def session_lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("lab") / "lab.duckdb")


@pytest.fixture(scope="session")
def open_run(session_lab: Lab) -> Run:
    """A short open loop on the memory store, taken into a Lab."""
    e = Experiment(store="memory", pacer="constant:rate=2000", duration_s=0.6, warmup_s=0.1)
    return run(e, session_lab, Quiet())


@pytest.fixture(scope="session")
def closed_run(session_lab: Lab) -> Run:
    """A short closed loop on the embedded PostgreSQL, taken into a Lab."""
    e = Experiment(store="postgres", pacer="saturate:concurrency=4", duration_s=0.6, warmup_s=0.1, connections=4)
    return run(e, session_lab, Quiet())
