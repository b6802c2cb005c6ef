"""The e-mail about a reconciliation: what it changed, what it could not see, and what a person has to do."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from email.message import EmailMessage
from email.utils import format_datetime, make_msgid

import structlog

from shared.config import Project
from shared.domain.events import milliseconds
from shared.domain.mailbox import set_addresses
from shared.errors import ConfigError, MailDeferred, MailRejected
from shared.ledger.mails.report_mails import FAILURE, REPORT, ReportMail, ReportMails
from shared.ledger.projects.reconciliations import Reconciliations
from shared.ledger.work.locks import try_lock
from shared.retry_policy import FAILURE_MAIL_EVERY_MS, GIVE_UP_MAILS_AFTER
from worker.mail.event_mail import encoding, render
from worker.mail.smtp import SENT, partly_rejected
from worker.services import Services
from worker.steps.reconcile.report import MOST_REASONS_NAMED, MOST_RECORDS_NAMED, Report
from worker.steps.reconcile.sends import TextsAfterOptOut

PARTS = ("report.subject", "report.txt", "report.html")

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Section:
    """A heading with its lines; `needs_somebody` marks what a person has to do."""

    heading: str
    lines: Sequence[str] = ()
    needs_somebody: bool = False


def send_report(report: Report, services: Services) -> None:
    """Send the report, if the project has recipients. What the mail server defers is sent later."""
    config, smtp = services.project_config(report.project), services.config.smtp
    if config is None or smtp is None or not config.notify:
        return
    if not _is_due(report, services):
        return
    if services.config.operator.notify and not report.concerns_study_team:
        return
    made_ms = milliseconds(services.now())
    mail = ReportMail(
        name=str(made_ms) if report.has_news else FAILURE,
        report=asdict(report),
        message_id=make_msgid("report", smtp.sender.domain),
        made_ms=made_ms,
    )
    ReportMails(services.redis, report.project).store(mail, now=services.now())
    send_waiting_report(report.project, mail.name, services)


def send_waiting_report(project: str, name: str, services: Services) -> None:
    """Send a report that is kept, unless another worker is sending one of the project."""
    with try_lock(services.redis, f"report-mail:{project}") as acquired:
        mail = ReportMails(services.redis, project).load(name) if acquired else None
        if mail is not None:
            _deliver(mail, services.config.projects[project], services)


def _deliver(mail: ReportMail, config: Project, services: Services) -> None:
    """Send a report to the recipients that are not done, and forget it unless some are deferred."""
    report = Report.from_stored(mail.report)
    try:
        outcome = _sent(mail, report, config, services)
    except (MailDeferred, ConfigError) as error:
        if services.now() - mail.made_at < GIVE_UP_MAILS_AFTER:
            log.warning("report_put_off", project=report.project, error=" ".join(str(error).split()))
            services.schedule_quick_retry("email", report.project, f"{REPORT}{mail.name}")
            return
        outcome = "given up"
        log.error("report_not_mailed", project=report.project, error=str(error))
    except MailRejected as error:
        outcome = "failed"
        log.error("report_not_mailed", project=report.project, error=str(error))
    ReportMails(services.redis, report.project).remove(mail.name)
    services.ledger.count("mails", report.project, "report", outcome.partition(":")[0])
    if outcome.startswith("partly"):
        log.error("report_mailed_in_part", project=report.project, outcome=outcome)
    if not report.is_well and outcome not in {"failed", "given up"}:
        Reconciliations(services.redis, report.project).note_failure_mailed(services.now())


def _sent(mail: ReportMail, report: Report, config: Project, services: Services) -> str:
    """Send a report. Returns the outcome. Raises as the mailer does, or ConfigError."""
    mailer = services.mailer
    done = {*mail.accepted, *mail.rejected}
    to = [each for each in dict.fromkeys(config.notify) if services.address_hash(each) not in done]
    if mailer is None or not to:
        return SENT
    message = compose_report(
        report, config.notify, sender=mailer.sender, field=config.opt_out_field,
        operator_notified=bool(services.config.operator.notify),
    )  # fmt: skip
    message["Date"] = format_datetime(mail.made_at)
    message["Message-ID"] = mail.message_id
    missed = mailer.send(message, to=to)
    rejected = {*mail.rejected, *map(services.address_hash, missed.rejected)}
    if missed.deferred:
        accepted = {
            *mail.accepted,
            *map(services.address_hash, set(to).difference(missed.rejected, missed.deferred)),
        }
        waiting = replace(mail, accepted=tuple(accepted), rejected=tuple(rejected))
        ReportMails(services.redis, report.project).store(waiting, now=services.now())
        raise MailDeferred(
            "smtp_recipients_deferred", f"{len(missed.deferred)} of {len(config.notify)} addresses"
        )
    return partly_rejected(len(rejected), len(config.notify)) if rejected else SENT


def _is_due(report: Report, services: Services) -> bool:
    """What was changed or found always is; the same failure only once a day."""
    if report.has_news or not report.is_worth_a_mail:
        return report.has_news
    last_ms = Reconciliations(services.redis, report.project).failure_mailed_ms()
    return milliseconds(services.now()) - last_ms >= FAILURE_MAIL_EVERY_MS


def compose_report(
    report: Report,
    recipients: Sequence[str],
    *,
    sender: str,
    field: str = "the opt-out field",
    operator_notified: bool = False,
) -> EmailMessage:
    """The message, with a plain and an HTML part: counts, reasons, and record ids. Pure.

    With `operator_notified`, what only those who run the platform can fix is left to them.
    """
    technical = [*_hidden(report), *_errors(report)]
    facts = {
        "project": report.project,
        "report": report,
        "counts": list(_counts(report)),
        "sections": [
            *_changed(report),
            *_entered_by_people(report),
            *_texts(report, field),
            *_blocks(report),
            *_refused(report),
            *([_LEFT_TO_OPERATOR] if technical and operator_notified else technical),
        ],
    }
    subject, text, html = (render(part, facts, None) for part in PARTS)
    message = EmailMessage()
    message["Subject"] = " ".join(subject.split())
    set_addresses(message, "From", [sender])
    set_addresses(message, "To", recipients)
    message["Auto-Submitted"] = "auto-generated"
    message.set_content(text, cte=encoding(text))
    message.add_alternative(html, subtype="html", cte=encoding(html))
    return message


def _counts(report: Report) -> Iterator[tuple[str, str]]:
    yield "Messages read", str(report.messages_read)
    yield "Changes that had been missed", f"{report.changes_recovered} (each written one has its own e-mail)"
    yield "Records read", str(report.records_read)
    yield "Records restored", str(report.records_corrected)
    yield "Numbers of no record", str(report.statuses_without_record)
    yield "Opt-outs entered by people", str(report.entered_by_hand)
    yield "Changes not yet in REDCap", str(report.still_pending)
    if report.blocks_confirmed:
        yield "Texts that Twilio refused after a block", str(report.blocks_confirmed)


def _changed(report: Report) -> Iterator[Section]:
    if report.corrected:
        more = report.records_corrected - len(report.corrected)
        yield Section(
            "Restored, because the fields had been changed by hand or lost, or the record is new:",
            [*_records(report.corrected), *([f"and {more} more"] if more > 0 else [])],
        )


def _records(records: Sequence[str]) -> list[str]:
    return [f"record {record}" for record in records]


def _entered_by_people(report: Report) -> Iterator[Section]:
    if report.newly_kept:
        yield Section(
            "These records show an opt-out although the last text was START. A person entered it, and only a person "
            "ends it:",
            _shortened(_records(report.newly_kept), MOST_RECORDS_NAMED),
        )


def _texts(report: Report, field: str) -> Iterator[Section]:
    if report.texts_after_opt_out:
        yield Section(
            "The study sent texts to participants who had opted out. The alert or survey invitation that sends them "
            f'in REDCap probably lacks the condition [{field}] = "":',
            _shortened(list(map(_text_counts, report.texts_after_opt_out)), MOST_RECORDS_NAMED),
            needs_somebody=True,
        )


def _text_counts(texts: TextsAfterOptOut) -> str:
    record = f"record {texts['record']}" if texts["record"] else "a number of no record"
    return f"{record}: {texts['delivered']} delivered, {texts['refused']} refused by Twilio"


def _blocks(report: Report) -> Iterator[Section]:
    if report.block_faults:
        yield Section(
            "Twilio delivered texts although it was asked to block the number (a fault of the block). Report it to "
            "Twilio's support, and stop the study's texts to these participants:",
            [f"record {each['record']}: {each['delivered']} delivered" for each in report.block_faults],
            needs_somebody=True,
        )
    if report.newly_not_blocked:
        yield Section(
            "Twilio does not block these participants' numbers, and may go on delivering texts:",
            _shortened(report.newly_not_blocked, MOST_RECORDS_NAMED),
            needs_somebody=True,
        )


def _hidden(report: Report) -> Iterator[Section]:
    """What Twilio does not show is reported, not guessed."""
    if report.missing_from_log:
        lines = [
            f"{each['sender']}: {each['messages']} messages, {each['since']} to {each['until']}"
            for each in report.missing_from_log
        ]
        yield Section(
            "Messages are missing from Twilio's log: REDCap deletes those that it has handled. For these senders and "
            "times, this report does not prove that no opt-out was missed:",
            lines,
            needs_somebody=True,
        )
    if report.redacted_numbers:
        yield Section(
            f"{report.redacted_numbers} STOPs or STARTs have redacted numbers: their senders are unknown."
        )
    if report.hides_bodies:
        yield Section(
            f"All {report.redacted_bodies} texts have no body (redaction?): a missed STOP cannot be found."
        )
    if report.incomplete_messages:
        yield Section(
            f"{report.incomplete_messages} messages have no date or no SID: it is unknown whether one is a STOP."
        )


_LEFT_TO_OPERATOR = Section(
    "Something could not be seen, or failed: for that, this report does not prove that no opt-out was missed. Those "
    "who run the platform are notified."
)


def _refused(report: Report) -> Iterator[Section]:
    if report.refused:
        refused = _shortened(report.refused, MOST_REASONS_NAMED)
        yield Section(
            "REDCap refused to change these records; they need a person:", refused, needs_somebody=True
        )


def _errors(report: Report) -> Iterator[Section]:
    if report.errors:
        errors = _shortened(report.errors, MOST_REASONS_NAMED)
        yield Section("What went wrong (the run is tried again automatically):", errors, needs_somebody=True)


def _shortened(lines: Sequence[str], most: int) -> list[str]:
    more = len(lines) - most
    return [*lines[:most], *([f"and {more} more"] if more > 0 else [])]
