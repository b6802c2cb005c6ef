"""Which records hold the phone of an event? And, where a person has to decide: whether anything has to be decided."""

from collections.abc import Sequence
from datetime import timedelta

import structlog

from shared.domain.endpoints import TEST_SID_PREFIX
from shared.domain.events import UNFINISHED, Change, Notice, State
from shared.domain.precedence import decide, decode_statuses
from shared.domain.scopes import staff_key
from shared.errors import ProjectProblem, RedcapRejected, RedcapUnavailable
from shared.ledger import EventOutcome, StoredEvent
from shared.messaging.tasks import TaskName
from shared.retry_policy import BACKGROUND_LOOKUP_WITHIN, GATHER_FOR, GIVE_UP_LOOKUPS_AFTER
from worker.projects.problems import known_problem, note_problem
from worker.redcap.gateway import RedcapProject
from worker.redcap.phone_index import CHANGE_VISIBILITY_DELAY, is_in_any_index
from worker.services import Services
from worker.steps.background import request_job
from worker.steps.complete_events import complete_events
from worker.steps.start_times import TimeUnknown, is_time_unconfirmed, with_confirmed_time

# At a time, so that the first of a storm are on their way to REDCap while the others are looked up.
LOOKUP_BATCH_SIZE = 500

# Nightly runs refresh every index.
INDEX_RELIED_UPON = timedelta(hours=26)

log = structlog.get_logger(__name__)


class LookedUpLater(Exception):
    """The event stays due, and is looked up after a refresh of the index."""


def lookup_records(project: str, event_id: str, services: Services) -> None:
    """Find the event's records, and ask for their update; or end the event where no record holds its phone.

    Events that have arrived in the meantime are included: in a storm thousands, for which no message waits.
    """
    services.deduplicator.release(f"lookup:{project}")
    if services.project_config(project) is None:
        return  # its work is paused: see worker/projects/removed.py
    own = services.ledger.load(project, event_id)
    if own is not None:
        look_up(own, services)
    while arrived := services.ledger.take_arrived(project, LOOKUP_BATCH_SIZE):
        waiting = [each for each in arrived if each.state is State.RECEIVED and each.event_id != event_id]
        _look_up_together(project, waiting, services)


def _look_up_together(project: str, entries: Sequence[StoredEvent], services: Services) -> None:
    """Have the opt-outs whose phone is in the index written by one update; look up the others one by one."""
    indexed = _indexed(project, entries, services)
    _ask_for_update(project, indexed, services)
    forwarded = {entry.event_id for entry, _ in indexed}
    for entry in entries:
        if entry.event_id not in forwarded:
            look_up(entry, services)


def _indexed(
    project: str, entries: Sequence[StoredEvent], services: Services
) -> list[tuple[StoredEvent, list[str]]]:
    """The opt-outs whose phone is in the index and has not changed again since, with their records."""
    phones = [entry.phone_hash for entry in entries if entry.change is Change.STOP]
    records, latest = services.index(project).records(phones), services.ledger.statuses_of(project, phones)
    latest_ids = {status.event_id for status in latest}
    return [
        (entry, records[entry.phone_hash])
        for entry in entries
        if entry.phone_hash in records and entry.event_id in latest_ids
    ]


def look_up(entry: StoredEvent, services: Services, *, index_is_current: bool = False) -> None:
    """Find the records of one event, and request their update; or end it if there is nothing to write.

    `index_is_current`: the index has been refreshed since the event was received.
    """
    if entry.state not in UNFINISHED:
        return
    if not entry.phone_hash:
        _complete_unmatched(entry, "the sender is not a phone number", services)
        return
    if is_time_unconfirmed(entry):
        confirmed = _with_confirmed_time(entry, services)
        if confirmed is None:
            return
        entry = confirmed
    if newer := _overtaken_by(entry, services):
        _complete(entry, services, State.SUPERSEDED, reason=f"overtaken by {newer}")
        return
    _find_and_forward(entry, services, index_is_current)


