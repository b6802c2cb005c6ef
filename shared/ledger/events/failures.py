"""Opt-outs and opt-ins that are not in REDCap, one per participant: the last one that ended as failed."""

from collections.abc import Sequence

from shared.domain.events import State
from shared.ledger import keys
from shared.redis_client import RedisClient

# A page names at most this many of a project.
MOST_FAILURES_READ = 200


def failed_ids(project: str, redis: RedisClient) -> list[str]:
    """Ids of events that are still failed, of at most `MOST_FAILURES_READ` participants."""
    _, stored = redis.hscan(keys.failures(project), count=MOST_FAILURES_READ)
    ids = sorted(stored.values())[:MOST_FAILURES_READ]
    return [
        event_id for event_id, state in zip(ids, _states(project, ids, redis), strict=True) if _failed(state)
    ]


def projects_with_failures(projects: Sequence[str], redis: RedisClient) -> set[str]:
    """The projects of which a change ended as failed, in one round trip."""
    with redis.pipeline(transaction=False) as pipe:
        for project in projects:
            pipe.hlen(keys.failures(project))
        return {project for project, number in zip(projects, pipe.execute(), strict=True) if number}


def prune_failures(project: str, redis: RedisClient) -> None:
    """Forget those whose event has expired."""
    stored = redis.hgetall(keys.failures(project))
    states = _states(project, list(stored.values()), redis)
    expired = [phone for phone, state in zip(stored, states, strict=True) if state is None]
    if expired:
        redis.hdel(keys.failures(project), *expired)


def _states(project: str, event_ids: list[str], redis: RedisClient) -> list[str | None]:
    with redis.pipeline(transaction=False) as pipe:
        for event_id in event_ids:
            pipe.hget(keys.event(project, event_id), "state")
        return list(pipe.execute())


def _failed(state: str | None) -> bool:
    return state == State.FAILED
