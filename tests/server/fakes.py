"""A tokenizer of bytes and an engine that says what it is told: for the edges that a real model reaches only by luck."""

import asyncio
import re
from collections.abc import Iterable
from pathlib import Path

from backends.protocol import EngineBusy, EngineDied, EngineDown, ModelSpec
from backends.sequence import CacheScope, FinishReason, SamplingParams, Thinking
from backends.wire import TokenEvent

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


class ScriptedTokens:
    """What the test pushes, and a record of what was asked of it."""

    def __init__(self, engine: "ScriptedEngine", scope: CacheScope | None, thinking: Thinking | None, sampling: SamplingParams) -> None:
        self.scope, self.thinking, self.sampling = scope, thinking, sampling
        self.place = 0
        self.num_aborts = 0
        self.num_closes = 0
        self._engine = engine
        self._events: asyncio.Queue[list[TokenEvent] | EngineDied | None] = asyncio.Queue()

    def push(self, *events: TokenEvent) -> None:
        self._events.put_nowait(list(events))

    def die(self) -> None:
        self._events.put_nowait(EngineDied("gone"))

    def close_thought(self) -> None:
        self.num_closes += 1

    def abort(self) -> None:
        if self in self._engine.open:
            self._engine.open.remove(self)
            self.num_aborts += 1
            self._events.put_nowait(None)

    async def __anext__(self) -> list[TokenEvent]:
        events = await self._events.get()
        if events is None:
            raise StopAsyncIteration
        if isinstance(events, EngineDied):
            raise events
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
