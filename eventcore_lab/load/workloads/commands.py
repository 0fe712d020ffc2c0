"""The workloads of commands: users who register and change their profiles, transfers between accounts, an article that
everybody reserves, long streams, and mixtures with reads.

Each is a mixture of ingredients, often of one. Which one operation k is, and on which streams, follows from the seed and
k; picks.py says how streams are picked. What must be there before (registered users, open accounts, stock) is `populate`'s.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any, Protocol

from msgspec import Struct

from eventcore_lab.commands import Command, CreateUser, Executor, OpenAccount, ReserveStock, Transfer, UpdateProfile
from eventcore_lab.commands.bank import TRANSFERS_RESUMED
from eventcore_lab.commands.inventory import received, stock_stream
from eventcore_lab.commands.users import User, user_stream
from eventcore_lab.events import NewEvent, StreamId, StreamWrite
from eventcore_lab.load.workloads.picks import Pick, picking
from eventcore_lab.load.workloads.sizes import EVENTS_MAX, STREAMS_MAX, lengths_of
from eventcore_lab.load.workloads.workload import Performer, Plain, mixed, within, workloads
from eventcore_lab.stores.protocol import Store

OPENING_CENTS = 1_000_000_000
STOCK = 1_000_000_000
_CHUNK = 1000


class StreamRead(Struct, frozen=True):
    """An operation that reads one whole stream."""

    stream: StreamId


class Picked(Struct, frozen=True):
    """How streams are picked: the options `pick` and `theta` of a workload."""

    pick: str = "uniform"
    theta: float = 0.99

    def among(self, n: int) -> Pick:
        return picking(n, self.pick, self.theta)


_EVENLY = Picked()


class Ingredient(Protocol):
    """One kind of operation. `chance`: 64 bits of the operation's own."""

    def populate(self) -> Iterator[Sequence[StreamWrite]]: ...
    def operation(self, k: int, chance: int) -> Command | StreamRead: ...


class Mixture(Plain):
    """Operations of several kinds, each with its weight."""

    def __init__(self, seed: int, parts: Sequence[tuple[float, Ingredient]]) -> None:
        self._seed = seed
        self._parts = [part for weight, part in parts if weight > 0]
        self.uses_commands = not all(isinstance(part, Looks) for part in self._parts)
        if not self._parts:
            raise ValueError("at least one kind of operation needs a weight above 0")
        self._edges = list(accumulate(weight for weight, _ in parts if weight > 0))

    def populate(self) -> Iterator[Sequence[StreamWrite]]:
        there: set[StreamId] = set()
        for part in self._parts:
            ours: set[StreamId] = set()
            for writes in part.populate():
                if there.isdisjoint([write.stream for write in writes]):  # another ingredient may know the same users
                    ours.update([write.stream for write in writes])
                    yield writes
            there |= ours

    def prepare(self, k: int) -> Command | StreamRead:
        chance = mixed(self._seed, k)
        if len(self._parts) == 1:
            return self._parts[0].operation(k, chance)
        at = mixed(chance, 0) / 2**64 * self._edges[-1]
        return self._parts[min(bisect_right(self._edges, at), len(self._parts) - 1)].operation(k, chance)

    def start(self, store: Store, executor: Executor) -> Performer:
        execute, read_stream = executor.execute, store.read_stream

        async def perform(prepared: Any) -> int:
            if isinstance(prepared, StreamRead):
                return len((await read_stream(prepared.stream)).events)
            return len((await execute(prepared)).events)

        return perform


class Registrations:
    """Users nobody has heard of."""

    def populate(self) -> Iterator[Sequence[StreamWrite]]:
        return iter(())

    def operation(self, k: int, chance: int) -> Command:
        user = f"{chance:016x}"
        return CreateUser(user, f"user{user}@example.com", f"User{k}", "Test")


