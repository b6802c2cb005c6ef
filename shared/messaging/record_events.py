"""Record what requests change, and publish the tasks that follow."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import chain
from typing import Protocol

import structlog
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from shared.causes import cause_in_words
from shared.domain.events import Change, OptOutEvent
from shared.ledger import Accepted, Ledger
from shared.ledger.platform.learned_words import LearnedWords
from shared.messaging.tasks import Publisher, TaskName
from shared.redis_client import redis_cause

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Submission:
    """What one request changes."""

    endpoint: str
    events: Sequence[OptOutEvent]
    received_at: datetime
    words: Sequence[tuple[set[str], str, Change]] = ()  # keywords of Advanced Opt-Out, with their scopes


class Recording(Protocol):
    """What submissions are stored with."""

    @property
    def ledger(self) -> Ledger: ...
    @property
    def learned_words(self) -> LearnedWords: ...


def record(services: Recording, submissions: Sequence[Submission]) -> tuple[list[bool], list[OptOutEvent]]:
    """Store submissions together. Returns which of them are on disk, and the events whose lookup has to be published.

    A failure is an outcome here, never an exception.
    """
    results = iter(_accept(services, submissions))
    stored: list[bool] = []
    asked: list[OptOutEvent] = []
    for each in submissions:
        outcomes = [(event, next(results)) for event in each.events]
        logged = [_log(event, result) for event, result in outcomes]
        stored.append(all(logged))
        asked += [event for event, result in outcomes if result is Accepted.ASK]
    if not all(stored):
        # After a failover, open connections may lead to a server that is not the primary any more.
        services.ledger.redis.connection_pool.disconnect(inuse_connections=False)
    return stored, asked


def _accept(services: Recording, submissions: Sequence[Submission]) -> Sequence[Accepted | Exception]:
    arrived = [(event, each.received_at) for each in submissions for event in each.events]
    counted = Counter(f"webhooks|{each.endpoint}|accepted" for each in submissions)
    try:
        results = services.ledger.accept_each(arrived, counted=counted)
        for scopes, word, change in chain.from_iterable(each.words for each in submissions):
            services.learned_words.add(scopes, word, change)
    except Exception as error:  # noqa: BLE001  whatever failed: a 2xx is only for what is known to be stored
        return [error] * len(arrived)
    return results


def _log(event: OptOutEvent, result: Accepted | Exception) -> bool:
    """Log what became of an event. Returns whether it is stored."""
    if isinstance(result, Exception):
        log.error("not_stored", error=redis_cause(result))
        return False
    log.info(
        "opt_out_event", project=event.project, event_id=event.event_id, change=event.change,
        source=event.source, result=Accepted.NEW if result is Accepted.ASK else result,
    )  # fmt: skip
    return True


def publish_lookups(publish: Publisher, events: Iterable[OptOutEvent]) -> None:
    """Ask the worker to look records up. If that fails, sweep does within a minute."""
    for event in events:
        publish_or_leave(publish, TaskName.LOOKUP, event.project, event.event_id)


def publish_or_leave(publish: Publisher, task: TaskName, *args: str, delay_seconds: float = 0) -> bool:
    """Publish. Returns whether it succeeded: if the broker is unavailable, sweep publishes later."""
    try:
        publish(task, *args, delay_seconds=delay_seconds)
    except (OperationalError, RedisError, OSError) as error:
        log.warning("publish_failed", task=task, args=args, error=cause_in_words(error))
        return False
    return True


def publish_many_or_leave(publish: Publisher, task: TaskName, calls: Sequence[Sequence[str]]) -> None:
    """Publish one message per list of arguments, up to the first that fails: sweep publishes the others later."""
    for args in calls:
        if not publish_or_leave(publish, task, *args):
            return
