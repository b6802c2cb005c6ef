"""One request budget per REDCap host, shared by all workers (promise P7)."""

import time
import uuid
from collections.abc import Callable
from pathlib import Path

from shared.ledger import keys
from shared.ledger.lua_script import Argument, LuaScript
from shared.redis_client import RedisClient
from shared.retry_policy import REDCAP_LONGEST_SLEEP_SECONDS

SCRIPTS = Path(__file__).parent / "scripts"

# Of the budget, what nobody waits for leaves the rest to what somebody does.
BACKGROUND_SHARE = 0.85


class RateLimiter:
    """The request budget of one REDCap host: never more than `per_minute` requests in any minute.

    Background requests take part of it, and are spread evenly: a full window frees a place at any time.
    """

    def __init__(
        self,
        redis: RedisClient,
        host: str,
        per_minute: int,
        *,
        background: bool = False,
        sleep: Callable[[float], None] | None = None,
    ) -> None:
        self.per_minute = per_minute
        self._keys = {"window": keys.rate(host), "pause": keys.background_pause(host)}
        limit = max(1, int(per_minute * BACKGROUND_SHARE)) if background else per_minute
        self._limits = limit, 60_000 // limit if background else 0
        self._sleep = sleep or time.sleep
        self._take = LuaScript(redis, "take_request", folder=SCRIPTS)

    def acquire(self) -> None:
        """Return as soon as one more request fits into the budget."""
        limit, pause_ms = self._limits
        request: dict[str, Argument] = {"limit": limit, "member": uuid.uuid4().hex, "pause_ms": pause_ms}
        while wait_ms := int(self._take(keys=self._keys, args=request)):
            self._sleep(min(wait_ms / 1000, REDCAP_LONGEST_SLEEP_SECONDS))
