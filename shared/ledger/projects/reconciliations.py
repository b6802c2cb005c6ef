"""What the last reconciliations of a project have left, and when they or its changes are late."""

import json
from collections.abc import Mapping
from datetime import datetime
from enum import Enum, auto
from typing import Any

from shared.domain.events import from_milliseconds, milliseconds
from shared.ledger import keys
from shared.ledger.projects.nights import RECONCILE_OVERDUE_MS
from shared.redis_client import RedisClient

WAITS_TOO_LONG_MS = 3600 * 1000


class Reconciliations:
    """Times and report of one project's reconciliations."""

    def __init__(self, redis: RedisClient, project: str) -> None:
        self._redis = redis
        self._key = keys.reconciled(project)

    def succeeded_at(self) -> datetime | None:
        """When the last one that succeeded has ended."""
        return self._time("success_ms")

    def watermark(self) -> datetime | None:
        """Up to when Twilio's log has been read without a gap."""
        return self._time("watermark_ms")

    def report(self) -> dict[str, Any]:
        """The last report; empty if there is none."""
        report: dict[str, Any] = json.loads(self._redis.hget(self._key, "report") or "{}")
        return report

    def conclude(
        self,
        report: Mapping[str, Any],
        figures: Mapping[str, float],
        *,
        watermark: datetime | None,
        now: datetime,
    ) -> None:
        """Note outcome, report and figures of one that ends now; None leaves the watermark as it is."""
        noted: dict[str, float | str] = {
            f"{report['outcome']}_ms": milliseconds(now), "report": json.dumps(report), **figures,
        }  # fmt: skip
        if watermark is not None:
            noted["watermark_ms"] = milliseconds(watermark)
        self._redis.hset(self._key, mapping=noted)

    def failure_mailed_ms(self) -> int:
        """When an e-mail last said that something is wrong; 0 if none did."""
        return int(self._redis.hget(self._key, "failure_mailed_ms") or 0)

    def note_failure_mailed(self, now: datetime) -> None:
        """An e-mail has said that something is wrong."""
        self._redis.hset(self._key, "failure_mailed_ms", milliseconds(now))

    def _time(self, field: str) -> datetime | None:
        stored = self._redis.hget(self._key, field)
        return from_milliseconds(int(stored)) if stored else None


class Reconciled(Enum):
    """How the reconciliation of a study stands."""

    NEVER = auto()
    IN_TIME = auto()
    FAILED = auto()
    OVERDUE = auto()


def reconciled(success_ms: int, failure_ms: int, now_ms: int) -> Reconciled:
    """Judge the times of the last success and the last failure; 0 is never."""
    if failure_ms > success_ms:
        return Reconciled.FAILED
    if not success_ms:
        return Reconciled.NEVER
    return Reconciled.OVERDUE if now_ms - success_ms > RECONCILE_OVERDUE_MS else Reconciled.IN_TIME


def waits_too_long(oldest_ms: float, now_ms: int) -> bool:
    """Whether the oldest unfinished change has waited too long; 0 is none."""
    return bool(oldest_ms) and now_ms - oldest_ms > WAITS_TOO_LONG_MS
