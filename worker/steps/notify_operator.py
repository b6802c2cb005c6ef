"""Notify the people who run the platform of what concerns the platform, and feed a dead man's switch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from email.message import EmailMessage
from zoneinfo import ZoneInfo

import requests
import structlog

from shared.causes import cause_in_words
from shared.domain.events import from_milliseconds, milliseconds
from shared.errors import ConfigError, MailDeferred, MailRejected
from shared.ledger.events.failures import failed_ids, projects_with_failures
from shared.ledger.mails.regular_mails import WeeklyMail
from shared.ledger.platform.heartbeats import silent_processes
from shared.ledger.platform.loaded_configurations import invalid_files, loaded_configurations
from shared.ledger.platform.open_conditions import OpenCondition, OpenConditions
from shared.ledger.projects.check_results import CheckResult, StoredFinding, check_results
from shared.ledger.projects.figures import ProjectFigures, project_figures
from shared.ledger.projects.problems import KnownProblem, ProjectProblems
from shared.ledger.projects.reconciliations import Reconciled, Reconciliations, reconciled, waits_too_long
from shared.ledger.work.locks import try_lock
from shared.retry_policy import (
    FINDINGS_MAIL_EVERY_SECONDS,
    OPERATOR_MAIL_EVERY_SECONDS,
    PING_EVERY_SECONDS,
    PING_TIMEOUT_SECONDS,
)
from worker.mail.operator_mail import Changes, Condition, StudyWeek, addressed, changes_mail, weekly_mail
from worker.mail.smtp import outcome_of
from worker.services import Services

WEEKLY_HOUR = 8
EXPECTED = ("beat", "web")
MOST_REASONS = 3
# Findings that have a condition of their own here, which notices them within minutes.
_WATCHED_CLOSELY = {
    "events-wait",
    "events-failed",
    "reconcile-late",
    "web-not-ready",
    "configuration-stale",
    "configuration-invalid",
}

log = structlog.get_logger(__name__)


def notify_operator(services: Services) -> None:
    """Mail what started or ended, at most every five minutes, and on Mondays how the platform stands."""
    if not services.config.operator.notify:
        return
    with try_lock(services.redis, "operator") as acquired:
        if acquired:
            open_ = list(_conditions(services))
            _mail_changes(open_, services)
            _mail_weekly(open_, services)


def ping(services: Services) -> None:
    """Request `ping_url`: the service behind it raises an alarm when the requests stop."""
    url = services.config.operator.ping_url
    if url is None or not services.deduplicator.claim("ping", seconds=PING_EVERY_SECONDS):
        return
    try:
        services.http.get(url, timeout=PING_TIMEOUT_SECONDS).raise_for_status()
    except requests.RequestException as error:  # its text contains the address, which is a kind of password
        log.warning("ping_failed", error=cause_in_words(error, timeout_seconds=PING_TIMEOUT_SECONDS))


# --- what is wrong ------------------------------------------------------------------------------------


def _conditions(services: Services) -> Iterator[Condition]:
    now_ms = milliseconds(services.now())
    figures = project_figures(services.redis, services.config.projects)
    problems = ProjectProblems(services.redis).all()
    failing = projects_with_failures(list(services.config.projects), services.redis)
    for project in services.config.projects:
        yield from _problem(project, problems.get(project))
        yield from _reconciliation(project, figures[project], services, now_ms)
        yield from _waiting(project, figures[project], services, now_ms)
        if project in failing:
            yield from _not_saved(project, services)
    for invalid in invalid_files(services.redis, now_ms=now_ms):
        kept = f"{', '.join(invalid.processes)}: the last valid configuration is kept"
        text = f"{kept}, as {invalid.file} cannot be used: {invalid.problem}"
        yield Condition(f"configuration:{invalid.file}", text)
    yield from _silent(services, now_ms)
    for scope, result in check_results(services.redis).items():
        yield from _findings(scope, result)


def _silent(services: Services, now_ms: int) -> Iterator[Condition]:
    """Kinds of process of which none runs, and single processes that are missing."""
    running = {each.process.split()[0] for each in loaded_configurations(services.redis, now_ms=now_ms)}
    for kind in EXPECTED:
        if kind not in running:
            yield Condition(f"silent:{kind}", f"{kind} does not run, or does not reach Redis")
    for each in silent_processes(services.redis, now_ms=now_ms):
        if each.kind in running:
            since = _local(each.since_ms, services)
            text = (
                f"{each.kind} on {each.host} (process {each.process_id}) has been silent since {since}: "
                "start it again. One that was removed without being stopped is forgotten after a day"
            )
            yield Condition(f"silent:{each.field}", text)


def _findings(scope: str, result: CheckResult) -> Iterator[Condition]:
    """What the daily check found; several findings of one kind and subject are one condition."""
    kinds: defaultdict[str, list[StoredFinding]] = defaultdict(list)
    for finding in result.findings:
        if finding.id not in _WATCHED_CLOSELY:
            kinds[f"check:{scope}:{finding.id}:{finding.subject}"].append(finding)
    for key, found in kinds.items():
        observed = "; ".join(finding.observed for finding in found[:3])
        first, count = found[0], sum(finding.count for finding in found)
        text = f"{first.subject}: {first.title} [{first.id}]: {observed}. Fix: {first.fix}"
        yield Condition(key, text, first.severity, count, found_daily=True)


def _problem(project: str, problem: KnownProblem | None) -> Iterator[Condition]:
    if problem:
        kept = " Changes are kept until it is fixed." if problem.events_kept else ""
        yield Condition(
            f"problem:{project}:{problem.code}",
            f"{project}: {problem.code}: {problem.detail.rstrip('.')}.{kept}",
        )


def _reconciliation(
    project: str, figures: ProjectFigures, services: Services, now_ms: int
) -> Iterator[Condition]:
    success = figures.success_ms
    state = reconciled(success, figures.failure_ms, now_ms)
    if state is Reconciled.FAILED:
        errors = Reconciliations(services.redis, project).report().get("errors") or ["see the log"]
        text = f"{project}: the last reconciliation failed: {'; '.join(errors[:3])}"
        yield Condition(f"reconciliation:{project}", text)
    elif state is Reconciled.OVERDUE:
        text = f"{project}: no reconciliation since {_local(success, services)}"
        yield Condition(f"reconciliation:{project}", text)


def _waiting(project: str, figures: ProjectFigures, services: Services, now_ms: int) -> Iterator[Condition]:
    oldest_ms, number = figures.oldest_unfinished_ms, figures.unfinished
    if waits_too_long(oldest_ms, now_ms):
        many = f"{number} changes wait" if number != 1 else "1 change waits"
        text = f"{project}: {many}, the oldest since {_local(oldest_ms, services)}"
        yield Condition(f"waiting:{project}", text)


def _not_saved(project: str, services: Services) -> Iterator[Condition]:
    """Changes that REDCap rejected: the e-mail to the study team leaves the reasons to the operator."""
    failed = failed_ids(project, services.redis)
    if failed:
        reasons = dict.fromkeys(
            entry.reason for entry in services.ledger.entries_of(project, failed) if entry.reason
        )
        many = f"{len(failed)} changes are" if len(failed) > 1 else "1 change is"
        listed = "; ".join(list(reasons)[:MOST_REASONS]) or "see optout events"
        text = f"{project}: {many} not in REDCap: {listed}. After the fix: optout replay --failed"
        yield Condition(f"not-saved:{project}", text, count=len(failed))


def _local(moment_ms: float, services: Services) -> str:
    zone = ZoneInfo(services.config.time_zone)
    return from_milliseconds(int(moment_ms)).astimezone(zone).strftime("%Y-%m-%d %H:%M")


# --- e-mails ------------------------------------------------------------------------------------------


def _mail_changes(open_: Sequence[Condition], services: Services) -> None:
    now_ms = milliseconds(services.now())
    current = {condition.key: condition for condition in open_}
    stored = _remember(current, services, now_ms)
    changes = _changes(current, stored, now_ms)
    if not changes or not _is_time_for(changes, services):
        return
    if not _send(changes_mail(changes, open_, services.config.public_url), "operator-mail", services):
        services.deduplicator.release("operator-findings")
        return
    for condition in (*changes.started, *changes.worse):
        _store(services, condition, since_ms=stored[condition.key].since_ms, mailed=True)
    for condition in changes.resolved:
        OpenConditions(services.redis).remove(condition.key)


def _remember(current: dict[str, Condition], services: Services, now_ms: int) -> dict[str, OpenCondition]:
    """Store what is new, and forget what ended before it was mailed. Returns what is stored, by key."""
    conditions = OpenConditions(services.redis)
    stored = conditions.all()
    for key in current.keys() - stored.keys():
        stored[key] = _store(services, current[key], since_ms=now_ms, mailed=False)
    for key in current.keys() & stored.keys():
        if stored[key].mailed and current[key].count < stored[key].count:
            stored[key] = _store(services, current[key], since_ms=stored[key].since_ms, mailed=True)
    for key in stored.keys() - current.keys():
        if not stored[key].mailed:
            conditions.remove(key)
            del stored[key]
    return stored


def _changes(current: dict[str, Condition], stored: dict[str, OpenCondition], now_ms: int) -> Changes:
    """What to mail: what lasts, what affects more than at the last e-mail, and what has ended. Pure."""
    known = [(condition, stored[key]) for key, condition in current.items()]
    return Changes(
        started=[condition for condition, state in known if state.has_to_be_mailed(now_ms)],
        worse=[condition for condition, state in known if condition.is_worse_than(state)],
        resolved=[
            Condition(key, state.text, state.severity, found_daily=key.startswith("check:"))
            for key, state in stored.items()
            if key not in current
        ],
    )


def _is_time_for(changes: Changes, services: Services) -> bool:
    """Whether to mail now: what only the daily check found is mailed once an hour."""
    every = (*changes.started, *changes.worse, *changes.resolved)
    if any(not condition.found_daily for condition in every):
        return True
    return services.deduplicator.claim("operator-findings", seconds=FINDINGS_MAIL_EVERY_SECONDS)


def _store(services: Services, condition: Condition, *, since_ms: int, mailed: bool) -> OpenCondition:
    state = OpenCondition(
        text=condition.text,
        since_ms=since_ms,
        mailed=mailed,
        severity=condition.severity,
        count=condition.count,
    )
    OpenConditions(services.redis).store(condition.key, state)
    return state


def _mail_weekly(open_: Sequence[Condition], services: Services) -> None:
    local = services.now().astimezone(ZoneInfo(services.config.time_zone))
    week = (local - timedelta(hours=WEEKLY_HOUR)).strftime("%G-W%V")
    weekly = WeeklyMail(services.redis)
    last = weekly.last_week()
    if last is None:
        weekly.note(week)  # the first e-mail comes on the next Monday
    elif last != week:
        studies = [_study_week(project, local, services) for project in services.config.projects]
        mail = weekly_mail(open_, studies, _last_check(services), services.config.public_url)
        if _send(mail, "operator-week", services):
            weekly.note(week)


def _last_check(services: Services) -> str:
    results = check_results(services.redis).values()
    if not results:
        return "The daily check has not run yet."
    found = sum(len(result.findings) for result in results)
    oldest = _local(min(milliseconds(result.checked_at) for result in results), services)
    return f"The daily check found {found} things to look at; the oldest of its results is of {oldest}."


def _study_week(project: str, now: datetime, services: Services) -> StudyWeek:
    changes = services.ledger.count_since(project, now - timedelta(days=7))
    success = Reconciliations(services.redis, project).succeeded_at()
    return StudyWeek(project, changes, _local(milliseconds(success), services) if success else "")


def _send(message: EmailMessage, name: str, services: Services) -> bool:
    """Whether it was sent. One that fails is tried again after five minutes."""
    if not services.deduplicator.claim(name, seconds=OPERATOR_MAIL_EVERY_SECONDS):
        return False
    try:
        mailer = services.mailer
        if mailer is None:
            return False
        addressed(message, mailer.sender, services.config.operator.notify, services.now())
        outcome = outcome_of(mailer.send(message), message)
    except (MailDeferred, MailRejected, ConfigError) as error:
        services.ledger.count("mails", "", "operator", "failed")
        log.error("operator_not_mailed", error=str(error))
        return False
    services.ledger.count("mails", "", "operator", outcome.partition(":")[0])
    return True
