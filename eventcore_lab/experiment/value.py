"""What to measure, as one frozen value: the same words in a notebook's parameters, on the command line and in the Lab."""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import force_setattr

from eventcore_lab.clock import NS_PER_S
from eventcore_lab.commands import executors
from eventcore_lab.load.drive import BACKLOG_POLICIES
from eventcore_lab.load.pacers import OPERATIONS_MAX, pacers
from eventcore_lab.load.places import check_cluster
from eventcore_lab.load.workloads import workloads
from eventcore_lab.projections import read_models
from eventcore_lab.spec import Registry, UsageError, parse, shown, unknown
from eventcore_lab.stores import stores
from eventcore_lab.stores.memory import Null
from eventcore_lab.stores.protocol import has_tables

CAPACITY_MAX = 200_000_000
"""Rows in a recorder's file: 12.8 GB that are only taken as far as they are written, and given back while a soak goes on."""
LIMITS: dict[str, tuple[float, float]] = {
    "duration_s": (0.05, 31 * 86_400),
    "warmup_s": (0, 3_600),
    "connections": (1, 1_000),
    "in_flight_max": (1, 10_000),
    "backlog_max": (0, 1_000_000),
    "timeout_s": (0.01, 3_600),
    "seed": (0, 2**63 - 1),
    "trial": (0, 1_000_000),
    "followers": (0, 8),
    "workers": (1, 64),
    "operation_timeout_s": (0, 3_600),
}


