"""Writes to REDCap that have begun, and are not known to have ended."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from itertools import chain
from types import MappingProxyType

from shared.domain.events import milliseconds
from shared.ledger import keys
from shared.ledger.base import LedgerBase
from shared.retry_policy import FIRST_PAUSE_MS


class WriteIntents(LedgerBase):
    """Notes each write before it goes out, so that a crash or a lost lock is noticed."""

    def begin_writes(
        self,
        project: str,
        writes: dict[str, str],
        *,
        begun: Mapping[str, str] = MappingProxyType({}),
        now: datetime,
    ) -> list[str]:
        """Note that a write has begun for each phone hash, on behalf of an event id; all or none.

        Returns conflicting phones: those whose latest changes do not include the one to be written, and those in
        `begun` for which another writer has begun since. Either means that this process lost its lock. `begun` has
        the event whose write had begun when a phone's records were read, or "".

        The phone is pending from now on in any case: another updater may have completed it in the meantime, and what
        this write leaves in REDCap has to be checked again even if this process dies.
        """
        if not writes:
            return []
        now_ms = milliseconds(now)
        each = [(phone, event_id, begun.get(phone, "-")) for phone, event_id in writes.items()]
        outdated = self._scripts["begin_writes"](
            keys={
                "intents": keys.intents(project),
                "status": keys.status(project),
                "pending": keys.pending(project),
                "due": keys.DUE,
            },
            args={"project": project, "now_ms": now_ms, "due_ms": now_ms + FIRST_PAUSE_MS},
            rest=chain.from_iterable(each),
        )
        return list(outdated)

    def forget_intent(self, project: str, phone: str) -> None:
        """Take back the note that a write has begun."""
        self.redis.hdel(keys.intents(project), phone)

    def intents(self, project: str, phones: Sequence[str]) -> dict[str, str]:
        """Event ids whose write had begun, per phone hash."""
        if not phones:
            return {}
        stored = self.redis.hmget(keys.intents(project), phones)
        return {phone: event_id for phone, event_id in zip(phones, stored, strict=True) if event_id}
