"""An answer that fails its checks: taken back, asked for once more, and then a person is offered."""

import asyncio

import pytest

from backends.protocol import EngineBusy
from feedback.database import Database
from feedback.record import Conversation, Message, Record
from server.desk.desk import Desk
from server.desk.policy import OFFER
from server.desk.turn import Delta, Restart
from tests.server.desk.customer import VISITOR, Customer, answer_in, completions, opened, said_in
from tests.server.fakes import ScriptedChat

pytestmark = pytest.mark.anyio


async def test_a_wrong_answer_is_taken_back_and_asked_for_once_more(
    chat: ScriptedChat, customer: Customer, record: Record, database: Database
) -> None:
    asking = customer.asking("How long?")
    first = await opened(chat)
    first.say("Hello! You have 60 days. So")
    second = await opened(chat, 2)
    assert first.is_closed
    second.say("Thirty days [1].")
    second.end()
    events = await asking
    assert [event for event in events if isinstance(event, Delta | Restart)] == [Delta("Hello! "), Restart(), Delta("Thirty days [1].")]
    answer = answer_in(events)
    assert (answer.text, answer.completion_id) == ("Thirty days [1].", second.completion_id)
    assert (await record.messages(customer.id))[1:] == [answer]
    assert first.job.messages == second.job.messages and first.job.sampling.seed != second.job.sampling.seed
    rows = {row["id"]: row for row in await completions(database)}
    rejected, shown = rows[first.completion_id], rows[second.completion_id]
    assert (rejected["status"], rejected["shown"], rejected["content"]) == ("rejected", False, "Hello! You have 60 days. So")
    assert [(each["kind"], each["text"]) for each in rejected["violations"]] == [("number", "60 days")]
    assert (shown["status"], shown["shown"], shown["violations"]) == ("complete", True, [])
    assert rejected["message_id"] == shown["message_id"] == answer.id


@pytest.mark.parametrize(("question", "script", "language"), [("How long?", "60 days.", "en"), ("多久能退?", "六十天。", "zh")])
async def test_two_wrong_answers_become_the_offer_of_a_person(
    desk: Desk, chat: ScriptedChat, customer: Customer, record: Record, database: Database, question: str, script: str, language: str
) -> None:
    told: list[object] = []

    async def hand_over(conversation: Conversation, asked: Message) -> None:
        told.append((conversation.id, asked.text))

    desk.on_check, desk.on_check_failed = told.append, hand_over
    chat.script = (script, " And more.")
    events = await customer.ask(question)
    answer = answer_in(events)
    assert answer.text == said_in(events) == OFFER["zh" if language == "zh" else "en"]
    assert not any(isinstance(event, Delta) and "60" in event.text for event in events)
    assert (answer.completion_id, answer.citations, answer.status) == (None, (), "complete")
    assert (await record.messages(customer.id))[1:] == [answer]
    assert [(row["status"], row["shown"]) for row in await completions(database)] == [("rejected", False)] * 2
    assert told == ["number", (customer.id, question)]
    assert [message.content for message in chat.warmed[0][0]][-1] == answer.text


async def test_an_engine_without_room_for_another_try_is_the_offer_too(chat: ScriptedChat, customer: Customer, database: Database) -> None:
    asking = customer.asking("How long?")
    stream = await opened(chat)
    chat.refuse = EngineBusy(7)
    stream.say("60 days. So")
    assert answer_in(await asking).text == OFFER["en"]
    assert len(await completions(database)) == 1


async def test_a_customer_who_stops_the_second_try_keeps_what_passed(
    desk: Desk, chat: ScriptedChat, customer: Customer, database: Database
) -> None:
    asking = customer.asking("How long?")
    (await opened(chat)).say("60 days. So")
    (await opened(chat, 2)).say("Thirty days. And")
    await asyncio.sleep(0.02)
    await desk.stop(VISITOR, customer.id)
    answer = answer_in(await asking)
    assert (answer.text, answer.status) == ("Thirty days. ", "stopped")
    assert sorted(str(row["status"]) for row in await completions(database)) == ["rejected", "stopped"]


async def test_a_thought_may_say_what_an_answer_may_not(chat: ScriptedChat, customer: Customer) -> None:
    asking = customer.asking("How long?")
    stream = await opened(chat)
    stream.think("Maybe 60 days? We will refund them. <|im_start|>")
    stream.say("Thirty days [1].")
    stream.end()
    assert answer_in(await asking).text == "Thirty days [1]."
    assert len(chat.streams) == 1


async def test_earlier_answers_may_be_quoted(chat: ScriptedChat, customer: Customer) -> None:
    chat.script = ("Is it order A-777?",)
    await customer.ask("Where is order A-777?")
    chat.script = ("Order A-777 it is.",)
    assert answer_in(await customer.ask("Yes.")).text == "Order A-777 it is."


async def test_the_same_regret_twice_is_tried_once_more_and_may_then_stand(
    chat: ScriptedChat, customer: Customer, database: Database
) -> None:
    chat.script = ("I can't find that. ", "Could you check the number?")
    first = answer_in(await customer.ask("Where is my order?"))
    assert first.text == "I can't find that. Could you check the number?"
    again = await customer.ask("Can I pay in cash?")
    assert answer_in(again).text == said_in(again) == first.text
    assert [row["violations"] for row in await completions(database) if row["status"] == "rejected"] == [
        [{"kind": "repeat", "text": first.text, "detail": "says what was just said, and rests on nothing"}]
    ]
    assert chat.streams[1].job.sampling.seed != chat.streams[2].job.sampling.seed


@pytest.mark.parametrize(
    ("script", "questions"),
    [("You're welcome!", ("thanks", "thank you very much")), ("30 days [1].", ("How long?", "And for tea?")), ("你好！", ("你好", "您好"))],
)
async def test_thanks_and_what_has_a_source_may_be_said_again(
    chat: ScriptedChat, customer: Customer, script: str, questions: tuple[str, ...]
) -> None:
    chat.script = (script,)
    assert [answer_in(await customer.ask(question)).text for question in questions] == [script] * 2
