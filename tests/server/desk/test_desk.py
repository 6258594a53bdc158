"""One customer turn, end to end: what the customer is told, what is kept, and what the model is asked."""

import asyncio
import gc
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from backends.protocol import EngineBusy, EngineDied
from feedback.database import Database
from feedback.record import NotFound, Record
from server.chat.service import ChatMessage
from server.desk.desk import AnswerInProgress, Desk
from server.desk.policy import FALLBACK, Policy
from server.desk.turn import Accepted, Answering, Delta, Done, Failed, Queued, Thinking
from server.errors import InvalidRequest, ShuttingDown, Unsupported
from tests.server.desk.customer import VISITOR, Customer, answer_in, completions, opened, said_in
from tests.server.fakes import SPEC, ScriptedChat

pytestmark = pytest.mark.anyio


async def test_a_turn_is_told_step_by_step_and_kept_whole(
    desk: Desk, chat: ScriptedChat, customer: Customer, record: Record, database: Database
) -> None:
    chat.script = ("Thirty", " days [1]", "[9].")
    events = await customer.ask("How long may I return it?")
    answer = answer_in(events)
    question, kept = await record.messages(customer.id)
    assert events == [Accepted(question.id), Answering(), Delta("Thirty days [1]."), Done(kept)] or events[1] == Thinking(
        can_answer_now=True
    )
    assert answer == kept
    assert (kept.text, kept.status, kept.reply_to_id) == ("Thirty days [1].", "complete", question.id)
    assert [citation.passage_id for citation in kept.citations] == ["returns"]
    assert not any("secret" in str(event) for event in events)
    [row] = await completions(database)
    assert (row["reasoning"], row["content"]) == ("a secret thought", "Thirty days [1][9].")
    assert (row["model_sha256"], row["engine"], row["template_sha256"]) == (SPEC.sha256, SPEC.engine, "t" * 64)
    assert row["completion_token_ids"] == [7, 7, 7]
    assert row["sampling"]["seed"] == row["seed"] == chat.streams[0].job.sampling.seed
    assert chat.streams[0].is_closed


async def test_the_model_is_asked_with_the_shops_words_and_warmed_for_the_next_turn(
    desk: Desk, chat: ScriptedChat, customer: Customer
) -> None:
    chat.script = ("Thirty days.",)
    await customer.ask("How long?")
    job = chat.streams[0].job
    system, question = job.messages
    assert system.role == "system" and "Returns [1]: Within 30 days." in system.content
    assert question == ChatMessage("user", "How long?")
    assert (job.scope_public, job.scope_private) == ("desk", customer.id)
    assert chat.warmed == [((system, question, ChatMessage("assistant", "Thirty days.")), "desk", customer.id)]
    await customer.ask("And tea?")
    assert chat.streams[1].job.messages == (*chat.warmed[0][0], ChatMessage("user", "And tea?"))
    assert chat.streams[0].job.sampling.seed != chat.streams[1].job.sampling.seed


async def test_what_every_conversation_begins_with_is_warmed_in_both_languages(desk: Desk, chat: ScriptedChat) -> None:
    desk.warm()
    assert [(messages[0].content[:3], public, private) for messages, public, private in chat.warmed] == [
        ("You", "desk", ""),
        ("你是茶", "desk", ""),
    ]


