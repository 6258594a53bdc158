"""Another server's answers: the chat contract over HTTP to anything that speaks the OpenAI API. Text in, text out."""

import asyncio
import re
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Literal, TypeVar

import httpx
import msgspec

from backends.protocol import EngineDown, EngineError, ModelSpec
from backends.sequence import FinishReason

CONNECT_S = CHECK_S = 5.0
LOOK_AGAIN_S = 1.0
TRIES, RETRY_PAUSE_S = 3, 0.2
RETRY_AFTER_S = 5
MAX_CONNECTIONS = 512
MAX_LINE_BYTES = 4 * 1024 * 1024
CONTEXT_GUESS = 8192
# The same for all turns of a conversation: what a cluster's router pins by.
SESSION_HEADER = "x-session-id"
COUNTS = {
    "num_prompt_tokens": ("prompt_tokens",),
    "num_completion_tokens": ("completion_tokens",),
    "num_cached": ("prompt_tokens_details", "cached_tokens"),
    "num_reasoning_tokens": ("completion_tokens_details", "reasoning_tokens"),
}
_TOO_LONG = re.compile(rb"context.(length|size|window)", re.IGNORECASE)

T = TypeVar("T")
Piece = tuple[Literal["reasoning", "content"], str]
Split = Callable[[str], Iterable[Piece]]


