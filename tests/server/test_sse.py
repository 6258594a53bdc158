"""A stream ends when its reader does, and an error before its first chunk is an ordinary response."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import server.sse
from server.sse import EventStream, HungUp, sse_event, until_hang_up

pytestmark = pytest.mark.anyio


class _Connection:
    """The server's side of one request."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []
        self.gone = asyncio.Event()

    async def receive(self) -> dict[str, Any]:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        self.sent.append(message)

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent)


async def _run(chunks: AsyncGenerator[bytes, None], connection: _Connection, ends: list[str]) -> None:
    await EventStream(chunks, lambda: ends.append("end"))({}, connection.receive, connection.send)


async def test_chunks_are_sent_as_they_come_and_the_end_is_told_once() -> None:
    async def chunks() -> AsyncGenerator[bytes, None]:
        yield b"a"
        yield b"b"

    connection, ends = _Connection(), list[str]()
    await _run(chunks(), connection, ends)
    assert [message.get("body") for message in connection.sent] == [None, b"a", b"b", b""]
    assert connection.sent[-1]["more_body"] is False
    assert ends == ["end"]


async def test_a_hang_up_closes_the_generator_wherever_it_waits() -> None:
    closed: list[str] = []

    async def chunks() -> AsyncGenerator[bytes, None]:
        try:
            yield b"a"
            await asyncio.sleep(60)
        finally:
            closed.append("closed")

    connection, ends = _Connection(), list[str]()
    asyncio.get_running_loop().call_later(0.01, connection.gone.set)
    await asyncio.wait_for(_run(chunks(), connection, ends), 1)
    assert (closed, ends) == (["closed"], ["end"])


async def test_what_is_raised_before_the_first_chunk_leaves_the_response_unstarted() -> None:
    async def chunks() -> AsyncGenerator[bytes, None]:
        raise ValueError
        yield b""

    connection, ends = _Connection(), list[str]()
    with pytest.raises(ValueError):
        await _run(chunks(), connection, ends)
    assert (connection.sent, ends) == ([], ["end"])


async def test_silence_is_filled_with_comments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.sse, "KEEP_ALIVE_S", 0.02)

    async def chunks() -> AsyncGenerator[bytes, None]:
        yield b"data: 1\n\n"
        await asyncio.sleep(0.15)
        yield b"data: 2\n\n"

    connection = _Connection()
    await _run(chunks(), connection, [])
    assert connection.body.count(b": keep-alive\n\n") >= 2
    assert connection.body.replace(b": keep-alive\n\n", b"") == b"data: 1\n\ndata: 2\n\n"


async def test_a_reader_that_takes_nothing_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.sse, "KEEP_ALIVE_S", 0.02)

    async def chunks() -> AsyncGenerator[bytes, None]:
        while True:
            yield b"x"

    class Stuck(_Connection):
        async def send(self, message: Any) -> None:
            await super().send(message)
            if len(self.sent) > 3:
                await asyncio.sleep(60)

    ends: list[str] = []
    await asyncio.wait_for(_run(chunks(), Stuck(), ends), 2)
    assert ends == ["end"]


async def test_work_nobody_waits_for_is_cancelled() -> None:
    connection = _Connection()
    assert await until_hang_up(connection.receive, asyncio.sleep(0, "done")) == "done"
    connection.gone.set()
    with pytest.raises(HungUp):
        await until_hang_up(connection.receive, asyncio.sleep(60))


@given(st.text())
def test_an_event_is_one_line_of_data_whatever_the_text(text: str) -> None:
    raw = sse_event("delta", {"text": text})
    assert raw.count(b"\n") == 3 and raw.endswith(b"\n\n") and b"\r" not in raw
