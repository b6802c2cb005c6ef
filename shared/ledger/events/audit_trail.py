"""The audit trail of a project: a row per event and record, for `optout export` and the console."""

from collections.abc import Iterator
from datetime import datetime
from heapq import merge
from itertools import chain

from shared.batches import batches
from shared.domain.events import State
from shared.ledger.events.event_store import EventStore
from shared.ledger.events.models import StoredEvent
from shared.ledger.events.staff_actions import StaffAction, actions_since

COLUMN_MEANINGS = {
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
AUDIT_COLUMNS = tuple(COLUMN_MEANINGS)

Row = dict[str, str]
_PAGE = 500


def audit_rows(project: str, since: datetime, until: datetime, ledger: EventStore) -> Iterator[Row]:
    """Events and replays by time, a page of each in memory."""
    events = ((entry.received_at, _rows_of(entry)) for entry in ledger.entries_between(project, since, until))
    replays = ((action.at, _replayed(action, entry)) for action, entry in _actions(project, since, ledger))
    yield from chain.from_iterable(rows for _, rows in merge(events, replays, key=lambda each: each[0]))


def harmless(value: str) -> str:
    """Spreadsheet programs run cells that begin like a formula. Source: OWASP, "CSV Injection"."""
    return f"'{value}" if value.startswith(tuple("=+-@\t\r\n＝＋－＠")) else value


def _actions(
    project: str, since: datetime, ledger: EventStore
) -> Iterator[tuple[StaffAction, StoredEvent | None]]:
    """Replays with their events, as far as these are kept."""
    for page in batches(actions_since(ledger.redis, project, since), _PAGE):
        found = ledger.entries_of(project, [action.event_id for action in page])
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
    return [
        dict.fromkeys(AUDIT_COLUMNS, "") | known | shared | {"record": record} for record in records or ("",)
    ]


def _time(moment: datetime | None) -> str:
    return moment.isoformat(timespec="milliseconds") if moment else ""
