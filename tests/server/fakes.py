"""A tokenizer of bytes, an engine and a chat that say what they are told: for the edges that a real model reaches only by luck."""

import asyncio
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Generic, Literal, Self, TypeVar

from backends.adapter import AdapterRegistry
from backends.protocol import EngineBusy, EngineDied, EngineDown, ModelSpec
from backends.sequence import CacheScope, FinishReason, SamplingParams, Thinking
from backends.wire import TokenEvent
from server.chat.service import NO_ADAPTERS, ChatJob, ChatMessage, ChatResult, TextDelta
from server.chat.template import Prompt
from server.chat.tools import Tool, ToolCall
from server.errors import Unsupported

Item = TypeVar("Item")

SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>")
QWQ_TEMPLATE = (Path(__file__).parents[2] / "backends" / "mini" / "chat_template.jinja").read_text()
SPEC = ModelSpec(
    name="fake",
    engine="fake",
    engine_version="1",
    sha256="0" * 64,
    quantization="none",
    context_length=4096,
    num_kv_tokens=8192,
    max_sequences=4,
    eos_token_ids=(258,),
    num_parameters=0,
    weight_bytes=0,
)


class ByteTokenizer:
    """One token per byte, then the special ones. Without `special_tags` the think tags are ordinary text."""

    def __init__(self, template: str | None = QWQ_TEMPLATE, *, special_tags: bool = True) -> None:
        self.chat_template = template
        self._specials = SPECIALS if special_tags else SPECIALS[:3]
        self._cut = re.compile(f"({'|'.join(map(re.escape, self._specials))})")
        self.vocab_size = 256 + len(self._specials)
        self.eos_token_ids = (256, 258)
        self.bos_text, self.eos_text, self.adds_bos = "", SPECIALS[2], False

    def encode(self, text: str, *, special: bool) -> list[int]:
        pieces = self._cut.split(text) if special else [text]
        ids: list[int] = []
        for piece in pieces:
            ids.extend([256 + self._specials.index(piece)] if special and piece in self._specials else piece.encode())
        return ids

    def token_bytes(self, token_id: int) -> bytes:
        if token_id < 256:
            return bytes([token_id])
        text = self._specials[token_id - 256]
        return b"" if text.startswith("<|") else text.encode()

    def special_id(self, text: str) -> int | None:
        return 256 + self._specials.index(text) if text in self._specials else None

    def special_texts(self) -> tuple[str, ...]:
        return self._specials


class _Script(Generic[Item]):
    """An async iterator of what a test puts in; None ends it, an error breaks it."""

    def __init__(self) -> None:
        self._items: asyncio.Queue[Item | Exception | None] = asyncio.Queue()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Item:
        item = await self._items.get()
        if item is None:
            raise StopAsyncIteration
        if isinstance(item, Exception):
            raise item
        return item


class ScriptedTokens(_Script[list[TokenEvent]]):
    """What the test pushes, and a record of what was asked of it."""

    def __init__(self, engine: "ScriptedEngine", scope: CacheScope | None, thinking: Thinking | None, sampling: SamplingParams) -> None:
        super().__init__()
        self.scope, self.thinking, self.sampling = scope, thinking, sampling
        self.place = 0
        self.num_aborts = 0
        self.num_closes = 0
        self._engine = engine

    def push(self, *events: TokenEvent) -> None:
        self._items.put_nowait(list(events))

    def die(self, error: Exception | None = None) -> None:
        self._items.put_nowait(error or EngineDied("gone"))

    def close_thought(self) -> None:
        self.num_closes += 1

    def abort(self) -> None:
        if self in self._engine.open:
            self._engine.open.remove(self)
            self.num_aborts += 1
            self._items.put_nowait(None)

    async def __anext__(self) -> list[TokenEvent]:
        events = await super().__anext__()
        if events[-1].finish_reason is not None and self in self._engine.open:
            self._engine.open.remove(self)
        return events


