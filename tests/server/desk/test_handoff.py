"""Who speaks: the bot, or a person, and never both. What hands a conversation over, and what the customer is told of it."""

import asyncio
import tempfile
from collections.abc import Coroutine
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from feedback.database import Database
from feedback.inbox import TRANSITIONS, Inbox, Move, Reason, StateChanged
from feedback.knowledge import Knowledge
from feedback.record import MUTE, Message, NotFound, Record, State, new_id, now_ms
from feedback.signals import Signals, Thumb
from server.chat.service import ChatMessage
from server.desk.desk import AnswerInProgress, Desk
from server.desk.handoff import CLOSE_AFTER_MS, Handoffs, View
from server.desk.knowledge import DeskKnowledge
from server.desk.policy import FALLBACK, Policy
from server.desk.policy_file import DEMO, load_policy
from server.desk.turn import Done, Event, Held
from server.errors import ConversationClosed, InvalidRequest
from server.settings import DeskSettings
from tests.server.desk.conftest import SHOPS
from tests.server.fakes import ScriptedChat

pytestmark = pytest.mark.anyio
T = TypeVar("T")

VISITOR = "vis_a"
NEVER = DeskSettings(hours="Mon 00:00-00:01, Tue 00:00-00:01")
OFFER = "I don't have that, I'm afraid. Shall I connect you with a person?"


class House:
    """A desk with people behind it."""

    def __init__(self, database: Database, chat: ScriptedChat, settings: DeskSettings | None = None) -> None:
        policies = {language: Policy.of(SHOPS[language], language) for language in ("en", "zh")}
        self.chat, self.record, self.inbox = chat, Record(database), Inbox(database)
        self.desk = Desk(chat, self.record, policies, settings or DeskSettings(), wait_s=lambda place: place)
        self.waited: list[tuple[str, Reason]] = []
        self.handoffs = Handoffs(self.desk, self.inbox, settings or DeskSettings(), lambda *waiting: self.waited.append(waiting))
        self.id = ""

    async def open(self) -> "House":
        self.id = (await self.desk.open_conversation(VISITOR, "en")).id
        return self

    async def ask(self, text: str = "How long?") -> list[Event]:
        answer = await self.handoffs.ask(VISITOR, self.id, text, str(uuid4()))
        return [event async for event in answer.events]

    async def move(self, to: State, agent: str = "Ann", reason: Reason = "agent") -> None:
        sources: tuple[State, ...] = ("bot", "waiting") if to == "human" else ("waiting", "human")
        await self.handoffs.move(self.id, Move(to, reason, agent, sources, agent=agent if to == "human" else None, held_by=agent))

    async def say(self, text: str, role: str = "agent") -> Message:
        return await self.handoffs.say(self.id, Message(new_id("msg"), role, text, str(uuid4()), author="Ann"))  # type: ignore[arg-type]

    async def state(self) -> State:
        return (await self.inbox.story(self.id)).conversation.state

    async def becomes(self, state: State) -> None:
        async with asyncio.timeout(5):
            while await self.state() != state:
                await asyncio.sleep(0.01)

    async def reasons(self) -> list[str]:
        return [event.reason for event in (await self.inbox.story(self.id)).handoffs]

    async def view(self) -> View:
        return (await self.handoffs._look(self.id))[0]


@pytest.fixture
async def house(database: Database) -> House:
    return await House(database, ScriptedChat(script=("Thirty days [1].",))).open()


async def test_while_a_person_is_waited_for_or_there_the_bot_is_mute(house: House) -> None:
    view = await house.handoffs.request(VISITOR, house.id)
    assert (view.state, view.place, house.waited) == ("waiting", 1, [(house.id, "request")])
    for state in ("waiting", "human"):
        if state == "human":
            await house.move("human")
        assert isinstance((await house.ask(f"Hello? ({state})"))[-1], Held)
    assert house.chat.streams == []
    assert [message.role for message in (await house.inbox.story(house.id)).messages] == ["user", "user"]
    await house.move("bot")
    assert isinstance((await house.ask("And now?"))[-1], Done)


