"""Which stores can be made here: some need an extra, and a comparison goes on without them, saying so."""

from __future__ import annotations

from collections.abc import Sequence

from eventcore_lab.spec import Spec, parse
from eventcore_lab.stores.protocol import stores


def installed(specs: Sequence[str]) -> list[str]:
    """`specs` without those of a store that is known here and cannot be used (an extra is missing), each of which is told in a
    line. UsageError for a store that nobody knows, or an option that it does not have."""
    kept = []
    for text in specs:
        if why := _unusable(parse(text, "store")):
            print(f"left out: {text} ({why})", flush=True)
        else:
            stores.make(text)
            kept.append(text)
    return kept


def _unusable(spec: Spec | None) -> str:
    """Why what is named in `spec`, or within it, cannot be used; "" if it can, or is not known at all."""
    described = stores.describe()
    while spec is not None:
        _, what = described.get(spec.name, ("", ""))
        if what.startswith("cannot be used: "):
            return what.removeprefix("cannot be used: ")
        spec = spec.inner
    return ""
