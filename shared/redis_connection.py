"""How every process connects to Redis."""

from typing import Any

from redis import Redis
from redis.backoff import ExponentialBackoff
from redis.exceptions import ConnectionError  # noqa: A004  what Redis' client raises, not Python's own
from redis.retry import Retry

# redis-py types every reply as "bytes or str, or something awaitable"; here all of them are decoded text.
RedisClient = Any

# A webhook must be answered well within Twilio's 15 s (5 s for Event Streams) even when Redis hangs.
SOCKET_TIMEOUT_SECONDS = 2.0


def connect(url: str) -> RedisClient:
    """A client with timeouts, and one quick retry where a connection is gone; connects on first use."""
    return Redis.from_url(
        url,
        decode_responses=True,
        socket_timeout=SOCKET_TIMEOUT_SECONDS,
        socket_connect_timeout=SOCKET_TIMEOUT_SECONDS,
        socket_keepalive=True,
        health_check_interval=30,
        # Not after a timeout: redis-py tries again on two levels, which makes 8 s and more out of 2.
        retry=Retry(ExponentialBackoff(cap=0.2, base=0.05), retries=1, supported_errors=(ConnectionError,)),
    )
