"""What the processes of a run are told to do: the experiment as jobs, once the store's place is known."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import msgspec

from eventcore_lab.clock import NS_PER_S
from eventcore_lab.experiment.value import CAPACITY_MAX, Experiment
from eventcore_lab.load.follower import FollowerJob
from eventcore_lab.load.imports import Imports
from eventcore_lab.load.pacers import pacers
from eventcore_lab.load.places import variables_of
from eventcore_lab.load.projector import ProjectorJob
from eventcore_lab.load.recorder import ROW
from eventcore_lab.load.worker import KEEPER, Job, share
from eventcore_lab.stores import Place, PoolSettings

CLOSED_LOOP_RATE_MAX = 200_000
"""Operations per second that a closed loop's recorder makes room for; the file is sparse, so room costs nothing."""
CLOSED_LOOP_RATE, WRITTEN_PER_S = 5_000, 10_000
"""Operations per second that a closed loop is taken to have, and that are written down at least, once the load is over."""
FOLLOWER_CONNECTIONS = KEEPER_CONNECTIONS = 2


class Jobs:
    """Of one experiment in `folder`. With `is_elsewhere` those of the load may be done on other machines."""

    def __init__(self, experiment: Experiment, folder: Path, is_elsewhere: bool) -> None:
        self._experiment, self._folder = experiment, folder
        self._imports = Imports.of(experiment.modules)
        self._environment = variables_of(experiment.store) if is_elsewhere else {}

    def load(self, place: Place, worker: int) -> Job:
        """The share of the load that is `worker`'s."""
        e = self._experiment
        total_s = e.warmup_s + e.duration_s
        total_ns = int(total_s * NS_PER_S)
        expected = pacers.make(e.pacer).expected(total_ns) or CLOSED_LOOP_RATE_MAX * total_s
        return Job(
            spool=str(self._folder.resolve()),
            worker=worker,
            workers=e.workers,
            store=e.store,
            address=place.address,
            workload=e.workload,
            executor=e.executor,
            pacer=e.pacer,
            seed=e.seed,
            warmup_ns=int(e.warmup_s * NS_PER_S),
            total_ns=total_ns,
            pool=self._pool(share(e.connections, worker, e.workers)),
            in_flight_max=e.in_flight_max,
            backlog_max=e.backlog_max,
            backlog_policy=e.backlog_policy,
            spins=e.spins,
            operation_timeout_ns=int(e.operation_timeout_s * NS_PER_S),
            imports=self._imports,
            environment=self._environment,
            capacity=min(_rows_max(), int(2 * expected) // e.workers) + 10_000,
        )

    @property
    def writing_s(self) -> float:
        """How long the load processes may take to write down what they have noted, after the last operation has ended."""
        e = self._experiment
        total_s = e.warmup_s + e.duration_s
        expected = pacers.make(e.pacer).expected(int(total_s * NS_PER_S)) or CLOSED_LOOP_RATE * total_s
        return expected / WRITTEN_PER_S

    def keeper(self, place: Place) -> Job:
        """Filling the store and reading it back, for those who do the load elsewhere."""
        return msgspec.structs.replace(self.load(place, 0), worker=KEEPER, pool=self._pool(KEEPER_CONNECTIONS))

    def beside(self, place: Place) -> list[FollowerJob | ProjectorJob]:
        """Reading along while the load runs."""
        e = self._experiment
        same: dict[str, Any] = {
            "spool": str(self._folder.resolve()),
            "store": e.store,
            "address": place.address,
            "pool": self._pool(FOLLOWER_CONNECTIONS),
            "imports": self._imports,
        }
        jobs: list[FollowerJob | ProjectorJob] = [FollowerJob(reader=reader, **same) for reader in range(e.followers)]
        return [*jobs, ProjectorJob(projection=e.projection, **same)] if e.projection else jobs

    def _pool(self, connections: int) -> PoolSettings:
        timeout_s = self._experiment.timeout_s
        pool = PoolSettings.sized(connections)
        return msgspec.structs.replace(pool, acquire_timeout_s=timeout_s, command_timeout_s=timeout_s)


def _rows_max() -> int:
    """Rows that one recorder's file may have: CAPACITY_MAX, or what this user's limit for a file's size (ulimit -f) leaves."""
    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    return CAPACITY_MAX if limit == resource.RLIM_INFINITY else max(0, min(CAPACITY_MAX, limit // ROW.size - 10_000))
