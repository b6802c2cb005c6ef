"""What the operator is notified of: the conditions that are open, and the week of the last weekly e-mail."""

import json
from dataclasses import asdict, dataclass

from shared.ledger import keys
from shared.redis_client import RedisClient


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenCondition:
    """Something that is wrong with the platform, as it was stored last."""

    text: str
    since_ms: int
    mailed: bool
    severity: str = "error"
    count: int = 0  # of what is affected


class OpenConditions:
    """What is wrong with the platform, by the key of the condition."""

    def __init__(self, redis: RedisClient) -> None:
        self._redis = redis

    def all(self) -> dict[str, OpenCondition]:
        """The conditions that are stored."""
        stored = self._redis.hgetall(keys.OPERATOR)
        return {key: OpenCondition(**json.loads(text)) for key, text in stored.items()}

    def store(self, key: str, condition: OpenCondition) -> None:
        """Keep a condition, in place of what was stored under its key."""
        self._redis.hset(keys.OPERATOR, key, json.dumps(asdict(condition)))

    def remove(self, key: str) -> None:
        """Forget a condition that has ended."""
        self._redis.hdel(keys.OPERATOR, key)


class WeeklyMail:
    """The week, such as 2026-W48, of the last weekly e-mail."""

    def __init__(self, redis: RedisClient) -> None:
        self._redis = redis

    def last_week(self) -> str | None:
        """The week, or None before the first one."""
        return self._redis.get(keys.OPERATOR_WEEK)

    def note(self, week: str) -> None:
        """The e-mail of this week is sent, or not needed."""
        self._redis.set(keys.OPERATOR_WEEK, week)
