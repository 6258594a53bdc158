"""The HTTP server: signals, and an end that lets open answers finish."""

import time
from types import FrameType

import uvicorn

from server.app import App


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


def make_server(app: App, drain_s: float) -> DrainingServer:
    """uvicorn, set up for long streams behind our own door: its access log and headers stay off."""
    config = uvicorn.Config(
        app.asgi,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=2,
        lifespan="on",
    )
    return DrainingServer(config, app, drain_s)
