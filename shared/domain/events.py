"""Opt-out events: what happened, to which project, seen where, and how far it has come."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum


class Change(StrEnum):
    """What the participant asked for. The names are those of Twilio's `OptOutType`."""

    STOP = "STOP"
    START = "START"


class Source(StrEnum):
    """Where an event was seen."""

    WEBHOOK = "webhook"
    EVENT_STREAM = "event_stream"
    MESSAGE_LOG = "message_log"
    BLOCKED_MESSAGE = "blocked_message"


class State(StrEnum):
    """How far an event has come. The first two are under way, the others are its end."""

    RECEIVED = "received"
    PENDING = "pending"
    UPDATED = "updated"
    ALREADY_CURRENT = "already_current"
    SUPERSEDED = "superseded"
    NO_MATCHING_RECORD = "no_matching_record"
    FAILED = "failed"


UNFINISHED = frozenset({State.RECEIVED, State.PENDING})


class Notice(StrEnum):
    """What an e-mail to the study team says about an event."""

    SAVED = "saved"
    UNSAVED = "unsaved"
    UNMATCHED = "unmatched"


@dataclass(frozen=True, slots=True, kw_only=True)
class OptOutEvent:
    """A change by one participant, for one project. Its identity is (project, event_id).

    `event_id` is Twilio's message SID. `phone_hash` is empty where the sender is no phone number.
    """

    project: str
    event_id: str
    change: Change
    occurred_at: datetime
    source: Source
    phone_hash: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """The latest change of one phone in one project.

    `last_start_ms` is the time of the latest START that is known, even if it came after a newer STOP:
    an opt-out time in REDCap that is older than it belongs to an opt-out that has ended.
    """

    change: Change
    occurred_ms: int
    event_id: str
    last_start_ms: int

    @classmethod
    def decode(cls, text: str) -> "Status":
        """Read the form that `shared/ledger/scripts/accept.lua` stores."""
        change, occurred_ms, event_id, last_start_ms = text.split("|")
        return cls(
            change=Change(change),
            occurred_ms=int(occurred_ms),
            event_id=event_id,
            last_start_ms=int(last_start_ms),
        )

    @property
    def occurred_at(self) -> datetime:
        """Time of the change, UTC."""
        return from_milliseconds(self.occurred_ms)


def latest_of(statuses: Iterable[Status]) -> Status:
    """The status that counts for a record, of all the phones that it holds: a STOP before any START, then the latest.

    A record is opted out while any of its phones is: one number cannot end the opt-out of another. Raises ValueError
    if there is none.
    """
    return max(
        statuses, key=lambda status: (status.change is Change.STOP, status.occurred_ms, status.event_id)
    )


def milliseconds(moment: datetime) -> int:
    """Milliseconds since 1970 of an aware datetime."""
    return round(moment.timestamp() * 1000)


def from_milliseconds(value: int) -> datetime:
    """The aware UTC datetime of milliseconds since 1970."""
    return datetime.fromtimestamp(value / 1000, tz=UTC)
