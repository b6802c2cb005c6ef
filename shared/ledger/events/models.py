"""An event as the ledger has it, and how one ends."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from shared.domain.events import Change, Notice, OptOutEvent, Source, State, from_milliseconds
from shared.ledger.mails.deliveries import Delivery
from shared.ledger.opt_outs.blocks import Block


class Accepted(StrEnum):
    """What became of an event that was submitted. ASK: it is new, and the caller has to publish a lookup."""

    NEW = "new"
    ASK = "ask"
    KNOWN = "known"
    STALE = "stale"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredEvent:
    """An event as the ledger has it."""

    project: str
    event_id: str
    change: Change
    state: State
    reason: str
    source: Source
    occurred_at: datetime
    received_at: datetime
    phone_hash: str
    records: tuple[str, ...]
    notice: Notice | None
    mail: str
    finished_at: datetime | None
    mail_since: datetime | None = None  # when the mail became due, or somebody asked to send it again
    notice_number: str = ""  # grows with each mail about the event
    delivery: Delivery = field(default_factory=Delivery)
    scope: str = ""
    blocked: bool = False  # Twilio blocks further texts
    timed: bool = False  # Twilio has confirmed the time
    decided_by: str = ""  # of a staff decision
    decision: str = ""  # its reason, in the words of staff
    first_received_ms: int = 0  # whatever was replayed since
    block: Block = field(default_factory=Block)  # at Twilio, at the program's request
    notified_at: datetime | None = None  # when all recipients had the last e-mail
    written_at: datetime | None = None  # when REDCap was written first

    @property
    def arrived_at(self) -> datetime:
        """When it was received first."""
        return from_milliseconds(self.first_received_ms) if self.first_received_ms else self.received_at

    @property
    def state_since(self) -> datetime:
        """When it ended; when it was received, if it has not."""
        return self.finished_at or self.received_at

    @property
    def came_at(self) -> datetime:
        """When the participant texted; a text that the log shows days later arrives long after that."""
        return min(self.occurred_at, self.arrived_at)

    def as_event(self) -> OptOutEvent:
        """The event as `Ledger.accept` takes it."""
        return OptOutEvent(
            project=self.project,
            event_id=self.event_id,
            change=self.change,
            occurred_at=self.occurred_at,
            source=self.source,
            phone_hash=self.phone_hash,
            scope=self.scope,
            blocked=self.blocked,
        )

    @classmethod
    def decode(cls, project: str, event_id: str, stored: dict[str, str]) -> "StoredEvent":
        """Read the hash that the scripts keep."""
        finished = stored.get("finished_ms")
        since = stored.get("notice_ms", finished)
        notice = Notice(stored["notice"]) if stored.get("notice") else None
        return cls(
            project=project,
            event_id=event_id,
            change=Change(stored["change"]),
            state=State(stored["state"]),
            reason=stored.get("reason", ""),
            source=Source(stored["source"]),
            occurred_at=from_milliseconds(int(stored["occurred_ms"])),
            received_at=from_milliseconds(int(stored["received_ms"])),
            phone_hash=stored["phone"],
            records=tuple(json.loads(stored.get("records") or "[]")),
            notice=notice,
            mail=stored.get("mail", ""),
            finished_at=from_milliseconds(int(finished)) if finished else None,
            mail_since=from_milliseconds(int(since)) if since else None,
            notice_number=stored.get("notice_number", ""),
            delivery=Delivery.decode(stored, notice),
            block=Block.decode(stored),
            notified_at=from_milliseconds(int(stored["notified_ms"])) if "notified_ms" in stored else None,
            written_at=from_milliseconds(int(stored["written_ms"])) if "written_ms" in stored else None,
            first_received_ms=int(stored.get("arrived_ms") or 0),
            scope=stored.get("scope", ""),
            blocked=stored.get("blocked") == "1",
            timed=stored.get("timed") == "1",
            decided_by=stored.get("decided_by", ""),
            decision=stored.get("decision", ""),
        )


@dataclass(frozen=True, slots=True)
class Backlog:
    """Events that wait: how many, and since when the oldest does, 0 if none waits."""

    number: int
    oldest_ms: int

    def seconds(self, now_ms: int) -> float:
        """For how long the oldest has waited."""
        return (now_ms - self.oldest_ms) / 1000 if self.oldest_ms else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class EventOutcome:
    """How an event ended, for `complete_events`."""

    event_id: str
    phone_hash: str
    state: State
    reason: str = ""
    records: Sequence[str] = ()
    notice: Notice | None = None
    written: Sequence[str] = ()  # the records that were written
    gather_seconds: int | None = None  # collect its notice for so long, whatever the project's digest says
    ask_twilio: bool = False  # to block the number, unless it does so by itself


@dataclass(frozen=True, slots=True, kw_only=True)
class StaffDecision:
    """Who of the staff decided about an event, and why, in their own words."""

    by: str
    reason: str
    unblock: bool = False  # Twilio has to be asked to deliver texts again

    @property
    def fields(self) -> dict[str, str]:
        """As they are stored with the event."""
        return {"decided_by": self.by, "decision": self.reason} | ({"unblock": "1"} if self.unblock else {})
