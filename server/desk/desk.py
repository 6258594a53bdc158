"""The desk: a customer's conversations, one answer at a time in each."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

from backends.mini.shop import Language
from backends.protocol import EngineError
from feedback.calls import Call
from feedback.database import RecordUnavailable
from feedback.record import MUTE, Completion, Conversation, Message, NotFound, Record, new_id, newest_branch
from server.chat.service import ChatMessage, ChatService
from server.desk.guard import Noted, review
from server.desk.journal import Journal
from server.desk.knowledge import DeskKnowledge, Reading
from server.desk.policy import CitationFilter, Policies
from server.desk.prompts import PUBLIC_SCOPE, Prompts
from server.desk.second import Seconds
from server.desk.tool import Caller
from server.desk.tools import KEPT, NO, OUTCOME, YES, Confirm, DeskTools, Toolbox
from server.desk.turn import Brief, Event, Turn, follow, hold, replay
from server.desk.window import find, language_of, last_answers, since_agent, turns_of
from server.desk.words import yes_or_no
from server.errors import InvalidRequest, RequestError, TooManyRequests
from server.settings import DeskSettings


class AnswerInProgress(TooManyRequests):
    """This visitor is already being answered."""


@dataclass(slots=True)
class _Place:
    visitor_id: str
    turn: Turn | None = None
    must_end: bool = False
    is_free: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(frozen=True, slots=True)
class Answer:
    """What the customer is told, how to say that nobody listens any more, and the completion that it takes the place of."""

    events: AsyncGenerator[Event, None]
    hang_up: Callable[[], None]
    replaces: str | None = None


@dataclass(frozen=True, slots=True)
class History:
    """A conversation as it is on the screen, stored and not yet stored. `confirm` waits for the customer's yes."""

    conversation: Conversation
    messages: list[Message]
    answering: bool
    confirm: Confirm | None = None


