"""Counts requests that store nothing. Counts are collected for a second and then written together.

So a flood of forged requests does not cause a write to Redis or a log line for each of them.
"""

import threading
from collections import Counter
from collections.abc import Callable

import structlog
from redis.exceptions import RedisError

from shared.ledger import Ledger

FLUSH_AFTER_SECONDS = 1.0
Scheduler = Callable[[Callable[[], None]], None]

log = structlog.get_logger(__name__)


def after_one_second(flush: Callable[[], None]) -> None:
    """Run `flush` in a daemon thread, so that the process does not wait for it when it ends."""
    timer = threading.Timer(FLUSH_AFTER_SECONDS, flush)
    timer.daemon = True
    timer.start()


class RequestCounter:
    """Counts by endpoint and outcome; `status` is 0 if the request was not rejected."""

    def __init__(self, ledger: Ledger, schedule: Scheduler = after_one_second) -> None:
        self._ledger = ledger
        self._schedule = schedule
        self._lock = threading.Lock()
        self._counts: Counter[tuple[str, str, int]] = Counter()

    def add(self, endpoint: str, outcome: str, status: int = 0) -> None:
        """Count one request."""
        with self._lock:
            first = not self._counts
            self._counts[endpoint, outcome, status] += 1
        if first:
            self._schedule(self._flush)

    def _flush(self) -> None:
        with self._lock:
            counts, self._counts = self._counts, Counter()
        for (endpoint, outcome, status), times in counts.items():
            if status:
                log.warning("request_rejected", endpoint=endpoint, status=status, reason=outcome, times=times)
            try:
                self._ledger.count("webhooks", endpoint, outcome, by=times)
            except RedisError:
                log.error("not_counted", endpoint=endpoint, outcome=outcome, times=times)
