"""What Celery on Redis needs so that a worker outlives every trouble of its broker."""

from typing import Any

from kombu.transport import redis


class PatientQoS(redis.QoS):
    """Gives unacknowledged messages back to their queues when a channel closes, if it still can.

    Where the connection was lost, kombu 5.7 may have taken the channel apart before it closes it. Giving back
    then raises AttributeError in `_connparams` ("'NoneType' object has no attribute 'hostname'", as in kombu
    #582), which ends the worker. The messages are not lost: Redis holds them until the visibility timeout, and
    sweep publishes their work within a minute.
    """

    def restore_unacked(self, client: Any = None) -> Any:
        """Give back what is unacknowledged. Answers what could not be given back."""
        if self.channel.connection is None or self.channel.connection.client is None:
            return []
        return super().restore_unacked(client)


def outlive_lost_connections() -> None:
    """Use `PatientQoS` in this process."""
    redis.Channel.QoS = PatientQoS
