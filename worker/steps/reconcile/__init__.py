"""The nightly proof that nothing was missed: Twilio's message log against the ledger, the ledger against REDCap.

1. Every STOP and START of the log that the ledger lacks goes through the same doorway as a webhook.
2. One export of the project rebuilds the phone index and is compared with every known status; what differs
   goes into the pending set, and the same updater as ever writes it.
3. A report says what was read, recovered, corrected and left.
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import datetime, timedelta
from functools import partial
from itertools import islice

import structlog
from redis.exceptions import RedisError

from shared.domain.events import OptOutEvent, State, Status, from_milliseconds, latest_of, milliseconds
from shared.errors import ConfigError, Failure, RedcapRejected
from shared.ledger import Entry, Outcome, keys
from shared.ledger.locks import held
from worker.projects.problems import note_problem
from worker.redcap.gateway import RecordState, RedcapProject
from worker.services import Services
from worker.steps.complete_events import settle
from worker.steps.reconcile.recover import (
    Doorway,
    DryDoorway,
    overtaken,
    put_in_order,
    recover,
    recover_blocked,
)
from worker.steps.reconcile.report import MOST_RECORDS_NAMED, Report, send_report
from worker.steps.service_senders import learn_senders
from worker.steps.update_records import update_records
from worker.twilio.message_log import MessageLog, open_message_log

# Each run reads again what came shortly before the last one: the log may show a message late.
OVERLAP = timedelta(days=2)
# The first run reads all that Twilio keeps.
TWILIO_KEEPS = timedelta(days=400)
# Two beats by mistake publish two runs: the second finds that one has just ended.
JUST_RAN = timedelta(minutes=10)
# How long to wait for another worker that is updating the project.
UPDATE_PATIENCE_SECONDS = 600.0

_CHUNK = 500
Progress = Callable[[str, int], None]

log = structlog.get_logger(__name__)


def reconcile(
    project: str,
    services: Services,
    *,
    since: datetime | None = None,
    dry_run: bool = False,
    nightly: bool = False,
    progress: Progress = lambda _stage, _number: None,
) -> Report:
    """Reconcile one project, one run at a time. Never raises for what Twilio or REDCap did: the report says it."""
    report = Report(project=project, dry_run=dry_run)
    with held(services.redis, f"reconcile:{project}") as mine:
        if not mine or (nightly and _just_ran(project, services)):
            report.outcome = "skipped"
            return report
        if not dry_run:
            learn_senders(project, services)
        _run_noted(_Run(project, services, report, progress), since)
    log.info("reconciled", **{name: value for name, value in asdict(report).items() if name != "corrected"})
    return report


def _run_noted(run: "_Run", since: datetime | None) -> None:
    """Run, and note how it ended, also where it broke off for a reason that nobody foresaw."""
    report, services = run.report, run.services
    needed, began = _needed(run.project, services), services.now()
    since = since or needed
    report.since = since.isoformat(timespec="seconds")
    watermark = began if since <= needed else None  # a run that left a gap moves nothing
    try:
        _run(run, since)
    except Exception as error:
        # Such as Celery's time limit. Without its text, which may hold anything.
        report.fail(f"the run broke off: {type(error).__name__}")
        with suppress(RedisError):
            _conclude(report, watermark, services)
        raise
    _conclude(report, watermark, services)


def _run(run: "_Run", since: datetime) -> None:
    """All stages; Twilio's absence does not keep REDCap from being compared."""
    stages: list[Callable[[], None]] = [partial(run.read_log, since), run.compare_and_write]
    for stage in stages:
        try:
            stage()
        except (Failure, ConfigError) as error:
            if isinstance(error, RedcapRejected) and not run.report.dry_run:
                note_problem(run.project, error, run.services)
            run.report.fail(str(error))


def _just_ran(project: str, services: Services) -> bool:
    ended = services.redis.hget(keys.reconciled(project), "success_ms")
    return ended is not None and services.now() - from_milliseconds(int(ended)) < JUST_RAN


def _needed(project: str, services: Services) -> datetime:
    """From when the log has to be read: the beginning of the last run that succeeded, and some before."""
    stored = services.redis.hget(keys.reconciled(project), "watermark_ms")
    if stored is None:
        return services.now() - TWILIO_KEEPS
    return from_milliseconds(int(stored)) - OVERLAP


