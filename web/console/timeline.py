"""One event from the text to the e-mail, and what to run about it. Pure."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from shared.domain.events import Change, Source, State
from shared.ledger import StoredEvent
from shared.ledger.events.staff_actions import StaffAction
from web.console import words


@dataclass(frozen=True, slots=True)
class Step:
    """Something that happened at a time."""

    moment: datetime
    title: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Command:
    """What to run, and what for."""

    purpose: str
    line: str


_ACTIONS = {"replay": "Replayed by staff", "replay_mail": "E-mail sent again by staff"}


def timeline(entry: StoredEvent, actions: Sequence[StaffAction] = ()) -> list[Step]:
    """The steps in the order of their times; `actions` is what staff had done again with the event."""
    return sorted([*_steps(entry), *map(_action, actions)], key=lambda step: step.moment)


def _action(action: StaffAction) -> Step:
    by = ": ".join(filter(None, (action.by, action.reason)))
    return Step(action.at, _ACTIONS.get(action.kind, action.kind), by)


def _steps(entry: StoredEvent) -> Iterator[Step]:
    yield _begin(entry)
    if entry.source is not Source.STAFF:
        yield Step(entry.arrived_at, "Received", f"by {words.SOURCES[entry.source]}")
    if entry.received_at != entry.arrived_at:
        yield Step(entry.received_at, "Looked up again", "its records are read and written again from here")
    later = [
        (entry.written_at, "Written to REDCap", _records(entry)),
        (entry.finished_at, f"Ended: {words.STATES[entry.state].lower()}", entry.reason),
        (entry.block.at, words.BLOCKS[entry.block.state], "by Twilio, at the program's request"),
        (entry.mail_since if entry.notice else None, "E-mail due", entry.mail),
        (entry.notified_at, "E-mail sent", "all recipients have it"),
    ]
    yield from (Step(moment, title, detail) for moment, title, detail in later if moment)


def _begin(entry: StoredEvent) -> Step:
    if entry.source is Source.STAFF:
        return Step(entry.occurred_at, f"{words.CHANGES[entry.change]} recorded by staff", _decision(entry))
    exact = entry.timed or entry.source is not Source.WEBHOOK
    detail = "Twilio's time" if exact else "time of receipt: webhooks carry no other"
    name = entry.change.value or "An unclear text"
    return Step(entry.occurred_at, f"{name} texted", detail)


def _decision(entry: StoredEvent) -> str:
    return ": ".join(filter(None, (entry.decided_by, entry.decision)))


def _records(entry: StoredEvent) -> str:
    return ", ".join(f"record {record}" for record in entry.records)


def commands(entry: StoredEvent) -> list[Command]:
    """What a person can run about this event."""
    return list(_commands(entry))


def _commands(entry: StoredEvent) -> Iterator[Command]:
    if entry.state is State.FAILED:
        yield Command("After the cause is corrected, try again", f"optout replay {entry.event_id}")
    if entry.state is State.NEEDS_REVIEW:
        yield from _decisions(entry)
    if entry.mail not in {"", "sent"} and not entry.notice:
        yield Command("Send its e-mail again", f"optout replay --mails {entry.event_id}")


def _decisions(entry: StoredEvent) -> Iterator[Command]:
    if entry.change is Change.START:
        for record in entry.records[:1]:
            line = f'optout record {entry.project} {record} start --reason "…"'
            yield Command("End the opt-out, if the participant wants that", line)
        yield Command("Leave the opt-out as it is", f"optout review {entry.event_id} dismiss")
    else:
        yield Command("It was an opt-out", f"optout review {entry.event_id} stop")
        yield Command("Nothing has to change", f"optout review {entry.event_id} dismiss")
