"""`optout forget`: remove all traces of a phone number."""

import sys
from typing import Any

import click

from shared.phone import numbers_in
from worker.cli.common import chosen_projects, make_services, print_json, print_table
from worker.services import Services


@click.command()
@click.argument("number")
@click.option("--project", help="Only in this project.")
@click.option("--yes", is_flag=True, help="Do not ask; for scripts.")
@click.option("--json", "as_json", is_flag=True, help="An array of objects, one per project; implies --yes.")
def forget(number: str, project: str | None, yes: bool, as_json: bool) -> None:
    """Remove all traces of NUMBER: its status, what waits for it, its events, its place in the index.

    NUMBER in any spelling; "-" reads it from standard input, so that it stays out of the shell's history
    and the process list. REDCap is not touched: as long as a record there holds the number, the index learns
    its hash again, and an opt-out that REDCap shows stays as it is.
    """
    if number == "-":
        number = sys.stdin.readline().strip()
    services = make_services()
    names = chosen_projects(services, project)
    if not (yes or as_json) and not _confirmed(names):
        click.echo("nothing was removed")
        raise SystemExit(1)
    removed = [_forget(services, name, number) for name in names]
    if as_json:
        print_json(removed)
    else:
        _show(removed)


def _confirmed(names: list[str]) -> bool:
    return click.confirm(f"Remove all traces of this number in {', '.join(names)}? It cannot be undone")


def _forget(services: Services, project: str, number: str) -> dict[str, Any]:
    region = services.config.projects[project].default_region
    hashes = [services.hasher(e164) for e164 in numbers_in(number, region)]
    if len(hashes) != 1:
        raise click.BadParameter("is not one phone number", param_hint="NUMBER")
    found: dict[str, Any] = {"project": project, **services.ledger.forget(project, hashes[0])}
    return {**found, "records": services.index(project).forget_phone(hashes[0])}


def _show(removed: list[dict[str, Any]]) -> None:
    print_table(
        ("Project", "Status", "Waiting", "Events", "Index entries"),
        (
            (
                item["project"],
                f"{item['status']} status",
                f"{item['pending'] + item['intents']} waiting",
                f"{item['events']} events",
                f"{len(item['records'])} index entries",
            )
            for item in removed
        ),
    )
    still = {item["project"]: ", ".join(item["records"]) for item in removed if item["records"]}
    for project, records in still.items():
        click.echo(
            f"{project}: record {records} held the number; while it stands in REDCap, the index learns it again"
        )
