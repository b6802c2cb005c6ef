"""The events of a study a page at a time, newest first. What one page reads is limited, whatever the filter."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

from shared.domain.events import Change, State, milliseconds
from shared.ledger import keys
from shared.ledger.events.event_store import EventStore
from shared.ledger.events.models import StoredEvent

PAGE = 50
MOST_READ = 1_000
_CHUNK = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class EventFilter:
    """Which events to show; a part that is empty chooses all. Times are those of receipt."""

    state: State | None = None
    change: Change | None = None
    record: str = ""
    since: datetime | None = None
    until: datetime | None = None

    @property
    def states(self) -> list[State]:
        """The states to show; empty for all."""
        return [self.state] if self.state else []

    def accepts(self, state: str, change: str, records: str) -> bool:
        """Whether an event with these stored values is shown."""
        return (
            (self.state is None or state == self.state)
            and (self.change is None or change == self.change)
            and (not self.record or json.dumps(self.record) in records)
        )


@dataclass(slots=True)
class EventPage:
    """Some events, and from where to go on: `below` is 0 at the end."""

    entries: list[StoredEvent] = field(default_factory=list)
    below: int = 0
    read_back_to: datetime | None = None  # where the limit ended a search that has found less than a page

    @property
    def room(self) -> int:
        """How many more events it takes."""
        return PAGE - len(self.entries)


class EventPages:
    """Reads pages of one study's events."""

    def __init__(self, project: str, ledger: EventStore) -> None:
        self._project = project
        self._ledger = ledger
        self._redis = ledger.redis

    def page(self, wanted: EventFilter, below: int | None = None) -> EventPage:
        """The next page. `below` is the place, counted from the oldest event, that the page before ended at."""
        key = self._ledger.list_of(self._project, wanted.states)
        first, last = self._places(key, wanted)
        place = last if below is None else min(below, last)
        found = EventPage()
        stop = max(first, place - MOST_READ)
        while place > stop and found.room:
            chunk = self._redis.zrange(key, max(stop, place - _CHUNK), place - 1)[::-1]
            chosen = self._chosen(chunk, wanted)[: found.room]
            read = chunk.index(chosen[-1]) + 1 if len(chosen) == found.room else len(chunk)
            found.entries += self._ledger.entries_of(self._project, chosen)
            place -= max(read, 1)
        found.below = place if place > first else 0
        if found.below and found.room:
            found.read_back_to = self._received_at(key, place)
        return found

    def _places(self, key: str, wanted: EventFilter) -> tuple[int, int]:
        """The first place, and that behind the last, of the events within the time."""
        since, until = wanted.since, wanted.until
        first = self._redis.zcount(key, "-inf", f"({milliseconds(since)}") if since else 0
        last = self._redis.zcount(key, "-inf", f"({milliseconds(until)}") if until else self._redis.zcard(key)
        return first, last

    def _chosen(self, event_ids: Sequence[str], wanted: EventFilter) -> list[str]:
        with self._redis.pipeline(transaction=False) as pipe:
            for event_id in event_ids:
                pipe.hmget(keys.event(self._project, event_id), "state", "change", "records")
            stored = pipe.execute()
        return [
            event_id
            for event_id, (state, change, records) in zip(event_ids, stored, strict=True)
            if state is not None and wanted.accepts(state, change, records or "[]")
        ]

    def _received_at(self, key: str, place: int) -> datetime | None:
        [*ids] = self._redis.zrange(key, place, place)
        entries = self._ledger.entries_of(self._project, ids)
        return entries[0].received_at if entries else None
