"""One request budget per REDCap host, shared by all workers (promise P7)."""

import time
import uuid
from collections.abc import Callable

from shared.ledger import keys
from shared.redis_client import RedisClient

# An exact sliding window of 60 s. It uses the clock of Redis, because the clocks of workers differ.
# KEYS: 1 window. ARGV: 1 limit, 2 member. Returns the milliseconds to wait; 0 means that the request may be made.
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

# A waiting worker checks the window again after this long at the latest.
LONGEST_SLEEP_SECONDS = 5.0


class RateLimiter:
    """The request budget of one REDCap host: never more than `per_minute` requests in any minute."""

    def __init__(
        self, redis: RedisClient, host: str, per_minute: int, *, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self.per_minute = per_minute
        self._window = keys.rate(host)
        self._sleep = sleep
        self._take = redis.register_script(_TAKE)

    def acquire(self) -> None:
        """Return as soon as one more request fits into the budget."""
        member = uuid.uuid4().hex
        while wait_ms := int(self._take(keys=[self._window], args=[self.per_minute, member])):
            self._sleep(min(wait_ms / 1000, LONGEST_SLEEP_SECONDS))
