"""`optout replay`: have ended events looked up and written again, or their undelivered e-mails sent again."""

from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial

import click

from shared.domain.events import State
from shared.ledger import StoredEvent
from shared.ledger.events.staff_actions import StaffAction, note_actions
from shared.ledger.mails.report_mails import REPORT, ReportMails
from shared.messaging.record_events import publish_or_leave
from shared.messaging.tasks import TaskName
from worker.cli.common import chosen_projects, make_services
from worker.cli.filters import EventFilter, record_option, since_option
from worker.cli.record import os_user
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
@record_option
@since_option
@click.option("--reason", default="", help="Why, for the audit trail; without names or numbers.")
@click.option(
    "--by", default=os_user, show_default="the user of the operating system", help="Who asks for it."
)
def replay(  # noqa: PLR0913  one parameter per option
    event: str | None,
    failed: bool,
    mails: bool,
    project: str | None,
    record: str | None,
    since: datetime | None,
    reason: str,
    by: str,
) -> None:
    """Run EVENT (a message SID), or all failed ones, through lookup and update again.

    An event that a later change of the same phone has overtaken ends as superseded. With --mails nothing is
    written to REDCap: e-mails go again to those recipients that have not received them, and are retried for
    another week. Exit code 1 where EVENT is not known, or has no such e-mail.
    """
    if (bool(event) or mails) == failed:
        raise click.UsageError("give either an EVENT or --failed, or --mails")
    if event and (record or since):
        raise click.UsageError(
            "--record and --since choose among several events; leave them out with an EVENT"
        )
    services = make_services()
    names = chosen_projects(services, project)
    replay_all = _replay_mails if mails else _replay_events
    note = partial(_note, services, "replay_mail" if mails else "replay", by, reason)
    replayed = replay_all(services, names, event or EventFilter(services, record, since), note)
    click.echo(f"{replayed} {'mail' if mails else 'event'}{'' if replayed == 1 else 's'} replayed")
    if event and not replayed:
        what = "undelivered mail of event" if mails else "event"
        click.echo(f"error: no {what} {event}: see optout events", err=True)
        raise SystemExit(1)


Note = Callable[
    [str, Sequence[str]], None
]  # keeps who asked for what was done with a project's events, and why


def _note(
    services: Services, kind: str, by: str, reason: str, project: str, event_ids: Sequence[str]
) -> None:
    now = services.now()
    actions = [
        StaffAction(at=now, event_id=event_id, kind=kind, by=by, reason=reason) for event_id in event_ids
    ]
    note_actions(services.redis, project, actions, retention_days=services.config.retention_days)


def _replay_events(services: Services, names: list[str], chosen: str | EventFilter, note: Note) -> int:
    replayed = 0
    for name in names:
        ids = [chosen] if isinstance(chosen, str) else _failed(services, name, chosen)
        done = [event_id for event_id in ids if _replay(services, name, event_id)]
        note(name, done)
        replayed += len(done)
    return replayed


def _failed(services: Services, project: str, chosen: EventFilter) -> list[str]:
    entries = services.ledger.entries(project, newest_first=False, states=[State.FAILED])
    return [entry.event_id for entry in entries if chosen.admits(entry)]


def _undelivered(services: Services, project: str, chosen: EventFilter) -> list[str]:
    entries = services.ledger.entries(project, newest_first=False)
    return [entry.event_id for entry in entries if _is_undelivered(entry) and chosen.admits(entry)]


def _replay(services: Services, project: str, event_id: str) -> bool:
    if not services.ledger.reopen(project, event_id, now=services.now()):
        return False
    publish_or_leave(services.publish, TaskName.LOOKUP, project, event_id)
    return True


def _replay_mails(services: Services, names: list[str], chosen: str | EventFilter, note: Note) -> int:
    replayed = 0
    for name in names:
        if services.config.projects[name].notify:
            ids = [chosen] if isinstance(chosen, str) else _undelivered(services, name, chosen)
            done = _send_again(services, name, ids)
            if not chosen:  # a report concerns many records
                done += _send_reports_again(services, name)
            note(name, done)
            replayed += len(done)
    return replayed


def _send_reports_again(services: Services, project: str) -> list[str]:
    names = [f"{REPORT}{name}" for name in ReportMails(services.redis, project).names()]
    for name in names:
        publish_or_leave(services.publish, TaskName.EMAIL, project, name)
    return names


def _is_undelivered(entry: StoredEvent) -> bool:
    return entry.notice is not None or entry.mail not in {"", SENT}


def _send_again(services: Services, project: str, event_ids: Sequence[str]) -> list[str]:
    digest = services.config.projects[project].digest_seconds > 0
    kinds = {
        event_id: services.ledger.renotify(project, event_id, digest=digest, now=services.now())
        for event_id in event_ids
    }
    services.request_mails(project, [event_id for event_id, kind in kinds.items() if kind == "email"])
    if "digest" in kinds.values():
        publish_or_leave(services.publish, TaskName.EMAIL, project, "")
    return [event_id for event_id, kind in kinds.items() if kind]
