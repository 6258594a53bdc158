"""The review queue: two raters, each once, and how far they agree."""

import pytest

from feedback.database import Database
from feedback.pairs import Gates, make_rows
from feedback.record import NotFound, Record
from feedback.review import AlreadyRated, Reviews, Verdict, agreement
from tests.feedback.shopper import HOW_TO, worked_example

pytestmark = pytest.mark.anyio


async def test_a_pair_is_shown_to_two_raters_once_each(database: Database) -> None:
    talks = [worked_example("vis_a", "a", " A"), worked_example("vis_b", "b", " B")]
    for talk in talks:
        await talk.keep(database)
    reviews, rows = Reviews(database), [row for talk in talks for row in make_rows(talk.chat(), Gates())]
    assert [await reviews.offer(rows), await reviews.offer(rows)] == [2, 0]
    first = await reviews.next_for_review("ann")
    assert first is not None and first.rejected.startswith(HOW_TO) and first.chosen
    await reviews.judge(first.id, "ann", "good")
    second = await reviews.next_for_review("ann")
    assert second is not None and second.id != first.id
    half = await reviews.next_for_review("bob")
    assert half is not None and half.id == first.id
    await reviews.judge(first.id, "bob", "bad", "the answer is outdated")
    assert (await reviews.next_for_review("cid")).id == second.id  # type: ignore[union-attr]
    with pytest.raises(AlreadyRated):
        await reviews.judge(first.id, "bob", "good")
    with pytest.raises(NotFound):
        await reviews.judge("dpo_none", "bob", "good")
    assert await reviews.verdicts() == {first.id: ["good", "bad"]}
    assert (await reviews.agreement()).num_pairs == 1
    await Record(database).set_consent(second.conversation_id, "vis_b" if "b" in second.conversation_id else "vis_a", consent_train=False)
    assert await reviews.next_for_review("cid") is None


def test_kappa_is_agreement_beyond_chance() -> None:
    def of(*cells: tuple[int, Verdict, Verdict]) -> float | None:
        kappa = agreement([(one, two) for count, one, two in cells for _ in range(count)]).kappa
        return None if kappa is None else round(kappa, 3)

    assert of((20, "good", "good"), (5, "good", "bad"), (10, "bad", "good"), (15, "bad", "bad")) == 0.4
    assert of((5, "good", "good"), (5, "bad", "bad")) == 1
    assert of((5, "good", "good")) is None
    assert of() is None
