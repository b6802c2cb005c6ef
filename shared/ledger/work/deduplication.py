"""One message in place of many that would say the same."""

from shared.ledger import keys
from shared.ledger.base import LedgerBase


class MessageDeduplicator(LedgerBase):
    """Remembers which messages wait in the queue. It forgets after a time, so that a lost one costs only that."""

    def claim(self, name: str, *, seconds: float) -> bool:
        """Whether no such message waits; from now on one does."""
        return bool(self.redis.set(keys.queued(name), "1", nx=True, px=int(seconds * 1000)))

    def release(self, name: str) -> None:
        """The message has left the queue: the next caller sends another."""
        self.redis.delete(keys.queued(name))
