"""Alerts of the past: handed to the Lab through its spool, so that neither the monitor nor the Lab waits for the other."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence
from hashlib import blake2b
from threading import Lock
from uuid import uuid4

import duckdb
import msgspec

from eventcore_lab.lab import alerts as lines
from eventcore_lab.lab.database import Lab, LabError
from eventcore_lab.monitor.facts import Alert

KEPT_MAX = 1000
"""Lines kept while the file is held by somebody else, and alerts remembered until it is known what became of them."""
TEXT_MAX = 2000
TAKE_TIMEOUT_S = 0.5


class History:
    """Keeps changes of alerts, all but pending ones. Safe to be called from several threads; never raises for what the disk or
    the Lab does: what could not be written is tried again with the next `add`, and the oldest is given up beyond KEPT_MAX."""

    def __init__(self, lab: Lab) -> None:
        self._lab, self._life, self._lock = lab, uuid4().hex, Lock()
        self._unwritten: deque[lines.AlertLine] = deque(maxlen=KEPT_MAX)
        self._outcomes: OrderedDict[str, dict[str, str]] = OrderedDict()
        self._has_news = True  # of monitors before

    def add(self, alerts: Sequence[Alert] = ()) -> bool:
        """Keep these, and what could not be written before; whether all is written now."""
        with self._lock:
            self._unwritten.extend(self._line(alert) for alert in alerts if alert.state != "pending")
            return self._written()

    def delivered(self, alert: Alert, channel: str, outcome: str) -> None:
        """Keep what became of telling it through one channel; made to be `Delivery`'s `results`."""
        with self._lock:
            alert_id = self._id(alert)
            known = self._outcomes.setdefault(alert_id, {})
            known[channel] = outcome
            if len(self._outcomes) > KEPT_MAX:
                self._outcomes.popitem(last=False)
            told = "; ".join(f"{name}: {what}" for name, what in known.items())
            self._unwritten.append(msgspec.structs.replace(self._line(alert), delivered=told))
            self._written()

    def take_in(self) -> int:
        """Have the Lab take in what is in the spool, if there is anything new and the Lab is free just now; gives the number of
        new changes. It blocks for as long as DuckDB takes, so call it in a thread, once a minute or so."""
        self.add()
        if not self._has_news:
            return 0
        self._has_news = False  # before it is looked: what is written meanwhile is for the next time
        try:
            return Lab(self._lab.path, busy_timeout_s=TAKE_TIMEOUT_S).take_alerts()
        except (LabError, duckdb.Error, OSError):
            self._has_news = True
            return 0

    def close(self) -> bool:
        """Write what is left, waiting a second for it; whether all is written."""
        with self._lock:
            return self._written(patient=True)

    def _written(self, *, patient: bool = False) -> bool:
        if self._unwritten:
            try:
                if lines.append(self._lab.spool, list(self._unwritten), patient=patient):
                    self._unwritten.clear()
                    self._has_news = True
            except OSError:
                return False
        return not self._unwritten

    def _id(self, alert: Alert) -> str:
        """The same for the same alert of this history, and for no other."""
        whole = "\0".join((self._life, repr(alert.t), alert.run_id, alert.name, alert.state))
        return blake2b(whole.encode("utf-8", "replace"), digest_size=16).hexdigest()

    def _line(self, alert: Alert) -> lines.AlertLine:
        return lines.AlertLine(
            alert_id=self._id(alert),
            alerted_at=alert.t,
            run_id=_text(alert.run_id),
            name=_text(alert.name),
            severity=_text(alert.severity),
            state=_text(alert.state),
            value=alert.value,
            limit_text=_text(alert.limit),
            text=_text(alert.text),
            detail=_text(alert.detail),
        )


def _text(text: str) -> str:
    """What can be written down, not longer than TEXT_MAX."""
    return text[:TEXT_MAX].encode("utf-8", "replace").decode()
