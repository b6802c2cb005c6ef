"""Record opt-out events. Every source (webhook, Event Streams, message log) uses `accept`."""

from collections.abc import Sequence
from datetime import UTC, datetime

import structlog
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from shared.domain.events import OptOutEvent
from shared.ledger import Accepted, Ledger
from shared.messaging.celery_config import TaskName
from shared.messaging.publisher import Publisher

log = structlog.get_logger(__name__)


def accept(
    events: Sequence[OptOutEvent],
    *,
    ledger: Ledger,
    publish: Publisher | None,
    now: datetime | None = None,
    counted: Sequence[str] = (),
) -> list[Accepted]:
    """Record events, all or none, then publish the lookups that are needed. `counted`: see `Ledger.accept`.

    Without a publisher, the caller looks the records up itself. Raises redis.RedisError if the events could not be
    recorded. A failed publish is not a failure: sweep finds what is recorded.
    """
    now = now or datetime.now(UTC)
    answers = ledger.accept(events, now=now, counted=counted, lookups=publish is not None)
    for event, answer in zip(events, answers, strict=True):
        if answer is Accepted.ASK and publish is not None:
            publish_or_leave(publish, TaskName.LOOKUP, event.project, event.event_id)
    return [Accepted.NEW if answer is Accepted.ASK else answer for answer in answers]


def publish_or_leave(publish: Publisher, task: TaskName, *args: str, delay_seconds: float = 0) -> bool:
    """Publish. Returns whether it succeeded: if the broker is unavailable, sweep publishes later."""
    try:
        publish(task, *args, delay_seconds=delay_seconds)
    except (OperationalError, RedisError, OSError) as error:
        log.warning("publish_failed", task=task, args=args, error=type(error).__name__)
        return False
    return True


def publish_many_or_leave(publish: Publisher, task: TaskName, calls: Sequence[Sequence[str]]) -> None:
    """Publish one message per list of arguments, up to the first that fails: sweep publishes the others later."""
    for args in calls:
        if not publish_or_leave(publish, task, *args):
            return