def _complete_unmatched(entry: StoredEvent, reason: str, services: Services) -> None:
    notice = services.unmatched_notice(entry.project)
    _complete(entry, services, State.NO_MATCHING_RECORD, reason=reason, notice=notice)


def _find_and_forward(entry: StoredEvent, services: Services, index_is_current: bool) -> None:
    try:
        records = _find_with_current_schema(entry, services, index_is_current)
        is_decided = bool(records) and _is_decided(entry, records, services)
    except LookedUpLater:
        log.info("lookup_repeated_later", project=entry.project, event_id=entry.event_id)
    except RedcapUnavailable as error:
        _defer(entry, error, services)
    except ProjectProblem as error:
        note_problem(entry.project, error, services)
    except RedcapRejected as error:
        note_problem(entry.project, error, services)
        _complete(entry, services, State.FAILED, reason=str(error), notice=Notice.UNSAVED)
    else:
        if is_decided:
            _complete(entry, services, State.ALREADY_CURRENT, reason="opted out already", records=records)
        else:
            _complete_or_forward(entry, records, services)


def _with_confirmed_time(entry: StoredEvent, services: Services) -> StoredEvent | None:
    """The event with Twilio's time; None if it has ended, or has to wait for that time."""
    try:
        return with_confirmed_time(entry, services)
    except TimeUnknown as error:
        if services.now() - entry.received_at <= GIVE_UP_LOOKUPS_AFTER:
            log.warning("start_waits", project=entry.project, event_id=entry.event_id, error=str(error))
            services.schedule_quick_retry("lookup", entry.project, entry.event_id)
            return None
    records = services.index(entry.project).records([entry.phone_hash]).get(entry.phone_hash, [])
    reason = "it came within minutes of a STOP, and Twilio does not say which came last"
    _complete(entry, services, State.NEEDS_REVIEW, reason=reason, records=records, notice=Notice.REVIEW)
    return None


def _overtaken_by(entry: StoredEvent, services: Services) -> str | None:
    """The newer change of the same phone and scope. Not if the write may have reached REDCap: the updater checks."""
    ledger, project, phone = services.ledger, entry.project, entry.phone_hash
    if entry.change is Change.UNCLEAR:
        return None
    latest = [status for status in ledger.status(project, phone) if status.scope == entry.scope]
    if not latest or latest[0].event_id == entry.event_id:
        return None
    begun = ledger.intents(project, [phone]).get(phone) == entry.event_id
    return None if begun else latest[0].event_id


def _is_decided(entry: StoredEvent, records: Sequence[str], services: Services) -> bool:
    """Whether an unclear text comes from somebody who is opted out already: then nothing has to be decided."""
    if entry.change is not Change.UNCLEAR:
        return False
    stored = services.ledger.statuses(entry.project, [entry.phone_hash, *map(staff_key, records)])
    if decide(status for text in stored.values() for status in decode_statuses(text)).opted_out:
        return True
    gateway = services.project(entry.project)
    states = gateway.read(records).values()
    return bool(states) and all(state.ticked or gateway.form.is_time(state.opt_out_value) for state in states)


def _find_with_current_schema(entry: StoredEvent, services: Services, index_is_current: bool) -> list[str]:
    """The event's records. A rejection or a miss counts only if the schema was read after the event came."""
    index, gateway = services.index(entry.project), services.project(entry.project)
    try:
        records = _find(entry, gateway, services, index_is_current)
    except (RedcapRejected, RedcapUnavailable) as error:
        if not is_about_schema(error) or not gateway.schema_changed(since=entry.received_at):
            raise
    else:
        if records or not gateway.may_miss_phones:
            return records
        gateway.schema_changed(since=entry.received_at)
        if index.was_read_with(gateway.schema.fingerprint):
            return []
    index.invalidate()
    return _find(entry, gateway, services)


def is_about_schema(error: RedcapRejected | RedcapUnavailable) -> bool:
    """Whether a request that relies on an outdated schema can fail so: rejected, or with far too few records."""
    return isinstance(error, RedcapRejected) or error.code == "redcap_partial_export"


