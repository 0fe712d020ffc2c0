"""Who may ask: which names this server answers to, the token, and what other sites' pages must not fetch.

On loopback alone everybody on this machine may look. At any other address a token is needed, which is compared in constant
time and appears in no answer, log or cookie: the cookie holds what only someone with the token could have made.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
import re
from collections.abc import Mapping, Sequence

from msgspec import Struct

from eventcore_lab.spec import UsageError, shown

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
TOKEN_CHARS_MIN = 16


class Access(Struct, frozen=True):
    """`names`: hosts that a request may name, beside loopback. `token`: "" where none is needed."""

    names: frozenset[str] = frozenset()
    token: str = ""

    @classmethod
    def of(cls, host: str, token: str, allowed: Sequence[str] = ()) -> Access:
        """UsageError for an address beyond loopback without a token, and for a token that is not given by name or too short
        to resist guessing. `token` is `env:NAME` or empty."""
        secret = _secret(token)
        if not is_loopback(host) and not secret:
            raise UsageError(
                f"--host {shown(host)}: beyond this machine the monitor needs a token: "
                "export MONITOR_TOKEN=… (16 characters or more) and say --token env:MONITOR_TOKEN"
            )
        return cls(frozenset({_bare(host), *map(_named, allowed)}) - {"", "0.0.0.0", "::"}, secret)

    def __repr__(self) -> str:
        return f"Access({sorted(self.names)}, {'with' if self.token else 'without'} a token)"

    def answers_to(self, host_header: str) -> bool:
        """Whether a request that calls this server so is meant for it: else a page of another site, whose name was made to
        point here, could read what only this machine should (DNS rebinding)."""
        name = _bare(host_header)
        return name in LOOPBACK_NAMES or name in self.names

    def admits(self, headers: Mapping[str, str], cookie: str) -> bool:
        """Whether the request shows the token, as a bearer or by the cookie."""
        if not self.token:
            return True
        kind, _, said = headers.get("Authorization", "").partition(" ")
        is_bearer = kind.lower() == "bearer" and self.is_token(said.strip())
        return is_bearer or hmac.compare_digest(_bytes(cookie), _bytes(self.cookie))

    def is_token(self, said: str) -> bool:
        return bool(self.token) and hmac.compare_digest(_bytes(said), _bytes(self.token))

    @property
    def cookie(self) -> str:
        """What the browser keeps; the same after a restart with the same token, so that a dashboard reconnects."""
        return hmac.new(_bytes(self.token), b"eventcore_lab monitor", hashlib.sha256).hexdigest()


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(_bare(host)).is_loopback
    except ValueError:
        return False


def is_foreign(headers: Mapping[str, str], is_stream: bool) -> bool:
    """Whether a page of another site wants to have this (Fetch Metadata): nobody but our own page listens to the stream, and
    of what else there is a link may be followed but nothing embedded."""
    site = headers.get("Sec-Fetch-Site", "none").lower()
    is_followed = headers.get("Sec-Fetch-Mode", "").lower() == "navigate" and not is_stream
    return site not in ("none", "same-origin") and not is_followed


def _secret(token: str) -> str:
    if not token:
        return ""
    kind, colon, name = token.partition(":")
    if kind != "env" or not colon or not name:
        raise UsageError("--token: name the variable that holds it: export MONITOR_TOKEN=…; --token env:MONITOR_TOKEN")
    secret = os.environ.get(name, "")
    if len(secret) < TOKEN_CHARS_MIN:
        wrong = f"has {len(secret)} characters; {TOKEN_CHARS_MIN} are the least" if secret else "is not set or empty"
        raise UsageError(f"--token: the variable {shown(name)} {wrong}")
    if not secret.isascii() or not secret.isprintable() or " " in secret:
        raise UsageError(f"--token: the variable {shown(name)} must hold letters, digits and signs of ASCII, no spaces")
    return secret


def _named(allowed: str) -> str:
    name = _bare(allowed)
    if not re.fullmatch(r"[a-z0-9_.:-]{1,253}", name):
        raise UsageError(
            f"--allowed-host {shown(allowed)}: give the name alone, as a browser sends it, as in lab.example.org"
        )
    return name


def _bare(host: str) -> str:
    """`host` without port and brackets, in lower case; "" for what cannot be one."""
    host = host.strip().lower()
    if host.startswith("["):
        name, closing, port = host[1:].partition("]")
        return name if closing and (not port or (port.startswith(":") and port[1:].isdecimal())) else ""
    if host.count(":") > 1:  # an IPv6 address as an option has it
        return host
    name, colon, port = host.partition(":")
    return name.removesuffix(".") if not colon or port.isdecimal() else ""


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
