"""Which records hold a phone: built by one export of the project, kept in Redis as hashes only.

Two maps, phone hash -> record ids and record id -> phone hashes, so that a changed number leaves its old
place. What is found here is a hint: the update reads the records before it believes it.
"""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from itertools import islice

import structlog

from shared.domain.events import from_milliseconds, milliseconds
from shared.domain.phone import READING_VERSION
from shared.errors import RedcapUnavailable
from shared.ledger import keys
from shared.ledger.locks import held
from shared.redis_client import RedisClient
from worker.redcap.gateway import RecordState, RedcapProject

# dateRangeBegin speaks the REDCap server's wall clock, whose zone nobody tells us, and changes show up in it
# late (PHPCap's tests wait a minute and more): reach back over every zone's offset and then some.
OVERLAP = timedelta(hours=28)
# Up to this many records a whole export costs REDCap one request, as an incremental one does, and also
# shows what was deleted.
SMALL_PROJECT = 5_000
# So long after a change dateRangeBegin may still not show it (PHPCap's tests wait 60 to 90 seconds).
CHANGE_VISIBILITY_DELAY = timedelta(seconds=90)
# Half of the records gone between two exports is taken for a broken answer until a second export agrees.
SUSPICIOUS_SHRINK = 0.5

# Two exports at a time are never further apart than this; what seems to come from a later one comes from a clock
# that was ahead, and does not stand in the way of what is read now.
LONGEST_EXPORT_MS = 3600 * 1000

_CHUNK = 500

# Sets the phones of records. A phone that is new to a record and has a known status is put into the pending
# set: a record that was added or renumbered after its participant opted out gets the status by itself.
# A record that comes twice in one generation (its rows stood apart in the export) keeps the phones of both.
# What an export that began later has said of a record stands: the nightly run's may still be read, for minutes,
# while a lookup's refresh is done. Generation 0 is no export, but what is known for certain: it always counts.
# KEYS: 1 phones, 2 records, 3 status, 4 pending, 5 due
# ARGV: 1 generation, 2 now ms, 3 due member, 4 due ms, 5 by how many ms a later export is believed to be later,
#       then per record: id, number of phones, the phones
# Answers: how many phones were put into the pending set.
_SET = """
local generation, now, found = ARGV[1], ARGV[2], 0
local function without(ids, id)
  local kept = {}
  for other in string.gmatch(ids, '[^\\n]+') do
    if other ~= id then kept[#kept + 1] = other end
  end
  return table.concat(kept, '\\n')
end
local function set(id, first, n)
  local old, phones, have, seen = redis.call('HGET', KEYS[2], id), {}, {}, {}
  local known = old and string.match(old, '^[^\\n]+')
  local newer = known and tonumber(known) - tonumber(generation) or 0
  if generation ~= '0' and newer > 0 and newer <= tonumber(ARGV[5]) then return end
  if old then
    local heading = true
    local same = known == generation
    for part in string.gmatch(old, '[^\\n]+') do
      if heading then
        heading = false
      elseif same then
        phones[#phones + 1] = part
        seen[part] = true
      else
        have[part] = true
      end
    end
  end
  for j = 1, n do
    local phone = ARGV[first + j - 1]
    if not seen[phone] then
      seen[phone] = true
      phones[#phones + 1] = phone
      if have[phone] then
        have[phone] = nil
      else
        local others = without(redis.call('HGET', KEYS[1], phone) or '', id)
        redis.call('HSET', KEYS[1], phone, others == '' and id or others .. '\\n' .. id)
        if redis.call('HEXISTS', KEYS[3], phone) == 1 then
          found = found + redis.call('ZADD', KEYS[4], 'NX', now, phone)
        end
      end
    end
  end
  for phone in pairs(have) do
    local left = without(redis.call('HGET', KEYS[1], phone) or '', id)
    if left == '' then redis.call('HDEL', KEYS[1], phone) else redis.call('HSET', KEYS[1], phone, left) end
  end
  if #phones == 0 then
    redis.call('HDEL', KEYS[2], id)
  else
    redis.call('HSET', KEYS[2], id, generation .. '\\n' .. table.concat(phones, '\\n'))
  end
end
local i = 6
while i <= #ARGV do
  local n = tonumber(ARGV[i + 1])
  set(ARGV[i], i + 2, n)
  i = i + 2 + n
end
if found > 0 then redis.call('ZADD', KEYS[5], 'NX', ARGV[4], ARGV[3]) end
return found
"""


