"""Fixes to Celery and kombu on Redis, so that a worker recovers from every broker failure."""

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

from celery.concurrency import asynpool
from kombu.transport import redis

from worker.runtime.invalid_messages import CheckingRedis


class ReconnectSafeQoS(redis.QoS):
    """Acknowledges and restores messages only while their channel is open.

    When the connection is lost, kombu 5.7 closes a channel and may then still ask it to restore unacknowledged
    messages or to acknowledge a task that ended in the meantime. That raises AttributeError in `_connparams`
    ("'NoneType' object has no attribute …", as in kombu #582); the worker's main loop ends while the process
    stays alive without consuming. Skipping is safe: Redis keeps these messages until the visibility timeout, a
    second run finds its work done, and sweep republishes unfinished work.
    """

    @property
    def _is_closed(self) -> bool:
        connection = self.channel.connection
        return connection is None or connection.client is None

    def restore_unacked(self, client: Any = None) -> Any:
        """Return unacknowledged messages to their queues. Returns those that could not be restored."""
        return [] if self._is_closed else super().restore_unacked(client)

    def ack(self, delivery_tag: str) -> None:
        """Acknowledge a processed message."""
        if not self._is_closed:
            super().ack(delivery_tag)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Return a message to its queue, or discard it."""
        if not self._is_closed:
            super().reject(delivery_tag, requeue=requeue)


@dataclass(slots=True, eq=False)
class _Reading:
    """A child process' result that has been received in part."""

    process: object
    rest: Generator[None, None, None] | None = None


class ReconnectSafeResultHandler(asynpool.ResultHandler):
    """Reads results of child processes; continues a partly received one after a lost connection.

    When the connection is lost, Celery 5.7 restarts its event loop and forgets partly received results (long ones:
    of failed tasks, with traceback). It takes the remainder for the start of another result; the main loop ends
    ("Unrecoverable error: UnpicklingError") while the process stays alive without consuming.
    Source: celery/worker/loops.py (hub.reset) and celery/concurrency/asynpool.py.
    """

    fileno_to_outq: dict[int, object]  # child processes by the file descriptor of their results

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._started: dict[int, _Reading] = {}

    def _recv_message(self, add_reader: Callable[..., Any], fd: int, callback: Callable[..., Any]) -> Any:
        """The reader of a result: the one already started for this process, or a new one."""
        process, reading = self.fileno_to_outq.get(fd), self._started.get(fd)
        if reading is None or reading.process is not process:
            reading = self._started[fd] = _Reading(process)
            reading.rest = self._read(reading, add_reader, fd, callback)
        return reading.rest

    def _read(
        self, reading: _Reading, add_reader: Callable[..., Any], fd: int, callback: Callable[..., Any]
    ) -> Generator[None, None, None]:
        try:
            yield from super()._recv_message(add_reader, fd, callback)  # type: ignore[misc]  # not in its stubs
        finally:
            if self._started.get(fd) is reading:
                del self._started[fd]


def apply_celery_patches() -> None:
    """Apply all patches in this process."""
    redis.Channel.QoS = ReconnectSafeQoS
    redis.Channel._get_client = lambda _channel: CheckingRedis  # type: ignore[attr-defined]  # not in its stubs
    asynpool.AsynPool.ResultHandler = ReconnectSafeResultHandler
