"""What is wrong with the platform: what the operator has been notified of, or will be."""

import json
from dataclasses import asdict, dataclass

from shared.ledger import keys
from shared.ledger.base import LedgerBase
from shared.retry_policy import FAULT_LASTS_MS


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenCondition:
    """Something that is wrong with the platform, as it was stored last."""

    text: str
    since_ms: int
    mailed: bool
    severity: str = "error"
    count: int = 0  # of what is affected

    def has_to_be_mailed(self, now_ms: int) -> bool:
        """Whether nobody has been notified, and it has lasted longer than a restart."""
        return not self.mailed and now_ms - self.since_ms >= FAULT_LASTS_MS


class OpenConditions(LedgerBase):
    """What is wrong with the platform, by the key of the condition."""

    def all(self) -> dict[str, OpenCondition]:
        """The conditions that are stored."""
        stored = self.redis.hgetall(keys.OPERATOR)
        return {key: OpenCondition(**json.loads(text)) for key, text in stored.items()}

    def store(self, key: str, condition: OpenCondition) -> None:
        """Keep a condition, in place of what was stored under its key."""
        self.redis.hset(keys.OPERATOR, key, json.dumps(asdict(condition)))

    def remove(self, key: str) -> None:
        """Forget a condition that has ended."""
        self.redis.hdel(keys.OPERATOR, key)
