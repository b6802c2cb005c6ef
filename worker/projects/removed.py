"""Projects that were taken out of the configuration, on purpose or by a file that is wrong for an hour.

Nothing is lost at once: for a day their work is paused, then their unfinished events end as failed, and after the
retention all data of them is deleted. A project that is restored before that continues where it was.
"""

from collections.abc import Iterable
from datetime import timedelta

import structlog

from shared.domain.events import State, milliseconds
from shared.ledger import EventOutcome, StoredEvent
from shared.ledger.opt_outs.blocks import Blocks, BlockState
from shared.ledger.projects.tracked import TrackedProjects
from shared.retry_policy import GRACE_PERIOD
from worker.services import Services

_CODE = "project_not_configured"
REASON = f"{_CODE}: it was taken out of the configuration"

log = structlog.get_logger(__name__)


def track_configured_projects(services: Services, seen: Iterable[str]) -> dict[str, timedelta]:
    """Record what is configured, and resume what is back. Returns for how long each other project is missing.

    `seen` are projects of due work: a web process with another configuration may know more than this one.
    """
    tracked, configured = TrackedProjects(services.redis), services.config.projects.keys()
    noted = tracked.missing_since()
    for project in configured:
        if noted.get(project, 0) is not None:
            _note_configured(project, services, back=project in noted)
    now_ms = milliseconds(services.now())
    missing: dict[str, timedelta] = {}
    for project in sorted({*noted, *seen} - configured):
        since_ms = noted.get(project)
        if since_ms is None:
            since_ms = now_ms
            tracked.note_missing(project, since_ms)
            log.warning("project_taken_out", project=project)
        missing[project] = timedelta(milliseconds=now_ms - since_ms)
    return missing


def _note_configured(project: str, services: Services, *, back: bool) -> None:
    if back:
        replayed = _resume(project, services)
        log.warning("project_put_back", project=project, replayed=replayed)
    # Last, so that a crash before leaves it to the next sweep.
    TrackedProjects(services.redis).note_configured(project)


def _resume(project: str, services: Services) -> int:
    """Have all that rested, or ended for want of a configuration, done now."""
    ledger, now = services.ledger, services.now()
    ended = [entry for entry in ledger.entries(project, newest_first=False) if _ended_for_want_of_it(entry)]
    for entry in ended:
        ledger.reopen(project, entry.event_id, now=now)
    ledger.require_update(project, ledger.pending(project), now=now)
    ledger.make_due_now(project, now=now)
    return len(ended)


def _ended_for_want_of_it(entry: StoredEvent) -> bool:
    return entry.state is State.FAILED and entry.reason.startswith(_CODE)


def retire(project: str, missing_for: timedelta, services: Services) -> None:
    """End what a missing project has left, once its day is over; remove all of it, once the retention is over too."""
    if missing_for >= GRACE_PERIOD + timedelta(days=services.config.retention_days):
        removed = services.ledger.forget_project(project)
        log.warning("project_removed", project=project, **removed)
    elif missing_for >= GRACE_PERIOD:
        _end(project, services)


def _end(project: str, services: Services) -> None:
    """The phones stay in the pending set, should the project come back."""
    ended = 0
    for entries in services.ledger.unfinished_entries(project):
        services.ledger.complete_events(project, [_failed(entry) for entry in entries], now=services.now())
        ended += len(entries)
    services.ledger.cancel_update(project)
    blocks = Blocks(project, services.redis)
    for event_id in blocks.waiting():
        blocks.end(event_id, BlockState.FAILED, reason=REASON, now=services.now())
    if ended:
        log.warning("project_ended", project=project, events=ended)


def _failed(entry: StoredEvent) -> EventOutcome:
    return EventOutcome(
        event_id=entry.event_id,
        phone_hash=entry.phone_hash,
        state=State.FAILED,
        reason=REASON,
        records=entry.records,
    )
