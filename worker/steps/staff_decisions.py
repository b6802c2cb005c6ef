"""What staff decide: an opt-out by phone, e-mail or paper, a new consent, or what an unclear text meant."""

import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from uuid import uuid4

import structlog

from shared.domain.events import UNFINISHED, Change, OptOutEvent, Source, State, milliseconds
from shared.domain.precedence import Status, decide
from shared.domain.scopes import STAFF, staff_key
from shared.errors import OptOutError, RedcapUnavailable
from shared.ledger import Accepted, EventOutcome, StaffDecision, StoredEvent
from shared.ledger.opt_outs.blocks import BlockState
from shared.ledger.opt_outs.written_values import WrittenValues
from shared.retry_policy import COMMAND_WAITS_SECONDS
from worker.redcap.opt_out_fields import Plan, RecordState, plan
from worker.services import Services
from worker.steps.block_at_twilio import block_at_twilio
from worker.steps.complete_events import complete_events
from worker.steps.lookup_records import look_up
from worker.steps.update_records import update_records

log = structlog.get_logger(__name__)


class DecisionRejected(OptOutError):
    """What staff asked for cannot be done; the text says why."""


def find_record(project: str, record: str, services: Services) -> RecordState | None:
    """Return a record as it is now; None if REDCap is unavailable but the record is known.

    Raises DecisionRejected if there is no such record.
    """
    try:
        state = services.project(project).read([record]).get(record)
    except RedcapUnavailable:
        if services.index(project).knows(record):
            return None
        raise
    if state is None:
        raise DecisionRejected(f"{project} has no record {record}")
    return state


def is_repeated(project: str, record: str, change: Change, services: Services) -> bool:
    """Return whether the latest decision about a record is the same, so that nothing changes."""
    latest = [status.change for status in services.ledger.status(project, staff_key(record))]
    return change is Change.STOP and latest == [Change.STOP]


def planned(project: str, state: RecordState, change: Change, at: datetime, services: Services) -> Plan:
    """Return what a decision would change in a record. Changes nothing."""
    known = services.ledger.statuses_of(project, state.keys - {staff_key(state.record_id)})
    decision = Status(
        scope=STAFF, change=change, occurred_ms=milliseconds(at), event_id="staff", exact=True,
        since_ms=milliseconds(at) if change is Change.STOP else 0,
    )  # fmt: skip
    statuses = [*known, decision]
    return plan(
        state, decide(statuses), statuses, form=services.project(project).form,
        written=WrittenValues(project, services.redis).of([state.record_id]).get(state.record_id),
        starts=[decision] if change is Change.START else [],
    )  # fmt: skip


def record_decision(
    project: str, record: str, change: Change, at: datetime, decision: StaffDecision, services: Services
) -> StoredEvent:
    """Record a decision about a record, and write it. Returns its event, which may still be in progress."""
    event = OptOutEvent(
        project=project,
        event_id=f"staff-{uuid4().hex}",
        change=change,
        occurred_at=at,
        source=Source.STAFF,
        phone_hash=staff_key(record),
        scope=STAFF,
    )
    services.ledger.accept_decision(event, decision, now=services.now())
    _log(event.project, event.event_id, decision)
    return _process(project, event.event_id, services)


def review(
    entry: StoredEvent, change: Change | None, decision: StaffDecision, services: Services
) -> StoredEvent:
    """Decide what waits for a person: STOP, or None to dismiss it. Raises DecisionRejected if nothing waits."""
    if entry.state is not State.NEEDS_REVIEW:
        raise DecisionRejected(f"{entry.event_id} does not wait for a decision: it is {entry.state}")
    services.ledger.record_decision(entry.project, entry.event_id, decision)
    _log(entry.project, entry.event_id, decision)
    if change is None or entry.change is Change.START:
        _dismiss(entry, services)
    elif entry.change is Change.UNCLEAR:
        _accept_as_stop(entry, services)
    else:
        services.ledger.reopen(entry.project, entry.event_id, now=services.now())
    # Once more, so that a replica has what the decision led to, too.
    services.ledger.record_decision(entry.project, entry.event_id, decision)
    return _process(entry.project, entry.event_id, services)


def _log(project: str, event_id: str, decision: StaffDecision) -> None:
    log.info("staff_decision", project=project, event_id=event_id, decided_by=decision.by)


def _dismiss(entry: StoredEvent, services: Services) -> None:
    outcome = EventOutcome(
        event_id=entry.event_id, phone_hash=entry.phone_hash, state=State.SUPERSEDED,
        reason="reviewed by staff: nothing to change", records=entry.records,
    )  # fmt: skip
    complete_events(entry.project, [outcome], services)


def _accept_as_stop(entry: StoredEvent, services: Services) -> None:
    """The text was an opt-out, and counts from the time when it was sent."""
    event = replace(entry.as_event(), change=Change.STOP)
    [accepted] = services.ledger.accept([event], now=services.now())
    if accepted is Accepted.STALE:
        log.warning("review_overtaken", project=entry.project, event_id=entry.event_id)


def _process(project: str, event_id: str, services: Services) -> StoredEvent:
    """Look an event up and write it, here and now; what REDCap does not accept yet is left to the workers."""
    deadline = time.monotonic() + COMMAND_WAITS_SECONDS
    entry = _loaded(project, event_id, services)
    if entry.state in UNFINISHED:
        look_up(entry, services)
    while (entry := _loaded(project, event_id, services)).state in UNFINISHED:
        update_records(project, services)
        if time.monotonic() > deadline or not services.is_updating(project):
            break  # without another worker that is updating, what is left waits for REDCap
        time.sleep(0.2)
    if _loaded(project, event_id, services).block.state is BlockState.WAITING:
        block_at_twilio(project, services, wait_seconds=COMMAND_WAITS_SECONDS)
    return _loaded(project, event_id, services)


def _loaded(project: str, event_id: str, services: Services) -> StoredEvent:
    entry = services.ledger.load(project, event_id)
    if entry is None:
        raise DecisionRejected(f"{event_id} was removed")
    return entry


def waiting_reviews(services: Services, projects: Sequence[str]) -> list[StoredEvent]:
    """Return the events that wait for a person's decision, longest waiting first."""
    return [entry for project in projects for entry in services.ledger.reviews(project)]