class _Known:
    """Users who are registered already, each with a stream of `events` events, or so many on average if `lengths` says so."""

    def __init__(
        self,
        seed: int,
        users: int,
        events: int,
        option: str = "users",
        picked: Picked = _EVENLY,
        lengths: str = "constant",
    ) -> None:
        """`option`: what the workload calls the number of users."""
        self._length = lengths_of(lengths, seed, users, events, option)
        self._seed, self._users = seed, users
        self._pick = picked.among(users)

    def name(self, n: int) -> str:
        return f"known-{mixed(self._seed, n):016x}"

    def populate(self) -> Iterator[Sequence[StreamWrite]]:
        for n in range(self._users):
            user, length = self.name(n), self._length(n)
            stream = user_stream(user)
            registers = CreateUser(user, f"{user}@example.com", "User", "Known")
            first = [event for _, event in registers.decide({stream: None})]
            yield [StreamWrite(stream, 0, tuple(first + self._updates(user, 1, min(length, _CHUNK))))]
            for version in range(_CHUNK, length, _CHUNK):
                events = self._updates(user, version, min(length, version + _CHUNK))
                yield [StreamWrite(stream, version, tuple(events))]

    def _updates(self, user: str, first: int, end: int) -> list[NewEvent]:
        states = {user_stream(user): User(f"{user}@example.com", "User Known")}
        return [e for n in range(first, end) for _, e in UpdateProfile(user, f"User{n}", "Known").decide(states)]


class Updates(_Known):
    """Changes of the profiles of users who are registered already."""

    def operation(self, k: int, chance: int) -> Command:
        return UpdateProfile(self.name(self._pick(k, chance)), f"User{k}", "Updated")


class Looks(_Known):
    """Reads of the streams of users who are registered already."""

    def operation(self, k: int, chance: int) -> StreamRead:
        return StreamRead(user_stream(self.name(self._pick(k, chance))))


class Transfers:
    """Transfers of 1 to 100 cents between two accounts. With `policy` each rests on a stream that none writes."""

    def __init__(
        self, seed: int, accounts: int, policy: bool, option: str = "accounts", picked: Picked = _EVENLY
    ) -> None:
        within(option, accounts, 2, STREAMS_MAX)
        self._payer, self._payee = picked.among(accounts), picked.among(accounts - 1)
        self._seed, self._accounts = seed, accounts
        self._policy = f"transfers-{self._name(0)}" if policy else ""  # of this seed, as all streams are

    def _name(self, n: int) -> str:
        return f"{mixed(self._seed, n):016x}"

    def populate(self) -> Iterator[Sequence[StreamWrite]]:
        if self._policy:
            yield [StreamWrite(StreamId(self._policy), 0, (NewEvent(TRANSFERS_RESUMED, b"{}"),))]
        for n in range(self._accounts):
            opens = OpenAccount(self._name(n), OPENING_CENTS)
            decided = opens.decide(dict.fromkeys(opens.streams))
            yield [StreamWrite(stream, 0, (event,)) for stream, event in decided]

    def operation(self, k: int, chance: int) -> Command:
        payer = self._payer(k, chance)
        payee = self._payee(k, mixed(chance, 1))
        payee += payee >= payer  # one of the others
        return Transfer(self._name(payer), self._name(payee), 1 + mixed(chance, 2) % 100, self._policy)


class Reservations:
    """One piece each of one of a few articles, whose streams everybody contends for."""

    def __init__(self, seed: int, articles: int, stock: int = STOCK, picked: Picked = _EVENLY) -> None:
        within("articles", articles, 1, 100_000)
        within("stock", stock, 1, STOCK)
        self._seed, self._stock, self._articles = seed, stock, articles
        self._pick = picked.among(articles)

    def _name(self, n: int) -> str:
        return f"{mixed(self._seed, n):016x}"

    def populate(self) -> Iterator[Sequence[StreamWrite]]:
        for n in range(self._articles):
            yield [StreamWrite(stock_stream(self._name(n)), 0, (received(self._stock),))]

    def operation(self, k: int, chance: int) -> Command:
        return ReserveStock(self._name(self._pick(k, chance)), f"order-{k}")


@workloads.register("create_user")
def create_user(*, seed: int) -> Mixture:
    """The chapter's command_execution: CreateUser for a new user each time, read, decide, append."""
    return Mixture(seed, [(1, Registrations())])


