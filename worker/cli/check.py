"""`optout check`: the configuration against the live REDCap, Twilio, Redis and mail server."""

import sys
from collections import Counter

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from shared.config import broker_url
from shared.errors import ConfigError
from shared.messaging.celery_config import make_celery
from worker.checks.findings import Finding, Passed, Severity
from worker.checks.runner import Report, checks_for, run_checks
from worker.cli.common import chosen_projects, make_services, print_json

_STYLES = {Severity.ERROR: "bold red", Severity.WARNING: "yellow", Severity.NOTE: "cyan"}


@click.command()
@click.option("--project", help="Only this project, with what it needs.")
@click.option(
    "--url",
    metavar="ADDRESS",
    help="Where the web process is reached from here, if this machine cannot see its own public_url.",
)
@click.option(
    "--timeout", type=click.IntRange(min=1), default=120, show_default=True, metavar="SECONDS",
    help="Report what was found after this long.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="An object with ok, findings and passed.")
def check(project: str | None, url: str | None, timeout: int, as_json: bool) -> None:
    """Check the configuration against the live REDCap and Twilio. Nothing is written anywhere.

    Exit code 1 where a finding is an error; warnings and notes alone leave it at 0. Every finding is
    explained in docs/reference/checks.md.
    """
    report = _report(project, url, timeout)
    if as_json:
        print_json(report.as_json())
    else:
        _show(report)
    if not report.is_well:
        sys.exit(1)


def _report(project: str | None, url: str | None, timeout: int) -> Report:
    try:
        services = make_services()
    except ConfigError as error:
        return Report(
            [Finding(id="config-unusable", subject="configuration", observed=line) for line in error.problems]
        )
    projects = chosen_projects(services, project)
    checks = checks_for(services, projects, make_celery(broker_url()), url or services.config.public_url)
    return run_checks(checks, timeout_seconds=timeout)


def _show(report: Report) -> None:
    rows = [(Text("ok", "green"), _right(seen)) for seen in report.passed]
    rows += [(Text(each.severity.value, _STYLES[each.severity]), _lines(each)) for each in report.findings]
    total = f"{_total(report)}; docs/reference/checks.md explains each"
    if not sys.stdout.isatty():  # nothing is wrapped, so that a line can be searched for
        for label, text in rows:
            click.echo(f"{label}\t{text.plain.replace(chr(10), chr(10) + chr(9))}")
        click.echo(total)
        return
    table = Table.grid(padding=(0, 1))
    for row in rows:
        table.add_row(*row)
    console = Console(highlight=False)
    console.print(table)
    console.print(total, style="bold")


def _right(seen: Passed) -> Text:
    return Text.assemble((f"{seen.subject}: ", "bold"), seen.text)


def _lines(finding: Finding) -> Text:
    return Text.assemble(
        (f"{finding.subject}: ", "bold"),
        finding.kind.title,
        (f" [{finding.id}]\n", "dim"),
        f"observed: {finding.observed}\n",
        f"fix: {finding.fix or finding.kind.fix}",
    )


def _total(report: Report) -> str:
    counts = Counter(finding.severity for finding in report.findings)
    return ", ".join(f"{counts[each]} {each.value}{'' if counts[each] == 1 else 's'}" for each in Severity)