async def test_an_answer_on_its_way_ends_before_the_person_comes(database: Database) -> None:
    house = await House(database, ScriptedChat()).open()
    asking = asyncio.create_task(house.ask())
    while not house.chat.streams:
        await asyncio.sleep(0.005)
    house.chat.streams[0].say("First, this. Then ")
    await asyncio.sleep(0.02)
    await house.move("human")
    end = (await asking)[-1]
    assert isinstance(end, Done) and end.message.text.startswith("First, this.") and end.message.status == "stopped"
    story = await house.inbox.story(house.id)
    assert story.messages[-1].text == end.message.text and story.messages[-1].created_at_ms <= story.handoffs[-1].created_at_ms
    assert isinstance((await house.ask("Hello?"))[-1], Held)


async def test_a_message_sent_during_the_handover_is_never_the_bots(house: House) -> None:
    for _ in range(10):
        await house.open()
        ends = await asyncio.gather(house.ask("Hello?"), house.handoffs.request(VISITOR, house.id))
        messages = (await house.inbox.story(house.id)).messages
        [event] = (await house.inbox.story(house.id)).handoffs
        assert isinstance(ends[0][-1], Held | Done)
        assert all(message.created_at_ms <= event.created_at_ms for message in messages if message.role == "assistant")


async def test_the_model_hears_what_the_agent_said_and_no_note(house: House) -> None:
    await house.ask("How long?")
    await house.move("human")
    await house.ask("Really?")
    await house.say("Yes, thirty.")
    await house.say("Opened ones too.")
    await house.say("A difficult one.", role="note")
    await house.move("bot")
    await house.ask("And tea?")
    heard = house.chat.streams[-1].job.messages[1:]
    assert heard == (
        ChatMessage("user", "How long?"),
        ChatMessage("assistant", "Thirty days [1]."),
        ChatMessage("user", "Really?"),
        ChatMessage("assistant", "Yes, thirty.\nOpened ones too."),
        ChatMessage("user", "And tea?"),
    )


@pytest.mark.parametrize("text", ["let me talk to a human", "转人工"])
async def test_asking_in_words_is_asking(house: House, text: str) -> None:
    assert isinstance((await house.ask(text))[-1], Held)
    assert await house.reasons() == ["request"]


async def test_a_yes_to_an_offer_is_asking(house: House) -> None:
    house.chat.script = (OFFER,)
    await house.ask("Do you sell cars?")
    assert isinstance((await house.ask("Yes please"))[-1], Held)


async def test_two_failures_in_a_row_bring_a_person(house: House, database: Database) -> None:
    house.chat.script = ()
    end = (await house.ask("What?"))[-1]
    assert isinstance(end, Done) and end.message.text == FALLBACK["en"]
    await asyncio.sleep(0.05)
    assert await house.state() == "bot"
    await house.ask("What??")
    await house.becomes("waiting")
    assert await house.reasons() == ["failure"]


async def test_thumbs_down_are_failures(house: House, database: Database) -> None:
    signals = Signals(database, lambda: now_ms() + 5000)
    for key in ("one", "two"):
        end = (await house.ask(key))[-1]
        assert isinstance(end, Done) and end.message.completion_id
        receipt = await signals.vote(VISITOR, Thumb(end.message.completion_id, -1, (), None, key))
        await house.handoffs.check_failures(receipt.conversation_id)
    await house.becomes("waiting")


async def test_a_failed_check_hands_over_once_the_answer_is_kept(database: Database) -> None:
    house = await House(database, ScriptedChat()).open()
    asking = asyncio.create_task(house.ask())
    while not house.chat.streams:
        await asyncio.sleep(0.005)
    house.handoffs.soon(house.id, "check")
    await asyncio.sleep(0.05)
    assert await house.state() == "bot"
    house.chat.streams[0].say("Thirty.")
    house.chat.streams[0].end()
    end = (await asking)[-1]
    assert isinstance(end, Done) and end.message.status == "complete"
    await house.becomes("waiting")
    assert await house.reasons() == ["check"]
    assert not await house.handoffs.handoff(house.id, "check")


