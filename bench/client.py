"""One streamed chat completion and what it cost: bytes are stamped as they arrive and read after the stream has ended."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter

import httpx

Message = dict[str, str]
Body = dict[str, object]


class BenchError(Exception):
    """The bench cannot go on; the message is for the person who started it."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A finished completion. Times are readings of one clock in seconds; tokens are counted by the server's usage.

    `first_s` is the first text of any kind, `first_answer_s` the first text of the answer itself. A token that ends inside a
    character shows only with the next one, so `first_s` can be a token late.
    """

    sent_s: float
    end_s: float
    first_s: float | None
    first_answer_s: float | None
    content: str
    finish_reason: str | None
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int

    @property
    def ttft_s(self) -> float | None:
        return None if self.first_s is None else self.first_s - self.sent_s

    @property
    def decode_tokens_per_s(self) -> float | None:
        if self.first_s is None or self.completion_tokens < 2 or self.end_s <= self.first_s:
            return None
        return (self.completion_tokens - 1) / (self.end_s - self.first_s)


async def ask(http: httpx.AsyncClient, messages: Sequence[Message], body: Body) -> Reply:
    """Stream one completion to its end. Raises BenchError on any answer that is not a whole stream."""
    request = {**body, "messages": list(messages), "stream": True, "stream_options": {"include_usage": True}}
    sent_s = perf_counter()
    try:
        async with http.stream("POST", "v1/chat/completions", json=request) as response:
            if response.status_code != httpx.codes.OK:
                await response.aread()
                raise BenchError(f"{response.request.url} answered {response.status_code}: {response.text[:500]}")
            chunks = [(perf_counter(), chunk) async for chunk in response.aiter_raw()]
    except httpx.HTTPError as error:
        raise BenchError(f"the server did not finish its answer: {error!r}") from error
    return read_reply(sent_s, chunks)


def read_reply(sent_s: float, chunks: Iterable[tuple[float, bytes]]) -> Reply:
    """The reply in a stamped event stream. Raises BenchError when it holds an error, no usage or no `[DONE]`."""
    first_s = first_answer_s = finish_reason = usage = None
    content: list[str] = []
    end_s = sent_s
    for end_s, data in read_events(chunks):
        if data == "[DONE]":
            break
        event = json.loads(data)
        if "error" in event:
            raise BenchError(f"the stream ended in an error: {event['error']}")
        usage = event.get("usage") or usage
        for choice in event["choices"]:
            delta = choice["delta"]
            finish_reason = choice.get("finish_reason") or finish_reason
            if delta.get("content"):
                content.append(delta["content"])
                first_answer_s = first_answer_s or end_s
            if delta.get("content") or delta.get("reasoning_content") or delta.get("reasoning"):
                first_s = first_s or end_s
    else:
        raise BenchError("the stream ended without [DONE]")
    if usage is None:
        raise BenchError("the stream has no usage: the server ignores stream_options.include_usage")
    return Reply(
        sent_s=sent_s,
        end_s=end_s,
        first_s=first_s,
        first_answer_s=first_answer_s,
        content="".join(content),
        finish_reason=finish_reason,
        prompt_tokens=usage["prompt_tokens"],
        cached_tokens=(usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0,
        completion_tokens=usage["completion_tokens"],
    )


def read_events(chunks: Iterable[tuple[float, bytes]]) -> Iterator[tuple[float, str]]:
    """The data of each server-sent event with the time at which its last byte arrived, wherever the chunks were cut."""
    rest = b""
    for arrived_s, chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield arrived_s, line[5:].strip().decode()
