"""Send the study team the e-mail about an event, or about all that wait for a digest, once."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from email.message import EmailMessage

import structlog

from shared.config import Project
from shared.domain.events import Notice
from shared.errors import ConfigError, MailDeferred, MailRejected
from shared.ledger import StoredEvent
from shared.ledger.mails.deliveries import Delivery
from shared.ledger.mails.report_mails import REPORT
from shared.ledger.work.locks import try_lock
from shared.retry_policy import GIVE_UP_MAILS_AFTER
from worker.mail.digest_mail import compose_digest
from worker.mail.event_mail import compose
from worker.mail.smtp import SENT, Mailer, partly_rejected
from worker.mail.verdicts import Recipients
from worker.redcap.schema import ProjectSchema
from worker.services import MAILS_PER_MESSAGE, Services
from worker.steps.reconcile.report_mail import send_waiting_report

# More events than this go into a further mail.
MOST_PER_DIGEST = 500

log = structlog.get_logger(__name__)


def send_email(project: str, event_id: str, services: Services) -> None:
    """Send the e-mail that is due for an event, if any; without an event, the project's digest; or a waiting report.

    If a crash, or a pause for longer than the lock lasts, falls between the server's acceptance and its record in
    the ledger, the mail is sent once more; never zero times.
    """
    if services.project_config(project) is None:
        return  # paused: see worker/projects/removed.py
    if not event_id:
        _send_digest(project, services)
        return
    if event_id.startswith(REPORT):
        send_waiting_report(project, event_id.removeprefix(REPORT), services)
        return
    _send_due(project, event_id, services)
    for batched in services.ledger.take_mails(project, MAILS_PER_MESSAGE - 1):
        _send_due(project, batched, services)


@dataclass(kw_only=True)
class _Mail:
    """A mail that is due, about one event or several of one project, to the recipients that are not done."""

    entries: Sequence[StoredEvent]
    kind: str  # in metrics: a notice, or "digest"
    event: str  # in the log, when it is done
    about: Mapping[str, object]  # in the log
    compose: Callable[[Project, str], EmailMessage]
    delivery: Delivery

    @property
    def project(self) -> str:
        return self.entries[0].project

    def due_before(self, moment: datetime) -> list[StoredEvent]:
        """The events whose mail became due before a moment."""
        return [entry for entry in self.entries if (entry.mail_since or entry.received_at) < moment]


def _send_due(project: str, event_id: str, services: Services) -> None:
    """Send the mail about one event, unless another worker is sending it.

    The event is read last: a worker that was paused for longer than its lock lasts sees here that another one has
    sent the mail.
    """
    schema = services.schema_cache(project).last()
    with try_lock(services.redis, f"email:{project}:{event_id}") as acquired:
        entry = services.ledger.load(project, event_id) if acquired else None
        if entry is None or entry.notice is None:
            return
        if _waiting(_mail_about(entry, entry.notice, schema, services), services):
            services.schedule_quick_retry("email", project, event_id)


def _mail_about(
    entry: StoredEvent, notice: Notice, schema: ProjectSchema | None, services: Services
) -> _Mail:
    def composed(config: Project, sender: str) -> EmailMessage:
        zone = services.config.zone(config)
        account_sid = services.config.twilio[config.twilio].account_sid
        return compose(
            entry, notice, config, zone=zone, sender=sender, schema=schema, account_sid=account_sid,
            operator_notified=bool(services.config.operator.notify),
        )  # fmt: skip

    about = {"event_id": entry.event_id, "notice": notice}
    return _Mail(
        entries=[entry], kind=notice, event="mail_done", about=about, compose=composed,
        delivery=entry.delivery,
    )  # fmt: skip


def _send_digest(project: str, services: Services) -> None:
    """Send what waits for the digest, in one mail or, if it is very much, in several."""
    seconds = services.config.projects[project].digest_seconds
    with try_lock(services.redis, f"digest:{project}") as acquired:
        waiting: set[str] = set()
        while acquired and (ids := services.ledger.gathered(project, MOST_PER_DIGEST, skip=len(waiting))):
            waiting |= _waiting_of(ids, project, services)
            done = [event_id for event_id in ids if event_id not in waiting]
            services.ledger.mark_in_digest(project, done, digest_seconds=None if waiting else seconds)
        if waiting:
            services.schedule_quick_retry("digest", project)


def _waiting_of(ids: Sequence[str], project: str, services: Services) -> set[str]:
    """Send digests about events. Returns the ids of those that must be sent again.

    Events of which the same recipients are done go into one mail.
    """
    schema = services.schema_cache(project).last()
    by_delivery: dict[Delivery, list[StoredEvent]] = {}
    for entry in services.ledger.entries_of(project, ids):
        # A change that has become unsaved is mailed by itself, immediately.
        if entry.notice not in {None, Notice.UNSAVED}:
            by_delivery.setdefault(entry.delivery, []).append(entry)
    mails = [_digest_about(entries, schema, services) for entries in by_delivery.values()]
    return {event_id for mail in mails for event_id in _waiting(mail, services)}


def _digest_about(entries: Sequence[StoredEvent], schema: ProjectSchema | None, services: Services) -> _Mail:
    def composed(config: Project, sender: str) -> EmailMessage:
        zone = services.config.zone(config)
        return compose_digest(entries, config, zone=zone, sender=sender, schema=schema)

    about = {"changes": len(entries)}
    return _Mail(
        entries=entries, kind="digest", event="digest_done", about=about, compose=composed,
        delivery=entries[0].delivery,
    )  # fmt: skip


def _waiting(mail: _Mail, services: Services) -> Collection[str]:
    """Send a mail and record its outcome. Returns the ids of the events of which a mail is still due.

    A missing secret or an invalid address is fixed sooner or later, like a server that is unavailable.
    """
    try:
        outcome = _sent(mail, services)
    except (MailDeferred, ConfigError) as error:
        return _deferred(mail, " ".join(str(error).split()), services)
    except MailRejected as error:
        outcome = f"refused: {error}"
    return _note(mail, mail.entries, outcome, services)


def _deferred(mail: _Mail, reason: str, services: Services) -> Collection[str]:
    """Abandon the mail about events that have waited for too long. Returns the ids of the others."""
    late = mail.due_before(services.now() - GIVE_UP_MAILS_AFTER)
    waiting = [entry.event_id for entry in mail.entries if entry not in late]
    if waiting:
        log.warning("mail_put_off", project=mail.project, **mail.about, error=reason)
    if not late:
        return waiting
    outcome = f"{'partly ' if mail.delivery.accepted else ''}given up: {reason}"
    return [*waiting, *_note(mail, late, outcome, services)]


def _sent(mail: _Mail, services: Services) -> str:
    """Send a mail to the recipients that are not done. Returns the outcome.

    Raises ConfigError if the mail server's address is missing or invalid, and as the mailer does.
    """
    config = services.config.projects[mail.project]
    mailer = services.mailer if config.notify else None
    if mailer is None:
        return "nobody to tell"
    notify = list(dict.fromkeys(config.notify))
    to = [each for each in notify if not mail.delivery.is_done(services.address_hash(each))]
    missed = _offer(mail, config, mailer, to) if to else Recipients()
    _note_recipients(mail, to, missed, services)
    if missed.deferred:
        problem = f"{len(missed.deferred)} of {len(notify)} addresses: {missed.reason}"
        raise MailDeferred("smtp_recipients_deferred", problem)
    rejected = len(mail.delivery.rejected)
    return partly_rejected(rejected, len(notify)) if rejected else SENT


def _offer(mail: _Mail, config: Project, mailer: Mailer, to: Sequence[str]) -> Recipients:
    """Send a mail. Raises as the mailer does, unless a rejection concerns only the last recipients of several."""
    try:
        return mailer.send(mail.compose(config, mailer.sender), to=to)
    except MailRejected:
        if not mail.delivery.accepted:
            raise
        return Recipients(rejected=tuple(to))


def _note_recipients(mail: _Mail, to: Sequence[str], missed: Recipients, services: Services) -> None:
    """Remember which recipients are done, if some are not or were rejected."""
    if not missed.rejected and not missed.deferred:
        return
    accepted = set(to).difference(missed.rejected, missed.deferred)
    mail.delivery = Delivery(
        mail.delivery.accepted | {services.address_hash(address) for address in accepted},
        mail.delivery.rejected | {services.address_hash(address) for address in missed.rejected},
    )
    services.ledger.note_delivery(mail.entries, mail.delivery)


def _note(mail: _Mail, entries: Sequence[StoredEvent], outcome: str, services: Services) -> Collection[str]:
    """Record the outcome. Returns the ids of events of which another mail became due in the meantime."""
    due = [
        entry.event_id
        for entry in entries
        if entry.notice is not None
        and not services.ledger.record_mail_outcome(entry, entry.notice, outcome, now=services.now())
    ]
    services.ledger.count("mails", mail.project, mail.kind, outcome.partition(":")[0])
    level = log.info if outcome == SENT else log.error
    level(mail.event, project=mail.project, **mail.about, outcome=outcome)
    return due
