"""The client's end of the socket: what the engine says about one request reaches that request."""

import asyncio
import socket

import pytest

from backends.client import EngineClient
from backends.protocol import ModelSpec, NoMemory
from backends.sequence import FinishReason, SamplingParams
from backends.wire import Loaded, TokenEvent, Tokens, encode

pytestmark = pytest.mark.anyio
SPEC = ModelSpec("m", "fake", "1", "", "", 100, 100, 2, (0,), 0, 0)


async def test_a_request_that_memory_cannot_hold_fails_alone() -> None:
    ours, theirs = socket.socketpair()
    client = EngineClient()
    served = asyncio.create_task(client.attach(*await asyncio.open_connection(sock=ours)))
    theirs.sendall(encode(Loaded(SPEC)))
    async with asyncio.timeout(5):
        while client.unready_reason:
            await asyncio.sleep(0.01)
        refused, answered = (client.submit([1, 2], SamplingParams()) for _ in range(2))
        theirs.sendall(
            encode(Tokens([TokenEvent(refused.seq_id, finish_reason=FinishReason.NO_MEMORY), TokenEvent(answered.seq_id, 7, num_cached=0)]))
        )
        with pytest.raises(NoMemory, match="not enough memory"):
            await anext(refused)
        assert [event.token_id for event in await anext(answered)] == [7]
        assert client.num_waiting == 0
        theirs.close()
        await served
