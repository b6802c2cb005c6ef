"""Which configuration each process has loaded: each publishes a digest, which `optout check` compares."""

import atexit
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib import metadata

from redis.exceptions import RedisError

from shared.ledger import keys
from shared.redis_client import RedisClient

PUBLISH_EVERY_SECONDS = 10.0
# A process that has not published for this long has ended.
ENDED_AFTER_MS = 35_000


@dataclass(frozen=True, slots=True)
class LoadedConfiguration:
    """What one process has loaded; `process` is for people, such as "web on HOST"."""

    process: str
    digest: str


@dataclass(frozen=True, slots=True)
class RunningProcess:
    """A process that has published within the last seconds."""

    kind: str
    host: str
    process_id: str
    digest: str
    version: str
    silent_ms: int


def publish(redis: RedisClient, field: str, digest: str, *, now_ms: int) -> None:
    """Store the digest and version of one process, under "kind|host|process id"."""
    redis.hset(keys.CONFIGURATIONS, field, f"{digest}|{now_ms}|{program_version()}")


@cache
def program_version() -> str:
    """The version of this program, or "" where it is not installed as a package."""
    try:
        return metadata.version("opt-out-bridge")
    except metadata.PackageNotFoundError:
        return ""


def running_processes(redis: RedisClient, *, now_ms: int) -> list[RunningProcess]:
    """The running processes, by kind; changes nothing."""
    found = []
    for field, value in sorted(redis.hgetall(keys.CONFIGURATIONS).items()):
        digest, published, version = (*value.split("|"), "")[:3]
        if now_ms - int(published) <= ENDED_AFTER_MS:
            kind, host, process_id = field.split("|")
            found.append(
                RunningProcess(kind, host, process_id, digest, version, max(0, now_ms - int(published)))
            )
    return found


def loaded_configurations(redis: RedisClient, *, now_ms: int) -> Iterator[LoadedConfiguration]:
    """What the running processes have loaded; forgets those that have ended."""
    running = running_processes(redis, now_ms=now_ms)
    alive = {f"{each.kind}|{each.host}|{each.process_id}" for each in running}
    if ended := set(redis.hkeys(keys.CONFIGURATIONS)) - alive:
        redis.hdel(keys.CONFIGURATIONS, *ended)
    for each in running:
        yield LoadedConfiguration(f"{each.kind} on {each.host}", each.digest)


def keep_publishing(redis: RedisClient, kind: str, digest: Callable[[], str]) -> None:
    """Publish this process's digest until it ends, in a thread; `digest` is asked each time."""
    field = f"{kind}|{socket.gethostname()}|{os.getpid()}"
    threading.Thread(
        target=_publish_forever, args=(redis, field, digest), daemon=True, name="configuration"
    ).start()
    atexit.register(_withdraw, redis, field, os.getpid())


def _publish_forever(redis: RedisClient, field: str, digest: Callable[[], str]) -> None:
    while True:
        with suppress(RedisError):
            publish(redis, field, digest(), now_ms=time.time_ns() // 1_000_000)
        time.sleep(PUBLISH_EVERY_SECONDS)


def _withdraw(redis: RedisClient, field: str, pid: int) -> None:
    if os.getpid() == pid:  # not in a forked child
        with suppress(RedisError):
            redis.hdel(keys.CONFIGURATIONS, field)
