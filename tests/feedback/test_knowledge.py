"""Articles in both kinds of database, what an answer saw of them, and what they leave unanswered."""

import pytest
from sqlalchemy import select

from feedback.database import Database
from feedback.gaps import Gap, Gaps
from feedback.knowledge import Draft, Knowledge, Outdated, Piece
from feedback.record import Citation, Conversation, Message, NotFound, Record, Retrieved, new_id
from feedback.tables import passage, retrieval
from tests.feedback.conftest import Clock, made

pytestmark = pytest.mark.anyio


def draft(title: str, *texts: str, questions: tuple[str, ...] = ()) -> Draft:
    return Draft(title, "en", tuple(Piece(title, text, questions) for text in texts))


@pytest.fixture
def knowledge(database: Database, clock: Clock) -> Knowledge:
    return Knowledge(database, clock)


async def test_an_import_replaces_what_came_from_the_same_source(knowledge: Knowledge) -> None:
    await knowledge.put("other.md", [draft("Other", "Stays.")])
    first = await knowledge.put(
        "a.md", [draft("Returns", "Thirty days.", "Unopened.", questions=("how long",)), draft("Old", "Gone soon.")]
    )
    assert (first.num_new, first.num_changed, first.num_same, first.num_gone) == (2, 0, 0, 0)
    second = await knowledge.put("a.md", [draft("Returns", "Forty days."), draft("New", "Here.")])
    assert (second.num_new, second.num_changed, second.num_same, second.num_gone) == (1, 1, 0, 1)
    assert [(one.title, one.source, one.num_passages) for one in await knowledge.articles()] == [
        ("New", "a.md", 1),
        ("Returns", "a.md", 1),
        ("Other", "other.md", 1),
    ]
    assert {one.text for one in await knowledge.passages()} == {"Stays.", "Forty days.", "Here."}


async def test_what_an_answer_saw_is_never_overwritten(knowledge: Knowledge, database: Database) -> None:
    await knowledge.put("a.md", [draft("Returns", "Thirty days.")])
    [old] = await knowledge.passages()
    await knowledge.put("a.md", [draft("Returns", "Forty days.")])
    [new] = await knowledge.passages()
    assert old.id == new.id and old.version != new.version
    was = select(passage.c.text).where(passage.c.id == old.id, passage.c.version == old.version)
    assert await database.read(lambda connection: connection.execute(was).scalar_one()) == "Thirty days."
    again = await knowledge.put("a.md", [draft("Returns", "Thirty days.")])
    assert again.num_changed == 1 and await knowledge.passages() == [old]


async def test_two_articles_of_one_title_are_two(knowledge: Knowledge) -> None:
    await knowledge.put("a.csv", [draft("Why?", "So."), draft("Why?", "Because.")])
    assert {one.text for one in await knowledge.passages()} == {"So.", "Because."}
    assert (await knowledge.put("a.csv", [draft("Why?", "So."), draft("Why?", "Because.")])).num_same == 2


async def test_the_state_differs_after_every_change_even_when_the_clock_stands_still(knowledge: Knowledge) -> None:
    states = [await knowledge.state()]
    for text in ("One.", "Two.", "One."):
        await knowledge.put("a.md", [draft("Returns", text)])
        states.append(await knowledge.state())
    await knowledge.put("a.md", [draft("Returns", "One.")])
    assert await knowledge.state() == states[-1]
    [article] = await knowledge.articles()
    await knowledge.remove(article.id)
    states.append(await knowledge.state())
    assert len(set(states)) == len(states)
    assert await knowledge.passages() == []
    with pytest.raises(NotFound):
        await knowledge.remove(article.id)


async def ask(record: Record, text: str, seen: tuple[Retrieved, ...] = (), cites: bool = False) -> str:
    conversation, completion = Conversation(new_id("conv"), "vis_a", "en"), made()
    question = Message(new_id("msg"), "user", text)
    cited = (Citation(1, "p1", "Returns", "Thirty days."),) if cites else ()
    await record.add_conversation(conversation)
    await record.add_message(conversation.id, question)
    answer = Message(new_id("msg"), "assistant", "Hm.", reply_to_id=question.id, citations=cited)
    await record.add_message(conversation.id, answer, completion, seen=seen)
    return completion.id


