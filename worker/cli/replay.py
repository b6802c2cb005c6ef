"""`optout replay`: have ended events looked up and written again."""

import click

from shared.domain.events import State
from shared.messaging.celery_config import TaskName
from shared.messaging.record_events import publish_or_leave
from worker.cli.common import chosen_projects, make_services
from worker.services import Services


@click.command()
@click.argument("event", required=False)
@click.option("--failed", is_flag=True, help="All events that ended as failed.")
@click.option("--project", help="Only in this project.")
def replay(event: str | None, failed: bool, project: str | None) -> None:
    """Run EVENT (a message SID), or all failed ones, through lookup and update again.

    An event that a later change of the same phone has overtaken ends as superseded. Exit code 1 where
    EVENT is not known.
    """
    if bool(event) == failed:
        raise click.UsageError("give either an EVENT or --failed")
    services = make_services()
    names = chosen_projects(services, project)
    found = _failed(services, names) if failed else [(name, str(event)) for name in names]
    replayed = [(name, event_id) for name, event_id in found if _replay(services, name, event_id)]
    click.echo(f"{len(replayed)} event{'' if len(replayed) == 1 else 's'} replayed")
    if event and not replayed:
        click.echo(f"error: no event {event}: see optout events", err=True)
        raise SystemExit(1)


def _failed(services: Services, names: list[str]) -> list[tuple[str, str]]:
    return [
        (name, entry.event_id)
        for name in names
        for entry in services.ledger.entries(name, newest_first=False)
        if entry.state is State.FAILED
    ]


def _replay(services: Services, project: str, event_id: str) -> bool:
    if not services.ledger.reopen(project, event_id, now=services.now()):
        return False
    publish_or_leave(services.publish, TaskName.LOOKUP, project, event_id)
    return True
