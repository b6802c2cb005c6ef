"""What keeps a whole project from being written: noted for `/readyz`, checked again, and lifted."""

import structlog

from shared.config import Config
from shared.domain.events import milliseconds
from shared.errors import Permanent, ProjectProblem, RedcapRejected
from shared.ledger.projects.problems import KnownProblem, ProjectProblems, Verified, VerifiedProjects
from shared.retry_policy import VERIFY_EVERY_MS
from worker.services import Services

log = structlog.get_logger(__name__)


def note_problem(project: str, error: Permanent, services: Services) -> None:
    """Show a project's problem in `/readyz`, the metrics and the log, with whether its events are kept until then."""
    problem = KnownProblem(error.code, error.detail, events_kept=isinstance(error, ProjectProblem))
    if ProjectProblems(services.redis).note(project, problem):
        log.error("project_problem", project=project, problem=error.code, detail=error.detail)


def known_problem(project: str, services: Services) -> Permanent | None:
    """The problem that is noted for a project, as it was raised, or None."""
    problem = ProjectProblems(services.redis).of(project)
    if problem is None:
        return None
    kind = ProjectProblem if problem.events_kept else RedcapRejected
    return kind(problem.code, problem.detail)


def projects_to_check(services: Services) -> list[str]:
    """Return the projects that are new, changed, long unchecked, or have a problem."""
    problems = ProjectProblems(services.redis)
    verified, broken = VerifiedProjects(services.redis).all(), problems.projects()
    for project in broken - set(services.config.projects):
        problems.remove(project)
    now_ms = milliseconds(services.now())
    return [
        project
        for project, config in services.config.projects.items()
        if project in broken or not _is_verified(verified.get(project), config.digest, now_ms)
    ]


def _is_verified(last: Verified | None, digest: str, now_ms: int) -> bool:
    return last is not None and last.digest == digest and now_ms - last.at_ms <= VERIFY_EVERY_MS


def note_checked(project: str, services: Services) -> None:
    """Remember when a project was found to be without a problem, and with which configuration."""
    digest = services.config.projects[project].digest
    VerifiedProjects(services.redis).note(project, digest, now=services.now())


def recheck_changed(before: Config, services: Services) -> None:
    """Read schema and phones of changed projects again; `projects_to_check` has them checked."""
    for project, config in services.config.projects.items():
        if config != before.projects.get(project):
            services.schema_cache(project).forget()
            services.index(project).invalidate()
