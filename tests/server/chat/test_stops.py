"""Stop strings end the text, wherever the tokens are cut."""

from hypothesis import given
from hypothesis import strategies as st

from server.chat.stops import StopFinder

letters = st.text("ab\n", max_size=30)
stops = st.lists(st.text("ab\n", min_size=1, max_size=5), max_size=4)


def _run(chunks: list[str], stops: list[str]) -> tuple[str, str]:
    finder = StopFinder(stops)
    text = ""
    for chunk in chunks:
        text += finder.push(chunk)
        if finder.found:
            return text, finder.found
    return text + finder.flush(), ""


@given(st.lists(letters), stops)
def test_the_result_does_not_depend_on_how_the_text_is_cut(chunks: list[str], stops: list[str]) -> None:
    whole = "".join(chunks)
    by_letter = _run(list(whole), stops)
    assert _run(chunks, stops) == by_letter == _run([whole], stops)
    assert not any(stop in by_letter[0] for stop in stops)


@given(letters, stops)
def test_without_a_stop_in_it_a_text_comes_out_unchanged(text: str, stops: list[str]) -> None:
    absent = [stop for stop in stops if stop not in text]
    assert _run(list(text), absent) == (text, "")


def test_only_what_may_still_become_a_stop_is_held() -> None:
    finder = StopFinder(["STOP"])
    assert [finder.push(piece) for piece in ("one S", "T", "age", " ST", "OP two")] == ["one ", "", "STage", " ", ""]
    assert (finder.found, finder.rest) == ("STOP", " two")
