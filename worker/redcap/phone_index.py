"""Which records hold a phone: built from exports of the project, stored in Redis as hashes only.

Two maps, phone hash -> record ids and record id -> phone hashes, so that a changed number can be removed from its
former record. The index gives hints: an update reads the records before it relies on them.
"""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta

import structlog

from shared.batches import batches
from shared.domain.events import from_milliseconds, milliseconds
from shared.domain.phone import READING_VERSION
from shared.domain.scopes import record_of
from shared.errors import RedcapUnavailable
from shared.ledger import keys
from shared.ledger.generations import LENGTH, generation_text, milliseconds_later
from shared.ledger.opt_outs.indexed_phones import LONGEST_EXPORT_MS, IndexedPhones
from shared.ledger.work.locks import try_lock
from shared.redis_client import RedisClient
from worker.redcap.gateway import RedcapProject
from worker.redcap.opt_out_fields import RecordState

# dateRangeBegin is in the REDCap server's wall clock, whose zone the API does not report, and changes appear in it
# late (PHPCap's tests wait a minute and more): read back further than any zone's offset.
OVERLAP = timedelta(hours=28)
# Up to this many records a whole export costs REDCap one request, as an incremental one does, and also shows which
# records were deleted.
SMALL_PROJECT = 5_000
# dateRangeBegin may not show a change for this long (PHPCap's tests wait 60 to 90 seconds).
CHANGE_VISIBILITY_DELAY = timedelta(seconds=90)
# If this share of the records disappears between two exports, a second export has to confirm it.
SUSPICIOUS_SHRINK = 0.5
# Smaller projects may shrink at once.
SHRINK_CHECKED_FROM = 20
# Redis does nothing else for two milliseconds: a STOP may wait for that.
RECORDS_PER_SCRIPT = 100

log = structlog.get_logger(__name__)


def is_in_any_index(phone: str, projects: Iterable[str], redis: RedisClient) -> bool:
    """Return whether a record of any of these projects holds a phone, as far as their indexes know."""
    with redis.pipeline(transaction=False) as pipe:
        for project in projects:
            pipe.hexists(keys.index_phones(project), phone)
        return any(pipe.execute())


