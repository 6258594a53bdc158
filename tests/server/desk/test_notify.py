"""A receiver of its own hears who waits, signed and without a word of what was said, and is asked again when it fails."""

import asyncio
import hashlib
import hmac
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from server.desk import notify
from server.desk.notify import Notifier
from server.settings import DeskSettings

pytestmark = pytest.mark.anyio


class Receiver:
    """Answers each call with the next status."""

    def __init__(self, *statuses: int) -> None:
        self.statuses = list(statuses)
        self.calls: list[tuple[dict[str, str], bytes]] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")[1:-2]
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head)}
        self.calls.append((headers, await reader.readexactly(int(headers["content-length"]))))
        writer.write(b"HTTP/1.1 %d x\r\ncontent-length: 0\r\nconnection: close\r\n\r\n" % self.statuses.pop(0))
        writer.close()


@asynccontextmanager
async def listening(receiver: Receiver) -> AsyncIterator[str]:
    async with await asyncio.start_server(receiver.serve, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/hook"


async def told(receiver: Receiver, number: int) -> None:
    async with asyncio.timeout(5):
        while len(receiver.calls) < number:
            await asyncio.sleep(0.01)


async def test_it_is_signed_and_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notify, "RETRY_AFTER_S", (0.01, 0.01, 0.01))
    receiver = Receiver(500, 302, 204)
    async with listening(receiver) as url:
        notifier = Notifier(DeskSettings(notify_url=url, notify_key="k"))  # type: ignore[arg-type]
        notifier.waiting("conv_a", "request")
        await told(receiver, 3)
        await asyncio.sleep(0.05)
    assert len(receiver.calls) == 3
    headers, body = receiver.calls[-1]
    assert json.loads(body) == {"event": "waiting", "conversation_id": "conv_a", "reason": "request"}
    signed = hmac.new(b"k", headers["x-kefu-time"].encode() + b"." + body, hashlib.sha256).hexdigest()
    assert headers["x-kefu-signature"] == f"sha256={signed}"


async def test_it_gives_up(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(notify, "RETRY_AFTER_S", (0.01, 0.01, 0.01))
    receiver = Receiver(500, 500, 500, 500)
    async with listening(receiver) as url:
        Notifier(DeskSettings(notify_url=url)).waiting("conv_a", "request")
        await told(receiver, 4)
        await asyncio.sleep(0.05)
    assert "took no notice" in caplog.text and "x-kefu-signature" not in receiver.calls[0][0]


async def test_nobody_is_told_by_default_and_closing_ends_what_is_open() -> None:
    silent = Notifier(DeskSettings())
    silent.waiting("conv_a", "request")
    assert not silent._tasks
    notifier = Notifier(DeskSettings(notify_url="http://127.0.0.1:9/"))
    notifier.waiting("conv_a", "request")
    await asyncio.sleep(0.1)
    await notifier.close()
    assert not notifier._tasks
