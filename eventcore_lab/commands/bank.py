"""A bank: accounts, each a stream, and transfers that take from one and give to another in one append.

Amounts are whole cents. Each event says in "amount" by how much its account changed, so that the sum over everything
stored is what was ever paid in, whatever transfers came between.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import msgspec
from msgspec import Struct

from eventcore_lab.commands.command import CommandRejected, Fold, Said
from eventcore_lab.events import NewEvent, StreamId

ACCOUNT_OPENED, MONEY_WITHDRAWN, MONEY_DEPOSITED = "AccountOpened", "MoneyWithdrawn", "MoneyDeposited"
TRANSFERS_SUSPENDED, TRANSFERS_RESUMED = "TransfersSuspended", "TransfersResumed"


class _Amount(Struct):
    amount: int


_amount = msgspec.json.Decoder(_Amount).decode
_MOVES = frozenset((ACCOUNT_OPENED, MONEY_WITHDRAWN, MONEY_DEPOSITED))


def _balance(balance: int | None, event: Said) -> int | None:
    return (balance or 0) + _amount(event.data).amount if event.type in _MOVES else balance


def _is_suspended(is_suspended: bool, event: Said) -> bool:
    return {TRANSFERS_SUSPENDED: True, TRANSFERS_RESUMED: False}.get(event.type, is_suspended)


ACCOUNT = Fold("account", None, _balance, int | None)
"""The balance in cents; None for an account that was never opened."""
TRANSFERS = Fold("transfers", False, _is_suspended, bool)
"""Whether transfers are suspended."""


def account_stream(account: str) -> StreamId:
    return StreamId(f"account-{account}")


def moved(event_type: str, cents: int) -> NewEvent:
    """An event that changes its account by so much."""
    return NewEvent(event_type, b'{"amount":%d}' % cents)


class OpenAccount(Struct, frozen=True):
    """Opens an account with an amount paid in; rejected if it is open already."""

    account: str
    cents: int

    @property
    def streams(self) -> Mapping[StreamId, Fold]:
        return {account_stream(self.account): ACCOUNT}

    def decide(self, states: Mapping[StreamId, int | None]) -> Sequence[tuple[StreamId, NewEvent]]:
        [(stream, balance)] = states.items()
        if balance is not None:
            raise CommandRejected(f"account {self.account} is open already")
        return [(stream, moved(ACCOUNT_OPENED, self.cents))]


class Transfer(Struct, frozen=True):
    """Moves money from one account to another; rejected if either is not open or the payer has not enough.

    With `policy` the stream of that name takes part too and is only read: rejected while transfers are suspended there.
    """

    payer: str
    payee: str
    cents: int
    policy: str = ""

    @property
    def streams(self) -> Mapping[StreamId, Fold]:
        accounts = {account_stream(self.payer): ACCOUNT, account_stream(self.payee): ACCOUNT}
        return {**accounts, StreamId(self.policy): TRANSFERS} if self.policy else accounts

    @property
    def only_reads(self) -> Collection[StreamId]:
        return (StreamId(self.policy),) if self.policy else ()

    def decide(self, states: Mapping[StreamId, int | None]) -> Sequence[tuple[StreamId, NewEvent]]:
        if self.payer == self.payee or self.cents <= 0:
            raise CommandRejected("a transfer moves more than nothing, between two accounts")
        if self.policy and states[StreamId(self.policy)]:
            raise CommandRejected("transfers are suspended")
        payer, payee = account_stream(self.payer), account_stream(self.payee)
        balance = states[payer]
        if balance is None or states[payee] is None:
            raise CommandRejected(f"account {self.payer if balance is None else self.payee} is not open")
        if balance < self.cents:
            raise CommandRejected(f"account {self.payer} has {balance} cents, less than {self.cents}")
        return [(payer, moved(MONEY_WITHDRAWN, -self.cents)), (payee, moved(MONEY_DEPOSITED, self.cents))]
