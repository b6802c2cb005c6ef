"""How every process connects to Redis."""

from collections.abc import Callable
from typing import Any

from redis import Redis
from redis.backoff import ExponentialBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from shared.errors import ConfigError

# redis-py types every reply as "bytes or str, or something awaitable"; here all of them are decoded text.
RedisClient = Any

# A webhook must be answered well within Twilio's 15 s (5 s for Event Streams) even when Redis hangs.
SOCKET_TIMEOUT_SECONDS = 2.0


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


def connect(url: str) -> RedisClient:
    """A client with timeouts, and one more attempt if a connection is lost; connects on first use.

    Raises ConfigError if the address has an option that redis-py does not know.
    """
    try:
        client = Redis.from_url(
            url,
            decode_responses=True,
            socket_timeout=SOCKET_TIMEOUT_SECONDS,
            socket_connect_timeout=SOCKET_TIMEOUT_SECONDS,
            socket_keepalive=True,
            health_check_interval=30,
            retry=OneMoreTry(),
        )
        pool = client.connection_pool
        pool.connection_class(**pool.connection_kwargs)  # does not connect
    except (TypeError, ValueError, RedisError):  # its text may repeat the address
        problem = "OPTOUT_REDIS_URL: has an unknown option or database; correct what follows the host"
        raise ConfigError("OPTOUT_REDIS_URL", [problem]) from None
    return client
