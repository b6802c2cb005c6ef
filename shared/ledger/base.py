"""What all parts of the ledger share."""

from collections.abc import Sequence
from functools import cached_property

from shared.ledger.lua_script import SCRIPTS, LuaScript
from shared.redis_client import RedisClient

# What is read or removed of many events at a time.
CHUNK = 500


class LedgerBase:
    """The connection, the retention and the scripts. Each subject of the ledger is a class built on this one."""

    def __init__(self, redis: RedisClient, *, retention_days: int = 400) -> None:
        self.redis = redis
        self._retention_seconds = retention_days * 86_400

    @cached_property
    def _scripts(self) -> dict[str, LuaScript]:
        names = {path.stem for path in SCRIPTS.glob("*.lua")} - {"prelude"}
        return {name: LuaScript(self.redis, name) for name in names}

    def _members(self, sorted_set: str, members: Sequence[str]) -> set[str]:
        if not members:
            return set()
        scores = self.redis.zmscore(sorted_set, members)
        return {member for member, score in zip(members, scores, strict=True) if score is not None}
