"""The web server of a monitor: the page, its stream, /metrics and /health. It only answers GET, to names that are its own, and
everything about it is bounded: connections, streams, sizes, how long anybody may take.

One encoding of a beat goes to every stream. A client that has not taken the last one yet is left out, and gets everything anew
when it has; one that takes nothing for long is let go, and its browser comes again.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any, ClassVar

from tornado.http1connection import HTTP1ServerConnection
from tornado.httpserver import HTTPServer
from tornado.iostream import IOStream, StreamClosedError
from tornado.web import Application, HTTPError, RequestHandler

from eventcore_lab.clock import NS_PER_S, now_ns
from eventcore_lab.monitor import wire
from eventcore_lab.monitor.access import Access, is_foreign
from eventcore_lab.monitor.metrics import kind_of
from eventcore_lab.monitor.watching import Watching
from eventcore_lab.spec import UsageError, shown

CONNECTIONS_MAX, STREAMS_MAX = 200, 100
HEADER_BYTES_MAX, BODY_BYTES_MAX, SEND_BUFFER_BYTES = 16 * 1024, 1024, 128 * 1024
IDLE_TIMEOUT_S, BODY_TIMEOUT_S, STALL_TIMEOUT_S = 30.0, 5.0, 30.0
RETRY_MS = 1000
FRAMED_BY = "frame-ancestors 'self' http://127.0.0.1:* http://localhost:*"
"""A notebook on this machine may show the page in an IFrame, no other site."""
log = logging.getLogger("eventcore_lab.monitor")

Page = Callable[[], tuple[str, str]]
"""Gives the page and its Content-Security-Policy."""


class Server:
    """Serves what `watching` knows to those whom `access` admits. Made in a running loop; `listen`, then `close`."""

    def __init__(self, watching: Watching, access: Access, page: Page | None = None) -> None:
        self.watching, self.access, self.page = watching, access, page or _own_page
        self.port = 0
        self.streams: set[_Events] = set()
        routes: list[Any] = [
            (path, handler, {"server": self})
            for path, handler in (
                ("/", _Root),
                ("/dashboard", _Dashboard),
                ("/events", _Events),
                ("/metrics", _Metrics),
                ("/health", _Health),
            )
        ]
        application = Application(
            routes, default_handler_class=_Missing, default_handler_args={"server": self}, log_function=_logged
        )
        self._http = _Bounded(
            application,
            max_header_size=HEADER_BYTES_MAX,
            max_body_size=BODY_BYTES_MAX,
            max_buffer_size=4 * HEADER_BYTES_MAX,
            idle_connection_timeout=IDLE_TIMEOUT_S,
            body_timeout=BODY_TIMEOUT_S,
        )

    def listen(self, host: str, port: int, tries: int = 1) -> int:
        """Take `port` of `host`, or one of the next, `tries` in all; 0 is any that is free. Gives the port that was had;
        UsageError if there is none."""
        for n in range(tries):
            try:
                sockets = _bound(host.strip("[]"), port + n)
            except (OSError, OverflowError, UnicodeError) as error:
                if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
                    continue
                raise UsageError(f"cannot listen at {shown(host)}, port {port + n}: {_why(error)}") from None
            self._http.add_sockets(sockets)
            self.port = sockets[0].getsockname()[1]
            return self.port
        which = f"port {port} is" if tries == 1 else f"ports {port} to {port + tries - 1} are"
        raise UsageError(f"{which} in use by somebody else; choose another with --port")

    async def close(self) -> None:
        """Nobody new; those who listen are let go."""
        self._http.stop()
        for stream in tuple(self.streams):
            stream.end()
        await self._http.close_all_connections()


class _Bounded(HTTPServer):
    """At most CONNECTIONS_MAX connections; whoever comes then is hung up on. Whoever takes nothing that is sent is, too."""

    def handle_stream(self, stream: IOStream, address: Any) -> None:
        if len(self._connections) >= CONNECTIONS_MAX:
            stream.close()
            return
        stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            stream.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(1000 * STALL_TIMEOUT_S))
        super().handle_stream(stream, address)

    def on_close(self, server_conn: object) -> None:
        assert isinstance(server_conn, HTTP1ServerConnection)
        super().on_close(server_conn)


class _Answer(RequestHandler):
    """What is the same for every answer: who is let in, which headers, and errors in a line of text."""

    IS_STREAM: ClassVar[bool] = False
    TAKES_TOKEN: ClassVar[bool] = False
    """Whether the token may come in the address, from where it moves into a cookie at once."""

    def initialize(self, server: Server) -> None:
        self.server = server

    def set_default_headers(self) -> None:
        self.clear_header("Server")
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        self.set_header("Cache-Control", "no-store")
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Referrer-Policy", "no-referrer")
        self.set_header("Cross-Origin-Resource-Policy", "same-origin")
        self.set_header("Content-Security-Policy", f"default-src 'none'; {FRAMED_BY}")

    def prepare(self) -> None:
        headers, access = self.request.headers, self.server.access
        if self.request.method not in ("GET", "HEAD"):
            raise HTTPError(405)
        if not access.answers_to(headers.get("Host", "")):
            raise _Refused(421, "this is not the server of that name; allow it with --allowed-host NAME")
        if is_foreign(headers, self.IS_STREAM):
            raise _Refused(403, "not for the pages of other sites")
        if self.TAKES_TOKEN and access.token and (said := self.get_query_argument("token", "")):
            if not access.is_token(said):
                raise _Refused(401, "the token is wrong")
            self._admit()
        elif not access.admits(headers, self.get_cookie(self._cookie_name, "") or ""):
            raise _Refused(401, "a token is needed: Authorization: Bearer …, or /dashboard?token=… once in a browser")

    @property
    def _cookie_name(self) -> str:
        return f"eventcore_lab_{self.server.port}"  # cookies do not know ports, and two monitors may run

    def _admit(self) -> None:
        """From the address into a cookie, so that neither history nor screen shows it any longer."""
        self.set_cookie(self._cookie_name, self.server.access.cookie, httponly=True, samesite="Strict")
        self.set_status(303)
        self.set_header("Location", "dashboard")
        self.finish()

    def compute_etag(self) -> None:
        return None

    def write_error(self, status_code: int, **facts: Any) -> None:
        error = facts.get("exc_info", (None, None))[1]
        text = error.text if isinstance(error, _Refused) else self._reason
        if status_code == 405:
            self.set_header("Allow", "GET, HEAD")
        if status_code == 503:
            self.set_header("Retry-After", "10")
        if status_code == 401:
            self.set_header("WWW-Authenticate", "Bearer")
        self.finish(f"{status_code} {text}\n")

    def log_exception(self, typ: Any, value: Any, tb: Any) -> None:
        """Without the request, whose address may hold a token."""
        if not isinstance(value, HTTPError):
            log.error("an answer failed", exc_info=(typ, value, tb))


class _Refused(HTTPError):
    def __init__(self, status: int, text: str) -> None:
        super().__init__(status)
        self.text = text


class _Missing(_Answer):
    def get(self) -> None:
        raise HTTPError(404)

    head = get


class _Root(_Answer):
    TAKES_TOKEN = True

    def get(self) -> None:
        self.redirect("dashboard")

    head = get


class _Dashboard(_Answer):
    TAKES_TOKEN = True

    def get(self) -> None:
        html, policy = self.server.page()
        self.set_header("Content-Type", "text/html; charset=utf-8")
        said = policy.rstrip("; ")
        self.set_header("Content-Security-Policy", said if "frame-ancestors" in said else f"{said}; {FRAMED_BY}")
        self.finish(html)

    head = get


class _Metrics(_Answer):
    def get(self) -> None:
        kind = kind_of(self.request.headers.get("Accept", ""))
        self.set_header("Content-Type", kind)
        self.set_header("Vary", "Accept")
        self.finish(self.server.watching.metrics(kind))

    head = get


class _Health(_Answer):
    def get(self) -> None:
        found = self.server.watching.health()
        self.set_status(found.code)
        self.set_header("Content-Type", "application/json")
        self.finish(wire.told(found))

    head = get


class _Events(_Answer):
    """One stream. What it has been sent and has not taken is at most one chunk."""

    IS_STREAM = True

    def initialize(self, server: Server) -> None:
        super().initialize(server)
        self._over = asyncio.Event()
        self._pending: asyncio.Future[None] | None = None
        self._sent_ns = 0
        self._is_behind = False

    def head(self) -> None:
        self.set_header("Content-Type", "text/event-stream")
        self.finish()

    async def get(self) -> None:
        if len(self.server.streams) >= STREAMS_MAX:
            raise _Refused(503, f"{STREAMS_MAX} dashboards are open already")
        self.set_header("Content-Type", "text/event-stream")
        self.set_header("X-Accel-Buffering", "no")
        self.server.streams.add(self)
        self.server.watching.listeners.add(self.take)
        try:
            self.write(b"retry: %d\n\n" % RETRY_MS)
            await self.flush()
            self._send(self.server.watching.hello())
            await self._over.wait()
        finally:
            self._forget()

    def take(self, frame: bytes) -> None:
        """What a beat brought: sent on, if the last was taken."""
        if self._pending is not None and not self._pending.done():
            self._is_behind = True
            if now_ns() - self._sent_ns > STALL_TIMEOUT_S * NS_PER_S:
                self.end()
            return
        self._send(self.server.watching.hello() if self._is_behind else frame)
        self._is_behind = False

    def _send(self, data: bytes) -> None:
        """Past the framing of Tornado, which would copy: a hello may have 40 MB, and a hundred may wait for the same one."""
        connection: Any = self.request.connection
        is_chunked = self.request.version == "HTTP/1.1"
        self._sent_ns = now_ns()
        with suppress(StreamClosedError):  # on_connection_close follows
            if is_chunked:
                connection.stream.write(b"%x\r\n" % len(data))
            self._pending = connection.stream.write(data)
            if is_chunked:
                self._pending = connection.stream.write(b"\r\n")

    def on_connection_close(self) -> None:
        self._forget()
        self._over.set()

    def end(self) -> None:
        """Let the client go, whatever it has not taken."""
        connection: Any = self.request.connection
        connection.stream.close()
        self.on_connection_close()

    def _forget(self) -> None:
        self.server.streams.discard(self)
        self.server.watching.listeners.discard(self.take)


def _bound(host: str, port: int) -> list[socket.socket]:
    """Listening sockets, one for each address that `host` is; all or none."""
    bound: list[socket.socket] = []
    try:
        for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            bound.append(made := socket.socket(family, kind, protocol))
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            taken = bound[0].getsockname()[1]  # of "localhost" both addresses have the port of the first
            made.bind((address[0], port or taken, *address[2:]))
            made.listen(128)
            made.setblocking(False)
    except BaseException:
        for made in bound:
            made.close()
        raise
    return bound


def _own_page() -> tuple[str, str]:
    from eventcore_lab.monitor.page import page

    return page()


def _logged(handler: RequestHandler) -> None:
    """Method, path and status; the query may hold a token, and headers do."""
    request = handler.request
    log.info(
        "%s %s %d %.1f ms", request.method, shown(request.path), handler.get_status(), 1000 * request.request_time()
    )


def _why(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
