"""One circuit breaker per REDCap host, shared by all workers (promise P7)."""

import time

from shared.errors import RedcapUnavailable
from shared.ledger import keys
from shared.redis_client import RedisClient

# The pause after each consecutive failure; the last value applies to all further failures.
BACKOFF_SECONDS = (2.0, 4.0, 8.0, 16.0, 32.0, 60.0)
# REDCap bans an address until an administrator lifts the ban; further requests would not help.
BACKOFF_AFTER_BAN_SECONDS = 300.0
# Consecutive failures are counted from zero again after this long without one.
FORGET_FAILURES_SECONDS = 3600


class CircuitBreaker:
    """Stops all requests to one REDCap host for a while after it failed."""

    def __init__(self, redis: RedisClient, host: str) -> None:
        self._redis = redis
        self._circuit = keys.circuit(host)

    def check(self) -> None:
        """Raise RedcapUnavailable while the circuit is open."""
        pause = float(self._redis.hget(self._circuit, "until") or 0) - time.time()
        # A pause longer than the longest backoff means that the clock was set back: ignore it.
        if 0 < pause <= BACKOFF_AFTER_BAN_SECONDS:
            raise RedcapUnavailable("redcap_circuit_open", f"no requests for {pause:.0f} s after failures")

    def record_failure(self, *, banned: bool = False) -> None:
        """Open the circuit, for longer after each consecutive failure."""
        backoff = BACKOFF_SECONDS[min(self._count_failure(), len(BACKOFF_SECONDS)) - 1]
        pause = BACKOFF_AFTER_BAN_SECONDS if banned else backoff
        self._redis.hset(self._circuit, "until", time.time() + pause)

    def record_success(self) -> None:
        """Close the circuit and reset the count of failures."""
        self._redis.delete(self._circuit)

    def _count_failure(self) -> int:
        with self._redis.pipeline(transaction=True) as pipe:
            pipe.hincrby(self._circuit, "failures", 1)
            pipe.expire(self._circuit, FORGET_FAILURES_SECONDS)
            return int(pipe.execute()[0])