class Desk:
    """All a customer can do. Conversations of other visitors do not exist here: NotFound."""

    knowledge: DeskKnowledge | None = None
    tools: DeskTools | None = None
    seconds: Seconds | None = None  # without it no answer has a second beside it

    def __init__(self, chat: ChatService, record: Record, policies: Policies, settings: DeskSettings, wait_s: Callable[[int], int]) -> None:
        """`wait_s` estimates the seconds until a place in the engine's queue is served. With `knowledge` set, `policies` follow it."""
        self._chat = chat
        self._wait_s = wait_s
        self._record = record
        self._policies = policies
        self._settings = settings
        self._journal = Journal()
        self._places, self._prompts = dict[str, _Place](), Prompts(chat, settings)
        self.on_kept: Callable[[str], object] = lambda conversation_id: None
        self.asks: Callable[[str], bool] = lambda completion_id: False  # does this answer ask for a thumb?
        # Called with the check that an answer failed, and with the question when that ended in the offer of a person.
        self.on_check: Callable[[str], object] = lambda kind: None
        self.on_check_failed: Callable[[Conversation, Message], Awaitable[object]] = _nothing

    async def prepare(self) -> None:
        """`warm`, with the knowledge as it is now. Raises EngineDown before a model is loaded, RecordUnavailable."""
        await self._refresh()
        self.warm()

    def warm(self) -> None:
        """Prefill what every conversation begins with. For each newly loaded engine, and when customers get another adapter."""
        for adapter, policy in ((key, policy) for key in self._chat.adapters.serving_keys for policy in self._policies.values()):
            tools = self._toolbox("", policy.language).offered
            self._chat.warm((ChatMessage("system", policy.system),), PUBLIC_SCOPE, "", adapter, tools)

    async def close(self) -> None:
        """End what is being answered, and keep what was said."""
        if self.seconds:
            await self.seconds.close()
        for turn in [place.turn for place in self._places.values() if place.turn]:
            turn.hang_up()
            await turn.wait_kept()

    async def open_conversation(self, visitor_id: str, language: Language) -> Conversation:
        opened = Conversation(new_id("conv"), visitor_id, language)
        await self._journal.write(opened, partial(self._record.add_conversation, opened))
        return opened

    async def current(self, visitor_id: str) -> History:
        """The visitor's newest conversation. Raises NotFound."""
        conversation = self._journal.current_conversation(visitor_id) or await self._record.current_conversation(visitor_id)
        said = await self.messages(conversation.id)
        confirm = None
        if self.tools and conversation.state == "bot" and (call := await self.tools.calls.pending(conversation.id)):
            confirm = self.tools.of(visitor_id, language_of(conversation.language, said)).confirm(call)
        return History(conversation, newest_branch(said), conversation.id in self._places, confirm)

    async def stop(self, visitor_id: str, conversation_id: str) -> None:
        """End the answer that is being given, if any; what was said is kept as `stopped`. Raises NotFound."""
        await self.conversation(visitor_id, conversation_id)
        place = self._places.get(conversation_id)
        if place and place.turn:
            place.turn.stop()

    async def answer_now(self, visitor_id: str, conversation_id: str) -> None:
        """End the thought of the answer that is being given, if any. Raises NotFound, Unsupported."""
        await self.conversation(visitor_id, conversation_id)
        place = self._places.get(conversation_id)
        if place and place.turn:
            place.turn.answer_now()

    async def ask(self, visitor_id: str, conversation_id: str, text: str, client_message_id: str, replaces_id: str | None = None) -> Answer:
        """Keep a message and begin its answer; the same `client_message_id` again replays the kept answer.

        With `replaces_id` it takes the place of that question, and what followed leaves the screen and the model's sight. A plain yes or
        no decides on what waits for one.
        Raises before anything happens: NotFound, AnswerInProgress, InvalidRequest; and, with the message kept so that it may be
        sent again, ContextTooLong, EngineBusy, EngineDown.
        """
        async with self._place(visitor_id, conversation_id) as place:
            # Read while the place is held, so that nobody is given the conversation between this look and the answer.
            conversation = await self.conversation(visitor_id, conversation_id)
            said = await self.messages(conversation_id)
            asked = next((message for message in said if message.client_message_id == client_message_id), None)
            if asked is None:
                if replaces_id:
                    find(since_agent(newest_branch(said)), replaces_id, "user")
                asked = Message(new_id("msg"), "user", text, client_message_id, replaces_id=replaces_id)
                said.append(asked)
                await self._journal.write(conversation, partial(self._record.add_message, conversation_id, asked), asked)
            elif asked.text != text:
                raise InvalidRequest("this client_message_id came with another text before", param="client_message_id", code="id_reused")
            elif answer := next((message for message in said if message.reply_to_id == asked.id), None):
                return Answer(replay(asked, answer), hang_up=lambda: None)
            if conversation.state in MUTE:
                return Answer(hold(asked, conversation.state), hang_up=lambda: None)
            said = said[: said.index(asked) + 1]
            if self.tools and not replaces_id and (call := await self._decided(self.tools, conversation_id, text)):
                return await self._follow_decision(place, self.tools, conversation, said, call)
            return await self._answer(place, conversation, said)

    async def regenerate(self, visitor_id: str, conversation_id: str, message_id: str) -> Answer:
        """Answer the last question once more, in place of the answer `message_id`; asked again, what took its place is replayed.

        Raises NotFound, AnswerInProgress, InvalidRequest when it is not the last or a person answers; ContextTooLong, EngineBusy,
        EngineDown.
        """
        async with self._place(visitor_id, conversation_id) as place:
            conversation = await self.conversation(visitor_id, conversation_id)
            said = await self.messages(conversation_id)
            answer = find(said, message_id, "assistant")
            if later := next((message for message in said if message.replaces_id == message_id), None):
                return Answer(replay(find(said, str(later.reply_to_id), "user"), later), hang_up=lambda: None)
            branch = newest_branch(said)
            if branch[-1] != answer or conversation.state != "bot":
                raise InvalidRequest("only the bot's last answer can be made again", param="message_id", code="not_the_last")
            return await self._answer(place, conversation, branch[:-1], answer)

    async def second(self, visitor_id: str, conversation_id: str, message_id: str) -> Answer:
        """Begin a second answer beside `message_id`, if that was drawn for it. Raises NotFound, ContextTooLong, EngineBusy, EngineDown."""
        await self.conversation(visitor_id, conversation_id)
        if self.seconds is None:
            raise NotFound("no such message")
        return Answer(*await self.seconds.begin(conversation_id, message_id))

    async def decide(self, visitor_id: str, conversation_id: str, call_id: str, decision: Literal["running", "declined"]) -> Answer:
        """Carry out, once, what the bot asked a yes for, or leave it; and answer. Raises NotFound, AnswerInProgress, InvalidRequest."""
        async with self._place(visitor_id, conversation_id) as place:
            conversation = await self.conversation(visitor_id, conversation_id)
            tools = self.tools if conversation.state == "bot" else None
            call = await tools.calls.take(conversation_id, call_id, decision) if tools else None
            if call is None or tools is None:
                raise InvalidRequest("this can no longer be confirmed", param="call_id", code="confirm_gone")
            said = await self.messages(conversation_id)
            words = (YES if decision == "running" else NO)[language_of(conversation.language, said)]
            asked = Message(new_id("msg"), "user", words, call.id)
            said.append(asked)
            await self._journal.write(conversation, partial(self._record.add_message, conversation_id, asked), asked)
            return await self._follow_decision(place, tools, conversation, said, call)

    async def _follow_decision(
        self, place: _Place, tools: DeskTools, conversation: Conversation, said: list[Message], call: Call
    ) -> Answer:
        """Carry out what was taken to be done, or leave it, and answer the decision, the last of `said`."""
        language = language_of(conversation.language, said)
        if call.status == "declined":
            return await self._tell(conversation, said[-1], KEPT[language])
        call = await asyncio.shield(self._carry_out(tools, conversation, call, language))
        try:
            return await self._answer(place, conversation, said, decided=call)
        except (EngineError, RequestError):
            return await self._tell(conversation, said[-1], OUTCOME[language, call.status == "done"])

    async def _decided(self, tools: DeskTools, conversation_id: str, text: str) -> Call | None:
        """What a plain yes or no decides on, taken: what the bot asked just now."""
        if (is_yes := yes_or_no(text)) is not None:
            with suppress(RecordUnavailable):
                if pending := await tools.calls.pending(conversation_id):
                    return await tools.calls.take(conversation_id, pending.id, "running" if is_yes else "declined")
        return None

    async def _tell(self, conversation: Conversation, asked: Message, words: str) -> Answer:
        """Answer in our own words."""
        told = Message(new_id("msg"), "assistant", words, reply_to_id=asked.id)
        await self._journal.write(conversation, partial(self._record.add_message, conversation.id, told), told)
        return Answer(replay(asked, told), hang_up=lambda: None)

    async def _carry_out(self, tools: DeskTools, conversation: Conversation, call: Call, language: Language) -> Call:
        made = await tools.of(conversation.visitor_id, language).carry_out(call)
        await self._journal.write(conversation, partial(tools.calls.finish, made))
        return made

    async def _answer(
        self, place: _Place, conversation: Conversation, said: list[Message], old: Message | None = None, decided: Call | None = None
    ) -> Answer:
        """Begin to answer the last of `said`, in the place of `old`; a question leaves what waited for a yes."""
        asked, branch = said[-1], newest_branch(said)
        if self.tools and decided is None:
            with suppress(RecordUnavailable):
                await self.tools.calls.drop(conversation.id)
        if asked.replaces_id:
            self._prompts.forget(conversation.id)
        reading = await self._read(conversation.id, conversation.language, branch)
        place.turn = turn = self._begin(conversation, branch, reading, old.id if old else None, decided)
        turn.on_end = lambda: self._leave_place(conversation.id)
        if place.must_end:
            turn.stop()
        edited = (message for message in reversed(said) if asked.replaces_id and message.reply_to_id == asked.replaces_id)
        replaced = old or next(edited, None)
        return Answer(follow(asked, turn), turn.hang_up, replaced.completion_id if replaced else None)

    @asynccontextmanager
    async def _place(self, visitor_id: str, conversation_id: str) -> AsyncIterator[_Place]:
        """This conversation's place, given up unless a turn took it. Raises NotFound, AnswerInProgress."""
        await self.conversation(visitor_id, conversation_id)
        while (silent := self._places.get(conversation_id)) and not silent.visitor_id:
            await silent.is_free.wait()
        place = self._take_place(visitor_id, conversation_id)
        try:
            yield place
        finally:
            if place.turn is None:
                self._leave_place(conversation_id)

    @asynccontextmanager
    async def silence(self, conversation_id: str) -> AsyncIterator[None]:
        """End the answer that is being given, keep what was said of it, and begin none while the block lasts."""
        self._forget_second(conversation_id)
        while place := self._places.get(conversation_id):
            place.must_end = True
            if place.turn:
                place.turn.stop()
            await place.is_free.wait()
        self._places[conversation_id] = _Place("")
        try:
            yield
        finally:
            self._leave_place(conversation_id)

    async def wait_answered(self, conversation_id: str) -> None:
        """Return when no answer is being given."""
        while place := self._places.get(conversation_id):
            await place.is_free.wait()

    async def draft(self, conversation_id: str, language: str) -> AsyncGenerator[str | Noted, None]:
        """What the bot would answer now, for an agent to use or not, and last what its guard says: told nobody else, and not kept.

        Raises before the first piece: InvalidRequest when the last word is not the customer's, ContextTooLong, EngineBusy, EngineDown.
        """
        said = await self.messages(conversation_id)
        if not said or said[-1].role != "user":
            raise InvalidRequest("the customer has asked nothing since the last answer", code="nothing_to_answer")
        policy = (await self._read(conversation_id, language, said)).policy
        known, whole = CitationFilter(policy), ""
        prompt = self._prompts.fit(conversation_id, policy, turns_of(said), Toolbox({}, Caller(policy.language)))
        async with self._chat.open(self._prompts.job(conversation_id, prompt)) as stream:
            async for delta in stream:
                if delta.channel == "content" and (text := known.feed(delta.text)):
                    whole += text
                    yield text
        yield (rest := known.flush())
        yield review(whole + rest, policy.evidence(message.text for message in said), policy.rules, policy.language)

    def _take_place(self, visitor_id: str, conversation_id: str) -> _Place:
        taken = sum(place.visitor_id == visitor_id for place in self._places.values())
        if conversation_id in self._places or taken >= self._settings.max_in_flight:
            raise AnswerInProgress("an answer to your last message is on its way", code="answer_in_progress", retry_after_s=1)
        self._places[conversation_id] = place = _Place(visitor_id)
        self._forget_second(conversation_id)
        return place

    def _forget_second(self, conversation_id: str) -> None:
        """Nobody waits for it: the conversation goes on."""
        if self.seconds:
            self.seconds.forget(conversation_id)

    def _leave_place(self, conversation_id: str) -> None:
        self._places.pop(conversation_id).is_free.set()

    async def conversation(self, visitor_id: str, conversation_id: str) -> Conversation:
        """Raises NotFound, also when it is another visitor's."""
        waiting = self._journal.conversation(conversation_id)
        if waiting and waiting.visitor_id == visitor_id:
            return waiting
        return await self._record.conversation(conversation_id, visitor_id)

    async def messages(self, conversation_id: str) -> list[Message]:
        """What was said, stored and not yet stored, oldest first."""
        waiting = self._journal.messages(conversation_id)
        stored = await self._record.messages(conversation_id)
        known = {message.id for message in stored}
        return stored + [message for message in waiting if message.id not in known]

    async def _refresh(self) -> None:
        if self.knowledge is not None:
            effort = self._settings.effort
            self._policies = await self.knowledge.refresh(lambda text: self._chat.count_tokens((ChatMessage("system", text),), effort))

    async def _read(self, conversation_id: str, opened_in: str, said: list[Message]) -> Reading:
        language = language_of(opened_in, said)
        await self._refresh()
        if self.knowledge is None:
            return Reading(self._policies[language])
        return await self.knowledge.read(conversation_id, language, [message.text for message in said if message.role == "user"])

    def _begin(
        self, conversation: Conversation, said: list[Message], reading: Reading, replaces_id: str | None, decided: Call | None
    ) -> Turn:
        policy, asked = reading.policy, said[-1]
        box = self._toolbox(conversation.visitor_id, policy.language)
        prompt = self._prompts.fit(conversation.id, policy, turns_of(said), box)
        before = (decided,) if decided else ()
        job = self._prompts.job(conversation.id, prompt, before)
        spec, stream = self._chat.spec, self._chat.open(job)

        async def keep(answer: Message, made: Completion | None, others: list[Completion], calls: list[Call]) -> Message:
            kept = replace(answer, reply_to_id=asked.id, replaces_id=replaces_id, asks_thumb=self.asks(answer.completion_id or ""))
            work = partial(self._record.add_message, conversation.id, kept, made, others, reading.seen, calls)
            is_stored = await self._journal.write(conversation, work, kept)
            self.on_kept(conversation.id)
            if kept.text and kept.status != "interrupted":
                turns = (*prompt.messages, ChatMessage("assistant", kept.text))
                self._chat.warm(turns, PUBLIC_SCOPE, conversation.id, job.adapter, box.offered)
            for kind in {violation["kind"] for attempt in others for violation in attempt.violations}:
                self.on_check(kind)
            if made is None:
                await self.on_check_failed(conversation, asked)
            if self.seconds and is_stored and made and not (others or calls or before):
                return self.seconds.draw(conversation, kept, brief, reading.seen)
            return kept if is_stored else replace(kept, completion_id=None)

        evidence = policy.evidence((message.text for message in said), answers=last_answers(said))
        again = partial(self._prompts.job, conversation.id, prompt)
        brief = Brief(policy, evidence, asked.text, spec, lambda calls: self._chat.open(again(calls)), box, before)
        return Turn(stream, brief, keep, self._wait_s)

    def _toolbox(self, visitor_id: str, language: Language) -> Toolbox:
        return self.tools.of(visitor_id, language) if self.tools and self._chat.knows_tools else Toolbox({}, Caller(language))


async def _nothing(conversation: Conversation, asked: Message) -> None:
    return None
