"""Politeness to REDCap (promise P7): one request budget per host and a circuit breaker, over all workers."""

import time
import uuid
from collections.abc import Callable

from shared.errors import RedcapUnavailable
from shared.ledger import keys
from shared.redis_client import RedisClient

# A sliding window, exact: never more than the limit in any 60 s. Redis' own clock, as workers' clocks differ.
# KEYS: 1 window. ARGV: 1 limit, 2 member. Answers: ms to wait, 0 = go.
_TAKE = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - 60000)
if redis.call('ZCARD', KEYS[1]) < tonumber(ARGV[1]) then
  redis.call('ZADD', KEYS[1], now, ARGV[2])
  redis.call('PEXPIRE', KEYS[1], 61000)
  return 0
end
return tonumber(redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')[2]) + 60000 - now + 1
"""

# The rest after each failure in a row; the last one holds for all further ones.
REST_SECONDS = (2.0, 4.0, 8.0, 16.0, 32.0, 60.0)
# REDCap bans an address until an administrator lifts it; asking on would only show that we do not listen.
REST_AFTER_BAN_SECONDS = 300.0


class HostLimiter:
    """The budget and the circuit breaker of one REDCap host."""

    def __init__(
        self,
        redis: RedisClient,
        host: str,
        per_minute: int,
        *,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._redis = redis
        self._window = keys.rate(host)
        self._circuit = keys.circuit(host)
        self._limit = per_minute
        self._sleep = sleep
        self._take = redis.register_script(_TAKE)

    def wait_for_turn(self) -> None:
        """Return when a request may be made. Raises RedcapUnavailable while the host is left alone."""
        rest = float(self._redis.hget(self._circuit, "until") or 0) - time.time()
        # Longer than any rest: the clock was set back meanwhile.
        if 0 < rest <= REST_AFTER_BAN_SECONDS:
            raise RedcapUnavailable("redcap_resting", f"left alone for another {rest:.0f} s after failures")
        self.take_turn()

    def take_turn(self) -> None:
        """Return when the budget has room, whether or not the host is being left alone."""
        member = uuid.uuid4().hex
        while wait_ms := int(self._take(keys=[self._window], args=[self._limit, member])):
            self._sleep(min(wait_ms / 1000, 5.0))

    def failed(self, *, banned: bool = False) -> None:
        """Leave the host alone for a while, longer with each failure in a row."""
        with self._redis.pipeline(transaction=True) as pipe:
            pipe.hincrby(self._circuit, "failures", 1)
            pipe.expire(self._circuit, 3600)
            failures = int(pipe.execute()[0])
        rest = REST_SECONDS[min(failures, len(REST_SECONDS)) - 1]
        until = time.time() + (REST_AFTER_BAN_SECONDS if banned else rest)
        self._redis.hset(self._circuit, "until", until)

    def succeeded(self) -> None:
        """The host answered: forget its failures."""
        self._redis.delete(self._circuit)
