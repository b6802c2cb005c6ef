"""What Twilio was asked to block for a project, or to deliver again: what waits, what failed, what is in force."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from functools import cached_property

from shared.domain.events import from_milliseconds, milliseconds
from shared.ledger import keys
from shared.ledger.lua_script import LuaScript
from shared.redis_client import RedisClient
from shared.redis_types import RedisPipeline
from shared.retry_policy import FIRST_PAUSE_MS


class BlockState(StrEnum):
    """How far an event's block at Twilio has come, or what a person asked for instead: to unblock."""

    NONE = ""  # Twilio need not be asked: it blocks by itself, or the project does not use the API
    WAITING = "waiting"
    BLOCKED = "blocked"
    UNBLOCKED = "unblocked"
    FAILED = "failed"
    NOT_NEEDED = "not_needed"  # the opt-out has ended in the meantime, or begun again


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """The state of one event's block."""

    state: BlockState = BlockState.NONE
    reason: str = ""
    at: datetime | None = None  # when Twilio stored it

    @classmethod
    def decode(cls, stored: Mapping[str, str]) -> "Block":
        """Read the hash of an event."""
        at = stored.get("block_ms")
        return cls(
            state=BlockState(stored.get("block", "")),
            reason=stored.get("block_reason", ""),
            at=from_milliseconds(int(at)) if at else None,
        )


@dataclass(frozen=True, slots=True)
class BlockedNumber:
    """A phone that Twilio was asked not to deliver the texts of a scope to."""

    phone_hash: str
    scope: str


class Blocks:
    """The blocks of one project. Methods may raise redis.RedisError."""

    def __init__(self, project: str, redis: RedisClient) -> None:
        self._project = project
        self._redis = redis

    @cached_property
    def _end(self) -> LuaScript:
        return LuaScript(self._redis, "end_block")

    def waiting(self) -> dict[str, datetime]:
        """Return the ids of events whose block waits, longest first, with the time since when."""
        found = self._redis.zrange(keys.blocks_waiting(self._project), 0, -1, withscores=True)
        return {event_id: from_milliseconds(int(since)) for event_id, since in found}

    def has_waiting(self) -> bool:
        """Return whether any block waits."""
        return bool(self._redis.zcard(keys.blocks_waiting(self._project)))

    def failed(self) -> list[str]:
        """Return the ids of events whose block failed, longest first."""
        return list(self._redis.zrange(keys.blocks_failed(self._project), 0, -1))

    def end(
        self,
        event_id: str,
        state: BlockState,
        *,
        reason: str = "",
        numbers: Iterable[BlockedNumber] = (),
        unblocked: bool = False,
        now: datetime,
    ) -> None:
        """Record how far an event's block has come. `numbers` are those that Twilio has blocked (or `unblocked`).

        WAITING puts it among the due work, or leaves it there.
        """
        self._end(
            keys={
                "event": keys.event(self._project, event_id),
                "waiting": keys.blocks_waiting(self._project),
                "failed": keys.blocks_failed(self._project),
                "due": keys.DUE,
                "attempts": keys.ATTEMPTS,
                "blocks": keys.blocks(self._project),
            },
            args={
                "project": self._project,
                "id": event_id,
                "state": state,
                "reason": reason,
                "now_ms": milliseconds(now),
                "due_ms": milliseconds(now) + FIRST_PAUSE_MS,
                "unblocked": "1" if unblocked else "",
            },
            rest=[f"{number.phone_hash}|{number.scope}" for number in numbers],
        )

    def in_force(self) -> dict[BlockedNumber, datetime]:
        """Return all numbers that Twilio was asked to block, with the time since when."""
        stored = self._redis.hgetall(keys.blocks(self._project))
        return {_number(line): from_milliseconds(int(since)) for line, since in stored.items()}

    def forget(self, phone: str, event_ids: Sequence[str], pipe: RedisPipeline) -> None:
        """Remove the traces of a phone and its events."""
        lines = [
            line for line in self._redis.hkeys(keys.blocks(self._project)) if line.startswith(f"{phone}|")
        ]
        if lines:
            pipe.hdel(keys.blocks(self._project), *lines)
        if event_ids:
            pipe.zrem(keys.blocks_waiting(self._project), *event_ids)
            pipe.zrem(keys.blocks_failed(self._project), *event_ids)


def _number(line: str) -> BlockedNumber:
    phone, _, scope = line.partition("|")
    return BlockedNumber(phone, scope)
