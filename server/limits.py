"""How much one caller may ask for. Time is an argument, from a monotonic clock."""

import math
from collections import Counter, OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address, ip_network

from fastapi import Request

from server.errors import TooManyRequests

MAX_CALLERS = 10_000
DAY_S = 24 * 3600


def address_of(request: Request) -> str:
    """Who shares limits: an IPv4 address, or an IPv6 /64, which is one subscriber."""
    host = request.client.host if request.client else ""
    try:
        address = ip_address(host)
    except ValueError:
        return host
    return host if address.version == 4 else str(ip_network((address, 64), strict=False))


def network_of(request: Request) -> str:
    """The sender's /24, or /64 of IPv6: whose votes are capped together."""
    address = address_of(request)
    return str(ip_network(f"{address}/24", strict=False)) if address.replace(".", "").isdecimal() else address


class RateLimit:
    """A token bucket per caller: `burst` at once, then `per_minute`. Remembers the last MAX_CALLERS callers."""

    def __init__(self, per_minute: float, burst: int) -> None:
        self._per_s = per_minute / 60
        self._burst = burst
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, caller: str, now: float) -> None:
        """Use one. Raises TooManyRequests, and uses none, when the bucket is empty."""
        level, filled_at = self._buckets.pop(caller, (float(self._burst), now))
        level = min(self._burst, level + (now - filled_at) * self._per_s)
        allowed = level >= 1
        self._buckets[caller] = (level - allowed, now)
        if len(self._buckets) > MAX_CALLERS:
            self._buckets.popitem(last=False)
        if not allowed:
            raise TooManyRequests("too many requests; please slow down", retry_after_s=math.ceil((1 - level) / self._per_s))


class DailyLimit:
    """At most `per_day` in each caller's day, which begins with their first request. Remembers the last MAX_CALLERS callers."""

    def __init__(self, per_day: int) -> None:
        self._per_day = per_day
        self._days: OrderedDict[str, tuple[float, int]] = OrderedDict()

    def take(self, caller: str, now: float) -> None:
        """Use one. Raises TooManyRequests, and uses none, when the day's are used up; it may be tried again when the day is over."""
        began, count = self._days.pop(caller, (now, 0))
        if now - began >= DAY_S:
            began, count = now, 0
        allowed = count < self._per_day
        self._days[caller] = (began, count + allowed)
        if len(self._days) > MAX_CALLERS:
            self._days.popitem(last=False)
        if not allowed:
            message = f"at most {self._per_day} messages a day"
            raise TooManyRequests(message, code="daily_limit", retry_after_s=math.ceil(began + DAY_S - now))


class InFlight:
    """How many requests each caller has open."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._open: Counter[str] = Counter()

    def enter(self, caller: str) -> None:
        """One more. Raises TooManyRequests at the limit."""
        if self._open[caller] >= self._limit:
            raise TooManyRequests(f"at most {self._limit} requests at once", retry_after_s=1)
        self._open[caller] += 1

    def leave(self, caller: str) -> None:
        self._open[caller] -= 1
        if not self._open[caller]:
            del self._open[caller]

    @contextmanager
    def held(self, caller: str) -> Iterator[None]:
        """One more, for as long as the block lasts."""
        self.enter(caller)
        try:
            yield
        finally:
            self.leave(caller)
