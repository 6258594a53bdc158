"""Which language, and which sources an answer may show."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.mini.shop import Language
from server.desk.policy import CitationFilter, Policy
from server.language import detect_language
from tests.server.desk.conftest import SHOPS

POLICY = Policy.of(SHOPS["en"], "en")


@pytest.mark.parametrize(
    ("text", "default", "language"),
    [
        ("我的退款什么时候到?", "en", "zh"),
        ("我的 iPhone 15 Pro Max 可以退货吗", "en", "zh"),
        ("Where is my order?", "zh", "en"),
        ("What does 包邮 mean here", "zh", "en"),
        ("ok", "zh", "zh"),
        ("A-10293", "zh", "zh"),
        ("12345", "en", "en"),
        ("👍", "zh", "zh"),
        ("退", "en", "zh"),
        ("", "en", "en"),
    ],
)
def test_the_language_is_that_of_the_text_when_it_shows_one(text: str, default: Language, language: Language) -> None:
    assert detect_language(text, default) == language


def filtered(pieces: list[str]) -> str:
    citations = CitationFilter(POLICY)
    return "".join([*(citations.feed(piece) for piece in pieces), citations.flush()])


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("Thirty days [1].", "Thirty days [1]."),
        ("Thirty days [1][3].", "Thirty days [1]."),
        ("Ten years [9].", "Ten years."),
        ("No source [0]", "No source"),
        ("三天 [2]。[7]", "三天 [2]。"),
        ("order [12345] [a] [", "order [12345] [a] ["),
        ("trailing  ", "trailing  "),
    ],
)
def test_a_source_that_does_not_exist_is_not_shown(said: str, shown: str) -> None:
    assert filtered([said]) == shown
    assert filtered(list(said)) == shown


@given(st.lists(st.text(alphabet=st.sampled_from(" [1290]a退"), max_size=6), max_size=12))
def test_what_is_shown_does_not_depend_on_how_the_text_was_cut(pieces: list[str]) -> None:
    assert filtered(pieces) == filtered(["".join(pieces)])


def test_citations_carry_their_passages_once_each() -> None:
    cited = POLICY.citations("Three days [2], or [2]; thirty [1]. [5]")
    assert [(citation.number, citation.passage_id, citation.title) for citation in cited] == [
        (1, "returns", "Returns"),
        (2, "delivery", "Delivery"),
    ]


def test_versions_follow_content() -> None:
    again = Policy.of(SHOPS["en"], "en")
    assert (POLICY.version, POLICY.knowledge_version) == (again.version, again.knowledge_version)
    other = Policy.of(SHOPS["zh"], "zh")
    assert POLICY.version != other.version
    assert POLICY.knowledge_version == other.knowledge_version