class UpstreamError(EngineError):
    """The upstream cannot be used, or its answer broke off. One that cannot be reached at all is EngineDown.

    UpstreamError
    ├── UpstreamTimeout    it was silent for too long
    ├── UpstreamBusy       it takes no more from us for `retry_after_s` seconds
    └── UpstreamRefused    it does not take this request; `code` says so when that is too long
    """

    def __init__(self, message: str, *, code: str | None = None, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.code, self.retry_after_s = code, retry_after_s


class UpstreamTimeout(UpstreamError): ...


class UpstreamBusy(UpstreamError): ...


class UpstreamRefused(UpstreamError): ...


@dataclass(frozen=True, slots=True)
class TextEvent:
    """New text by channel; the last one says how the answer ended, and `counted` what the upstream told of num_* (tokens).

    `calls` come with the last one: the name of a tool and the JSON of its arguments, as the upstream spelled it.
    """

    pieces: tuple[Piece, ...] = ()
    finish_reason: FinishReason | None = None
    counted: dict[str, int | None] | None = None
    calls: tuple[tuple[str, str], ...] = ()


class UpstreamClient:
    """EngineClient and Supervisor in one, for an engine that is not ours.

    `base_url` ends in /v1; an empty `model` means the first that is listed, `context_length` 0 what is told; `timeout_s` bounds a
    silence, not an answer.
    """

    def __init__(self, base_url: str, api_key: str = "", model: str = "", context_length: int = 0, timeout_s: float = 120.0) -> None:
        self.num_running = self.num_waiting = self.num_restarts = 0
        self.client, self.stats = self, None
        self._model, self._context_length = model, context_length
        self._spec: ModelSpec | None = None
        self._http = httpx.AsyncClient(
            base_url=base_url,
            headers={"authorization": f"Bearer {api_key}"} if api_key else {},
            timeout=httpx.Timeout(timeout_s, connect=CONNECT_S),
            limits=httpx.Limits(max_connections=MAX_CONNECTIONS),
            trust_env=False,
        )

    @property
    def spec(self) -> ModelSpec:
        """The model there. Raises EngineDown until it has been seen once."""
        if self._spec is None:
            raise EngineDown("the upstream has not answered yet", RETRY_AFTER_S)
        return self._spec

    def wait_s(self, place: int) -> int:
        return 0

    async def start(self) -> None:
        """Look for the model until it has been seen. Returns at once."""
        self._look = asyncio.create_task(self._look_for_model())

    async def stop(self) -> None:
        self._look.cancel()
        await self._http.aclose()

    async def _look_for_model(self) -> None:
        while True:
            if not await self.check():
                return
            await asyncio.sleep(LOOK_AGAIN_S)

    async def check(self) -> str:
        """Why no request should come now; empty when one may."""
        try:
            reply = await self._http.get("models", timeout=CHECK_S)
        except httpx.HTTPError:
            return "the upstream does not answer"
        models: list[object] = []
        # Some servers have no list; a name from the settings does without.
        with suppress(msgspec.DecodeError):
            models = _at(msgspec.json.decode(reply.content), list, "data") or []
        model = next((model for model in models if self._model in ("", _at(model, str, "id"))), {"id": self._model})
        if reply.status_code != 200 or not (name := _at(model, str, "id")):
            return f"the upstream answers with status {reply.status_code} and names no model"
        limit = self._context_length or _at(model, int, "max_model_len") or CONTEXT_GUESS
        self._spec = ModelSpec(
            name, "upstream", (_at(model, str, "owned_by") or "unknown")[:40], "", "", limit, limit, MAX_CONNECTIONS, (), 0, 0
        )
        return ""

    async def prove(self) -> str:
        """The same, after this machine slept."""
        return await self.check()

    def submit(self, body: Mapping[str, object], session: str, split: Split) -> "UpstreamStream":
        """Ask for a stream. `split` tells thought from answer in content."""
        stream = UpstreamStream(self._answer({SESSION_HEADER: session}, body, split))
        self.num_running += 1
        stream.task.add_done_callback(self._ended)
        return stream

    def _ended(self, task: asyncio.Task[None]) -> None:
        self.num_running -= 1

    async def _answer(self, headers: dict[str, str], body: Mapping[str, object], split: Split) -> AsyncGenerator[TextEvent, None]:
        """An empty event with the first byte, then the text. What got lost before that is asked again."""
        num_tries, has_begun = 0, False
        while not has_begun:
            try:
                async with self._http.stream("POST", "chat/completions", json=body, headers=headers) as response:
                    if response.status_code != 200:
                        raise _refusal(response.status_code, response.headers.get("retry-after", ""), await response.aread())
                    has_begun = True
                    yield TextEvent()
                    async for event in _events(response, split):
                        yield event
            except (httpx.NetworkError, httpx.RemoteProtocolError):
                num_tries += 1
                if has_begun or num_tries == TRIES:
                    raise
                await asyncio.sleep(RETRY_PAUSE_S)


class UpstreamStream:
    """The events of one answer: an async iterator of lists, the first as soon as it was accepted. Ends after `abort`."""

    place = 0

    def __init__(self, answer: AsyncGenerator[TextEvent, None]) -> None:
        self._events: asyncio.Queue[TextEvent | None] = asyncio.Queue()
        self.task = asyncio.create_task(self._pump(answer))
        self.task.add_done_callback(lambda task: self._events.put_nowait(None))

    def close_thought(self) -> None:
        """Nobody can do that from here."""

    def abort(self) -> None:
        """Close the connection, which ends the work there. Idempotent."""
        self.task.cancel()

    async def __anext__(self) -> list[TextEvent]:
        """Raises EngineError."""
        event = await self._events.get()
        if event is not None:
            return [event]
        self._events.put_nowait(None)
        if not self.task.cancelled():
            self.task.result()
        raise StopAsyncIteration

    async def _pump(self, answer: AsyncGenerator[TextEvent, None]) -> None:
        try:
            async with aclosing(answer):
                async for event in answer:
                    self._events.put_nowait(event)
        except httpx.HTTPError as error:
            raise _failure(error) from error


async def _events(response: httpx.Response, split: Split) -> AsyncGenerator[TextEvent, None]:
    finish, counted = "", None
    calls: dict[int, list[str]] = {}
    async for data in _data_lines(response):
        if data == b"[DONE]":
            break
        try:
            chunk = msgspec.json.decode(data)
        except msgspec.DecodeError as error:
            raise UpstreamError("the upstream sent something that is no part of an answer") from error
        if _at(chunk, object, "error"):
            raise UpstreamError("the upstream failed in the middle of its answer")
        if usage := _at(chunk, dict, "usage"):
            counted = {name: _at(usage, int, *path) for name, path in COUNTS.items()}
        finish = _at(chunk, str, "choices", 0, "finish_reason") or finish
        delta = _at(chunk, dict, "choices", 0, "delta")
        for part in _at(delta, list, "tool_calls") or []:
            named, told = (_at(part, str, "function", name) or "" for name in ("name", "arguments"))
            call = calls.setdefault(_at(part, int, "index") or 0, ["", ""])
            call[:] = call[0] or named, call[1] + told
        thought: Piece = ("reasoning", _at(delta, str, "reasoning_content") or _at(delta, str, "reasoning") or "")
        yield TextEvent((thought, *split(_at(delta, str, "content") or "")))
    if not finish:
        raise UpstreamError("the upstream's answer broke off")
    reason = FinishReason.LENGTH if finish == "length" else FinishReason.STOP
    yield TextEvent((), reason, counted, tuple((name, arguments) for _, (name, arguments) in sorted(calls.items())))


async def _data_lines(response: httpx.Response) -> AsyncGenerator[bytes, None]:
    # Cut at LF only: the JSON may hold U+2028 and the like, which other ways of cutting take for line ends.
    rest = b""
    async for chunk in response.aiter_bytes():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield line[len(b"data:") :].strip()
        if len(rest) > MAX_LINE_BYTES:
            raise UpstreamError("the upstream sent a line without end")


def _refusal(status: int, retry_after: str, said: bytes) -> EngineError:
    """Another status than 200, in our words: theirs may repeat what a customer wrote."""
    retry_after_s = int(retry_after) if re.fullmatch("[0-9]{1,5}", retry_after) else RETRY_AFTER_S
    match status:
        case 400 | 413 | 422:
            code = "context_length_exceeded" if _TOO_LONG.search(said) else None
            return UpstreamRefused("the conversation is too long" if code else "the upstream cannot work on this request", code=code)
        case 401 | 403:
            return UpstreamError("the upstream does not accept this server's API key")
        case 408 | 504:
            return UpstreamTimeout("the upstream did not answer in time")
        case 429:
            return UpstreamBusy("the upstream takes no more requests at the moment", retry_after_s=retry_after_s)
        case 503:
            return EngineDown("the upstream cannot work at the moment", retry_after_s)
        case _:
            return UpstreamError(f"the upstream answered with status {status}")


def _failure(error: httpx.HTTPError) -> EngineError:
    match error:
        case httpx.TimeoutException():
            return UpstreamTimeout("the upstream was silent for too long")
        case httpx.ConnectError():
            return EngineDown("the upstream cannot be reached", RETRY_AFTER_S)
        case _:
            return UpstreamError("the upstream's answer broke off")


def _at(value: object, kind: type[T], *path: str | int) -> T | None:
    """What lies there in a stranger's JSON; None when nothing of this kind does."""
    for step in path:
        if isinstance(value, dict):
            value = value.get(step)
        else:
            value = value[step] if isinstance(value, list) and isinstance(step, int) and step < len(value) else None
    return value if isinstance(value, kind) else None
