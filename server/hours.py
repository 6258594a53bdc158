"""When people answer: opening hours as they stand in the settings, in the shop's own time."""

import re
from dataclasses import dataclass
from datetime import datetime, time, timedelta
from zoneinfo import ZoneInfo

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_SPAN = re.compile(r"([a-z]{3})(?:-([a-z]{3}))? (\d{2}):(\d{2})-(\d{2}):(\d{2})")
MIDNIGHT_MINUTES = 24 * 60


@dataclass(frozen=True, slots=True)
class Span:
    """Minutes of a day, the end excluded, on some days of the week (Monday is 0)."""

    days: frozenset[int]
    begins: int
    ends: int


@dataclass(frozen=True, slots=True)
class Hours:
    """Opening hours; without spans always open. Times are the clock on the wall, whatever summer time does."""

    spans: tuple[Span, ...]
    zone: ZoneInfo

    @classmethod
    def parse(cls, text: str, timezone: str) -> "Hours":
        """Read "Mon-Fri 09:00-18:00, Sat 10:00-14:00" and "Europe/Berlin". Raises ValueError that says how it is written."""
        try:
            zone = ZoneInfo(timezone)
        except (OSError, ValueError, LookupError):
            raise ValueError("a time zone is written like Europe/Berlin or Asia/Shanghai") from None
        return cls(tuple(_span(part.strip().lower()) for part in text.split(",") if part.strip()), zone)

    def is_open(self, at: datetime) -> bool:
        """At `at`, which knows its zone."""
        local = at.astimezone(self.zone)
        minute = local.hour * 60 + local.minute
        return not self.spans or any(local.weekday() in span.days and span.begins <= minute < span.ends for span in self.spans)

    def next_opening(self, at: datetime) -> datetime:
        """When it opens next; `at` itself while it is open."""
        if self.is_open(at):
            return at
        local = at.astimezone(self.zone)
        days = [(local + timedelta(days=number)).date() for number in range(8)]
        times = (
            datetime.combine(day, time(span.begins // 60, span.begins % 60), self.zone)
            for day in days
            for span in self.spans
            if day.weekday() in span.days
        )
        return min(opening for opening in times if opening > at)


def _span(text: str) -> Span:
    match = _SPAN.fullmatch(text)
    if match is None or not {match[1], match[2] or match[1]} <= set(DAYS):
        raise ValueError("hours are written like Mon-Fri 09:00-18:00, Sat 10:00-14:00")
    first, last = DAYS.index(match[1]), DAYS.index(match[2] or match[1])
    hours, minutes = (int(match[3]), int(match[5])), (int(match[4]), int(match[6]))
    begins, ends = hours[0] * 60 + minutes[0], hours[1] * 60 + minutes[1]
    if max(minutes) > 59 or not begins < ends <= MIDNIGHT_MINUTES:
        raise ValueError("hours begin before they end, on the same day; midnight is 24:00")
    return Span(frozenset((first + number) % 7 for number in range((last - first) % 7 + 1)), begins, ends)
