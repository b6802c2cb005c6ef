"""Which processes are missing: they publish no heartbeat, have not been stopped, and nothing runs in their place.

A process that is stopped withdraws its heartbeat, so that scaling down and deployments leave none behind. One that is
killed cannot: a process of the same kind that starts later takes its place (containers get another name at each
recreation). What is left is missing, until it is back or a day has passed.
"""

from dataclasses import dataclass

from shared.ledger import keys
from shared.redis_client import RedisClient

# A process that has not published for this long has ended.
ENDED_AFTER_MS = 35_000
# Long enough for a weekly routine to notice, and for one that was removed without being stopped to be forgotten.
FORGOTTEN_AFTER_MS = 24 * 3600 * 1000


@dataclass(frozen=True, slots=True)
class SilentProcess:
    """A process that has ended without being stopped."""

    kind: str
    host: str
    process_id: str
    since_ms: int  # its last heartbeat

    @property
    def field(self) -> str:
        """Its name in Redis."""
        return f"{self.kind}|{self.host}|{self.process_id}"


def silent_processes(redis: RedisClient, *, now_ms: int) -> list[SilentProcess]:
    """The missing processes, longest silent first; changes nothing."""
    found = [
        SilentProcess(*_parts(field), int(since)) for field, since in redis.hgetall(keys.HEARTBEATS).items()
    ]
    silent = [each for each in found if ENDED_AFTER_MS < now_ms - each.since_ms <= FORGOTTEN_AFTER_MS]
    return sorted(silent, key=lambda each: (each.since_ms, each.field))


def _parts(field: str) -> tuple[str, str, str]:
    kind, host, process_id = field.split("|")
    return kind, host, process_id


def take_place(redis: RedisClient, field: str, *, started_ms: int, now_ms: int) -> None:
    """Replace what ended before this process started: all of its kind on its host, otherwise one on another host.

    To be called when the process has run for longer than ENDED_AFTER_MS: before, one that still runs may look the
    same. Also forgets what ended long ago.
    """
    kind, host, _ = _parts(field)
    ended = [
        each
        for each in silent_processes(redis, now_ms=now_ms)
        if each.kind == kind and each.since_ms <= started_ms
    ]
    here = [each.field for each in ended if each.host == host]
    if here:
        redis.hdel(keys.HEARTBEATS, *here)
    else:
        any(redis.hdel(keys.HEARTBEATS, each.field) for each in ended)  # one that no other process has taken
    _forget(redis, now_ms)


def _forget(redis: RedisClient, now_ms: int) -> None:
    found = redis.hgetall(keys.HEARTBEATS).items()
    if old := [field for field, since in found if now_ms - int(since) > FORGOTTEN_AFTER_MS]:
        redis.hdel(keys.HEARTBEATS, *old)