async def test_after_hours_a_message_is_left_instead(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    house = await House(database, ScriptedChat(script=("Thirty.",)), NEVER).open()
    monkeypatch.setattr(house.handoffs, "_opens_at_ms", lambda: 4_102_444_800_000)
    asked = await house.handoffs.request(VISITOR, house.id)
    assert (asked.state, asked.offers_form, asked.opens_at_ms) == ("bot", True, 4_102_444_800_000)
    assert not await house.handoffs.handoff(house.id, "failure")
    assert isinstance((await house.ask("human please"))[-1], Done)
    left = await house.handoffs.leave_form(VISITOR, house.id, {"email": "a@b.de", "text": "Call me"})
    assert (left.state, left.has_form, left.offers_form) == ("waiting", True, False)
    [event] = (await house.inbox.story(house.id)).handoffs
    assert (event.reason, event.contact) == ("hours", {"email": "a@b.de", "text": "Call me"})


async def test_whoever_waits_too_long_may_leave_a_message(database: Database) -> None:
    house = await House(database, ScriptedChat(), DeskSettings(wait_minutes=0.001)).open()
    await house.handoffs.request(VISITOR, house.id)
    await asyncio.sleep(0.1)
    assert (await house.view()).offers_form
    await house.handoffs.leave_form(VISITOR, house.id, {"phone": "123456", "text": "Hi"})
    assert (await house.reasons(), (await house.view()).offers_form) == (["request", "timeout"], False)
    await house.move("human")
    with pytest.raises(StateChanged):
        await house.handoffs.leave_form(VISITOR, house.id, {"phone": "123456", "text": "Hi"})


async def test_the_customer_follows_and_comes_back_where_they_were(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    news = house.handoffs.follow(VISITOR, house.id, 0)
    assert (await anext(news)).state == "bot"  # type: ignore[union-attr]
    await house.handoffs.request(VISITOR, house.id)
    assert (await anext(news)).place == 1  # type: ignore[union-attr]
    await house.move("human")
    view = await anext(news)
    assert isinstance(view, View) and (view.state, view.agent, view.is_typing) == ("human", "Ann", False)
    house.handoffs.type(house.id)
    assert (await anext(news)).is_typing  # type: ignore[union-attr]
    first, note, second = await house.say("Hello."), await house.say("hm", role="note"), await house.say("Bye.")
    told = [await anext(news) for _ in range(3)]
    assert [each.text for each in told if isinstance(each, Message)] == ["Hello.", "Bye."]
    assert note.seq == first.seq + 1
    await house.move("resolved")
    assert (await anext(news)).state == "resolved"  # type: ignore[union-attr]
    await news.aclose()
    again = house.handoffs.follow(VISITOR, house.id, first.seq)
    assert (await anext(again)) == second
    house.handoffs.end_streams()
    assert [type(each) async for each in again] == [View]
    with pytest.raises(NotFound):
        await anext(house.handoffs.follow("vis_b", house.id, 0))


async def test_the_inbox_is_told_again_when_it_changes(house: House) -> None:
    lists = house.handoffs.watch_inbox()
    assert await anext(lists) == []
    await house.handoffs.request(VISITOR, house.id)
    assert [row.state for row in await anext(lists)] == ["waiting"]
    await house.ask("Hello?")
    assert [row.text for row in await anext(lists)] == ["Hello?"]


async def test_resolved_opens_again_with_a_signal_and_closed_does_not(house: House, database: Database) -> None:
    await house.move("human")
    await house.move("resolved")
    assert isinstance((await house.ask("One more thing"))[-1], Done)
    assert await house.state() == "bot"
    await house.move("human")
    await house.move("resolved")
    assert (await house.handoffs.request(VISITOR, house.id)).state == "waiting"
    await house.move("resolved")
    await house.inbox.close_resolved(now_ms() + CLOSE_AFTER_MS)
    with pytest.raises(ConversationClosed):
        await house.ask("One more thing")


async def test_a_draft_is_told_to_the_agent_alone(house: House) -> None:
    await house.ask("How long?")
    with pytest.raises(InvalidRequest):
        await anext(house.desk.draft(house.id, "en"))
    await house.move("human")
    await house.ask("And tea?")
    before = len((await house.inbox.story(house.id)).messages)
    assert [told async for told in house.desk.draft(house.id, "en") if told] == ["Thirty days [1]."]
    assert house.chat.streams[-1].job.messages[-1] == ChatMessage("user", "And tea?")
    assert len((await house.inbox.story(house.id)).messages) == before


async def test_the_state_outlives_the_process(database: Database, house: House, tmp_path: Path) -> None:
    await house.handoffs.request(VISITOR, house.id)
    reborn = House(database, ScriptedChat(script=("No.",)))
    reborn.id = house.id
    assert isinstance((await reborn.ask("Anybody?"))[-1], Held)
    assert (await reborn.view()).place == 1


class Conversations(RuleBasedStateMachine):
    """Customers, agents and triggers in any order over one conversation, with answers on their way meanwhile."""

    loop = asyncio.new_event_loop()
    folder = tempfile.TemporaryDirectory()
    database = Database.in_folder(Path(folder.name))

    def run(self, work: Coroutine[object, object, T]) -> T:
        return self.loop.run_until_complete(asyncio.wait_for(work, 10))

    @initialize()
    def begin(self) -> None:
        self.house = House(self.database, ScriptedChat())
        self.run(self.house.open())
        self.answers: list[asyncio.Task[list[Event]]] = []
        self.spoken_by_bot, self.streams, self.was_mute = 0, 0, False

    @rule()
    def customer_asks(self) -> None:
        async def ask() -> None:
            self.answers.append(asyncio.create_task(self.house.ask("How long?")))
            await asyncio.sleep(0.03)

        self.run(ask())

    @rule()
    def bot_ends_its_answer(self) -> None:
        async def end() -> None:
            for stream in self.house.chat.streams:
                stream.say("Thirty.")
                stream.end()
            await asyncio.sleep(0.03)

        self.run(end())

    @rule()
    def customer_wants_a_person(self) -> None:
        self.run(self.house.handoffs.request(VISITOR, self.house.id))

    @rule()
    def customer_goes_on_with_the_bot(self) -> None:
        self.run(self.house.handoffs.go_on_with_bot(VISITOR, self.house.id))

    @rule()
    def a_check_fails(self) -> None:
        self.run(self.house.handoffs.handoff(self.house.id, "check"))

    def agent_moves(self, to: State) -> None:
        before = self.run(self.house.state())
        try:
            self.run(self.house.move(to))
            assert "agent" in TRANSITIONS[before, to]
        except StateChanged:
            assert "agent" not in TRANSITIONS.get((before, to), ()) or before == to

    @rule()
    def agent_takes(self) -> None:
        self.agent_moves("human")

    @rule()
    def agent_returns(self) -> None:
        self.agent_moves("bot")

    @rule()
    def agent_resolves(self) -> None:
        self.agent_moves("resolved")

    @rule()
    def agent_answers(self) -> None:
        is_theirs = self.run(self.house.state()) == "human"
        try:
            self.run(self.house.say("Hello."))
            assert is_theirs
        except StateChanged:
            assert not is_theirs

    @invariant()
    def the_bot_is_mute_while_a_person_has_it(self) -> None:
        if not hasattr(self, "house"):
            return
        story = self.run(self.house.inbox.story(self.house.id))
        num_spoken, num_streams = sum(message.role == "assistant" for message in story.messages), len(self.house.chat.streams)
        is_mute = story.conversation.state in MUTE
        if is_mute and self.was_mute:
            assert (num_spoken, num_streams) == (self.spoken_by_bot, self.streams)
        if is_mute:
            assert all(stream.is_closed for stream in self.house.chat.streams)
        self.spoken_by_bot, self.streams, self.was_mute = num_spoken, num_streams, is_mute
        states = [event.to_state for event in story.handoffs]
        assert [event.from_state for event in story.handoffs] == ["bot", *states][: len(states)]

    def teardown(self) -> None:
        async def finish() -> None:
            self.house.chat.script = ("Fine.",)
            await self.house.desk.close()
            await self.house.handoffs.close()
            ends = await asyncio.gather(*self.answers, return_exceptions=True)
            assert all(isinstance(end, list | AnswerInProgress) for end in ends), ends

        if hasattr(self, "house"):
            self.run(finish())


TestConversations = Conversations.TestCase
TestConversations.settings = hypothesis_settings(max_examples=12, stateful_step_count=14, deadline=None)


@pytest.mark.parametrize(
    ("text", "is_theirs"), [("I burned myself on your kettle!", True), ("我要起诉你们", True), ("Are you a human?", False)]
)
async def test_the_policy_says_what_is_answered_and_then_a_persons(house: House, database: Database, text: str, is_theirs: bool) -> None:
    house.desk.knowledge = DeskKnowledge(Knowledge(database), dict(SHOPS), 2000, load_policy(DEMO))
    assert isinstance((await house.ask(text))[-1], Done)
    await house.becomes("waiting" if is_theirs else "bot")
    assert await house.reasons() == ["policy"] * is_theirs
    assert house.waited == [(house.id, "policy")] * is_theirs
