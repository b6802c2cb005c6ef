"""Redis: does it keep what it was given? Also the broker, where it is another server."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

from redis.exceptions import NoPermissionError, RedisError, ResponseError

from shared.causes import cause_in_words, host_and_port
from shared.config import broker_url, redis_url
from shared.config.urls import verifies_certificate
from shared.messaging.celery_config import broker_connection
from shared.redis_client import RedisClient, connect, redis_cause
from shared.redis_rights import missing_by_address
from worker.checks.clock import clock_finding
from worker.checks.findings import Finding, Passed

SUBJECT = "redis"


def check_redis(redis: RedisClient, now: Callable[[], datetime]) -> Iterator[Finding | Passed]:
    """Durability as promise P1 needs it, and the clock."""
    try:
        info = _info(redis)
        seconds, microseconds = redis.time()
    except NoPermissionError:
        return  # check_rights names it
    except RedisError as error:
        cause = redis_cause(error)
        yield Finding(
            id="redis-unreachable", subject=SUBJECT, observed=f"{host_and_port(redis_url())}: {cause}"
        )
        return
    if not info:
        yield Finding(id="redis-info-hidden", subject=SUBJECT, observed="the Redis user lacks +info")
    yield Passed(SUBJECT, f"{_server(info)} answers")
    yield from clock_finding(
        SUBJECT, "Redis'", datetime.fromtimestamp(seconds + microseconds / 1e6, UTC), now()
    )
    yield from _durability(redis, info)
    if str(info.get("cluster_enabled", 0)) == "1":
        yield Finding(id="redis-is-cluster", subject=SUBJECT, observed="cluster_enabled is 1")


def _info(redis: RedisClient) -> dict[str, Any]:
    """What the server says about itself; empty if the user may not ask (INFO is in the category @dangerous)."""
    try:
        info: dict[str, Any] = redis.info("all")
    except NoPermissionError:
        return {}
    return info


def check_rights() -> Iterator[Finding | Passed]:
    """Whether the Redis users of ledger and broker have the rights that they need."""
    with connect(redis_url()) as redis:
        found = missing_by_address(redis)
    for name, missing in found.items():
        subject = "broker" if name == "OPTOUT_BROKER_URL" else SUBJECT
        if missing:
            fix = f"ACL SETUSER (the user in {name}) {' '.join(missing)}; see docs/how-to/restrict-redis.md"
            observed = f"the user in {name} lacks {' '.join(missing)}"
            yield Finding(id="redis-right-missing", subject=subject, observed=observed, fix=fix)
        else:
            yield Passed(subject, f"the user in {name} has the rights that it needs")


def check_tls() -> Iterator[Finding | Passed]:
    """Whether every `rediss` address verifies the server's certificate."""
    addresses = {"OPTOUT_REDIS_URL": redis_url()} | (
        {"OPTOUT_BROKER_URL": broker_url()} if broker_url() != redis_url() else {}
    )
    for name, url in addresses.items():
        if not verifies_certificate(url):
            yield Finding(id="redis-tls-unverified", subject=SUBJECT, observed=f"the options in {name}")


def _server(info: dict[str, Any]) -> str:
    """Name and version: Valkey gives its own beside the Redis version that it is compatible with."""
    name = str(info.get("server_name", "redis"))
    return f"{name} {info.get(f'{name}_version', info.get('redis_version', '?'))}"


def _durability(redis: RedisClient, info: dict[str, Any]) -> Iterator[Finding]:
    settings = _settings(redis)
    if settings is None:
        yield Finding(id="redis-settings-hidden", subject=SUBJECT, observed="CONFIG GET is not allowed")
        if not info:
            return
        settings = {
            "appendonly": "yes" if info.get("aof_enabled") else "no",
            "maxmemory-policy": str(info.get("maxmemory_policy", "noeviction")),
        }
    if settings.get("appendonly") != "yes":
        yield Finding(id="redis-not-append-only", subject=SUBJECT, observed="appendonly is no")
    elif settings.get("appendfsync", "always") != "always":
        seen = f"appendfsync is {settings['appendfsync']}"
        yield Finding(id="redis-fsync-late", subject=SUBJECT, observed=seen)
    if settings.get("maxmemory-policy") != "noeviction":
        seen = f"maxmemory-policy is {settings.get('maxmemory-policy')}"
        yield Finding(id="redis-may-evict", subject=SUBJECT, observed=seen)
    if info.get("aof_last_write_status", "ok") != "ok":
        seen = f"aof_last_write_status is {info['aof_last_write_status']}"
        yield Finding(id="redis-writes-fail", subject=SUBJECT, observed=seen)


def _settings(redis: RedisClient) -> dict[str, str] | None:
    """The settings, or None where a managed service hides them; INFO still shows most."""
    try:
        found = {
            name: redis.config_get(name).get(name)
            for name in ("appendonly", "appendfsync", "maxmemory-policy")
        }
    except ResponseError:
        return None
    settings = {name: str(value) for name, value in found.items() if value is not None}
    return settings or None


def check_broker(url: str) -> Iterator[Finding | Passed]:
    """Connect to a broker that is not the ledger's Redis. Its address may hold a password, and is not shown."""
    try:
        with broker_connection(url, connect_timeout=5) as connection:
            connection.ensure_connection(max_retries=1, timeout=5)
    except Exception as error:  # noqa: BLE001  each transport raises its own
        cause = cause_in_words(error, timeout_seconds=5)
        yield Finding(id="broker-unreachable", subject="broker", observed=f"{host_and_port(url)}: {cause}")
    else:
        yield Passed("broker", "answers")
