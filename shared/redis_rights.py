"""The rights that a Redis user (ACL) needs, and a test which of them it lacks."""

import re
from typing import Any

import structlog
from redis.exceptions import NoPermissionError, ResponseError

from shared.config import broker_url, redis_url
from shared.ledger import keys
from shared.redis_client import RedisClient, connect

log = structlog.get_logger(__name__)

# One valid call per command: Redis checks the number of arguments before it checks the rights.
_ON_KEYS = """
    DEL k; EXISTS k; EXPIRE k 1; GET k; HDEL k f; HEXISTS k f; HGET k f; HGETALL k; HINCRBY k f 1; HKEYS k; HLEN k;
    HMGET k f; HRANDFIELD k; HSCAN k 0; HSET k f v; HSETNX k f v; INCR k; LLEN k; LPOP k; LPUSH k v; LREM k 0 v;
    LTRIM k 0 1; PERSIST k; PEXPIRE k 1; PTTL k; RPUSH k v; SADD k m; SET k v; SMEMBERS k; TTL k; UNLINK k;
    ZADD k 1 m; ZCARD k; ZCOUNT k 0 1; ZMSCORE k m; ZRANGE k 0 1; ZRANGEBYSCORE k 0 1; ZREM k m;
    ZREMRANGEBYSCORE k 0 1; ZREVRANGE k 0 1; ZSCAN k 0; ZSCORE k m
"""
_OF_BROKER = """
    BRPOP k 1; DEL k; EXISTS k; GET k; HDEL k f; HGET k f; HSET k f v; LLEN k; LPUSH k v; PEXPIRE k 1; RPOP k;
    RPUSH k v; SADD k m; SET k v; SMEMBERS k; SREM k m; ZADD k 1 m; ZRANGE k 0 1; ZRANGEBYSCORE k 0 1; ZREM k m
"""
_WITHOUT_KEYS = "EVAL 1 0; EVALSHA 0 0; PING; SCAN 0; SCRIPT EXISTS 0; SCRIPT LOAD x; TIME"
_LEDGER_KEYS = {f"{keys.PREFIX}:x": f"{keys.PREFIX}:*"}  # a key -> the pattern that allows it
_BROKER_KEYS = {
    "optout.x": "optout.*",
    "_kombu.binding.x": "_kombu.binding*",
    "unacked": "unacked*",
    "x.pidbox": "*.pidbox*",
    "celeryev.x": "celeryev.*",
}
_CHANNELS = """
    PUBLISH /N.celery.pidbox m; PUBLISH /N.celeryev/worker.heartbeat m; PUNSUBSCRIBE; UNSUBSCRIBE;
    PSUBSCRIBE /N.celery.pidbox; PSUBSCRIBE /N.celeryev/*; PSUBSCRIBE /N.celeryev/worker.*
"""

# The console reads, and nothing else. `docs/how-to/restrict-redis.md` says what each right is for.
CONSOLE_RIGHTS = (
    "resetkeys %R~optout:* %R~optout.* %R~_kombu.binding* resetchannels "
    "-@all +@read +@connection -@dangerous +info +time"
)

Calls = list[list[str]]


def _calls(text: str, key: str = "") -> Calls:
    return [[key if word == "k" else word for word in call.split()] for call in text.split(";")]


def ledger_calls() -> Calls:
    """What every process calls on the ledger."""
    return [*_calls(_WITHOUT_KEYS), *(call for key in _LEDGER_KEYS for call in _calls(_ON_KEYS, key))]


def broker_calls(database: int) -> Calls:
    """What kombu calls on the broker. Source: kombu 5.7, transport/redis.py."""
    on_keys = [call for key in _BROKER_KEYS for call in _calls(_OF_BROKER, key)]
    return [*_calls(_WITHOUT_KEYS), *on_keys, *_calls(_CHANNELS.replace("/N.", f"/{database}."))]


def missing_rights(redis: RedisClient, *, ledger: bool = True, broker: bool = False) -> list[str]:
    """The rights that this user lacks, as `ACL SETUSER` writes them. Raises RedisError.

    The calls are queued in a transaction, where Redis checks the rights, and then discarded: nothing is executed.
    Source: Redis docs, "Transactions", errors inside a transaction.
    """
    key = next(iter(_LEDGER_KEYS if ledger else _BROKER_KEYS))
    database = int(redis.connection_pool.connection_kwargs.get("db", 0))
    calls = (ledger_calls() if ledger else []) + (broker_calls(database) if broker else [])
    try:
        connection = redis.connection_pool.get_connection()
    except NoPermissionError as error:
        return [refused_command(error)]
    try:
        return sorted({right for right in _missing(connection, key, calls) if right})
    finally:
        connection.disconnect()
        redis.connection_pool.release(connection)


def _missing(connection: Any, key: str, calls: Calls) -> list[str]:
    lacks = [_right(connection, call) for call in (["WATCH", key], ["MULTI"])]
    if not lacks[-1]:
        lacks += [_right(connection, call) for call in [*calls, ["DISCARD"]]]
    return lacks


def _right(connection: Any, call: list[str]) -> str:
    """The right that a call lacks, or ""."""
    connection.send_command(*call)
    try:
        connection.read_response()
    except ResponseError as error:
        return _refused_right(str(error), call)
    return ""


def _refused_right(refusal: str, call: list[str]) -> str:
    """The right that a refusal is about. Source: NOPERM errors of Redis 6 to 8 and Valkey 9."""
    if "unknown command" not in refusal and "no permissions" not in refusal.lower():
        return ""
    if "command" in refusal:
        return f"+{'|'.join(call[:2] if call[0] == 'SCRIPT' else call[:1]).lower()}"
    if "channel" in refusal:
        return f"&{call[1]}"
    return f"~{(_LEDGER_KEYS | _BROKER_KEYS)[call[1]]}"


def refused_command(error: NoPermissionError) -> str:
    """The right that a refusal is about, as far as its text names it."""
    found = re.search(r"the '([\w|]+)' command", str(error))
    return f"+{found[1]}" if found else "a key or channel"


def missing_by_address(redis: RedisClient) -> dict[str, list[str]]:
    """What the users of ledger and broker lack, by the environment variable with their address. Raises RedisError."""
    if broker_url() == redis_url():
        return {"OPTOUT_REDIS_URL": missing_rights(redis, broker=True)}
    missing = {"OPTOUT_REDIS_URL": missing_rights(redis)}
    if broker_url().startswith("redis") and ";" not in broker_url():
        with connect(broker_url()) as broker:
            missing["OPTOUT_BROKER_URL"] = missing_rights(broker, ledger=False, broker=True)
    return missing


def report_missing_rights(missing: dict[str, list[str]]) -> list[str]:
    """Log what Redis users lack. Returns it as one line per address."""
    problems = [
        f"{name}: the Redis user lacks {' '.join(rights)}" for name, rights in missing.items() if rights
    ]
    if problems:
        log.critical("redis_rights_missing", problems=problems)
    return problems
