"""`optout reconcile`: the nightly comparison, in the foreground."""

import sys
from dataclasses import asdict
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from worker.cli.common import chosen_projects, make_services, print_json, print_table
from worker.services import Services
from worker.steps.reconcile import TWILIO_KEEPS
from worker.steps.reconcile import reconcile as run
from worker.steps.reconcile.report import Report


@click.command()
@click.option("--project", help="Only this project.")
@click.option(
    "--since",
    type=click.DateTime(["%Y-%m-%d"]),
    help="Read Twilio's log from this day on, in the project's time zone (default: since the last run); "
    "Twilio keeps 400 days.",
)
@click.option("--dry-run", is_flag=True, help="Change nothing, anywhere; say what would be done.")
@click.option("--json", "as_json", is_flag=True, help="An array of reports, one per project.")
def reconcile(project: str | None, since: datetime | None, dry_run: bool, as_json: bool) -> None:
    """Compare Twilio's message log, the ledger and REDCap, and restore missing opt-outs.

    Exit code 0 only when all is well afterwards: nothing failed, nothing waits, nothing was hidden, and no
    other run was under way; so a dry run that finds a difference ends with 1.
    """
    services = make_services()
    names = chosen_projects(services, project)
    reports = [_run(name, services, _begin(since, name, services), dry_run) for name in names]
    if as_json:
        print_json([asdict(report) for report in reports])
    else:
        _show(reports)
    if not all(report.is_well and not (report.dry_run and report.has_corrections) for report in reports):
        sys.exit(1)


def _begin(since: datetime | None, project: str, services: Services) -> datetime | None:
    if since is None:
        return None
    zone: ZoneInfo = services.config.zone(services.config.projects[project])
    begin, now = since.replace(tzinfo=zone).astimezone(UTC), services.now()
    if begin > now:
        raise click.BadParameter(f"{since:%Y-%m-%d} has not begun yet", param_hint="--since")
    return max(begin, now - TWILIO_KEEPS)


def _run(project: str, services: Services, since: datetime | None, dry_run: bool) -> Report:
    columns = (
        SpinnerColumn(),
        TextColumn("{task.fields[project]}: {task.description}"),
        BarColumn(pulse_style="cyan"),
        TextColumn("{task.completed:,.0f}"),
        TimeElapsedColumn(),
    )
    # Neither side says in advance how much it holds, so the bar pulses beside a growing number.
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        bar = bars.add_task("starting", total=None, project=project)
        return run(
            project,
            services,
            since=since,
            dry_run=dry_run,
            progress=lambda stage, number: bars.update(bar, description=stage, completed=number),
        )


def _show(reports: list[Report]) -> None:
    print_table(
        (
            "Project",
            "EventOutcome",
            "Messages",
            "Recovered",
            "Records",
            "Corrected",
            "Without record",
            "Waiting",
            "Wrong",
        ),
        (
            (
                report.project,
                f"{report.outcome}{' (dry run)' if report.dry_run else ''}",
                str(report.messages_read),
                str(report.changes_recovered),
                str(report.records_read),
                str(report.records_corrected),
                str(report.statuses_without_record),
                str(report.still_pending),
                "; ".join(_wrong(report)),
            )
            for report in reports
        ),
    )


def _wrong(report: Report) -> list[str]:
    hidden = [f"{report.redacted_numbers} redacted numbers"] if report.redacted_numbers else []
    hidden += [f"all {report.redacted_bodies} texts without body"] if report.hides_bodies else []
    incomplete = report.incomplete_messages
    hidden += [f"{incomplete} messages without date or SID"] if incomplete else []
    skipped = ["another run is under way"] if report.outcome == "skipped" else []
    return [*skipped, *report.errors, *report.refused, *hidden]
