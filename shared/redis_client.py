"""How every process connects to Redis."""

from collections.abc import Callable
from copy import copy
from typing import Any

from redis import Redis
from redis.backoff import ExponentialBackoff, NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry
from redis.sentinel import Sentinel, SentinelConnectionPool

from shared.causes import cause_in_words
from shared.config.sentinel import SentinelAddress, is_sentinel_url, sentinel_address
from shared.errors import ConfigError
from shared.redis_types import RedisClient as RedisClient
from shared.redis_types import RedisPipeline
from shared.retry_policy import REPLICA_TIMEOUT_MS, SENTINEL_TIMEOUT_SECONDS, SOCKET_TIMEOUT_SECONDS


def redis_cause(error: BaseException) -> str:
    """Why Redis did not answer, in words, without its address."""
    return cause_in_words(error, timeout_seconds=SOCKET_TIMEOUT_SECONDS)


class OneMoreTry(Retry):
    """Tries a command once more on a new connection, where one was lost or has gone silent (half-open).

    redis-py tries again on three levels, each inside the other: command, health check, connecting. Where Redis
    itself hangs, a 2 s timeout became 8 s and more by it, and a webhook came too late. So only the outermost
    level tries again: 4 s at the worst. Every connection has its own copy of this object, and one user at a time.
    """

    def __init__(self) -> None:
        super().__init__(ExponentialBackoff(cap=0.2, base=0.05), retries=1)
        self._within = False

    def call_with_retry(self, do: Callable[[], Any], *args: Any, **more: Any) -> Any:
        """`do()`, and once more after a lost connection or a timeout, unless within another try."""
        if self._within:
            return do()
        self._within = True
        try:
            return super().call_with_retry(do, *args, **more)
        finally:
            self._within = False


class SharedSentinel(Sentinel):
    """The sentinels, for several threads.

    redis-py puts the sentinel that answered at the top of its list by a swap. Two threads that swap at once put one
    sentinel in twice and lose another, so each call has a list of its own.
    Source: redis-py 8.1, sentinel.py, discover_master.
    """

    def discover_master(self, service_name: str) -> tuple[str, int]:
        """Host and port of the primary. Raises MasterNotFoundError, a ConnectionError."""
        own = copy(self)
        own.sentinels = list(self.sentinels)
        address: tuple[str, int] = Sentinel.discover_master(own, service_name)  # type: ignore[no-untyped-call]
        self.sentinels = own.sentinels
        return address


def sentinel_options(address: SentinelAddress) -> dict[str, Any]:
    """How to connect to the sentinels themselves."""
    return {
        "socket_timeout": SENTINEL_TIMEOUT_SECONDS,
        "socket_connect_timeout": SENTINEL_TIMEOUT_SECONDS,
        "retry": Retry(NoBackoff(), 0),
        **address.sentinel_login,
        **address.ssl,
    }


def _client(url: str, options: dict[str, Any]) -> Any:
    """A client of one server, or of the primary that the sentinels name.

    With sentinels, each new connection asks them, and one that replies READONLY is dropped and made again
    (redis-py, SentinelManagedConnection).
    """
    if not is_sentinel_url(url):
        return Redis.from_url(url, **options)
    address = sentinel_address(url)
    sentinels: Any = SharedSentinel
    manager = sentinels(list(address.sentinels), sentinel_kwargs=sentinel_options(address))
    return manager.master_for(address.name, db=address.database, **options, **address.login, **address.ssl)


def connect(url: str) -> RedisClient:
    """A client with timeouts, and one more attempt if a connection is lost; connects on first use.

    Raises ConfigError if the address has an option that redis-py does not know.
    """
    options = {
        "decode_responses": True,
        "socket_timeout": SOCKET_TIMEOUT_SECONDS,
        "socket_connect_timeout": SOCKET_TIMEOUT_SECONDS,
        "socket_keepalive": True,
        "health_check_interval": 30,
        "retry": OneMoreTry(),
    }
    try:
        client: RedisClient = _client(url, options)
        pool = client.connection_pool
        pool.connection_class(**pool.connection_kwargs)  # does not connect
    except (TypeError, ValueError, RedisError):  # its text may repeat the address
        problem = "OPTOUT_REDIS_URL: has an unknown option or database; correct what follows the host"
        raise ConfigError("OPTOUT_REDIS_URL", [problem]) from None
    return client


class NotReplicated(RedisError):
    """The primary has a change, but no replica confirmed it in time."""


def execute_replicated(redis: RedisClient, pipe: RedisPipeline) -> list[Any]:
    """Execute a pipeline as a transaction; with sentinels, wait until a replica has it, too. Errors are results.

    WAIT counts what its own connection has written, so it follows EXEC in the same request. Raises RedisError.
    Source: Redis docs, WAIT.
    """
    if not isinstance(redis.connection_pool, SentinelConnectionPool):
        results: list[Any] = pipe.execute(raise_on_error=False)
        return results
    with redis.pipeline(transaction=False) as request:
        request.execute_command("MULTI")
        for arguments, _ in pipe.command_stack:
            request.execute_command(*arguments)
        request.execute_command("EXEC")
        request.execute_command("WAIT", 1, REPLICA_TIMEOUT_MS)
        *_, results, replicas = request.execute(raise_on_error=False)
    raise_first([results, replicas])
    if replicas < 1:
        raise NotReplicated
    return results


def raise_first(results: list[Any]) -> None:
    """Raise the first error among the results of a transaction."""
    for result in results:
        if isinstance(result, Exception):
            raise result
