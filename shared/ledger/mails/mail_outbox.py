"""The e-mails about events: which are due, alone or in a digest, and what became of them."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from shared.domain.events import Notice, milliseconds
from shared.ledger import keys
from shared.ledger.base import LedgerBase
from shared.ledger.events.models import StoredEvent
from shared.ledger.mails.deliveries import Delivery
from shared.ledger.work.due_work import Kind
from shared.retry_policy import FIRST_PAUSE_MS

# Longer than a day in any time zone.
REVIEW_DAYS_KEPT_SECONDS = 3 * 86_400


class MailOutbox(LedgerBase):
    """Each event's e-mail, until all its recipients are done."""

    def place_of_review(self, project: str, day: str, phone: str, event_id: str) -> int | None:
        """Return which of the day's mailed reviews this is, from 1; None if the participant had one that day."""
        key = keys.reviews_mailed(project, day)
        with self.redis.pipeline(transaction=True) as pipe:
            pipe.hsetnx(key, phone, event_id)
            pipe.hget(key, phone)
            pipe.hlen(key)
            pipe.expire(key, REVIEW_DAYS_KEPT_SECONDS)
            _, first, place, _ = pipe.execute()
        return int(place) if first == event_id else None

    def gathered(self, project: str, limit: int, *, skip: int = 0) -> list[str]:
        """Ids of events that wait for the digest, longest waiting first."""
        return list(self.redis.zrange(keys.gathered(project), skip, skip + limit - 1))

    def mark_in_digest(self, project: str, event_ids: Sequence[str], *, digest_seconds: int | None) -> None:
        """Remove events from those that wait for a digest. None leaves the time of the next digest as it is."""
        gather_ms = "" if digest_seconds is None else digest_seconds * 1000
        self._remove_from_digest(project, event_ids, gather_ms, self.redis)

    def _remove_from_digest(
        self, project: str, event_ids: Sequence[str], gather_ms: int | str, client: Any
    ) -> None:
        self._scripts["mark_in_digest"](
            keys={"gathered": keys.gathered(project), "due": keys.DUE, "attempts": keys.ATTEMPTS},
            args={"project": project, "gather_ms": gather_ms},
            rest=event_ids,
            client=client,
        )

    def queue_mails(self, project: str, event_ids: Sequence[str]) -> None:
        """Put events into the outbox, from which `take_mails` takes them; what is lost there is found by sweep."""
        self.redis.rpush(keys.outbox(project), *event_ids)

    def take_mails(self, project: str, limit: int) -> list[str]:
        """Ids of events whose e-mail is due."""
        return self.redis.lpop(keys.outbox(project), limit) or []

    def mails_due(self, project: str, event_ids: Sequence[str]) -> list[str]:
        """Return those of the events whose e-mail is due by itself, not in a digest."""
        due = {f"email|{project}|{event_id}": event_id for event_id in event_ids}
        return [due[member] for member in self._members(keys.DUE, list(due))]

    def note_delivery(self, entries: Iterable[StoredEvent], delivery: Delivery) -> None:
        """Store which recipients of the mail about these events are done."""
        with self.redis.pipeline(transaction=True) as pipe:
            for entry in entries:
                if entry.notice is not None:
                    accepted, rejected = delivery.encode(entry.notice, entry.notice_number)
                    self._scripts["note_delivery"](
                        keys={"event": keys.event(entry.project, entry.event_id)},
                        args={"accepted": accepted, "rejected": rejected},
                        client=pipe,
                    )
            pipe.execute()

    def record_mail_outcome(
        self, entry: StoredEvent, notice: Notice, outcome: str, *, now: datetime | None = None
    ) -> bool:
        """Mark an event's e-mail as dealt with: `outcome` is "sent" or the reason why not.

        False if another mail about the event is due: about further records, or of another kind.
        """
        project, event_id = entry.project, entry.event_id
        now_ms = milliseconds(now or datetime.now(UTC))
        return bool(
            self._scripts["record_mail_outcome"](
                keys={
                    "event": keys.event(project, event_id),
                    "due": keys.DUE,
                    "mailing": keys.mailing(project),
                    "attempts": keys.ATTEMPTS,
                },
                args={
                    "project": project,
                    "id": event_id,
                    "notice": notice,
                    "outcome": outcome,
                    "retention": self._retention_seconds,
                    "notice_number": entry.notice_number,
                    "now_ms": now_ms,
                },
            )
        )

    def renotify(self, project: str, event_id: str, *, digest: bool, now: datetime) -> Kind | None:
        """Make an event's undelivered mail due again, alone or in a digest. None if there is nothing to send."""
        now_ms = milliseconds(now)
        kind = self._scripts["renotify"](
            keys={
                "event": keys.event(project, event_id),
                "due": keys.DUE,
                "mailing": keys.mailing(project),
                "attempts": keys.ATTEMPTS,
                "gathered": keys.gathered(project),
            },
            args={
                "project": project,
                "id": event_id,
                "now_ms": now_ms,
                "due_ms": now_ms + FIRST_PAUSE_MS,
                "sends_digests": "1" if digest else "",
            },
        )
        return kind or None
