"""Opt-out events: what happened, to which project, seen where, and how far it has come."""

from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

from shared.domain.endpoints import TEST_SID_PREFIX


class Change(StrEnum):
    """What the participant asked for. The names are those of Twilio's `OptOutType`."""

    STOP = "STOP"
    START = "START"
    UNCLEAR = ""  # perhaps an opt-out, or another person: staff decide


class Source(StrEnum):
    """Where an event was seen."""

    WEBHOOK = "webhook"
    EVENT_STREAM = "event_stream"
    MESSAGE_LOG = "message_log"
    BLOCKED_MESSAGE = "blocked_message"
    STAFF = "staff"  # `optout record`


class State(StrEnum):
    """How far an event has come. The first two are under way, the others are its end."""

    RECEIVED = "received"
    PENDING = "pending"
    UPDATED = "updated"
    ALREADY_CURRENT = "already_current"
    SUPERSEDED = "superseded"
    NO_MATCHING_RECORD = "no_matching_record"
    NEEDS_REVIEW = "needs_review"
    FAILED = "failed"


UNFINISHED = frozenset({State.RECEIVED, State.PENDING})
# Events in these states are listed by state. Most events are `updated`; a list of them would save little.
LISTED = frozenset(State) - UNFINISHED - {State.UPDATED}


class Notice(StrEnum):
    """What an e-mail to the study team says about an event."""

    SAVED = "saved"
    UNSAVED = "unsaved"
    UNMATCHED = "unmatched"
    REVIEW = "review"


@dataclass(frozen=True, slots=True, kw_only=True)
class OptOutEvent:
    """A change by one participant, for one project. Its identity is (project, event_id).

    `event_id` is Twilio's message SID, or begins with "staff-". `phone_hash` is empty if the sender is not a phone
    number; a staff decision is about a record, and has its `staff_key` there. `scope`: see `shared.domain.scopes`.
    """

    project: str
    event_id: str
    change: Change
    occurred_at: datetime
    source: Source
    phone_hash: str
    scope: str = ""
    # Whether Twilio reported the text as an opt-out (OptOutType) and so blocks further texts.
    blocked: bool = False

    @property
    def is_exact(self) -> bool:
        """Whether the time is known to the millisecond. Other sources cut it, or give the time of receipt."""
        return self.source in {Source.EVENT_STREAM, Source.STAFF} or self.event_id.startswith(TEST_SID_PREFIX)


def milliseconds(moment: datetime) -> int:
    """Milliseconds since 1970 of an aware datetime."""
    return round(moment.timestamp() * 1000)


def from_milliseconds(value: int) -> datetime:
    """The aware UTC datetime of milliseconds since 1970."""
    return datetime.fromtimestamp(value / 1000, tz=UTC)
