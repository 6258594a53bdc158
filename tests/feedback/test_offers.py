"""Two answers side by side: who may be offered them, what a choice changes, and what is learnt from it."""

from dataclasses import replace

import pytest
from sqlalchemy import Connection, select

from feedback.database import Database
from feedback.erase import delete_rows
from feedback.export import Rules, read_snapshot, select_examples
from feedback.inbox import Inbox, Move
from feedback.offers import Offer, Offers
from feedback.pairs import Gates, Row
from feedback.record import Citation, Conversation, Message, NotFound, Record, Retrieved, new_id, newest_branch
from feedback.review import Reviews
from feedback.signals import MAX_FLIP_MS, MAX_VOTES_PER_DAY, Choice, KeyReused, Signals, Thumb, weighed
from feedback.tables import completion, conversation, retrieval, signal
from feedback.weighing import Weighed
from tests.feedback.conftest import Clock, made
from tests.feedback.shopper import PASSAGES

pytestmark = pytest.mark.anyio

FIRST, SECOND = "Refunds take 3-5 working days [2].", "A refund arrives within 3-5 working days after you ask for it [2]."
CITED = Citation(2, "refund.2", PASSAGES[1].title, PASSAGES[1].text)


class Talk:
    """A customer who asks, and what is offered to them."""

    def __init__(self, database: Database, signals: Signals, clock: Clock, visitor_id: str = "vis_a") -> None:
        self.record, self.offers, self.signals = Record(database), Offers(database, signals), signals
        self.clock, self.visitor_id, self.id = clock, visitor_id, new_id("conv")

    async def begin(self, consent_train: bool = True) -> "Talk":
        await self.record.add_conversation(Conversation(self.id, self.visitor_id, "en", consent_train))
        return self

    async def ask(self, text: str = "When does my refund arrive?", answer: str = FIRST) -> Message:
        question = Message(new_id("msg"), "user", text, created_at_ms=self.clock())
        how = made(content=answer)
        said = Message(new_id("msg"), "assistant", answer, reply_to_id=question.id, citations=(CITED,), created_at_ms=self.clock())
        await self.record.add_message(self.id, question)
        await self.record.add_message(self.id, said, how)
        return replace(said, completion_id=how.id)

    async def offer(self, first: Message, text: str = SECOND) -> Offer | None:
        how = made(content=text)
        second = Message(
            new_id("msg"), "assistant", text, reply_to_id=first.reply_to_id, replaces_id=first.id, completion_id=how.id, citations=(CITED,)
        )
        offer = Offer(first, second, how, [Retrieved("refund.2", "v1", 0.9)], 0.05, "right")
        is_kept = await self.offers.may(self.id, first) and await self.offers.add(self.id, offer)
        self.clock.ms += 5_000
        return offer if is_kept else None

    async def choose(self, first: Message, value: int, key: str, dwell_ms: int = 4_000, visitor_id: str = "") -> bool:
        choice = Choice(first.id, 1 if value > 0 else -1 if value else 0, dwell_ms, key)
        return (await self.signals.choose(visitor_id or self.visitor_id, self.id, choice)).is_new

    async def screen(self) -> list[str]:
        return [each.text for each in newest_branch(await self.record.messages(self.id))]


@pytest.fixture
async def talk(database: Database, signals: Signals, clock: Clock) -> Talk:
    return await Talk(database, signals, clock).begin()


async def ledger(database: Database, kind: str = "pairwise") -> list[dict[str, object]]:
    def work(connection: Connection) -> list[dict[str, object]]:
        return [dict(row) for row in connection.execute(select(signal).where(signal.c.kind == kind).order_by(signal.c.seq)).mappings()]

    return await database.read(work)


