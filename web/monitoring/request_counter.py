"""Figures of requests that store nothing: gathered for a second, then written together.

So a flood of forgeries costs neither a write to the store nor a line of the log for each.
"""

import threading
from collections import Counter
from collections.abc import Callable

import structlog
from redis.exceptions import RedisError

from shared.ledger import Ledger

PAUSE_SECONDS = 1.0
Later = Callable[[Callable[[], None]], None]

log = structlog.get_logger(__name__)


def in_a_second(flush: Callable[[], None]) -> None:
    """Have it done soon, in a thread of its own, for which nobody waits when the process ends."""
    timer = threading.Timer(PAUSE_SECONDS, flush)
    timer.daemon = True
    timer.start()


class Tally:
    """Counts by endpoint and outcome; `status` is 0 where nothing was refused."""

    def __init__(self, ledger: Ledger, later: Later = in_a_second) -> None:
        self._ledger = ledger
        self._later = later
        self._lock = threading.Lock()
        self._counts: Counter[tuple[str, str, int]] = Counter()

    def add(self, endpoint: str, outcome: str, status: int = 0) -> None:
        """Count one request."""
        with self._lock:
            first = not self._counts
            self._counts[endpoint, outcome, status] += 1
        if first:
            self._later(self._flush)

    def _flush(self) -> None:
        with self._lock:
            counts, self._counts = self._counts, Counter()
        for (endpoint, outcome, status), times in counts.items():
            if status:
                log.warning("request_refused", endpoint=endpoint, status=status, reason=outcome, times=times)
            self._write(endpoint, outcome, times)

    def _write(self, endpoint: str, outcome: str, times: int) -> None:
        try:
            self._ledger.count("webhooks", endpoint, outcome, by=times)
        except RedisError:
            log.error("not_counted", endpoint=endpoint, outcome=outcome, times=times)
