"""Ends a worker that is alive and does nothing, so that whoever supervises it starts another."""

import os
import signal
import threading
import time
from collections.abc import Callable

import structlog

# A heartbeat is due every two seconds. Without one for so long the broker is away (then a new start does no
# harm: it waits for the broker), or Celery's main loop has ended and its process has not.
PATIENCE_SECONDS = 300.0

log = structlog.get_logger(__name__)


def _kill_this_process() -> None:
    """Not by an exception or SIGTERM: what is stuck would wait for its children."""
    os.kill(os.getpid(), signal.SIGKILL)


class Watchdog:
    """Waits for heartbeats from the first one on; runs `end` where they stop coming."""

    def __init__(
        self, *, patience_seconds: float = PATIENCE_SECONDS, end: Callable[[], None] = _kill_this_process
    ) -> None:
        self._patience = patience_seconds
        self._end = end
        self._last = time.monotonic()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def heartbeat(self) -> None:
        """The main loop turns."""
        self._last = time.monotonic()
        if self._thread is None:
            self._thread = threading.Thread(target=self._watch, daemon=True, name="watchdog")
            self._thread.start()

    def stop(self) -> None:
        """The worker is asked to end: it may take its time for the tasks that it has."""
        self._stopping.set()

    def _watch(self) -> None:
        while not self._stopping.wait(self._patience / 10):
            silent = time.monotonic() - self._last
            if silent > self._patience:
                log.critical("worker_stuck", silent_seconds=round(silent))
                self._end()
                return