class ScriptedEngine:
    """Plays `script` (batches of events) for every sequence; an empty script leaves it to the test to push."""

    def __init__(self, script: Iterable[list[TokenEvent]] = ()) -> None:
        self.script = [list(batch) for batch in script]
        self.open: list[ScriptedTokens] = []
        self.submitted: list[ScriptedTokens] = []
        self.prompts: list[list[int]] = []
        self.warmed: list[tuple[list[int], CacheScope]] = []
        self.refusal: EngineBusy | EngineDown | None = None
        self.spec = SPEC

    def submit(
        self,
        prompt_token_ids: list[int],
        sampling: SamplingParams,
        *,
        scope: CacheScope | None = None,
        thinking: Thinking | None = None,
        reuse_output: bool = True,
    ) -> ScriptedTokens:
        if self.refusal is not None:
            raise self.refusal
        tokens = ScriptedTokens(self, scope, thinking, sampling)
        self.open.append(tokens)
        self.submitted.append(tokens)
        self.prompts.append(prompt_token_ids)
        for batch in self.script:
            tokens.push(*batch)
        return tokens

    def warm(self, prompt_token_ids: list[int], scope: CacheScope) -> None:
        self.warmed.append((prompt_token_ids, scope))

    async def check(self) -> str:
        return str(self.refusal or "")


def tokens(text: str, finish: FinishReason | None = FinishReason.STOP, per_batch: int = 1) -> list[list[TokenEvent]]:
    """The script of a model that says `text`, in batches."""
    ids = ByteTokenizer().encode(text, special=True)
    events = [TokenEvent(1, num_cached=3), *(TokenEvent(1, token_id, -0.5) for token_id in ids)]
    if finish is not None:
        events.append(TokenEvent(1, 258, -0.1, (), finish) if finish is FinishReason.STOP else TokenEvent(1, finish_reason=finish))
    return [events[i : i + per_batch] for i in range(0, len(events), per_batch)]


class ScriptedStream(_Script[TextDelta]):
    """Stands in for ChatStream."""

    def __init__(self, job: ChatJob, num_prompt_tokens: int, place: int) -> None:
        super().__init__()
        self.job = job
        self.completion_id = job.completion_id or ""
        self.place = place
        self.result = ChatResult(list(range(num_prompt_tokens)), job.sampling, "t" * 64)
        self.is_closed = False
        self.can_answer_now, self.num_closes = True, 0

    def think(self, text: str) -> None:
        self.result.reasoning += text
        self._items.put_nowait(TextDelta("reasoning", text))

    def say(self, text: str) -> None:
        self.result.content += text
        self.result.completion_token_ids += [7]
        self.result.logprobs += [-0.25]
        self._items.put_nowait(TextDelta("content", text))

    def call(self, name: str, arguments: str) -> None:
        """End with a call."""
        self.result.tool_calls = (ToolCall(f"call_{len(self.completion_id)}_{id(self)}", name, arguments),)
        self.end("tool_calls")

    def end(self, reason: Literal["stop", "length", "abort", "tool_calls"] = "stop") -> None:
        self.result.finish_reason = reason
        self._items.put_nowait(None)

    def die(self, error: Exception | None = None) -> None:
        self.result.finish_reason = "error"
        self._items.put_nowait(error or EngineDied("killed by a test"))

    def answer_now(self) -> None:
        if not self.can_answer_now:
            raise Unsupported("not here")
        self.num_closes += 1

    def stop(self) -> None:
        self._items.put_nowait(None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.is_closed = True


class CountingTemplate:
    """One token per character."""

    def render(self, messages: Sequence[ChatMessage], effort: str | None, tools: Sequence[Tool] = ()) -> Prompt:
        num_chars = sum(len(message.content) for message in messages) + sum(len(tool.definition) for tool in tools)
        return Prompt([1] * num_chars, 0, thinking_open=True)


@dataclass
class ScriptedChat:
    """Stands in for ChatService. With `script`, streams speak it by themselves; without, the test does."""

    script: Sequence[str] | None = None
    refuse: Exception | None = None
    spec: ModelSpec = SPEC
    place: int = 0
    knows_tools: bool = True
    adapters: AdapterRegistry = NO_ADAPTERS
    streams: list[ScriptedStream] = field(default_factory=list)
    warmed: list[tuple[tuple[ChatMessage, ...], str, str]] = field(default_factory=list)
    template: CountingTemplate = field(default_factory=CountingTemplate)

    def count_tokens(self, messages: Sequence[ChatMessage], effort: str | None, tools: Sequence[Tool] = ()) -> int:
        return len(self.template.render(messages, effort, tools).token_ids)

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

    def warm(
        self, messages: Sequence[ChatMessage], scope_public: str, scope_private: str, adapter: str = "", tools: Sequence[Tool] = ()
    ) -> None:
        self.warmed.append((tuple(messages), scope_public, scope_private))
