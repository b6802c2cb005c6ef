"""The nightly proof that nothing was missed: Twilio's message log against the ledger, the ledger against REDCap.

1. Every STOP and START of the log that the ledger lacks goes through the same doorway as a webhook.
2. One export of the project rebuilds the phone index and is compared with every known status; what differs
   goes into the pending set, and the same updater as ever writes it.
3. A report says what was read, recovered, corrected and left.
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from functools import partial
from itertools import chain, islice

import structlog

from shared import keys
from shared.errors import ConfigError, Failure, RedcapRefused
from shared.events import OptOutEvent, Source, State, Status, from_milliseconds, milliseconds
from shared.intake import accept
from shared.ledger import Accepted, Outcome
from shared.queue import TaskName
from worker.locks import held
from worker.message_log import MessageLog, open_message_log
from worker.problems import note_problem
from worker.project import RecordState, RedcapProject
from worker.report import send_report
from worker.services import Services
from worker.steps.update_records import settle, update_records

# Each run reads again what came shortly before the last one: the log may show a message late.
OVERLAP = timedelta(days=2)
# The first run reads all that Twilio keeps.
TWILIO_KEEPS = timedelta(days=400)
# Two beats by mistake publish two runs: the second finds that one has just ended.
JUST_RAN = timedelta(minutes=10)
# How long to wait for another worker that is updating the project.
UPDATE_PATIENCE_SECONDS = 600.0

# The e-mail names so many records; the report counts them all.
MOST_RECORDS_NAMED = 50

_CHUNK = 500
Progress = Callable[[str, int], None]

log = structlog.get_logger(__name__)


@dataclass(slots=True, kw_only=True)
class Report:
    """What a run saw and did. Holds counts, record ids and reasons, nothing personal."""

    project: str
    since: str = ""
    dry_run: bool = False
    outcome: str = "success"
    messages_read: int = 0
    pages_read: int = 0
    changes_recovered: int = 0
    records_read: int = 0
    records_corrected: int = 0
    corrected: list[str] = field(default_factory=list)  # the first record ids, for the e-mail
    statuses: int = 0
    statuses_without_record: int = 0
    redacted_numbers: int = 0
    redacted_bodies: int = 0
    still_pending: int = 0
    refused: list[str] = field(default_factory=list)  # records that REDCap would not change, with its reason
    errors: list[str] = field(default_factory=list)  # what kept the run from its end

    @property
    def is_well(self) -> bool:
        """Nothing is wrong: nothing failed, nothing waits, nothing was hidden."""
        return not (self.errors or self.refused or self.still_pending or self.redacted_numbers)

    @property
    def is_worth_a_mail(self) -> bool:
        """Something was corrected or is wrong."""
        return bool(self.changes_recovered or self.records_corrected or not self.is_well)


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
        began = services.now()
        since = since or _watermark(project, services)
        report.since = since.isoformat(timespec="seconds")
        _run(_Run(project, services, report, progress), since)
        if not dry_run:
            _conclude(report, began, services)
    log.info("reconciled", **{name: value for name, value in asdict(report).items() if name != "corrected"})
    return report


def _run(run: "_Run", since: datetime) -> None:
    """All stages; Twilio's absence does not keep REDCap from being compared."""
    stages: list[Callable[[], None]] = [partial(run.read_log, since), run.compare_and_write]
    for stage in stages:
        try:
            stage()
        except (Failure, ConfigError) as error:
            if isinstance(error, RedcapRefused):
                note_problem(run.project, error, run.services)
            run.report.errors.append(str(error))
    if run.report.errors:
        run.report.outcome = "failure"


def _just_ran(project: str, services: Services) -> bool:
    ended = services.redis.hget(keys.reconciled(project), "success_ms")
    return ended is not None and services.now() - from_milliseconds(int(ended)) < JUST_RAN


def _watermark(project: str, services: Services) -> datetime:
    """From when the log has to be read: the beginning of the last run that succeeded, and some before."""
    stored = services.redis.hget(keys.reconciled(project), "watermark_ms")
    if stored is None:
        return services.now() - TWILIO_KEEPS
    return from_milliseconds(int(stored)) - OVERLAP


