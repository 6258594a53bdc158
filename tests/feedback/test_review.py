"""The review queue: two raters, each once, and how far they agree."""

from dataclasses import replace

import pytest

from feedback.database import Database
from feedback.export import read_snapshot
from feedback.pairs import Gates, make_rows
from feedback.record import NotFound, Record
from feedback.review import AlreadyRated, Left, Reviews, Verdict, Waiting, agreement
from tests.feedback.shopper import ASKED, DAYS, HOW_TO, PASSAGES, Talk, worked_example

pytestmark = pytest.mark.anyio


async def test_a_pair_is_shown_to_two_raters_once_each(database: Database) -> None:
    talks = [worked_example("vis_a", "a", " A"), worked_example("vis_b", "b", " B")]
    for talk in talks:
        await talk.keep(database)
    reviews, rows = Reviews(database), [row for talk in talks for row in make_rows(talk.chat(), Gates())]
    assert [await reviews.offer(rows), await reviews.offer(rows)] == [2, 0]
    first = await reviews.next_for_review("ann")
    assert first is not None and first.rejected.startswith(HOW_TO) and first.chosen
    await reviews.judge(first.id, first.seen, "ann", "good")
    second = await reviews.next_for_review("ann")
    assert second is not None and second.id != first.id
    half = await reviews.next_for_review("bob")
    assert half is not None and half.id == first.id
    await reviews.judge(first.id, first.seen, "bob", "bad", "the answer is outdated")
    assert (await reviews.next_for_review("cid")).id == second.id  # type: ignore[union-attr]
    with pytest.raises(AlreadyRated):
        await reviews.judge(first.id, first.seen, "bob", "good")
    with pytest.raises(NotFound):
        await reviews.judge("dpo_none", first.seen, "bob", "good")
    assert await reviews.verdicts() == {first.id: ["good", "bad"]}
    assert (await reviews.agreement()).num_pairs == 1
    await Record(database).set_consent(second.conversation_id, "vis_b" if "b" in second.conversation_id else "vis_a", consent_train=False)
    assert await reviews.next_for_review("cid") is None


async def waiting(reviews: Reviews, rater: str) -> Waiting:
    found = await reviews.next_for_review(rater)
    assert found is not None
    return found


async def queue(database: Database, *talks: Talk) -> Reviews:
    for talk in talks:
        await talk.keep(database)
    reviews = Reviews(database)
    await reviews.offer([row for talk in talks for row in make_rows(talk.chat(), Gates())])
    return reviews


async def test_a_pair_comes_with_all_that_its_answers_rest_on(database: Database) -> None:
    talk = Talk()
    talk.asks("你好")
    talk.answers("您好!")
    talk.asks(ASKED)
    first = talk.answers(HOW_TO)
    second = talk.answers(DAYS, replaces=first)
    talk.signal(first, "thumb", -1, tags=["wrong"])
    talk.signal(second, "gratitude", 1)
    pair = await waiting(await queue(database, talk), "ann")
    assert ([each.text for each in pair.before], pair.question) == (["你好", "您好!"], ASKED)
    assert (pair.rejected, pair.chosen, pair.origin) == (HOW_TO, DAYS, "natural")
    assert pair.rejected_passages == pair.chosen_passages == PASSAGES
    assert [(one.kind, one.tags, one.completion_id) for one in pair.heard] == [
        ("thumb", ["wrong"], pair.rejected_id),
        ("gratitude", [], pair.chosen_ref),
    ]


async def test_who_cannot_tell_is_replaced_by_somebody_who_can(database: Database) -> None:
    reviews = await queue(database, worked_example())
    pair = await waiting(reviews, "ann")
    for rater, verdict in (("ann", "unsure"), ("bob", "good"), ("cid", "bad")):
        assert await reviews.left(rater) == Left(1, 0)
        assert (await waiting(reviews, rater)).id == pair.id
        await reviews.judge(pair.id, pair.seen, rater, verdict)  # type: ignore[arg-type]
    assert await reviews.next_for_review("dan") is None
    told = await reviews.agreement()
    assert (told.num_pairs, told.observed) == (1, 0.0)


async def test_a_pair_without_an_answer_to_judge_waits_until_there_is_one(database: Database) -> None:
    talk = worked_example()
    await talk.keep(database)
    reviews = Reviews(database)
    gates = Gates(stands_alone=lambda answer, case, later: False)
    (row,) = [row for row in make_rows(talk.chat(), gates) if row.kind == "dpo"]
    assert await reviews.offer([row]) == 1
    assert await reviews.next_for_review("ann") is None
    assert await reviews.left("ann") == Left(0, 1)
    await reviews.offer([replace(row, answer=DAYS, origin="regenerated", problem="unsure")])
    pair = await waiting(reviews, "ann")
    assert (pair.chosen, pair.chosen_passages) == (DAYS, PASSAGES)


async def test_a_verdict_is_on_the_answer_that_was_shown_and_on_no_other(database: Database) -> None:
    talk = worked_example()
    reviews = await queue(database, talk)
    pair = await waiting(reviews, "ann")
    (row,) = [row for row in make_rows(talk.chat(), Gates()) if row.kind == "dpo"]
    await reviews.offer([replace(row, answer="别的回答")])
    with pytest.raises(NotFound):
        await reviews.judge(pair.id, pair.seen, "ann", "good")
    changed = await waiting(reviews, "ann")
    assert changed.chosen == "别的回答"
    await reviews.judge(changed.id, changed.seen, "ann", "good")
    # The record's own answer is another one than what was approved.
    assert (await database.read(lambda connection: read_snapshot(connection, Gates()))).verdicts == {pair.id: []}
    await reviews.judge(changed.id, changed.seen, "bob", "bad")
    assert (await database.read(lambda connection: read_snapshot(connection, Gates()))).verdicts == {pair.id: ["bad"]}


def test_kappa_is_agreement_beyond_chance() -> None:
    def of(*cells: tuple[int, Verdict, Verdict]) -> float | None:
        kappa = agreement([(one, two) for count, one, two in cells for _ in range(count)]).kappa
        return None if kappa is None else round(kappa, 3)

    assert of((20, "good", "good"), (5, "good", "bad"), (10, "bad", "good"), (15, "bad", "bad")) == 0.4
    assert of((5, "good", "good"), (5, "bad", "bad")) == 1
    assert of((5, "good", "good")) is None
    assert of() is None
