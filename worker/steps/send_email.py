"""Tell the study team about an event, or about all that were gathered, once."""

from collections.abc import Sequence
from datetime import timedelta

import structlog

from shared.errors import ConfigError, MailDeferred, MailRefused
from shared.events import Notice
from shared.ledger import Entry
from worker.digest import compose_digest
from worker.locks import held
from worker.notice import compose
from worker.project import Target, known_target
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
    if not event_id:
        _send_digest(project, services)
        return
    _send_due(project, event_id, services)
    for along in services.ledger.take_mails(project, MAILS_PER_MESSAGE - 1):
        _send_due(project, along, services)


def _send_due(project: str, event_id: str, services: Services) -> None:
    """Two at a time are kept apart by a lock.

    The entry is the last thing that is read before its mail goes out: who stood still for longer than the lock
    holds, while another sent the mail, sees so here.
    """
    target = known_target(services.redis, project)
    with held(services.redis, f"email:{project}:{event_id}") as mine:
        entry = services.ledger.load(project, event_id) if mine else None
        if entry is None or entry.notice is None:
            return
        _send(entry, entry.notice, target, services)


def _send_digest(project: str, services: Services) -> None:
    """Send what was gathered, in one mail or, where it is very much, in several."""
    config = services.project_config(project)
    seconds = config.digest_seconds if config else 0
    target = known_target(services.redis, project)
    with held(services.redis, f"digest:{project}") as mine:
        while mine and (ids := services.ledger.gathered(project, MOST_PER_DIGEST)):
            entries = [
                entry
                for entry in services.ledger.entries_of(project, ids)
                # What could not be saved since is told by itself, at once.
                if entry.notice not in {None, Notice.UNSAVED}
            ]
            if entries and not _digest_is_done(project, entries, target, services):
                return
            services.ledger.digested(project, ids, digest_seconds=seconds)


def _digest_is_done(
    project: str, entries: Sequence[Entry], target: Target | None, services: Services
) -> bool:
    """Send one digest. False where the server did not take it for now."""
    config = services.project_config(project)
    if config is None or not config.notify or services.mailer is None:
        _digest_done(entries, "nobody to tell", services)
        return True
    message = compose_digest(
        entries,
        config,
        zone=services.config.zone(config),
        sender=services.mailer.sender,
        target=target,
    )
    try:
        refused = services.mailer.send(message)
    except MailDeferred as error:
        if services.now() - (entries[0].finished_at or entries[0].received_at) > GIVE_UP_AFTER:
            _digest_done(entries, f"given up: {error}", services)
            return True
        log.warning("mail_put_off", project=project, changes=len(entries), error=str(error))
        services.retry_soon("digest", project)
        return False
    except (MailRefused, ConfigError) as error:
        _digest_done(entries, f"refused: {error}", services)
    else:
        _digest_done(entries, _sent(refused), services)
    return True


def _digest_done(entries: Sequence[Entry], outcome: str, services: Services) -> None:
    project, word = entries[0].project, _word(outcome)
    for entry in entries:
        if entry.notice is not None:
            services.ledger.notified(entry, entry.notice, outcome)
    services.ledger.count("mails", project, "digest", word)
    level = log.info if word == "sent" else log.error
    level("digest_done", project=project, changes=len(entries), outcome=outcome)


def _send(entry: Entry, notice: Notice, target: Target | None, services: Services) -> None:
    config = services.project_config(entry.project)
    if config is None or not config.notify or services.mailer is None:
        _done(entry, notice, "nobody to tell", services)
        return
    message = compose(
        entry,
        notice,
        config,
        zone=services.config.zone(config),
        sender=services.mailer.sender,
        target=target,
    )
    try:
        refused = services.mailer.send(message)
    except MailDeferred as error:
        _put_off(entry, notice, error, services)
    except (MailRefused, ConfigError) as error:
        _done(entry, notice, f"refused: {error}", services)
    else:
        _done(entry, notice, _sent(refused), services)


def _sent(refused: Sequence[str]) -> str:
    return f"sent, {len(refused)} addresses refused" if refused else "sent"


def _word(outcome: str) -> str:
    """The outcome's first word or two, for the figures."""
    return outcome.partition(":")[0].partition(",")[0]


def _put_off(entry: Entry, notice: Notice, error: MailDeferred, services: Services) -> None:
    since = entry.finished_at or entry.received_at
    if services.now() - since > GIVE_UP_AFTER:
        _done(entry, notice, f"given up: {error}", services)
        return
    log.warning("mail_put_off", project=entry.project, event_id=entry.event_id, error=str(error))
    services.retry_soon("email", entry.project, entry.event_id)


def _done(entry: Entry, notice: Notice, outcome: str, services: Services) -> None:
    services.ledger.notified(entry, notice, outcome)
    word = _word(outcome)
    services.ledger.count("mails", entry.project, notice, word)
    level = log.info if word == "sent" else log.error
    level("mail_done", project=entry.project, event_id=entry.event_id, notice=notice, outcome=outcome)
