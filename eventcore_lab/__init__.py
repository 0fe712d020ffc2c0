"""eventcore_lab: how fast is an event store, how far does it go, what holds it back, and was it still correct?

    from eventcore_lab import Experiment, run
    run(Experiment(store="memory", pacer="constant:rate=500", duration_s=2))

Names are imported when first used: a load-generating process needs a tenth of what an analysis does.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eventcore_lab.events import NewEvent, StoredEvent, StreamWrite, VersionConflict
    from eventcore_lab.experiment import Experiment, with_option
    from eventcore_lab.lab import claims, plots, sentences, steadiness, summary, views, visibility
    from eventcore_lab.lab.database import Lab
    from eventcore_lab.lab.measures import Run
    from eventcore_lab.lab.targets import Targets, Verdict, judge
    from eventcore_lab.soak import soaked
    from eventcore_lab.spec import UsageError
    from eventcore_lab.stores import PoolSettings, open_store
    from eventcore_lab.workbench import best, conclude, rerun, run, run_each, vary

_HOMES = {
    "Experiment": "experiment",
    "Lab": "lab.database",
    "NewEvent": "events",
    "PoolSettings": "stores",
    "Run": "lab.measures",
    "StoredEvent": "events",
    "StreamWrite": "events",
    "Targets": "lab.targets",
    "UsageError": "spec",
    "Verdict": "lab.targets",
    "VersionConflict": "events",
    "best": "workbench",
    "claims": "lab",
    "conclude": "workbench",
    "dashboard": "monitor.beside",
    "judge": "lab.targets",
    "open_store": "stores",
    "plots": "lab",
    "rerun": "workbench",
    "run": "workbench",
    "run_each": "workbench",
    "sentences": "lab",
    "soaked": "soak",
    "steadiness": "lab",
    "summary": "lab",
    "vary": "workbench",
    "views": "lab",
    "visibility": "lab",
    "with_option": "experiment",
}

__all__ = [
    "Experiment",
    "Lab",
    "NewEvent",
    "PoolSettings",
    "Run",
    "StoredEvent",
    "StreamWrite",
    "Targets",
    "UsageError",
    "Verdict",
    "VersionConflict",
    "best",
    "claims",
    "conclude",
    "dashboard",
    "judge",
    "open_store",
    "plots",
    "rerun",
    "run",
    "run_each",
    "sentences",
    "soaked",
    "steadiness",
    "summary",
    "vary",
    "views",
    "visibility",
    "with_option",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'eventcore_lab' has no attribute {name!r}")
    if _HOMES[name] == "lab":
        return import_module(f"eventcore_lab.lab.{name}")
    return getattr(import_module(f"eventcore_lab.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
