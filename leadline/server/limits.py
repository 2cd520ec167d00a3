"""How often and how much at once: requests a minute, running requests, failed sign-ins.

All of it is in this process's memory and forgotten at a restart; what must never be forgotten is money, and that is in
the ledger. Every refusal says when to come back.
"""

from __future__ import annotations

import ipaddress
import math
import time
from collections import Counter, deque
from collections.abc import Callable, Hashable

from leadline.errors import RateLimited

Clock = Callable[[], float]

MINUTE = 60.0
FORGET_ABOVE = 10_000  # subjects; then those that have been quiet are dropped


class Rates:
    """Token buckets: a full minute's requests may come at once, then they come at their rate."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self.clock = clock
        self._buckets: dict[Hashable, tuple[float, float]] = {}  # subject -> (requests left, when)

    def take(self, subject: Hashable, per_minute: int) -> None:
        now = self.clock()
        left, when = self._buckets.get(subject, (float(per_minute), now))
        left = min(per_minute, left + (now - when) * per_minute / MINUTE)
        if left < 1:
            wait = math.ceil((1 - left) * MINUTE / per_minute) if per_minute else math.ceil(MINUTE)
            raise RateLimited(f"more than {per_minute} requests a minute; try again in {wait} s", retry_after=wait)
        self._buckets[subject] = (left - 1, now)
        if len(self._buckets) > FORGET_ABOVE:
            self._buckets = {key: value for key, value in self._buckets.items() if now - value[1] < MINUTE}


class Slots:
    """Requests that run at the same time."""

    def __init__(self) -> None:
        self._taken: Counter[Hashable] = Counter()

    def take(self, subject: Hashable, most: int) -> None:
        if self._taken[subject] >= most:
            text = f"more than {most} requests at the same time; try again when one has ended"
            raise RateLimited(text, code="too_many_at_once", retry_after=1)
        self._taken[subject] += 1

    def give(self, subject: Hashable) -> None:
        self._taken[subject] -= 1
        if self._taken[subject] <= 0:
            del self._taken[subject]


class Throttle:
    """More than `most` attempts within a minute that did not succeed block a subject for a while. An attempt counts
    from its beginning, so that many at once gain nothing."""

    def __init__(self, most: int, block_seconds: float, clock: Clock = time.monotonic) -> None:
        self.most = most
        self.block_seconds = block_seconds
        self.clock = clock
        self._attempts: dict[Hashable, deque[float]] = {}
        self._blocked: dict[Hashable, float] = {}

    def begin(self, subject: Hashable) -> None:
        """Count an attempt, or refuse it."""
        now = self.clock()
        attempts = self._attempts.setdefault(subject, deque())
        while attempts and now - attempts[0] > MINUTE:
            attempts.popleft()
        if len(attempts) >= self.most and subject not in self._blocked:
            self._blocked[subject] = now + self.block_seconds
        left = self._blocked.get(subject, now) - now
        if left > 0:
            text = "too many failed attempts; try again later"
            raise RateLimited(text, code="too_many_attempts", retry_after=math.ceil(left))
        self._blocked.pop(subject, None)
        attempts.append(now)
        self._forget(now)

    def succeed(self, subject: Hashable) -> None:
        """The last attempt was a good one."""
        if attempts := self._attempts.get(subject):
            attempts.pop()

    def _forget(self, now: float) -> None:
        if len(self._attempts) > FORGET_ABOVE:
            self._attempts = {key: times for key, times in self._attempts.items() if times and now - times[-1] < MINUTE}
            self._blocked = {key: until for key, until in self._blocked.items() if until > now}


def network(address: str) -> str:
    """What counts as one source: an IPv4 address, or the /64 that one IPv6 customer has."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if parsed.version == 4:
        return str(parsed)
    return str(ipaddress.ip_network((parsed, 64), strict=False))
