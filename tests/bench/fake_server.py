"""A tiny OpenAI server: counts a token per word, remembers every prompt, thinks one token, answers to the limit."""

import json
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
    """An ASGI app. `status` and `error` make it refuse; `seen` holds every request body."""

    def __init__(self, status: int = 200, error: str = "") -> None:
        self.status, self.error = status, error
        self.seen: list[Event] = []
        self.prompts: list[list[str]] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body = b""
        while (message := await receive()).get("more_body"):
            body += message["body"]
        request = json.loads(body + message["body"])
        self.seen.append(request)
        await send({"type": "http.response.start", "status": self.status, "headers": []})
        parts = [json.dumps({"error": {"message": self.error}}).encode()] if self.error else [sse(event) for event in self.answer(request)]
        for part in parts:
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

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


def fake_server(status: int = 200, error: str = "") -> FakeServer:
    return FakeServer(status, error)


def _common(one: list[str], other: list[str]) -> int:
    return next((number for number, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
