"""Keywords of Advanced Opt-Out that Twilio has shown by OptOutType: its message log does not show what they mean."""

from collections.abc import Iterable

from shared.domain.events import Change
from shared.ledger import keys
from shared.redis_client import RedisClient


class LearnedWords:
    """The words per Messaging Service; never who sent them. Each process writes a word once."""

    def __init__(self, redis: RedisClient) -> None:
        self._redis = redis
        self._written: set[tuple[str, str]] = set()

    def add(self, scopes: Iterable[str], word: str, change: Change) -> None:
        """Remember a word of these scopes."""
        for scope in scopes:
            if (scope, word) not in self._written:
                self._redis.hset(keys.words(scope), word, change)
                self._written.add((scope, word))

    def of(self, scope: str) -> dict[Change, tuple[str, ...]]:
        """Return the words of a scope, by the change they ask for."""
        words = self._redis.hgetall(keys.words(scope))
        return {
            change: tuple(word for word, known in words.items() if known == change)
            for change in (Change.STOP, Change.START)
        }
