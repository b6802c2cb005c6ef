"""The events of a study: a list with filters, the audit trail as CSV, and the timeline of one event."""

import csv
import io
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import islice

from flask import Blueprint, Response, abort, render_template, request

from shared.domain.endpoints import MESSAGE_PAGE
from shared.domain.events import Change, Source, State
from shared.ledger import StoredEvent
from shared.ledger.events.audit_trail import AUDIT_COLUMNS, audit_rows, harmless
from shared.ledger.events.event_pages import EventFilter, EventPages
from shared.ledger.events.staff_actions import StaffAction, actions_since
from web.console.context import console, now
from web.console.study_views import require_known
from web.console.timeline import commands, timeline

events = Blueprint("events", __name__, url_prefix="/studies/<project>")

# Rows of the export that are sent together.
ROWS_PER_PIECE = 200
MOST_ACTIONS_READ = 1_000


@events.get("/events")
def listing(project: str) -> str:
    """Events, newest first."""
    require_known(project)
    below = request.args.get("below", type=int)
    page = EventPages(project, console().ledger).page(_wanted(project), below)
    asked = {name: value for name, value in request.args.items() if value and name != "below"}
    return render_template(
        "events.html", project=project, page=page, asked=asked, zone=console().zone(project),
        changes=Change, states=State, is_first=below is None,
    )  # fmt: skip


def _wanted(project: str) -> EventFilter:
    asked = request.args
    return EventFilter(
        state=asked.get("state", type=State),
        change=Change.UNCLEAR if asked.get("change") == "unclear" else asked.get("change", type=_change),
        record=asked.get("record", "").strip(),
        since=asked.get("since", type=lambda text: _day(text, project)),
        until=asked.get("until", type=lambda text: _day(text, project) + timedelta(days=1)),
    )


def _change(text: str) -> Change | None:
    return Change(text) if text else None


def _day(text: str, project: str) -> datetime:
    """Midnight of a day in the study's zone. Raises ValueError."""
    return datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=console().zone(project))


@events.get("/events.csv")
def export(project: str) -> Response:
    """The audit trail, as `optout export` prints it."""
    require_known(project)
    since = request.args.get("since", datetime.fromtimestamp(0, UTC), type=lambda text: _day(text, project))
    name = f"{project}-{now():%Y-%m-%d}.csv"
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    trail = audit_rows(project, since, now(), console().ledger)
    return Response(_csv(trail), headers=headers, content_type="text/csv; charset=utf-8")


def _csv(trail: Iterable[dict[str, str]]) -> Iterator[str]:
    piece = io.StringIO(newline="")
    writer = csv.DictWriter(piece, AUDIT_COLUMNS, lineterminator="\n")
    writer.writeheader()
    for number, row in enumerate(trail, 1):
        writer.writerow({column: harmless(value) for column, value in row.items()})
        if number % ROWS_PER_PIECE == 0:
            yield piece.getvalue()
            piece.seek(0)
            piece.truncate()
    yield piece.getvalue()


def _message_page(entry: StoredEvent) -> str:
    """Where staff can read a text that waits for a decision; "" for everything else."""
    config = console().config
    study = config.projects.get(entry.project)
    if study is None or entry.state is not State.NEEDS_REVIEW or entry.source is Source.STAFF:
        return ""
    account_sid = config.twilio[study.twilio].account_sid
    return MESSAGE_PAGE.format(account_sid=account_sid, message_sid=entry.event_id)


def _actions(entry: StoredEvent) -> list[StaffAction]:
    """What staff had done again with an event."""
    later = islice(actions_since(console().ledger.redis, entry.project, entry.arrived_at), MOST_ACTIONS_READ)
    return [action for action in later if action.event_id == entry.event_id]


@events.get("/events/<event_id>")
def event(project: str, event_id: str) -> str:
    """One event, from the text to the e-mail."""
    require_known(project)
    entry = console().ledger.load(project, event_id)
    if entry is None:
        abort(404)
    return render_template(
        "event.html", project=project, entry=entry, message_page=_message_page(entry),
        steps=timeline(entry, _actions(entry)), commands=commands(entry),
        zone=console().zone(project),
    )  # fmt: skip
