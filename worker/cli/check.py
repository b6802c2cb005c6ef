"""`optout check`: the configuration against the live REDCap, Twilio, Redis and mail server."""

import sys
import time
from collections import Counter

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from shared.config import broker_url, config_path, load_config
from shared.errors import ConfigError
from shared.messaging.celery_config import make_celery
from worker.checks.configuration import check_loaded, check_secrets
from worker.checks.findings import CATALOGUE, Finding, Passed, Severity
from worker.checks.runner import Report, checks_for, run_checks
from worker.cli.common import chosen_projects, make_services, print_json, select_projects

WOULD_START = 3
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
@click.option(
    "--config-only", is_flag=True,
    help="Only whether processes can use the configuration file and its secrets; needs no Redis and no network.",
)  # fmt: skip
@click.option(
    "--loaded", is_flag=True,
    help="Only whether the running processes have loaded the configuration; waits for them until --timeout.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="An object with ok, findings and passed.")
@click.option(
    "--explain", type=click.Choice(list(CATALOGUE)), metavar="ID", is_eager=True, expose_value=False,
    callback=lambda context, _option, id_: _explain(context, id_), help="Explain a finding, and end.",
)  # fmt: skip
def check(
    project: str | None, url: str | None, timeout: int, config_only: bool, loaded: bool, as_json: bool
) -> None:
    """Check the configuration against the live REDCap and Twilio. Nothing is written to either of them.

    Exit code 1 where a finding is an error; warnings and notes alone leave it at 0. With --config-only, 1 where a
    process would not start, and 3 where all would start and a study or the mail server lacks a secret. With --loaded,
    1 where a process has not loaded the configuration. Every finding is explained in docs/reference/checks.md.
    """
    try:
        if loaded:
            report = _loaded_report(timeout)
        elif config_only:
            report = _config_report(project)
        else:
            report = _report(project, url, timeout)
    except ConfigError as error:
        report = _unusable(error)
    if as_json:
        print_json(report.as_json())
    else:
        _show(report)
    if code := _exit_code(report, config_only=config_only, loaded=loaded):
        sys.exit(code)


def _exit_code(report: Report, *, config_only: bool, loaded: bool) -> int:
    if report.is_well:
        return 1 if loaded and not report.passed else 0
    return WOULD_START if config_only and not _stops_a_process(report) else 1


def _report(project: str | None, url: str | None, timeout: int) -> Report:
    services = make_services()
    projects = chosen_projects(services, project)
    checks = checks_for(services, projects, make_celery(broker_url()), url or services.config.public_url)
    return run_checks(checks, timeout_seconds=timeout)


def _loaded_report(timeout: int) -> Report:
    """What the running processes have loaded, as soon as it is what the files say; otherwise after the timeout."""
    services = make_services()
    deadline = time.monotonic() + timeout
    while True:
        report = Report.of(check_loaded(services.config, services.redis, services.now))
        if report.passed or time.monotonic() >= deadline:
            return report
        time.sleep(1)


def _explain(context: click.Context, id_: str | None) -> None:
    if id_ is None or context.resilient_parsing:
        return
    kind = CATALOGUE[id_]
    click.echo(f"{id_} ({kind.severity.value}): {kind.title}\n\n{kind.why}\n\nFix: {kind.fix}")
    context.exit()


def _stops_a_process(report: Report) -> bool:
    """Whether a finding of `_config_report` is about more than one study or the mail server."""
    return any(
        each.id == "config-unusable" or each.subject == "configuration" or each.subject.startswith("twilio.")
        for each in report.findings
    )


def _config_report(project: str | None) -> Report:
    """Whether every process would start with the configuration, and every study would have its token."""
    config = load_config()
    projects = select_projects(list(config.projects), project)
    included = f" and what it includes ({', '.join(config.include)})" if config.include else ""
    text = f"{config_path()} is valid, with {len(config.projects)} projects{included}"
    valid = Passed("configuration", text)
    return Report.of([valid, *check_secrets(config, projects)])


def _unusable(error: ConfigError) -> Report:
    lines = [(file, line) for file, problems in error.by_file.items() for line in problems]
    observed = [line if line.startswith(file) else f"{file}: {line}" for file, line in lines]
    return Report.of(
        Finding(id="config-unusable", subject="configuration", observed=each) for each in observed
    )


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