async def test_a_choice_is_about_both_answers_and_the_chosen_one_stands(talk: Talk, database: Database) -> None:
    first = await talk.ask()
    offer = await talk.offer(first)
    assert offer is not None
    assert await talk.screen() == ["When does my refund arrive?", FIRST]
    story = await Inbox(database).story(talk.id)
    assert [each.text for each in story.messages][1:] == [FIRST]
    (noted,) = await ledger(database, "offer")
    pair = {"completion_id": first.completion_id, "other_id": offer.made.id, "side": "right", "propensity": 0.05}
    assert noted.items() >= {**pair, "value": 0.0, "weight": 0.0}.items()

    assert await talk.choose(first, -1, "key")
    assert not await talk.choose(first, -1, "key")
    (chosen,) = await ledger(database)
    assert chosen.items() >= {**pair, "value": -1.0, "weight": 1.0, "reason": None, "dwell_ms": 4_000, "actor": "visitor"}.items()
    assert await talk.screen() == ["When does my refund arrive?", SECOND]
    (question, _, shown) = await talk.record.messages(talk.id)
    assert (shown.completion_id, shown.citations, shown.reply_to_id) == (offer.made.id, (CITED,), question.id)

    def seen(connection: Connection) -> list[str]:
        return list(connection.execute(select(retrieval.c.passage_id).where(retrieval.c.completion_id == offer.made.id)).scalars())

    assert await database.read(seen) == ["refund.2"]
    with pytest.raises(KeyReused):
        await talk.choose(first, 1, "key")


async def test_a_later_choice_retracts_the_one_before(talk: Talk, database: Database) -> None:
    first = await talk.ask()
    await talk.offer(first)
    for number, (value, text) in enumerate([(-1, SECOND), (1, FIRST), (0, FIRST), (-1, SECOND)]):
        assert await talk.choose(first, value, f"key-{number}")
        assert (await talk.screen())[-1] == text
    rows = await ledger(database)
    assert [(row["value"], row["weight"]) for row in rows] == [(-1, 1), (1, 1), (0, 0), (-1, 1)]
    assert [row["retracts_id"] for row in rows] == [None, rows[0]["id"], rows[1]["id"], None]
    talk.clock.ms += MAX_FLIP_MS + 1
    await talk.choose(first, 1, "late")
    late = (await ledger(database))[-1]
    assert (late["weight"], late["reason"], late["retracts_id"]) == (0, "changed_late", None)


async def test_who_did_not_look_or_chooses_all_day_is_not_counted(talk: Talk, database: Database) -> None:
    for number in range(MAX_VOTES_PER_DAY + 1):
        first = await talk.ask()
        await talk.offer(first)
        await talk.choose(first, 1, f"{number}", dwell_ms=100 if number == 0 else 3_600_000)
        await talk.ask("And?", "Yes.")
    rows = await ledger(database)
    assert [row["reason"] for row in rows] == ["too_early", *[None] * (MAX_VOTES_PER_DAY - 1), "daily_cap"]
    assert rows[0]["dwell_ms"] == 100 and rows[1]["dwell_ms"] == 5_000  # no longer than they were there to look at


async def test_only_what_was_offered_can_be_chosen_by_whom_it_was_offered_to(talk: Talk, database: Database, signals: Signals) -> None:
    stranger = await Talk(database, signals, talk.clock, "vis_b").begin()
    theirs = await stranger.ask()
    await stranger.offer(theirs)
    plain = await talk.ask()
    wrong = [(talk, plain, ""), (talk, theirs, ""), (stranger, theirs, "vis_a"), (talk, replace(plain, id="' OR 1=1--"), "")]
    for whose, message, visitor_id in wrong:
        with pytest.raises(NotFound):
            await whose.choose(message, 1, "key", visitor_id=visitor_id)
    await talk.offer(plain)
    await talk.ask("And express?", "One day.")
    with pytest.raises(NotFound):
        await talk.choose(plain, -1, "key")
    assert await ledger(database) == []
    assert (await talk.screen())[1] == FIRST


async def test_nobody_is_offered_two_who_did_not_agree_or_went_on_or_was_just_offered_two(
    talk: Talk, database: Database, signals: Signals
) -> None:
    silent = await Talk(database, signals, talk.clock, "vis_b").begin(consent_train=False)
    assert await silent.offer(await silent.ask()) is None
    gone = await talk.ask()
    last = await talk.ask("And express?", "One day.")
    assert await talk.offer(gone) is None
    assert await talk.offer(last) is not None
    await talk.choose(last, -1, "key")
    assert await talk.offer(await talk.ask()) is None
    assert await talk.offer(await talk.ask()) is not None
    await talk.ask()
    last = await talk.ask()
    assert await talk.offers.may(talk.id, last)
    await Inbox(database).move(talk.id, Move("waiting", "request", "visitor", ("bot",)))
    assert not await talk.offers.may(talk.id, last) and await talk.offer(last) is None


