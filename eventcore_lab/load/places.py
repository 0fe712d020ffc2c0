"""Where stripes of the load can run: the places of any executor, those of a Dask cluster.

A place is submitted functions, and looked at through them. A Dask cluster can do more: what runs there can be told
something, and a worker that is gone is noticed. Every call here may block; `aside` bounds it.
"""

from __future__ import annotations

import asyncio
import os
import re
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol, TypeVar
from urllib.parse import unquote, urlsplit

from eventcore_lab.load.folders import taken
from eventcore_lab.load.stripe import Seen, hear, look
from eventcore_lab.spec import UsageError, shown
from eventcore_lab.stores import Address

T = TypeVar("T")
CONNECT_TIMEOUT_S = 5.0
WORKERS_TIMEOUT_S = 10.0
LOOK_TIMEOUT_S = 20.0
LOCAL = "dask:local"
_CLUSTER = re.compile(r"dask:(local|(tcp|tls|ws|wss)://([\w.-]+|\[[0-9a-fA-F:]+\]):\d{1,5})")


class PlacesError(Exception):
    """The places cannot be used; the message says which and why."""


class Executor(Protocol):
    """What `concurrent.futures.Executor` and `distributed.Client` have in common, as far as it is needed: the futures have
    `done()`, `result(timeout)` and `cancel()`."""

    def submit(self, fn: Callable[..., Any], /, *args: Any) -> Any: ...


class Places(Protocol):
    """`has_beats`: `beat` reaches what runs there. `close` lets go of what was made for the run, not of the executor."""

    has_beats: bool

    def name(self, n: int) -> str:
        """What a message calls place `n`, beside the host; "" for nothing."""
        ...

    def submit(self, n: int, token: str, fn: Callable[..., Any], *args: Any) -> Any:
        """A future of `fn(*args)` at place `n`. `token` is unique and holds nothing secret."""
        ...

    def look(self, n: int) -> Seen: ...
    def beat(self, tokens: Sequence[str], stop: bool) -> set[int]:
        """Tell the stripes that their run is there, and whether to stop; gives the places that are gone, once that has been
        seen twice."""
        ...

    def close(self) -> None: ...


class AnyPlaces:
    """Of an executor about which nothing is known: where something runs is seen only when it has run."""

    has_beats = False

    def __init__(self, executor: Executor) -> None:
        self._executor = executor

    def name(self, n: int) -> str:
        return ""

    def submit(self, n: int, token: str, fn: Callable[..., Any], *args: Any) -> Any:
        return self._executor.submit(fn, *args)

    def look(self, n: int) -> Seen:
        seen: Seen = self._executor.submit(look).result(LOOK_TIMEOUT_S)
        return seen

    def beat(self, tokens: Sequence[str], stop: bool) -> set[int]:
        return set()

    def close(self) -> None:
        return


class DaskPlaces:
    """Threads of a Dask cluster's workers, one of each worker before a second of any."""

    has_beats = True

    def __init__(self, client: Any, workers: int, stack: ExitStack | None = None) -> None:
        self._client, self._stack = client, stack or ExitStack()
        self._addresses = _places_of(_threads(client), workers)
        self._missed: set[str] = set()

    def name(self, n: int) -> str:
        return f"Dask worker {self._addresses[n]}"

    def submit(self, n: int, token: str, fn: Callable[..., Any], *args: Any) -> Any:
        at = [self._addresses[n]]
        return self._client.submit(fn, *args, key=token, workers=at, allow_other_workers=False, pure=False, retries=0)

    def look(self, n: int) -> Seen:
        seen: Seen = self._client.run(look, workers=[self._addresses[n]])[self._addresses[n]]
        return seen

    def beat(self, tokens: Sequence[str], stop: bool) -> set[int]:
        known = _threads(self._client) if self._client.status == "running" else {}
        living = [address for address in dict.fromkeys(self._addresses) if address in known]
        if living:
            self._client.run(hear, list(tokens), stop, workers=living, on_error="ignore")
        missed_before, self._missed = self._missed, set(self._addresses) - set(known)
        return {n for n, address in enumerate(self._addresses) if address in self._missed & missed_before}

    def close(self) -> None:
        with suppress(Exception):  # a cluster that is gone need not be taken leave of
            self._stack.close()


def check_cluster(text: str) -> None:
    """UsageError unless `text` is "", dask:local, or dask: and the address of a scheduler, without user or password."""
    if not text or _CLUSTER.fullmatch(text):
        return
    if "@" in text:
        raise UsageError(
            "cluster: an address must not hold a user or a password; Dask takes certificates from its own settings"
        )
    raise UsageError(
        f"cluster: {shown(text)} is not dask:local or a Dask scheduler's address such as dask:tcp://host:8786 (an executor of "
        "one's own goes to run(…, executor=…))"
    )


def check_places(cluster: str, executor: Executor | None) -> None:
    """UsageError when there cannot be such places here."""
    if executor is not None and cluster:
        raise UsageError(f"cluster {cluster} and an executor: a run has one of them")
    if getattr(executor, "asynchronous", False):
        raise UsageError("executor: a Dask client that is asynchronous; make it with asynchronous=False")
    if cluster and find_spec("distributed") is None:
        raise UsageError(f"cluster {cluster} needs Dask: pip install 'eventcore_lab[cluster]'")


