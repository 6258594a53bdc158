"""What a question finds, and when nothing does."""

import zlib
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from backends.mini.shop import load_shop
from feedback.grams import Vectors
from feedback.retrieval import FITS, Index


@dataclass(frozen=True)
class Known:
    title: str
    text: str = ""
    questions: tuple[str, ...] = ()


CARDS = (
    Known("Lost card", "We block it.", ("I lost my card", "my card was stolen", "where is my card, I cannot find it", "card missing")),
    Known(
        "New card", "Five days.", ("when does my new card arrive", "card delivery time", "is my card on its way", "has my card been sent")
    ),
    Known("Exchange", "At the market rate.", ("what exchange rate do I get", "rate for dollars", "is the rate fair", "how are rates made")),
    Known("Top up", "By transfer.", ("how do I top up", "top up by bank transfer", "my top up failed", "add money to my account")),
)


@pytest.mark.parametrize(
    ("question", "title"),
    [
        ("someone stole my card", "Lost card"),
        ("my new card has not arrived", "New card"),
        ("exchnage rates of dolars", "Exchange"),
        ("top-up did not work", "Top up"),
    ],
)
def test_a_question_in_other_words_or_misspelt_finds_its_passage(question: str, title: str) -> None:
    found = Index(CARDS).search(question)
    assert CARDS[found.hits[0].number].title == title
    assert found.fits


@pytest.mark.parametrize("question", ["how tall is the Eiffel tower", "translate hello into Korean", "xyzzy", "", "？？"])
def test_what_nobody_wrote_about_fits_nothing(question: str) -> None:
    assert not Index(CARDS).search(question).fits


@pytest.mark.parametrize(("question", "place"), [("绿茶怎么保存", 0), ("茶壶能用洗洁精吗", 1), ("运费多少钱", 2)])
def test_chinese_needs_no_spaces_and_no_dictionary(question: str, place: int) -> None:
    known = (
        Known("茶叶", "绿茶请放在冰箱里保存。"),
        Known("茶壶", "茶壶用清水冲洗，请不要用洗洁精。"),
        Known("配送", "普通快递运费十元。"),
    )
    found = Index(known).search(question)
    assert (found.hits[0].number, found.fits) == (place, True)
    assert not Index(known).search("今天股票涨了吗").fits


@pytest.mark.parametrize(
    ("question", "passage_id"),
    [("Is there a warranty on kettles?", "warranty"), ("How much is express shipping?", "shipping"), ("Do you accept PayPal?", "payment")],
)
def test_passages_without_example_questions_are_found_by_their_words(question: str, passage_id: str) -> None:
    passages = load_shop("en").passages
    found = Index([Known(one.title, one.text) for one in passages]).search(question)
    assert (passages[found.hits[0].number].id, found.fits) == (passage_id, True)


def test_an_example_question_added_to_a_passage_makes_it_fit() -> None:
    asked = "kann ich das umtauschen"
    plain, taught = Known("Returns", "Within 30 days."), Known("Returns", "Within 30 days.", (asked,))
    assert not Index((plain, *CARDS)).search(asked).fits
    found = Index((taught, *CARDS)).search(asked)
    assert found.hits[0].number == 0 and found.hits[0].score >= FITS


def topics(*texts: str) -> NDArray[np.float32]:
    """The vectors of an embedding model that knows one synonym."""
    rows = np.zeros((len(texts), 997), np.float32)
    for row, text in zip(rows, texts, strict=True):
        about = "exchange" if "exchange" in text or "Wechselkurs" in text else text
        row[zlib.crc32(about.encode()) % 997] = 1
    return rows


def test_an_embedding_model_finds_what_shares_no_letters() -> None:
    words = Index(CARDS)
    index = words.embedded(topics(*words.texts))
    found = index.search("Wechselkurs?", vector=topics("Wechselkurs?")[0])
    assert (CARDS[found.hits[0].number].title, found.fits) == ("Exchange", True)
    assert (words.is_embedded, index.is_embedded) == (False, True)


def test_without_the_questions_vector_words_alone_decide() -> None:
    words = Index(CARDS)
    index = words.embedded(topics(*words.texts))
    for question in ("Wechselkurs?", "someone stole my card"):
        assert np.array_equal(index.scores(question), words.scores(question))
    assert not index.search("Wechselkurs?").fits


def test_what_all_vectors_have_in_common_says_nothing() -> None:
    words = Index(CARDS)
    leaning = words.embedded((topics(*words.texts) + 3) / np.linalg.norm(topics(*words.texts) + 3, axis=1, keepdims=True))
    stranger = topics("the moon")[0] + 3
    assert not leaning.search("the moon", vector=stranger / np.linalg.norm(stranger)).fits


def test_no_passages_find_nothing() -> None:
    found = Index(()).search("anything")
    assert (found.hits, found.fits) == ((), False)


@given(st.lists(st.text(alphabet="ab 绿茶?", max_size=12), min_size=1, max_size=6), st.text(alphabet="ab 绿茶?", max_size=12))
def test_cosines_are_cosines(texts: list[str], question: str) -> None:
    vectors = Vectors([*texts, question])
    likeness, gram = vectors.dot(question), vectors.gram(np.arange(len(texts) + 1))
    assert np.all((likeness > -1e-6) & (likeness < 1 + 1e-5))
    assert np.allclose(gram[-1][:-1], likeness[:-1], atol=1e-5)
    assert np.linalg.eigvalsh(gram.astype(float)).min() > -1e-4
