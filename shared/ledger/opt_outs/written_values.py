"""What the program wrote last to each record: only that may be cleared by a START (promise P8)."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from shared.ledger import keys
from shared.redis_client import RedisClient


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenValue:
    """The opt-out that the program entered in a record."""

    time_ms: int
    scope: str
    event_id: str


class WrittenValues:
    """The values of one project."""

    def __init__(self, project: str, redis: RedisClient) -> None:
        self._redis = redis
        self._key = keys.written(project)

    def of(self, records: Sequence[str]) -> dict[str, WrittenValue]:
        """Return what was written, by record id, without records that the program has not written."""
        stored = self._redis.hmget(self._key, records) if records else []
        return {record: _decode(text) for record, text in zip(records, stored, strict=True) if text}

    def remember(self, values: Mapping[str, WrittenValue]) -> None:
        """Record what was written."""
        if values:
            self._redis.hset(self._key, mapping={record: _encode(value) for record, value in values.items()})

    def forget(self, records: Iterable[str]) -> None:
        """Record that the program has cleared these records."""
        ids = list(records)
        if ids:
            self._redis.hdel(self._key, *ids)


def _encode(value: WrittenValue) -> str:
    return f"{value.time_ms}|{value.scope}|{value.event_id}"


def _decode(text: str) -> WrittenValue:
    time_ms, scope, event_id = text.split("|")
    return WrittenValue(time_ms=int(time_ms), scope=scope, event_id=event_id)
