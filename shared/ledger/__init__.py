"""The record of what happened, in Redis. Each step is one Lua script, so that no crash can tear it.

The scripts use keys that they derive from their arguments, so Redis must not be a cluster.
"""

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, tzinfo
from enum import StrEnum
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from secrets import token_hex
from types import MappingProxyType
from typing import Any, Literal

from shared.batches import batches
from shared.domain.endpoints import TEST_SID_PREFIX
from shared.domain.events import (
    LISTED,
    UNFINISHED,
    Change,
    Notice,
    OptOutEvent,
    Source,
    State,
    from_milliseconds,
    milliseconds,
)
from shared.domain.precedence import Status, decode_statuses
from shared.ledger import keys
from shared.ledger.background import BackgroundJobs
from shared.ledger.blocks import Block, Blocks
from shared.ledger.change_counts import DAYS_COUNTED, LATENCY_BOUNDS_MS, WEEKS_COUNTED, local_offset_ms
from shared.ledger.deliveries import Delivery
from shared.ledger.failures import prune_failures
from shared.ledger.staff_actions import forget_actions
from shared.ledger.version import LISTS_BY_STATE, ledger_version
from shared.redis_client import RedisClient, execute_replicated

LUA = Path(__file__).parent / "scripts"

# When sweep publishes a piece of work again that nobody has finished: first after a minute, then at
# doubling pauses, of which the longest also bounds how long a recovery of REDCap goes unnoticed.
FIRST_PAUSE_MS = 60_000
LONGEST_PAUSE_MS = 300_000
# For how long a lookup in the queue is believed to be there: what comes after that sends another.
LOOKUP_WAITS_MS = 5_000
# What failed is tried again sooner a few times, for what passes within a minute.
QUICK_PAUSES_SECONDS = (5.0, 15.0, 30.0)

# What is read of many events at a time.
CHUNK = 500
# How many old ids are checked per trim, once a minute: Redis does nothing else for a millisecond or two.
MOST_TRIMMED = 1_000

# What complete.lua returns if an e-mail waits for Twilio's answer to a block.
ASKS_TWILIO_FIRST = "block"

# Longer than a day in any time zone.
REVIEW_DAYS_KEPT_SECONDS = 3 * 86_400

Kind = Literal["lookup", "update", "email", "digest", "block"]


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
    def came_at(self) -> datetime:
        """When the participant texted; a text that the log shows days later arrives long after that."""
        return min(self.occurred_at, self.arrived_at)

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
class DueWork:
    """A piece of work that sweep has claimed. `event_id` is empty for an update, a digest and blocks."""

    kind: Kind
    project: str
    event_id: str


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


