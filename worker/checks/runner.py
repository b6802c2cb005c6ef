"""All checks at once, each in a thread of its own, so that what hangs does not hold up the rest."""

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Self

from celery import Celery
from redis.exceptions import RedisError

from shared.causes import cause_in_words
from shared.config import broker_url, redis_url
from worker.checks.api_key import check_api_key
from worker.checks.blocking import check_blocking
from worker.checks.configuration import accounts_of, check_configuration, check_loaded
from worker.checks.findings import Finding, Passed, Severity
from worker.checks.mail import check_mail, check_templates
from worker.checks.redcap import check_redcap
from worker.checks.redis import check_broker, check_redis, check_rights, check_tls
from worker.checks.twilio import check_account, check_inbound
from worker.checks.web import check_backlog, check_unrouted, check_web, check_workers
from worker.services import Services

Check = Callable[[], Iterable[Finding | Passed]]

_ORDER = {Severity.ERROR: 0, Severity.WARNING: 1, Severity.NOTE: 2}


@dataclass(slots=True)
class Report:
    """What was found, worst first, and what was checked and is correct."""

    findings: list[Finding] = field(default_factory=list)
    passed: list[Passed] = field(default_factory=list)

    @classmethod
    def of(cls, results: Iterable[Finding | Passed]) -> Self:
        """Every finding once, worst first, and all that passed."""
        items = list(dict.fromkeys(results))
        findings = [item for item in items if isinstance(item, Finding)]
        findings.sort(key=lambda finding: (_ORDER[finding.severity], finding.subject))
        return cls(findings, [item for item in items if isinstance(item, Passed)])

    @property
    def is_well(self) -> bool:
        """No finding is an error."""
        return all(finding.severity is not Severity.ERROR for finding in self.findings)

    def as_json(self) -> dict[str, Any]:
        """As `optout check --json` shows it."""
        return {
            "ok": self.is_well,
            "findings": [finding.as_json() for finding in self.findings],
            "passed": [{"subject": seen.subject, "observed": seen.text} for seen in self.passed],
        }


def checks_for(services: Services, projects: list[str], app: Celery, web_url: str) -> dict[str, Check]:
    """The checks by the name under which one that does not end is reported."""
    checks = platform_checks(services, projects, web_url)
    checks["worker"] = partial(check_workers, app)
    for name in projects:
        checks |= project_checks(services, name)
    return checks


def platform_checks(services: Services, projects: list[str], web_url: str) -> dict[str, Check]:
    """The checks of what these projects share."""
    config, redis = services.config, services.redis
    checks: dict[str, Check] = {
        "configuration": partial(check_configuration, config, projects),
        "configuration: processes": partial(check_loaded, config, redis, services.now),
        "redis": partial(check_redis, redis, services.now),
        "redis: rights": check_rights,
        "redis: TLS": check_tls,
        "smtp": partial(check_mail, config, projects, redis),
        "templates": partial(check_templates, config, projects),
        "web": partial(check_web, web_url, services.now),
        "unrouted messages": partial(check_unrouted, redis),
    }
    if broker_url() != redis_url():
        checks["broker"] = partial(check_broker, broker_url())
    for name in accounts_of(config, projects):
        checks[f"twilio.{name}"] = partial(check_account, name, config.twilio[name])
        if config.twilio[name].api_key is not None:
            checks[f"twilio.{name}: API key"] = partial(check_api_key, name, config)
    return checks


def project_checks(services: Services, name: str) -> dict[str, Check]:
    """The checks of one project."""
    config, redis = services.config, services.redis
    return {
        f"{name}: REDCap": partial(check_redcap, name, config, redis=redis, now=services.now),
        f"{name}: Twilio": partial(check_inbound, name, config, redis),
        f"{name}: blocking": partial(check_blocking, name, services),
        f"{name}: ledger": partial(check_backlog, services.ledger, name, services.now()),
    }


def run_checks(checks: dict[str, Check], *, timeout_seconds: float) -> Report:
    """Run all checks together; what one has found before it hangs or breaks is kept."""
    runs = [_Run(name, check) for name, check in checks.items()]
    for run in runs:
        run.start()
    deadline = time.monotonic() + timeout_seconds
    for run in runs:
        run.join(max(0.0, deadline - time.monotonic()))
    return Report.of(item for run in runs for item in run.results())


class _Run(threading.Thread):
    """One check. A daemon: one that hangs must not keep the command from ending."""

    def __init__(self, name: str, check: Check) -> None:
        super().__init__(name=f"check {name}", daemon=True)
        self._about = name
        self._check = check
        self._items: list[Finding | Passed] = []

    def run(self) -> None:
        try:
            for item in self._check():
                self._items.append(item)
        except RedisError:
            return  # reported as redis-unreachable by the check of Redis
        except Exception as error:  # noqa: BLE001  one check must not end the others; its text may hold anything
            self._items.append(self._unfinished(f"ended with {cause_in_words(error)}"))

    def results(self) -> list[Finding | Passed]:
        """What it has found so far."""
        found = list(self._items)
        return [*found, self._unfinished("did not end in time")] if self.is_alive() else found

    def _unfinished(self, how: str) -> Finding:
        return Finding(
            id="check-unfinished", subject=self._about.partition(":")[0], observed=f"{self._about}: {how}"
        )
