"""`optout test-message`: a STOP and a START of a test number, followed to the record and back."""

import sys

import click

from shared.domain.events import Change
from shared.errors import Failure
from worker.checks.end_to_end import TEST_NUMBER, EndToEndTest, EndToEndTestFailed, EndToEndTestRefused, Via
from worker.cli.common import chosen_projects, make_services, print_json
from worker.cli.phone_argument import one_number, typed
from worker.services import Services


@click.command("test-message")
@click.option("--project", required=True, help="The project to try.")
@click.option(
    "--number",
    default=TEST_NUMBER,
    show_default=True,
    help='The number of a test record, in any spelling; "-" reads it from standard input.',
)
@click.option(
    "--url", metavar="ADDRESS", help="Where to really connect to, if public_url is not seen from here."
)
@click.option(
    "--via", type=click.Choice([via.value for via in Via]), default=Via.WEBHOOK.value, show_default=True,
    help="Which door: the webhook, or Event Streams.",
)  # fmt: skip
@click.option(
    "--block", is_flag=True,
    help="Also have Twilio block the number, and unblock it (needs block_at_twilio; use your own number).",
)  # fmt: skip
@click.option("--force", is_flag=True, help="Also with a number that is opted out; the fields are restored.")
@click.option("--yes", is_flag=True, help="Do not ask; for scripts.")
@click.option(
    "--timeout", type=click.FloatRange(min=0.1), default=60.0, show_default=True, metavar="SECONDS",
    help="How long to wait for each stage.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="An object with ok, stages and error; implies --yes.")
def test_message(  # noqa: PLR0913  one parameter per option
    project: str,
    number: str,
    url: str | None,
    via: str,
    block: bool,
    force: bool,
    yes: bool,
    timeout: float,
    as_json: bool,
) -> None:
    """Send a signed STOP, then a START, of a test number through the public address, and follow them.

    Shows each stage with its time, and leaves record and ledger as they were. Twilio takes no part, but
    for --block, where it is asked to block the number and to deliver to it again. The project's notify list gets two
    e-mails. Exit code 1 where a stage did not come, or it would not be safe.
    """
    services = make_services()
    chosen_projects(services, project)
    stages: list[dict[str, object]] = []

    def show(change: Change, milliseconds: float, stage: str) -> None:
        stages.append({"change": change.value, "milliseconds": round(milliseconds), "stage": stage})
        if not as_json:
            click.echo(f"{change.value:<6} {milliseconds:>7.0f} ms  {stage}")

    rehearsal = EndToEndTest(
        project=project,
        services=services,
        number=one_number(typed(number), project, services, hint="--number"),
        show=show,
        url=url or services.config.public_url,
        via=Via(via),
        timeout_seconds=timeout,
        block=block,
    )
    error = _run(rehearsal, services, force=force, ask=not (yes or as_json))
    if as_json:
        print_json({"ok": error == "", "stages": stages, "error": error})
    elif error:
        click.echo(f"error: {error}", err=True)
    else:
        click.echo("ok: there and back, everything is as it was")
    if error:
        sys.exit(1)


def _run(rehearsal: EndToEndTest, services: Services, *, force: bool, ask: bool) -> str:
    """What went wrong, or nothing."""
    try:
        records = rehearsal.prepare(force=force)
        if ask and not click.confirm(_warning(rehearsal.project, records, services)):
            return "nothing was sent"
        rehearsal.run()
    except (EndToEndTestRefused, EndToEndTestFailed, Failure) as error:
        return str(error)
    return ""


def _warning(project: str, records: list[str], services: Services) -> str:
    notified = services.config.projects[project].notify
    mails = f", and {', '.join(notified)} will get two e-mails" if notified else ""
    return f"Record {', '.join(records)} of {project} will show an opt-out for a moment{mails}. Go on?"
