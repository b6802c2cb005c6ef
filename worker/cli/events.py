"""`optout events`: what has happened."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from heapq import merge
from itertools import islice
from operator import attrgetter
from zoneinfo import ZoneInfo

import click

from shared.domain.events import State
from shared.ledger import CHUNK, Ledger, StoredEvent
from worker.cli.common import chosen_projects, describe, make_services, print_json_array, print_table
from worker.services import Services

EVENTS_IN_MEMORY = 5_000


@click.command()
@click.option("--project", help="Only this project's events.")
@click.option(
    "--state", type=click.Choice([state.value for state in State]), help="Only events in this state."
)
@click.option("--record", metavar="ID", help="Only events that concern this record.")
@click.option(
    "--since", type=click.DateTime(["%Y-%m-%d", "%Y-%m-%d %H:%M", "%Y-%m-%dT%H:%M:%S%z"]),
    help="Only texts from this time on: local to the project, or ISO 8601 with an offset.",
)  # fmt: skip
@click.option("--limit", type=click.IntRange(min=1), help="At most so many, the newest.")
@click.option("--json", "as_json", is_flag=True, help="An array of objects.")
def events(
    project: str | None,
    state: str | None,
    record: str | None,
    since: datetime | None,
    limit: int | None,
    as_json: bool,
) -> None:
    """List opt-out events, newest first."""
    services = make_services()
    names = chosen_projects(services, project, also_taken_out=True)
    begins = {name: _begin(since, name, services) for name in names}
    found = (
        entry
        for entry in _newest_first(services.ledger, names, state)
        if (record is None or record in entry.records) and entry.occurred_at >= begins[entry.project]
    )
    shown = map(describe, islice(found, limit))
    if as_json:
        print_json_array(shown)
        return
    print_table(
        ("When (UTC)", "Project", "Change", "State", "Records", "Reason", "Mail", "Message"),
        (
            (
                event["occurred_at"][:19].replace("T", " "),
                event["project"],
                event["change"],
                event["state"],
                ", ".join(event["records"]),
                event["reason"],
                event["mail"],
                event["event_id"],
            )
            for event in shown
        ),
    )


def _newest_first(ledger: Ledger, projects: Sequence[str], state: str | None) -> Iterator[StoredEvent]:
    """The events of all projects in one order, in memory that does not grow with their number."""
    states = [State(state)] if state else []
    page = max(20, EVENTS_IN_MEMORY // max(1, len(projects)))
    each = [ledger.entries(name, states=states, page=min(page, CHUNK)) for name in projects]
    return merge(*each, key=attrgetter("received_at"), reverse=True)


def _begin(since: datetime | None, project: str, services: Services) -> datetime:
    """The first time of interest; one without offset is local to the project."""
    if since is None:
        return datetime.min.replace(tzinfo=UTC)
    config = services.project_config(project)
    zone = services.config.zone(config) if config else ZoneInfo(services.config.time_zone)
    return since if since.tzinfo else since.replace(tzinfo=zone)
