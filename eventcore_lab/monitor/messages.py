"""What somebody who is told of an alert reads: short plain lines, in which no name can mention, link or format anything."""

from __future__ import annotations

import socket
import unicodedata
from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from eventcore_lab.monitor.facts import Alert

TITLE_MAX, LINE_MAX, LINES_MAX, HOST_MAX = 150, 500, 20, 60
_SIGNS = {
    "@": "＠",
    "`": "'",
    "\\": "/",
    "<": "‹",
    ">": "›",
    "|": "¦",
    "[": "(",
    "]": ")",
    "*": "∗",
    "~": "˷",
    "#": "♯",
}
"""What means something to one of the services (mentions, code, links, tables, headings, bold) → what looks like it."""


class Message(NamedTuple):
    """One message. `kind`: info, success, warning or failure, as Apprise has them."""

    title: str
    body: str
    kind: str


def plain(text: str, chars_max: int = LINE_MAX) -> str:
    """`text` as one line without anything that a terminal, a chat or a page would act on. A comparison keeps its sign."""
    cut = text[: 4 * chars_max]
    kept = "".join(" " if unicodedata.category(c)[0] in "CZ" else c for c in unicodedata.normalize("NFC", cut))
    words = [_word(word) for word in kept.split()]
    line = " ".join(words)
    return line if len(line) <= chars_max else line[: chars_max - 1] + "…"


def _word(word: str) -> str:
    if word in ("<", ">"):
        return word  # alone it opens no mention and no tag
    for sign, instead in _SIGNS.items():
        word = word.replace(sign, instead)
    return word.replace("://", ": //").replace("www.", "www ").replace("__", "_")


def title_of(alert: Alert) -> str:
    what = "is no longer watched" if alert.state == "unwatched" else f"is {plain(alert.state, 20)}"
    return plain(f"EventCore performance alert: {plain(alert.name, 100)} {what} ({alert.severity})", TITLE_MAX)


def message_of(alert: Alert, note: str = "") -> Message:
    """One alert as a message of its own; `note` is a line before where it comes from."""
    lines = [plain(alert.text), _detail(alert), f"since {_time(alert.since)}", note, plain(alert.about)]
    lines.append(f"run {plain(alert.run_id, 60)}, {_from()}" if alert.run_id else _from())
    return Message(title_of(alert), "\n".join(line for line in lines if line), kind_of([alert]))


def summary_of(alerts: Sequence[Alert], note: str = "") -> Message:
    """Several alerts as one message, the newest LINES_MAX of them a line each."""
    lines = [line_of(alert) for alert in alerts[-LINES_MAX:]]
    left = len(alerts) - len(lines)
    lines = [f"and {left} earlier changes" if left else "", *lines, note, *_alike(alerts), _from()]
    title = f"EventCore performance alerts: {len(alerts)} changes"
    return Message(title, "\n".join(line for line in lines if line), kind_of(alerts))


def trial() -> Message:
    """What tells whether a service can be reached at all."""
    return Message("EventCore performance alerts: a test", f"this service is told of alerts\n{_from()}", "info")


def _alike(alerts: Sequence[Alert]) -> list[str]:
    """What all of them are about, if it is the same."""
    found = {(alert.about, alert.run_id) for alert in alerts}
    if len(found) != 1:
        return []
    [(about, run_id)] = found
    return [plain(about), f"run {plain(run_id, 60)}" if run_id else ""]


def _from() -> str:
    return f"host {plain(socket.gethostname(), HOST_MAX)}"


def line_of(alert: Alert) -> str:
    """One alert as one line, as a terminal or a log shows it."""
    detail = f" ({_detail(alert)})" if _detail(alert) else ""
    name, text = plain(alert.name, 100), plain(alert.text, 300)
    return f"{_time(alert.t)} {plain(alert.severity, 20)} {plain(alert.state, 20)}: {name}: {text}{detail}"


def _detail(alert: Alert) -> str:
    """The detail, if the text does not say it already."""
    return plain(alert.detail, 200) if alert.detail not in alert.text else ""


def kind_of(alerts: Sequence[Alert]) -> str:
    """The worst of them."""
    kinds = {"info": "info", "warning": "warning", "critical": "failure"}
    others = {"resolved": "success"}
    found = {kinds.get(a.severity, "warning") if a.state == "firing" else others.get(a.state, "info") for a in alerts}
    return next((kind for kind in ("failure", "warning", "info") if kind in found), "success")


def _time(t: float) -> str:
    """The time of day here, with the date: who reads it may do so tomorrow."""
    try:
        return datetime.fromtimestamp(t).astimezone().strftime("%Y-%m-%d %H:%M:%S %z")
    except (OverflowError, ValueError, OSError):
        return f"{t:.0f}"
