"""What the page is sent: server-sent events whose data is JSON. `hello` is everything, `second` what is new; names are as they
are, and the page shows them as text only. What is not a finite number is null. `unseen_s`: how old the newest look is, where
that is too old for figures; else null.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Raw

from eventcore_lab.lab.measures import UNITS
from eventcore_lab.lab.targets import Targets
from eventcore_lab.monitor.facts import EDGES_MS, Alert, Mark, Second
from eventcore_lab.monitor.health import Health
from eventcore_lab.monitor.state import State

VERSION = 1
_PASSWORDS = (
    re.compile(rb"(://[^\s:/@\"'<>\\]*:)(?:[^\s/\"'<>\\]|\\.)+(?=@)"),  # what is escaped is part of it, too
    re.compile(rb"(\bpassword\s*=\s*)[^\s&,;)\"'<>\\]+", re.IGNORECASE),
)
_encode = msgspec.json.Encoder().encode


def encoded(second: Second) -> Raw:
    """A second as JSON: made once, for all who are told now and for all who come within the history."""
    return Raw(_encode(second))


def hello(now: float, state: State, seconds: Sequence[Raw], alerts: Sequence[Alert], health: Health) -> bytes:
    """The event `hello`: what a page needs that knows nothing yet."""
    content = {
        "version": VERSION,
        "now": now,
        "window_s": state.window_s,
        "history_s": state.history.maxlen,
        "watched": state.watched,
        "targets": _targets(state.targets),
        "edges_ms": EDGES_MS,
        "seconds": list(seconds),
        "marks": list(state.marks),
        "alerts": list(alerts),
        "figures": _finite(state.figures),
        "unseen_s": _unseen_s(now, state),
        "held": state.held,
        "health": _health(health),
    }
    return b"event: hello\ndata: " + _line(content) + b"\n\n"


def second(
    now: float,
    state: State,
    seconds: Sequence[Raw],
    marks: Sequence[Mark],
    alerts: Sequence[Alert],
    health: Health,
) -> bytes:
    """The event `second`: what one beat brought."""
    content = {
        "now": now,
        "seconds": list(seconds),
        "watched": state.watched,
        "figures": _finite(state.figures),
        "unseen_s": _unseen_s(now, state),
        "held": state.held,
        "marks": list(marks),
        "alerts": list(alerts),
        "health": _health(health),
    }
    return b"event: second\nid: " + str(int(now)).encode() + b"\ndata: " + _line(content) + b"\n\n"


def told(health: Health) -> bytes:
    """What /health answers."""
    return _line({"status": health.status, "reasons": health.reasons, "checks": health.checks})


def _line(content: Mapping[str, Any]) -> bytes:
    """JSON has no line breaks outside of strings, and escapes them within: one line is one `data:` field. Stores keep their
    DSNs to themselves; should the text of somebody else's error hold one, its password goes no further than here."""
    return blanked(_encode(content))


def blanked(said: bytes) -> bytes:
    """`said` with *** for each password of a URL or a DSN."""
    if b"://" in said or b"assword" in said.lower():
        for pattern in _PASSWORDS:
            said = pattern.sub(rb"\1***", said)
    return said


def _finite(figures: Mapping[str, float]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in figures.items()}


def _unseen_s(now: float, state: State) -> float | None:
    age_s = state.fresh_s(now)
    return age_s if state.is_stale(now) and math.isfinite(age_s) else None


def _health(health: Health) -> dict[str, Any]:
    return {"status": health.status, "reasons": health.reasons}


def _targets(targets: Targets | None) -> dict[str, Any] | None:
    if targets is None:
        return None
    limits = [{"name": t.name, "limit": t.limit, "is_max": t.is_max, "unit": UNITS[t.name]} for t in targets.thresholds]
    return {"name": targets.name, "thresholds": limits}
