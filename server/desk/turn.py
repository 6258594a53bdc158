"""One customer turn: the engine's stream becomes what the customer sees, and then a row on disk."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal

from backends.protocol import EngineBusy, EngineDown, EngineError, ModelSpec
from feedback.calls import Call
from feedback.record import Completion, Message, State, Status, Unshown, new_id
from server.chat.service import ChatStream
from server.desk.checks import Evidence
from server.desk.guard import Guard
from server.desk.policy import FALLBACK, OFFER, CitationFilter, Policy
from server.desk.tools import OUTCOME, Confirm, Toolbox
from server.errors import ShuttingDown

LOOK_INTERVAL_S = 0.1
# An idle engine starts within a few looks; until then there is no queue to speak of.
LOOKS_BEFORE_PLACE = 4
MAX_ATTEMPTS = 2


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
class LookingUp:
    """A tool is asked."""


@dataclass(frozen=True, slots=True)
class Answering: ...


@dataclass(frozen=True, slots=True)
class Delta:
    text: str


@dataclass(frozen=True, slots=True)
class Restart:
    """What was told of the answer so far is to be forgotten: it begins anew."""


@dataclass(frozen=True, slots=True)
class Done:
    """The end: the answer is kept."""

    message: Message


@dataclass(frozen=True, slots=True)
class Failed:
    """The end: the engine failed; what was said until then is kept as interrupted."""

    error: Exception


@dataclass(frozen=True, slots=True)
class Held:
    """The end: the message is kept for a person, and the bot does not answer it."""

    state: State


@dataclass(frozen=True, slots=True)
class Offered:
    """The end: another answer than the one that stands, which is shown on `side`."""

    message: Message
    side: Literal["left", "right"]


Event = Accepted | Queued | Thinking | LookingUp | Answering | Delta | Restart | Confirm | Done | Failed | Held | Offered
# An answer, its completion (None: no attempt at it may be shown), the completions before that failed the checks or called a tool, and
# those calls.
Keep = Callable[[Message, Completion | None, list[Completion], list[Call]], Awaitable[Message]]


@dataclass(frozen=True, slots=True)
class Brief:
    """What an answer is given with: the policy, what it may rest on, a way to ask the model the same again, with another seed and after
    these calls of tools, the tools, and the call that the customer has decided on.
    """

    policy: Policy
    evidence: Evidence
    question: str
    spec: ModelSpec
    open: Callable[[Sequence[Call]], ChatStream]
    box: Toolbox
    decided: tuple[Call, ...] = ()

    def resting_on(self, calls: Sequence[Call]) -> Evidence:
        """What was found counts as stated; why something failed may be quoted."""
        told = tuple(call.result for call in calls if call.status == "done")
        return replace(self.evidence, tools=told, said=(*self.evidence.said, *(call.result for call in calls if call.status == "failed")))

    def instead(self, words: str) -> str:
        """What is said in the place of an answer: what came of a confirmed call goes before anything else."""
        return next((OUTCOME[self.policy.language, call.status == "done"] for call in self.decided), words)


class Turn:
    """An answer on its way. It runs in its own task, so that it is kept whatever happens to the connection.

    Iterate once over `events`; `on_end` is called just before the last of them. `stop` is the customer's button; `hang_up` says
    that nobody listens any more. Both abort the sequence; the part that was said is kept as `stopped` or `interrupted`.

    Every sentence is told when it has passed the checks. One that fails ends its attempt: the model is asked once more, from nothing, so
    that each attempt is a whole sample of the model and not a splice of two; then a person is offered.
    """

    def __init__(self, stream: ChatStream, brief: Brief, keep: Keep, wait_s: Callable[[int], int]) -> None:
        self.on_end: Callable[[], object] = lambda: None
        self._brief = brief
        self._keep = keep
        self._wait_s = wait_s
        self._others: list[Completion] = []
        self._calls: list[Call] = []
        self._text = ""
        self._begin(stream)
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
            while True:
                if not await self._attempt():
                    if not self._begin_again():
                        return Done(await self._offer_person())
                elif (call := self._called()) is None or not await self._use(call):
                    break
        except (EngineError, ShuttingDown) as error:
            if self._brief.instead(""):
                return Done(await self._offer_person())
            self._status = "interrupted"
            await self._finish()
            return Failed(error)
        return Done(await self._finish())

    def _begin(self, stream: ChatStream) -> None:
        self._stream = stream
        self._filter = CitationFilter(self._brief.policy)
        evidence = self._brief.resting_on((*self._brief.decided, *self._calls))
        # Saying it again is worth one more try, not a person: two questions may well have the same honest "no".
        evidence = replace(evidence, answers=() if self._num_rejected else evidence.answers)
        self._guard = Guard(evidence, self._brief.policy.rules, self._brief.policy.language)

    async def _attempt(self) -> bool:
        """Whether the answer may stand: it passed, or was ended from outside with what had passed by then."""
        async with self._stream:
            await self._hear()
        if self._status == "complete":
            self._say(self._guard.feed(self._filter.flush()) + self._guard.flush())
        return self._status != "complete" or not self._guard.violations

    def _begin_again(self) -> bool:
        """Put the failed attempt aside and ask once more; False when that was the last one, or the engine has no room for another."""
        self._others.append(self._completion("rejected", shown=False))
        if self._num_rejected < MAX_ATTEMPTS:
            with contextlib.suppress(EngineBusy, EngineDown):
                self._begin(self._brief.open((*self._brief.decided, *self._calls)))
                self._forget()
                return True
        return False

    @property
    def _num_rejected(self) -> int:
        return sum(other.status == "rejected" for other in self._others)

    def _called(self) -> Call | None:
        """The call that was made instead of an answer."""
        called = self._stream.result.tool_calls if self._status == "complete" else ()
        return next((Call(call.id, call.name, call.arguments, completion_id=self._stream.completion_id) for call in called), None)

    async def _use(self, call: Call) -> bool:
        """Whether the model goes on with what the tool told: not when the customer has ended this, or is asked for a yes first."""
        self._forget()
        if self._brief.box.asks_first(call):
            self._calls.append(replace(call, status="pending"))
            return False
        self._events.put_nowait(LookingUp())
        self._calls.append(await self._brief.box.look_up(call))
        if self._status != "complete":
            return False
        stream = self._brief.open((*self._brief.decided, *self._calls))
        self._others.append(self._completion("called", shown=False))
        self._begin(stream)
        return True

    async def _hear(self) -> None:
        watch = asyncio.create_task(self._watch_place())
        try:
            async for delta in self._stream:
                if delta.channel == "content":
                    self._say(self._guard.feed(self._filter.feed(delta.text)))
                if self._guard.violations:
                    return
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

    def _forget(self) -> None:
        if self._text:
            self._text = ""
            self._events.put_nowait(Restart())

    async def _offer_person(self) -> Message:
        """In place of an answer that failed its checks twice, or that the engine broke off after something was done."""
        self._forget()
        self._say(self._brief.instead(OFFER[self._brief.policy.language]))
        return await self._keep(Message(new_id("msg"), "assistant", self._text), None, self._others, self._calls)

    async def _ask_first(self, pending: Call) -> Message:
        """End with the question whether to do it, in our words."""
        self._say(self._brief.box.question(pending))
        made = self._completion("complete", shown=False)
        asking = Message(new_id("msg"), "assistant", self._text, finish_reason=made.finish_reason)
        kept = await self._keep(asking, made, self._others, self._calls)
        self._events.put_nowait(self._brief.box.confirm(pending))
        return kept

    async def _finish(self) -> Message:
        """Keep the answer. A complete one without words becomes an offer of a person; a broken one without words is not kept."""
        if self._calls and self._calls[-1].status == "pending":
            return await self._ask_first(self._calls[-1])
        policy, is_empty = self._brief.policy, not self._text.strip()
        if self._status == "complete":
            completed = self._brief.instead(FALLBACK[policy.language]) if is_empty else policy.completed(self._text, self._brief.question)
            self._say(completed.removeprefix(self._text))
        made = self._completion(self._status, shown=not is_empty)
        answer = Message(
            new_id("msg"),
            "assistant",
            self._text,
            status=self._status,
            completion_id=None if is_empty else made.id,
            finish_reason=made.finish_reason,
            citations=() if is_empty else policy.citations(self._text),
        )
        if is_empty and self._status == "interrupted":
            return answer
        return await self._keep(answer, made, self._others, self._calls)

    def _completion(self, status: Status | Unshown, *, shown: bool) -> Completion:
        result, spec, policy = self._stream.result, self._brief.spec, self._brief.policy
        return Completion(
            id=self._stream.completion_id,
            shown=shown,
            status=status,
            finish_reason=result.finish_reason,
            content=result.content,
            reasoning=result.reasoning,
            prompt_token_ids=result.prompt_token_ids,
            completion_token_ids=result.completion_token_ids,
            logprobs=result.logprobs,
            sampling=asdict(result.sampling),
            seed=result.sampling.seed,
            model=spec.name,
            model_sha256=spec.sha256 or None,
            quantization=spec.quantization or None,
            engine=spec.engine,
            engine_version=spec.engine_version,
            adapter=result.adapter or None,
            template_sha256=result.template_sha256,
            policy_version=policy.version,
            knowledge_version=policy.knowledge_version,
            num_cached_tokens=result.num_cached,
            num_reasoning_tokens=result.num_reasoning_tokens,
            forced_close=result.forced_close,
            ttft_ms=result.ttft_ms,
            first_answer_ms=result.first_answer_ms,
            total_ms=result.total_ms,
            violations=self._guard.noted(),
        )


async def follow(asked: Message, turn: Turn) -> AsyncGenerator[Event, None]:
    """What the customer is told of an answer that is made."""
    yield Accepted(asked.id)
    async for event in turn.events():
        yield event


async def replay(asked: Message, answer: Message) -> AsyncGenerator[Event, None]:
    """The same of one that is kept."""
    yield Accepted(asked.id)
    yield Answering()
    yield Delta(answer.text)
    yield Done(answer)


async def hold(asked: Message, state: State) -> AsyncGenerator[Event, None]:
    """The same of a message that is kept for a person."""
    yield Accepted(asked.id)
    yield Held(state)
