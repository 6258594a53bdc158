"""Text comes out whole, whatever the tokens cut."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from server.chat.detokenizer import Detokenizer, Vocabulary
from tests.server.fakes import ByteTokenizer


class _Pieces:
    """A vocabulary made of these byte strings."""

    vocab_size = 0

    def __init__(self, pieces: list[bytes]) -> None:
        self._pieces = pieces

    def special_id(self, text: str) -> int | None:
        return None

    def token_bytes(self, token_id: int) -> bytes:
        return self._pieces[token_id]


def _cut(data: bytes, edges: list[int]) -> list[bytes]:
    marks = sorted({0, len(data), *(edge % (len(data) + 1) for edge in edges)})
    return [data[a:b] for a, b in pairwise(marks)]


@given(st.text(), st.lists(st.integers(0, 10_000)))
def test_any_text_cut_at_any_byte_comes_back_without_a_broken_character(text: str, edges: list[int]) -> None:
    pieces = _cut(text.encode(), edges)
    detokenizer = Detokenizer(Vocabulary(_Pieces(pieces)))  # type: ignore[arg-type]
    deltas = [detokenizer.push(i) for i in range(len(pieces))]
    assert "".join(deltas) == text
    assert all("\ufffd" not in delta for delta in deltas) or "\ufffd" in text


@given(st.binary(), st.lists(st.integers(0, 10_000)))
def test_invalid_bytes_read_as_python_reads_them_up_to_an_incomplete_end(data: bytes, edges: list[int]) -> None:
    pieces = _cut(data, edges)
    detokenizer = Detokenizer(Vocabulary(_Pieces(pieces)))  # type: ignore[arg-type]
    text = "".join(detokenizer.push(i) for i in range(len(pieces)))
    assert (data + b"").decode("utf-8", "replace").startswith(text)


def test_an_emoji_waits_for_its_last_byte_and_a_bad_byte_shows_once() -> None:
    detokenizer = Detokenizer(Vocabulary(ByteTokenizer()))
    assert [detokenizer.push(byte) for byte in "😀".encode()] == ["", "", "", "😀"]
    assert [detokenizer.push(byte) for byte in (0xFF, ord("a"))] == ["\ufffd", "a"]
