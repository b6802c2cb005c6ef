"""Sets aside queue entries that are not task messages of this program, so that the worker goes on consuming.

Celery and kombu raise an exception in the worker's main loop where an entry of a queue is not JSON or lacks a
property, or log the entry with its content. Here its content goes into a list in the ledger's Redis, nowhere else.
"""

import logging
from collections.abc import Callable
from datetime import datetime
from functools import lru_cache
from typing import Any, Literal

import structlog
from celery.worker import consumer
from kombu.message import Message
from pydantic import AwareDatetime, Base64Bytes, BaseModel, Field, TypeAdapter, ValidationError
from redis import Redis
from redis.exceptions import RedisError

from shared.config import redis_url
from shared.errors import ConfigError
from shared.ledger import Ledger, keys
from shared.messaging.tasks import QUEUES, TaskName
from shared.redis_client import connect, redis_cause

KEPT_ENTRIES = 1_000
KEPT_SECONDS = 30 * 86_400

log = structlog.get_logger(__name__)


class _DeliveryInfo(BaseModel):
    exchange: str
    routing_key: str


class _Properties(BaseModel):
    delivery_tag: str
    delivery_info: _DeliveryInfo
    body_encoding: Literal["base64"]


class _Headers(BaseModel):
    task: TaskName
    id: str
    eta: datetime | None = None
    expires: AwareDatetime | float | None = None
    timelimit: tuple[float | None, float | None] = (None, None)


class _Envelope(BaseModel):
    body: Base64Bytes
    content_type: Literal["application/json"] = Field(alias="content-type")
    content_encoding: Literal["utf-8"] = Field(alias="content-encoding")
    headers: _Headers
    properties: _Properties


_ARGUMENTS: TypeAdapter[tuple[list[str], dict[str, Any], dict[str, Any] | None]] = TypeAdapter(
    tuple[list[str], dict[str, Any], dict[str, Any] | None]
)


def is_task_message(entry: bytes | str) -> bool:
    """Whether an entry of a Redis queue is a message that starts one of the tasks.

    Source: Celery docs, "Message Protocol", version 2; kombu 5.7, transport/virtual/base.py (Message).
    """
    try:
        _ARGUMENTS.validate_json(_Envelope.model_validate_json(entry).body)
    except ValidationError:
        return False
    return True


class CheckingRedis(Redis):
    """The broker client of the worker's main loop: takes only task messages out of the queues."""

    def parse_response(self, connection: Any, command_name: Any, **options: Any) -> Any:
        """The reply to a command; an invalid entry counts as an empty queue."""
        reply = super().parse_response(connection, command_name, **options)  # type: ignore[no-untyped-call]
        if command_name != "BRPOP" or not reply:
            return reply
        queue = reply[0].decode(errors="replace")
        # Replies of workers to Flower's questions come through queues of their own.
        if _task_queue(queue) is None or is_task_message(reply[1]):
            return reply
        set_aside(queue, reply[1])
        return None


class Consumer(consumer.Consumer):
    """Celery's consumer; sets aside what it cannot start as a task, with any broker."""

    connection_errors: tuple[type[Exception], ...]
    channel_errors: tuple[type[Exception], ...]

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Callable[[Message], Any]:
        """The function that Celery calls with each message."""
        handle = super().create_task_handler(*args, **kwargs)

        def handle_or_set_aside(message: Message) -> Any:
            try:
                _ARGUMENTS.validate_python(message.decode())
                return handle(message)
            except Exception as error:
                if isinstance(error, self.connection_errors + self.channel_errors):
                    raise
                return self._set_aside(message)

        return handle_or_set_aside

    def on_unknown_message(self, _body: Any, message: Message) -> None:
        """A message without a task's name."""
        self._set_aside(message)

    def on_unknown_task(self, _body: Any, message: Message, _error: Exception) -> None:
        """A message for a task that does not exist."""
        self._set_aside(message)

    def on_invalid_task(self, _body: Any, message: Message, _error: Exception) -> None:
        """A message with invalid headers."""
        self._set_aside(message)

    def on_decode_error(self, message: Message, _error: Exception) -> None:
        """A message whose body cannot be decoded."""
        self._set_aside(message)

    def _set_aside(self, message: Message) -> None:
        set_aside((message.delivery_info or {}).get("routing_key"), message.body or "")
        message.reject_log_error(logging.getLogger(__name__), self.connection_errors)


@lru_cache(maxsize=1)
def _ledger() -> Ledger:
    return Ledger(connect(redis_url()))


def _task_queue(key: str) -> str | None:
    """The queue of tasks that a key belongs to; kombu appends a priority."""
    name = key.split("\x06")[0]
    return name if name in QUEUES.values() else None


def set_aside(queue: object, content: bytes | str) -> None:
    """Keep an invalid entry for a while where an operator can read it; log and count it."""
    name = (_task_queue(queue) if isinstance(queue, str) else None) or "other"
    try:
        _keep(name, content)
    except (RedisError, ConfigError) as error:
        log.error("invalid_message_lost", queue=name, bytes=len(content), error=redis_cause(error))
    else:
        log.error("invalid_message", queue=name, bytes=len(content), kept_in=keys.INVALID_MESSAGES)


def _keep(queue: str, content: bytes | str) -> None:
    ledger = _ledger()
    with ledger.redis.pipeline(transaction=True) as pipe:
        pipe.lpush(keys.INVALID_MESSAGES, content)
        pipe.ltrim(keys.INVALID_MESSAGES, 0, KEPT_ENTRIES - 1)
        pipe.expire(keys.INVALID_MESSAGES, KEPT_SECONDS)
        pipe.execute()
    ledger.count("invalid_messages", queue)
