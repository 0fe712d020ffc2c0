"""What a process must import to know the same names as the one that started it: modules in which others registered theirs."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable
from pathlib import Path

from msgspec import Struct

_OURS = "eventcore_lab."


class Imports(Struct, frozen=True):
    """Modules, and where this process looks for modules if it needs any."""

    modules: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()

    @classmethod
    def of(cls, modules: Iterable[str]) -> Imports:
        """Those of `modules` that do not come with this package, found as they are here."""
        foreign = sorted({module for module in modules if module and not module.startswith(_OURS)})
        return cls(tuple(foreign), tuple(str(Path(path).absolute()) for path in sys.path) if foreign else ())

    def make(self) -> None:
        """Import them here. Raises what importing raises."""
        sys.path += [path for path in self.paths if path not in sys.path]  # behind ours: nothing of ours is hidden
        for module in self.modules:
            importlib.import_module(module)
