"""The daily check: `optout check` for the platform and for each project, once a day at a time of its own."""

from __future__ import annotations

import zlib
from collections.abc import Iterable

import structlog

from shared.domain.events import milliseconds
from shared.errors import RedcapUnavailable
from shared.ledger.projects.check_results import (
    PLATFORM,
    CheckResult,
    CheckSchedule,
    StoredFinding,
    check_result,
    store_result,
)
from shared.messaging.tasks import TaskName
from shared.retry_policy import (
    CHECK_AGAIN_AFTER_MS,
    CHECK_TIMEOUT_SECONDS,
    CHECKS_EVERY_SECONDS,
    FIRST_CHECK_AFTER_MS,
)
from worker.checks.findings import Finding, Severity
from worker.checks.runner import Report, platform_checks, project_checks, run_checks
from worker.redcap.circuit_breaker import CircuitBreaker
from worker.services import Services
from worker.steps.background import request_job

DAY_MS = 86_400_000
# Two checks a minute are enough for 2,880 projects a day, and leave REDCap and the workers to what is urgent.
MOST_AT_ONCE = 2

# Findings after which the check cannot see the rest: what it found before is neither gone nor new.
_BLIND = {
    "check-unfinished", "secret-missing", "redis-unreachable", "redcap-unreachable", "redcap-banned",
    "redcap-wrong-address", "redcap-token-refused", "redcap-field-missing", "twilio-unreachable", "twilio-refused",
    "twilio-token-refused", "smtp-unreachable", "smtp-deferred",
}  # fmt: skip

log = structlog.get_logger(__name__)


def request_due_checks(services: Services) -> None:
    """Ask for the checks that are due, a few at a time; beat's sweep calls this each minute."""
    if not services.deduplicator.claim("checks", seconds=CHECKS_EVERY_SECONDS):
        return
    now_ms = milliseconds(services.now())
    schedule = CheckSchedule(services.redis)
    _track_scopes(schedule, {PLATFORM, *services.config.projects}, now_ms)
    for scope in schedule.due(now_ms, MOST_AT_ONCE):
        schedule.postpone(scope, now_ms + CHECK_AGAIN_AFTER_MS)
        request_job(services, TaskName.CHECK, scope)


def _track_scopes(schedule: CheckSchedule, scopes: set[str], now_ms: int) -> None:
    """Schedule what is new, and forget what is not configured any more."""
    known = schedule.scopes()
    for scope in scopes - known:
        schedule.add(scope, now_ms + FIRST_CHECK_AFTER_MS)
    for scope in known - scopes:
        schedule.remove(scope)


def daily_check(scope: str, services: Services) -> None:
    """Check a project, or the platform, and keep what was found."""
    if scope not in {PLATFORM, *services.config.projects} or _redcap_pauses(scope, services):
        return
    before = check_result(services.redis, scope)
    report = _report(scope, services)
    result = result_of(scope, report, before, services)
    store_result(services.redis, result)
    now_ms = milliseconds(services.now())
    uncertain = result.count("error") or any(finding.id in _BLIND for finding in result.findings)
    CheckSchedule(services.redis).postpone(scope, next_check_ms(scope, now_ms, soon=bool(uncertain)))
    counts = {f"{severity}s": result.count(severity) for severity in Severity}
    log.info("daily_check_ended", project=scope, **counts)


def next_check_ms(scope: str, now_ms: int, *, soon: bool) -> int:
    """When to check again: at the scope's own time of day, or `soon`. Pure."""
    own_time = zlib.crc32(scope.encode()) % DAY_MS
    tomorrow = now_ms + ((own_time - now_ms) % DAY_MS or DAY_MS)
    return min(tomorrow, now_ms + CHECK_AGAIN_AFTER_MS) if soon else tomorrow


def _redcap_pauses(scope: str, services: Services) -> bool:
    """Whether the circuit of the project's REDCap is open: the check is tried again in an hour."""
    project = services.project_config(scope)
    if project is None:
        return False
    try:
        CircuitBreaker(services.redis, project.redcap_host).check()
    except RedcapUnavailable:
        return True
    return False


def _report(scope: str, services: Services) -> Report:
    if scope != PLATFORM:
        return run_checks(project_checks(services, scope), timeout_seconds=CHECK_TIMEOUT_SECONDS)
    checks = platform_checks(services, list(services.config.projects), services.config.public_url)
    return run_checks(checks, timeout_seconds=CHECK_TIMEOUT_SECONDS)


def result_of(scope: str, report: Report, before: CheckResult | None, services: Services) -> CheckResult:
    """What to keep of a report, after what was found before."""
    found = [_stored(finding) for finding in report.findings if _counts(finding, before)]
    if before and any(finding.id in _BLIND for finding in found):
        found += _unseen(before.findings, found)
    return CheckResult(
        scope=scope,
        checked_at=services.now(),
        findings=tuple(sorted(found, key=_worst_first)),
        passed=tuple((passed.subject, passed.text) for passed in report.passed),
        omitted=0,
    )


def _worst_first(finding: StoredFinding) -> int:
    return list(Severity).index(Severity(finding.severity))


def _counts(finding: Finding, before: CheckResult | None) -> bool:
    """Many firewalls hide the public address from its own network: only where a worker had reached it before."""
    if finding.id != "web-unreachable":
        return True
    reached = before is not None and any(subject == "web" for subject, _ in before.passed)
    return reached or (before is not None and any(each.id == finding.id for each in before.findings))


def _unseen(before: Iterable[StoredFinding], found: list[StoredFinding]) -> list[StoredFinding]:
    seen = {(finding.id, finding.subject) for finding in found}
    return [each for each in before if (each.id, each.subject) not in seen and each.id not in _BLIND]


def _stored(finding: Finding) -> StoredFinding:
    return StoredFinding(
        id=finding.id,
        severity=finding.severity.value,
        subject=finding.subject,
        title=finding.kind.title,
        observed=finding.observed,
        fix=finding.fix or finding.kind.fix,
        docs=f"docs/reference/checks.md#{finding.id}",
        count=finding.count,
    )
