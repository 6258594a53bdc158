"""What everybody does at once: customers and API clients, patient, hasty, clumsy and gone in the middle of a word."""

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from uuid import uuid4

import httpx

SHORT = "Do you ship to islands?"
LONG = "I bought a teapot and a cup and the lid does not fit and I wonder what to do about it. " * 40
QUESTIONS = ("How long do I have to return something?", "And what does it cost?", "运费是多少？", "I want to talk to a person", LONG[:1500])
# Busy and over a limit are honest answers under load; anything else of the 500s is not.
HONEST = (200, 201, 202, 400, 404, 409, 413, 415, 429, 499, 503)
TIMEOUT_S = 120.0


class Crowd:
    """Clients that keep a server busy. `seen` counts what they did, and statuses; anything that should not happen is raised."""

    def __init__(self, url: str, seed: int) -> None:
        self.seen: Counter[str] = Counter()
        self._url = url
        self._random = random.Random(seed)

    async def busy(self, seconds: float, num_callers: int = 5, num_customers: int = 4) -> None:
        """Everybody at once, for so long."""
        deadline = time.monotonic() + seconds
        async with asyncio.TaskGroup() as group:
            for _ in range(num_callers):
                group.create_task(self._repeat(self._call, deadline))
            for _ in range(num_customers):
                group.create_task(self._repeat(self._visit, deadline))

    async def _repeat(self, act: Callable[[httpx.AsyncClient], Awaitable[None]], deadline: float) -> None:
        while time.monotonic() < deadline:
            async with httpx.AsyncClient(base_url=self._url, timeout=TIMEOUT_S) as client:
                for _ in range(10):
                    if time.monotonic() < deadline:
                        await act(client)
                        await asyncio.sleep(self._random.random() * 0.2)

    def _saw(self, what: str, reply: httpx.Response) -> None:
        assert reply.status_code in HONEST, (what, reply.status_code)
        assert reply.status_code < 500 or "retry-after" in reply.headers, (what, reply.status_code)
        self.seen[f"{what} {reply.status_code}"] += 1

    # -- /v1 -----------------------------------------------------------------------------------------------------------

    async def _call(self, client: httpx.AsyncClient) -> None:
        ways = (self._whole, self._streamed, self._hang_up, self._hang_up, self._bad_body, self._half_body, self._cancel)
        await self._random.choice(ways)(client)

    def _body(self, **fields: object) -> dict[str, object]:
        text = self._random.choice((SHORT, LONG))
        system = {"role": "system", "content": f"You are shop {self._random.randrange(4)}. " * 20}
        messages = [system, {"role": "user", "content": text}]
        return {"model": "kefu-mini", "messages": messages, "max_tokens": 48, "seed": self._random.randrange(99), **fields}

    async def _whole(self, client: httpx.AsyncClient) -> None:
        reply = await client.post("/v1/chat/completions", json=self._body(reasoning_effort=self._random.choice(("none", "low", "high"))))
        self._saw("whole", reply)
        if reply.status_code == 200:
            usage = reply.json()["usage"]
            assert 0 < usage["completion_tokens"] <= 48
            assert usage["prompt_tokens_details"]["cached_tokens"] < usage["prompt_tokens"]

    async def _streamed(self, client: httpx.AsyncClient) -> None:
        async with self._stream(client, "streamed", self._body(stream=True)) as chunks:
            assert [chunk async for chunk in chunks][-1] == "[DONE]"

    async def _hang_up(self, client: httpx.AsyncClient) -> None:
        """In the queue or in the prompt, in the thought, in the answer."""
        where = self._random.choice(("prompt", "reasoning_content", "content"))
        body = self._body(stream=True, temperature=1.5, max_tokens=400, thinking_budget=self._random.choice((4, 200)))
        if where == "prompt":
            try:
                self._saw("whole, impatient", await client.post("/v1/chat/completions", json=body | {"stream": False}, timeout=0.05))
            except httpx.TimeoutException:
                self.seen["left in prompt"] += 1
            return
        async with self._stream(client, "streamed, left", body) as chunks:
            async for chunk in chunks:
                if chunk != "[DONE]" and json.loads(chunk)["choices"][0]["delta"].get(where):
                    self.seen[f"left in {where}"] += 1
                    return

    async def _cancel(self, client: httpx.AsyncClient) -> None:
        async with self._stream(client, "streamed, cancelled", self._body(stream=True, max_tokens=400, temperature=1.5)) as chunks:
            async for chunk in chunks:
                if chunk != "[DONE]":
                    reply = await client.post(f"/v1/chat/completions/{json.loads(chunk)['id']}/cancel")
                    self._saw("cancel", reply)

    async def _bad_body(self, client: httpx.AsyncClient) -> None:
        bodies: tuple[object, ...] = ({}, [], {"model": "other"}, self._body(temperature=9), self._body(max_tokens=10**6), "text")
        too_long = self._body(messages=[{"role": "user", "content": LONG * 20}])
        reply = await client.post("/v1/chat/completions", json=self._random.choice((*bodies, too_long)))
        assert 400 <= reply.status_code < 500 or reply.status_code == 503
        self._saw("bad", reply)

    async def _half_body(self, client: httpx.AsyncClient) -> None:
        _, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
        head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 999\r\n"
        writer.write(head + self._random.choice((b"", b"\r\n", b'\r\n{"model"')))
        await asyncio.sleep(0.05)
        writer.transport.abort()
        self.seen["half a body"] += 1

    @asynccontextmanager
    async def _stream(self, client: httpx.AsyncClient, what: str, body: object) -> AsyncIterator[AsyncIterator[str]]:
        async with client.stream("POST", "/v1/chat/completions", json=body) as reply:
            self._saw(what, reply)
            yield (line[6:] async for line in reply.aiter_lines() if line.startswith("data: ") and reply.status_code == 200)

    # -- the desk ------------------------------------------------------------------------------------------------------

    async def _visit(self, client: httpx.AsyncClient) -> None:
        """One customer: some questions, some stopped, some left, some voted on."""
        admitted = await client.post("/desk/visitors", json={})
        self._saw("visitor", admitted)
        client.headers["authorization"] = f"Bearer {admitted.json()['token']}"
        opened = await client.post("/desk/conversations", json={"language": "en"})
        self._saw("conversation", opened)
        path = f"/desk/conversations/{opened.json()['conversation_id']}"
        for _ in range(self._random.randrange(1, 5)):
            await self._ask(client, path, self._random.choice(("read", "read", "stop", "leave")))
        del client.headers["authorization"]

    async def _ask(self, client: httpx.AsyncClient, path: str, way: str) -> None:
        body = {"text": self._random.choice(QUESTIONS), "client_message_id": str(uuid4())}
        patience, name = self._random.randrange(1, 12), ""
        async with client.stream("POST", f"{path}/messages", json=body) as reply:
            self._saw(f"ask, {way}", reply)
            async for line in reply.aiter_lines():
                name = line.removeprefix("event: ") if line.startswith("event: ") else name
                patience -= line.startswith("event: ")
                if line.startswith("data: ") and name == "done" and way == "read":
                    await self._vote(client, json.loads(line[6:])["message"])
                if patience == 0 and way == "leave":
                    return
                if patience == 0 and way == "stop":
                    self._saw("stop", await client.post(f"{path}/stop", json={}))
        assert name in ("done", "error") or reply.status_code != 200

    async def _vote(self, client: httpx.AsyncClient, message: dict[str, object]) -> None:
        if message["completion_id"]:
            vote = {"completion_id": message["completion_id"], "kind": "thumb", "value": 1, "idempotency_key": str(uuid4())}
            self._saw("vote", await client.post("/desk/signals", json=vote))
