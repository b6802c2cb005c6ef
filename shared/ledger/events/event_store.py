"""Reads events."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from datetime import datetime
from itertools import chain

from shared.batches import batches
from shared.domain.events import LISTED, UNFINISHED, State, milliseconds
from shared.ledger import keys
from shared.ledger.base import CHUNK, LedgerBase
from shared.ledger.events.models import Backlog, StoredEvent
from shared.ledger.version import LISTS_BY_STATE, ledger_version


class EventStore(LedgerBase):
    """Finds events by id, state, time or place in a list."""

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
        key = self.list_of(project, states)
        mixed = bool(states) and key == keys.events(project)
        pages = self._newest_ids(key, page) if newest_first else batches(self.redis.zrange(key, 0, -1), page)
        for ids in pages:
            chosen = self._with_value(project, ids, "state", states) if mixed else ids
            entries = self.entries_of(project, chosen)
            yield from (entry for entry in entries if not states or entry.state in states)

    def most_entries(self, projects: Iterable[str], states: Collection[State] = ()) -> dict[str, int]:
        """At most how many events of each project are in one of the states: 0 where there is none."""
        names, has_lists = list(projects), self._has_lists_by_state()
        with self.redis.pipeline(transaction=False) as pipe:
            for name in names:
                pipe.zcard(_shortest_list(name, states, has_lists))
            return dict(zip(names, pipe.execute(), strict=True))

    def list_of(self, project: str, states: Collection[State]) -> str:
        """The key of the shortest list with all events in some states, by time of receipt; without states, of all."""
        return _shortest_list(project, states, self._has_lists_by_state())

    def _has_lists_by_state(self) -> bool:
        return ledger_version(self.redis) >= LISTS_BY_STATE

    def _newest_ids(self, key: str, page: int) -> Iterator[list[str]]:
        """The members of a sorted set by falling score. One that leaves it shifts others into the next page."""
        before: list[str] = []
        for stop in range(self.redis.zcard(key), 0, -page):
            ids = self.redis.zrange(key, max(0, stop - page), stop - 1)[::-1]
            yield [event_id for event_id in ids if event_id not in before]
            before = ids

    def entries_of_phone(self, project: str, phone: str) -> list[StoredEvent]:
        """The events of a phone, newest first; of the others only the phone is read."""
        pages = self._newest_ids(keys.events(project), CHUNK)
        chosen = (self._with_value(project, ids, "phone", [phone]) for ids in pages)
        return [entry for ids in chosen for entry in self.entries_of(project, ids)]

    def _with_value(
        self, project: str, event_ids: Sequence[str], name: str, values: Collection[str]
    ) -> list[str]:
        """Those of the events whose field has one of some values."""
        with self.redis.pipeline(transaction=False) as pipe:
            for event_id in event_ids:
                pipe.hget(keys.event(project, event_id), name)
            found = pipe.execute()
        return [event_id for event_id, value in zip(event_ids, found, strict=True) if value in values]

    def entries_between(self, project: str, since: datetime, until: datetime) -> Iterator[StoredEvent]:
        """The events of a project that were received within a time, oldest first."""
        pages = self._ids_between(keys.events(project), milliseconds(since), milliseconds(until))
        yield from chain.from_iterable(self.entries_of(project, page) for page in pages)

    def count_since(self, project: str, since: datetime) -> int:
        """How many events of a project were received since a time."""
        return self.redis.zcount(keys.events(project), milliseconds(since), "+inf")

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

    def unfinished_entries(self, project: str) -> Iterator[list[StoredEvent]]:
        """The events that have not ended, a few hundred at a time."""
        yield from self._in_chunks(project, self.redis.zrange(keys.unfinished(project), 0, -1))

    def backlog(self, project: str) -> Backlog:
        """The events that have not ended."""
        return self._backlog(keys.unfinished(project))

    def review_backlog(self, project: str) -> Backlog:
        """The events that wait for a person's decision."""
        return self._backlog(keys.reviews(project))

    def _backlog(self, key: str) -> Backlog:
        with self.redis.pipeline(transaction=False) as pipe:
            pipe.zcard(key)
            pipe.zrange(key, 0, 0, withscores=True)
            number, oldest = pipe.execute()
        return Backlog(number, int(oldest[0][1]) if oldest else 0)

    def reviews(self, project: str, limit: int = -1) -> list[StoredEvent]:
        """Events that wait for a person's decision, longest waiting first."""
        ids = self.redis.zrange(keys.reviews(project), 0, limit - 1 if limit > 0 else -1)
        return [entry for batch in self._in_chunks(project, ids) for entry in batch]


def _shortest_list(project: str, states: Collection[State], has_lists_by_state: bool) -> str:
    if states and UNFINISHED.issuperset(states):
        return keys.unfinished(project)
    if len(states) == 1 and LISTED.issuperset(states) and has_lists_by_state:
        [state] = states
        return keys.ended(project, state)
    return keys.events(project)
