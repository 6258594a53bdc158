"""Limits are kept exactly, and forget callers rather than grow."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.errors import TooManyRequests
from server.limits import MAX_CALLERS, InFlight, RateLimit


@given(st.lists(st.floats(0, 5), max_size=200))
def test_no_window_holds_more_than_the_burst_and_what_was_refilled(waits: list[float]) -> None:
    limit = RateLimit(per_minute=60, burst=3)
    now, taken = 0.0, list[float]()
    for wait in waits:
        now += wait
        try:
            limit.take("a", now)
            taken.append(now)
        except TooManyRequests:
            pass
    for i, first in enumerate(taken):
        for j, last in enumerate(taken[i:], 1):
            assert j <= 3 + (last - first) + 1e-6


def test_a_refusal_says_when_to_come_back_and_costs_nothing() -> None:
    limit = RateLimit(per_minute=6, burst=1)
    limit.take("a", 0)
    for now in (0.0, 1.0, 9.9):
        with pytest.raises(TooManyRequests) as caught:
            limit.take("a", now)
        assert caught.value.retry_after_s is not None
        assert now + caught.value.retry_after_s >= 10
    limit.take("b", 0)
    limit.take("a", 10)


def test_the_number_of_remembered_callers_is_bounded() -> None:
    limit = RateLimit(per_minute=1, burst=1)
    for i in range(MAX_CALLERS + 5):
        limit.take(str(i), 0)
    limit.take("0", 0)
    with pytest.raises(TooManyRequests):
        limit.take(str(MAX_CALLERS), 0)


def test_in_flight_counts_up_and_down() -> None:
    limit = InFlight(2)
    with limit.held("a"), limit.held("a"), limit.held("b"), pytest.raises(TooManyRequests):
        limit.enter("a")
    with pytest.raises(KeyError), limit.held("a"):
        raise KeyError
    with limit.held("a"), limit.held("a"):
        pass
