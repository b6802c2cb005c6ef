"""What staff had done again: replays of events and of e-mails, with who asked for it and why."""

import json
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from shared.domain.events import from_milliseconds, milliseconds
from shared.ledger import keys
from shared.redis_client import RedisClient

PAGE = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class StaffAction:
    """One action about one event; `kind` is "replay" or "replay_mail"."""

    at: datetime
    event_id: str
    kind: str
    by: str
    reason: str


def note_actions(
    redis: RedisClient, project: str, actions: Iterable[StaffAction], *, retention_days: int
) -> None:
    """Keep actions for the retention, and remove those that are older."""
    for action in actions:
        fields = {
            "event": action.event_id,
            "kind": action.kind,
            "by": action.by,
            "reason": action.reason,
            "ms": milliseconds(action.at),
        }
        retention = timedelta(days=retention_days)
        with redis.pipeline(transaction=True) as pipe:
            pipe.zadd(keys.staff_actions(project), {json.dumps(fields): milliseconds(action.at)})
            pipe.zremrangebyscore(keys.staff_actions(project), "-inf", milliseconds(action.at - retention))
            pipe.expire(keys.staff_actions(project), int(retention.total_seconds()))
            pipe.execute()


def actions_since(redis: RedisClient, project: str, since: datetime) -> Iterator[StaffAction]:
    """The actions from a moment on, oldest first, a page at a time."""
    begin = redis.zcount(keys.staff_actions(project), "-inf", f"({milliseconds(since)}")
    while page := redis.zrange(keys.staff_actions(project), begin, begin + PAGE - 1):
        yield from map(_decode, page)
        begin += len(page)


def forget_actions(redis: RedisClient, project: str, event_ids: Collection[str]) -> None:
    """Remove the actions about some events."""
    key = keys.staff_actions(project)
    for member, _ in list(redis.zscan_iter(key, count=1000)):
        if json.loads(member)["event"] in event_ids:
            redis.zrem(key, member)


def _decode(text: str) -> StaffAction:
    stored = json.loads(text)
    return StaffAction(
        at=from_milliseconds(stored["ms"]),
        event_id=stored["event"],
        kind=stored["kind"],
        by=stored["by"],
        reason=stored["reason"],
    )
