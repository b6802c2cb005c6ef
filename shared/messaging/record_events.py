"""Record opt-out events. Every source (webhook, Event Streams, message log) uses `accept`."""

from collections.abc import Sequence
from datetime import UTC, datetime

import structlog
from kombu.exceptions import OperationalError

from shared.domain.events import OptOutEvent
from shared.ledger import Accepted, Ledger
from shared.messaging.celery_config import TaskName
from shared.messaging.publisher import BulkPublisher, Publisher, RedisPublisher, message

log = structlog.get_logger(__name__)


def accept(
    events: Sequence[OptOutEvent],
    *,
    ledger: Ledger,
    publish: Publisher,
    now: datetime | None = None,
    counted: Sequence[str] = (),
) -> list[Accepted]:
    """Record events, all or none, then publish the new ones' ids. `counted`: see `Ledger.accept`.

    Raises redis.RedisError where they could not be recorded. A failed publish is no failure: what is
    recorded is found by sweep.
    """
    # Where the queues are in the ledger's Redis, an event and its message are stored in one step.
    together = isinstance(publish, RedisPublisher)
    messages = [message(TaskName.LOOKUP, (event.project, event.event_id)) for event in events if together]
    answers = ledger.accept(events, now=now or datetime.now(UTC), counted=counted, messages=messages)
    for event, answer in zip(events, answers, strict=True):
        if answer is Accepted.NEW and not together:
            publish_or_leave(publish, TaskName.LOOKUP, event.project, event.event_id)
    return answers


def publish_or_leave(publish: Publisher, task: TaskName, *args: str, delay_seconds: float = 0) -> None:
    """Publish, or leave it to sweep where the broker is away."""
    try:
        publish(task, *args, delay_seconds=delay_seconds)
    except (OperationalError, OSError) as error:
        log.warning("publish_failed", task=task, args=args, error=type(error).__name__)


def publish_many_or_leave(publish: BulkPublisher, task: TaskName, calls: Sequence[Sequence[str]]) -> None:
    """Publish one message per list of arguments, or leave them to sweep where the broker is away."""
    try:
        publish.many(task, calls)
    except (OperationalError, OSError) as error:
        log.warning("publish_failed", task=task, messages=len(calls), error=type(error).__name__)
