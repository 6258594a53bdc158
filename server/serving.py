"""The HTTP server: signals, heads that never come, and an end that lets open answers finish."""

import asyncio
import time
from types import FrameType

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from server.app import App
from server.settings import ServerSettings

HEAD_STALLED = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


class DrainingServer(uvicorn.Server):
    """On the first SIGTERM or SIGINT: readiness goes, new work is refused, open answers get `drain_s` to finish. On the second: out."""

    def __init__(self, config: uvicorn.Config, app: App, drain_s: float) -> None:
        super().__init__(config)
        self._app = app
        self._drain_s = drain_s
        self._deadline: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        is_second = self._app.traffic.is_draining
        self._app.traffic.drain()
        self._deadline = time.monotonic() + (0 if is_second else self._drain_s)

    async def on_tick(self, counter: int) -> bool:
        if self._deadline is not None and (self._app.traffic.num_open == 0 or time.monotonic() >= self._deadline):
            self._app.interrupt()
            self.should_exit = True
        if self._app.broken:
            self.should_exit = True
        return await super().on_tick(counter)


class ImpatientProtocol(HttpToolsProtocol):
    """uvicorn's HTTP/1.1, and one clock more: whoever has opened a connection, or sent anything on one that owed them nothing, has
    `head_timeout_s` to complete the head of a request. Bytes that drip do not wind the clock up again.
    """

    head_timeout_s: float
    _clock: asyncio.TimerHandle | None = None
    _has_begun = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._start_clock()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_clock()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._clock is None and (self.cycle is None or self.cycle.response_complete):
            self._start_clock()

    def on_message_begin(self) -> None:
        self._has_begun = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._has_begun = False
        self._stop_clock()
        super().on_headers_complete()

    def _start_clock(self) -> None:
        if not self.transport.is_closing():
            self._clock = self.loop.call_later(self.head_timeout_s, self._hang_up)

    def _stop_clock(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None

    def _hang_up(self) -> None:
        if self._has_begun:
            self.transport.write(HEAD_STALLED)
        self.transport.close()


def make_server(app: App, settings: ServerSettings) -> DrainingServer:
    """uvicorn, set up for long streams behind our own door: its access log and headers stay off."""
    config = uvicorn.Config(
        app.asgi,
        http=type("Protocol", (ImpatientProtocol,), {"head_timeout_s": settings.head_timeout_s}),
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=2,
        lifespan="on",
    )
    return DrainingServer(config, app, settings.drain_s)
