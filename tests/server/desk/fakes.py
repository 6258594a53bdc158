"""A chat service whose answers a test speaks itself, word by word."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal, Self

from backends.protocol import EngineDied, ModelSpec
from backends.sequence import SamplingParams
from server.chat.service import ChatJob, ChatMessage, ChatResult, TextDelta
from server.chat.template import Prompt

SPEC = ModelSpec(
    name="scripted",
    engine="none",
    engine_version="1",
    sha256="f" * 64,
    quantization="Q8_0",
    context_length=4096,
    num_kv_tokens=8192,
    max_sequences=2,
    eos_token_ids=(0,),
    num_parameters=1,
    weight_bytes=1,
)


class ScriptedStream:
    """Stands in for ChatStream."""

    def __init__(self, job: ChatJob, num_prompt_tokens: int, place: int) -> None:
        self.job = job
        self.completion_id = job.completion_id or ""
        self.place = place
        self.result = ChatResult(list(range(num_prompt_tokens)), job.sampling, "t" * 64)
        self.is_closed = False
        self._queue: asyncio.Queue[TextDelta | Exception | None] = asyncio.Queue()

    def think(self, text: str) -> None:
        self.result.reasoning += text
        self._queue.put_nowait(TextDelta("reasoning", text))

    def say(self, text: str) -> None:
        self.result.content += text
        self.result.completion_token_ids += [7]
        self.result.logprobs += [-0.25]
        self._queue.put_nowait(TextDelta("content", text))

    def end(self, reason: Literal["stop", "length", "abort"] = "stop") -> None:
        self.result.finish_reason = reason
        self._queue.put_nowait(None)

    def die(self, error: Exception | None = None) -> None:
        self.result.finish_reason = "error"
        self._queue.put_nowait(error or EngineDied("killed by a test"))

    def stop(self) -> None:
        self._queue.put_nowait(None)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> TextDelta:
        item = await self._queue.get()
        if item is None:
            raise StopAsyncIteration
        if isinstance(item, Exception):
            raise item
        return item

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.is_closed = True


class CountingTemplate:
    """One token per character."""

    def render(self, messages: Sequence[ChatMessage], effort: str | None) -> Prompt:
        return Prompt([1] * sum(len(message.content) for message in messages), 0, thinking_open=True)


@dataclass
class ScriptedChat:
    """Stands in for ChatService. With `script`, streams speak it by themselves; without, the test does."""

    script: Sequence[str] | None = None
    refuse: Exception | None = None
    spec: ModelSpec = SPEC
    place: int = 0
    streams: list[ScriptedStream] = field(default_factory=list)
    warmed: list[tuple[tuple[ChatMessage, ...], str, str]] = field(default_factory=list)
    template: CountingTemplate = field(default_factory=CountingTemplate)

    def default_sampling(self) -> SamplingParams:
        return SamplingParams()

    def open(self, job: ChatJob) -> ScriptedStream:
        if self.refuse:
            raise self.refuse
        stream = ScriptedStream(job, sum(len(message.content) for message in job.messages), self.place)
        self.streams.append(stream)
        if self.script is not None:
            stream.think("a secret thought")
            for text in self.script:
                stream.say(text)
            stream.end()
        return stream

    def warm(self, messages: Sequence[ChatMessage], scope_public: str, scope_private: str) -> None:
        self.warmed.append((tuple(messages), scope_public, scope_private))
