"""What web and worker agree on: task names, queues, and the broker's settings.

A message carries a project name and a message SID, nothing else: small, always fresh, and nothing
personal in Redis, Flower or logs (promise P5).
"""

import base64
import json
import os
import socket
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, Protocol

from celery import Celery
from kombu import Exchange, Queue
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from shared.config import broker_url, redis_url
from shared.redis_client import RedisClient

# A message that a dead worker held is delivered again after this long, so it is above the longest task
# (reconcile) and every countdown; a countdown above it would be delivered twice. The shortest timeout of
# all processes that share a broker wins, which is why both sides read this line.
# Source: Celery docs, "Using Redis", visibility timeout.
VISIBILITY_TIMEOUT_SECONDS = 3600
LONGEST_TASK_SECONDS = 3000


class TaskName(StrEnum):
    """The tasks by the names that others rely on."""

    LOOKUP = "optout.lookup_records"
    UPDATE = "optout.update_records"
    EMAIL = "optout.send_email"
    RECONCILE = "optout.reconcile"
    SWEEP = "optout.sweep"


# One queue per task: Redis queues are served round robin, so that ten thousand lookups of a storm do not
# stand before the update that they ask for.
QUEUES = {
    TaskName.LOOKUP: "optout.lookup",
    TaskName.UPDATE: "optout.update",
    TaskName.EMAIL: "optout.email",
    TaskName.RECONCILE: "optout.reconcile",
    TaskName.SWEEP: "optout.sweep",
}


class Publisher(Protocol):
    """Asks for a task to be run, soon. Raises OSError or kombu's OperationalError where the broker is away."""

    def __call__(self, task: TaskName, *args: str, delay_seconds: float = 0) -> None: ...


class BulkPublisher(Publisher, Protocol):
    """Also asks for many runs of a task at once, by their lists of arguments."""

    def many(self, task: TaskName, calls: Iterable[Sequence[str]]) -> None: ...


def make_publisher(redis: RedisClient) -> BulkPublisher:
    """The quickest publisher for the configured broker; `redis` is the ledger's."""
    if broker_url() == redis_url():
        return RedisPublisher(redis)
    return CeleryPublisher(make_celery(broker_url()))


def make_celery(url: str) -> Celery:
    """A Celery application with the broker's settings; it connects on first use."""
    app = Celery("optout", broker=url, set_as_current=False)
    app.conf.update(
        task_default_queue=QUEUES[TaskName.SWEEP],
        # An exchange for each: queues that share exchange and routing key would all get each message.
        task_queues=[Queue(name, Exchange(name), routing_key=name) for name in QUEUES.values()],
        task_routes={task.value: {"queue": queue} for task, queue in QUEUES.items()},
        task_serializer="json",
        accept_content=["json"],
        enable_utc=True,
        timezone="UTC",
        # There is no result backend to fill or to leak: the ledger holds what happened.
        task_ignore_result=True,
        # These events feed Flower's list. "sent" is left out: it would also show waiting tasks, but costs more
        # than the publish itself, one at a time per process (docs/explanation/benchmarks.md). Waiting tasks are
        # counted in `/metrics` and on Flower's broker page.
        task_send_sent_event=False,
        worker_send_task_events=True,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        # Also where Redis answers with an error (full, read-only for the length of a failover): by default such an
        # answer to an acknowledgement ends the worker. Source: Celery docs, broker_channel_error_retry.
        broker_channel_error_retry=True,
        broker_transport_options=_transport_options(url),
        # The web process stores before it publishes, and sweep publishes again: better to answer Twilio
        # than to insist here.
        task_publish_retry=False,
        broker_connection_timeout=3,
    )
    return app


def _transport_options(url: str) -> dict[str, Any]:
    if not url.startswith(("redis", "sentinel")):
        # RabbitMQ away: give up in a fraction of a second, as kombu's own two tries take six, and a webhook waits.
        # Sweep publishes again. No publisher confirms for the same reason.
        return {"max_retries": 1, "interval_start": 0, "interval_step": 0.1, "interval_max": 0.1}
    return {
        "visibility_timeout": VISIBILITY_TIMEOUT_SECONDS,
        # Without socket_timeout a publish on a half-open connection waits for ever, and the health check
        # of the BRPOP connection (kombu 5.7) never gets to run. Source: kombu's Redis transport docs.
        "socket_timeout": 10,
        "socket_connect_timeout": 3,
        "socket_keepalive": True,
        "health_check_interval": 10,
    }


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
    """A message as it lies in the Redis list that is a queue."""

    queue: str
    text: str


NO_MESSAGE = Message("", "")


class RedisPublisher:
    """Puts messages into the ledger's Redis as Celery and kombu would, at a quarter of the cost, and many at once.

    Celery's own way takes more of a webhook's time than all the rest of it, much of it for a Redis client that
    kombu makes anew for each message (docs/explanation/benchmarks.md). Tests hold the two ways to the same message.
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
