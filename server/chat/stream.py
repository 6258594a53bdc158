"""One answer on its way: the engine's events in, text deltas out, and what it was in the end."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal, Protocol, Self

from backends.protocol import EngineError
from backends.sequence import FinishReason, SamplingParams
from backends.upstream import TextEvent
from backends.wire import TokenEvent
from server.chat.detokenizer import Vocabulary
from server.chat.reasoning import Channel, Piece, Splitter
from server.chat.stops import StopFinder
from server.chat.tools import CallReader, ToolCall
from server.errors import Unsupported

Finish = Literal["stop", "length", "tool_calls", "abort", "error"]
# A loop that was cut short is told as what it is to the reader: an answer that ends early.
FINISH: dict[FinishReason, Finish] = {
    FinishReason.STOP: "stop",
    FinishReason.LENGTH: "length",
    FinishReason.REPETITION: "length",
    FinishReason.ABORT: "abort",
    FinishReason.NO_MEMORY: "error",
}


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token of the content, its log probability, and the likeliest tokens in its place."""

    data: bytes
    logprob: float
    top: tuple[tuple[bytes, float], ...] = ()


@dataclass(frozen=True, slots=True)
class TextDelta:
    """New text of one channel. `logprobs` are the tokens that this text completes, when they were asked for.

    `calls`, each whole and with its index, come in a delta of the content that has no text.
    """

    channel: Channel
    text: str
    logprobs: tuple[TokenLogprob, ...] = ()
    calls: tuple[tuple[int, ToolCall], ...] = ()


@dataclass(slots=True)
class ChatResult:
    """What an answer was in the end: everything a later training round needs. Times are milliseconds since it was asked for.

    `shares_prompt`: another choice of the same request counts the prompt.
    An answer from an upstream has no token ids; of what is None there, nothing was told.
    """

    prompt_token_ids: list[int] | None
    sampling: SamplingParams
    template_sha256: str | None
    adapter: str = ""
    shares_prompt: bool = False
    finish_reason: Finish = "abort"
    reasoning: str = ""
    content: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    completion_token_ids: list[int] | None = field(default_factory=list)
    logprobs: list[float | None] | None = field(default_factory=list)
    num_prompt_tokens: int | None = None
    num_completion_tokens: int | None = None
    num_cached: int | None = 0
    num_reasoning_tokens: int | None = 0
    ttft_ms: float | None = None
    first_answer_ms: float | None = None
    total_ms: float = 0.0

    @property
    def forced_close(self) -> bool:
        """Only the tokens of a forced close were not sampled, so only they have no log probability."""
        return None in (self.logprobs or ())


class Tokens(Protocol):
    """The events of one answer, tokens or an upstream's text: lists, each with everything since the last look. Ends after `abort`."""

    @property
    def place(self) -> int: ...
    def close_thought(self) -> None: ...
    def abort(self) -> None: ...
    async def __anext__(self) -> Sequence[TokenEvent | TextEvent]: ...


