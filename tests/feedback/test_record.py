"""What was said comes back exactly, to its visitor only."""

from pathlib import Path

import pytest
from sqlalchemy import Connection, select, text
from sqlalchemy.exc import IntegrityError

from feedback.database import Database
from feedback.record import Citation, Conversation, Message, NotFound, Record, new_id
from feedback.tables import completion
from tests.feedback.conftest import made

pytestmark = pytest.mark.anyio

HARD_TEXT = "退款 ＄５０ 👩‍👩‍👧‍👦 \u202e \r\n\t'; DROP TABLE message;-- é e\u0301 \U00020000"


async def opened(record: Record, visitor_id: str = "vis_a") -> Conversation:
    conversation = Conversation(new_id("conv"), visitor_id, "zh")
    await record.add_conversation(conversation)
    return conversation


async def test_a_conversation_comes_back_as_it_was(record: Record) -> None:
    conversation = await opened(record)
    question = Message(new_id("msg"), "user", HARD_TEXT, client_message_id="key-1")
    completion_made = made(status="stopped", finish_reason="abort")
    citation = Citation(2, "returns", "Returns", HARD_TEXT)
    answer = Message(
        new_id("msg"),
        "assistant",
        "七天 [2]",
        reply_to_id=question.id,
        status="stopped",
        completion_id=completion_made.id,
        finish_reason="abort",
        citations=(citation,),
    )
    await record.add_message(conversation.id, question)
    await record.add_message(conversation.id, answer, completion_made)
    assert await record.messages(conversation.id) == [question, answer]
    assert await record.current_conversation("vis_a") == conversation
    assert conversation.consent_train is False


async def test_the_making_of_an_answer_is_kept_whole(record: Record, database: Database) -> None:
    conversation = await opened(record)
    completion_made = made()
    await record.add_message(conversation.id, Message(new_id("msg"), "assistant", "Seven days."), completion_made)

    def work(connection: Connection) -> dict[str, object]:
        return dict(connection.execute(select(completion)).mappings().one())

    row = await database.read(work)
    assert {name: row[name] for name in completion_made.__slots__} == {
        name: getattr(completion_made, name) for name in completion_made.__slots__
    }


async def test_a_fallback_sentence_offers_nothing_to_vote_on(record: Record) -> None:
    conversation = await opened(record)
    await record.add_message(conversation.id, Message(new_id("msg"), "assistant", "A person?"), made(shown=False))
    assert [message.completion_id for message in await record.messages(conversation.id)] == [None]


async def test_writing_twice_is_writing_once(record: Record) -> None:
    conversation = await opened(record)
    question = Message(new_id("msg"), "user", "hello", client_message_id="key-1")
    for _ in range(2):
        await record.add_conversation(conversation)
        await record.add_message(conversation.id, question)
    assert await record.messages(conversation.id) == [question]


async def test_the_newest_conversation_is_the_current_one(record: Record) -> None:
    old = Conversation(new_id("conv"), "vis_a", "en", created_at_ms=1)
    new = Conversation(new_id("conv"), "vis_a", "zh", created_at_ms=2)
    for conversation in (new, old):
        await record.add_conversation(conversation)
    assert await record.current_conversation("vis_a") == new


async def test_another_visitors_conversation_is_a_missing_one(record: Record) -> None:
    conversation = await opened(record)
    with pytest.raises(NotFound) as foreign:
        await record.conversation(conversation.id, "vis_b")
    with pytest.raises(NotFound) as missing:
        await record.conversation("conv_none", "vis_b")
    with pytest.raises(NotFound):
        await record.current_conversation("vis_b")
    assert str(foreign.value) == str(missing.value)


async def test_nothing_of_a_failed_write_stays(record: Record, database: Database) -> None:
    conversation = await opened(record)
    first = made()
    await record.add_message(conversation.id, Message(new_id("msg"), "assistant", "one"), first)
    with pytest.raises(IntegrityError) as failed:
        await record.add_message(conversation.id, Message(new_id("msg"), "assistant", "two"), made(id=first.id, content="a secret"))
    assert "a secret" not in str(failed.value)
    assert [message.text for message in await record.messages(conversation.id)] == ["one"]
    assert await database.read(lambda connection: connection.execute(text("SELECT count(*) FROM message")).scalar_one()) == 1


def test_ids_cannot_be_guessed_or_confused() -> None:
    ids = {new_id("conv") for _ in range(1000)}
    assert len(ids) == 1000
    assert all(len(one) == len("conv_") + 20 and one.isascii() and one == one.lower() for one in ids)


async def test_the_files_are_their_owners(tmp_path: Path) -> None:
    database = Database.in_folder(tmp_path / "data")
    await database.write(lambda connection: connection.execute(text("INSERT INTO visitor VALUES ('v', 1)")))
    folder = tmp_path / "data"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {file.name: file.stat().st_mode & 0o777 for file in folder.iterdir()} == dict.fromkeys(
        ("kefu.db", "kefu.db-wal", "kefu.db-shm"), 0o600
    )
    database.close()
