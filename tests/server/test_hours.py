"""Opening hours: how they are written, and what the clock on the wall says through summer time."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.hours import Hours

WEEK = "Mon-Fri 09:00-18:00, Sat 10:00-14:00"


def test_without_hours_it_is_always_open() -> None:
    assert Hours.parse("", "UTC").is_open(datetime(2026, 1, 1, 3, tzinfo=UTC))


@pytest.mark.parametrize(
    ("local", "is_open"),
    [
        ("2026-03-27T09:00", True),  # a Friday
        ("2026-03-27T08:59", False),
        ("2026-03-27T17:59", True),
        ("2026-03-27T18:00", False),
        ("2026-03-28T13:59", True),
        ("2026-03-29T12:00", False),
    ],
)
def test_days_and_minutes(local: str, is_open: bool) -> None:
    at = datetime.fromisoformat(local).replace(tzinfo=ZoneInfo("Asia/Shanghai")).astimezone(UTC)
    assert Hours.parse(WEEK, "Asia/Shanghai").is_open(at) is is_open


def test_nine_is_nine_before_and_after_the_clocks_change() -> None:
    hours = Hours.parse("mon-sun 09:00-10:00", "Europe/Berlin")
    assert hours.is_open(datetime(2026, 3, 28, 8, 30, tzinfo=UTC)) and not hours.is_open(datetime(2026, 3, 28, 7, 30, tzinfo=UTC))
    assert hours.is_open(datetime(2026, 3, 29, 7, 30, tzinfo=UTC)) and not hours.is_open(datetime(2026, 3, 29, 8, 30, tzinfo=UTC))


def test_a_span_of_days_may_go_over_the_weekend_and_a_day_to_its_end() -> None:
    hours = Hours.parse("Sat-Mon 20:00-24:00", "UTC")
    assert [hours.is_open(datetime(2026, 3, day, 23, 59, tzinfo=UTC)) for day in range(27, 32)] == [False, True, True, True, False]


@given(at=st.datetimes(datetime(2024, 1, 1), datetime(2030, 1, 1), timezones=st.just(UTC)))
def test_the_next_opening_is_open_and_the_minute_before_is_not(at: datetime) -> None:
    hours = Hours.parse(WEEK, "America/New_York")
    opening = hours.next_opening(at)
    assert hours.is_open(opening) and at <= opening <= at + timedelta(days=3)
    assert opening == at or not hours.is_open(opening - timedelta(minutes=1))


@pytest.mark.parametrize(
    "text", ["9-18", "Mon 9:00-18:00", "Mon 18:00-09:00", "Mon 09:60-10:00", "Mon 09:00-25:00", "Foo 09:00-10:00", "Mon-Fri"]
)
def test_what_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="hours"):
        Hours.parse(text, "UTC")


@pytest.mark.parametrize("zone", ["Mars/Base", "", "../etc/passwd", "/etc/passwd", "UTC\0"])
def test_a_zone_that_is_none_is_refused(zone: str) -> None:
    with pytest.raises(ValueError, match="time zone"):
        Hours.parse("", zone)