class TextAssembler:
    """Tokens to text: channels, then calls and stop strings in the content alone; a thought may mention one without consequences."""

    def __init__(
        self,
        vocabulary: Vocabulary | None,
        splitter: Splitter,
        stops: Sequence[str] = (),
        *,
        wants_logprobs: bool = False,
        reader: CallReader | None = None,
    ) -> None:
        self.reasoning: list[str] = []
        self.content: list[str] = []
        self.calls: list[ToolCall] = reader.calls if reader else []
        self._reader = reader
        self._splitter = splitter
        self._stops = StopFinder(stops)
        self._ledger = LogprobLedger(vocabulary) if wants_logprobs and vocabulary else None
        self._num_taken = [0, 0, 0]
        self._num_logged: int | None = None

    @property
    def is_stopped(self) -> bool:
        return bool(self._stops.found) or (self._reader is not None and self._reader.is_full)

    @property
    def num_reasoning_tokens(self) -> int:
        return self._splitter.num_reasoning_tokens

    def push(self, event: TokenEvent) -> None:
        """Add one token."""
        for channel, text in self._splitter.push(event.token_id):
            if channel == "reasoning":
                self.reasoning.append(text)
            else:
                # What a call was made of is no text, and neither has logprobs after it.
                if self._ledger is not None and not self.calls:
                    self._ledger.enter(event, text)
                self._say(text)

    def add(self, pieces: Iterable[Piece]) -> None:
        """Add text whose channel is known."""
        for channel, text in pieces:
            if channel == "reasoning":
                self.reasoning.append(text)
            elif not self.is_stopped:
                self._say(text)

    def add_calls(self, calls: Iterable[tuple[str, str]]) -> None:
        """Add calls that somebody else has read. What is no JSON stays text; more than are wanted are dropped."""
        for name, arguments in calls:
            if self.is_stopped:
                return
            if self._reader is None or not self._reader.take(name, arguments):
                self.content.append(f"{name}({arguments})")

    def finish(self) -> None:
        """Nothing more will come: what was held back is text after all."""
        if not self.is_stopped:
            self.add(self._splitter.flush())
        if not self.is_stopped and self._reader is not None:
            self.content.append(self._stops.push(self._reader.flush()))
        if not self._stops.found:
            self.content.append(self._stops.flush())

    def _say(self, text: str) -> None:
        self.content.append(self._stops.push(text if self._reader is None else self._reader.push(text)))
        if self.calls and self._num_logged is None:
            self._num_logged = len(self.content)

    def take(self, *, is_last: bool) -> list[TextDelta]:
        """The text since the last look: at most one delta of each channel, reasoning first, calls last."""
        reasoning, content = "".join(self.reasoning[self._num_taken[0] :]), "".join(self.content[self._num_taken[1] :])
        logged = "".join(self.content[self._num_taken[1] : self._num_logged])
        calls = tuple(enumerate(self.calls))[self._num_taken[2] :]
        self._num_taken = [len(self.reasoning), len(self.content), len(self.calls)]
        deltas = [TextDelta("reasoning", reasoning)] if reasoning else []
        entries = self._ledger.release(logged, is_last=is_last) if self._ledger is not None else ()
        if content or entries:
            deltas.append(TextDelta("content", content, entries))
        return [*deltas, TextDelta("content", "", calls=calls)] if calls else deltas


