"""One streamed chat completion and what it cost: bytes are stamped as they arrive and read after the stream has ended."""

import asyncio
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from http import HTTPStatus
from time import perf_counter
from urllib.parse import urlsplit

import h11

Message = dict[str, str]
Body = dict[str, object]

PATH = "/v1/chat/completions"
TIMEOUT_S = 3600.0


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


class Recording(asyncio.Protocol):
    """One request on the wire. While it runs, bytes are stamped and kept and nothing else is done: an HTTP library spends 0.2 ms
    on each token, which on two cores is taken from the server that is measured. `reply` reads the bytes afterwards."""

    def __init__(self, base_url: str, body: Body) -> None:
        self.url = urlsplit(base_url.rstrip("/") + PATH)
        self.sent_s = 0.0
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._chunks: list[tuple[float, bytes]] = []
        self._http = h11.Connection(h11.CLIENT)
        payload = json.dumps(body).encode()
        fields = {"Host": self.url.netloc, "Content-Type": "application/json", "Content-Length": str(len(payload)), "Connection": "close"}
        head = self._http.send(h11.Request(method="POST", target=self.url.path, headers=list(fields.items()))) or b""
        self._request = head + payload
        self._http.send(h11.Data(data=payload))
        self._http.send(h11.EndOfMessage())

    def send(self, transport: asyncio.WriteTransport) -> None:
        self.sent_s = perf_counter()
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._chunks.append((perf_counter(), data))

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_result(None)

    def reply(self) -> Reply:
        """What was said and when. Raises BenchError on any answer that is not a whole stream."""
        status, events = 0, []
        for arrived_s, chunk in self._chunks:
            for part in self._parts(chunk):
                if isinstance(part, h11.Response):
                    status = part.status_code
                elif isinstance(part, h11.Data):
                    events.append((arrived_s, bytes(part.data)))
        if status != HTTPStatus.OK:
            text = b"".join(data for _, data in events).decode(errors="replace")
            raise BenchError(f"{self.url.geturl()} answered {status or 'nothing'}: {text[:500]}")
        return read_reply(self.sent_s, events)

    def _parts(self, chunk: bytes) -> Iterator[h11.Event]:
        try:
            self._http.receive_data(chunk)
            while isinstance(part := self._http.next_event(), h11.Event):
                yield part
        except h11.RemoteProtocolError as error:
            raise BenchError(f"{self.url.geturl()} does not speak HTTP: {error}") from error


async def record(base_url: str, body: Body) -> Recording:
    """Send one streamed completion and wait until the server has closed it. Raises BenchError."""
    request = {**body, "stream": True, "stream_options": {"include_usage": True}}
    recording = Recording(base_url, request)
    tls = recording.url.scheme == "https"
    port = recording.url.port or (443 if tls else 80)
    try:
        async with asyncio.timeout(TIMEOUT_S):
            loop = asyncio.get_running_loop()
            transport, _ = await loop.create_connection(lambda: recording, recording.url.hostname or "", port, ssl=tls or None)
            try:
                recording.send(transport)
                await recording.ended
            finally:
                transport.close()
    except (OSError, TimeoutError) as error:
        raise BenchError(f"{recording.url.geturl()} did not finish its answer: {error!r}") from error
    return recording


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
