"""The rephrase detector: what it finds, and what it must leave alone."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from feedback.likeness import PAIR_FEATURES, Meanings, same_question, weights
from feedback.rephrase import AGAIN, FIRES, TRAINS, TURN_FEATURES, Turn, classify, thanks

DATA = Path(__file__).parents[2] / "bench" / "data"
TRIO = ("where has my parcel got to", "my package never turned up", "do you sell gift cards")


@pytest.mark.parametrize(
    ("turn", "kind"),
    [
        (Turn("i would like to check my account balance", ("i want to check my account balance",), "We are open all day."), "rephrase"),
        (Turn("how long does the refund take?", ("how long does the refund take?",), "We sell tea."), "repeat"),
        (Turn("我是说邮费谁出", ("退货运费谁承担",), "请在页面提交申请。"), "correction"),
        (Turn("退款要多久才能到账", ("退款多长时间到账",), "您可以在订单页申请退款。"), "rephrase"),
        (Turn("怎么申请退款??", ("怎么申请退款",), "我们的服务时间是九点到六点。"), "repeat"),
    ],
)
def test_what_asks_again_is_found(turn: Turn, kind: str) -> None:
    verdict = classify(turn)
    assert (verdict.kind, verdict.prob >= FIRES, verdict.span) == (kind, True, 1)


@pytest.mark.parametrize(
    ("turn", "kind"),
    [
        (Turn("thanks", ("thanks",), "You are welcome."), "closing"),
        (Turn("thank you so much", ("thank you",), "Bye!"), "closing"),
        (Turn("谢谢", ("谢谢",), "不客气。"), "closing"),
        (Turn("order 4417", ("where is my order",), "Which order do you mean?"), "clarification_answer"),
        (Turn("and how much is shipping to France?", ("do you ship abroad",), "Yes, to all of Europe."), "follow_up"),
        (Turn("花呗怎么关闭", ("花呗怎么开通",), "在支付宝里开通。"), "follow_up"),
        (Turn("how long does the refund take?", ()), "new_topic"),
    ],
)
def test_what_only_looks_alike_is_left_alone(turn: Turn, kind: str) -> None:
    verdict = classify(turn)
    assert verdict.prob < FIRES
    assert verdict.kind == kind


def test_a_long_silence_and_an_answer_that_never_came_are_no_complaint() -> None:
    asked = ("怎么申请退款",)
    assert classify(Turn(asked[0], asked, "好的。", gap_s=60)).prob >= TRAINS
    assert classify(Turn(asked[0], asked, "好的。", gap_s=16 * 60)).prob == 0
    assert classify(Turn(asked[0], asked, "", delivered=False)).prob == 0


def test_an_earlier_question_asked_again_points_back_to_it() -> None:
    asked = ("how do i change my delivery address", "what colours does the teapot come in", "is it dishwasher safe")
    verdict = classify(Turn("how do i change my delivery address", asked, "Yes, it is."))
    assert (verdict.kind, verdict.span) == ("repeat", 3)


def test_two_questions_are_one_or_not() -> None:
    assert same_question("运费谁承担", "邮费由谁来出") > 0.5 > same_question("怎么开通自动续费", "怎么关闭自动续费")
    assert (
        same_question("how do i cancel my order", "how can i cancel an order") > 0.5 > same_question("cancel my order", "open an account")
    )


def test_thanks_are_not_a_refusal() -> None:
    assert thanks("好的谢谢") and thanks("ok thank you very much")
    assert not thanks("no thanks") and not thanks("不用谢谢") and not thanks("ok")


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=120), st.lists(st.text(max_size=80), max_size=5), st.text(max_size=80))
def test_any_text_gets_a_verdict(text: str, earlier: list[str], answer: str) -> None:
    verdict = classify(Turn(text, earlier, answer))
    assert 0 <= verdict.prob <= 1
    assert (verdict.prob >= FIRES) == (verdict.kind in AGAIN)
    assert 1 <= verdict.span <= max(1, min(3, len(earlier)))


def test_a_hostile_turn_takes_no_longer_than_its_length_allows() -> None:
    for text in ("ok " * 20_000, "好的" * 20_000, "not what i " * 5_000, "我" * 50_000, "a" * 50_000 + "!"):
        assert classify(Turn(text, (text, "hello"), text)).prob <= 1


def test_the_weights_are_those_of_the_features() -> None:
    told = {name: len(values) for name, values in weights().items()}
    plain = {"en": len(PAIR_FEATURES), "zh": len(PAIR_FEATURES), "turn": len(TURN_FEATURES)}
    assert told == plain | {f"{name}_meaning": count + (name != "turn") for name, count in plain.items()}


def lean(rows: dict[str, NDArray[np.float32]], much: float) -> Meanings:
    """The same meanings from a model all of whose vectors lean one way: its cosines are all high."""
    leaning = {text: np.append(row, np.float32(much)) for text, row in rows.items()}
    return Meanings({text: row / np.linalg.norm(row) for text, row in leaning.items()}, "model")


@pytest.fixture
def rows() -> dict[str, NDArray[np.float32]]:
    """Unit vectors at random, and of three texts two that are near each other."""
    random = np.random.default_rng(7)
    found = {text: random.normal(size=64).astype(np.float32) for text in [*Meanings.strangers(), *TRIO]}
    found[TRIO[1]] = found[TRIO[0]] + 0.3 * found[TRIO[1]]
    return {text: row / np.linalg.norm(row) for text, row in found.items()}


def test_any_models_cosines_come_to_the_same_measure(rows: dict[str, NDArray[np.float32]]) -> None:
    upright, leaning = lean(rows, 0.0), lean(rows, 2.0)
    for meanings in (upright, leaning):
        assert meanings(TRIO[0], TRIO[1]) > 1 > abs(meanings(TRIO[0], TRIO[2]))
        assert meanings(TRIO[0], TRIO[1]) == meanings(TRIO[1], TRIO[0])
    assert upright(TRIO[0], TRIO[1]) == pytest.approx(leaning(TRIO[0], TRIO[1]), abs=0.1)


def test_what_means_the_same_is_found_though_no_word_is_shared(rows: dict[str, NDArray[np.float32]]) -> None:
    first, second, other = TRIO
    meanings = lean(rows, 1.0)
    told = [same_question(first, each, meanings(first, each)) for each in (second, other)]
    assert told[0] > same_question(first, second) and told[0] > told[1]
    turn = Turn(second, (other, first), "We sell tea.")
    likely, unlikely = (replace(turn, meanings=each) for each in ((-0.5, 2.5), (-0.5, -0.5)))
    assert classify(likely).prob > classify(unlikely).prob and classify(likely).span == 1


def test_the_labelled_turns_are_many_and_of_every_kind() -> None:
    for language in ("en", "zh"):
        rows = [json.loads(line) for line in (DATA / f"rephrase.{language}.jsonl").read_text(encoding="utf-8").splitlines()]
        kinds = {row["label"] for row in rows}
        assert len(rows) >= 400 and len({row["id"] for row in rows}) >= 0.99 * len(rows)
        assert kinds == AGAIN | {"clarification_answer", "follow_up", "new_topic", "closing"}
        assert sum("second" in row for row in rows) == 100
