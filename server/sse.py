"""Server-sent events, and work that ends when nobody waits for it any more."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping
from typing import TypeVar

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

KEEP_ALIVE_S = 10.0
# A reader that took nothing during so many silences is gone; until then the transport's own limit bounds what waits for it.
MAX_STUCK = 3
CLIENT_CLOSED_REQUEST = 499
_KEEP_ALIVE = b": keep-alive\n\n"
T = TypeVar("T")


class HungUp(Exception):
    """The client closed the connection before its response was complete."""


def sse_data(value: object) -> bytes:
    """One unnamed event."""
    return b"data: " + msgspec.json.encode(value) + b"\n\n"


def sse_event(name: str, value: object, event_id: int | None = None) -> bytes:
    """One named event. `event_id` is what a reader who comes back sends as Last-Event-ID."""
    prefix = b"" if event_id is None else b"id: %d\n" % event_id
    return prefix + b"event: " + name.encode() + b"\n" + sse_data(value)


async def until_hang_up(receive: Receive, work: Coroutine[object, object, T], on_idle: Callable[[], Awaitable[None]] | None = None) -> T:
    """Do `work`; when the client goes first, cancel it and raise HungUp. The request body must have been read before.

    `on_idle` is called every KEEP_ALIVE_S while it takes; what it raises ends the work, too.
    """
    task, gone = asyncio.create_task(work), asyncio.create_task(_disconnect(receive))
    try:
        while True:
            await asyncio.wait({task, gone}, timeout=KEEP_ALIVE_S, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            if gone.done():
                raise HungUp
            if on_idle is not None:
                await on_idle()
    finally:
        gone.cancel()
        if not task.done():
            task.cancel()
            await asyncio.wait({task})


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """Sends what `chunks` yields, each as it comes, with a comment line whenever it is silent for long.

    Everything up to the generator's first chunk happens before the first byte: what it raises until then becomes an ordinary
    error response, so the first chunk should come at once. It is closed in any case, soon after the client is gone, and then
    `on_end` is called.
    """

    def __init__(
        self, chunks: AsyncGenerator[bytes, None], on_end: Callable[[], None] | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        fixed = {"cache-control": "no-store", "x-accel-buffering": "no"}
        super().__init__(status_code=200, headers={**fixed, **(headers or {})}, media_type="text/event-stream")
        del self.headers["content-length"]
        self._chunks = chunks
        self._on_end = on_end
        self._is_silent = False
        self._is_sending = False
        self._num_stuck = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def look() -> None:
            self._num_stuck = self._num_stuck + 1 if self._is_sending else 0
            if self._num_stuck >= MAX_STUCK:
                raise HungUp
            if self._is_silent and not self._is_sending:
                await self._send(send, _KEEP_ALIVE)
            self._is_silent = True

        try:
            first = await until_hang_up(receive, self._first())
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await self._send(send, first)
            await until_hang_up(receive, self._send_all(send), look)
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except HungUp:
            return
        finally:
            await self._chunks.aclose()
            if self._on_end is not None:
                self._on_end()

    async def _first(self) -> bytes:
        return await anext(self._chunks)

    async def _send_all(self, send: Send) -> None:
        async for chunk in self._chunks:
            self._is_silent = False
            await self._send(send, chunk)

    async def _send(self, send: Send, chunk: bytes) -> None:
        self._is_sending = True
        await send({"type": "http.response.body", "body": chunk, "more_body": True})
        self._is_sending = False