@pytest.mark.parametrize(
    ("answers", "value", "chosen", "problem"),
    [
        ((FIRST, SECOND), -1, SECOND, None),
        ((FIRST, SECOND), 1, FIRST, None),
        ((FIRST, "It takes 90 days [2]."), -1, "It takes 90 days [2].", "gate:numbers"),
        ((FIRST, "It takes 90 days [2]."), 1, FIRST, "no_taste"),
    ],
)
async def test_taste_decides_only_between_answers_that_may_both_be_taught(
    talk: Talk, database: Database, answers: tuple[str, str], value: int, chosen: str, problem: str | None
) -> None:
    first = await talk.ask(answer=answers[0])
    offer = await talk.offer(first, answers[1])
    await talk.choose(first, value, "key")
    snapshot = await database.read(lambda connection: read_snapshot(connection, Gates()))
    (row,) = snapshot.rows
    (rejected,) = set(answers) - {chosen}
    assert (row.kind, row.origin, row.answer, row.rejected, row.problem) == ("dpo", "pairwise", chosen, rejected, problem)
    assert offer and {row.answer_id, row.rejected_id} == {first.completion_id, offer.made.id} == set(snapshot.made)
    assert [turn.content for turn in row.case.turns] == ["When does my refund arrive?"]
    assert [(one.kind, one.other_id) for one in row.evidence] == [("pairwise", offer.made.id)] and row.strength == 0.8
    kept = select_examples(snapshot, Rules("salt"))
    assert [one.row.id for one in kept.examples] == ([] if problem else [row.id])
    # Who judges the pair sees both answers, the one that never came to the screen too.
    await Reviews(database).offer([row])
    waiting = await Reviews(database).next_for_review("Li")
    assert waiting is None if problem else waiting and (waiting.chosen, waiting.rejected) == (chosen, rejected)


async def test_no_choice_and_one_that_counts_for_nothing_teach_nothing(talk: Talk, database: Database) -> None:
    for value, dwell_ms in ((0, 4_000), (1, 100), (None, 0)):
        first = await talk.ask()
        await talk.offer(first)
        if value is not None:
            await talk.choose(first, value, new_id("key"), dwell_ms)
        await talk.ask("And express?", "One day.")
    assert await rows_of(database) == []


async def test_a_thumb_and_a_choice_on_one_answer_are_two_pairs(talk: Talk, database: Database, signals: Signals) -> None:
    first = await talk.ask()
    offer = await talk.offer(first)
    assert offer
    await signals.vote("vis_a", Thumb(str(first.completion_id), -1, (), None, "a"))
    await talk.choose(first, -1, "b")
    await signals.vote("vis_a", Thumb(offer.made.id, 1, (), None, "c"))
    pairs = [row for row in await rows_of(database) if row.kind == "dpo"]
    assert sorted(row.origin for row in pairs) == ["natural", "pairwise"] and len({row.id for row in pairs}) == 2
    assert await Reviews(database).offer(pairs) == 2


async def test_a_choice_is_capped_and_quarantined_as_thumbs_are(talk: Talk, database: Database) -> None:
    for number, thing in enumerate(["tea", "kettle", "cup", "pot", "leaf", "tin", "jar", "spoon"]):
        first = await talk.ask(f"Question {number}, about a {thing}?")
        await talk.offer(first)
        await talk.choose(first, -1, f"{number}")
        await talk.ask("And?", "Yes.")
    choices = [one for one in await weighed_of(database) if one.signal.kind == "pairwise"]
    assert sum(one.weight for one in choices) <= 1.0 + 1e-9
    assert {one.reason for one in choices} != {None}


async def rows_of(database: Database) -> list[Row]:
    return (await database.read(lambda connection: read_snapshot(connection, Gates()))).rows


async def weighed_of(database: Database) -> list[Weighed]:
    return await database.read(weighed)


async def test_what_was_offered_is_erased_with_its_visitor(talk: Talk, database: Database) -> None:
    first = await talk.ask()
    await talk.offer(first)
    await talk.choose(first, -1, "key")
    await database.write(lambda connection: delete_rows(connection, {conversation: conversation.c.id == talk.id}))
    left = await database.read(lambda connection: [connection.execute(select(table)).all() for table in (completion, signal)])
    assert left == [[], []]
