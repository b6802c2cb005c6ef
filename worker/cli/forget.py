"""`optout forget`: remove all traces of a phone number, or of a project that was taken out."""

from collections import Counter
from typing import Any

import click

from worker.cli.common import chosen_projects, make_services, print_json, print_table
from worker.cli.phone_argument import readings, typed
from worker.services import Services


@click.command()
@click.argument("number", required=False)
@click.option("--project", help="Only in this project.")
@click.option("--all", "whole", is_flag=True, help="All of --project, which must not be configured any more.")
@click.option("--yes", is_flag=True, help="Do not ask; for scripts.")
@click.option("--json", "as_json", is_flag=True, help="An array of objects, one per project; implies --yes.")
def forget(number: str | None, project: str | None, whole: bool, yes: bool, as_json: bool) -> None:
    """Remove all traces of NUMBER: its status, what waits for it, its events, its place in the index.

    NUMBER in any spelling; "-" reads it from standard input, so that it stays out of the shell's history
    and the process list. REDCap is not touched: as long as a record there holds the number, the index learns
    its hash again, and an opt-out that REDCap shows stays as it is.

    With --all and --project, instead of a NUMBER, remove at once all that is kept of a project that was taken
    out of the configuration. Otherwise it goes by itself, after the retention.
    """
    if whole is bool(number) or (whole and not project):
        raise click.UsageError("give either a NUMBER, or --project NAME --all")
    services, sure = make_services(), yes or as_json
    if whole:
        _forget_project(services, str(project), sure, as_json)
    else:
        _forget_number(services, str(number), project, sure, as_json)


def _forget_project(services: Services, project: str, sure: bool, as_json: bool) -> None:
    if project in services.config.projects:
        raise click.BadParameter(
            "is still configured: delete its table and restart first", param_hint="--project"
        )
    chosen_projects(services, project, also_taken_out=True)
    _ask(sure, f"Remove all that is kept of {project}?")
    removed = {"project": project, **services.ledger.forget_project(project)}
    if as_json:
        print_json([removed])
        return
    print_table(
        ("Project", "Statuses", "Events"),
        [(project, f"{removed['status']} statuses", f"{removed['events']} events")],
    )


def _forget_number(services: Services, number: str, project: str | None, sure: bool, as_json: bool) -> None:
    number = typed(number)
    names = chosen_projects(services, project, also_taken_out=True)
    hashes = {name: _hashes(services, name, number) for name in names}
    _ask(sure, f"Remove all traces of this number in {', '.join(names)}?")
    removed = [_forget(services, name, hashes[name]) for name in names]
    if as_json:
        print_json(removed)
    else:
        _show(removed)


def _ask(sure: bool, question: str) -> None:
    if not sure and not click.confirm(f"{question} It cannot be undone"):
        click.echo("nothing was removed")
        raise SystemExit(1)


def _hashes(services: Services, project: str, number: str) -> list[str]:
    """The number's hash. Of a project that was taken out nobody knows the region: one for each that it may be."""
    config = services.project_config(project)
    asked = [config] if config else services.config.projects.values()
    return [services.hasher(e164) for e164 in readings(number, {each.default_region for each in asked})]


def _forget(services: Services, project: str, hashes: list[str]) -> dict[str, Any]:
    found: Counter[str] = Counter()
    records: list[str] = []
    for phone in hashes:
        found.update(services.ledger.forget(project, phone))
        records += services.index(project).forget_phone(phone)
    return {"project": project, **found, "records": records}


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
