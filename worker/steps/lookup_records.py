"""Which records hold the phone of an event?"""

from collections.abc import Sequence
from datetime import timedelta

import structlog

from shared.domain.events import UNFINISHED, Notice, State, Status
from shared.errors import ProjectProblem, RedcapRejected, RedcapUnavailable
from shared.ledger import Entry, Outcome
from worker.projects.problems import known_problem, note_problem
from worker.redcap.gateway import RedcapProject
from worker.redcap.phone_index import CHANGE_VISIBILITY_DELAY
from worker.services import Services
from worker.steps.complete_events import settle

# After this long an outage is no outage any more: the event ends as failed and the team is told. The
# nightly run still mends the record when REDCap is back.
GIVE_UP_AFTER = timedelta(days=1)

# At a time, so that the first of a storm are on their way to REDCap while the others are looked up.
MOST_TAKEN_ALONG = 500

log = structlog.get_logger(__name__)


def lookup_records(project: str, event_id: str, services: Services) -> None:
    """Find the event's records, and ask for their update; or end the event where no record holds its phone.

    Events that have arrived meanwhile are taken along: in a storm thousands, for which no message waits.
    """
    services.coalescer.taken(f"lookup:{project}")
    if services.project_config(project) is None:
        return  # it rests: see worker/projects/removed.py
    own = services.ledger.load(project, event_id)
    if own is not None:
        _look_up(own, services)
    while arrived := services.ledger.take_arrived(project, MOST_TAKEN_ALONG):
        waiting = [entry for entry in arrived if entry.state is State.RECEIVED]
        known = _known(project, waiting, services)
        _ask_for_update(project, known, services)
        handed_on = {entry.event_id for entry, _ in known}
        for entry in waiting:
            if entry.event_id not in handed_on:
                _look_up(entry, services)


def _known(project: str, entries: Sequence[Entry], services: Services) -> list[tuple[Entry, list[str]]]:
    """Those whose phone is in the index and was not changed again since, with their records."""
    phones = [entry.phone_hash for entry in entries]
    records, statuses = services.index(project).records(phones), services.ledger.statuses(project, phones)
    latest = {Status.decode(text).event_id for text in statuses.values()}
    return [
        (entry, records[entry.phone_hash])
        for entry in entries
        if entry.phone_hash in records and entry.event_id in latest
    ]


def _look_up(entry: Entry, services: Services) -> None:
    ledger, project = services.ledger, entry.project
    if entry.state not in UNFINISHED:
        return
    status = ledger.status(project, entry.phone_hash)
    if (
        status is not None
        and status.event_id != entry.event_id
        # Its own write may have reached REDCap: then the updater judges.
        and ledger.intents(project, [entry.phone_hash]).get(entry.phone_hash) != entry.event_id
    ):
        _end(entry, services, State.SUPERSEDED, reason=f"overtaken by {status.event_id}")
        return
    try:
        records = _find_with_current_schema(entry, services)
    except RedcapUnavailable as error:
        _put_off(entry, error, services)
    except ProjectProblem as error:
        note_problem(project, error, services)
    except RedcapRejected as error:
        note_problem(project, error, services)
        _end(entry, services, State.FAILED, reason=str(error), notice=Notice.UNSAVED)
    else:
        _hand_on(entry, records, services)


def _find_with_current_schema(entry: Entry, services: Services) -> list[str]:
    """The event's records. A rejection or a miss counts only if the schema was read after the event came."""
    index, gateway = services.index(entry.project), services.project(entry.project)
    try:
        records = _find(entry, gateway, services)
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


def _find(entry: Entry, gateway: RedcapProject, services: Services) -> list[str]:
    """The records by the index; a miss is believed only after a refresh that began after the event came."""
    index = services.index(entry.project)
    records = index.records([entry.phone_hash]).get(entry.phone_hash)
    since = entry.received_at
    if index.may_be_incomplete(since) and not _may_still_appear(entry, services):
        since += CHANGE_VISIBILITY_DELAY
    if records is None and not index.is_fresh(since=since):
        _refuse_while_broken(entry.project, services)
        index.refresh(gateway, since=since)
        records = index.records([entry.phone_hash]).get(entry.phone_hash)
    return records or []


def _may_still_appear(entry: Entry, services: Services) -> bool:
    """Whether a record that was entered just before the event may not show yet among a large project's changes."""
    too_early = services.now() < entry.received_at + CHANGE_VISIBILITY_DELAY
    return too_early and services.index(entry.project).may_be_incomplete(entry.received_at)


def _refuse_while_broken(project: str, services: Services) -> None:
    """A project with a known problem is asked once a minute by sweep, not once for every event."""
    problem = known_problem(project, services)
    if problem is not None:
        raise problem


def _hand_on(entry: Entry, records: list[str], services: Services) -> None:
    if not records and _may_still_appear(entry, services):
        # It stays due, and sweep has it looked up again: one more export for all that wait.
        log.info("lookup_repeated_later", project=entry.project, event_id=entry.event_id)
        return
    if not records:
        notice = services.unmatched_notice(entry.project)
        _end(entry, services, State.NO_MATCHING_RECORD, reason="no record holds this number", notice=notice)
        return
    _ask_for_update(entry.project, [(entry, records)], services)


def _ask_for_update(project: str, found: Sequence[tuple[Entry, list[str]]], services: Services) -> None:
    if not found:
        return
    services.index(project).mark_used(services.now())
    matched = services.ledger.match_all(project, found, now=services.now())
    for entry, records in found:
        if entry.event_id in matched:
            log.info("records_found", project=project, event_id=entry.event_id, records=len(records))
    if matched:
        services.request_update(project)


def _put_off(entry: Entry, error: RedcapUnavailable, services: Services) -> None:
    if services.now() - entry.received_at > GIVE_UP_AFTER:
        _end(entry, services, State.FAILED, reason=f"{error}, for a day", notice=Notice.UNSAVED)
        return
    log.warning("lookup_put_off", project=entry.project, event_id=entry.event_id, error=str(error))
    services.retry_soon("lookup", entry.project, entry.event_id)


def _end(
    entry: Entry, services: Services, state: State, *, reason: str, notice: Notice | None = None
) -> None:
    outcome = Outcome(
        event_id=entry.event_id, phone_hash=entry.phone_hash, state=state, reason=reason, records=entry.records,
        notice=notice,
    )  # fmt: skip
    settle(entry.project, [outcome], services)
