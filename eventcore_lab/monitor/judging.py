"""Targets held to the sliding window: as lab.targets compares, but for one value that has no interval; and percentiles
of a closed loop are not judged, for while it goes on nobody reads beside them that they are no latency.

A window is one look at what goes on: it tells that a limit is crossed now, where a verdict tells what the run has shown.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime

from eventcore_lab.lab.measures import PERCENTILES, UNITS
from eventcore_lab.lab.stats import samples_needed
from eventcore_lab.lab.targets import Targets, Threshold
from eventcore_lab.monitor.facts import Held, Watched
from eventcore_lab.monitor.window import OBSERVED, Basis

LOAD_MIN_S = 1.0
"""Of less load than this a rate says nothing."""
OBSERVABLE = ("events_per_second",)
"""Of an existing store, from its own tables and statistics."""
CLOSED_LOOP = "a closed loop shows service time; latency needs a rate"
UNTOLD = "a store that is only observed does not tell it"
"""The page gathers the targets with this reason in one line."""
RATES = ("commands_per_second", "events_per_second")


def held(
    targets: Targets,
    figures: dict[str, float],
    basis: Basis,
    watched: Watched | None,
    unseen_since: float | None = None,
) -> list[Held]:
    """One line per threshold, in the targets' order. `unseen_since`: when it could last be looked at (-inf: never), if that is
    too long ago for figures."""
    lines = []
    for threshold in targets.thresholds:
        value = figures[threshold.name]
        status, reason = _compared(threshold, value, basis, watched)
        if status == "inconclusive" and unseen_since is not None and reason != UNTOLD:
            reason = _unseen(unseen_since)
        lines.append(
            Held(
                name=threshold.name,
                limit=str(threshold),
                value=None if math.isnan(value) else value,
                unit=UNITS[threshold.name],
                status=status,
                reason=reason,
            )
        )
    return lines


def _compared(threshold: Threshold, value: float, basis: Basis, watched: Watched | None) -> tuple[str, str]:
    if (why := _undecided(threshold, value, basis, watched)) or watched is None:
        return "inconclusive", why
    if (value < threshold.limit) == threshold.is_max:
        return "pass", ""
    if threshold.name in RATES and not threshold.is_max and (why := _nobody_asked(basis, watched)):
        return "inconclusive", why
    return "fail", ""


def _undecided(threshold: Threshold, value: float, basis: Basis, watched: Watched | None) -> str:
    """Why the value cannot be compared, "" if it can."""
    p = PERCENTILES.get(threshold.name)
    if watched is None:
        return "nothing is watched"
    if p is not None and watched.is_closed_loop:
        return CLOSED_LOOP
    if math.isnan(value) and watched.status == OBSERVED and threshold.name not in OBSERVABLE:
        return UNTOLD
    if math.isnan(value):
        return "warming up" if basis.is_warming_up else "nothing yet"
    if watched.status in ("interrupted", "broken"):
        return f"the run was {watched.status}: {watched.row.get('status_reason') or ''}".rstrip(": ")
    if p is not None and basis.samples < samples_needed(p):
        return f"{basis.samples:,} samples; {threshold.name} needs at least {samples_needed(p):,}"
    if threshold.name in RATES and watched.status != OBSERVED and basis.length_s < LOAD_MIN_S:
        return f"{basis.length_s:.1f} s of load; a rate needs at least {LOAD_MIN_S:g} s"
    return ""


def _unseen(since: float) -> str:
    if math.isinf(since):
        return "not looked at yet"
    return f"not looked at since {datetime.fromtimestamp(since, UTC):%H:%M:%S} UTC"


def _nobody_asked(basis: Basis, watched: Watched) -> str:
    """Why a low rate may be all that was asked for, "" if it was not; see lab.targets."""
    if watched.status == OBSERVED:
        return "only observed: more may not have been asked for"
    if not watched.is_closed_loop and basis.is_all_answered:
        return "no more than this was offered; a closed loop shows how far the store goes"
    return ""
