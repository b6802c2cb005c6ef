"""The names of tasks and queues that web and worker share, and how a task is asked for; without Celery.

A message contains a project name and a message SID, nothing else: nothing personal in Redis, Flower or logs (promise
P5).
"""

from enum import StrEnum
from typing import Protocol


class TaskName(StrEnum):
    """The tasks. Others rely on these names."""

    LOOKUP = "optout.lookup_records"
    UPDATE = "optout.update_records"
    EMAIL = "optout.send_email"
    BLOCK = "optout.block_at_twilio"
    RECONCILE = "optout.reconcile"
    VERIFY = "optout.verify_project"
    REFRESH = "optout.refresh_index"
    SWEEP = "optout.sweep"
    CHECK = "optout.daily_check"


# One queue per task: Redis queues are served round robin, so ten thousand lookups of a storm do not delay the update
# that they request.
QUEUES = {
    TaskName.LOOKUP: "optout.lookup",
    TaskName.UPDATE: "optout.update",
    TaskName.EMAIL: "optout.email",
    TaskName.BLOCK: "optout.block",
    TaskName.RECONCILE: "optout.reconcile",
    TaskName.VERIFY: "optout.verify",
    TaskName.REFRESH: "optout.refresh",
    TaskName.SWEEP: "optout.sweep",
    TaskName.CHECK: "optout.check",
}


class Publisher(Protocol):
    """Publishes a task. Raises OSError, RedisError or kombu's OperationalError if the broker is unavailable."""

    def __call__(self, task: TaskName, *args: str, delay_seconds: float = 0) -> None: ...
