"""Tell the study team about an event, or about all that were gathered, once."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from email.message import EmailMessage

import structlog

from shared.config import Project
from shared.domain.events import Notice
from shared.errors import ConfigError, MailDeferred, MailRejected
from shared.ledger import Entry
from shared.ledger.locks import held
from worker.mail.digest_mail import compose_digest
from worker.mail.event_mail import compose
from worker.mail.smtp import SENT, outcome_of
from worker.redcap.gateway import cached_schema
from worker.redcap.schema import ProjectSchema
from worker.services import MAILS_PER_MESSAGE, Services

# A mail server that is away for longer than this is nobody's temporary trouble.
GIVE_UP_AFTER = timedelta(days=7)
# What is beyond this goes into a further mail.
MOST_PER_DIGEST = 500

log = structlog.get_logger(__name__)


def send_email(project: str, event_id: str, services: Services) -> None:
    """Send the e-mail that is due for an event, if one is; without an event, the project's digest.

    Where a crash, or a standstill for longer than the lock holds, falls between our asking the server and our note
    of its yes, the mail is sent once more; never not at all.
    """
    if services.project_config(project) is None:
        return  # it rests: see worker/projects/removed.py
    if not event_id:
        _send_digest(project, services)
        return
    _send_due(project, event_id, services)
    for along in services.ledger.take_mails(project, MAILS_PER_MESSAGE - 1):
        _send_due(project, along, services)


@dataclass(frozen=True, kw_only=True)
class _Mail:
    """A mail that is due, about one event or many of one project."""

    entries: Sequence[Entry]
    kind: str  # in the figures: a notice, or "digest"
    event: str  # in the log, when it is done with
    about: Mapping[str, object]  # the same
    compose: Callable[[Project, str], EmailMessage]

    @property
    def project(self) -> str:
        return self.entries[0].project

    @property
    def since(self) -> datetime:
        """When it became due."""
        return self.entries[0].finished_at or self.entries[0].received_at


def _send_due(project: str, event_id: str, services: Services) -> None:
    """Two at a time are kept apart by a lock.

    The entry is the last thing that is read before its mail goes out: who stood still for longer than the lock
    holds, while another sent the mail, sees so here.
    """
    schema = cached_schema(services.redis, project)
    with held(services.redis, f"email:{project}:{event_id}") as mine:
        entry = services.ledger.load(project, event_id) if mine else None
        if entry is None or entry.notice is None:
            return
        if not _is_done(_mail_about(entry, entry.notice, schema, services), services):
            services.retry_soon("email", project, event_id)


def _mail_about(entry: Entry, notice: Notice, schema: ProjectSchema | None, services: Services) -> _Mail:
    def composed(config: Project, sender: str) -> EmailMessage:
        zone = services.config.zone(config)
        return compose(entry, notice, config, zone=zone, sender=sender, schema=schema)

    about = {"event_id": entry.event_id, "notice": notice}
    return _Mail(entries=[entry], kind=notice, event="mail_done", about=about, compose=composed)


def _send_digest(project: str, services: Services) -> None:
    """Send what was gathered, in one mail or, where it is very much, in several."""
    seconds = services.config.projects[project].digest_seconds
    schema = cached_schema(services.redis, project)
    with held(services.redis, f"digest:{project}") as mine:
        while mine and (ids := services.ledger.gathered(project, MOST_PER_DIGEST)):
            entries = [
                entry
                for entry in services.ledger.entries_of(project, ids)
                # What could not be saved since is told by itself, at once.
                if entry.notice not in {None, Notice.UNSAVED}
            ]
            if entries and not _is_done(_digest_about(entries, schema, services), services):
                services.retry_soon("digest", project)
                return
            services.ledger.digested(project, ids, digest_seconds=seconds)


def _digest_about(entries: Sequence[Entry], schema: ProjectSchema | None, services: Services) -> _Mail:
    def composed(config: Project, sender: str) -> EmailMessage:
        zone = services.config.zone(config)
        return compose_digest(entries, config, zone=zone, sender=sender, schema=schema)

    about = {"changes": len(entries)}
    return _Mail(entries=entries, kind="digest", event="digest_done", about=about, compose=composed)


def _is_done(mail: _Mail, services: Services) -> bool:
    """Send a mail, and note its outcome. False where it was put off.

    A secret that is missing, or an address that is none, is mended sooner or later, like a server that is away.
    """
    try:
        outcome = _sent(mail, services)
    except (MailDeferred, ConfigError) as error:
        reason = " ".join(str(error).split())
        if services.now() - mail.since <= GIVE_UP_AFTER:
            log.warning("mail_put_off", project=mail.project, **mail.about, error=reason)
            return False
        outcome = f"given up: {reason}"
    except MailRejected as error:
        outcome = f"refused: {error}"
    _note(mail, outcome, services)
    return True


def _sent(mail: _Mail, services: Services) -> str:
    """The outcome. Raises ConfigError where there is no mail server to ask, and as the mailer does."""
    config = services.config.projects[mail.project]
    mailer = services.mailer if config.notify else None
    if mailer is None:
        return "nobody to tell"
    message = mail.compose(config, mailer.sender)
    return outcome_of(mailer.send(message), message)


def _note(mail: _Mail, outcome: str, services: Services) -> None:
    for entry in mail.entries:
        if entry.notice is not None:
            services.ledger.notified(entry, entry.notice, outcome)
    services.ledger.count("mails", mail.project, mail.kind, outcome.partition(":")[0])
    level = log.info if outcome == SENT else log.error
    level(mail.event, project=mail.project, **mail.about, outcome=outcome)
