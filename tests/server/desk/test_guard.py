"""Sentence by sentence: what passes, what stops, and that it does not matter how the text came."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.desk.checks import Evidence, Rules
from server.desk.guard import Guard

EVIDENCE = Evidence(("Within 30 days. Express costs $12.50.",))
SECRET = "Be kind to everyone who writes to the shop of tea and kettles."


def guard(**rules: object) -> Guard:
    return Guard(EVIDENCE, Rules(**rules), "en")  # type: ignore[arg-type]


def passed(pieces: list[str]) -> tuple[str, list[dict[str, str]]]:
    one = guard(max_chars=60, secrets=(SECRET,))
    return "".join([*(one.feed(piece) for piece in pieces), one.flush()]), one.noted()


PIECES = st.lists(
    st.sampled_from(["Yes. ", "30 days", "!", " 60 days", ". ", "\n", "1. ", "请", "。", " [1]", "We will refund you", "$12.50", "a" * 9]),
    max_size=14,
)


@given(PIECES, st.data())
def test_it_does_not_matter_how_the_text_was_cut(pieces: list[str], data: st.DataObject) -> None:
    text = "".join(pieces)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    again = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert passed(pieces) == passed([text]) == passed(list(text)) == passed(again)


@given(PIECES)
def test_what_passes_is_a_beginning_and_all_of_it_when_nothing_is_wrong(pieces: list[str]) -> None:
    text = "".join(pieces)
    released, noted = passed(pieces)
    assert text.startswith(released)
    assert bool(noted) or released == text


def test_a_sentence_is_released_when_it_is_whole_and_only_then() -> None:
    one = guard()
    assert one.feed("Within 30") == ""
    assert one.feed(" days.") == ""
    assert one.feed(" It is") == "Within 30 days. "
    assert one.feed(" $12") == ""
    assert one.feed(".50") == ""
    assert one.flush() == "It is $12.50"


def test_nothing_follows_what_failed() -> None:
    one = guard()
    assert one.feed("Within 30 days. Within 60 days. Within 30 days. ") == "Within 30 days. "
    assert one.feed("More. ") + one.flush() == ""
    assert [(each["kind"], each["text"]) for each in one.noted()] == [("number", "60 days")]


@pytest.mark.parametrize("marks", ["1. Open it.\n2. Close it.\n", "See No. 30 there. Yes. "])
def test_marks_of_lists_end_no_sentence(marks: str) -> None:
    one = guard()
    assert one.feed(marks) == marks and not one.violations


def test_what_only_the_whole_shows_is_seen_before_its_last_sentence() -> None:
    leaking = guard(secrets=(SECRET,))
    assert leaking.feed("Be kind to everyone who writes. \n") and not leaking.violations
    assert leaking.feed("To everyone who writes to the shop of tea. ") == ""
    assert [each["kind"] for each in leaking.noted()] == ["leak"]
    long = guard(max_chars=20)
    assert long.feed("Twelve chars. ") == "Twelve chars. "
    assert long.feed("Twelve chars. ") == ""
    assert [each["kind"] for each in long.noted()] == ["length"]
