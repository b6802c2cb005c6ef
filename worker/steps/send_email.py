"""Tell the study team about one event, once."""

from datetime import timedelta

import structlog

from shared.errors import ConfigError, MailDeferred, MailRefused
from shared.events import Notice
from shared.ledger import Entry
from worker.locks import held
from worker.notice import compose
from worker.project import known_target
from worker.services import Services

# A mail server that is away for longer than this is nobody's temporary trouble.
GIVE_UP_AFTER = timedelta(days=7)

log = structlog.get_logger(__name__)


def send_email(project: str, event_id: str, services: Services) -> None:
    """Send the e-mail that is due for an event, if one is. Two at a time are kept apart by a lock.

    Where a crash falls between the server's yes and our note of it, the mail is sent once more; never not
    at all.
    """
    with held(services.redis, f"email:{project}:{event_id}") as mine:
        entry = services.ledger.load(project, event_id) if mine else None
        if entry is None or entry.notice is None:
            return
        _send(entry, entry.notice, services)


def _send(entry: Entry, notice: Notice, services: Services) -> None:
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
        target=known_target(services.redis, entry.project),
    )
    try:
        refused = services.mailer.send(message)
    except MailDeferred as error:
        _put_off(entry, notice, error, services)
    except (MailRefused, ConfigError) as error:
        _done(entry, notice, f"refused: {error}", services)
    else:
        _done(entry, notice, f"sent, {len(refused)} addresses refused" if refused else "sent", services)


def _put_off(entry: Entry, notice: Notice, error: MailDeferred, services: Services) -> None:
    since = entry.finished_at or entry.received_at
    if services.now() - since > GIVE_UP_AFTER:
        _done(entry, notice, f"given up: {error}", services)
        return
    log.warning("mail_put_off", project=entry.project, event_id=entry.event_id, error=str(error))
    services.retry_soon("email", entry.project, entry.event_id)


def _done(entry: Entry, notice: Notice, outcome: str, services: Services) -> None:
    services.ledger.notified(entry, notice, outcome)
    word = outcome.partition(":")[0].partition(",")[0]
    services.ledger.count("mails", entry.project, notice, word)
    level = log.info if word == "sent" else log.error
    level("mail_done", project=entry.project, event_id=entry.event_id, notice=notice, outcome=outcome)
