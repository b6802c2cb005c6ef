"""Group commit: what is pending for a project goes to REDCap in few requests, read before written.

One updater per project takes all that is pending, reads the records as they are now, writes what differs, and goes
on until nothing is pending. While it waits for REDCap, further changes gather for the next round: a lone STOP is
written at once, a storm of thousands costs a few requests.
"""

from collections.abc import Sequence

import structlog

from shared.domain.events import Change, Notice, State
from shared.domain.precedence import decode_statuses
from shared.errors import ProjectProblem, RedcapRejected, RedcapUnavailable
from shared.ledger import EventOutcome
from shared.ledger.work.locks import try_lock
from shared.messaging.record_events import publish_or_leave
from shared.messaging.tasks import TaskName
from shared.retry_policy import GIVE_UP_LOOKUPS_AFTER, REFRESH_PAUSE
from worker.projects.problems import note_problem
from worker.redcap.client import MAX_RECORDS_PER_REQUEST
from worker.services import Services
from worker.steps.background import request_job
from worker.steps.complete_events import complete_events
from worker.steps.lookup_records import is_about_schema
from worker.steps.update_records.round import Round, SchemaChanged

log = structlog.get_logger(__name__)


def update_records(project: str, services: Services) -> None:
    """Write all that is pending for a project, unless another worker does."""
    services.deduplicator.release(f"update:{project}")
    if services.project_config(project) is None:
        return  # its work is paused: see worker/projects/removed.py
    # A worker that fails to get the lock has already added its phone, so the holder sees it either in its last round
    # or in this check after releasing.
    while services.ledger.clear_update_if_empty(project):
        with try_lock(services.redis, f"update:{project}") as acquired:
            if not acquired:
                services.schedule_quick_retry("update", project)  # the holder may be dead
                return
            if not _drain(project, services):
                return
    _schedule_recheck(project, services)


def _drain(project: str, services: Services) -> bool:
    """Rounds until nothing is pending. False if REDCap is unavailable and it has to be tried later."""
    rechecked: set[str] = set()
    try:
        gateway = services.project(project)
        while phones := services.ledger.pending(project, MAX_RECORDS_PER_REQUEST):
            if not _run_round(Round(gateway, services, rechecked), phones):
                services.index(project).invalidate()
                rechecked.clear()
        _schedule_recheck(project, services)
    except RedcapUnavailable as error:
        log.warning("update_put_off", project=project, error=str(error))
        _give_up_old(project, error, services)
        services.schedule_quick_retry("update", project)
        return False
    except ProjectProblem as error:
        note_problem(project, error, services)  # all stays pending until it is fixed
        return False
    except RedcapRejected as error:
        note_problem(project, error, services)
        _fail(project, services.ledger.pending(project), str(error), services)
    return True


def _run_round(current: Round, phones: Sequence[str]) -> bool:
    """False if it was based on a schema of the project that has changed: it counts as not run."""
    try:
        current.run(phones)
    except SchemaChanged:
        return False
    except (RedcapRejected, RedcapUnavailable) as error:
        if not is_about_schema(error) or not current.schema_changed():
            raise
        return False
    return True


def _schedule_recheck(project: str, services: Services) -> None:
    """Have the index refreshed, now or in a while, if it was used: another record may hold one of the phones, too."""
    index, pause = services.index(project), REFRESH_PAUSE.total_seconds()
    if not index.needs_refresh():
        return
    if not index.is_fresh(since=services.now() - REFRESH_PAUSE):
        request_job(services, TaskName.REFRESH, project)
    elif services.deduplicator.claim(f"look:{project}", seconds=pause):
        publish_or_leave(services.publish, TaskName.UPDATE, project, delay_seconds=pause + 0.5)


def _give_up_old(project: str, error: RedcapUnavailable, services: Services) -> None:
    """End what has waited for a day as failed, so that the team knows; the reconciliation still fixes it."""
    old = services.ledger.pending_since(project, services.now() - GIVE_UP_LOOKUPS_AFTER)
    _fail(project, old, f"{error}, for a day", services)


def _fail(project: str, phones: Sequence[str], reason: str, services: Services) -> None:
    """End the latest changes of phones as failed; not STARTs that were handled before."""
    ledger = services.ledger
    statuses, records = ledger.statuses(project, phones), services.index(project).records(phones)
    latest = [(phone, status) for phone, text in statuses.items() for status in decode_statuses(text)]
    unfinished = ledger.unfinished(project, [status.event_id for _, status in latest])
    outcomes = [
        EventOutcome(
            event_id=status.event_id,
            phone_hash=phone,
            state=State.FAILED,
            reason=reason,
            records=records.get(phone, []),
            notice=Notice.UNSAVED,
        )
        for phone, status in latest
        if status.change is Change.STOP or status.event_id in unfinished
    ]
    complete_events(project, outcomes, services, written=statuses)
