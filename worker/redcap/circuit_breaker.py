"""One circuit breaker per REDCap host, shared by all workers (promise P7)."""

import time

from shared.errors import RedcapUnavailable
from shared.ledger import keys
from shared.redis_client import RedisClient
from shared.retry_policy import (
    REDCAP_BACKOFF_AFTER_BAN_SECONDS,
    REDCAP_BACKOFF_SECONDS,
    REDCAP_FORGET_FAILURES_SECONDS,
)


class CircuitBreaker:
    """Stops all requests to one REDCap host for a while after it failed."""

    def __init__(self, redis: RedisClient, host: str) -> None:
        self._redis = redis
        self._circuit = keys.circuit(host)

    def check(self) -> None:
        """Raise RedcapUnavailable while the circuit is open."""
        pause = float(self._redis.hget(self._circuit, "until") or 0) - time.time()
        # A pause longer than the longest backoff means that the clock was set back: ignore it.
        if 0 < pause <= REDCAP_BACKOFF_AFTER_BAN_SECONDS:
            raise RedcapUnavailable("redcap_circuit_open", f"no requests for {pause:.0f} s after failures")

    def record_failure(self, *, banned: bool = False) -> None:
        """Open the circuit, for longer after each consecutive failure."""
        backoff = REDCAP_BACKOFF_SECONDS[min(self._count_failure(), len(REDCAP_BACKOFF_SECONDS)) - 1]
        pause = REDCAP_BACKOFF_AFTER_BAN_SECONDS if banned else backoff
        self._redis.hset(self._circuit, "until", time.time() + pause)

    def record_success(self) -> None:
        """Close the circuit and reset the count of failures."""
        self._redis.delete(self._circuit)

    def _count_failure(self) -> int:
        with self._redis.pipeline(transaction=True) as pipe:
            pipe.hincrby(self._circuit, "failures", 1)
            pipe.expire(self._circuit, REDCAP_FORGET_FAILURES_SECONDS)
            return int(pipe.execute()[0])
