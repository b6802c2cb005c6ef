"""`optout review`: what waits for a person's decision, and the decision."""

import sys
from datetime import datetime
from typing import Any

import click

from shared.domain.events import Change, State
from shared.ledger import StaffDecision, StoredEvent
from worker.cli.common import chosen_projects, describe, make_services, print_json, print_table
from worker.cli.filters import EventFilter, record_option, since_option
from worker.cli.record import os_user, show_outcome
from worker.services import Services
from worker.steps.staff_decisions import review as decide
from worker.steps.staff_decisions import waiting_reviews


@click.command()
@click.argument("event", required=False)
@click.argument("decision", required=False, type=click.Choice(["stop", "dismiss"]))
@click.option("--project", help="Only this project.")
@record_option
@since_option
@click.option("--reason", default="", help="Why, for the audit trail; without names or numbers.")
@click.option("--by", default=os_user, show_default="the user of the operating system", help="Who decided.")
@click.option("--json", "as_json", is_flag=True, help="An array of objects.")
def review(  # noqa: PLR0913  one parameter per option
    event: str | None,
    decision: str | None,
    project: str | None,
    record: str | None,
    since: datetime | None,
    reason: str,
    by: str,
    as_json: bool,
) -> None:
    """List what waits for a person's decision; or decide EVENT.

    "stop": the text was an opt-out, which is written with the time of the text. "dismiss": nothing has to change.
    For a START, "stop" and "dismiss" alike leave the opt-out as it is; optout record … start ends it.
    """
    if (event is None) != (decision is None):
        raise click.UsageError('give an EVENT and "stop" or "dismiss", or neither')
    services = make_services()
    names = chosen_projects(services, project)
    if event is None or decision is None:
        _list(services, names, EventFilter(services, record, since), as_json)
        return
    change = Change.STOP if decision == "stop" else None
    for entry in _found(services, names, event):
        decided = decide(entry, change, StaffDecision(by=by, reason=reason), services)
        show_outcome(decided)
        if change and decided.state not in {State.UPDATED, State.ALREADY_CURRENT, State.SUPERSEDED}:
            sys.exit(1)


def _found(services: Services, names: list[str], event: str) -> list[StoredEvent]:
    """The event in each project that it concerns. Raises click.BadParameter if none waits."""
    found = [entry for entry in (services.ledger.load(name, event) for name in names) if entry]
    waiting = [entry for entry in found if entry.state is State.NEEDS_REVIEW]
    if not waiting:
        state = f"it is {found[0].state}" if found else "there is no such event"
        raise click.BadParameter(f"{event} does not wait for a decision: {state}", param_hint="EVENT")
    return waiting


def _list(services: Services, names: list[str], chosen: EventFilter, as_json: bool) -> None:
    waiting = filter(chosen.admits, waiting_reviews(services, names))
    shown = [_describe(entry, services) for entry in waiting]
    if as_json:
        print_json(shown)
        return
    print_table(
        ("When (UTC)", "Project", "Change", "Records", "Reason", "Message"),
        (
            (
                each["occurred_at"][:19].replace("T", " "),
                each["project"],
                each["change"] or "unclear",
                ", ".join(each["records"]),
                each["reason"],
                each["event_id"],
            )
            for each in shown
        ),
    )


def _describe(entry: StoredEvent, services: Services) -> dict[str, Any]:
    return describe(entry) | {"waiting_seconds": int((services.now() - entry.state_since).total_seconds())}