def reached(cluster: str, workers: int) -> Places:
    """The places of `cluster`, which `check_cluster` has passed; one made for the run if it is LOCAL. PlacesError when it is
    not there, or has no room for so many workers. Blocks for some seconds at most."""
    with ExitStack() as stack:
        client = _connected(cluster, workers, stack)
        return DaskPlaces(client, workers, stack.pop_all())
    raise AssertionError  # for the type checker: an exit stack may swallow what is raised, and this one does not


def places_of(executor: Executor, workers: int) -> Places:
    """The places of an executor that somebody else has made."""
    return DaskPlaces(executor, workers) if hasattr(executor, "scheduler_info") else AnyPlaces(executor)


def size_of(cluster: str) -> int:
    """How many load processes `cluster` is good for: its workers, or the cores here if it is LOCAL."""
    check_places(cluster, None)
    if cluster == LOCAL:
        return os.cpu_count() or 1
    with ExitStack() as stack:
        return len(_threads(_connected(cluster, 1, stack)))
    raise AssertionError


def _connected(cluster: str, workers: int, stack: ExitStack) -> Any:
    """A client of the cluster; what is to be closed afterwards goes onto `stack`."""
    from distributed import Client

    address = _made(workers, stack) if cluster == LOCAL else cluster.partition(":")[2]
    try:
        client = Client(address, timeout=CONNECT_TIMEOUT_S, set_as_default=False)
    except (OSError, ValueError, RuntimeError, TimeoutError) as error:
        raise PlacesError(f"no Dask scheduler at {address}: {str(error).partition(chr(10))[0]}") from None
    stack.callback(client.close)
    with suppress(TimeoutError):
        client.wait_for_workers(1, timeout=WORKERS_TIMEOUT_S)
    return client


def _made(workers: int, stack: ExitStack) -> str:
    """The address of a cluster of this machine. In threads: the load is in processes of its own anyway, and a script that
    uses it needs no guard. Nobody else can connect."""
    from distributed import LocalCluster

    folder, _ = stack.enter_context(taken("dask"))
    try:
        made = LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=False,
            protocol="tcp",
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            worker_dashboard_address="127.0.0.1:0",
            memory_limit=0,
            local_directory=str(folder),
        )
    except (OSError, RuntimeError) as error:
        raise PlacesError(f"no Dask cluster can be made here: {str(error).partition(chr(10))[0]}") from None
    stack.callback(made.close)
    return str(made.scheduler_address)


def _threads(client: Any) -> dict[str, int]:
    """Address → threads of each of a cluster's workers, as the scheduler says it now: `Client.scheduler_info` gives what the
    client's own look, every few seconds and without workers, may have put in its place."""
    if client.status != "running":
        raise PlacesError(f"the Dask client is {client.status}")
    known = client.sync(client.scheduler.identity, n_workers=-1)["workers"]
    return {address: int(facts["nthreads"]) for address, facts in known.items()}


def _places_of(threads: dict[str, int], workers: int) -> list[str]:
    """Where each of `workers` goes: to every address once, then to those with a second thread, and so on."""
    rounds = max(threads.values(), default=0)
    seats = [address for nth in range(rounds) for address, n in sorted(threads.items()) if n > nth]
    if len(seats) < workers:
        raise PlacesError(
            f"the Dask cluster has room for {len(seats)} load processes at once ({len(threads)} workers), and {workers} are "
            "asked for"
        )
    return seats[:workers]


async def awake(executor: Executor) -> None:
    """Have an executor start what it starts when it is first used: processes that it forks have what is open by then, and a
    run's lock must not be. What goes wrong is told when it is used in earnest."""
    with suppress(Exception):
        await aside(lambda: executor.submit(look).result(LOOK_TIMEOUT_S), LOOK_TIMEOUT_S)


async def aside(work: Callable[[], T], timeout_s: float) -> T:
    """What blocking `work` comes to, in a thread of its own that nobody waits for when it takes longer. TimeoutError."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(set_it: Callable[[Any], None], value: Any) -> None:
        if not future.done():
            set_it(value)

    def carry_out() -> None:
        try:
            done: tuple[Callable[[Any], None], Any] = future.set_result, work()
        except asyncio.CancelledError as error:  # of an executor's future: it must not cancel who waits for it here
            done = future.set_exception, PlacesError(f"cancelled {error}".strip())
        except Exception as error:
            done = future.set_exception, error
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, *done)

    threading.Thread(target=carry_out, name="aside", daemon=True).start()
    async with asyncio.timeout(timeout_s):
        return await future


def is_local(address: Address) -> bool:
    """Whether a store's address means something on this machine only: a path, a socket, the loop-back interface."""
    if not address.dsn:
        return Path(address.schema).is_absolute()
    found = re.findall(r"(?:[?&\s]|^)host=([^\s&]+)", address.dsn)
    if "://" in address.dsn:
        listed = urlsplit(address.dsn).netloc.rpartition("@")[2].split(",")
        found += [re.sub(r":\d+\Z", "", host) for host in listed]
    hosts = [unquote(host).strip("'[]") for host in found if host]
    return not any(host for host in hosts if not host.startswith("/") and not _LOOP_BACK.fullmatch(host))


_LOOP_BACK = re.compile(r"localhost(\.localdomain)?|127(\.\d+){3}|::1")


def variables_of(store: str) -> dict[str, str]:
    """The environment variables that the spec of a store names, which other machines do not have. They hold DSNs."""
    return {name: os.environ[name] for name in re.findall(r"\benv:(\w+)", store) if name in os.environ}
