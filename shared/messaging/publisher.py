"""Asks for tasks to be run: through Celery, or directly into the ledger's Redis."""

import base64
import json
import os
import socket
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

from celery import Celery
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from shared.config import broker_url, redis_url
from shared.messaging.celery_config import QUEUES, TaskName, make_celery
from shared.redis_client import RedisClient


class Publisher(Protocol):
    """Publishes a task. Raises OSError or kombu's OperationalError if the broker is unavailable."""

    def __call__(self, task: TaskName, *args: str, delay_seconds: float = 0) -> None: ...


class BulkPublisher(Publisher, Protocol):
    """Also publishes many calls of a task at once, by their lists of arguments."""

    def many(self, task: TaskName, calls: Iterable[Sequence[str]]) -> None: ...


def make_publisher(redis: RedisClient) -> BulkPublisher:
    """The fastest publisher for the configured broker; `redis` is the ledger's."""
    if broker_url() == redis_url():
        return RedisPublisher(redis)
    return CeleryPublisher(make_celery(broker_url()))


class CeleryPublisher:
    """Publishes through Celery by task name, so that web needs no task code."""

    def __init__(self, app: Celery) -> None:
        self._app = app

    def __call__(self, task: TaskName, *args: str, delay_seconds: float = 0) -> None:
        self._app.send_task(
            task, args=args, queue=QUEUES[task], countdown=delay_seconds or None, ignore_result=True
        )

    def many(self, task: TaskName, calls: Iterable[Sequence[str]]) -> None:
        for args in calls:
            self(task, *args)


@dataclass(frozen=True, slots=True)
class Message:
    """A message as stored in the Redis list of a queue."""

    queue: str
    text: str


NO_MESSAGE = Message("", "")


class RedisPublisher:
    """Writes messages into the ledger's Redis as Celery and kombu do, at a quarter of the cost, and many at once.

    Publishing through Celery takes longer than the rest of a webhook, mostly for the Redis client that kombu creates
    for each message (docs/explanation/benchmarks.md). Tests verify that both produce the same message.
    """

    def __init__(self, redis: RedisClient) -> None:
        self._redis = redis

    def __call__(self, task: TaskName, *args: str, delay_seconds: float = 0) -> None:
        self._push(task, [message(task, args, delay_seconds)])

    def many(self, task: TaskName, calls: Iterable[Sequence[str]]) -> None:
        self._push(task, [message(task, args) for args in calls])

    def _push(self, task: TaskName, messages: list[Message]) -> None:
        try:
            if messages:
                self._redis.lpush(QUEUES[task], *(each.text for each in messages))
        except RedisError as error:
            raise OperationalError(type(error).__name__) from None


_ORIGIN = f"{os.getpid()}@{socket.gethostname()}"
_NO_CALLBACKS = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}


def message(task: TaskName, args: Sequence[str], delay_seconds: float = 0) -> Message:
    """One message.

    Source: Celery docs, "Message Protocol", version 2, for headers and body; kombu 5.7, transport/virtual/base.py
    and transport/redis.py, for what is around them.
    """
    task_id = str(uuid.uuid4())
    eta = (datetime.now(UTC) + timedelta(seconds=delay_seconds)).isoformat() if delay_seconds else None
    headers: dict[str, Any] = {
        "lang": "py", "task": task, "id": task_id, "shadow": None, "eta": eta, "expires": None, "group": None,
        "group_index": None, "retries": 0, "timelimit": [None, None], "root_id": task_id, "parent_id": None,
        "argsrepr": repr(tuple(args)), "kwargsrepr": "{}", "origin": _ORIGIN, "ignore_result": True,
        "replaced_task_nesting": 0, "stamped_headers": None, "stamps": {},
    }  # fmt: skip
    properties = {
        "correlation_id": task_id, "reply_to": "", "delivery_mode": 2,
        "delivery_info": {"exchange": "", "routing_key": QUEUES[task]}, "priority": 0,
        "body_encoding": "base64", "delivery_tag": task_id,
    }  # fmt: skip
    body = json.dumps([args, {}, _NO_CALLBACKS]).encode()
    envelope = {
        "body": base64.b64encode(body).decode(), "content-encoding": "utf-8",
        "content-type": "application/json", "headers": headers, "properties": properties,
    }  # fmt: skip
    return Message(QUEUES[task], json.dumps(envelope))
