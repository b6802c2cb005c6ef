"""`optout export`: the audit trail of a project."""

import csv
import json
import sys
from collections.abc import Iterable
from datetime import datetime

import click

from shared.ledger.events.audit_trail import AUDIT_COLUMNS, Row, audit_rows, harmless
from worker.cli.common import chosen_projects, make_services, print_json_array
from worker.cli.filters import begin_of, record_option


@click.command()
@click.option("--project", required=True, help="The project.")
@click.option(
    "--since",
    type=click.DateTime(["%Y-%m-%d"]),
    help="Events received from this day on, in the project's time zone.",
)
@click.option(
    "--format", "form", type=click.Choice(["csv", "json", "jsonl"]), default="csv", show_default=True,
    help="jsonl: an object a line.",
)  # fmt: skip
@record_option
def export(project: str, since: datetime | None, form: str, record: str | None) -> None:
    """Print the audit trail: a row per event and record, and one per replay, oldest first.

    Times are ISO 8601 in UTC. It holds no phone numbers and no texts. "decided_by" and the reasons of staff are as
    they were entered. docs/reference/audit-trail.md explains the columns.
    """
    services = make_services()
    [name] = chosen_projects(services, project, also_taken_out=True)
    found = audit_rows(name, begin_of(name, since, services), services.now(), services.ledger)
    rows = (row for row in found if record is None or row["record"] == record)
    match form:
        case "json":
            print_json_array(rows)
        case "jsonl":
            for row in rows:
                click.echo(json.dumps(row))
        case _:
            _print_csv(rows)


def _print_csv(rows: Iterable[Row]) -> None:
    writer = csv.DictWriter(sys.stdout, AUDIT_COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows({column: harmless(value) for column, value in row.items()} for row in rows)
