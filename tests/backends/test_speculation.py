"""Guesses come from the sequence's own text, and stop where they cost more than they save."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.speculation import FIRST_GUESS, LONGEST_GUESS, NGRAM, PROBE_EVERY, Gain, Lookup


@given(st.lists(st.integers(0, 3), max_size=60), st.lists(st.integers(1, 9), max_size=8))
def test_a_guess_is_what_followed_the_last_time(tokens: list[int], pieces: list[int]) -> None:
    lookup, told = Lookup(), 0
    for piece in [*pieces, 60]:
        told = min(len(tokens), told + piece)
        known = tokens[:told]
        guess = lookup.guess(known, limit=100)
        earlier = [at for at in range(NGRAM, len(known)) if known[at - NGRAM : at] == known[-NGRAM:]]
        assert guess == (known[earlier[-1] : earlier[-1] + FIRST_GUESS] if earlier else [])


def test_the_reach_follows_success_and_the_limit_holds() -> None:
    lookup, tokens = Lookup(), [1, 2, 3] * 30
    assert lookup.guess(tokens, limit=2) == [1, 2]
    assert lookup.guess(tokens, limit=-1) == []
    for _ in range(4):
        lookup.learn(4, 4)
    assert len(Lookup().guess(tokens, 99)) <= FIRST_GUESS
    lookup._followed[1, 2, 3] = 30
    assert len(lookup.guess(tokens, 99)) == LONGEST_GUESS
    lookup.learn(LONGEST_GUESS, 0)
    assert len(lookup.guess(tokens, 99)) == 2


@pytest.mark.parametrize(("wide_s", "expected"), [(1.05, True), (2.5, False)])
def test_what_the_start_measured_decides_first(wide_s: float, expected: bool) -> None:
    assert Gain(1.0, wide_s).pays() is expected


def test_guesses_that_never_come_true_are_given_up_and_tried_again_now_and_then() -> None:
    gain = Gain(1.0, 1.1)
    for _ in range(100):
        gain.saw(1, 4, 0, 1.1)
    assert sum(gain.pays() for _ in range(4 * PROBE_EVERY)) == 4
    for _ in range(20):
        gain.saw(1, 4, 4, 1.1)
    assert all(gain.pays() for _ in range(50))


def test_a_pass_that_waited_for_something_else_does_not_decide() -> None:
    gain = Gain(1.0, 1.1)
    for _ in range(30):
        gain.saw(1, 4, 3, 1.1)
    gain.saw(1, 4, 3, 1000.0)
    assert gain.pays()


@pytest.mark.parametrize(("guess_s", "expected"), [(0.4, True), (3.9, False), (100.0, False)])
def test_what_a_guess_takes_to_make_counts_even_when_all_of_it_comes_true(guess_s: float, expected: bool) -> None:
    gain = Gain(1.0, 1.1)
    for _ in range(50):
        gain.saw(1, 4, 4, 1.2, guess_s)
    assert (gain._saved_s > 0) is expected


def test_one_guess_that_waited_for_something_else_does_not_decide() -> None:
    gain = Gain(1.0, 1.1)
    for _ in range(30):
        gain.saw(1, 16, 12, 1.5, 0.8)
    gain.saw(1, 16, 12, 1.5, 1000.0)
    assert gain.pays()
