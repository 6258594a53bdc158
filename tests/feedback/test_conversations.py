"""Conversations are found alike in both kinds of database."""

import pytest

from feedback.conversations import Conversations, Search
from feedback.database import Database
from feedback.record import Citation, Conversation, Message, NotFound, Record, new_id
from feedback.signals import Signals, Thumb
from tests.feedback.conftest import Clock, made

pytestmark = pytest.mark.anyio


async def said(database: Database, conversation_id: str, text: str, at_ms: int, cites: bool = False) -> str:
    """One question and its answer; the id of its completion."""
    record, completion = Record(database), made()
    sources = (Citation(1, "p1", "Returns", "45 days."),) if cites else ()
    await record.add_conversation(Conversation(conversation_id, f"vis_{conversation_id}", "en", created_at_ms=at_ms))
    question = Message(new_id("msg"), "user", text, client_message_id=new_id("key"), created_at_ms=at_ms)
    answer = Message(new_id("msg"), "assistant", "Seven days.", reply_to_id=question.id, citations=sources, created_at_ms=at_ms)
    await record.add_message(conversation_id, question)
    await record.add_message(conversation_id, answer, completion)
    return completion.id


async def test_words_filters_and_pages(database: Database, signals: Signals, clock: Clock) -> None:
    conversations = Conversations(database)
    first = await said(database, "conv_a", "Is the GREEN tea 100% fresh?", clock.ms, cites=True)
    await said(database, "conv_b", "绿茶新鲜吗？", clock.ms)
    await said(database, "conv_c", "green_tea\\", clock.ms + 1)
    clock.ms += 5_000
    await signals.vote("vis_conv_a", Thumb(first, 1, (), None, "1"))
    await signals.vote("vis_conv_a", Thumb(first, -1, (), None, "2"))

    async def ids(before: tuple[int, str] | None = None, limit: int = 9, **wanted: object) -> list[str]:
        return [found.id for found in await conversations.search(Search(**wanted), before, limit)]  # type: ignore[arg-type]

    assert await ids() == ["conv_c", "conv_b", "conv_a"]
    assert [await ids(limit=1), await ids((clock.ms - 4_999, "conv_c"), 1)] == [["conv_c"], ["conv_b"]]
    assert await ids((clock.ms - 5_000, "conv_b")) == ["conv_a"]
    assert await ids(words="Green TEA") == ["conv_c", "conv_a"]
    assert [await ids(words=words) for words in ("100%", "n_t", "\\", "新鲜", "zebra")] == [
        ["conv_a"],
        ["conv_c"],
        ["conv_c"],
        ["conv_b"],
        [],
    ]
    assert [await ids(thumb="down"), await ids(thumb="up"), await ids(cited="yes"), await ids(cited="no")] == [
        ["conv_a"], [], ["conv_a"], ["conv_c", "conv_b"],
    ]  # fmt: skip
    (found,) = await conversations.search(Search("fresh"), None, 9)
    assert (found.num_messages, found.num_up, found.num_down, found.is_cited) == (2, 0, 1, True)


async def test_one_conversation_is_told_whole(database: Database, signals: Signals, clock: Clock) -> None:
    completion_id = await said(database, "conv_a", "How long?", clock.ms, cites=True)
    clock.ms += 5_000
    await signals.vote("vis_conv_a", Thumb(completion_id, -1, ("wrong",), "no", "1"))
    opened, (question, answer) = await Conversations(database).whole("conv_a")
    assert (opened.id, question.message.text, question.made, question.votes) == ("conv_a", "How long?", {}, [])
    assert (answer.made["model"], answer.made["total_ms"], answer.made["reasoning"]) == ("kefu-mini", 99.0, "The passage says seven.")
    assert [(vote["value"], vote["tags"], vote["comment"], vote["weight"]) for vote in answer.votes] == [(-1, ["wrong"], "no", 1)]
    assert answer.message.citations[0].title == "Returns"
    with pytest.raises(NotFound):
        await Conversations(database).whole("conv_nowhere")
