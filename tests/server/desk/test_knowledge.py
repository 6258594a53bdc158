"""What the model is given to answer from, and what of it is kept."""

import pytest
from sqlalchemy import select

from feedback.database import Database
from feedback.knowledge import Draft, Knowledge, Piece
from feedback.record import Record
from feedback.retrieval import FITS
from feedback.tables import retrieval
from server.desk.desk import Desk
from server.desk.knowledge import MAX_SHOWN, DeskKnowledge
from server.desk.turn import Done
from tests.server.desk.conftest import SHOPS
from tests.server.fakes import ScriptedChat

pytestmark = pytest.mark.anyio

VISITOR = "vis_a"
TEAS = ("Assam", "Ceylon", "Darjeeling", "Keemun", "Lapsang", "Matcha", "Nilgiri", "Oolong", "Puerh", "Rooibos", "Sencha", "Tieguanyin")


@pytest.fixture
def store(database: Database) -> Knowledge:
    return Knowledge(database)


@pytest.fixture
def reading_desk(desk: Desk, store: Knowledge) -> Desk:
    """It pins what is below 300 tokens, which here are characters."""
    desk.knowledge = DeskKnowledge(store, SHOPS, pinned_tokens=300)  # type: ignore[arg-type]
    return desk


def teas() -> list[Draft]:
    return [Draft(f"{tea} tea", "en", (Piece(f"{tea} tea", f"{tea} is brewed for {n} minutes."),)) for n, tea in enumerate(TEAS, 1)]


async def ask(desk: Desk, chat: ScriptedChat, text: str, conversation_id: str = "") -> tuple[str, str, Done]:
    """The conversation, the system message that the model read, and the end."""
    chat.script = ("Brewed [1][2].",)
    conversation_id = conversation_id or (await desk.open_conversation(VISITOR, "en")).id
    answer = await desk.ask(VISITOR, conversation_id, text, f"key {text}")
    end = [event async for event in answer.events][-1]
    assert isinstance(end, Done)
    return conversation_id, chat.streams[-1].job.messages[0].content, end


async def seen(database: Database, completion_id: str | None) -> list[tuple[str, float]]:
    rows = select(retrieval.c.passage_id, retrieval.c.score).where(retrieval.c.completion_id == completion_id).order_by(retrieval.c.rank)
    return [tuple(row) for row in await database.read(lambda connection: connection.execute(rows).all())]


async def test_without_an_import_the_demo_shop_stands_whole_in_the_prompt(
    reading_desk: Desk, chat: ScriptedChat, database: Database
) -> None:
    _, system, end = await ask(reading_desk, chat, "When is delivery?")
    assert "Returns [1]: Within 30 days.\nDelivery [2]: Three days." in system
    ranked = await seen(database, end.message.completion_id)
    assert [passage_id for passage_id, _ in ranked] == ["delivery", "returns"]
    assert ranked[0][1] >= FITS > ranked[1][1]


async def test_small_knowledge_replaces_the_demo_shop_at_the_next_question(
    reading_desk: Desk, chat: ScriptedChat, store: Knowledge
) -> None:
    conversation_id, before, _ = await ask(reading_desk, chat, "When is delivery?")
    await store.put("a.md", [Draft("Hours", "en", (Piece("Hours", "From nine to five."),))])
    _, after, end = await ask(reading_desk, chat, "When are you open?", conversation_id)
    assert "Within 30 days" in before and "Within 30 days" not in after
    assert "Hours [1]: From nine to five." in after
    assert [(one.number, one.title) for one in end.message.citations] == [(1, "Hours")]


async def test_large_knowledge_is_looked_up_and_numbers_stay_good_within_a_conversation(
    reading_desk: Desk, chat: ScriptedChat, store: Knowledge, database: Database
) -> None:
    await store.put("teas.md", teas())
    conversation_id, first, end = await ask(reading_desk, chat, "How long is Matcha brewed?")
    assert "[1] Matcha tea" in first or "Matcha" in first
    assert first.count("brewed for") <= 5
    ranked = await seen(database, end.message.completion_id)
    assert ranked and ranked[0][1] >= FITS
    _, second, _ = await ask(reading_desk, chat, "And Sencha tea, how long is it brewed?", conversation_id)
    assert second.startswith(first) and "Sencha" in second
    _, third, _ = await ask(reading_desk, chat, "Thanks! Sencha, brewed", conversation_id)
    assert third.startswith(second)


async def test_when_nothing_fits_a_few_passages_stand_there_and_the_record_says_that_they_do_not_fit(
    reading_desk: Desk, chat: ScriptedChat, store: Knowledge, database: Database
) -> None:
    await store.put("teas.md", teas())
    conversation_id, system, end = await ask(reading_desk, chat, "Who won the football match yesterday?")
    assert system.count("brewed for") == 3
    ranked = await seen(database, end.message.completion_id)
    assert len(ranked) == 3 and all(score < FITS for _, score in ranked)
    _, again, _ = await ask(reading_desk, chat, "And the tennis match?", conversation_id)
    assert again == system


async def test_a_long_conversation_keeps_a_bounded_set(reading_desk: Desk, chat: ScriptedChat, store: Knowledge) -> None:
    await store.put("teas.md", teas())
    conversation_id = ""
    for tea in TEAS:
        conversation_id, system, _ = await ask(reading_desk, chat, f"{tea}?", conversation_id)
        assert tea in system and system.count("brewed for") <= MAX_SHOWN


async def test_a_customer_reads_passages_of_their_language_where_there_are_any(
    reading_desk: Desk, chat: ScriptedChat, store: Knowledge
) -> None:
    await store.put("a.md", [Draft("Hours", "en", (Piece("Hours", "From nine to five."),))])
    _, only_english, _ = await ask(reading_desk, chat, "你们几点开门？")
    await store.put("b.md", [Draft("营业时间", "zh", (Piece("营业时间", "九点到五点。"),))])
    _, chinese, _ = await ask(reading_desk, chat, "你们几点开门呢？")
    assert "nine to five" in only_english
    assert "九点到五点" in chinese and "nine" not in chinese


async def test_what_every_conversation_begins_with_is_warmed(reading_desk: Desk, chat: ScriptedChat, store: Knowledge) -> None:
    await store.put("teas.md", teas())
    await reading_desk.prepare()
    assert len(chat.warmed) == 2
    assert all("brewed" not in messages[0].content for messages, _, _ in chat.warmed)


async def test_the_record_says_which_knowledge_it_was(reading_desk: Desk, chat: ScriptedChat, store: Knowledge, record: Record) -> None:
    assert reading_desk.knowledge
    await store.put("teas.md", teas())
    policies = await reading_desk.knowledge.refresh(len)
    one = await reading_desk.knowledge.read("conv_a", "en", ["Matcha?"])
    other = await reading_desk.knowledge.read("conv_b", "en", ["football"])
    assert one.policy.knowledge_version == other.policy.knowledge_version == policies["en"].knowledge_version
    await store.put("teas.md", teas()[1:])
    assert (await reading_desk.knowledge.refresh(len))["en"].knowledge_version != one.policy.knowledge_version
