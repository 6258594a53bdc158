"""A chat job becomes a sequence in the engine, and its tokens become text: reasoning first, then content."""

import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Protocol

from backends.adapter import AdapterRegistry
from backends.constraint import Grammars
from backends.mini.shop import Language
from backends.protocol import ModelSpec, Tokenizer
from backends.sequence import CacheScope, SamplingParams, Thinking
from server.chat.choices import Choices
from server.chat.detokenizer import Vocabulary
from server.chat.reasoning import CLOSE, OPEN, PlainSplitter, Splitter, TextSplitter, ThinkTags, ThoughtState, TokenSplitter
from server.chat.stream import ChatResult, ChatStream, TextAssembler, TextDelta, TokenLogprob, Tokens
from server.chat.structured import Shape, refusal
from server.chat.template import ChatMessage, ChatTemplate, with_bos
from server.chat.tools import CALL_OPEN, CallReader, Tool, ToolUse
from server.effort import Effort, thinking_budget
from server.errors import InvalidRequest, Unsupported
from server.language import detect_language

__all__ = ["ChatJob", "ChatMessage", "ChatResult", "ChatService", "ChatStream", "CompletionJob", "TextDelta", "TokenLogprob"]

# For models that the catalogue does not know: what the QwQ-32B card asks for. Greedy decoding makes thinking models loop.
DEFAULT_SAMPLING = SamplingParams(temperature=0.6, top_k=40, top_p=0.95, max_tokens=0)
REST_OF_CONTEXT = 0
# llama.cpp reads the next one as "pick one for me".
SEEDS = 2**32 - 1

NO_TOOLS = ToolUse()
NO_ADAPTERS = AdapterRegistry(Path("no-adapters"))
# What the model tells itself before a forced close, so that the answer does not begin in the middle of a thought.
BRIDGES: dict[Language, str] = {"en": "\n\nThat is enough thinking; I will answer now.", "zh": "\n\n想得够多了，我现在就回答。"}
FORCED_CLOSE = f"\n{CLOSE}\n\n"
# A bridge may take this part of max_tokens; in less room the thought closes without.
BRIDGE_SHARE = 1 / 8


class Engine(Protocol):
    """The door to the engine that a chat needs: backends.client.EngineClient, or anything that streams tokens."""

    @property
    def spec(self) -> ModelSpec: ...
    def submit(
        self,
        prompt_token_ids: list[int],
        sampling: SamplingParams,
        *,
        scope: CacheScope | None = None,
        thinking: Thinking | None = None,
        reuse_output: bool = True,
    ) -> Tokens: ...
    def warm(self, prompt_token_ids: list[int], scope: CacheScope) -> None: ...


@dataclass(frozen=True, slots=True)
class ChatJob:
    """One answer to give. `thinking_budget` in tokens goes before `effort`; `max_tokens` 0 means what the context has left.

    `adapter` is a registry key; empty means the model as it is.
    `session` tells the conversations of one private scope apart; `response_format` is OpenAI's, as JSON.
    """

    messages: tuple[ChatMessage, ...]
    sampling: SamplingParams
    stop: tuple[str, ...] = ()
    effort: Effort | None = None
    thinking_budget: int | None = None
    scope_public: str = ""
    scope_private: str = ""
    session: str = ""
    logprobs: bool = False
    adapter: str = ""
    completion_id: str | None = None
    tool_use: ToolUse = NO_TOOLS
    response_format: str = ""

    @property
    def is_silent(self) -> bool:
        """No thought is wanted."""
        return self.effort == "none" if self.thinking_budget is None else self.thinking_budget == 0


@dataclass(frozen=True, slots=True)
class CompletionJob:
    """Text to continue as it stands: no template, no thoughts. A prompt is text or token ids."""

    prompt: str | tuple[int, ...]
    sampling: SamplingParams
    stop: tuple[str, ...] = ()
    scope_public: str = ""
    scope_private: str = ""
    adapter: str = ""
    completion_id: str | None = None