def _find(
    entry: StoredEvent, gateway: RedcapProject, services: Services, index_is_current: bool = False
) -> list[str]:
    """The records by the index; a miss is believed only after a refresh that began after the event came.

    Raises LookedUpLater.
    """
    index = services.index(entry.project)
    records = index.records([entry.phone_hash]).get(entry.phone_hash)
    since = entry.received_at
    if index.may_be_incomplete(since) and not _may_still_appear(entry, services):
        since += CHANGE_VISIBILITY_DELAY
    if records is None and not (index_is_current or index.is_fresh(since=since)):
        if problem := known_problem(entry.project, services):
            raise problem  # asked once a minute by sweep, not once for every event
        _raise_if_it_can_wait(entry, services)
        index.refresh(gateway, since=since)
        records = index.records([entry.phone_hash]).get(entry.phone_hash)
    return records or []


def _raise_if_it_can_wait(entry: StoredEvent, services: Services) -> None:
    """Of projects that share a sender, those whose index lacks the number are asked in the background.

    Raises LookedUpLater. Where another one knows the number, the others look a minute later, so that one export
    serves all texts of that minute. An index that has not been refreshed since the day before does not count.
    """
    now, others = services.now(), services.config.sharing(entry.project)
    if entry.event_id.startswith(TEST_SID_PREFIX):
        return  # `optout test-message` waits
    is_recent = now - entry.received_at < BACKGROUND_LOOKUP_WITHIN
    if not (others and is_recent and services.index(entry.project).is_fresh(since=now - INDEX_RELIED_UPON)):
        return
    is_known = is_in_any_index(entry.phone_hash, others, services.redis)
    if not is_known or now - entry.received_at >= GATHER_FOR:
        request_job(services, TaskName.REFRESH, entry.project)
    raise LookedUpLater


def _may_still_appear(entry: StoredEvent, services: Services) -> bool:
    """Whether a record that was entered just before the event may not show yet among a large project's changes."""
    too_early = services.now() < entry.received_at + CHANGE_VISIBILITY_DELAY
    return too_early and services.index(entry.project).may_be_incomplete(entry.received_at)


def _complete_or_forward(entry: StoredEvent, records: list[str], services: Services) -> None:
    if not records and _may_still_appear(entry, services):
        # It stays due, and sweep has it looked up again: one more export for all that wait.
        log.info("lookup_repeated_later", project=entry.project, event_id=entry.event_id)
    elif not records:
        _complete_unmatched(entry, "no record holds this number", services)
    elif entry.change is Change.UNCLEAR:
        reason = "a text that may ask to stop, or comes from another person"
        _complete(entry, services, State.NEEDS_REVIEW, reason=reason, records=records, notice=Notice.REVIEW)
    else:
        _ask_for_update(entry.project, [(entry, records)], services)


def _ask_for_update(project: str, found: Sequence[tuple[StoredEvent, list[str]]], services: Services) -> None:
    if not found:
        return
    services.index(project).mark_used(services.now())
    matched = services.ledger.attach_records(project, found, now=services.now())
    for entry, records in found:
        if entry.event_id in matched:
            log.info("records_found", project=project, event_id=entry.event_id, records=len(records))
    if matched:
        services.request_update(project)


def _defer(entry: StoredEvent, error: RedcapUnavailable, services: Services) -> None:
    if services.now() - entry.received_at > GIVE_UP_LOOKUPS_AFTER:
        _complete(entry, services, State.FAILED, reason=f"{error}, for a day", notice=Notice.UNSAVED)
        return
    log.warning("lookup_put_off", project=entry.project, event_id=entry.event_id, error=str(error))
    services.schedule_quick_retry("lookup", entry.project, entry.event_id)


def _complete(
    entry: StoredEvent,
    services: Services,
    state: State,
    *,
    reason: str,
    records: Sequence[str] = (),
    notice: Notice | None = None,
) -> None:
    outcome = EventOutcome(
        event_id=entry.event_id, phone_hash=entry.phone_hash, state=state, reason=reason,
        records=records or entry.records, notice=notice,
    )  # fmt: skip
    complete_events(entry.project, [outcome], services)