async def test_the_customer_hears_their_place_then_thinking_then_the_answer(
    chat: ScriptedChat, customer: Customer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.desk.turn.LOOK_INTERVAL_S", 0.001)
    chat.place = 3
    asking = customer.asking("Hello?")
    stream = await opened(chat)
    for place in (3, 3, 1, 0):
        stream.place = place
        await asyncio.sleep(0.05)
    stream.think("hm")
    stream.say("Yes.")
    stream.end()
    told = [event for event in await asking if not isinstance(event, Accepted | Done)]
    assert told == [Queued(3, 15), Queued(1, 5), Thinking(can_answer_now=True), Answering(), Delta("Yes.")]


async def test_an_idle_engine_has_no_queue_to_tell_of(chat: ScriptedChat, customer: Customer) -> None:
    chat.place = 1
    asking = customer.asking("Hello?")
    stream = await opened(chat)
    await asyncio.sleep(0.05)
    stream.place = 0
    await asyncio.sleep(0.15)
    stream.say("Yes.")
    stream.end()
    assert [type(event) for event in await asking] == [Accepted, Thinking, Answering, Delta, Done]


async def test_stop_keeps_what_was_said(desk: Desk, chat: ScriptedChat, customer: Customer, record: Record) -> None:
    asking = customer.asking("Tell me everything")
    stream = await opened(chat)
    stream.say("First, this. Then ")
    await asyncio.sleep(0.02)
    await desk.stop(VISITOR, customer.id)
    answer = answer_in(await asking)
    assert (answer.text, answer.status) == ("First, this. ", "stopped")
    assert (await record.messages(customer.id))[-1] == answer
    await desk.stop(VISITOR, customer.id)


async def test_the_customer_and_nobody_else_may_cut_the_thought_short(desk: Desk, chat: ScriptedChat, customer: Customer) -> None:
    await desk.answer_now(VISITOR, customer.id)
    asking = customer.asking("Hello?")
    stream = await opened(chat)
    with pytest.raises(NotFound):
        await desk.answer_now("vis_b", customer.id)
    assert stream.num_closes == 0
    await desk.answer_now(VISITOR, customer.id)
    assert stream.num_closes == 1
    stream.can_answer_now = False
    with pytest.raises(Unsupported):
        await desk.answer_now(VISITOR, customer.id)
    stream.say("Yes.")
    stream.end()
    assert answer_in(await asking).text == "Yes."


async def test_stop_during_thinking_is_not_dressed_up_as_an_answer(desk: Desk, chat: ScriptedChat, customer: Customer) -> None:
    asking = customer.asking("Hello?")
    (await opened(chat)).think("hm")
    await desk.stop(VISITOR, customer.id)
    answer = answer_in(await asking)
    assert (answer.text, answer.status, answer.completion_id) == ("", "stopped", None)


async def test_only_the_visitor_can_stop(desk: Desk, chat: ScriptedChat, customer: Customer) -> None:
    asking = customer.asking("Hello?")
    stream = await opened(chat)
    for conversation_id in (customer.id, "conv_none"):
        with pytest.raises(NotFound):
            await desk.stop("vis_b", conversation_id)
    stream.say("Hi.")
    stream.end()
    assert answer_in(await asking).status == "complete"


async def test_a_hang_up_frees_the_engine_and_keeps_the_part(desk: Desk, chat: ScriptedChat, customer: Customer, record: Record) -> None:
    answer = await desk.ask(VISITOR, customer.id, "Hello?", "key")
    chat.streams[0].say("Hi! You ")
    await asyncio.sleep(0.02)
    answer.hang_up()
    await desk.close()
    kept = (await record.messages(customer.id))[-1]
    assert (kept.text, kept.status) == ("Hi! ", "interrupted")
    assert chat.streams[0].is_closed
    assert not (await desk.current(VISITOR)).answering


async def test_a_dead_engine_is_said_so_and_the_part_is_kept(chat: ScriptedChat, customer: Customer, record: Record) -> None:
    asking = customer.asking("Hello?")
    stream = await opened(chat)
    stream.say("Hi! You ")
    stream.die()
    events = await asking
    assert isinstance(events[-1], Failed) and isinstance(events[-1].error, EngineDied)
    assert said_in(events) == "Hi! "
    kept = (await record.messages(customer.id))[-1]
    assert (kept.text, kept.status) == ("Hi! ", "interrupted")


async def test_a_question_whose_answer_never_began_can_be_sent_again(chat: ScriptedChat, customer: Customer, record: Record) -> None:
    asking = customer.asking("Hello?", "key")
    (await opened(chat)).die(ShuttingDown("the server is stopping"))
    assert isinstance((await asking)[-1], Failed)
    assert [message.role for message in await record.messages(customer.id)] == ["user"]
    chat.script = ("Hi.",)
    await customer.ask("Hello?", "key")
    assert [message.text for message in await record.messages(customer.id)] == ["Hello?", "Hi."]


@pytest.mark.parametrize(("question", "language"), [("Where is it?", "en"), ("我的订单呢?", "zh")])
@pytest.mark.parametrize("script", [(), ("  \n",), ("[9]",)])
async def test_an_empty_answer_becomes_an_offer_of_a_person(
    chat: ScriptedChat, customer: Customer, record: Record, database: Database, question: str, language: str, script: tuple[str, ...]
) -> None:
    chat.script = script
    events = await customer.ask(question)
    answer = answer_in(events)
    assert answer.text.strip() == FALLBACK["zh" if language == "zh" else "en"]
    assert said_in(events) == answer.text
    assert answer.completion_id is None
    [row] = await completions(database)
    assert (row["shown"], row["content"]) == (False, "".join(script))


async def test_the_same_message_again_replays_its_answer(chat: ScriptedChat, customer: Customer, record: Record) -> None:
    chat.script = ("Thirty days [1].",)
    first = await customer.ask("How long?", "key")
    again = await customer.ask("How long?", "key")
    assert answer_in(again) == answer_in(first)
    assert said_in(again) == said_in(first)
    assert len(chat.streams) == 1
    assert len(await record.messages(customer.id)) == 2
    with pytest.raises(InvalidRequest):
        await customer.ask("How much?", "key")
    await customer.ask("How much?", "other key")


async def test_one_answer_at_a_time_per_visitor(desk: Desk, chat: ScriptedChat, customer: Customer) -> None:
    elsewhere = await desk.open_conversation(VISITOR, "en")
    theirs = await desk.open_conversation("vis_b", "en")
    asking = customer.asking("Hello?", "key")
    stream = await opened(chat)
    assert (await desk.current(VISITOR)).conversation.id in (customer.id, elsewhere.id)
    for conversation_id in (customer.id, elsewhere.id):
        with pytest.raises(AnswerInProgress) as refused:
            await desk.ask(VISITOR, conversation_id, "Hello?", "key")
        assert refused.value.retry_after_s == 1
    await desk.ask("vis_b", theirs.id, "Hello?", "key")
    stream.say("Hi.")
    stream.end()
    await asking
    chat.streams[1].end()
    chat.script = ("Again.",)
    await customer.ask("Hello again?")


async def test_two_of_one_visitors_messages_at_once_give_one_answer(chat: ScriptedChat, customer: Customer) -> None:
    chat.script = ("Hi.",)
    outcomes = await asyncio.gather(*(customer.ask("Hello?", "key") for _ in range(5)), return_exceptions=True)
    assert sum(isinstance(outcome, list) for outcome in outcomes) >= 1
    assert all(isinstance(outcome, list | AnswerInProgress) for outcome in outcomes)
    assert len(chat.streams) == 1


async def test_a_busy_engine_refuses_at_once_and_loses_nothing(chat: ScriptedChat, customer: Customer, record: Record) -> None:
    chat.refuse = EngineBusy(7)
    with pytest.raises(EngineBusy):
        await customer.ask("Hello?", "key")
    assert [message.text for message in await record.messages(customer.id)] == ["Hello?"]
    chat.refuse, chat.script = None, ("Hi.",)
    assert answer_in(await customer.ask("Hello?", "key")).text == "Hi."
    assert len(await record.messages(customer.id)) == 2


async def test_a_record_that_cannot_be_written_does_not_end_the_chat(
    desk: Desk, chat: ScriptedChat, customer: Customer, record: Record, database: Database, tmp_path: Path
) -> None:
    chat.script = ("Hi there.",)
    await database.write(lambda connection: connection.exec_driver_sql("PRAGMA busy_timeout=1").close())
    with closing(sqlite3.connect(tmp_path / "data" / "kefu.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        lost = answer_in(await customer.ask("Hello?", "key"))
        assert lost.completion_id is None
        assert answer_in(await customer.ask("Hello?", "key")).id == lost.id
        newcomer = await desk.open_conversation("vis_new", "zh")
        answer = await desk.ask("vis_new", newcomer.id, "你好吗", "key")
        assert answer_in([event async for event in answer.events]).text == "Hi there."
        with pytest.raises(NotFound):
            await desk.ask("vis_b", newcomer.id, "你好", "key")
        assert [message.role for message in (await desk.current("vis_new")).messages] == ["user", "assistant"]
        assert await record.messages(newcomer.id) == []
        other.execute("ROLLBACK")
    chat.script = ("Back.",)
    assert answer_in(await customer.ask("And now?")).completion_id
    assert [message.text for message in await record.messages(customer.id)] == ["Hello?", "Hi there.", "And now?", "Back."]
    assert [message.content for message in chat.streams[-1].job.messages[1:]] == ["Hello?", "Hi there.", "And now?"]
    assert (await desk.current("vis_new")).conversation.id == newcomer.id


async def test_the_language_follows_the_customer(chat: ScriptedChat, customer: Customer) -> None:
    chat.script = ("...",)
    for question in ("我想退货", "A-102", "Could you say that in English?", "ok"):
        await customer.ask(question)
    assert [stream.job.messages[0].content[:3] for stream in chat.streams] == ["你是茶", "你是茶", "You", "You"]


async def test_questions_without_an_answer_join_the_next_one(chat: ScriptedChat, customer: Customer) -> None:
    chat.refuse = EngineBusy(1)
    for question in ("Where is it?", "Order A-102", "Order A-102"):
        with pytest.raises(EngineBusy):
            await customer.ask(question)
    chat.refuse, chat.script = None, ("There.",)
    await customer.ask("Hello?")
    assert chat.streams[0].job.messages[1:] == (ChatMessage("user", "Where is it?\nOrder A-102\nHello?"),)


async def test_a_long_conversation_loses_its_oldest_turns_in_steps(chat: ScriptedChat, customer: Customer) -> None:
    chat.spec = replace(SPEC, context_length=2000)
    chat.script = ("It is an answer of some ninety letters, which is about what a customer gets to read here.",)
    starts = []
    for number in range(30):
        await customer.ask(f"{number:02}" + "q" * 98)
        job = chat.streams[-1].job
        size = sum(len(message.content) for message in job.messages)
        assert job.messages[0].role == "system"
        assert job.messages[-1].content.startswith(f"{number:02}")
        assert [message.role for message in job.messages[1:]] == ["user", "assistant"] * ((len(job.messages) - 2) // 2) + ["user"]
        assert size + job.sampling.max_tokens <= 2000
        assert job.sampling.max_tokens >= 500
        starts.append(job.messages[1].content[:2])
    assert starts == sorted(starts)
    assert "00" in starts[:6] and starts[-1] > "15"
    assert len(set(starts)) < 12


async def test_a_question_that_alone_is_too_long_is_the_engines_to_refuse(chat: ScriptedChat, customer: Customer) -> None:
    chat.spec = replace(SPEC, context_length=300)
    chat.script = ("Hi.",)
    await customer.ask("q" * 400)
    assert chat.streams[0].job.sampling.max_tokens == 1


async def test_another_visitors_conversation_does_not_exist(desk: Desk, customer: Customer) -> None:
    with pytest.raises(NotFound) as foreign:
        await desk.ask("vis_b", customer.id, "Hello?", "key")
    with pytest.raises(NotFound) as missing:
        await desk.ask("vis_b", "conv_none", "Hello?", "key")
    assert str(foreign.value) == str(missing.value)
    with pytest.raises(NotFound):
        await desk.current("vis_b")


async def test_an_error_of_our_own_ends_the_stream_and_is_not_silent(
    chat: ScriptedChat, customer: Customer, monkeypatch: pytest.MonkeyPatch
) -> None:
    unhandled: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: unhandled.append(context["exception"]))
    chat.script = ("Fine.",)
    with monkeypatch.context() as patch:
        patch.delattr(Policy, "citations")
        assert isinstance((await customer.ask("Hello?"))[-1], Failed)
    assert answer_in(await customer.ask("Still there?")).text == "Fine."
    gc.collect()
    assert [type(error) for error in unhandled] == [AttributeError]
