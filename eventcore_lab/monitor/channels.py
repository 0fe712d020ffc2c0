"""How a message leaves: to a service that Apprise knows, whose address is a secret and is named by an environment variable.

Nothing here says an address: no message, no exception, no name of a thread; and what Apprise and the libraries below it would
log while they send is dropped, for it may hold the address or a token.
"""

from __future__ import annotations

import ctypes
import logging
import os
import re
import warnings
from collections.abc import Sequence
from contextvars import ContextVar
from threading import Event, Thread
from typing import Any

from eventcore_lab.monitor.messages import Message
from eventcore_lab.spec import UsageError

SERVICES_MAX = 20
STUCK_MAX = 2
"""Tries of one channel that may hang on at once after their time was over; with more it is not tried again before one ends."""
CONNECT_TIMEOUT_S = 4.0


class NotDelivered(Exception):
    """A try that failed; the text says in what way, and holds no address."""


class _GivenUp(SystemExit):
    """Raised in a thread whose time is over, wherever it is; ends it without a word."""


class Channel:
    """One service. `name` is the variable's, so that it can be shown; `gap_s`: what the service wants between messages."""

    def __init__(self, name: str, service: Any, timeout_s: float) -> None:
        self.name, self._service, self._timeout_s = name, service, timeout_s
        self.gap_s = float(service.request_rate_per_sec)
        service.socket_connect_timeout = min(service.socket_connect_timeout, CONNECT_TIMEOUT_S, timeout_s)
        service.socket_read_timeout = min(service.socket_read_timeout, timeout_s)
        self._stuck: list[Thread] = []

    def __repr__(self) -> str:
        return f"Channel({self.name})"

    def send(self, message: Message) -> None:
        """Hand the message over; raises NotDelivered, after `timeout_s` at the latest. A server that answers byte by byte is
        within every read time-out and never done: so it is tried in a thread of its own, which is told to end."""
        self._stuck = [thread for thread in self._stuck if thread.is_alive()]
        if len(self._stuck) >= STUCK_MAX:
            raise NotDelivered("not tried: earlier tries still hang")
        found: list[str] = []
        is_done = Event()
        thread = Thread(target=self._try, args=(message, found, is_done), name="alert try", daemon=True)
        thread.start()
        if not is_done.wait(self._timeout_s):
            self._stuck.append(thread)
            _give_up(thread)
            raise NotDelivered(f"no end after {self._timeout_s:g} s")
        if found:
            raise NotDelivered(found[0])

    def _try(self, message: Message, found: list[str], is_done: Event) -> None:
        heard = _Heard()
        _heard.set(heard)
        try:
            title, body, kind = message
            if not self._service.notify(
                body=body, title=title, notify_type=kind, body_format="text", overflow="truncate"
            ):
                found.append(heard.kind())
        except BaseException as error:
            found.append(type(error).__name__)
        finally:
            is_done.set()


def _give_up(thread: Thread) -> None:
    """End the thread as soon as it runs Python again, which between two bytes of a slow answer it does."""
    if thread.ident is not None and thread.is_alive():
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(_GivenUp))


class _Heard:
    """What was logged during one try, of which only the kind of failure is kept."""

    def __init__(self) -> None:
        self.status, self.is_unreachable = "", False

    def note(self, record: logging.LogRecord) -> None:
        try:
            text = record.getMessage()
        except Exception:
            return
        if found := re.search(r"error=(\d{3})\b", text):
            self.status = found.group(1)
        self.is_unreachable = self.is_unreachable or "onnection error" in text

    def kind(self) -> str:
        if self.status:
            return f"it answered {self.status}"
        return "it could not be reached, or gave no answer" if self.is_unreachable else "it was refused"


_heard: ContextVar[_Heard | None] = ContextVar("heard", default=None)


def _is_not_ours(record: logging.LogRecord) -> bool:
    """A filter: whether this was logged by somebody else than a try."""
    heard = _heard.get()
    if heard is not None:
        heard.note(record)
    return heard is None


def _hush() -> None:
    """Every logger there is but our own drops what a try logs: apprise's, and those of what it sends with."""
    names = [name for name in logging.Logger.manager.loggerDict if name.partition(".")[0] != "eventcore_lab"]
    for logger in (logging.getLogger(), *map(logging.getLogger, names)):
        logger.addFilter(_is_not_ours)


def channels_of(named: Sequence[str], timeout_s: float) -> list[Channel]:
    """The services of `env:NAME`, …: what each variable holds is one Apprise URL, or several with commas or blanks between.
    Raises UsageError."""
    return [channel for name in dict.fromkeys(named) for channel in _of_one(name, timeout_s)]


def _of_one(named: str, timeout_s: float) -> list[Channel]:
    scheme, _, variable = named.partition(":")
    if scheme != "env" or not re.fullmatch(r"[A-Za-z_]\w{0,99}", variable):
        raise UsageError(
            "notify: write env:NAME, the environment variable that holds the address; an address is a secret"
        )
    value = os.environ.get(variable, "").strip()
    if not value:
        raise UsageError(
            f"notify {named}: the variable is empty; export {variable}=slack://… (or any address Apprise knows)"
        )
    services = _services(value)
    if not services:
        raise UsageError(
            f"notify {named}: Apprise knows no such address; a webhook is json://host/path (jsons:// with TLS), Slack's is "
            "https://hooks.slack.com/services/…, mail is mailto://…"
        )
    if len(services) > SERVICES_MAX:
        raise UsageError(f"notify {named}: {len(services)} addresses; {SERVICES_MAX} is the most")
    names = [f"{named} {n}" for n in range(1, len(services) + 1)] if len(services) > 1 else [named]
    return [Channel(name, service, timeout_s) for name, service in zip(names, services, strict=True)]


def _services(value: str) -> list[Any]:
    """What Apprise makes of the text; nothing if it does not know all of it."""
    import apprise  # of use only to whoever wants to be told, and slow to load

    _hush()
    asset = apprise.AppriseAsset(
        app_id="eventcore_lab",
        app_desc="EventCore performance alerts",
        allow_templates=False,
        http_redirects=False,  # whom a server sends us on to was given no secret of ours
        image_path_mask=False,
        image_url_mask="",
        image_url_logo="",
        interpret_emojis=False,
        storage_mode="memory",
    )
    found, before = apprise.Apprise(asset=asset), _heard.set(_Heard())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it imports every service it has, some of them with what is deprecated
            return list(found.services) if found.add(value) and _all_are_services(found) else []
    except Exception:  # a service's own, for an address it cannot read
        return []
    finally:
        _heard.reset(before)
        _hush()  # the loggers that have come with the services


def _all_are_services(found: Any) -> bool:
    return all(callable(getattr(s, "notify", None)) and hasattr(s, "request_rate_per_sec") for s in found.services)