async def test_an_answer_is_kept_with_the_passages_it_saw(database: Database) -> None:
    seen = (Retrieved("p1", "v1", 2.5), Retrieved("p2", "v1", -0.1))
    completion_id = await ask(Record(database), "How long?", seen)
    rows = await database.read(lambda connection: connection.execute(select(retrieval).order_by(retrieval.c.rank)).all())
    assert [tuple(row) for row in rows] == [(completion_id, 1, "p1", "v1", 2.5), (completion_id, 2, "p2", "v1", -0.1)]


async def test_gaps_are_alike_questions_without_an_answer_the_most_asked_first(database: Database) -> None:
    record = Record(database)
    for text in (
        *("Do you ship to Norway?", "can you ship it to norway", "shipping to Norway possible?", "Is there a student discount?"),
        *("How do I pay", "能寄到台湾吗", "可以寄台湾吗？", "Do you ship by boat?", "Is the shop open in May?"),
    ):
        await ask(record, text, (Retrieved("p1", "v1", 0.2),))
    await ask(record, "hello, thanks!")
    await ask(record, "How long may I return it?", (Retrieved("p1", "v1", 2.0),), cites=True)
    first, second, *rest = [set(gap.questions) for gap in await Gaps(database).largest()]
    assert first == {"Do you ship to Norway?", "can you ship it to norway", "shipping to Norway possible?"}
    assert second == {"能寄到台湾吗", "可以寄台湾吗？"}
    assert {"Is there a student discount?"} in rest
    assert not any("hello, thanks!" in group or "How long may I return it?" in group for group in rest)


async def test_what_people_answered_is_one_suggestion_a_question(database: Database) -> None:
    record, opened = Record(database), Conversation(new_id("conv"), "vis_a", "en")
    await record.add_conversation(opened)

    async def say(role: str, text: str) -> str:
        said = Message(new_id("msg"), role, text, client_message_id=new_id("key"), gold=role == "agent")  # type: ignore[arg-type]
        await record.add_message(opened.id, said)
        return said.id

    await say("user", "Hello")
    repairs = await say("user", "Do you repair kettles?")
    await say("agent", "Yes, every kettle that we ever sold.")
    await say("note", "Was polite about it, and asked the workshop before.")
    await say("agent", "It costs $15 in most cases.")
    await say("user", "Thank you")
    await say("agent", "My pleasure!")
    [told] = await Gaps(database).told()
    assert told == Gap(repairs, ("Do you repair kettles?",), "Yes, every kettle that we ever sold.\nIt costs $15 in most cases.")


async def test_an_article_is_saved_in_place_of_another_and_leaves_the_rest_of_its_file(knowledge: Knowledge) -> None:
    await knowledge.put("a.csv", [draft("Why?", "So."), draft("Why?", "Because."), draft("When?", "Now.")])
    one = next(each for each in await knowledge.articles() if each.title == "When?")
    assert await knowledge.save(draft("When?", "Later."), one.id, one.version) == one.id
    with pytest.raises(Outdated):
        await knowledge.save(draft("When?", "Never."), one.id, one.version)
    newer, _ = await knowledge.article(one.id)
    moved = await knowledge.save(draft("Why?", "Later."), one.id, newer.version)
    assert moved != one.id
    assert sorted(each.text for each in await knowledge.passages()) == ["Because.", "Later.", "So."]
    assert {each.source for each in await knowledge.articles()} == {"a.csv"}
    with pytest.raises(NotFound):
        await knowledge.save(draft("When?", "Never."), one.id, newer.version)
    first, second = [await knowledge.save(draft("New", text)) for text in ("One.", "Two.")]
    assert first != second and (await knowledge.article(second))[1][0].text == "Two."
    with pytest.raises(NotFound):
        await knowledge.article(one.id)
