"""Whether what is shown can be believed: the monitor looks, its source can be read, whoever is watched is alive.

`down` (503) is what makes the page's figures worthless: nobody looked, nothing could be read, the store or the load does not
answer, the probes have gone quiet. `degraded` (200) is what a person should know and can go on with.
"""

from __future__ import annotations

import math
from typing import Protocol

from msgspec import Struct

from eventcore_lab.monitor.facts import Gauge, Watched

LOOK_FRESH_S = 5.0
"""A look is due once a second; one that is older was missed five times."""
PROBES_FRESH_S = 10.0
"""Probes look every quarter of a second, of long runs less often: see `probes_fresh_s`."""
STALL_S = 10.0
LOOKS_PER_RUN = 20_000
"""Probes of very long runs look about so often in the whole run, whatever it takes."""
IDLE = "nothing is under way"


class Health(Struct, frozen=True):
    """`status`: ok, degraded or down; `reasons`: a line each, of what is well when it is ok. `checks`: what was asked, and
    whether it is so; None where it does not apply now."""

    status: str
    reasons: tuple[str, ...]
    checks: dict[str, bool | None] = {}

    @property
    def code(self) -> int:
        return 503 if self.status == "down" else 200


class Seen(Protocol):
    """What of State is asked here."""

    @property
    def watched(self) -> Watched | None: ...
    @property
    def is_loaded(self) -> bool: ...
    @property
    def gauges(self) -> dict[str, Gauge]: ...
    @property
    def error(self) -> str: ...
    @property
    def waiting(self) -> int: ...
    @property
    def oldest_s(self) -> float: ...
    @property
    def catching_up(self) -> bool: ...
    @property
    def is_cut(self) -> bool: ...


class Watch(Struct, frozen=True, kw_only=True):
    """What the monitor knows of itself: `look_age_s` since a look came back (inf: none has), `since_ended_s` since an operation
    ended, or since the load was first seen; whether the run's folder is held by a live process (None: no run, or not known);
    and what went wrong beside the looking, a line each."""

    look_age_s: float
    since_ended_s: float = 0.0
    is_held: bool | None = None
    troubles: tuple[str, ...] = ()


def probes_fresh_s(watched: Watched) -> float:
    """How old the newest gauge of a load may be."""
    return PROBES_FRESH_S + 3 * (watched.warmup_s + watched.duration_s) / LOOKS_PER_RUN


def health(seen: Seen, watch: Watch, now: float) -> Health:
    """The state of affairs at the Unix time `now`."""
    watched = seen.watched
    checks: dict[str, bool | None] = {
        "monitor looks": watch.look_age_s <= LOOK_FRESH_S,
        "source readable": not seen.error,
        "store reachable": None,
        "load alive": None,
        "probes fresh": None,
    }
    down = []
    if not checks["monitor looks"]:
        age = "has not looked yet" if math.isinf(watch.look_age_s) else f"last looked {watch.look_age_s:.0f} s ago"
        down.append(f"the monitor {age}")
    if seen.error:
        down.append(f"it cannot be looked at: {seen.error}")
    if watched is not None and watched.status == "observed":
        checks["store reachable"] = not seen.error
    elif watched is not None and seen.is_loaded:
        found = _of_the_load(seen, watched, watch, now)
        checks |= {name: not reason for name, reason in found.items()}
        down += [reason for reason in found.values() if reason]
    degraded = list(watch.troubles)
    if seen.catching_up:
        degraded.append("catching up with what was recorded before: what is shown is older than now, and alerts wait")
    if seen.is_cut:
        degraded.append("not every operation of the window is kept: it is shorter than asked for")
    if down:
        return Health("down", tuple(down + degraded), checks)
    return Health("degraded" if degraded else "ok", tuple(degraded) or (_well(watched),), checks)


def _of_the_load(seen: Seen, watched: Watched, watch: Watch, now: float) -> dict[str, str]:
    """Check → what is wrong, "" if nothing."""
    newest = max((gauge.t for gauge in seen.gauges.values()), default=-math.inf)
    quiet_s = min(now - newest, now - (watched.began or now))  # before its first gauge, since the load began
    is_stalled = seen.waiting > 0 and watch.since_ended_s > STALL_S
    return {
        "load alive": "the processes of the run are gone" if watch.is_held is False else "",
        "store reachable": (
            f"nothing has ended for {watch.since_ended_s:.0f} s while {seen.waiting} operations wait, the oldest for "
            f"{seen.oldest_s:.0f} s: the store, or the load, stands still"
            if is_stalled
            else ""
        ),
        "probes fresh": f"the probes have been quiet for {quiet_s:.0f} s" if quiet_s > probes_fresh_s(watched) else "",
    }


def _well(watched: Watched | None) -> str:
    if watched is None:
        return f"idle: {IDLE}"
    if watched.status == "observed":
        return f"{watched.store} answers"
    if watched.status in ("preparing", "loading", "ending"):
        return f"a run is {watched.status}"
    return f"idle: {IDLE}; the last run is {watched.status}"
