"""How the platform itself is: processes, queues, REDCap's budgets, mail, and Redis."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from redis.exceptions import ResponseError

from shared.ledger import keys
from shared.ledger.platform.counters import Counters
from shared.ledger.platform.heartbeats import SilentProcess, silent_processes
from shared.ledger.platform.loaded_configurations import RunningProcess, running_processes
from shared.redis_client import RedisClient

MINUTE_MS = 60_000
# Where kombu keeps that a queue exists. Source: kombu 5.7, transport/redis.py, keyprefix_queue.
KOMBU_BINDING = "_kombu.binding."


@dataclass(frozen=True, slots=True)
class HostBudget:
    """Requests to one REDCap host within the last minute."""

    host: str
    requests: int
    limit: int
    paused_seconds: int  # how long the circuit breaker still holds requests back


@dataclass(frozen=True, slots=True, kw_only=True)
class MailStatus:
    """E-mails of all studies."""

    sent: int
    failed: int
    rejection: str  # why the mail server rejected the last one


@dataclass(frozen=True, slots=True)
class SeenServer:
    """The Redis server that answered last, and when that was."""

    run_id: str
    seen_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisStatus:
    """What Redis says of itself; empty if this user may not ask."""

    version: str = ""
    used_bytes: int = 0
    limit_bytes: int = 0
    is_durable: bool | None = None  # whether the append-only file is written
    last_write_ok: bool = True
    last_backup_ms: int = 0


class PlatformStatus:
    """Reads it; a few commands each."""

    def __init__(self, redis: RedisClient) -> None:
        self._redis = redis

    def processes(self, now_ms: int) -> list[RunningProcess]:
        """The running processes."""
        return running_processes(self._redis, now_ms=now_ms)

    def silent(self, now_ms: int) -> list[SilentProcess]:
        """The processes that are missing."""
        return silent_processes(self._redis, now_ms=now_ms)

    def queues(self, names: Sequence[str]) -> dict[str, int]:
        """Messages that wait in Celery's queues; none of them if Redis is not the broker."""
        if not self._redis.exists(*(f"{KOMBU_BINDING}{name}" for name in names)):
            return {}
        with self._redis.pipeline(transaction=False) as pipe:
            for name in names:
                pipe.llen(name)
            return dict(zip(names, pipe.execute(), strict=True))

    def budgets(self, limits: Mapping[str, int]) -> list[HostBudget]:
        """The request budgets of REDCap hosts, whose limits per minute are given."""
        seconds, microseconds = self._redis.time()
        minute_ago = seconds * 1000 + microseconds // 1000 - MINUTE_MS
        with self._redis.pipeline(transaction=False) as pipe:
            for host in limits:
                pipe.zcount(keys.rate(host), minute_ago, "+inf")
                pipe.hget(keys.circuit(host), "until")
            answers = pipe.execute()
        pairs = zip(answers[::2], answers[1::2], strict=True)
        return [
            HostBudget(host, requests, limit, max(0, round(float(until or 0) - time.time())))
            for (host, limit), (requests, until) in zip(limits.items(), pairs, strict=True)
        ]

    def mail(self) -> MailStatus:
        """What became of the e-mails since the ledger began."""
        outcomes: Counter[str] = Counter()
        for (*_, outcome), number in Counters(self._redis).others().get("mails", {}).items():
            outcomes[outcome] += number
        sent = outcomes.pop("sent", 0)
        return MailStatus(sent=sent, failed=sum(outcomes.values()), rejection=self.rejection())

    def rejection(self) -> str:
        """Why the mail server rejected the last e-mail; "" if it did not."""
        return self._redis.get(keys.MAIL_REJECTION) or ""

    def redis(self) -> RedisStatus:
        """Memory and persistence."""
        last_backup_ms = int(self._redis.get(keys.LAST_BACKUP) or 0)
        try:
            info = self._redis.info()
        except ResponseError:
            return RedisStatus(last_backup_ms=last_backup_ms)
        return RedisStatus(
            version=str(info.get("valkey_version") or info.get("redis_version", "")),
            used_bytes=int(info.get("used_memory", 0)),
            limit_bytes=int(info.get("maxmemory", 0)),
            is_durable=bool(info.get("aof_enabled")),
            last_write_ok=info.get("aof_last_write_status", "ok") == "ok",
            last_backup_ms=last_backup_ms,
        )


def last_server(redis: RedisClient) -> SeenServer | None:
    """The server that the last sweep found, or None before the first."""
    noted = redis.hgetall(keys.REDIS_SERVER)
    return SeenServer(noted["run_id"], int(noted["seen_ms"])) if noted else None


def note_server(redis: RedisClient, server: SeenServer) -> None:
    """Keep which server has answered."""
    redis.hset(keys.REDIS_SERVER, mapping={"run_id": server.run_id, "seen_ms": server.seen_ms})
