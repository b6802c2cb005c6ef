"""The public address as Twilio sees it, the workers behind it, and what waits in the ledger."""

from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import Any

import requests
from celery import Celery

from shared.causes import cause_in_words
from shared.domain.events import State, milliseconds
from shared.ledger import Ledger
from shared.ledger.platform.counters import Counters
from shared.ledger.projects.nights import RECONCILE_OVERDUE_MS
from shared.ledger.projects.reconciliations import Reconciliations
from shared.redis_client import RedisClient
from shared.retry_policy import WEB_TIMEOUT_SECONDS
from worker.checks.clock import clock_finding, server_time
from worker.checks.findings import Finding, Passed
from worker.http_session import get

SUBJECT = "web"
LONGEST_WAIT_SECONDS = 600
LONGEST_REVIEW_SECONDS = 86_400


def check_web(url: str, now: Callable[[], datetime]) -> Iterator[Finding | Passed]:
    """Ask /healthz and /readyz at an address."""
    url = url.rstrip("/")
    try:
        answer = get(f"{url}/healthz", timeout=WEB_TIMEOUT_SECONDS, allow_redirects=False)
        ready = get(f"{url}/readyz", timeout=WEB_TIMEOUT_SECONDS, allow_redirects=False)
    except requests.exceptions.SSLError as error:
        yield Finding(id="web-certificate", subject=SUBJECT, observed=f"{url}: {cause_in_words(error)}")
        return
    except requests.RequestException as error:
        cause = cause_in_words(error, timeout_seconds=WEB_TIMEOUT_SECONDS)
        yield Finding(id="web-unreachable", subject=SUBJECT, observed=f"{url}: {cause}")
        return
    found = _json(answer)
    if not isinstance(found, dict) or found.get("status") != "ok":
        seen = f"{url}/healthz answers status {answer.status_code}, but not as this program does"
        yield Finding(id="web-is-another", subject=SUBJECT, observed=seen)
        return
    version = f", version {found['version']}" if "version" in found else ""
    yield Passed(SUBJECT, f"{url} is this program{version}")
    there = server_time(answer)
    if there is not None:
        yield from clock_finding(SUBJECT, "the web machine's", there, now())
    if ready.status_code != 200:
        yield Finding(id="web-not-ready", subject=SUBJECT, observed=_what_is_not_ready(_json(ready)))


def _json(answer: requests.Response) -> Any:
    try:
        return answer.json()
    except ValueError:
        return None


def _what_is_not_ready(report: Any) -> str:
    if not isinstance(report, dict):
        return "/readyz gives no report"
    if report.get("redis") != "ok":
        return f"Redis: {report.get('redis')}"
    projects = report.get("projects") or {}
    return "; ".join(f"{name}: {problem.get('detail')}" for name, problem in projects.items())


def check_workers(app: Celery) -> Iterator[Finding | Passed]:
    """Ask all workers to say a word."""
    try:
        answers = app.control.ping(timeout=2.0)
    except Exception as error:  # noqa: BLE001  each transport raises its own; the broker has its own check
        yield Finding(
            id="no-worker", subject="worker", observed=f"they could not be asked: {cause_in_words(error)}"
        )
        return
    if answers:
        yield Passed("worker", f"{len(answers)} worker{'s' if len(answers) > 1 else ''} at work")
    else:
        yield Finding(id="no-worker", subject="worker", observed="nobody answered within 2 s")


def check_backlog(ledger: Ledger, project: str, now: datetime) -> Iterator[Finding | Passed]:
    """What waits and what failed, and when the project was last compared with Twilio."""
    now_ms = milliseconds(now)
    waiting = ledger.backlog(project)
    if (age := waiting.seconds(now_ms)) > LONGEST_WAIT_SECONDS:
        seen = f"{waiting.number} events, the oldest since {_span(age)}"
        yield Finding(id="events-wait", subject=project, observed=seen, count=waiting.number)
    yield from _reviews(ledger, project, now_ms)
    failed = sum(1 for _ in ledger.entries(project, states=[State.FAILED]))
    if failed:
        seen = f"{failed} events ended as failed"
        yield Finding(id="events-failed", subject=project, observed=seen, count=failed)
    reconciliations = Reconciliations(ledger.redis, project)
    succeeded = reconciliations.succeeded_at()
    if succeeded is None:
        yield Finding(id="reconcile-never", subject=project, observed="no run has succeeded")
    elif (since_ms := now_ms - milliseconds(succeeded)) > RECONCILE_OVERDUE_MS:
        seen = f"the last success was {_span(since_ms / 1000)} ago"
        yield Finding(id="reconcile-late", subject=project, observed=seen)
    yield from _erased(reconciliations.report(), project)


def _reviews(ledger: Ledger, project: str, now_ms: int) -> Iterator[Finding]:
    waiting = ledger.review_backlog(project)
    if (age := waiting.seconds(now_ms)) > LONGEST_REVIEW_SECONDS:
        seen = f"{waiting.number} wait, the oldest for {_span(age)}"
        yield Finding(id="reviews-wait", subject=project, observed=seen, count=waiting.number)


def _erased(report: Mapping[str, Any], project: str) -> Iterator[Finding]:
    """What the last reconciliation could not see."""
    for missing in report.get("missing_from_log", ()):
        seen = f"{missing['messages']} of {missing['sender']}, {missing['since']} to {missing['until']}"
        yield Finding(id="log-erased", subject=project, observed=seen, count=missing["messages"])


def check_unrouted(redis: RedisClient) -> Iterator[Finding]:
    """Look for messages of no project."""
    webhooks = Counters(redis).others().get("webhooks", {})
    number = sum(count for labels, count in webhooks.items() if "no_project" in labels)
    if number:
        yield Finding(id="messages-of-no-project", subject="web", observed=f"{number} so far", count=number)


def _span(seconds: float) -> str:
    if seconds < 5400:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.0f} hours" if seconds < 172_800 else f"{seconds / 86_400:.0f} days"
