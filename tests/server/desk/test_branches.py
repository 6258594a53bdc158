"""Branches: an answer made again, a question edited; what the model reads, what the screen shows, what the record keeps."""

import pytest

from backends.protocol import EngineBusy
from feedback.record import Conversation, Message, NotFound, Record, newest_branch
from server.desk.desk import Answer, Desk
from server.desk.turn import Done
from server.errors import InvalidRequest
from tests.server.fakes import ScriptedChat

pytestmark = pytest.mark.anyio

VISITOR = "vis_a"


async def end(answer: Answer) -> Message:
    last = [event async for event in answer.events][-1]
    assert isinstance(last, Done)
    return last.message


@pytest.fixture
async def conversation(desk: Desk, chat: ScriptedChat) -> Conversation:
    """Two questions, two answers."""
    opened = await desk.open_conversation(VISITOR, "en")
    for text in ("one", "two"):
        chat.script = (f"Answer to {text}.",)
        await end(await desk.ask(VISITOR, opened.id, text, f"key {text}"))
    return opened


async def screen(desk: Desk) -> list[str]:
    return [message.text for message in (await desk.current(VISITOR)).messages]


def read_by_the_model(chat: ScriptedChat) -> list[str]:
    return [message.content for message in chat.streams[-1].job.messages[1:]]


async def test_another_answer_replaces_the_last_one_on_the_screen_and_the_record_keeps_both(
    desk: Desk, chat: ScriptedChat, conversation: Conversation, record: Record
) -> None:
    old = (await record.messages(conversation.id))[-1]
    chat.script = ("Better.",)
    answer = await desk.regenerate(VISITOR, conversation.id, old.id)
    assert answer.replaces == old.completion_id
    new = await end(answer)
    assert (new.text, new.reply_to_id, new.replaces_id) == ("Better.", old.reply_to_id, old.id)
    assert read_by_the_model(chat) == ["one", "Answer to one.", "two"]
    assert await screen(desk) == ["one", "Answer to one.", "two", "Better."]
    assert [message.text for message in await record.messages(conversation.id)][3:] == ["Answer to two.", "Better."]
    num_streams = len(chat.streams)
    assert (await end(await desk.regenerate(VISITOR, conversation.id, old.id))).id == new.id
    assert len(chat.streams) == num_streams


async def test_an_edited_question_cuts_what_followed_it(desk: Desk, chat: ScriptedChat, conversation: Conversation, record: Record) -> None:
    first, first_answer, *_ = await record.messages(conversation.id)
    chat.script = ("New.",)
    answer = await desk.ask(VISITOR, conversation.id, "one, please", "key 3", first.id)
    assert answer.replaces == first_answer.completion_id
    await end(answer)
    assert read_by_the_model(chat) == ["one, please"]
    assert await screen(desk) == ["one, please", "New."]
    await end(await desk.ask(VISITOR, conversation.id, "more", "key 4"))
    assert read_by_the_model(chat) == ["one, please", "New.", "more"]
    assert len(await record.messages(conversation.id)) == 8


async def test_only_what_is_on_the_screen_can_be_replaced(desk: Desk, conversation: Conversation, record: Record) -> None:
    first, first_answer, second, second_answer = await record.messages(conversation.id)
    for wrong in (first.id, second.id, "msg_none"):
        with pytest.raises(NotFound):
            await desk.regenerate(VISITOR, conversation.id, wrong)
    with pytest.raises(InvalidRequest, match="only the bot's last"):
        await desk.regenerate(VISITOR, conversation.id, first_answer.id)
    for wrong in (first_answer.id, "msg_none"):
        with pytest.raises(NotFound):
            await desk.ask(VISITOR, conversation.id, "x", "key", wrong)
    await end(await desk.ask(VISITOR, conversation.id, "one, please", "key 3", first.id))
    with pytest.raises(NotFound):
        await desk.ask(VISITOR, conversation.id, "two, please", "key 4", second.id)
    with pytest.raises(InvalidRequest):
        await desk.regenerate(VISITOR, conversation.id, second_answer.id)


async def test_nobody_else_replaces_anything(desk: Desk, conversation: Conversation, record: Record) -> None:
    first, *_, last = await record.messages(conversation.id)
    with pytest.raises(NotFound):
        await desk.regenerate("vis_b", conversation.id, last.id)
    with pytest.raises(NotFound):
        await desk.ask("vis_b", conversation.id, "x", "key", first.id)
    other = await desk.open_conversation("vis_b", "en")
    with pytest.raises(NotFound):
        await desk.regenerate("vis_b", other.id, last.id)
    with pytest.raises(NotFound):
        await desk.ask("vis_b", other.id, "x", "key", first.id)


async def test_an_engine_that_refuses_leaves_the_old_answer_and_the_place(
    desk: Desk, chat: ScriptedChat, conversation: Conversation, record: Record
) -> None:
    last = (await record.messages(conversation.id))[-1]
    chat.refuse = EngineBusy(1)
    with pytest.raises(EngineBusy):
        await desk.regenerate(VISITOR, conversation.id, last.id)
    assert (await screen(desk))[-1] == last.text
    chat.refuse = None
    await end(await desk.regenerate(VISITOR, conversation.id, last.id))


def test_the_newest_branch_of_branches() -> None:
    said = [
        Message("q1", "user", "1"),
        Message("a1", "assistant", "1"),
        Message("q2", "user", "2"),
        Message("a2", "assistant", "2", replaces_id="nowhere"),
        Message("a3", "assistant", "3", replaces_id="a2"),
        Message("q3", "user", "3", replaces_id="q1"),
        Message("a4", "assistant", "4"),
        Message("a5", "assistant", "5", replaces_id="a4"),
    ]
    assert [message.id for message in newest_branch(said[:5])] == ["q1", "a1", "q2", "a3"]
    assert [message.id for message in newest_branch(said)] == ["q3", "a5"]
