"""Passages are whole sentences, and small."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feedback.sentences import pack, sentences, size


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("One. Two! Three?", ["One.", "Two!", "Three?"]),
        ("It costs $4.90 and e.g. Dr. Lee pays. Fine.", ["It costs $4.90 and e.g. Dr. Lee pays.", "Fine."]),
        ("三天。两天！一天？好；行", ["三天。", "两天！", "一天？", "好；", "行"]),
        ("a list\nof lines", ["a list", "of lines"]),
        ("", []),
    ],
)
def test_sentences_end_where_they_end(text: str, parts: list[str]) -> None:
    assert sentences(text) == parts


def test_passages_stay_below_their_size() -> None:
    english = pack(" ".join(f"This is sentence number {n} of a long page." for n in range(200)))
    chinese = pack("".join(f"这是很长的一页里的第{n}句话。" for n in range(200)))
    assert len(english) > 10 and len(chinese) > 5
    assert all(size(part) <= 1 for part in (*english, *chinese))
    assert all(part.endswith((".", "。")) for part in (*english, *chinese))
    assert " " not in chinese[0]


@given(st.text(alphabet="ab .!。茶\n", max_size=400))
def test_nothing_is_lost(text: str) -> None:
    assert "".join("".join(pack(text)).split()) == "".join(text.split())


def test_a_table_without_full_stops_is_parted_at_a_space() -> None:
    parts = pack("word " * 2000)
    assert len(parts) > 5 and all(set(part.split()) == {"word"} for part in parts)
