"""Bring a project's phone index up to date for what can wait: one export for all that has gathered."""

from itertools import chain

import structlog

from shared.domain.events import State
from shared.errors import ProjectProblem, RedcapRejected, RedcapUnavailable
from worker.projects.problems import note_problem
from worker.services import Services
from worker.steps.background import NotNow
from worker.steps.lookup_records import look_up

log = structlog.get_logger(__name__)


def refresh_index(project: str, services: Services) -> None:
    """Refresh the index, have found opt-outs written, and look up the events that wait. Raises NotNow."""
    if services.project_config(project) is None:
        return
    unfinished = chain.from_iterable(services.ledger.unfinished_entries(project))
    waiting = [entry for entry in unfinished if entry.state is State.RECEIVED]
    try:
        gateway = services.in_background().project(project)
        services.index(project).refresh(gateway, since=services.now(), wait_seconds=0)
    except RedcapUnavailable as error:
        log.warning("index_not_refreshed", project=project, error=str(error))
        raise NotNow from None
    except (ProjectProblem, RedcapRejected) as error:
        note_problem(project, error, services)
        return
    if services.ledger.clear_update_if_empty(project):
        services.request_update(project)
    for entry in waiting:
        look_up(entry, services, index_is_current=True)
