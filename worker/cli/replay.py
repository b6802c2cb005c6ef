"""`optout replay`: have ended events looked up and written again, or their undelivered e-mails sent again."""

from collections.abc import Sequence
from datetime import datetime

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
    _require_one_choice(event, failed=failed, mails=mails, filtered=bool(record or since))
    services = make_services()
    names = chosen_projects(services, project)
    replay_in, kind, noun, missing = (
        (_replay_mails, "replay_mail", "mail", "undelivered mail of event")
        if mails
        else (_replay_events, "replay", "event", "event")
    )
    chosen, replayed = event or EventFilter(services, record, since), 0
    for name in names:
        done = replay_in(services, name, chosen)
        _note(services, name, done, kind=kind, by=by, reason=reason)
        replayed += len(done)
    click.echo(f"{replayed} {noun}{'' if replayed == 1 else 's'} replayed")
    if event and not replayed:
        click.echo(f"error: no {missing} {event}: see optout events", err=True)
        raise SystemExit(1)


def _require_one_choice(event: str | None, *, failed: bool, mails: bool, filtered: bool) -> None:
    """Raises click.UsageError if the options contradict each other."""
    if (bool(event) or mails) == failed:
        raise click.UsageError("give either an EVENT or --failed, or --mails")
    if event and filtered:
        raise click.UsageError(
            "--record and --since choose among several events; leave them out with an EVENT"
        )


def _note(
    services: Services, project: str, event_ids: Sequence[str], *, kind: str, by: str, reason: str
) -> None:
    """Keep who asked for what was done with events, and why."""
    now = services.now()
    actions = [
        StaffAction(at=now, event_id=event_id, kind=kind, by=by, reason=reason) for event_id in event_ids
    ]
    note_actions(services.redis, project, actions, retention_days=services.config.retention_days)


def _replay_events(services: Services, project: str, chosen: str | EventFilter) -> list[str]:
    ids = [chosen] if isinstance(chosen, str) else _failed(services, project, chosen)
    return [event_id for event_id in ids if _replay(services, project, event_id)]


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


def _replay_mails(services: Services, project: str, chosen: str | EventFilter) -> list[str]:
    if not services.config.projects[project].notify:
        return []
    ids = [chosen] if isinstance(chosen, str) else _undelivered(services, project, chosen)
    done = _send_again(services, project, ids)
    # A report concerns many records.
    return done if chosen else [*done, *_send_reports_again(services, project)]


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
