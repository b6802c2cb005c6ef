"""`optout replay`: have ended events looked up and written again, or their undelivered e-mails sent again."""

from collections.abc import Callable, Sequence

import click

from shared.domain.events import State
from shared.ledger import StoredEvent
from shared.messaging.celery_config import TaskName
from shared.messaging.record_events import publish_or_leave
from worker.cli.common import chosen_projects, make_services
from worker.mail.smtp import SENT
from worker.services import Services


@click.command()
@click.argument("event", required=False)
@click.option("--failed", is_flag=True, help="All events that ended as failed.")
@click.option(
    "--mails",
    is_flag=True,
    help="Send e-mails again that were rejected, abandoned or deferred; with EVENT only its e-mail.",
)
@click.option("--project", help="Only in this project.")
def replay(event: str | None, failed: bool, mails: bool, project: str | None) -> None:
    """Run EVENT (a message SID), or all failed ones, through lookup and update again.

    An event that a later change of the same phone has overtaken ends as superseded. With --mails nothing is
    written to REDCap: e-mails go again to those recipients that have not received them, and are retried for
    another week. Exit code 1 where EVENT is not known, or has no such e-mail.
    """
    if (bool(event) or mails) == failed:
        raise click.UsageError("give either an EVENT or --failed, or --mails")
    services = make_services()
    names = chosen_projects(services, project)
    replayed = _replay_mails(services, names, event) if mails else _replay_events(services, names, event)
    click.echo(f"{replayed} {'mail' if mails else 'event'}{'' if replayed == 1 else 's'} replayed")
    if event and not replayed:
        what = "undelivered mail of event" if mails else "event"
        click.echo(f"error: no {what} {event}: see optout events", err=True)
        raise SystemExit(1)


def _replay_events(services: Services, names: list[str], event: str | None) -> int:
    replayed = 0
    for name in names:
        ids = [event] if event else _ids_of(services, name, lambda entry: entry.state is State.FAILED)
        replayed += sum(_replay(services, name, event_id) for event_id in ids)
    return replayed


def _ids_of(services: Services, project: str, chosen: Callable[[StoredEvent], bool]) -> list[str]:
    entries = services.ledger.entries(project, newest_first=False)
    return [entry.event_id for entry in entries if chosen(entry)]


def _replay(services: Services, project: str, event_id: str) -> bool:
    if not services.ledger.reopen(project, event_id, now=services.now()):
        return False
    publish_or_leave(services.publish, TaskName.LOOKUP, project, event_id)
    return True


def _replay_mails(services: Services, names: list[str], event: str | None) -> int:
    replayed = 0
    for name in names:
        if services.config.projects[name].notify:
            ids = [event] if event else _ids_of(services, name, _is_undelivered)
            replayed += _send_again(services, name, ids)
    return replayed


def _is_undelivered(entry: StoredEvent) -> bool:
    return entry.notice is not None or entry.mail not in {"", SENT}


def _send_again(services: Services, project: str, event_ids: Sequence[str]) -> int:
    digest = services.config.projects[project].digest_seconds > 0
    kinds = {
        event_id: services.ledger.renotify(project, event_id, digest=digest, now=services.now())
        for event_id in event_ids
    }
    services.request_mails(project, [event_id for event_id, kind in kinds.items() if kind == "email"])
    if "digest" in kinds.values():
        publish_or_leave(services.publish, TaskName.EMAIL, project, "")
    return sum(kind is not None for kind in kinds.values())
