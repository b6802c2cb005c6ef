"""What the daily check found, for each project and for the platform: for the console, `/metrics` and e-mails."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, replace
from datetime import datetime

from shared.domain.events import from_milliseconds, milliseconds
from shared.ledger import keys
from shared.ledger.base import LedgerBase
from shared.redis_client import RedisClient

# The name of the platform among the projects, which have longer names.
PLATFORM = ""

# What is kept of one check, so that a result stays below some 30 kB.
MOST_ITEMS = 40
LONGEST_TEXT = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFinding:
    """A finding as `optout check --json` shows it, with its title."""

    id: str
    severity: str  # error, warning or note
    subject: str
    title: str
    observed: str
    fix: str
    docs: str
    count: int = 0  # of what is affected, if that can grow


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckResult:
    """The result of one check; `scope` is the project, or PLATFORM."""

    scope: str
    checked_at: datetime
    findings: tuple[StoredFinding, ...] = ()  # worst first
    passed: tuple[tuple[str, str], ...] = ()  # subject and observation of what is correct
    omitted: int = 0  # findings that were not kept

    def count(self, severity: str) -> int:
        """How many findings have a severity."""
        return sum(finding.severity == severity for finding in self.findings)


def store_result(redis: RedisClient, result: CheckResult) -> None:
    """Replace the last result of a scope, within the bounds of what is kept."""
    stored = {
        "checked_ms": milliseconds(result.checked_at),
        "findings": [asdict(_shortened(each)) for each in result.findings[:MOST_ITEMS]],
        "passed": [[subject, text[:LONGEST_TEXT]] for subject, text in result.passed[:MOST_ITEMS]],
        "omitted": result.omitted + max(0, len(result.findings) - MOST_ITEMS),
    }
    with redis.pipeline(transaction=True) as pipe:
        pipe.hset(keys.CHECKS, result.scope, json.dumps(stored))
        pipe.hset(keys.CHECK_COUNTS, result.scope, _counts(result))
        pipe.execute()


def count_stored_findings(redis: RedisClient) -> None:
    """Count the findings of results that an older version stored without counting them."""
    for scope, result in check_results(redis).items():
        redis.hsetnx(keys.CHECK_COUNTS, scope, _counts(result))


def _counts(result: CheckResult) -> str:
    return json.dumps(Counter(each.severity for each in result.findings))


def _shortened(finding: StoredFinding) -> StoredFinding:
    return replace(finding, observed=finding.observed[:LONGEST_TEXT], fix=finding.fix[:LONGEST_TEXT])


def check_result(redis: RedisClient, scope: str) -> CheckResult | None:
    """The last result of a project or of the PLATFORM, or None if it was not checked yet."""
    text = redis.hget(keys.CHECKS, scope)
    return _decode(scope, text) if text else None


def check_results(redis: RedisClient) -> dict[str, CheckResult]:
    """The last results of all projects, and of the platform under PLATFORM."""
    return {scope: _decode(scope, text) for scope, text in sorted(redis.hgetall(keys.CHECKS).items())}


def finding_counts(redis: RedisClient) -> dict[str, dict[str, int]]:
    """How many findings of each severity that occurred the last results have, by scope. Reads no result."""
    return {scope: json.loads(text) for scope, text in redis.hgetall(keys.CHECK_COUNTS).items()}


def _decode(scope: str, text: str) -> CheckResult:
    stored = json.loads(text)
    return CheckResult(
        scope=scope,
        checked_at=from_milliseconds(stored["checked_ms"]),
        findings=tuple(StoredFinding(**finding) for finding in stored["findings"]),
        passed=tuple((subject, observed) for subject, observed in stored["passed"]),
        omitted=stored["omitted"],
    )


class CheckSchedule(LedgerBase):
    """When each project, and the platform, is checked next."""

    def scopes(self) -> set[str]:
        """Everything that is checked."""
        return set(self.redis.zrange(keys.CHECKS_DUE, 0, -1))

    def due(self, now_ms: int, limit: int) -> list[str]:
        """What is to be checked now, longest due first."""
        return self.redis.zrangebyscore(keys.CHECKS_DUE, "-inf", now_ms, start=0, num=limit)

    def add(self, scope: str, at_ms: int) -> None:
        """Have something checked from now on, first at this time."""
        self.redis.zadd(keys.CHECKS_DUE, {scope: at_ms}, nx=True)

    def postpone(self, scope: str, at_ms: int) -> None:
        """Have it checked at this time, and not before."""
        self.redis.zadd(keys.CHECKS_DUE, {scope: at_ms})

    def remove(self, scope: str) -> None:
        """Check it no more, and forget its last result."""
        self.redis.hdel(keys.CHECKS, scope)
        self.redis.hdel(keys.CHECK_COUNTS, scope)
        self.redis.zrem(keys.CHECKS_DUE, scope)
