"""The e-mail about a nightly run, for the project's notify list, if something was corrected or is wrong."""

from __future__ import annotations

from email.message import EmailMessage
from typing import TYPE_CHECKING

import structlog

from shared import keys
from shared.errors import ConfigError, MailDeferred, MailRefused
from shared.events import milliseconds

if TYPE_CHECKING:
    from worker.services import Services
    from worker.steps.reconcile import Report

# A run that fails is tried again each hour; the team hears of it once a day.
FAILURE_MAIL_EVERY_MS = 20 * 3600 * 1000

log = structlog.get_logger(__name__)


def send_report(report: Report, services: Services) -> None:
    """Send the report, where there is somebody to tell something. A mail that fails stays in log and metrics."""
    config = services.project_config(report.project)
    if config is None or not config.notify or not report.is_worth_a_mail or not _is_news(report, services):
        return
    try:
        mailer = services.mailer
        if mailer is not None:
            mailer.send(compose_report(report, config.notify, sender=mailer.sender))
            services.ledger.count("mails", report.project, "report", "sent")
    except (MailDeferred, MailRefused, ConfigError) as error:
        services.ledger.count("mails", report.project, "report", "failed")
        log.error("report_not_mailed", project=report.project, error=str(error))


def _is_news(report: Report, services: Services) -> bool:
    """Corrections always are; the same failure only once a day."""
    if report.changes_recovered or report.records_corrected:
        return True
    name, now_ms = "failure_mailed_ms", milliseconds(services.now())
    last = int(services.redis.hget(keys.reconciled(report.project), name) or 0)
    if now_ms - last < FAILURE_MAIL_EVERY_MS:
        return False
    services.redis.hset(keys.reconciled(report.project), name, now_ms)
    return True


def compose_report(report: Report, recipients: list[str], *, sender: str) -> EmailMessage:
    """The message: counts, reasons, and the ids of records that were found different."""
    message = EmailMessage()
    verdict = "needs attention" if not report.is_well else "mended what differed"
    message["Subject"] = f"[{report.project}] Nightly comparison with Twilio {verdict}"
    message["From"] = sender
    message["To"] = ", ".join(recipients)
    message["Auto-Submitted"] = "auto-generated"
    message.set_content("\n".join(_lines(report)) + "\n")
    return message


def _lines(report: Report) -> list[str]:
    lines = [
        f"Twilio's message log and REDCap were compared for {report.project}, from {report.since} on.",
        "",
        f"Messages read:                   {report.messages_read}",
        f"Changes that had been missed:    {report.changes_recovered} (each that changed a record has its own e-mail)",
        f"Records read:                    {report.records_read}",
        f"Records that differed, mended:   {report.records_corrected}",
        f"Statuses that no record holds:   {report.statuses_without_record}",
        f"Changes not yet in REDCap:       {report.still_pending}",
    ]
    if report.corrected:
        lines += ["", "Mended because the fields had been changed by hand or lost, or the record is new:"]
        lines += [f"  record {record}" for record in report.corrected]
        more = report.records_corrected - len(report.corrected)
        lines += [f"  and {more} more"] if more > 0 else []
    if report.redacted_numbers:
        lines += ["", f"{report.redacted_numbers} messages had redacted numbers and could not be compared."]
    if report.refused:
        lines += ["", "REDCap refused to change these records; they need a person:"]
        lines += [f"  {refusal}" for refusal in report.refused[:20]]
    if report.errors:
        lines += ["", "What went wrong (the run is tried again by itself):"]
        lines += [f"  {error}" for error in report.errors[:20]]
    return lines
