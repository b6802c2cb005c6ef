"""Shows that a process works, and ends a worker that is alive but does nothing."""

import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import structlog

from shared.retry_policy import WATCHDOG_TIMEOUT_SECONDS

log = structlog.get_logger(__name__)


def touch_heartbeat() -> None:
    """Touch the file that `OPTOUT_HEARTBEAT_FILE` names, if it is set and can be written.

    Container health checks test the file's age, `find "$OPTOUT_HEARTBEAT_FILE" -mmin -2` (beat touches it once a
    minute). That is cheaper than `celery inspect ping`, which starts an interpreter and uses the broker each time.
    """
    if path := os.environ.get("OPTOUT_HEARTBEAT_FILE"):
        with suppress(OSError):
            Path(path).touch()


def _kill_this_process() -> None:
    """Not by an exception or SIGTERM: a stuck process would wait for its children."""
    os.kill(os.getpid(), signal.SIGKILL)


class Watchdog:
    """Expects heartbeats after the first one; calls `end` when they stop."""

    def __init__(
        self,
        *,
        timeout_seconds: float = WATCHDOG_TIMEOUT_SECONDS,
        end: Callable[[], None] = _kill_this_process,
    ) -> None:
        self._timeout = timeout_seconds
        self._end = end
        self._last = time.monotonic()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def heartbeat(self) -> None:
        """Called by the worker's main loop."""
        self._last = time.monotonic()
        if self._thread is None:
            self._thread = threading.Thread(target=self._watch, daemon=True, name="watchdog")
            self._thread.start()

    def stop(self) -> None:
        """Stop watching: a warm shutdown may take as long as the running tasks need."""
        self._stopping.set()

    def _watch(self) -> None:
        while not self._stopping.wait(self._timeout / 10):
            silent = time.monotonic() - self._last
            if silent > self._timeout:
                log.critical("worker_stuck", silent_seconds=round(silent))
                self._end()
                return
