"""Asks for tasks to be run, through Celery."""

from typing import Protocol

from celery import Celery

from shared.config import broker_url
from shared.messaging.celery_config import QUEUES, TaskName, make_celery


class Publisher(Protocol):
    """Publishes a task. Raises OSError, RedisError or kombu's OperationalError if the broker is unavailable."""

    def __call__(self, task: TaskName, *args: str, delay_seconds: float = 0) -> None: ...


def make_publisher() -> Publisher:
    """A publisher for the configured broker; it connects on first use. Raises ConfigError."""
    return CeleryPublisher(make_celery(broker_url()))


class CeleryPublisher:
    """Publishes by task name, so that web needs no task code."""

    def __init__(self, app: Celery) -> None:
        self._app = app

    def __call__(self, task: TaskName, *args: str, delay_seconds: float = 0) -> None:
        self._app.send_task(
            task, args=args, queue=QUEUES[task], countdown=delay_seconds or None, ignore_result=True
        )
