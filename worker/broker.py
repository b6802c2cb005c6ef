"""What Celery on Redis needs so that a worker outlives every trouble of its broker."""

from typing import Any

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


def outlive_lost_connections() -> None:
    """Use `PatientQoS` in this process."""
    redis.Channel.QoS = PatientQoS