class Experiment(Struct, frozen=True, kw_only=True):
    """What to measure. Scalars only: the same words are notebook parameters, flags and columns of `runs`.

    `executor` is what carries out the workload's commands; workloads that put appends or reads on the store do without.
    `connections` is the size of the store's pool. In an open loop at most `in_flight_max` operations run at once,
    `backlog_max` more arrivals wait, and `backlog_policy` says what becomes of the next: `drop` (it is recorded as
    dropped), `queue` (it waits outside) or `abort` (the run ends). An operation waits at most `timeout_s` for a
    connection and again for each answer; it is given up after `operation_timeout_s` in all (0: never), and whether it
    happened is unknown then. `workers` processes put the load on, each with its share of all this: together they are one.
    They run on this machine, or where a `cluster` is: `dask:` and its scheduler's address, or `dask:local` for a try.
    With `spins` they look at the clock all the time just before an arrival is due, which makes them a few µs late instead
    of tens. `followers` are processes that read the store from its beginning while the load runs, each with a few
    connections of its own. `projection` is a read model of the users that one more process keeps up to date, and that is
    compared with the fold of all events afterwards.
    """

    store: str = "postgres"
    workload: str = "create_user"
    executor: str = "direct"
    pacer: str = "saturate:concurrency=10"
    duration_s: float = 10.0
    warmup_s: float = 1.0
    seed: int = 1
    connections: int = 20
    in_flight_max: int = 200
    backlog_max: int = 10_000
    backlog_policy: str = "drop"
    timeout_s: float = 30.0
    operation_timeout_s: float = 0.0
    workers: int = 1
    cluster: str = ""
    spins: bool = False
    followers: int = 0
    projection: str = ""
    trial: int = 0
    label: str = ""

    def __post_init__(self) -> None:
        for name, kind in _KINDS.items():
            force_setattr(self, name, _as(kind, name, getattr(self, name)))
        for name, (low, high) in LIMITS.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise UsageError(f"{name} must be {low:g} to {high:g}, not {value:g}")
        if self.backlog_policy not in BACKLOG_POLICIES:
            raise unknown("backlog_policy", self.backlog_policy, BACKLOG_POLICIES)
        if not stores.make(self.store).is_shared and self.followers:
            raise UsageError(f"followers need a store that several processes can open, and {self.store} is not")
        if self.projection:
            self._check_projection()
        self._check_executor()
        check_cluster(self.cluster)
        self._check_workers()
        self.check_schedule()
        if "__main__" in self.modules:
            raise self._unimportable()

    def _check_projection(self) -> None:
        read_model, driver = read_models.make(self.projection), stores.make(self.store)
        if not driver.is_shared:
            raise UsageError(f"a projection needs a store that several processes can open, and {self.store} is not")
        if read_model.needs_tables and not has_tables(driver):
            raise UsageError(
                f"projection {parse(self.projection, read_models.kind).name} keeps tables beside the events and needs "
                "postgres or env:…; projection=memory works with every store that several processes can open, and "
                f"{self.store} is one"
            )

    def _check_executor(self) -> None:
        executors.make(self.executor, store=Null(), seed=self.seed)
        uses_commands = workloads.make(self.workload, seed=self.seed).uses_commands
        if not uses_commands and self.executor != "direct":
            raise UsageError(f"{self.workload} has no commands, so that {self.executor} would have nothing to execute")

    def _check_workers(self) -> None:
        if self.workers > 1 or self.cluster:
            self.check_shared()
        shared = {"connections": self.connections, "in_flight_max": self.in_flight_max}
        if callers := pacers.make(self.pacer).callers:
            shared["concurrency"] = callers
        for name, value in shared.items():
            if value < self.workers:
                raise UsageError(f"{name} is shared by {self.workers} workers, and {value} is not one for each")

    def check_shared(self) -> None:
        """Refuse a store that one process alone can open, for a load that several do."""
        if not stores.make(self.store).is_shared:
            who = f"{self.workers} workers need" if self.workers > 1 else "a worker elsewhere needs"
            raise UsageError(f"{who} a store that several processes can open, and {self.store} is not")

    def check_schedule(self) -> None:
        """Refuse more arrivals than a schedule may hold, before anything is started."""
        try:
            expected = pacers.make(self.pacer).expected(int((self.duration_s + self.warmup_s) * NS_PER_S))
        except UsageError:
            raise
        except ValueError as error:
            raise UsageError(f"{self.pacer}: {error}") from None
        if expected > OPERATIONS_MAX:
            raise UsageError(
                f"{self.pacer} for {self.duration_s:g} s is too many operations for one run; a soak goes on in several"
            )

    @property
    def _named(self) -> dict[tuple[str, str], str]:
        """(kind, name) of everything that a registry has, also inside parentheses → the module that registered it."""
        specs: list[tuple[Registry[Any], str]] = [
            (stores, self.store),
            (workloads, self.workload),
            (executors, self.executor),
            (pacers, self.pacer),
        ]
        specs += [(read_models, self.projection)] if self.projection else []
        return {(r.kind, name): module for r, text in specs for name, module in r.modules(text).items()}

    @property
    def modules(self) -> set[str]:
        """What another process must have imported to make of these words what this one makes of them."""
        return set(self._named.values())

    def _unimportable(self) -> UsageError:
        kind, name = next(named for named, module in self._named.items() if module == "__main__")
        return UsageError(
            f"{kind} {name} is registered in the script itself, which the load process cannot import: put it into a module "
            "beside it and import that"
        )

    @property
    def is_closed_loop(self) -> bool:
        return pacers.make(self.pacer).callers > 0

    @property
    def title(self) -> str:
        """What a progress line calls it."""
        return self.label or f"{self.workload} · {self.pacer}"

    @property
    def experiment_id(self) -> str:
        """The same for runs that differ only in trial, seed or label."""
        same = {k: v for k, v in msgspec.structs.asdict(self).items() if k not in ("trial", "seed", "label")}
        return hashlib.sha256(msgspec.json.encode(same, order="sorted")).hexdigest()[:12]


_KINDS: dict[str, type] = {
    name: type(kind) for name, kind in zip(Experiment.__struct_fields__, Experiment.__struct_defaults__, strict=True)
}


def _as(kind: type, name: str, value: object) -> Any:
    """`value` as the field's own type: 2.0 is a whole number, 2 a number, and nothing else is taken for another. Equal
    experiments are thus written alike."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind is float and is_number:
        return float(value)  # type: ignore[arg-type]
    if kind is int and is_number and float(value).is_integer():  # type: ignore[arg-type]
        return int(value)  # type: ignore[call-overload]
    if type(value) is kind:
        return value
    words = {int: "a whole number", float: "a number", bool: "True or False", str: "text"}
    raise UsageError(f"{name} must be {words[kind]}, not {shown(repr(value))}")


def with_option(store: str, name: str, value: str | float) -> str:
    """The spec of a store with one option more: `with_option("postgres:none", "hold_ms", 5)`. A store that has no such
    option, or has been given it already, stays as it is."""
    spec = parse(store, "store")
    if not stores.accepts(store, name) or name in dict(spec.options):
        return store
    return str(msgspec.structs.replace(spec, options=(*spec.options, (name, str(value)))))
