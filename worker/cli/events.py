"""`optout events`: what has happened."""

from collections.abc import Iterator, Sequence
from datetime import datetime
from heapq import merge
from itertools import islice
from operator import attrgetter

import click

from shared.domain.events import State
from shared.ledger import CHUNK, Ledger, StoredEvent
from worker.cli.common import chosen_projects, describe, make_services, print_json_array, print_table
from worker.cli.filters import EventFilter, record_option, since_option

EVENTS_IN_MEMORY = 5_000


@click.command()
@click.option("--project", help="Only this project's events.")
@click.option(
    "--state", type=click.Choice([state.value for state in State]), help="Only events in this state."
)
@record_option
@since_option
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
    found = filter(EventFilter(services, record, since).admits, _newest_first(services.ledger, names, state))
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
    with_events = [name for name, number in ledger.most_entries(projects, states).items() if number]
    page = max(20, EVENTS_IN_MEMORY // max(1, len(with_events)))
    each = [ledger.entries(name, states=states, page=min(page, CHUNK)) for name in with_events]
    return merge(*each, key=attrgetter("received_at"), reverse=True)
