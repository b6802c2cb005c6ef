"""Reports of reconciliations whose e-mail is due: kept until the mail server has accepted it for all recipients."""

import json
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any

from shared.domain.events import from_milliseconds, milliseconds
from shared.ledger import keys
from shared.redis_client import RedisClient
from shared.retry_policy import FIRST_PAUSE_MS

# Precedes a report's name where other e-mails have an event id.
REPORT = "report:"
# A report that says only that reconciliations fail is replaced by the next one.
FAILURE = "failure"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportMail:
    """A report as JSON can hold it, and keyed hashes of the recipients that are done."""

    name: str
    report: dict[str, Any]
    message_id: str
    made_ms: int
    accepted: tuple[str, ...] = ()
    rejected: tuple[str, ...] = ()

    @property
    def made_at(self) -> datetime:
        """When the reconciliation ended."""
        return from_milliseconds(self.made_ms)


class ReportMails:
    """The waiting reports of one project. Sweep requests each again until it is removed."""

    def __init__(self, redis: RedisClient, project: str) -> None:
        self._redis, self._project = redis, project

    def store(self, mail: ReportMail, *, now: datetime) -> None:
        """Keep a report, or which recipients are done."""
        with self._redis.pipeline(transaction=True) as pipe:
            pipe.hset(keys.report_mails(self._project), mail.name, json.dumps(asdict(mail)))
            pipe.zadd(keys.DUE, {self._member(mail.name): milliseconds(now) + FIRST_PAUSE_MS}, nx=True)
            pipe.execute()

    def load(self, name: str) -> ReportMail | None:
        """A waiting report."""
        stored = self._redis.hget(keys.report_mails(self._project), name)
        if not stored:
            return None
        mail = ReportMail(**json.loads(stored))
        return replace(mail, accepted=tuple(mail.accepted), rejected=tuple(mail.rejected))

    def names(self) -> list[str]:
        """The names of all waiting reports."""
        return list(self._redis.hkeys(keys.report_mails(self._project)))

    def remove(self, name: str) -> None:
        """The mail is sent, rejected or abandoned."""
        with self._redis.pipeline(transaction=True) as pipe:
            pipe.hdel(keys.report_mails(self._project), name)
            pipe.zrem(keys.DUE, self._member(name))
            pipe.hdel(keys.ATTEMPTS, self._member(name))
            pipe.execute()

    def _member(self, name: str) -> str:
        return f"email|{self._project}|{REPORT}{name}"
