"""Limits are kept exactly, and forget callers rather than grow."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request

from server.errors import RequestError, TooManyRequests, error_headers, error_object, row_for
from server.limits import DAY_S, MAX_CALLERS, DailyLimit, InFlight, RateLimit, network_of
from server.routes.desk import DeskLimits
from server.settings import DeskSettings


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


@given(st.lists(st.floats(0, DAY_S / 2), max_size=40))
def test_a_day_holds_so_many_and_its_refusals_say_when_it_ends(waits: list[float]) -> None:
    limit = DailyLimit(3)
    now, days = 0.0, [[-1.0 * DAY_S]]
    for wait in waits:
        now += wait
        try:
            limit.take("a", now)
            if now - days[-1][0] >= DAY_S:
                days.append([])
            days[-1].append(now)
        except TooManyRequests as refusal:
            assert refusal.code == "daily_limit" and refusal.retry_after_s is not None
            ends = days[-1][0] + DAY_S
            assert len(days[-1]) == 3
            assert now < ends <= now + refusal.retry_after_s <= ends + 1
    assert max(map(len, days)) <= 3


def test_days_are_each_callers_own() -> None:
    limit = DailyLimit(1)
    limit.take("a", 100)
    limit.take("b", 200)
    for caller, rest in (("a", DAY_S - 200), ("b", DAY_S - 100)):
        with pytest.raises(TooManyRequests) as caught:
            limit.take(caller, 300)
        assert caught.value.retry_after_s == rest
    limit.take("a", 100 + DAY_S)
    with pytest.raises(TooManyRequests):
        limit.take("b", 100 + DAY_S)


def test_the_desk_counts_a_visitors_day_and_an_addresss() -> None:
    now = 0.0
    limits = DeskLimits(DeskSettings(messages_per_minute=3, messages_per_day=4, address_messages_per_day=7), lambda: now)

    def refusal(visitor: str) -> RequestError | None:
        try:
            return limits.send(visitor, "192.0.2.1")
        except TooManyRequests as error:
            return error

    assert [refusal("a") for _ in range(3)] == [None] * 3
    assert row_for(hasty := refusal("a") or Exception()).status == 429
    assert (error_object(hasty)["error"]["code"], error_headers(hasty)["retry-after"]) == ("rate_limit_exceeded", "20")  # type: ignore[index]
    now = 3600
    assert refusal("a") is None
    used_up = refusal("a") or Exception()
    assert (error_object(used_up)["error"]["code"], error_headers(used_up)["retry-after"]) == ("daily_limit", str(23 * 3600))  # type: ignore[index]
    assert [refusal("b") for _ in range(3)] == [None] * 3
    assert refusal("c") is not None, "the address has had its seven"
    limits.send("c", "192.0.2.2")
    now = 24 * 3600
    assert refusal("a") is None


@pytest.mark.parametrize("limit", [RateLimit(per_minute=1, burst=1), DailyLimit(1)], ids=["minute", "day"])
def test_the_number_of_remembered_callers_is_bounded(limit: RateLimit | DailyLimit) -> None:
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


@pytest.mark.parametrize(
    ("host", "network"),
    [("203.0.113.9", "203.0.113.0/24"), ("2001:db8:1:2::9", "2001:db8:1:2::/64"), ("unix", "unix")],
)
def test_votes_are_capped_by_network(host: str, network: str) -> None:
    assert network_of(Request({"type": "http", "client": (host, 1)})) == network
