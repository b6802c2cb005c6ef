"""What `optout setup` found before it changed something, so that it can be restored."""

import json
from typing import Any

from shared.ledger import keys
from shared.redis_client import RedisClient


class SavedSettings:
    """The original settings of an account's resources, in Redis: SIDs, and addresses with any login they contain."""

    def __init__(self, redis: RedisClient, account_sid: str) -> None:
        self._redis = redis
        self._key = keys.twilio_setup(account_sid)

    def save(self, key: str, settings: dict[str, Any]) -> None:
        """Keep the first settings only: a second run must not take this program's own for the original ones."""
        self._redis.hsetnx(self._key, key, json.dumps(settings))

    def all(self) -> dict[str, dict[str, Any]]:
        """Return everything that is saved, in no order."""
        return {key: json.loads(text) for key, text in self._redis.hgetall(self._key).items()}

    def delete(self, key: str) -> None:
        """Forget a resource that has been restored."""
        self._redis.hdel(self._key, key)
