"""The part of the worker's main process that receives messages, as this program uses it."""

import time
from typing import Any

from worker.runtime import invalid_messages

# The events of a task for Flower are sent so much later, with those of other tasks. Celery sends each at once, which
# takes as long as all else that the main process does for a task, and the next task would wait for it.
EVENT_DELAY_SECONDS = 0.3


class Consumer(invalid_messages.Consumer):
    """Celery's consumer, which also gathers the events of tasks."""

    hub: Any
    event_dispatcher: Any
    _next_flush = 0.0

    def on_send_event_buffered(self) -> None:  # type: ignore[override]  # its stubs say that it returns something
        """An event of a task waits. A timer that is lost with a connection is made anew for a later event."""
        now = time.monotonic()
        if self.hub and now >= self._next_flush:
            self._next_flush = now + EVENT_DELAY_SECONDS
            self.hub.call_later(EVENT_DELAY_SECONDS, self._flush)

    def shutdown(self) -> None:
        """End; the events that wait are sent before."""
        self._flush()
        super().shutdown()

    def _flush(self) -> None:
        self._next_flush = 0.0
        if self.event_dispatcher:
            self.event_dispatcher.flush()
