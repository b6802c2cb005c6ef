"""Which configuration each process has loaded: each publishes a digest, and why it has not loaded what is on disk."""

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from importlib import metadata
from multiprocessing.util import Finalize
from typing import Any

import structlog
from redis.exceptions import RedisError

from shared.config import Config
from shared.config.live import CHECK_EVERY_SECONDS, LiveConfiguration
from shared.ledger import keys
from shared.ledger.platform.heartbeats import ENDED_AFTER_MS, take_place
from shared.ledger.platform.kept_configuration import is_kept, keep
from shared.redis_client import RedisClient

PUBLISH_EVERY_SECONDS = 10.0
# How long a process that ends waits for Redis.
WITHDRAW_SECONDS = 3.0

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Trouble:
    """What keeps a process from the configuration on disk."""

    # The first file with a problem, and a "key: problem, fix" line for each; empty if all of them are valid.
    file: str = ""
    problem: str = ""
    # Settings that have changed and count after a restart only.
    needs_restart: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LoadedConfiguration:
    """What one process has loaded; `process` is for people, such as "web on HOST"."""

    process: str
    digest: str
    trouble: Trouble = Trouble()


@dataclass(frozen=True, slots=True)
class RunningProcess:
    """A process that has published within the last seconds."""

    kind: str
    host: str
    process_id: str
    digest: str
    version: str
    silent_ms: int
    trouble: Trouble = Trouble()


def publish(
    redis: RedisClient, field: str, digest: str, *, now_ms: int, trouble: Trouble | None = None
) -> None:
    """Store the digest and version of one process with its heartbeat, under "kind|host|process id"."""
    text = json.dumps(asdict(trouble)) if trouble else ""
    with redis.pipeline(transaction=False) as pipe:
        pipe.hset(keys.CONFIGURATIONS, field, f"{digest}|{now_ms}|{program_version()}|{text}".rstrip("|"))
        pipe.hset(keys.HEARTBEATS, field, now_ms)
        pipe.execute()


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
        digest, published, version, trouble = (*value.split("|", 3), "", "")[:4]
        silent_ms = max(0, now_ms - int(published))
        if silent_ms <= ENDED_AFTER_MS:
            kind, host, process_id = field.split("|")
            about = (digest, version, silent_ms, _trouble(trouble))
            found.append(RunningProcess(kind, host, process_id, *about))
    return found


def loaded_configurations(redis: RedisClient, *, now_ms: int) -> Iterator[LoadedConfiguration]:
    """What the running processes have loaded, and what keeps them from more; forgets those that have ended."""
    running = running_processes(redis, now_ms=now_ms)
    alive = {f"{each.kind}|{each.host}|{each.process_id}" for each in running}
    if ended := set(redis.hkeys(keys.CONFIGURATIONS)) - alive:
        redis.hdel(keys.CONFIGURATIONS, *ended)
    for each in running:
        yield LoadedConfiguration(f"{each.kind} on {each.host}", each.digest, each.trouble)


@dataclass(frozen=True, slots=True)
class InvalidFile:
    """A file that running processes could not load: they keep the last valid configuration."""

    file: str
    problem: str  # a "key: problem, fix" line for each problem
    processes: tuple[str, ...]

    @property
    def key(self) -> str:
        """The key of the first problem."""
        return self.problem.partition(": ")[0]


def invalid_files(redis: RedisClient, *, now_ms: int) -> list[InvalidFile]:
    """The files that some process could not load, with the processes; changes nothing."""
    found: dict[tuple[str, str], list[str]] = {}
    for each in running_processes(redis, now_ms=now_ms):
        if each.trouble.problem:
            process = f"{each.kind} on {each.host}"
            found.setdefault((each.trouble.file, each.trouble.problem), []).append(process)
    return [InvalidFile(*named, tuple(processes)) for named, processes in found.items()]


def _trouble(text: str) -> Trouble:
    stored = json.loads(text or "{}")
    return Trouble(**stored | {"needs_restart": tuple(stored.get("needs_restart", ()))})


