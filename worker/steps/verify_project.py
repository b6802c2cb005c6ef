"""Does a project fit its configuration? Asked in the background, before the next STOP."""

import structlog

from shared.errors import ProjectProblem, RedcapRejected, RedcapUnavailable
from shared.ledger.projects.problems import ProjectProblems
from worker.projects.problems import note_checked, note_problem
from worker.services import Services

log = structlog.get_logger(__name__)


def verify_project(project: str, services: Services) -> None:
    """Note a project's problem, or that it has none; remove one that is fixed."""
    if services.project_config(project) is None:
        return
    try:
        _probe(project, services)
    except RedcapUnavailable as error:
        log.warning("project_not_checked", project=project, error=str(error))
        return
    except (ProjectProblem, RedcapRejected) as error:
        note_problem(project, error, services)
        return
    note_checked(project, services)
    if ProjectProblems(services.redis).remove(project):
        log.info("project_mended", project=project)
        services.ledger.make_due_now(project, now=services.now())


def _probe(project: str, services: Services) -> None:
    """Read the data dictionary, and a record, as only an export shows which fields the token may see."""
    gateway, index = services.in_background().project(project), services.index(project)
    gateway.invalidate_schema()
    record = index.any_record()
    if record is None:
        index.refresh(gateway, since=services.now())
    else:
        gateway.read([record])
