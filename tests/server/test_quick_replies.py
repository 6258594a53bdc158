"""What a clarifying question offers to choose from."""

import pytest

from backends.mini.corpus import fill, tables
from server.quick_replies import quick_replies


@pytest.mark.parametrize("language", ["en", "zh"])
def test_what_the_built_in_model_asks_back_has_replies(language: str) -> None:
    for question in tables(language)["talk"]["clarify"]:  # type: ignore[arg-type]
        assert [each.lower() for each in quick_replies(fill(question, {"about": "退货期限", "other": "the price"}))] == [
            "退货期限",
            "the price",
        ]


@pytest.mark.parametrize(
    ("answer", "replies"),
    [
        ("Sorry! Did you mean returns, exchanges, or a refund?", ["Returns", "Exchanges", "A refund"]),
        ("请问您想问的是退货、换货还是退款？", ["退货", "换货", "退款"]),
        ("Do you mean <b>this</b> or that?", ["<b>this</b>", "That"]),
        ("Yes, or within 30 days [1].", []),
        ("Shall I cancel order K12345?", []),
        ("Do you mean a or b? I can help with both.", []),
        (f"Do you mean {'x' * 61} or y?", []),
        ("Do you mean a, b, c, d, or e?", []),
        ("", []),
    ],
)
def test_only_a_question_at_the_end_offers_some_and_only_short_ones(answer: str, replies: list[str]) -> None:
    assert quick_replies(answer) == replies


def test_a_long_answer_is_read_in_no_time() -> None:
    assert quick_replies("do you mean " * 5000 + " or " * 5000) == []
