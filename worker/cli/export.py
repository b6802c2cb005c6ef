"""`optout export`: the audit trail of a project."""

import csv
import json
import sys
from collections.abc import Iterator
from datetime import UTC, datetime

import click

from shared.domain.events import State
from shared.ledger import StoredEvent
from worker.cli.common import chosen_projects, make_services
from worker.services import Services

COLUMNS = (
    "record",
    "change",
    "source",
    "texted_at",
    "received_at",
    "written_at",
    "notified_at",
    "state",
    "reason",
    "decided_by",
    "event_id",
)


@click.command()
@click.option("--project", required=True, help="The project.")
@click.option(
    "--since",
    type=click.DateTime(["%Y-%m-%d"]),
    help="Events received from this day on, in the project's time zone.",
)
@click.option("--format", "form", type=click.Choice(["csv", "json"]), default="csv", show_default=True)
def export(project: str, since: datetime | None, form: str) -> None:
    """Print the audit trail: a row per event and record, oldest first; times are ISO 8601 in UTC.

    It holds no phone numbers and no texts. "decided_by" and the reasons of staff are as they were entered.
    """
    services = make_services()
    [name] = chosen_projects(services, project, also_taken_out=True)
    rows = _rows(name, _begin(since, name, services), services)
    if form == "json":
        _print_json(rows)
        return
    writer = csv.DictWriter(sys.stdout, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows({column: _harmless(value) for column, value in row.items()} for row in rows)


def _begin(since: datetime | None, project: str, services: Services) -> datetime:
    """The first moment of the day; without one, the beginning of all."""
    if since is None:
        return datetime(1970, 1, 1, tzinfo=UTC)
    config = services.project_config(project)
    return since.replace(tzinfo=services.config.zone(config) if config else UTC)


def _rows(project: str, since: datetime, services: Services) -> Iterator[dict[str, str]]:
    for entry in services.ledger.entries_between(project, since, services.now()):
        for record in entry.records or ("",):
            yield _row(entry, record)


def _row(entry: StoredEvent, record: str) -> dict[str, str]:
    written = entry.finished_at if entry.state is State.UPDATED else None
    reason = "; ".join(filter(None, (entry.reason, entry.decision)))
    return {
        "record": record,
        "change": entry.change,
        "source": entry.source,
        "texted_at": _time(entry.occurred_at),
        "received_at": _time(entry.arrived_at),
        "written_at": _time(written),
        "notified_at": _time(entry.notified_at),
        "state": entry.state,
        "reason": reason,
        "decided_by": entry.decided_by,
        "event_id": entry.event_id,
    }


def _time(moment: datetime | None) -> str:
    return moment.isoformat(timespec="milliseconds") if moment else ""


def _harmless(value: str) -> str:
    """Spreadsheet programs run cells that begin like a formula. Source: OWASP, "CSV Injection"."""
    return f"'{value}" if value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


def _print_json(rows: Iterator[dict[str, str]]) -> None:
    """An array, a row at a time."""
    click.echo("[", nl=False)
    for number, row in enumerate(rows):
        click.echo(("," if number else "") + "\n  " + json.dumps(row), nl=False)
    click.echo("\n]")
