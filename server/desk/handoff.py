"""Handing a conversation to a person and back: what triggers it, what the bot and the customer are told, and who hears of it at once."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from feedback.database import RecordUnavailable
from feedback.inbox import Inbox, Move, Reason, Row, StateChanged, Status
from feedback.record import Conversation, Message, NotFound, State, now_ms
from server.desk.desk import Answer, Desk
from server.desk.words import wants_person
from server.errors import ConversationClosed
from server.hours import Hours
from server.settings import DeskSettings

log = logging.getLogger("kefu.handoff")

# Another server over the same database rings no bell here, and clocks ring none at all: everyone looks again this often.
LOOK_EVERY_S = 2.0
TYPING_S = 6.0
CLOSE_AFTER_MS = 7 * 24 * 3_600_000
CLOSE_EVERY_S = 3600.0
MAX_WANTED_FORMS = 1000
OPEN_STATES: tuple[State, ...] = ("waiting", "human")
REOPENED = Move("bot", "request", "visitor", ("resolved",))
NEW = Status("bot", None, 0, None, has_form=False, is_rated=False, agent_messages=())


@dataclass(frozen=True, slots=True)
class View:
    """How things stand, for the customer. `opens_at_ms` is 0 while people are there; `offers_form` when leaving a message helps more."""

    state: State
    agent: str | None
    place: int
    is_typing: bool
    opens_at_ms: int
    offers_form: bool
    has_form: bool
    is_rated: bool


class Bell:
    """Wakes everyone who waits for news."""

    def __init__(self) -> None:
        self._news = asyncio.Event()

    def ring(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    def listen(self) -> asyncio.Event:
        """The next ring from now on; take it before you look, so that nothing falls between."""
        return self._news


async def _heard(news: asyncio.Event) -> None:
    try:
        async with asyncio.timeout(LOOK_EVERY_S):
            await news.wait()
    except TimeoutError:
        return


class Handoffs:
    """The only way a conversation's state changes. While it is `waiting` or `human` the bot says nothing in it."""

    def __init__(self, desk: Desk, inbox: Inbox, settings: DeskSettings, on_waiting: Callable[[str, Reason], None]) -> None:
        """`on_waiting` is told of each conversation that begins to wait for a person, and why."""
        self._desk = desk
        self._inbox = inbox
        self._hours = Hours.parse(settings.hours, settings.timezone)
        self._patience_ms = settings.wait_minutes * 60_000
        self._on_waiting = on_waiting
        self._bell = Bell()
        self._typing: dict[str, float] = {}
        self._wanted_forms: dict[str, None] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_leaving = False
        self.on_kept: Callable[[str], object] = lambda conversation_id: None
        desk.on_kept = self._answer_kept
        desk.on_check_failed = self._check_failed

    async def run(self) -> None:
        """Close what was resolved long ago, for as long as the server runs."""
        while True:
            try:
                await self._inbox.close_resolved(now_ms() - CLOSE_AFTER_MS)
            except RecordUnavailable as error:
                log.warning("nothing was closed: %s", error)
            await asyncio.sleep(CLOSE_EVERY_S)

    def end_streams(self) -> None:
        """End every live stream: the server is leaving."""
        self._is_leaving = True
        self._bell.ring()

    async def close(self) -> None:
        self.end_streams()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # What customers do

    async def ask(self, visitor_id: str, conversation_id: str, text: str, client_message_id: str, replaces_id: str | None = None) -> Answer:
        """Desk.ask, unless a person is asked for or there; a resolved conversation is opened again. Raises ConversationClosed too."""
        state = (await self._desk.conversation(visitor_id, conversation_id)).state
        if state == "closed":
            raise ConversationClosed("this conversation is over; please begin a new one")
        if state == "resolved":
            await self._try(conversation_id, REOPENED)
        if state in ("bot", "resolved") and wants_person(text, await self._last_answer(conversation_id)):
            await self._request(conversation_id)
        answer = await self._desk.ask(visitor_id, conversation_id, text, client_message_id, replaces_id)
        if self._is_a_persons_business(text):
            self.soon(conversation_id, "policy")
        self._bell.ring()
        return answer

    async def request(self, visitor_id: str, conversation_id: str) -> View:
        """The customer wants a person. When nobody is there, a form is offered instead. Raises NotFound."""
        await self._desk.conversation(visitor_id, conversation_id)
        await self._try(conversation_id, REOPENED)
        await self._request(conversation_id)
        return (await self._look(conversation_id))[0]

    async def go_on_with_bot(self, visitor_id: str, conversation_id: str) -> View:
        """The customer waits no longer. Raises NotFound."""
        await self._desk.conversation(visitor_id, conversation_id)
        await self._try(conversation_id, Move("bot", "request", "visitor", ("waiting",)))
        return (await self._look(conversation_id))[0]

    async def leave_form(self, visitor_id: str, conversation_id: str, contact: Mapping[str, str]) -> View:
        """Keep how to reach the customer, and what they want. Raises NotFound; StateChanged when a person is there already."""
        await self._desk.conversation(visitor_id, conversation_id)
        state = (await self._inbox.status(conversation_id) or NEW).state
        reason: Reason = "timeout" if state == "waiting" and self._opens_at_ms() == 0 else "hours"
        await self.move(conversation_id, Move("waiting", reason, "visitor", ("bot", "waiting"), contact=contact))
        return (await self._look(conversation_id))[0]

    async def follow(self, visitor_id: str, conversation_id: str, after_seq: int) -> AsyncGenerator[View | Message, None]:
        """What agents write after `after_seq`, and how things stand whenever that changes, for as long as the reader stays.

        Raises NotFound before the first.
        """
        await self._desk.conversation(visitor_id, conversation_id)
        told: View | None = None
        while not self._is_leaving:
            news = self._bell.listen()
            view, messages = await self._look(conversation_id, after_seq)
            for message in messages:
                after_seq = message.seq
                yield message
            if view != told:
                told = view
                yield view
            await _heard(news)

    # What the desk itself notices

    async def handoff(self, conversation_id: str, reason: Reason) -> bool:
        """Let a person take over from the bot: `policy`, `failure` or `check`. False when nobody is there, or it is not the bot's.

        From inside a turn use `soon`: this waits until the answer under way has ended.
        """
        if self._opens_at_ms():
            self._want_form(conversation_id)
            return False
        return await self._try(conversation_id, Move("waiting", reason, "system", ("bot",)))

    def soon(self, conversation_id: str, reason: Reason) -> None:
        """`handoff`, once the answer that is being given is finished and kept."""

        async def wait_and_hand_off() -> None:
            await self._desk.wait_answered(conversation_id)
            await self.handoff(conversation_id, reason)

        self._spawn(wait_and_hand_off())

    async def check_failures(self, conversation_id: str) -> None:
        """Two failures in a row are enough."""
        if await self._inbox.is_failing(conversation_id):
            self.soon(conversation_id, "failure")

    def failures_seen(self, conversation_id: str) -> None:
        """`check_failures`, in a task of its own."""
        self._spawn(self.check_failures(conversation_id))

    def _answer_kept(self, conversation_id: str) -> None:
        self._bell.ring()
        self.on_kept(conversation_id)
        self.failures_seen(conversation_id)

    async def _check_failed(self, conversation: Conversation, asked: Message) -> None:
        self.soon(conversation.id, "check")

    # What agents do

    async def move(self, conversation_id: str, move: Move) -> None:
        """Change the state, with the bot silenced meanwhile. Raises NotFound, StateChanged."""
        async with self._desk.silence(conversation_id):
            await self._inbox.move(conversation_id, move)
        self._wanted_forms.pop(conversation_id, None)
        self._typing.pop(conversation_id, None)
        if move.to == "waiting" and move.reason != "agent":
            self._on_waiting(conversation_id, move.reason)
        self._bell.ring()

    async def say(self, conversation_id: str, said: Message) -> Message:
        """An agent's message or note, once per client_message_id. Raises NotFound, StateChanged, KeyReused."""
        kept = await self._inbox.say(conversation_id, said)
        self._typing.pop(conversation_id, None)
        self._bell.ring()
        return kept

    def type(self, conversation_id: str) -> None:
        """The agent is typing; forgotten after some seconds."""
        now = time.monotonic()
        self._typing = {key: at for key, at in self._typing.items() if now - at < TYPING_S} | {conversation_id: now}
        self._bell.ring()

    async def watch_inbox(self) -> AsyncGenerator[list[Row], None]:
        """Who waits and who is helped, whenever that changes."""
        told: list[Row] | None = None
        while not self._is_leaving:
            news = self._bell.listen()
            rows = await self._inbox.rows(OPEN_STATES)
            if rows != told:
                told = rows
                yield rows
            await _heard(news)

    def _is_a_persons_business(self, text: str) -> bool:
        """By the policy. The bot answers first: whom to call in an emergency cannot wait for a person."""
        knowledge = self._desk.knowledge
        return knowledge is not None and any(terms.handover_reason(text) for terms in knowledge.terms.values())

    async def _request(self, conversation_id: str) -> None:
        if self._opens_at_ms():
            self._want_form(conversation_id)
        else:
            await self._try(conversation_id, Move("waiting", "request", "visitor", ("bot",)))

    async def _try(self, conversation_id: str, move: Move) -> bool:
        """False when somebody was faster, which is as good."""
        try:
            await self.move(conversation_id, move)
        except StateChanged:
            return False
        return True

    async def _last_answer(self, conversation_id: str) -> str:
        said = await self._desk.messages(conversation_id)
        return next((message.text for message in reversed(said) if message.role == "assistant"), "")

    async def _look(self, conversation_id: str, after_seq: int = 0) -> tuple[View, tuple[Message, ...]]:
        now = await self._inbox.status(conversation_id, after_seq) or NEW
        opens_at_ms = self._opens_at_ms()
        is_late = now.waiting_at_ms is not None and now_ms() - now.waiting_at_ms > self._patience_ms
        wants = (now.state == "waiting" and (is_late or opens_at_ms > 0)) or (now.state == "bot" and conversation_id in self._wanted_forms)
        is_typing = now.state == "human" and time.monotonic() - self._typing.get(conversation_id, -TYPING_S) < TYPING_S
        agent = now.agent if now.state in ("human", "resolved") else None
        offers_form = wants and not now.has_form
        return View(now.state, agent, now.place, is_typing, opens_at_ms, offers_form, now.has_form, now.is_rated), now.agent_messages

    def _opens_at_ms(self) -> int:
        now = datetime.now(UTC)
        return 0 if self._hours.is_open(now) else int(self._hours.next_opening(now).timestamp() * 1000)

    def _want_form(self, conversation_id: str) -> None:
        self._wanted_forms[conversation_id] = None
        if len(self._wanted_forms) > MAX_WANTED_FORMS:
            del self._wanted_forms[next(iter(self._wanted_forms))]
        self._bell.ring()

    def _spawn(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.create_task(self._log_failure(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _log_failure(self, work: Coroutine[object, object, None]) -> None:
        try:
            await work
        except (RecordUnavailable, NotFound) as error:
            log.warning("no handoff: %s", error)