class ChatService:
    """Opens streams of text over one engine. `observe` sees the result of every stream, once, however it ended.

    A model file can be made to crash whoever parses it, so `read_tokenizer` is called when the engine has survived loading it; what it
    reads is kept. It may raise ModelLoadError, and so may the template: then nothing can be opened. `sampling` is what its card asks for.
    """

    adapters = NO_ADAPTERS
    # The machine is needed elsewhere: an effort means the least.
    is_throttled = False

    def __init__(
        self,
        engine: Engine,
        read_tokenizer: Callable[[], Tokenizer],
        observe: Callable[[ChatResult], None] = lambda result: None,
        sampling: SamplingParams = DEFAULT_SAMPLING,
    ) -> None:
        self._engine = engine
        self._read_tokenizer = read_tokenizer
        self._observe = observe
        self._sampling = sampling
        self._streams: list[ChatStream] = []

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        _ = self._engine.spec  # raises EngineDown before the model is loaded
        return self._read_tokenizer()

    @cached_property
    def template(self) -> ChatTemplate:
        """The model's own. Raises EngineDown before the model is loaded."""
        return ChatTemplate(self._tokenizer)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """The model's own. Raises EngineDown before the model is loaded."""
        return Vocabulary(self._tokenizer)

    @cached_property
    def _grammars(self) -> Grammars:
        return Grammars(lambda: self._tokenizer)

    @cached_property
    def _tags(self) -> ThinkTags | None:
        open_id, close_id = self._tokenizer.special_id(OPEN), self._tokenizer.special_id(CLOSE)
        return ThinkTags(open_id, close_id) if open_id is not None and close_id is not None else None

    @property
    def spec(self) -> ModelSpec:
        """The loaded model. Raises EngineDown."""
        return self._engine.spec

    def default_sampling(self) -> SamplingParams:
        """The model's own defaults."""
        return self._sampling

    def open(self, job: ChatJob | CompletionJob) -> ChatStream:
        """Render, check and submit; afterwards only the stream can fail.

        Raises InvalidRequest, ContextTooLong, EngineBusy or EngineDown.
        """
        stream = self._open(job)
        self._streams.append(stream)
        stream.on_end = self._close
        return stream

    @asynccontextmanager
    async def answering(self, job: ChatJob | CompletionJob, num_choices: int) -> AsyncIterator[Choices]:
        """So many answers to one prompt, of one id, each with a seed of its own; closed at the end. Raises what `open` does.

        What must have a shape is opened only when that can be forced.
        """
        if isinstance(job, ChatJob):
            job = await self._prepare(job)
        job = replace(job, completion_id=job.completion_id or new_completion_id("chatcmpl" if isinstance(job, ChatJob) else "cmpl"))
        async with AsyncExitStack() as stack:
            seeds = [(job.sampling.seed + index) % SEEDS for index in range(num_choices)]
            jobs = [replace(job, sampling=replace(job.sampling, seed=seed)) for seed in seeds]
            streams = [await stack.enter_async_context(self.open(each)) for each in jobs]
            for stream in streams[1:]:
                stream.result.shares_prompt = True
            yield await stack.enter_async_context(aclosing(Choices(streams)))

    async def _prepare(self, job: ChatJob) -> ChatJob:
        """The job with the grammar that its answer must follow. Raises InvalidRequest for a schema that cannot be enforced."""
        shape = Shape.of(job.tool_use, job.response_format)
        grammar = shape.grammar(lambda text: self._tokenizer.special_id(text) is not None)
        if not grammar:
            return job
        if self.template.thinks and self._tags is None and not job.is_silent:
            raise Unsupported("this model's thoughts cannot be told from its answer while it writes, so no format can be forced")
        for field, part in [*shape.parts.items(), ("tools" if shape.calls else "response_format", grammar)]:
            if reason := await self._grammars.check(part):
                raise InvalidRequest(refusal(reason), param=field)
        return replace(job, sampling=replace(job.sampling, grammar=grammar))

    @property
    def knows_tools(self) -> bool:
        """Whether the model can be shown tools. Raises EngineDown before the model is loaded."""
        return self.template.knows_tools

    def count_tokens(self, messages: Sequence[ChatMessage], effort: Effort | None, tools: tuple[Tool, ...] = ()) -> int:
        """How long the prompt for the next answer is. Raises InvalidRequest."""
        return len(self.template.render(messages, effort, tools).token_ids)

    def _open(self, job: ChatJob | CompletionJob) -> ChatStream:
        return self._open_chat(job) if isinstance(job, ChatJob) else self._open_text(job)

    def _open_chat(self, job: ChatJob) -> ChatStream:
        prompt = self.template.render(job.messages, "none" if job.is_silent else None, job.tool_use.tools)
        sampling = self._fit(self._sampling_of(job), len(prompt.token_ids))
        thinking = self._thinking(job, sampling, starts_open=prompt.thinking_open)
        tokens = self._engine.submit(
            prompt.token_ids,
            sampling,
            scope=CacheScope(prompt.public_len, job.scope_public, job.scope_private, job.adapter),
            thinking=thinking,
            reuse_output=not self.template.thinks,
        )
        opened = ThoughtState.THINKING if prompt.thinking_open else ThoughtState.UNDECIDED
        splitter = self._splitter(ThoughtState.ANSWERING if job.is_silent else opened)
        reader = CallReader(job.tool_use) if job.tool_use.callable else None
        text = TextAssembler(self.vocabulary, splitter, job.stop, wants_logprobs=job.logprobs, reader=reader)
        result = ChatResult(prompt.token_ids, sampling, self.template.sha256, job.adapter)
        stream = ChatStream(tokens, result, text, job.completion_id or new_completion_id("chatcmpl"), job.scope_public)
        stream.can_answer_now = thinking is not None
        return stream

    def _open_text(self, job: CompletionJob) -> ChatStream:
        if isinstance(job.prompt, str):
            token_ids = with_bos(self._tokenizer.encode(job.prompt, special=True), self._tokenizer)
        else:
            token_ids = list(job.prompt)
        if not token_ids or max(token_ids) >= self.vocabulary.size:
            raise InvalidRequest("the prompt must hold text or token ids of this model's vocabulary", param="prompt")
        sampling = self._fit(job.sampling, len(token_ids))
        tokens = self._engine.submit(token_ids, sampling, scope=CacheScope(private=job.scope_private, adapter=job.adapter))
        text = TextAssembler(self.vocabulary, PlainSplitter(self.vocabulary), job.stop)
        result = ChatResult(token_ids, sampling, self.template.sha256, job.adapter)
        return ChatStream(tokens, result, text, job.completion_id or new_completion_id("cmpl"), job.scope_public)

    def _sampling_of(self, job: ChatJob) -> SamplingParams:
        """A model that sees tools and may not call them never begins a call, where that is one token."""
        call_id = self._tokenizer.special_id(CALL_OPEN)
        if call_id is None or not job.tool_use.tools or job.tool_use.callable:
            return job.sampling
        return replace(job.sampling, logit_bias=job.sampling.logit_bias | {call_id: -100.0})

    def warm(
        self, messages: Sequence[ChatMessage], scope_public: str, scope_private: str, adapter: str = "", tools: tuple[Tool, ...] = ()
    ) -> None:
        """Prefill, when nobody waits, what the next turn of this conversation is certain to begin with.

        An answer without thoughts needs none of this: its own KV is that beginning.
        """
        if messages[-1].role == "assistant" and not self.template.thinks:
            return
        try:
            stem = self.template.stem(messages, tools)
        except InvalidRequest:
            return
        self._engine.warm(stem.token_ids, CacheScope(stem.public_len, scope_public, scope_private, adapter))

    def find(self, completion_id: str, owner: str) -> list[ChatStream]:
        """The open streams of this id; none that is over or was opened in another scope."""
        return [stream for stream in self._streams if (stream.completion_id, stream.owner) == (completion_id, owner)]

    @property
    def num_open(self) -> int:
        """Answers under way or waiting."""
        return len(self._streams)

    def interrupt_all(self, error: Exception) -> None:
        """End every open stream with this error."""
        for stream in list(self._streams):
            stream.interrupt(error)

    def _close(self, stream: ChatStream) -> None:
        if stream in self._streams:
            self._streams.remove(stream)
        self._observe(stream.result)

    def _fit(self, sampling: SamplingParams, num_prompt_tokens: int) -> SamplingParams:
        """Room for the answer. A prompt that does not fit at all is left to the engine's own check."""
        if sampling.logit_bias and max(sampling.logit_bias) >= self.vocabulary.size:
            raise InvalidRequest("a token id is not in this model's vocabulary", param="logit_bias")
        spec = self._engine.spec
        limit = min(spec.context_length, spec.num_kv_tokens)
        room = limit - num_prompt_tokens
        if sampling.max_tokens == REST_OF_CONTEXT:
            return replace(sampling, max_tokens=max(room, 1))
        if 0 < room < sampling.max_tokens:
            wanted = f"the prompt has {num_prompt_tokens} tokens and max_tokens asks for {sampling.max_tokens} more"
            message = f"{wanted}; this model's context holds {limit}"
            raise InvalidRequest(message, param="max_tokens", code="context_length_exceeded")
        return sampling

    def _thinking(self, job: ChatJob, sampling: SamplingParams, *, starts_open: bool) -> Thinking | None:
        if self._tags is None:
            return None
        budget, least = job.thinking_budget, None
        if budget is None and job.effort is not None:
            budget = thinking_budget(job.effort, sampling.max_tokens)
            least = min(budget, thinking_budget("minimal", sampling.max_tokens))
            budget = least if self.is_throttled else budget
        bridge = BRIDGES[detect_language(job.messages[-1].content, "en")]
        bridged, plain = (tuple(self._tokenizer.encode(text + FORCED_CLOSE, special=True)) for text in (bridge, ""))
        close_ids = bridged if len(bridged) <= BRIDGE_SHARE * sampling.max_tokens else plain
        return Thinking(self._tags.open_id, self._tags.close_id, close_ids, starts_open, budget, least)

    def _splitter(self, state: ThoughtState) -> Splitter:
        if self._tags is not None:
            return TokenSplitter(self.vocabulary, self._tags, state)
        return TextSplitter(self.vocabulary, state) if self.template.thinks else PlainSplitter(self.vocabulary)


def new_completion_id(kind: str) -> str:
    """An id that nobody can guess: it is what cancels the stream."""
    return f"{kind}-{secrets.token_hex(16)}"
