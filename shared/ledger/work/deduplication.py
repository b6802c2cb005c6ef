"""One message in place of many that would say the same."""

from shared.ledger import keys
from shared.redis_client import RedisClient


class MessageDeduplicator:
    """Remembers which messages wait in the queue. It forgets after a time, so that a lost one costs only that."""

    def __init__(self, redis: RedisClient) -> None:
        self._redis = redis

    def claim(self, name: str, *, seconds: float) -> bool:
        """Whether no such message waits; from now on one does."""
        return bool(self._redis.set(keys.queued(name), "1", nx=True, px=int(seconds * 1000)))

    def release(self, name: str) -> None:
        """The message has left the queue: the next caller sends another."""
        self._redis.delete(keys.queued(name))
