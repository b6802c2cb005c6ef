"""Takes events from their receipt to their end: arrived, looked up, ended, set back, decided by staff."""

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, tzinfo
from types import MappingProxyType

from shared.domain.endpoints import TEST_SID_PREFIX
from shared.domain.events import Notice, milliseconds
from shared.ledger import keys
from shared.ledger.events.event_store import EventStore
from shared.ledger.events.models import EventOutcome, StaffDecision, StoredEvent
from shared.ledger.projects.change_counts import (
    DAYS_COUNTED,
    LATENCY_BOUNDS_MS,
    WEEKS_COUNTED,
    local_offset_ms,
)
from shared.redis_client import execute_replicated, raise_first
from shared.redis_types import RedisPipeline
from shared.retry_policy import FIRST_PAUSE_MS

# What complete.lua returns if an e-mail waits for Twilio's answer to a block.
ASKS_TWILIO_FIRST = "block"


class EventProgress(EventStore):
    """Changes the state of events."""

    def take_arrived(self, project: str, limit: int) -> list[StoredEvent]:
        """Events that no lookup has seen yet; what is taken here and then lost is found by sweep."""
        ids = self.redis.lpop(keys.arrived(project), limit) or []
        return self.entries_of(project, ids)

    def match(self, entry: StoredEvent, records: Sequence[str], *, now: datetime) -> bool:
        """Record an event's records and request its phone's update. False if the event has ended in the meantime."""
        return bool(self.attach_records(entry.project, [(entry, records)], now=now))

    def attach_records(
        self, project: str, found: Sequence[tuple[StoredEvent, Sequence[str]]], *, now: datetime
    ) -> set[str]:
        """The same for many events. Returns the ids of those that had not ended."""
        now_ms = milliseconds(now)
        with self.redis.pipeline(transaction=False) as pipe:
            for entry, records in found:
                self._scripts["attach_records"](
                    keys={
                        "event": keys.event(project, entry.event_id),
                        "pending": keys.pending(project),
                        "due": keys.DUE,
                        "attempts": keys.ATTEMPTS,
                    },
                    args={
                        "project": project,
                        "id": entry.event_id,
                        "records": json.dumps(records),
                        "now_ms": now_ms,
                        "due_ms": now_ms + FIRST_PAUSE_MS,
                    },
                    client=pipe,
                )
            answers = pipe.execute()
        return {entry.event_id for (entry, _), matched in zip(found, answers, strict=True) if matched}

    def complete_events(
        self,
        project: str,
        outcomes: Iterable[EventOutcome],
        *,
        now: datetime,
        digest_seconds: int = 0,
        written: Mapping[str, str] = MappingProxyType({}),
        zone: tzinfo = UTC,
    ) -> list[str]:
        """End events. Returns the ids of those whose e-mail is now due by itself, unless Twilio is asked first.

        What was written is counted by the day of the text in `zone`. With `digest_seconds`, notices are collected for
        so long; what could not be saved is mailed at once. `written` are the statuses, as they were read, of phones
        that need no further update unless these have changed.
        """
        outcomes = list(outcomes)
        offset_ms = local_offset_ms(now, zone)
        # All together, as Redis then waits for its disk once, not for every few kilobytes of the pipeline.
        with self.redis.pipeline(transaction=True) as pipe:
            for outcome in outcomes:
                gather_ms = _gather_ms(outcome, digest_seconds)
                self._complete_one(project, outcome, milliseconds(now), (gather_ms, offset_ms), pipe)
            for phone, status in written.items():
                self._release(project, phone, status, milliseconds(now), pipe)
            answers = pipe.execute()[: len(outcomes)]
        return [
            outcome.event_id
            for outcome, notice in zip(outcomes, answers, strict=True)
            if notice and notice != ASKS_TWILIO_FIRST
        ]

    def _complete_one(
        self, project: str, outcome: EventOutcome, now_ms: int, times: tuple[int, int], pipe: RedisPipeline
    ) -> None:
        gather_ms, offset_ms = times
        self._scripts["complete"](
            keys={
                "event": keys.event(project, outcome.event_id),
                "unfinished": keys.unfinished(project),
                "due": keys.DUE,
                "counts": keys.COUNTS,
                "intents": keys.intents(project),
                "mailing": keys.mailing(project),
                "attempts": keys.ATTEMPTS,
                "gathered": keys.gathered(project),
                "reviews": keys.reviews(project),
                "change_counts": keys.change_counts(project),
                "latencies": keys.latencies(project),
                "failures": keys.failures(project),
                "blocks_waiting": keys.blocks_waiting(project),
            },
            args={
                "project": project,
                "id": outcome.event_id,
                "phone": outcome.phone_hash,
                "state": outcome.state,
                "reason": outcome.reason,
                "records": json.dumps(list(outcome.records)),
                "notice": outcome.notice or "",
                "now_ms": now_ms,
                "due_ms": now_ms + FIRST_PAUSE_MS,
                "retention": self._retention_seconds,
                "gather_ms": gather_ms,
                "written": "\n".join(outcome.written),
                "offset_ms": "" if outcome.event_id.startswith(TEST_SID_PREFIX) else offset_ms,
                "days_counted": DAYS_COUNTED,
                "weeks_counted": WEEKS_COUNTED,
                "may_ask_twilio": "1" if outcome.ask_twilio else "",
                "lists": keys.ended(project, ""),
            },
            rest=LATENCY_BOUNDS_MS,
            client=pipe,
        )

    def _release(self, project: str, phone: str, status: str, now_ms: int, pipe: RedisPipeline) -> None:
        self._scripts["release"](
            keys={"statuses": keys.status(project), "pending": keys.pending(project), "due": keys.DUE},
            args={
                "project": project,
                "phone": phone,
                "written": status,
                "now_ms": now_ms,
                "due_ms": now_ms + FIRST_PAUSE_MS,
            },
            client=pipe,
        )

    def reopen(self, project: str, event_id: str, *, now: datetime) -> bool:
        """Set an ended event back to its start. False where there is none, or nothing to look up."""
        now_ms = milliseconds(now)
        return bool(
            self._scripts["reopen"](
                keys={
                    "event": keys.event(project, event_id),
                    "unfinished": keys.unfinished(project),
                    "due": keys.DUE,
                    "attempts": keys.ATTEMPTS,
                    "events": keys.events(project),
                },
                args={
                    "project": project,
                    "id": event_id,
                    "now_ms": now_ms,
                    "due_ms": now_ms + FIRST_PAUSE_MS,
                    "lists": keys.ended(project, ""),
                },
            )
        )

    def record_decision(self, project: str, event_id: str, decision: StaffDecision) -> None:
        """Keep who decided about an event, and wait for a replica, if there are any, to have this and all before it.

        Raises redis.RedisError where that failed.
        """
        with self.redis.pipeline(transaction=True) as pipe:
            pipe.hset(keys.event(project, event_id), mapping=decision.fields)
            raise_first(execute_replicated(self.redis, pipe))


def _gather_ms(outcome: EventOutcome, digest_seconds: int) -> int:
    if outcome.gather_seconds is not None:
        return outcome.gather_seconds * 1000
    return 0 if outcome.notice is Notice.UNSAVED else digest_seconds * 1000
