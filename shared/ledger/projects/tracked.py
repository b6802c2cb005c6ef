"""Which projects are configured, and since when others are missing that were."""

from collections.abc import Iterable

from shared.ledger import keys
from shared.ledger.base import LedgerBase


class TrackedProjects(LedgerBase):
    """Every project that has been configured, until all of its data is deleted."""

    def missing_since(self) -> dict[str, int | None]:
        """By project: the ms since when it is missing, or None while it is configured."""
        return {
            project: int(since) if since else None
            for project, since in self.redis.hgetall(keys.PROJECTS).items()
        }

    def note_configured(self, project: str) -> None:
        """The project is configured."""
        self.redis.hset(keys.PROJECTS, project, "")

    def note_missing(self, project: str, since_ms: int) -> None:
        """The project is not configured any more."""
        self.redis.hset(keys.PROJECTS, project, since_ms)

    def removed(self, configured: Iterable[str]) -> list[str]:
        """Projects that are not configured any more, of which something is kept."""
        return sorted(set(self.redis.hkeys(keys.PROJECTS)) - set(configured))
