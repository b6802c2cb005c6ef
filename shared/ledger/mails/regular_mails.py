"""E-mails that go out once in a period: the monthly summaries of projects, and the weekly one to the operator."""

from shared.domain.months import Month
from shared.ledger import keys
from shared.ledger.base import LedgerBase


class MonthlySummaries(LedgerBase):
    """The last month of each project whose summary is done."""

    def last_months(self) -> dict[str, Month]:
        """The months by project, without projects that never had a summary."""
        return {project: Month.parse(text) for project, text in self.redis.hgetall(keys.SUMMARIES).items()}

    def note(self, project: str, month: Month) -> None:
        """The summary of this month is sent, or not needed."""
        self.redis.hset(keys.SUMMARIES, project, str(month))


class WeeklyMail(LedgerBase):
    """The week, such as 2026-W48, of the last weekly e-mail to the operator."""

    def last_week(self) -> str | None:
        """The week, or None before the first one."""
        return self.redis.get(keys.OPERATOR_WEEK)

    def note(self, week: str) -> None:
        """The e-mail of this week is sent, or not needed."""
        self.redis.set(keys.OPERATOR_WEEK, week)
