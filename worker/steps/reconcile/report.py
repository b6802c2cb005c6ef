"""What a run of the nightly comparison saw and did, and the e-mail about it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from email.message import EmailMessage
from email.utils import format_datetime, make_msgid
from typing import TYPE_CHECKING

import structlog

from shared.domain.events import milliseconds
from shared.errors import ConfigError, MailDeferred, MailRejected
from shared.ledger import keys
from worker.mail.smtp import SENT, outcome_of

if TYPE_CHECKING:
    from worker.services import Services

# A run that fails is tried again each hour; the team hears of it once a day.
FAILURE_MAIL_EVERY_MS = 20 * 3600 * 1000
# The e-mail names so many records; the report counts them all.
MOST_RECORDS_NAMED = 50
MOST_REASONS_NAMED = 20

log = structlog.get_logger(__name__)


@dataclass(slots=True, kw_only=True)
class Report:
    """Counts, record ids and reasons; nothing personal, as the task's result shows it in Flower."""

    project: str
    since: str = ""
    dry_run: bool = False
    outcome: str = "success"  # or "failure", "skipped"
    messages_read: int = 0
    pages_read: int = 0
    inbound_texts: int = 0
    redacted_numbers: int = 0
    redacted_bodies: int = 0
    incomplete_messages: int = 0  # without any date, or without a SID
    changes_recovered: int = 0
    records_read: int = 0
    records_corrected: int = 0
    corrected: list[str] = field(default_factory=list)  # the first record ids, for the e-mail
    statuses: int = 0
    statuses_without_record: int = 0
    still_pending: int = 0
    refused: list[str] = field(default_factory=list)  # records that REDCap would not change, with its reason
    errors: list[str] = field(default_factory=list)  # what kept the run from its end

    def fail(self, error: str) -> None:
        """Note what kept the run from its end."""
        self.errors.append(error)
        self.outcome = "failure"

    @property
    def hides_bodies(self) -> bool:
        """Whether no text of the log had a body: Twilio redacts them, and a STOP cannot be told."""
        return 0 < self.inbound_texts == self.redacted_bodies

    @property
    def has_corrections(self) -> bool:
        """Whether something differed: it is mended now, or would be but for the dry run."""
        return bool(self.changes_recovered or self.records_corrected)

    @property
    def is_well(self) -> bool:
        """Nothing is wrong: nothing failed, nothing waits, nothing was hidden."""
        hidden = self.redacted_numbers or self.hides_bodies or self.incomplete_messages
        return self.outcome == "success" and not (self.errors or self.refused or self.still_pending or hidden)

    @property
    def is_worth_a_mail(self) -> bool:
        """Something was corrected or is wrong."""
        return self.has_corrections or not self.is_well


def send_report(report: Report, services: Services) -> None:
    """Send the report, where there is somebody to tell something. A mail that fails stays in log and metrics."""
    config = services.project_config(report.project)
    if config is None or not config.notify or not report.is_worth_a_mail or not _is_news(report, services):
        return
    try:
        mailer = services.mailer
        if mailer is None:
            return
        message = _with_ids(compose_report(report, config.notify, sender=mailer.sender), services)
        outcome = outcome_of(mailer.send(message), message)
    except (MailDeferred, MailRejected, ConfigError) as error:
        services.ledger.count("mails", report.project, "report", "failed")
        log.error("report_not_mailed", project=report.project, error=str(error))
    else:
        services.ledger.count("mails", report.project, "report", outcome.partition(":")[0])
        if outcome != SENT:
            log.error("report_mailed_in_part", project=report.project, outcome=outcome)
        if not report.is_well:
            _note_failure_mailed(report, services)


def _is_news(report: Report, services: Services) -> bool:
    """Corrections always are; the same failure only once a day."""
    last = int(services.redis.hget(keys.reconciled(report.project), "failure_mailed_ms") or 0)
    return report.has_corrections or milliseconds(services.now()) - last >= FAILURE_MAIL_EVERY_MS


def _note_failure_mailed(report: Report, services: Services) -> None:
    services.redis.hset(keys.reconciled(report.project), "failure_mailed_ms", milliseconds(services.now()))


def _with_ids(message: EmailMessage, services: Services) -> EmailMessage:
    message["Date"] = format_datetime(services.now())
    message["Message-ID"] = make_msgid("report", message["From"].rpartition("@")[2])
    return message


def compose_report(report: Report, recipients: list[str], *, sender: str) -> EmailMessage:
    """The message: counts, reasons, and the ids of records that were found different. Pure."""
    message = EmailMessage()
    verdict = "mended what differed" if report.is_well else "needs attention"
    message["Subject"] = f"[{report.project}] Nightly comparison with Twilio {verdict}"
    message["From"] = sender
    message["To"] = ", ".join(recipients)
    message["Auto-Submitted"] = "auto-generated"
    message.set_content("\n".join(_lines(report)) + "\n")
    return message


def _lines(report: Report) -> Iterator[str]:
    yield f"Twilio's message log and REDCap were compared for {report.project}, from {report.since} on."
    yield ""
    yield f"Messages read:                   {report.messages_read}"
    yield f"Changes that had been missed:    {report.changes_recovered} (each written one has its own e-mail)"
    yield f"Records read:                    {report.records_read}"
    yield f"Records that differed, mended:   {report.records_corrected}"
    yield f"Statuses that no record holds:   {report.statuses_without_record}"
    yield f"Changes not yet in REDCap:       {report.still_pending}"
    yield from _corrected(report)
    yield from _hidden(report)
    yield from _listed("REDCap refused to change these records; they need a person:", report.refused)
    yield from _listed("What went wrong (the run is tried again by itself):", report.errors)


def _corrected(report: Report) -> Iterator[str]:
    if report.corrected:
        yield ""
        yield "Mended because the fields had been changed by hand or lost, or the record is new:"
        yield from (f"  record {record}" for record in report.corrected)
        more = report.records_corrected - len(report.corrected)
        if more > 0:
            yield f"  and {more} more"


def _hidden(report: Report) -> Iterator[str]:
    """What Twilio does not tell is reported, not guessed around."""
    if report.redacted_numbers:
        yield ""
        yield f"{report.redacted_numbers} STOPs or STARTs have redacted numbers: whose they are, nobody can tell."
    if report.hides_bodies:
        yield ""
        yield f"All {report.redacted_bodies} texts have no body (redaction?): a missed STOP cannot be found."
    if report.incomplete_messages:
        yield ""
        yield f"{report.incomplete_messages} messages have no date or no SID: nobody can tell whether one is a STOP."


def _listed(heading: str, reasons: list[str]) -> Iterator[str]:
    if reasons:
        yield ""
        yield heading
        yield from (f"  {reason}" for reason in reasons[:MOST_REASONS_NAMED])
        if len(reasons) > MOST_REASONS_NAMED:
            yield f"  and {len(reasons) - MOST_REASONS_NAMED} more"
