"""The due work: what sweep publishes again until it is done."""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from shared.domain.events import milliseconds
from shared.ledger import keys
from shared.ledger.base import LedgerBase
from shared.retry_policy import FIRST_PAUSE_MS, LONGEST_PAUSE_MS, QUICK_PAUSES_SECONDS

Kind = Literal["lookup", "update", "email", "digest", "block"]


@dataclass(frozen=True, slots=True)
class DueWork:
    """A piece of work that sweep has claimed. `event_id` is empty for an update, a digest and blocks."""

    kind: Kind
    project: str
    event_id: str


class DueWorkSchedule(LedgerBase):
    """When each piece of work is published next."""

    def claim_due(self, *, now: datetime, limit: int) -> list[DueWork]:
        """Overdue work; each piece comes again at growing pauses until it is done."""
        members = self._scripts["claim_due"](
            keys={"due": keys.DUE, "attempts": keys.ATTEMPTS},
            args={
                "now_ms": milliseconds(now),
                "limit": limit,
                "first_pause_ms": FIRST_PAUSE_MS,
                "longest_pause_ms": LONGEST_PAUSE_MS,
            },
        )
        return [DueWork(*member.split("|", 2)) for member in members]

    def schedule_quick_retry(
        self, kind: Kind, project: str, event_id: str = "", *, now: datetime
    ) -> float | None:
        """Bring the first few further tries of a piece of work forward. Returns in how many seconds, or None."""
        member = f"{kind}|{project}|{event_id}"
        tries = int(self.redis.hget(keys.ATTEMPTS, member) or 0)
        if tries >= len(QUICK_PAUSES_SECONDS):
            return None
        pause = QUICK_PAUSES_SECONDS[tries]
        self.redis.zadd(keys.DUE, {member: milliseconds(now) + pause * 1000}, xx=True, lt=True)
        return pause

    def make_due_now(self, project: str, *, now: datetime) -> None:
        """Make all unfinished work of a project due now: what was in its way is gone."""
        ids = self.redis.zrange(keys.unfinished(project), 0, -1)
        members = [f"update|{project}|", *(f"lookup|{project}|{event_id}" for event_id in ids)]
        self.redis.hdel(keys.ATTEMPTS, *members)
        self.redis.zadd(keys.DUE, dict.fromkeys(members, milliseconds(now)), xx=True)

    def cancel_update(self, project: str) -> None:
        """Take a project's update from the due work, whatever is pending."""
        self.redis.zrem(keys.DUE, f"update|{project}|")
        self.redis.hdel(keys.ATTEMPTS, f"update|{project}|")
