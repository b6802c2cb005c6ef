"""`optout export`: the audit trail of a project."""

import csv
import json
import sys
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from heapq import merge
from itertools import chain

import click

from shared.batches import batches
from shared.domain.events import State
from shared.ledger import StoredEvent
from shared.ledger.staff_actions import StaffAction, actions_since
from worker.cli.common import chosen_projects, make_services, print_json_array
from worker.services import Services

MEANINGS = {
    "record": "Record id in REDCap; empty if no record holds the number.",
    "change": "STOP, START, or empty: a text that may be an opt-out.",
    "source": "webhook, event_stream, message_log (recovered by the reconciliation), blocked_message, staff "
    "(optout record); or what staff had done again with the event: replay, replay_mail.",
    "texted_at": "When the participant sent the text, or when the opt-out counts from.",
    "received_at": "When the program received it first; of a replay, when staff asked for it.",
    "written_at": "When REDCap was written; empty if it was not.",
    "notified_at": "When all recipients had the last e-mail about it.",
    "state": "How the event ended, or that it has not: received, pending. Of a replay empty.",
    "reason": "Why it ended so, and the reason that staff gave.",
    "decided_by": "Who decided or asked for it: optout record, review and replay.",
    "event_id": "Twilio's message SID, or the id of a staff decision.",
}
COLUMNS = tuple(MEANINGS)

Row = dict[str, str]
PAGE = 500


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
def export(project: str, since: datetime | None, form: str) -> None:
    """Print the audit trail: a row per event and record, and one per replay, oldest first.

    Times are ISO 8601 in UTC. It holds no phone numbers and no texts. "decided_by" and the reasons of staff are as
    they were entered. docs/reference/audit-trail.md explains the columns.
    """
    services = make_services()
    [name] = chosen_projects(services, project, also_taken_out=True)
    rows = _rows(name, _begin(since, name, services), services)
    match form:
        case "json":
            print_json_array(rows)
        case "jsonl":
            for row in rows:
                click.echo(json.dumps(row))
        case _:
            _print_csv(rows)


def _print_csv(rows: Iterable[Row]) -> None:
    writer = csv.DictWriter(sys.stdout, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows({column: _harmless(value) for column, value in row.items()} for row in rows)


def _begin(since: datetime | None, project: str, services: Services) -> datetime:
    """The first moment of the day; without one, the beginning of all."""
    if since is None:
        return datetime(1970, 1, 1, tzinfo=UTC)
    config = services.project_config(project)
    return since.replace(tzinfo=services.config.zone(config) if config else UTC)


def _rows(project: str, since: datetime, services: Services) -> Iterator[Row]:
    """Events and replays by time, a page of each in memory."""
    until = services.now()
    events = (
        (entry.received_at, _rows_of(entry))
        for entry in services.ledger.entries_between(project, since, until)
    )
    replays = ((action.at, _replayed(action, entry)) for action, entry in _actions(project, since, services))
    yield from chain.from_iterable(rows for _, rows in merge(events, replays, key=lambda each: each[0]))


def _actions(
    project: str, since: datetime, services: Services
) -> Iterator[tuple[StaffAction, StoredEvent | None]]:
    """Replays with their events, as far as these are kept."""
    for page in batches(actions_since(services.redis, project, since), PAGE):
        found = services.ledger.entries_of(project, [action.event_id for action in page])
        entries = {entry.event_id: entry for entry in found}
        yield from ((action, entries.get(action.event_id)) for action in page)


def _rows_of(entry: StoredEvent) -> list[Row]:
    return [_row(entry, record) for record in entry.records or ("",)]


def _row(entry: StoredEvent, record: str) -> Row:
    written = entry.finished_at if entry.state is State.UPDATED else None
    return {
        "record": record,
        "change": entry.change,
        "source": entry.source,
        "texted_at": _time(entry.occurred_at),
        "received_at": _time(entry.arrived_at),
        "written_at": _time(written),
        "notified_at": _time(entry.notified_at),
        "state": entry.state,
        "reason": "; ".join(filter(None, (entry.reason, entry.decision))),
        "decided_by": entry.decided_by,
        "event_id": entry.event_id,
    }


def _replayed(action: StaffAction, entry: StoredEvent | None) -> list[Row]:
    """The rows of a replay: one per record of its event."""
    shared = {
        "source": action.kind,
        "received_at": _time(action.at),
        "reason": action.reason,
        "decided_by": action.by,
        "event_id": action.event_id,
    }
    change, texted_at = (entry.change, _time(entry.occurred_at)) if entry else ("", "")
    known = {"change": change, "texted_at": texted_at}
    records = entry.records if entry else ()
    return [dict.fromkeys(COLUMNS, "") | known | shared | {"record": record} for record in records or ("",)]


def _time(moment: datetime | None) -> str:
    return moment.isoformat(timespec="milliseconds") if moment else ""


def _harmless(value: str) -> str:
    """Spreadsheet programs run cells that begin like a formula. Source: OWASP, "CSV Injection"."""
    return f"'{value}" if value.startswith(tuple("=+-@\t\r\n＝＋－＠")) else value
