"""`optout record`: an opt-out by phone, e-mail or paper, or a documented new consent."""

import getpass
import os
import sys
from datetime import datetime

import click

from shared.domain.events import UNFINISHED, Change, State
from shared.ledger import StaffDecision, StoredEvent
from shared.ledger.opt_outs.blocks import BlockState
from worker.cli.common import chosen_projects, make_services
from worker.redcap.opt_out_fields import Act, Plan
from worker.services import Services
from worker.steps.block_at_twilio.consents import toll_free_senders
from worker.steps.staff_decisions import (
    DecisionRejected,
    find_record,
    is_repeated,
    planned,
    record_decision,
)

_YEARS = range(2008, 2100)


def os_user() -> str:
    """The name of the operating system's user, which ./optout hands into the container, or its number."""
    try:
        return os.environ.get("OPTOUT_USER") or getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"


@click.command()
@click.argument("project")
@click.argument("record")
@click.argument("decision", type=click.Choice(["stop", "start"]))
@click.option("--reason", required=True, help="Why, for the audit trail; without names or numbers.")
@click.option(
    "--at", "at_text", help='When, if not now: "YYYY-MM-DD HH:MM" in the project\'s time zone, or ISO 8601.'
)
@click.option("--by", default=os_user, show_default="the user of the operating system", help="Who decided.")
@click.option(
    "--unblock", is_flag=True,
    help="With start: also have Twilio deliver texts again (needs block_at_twilio; not on toll-free numbers).",
)  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Change nothing; say what would change.")
def record(  # noqa: PLR0913  the options of the command
    project: str,
    record: str,
    decision: str,
    reason: str,
    at_text: str | None,
    by: str,
    unblock: bool,
    dry_run: bool,
) -> None:
    """Record that the participant of RECORD opted out (stop) otherwise than by text, or consented anew (start).

    It is written, mailed and kept like a text. Only "start" ends an opt-out that was recorded with "stop", and it
    ends every opt-out of the record. With block_at_twilio = true, Twilio is asked to block the record's numbers; it
    delivers again only if you ask for that with --unblock. Exit code 1 if REDCap does not show the decision
    afterwards, or Twilio does not unblock.
    """
    services = make_services()
    [name] = chosen_projects(services, project)
    change = Change(decision.upper())
    at = _time(at_text, name, services)
    if unblock:
        _require_unblocking(change, name, services)
    state = find_record(name, record, services)
    if is_repeated(name, record, change, services):
        click.echo(f"record {record} of {name}: this opt-out is recorded already; nothing was changed")
        return
    if change is Change.START and not unblock:
        click.echo(_BLOCKED, err=True)
    if dry_run:
        click.echo(_would(planned(name, state, change, at, services)) if state else _UNAVAILABLE)
        return
    made = StaffDecision(by=by, reason=reason, unblock=unblock)
    _show(record_decision(name, record, change, at, made, services))


_BLOCKED = "note: after an opt-out by text, Twilio goes on blocking texts until the participant texts START"
_UNAVAILABLE = "REDCap is not available; the record would be updated later"


def _require_unblocking(change: Change, project: str, services: Services) -> None:
    """Raise if Twilio cannot be asked to deliver again. Nothing is recorded then."""
    if change is not Change.START:
        raise click.UsageError("--unblock goes with start")
    if not services.config.projects[project].block_at_twilio:
        raise click.UsageError(f"--unblock needs block_at_twilio = true in [projects.{project}]")
    if toll_free := toll_free_senders(project, services):
        raise DecisionRejected(
            f"Twilio cannot unblock {', '.join(toll_free)}: it is toll-free, where the network keeps the block until "
            "the participant texts START or UNSTOP; leave --unblock out to record the consent. Nothing was changed"
        )


def _time(text: str | None, project: str, services: Services) -> datetime:
    """A time of the command line. Raises click.BadParameter."""
    now = services.now()
    if text is None:
        return now
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        raise click.BadParameter(
            'write "YYYY-MM-DD HH:MM", or ISO 8601 with an offset', param_hint="--at"
        ) from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=services.config.zone(services.config.projects[project]))
    if moment > now or moment.year not in _YEARS:
        raise click.BadParameter(f"{text} is not a time in the past", param_hint="--at")
    return moment


def _would(made: Plan) -> str:
    texts = {
        Act.NONE: "nothing: the record shows it already",
        Act.SET: f"would set the opt-out field to {made.value}",
        Act.MOVE: f"would set the opt-out field to {made.value}",
        Act.TICK: "would tick the checkbox; the time in the opt-out field stays",
        Act.TEXT: "the opt-out field holds text of a person, which would stay",
        Act.CLEAR: "would clear the opt-out",
        Act.KEEP: "the opt-out field holds text of a person, which would stay",
        Act.KEEP_LATER: "the opt-out field holds text of a person, which would stay",
    }
    return texts[made.act]


def _show(entry: StoredEvent) -> None:
    """Say how it ended, and end the command with 1 if REDCap does not show it."""
    show_outcome(entry)
    refused = entry.change is Change.START and entry.block.state is BlockState.FAILED
    if refused or entry.state not in {State.UPDATED, State.ALREADY_CURRENT}:
        sys.exit(1)


def show_outcome(entry: StoredEvent) -> None:
    """Say how an event ended, or that it waits."""
    records = ", ".join(entry.records) or "none"
    if entry.state in UNFINISHED:
        click.echo(
            f"{entry.event_id}: recorded; REDCap is not available, and workers write it as soon as it is"
        )
    else:
        why = f": {entry.reason}" if entry.reason else ""
        click.echo(f"{entry.event_id}: {entry.state}, record {records}{why}")
    if entry.block.state is not BlockState.NONE:
        click.echo(f"{entry.event_id}: {_at_twilio(entry)}")


def _at_twilio(entry: StoredEvent) -> str:
    match entry.block.state:
        case BlockState.BLOCKED | BlockState.UNBLOCKED if entry.block.at:
            return f"{entry.block.state} at Twilio since {entry.block.at:%Y-%m-%d %H:%M:%S} UTC"
        case BlockState.WAITING:
            return f"Twilio is asked again soon: {entry.block.reason or 'another process asks it now'}"
    what = "not blocked" if entry.change is Change.STOP else "not unblocked"
    return f"{what} at Twilio: {entry.block.reason}"
