"""The door: what every request passes before a route sees it, and what every response carries."""

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import BodyStalled, BodyTooLarge, HeadersTooLarge, InvalidRequest, NotFound, ShuttingDown, respond
from server.logging import log_fields
from server.settings import ConsoleSettings, ServerSettings, is_loopback

log = logging.getLogger("kefu.http")

MAX_HEADER_BYTES = 16 * 1024
MAX_HEADERS = 64
MAX_DESK_BODY_BYTES = 64 * 1024
MAX_DRAINED_BYTES, MAX_DRAIN_S = 16 * 1024 * 1024, 1.0
CONSOLE = "/console"
BODY_TOO_LARGE = 413
SHARED = ConsoleSettings()
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
SECURITY_HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "cache-control": "no-store",
}

Observe = Callable[[str, str, int, float], None]


class Traffic:
    """How many requests are open, and whether new ones are still taken."""

    def __init__(self) -> None:
        self.num_open = 0
        self.is_draining = False
        self.on_drain: Callable[[], None] = lambda: None

    def drain(self) -> None:
        """From now on only the health routes answer."""
        self.is_draining = True
        self.on_drain()


class Door:
    """Outermost of all: nothing leaves without a request id and the security headers, not even a 500.

    `observe` is told method, route, status and seconds of each request; a route is a template, never what was asked for.
    """

    def __init__(
        self, app: ASGIApp, settings: ServerSettings, traffic: Traffic, observe: Observe, console: ConsoleSettings = SHARED
    ) -> None:
        self._app = app
        self._settings = settings
        self._console = console
        self._traffic = traffic
        self._observe = observe
        self._hosts = LOOPBACK | {host.lower() for host in (*settings.allowed_hosts, settings.host, console.host)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        visit = _Visit(scope, send)
        self._traffic.num_open += 1
        try:
            await self._admit(scope, receive, visit)
        except Exception as error:
            if visit.status == 0:
                await respond(error)(scope, receive, visit.send)
            log.error("request failed", exc_info=error, extra=log_fields(request_id=visit.request_id))
            raise
        finally:
            self._traffic.num_open -= 1
            seconds = time.perf_counter() - visit.began
            self._observe(scope["method"], visit.route, visit.status, seconds)
            fields = log_fields(
                request_id=visit.request_id, method=scope["method"], route=visit.route, status=visit.status, ms=round(seconds * 1000, 1)
            )
            log.info("request", extra=fields)

    async def _admit(self, scope: Scope, receive: Receive, visit: "_Visit") -> None:
        headers = Headers(scope=scope)
        max_bytes = self._settings.max_body_bytes
        if scope["path"].startswith("/desk"):
            max_bytes = min(max_bytes, MAX_DESK_BODY_BYTES)
        visit.body = _BodyGuard(receive, max_bytes, self._settings.body_timeout_s)
        refusal = (
            _too_many_headers(scope)
            or self._wrong_host(headers)
            or self._wrong_port(scope)
            or _too_long(headers, max_bytes)
            or self._leaving(scope)
        )
        if refusal is not None:
            await respond(refusal)(scope, visit.body, visit.send)
        else:
            await self._app(scope, visit.body, visit.send)

    def _wrong_host(self, headers: Headers) -> Exception | None:
        """A page on another name that resolves to this machine must not get in (DNS rebinding)."""
        hosts = headers.getlist("host")
        if len(hosts) == 1 and _name_of(hosts[0]) in self._hosts:
            return None
        return InvalidRequest("this host name is not served here; add it to server.allowed_hosts", code="host_not_allowed")

    def _wrong_port(self, scope: Scope) -> Exception | None:
        """The console is not there where customers come in, except on loopback: then only this machine comes in."""
        path, port = scope["path"], (scope.get("server") or ("", None))[1]
        is_console = path == CONSOLE or path.startswith(f"{CONSOLE}/")
        is_here = port == self._console.port if self._console.port else is_loopback(self._settings.host)
        return NotFound("not found: see the documentation for paths and methods") if is_console and not is_here else None

    def _leaving(self, scope: Scope) -> Exception | None:
        if self._traffic.is_draining and not scope["path"].startswith("/health/"):
            return ShuttingDown("the server is shutting down", retry_after_s=10)
        return None


class _Visit:
    """One request's id and body, and what is known of its response."""

    body: "_BodyGuard"

    def __init__(self, scope: Scope, send: Send) -> None:
        self.request_id = secrets.token_hex(8)
        self.status = 0
        self.began = time.perf_counter()
        self._scope = scope
        self._send = send

    @property
    def route(self) -> str:
        path: str = getattr(self._scope.get("route"), "path", "unmatched")
        return path

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            for name, value in SECURITY_HEADERS.items():
                headers.setdefault(name, value)
            headers["x-request-id"] = self.request_id
            if self.status == BODY_TOO_LARGE:
                await self.body.drain()
        await self._send(message)


class _BodyGuard:
    """A `receive` that counts: BodyTooLarge beyond `max_bytes`, BodyStalled when the body is not complete in time."""

    def __init__(self, receive: Receive, max_bytes: int, timeout_s: float) -> None:
        self._receive = receive
        self._num_left = max_bytes
        self._timeout_s = timeout_s
        self._deadline: float | None = None
        self._is_complete = False

    async def __call__(self) -> Message:
        if self._is_complete:
            return await self._receive()
        if self._deadline is None:
            self._deadline = asyncio.get_running_loop().time() + self._timeout_s
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError:
            raise BodyStalled(f"the body was not complete after {self._timeout_s:g} seconds") from None
        self._is_complete = not message.get("more_body", False)
        self._num_left -= len(message.get("body", b""))
        if self._num_left < 0:
            raise BodyTooLarge("the body is too large")
        return message

    async def drain(self) -> None:
        """Read on for a moment and forget it: whoever is still sending when the connection closes may never see why."""
        num_left = MAX_DRAINED_BYTES
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(MAX_DRAIN_S):
                while not self._is_complete and num_left > 0:
                    message = await self._receive()
                    self._is_complete = not message.get("more_body", False)
                    num_left -= len(message.get("body", b""))


def _too_many_headers(scope: Scope) -> Exception | None:
    size = sum(len(name) + len(value) for name, value in scope["headers"])
    if size > MAX_HEADER_BYTES or len(scope["headers"]) > MAX_HEADERS:
        return HeadersTooLarge(f"at most {MAX_HEADERS} headers and {MAX_HEADER_BYTES} bytes of them")
    return None


def _too_long(headers: Headers, max_bytes: int) -> Exception | None:
    length = headers.get("content-length", "0")
    if not (length.isascii() and length.isdigit()):
        return InvalidRequest("content-length must be a number")
    return BodyTooLarge(f"the body may have {max_bytes} bytes") if len(length) > 18 or int(length) > max_bytes else None


def _name_of(host: str) -> str:
    """The name in a Host header, without its port: `[::1]:8000` -> `::1`."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower()
