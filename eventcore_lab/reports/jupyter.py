"""Importing what Jupyter's packages bring, without the second or two that one of them takes for something no notebook has.

nbformat imports jsonschema, which imports `rfc3987_syntax` where it is installed (JupyterLab brings it), and that compiles
the grammar of internationalised addresses: 1.7 s of processor time, for a format that the schema of notebooks does not use.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

_SLOW, _ITS_FUNCTION = "rfc3987_syntax", "is_valid_syntax"


@contextmanager
def imported_quickly() -> Iterator[None]:
    """What is imported in the block gets a stand-in for the slow package, which imports it when it is first called."""
    if _SLOW in sys.modules or find_spec(_SLOW) is None:
        yield
        return
    stand_in = ModuleType(_SLOW)
    setattr(stand_in, _ITS_FUNCTION, _when_called)
    sys.modules[_SLOW] = stand_in
    try:
        yield
    finally:
        if sys.modules.get(_SLOW) is stand_in:
            del sys.modules[_SLOW]


def _when_called(term: str, value: str) -> bool:
    return bool(getattr(import_module(_SLOW), _ITS_FUNCTION)(term, value))
