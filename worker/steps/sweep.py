"""The safety net: whatever did not finish is published again, so that nothing waits unseen."""

from collections import Counter
from collections.abc import Sequence

import structlog

from shared.domain.events import milliseconds
from shared.ledger import DueWork
from shared.ledger.projects.figures import ProjectFigures, project_figures
from shared.ledger.projects.nights import RECONCILE_OVERDUE_MS
from shared.messaging.record_events import publish_or_leave
from shared.messaging.tasks import TaskName
from shared.retry_policy import GRACE_PERIOD, RECONCILE_AGAIN_MS
from worker.projects.problems import projects_to_check
from worker.projects.removed import retire, track_configured_projects
from worker.services import Services
from worker.steps.background import publish_jobs, request_job
from worker.steps.failover import reconcile_after_failover

# Per sweep; what is left over is taken a minute later.
MOST_AT_ONCE = 2_000


# What every study has; blocks are reported where there are any.
_EVERY_STUDY: tuple[str, ...] = ("lookup", "update", "email", "digest")

log = structlog.get_logger(__name__)


def sweep(services: Services) -> dict[str, int]:
    """Publish overdue work, then look after projects with problems. Returns what was published by kind."""
    due = services.ledger.claim_due(now=services.now(), limit=MOST_AT_ONCE)
    missing = track_configured_projects(services, {item.project for item in due})
    published = _publish_all(
        [item for item in due if missing.get(item.project, GRACE_PERIOD) >= GRACE_PERIOD], services
    )
    reconcile_after_failover(services)
    for project in projects_to_check(services):
        request_job(services, TaskName.VERIFY, project)
    publish_jobs(services)
    services.ledger.prune_expired([*services.config.projects, *missing], now=services.now())
    figures = project_figures(services.redis, services.config.projects)
    for project in services.config.projects:
        _catch_up(project, figures[project], services)
    for project, missing_for in missing.items():
        retire(project, missing_for, services)
    return published


def _catch_up(project: str, figures: ProjectFigures, services: Services) -> None:
    """Start a reconciliation that was missed, because beat was down at its time or the last run failed."""
    now_ms, success_ms, failure_ms = milliseconds(services.now()), figures.success_ms, figures.failure_ms
    overdue = bool(success_ms or failure_ms) and now_ms - success_ms > RECONCILE_OVERDUE_MS
    again = overdue and now_ms - failure_ms > RECONCILE_AGAIN_MS
    # Not twice while one waits or runs.
    if again and services.deduplicator.claim(f"reconcile:{project}", seconds=RECONCILE_AGAIN_MS / 1000):
        log.warning("reconciliation_overdue", project=project)
        publish_or_leave(services.publish, TaskName.RECONCILE, project)


def _publish_all(due: Sequence[DueWork], services: Services) -> dict[str, int]:
    """Publish work. Returns how much, by kind."""
    for item in due:
        _publish(item, services)
    numbers = Counter(item.kind for item in due)
    for kind, number in numbers.items():
        services.ledger.count("swept", kind, by=number)
    published = dict.fromkeys(_EVERY_STUDY, 0) | numbers
    if due:
        log.info("swept", **published)
    return published


def _publish(item: DueWork, services: Services) -> None:
    match item.kind:
        case "lookup":
            publish_or_leave(services.publish, TaskName.LOOKUP, item.project, item.event_id)
        case "update":
            publish_or_leave(services.publish, TaskName.UPDATE, item.project)
        case "block":
            publish_or_leave(services.publish, TaskName.BLOCK, item.project)
        case "email" | "digest":  # a digest has no event
            publish_or_leave(services.publish, TaskName.EMAIL, item.project, item.event_id)
