"""From the ledger of an older version to that of this one. A worker does it when it starts.

Version 1 knew one status per phone and no scopes. Until they are migrated, and where the migration leaves one out, a
status of version 1 is read as one of an unknown scope, which no START ends. Version 2 did not list events by state.
Until they are, all events of a project are read to find those in a state. Version 3 wrote out the generations of the
phone index, and did not count the findings of checks.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator

import structlog

from shared.batches import batches
from shared.config import Config, Project
from shared.domain.addresses import PhoneHasher
from shared.domain.events import LISTED, Change, milliseconds
from shared.domain.precedence import Status, decode_statuses
from shared.domain.scopes import UNKNOWN, scope_of
from shared.ledger import Ledger, StoredEvent, keys
from shared.ledger.generations import generation_text
from shared.ledger.lua_script import LuaScript
from shared.ledger.projects.check_results import count_stored_findings
from shared.ledger.version import LEDGER_VERSION, LISTS_BY_STATE, SCOPES, ledger_version
from shared.ledger.work.locks import try_lock
from shared.redis_client import RedisClient

_BATCH = 500
# Milliseconds have 13 digits from 2001 to 2286; a new entry's first line is longer: six characters and a hash.
_OLD_GENERATION = 13

log = structlog.get_logger(__name__)


def migrate(redis: RedisClient, config: Config, hasher: PhoneHasher) -> None:
    """Convert an older ledger, once. What is interrupted is done again. Raises redis.RedisError."""
    if ledger_version(redis) >= LEDGER_VERSION:
        return
    with try_lock(redis, "migrate-ledger", wait_seconds=60) as acquired:
        if not acquired or ledger_version(redis) >= LEDGER_VERSION:
            return
        version = ledger_version(redis)
        if version < SCOPES:
            for name, project in config.projects.items():
                _migrate_project(name, only_scope(project, hasher), redis)
        for name in {*config.projects, *redis.hkeys(keys.PROJECTS)}:
            if version < LISTS_BY_STATE:
                _list_by_state(name, redis)
            _shorten_generations(name, redis)
        count_stored_findings(redis)
        redis.set(keys.LEDGER_VERSION, LEDGER_VERSION)


def _shorten_generations(project: str, redis: RedisClient) -> None:
    """Before version 4, an index entry began with its generation's milliseconds and a line break."""
    records = keys.index_records(project)
    for batch in batches(redis.hscan_iter(records, count=_BATCH), _BATCH):
        parts = [(record, entry.partition("\n")) for record, entry in batch]
        shortened = {
            record: generation_text(int(generation)) + phones
            for record, (generation, _, phones) in parts
            if len(generation) == _OLD_GENERATION
        }
        if shortened:
            redis.hset(records, mapping=shortened)


def _list_by_state(project: str, redis: RedisClient) -> None:
    listed = 0
    prefixes = {"event_prefix": keys.event(project, ""), "lists": keys.ended(project, "")}
    arguments = prefixes | {"states": "\n".join(sorted(LISTED))}
    list_by_state = LuaScript(redis, "list_by_state")
    for ids in batches(redis.zrange(keys.events(project), 0, -1), _BATCH):
        listed += list_by_state(keys={"events": keys.events(project)}, args=arguments, rest=ids)
    if listed:
        log.info("events_listed_by_state", project=project, events=listed)


def only_scope(project: Project, hasher: PhoneHasher) -> str:
    """Return the scope of all messages to a project, if it can have but one; else `UNKNOWN`."""
    service, senders = project.messaging_service_sid, project.senders
    if "whatsapp" in project.channels or bool(service) + len(senders) != 1:
        return UNKNOWN
    return service or scope_of(None, (), senders[0], hasher)


def _migrate_project(project: str, scope: str, redis: RedisClient) -> None:
    ledger = Ledger(redis)
    stops = _stop_times(ledger.entries(project))
    _remember_starts(project, ledger)
    converted = 0
    replace_statuses = LuaScript(redis, "replace_statuses")
    for batch in batches(_old_statuses(project, ledger), _BATCH):
        args = [
            part
            for phone, text, status in batch
            for part in (phone, text, _converted(status, scope, stops[phone]).encode())
        ]
        replace_statuses(keys={"statuses": keys.status(project)}, rest=args)
        converted += len(batch)
    _set_scopes(project, scope, ledger)
    redis.delete(f"{keys.PREFIX}:ordinary:{project}")
    if converted:
        log.info("ledger_migrated", project=project, statuses=converted)


def _stop_times(entries: Iterable[StoredEvent]) -> defaultdict[str, list[int]]:
    """The times of all known STOPs, by phone."""
    times: defaultdict[str, list[int]] = defaultdict(list)
    for entry in entries:
        if entry.change is Change.STOP:
            times[entry.phone_hash].append(milliseconds(entry.occurred_at))
    return times


def _remember_starts(project: str, ledger: Ledger) -> None:
    """A START that the old version knew is not a new wish when it is repeated."""
    starts = {
        entry.event_id: milliseconds(entry.received_at)
        for entry in ledger.entries(project)
        if entry.change is Change.START
    }
    if starts:
        ledger.redis.zadd(keys.seen_starts(project), starts, nx=True)


def _old_statuses(project: str, ledger: Ledger) -> Iterator[tuple[str, str, Status]]:
    """The statuses in the form of version 1: four parts."""
    for phone, text in ledger.all_statuses(project):
        if text.count("|") == 3:
            yield phone, text, decode_statuses(text)[0]


def _converted(status: Status, scope: str, stops: list[int]) -> Status:
    """The status with its scope, and the first and last STOP of its opt-out."""
    ended = status.last_start_ms if status.change is Change.STOP else 0
    mine = [time for time in [*stops, *([status.stop_ms] if status.stop_ms else [])] if time > ended]
    since, stop = (min(mine), max(mine)) if mine else (0, 0)
    return Status(
        scope=scope,
        change=status.change,
        occurred_ms=status.occurred_ms,
        event_id=status.event_id,
        last_start_ms=status.last_start_ms,
        since_ms=since,
        stop_ms=stop,
    )


def _set_scopes(project: str, scope: str, ledger: Ledger) -> None:
    """Events in progress have the scope of their status, too."""
    for entries in ledger.unfinished_entries(project):
        for entry in entries:
            if not entry.scope:
                ledger.redis.hset(keys.event(project, entry.event_id), mapping={"scope": scope, "timed": "1"})
