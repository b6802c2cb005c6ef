"""Whether another machine's clock agrees with ours."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import requests

from worker.checks.findings import Finding

# HTTP tells whole seconds, and the answer was under way for a while.
TOLERATED_SECONDS = 10.0


def clock_finding(subject: str, whose: str, there: datetime, here: datetime) -> Iterator[Finding]:
    """A finding where two clocks differ by more than a slow network explains."""
    ahead = (there - here).total_seconds()
    if abs(ahead) > TOLERATED_SECONDS:
        way = "ahead of" if ahead > 0 else "behind"
        seen = f"{whose} clock is {abs(ahead):.0f} s {way} this machine's"
        yield Finding(id="clock-differs", subject=subject, observed=seen)


def server_time(response: requests.Response) -> datetime | None:
    """The time that an HTTP answer says it was sent at."""
    try:
        moment = parsedate_to_datetime(response.headers["Date"])
    except (KeyError, ValueError):
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


class ClockWatch:
    """A requests hook that notes how far a server's clock is from ours."""

    def __init__(self, now: Callable[[], datetime]) -> None:
        self._now = now
        self.last: tuple[datetime, datetime] | None = None

    def __call__(self, response: requests.Response, *_: Any, **__: Any) -> None:
        there = server_time(response)
        if there is not None:
            self.last = (there, self._now())

    def findings(self, subject: str, whose: str) -> Iterator[Finding]:
        """What the last answer showed."""
        if self.last is not None:
            yield from clock_finding(subject, whose, *self.last)
