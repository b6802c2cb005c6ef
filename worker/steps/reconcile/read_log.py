"""Twilio's message log: into the ledger what it lacks, and into the report what the log shows or hides."""

from collections.abc import Callable
from datetime import datetime, timedelta

from shared.config.keywords import keywords_of
from shared.domain.endpoints import TEST_SID_PREFIX
from shared.domain.events import Change, OptOutEvent, Source, milliseconds
from shared.domain.keywords import Keywords
from shared.ledger import StoredEvent
from shared.ledger.platform.learned_words import LearnedWords
from shared.ledger.platform.service_senders import ServiceSenders
from shared.ledger.projects.reconciliations import Reconciliations
from worker.services import Services
from worker.steps.reconcile.blocks import NightlyBlocks
from worker.steps.reconcile.recover import (
    LedgerView,
    recover,
    recover_blocked,
    restore_order,
    superseded_candidates,
)
from worker.steps.reconcile.report import Report
from worker.steps.reconcile.sends import sends_after_opt_out, with_changes
from worker.twilio.message_log import MessageLog, SentText, open_message_log

# A webhook is received after Twilio's own time, by which the log is read.
WEBHOOK_DELAY = timedelta(minutes=10)
# A message is in the log before its webhook is called; so much for Twilio's own copies.
LOG_DELAY = timedelta(seconds=2)

Progress = Callable[[str, int], None]


class LogReading:
    """The stages of one run that need Twilio."""

    def __init__(
        self,
        report: Report,
        services: Services,
        view: LedgerView,
        progress: Progress,
        blocks: NightlyBlocks,
    ) -> None:
        self._report = report
        self._services = services
        self._view = view
        self._progress = progress
        self._project = report.project
        self._config = services.config.projects[report.project]
        self._sends: list[SentText] = []
        self._blocks = blocks

    def run(self, since: datetime) -> None:
        """Record every change that the ledger lacks."""
        account = self._services.config.twilio[self._config.twilio]
        message_log = open_message_log(
            self._project, self._config, account, self._services.hasher, self._keywords()
        )
        expected = self._expected(since)
        message_log.not_in_log |= expected.keys()
        try:
            self._read(message_log, since)
        finally:
            self._count_messages(message_log)
        self._report.messages_expected = len(expected)
        self._report_missing([expected[event_id] for event_id in sorted(message_log.not_in_log)])

    def _keywords(self) -> Keywords:
        """The project's words, and those that Twilio has shown to be keywords of its Messaging Service."""
        service = self._config.messaging_service_sid
        learned = LearnedWords(self._services.redis).of(service) if service else {}
        return keywords_of(
            self._config, opt_out=learned.get(Change.STOP, ()), opt_in=learned.get(Change.START, ())
        )

    def _read(self, message_log: MessageLog, since: datetime) -> None:
        overtaken_events: list[OptOutEvent] = []
        senders = message_log.senders()
        self._save_service_senders(message_log)
        for sender in senders:
            for events in message_log.pages(sender, since):
                self._report.changes_recovered += recover(events, self._view)
                self._count_messages(message_log)
                overtaken_events += superseded_candidates(events, self._view)
        self._report.changes_recovered += restore_order(overtaken_events, self._view)
        if self._config.blocked_messages or self._config.watch_sends:
            for sender in senders:
                self._read_sent(message_log, sender, since)

    def _save_service_senders(self, message_log: MessageLog) -> None:
        """For messages of Event Streams that do not name their Messaging Service."""
        service = self._config.messaging_service_sid
        if service and not self._report.dry_run:
            ServiceSenders(self._services.redis, self._services.hasher).save(service, message_log.in_service)

    def _read_sent(self, message_log: MessageLog, sender: str, since: datetime) -> None:
        """What was rejected is judged after all STARTs are known."""
        for blocked, sent in message_log.sent_pages(sender, since):
            if self._config.blocked_messages:
                blocked = [each for each in blocked if not self._blocks.explains(each.phone_hash, each.scope)]
                self._report.changes_recovered += recover_blocked(blocked, self._view)
            if self._config.watch_sends:
                self._sends += self._to_opted_out(sent)
            self._count_messages(message_log)

    def _to_opted_out(self, sent: list[SentText]) -> list[SentText]:
        """Those to numbers with any known change, or of records with one, or of unknown records.

        Few, so that the log is not kept. An unknown record may be new: the index is rebuilt later in the run.
        """
        changes = with_changes(sent, self._view, self._services.index(self._project))
        kept = {text.phone_hash for text, record, known in changes if known or not record}
        return [
            text
            for text in sent
            if text.phone_hash in kept or self._blocks.explains(text.phone_hash, text.scope)
        ]

    def report_sends(self) -> None:
        """Compare the study's texts with the opt-outs that were in force; the index is up to date by now."""
        watermark = Reconciliations(self._services.redis, self._project).watermark()
        # A run reads the last days again: their texts were reported before.
        new = [text for text in self._sends if watermark is None or text.sent_ms >= milliseconds(watermark)]
        index = self._services.index(self._project)
        self._blocks.prove(new)
        self._report.texts_after_opt_out = sends_after_opt_out(new, self._view, index)

    def _count_messages(self, message_log: MessageLog) -> None:
        counts, report = message_log.counts, self._report
        report.messages_read, report.pages_read = counts.messages, counts.pages
        report.inbound_texts = counts.inbound_texts
        report.redacted_numbers, report.redacted_bodies = counts.redacted_numbers, counts.redacted_bodies
        report.incomplete_messages = counts.incomplete
        self._progress("messages", counts.messages)

    # --- what the log no longer shows -----------------------------------------------------------------

    def _expected(self, since: datetime) -> dict[str, StoredEvent]:
        """The messages that webhooks or Event Streams have shown, and the log should have."""
        until = self._services.now() - LOG_DELAY
        entries = self._services.ledger.entries_between(self._project, since + WEBHOOK_DELAY, until)
        delivered = {Source.WEBHOOK, Source.EVENT_STREAM}
        return {
            entry.event_id: entry
            for entry in entries
            if entry.source in delivered and not entry.event_id.startswith(TEST_SID_PREFIX)
        }

    def _report_missing(self, missing: list[StoredEvent]) -> None:
        """REDCap erases the messages that it handled: then the log proves nothing for that sender and time."""
        for scope in sorted({entry.scope for entry in missing}):
            times = sorted(entry.occurred_at for entry in missing if entry.scope == scope)
            self._report.missing_from_log.append(
                {
                    "sender": scope if scope.startswith("MG") else "a number outside a Messaging Service",
                    "since": times[0].isoformat(timespec="seconds"),
                    "until": times[-1].isoformat(timespec="seconds"),
                    "messages": len(times),
                }
            )
