"""`optout summary`: a month of a study, as the monthly e-mail shows it."""

from dataclasses import asdict

import click

from shared.domain.months import Month
from worker.cli.common import chosen_projects, make_services, print_json
from worker.mail.summary_mail import summary_text
from worker.steps.monthly_summary import last_month, summarise


@click.command()
@click.option("--project", required=True, help="The project.")
@click.option(
    "--month", "month_text", metavar="YYYY-MM", help="The month; the last one that is over if absent."
)
@click.option("--html", "as_html", is_flag=True, help="The HTML part of the e-mail.")
@click.option("--json", "as_json", is_flag=True, help="An object.")
def summary(project: str, month_text: str | None, as_html: bool, as_json: bool) -> None:
    """Print a month of a project: opt-outs and opt-ins in REDCap, how fast they were written, what was proved.

    It is mailed to the study team on the first of the next month if the project has summary = "monthly". It holds no
    record ids and no phone numbers. What waits, and who is opted out, is as of now.
    """
    services = make_services()
    [name] = chosen_projects(services, project, also_taken_out=True)
    month = _month(month_text) if month_text else last_month(name, services)
    found = summarise(name, month, services)
    if as_json:
        print_json(asdict(found) | {"month": str(month)})
    else:
        part = "summary.html" if as_html else "summary.txt"
        click.echo(summary_text(found, services.project_config(name), part).rstrip())


def _month(text: str) -> Month:
    try:
        return Month.parse(text)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--month") from None
