"""Messages to prompt tokens, through the model's own chat template."""

import hashlib
import itertools
import json
import re
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from backends.protocol import ModelLoadError, Tokenizer
from server.chat.reasoning import CLOSE, OPEN
from server.chat.sandbox import Renderer, TemplateRefused
from server.chat.tools import CallReader, Tool, ToolCall, ToolUse
from server.effort import Effort
from server.errors import InvalidRequest, Unsupported

Role = Literal["system", "developer", "user", "assistant", "tool"]

MAX_CACHED_PREFIXES = 64
# Two texts that share no first character: where their renderings part is where the visitor's text would begin.
_PROBES = ("Apple", "zebra")
_PRIVATE_USE = range(0xE000, 0xF8FF)
_PROBE_TOOL = Tool("probe", '{"type": "function", "function": {"name": "probe", "description": "apples or zebras", "parameters": {}}}')


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One turn, as text. An assistant may have called tools in it; a tool's turn answers the call of `tool_call_id`."""

    role: Role
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the model reads. The first `public_len` tokens come from the template and the system messages alone."""

    token_ids: list[int]
    public_len: int
    thinking_open: bool


class ChatTemplate:
    """A model's template, ready to render. Raises ModelLoadError when the model has none that can be used.

    `opens_thought` tells whether the template starts the answer inside a thought; `thinks` whether the model thinks at all.
    Special tokens spelled out in a message are encoded as plain text, so nobody can write a turn or close a thought.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        source = tokenizer.chat_template or ""
        self.sha256 = hashlib.sha256(source.encode()).hexdigest()
        self._source = source
        spelled = sorted((re.escape(text) for text in {*tokenizer.special_texts(), OPEN, CLOSE} if len(text) > 1), key=len, reverse=True)
        self._special_start = re.compile(f"(?=(?:{'|'.join(spelled)}))(.)", re.DOTALL)
        self._prefixes: OrderedDict[tuple[tuple[ChatMessage, ...], tuple[Tool, ...]], list[int]] = OrderedDict()
        try:
            self._renderer = Renderer(source)
            opening = self._render_text([ChatMessage("user", _PROBES[0])], (), "")
        except TemplateRefused as error:
            raise ModelLoadError(f"this model's chat template cannot be used: {error.said or error}") from error
        self.opens_thought = opening.rstrip().endswith(OPEN)
        self.has_tags = tokenizer.special_id(OPEN) is not None and tokenizer.special_id(CLOSE) is not None
        self.thinks = self.opens_thought or self.has_tags

    @cached_property
    def knows_tools(self) -> bool:
        """Whether it shows the model what it may call, and calls as we read them."""
        call, reader = ToolCall("probe0000", _PROBE_TOOL.name, "{}"), CallReader(ToolUse((_PROBE_TOOL,)))
        turns = [ChatMessage("user", _PROBES[0]), ChatMessage("assistant", "", (call,)), ChatMessage("tool", "none", (), call.id)]
        try:
            text = self._render_text(turns, (_PROBE_TOOL,), "")
        except TemplateRefused:
            return False
        reader.push(text)
        return bool(reader.calls) and "apples or zebras" in text

    def render(self, messages: Sequence[ChatMessage], effort: Effort | None, tools: tuple[Tool, ...] = ()) -> Prompt:
        """The prompt that asks for the next answer. Effort "none" closes the thought in the prompt. Raises InvalidRequest."""
        token_ids = self._encode(messages, tools)
        if effort == "none" and self.thinks:
            token_ids += self._tokenizer.encode(f"\n{CLOSE}\n\n" if self.opens_thought else f"{OPEN}\n\n{CLOSE}\n\n", special=True)
        return Prompt(token_ids, self._public_len(messages, tools, token_ids), thinking_open=self.opens_thought and effort != "none")

    def text(self, messages: Sequence[ChatMessage]) -> str:
        """The prompt as text, its thought closed and empty. Nothing guards special tokens here. Raises TemplateRefused."""
        closed = (f"\n{CLOSE}\n\n" if self.opens_thought else f"{OPEN}\n\n{CLOSE}\n\n") if self.thinks else ""
        return self._render_text(messages, (), "") + closed

    def stem(self, messages: Sequence[ChatMessage], tools: tuple[Tool, ...] = ()) -> Prompt:
        """The part of the next turn's prompt that is certain whatever the user says next. Raises InvalidRequest."""
        token_ids = self._stem(messages, tools)
        return Prompt(token_ids, self._public_len(messages, tools, token_ids), thinking_open=False)

    def _stem(self, messages: Sequence[ChatMessage], tools: tuple[Tool, ...]) -> list[int]:
        first, second = (self._encode([*messages, ChatMessage("user", probe)], tools) for probe in _PROBES)
        return first[: common_length(first, second)]

    def _public_len(self, messages: Sequence[ChatMessage], tools: tuple[Tool, ...], token_ids: Sequence[int]) -> int:
        leading = tuple(itertools.takewhile(lambda message: message.role in ("system", "developer"), messages))
        prefix = self._prefixes.pop((leading, tools), None) or self._stem(leading, tools)
        self._prefixes[leading, tools] = prefix
        if len(self._prefixes) > MAX_CACHED_PREFIXES:
            self._prefixes.popitem(last=False)
        return common_length(prefix, token_ids)

    def _encode(self, messages: Sequence[ChatMessage], tools: tuple[Tool, ...]) -> list[int]:
        if not self.knows_tools and (tools or any(each.tool_calls or each.role == "tool" for each in messages)):
            raise Unsupported("this model's chat template knows no tools, so calling tools is not supported", param="tools")
        fence = self._fence(messages, tools)
        try:
            text = self._render_text(messages, tools, fence)
        except TemplateRefused as error:
            # Only what the template's author wrote is repeated, never what a visitor did.
            said = error.said if error.said and error.said in self._source else ""
            raise InvalidRequest(
                f"the model's chat template refuses these messages{': ' + said if said else ''}", param="messages"
            ) from error
        return with_bos(
            [token_id for piece in text.split(fence) for token_id in self._tokenizer.encode(piece, special=True)], self._tokenizer
        )

    def _fence(self, messages: Sequence[ChatMessage], tools: tuple[Tool, ...]) -> str:
        """A character that is nowhere else in the text. Cutting the rendered text there parts every special token that was typed."""
        texts = [self._source, *(tool.definition for tool in tools)]
        for message in messages:
            texts += [message.content, message.tool_call_id]
            texts += [text for call in message.tool_calls for text in (call.id, call.arguments)]
        for code in _PRIVATE_USE:
            if not any(chr(code) in text for text in texts):
                return chr(code)
        raise InvalidRequest("these messages use every private character there is", param="messages")

    def _render_text(self, messages: Sequence[ChatMessage], tools: tuple[Tool, ...], fence: str) -> str:
        turns = [self._fenced_all(_turn(each), fence) for each in messages]
        shown = [self._fenced_all({"type": "function", "function": _shown(tool)}, fence) for tool in tools] or None
        bos, eos = self._tokenizer.bos_text, self._tokenizer.eos_text
        return self._renderer.render(messages=turns, add_generation_prompt=True, bos_token=bos, eos_token=eos, tools=shown)

    def _fenced_all(self, value: object, fence: str) -> object:
        if isinstance(value, str):
            return self._fenced(value, fence)
        if isinstance(value, dict):
            return {self._fenced(name, fence): self._fenced_all(each, fence) for name, each in value.items()}
        return [self._fenced_all(each, fence) for each in value] if isinstance(value, list) else value

    def _fenced(self, content: str, fence: str) -> str:
        return self._special_start.sub(lambda match: match.group(1) + fence, content)


