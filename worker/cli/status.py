"""`optout status`: what is known of one phone number."""

from typing import Any

import click

from shared.domain.precedence import Status, decide
from worker.cli.common import chosen_projects, describe, make_services, print_json, print_table
from worker.cli.phone_argument import one_number, typed
from worker.services import Services


@click.command()
@click.argument("number")
@click.option("--project", help="Only in this project.")
@click.option("--json", "as_json", is_flag=True, help="An array of objects, one per project.")
def status(number: str, project: str | None, as_json: bool) -> None:
    """Show whether NUMBER is opted out, by project.

    NUMBER in any spelling; "-" reads it from standard input, so that it stays out of the shell's history
    and the process list.
    """
    number = typed(number)
    services = make_services()
    shown = [_status(services, name, number) for name in chosen_projects(services, project)]
    if as_json:
        print_json(shown)
        return
    print_table(
        ("Project", "Status", "Since (UTC)", "Records", "Waiting", "Message"),
        (
            (
                item["project"],
                item["status"],
                item["since"][:19].replace("T", " "),
                ", ".join(item["records"]),
                "yes" if item["pending"] else "",
                item["event_id"],
            )
            for item in shown
        ),
    )


def _time(status: Status) -> int:
    return status.occurred_ms


def _status(services: Services, project: str, number: str) -> dict[str, Any]:
    phone = services.hasher(one_number(number, project, services))
    decision = decide(statuses := services.ledger.status(project, phone))
    latest = decision.shown if decision.opted_out else max(statuses, key=_time, default=None)
    entry = services.ledger.load(project, latest.event_id) if latest else None
    return {
        "project": project,
        "status": {"STOP": "opted_out", "START": "opted_in"}[latest.change] if latest else "unknown",
        "since": latest.occurred_at.isoformat(timespec="milliseconds") if latest else "",
        "records": services.index(project).records([phone]).get(phone, []),
        "pending": services.ledger.is_pending(project, phone),
        "event_id": latest.event_id if latest else "",
        "event": describe(entry) if entry else None,
    }