class Ledger:
    """Events, latest status per phone, pending set and due work of all projects."""

    def __init__(self, redis: RedisClient, *, retention_days: int = 400) -> None:
        self.redis = redis
        self._retention_seconds = retention_days * 86_400

    @cached_property
    def _scripts(self) -> dict[str, Any]:
        return {path.stem: self.redis.register_script(_script(path.stem)) for path in LUA.glob("*.lua")}

    @cached_property
    def _accept_script(self) -> str:
        return _script("accept")

    @cached_property
    def _accept_hash(self) -> str:
        return hashlib.sha1(self._accept_script.encode(), usedforsecurity=False).hexdigest()

    # --- events -------------------------------------------------------------------------------

    def accept(
        self,
        events: Sequence[OptOutEvent],
        *,
        now: datetime,
        lookups: bool = False,
        confirmed: bool = False,
    ) -> list[Accepted]:
        """Record events all together or not at all, each once. Raises redis.RedisError where that failed.

        Of two changes in the same millisecond, the one handed in later counts as the later one, except
        from the message log, which is read newest first.

        With `lookups`, the answer says for which events the caller has to publish a lookup: only if none of the
        project waits in the queue, as that one includes the others (`take_arrived`).

        A START by webhook counts only once its time is `confirmed`, by a second call for the same event.
        """
        with self.redis.pipeline(transaction=True) as pipe:
            for event in events:
                self._accept_one(event, now, pipe, lookups=lookups, confirmed=confirmed)
            return [Accepted(answer) for answer in pipe.execute()]

    def accept_each(
        self, arrived: Sequence[tuple[OptOutEvent, datetime]], *, counted: Mapping[str, int]
    ) -> list[Accepted | Exception]:
        """Record events with their times of receipt, each with an outcome of its own; the caller publishes lookups.

        All of them wait for the disk once, and for a replica if there are any, together with the metrics of
        `/metrics` that are `counted`, which also make a repeated event wait. Raises redis.RedisError if the store is
        unavailable.
        """
        with self.redis.pipeline(transaction=True) as pipe:
            for event, now in arrived:
                self._accept_one(event, now, pipe, lookups=True, confirmed=False)
            for label, number in counted.items():
                pipe.hincrby(keys.METRICS, label, number)
            answers = execute_replicated(self.redis, pipe)[: len(arrived)]
        return [answer if isinstance(answer, Exception) else Accepted(answer) for answer in answers]

    def _accept_one(
        self, event: OptOutEvent, now: datetime, pipe: Any, *, lookups: bool, confirmed: bool
    ) -> None:
        project, now_ms = event.project, milliseconds(now)
        newest_first = event.source in {Source.MESSAGE_LOG, Source.BLOCKED_MESSAGE}
        names = [
            keys.event(project, event.event_id),
            keys.status(project),
            keys.pending(project),
            keys.unfinished(project),
            keys.events(project),
            keys.DUE,
            keys.COUNTS,
            keys.intents(project),
            keys.arrived(project),
            keys.queued(f"lookup:{project}"),
            keys.ATTEMPTS,
            keys.seen_starts(project),
            keys.reviews(project),
        ]
        unconfirmed = (
            event.change is Change.START
            and event.source is Source.WEBHOOK
            and not (confirmed or event.is_exact)
        )
        # The first one brings the script's whole text, so that the server knows it by its hash for the others:
        # redis-py would ask for that first, at the cost of a round trip.
        script = (
            partial(pipe.evalsha, self._accept_hash) if len(pipe) else partial(pipe.eval, self._accept_script)
        )
        script(
            len(names),
            *names,
            project,
            event.event_id,
            event.change,
            milliseconds(event.occurred_at),
            now_ms,
            event.phone_hash,
            event.source,
            now_ms + FIRST_PAUSE_MS,
            "oldest" if newest_first else "newest",
            keys.event(project, ""),
            self._retention_seconds,
            token_hex(8) if lookups else "",
            LOOKUP_WAITS_MS,
            event.scope,
            "1" if event.is_exact else "0",
            "1" if event.blocked else "0",
            "1" if unconfirmed else "0",
            "1" if confirmed else "0",
            keys.ended(project, ""),
        )

    def load(self, project: str, event_id: str) -> StoredEvent | None:
        """An event, or None."""
        stored = self.redis.hgetall(keys.event(project, event_id))
        return StoredEvent.decode(project, event_id, stored) if stored else None

    def entries(
        self, project: str, *, newest_first: bool = True, states: Collection[State] = (), page: int = CHUNK
    ) -> Iterator[StoredEvent]:
        """All events of a project that are still kept, newest first a page at a time.

        With `states` only those in one of them: of the others nothing is read, or nothing but the state.
        """
        key = self._list_of(project, states)
        mixed = bool(states) and key == keys.events(project)
        pages = self._newest_ids(key, page) if newest_first else batches(self.redis.zrange(key, 0, -1), page)
        for ids in pages:
            chosen = self._in_states(project, ids, states) if mixed else ids
            entries = self.entries_of(project, chosen)
            yield from (entry for entry in entries if not states or entry.state in states)

    def _list_of(self, project: str, states: Collection[State]) -> str:
        """The shortest list with all events in some states; without any, of all events."""
        if states and UNFINISHED.issuperset(states):
            return keys.unfinished(project)
        if len(states) == 1 and LISTED.issuperset(states) and ledger_version(self.redis) >= LISTS_BY_STATE:
            [state] = states
            return keys.ended(project, state)
        return keys.events(project)

    def _newest_ids(self, key: str, page: int) -> Iterator[list[str]]:
        """The members of a sorted set by falling score. One that leaves it shifts others into the next page."""
        before: list[str] = []
        for stop in range(self.redis.zcard(key), 0, -page):
            ids = self.redis.zrange(key, max(0, stop - page), stop - 1)[::-1]
            yield [event_id for event_id in ids if event_id not in before]
            before = ids

    def _in_states(self, project: str, event_ids: Sequence[str], states: Collection[State]) -> list[str]:
        with self.redis.pipeline(transaction=False) as pipe:
            for event_id in event_ids:
                pipe.hget(keys.event(project, event_id), "state")
            found = pipe.execute()
        return [event_id for event_id, state in zip(event_ids, found, strict=True) if state in states]

    def entries_between(self, project: str, since: datetime, until: datetime) -> Iterator[StoredEvent]:
        """The events of a project that were received within a time, oldest first."""
        pages = self._ids_between(keys.events(project), milliseconds(since), milliseconds(until))
        yield from chain.from_iterable(self.entries_of(project, page) for page in pages)

    def _ids_between(self, key: str, since_ms: float, until_ms: int) -> Iterator[list[str]]:
        """The members of a sorted set by rising score, a page at a time."""
        known = 0  # of those with the lowest score
        while found := self.redis.zrangebyscore(
            key, since_ms, until_ms, start=known, num=CHUNK, withscores=True
        ):
            yield [event_id for event_id, _ in found]
            last = found[-1][1]
            known = sum(score == last for _, score in found) + (known if last == since_ms else 0)
            since_ms = last

    def _in_chunks(self, project: str, event_ids: Sequence[str]) -> Iterator[list[StoredEvent]]:
        for start in range(0, len(event_ids), CHUNK):
            yield self.entries_of(project, event_ids[start : start + CHUNK])

    def entries_of(self, project: str, event_ids: Sequence[str]) -> list[StoredEvent]:
        """Those of the events that are kept; a few hundred ids at a time."""
        with self.redis.pipeline(transaction=False) as pipe:
            for event_id in event_ids:
                pipe.hgetall(keys.event(project, event_id))
            found = zip(event_ids, pipe.execute(), strict=True)
        return [StoredEvent.decode(project, event_id, stored) for event_id, stored in found if stored]

    def known(self, project: str, event_ids: Sequence[str]) -> set[str]:
        """Those of the ids whose events are kept."""
        with self.redis.pipeline(transaction=False) as pipe:
            for event_id in event_ids:
                pipe.exists(keys.event(project, event_id))
            return {event_id for event_id, found in zip(event_ids, pipe.execute(), strict=True) if found}

    def unfinished(self, project: str, event_ids: Sequence[str]) -> set[str]:
        """Those of the ids whose events have not ended."""
        return self._members(keys.unfinished(project), event_ids)

    def _members(self, sorted_set: str, members: Sequence[str]) -> set[str]:
        if not members:
            return set()
        scores = self.redis.zmscore(sorted_set, members)
        return {member for member, score in zip(members, scores, strict=True) if score is not None}

    def unfinished_entries(self, project: str) -> Iterator[list[StoredEvent]]:
        """The events that have not ended, a few hundred at a time."""
        yield from self._in_chunks(project, self.redis.zrange(keys.unfinished(project), 0, -1))

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
                self._scripts["match"](
                    keys=[
                        keys.event(project, entry.event_id),
                        keys.pending(project),
                        keys.DUE,
                        keys.ATTEMPTS,
                    ],
                    args=[project, entry.event_id, json.dumps(records), now_ms, now_ms + FIRST_PAUSE_MS],
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
        self, project: str, outcome: EventOutcome, now_ms: int, times: tuple[int, int], pipe: Any
    ) -> None:
        gather_ms, offset_ms = times
        self._scripts["complete"](
            keys=[
                keys.event(project, outcome.event_id),
                keys.unfinished(project),
                keys.DUE,
                keys.COUNTS,
                keys.intents(project),
                keys.mailing(project),
                keys.ATTEMPTS,
                keys.gathered(project),
                keys.reviews(project),
                keys.change_counts(project),
                keys.latencies(project),
                keys.failures(project),
                keys.blocks_waiting(project),
                keys.ended(project, ""),
            ],
            args=[
                project,
                outcome.event_id,
                outcome.phone_hash,
                outcome.state,
                outcome.reason,
                json.dumps(list(outcome.records)),
                outcome.notice or "",
                now_ms,
                now_ms + FIRST_PAUSE_MS,
                self._retention_seconds,
                gather_ms,
                "\n".join(outcome.written),
                "" if outcome.event_id.startswith(TEST_SID_PREFIX) else offset_ms,
                DAYS_COUNTED,
                WEEKS_COUNTED,
                "1" if outcome.ask_twilio else "",
                *LATENCY_BOUNDS_MS,
            ],
            client=pipe,
        )

    def _release(self, project: str, phone: str, status: str, now_ms: int, pipe: Any) -> None:
        self._scripts["release"](
            keys=[keys.status(project), keys.pending(project), keys.DUE],
            args=[project, phone, status, now_ms, now_ms + FIRST_PAUSE_MS],
            client=pipe,
        )

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

    def reviews(self, project: str, limit: int = -1) -> list[StoredEvent]:
        """Events that wait for a person's decision, longest waiting first."""
        ids = self.redis.zrange(keys.reviews(project), 0, limit - 1 if limit > 0 else -1)
        return [entry for batch in self._in_chunks(project, ids) for entry in batch]

    def record_decision(
        self, project: str, event_id: str, *, decided_by: str, reason: str, unblock: bool = False
    ) -> None:
        """Keep who decided about an event, and why; and that Twilio has to be asked to deliver texts again."""
        decision = {"decided_by": decided_by, "decision": reason} | ({"unblock": "1"} if unblock else {})
        self.redis.hset(keys.event(project, event_id), mapping=decision)

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
            keys=[keys.gathered(project), keys.DUE, keys.ATTEMPTS],
            args=[project, gather_ms, *event_ids],
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
                    event = keys.event(entry.project, entry.event_id)
                    args = delivery.encode(entry.notice, entry.notice_number)
                    self._scripts["note_delivery"](keys=[event], args=args, client=pipe)
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
                keys=[keys.event(project, event_id), keys.DUE, keys.mailing(project), keys.ATTEMPTS],
                args=[
                    project,
                    event_id,
                    notice,
                    outcome,
                    self._retention_seconds,
                    entry.notice_number,
                    now_ms,
                ],
            )
        )

    def renotify(self, project: str, event_id: str, *, digest: bool, now: datetime) -> Kind | None:
        """Make an event's undelivered mail due again, alone or in a digest. None if there is nothing to send."""
        now_ms = milliseconds(now)
        kind = self._scripts["renotify"](
            keys=[
                keys.event(project, event_id),
                keys.DUE,
                keys.mailing(project),
                keys.ATTEMPTS,
                keys.gathered(project),
            ],
            args=[project, event_id, now_ms, now_ms + FIRST_PAUSE_MS, "1" if digest else ""],
        )
        return kind or None

    def reopen(self, project: str, event_id: str, *, now: datetime) -> bool:
        """Set an ended event back to its start. False where there is none, or nothing to look up."""
        now_ms = milliseconds(now)
        return bool(
            self._scripts["reopen"](
                keys=[
                    keys.event(project, event_id),
                    keys.unfinished(project),
                    keys.DUE,
                    keys.ATTEMPTS,
                    keys.events(project),
                ],
                args=[project, event_id, now_ms, now_ms + FIRST_PAUSE_MS, keys.ended(project, "")],
            )
        )

    # --- status and pending set -----------------------------------------------------------------

    def pending(self, project: str, limit: int | None = None, offset: int = 0) -> list[str]:
        """Phone hashes whose status has to reach REDCap, longest waiting first; all of them without a limit."""
        last = -1 if limit is None else offset + limit - 1
        return list(self.redis.zrange(keys.pending(project), offset, last))

    def pending_since(self, project: str, moment: datetime) -> list[str]:
        """Phone hashes that have been pending since before a moment, longest first."""
        return list(self.redis.zrangebyscore(keys.pending(project), "-inf", f"({milliseconds(moment)}"))

    def is_pending(self, project: str, phone: str) -> bool:
        """Whether a phone's status has to reach REDCap."""
        return self.redis.zscore(keys.pending(project), phone) is not None

    def statuses(self, project: str, phones: Sequence[str]) -> dict[str, str]:
        """Encoded latest changes per phone hash, as `decode_statuses` reads them."""
        if not phones:
            return {}
        stored = self.redis.hmget(keys.status(project), phones)
        return {phone: text for phone, text in zip(phones, stored, strict=True) if text}

    def status(self, project: str, phone: str) -> tuple[Status, ...]:
        """The latest change of a phone in each scope."""
        stored = self.statuses(project, [phone]).get(phone)
        return decode_statuses(stored) if stored else ()

    def statuses_of(self, project: str, phones: Iterable[str]) -> list[Status]:
        """The latest changes of several phones or staff keys, in all scopes."""
        stored = self.statuses(project, sorted(phones))
        return [status for text in stored.values() for status in decode_statuses(text)]

    def count_statuses(self, project: str) -> int:
        """How many phones have a status."""
        return int(self.redis.hlen(keys.status(project)))

    def all_statuses(self, project: str) -> Iterator[tuple[str, str]]:
        """Every phone hash of a project with its encoded status; one may come twice while others are added."""
        yield from self.redis.hscan_iter(keys.status(project), count=1000)

    def require_update(self, project: str, phones: Sequence[str], *, now: datetime) -> None:
        """Put phones into the pending set, and the project's update among the due work."""
        if not phones:
            return
        now_ms = milliseconds(now)
        with self.redis.pipeline(transaction=True) as pipe:
            pipe.zadd(keys.pending(project), dict.fromkeys(phones, now_ms), nx=True)
            pipe.zadd(keys.DUE, {f"update|{project}|": now_ms + FIRST_PAUSE_MS}, nx=True)
            pipe.execute()

    def forget_pending(self, project: str, phones: Sequence[str]) -> None:
        """Take phones out of the pending set whose status has been erased."""
        if phones:
            self.redis.zrem(keys.pending(project), *phones)

    def clear_update_if_empty(self, project: str) -> int:
        """Forget the due update of a project if nothing is pending. Returns how many are pending."""
        return int(
            self._scripts["clear_update_if_empty"](
                keys=[keys.pending(project), keys.DUE, keys.ATTEMPTS], args=[project]
            )
        )

    def restore_status(self, project: str, phone: str, event_id: str, before: str | None) -> bool:
        """Set a phone's latest status back (None: unknown). False where it is no longer that of `event_id`."""

        def restore(pipe: Any) -> bool:
            current = pipe.hget(keys.status(project), phone)
            pipe.multi()
            if event_id not in {status.event_id for status in decode_statuses(current or "")}:
                return False
            if before is None:
                pipe.hdel(keys.status(project), phone)
            else:
                pipe.hset(keys.status(project), phone, before)
            return True

        return bool(self.redis.transaction(restore, keys.status(project), value_from_callable=True))

    def forget(self, project: str, phone: str) -> dict[str, int]:
        """Remove all traces of a phone: status, pending, intent, its events and their due work. Returns how many."""
        entries = [entry for entry in self.entries(project) if entry.phone_hash == phone]
        ids = [entry.event_id for entry in entries]
        records = {record for entry in entries for record in entry.records}
        due = [f"{kind}|{project}|{event_id}" for event_id in ids for kind in ("lookup", "email")]
        with self.redis.pipeline(transaction=True) as pipe:
            pipe.hdel(keys.status(project), phone)
            pipe.zrem(keys.pending(project), phone)
            pipe.hdel(keys.intents(project), phone)
            pipe.hdel(keys.failures(project), phone)
            for mailed in self.redis.scan_iter(match=keys.reviews_mailed(project, "*"), count=1000):
                pipe.hdel(mailed, phone)
            if records:
                pipe.hdel(keys.written(project), *records)
            if ids:
                pipe.delete(*(keys.event(project, event_id) for event_id in ids))
                for key in (keys.events, keys.unfinished, keys.mailing, keys.reviews, keys.seen_starts):
                    pipe.zrem(key(project), *ids)
                for listed in keys.ended_lists(project):
                    pipe.zrem(listed, *ids)
                for key in (keys.arrived, keys.outbox):
                    for event_id in ids:
                        pipe.lrem(key(project), 0, event_id)
                pipe.zrem(keys.DUE, *due)
                pipe.hdel(keys.ATTEMPTS, *due)
                self._remove_from_digest(project, ids, "", pipe)
            Blocks(project, self.redis).forget(phone, ids, pipe)
            status, pending, intents, *_ = pipe.execute()
        forget_actions(self.redis, project, ids)
        return {"status": status, "pending": pending, "intents": intents, "events": len(ids)}

    def forget_project(self, project: str) -> dict[str, int]:
        """Remove all that is kept of a project but its figures. Returns how many statuses and events that were.

        It is noted last that this project is known: what a crash leaves is found by the next call.
        """
        removed = {"status": self.count_statuses(project), "events": self._forget_events(project)}
        due = [member for member, _ in self.redis.zscan_iter(keys.DUE, match=f"*|{project}|*", count=1000)]
        with self.redis.pipeline(transaction=True) as pipe:
            for start in range(0, len(due), CHUNK):
                pipe.zrem(keys.DUE, *due[start : start + CHUNK])
                pipe.hdel(keys.ATTEMPTS, *due[start : start + CHUNK])
            pipe.unlink(*keys.of_project(project))
            for key in (keys.PROBLEMS, keys.VERIFIED, keys.CHECKS, keys.SUMMARIES, keys.PROJECTS):
                pipe.hdel(key, project)
            pipe.zrem(keys.CHECKS_DUE, project)
            pipe.execute()
        BackgroundJobs(self.redis).forget_project(project)
        return removed

    def _forget_events(self, project: str) -> int:
        number = 0
        while ids := self.redis.zrange(keys.events(project), 0, CHUNK - 1):
            with self.redis.pipeline(transaction=True) as pipe:
                pipe.unlink(*(keys.event(project, event_id) for event_id in ids))
                pipe.zrem(keys.events(project), *ids)
                pipe.execute()
            number += len(ids)
        return number

    # --- intents: writes to REDCap that have begun ------------------------------------------------

    def begin_writes(
        self,
        project: str,
        writes: dict[str, str],
        *,
        begun: Mapping[str, str] = MappingProxyType({}),
        now: datetime,
    ) -> list[str]:
        """Note that a write has begun for each phone hash, on behalf of an event id; all or none.

        Returns conflicting phones: those whose latest changes do not include the one to be written, and those in
        `begun` for which another writer has begun since. Either means that this process lost its lock. `begun` has
        the event whose write had begun when a phone's records were read, or "".

        The phone is pending from now on in any case: another updater may have completed it in the meantime, and what
        this write leaves in REDCap has to be checked again even if this process dies.
        """
        if not writes:
            return []
        now_ms = milliseconds(now)
        each = [(phone, event_id, begun.get(phone, "-")) for phone, event_id in writes.items()]
        outdated = self._scripts["begin_writes"](
            keys=[keys.intents(project), keys.status(project), keys.pending(project), keys.DUE],
            args=[project, now_ms, now_ms + FIRST_PAUSE_MS, *(part for parts in each for part in parts)],
        )
        return list(outdated)

    def forget_intent(self, project: str, phone: str) -> None:
        """Take back the note that a write has begun."""
        self.redis.hdel(keys.intents(project), phone)

    def intents(self, project: str, phones: Sequence[str]) -> dict[str, str]:
        """Event ids whose write had begun, per phone hash."""
        if not phones:
            return {}
        stored = self.redis.hmget(keys.intents(project), phones)
        return {phone: event_id for phone, event_id in zip(phones, stored, strict=True) if event_id}

    # --- due work ---------------------------------------------------------------------------------

    def claim_due(self, *, now: datetime, limit: int) -> list[DueWork]:
        """Overdue work; each piece comes again at growing pauses until it is done."""
        members = self._scripts["claim_due"](
            keys=[keys.DUE, keys.ATTEMPTS],
            args=[milliseconds(now), limit, FIRST_PAUSE_MS, LONGEST_PAUSE_MS],
        )
        return [DueWork(*member.split("|", 2)) for member in members]

    def schedule_quick_retry(
        self, kind: Kind, project: str, event_id: str = "", *, now: datetime
    ) -> float | None:
        """Bring the first few further tries of a piece of work forward. Returns in how many seconds, or None."""
        member = f"{kind}|{project}|{event_id}"
        tries = int(self.redis.hget(keys.ATTEMPTS, member) or 0)
        if tries >= len(QUICK_PAUSES_SECONDS):
            return None
        pause = QUICK_PAUSES_SECONDS[tries]
        self.redis.zadd(keys.DUE, {member: milliseconds(now) + pause * 1000}, xx=True, lt=True)
        return pause

    def make_due_now(self, project: str, *, now: datetime) -> None:
        """Make all unfinished work of a project due now: what was in its way is gone."""
        ids = self.redis.zrange(keys.unfinished(project), 0, -1)
        members = [f"update|{project}|", *(f"lookup|{project}|{event_id}" for event_id in ids)]
        self.redis.hdel(keys.ATTEMPTS, *members)
        self.redis.zadd(keys.DUE, dict.fromkeys(members, milliseconds(now)), xx=True)

    def cancel_update(self, project: str) -> None:
        """Take a project's update from the due work, whatever is pending."""
        self.redis.zrem(keys.DUE, f"update|{project}|")
        self.redis.hdel(keys.ATTEMPTS, f"update|{project}|")

    def prune_expired(self, projects: Sequence[str], *, now: datetime) -> int:
        """Forget the ids of events that have expired: of a thousand per project and call. Returns how many."""
        now_ms = milliseconds(now)
        oldest = now_ms - self._retention_seconds * 1000
        with self.redis.pipeline(transaction=False) as pipe:
            for project in projects:
                self._scripts["prune_expired"](
                    keys=[keys.events(project), *keys.ended_lists(project)],
                    args=[keys.event(project, ""), oldest, MOST_TRIMMED, now_ms // 60_000],
                    client=pipe,
                )
            numbers = list(map(int, pipe.execute()))
        for project, number in zip(projects, numbers, strict=True):
            if number:
                prune_failures(project, self.redis)
        return sum(numbers)

    # --- figures ----------------------------------------------------------------------------------

    def count(self, *label: str, by: int = 1) -> None:
        """Add to a figure of `/metrics`; its name and label values are `label`."""
        self.redis.hincrby(keys.METRICS, "|".join(label), by)


def _script(name: str) -> str:
    return (LUA / "prelude.lua").read_text() + (LUA / f"{name}.lua").read_text()


def _gather_ms(outcome: EventOutcome, digest_seconds: int) -> int:
    if outcome.gather_seconds is not None:
        return outcome.gather_seconds * 1000
    return 0 if outcome.notice is Notice.UNSAVED else digest_seconds * 1000
