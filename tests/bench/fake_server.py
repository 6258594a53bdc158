"""A tiny OpenAI server on a real socket: counts a token per word, remembers every prompt, thinks one token, answers to the limit."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

Event = dict[str, Any]


def chunk(delta: dict[str, str], finish_reason: str | None = None) -> Event:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}], "usage": None}


def usage(prompt: int, cached: int, completion: int) -> Event:
    details = {"cached_tokens": cached}
    return {"choices": [], "usage": {"prompt_tokens": prompt, "completion_tokens": completion, "prompt_tokens_details": details}}


def sse(event: object) -> bytes:
    return f"data: {event if isinstance(event, str) else json.dumps(event)}\n\n".encode()


class FakeServer:
    """`status` and `error` make it refuse; `seen` holds every request body."""

    def __init__(self, status: int = 200, error: str = "") -> None:
        self.status, self.error = status, error
        self.seen: list[Event] = []
        self.prompts: list[list[str]] = []

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(line.split()[1] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length"))
        request = json.loads(await reader.readexactly(int(length)))
        self.seen.append(request)
        writer.write(f"HTTP/1.1 {self.status} X\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n".encode())
        for part in [self.error.encode()] if self.error else [sse(event) for event in self.answer(request)]:
            writer.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")
        writer.write(b"0\r\n\r\n")
        writer.close()
        await writer.wait_closed()

    def answer(self, request: Event) -> list[object]:
        """Each message costs its words and four tokens of template; an opened thought is two that the next turn drops."""
        prompt = []
        for message in request["messages"]:
            prompt += [f"{message['role']}:{word}" for word in ("<", "\n", *message["content"].split(), ">", "\n")]
        prompt += ["assistant:<", "assistant:\n", "<think>", "\n"]
        cached = max((_common(prompt, old) for old in self.prompts), default=0)
        self.prompts.append(prompt)
        limit = request["max_tokens"]
        words = [chunk({"content": "word "}) for _ in range(limit - 1)]
        return [chunk({"reasoning_content": "hm"}), *words, chunk({}, "length"), usage(len(prompt), cached, limit), "[DONE]"]


@asynccontextmanager
async def listening(server: FakeServer) -> AsyncIterator[str]:
    """The base URL of `server` while it listens."""
    socket = await asyncio.start_server(server, "127.0.0.1", 0)
    async with socket:
        yield f"http://127.0.0.1:{socket.sockets[0].getsockname()[1]}"


def _common(one: list[str], other: list[str]) -> int:
    return next((number for number, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
