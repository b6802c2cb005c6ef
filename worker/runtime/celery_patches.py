"""What Celery on Redis needs so that a worker outlives every trouble of its broker."""

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

from celery.concurrency import asynpool
from kombu.transport import redis


class PatientQoS(redis.QoS):
    """Acknowledges messages and gives them back to their queues, where their channel still can.

    When the connection is lost, kombu 5.7 takes a channel apart, and may then still ask it to give back what is
    unacknowledged, or to acknowledge a task that ended meanwhile. That raises AttributeError in `_connparams`
    ("'NoneType' object has no attribute …", as in kombu #582), upon which the worker's main loop ends, and
    the process stays, without consuming anything. Nothing is lost by passing over it: Redis holds these messages
    until the visibility timeout, their second run finds its work done, and sweep publishes what is not.
    """

    @property
    def _is_apart(self) -> bool:
        connection = self.channel.connection
        return connection is None or connection.client is None

    def restore_unacked(self, client: Any = None) -> Any:
        """Give back what is unacknowledged. Answers what could not be given back."""
        return [] if self._is_apart else super().restore_unacked(client)

    def ack(self, delivery_tag: str) -> None:
        """Forget a message that was dealt with."""
        if not self._is_apart:
            super().ack(delivery_tag)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Give a message back, or forget it."""
        if not self._is_apart:
            super().reject(delivery_tag, requeue=requeue)


@dataclass(slots=True, eq=False)
class _Reading:
    """A child's answer that has come in part."""

    process: object
    rest: Generator[None, None, None] | None = None


class PatientResultHandler(asynpool.ResultHandler):
    """Reads the answers of the worker's children; one that has come in part is read on after a lost connection.

    When the connection is lost, Celery 5.7 starts its event loop anew, and forgets what has come in part (longer
    answers do: those of tasks that failed, with their traceback). The rest of it then passes for the beginning of
    another, upon which the main loop ends ("Unrecoverable error: UnpicklingError"), and the process stays, without
    consuming anything. Source: celery/worker/loops.py (hub.reset) and celery/concurrency/asynpool.py.
    """

    fileno_to_outq: dict[int, object]  # the processes, by the descriptor of their answers

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._begun: dict[int, _Reading] = {}

    def _recv_message(self, add_reader: Callable[..., Any], fd: int, callback: Callable[..., Any]) -> Any:
        """What reads an answer: that which has begun, of the same process, else a new one."""
        process, reading = self.fileno_to_outq.get(fd), self._begun.get(fd)
        if reading is None or reading.process is not process:
            reading = self._begun[fd] = _Reading(process)
            reading.rest = self._read(reading, add_reader, fd, callback)
        return reading.rest

    def _read(
        self, reading: _Reading, add_reader: Callable[..., Any], fd: int, callback: Callable[..., Any]
    ) -> Generator[None, None, None]:
        try:
            yield from super()._recv_message(add_reader, fd, callback)  # type: ignore[misc]  # not in its stubs
        finally:
            if self._begun.get(fd) is reading:
                del self._begun[fd]


def outlive_lost_connections() -> None:
    """Use both in this process."""
    redis.Channel.QoS = PatientQoS
    asynpool.AsynPool.ResultHandler = PatientResultHandler