def _conclude(report: Report, began: datetime, services: Services) -> None:
    """Note outcome and report; the watermark moves only after a success."""
    key = keys.reconciled(report.project)
    noted = {f"{report.outcome}_ms": milliseconds(services.now()), "report": json.dumps(asdict(report))}
    if report.outcome == "success":
        noted["watermark_ms"] = milliseconds(began)
    services.redis.hset(key, mapping=noted)
    send_report(report, services)


class _Run:
    """The stages of one run."""

    def __init__(self, project: str, services: Services, report: Report, progress: Progress) -> None:
        self.project = project
        self.services = services
        self.report = report
        self._ledger = services.ledger
        self._progress = progress
        self._index = services.index(project)
        self._imagined: dict[str, Status] = {}  # a dry run's statuses that would be
        self._imagined_ids: set[str] = set()
        self._differing: dict[str, list[str]] = {}  # record id -> its phones, of statuses that had ended

    # --- 1. the log ---------------------------------------------------------------------------------

    def read_log(self, since: datetime) -> None:
        """Hand in every change that the ledger lacks."""
        config = self.services.config.projects[self.project]
        account = self.services.config.twilio[config.twilio]
        message_log = open_message_log(self.project, config, account, self.services.hasher)
        try:
            for sender in message_log.senders():
                pages: Iterator[list[OptOutEvent]] = message_log.pages(sender, since)
                if config.blocked_messages:
                    pages = chain(pages, message_log.blocked_pages(sender, since))
                for events in pages:
                    self._take(events)
                    self._progress("messages", message_log.counts.messages)
        finally:
            self._count_messages(message_log)

    def _count_messages(self, message_log: MessageLog) -> None:
        counts = message_log.counts
        self.report.messages_read = counts.messages
        self.report.pages_read = counts.pages
        self.report.redacted_numbers = counts.redacted_numbers
        self.report.redacted_bodies = counts.redacted_bodies

    def _take(self, events: Sequence[OptOutEvent]) -> None:
        """Accept a page's events: known ones first, which corrects their times (see accept.lua), then the
        others newest first, so that what was overtaken is never written nor told."""
        known = self._ledger.known(self.project, [event.event_id for event in events])
        missing = [event for event in events if event.event_id not in known]
        blocked = [event for event in missing if event.source is Source.BLOCKED_MESSAGE]
        answers = self._accept([event for event in events if event.event_id in known])
        answers += self._accept([event for event in missing if event.source is not Source.BLOCKED_MESSAGE])
        for event in blocked:
            # Every refused text says the same; only the first that tells something new is an event.
            status = self._statuses([event.phone_hash]).get(event.phone_hash)
            if event.phone_hash and (status is None or status.change != event.change):
                answers += self._accept([event])
        self.report.changes_recovered += answers.count(Accepted.NEW)

    def _accept(self, events: Sequence[OptOutEvent]) -> list[Accepted]:
        if self.report.dry_run:
            return [self._imagine(event) for event in events]
        if not events:
            return []
        # Not published one by one: compare() finds their records from the export that is made anyway.
        return accept(events, ledger=self._ledger, publish=_publish_nothing, now=self.services.now())

    def _imagine(self, event: OptOutEvent) -> Accepted:
        if self._ledger.known(self.project, [event.event_id]):
            return Accepted.KNOWN
        if not event.phone_hash:
            return Accepted.UNMATCHED
        status = self._statuses([event.phone_hash]).get(event.phone_hash)
        occurred_ms = milliseconds(event.occurred_at)
        if status is not None and occurred_ms <= status.occurred_ms:
            return Accepted.STALE
        self._imagined_ids.add(event.event_id)
        self._imagined[event.phone_hash] = Status(
            change=event.change, occurred_ms=occurred_ms, event_id=event.event_id, last_start_ms=0
        )
        return Accepted.NEW

    def _statuses(self, phones: Sequence[str]) -> dict[str, Status]:
        stored = self._ledger.statuses(self.project, phones)
        found = {phone: Status.decode(text) for phone, text in stored.items()}
        return found | {phone: self._imagined[phone] for phone in phones if phone in self._imagined}

    # --- 2. REDCap ----------------------------------------------------------------------------------

    def compare_and_write(self) -> None:
        """Bring REDCap to what the ledger says."""
        self.compare()
        self.write()

    def compare(self) -> None:
        """Compare every record with the statuses of its phones, and rebuild the index by the same export."""
        gateway = self.services.project(self.project)
        gateway.forget_target()
        states = self._compared(gateway)
        if self.report.dry_run:
            for _ in states:
                pass
        else:
            self._index.rebuild(states, now=self.services.now())
            self._require_unfinished()
        self._count_statuses()

    def _compared(self, gateway: RedcapProject) -> Iterator[RecordState]:
        """Pass the records through, and note what differs on the way."""
        rest = gateway.read_all()
        while chunk := list(islice(rest, _CHUNK)):
            statuses = self._statuses(sorted({phone for state in chunk for phone in state.phones}))
            differing = [state for state in chunk if _differs(state, statuses, gateway)]
            self._note_differing(differing, statuses)
            self.report.records_read += len(chunk)
            self._progress("records", self.report.records_read)
            yield from chunk

    def _note_differing(self, states: Sequence[RecordState], statuses: dict[str, Status]) -> None:
        """Put what differs into the pending set; a change that is on its way already is no correction."""
        on_its_way = self._ledger.unfinished(self.project, [status.event_id for status in statuses.values()])
        phones = [phone for state in states for phone in state.phones if phone in statuses]
        if not self.report.dry_run:
            self._ledger.require_update(self.project, phones, now=self.services.now())
        for state in states:
            deciding = _deciding(state, statuses)
            if deciding.event_id not in on_its_way and deciding.event_id not in self._imagined_ids:
                self._differing[state.record_id] = [phone for phone in state.phones if phone in statuses]

    def _require_unfinished(self) -> None:
        """Settle what is under way: the index is fresh, so a phone without record has none."""
        for entries in self._ledger.unfinished_entries(self.project):
            held_phones = self._index.records([entry.phone_hash for entry in entries])
            self._ledger.require_update(
                self.project,
                [entry.phone_hash for entry in entries if entry.phone_hash in held_phones],
                now=self.services.now(),
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
        rest = iter(self._ledger.all_statuses(self.project))
        while chunk := dict(islice(rest, _CHUNK)):
            self.report.statuses += len(chunk)
            self.report.statuses_without_record += len(chunk) - len(self._index.records(list(chunk)))

    # --- 3. writing ---------------------------------------------------------------------------------

    def write(self) -> None:
        """Have the updater write what is pending, here, and see what became of it."""
        if not self.report.dry_run:
            self._drain()
            self._take_out_unwritten()
        self.report.corrected = sorted(self._differing)[:MOST_RECORDS_NAMED]
        self.report.records_corrected = len(self._differing)

    def _drain(self) -> None:
        deadline = time.monotonic() + UPDATE_PATIENCE_SECONDS
        while self._ledger.drained(self.project) and time.monotonic() < deadline:
            update_records(self.project, self.services)
            if not self.services.redis.exists(keys.lock(f"update:{self.project}")):
                break  # nobody else is at it: what is left, REDCap would not take
            time.sleep(0.5)
        self.report.still_pending = self._ledger.drained(self.project)
        if self.report.still_pending:
            self.report.errors.append(f"{self.report.still_pending} changes could not be written yet")

    def _take_out_unwritten(self) -> None:
        """Of the records that differed, those that REDCap refused, and those that still wait, are not corrected."""
        for record, phones in list(self._differing.items()):
            entries = [
                self._ledger.load(self.project, status.event_id) for status in self._statuses(phones).values()
            ]
            reasons = [entry.reason for entry in entries if entry is not None and entry.state is State.FAILED]
            self.report.refused += [f"record {record}: {reason}" for reason in reasons]
            if reasons or (
                self.report.still_pending and any(self._ledger.is_pending(self.project, p) for p in phones)
            ):
                del self._differing[record]


def _publish_nothing(task: TaskName, *args: str, delay_seconds: float = 0) -> None:
    """A publisher that leaves the work to the run itself (and, should it die, to sweep)."""
    del task, args, delay_seconds


def _deciding(state: RecordState, statuses: dict[str, Status]) -> Status:
    """Of all phones of a record, the latest change."""
    known = [statuses[phone] for phone in state.phones if phone in statuses]
    return max(known, key=lambda status: (status.occurred_ms, status.event_id))


def _differs(state: RecordState, statuses: dict[str, Status], gateway: RedcapProject) -> bool:
    known = any(phone in statuses for phone in state.phones)
    return known and not gateway.shows(state, _deciding(state, statuses))
