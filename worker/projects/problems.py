"""What keeps a whole project from being written: noted for `/readyz`, checked again, and lifted."""

import json

import structlog

from shared.domain.events import milliseconds
from shared.errors import Permanent, ProjectProblem, RedcapRejected, RedcapUnavailable
from shared.ledger import keys
from worker.services import Services

# How often a project without a problem is checked, so that one shows before the next STOP.
CHECK_EVERY_MS = 6 * 3600 * 1000

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


def check_projects(services: Services) -> None:
    """Check every project that has a problem or was not checked for long; remove problems that are fixed."""
    checked = services.redis.hgetall(keys.VERIFIED)
    now_ms = milliseconds(services.now())
    broken = services.redis.hkeys(keys.PROBLEMS)
    for project in services.config.projects:
        if project in broken or now_ms - int(checked.get(project, 0)) > CHECK_EVERY_MS:
            _check(project, services)
    for project in set(broken) - set(services.config.projects):
        services.redis.hdel(keys.PROBLEMS, project)


def _check(project: str, services: Services) -> None:
    try:
        _probe(project, services)
    except RedcapUnavailable as error:
        log.warning("project_not_checked", project=project, error=str(error))
        return
    except (ProjectProblem, RedcapRejected) as error:
        note_problem(project, error, services)
        return
    services.redis.hset(keys.VERIFIED, project, milliseconds(services.now()))
    if services.redis.hdel(keys.PROBLEMS, project):
        log.info("project_mended", project=project)
        services.ledger.make_due_now(project, now=services.now())


def _probe(project: str, services: Services) -> None:
    """Read the data dictionary, and a record, as only an export shows which fields the token may see."""
    gateway, index = services.project(project), services.index(project)
    gateway.invalidate_schema()
    record = index.any_record()
    if record is None:
        index.refresh(gateway, since=services.now())
    else:
        gateway.read([record])


def invalidate_checks(services: Services) -> None:
    """Forget when projects were checked: a worker has started, perhaps with another configuration."""
    services.redis.delete(keys.VERIFIED)
