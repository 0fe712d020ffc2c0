"""What an invariant is: a claim about every run, and how to look for what contradicts it."""

from __future__ import annotations

from msgspec import Struct


class Invariant(Struct, frozen=True):
    """`id` is the number of the invariant (V1 to V18); several may share one. `needs` names the tables of evidence that
    both queries read. `population` counts what there is to look at; `violations` gives one row of text for each thing
    that is wrong."""

    id: str
    name: str
    claim: str
    needs: tuple[str, ...]
    population: str
    violations: str
