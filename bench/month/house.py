"""The desk as `kefu serve` composes it, in this process and over the built-in model, and conversations with clocks of their own."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import partial
from uuid import uuid4

from backends.adapter import AdapterRegistry
from backends.mini.shop import load_shop
from backends.registry import make_tokenizer
from backends.supervisor import Supervisor
from feedback.audit import Audit
from feedback.database import Database
from feedback.knowledge import Draft, Knowledge, Piece
from feedback.lookback import Lookback
from feedback.record import Conversation, Message, Record, new_id, now_ms
from feedback.rounds import Rounds
from feedback.signals import Signals, Thumb
from server.app import engine_options
from server.chat.service import ChatService
from server.desk.desk import Desk
from server.desk.knowledge import DeskKnowledge
from server.desk.policy import Policy
from server.desk.policy_file import DEMO, load_policy
from server.desk.turn import Done
from server.rollout import follow
from server.settings import Settings

READING_MS, TYPING_MS = 9_000, 25_000
clock: ContextVar[Callable[[], int]] = ContextVar("clock", default=now_ms)


class DatedRecord(Record):
    """Writes as `Record` does, at the time of the conversation's own clock."""

    async def add_conversation(self, opened: Conversation) -> None:
        await super().add_conversation(replace(opened, created_at_ms=clock.get()()))

    async def add_message(self, conversation_id: str, said: Message, *made: object) -> None:
        await super().add_message(conversation_id, replace(said, created_at_ms=clock.get()()), *made)  # type: ignore[arg-type]


class House:
    """Everything between the routes and the model, over the record of a data folder, with the demo shop's handbook imported."""

    def __init__(self, settings: Settings) -> None:
        options, terms = replace(engine_options(settings.engine), data_dir=str(settings.data_dir)), load_policy(DEMO)
        self._supervisor = Supervisor(options, settings.engine.max_waiting)
        self.database = Database.in_folder(settings.data_dir)
        self.record, self.rounds, self._articles = DatedRecord(self.database), Rounds(self.database), Knowledge(self.database)
        self._audit = Audit(self.database, settings.data_dir / "audit.head")
        self._chat = ChatService(self._supervisor.client, partial(make_tokenizer, options.path))
        self._chat.adapters = AdapterRegistry(settings.data_dir / "adapters")
        self._shops = {language: load_shop(language) for language in terms}
        policies = {language: Policy.of(shop, language, terms[language]) for language, shop in self._shops.items()}
        self.desk = Desk(self._chat, self.record, policies, settings.desk, self._supervisor.client.wait_s)
        self.desk.knowledge = DeskKnowledge(self._articles, self._shops, settings.desk.pinned_tokens, terms)

    async def follow(self) -> None:
        """One look at the rounds, as a running server takes every second."""
        await follow(self._chat, self.rounds, self._audit, "")
        await self.desk.prepare()

    @asynccontextmanager
    async def living(self) -> AsyncIterator["House"]:
        """With its engine up, for as long as the block lasts."""
        await self._supervisor.start()
        try:
            await self._supervisor.loaded()
            pieces = tuple(Piece(one.title, one.text) for one in self._shops["en"].passages)
            await self._articles.put("handbook.md", [Draft("Handbook", "en", pieces)])
            await self.follow()
            yield self
        finally:
            await self.desk.close()
            await self._supervisor.stop()
            self.database.close()


@dataclass(slots=True)
class Talk:
    """One visitor's conversation: what they ask and press, each at its own moment of the script. `at_ms` is now."""

    house: House
    visitor_id: str
    signals: Signals
    at_ms: int
    id: str = ""
    asked_id: str = ""

    @classmethod
    async def begin(cls, house: House, visitor_id: str, network: str, at_ms: int) -> "Talk":
        """Open a conversation, and let it improve the answers."""
        talk = cls(house, visitor_id, Signals(house.database, lambda: talk.at_ms), at_ms)
        talk.signals.seen(visitor_id, network)
        clock.set(lambda: talk.at_ms)
        talk.id = (await house.desk.open_conversation(visitor_id, "en")).id
        await house.record.set_consent(talk.id, visitor_id, consent_train=True)
        return talk

    async def ask(self, text: str, instead_of: str | None = None) -> Message:
        """Say something, in the place of the question `instead_of` if that is named; the kept answer. Raises RuntimeError without one."""
        self.at_ms += TYPING_MS
        answer = await self.house.desk.ask(self.visitor_id, self.id, text, str(uuid4()), instead_of)
        end = [event async for event in answer.events][-1]
        if not isinstance(end, Done):
            raise RuntimeError(f"the desk gave no answer to {text!r} but {end}")
        if answer.replaces:
            await self.signals.did(self.visitor_id, answer.replaces, "edit")
        self.asked_id, self.at_ms = str(end.message.reply_to_id), self.at_ms + READING_MS
        return end.message

    async def thumb(self, answer: Message, *, is_up: bool, tags: tuple[str, ...] = (), comment: str | None = None) -> None:
        """Vote on an answer; on the desk's own words, which no model made, nobody can."""
        if answer.completion_id:
            await self.signals.vote(self.visitor_id, Thumb(answer.completion_id, 1 if is_up else -1, tags, comment, new_id("key")))

    async def end(self) -> None:
        """Leave; the desk looks back at what was said."""
        await Lookback(self.house.database, self.signals, lambda: self.at_ms).sweep(self.id)
