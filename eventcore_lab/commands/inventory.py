"""An inventory: one stream per article, which everybody who reserves some of it contends for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
from msgspec import Struct

from eventcore_lab.commands.command import CommandRejected, Fold, Said
from eventcore_lab.events import NewEvent, StreamId

STOCK_RECEIVED, STOCK_RESERVED = "StockReceived", "StockReserved"


class _Quantity(Struct):
    quantity: int


_quantity = msgspec.json.Decoder(_Quantity).decode


def _available(available: int, event: Said) -> int:
    if event.type == STOCK_RECEIVED:
        return available + _quantity(event.data).quantity
    if event.type == STOCK_RESERVED:
        return available - _quantity(event.data).quantity
    return available


STOCK = Fold("stock", 0, _available, int)
"""How many pieces are there and not reserved."""


def stock_stream(article: str) -> StreamId:
    return StreamId(f"stock-{article}")


def received(quantity: int) -> NewEvent:
    return NewEvent(STOCK_RECEIVED, b'{"quantity":%d}' % quantity)


class ReserveStock(Struct, frozen=True):
    """Reserves pieces of an article for an order; rejected when fewer are left, and for less than one."""

    article: str
    order: str
    quantity: int = 1

    @property
    def streams(self) -> Mapping[StreamId, Fold]:
        return {stock_stream(self.article): STOCK}

    def decide(self, states: Mapping[StreamId, int]) -> Sequence[tuple[StreamId, NewEvent]]:
        [(stream, available)] = states.items()
        if self.quantity < 1:
            raise CommandRejected("a reservation is of one piece at least")
        if available < self.quantity:
            raise CommandRejected(f"{available} pieces of {self.article} are left, fewer than {self.quantity}")
        data = msgspec.json.encode({"order": self.order, "quantity": self.quantity})
        return [(stream, NewEvent(STOCK_RESERVED, data))]