class LogprobLedger:
    """Keeps each content token's logprob until its text is out, so that the bytes of the entries join to the text."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._entries: deque[tuple[int, TokenLogprob]] = deque()
        self._num_entered = self._num_shown = 0

    def enter(self, event: TokenEvent, text: str) -> None:
        """A content token whose text (less leading newlines) became certain with it."""
        data = self._vocabulary.bytes_of(event.token_id)
        if not self._num_entered and self._vocabulary.text_of(event.token_id) is not None:
            data = text.encode()
        if data:
            top = tuple((self._vocabulary.bytes_of(token_id), logprob) for token_id, logprob in event.top_logprobs)
            self._entries.append((self._num_entered, TokenLogprob(data, event.logprob or 0.0, top)))
            self._num_entered += len(data)

    def release(self, text: str, *, is_last: bool) -> tuple[TokenLogprob, ...]:
        """The entries that `text`, which goes out now, completes. At the end a token that a stop string cut is cut as well."""
        self._num_shown += len(text.encode())
        released = []
        while self._entries and self._entries[0][0] + len(self._entries[0][1].data) <= self._num_shown:
            released.append(self._entries.popleft()[1])
        if is_last and self._entries and self._entries[0][0] < self._num_shown:
            start, entry = self._entries.popleft()
            released.append(TokenLogprob(entry.data[: self._num_shown - start], entry.logprob, entry.top))
        return tuple(released)


class ChatStream:
    """An async iterator of TextDelta. Closing it, in whatever state, is the one door out: it ends the sequence.

    `result` is complete when the iteration has ended or the stream was closed.
    """

    def __init__(self, tokens: Tokens, result: ChatResult, text: TextAssembler, completion_id: str, owner: str) -> None:
        self.completion_id = completion_id
        self.created = int(time.time())
        self.owner = owner
        self.result = result
        self.can_answer_now = False
        self.on_end: Callable[[ChatStream], None] = lambda stream: None
        self._tokens = tokens
        self._text = text
        self._began = time.monotonic()
        self._ready: deque[TextDelta] = deque()
        self._is_over = False
        self._error: Exception | None = None

    @property
    def place(self) -> int:
        """Place in the queue from 1; 0 once it has started."""
        return self._tokens.place

    def answer_now(self) -> None:
        """Close the open thought, if there is one. Raises Unsupported where `can_answer_now` is False."""
        if not self.can_answer_now:
            raise Unsupported("this model's thoughts cannot be closed from here")
        self._tokens.close_thought()

    def stop(self) -> None:
        """Enough: the iteration ends with what there is, and finish_reason "abort"."""
        self._tokens.abort()

    def interrupt(self, error: Exception) -> None:
        """End it with an error, which the iteration raises."""
        self._error = error
        self._tokens.abort()

    async def opened(self) -> None:
        """Return when the answer is certain to begin; here that is at once. Raises the EngineError that an upstream refused with."""
        if self.result.prompt_token_ids is None:
            await self._advance()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> TextDelta:
        """Raises EngineDied when the engine ends under it, or what `interrupt` was given."""
        while not self._ready:
            if self._is_over:
                raise StopAsyncIteration
            await self._advance()
        return self._ready.popleft()

    async def aclose(self) -> None:
        self._tokens.abort()
        self._end("abort")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.aclose()

    async def _advance(self) -> None:
        try:
            events = await self._tokens.__anext__()
        except StopAsyncIteration:
            self._end("error" if self._error else "abort")
            if self._error is not None:
                raise self._error from None
            return
        except EngineError:
            self._end("error")
            raise
        finish = self._absorb(events)
        if finish is None:
            self._ready.extend(self._text.take(is_last=False))
        else:
            self._end(finish)
        if self._ready and self.result.first_answer_ms is None and self._ready[-1].channel == "content":
            self.result.first_answer_ms = self._elapsed_ms()

    def _absorb(self, events: Sequence[TokenEvent | TextEvent]) -> Finish | None:
        """Take the events in; the reason when the answer is over."""
        for event in events:
            has_more = self._relay(event) if isinstance(event, TextEvent) else self._take(event)
            if has_more and self.result.ttft_ms is None:
                self.result.ttft_ms = self._elapsed_ms()
            if self._text.is_stopped:
                self._tokens.abort()
                return "stop"
            if event.finish_reason is not None:
                return FINISH[event.finish_reason]
        return None

    def _take(self, event: TokenEvent) -> bool:
        """Whether it held a token."""
        result = self.result
        if event.num_cached >= 0:
            result.num_cached = event.num_cached
        if event.token_id < 0 or result.completion_token_ids is None or result.logprobs is None:
            return False
        result.completion_token_ids.append(event.token_id)
        result.logprobs.append(event.logprob)
        self._text.push(event)
        return True

    def _relay(self, event: TextEvent) -> bool:
        """Whether it held text."""
        for name, number in (event.counted or {}).items():
            setattr(self.result, name, number)
        self._text.add(event.pieces)
        self._text.add_calls(event.calls)
        return any(text for _, text in event.pieces)

    def _end(self, finish: Finish) -> None:
        if self._is_over:
            return
        self._is_over = True
        self._text.finish()
        self._ready.extend(self._text.take(is_last=True))
        result = self.result
        result.tool_calls = tuple(self._text.calls)
        result.finish_reason = "tool_calls" if finish == "stop" and result.tool_calls else finish
        result.reasoning, result.content = "".join(self._text.reasoning), "".join(self._text.content)
        if result.prompt_token_ids is not None and result.completion_token_ids is not None:
            result.num_prompt_tokens, result.num_completion_tokens = len(result.prompt_token_ids), len(result.completion_token_ids)
            result.num_reasoning_tokens = self._text.num_reasoning_tokens
        result.total_ms = self._elapsed_ms()
        self.on_end(self)

    def _elapsed_ms(self) -> float:
        return (time.monotonic() - self._began) * 1000
