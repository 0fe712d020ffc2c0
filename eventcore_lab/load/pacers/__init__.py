"""When operations are due. Importing this registers every pacer."""

from eventcore_lab.load.pacers import shapes as shapes
from eventcore_lab.load.pacers import trace as trace
from eventcore_lab.load.pacers.steady import (
    OPERATIONS_MAX,
    Constant,
    HasNotes,
    Pacer,
    Poisson,
    Saturate,
    Schedule,
    Thinks,
    pacers,
)

__all__ = [
    "OPERATIONS_MAX",
    "Constant",
    "HasNotes",
    "Pacer",
    "Poisson",
    "Saturate",
    "Schedule",
    "Thinks",
    "pacers",
]
