"""The latest change of each phone, and the pending set: the phones whose status has to reach REDCap."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from datetime import datetime

from shared.domain.events import milliseconds
from shared.domain.precedence import Status, decode_statuses
from shared.ledger import keys
from shared.ledger.base import LedgerBase
from shared.redis_types import RedisPipeline
from shared.retry_policy import FIRST_PAUSE_MS


class Statuses(LedgerBase):
    """Reads statuses, and keeps the pending set."""

    def statuses(self, project: str, phones: Sequence[str]) -> dict[str, str]:
        """Encoded latest changes per phone hash, as `decode_statuses` reads them."""
        if not phones:
            return {}
        stored = self.redis.hmget(keys.status(project), phones)
        return {phone: text for phone, text in zip(phones, stored, strict=True) if text}

    def status(self, project: str, phone: str) -> tuple[Status, ...]:
        """The latest change of a phone in each scope."""
        stored = self.statuses(project, [phone]).get(phone)
        return decode_statuses(stored) if stored else ()

    def statuses_of(self, project: str, phones: Iterable[str]) -> list[Status]:
        """The latest changes of several phones or staff keys, in all scopes."""
        stored = self.statuses(project, sorted(phones))
        return [status for text in stored.values() for status in decode_statuses(text)]

    def count_statuses(self, project: str) -> int:
        """How many phones have a status."""
        return int(self.redis.hlen(keys.status(project)))

    def all_statuses(self, project: str) -> Iterator[tuple[str, str]]:
        """Every phone hash of a project with its encoded status; one may come twice while others are added."""
        yield from self.redis.hscan_iter(keys.status(project), count=1000)

    def restore_status(self, project: str, phone: str, event_id: str, before: str | None) -> bool:
        """Set a phone's latest status back (None: unknown). False where it is no longer that of `event_id`."""

        def restore(pipe: RedisPipeline) -> bool:
            current = pipe.hget(keys.status(project), phone)
            pipe.multi()
            if event_id not in {status.event_id for status in decode_statuses(current or "")}:
                return False
            if before is None:
                pipe.hdel(keys.status(project), phone)
            else:
                pipe.hset(keys.status(project), phone, before)
            return True

        return bool(self.redis.transaction(restore, keys.status(project), value_from_callable=True))

    def pending(self, project: str, limit: int | None = None, offset: int = 0) -> list[str]:
        """Phone hashes whose status has to reach REDCap, longest waiting first; all of them without a limit."""
        last = -1 if limit is None else offset + limit - 1
        return list(self.redis.zrange(keys.pending(project), offset, last))

    def pending_since(self, project: str, moment: datetime) -> list[str]:
        """Phone hashes that have been pending since before a moment, longest first."""
        return list(self.redis.zrangebyscore(keys.pending(project), "-inf", f"({milliseconds(moment)}"))

    def is_pending(self, project: str, phone: str) -> bool:
        """Whether a phone's status has to reach REDCap."""
        return self.redis.zscore(keys.pending(project), phone) is not None

    def require_update(self, project: str, phones: Sequence[str], *, now: datetime) -> None:
        """Put phones into the pending set, and the project's update among the due work."""
        if not phones:
            return
        now_ms = milliseconds(now)
        with self.redis.pipeline(transaction=True) as pipe:
            pipe.zadd(keys.pending(project), dict.fromkeys(phones, now_ms), nx=True)
            pipe.zadd(keys.DUE, {f"update|{project}|": now_ms + FIRST_PAUSE_MS}, nx=True)
            pipe.execute()

    def forget_pending(self, project: str, phones: Collection[str]) -> None:
        """Take phones out of the pending set whose status has been erased."""
        if phones:
            self.redis.zrem(keys.pending(project), *phones)

    def clear_update_if_empty(self, project: str) -> int:
        """Forget the due update of a project if nothing is pending. Returns how many are pending."""
        return int(
            self._scripts["clear_update_if_empty"](
                keys={"pending": keys.pending(project), "due": keys.DUE, "attempts": keys.ATTEMPTS},
                args={"project": project},
            )
        )
