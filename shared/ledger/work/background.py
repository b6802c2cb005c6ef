"""Background work: jobs that nobody waits for, in the order in which they are to be done."""

import json
from datetime import datetime

from shared.domain.events import milliseconds
from shared.ledger import keys
from shared.ledger.lua_script import LuaScript
from shared.redis_client import RedisClient
from shared.retry_policy import JOB_PUBLISHED_FOR_MS


class BackgroundJobs:
    """The jobs that wait or run; a job is a task with its arguments, the project first. Each is there once."""

    def __init__(self, redis: RedisClient) -> None:
        self._redis = redis
        self._claim = LuaScript(redis, "claim_job")

    def add(self, job: tuple[str, ...], *, now: datetime, ahead_ms: int = 0) -> None:
        """Have a job done, before those that were added up to `ahead_ms` ago; nothing if it waits already."""
        self._redis.zadd(keys.BACKGROUND, {json.dumps(job): milliseconds(now) - ahead_ms}, nx=True)

    def postpone(self, job: tuple[str, ...], *, until: datetime) -> None:
        """Have a job done at a time."""
        self._redis.zadd(keys.BACKGROUND, {json.dumps(job): milliseconds(until)})

    def done(self, job: tuple[str, ...]) -> None:
        """The job has been done."""
        self._redis.zrem(keys.BACKGROUND, json.dumps(job))

    def claim(self, *, now: datetime) -> tuple[str, ...] | None:
        """Return the next job, which the caller publishes; None if none is due."""
        found = self._claim(
            keys={"jobs": keys.BACKGROUND},
            args={"now_ms": milliseconds(now), "claimed_ms": JOB_PUBLISHED_FOR_MS},
        )
        return tuple(json.loads(found)) if found else None

    def count(self) -> int:
        """Return how many jobs wait or run."""
        return int(self._redis.zcard(keys.BACKGROUND))

    def forget_project(self, project: str) -> None:
        """Remove the jobs of a project."""
        jobs = [job for job in self._redis.zrange(keys.BACKGROUND, 0, -1) if json.loads(job)[1] == project]
        if jobs:
            self._redis.zrem(keys.BACKGROUND, *jobs)