def _conclude(report: Report, watermark: datetime | None, services: Services) -> None:
    """Note outcome and report; the watermark moves only after a success."""
    if report.dry_run:
        return
    key = keys.reconciled(report.project)
    noted = {f"{report.outcome}_ms": milliseconds(services.now()), "report": json.dumps(asdict(report))}
    if report.outcome == "success" and watermark is not None:
        noted["watermark_ms"] = milliseconds(watermark)
    services.redis.hset(key, mapping=noted)
    send_report(report, services)


class _Run:
    """The stages of one run."""

    def __init__(self, project: str, services: Services, report: Report, progress: Progress) -> None:
        self.project = project
        self.services = services
        self.report = report
        self._doorway = DryDoorway(project, services) if report.dry_run else Doorway(project, services)
        self._ledger = services.ledger
        self._progress = progress
        self._index = services.index(project)
        self._differing: dict[
            str, tuple[str, ...]
        ] = {}  # record id -> its phones, of statuses that had ended
        self._held: set[str] = set()  # a dry run's phones with a status and a record

    # --- 1. the log ---------------------------------------------------------------------------------

    def read_log(self, since: datetime) -> None:
        """Hand in every change that the ledger lacks."""
        config = self.services.config.projects[self.project]
        account = self.services.config.twilio[config.twilio]
        message_log = open_message_log(self.project, config, account, self.services.hasher)
        held_back: list[OptOutEvent] = []
        try:
            senders = message_log.senders()
            for sender in senders:
                for page in message_log.pages(sender, since):
                    events = self._doorway.without_ordinary(page)
                    self.report.changes_recovered += recover(events, self._doorway)
                    self._count_messages(message_log)
                    held_back += overtaken(events, self._doorway)
            self.report.changes_recovered += put_in_order(held_back, self._doorway)
            # What was refused is judged after all STARTs are known.
            for sender in senders if config.blocked_messages else []:
                for events in message_log.blocked_pages(sender, since):
                    self.report.changes_recovered += recover_blocked(events, self._doorway)
                    self._count_messages(message_log)
        finally:
            self._count_messages(message_log)

    def _count_messages(self, message_log: MessageLog) -> None:
        counts, report = message_log.counts, self.report
        report.messages_read, report.pages_read = counts.messages, counts.pages
        report.inbound_texts = counts.inbound_texts
        report.redacted_numbers, report.redacted_bodies = counts.redacted_numbers, counts.redacted_bodies
        report.incomplete_messages = counts.incomplete
        self._progress("messages", counts.messages)

    # --- 2. REDCap ----------------------------------------------------------------------------------

    def compare_and_write(self) -> None:
        """Bring REDCap to what the ledger says."""
        self.compare()
        if not self.report.dry_run:
            self._drain()
            self._take_out_unwritten()
        self.report.corrected = sorted(self._differing)[:MOST_RECORDS_NAMED]
        self.report.records_corrected = len(self._differing)

    def compare(self) -> None:
        """Compare every record with the statuses of its phones, and rebuild the index by the same export."""
        gateway = self.services.project(self.project)
        gateway.invalidate_schema()
        states, began = self._compared(gateway), self.services.now()
        if self.report.dry_run:
            for _ in states:
                pass
        else:
            self._index.rebuild(states, now=began)
            for entries in self._ledger.unfinished_entries(self.project):
                self._take_up([entry for entry in entries if entry.received_at <= began])
        self._count_statuses()

    def _compared(self, gateway: RedcapProject) -> Iterator[RecordState]:
        """Pass the records through, and note what differs on the way."""
        rest = gateway.read_all()
        while chunk := list(islice(rest, _CHUNK)):
            statuses = self._doorway.statuses(sorted({phone for state in chunk for phone in state.phones}))
            self._note_differing([state for state in chunk if _differs(state, statuses, gateway)], statuses)
            if self.report.dry_run:
                self._held |= statuses.keys()
            self.report.records_read += len(chunk)
            self._progress("records", self.report.records_read)
            yield from chunk

    def _note_differing(self, states: Sequence[RecordState], statuses: dict[str, Status]) -> None:
        """Put what differs into the pending set; a change that is on its way already is no correction."""
        phones = {
            state.record_id: tuple(phone for phone in state.phones if phone in statuses) for state in states
        }
        if not self.report.dry_run:
            self._ledger.require_update(
                self.project,
                sorted({phone for some in phones.values() for phone in some}),
                now=self.services.now(),
            )
        deciding = {state.record_id: _deciding(state, statuses).event_id for state in states}
        on_their_way = self._doorway.on_their_way(sorted(set(deciding.values())))
        self._differing |= {
            record: some for record, some in phones.items() if deciding[record] not in on_their_way
        }

    def _take_up(self, entries: Sequence[Entry]) -> None:
        """Settle what was under way when the export began: a phone that it did not show has no record."""
        phones = [entry.phone_hash for entry in entries]
        # A write that has begun may have reached a record that the export left out: the updater looks.
        held_phones = {*self._index.records(phones), *self._ledger.intents(self.project, phones)}
        self._ledger.require_update(
            self.project, [phone for phone in phones if phone in held_phones], now=self.services.now()
        )
        notice = self.services.unmatched_notice(self.project)
        outcomes = [
            Outcome(
                event_id=entry.event_id,
                phone_hash=entry.phone_hash,
                state=State.NO_MATCHING_RECORD,
                reason="no record holds this number",
                notice=notice,
            )
            for entry in entries
            if entry.phone_hash not in held_phones
        ]
        settle(self.project, outcomes, self.services)

    def _count_statuses(self) -> None:
        if isinstance(self._doorway, DryDoorway):
            self.report.statuses = self._ledger.count_statuses(self.project) + self._doorway.unseen()
            self.report.statuses_without_record = self.report.statuses - len(self._held)
            return
        rest = iter(self._ledger.all_statuses(self.project))
        while chunk := dict(islice(rest, _CHUNK)):
            self.report.statuses += len(chunk)
            self.report.statuses_without_record += len(chunk) - len(self._index.records(list(chunk)))

    # --- 3. writing ---------------------------------------------------------------------------------

    def _drain(self) -> None:
        """Have the updater write what is pending, here."""
        deadline = time.monotonic() + UPDATE_PATIENCE_SECONDS
        while self._ledger.drained(self.project) and time.monotonic() < deadline:
            update_records(self.project, self.services)
            if not self.services.redis.exists(keys.lock(f"update:{self.project}")):
                break  # nobody else is at it: what is left, REDCap would not take
            time.sleep(0.5)
        self.report.still_pending = self._ledger.drained(self.project)
        if self.report.still_pending:
            self.report.fail(f"{self.report.still_pending} changes could not be written yet")

    def _take_out_unwritten(self) -> None:
        """Of the records that differed, those that REDCap refused, and those that still wait, are not corrected."""
        waiting = set(self._ledger.pending(self.project)) if self.report.still_pending else set()
        rest = iter(list(self._differing.items()))
        while chunk := dict(islice(rest, _CHUNK)):
            statuses = self._doorway.statuses(
                sorted({phone for phones in chunk.values() for phone in phones})
            )
            failed = self._failed([status.event_id for status in statuses.values()])
            for record, phones in chunk.items():
                ids = [statuses[phone].event_id for phone in phones if phone in statuses]
                reasons = [reason for id_ in ids for reason in _reasons_of(record, failed.get(id_, ""))]
                self.report.refused += [f"record {record}: {reason}" for reason in reasons]
                if reasons or not waiting.isdisjoint(phones):
                    del self._differing[record]

    def _failed(self, event_ids: Sequence[str]) -> dict[str, str]:
        """The reasons of those of the events that failed."""
        entries = self._ledger.entries_of(self.project, event_ids)
        return {entry.event_id: entry.reason for entry in entries if entry.state is State.FAILED}


def _reasons_of(record: str, reason: str) -> Iterator[str]:
    """What a failed event's reason says of one of its records; one that names no record is about all."""
    for part in reason.split("; ") if reason.startswith("record ") else []:
        if part.startswith(f"record {record}: "):
            yield part.removeprefix(f"record {record}: ")
    if reason and not reason.startswith("record "):
        yield reason


def _deciding(state: RecordState, statuses: dict[str, Status]) -> Status:
    return latest_of(statuses[phone] for phone in state.phones if phone in statuses)


def _differs(state: RecordState, statuses: dict[str, Status], gateway: RedcapProject) -> bool:
    known = any(phone in statuses for phone in state.phones)
    return known and not gateway.matches(state, _deciding(state, statuses))
