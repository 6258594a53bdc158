"""Intents: what rows are about, and that no three of them make an export where a shop has more."""

import hashlib
from collections import Counter
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from feedback.export import Example, Rules, Selection, Snapshot, select_examples
from feedback.intents import MAX_FULLEST_SHARE, MIN_INTENTS, MIN_ROWS, NUM_FULLEST, intents, most_of_one
from feedback.pairs import Case, Evidence, Passage, Row, Turn

RULES = Rules(salt="salt")
PASSAGES = tuple(Passage(number, f"faq.{number}", f"Title {number}", "Text.") for number in range(1, 31))


def row(name: str, answer: str, kind: str = "thumb", question: str = "", **changed: object) -> Row:
    """A praised answer; the weight of `kind` is the row's."""
    words = f"{question or 'Is it so with'} {hashlib.sha256(name.encode()).hexdigest()[:24]}?"
    case = Case(f"conv_{name}", f"vis_{name}", "en", f"msg_{name}", 1, (Turn("user", question or words),), PASSAGES)
    weight = {"thumb": 0.6, "gratitude": 0.3}[kind]
    fields = {"label": True, "strength": weight, "evidence": (Evidence(f"sig_{name}", kind, 1.0, weight, 1.0),)} | changed
    return Row("kto", case, f"{answer} {hashlib.sha256(name.encode()).hexdigest()[24:48]}", f"cmpl_{name}", **fields)  # type: ignore[arg-type]


def shop(sizes: Sequence[int]) -> list[Row]:
    """So many rows on each of the passages; of every two, one was praised by thumb and one by thanks."""
    kinds = ("thumb", "gratitude")
    return [row(f"{number}.{n}", f"It is so [{number}].", kinds[n % 2]) for number, size in enumerate(sizes, 1) for n in range(size)]


def selected(rows: Sequence[Row]) -> Selection:
    return select_examples(Snapshot(list(rows), {}, {}), RULES)


def sizes_of(examples: Sequence[Example]) -> Counter[str]:
    return Counter(one.intent for one in examples)


def test_a_right_answer_names_the_intent_and_a_wrong_one_takes_the_name_from_its_question() -> None:
    asked = "How many days do I have to send something back?"
    rows = [
        row("a", "30 days [2], see [1].", question=asked),
        row("b", "We open at nine [7].", question=asked, label=False),
        row("c", "I will connect you with a person."),
        row("d", "It left yesterday."),
        row("e", "No idea [3].", label=False),
    ]
    names = intents(rows, {"cmpl_d": "order_status"})
    assert names[:4] == ["faq.2", "faq.2", "handoff", "tool order_status"]
    assert names[4].startswith("question ") and "[3]" not in names[4]


def test_a_shop_with_three_intents_loses_nothing() -> None:
    kept = selected(shop([40, 30, 20]))
    assert len(kept.examples) == 90 and "kto: intent cap" not in kept.dropped
    assert not selected(shop([60, 50, 40, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1])).dropped["kto: intent cap"], "stray questions are no range"


def test_three_intents_do_not_make_an_export_and_the_heaviest_rows_of_them_stay() -> None:
    rows = shop([60, 50, 40, *[4] * 9])
    kept = selected(rows)
    sizes = sizes_of(kept.examples)
    fullest = sum(num for _, num in sizes.most_common(NUM_FULLEST))
    assert fullest <= MAX_FULLEST_SHARE * sizes.total() and fullest + NUM_FULLEST > MAX_FULLEST_SHARE * sizes.total()
    assert kept.dropped["kto: intent cap"] == len(rows) - sizes.total() == 6
    lost = {one.id for one in rows} - {one.row.id for one in kept.examples}
    assert all(one.strength == 0.3 and one.answer and "[1]" in one.answer for one in rows if one.id in lost)
    again = selected(rows[::-1])
    assert [one.row.id for one in again.examples] == [one.row.id for one in kept.examples] and again.dropped == kept.dropped


def test_the_place_of_who_leaves_a_full_intent_goes_to_the_next_in_it() -> None:
    rows = shop([60, 50, 40, *[4] * 9])
    before = {one.row.id for one in selected(rows).examples}
    after = {one.row.id for one in selected(rows[1:]).examples}
    assert rows[0].id in before and before - after == {rows[0].id}
    (next_one,) = after - before
    assert next_one in {one.id for one in rows if one.answer and "[1]" in one.answer}


@given(st.lists(st.integers(1, 60), min_size=0, max_size=30))
def test_the_cap_is_the_highest_that_holds(sizes: list[int]) -> None:
    def share(most: int) -> float:
        capped = sorted((min(size, most) for size in sizes), reverse=True)
        return sum(capped[:NUM_FULLEST]) / max(1, sum(capped))

    most = most_of_one(sizes)
    if sum(size >= MIN_ROWS for size in sizes) < MIN_INTENTS:
        assert most == max(sizes, default=0)
    else:
        assert share(most) <= MAX_FULLEST_SHARE + 1e-9
        assert most == max(sizes) or share(most + 1) > MAX_FULLEST_SHARE