class PhoneIndex:
    """The index of one project."""

    def __init__(self, project: str, redis: RedisClient) -> None:
        self._redis = redis
        self._project = project
        self._phones = keys.index_phones(project)
        self._records = keys.index_records(project)
        self._state = keys.index_state(project)
        self._set = redis.register_script(_SET)

    def records(self, phones: Sequence[str]) -> dict[str, list[str]]:
        """Record ids per phone hash; phones that no record holds are left out."""
        if not phones:
            return {}
        stored = self._redis.hmget(self._phones, phones)
        return {phone: ids.split("\n") for phone, ids in zip(phones, stored, strict=True) if ids}

    def any_record(self) -> str | None:
        """The id of some record that holds a phone, or None."""
        found = self._redis.hrandfield(self._records, 1)
        return str(found[0]) if found else None

    def refreshed_at(self) -> datetime | None:
        """When the last complete refresh began; None if there is no index, or one by an earlier version's rules."""
        stored, reading = self._redis.hmget(self._state, ["refreshed_ms", "reading"])
        return from_milliseconds(int(stored)) if stored and reading == READING_VERSION else None

    def is_fresh(self, since: datetime) -> bool:
        """Whether a complete refresh has begun after `since`."""
        refreshed = self.refreshed_at()
        return refreshed is not None and refreshed >= since

    def may_be_incomplete(self, since: datetime) -> bool:
        """Whether a record that was entered just before `since` may be missing: only changes were read after that."""
        built = self._redis.hget(self._state, "built_ms")
        return self._known_records() > SMALL_PROJECT and int(built or 0) < milliseconds(since)

    def refresh(self, project: RedcapProject, *, since: datetime, wait_seconds: float = 60.0) -> None:
        """Bring the index up to date with REDCap, unless a refresh has begun after `since`.

        Raises RedcapUnavailable (also where another worker is at it and does not end), RedcapRejected or
        ProjectProblem.
        """
        with held(self._redis, f"index:{self._project}", wait_seconds=wait_seconds) as mine:
            if self.is_fresh(since):
                return  # another worker has just done it
            if not mine:
                raise RedcapUnavailable("index_busy", "another worker is refreshing the index")
            now, refreshed = datetime.now(UTC), self.refreshed_at()
            if refreshed is None or self._known_records() <= SMALL_PROJECT:
                self.rebuild(project.read_all(), now=now)
            else:
                self.put(project.read_all(refreshed - OVERLAP), now=now)
                self._redis.hset(self._state, "refreshed_ms", milliseconds(now))

    def mark_used(self, now: datetime) -> None:
        """Note that the index was believed, so that a refresh follows (see `needs_refresh`)."""
        self._redis.hset(self._state, "used_ms", milliseconds(now))

    def needs_refresh(self) -> bool:
        """Whether it was believed since its last refresh: another record may hold that phone by now."""
        refreshed, used = self._redis.hmget(self._state, ["refreshed_ms", "used_ms"])
        return refreshed is not None and int(used or 0) > int(refreshed)

    def rebuild(self, states: Iterable[RecordState], *, now: datetime) -> int:
        """Replace the index by what a complete export says. Answers the number of records.

        The old entries serve until the end, and stay where the export breaks off or is suspiciously short.
        """
        generation = milliseconds(now)
        count = self.put(states, now=now)
        self._refuse_shrinking(count)
        self._forget_older(generation)
        # Perhaps a later refresh has ended before: then the next lookup that misses asks once more than it needs to.
        state = {
            "refreshed_ms": generation,
            "built_ms": generation,
            "records": count,
            "reading": READING_VERSION,
        }
        self._redis.hset(self._state, mapping=state)
        return count

    def put(self, states: Iterable[RecordState], *, now: datetime) -> int:
        """Set the phones of some records. Answers the number of records."""
        count, rest = 0, iter(states)
        while chunk := list(islice(rest, _CHUNK)):
            count += len(chunk)
            self._put_chunk(chunk, milliseconds(now))
        return count

    def _put_chunk(self, states: Sequence[RecordState], now_ms: int) -> None:
        project = self._project
        args: list[str | int] = [now_ms, now_ms, f"update|{project}|", now_ms, LONGEST_EXPORT_MS]
        for state in states:
            args += [state.record_id, len(state.phones), *sorted(state.phones)]
        self._set(
            keys=[self._phones, self._records, keys.status(project), keys.pending(project), keys.DUE],
            args=args,
        )

    def forget(self, records: Iterable[str]) -> None:
        """Take deleted records out."""
        self._take_out(records, 0)

    def _take_out(self, records: Iterable[str], generation: int) -> None:
        gone = [
            RecordState(record_id=record, phones=frozenset(), opt_out_value="", ticked=False)
            for record in records
        ]
        if gone:
            self._put_chunk(gone, generation)

    def forget_phone(self, phone: str) -> list[str]:
        """Take a phone out of all its records. Answers their ids."""
        records = self.records([phone]).get(phone, [])
        entries = self._redis.hmget(self._records, records) if records else []
        with self._redis.pipeline(transaction=True) as pipe:
            pipe.hdel(self._phones, phone)
            for record, entry in zip(records, entries, strict=True):
                lines = [line for line in (entry or "").split("\n") if line != phone]
                if len(lines) > 1:  # the first is the generation
                    pipe.hset(self._records, record, "\n".join(lines))
                else:
                    pipe.hdel(self._records, record)
            pipe.execute()
        return records

    def _known_records(self) -> int:
        return int(self._redis.hget(self._state, "records") or 0)

    def _refuse_shrinking(self, count: int) -> None:
        before = self._known_records()
        if before >= 20 and count < before * SUSPICIOUS_SHRINK:
            if self._redis.hget(self._state, "shrunk_to") != str(count):
                self._redis.hset(self._state, "shrunk_to", count)
                raise RedcapUnavailable("redcap_partial_export", f"{count} records, {before} before")
            structlog.get_logger(__name__).warning(
                "project_shrank", project=self._project, before=before, now=count
            )
        self._redis.hdel(self._state, "shrunk_to")

    def _forget_older(self, generation: int) -> None:
        """Take out what only earlier exports have shown; what a later one puts in meanwhile stays (see _SET)."""
        older = [
            record
            for record, entry in self._redis.hscan_iter(self._records, count=1000)
            if not 0 <= int(entry.partition("\n")[0]) - generation <= LONGEST_EXPORT_MS
        ]
        self._take_out(older, generation)