def follow(
    redis: RedisClient,
    kind: str,
    live: LiveConfiguration[Any],
    changed: Callable[[Config], None] = lambda _before: None,
) -> "Follower":
    """Keep a process's configuration up to date until it ends, in a thread, and publish what it has loaded.

    `changed` is called after each change with the configuration before it.
    """
    field = f"{kind}|{socket.gethostname()}|{os.getpid()}"
    follower = Follower(redis, field, live, changed)
    follower.start()
    # Not atexit, which a process that multiprocessing started, such as granian's, does not run.
    Finalize(None, follower.end, args=(os.getpid(),), exitpriority=0)
    return follower


class Follower(threading.Thread):
    """Checks the files again and again."""

    def __init__(
        self,
        redis: RedisClient,
        field: str,
        live: LiveConfiguration[Any],
        changed: Callable[[Config], None],
    ) -> None:
        super().__init__(daemon=True, name="configuration")
        self._redis = redis
        self._field = field
        self._live = live
        self._changed = changed
        self._config = live.config
        self._digest = live.config.digest
        self._kept: Config | None = None
        self._published: tuple[str, Trouble | None] = ("", None)
        self._published_at = 0.0
        self._started_ms = _now_ms()
        self._in_place = False
        self._stopping = threading.Event()

    def run(self) -> None:
        while not self._stopping.is_set():
            try:
                self.step()
            except Exception as error:  # noqa: BLE001  its text may hold anything, and the process goes on
                log.error("configuration_not_followed", error=type(error).__name__)
            self._stopping.wait(CHECK_EVERY_SECONDS)
        with suppress(RedisError):
            self._redis.hdel(keys.CONFIGURATIONS, self._field)
            self._redis.hdel(keys.HEARTBEATS, self._field)

    def stop(self) -> None:
        """Withdraw: the process is being stopped, and not missing. Returns at once, also in a signal handler."""
        self._stopping.set()

    def end(self, process_id: int) -> None:
        """Withdraw at the end of the process, but not of a forked child."""
        if os.getpid() == process_id:
            self.stop()
            self.join(WITHDRAW_SECONDS)

    def step(self) -> None:
        """Refresh the configuration, and log, keep and publish what is new."""
        self._live.refresh()
        before, self._config = self._config, self._live.config
        if before is not self._config:
            self._digest = self._config.digest
            log.info("configuration_loaded", digest=self._digest, projects=len(self._config.projects))
            self._changed(before)
        trouble = _trouble_of(self._live)
        if trouble and trouble != self._published[1]:
            _report(trouble)
        with suppress(RedisError):
            self._publish(trouble)

    def _publish(self, trouble: Trouble | None) -> None:
        current = (self._digest, trouble)
        now = time.monotonic()
        if current != self._published or now - self._published_at >= PUBLISH_EVERY_SECONDS:
            self._published, self._published_at = current, now
            publish(self._redis, self._field, current[0], now_ms=_now_ms(), trouble=trouble)
            self._take_place()
            if not self._live.problem and (self._kept is not self._config or not is_kept(self._redis)):
                keep(self._redis, self._config)
                self._kept = self._config

    def _take_place(self) -> None:
        """Once, as soon as processes that have ended can be distinguished from those that run."""
        if not self._in_place and _now_ms() - self._started_ms > ENDED_AFTER_MS:
            take_place(self._redis, self._field, started_ms=self._started_ms, now_ms=_now_ms())
            self._in_place = True


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _trouble_of(live: LiveConfiguration[Any]) -> Trouble | None:
    if live.problem is None and not live.needs_restart:
        return None
    problem = live.problem
    return Trouble(problem.file if problem else "", problem.text if problem else "", live.needs_restart)


def _report(trouble: Trouble) -> None:
    if trouble.problem:
        # The process goes on with the last valid configuration.
        log.error("configuration_problem", file=trouble.file, problems=trouble.problem.split("\n"))
    if trouble.needs_restart:
        log.warning("configuration_needs_restart", settings=list(trouble.needs_restart))
