"""One customer turn: the engine's stream becomes what the customer sees, and then a row on disk."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import asdict, dataclass

from backends.protocol import EngineError, ModelSpec
from feedback.record import Completion, Message, Status, new_id
from server.chat.service import ChatResult, ChatStream
from server.desk.policy import FALLBACK, CitationFilter, Policy
from server.errors import ShuttingDown

LOOK_INTERVAL_S = 0.1
# An idle engine starts within a few looks; until then there is no queue to speak of.
LOOKS_BEFORE_PLACE = 4


@dataclass(frozen=True, slots=True)
class Accepted:
    """The customer's message is on disk (or in the journal, while the record is unavailable)."""

    message_id: str


@dataclass(frozen=True, slots=True)
class Queued:
    """Waiting for the engine; `place` 1 is next."""

    place: int
    eta_s: int


@dataclass(frozen=True, slots=True)
class Thinking:
    can_answer_now: bool


@dataclass(frozen=True, slots=True)
class Answering: ...


@dataclass(frozen=True, slots=True)
class Delta:
    text: str


@dataclass(frozen=True, slots=True)
class Done:
    """The end: the answer is kept."""

    message: Message


@dataclass(frozen=True, slots=True)
class Failed:
    """The end: the engine failed; what was said until then is kept as interrupted."""

    error: Exception


Event = Accepted | Queued | Thinking | Answering | Delta | Done | Failed
Keep = Callable[[Message, Completion], Awaitable[Message]]


class Turn:
    """An answer on its way. It runs in its own task, so that it is kept whatever happens to the connection.

    Iterate once over `events`; `on_end` is called just before the last of them. `stop` is the customer's button; `hang_up` says
    that nobody listens any more. Both abort the sequence; the part that was said is kept as `stopped` or `interrupted`.
    """

    def __init__(self, stream: ChatStream, policy: Policy, spec: ModelSpec, keep: Keep, wait_s: Callable[[int], int]) -> None:
        self.on_end: Callable[[], object] = lambda: None
        self._stream = stream
        self._policy = policy
        self._spec = spec
        self._keep = keep
        self._wait_s = wait_s
        self._filter = CitationFilter(policy)
        self._text = ""
        self._status: Status = "complete"
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._task = asyncio.create_task(self._run())

    async def events(self) -> AsyncGenerator[Event, None]:
        """Everything the customer is told; exactly one Done or Failed, last."""
        while True:
            event = await self._events.get()
            yield event
            if isinstance(event, Done | Failed):
                return

    def stop(self) -> None:
        self._end("stopped")

    def answer_now(self) -> None:
        """Close the open thought. Raises Unsupported."""
        self._stream.answer_now()

    def hang_up(self) -> None:
        self._end("interrupted")

    async def wait_kept(self) -> None:
        """Return when the answer is on disk."""
        await asyncio.wait({self._task})

    def _end(self, status: Status) -> None:
        if self._status == "complete" and not self._task.done():
            self._status = status
            self._stream.stop()

    async def _run(self) -> None:
        try:
            end = await self._generate()
        except Exception as error:
            self._leave(Failed(error))
            raise
        self._leave(end)

    def _leave(self, end: Done | Failed) -> None:
        self.on_end()
        self._events.put_nowait(end)

    async def _generate(self) -> Done | Failed:
        try:
            async with self._stream:
                await self._hear()
        except (EngineError, ShuttingDown) as error:
            self._status = "interrupted"
            await self._finish()
            return Failed(error)
        return Done(await self._finish())

    async def _hear(self) -> None:
        watch = asyncio.create_task(self._watch_place())
        try:
            async for delta in self._stream:
                if delta.channel == "content":
                    self._say(self._filter.feed(delta.text))
        finally:
            watch.cancel()

    async def _watch_place(self) -> None:
        told, num_looks = 0, 0
        while place := self._stream.place:
            if place != told and num_looks >= LOOKS_BEFORE_PLACE:
                told = place
                self._events.put_nowait(Queued(place, self._wait_s(place)))
            await asyncio.sleep(LOOK_INTERVAL_S)
            num_looks += 1
        if not self._text:
            self._events.put_nowait(Thinking(self._stream.can_answer_now))

    def _say(self, text: str) -> None:
        if not text:
            return
        if not self._text:
            self._events.put_nowait(Answering())
        self._text += text
        self._events.put_nowait(Delta(text))

    async def _finish(self) -> Message:
        """Keep the answer. A complete one without words becomes an offer of a person; a broken one without words is not kept."""
        self._say(self._filter.flush())
        is_empty = not self._text.strip()
        if is_empty and self._status == "complete":
            self._say(FALLBACK[self._policy.language])
        made = self._completion(self._stream.result, shown=not is_empty)
        answer = Message(
            new_id("msg"),
            "assistant",
            self._text,
            status=self._status,
            completion_id=None if is_empty else made.id,
            finish_reason=made.finish_reason,
            citations=() if is_empty else self._policy.citations(self._text),
        )
        if is_empty and self._status == "interrupted":
            return answer
        return await self._keep(answer, made)

    def _completion(self, result: ChatResult, *, shown: bool) -> Completion:
        return Completion(
            id=self._stream.completion_id,
            shown=shown,
            status=self._status,
            finish_reason=result.finish_reason,
            content=result.content,
            reasoning=result.reasoning,
            prompt_token_ids=result.prompt_token_ids,
            completion_token_ids=result.completion_token_ids,
            logprobs=result.logprobs,
            sampling=asdict(result.sampling),
            seed=result.sampling.seed,
            model=self._spec.name,
            model_sha256=self._spec.sha256 or None,
            quantization=self._spec.quantization or None,
            engine=self._spec.engine,
            engine_version=self._spec.engine_version,
            adapter=result.adapter or None,
            template_sha256=result.template_sha256,
            policy_version=self._policy.version,
            knowledge_version=self._policy.knowledge_version,
            num_cached_tokens=result.num_cached,
            num_reasoning_tokens=result.num_reasoning_tokens,
            forced_close=result.forced_close,
            ttft_ms=result.ttft_ms,
            first_answer_ms=result.first_answer_ms,
            total_ms=result.total_ms,
        )