@workloads.register("update_profile")
def update_profile(
    *,
    users: int = 1000,
    events: int = 1,
    lengths: str = "constant",
    pick: str = "uniform",
    theta: float = 0.99,
    seed: int,
) -> Mixture:
    """UpdateProfile for one of `users` users, whose streams have `events` events at first."""
    return Mixture(seed, [(1, Updates(seed, users, events, picked=Picked(pick, theta), lengths=lengths))])


@workloads.register("users")
def users(
    *,
    users: int = 1000,
    events: int = 1,
    lengths: str = "constant",
    update: float = 0.8,
    pick: str = "uniform",
    theta: float = 0.99,
    seed: int,
) -> Mixture:
    """Registrations of new users and, in the share `update`, changes of the profiles of `users` known ones."""
    within("update", update, 0, 1)
    updates = Updates(seed, users, events, picked=Picked(pick, theta), lengths=lengths)
    return Mixture(seed, [(1 - update, Registrations()), (update, updates)])


@workloads.register("long_streams")
def long_streams(
    *,
    streams: int = 10,
    events: int = 1000,
    lengths: str = "constant",
    pick: str = "uniform",
    theta: float = 0.99,
    seed: int,
) -> Mixture:
    """UpdateProfile on a few streams that have many events at first, 10 to 100,000 each on average."""
    within("events", events, 10, EVENTS_MAX)
    return Mixture(seed, [(1, Updates(seed, streams, events, "streams", Picked(pick, theta), lengths))])


@workloads.register("transfer")
def transfer(
    *, accounts: int = 1000, policy: bool = False, pick: str = "uniform", theta: float = 0.99, seed: int
) -> Mixture:
    """Transfers between two of `accounts` accounts in one append; policy=true: each also rests on a stream only read."""
    return Mixture(seed, [(1, Transfers(seed, accounts, policy, picked=Picked(pick, theta)))])


@workloads.register("reserve")
def reserve(*, articles: int = 1, stock: int = STOCK, pick: str = "uniform", theta: float = 0.99, seed: int) -> Mixture:
    """Reservations that contend for the streams of `articles` articles, of each of which there is `stock`: hot streams."""
    return Mixture(seed, [(1, Reservations(seed, articles, stock, Picked(pick, theta)))])


@workloads.register("read_mostly")
def read_mostly(
    *,
    users: int = 1000,
    events: int = 10,
    lengths: str = "constant",
    reads: float = 0.95,
    pick: str = "uniform",
    theta: float = 0.99,
    seed: int,
) -> Mixture:
    """Reads of whole streams of `events` events in the share `reads`, profile updates of the same users in the rest."""
    within("reads", reads, 0, 1)
    picked = Picked(pick, theta)
    looks = Looks(seed, users, events, picked=picked, lengths=lengths)
    updates = Updates(seed, users, events, picked=picked, lengths=lengths)
    return Mixture(seed, [(reads, looks), (1 - reads, updates)])


@workloads.register("mixed")
def mixture(
    *,
    register: float = 1.0,
    update: float = 4.0,
    transfer: float = 2.0,
    reserve: float = 1.0,
    read: float = 2.0,
    streams: int = 1000,
    articles: int = 10,
    pick: str = "uniform",
    theta: float = 0.99,
    seed: int,
) -> Mixture:
    """All kinds of operations by weight, over `streams` users, as many accounts and a few articles."""
    for name, weight in (("register", register), ("update", update), ("transfer", transfer), ("reserve", reserve)):
        within(name, weight, 0, 1e6)
    within("read", read, 0, 1e6)
    picked = Picked(pick, theta)
    parts: list[tuple[float, Ingredient]] = [
        (register, Registrations()),
        (update, Updates(seed, streams, 1, "streams", picked)),
        (reserve, Reservations(seed, articles, picked=picked)),
        (read, Looks(seed, streams, 1, "streams", picked)),
    ]
    if transfer:  # which takes two streams
        parts.append((transfer, Transfers(seed, streams, False, "streams", picked)))
    return Mixture(seed, parts)