def with_bos(token_ids: list[int], tokenizer: Tokenizer) -> list[int]:
    """A text's tokens, beginning with the model's BOS, once, where the model was trained to see one. No tokens stay none."""
    bos = tokenizer.special_id(tokenizer.bos_text) if tokenizer.adds_bos else None
    return token_ids if bos is None or token_ids[:1] in ([], [bos]) else [bos, *token_ids]


def common_length(first: Sequence[int], second: Sequence[int]) -> int:
    """How many leading items are the same."""
    pairs = zip(first, second, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))


def _shown(tool: Tool) -> dict[str, object]:
    """What the model sees of a tool: `strict` steers us."""
    return {name: value for name, value in tool.function.items() if name != "strict"}


def _turn(message: ChatMessage) -> dict[str, object]:
    """As templates read it: with the arguments of calls as objects."""
    turn: dict[str, object] = {"role": "system" if message.role == "developer" else message.role, "content": visible(message)}
    if message.tool_calls:
        turn["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": json.loads(call.arguments)}}
            for call in message.tool_calls
        ]
    return turn | ({"tool_call_id": message.tool_call_id} if message.tool_call_id else {})


def visible(message: ChatMessage) -> str:
    """What of a turn is sent again: of an answer, never the thought."""
    if message.role != "assistant":
        return message.content
    _, tag, answer = message.content.rpartition(CLOSE)
    return answer.lstrip("\n") if tag else answer.partition(OPEN)[0]
