"""The OpenAI wire: what `/v1` sends. A stream's chunks have everything but their text encoded beforehand."""

from collections.abc import Sequence
from typing import Literal

import msgspec

DONE = b"data: [DONE]\n\n"
_encode = msgspec.json.Encoder().encode


class PromptDetails(msgspec.Struct):
    cached_tokens: int


class CompletionDetails(msgspec.Struct):
    reasoning_tokens: int


class Usage(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails


class TopLogprob(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int]


class LogprobEntry(TopLogprob):
    top_logprobs: list[TopLogprob]


class Logprobs(msgspec.Struct):
    content: list[LogprobEntry]
    refusal: None = None


class AssistantMessage(msgspec.Struct, omit_defaults=True):
    """Both names that clients know for a thought carry it."""

    role: str
    content: str | None
    refusal: None
    tool_calls: list[dict[str, object]] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None


class ChatChoice(msgspec.Struct):
    index: int
    message: AssistantMessage
    finish_reason: str
    logprobs: Logprobs | None


class TextChoice(msgspec.Struct):
    index: int
    text: str
    finish_reason: str | None
    logprobs: None = None


class Completion(msgspec.Struct):
    """A whole answer, as chat or as text; without choices and counts, what the chunks of a stream share."""

    id: str
    object: Literal["chat.completion", "text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: Sequence[ChatChoice | TextChoice] = ()
    usage: Usage | None = None


class Model(msgspec.Struct):
    id: str
    created: int
    max_model_len: int
    object: str = "model"
    owned_by: str = "kefu"


class ModelList(msgspec.Struct):
    data: list[Model]
    object: str = "list"


def count_usage(num_prompt: int, num_completion: int, num_cached: int, num_reasoning: int) -> Usage:
    """Token counts; thoughts are part of the completion."""
    total = num_prompt + num_completion
    return Usage(num_prompt, num_completion, total, PromptDetails(num_cached), CompletionDetails(num_reasoning))


def logprob_entry(data: bytes, logprob: float, top: tuple[tuple[bytes, float], ...]) -> LogprobEntry:
    """One token, with the likeliest tokens in its place."""
    others = [TopLogprob(_text(other), other_logprob, list(other)) for other, other_logprob in top]
    return LogprobEntry(_text(data), logprob, list(data), others)


def assistant_message(content: str, reasoning: str, calls: list[dict[str, object]]) -> AssistantMessage:
    """What was said. A thought that did not happen is left out, and so is content beside calls."""
    thought = reasoning or None
    return AssistantMessage("assistant", content or (None if calls else ""), None, calls or None, thought, thought)


class _Chunks:
    """Writes the chunks of one choice of a stream. With `counts_usage` every chunk says `usage: null` until the last, which counts."""

    def __init__(self, whole: Completion, kind: str, index: int, *, counts_usage: bool) -> None:
        fields = {
            "id": whole.id,
            "object": kind,
            "created": whole.created,
            "model": whole.model,
            "system_fingerprint": whole.system_fingerprint,
        }
        self._bare = b"data: " + _encode(fields)[:-1] + b',"choices":['
        self._head = self._bare + b'{"index":%d,' % index
        self._tail = b'],"usage":null}\n\n' if counts_usage else b"]}\n\n"
        self._still_open = b',"finish_reason":null,"logprobs":null}' + self._tail

    def counts(self, usage: Usage) -> bytes:
        """The chunk that counts; it has no choices."""
        return self._bare + b'],"usage":' + _encode(usage) + b"}\n\n"


class ChatChunks(_Chunks):
    def __init__(self, whole: Completion, index: int = 0, *, counts_usage: bool) -> None:
        super().__init__(whole, "chat.completion.chunk", index, counts_usage=counts_usage)
        self._content = self._head + b'"delta":{"content":'
        self._reasoning = self._head + b'"delta":{"reasoning_content":'
        self._calls = self._head + b'"delta":{"tool_calls":['

    def first(self) -> bytes:
        """Who speaks."""
        return self._content + b'"","role":"assistant","refusal":null}' + self._still_open

    def content(self, text: str, logprobs: Logprobs | None) -> bytes:
        if logprobs is None:
            return self._content + _encode(text) + b"}" + self._still_open
        return self._content + _encode(text) + b'},"finish_reason":null,"logprobs":' + _encode(logprobs) + b"}" + self._tail

    def reasoning(self, text: str) -> bytes:
        encoded = _encode(text)
        return self._reasoning + encoded + b',"reasoning":' + encoded + b"}" + self._still_open

    def end(self, finish_reason: str) -> bytes:
        """The last chunk with a choice."""
        return self._head + b'"delta":{},"logprobs":null,"finish_reason":' + _encode(finish_reason) + b"}" + self._tail

    def call(self, index: int, call_id: str, name: str, arguments: str) -> bytes:
        """A call in two chunks: which tool, then with what."""
        named = {"index": index, "id": call_id, "type": "function", "function": {"name": name, "arguments": ""}}
        told = {"index": index, "function": {"arguments": arguments}}
        return b"".join(self._calls + _encode(part) + b"]}" + self._still_open for part in (named, told))


class TextChunks(_Chunks):
    def __init__(self, whole: Completion, index: int = 0, *, counts_usage: bool) -> None:
        super().__init__(whole, "text_completion", index, counts_usage=counts_usage)
        self._text = self._head + b'"text":'

    def first(self) -> bytes:
        return self._text + b'""' + self._still_open

    def content(self, text: str) -> bytes:
        return self._text + _encode(text) + self._still_open

    def end(self, finish_reason: str) -> bytes:
        return self._text + b'"","logprobs":null,"finish_reason":' + _encode(finish_reason) + b"}" + self._tail


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")