class PhoneIndex:
    """The index of one project."""

    def __init__(self, project: str, redis: RedisClient) -> None:
        self._redis = redis
        self._project = project
        self._phones = keys.index_phones(project)
        self._records = keys.index_records(project)
        self._state = keys.index_state(project)
        self._since = keys.index_since(project)
        self._indexed = IndexedPhones(redis, project)

    def records(self, phones: Sequence[str]) -> dict[str, list[str]]:
        """Return record ids by phone hash, without phones that no record holds."""
        stored = self._redis.hmget(self._phones, phones) if phones else []
        found = {phone: ids.split("\n") for phone, ids in zip(phones, stored, strict=True) if ids}
        return found | {phone: [record] for phone in phones if (record := record_of(phone)) is not None}

    def held_at(self, phone: str, record: str, moment: datetime) -> bool:
        """Return whether a record held a phone at that time, as far as exports have shown."""
        since = self._redis.hget(self._since, f"{phone}|{record}")
        return since is None or int(since) <= milliseconds(moment)

    def knows(self, record: str) -> bool:
        """Return whether a record held a phone when it was last exported."""
        return bool(self._redis.hexists(self._records, record))

    def any_record(self) -> str | None:
        """Return the id of a record that holds a phone, or None."""
        found = self._redis.hrandfield(self._records, 1)
        return str(found[0]) if found else None

    # --- freshness --------------------------------------------------------------------------------

    def refreshed_at(self) -> datetime | None:
        """Return when the last complete refresh began; None without an index by the present reading rules."""
        stored, reading = self._redis.hmget(self._state, ["refreshed_ms", "reading"])
        return from_milliseconds(int(stored)) if stored and reading == READING_VERSION else None

    def is_fresh(self, since: datetime) -> bool:
        """Return whether a complete refresh has begun after `since`."""
        refreshed = self.refreshed_at()
        return refreshed is not None and refreshed >= since

    def may_be_incomplete(self, since: datetime) -> bool:
        """Return whether a record that was entered just before `since` may be missing.

        After that time, only changes have been read.
        """
        return not self._is_small() and self._number("built_ms") < milliseconds(since)

    def was_read_with(self, fingerprint: str) -> bool:
        """Return whether the last refresh used this schema of the project, as far as that is known."""
        return self._redis.hget(self._state, "schema") in (None, fingerprint)

    def invalidate(self) -> None:
        """Have the index rebuilt by the next refresh: it was built from another schema of the project."""
        self._redis.hdel(self._state, "refreshed_ms")

    def mark_used(self, now: datetime) -> None:
        """Record that a lookup relied on the index, so that a refresh follows (see `needs_refresh`)."""
        self._redis.hset(self._state, "used_ms", milliseconds(now))

    def needs_refresh(self) -> bool:
        """Return whether a lookup relied on the index since its last refresh: another record may hold that phone."""
        refreshed_ms, used_ms = self._redis.hmget(self._state, ["refreshed_ms", "used_ms"])
        return refreshed_ms is not None and int(used_ms or 0) > int(refreshed_ms)

    def _number(self, name: str) -> int:
        return int(self._redis.hget(self._state, name) or 0)

    def _is_small(self) -> bool:
        return self._number("records") <= SMALL_PROJECT

    # --- reading exports --------------------------------------------------------------------------

    def refresh(self, project: RedcapProject, *, since: datetime, wait_seconds: float = 60.0) -> None:
        """Bring the index up to date with REDCap, unless a refresh has begun after `since`.

        Raises RedcapUnavailable (also if another worker does not finish in time), RedcapRejected or ProjectProblem.
        """
        with try_lock(self._redis, f"index:{self._project}", wait_seconds=wait_seconds) as acquired:
            if self.is_fresh(since):
                return  # another worker has just refreshed it
            if not acquired:
                raise RedcapUnavailable("index_busy", "another worker is refreshing the index")
            self._refresh(project, datetime.now(UTC), self.refreshed_at())

    def _refresh(self, project: RedcapProject, now: datetime, refreshed: datetime | None) -> None:
        fingerprint = project.schema.fingerprint
        if refreshed is None or self._is_small():
            self.rebuild(project.read_all(), now=now)
        else:
            self.put(project.read_all(refreshed - OVERLAP), now=now)
            self._redis.hset(self._state, "refreshed_ms", milliseconds(now))
        self._redis.hset(self._state, "schema", fingerprint)

    def rebuild(self, states: Iterable[RecordState], *, now: datetime) -> int:
        """Replace the index by a complete export. Returns the number of records.

        The old entries remain in use until the end, and stay if the export breaks off or is suspiciously short.
        """
        generation = milliseconds(now)
        count = self.put(states, now=now)
        self._raise_if_shrunk(count)
        self._forget_older(generation)
        # A later refresh may have ended before: then the next lookup that finds nothing refreshes once more.
        moments = {"refreshed_ms": generation, "built_ms": generation}
        self._redis.hset(self._state, mapping=moments | {"records": count, "reading": READING_VERSION})
        self._redis.hdel(self._state, "schema")  # a caller that exports by itself has just read it
        return count

    def put(self, states: Iterable[RecordState], *, now: datetime) -> int:
        """Set the phones of some records. Returns the number of records."""
        return self._set_phones(((state.record_id, state.phones) for state in states), milliseconds(now))

    def forget(self, records: Iterable[str], *, generation: int = 0) -> None:
        """Remove deleted records, or (with a generation) those that were not in an export."""
        self._set_phones(((record, frozenset()) for record in records), generation)

    def _set_phones(self, phones: Iterable[tuple[str, frozenset[str]]], generation: int) -> int:
        count = 0
        for batch in batches(phones, RECORDS_PER_SCRIPT):
            count += len(batch)
            self._indexed.put(batch, generation, was_complete=self.refreshed_at() is not None)
        return count

    def _raise_if_shrunk(self, count: int) -> None:
        before = self._number("records")
        if before >= SHRINK_CHECKED_FROM and count < before * SUSPICIOUS_SHRINK:
            self._raise_unless_confirmed(count, before)
            log.warning("project_shrank", project=self._project, before=before, now=count)
        self._redis.hdel(self._state, "shrunk_to")

    def _raise_unless_confirmed(self, count: int, before: int) -> None:
        if self._redis.hget(self._state, "shrunk_to") != str(count):
            self._redis.hset(self._state, "shrunk_to", count)
            raise RedcapUnavailable("redcap_partial_export", f"{count} records, {before} before")

    def _forget_older(self, generation: int) -> None:
        """Remove what only earlier exports have shown; what a later one adds in the meantime stays."""
        entries = self._redis.hscan_iter(self._records, count=1000)
        current = generation_text(generation)
        older = [
            record
            for record, entry in entries
            if milliseconds_later(entry[:LENGTH], current) > LONGEST_EXPORT_MS
        ]
        self.forget(older, generation=generation)

    def forget_phone(self, phone: str) -> list[str]:
        """Remove a phone from all its records. Returns their ids."""
        records = self.records([phone]).get(phone, [])
        entries = self._redis.hmget(self._records, records) if records else []
        with self._redis.pipeline(transaction=True) as pipe:
            pipe.hdel(self._phones, phone)
            if records:
                pipe.hdel(self._since, *(f"{phone}|{record}" for record in records))
            for record, entry in zip(records, entries, strict=True):
                if remaining := _entry_without(entry or "", phone):
                    pipe.hset(self._records, record, remaining)
                else:
                    pipe.hdel(self._records, record)
            pipe.execute()
        return records


def _entry_without(entry: str, phone: str) -> str:
    """A record's entry without one of its phones; "" if it holds no other."""
    generation, phones = entry[:LENGTH], entry[LENGTH:].split("\n")
    remaining = [line for line in phones if line != phone]
    return generation + "\n".join(remaining) if remaining else ""
