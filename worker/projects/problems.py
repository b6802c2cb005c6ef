"""What keeps a whole project from being written: noted for `/readyz`, checked again, and lifted."""

import json

import structlog

from shared.config import Config
from shared.domain.events import milliseconds
from shared.errors import Permanent, ProjectProblem, RedcapRejected
from shared.ledger import keys
from shared.retry_policy import VERIFY_EVERY_MS
from worker.services import Services

log = structlog.get_logger(__name__)


def note_problem(project: str, error: Permanent, services: Services) -> None:
    """Show a project's problem in `/readyz`, the metrics and the log, with whether its events are kept until then."""
    kept = isinstance(error, ProjectProblem)
    text = json.dumps({"problem": error.code, "detail": error.detail, "events_kept": kept}, sort_keys=True)
    if services.redis.hget(keys.PROBLEMS, project) != text:
        services.redis.hset(keys.PROBLEMS, project, text)
        log.error("project_problem", project=project, problem=error.code, detail=error.detail)


def known_problem(project: str, services: Services) -> Permanent | None:
    """The problem that is noted for a project, as it was raised, or None."""
    text = services.redis.hget(keys.PROBLEMS, project)
    if text is None:
        return None
    stored = json.loads(text)
    kind = ProjectProblem if stored.get("events_kept", True) else RedcapRejected
    return kind(stored["problem"], stored["detail"])


def projects_to_check(services: Services) -> list[str]:
    """Return the projects that are new, changed, long unchecked, or have a problem."""
    checked, broken = services.redis.hgetall(keys.VERIFIED), services.redis.hkeys(keys.PROBLEMS)
    for project in set(broken) - set(services.config.projects):
        services.redis.hdel(keys.PROBLEMS, project)
    now_ms = milliseconds(services.now())
    return [
        project
        for project, config in services.config.projects.items()
        if project in broken or not _is_checked(checked.get(project, ""), config.digest, now_ms)
    ]


def _is_checked(stored: str, digest: str, now_ms: int) -> bool:
    """`stored` is as `note_checked` writes it."""
    checked_ms, _, checked_digest = stored.partition(" ")
    return checked_digest == digest and now_ms - int(checked_ms) <= VERIFY_EVERY_MS


def note_checked(project: str, services: Services) -> None:
    """Remember when a project was found to be without a problem, and with which configuration."""
    digest = services.config.projects[project].digest
    services.redis.hset(keys.VERIFIED, project, f"{milliseconds(services.now())} {digest}")


def recheck_changed(before: Config, services: Services) -> None:
    """Read schema and phones of changed projects again; `projects_to_check` has them checked."""
    for project, config in services.config.projects.items():
        if config != before.projects.get(project):
            services.redis.delete(keys.structure(project))
            services.index(project).invalidate()
