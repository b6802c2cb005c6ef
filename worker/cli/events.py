"""`optout events`: what has happened."""

from itertools import islice

import click

from shared.domain.events import State
from worker.cli.common import chosen_projects, describe, make_services, print_json, print_table


@click.command()
@click.option("--project", help="Only this project's events.")
@click.option(
    "--state", type=click.Choice([state.value for state in State]), help="Only events in this state."
)
@click.option("--limit", type=click.IntRange(min=1), help="At most so many, the newest.")
@click.option("--json", "as_json", is_flag=True, help="An array of objects.")
def events(project: str | None, state: str | None, limit: int | None, as_json: bool) -> None:
    """List opt-out events, newest first."""
    services = make_services()
    found = [
        entry
        for name in chosen_projects(services, project, also_taken_out=True)
        for entry in islice(
            (entry for entry in services.ledger.entries(name) if state in {None, entry.state.value}), limit
        )
    ]
    found.sort(key=lambda entry: entry.received_at, reverse=True)
    shown = [describe(entry) for entry in found[:limit]]
    if as_json:
        print_json(shown)
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
