"""Another Redis server than before: what it may lack is read again from Twilio's log."""

from datetime import datetime, timedelta

import structlog
from redis.exceptions import ResponseError

from shared.domain.events import from_milliseconds, milliseconds
from shared.ledger.platform.platform_status import SeenServer, last_server, note_server
from shared.messaging.tasks import TaskName
from worker.services import Services
from worker.steps.background import request_job

# Replication keeps the order of writes, so a server that has what a sweep noted has all that came before it. Twilio
# dates a message before its webhook arrives, which may come late.
MARGIN = timedelta(minutes=10)

log = structlog.get_logger(__name__)


def reconcile_after_failover(services: Services) -> None:
    """Have every study reconciled from a little before the last sweep on the server that answered until then.

    The note is part of the ledger. A restored backup therefore has the time from which changes are missing, too.
    """
    run_id = _run_id(services)
    if not run_id:
        return
    last = last_server(services.redis)
    if last and last.run_id != run_id:
        _reconcile_all(services, from_milliseconds(last.seen_ms) - MARGIN)
    note_server(services.redis, SeenServer(run_id, milliseconds(services.now())))


def _run_id(services: Services) -> str:
    """The identity of the running server; empty if the Redis user may not ask."""
    try:
        return str(services.redis.info("server").get("run_id", ""))
    except ResponseError:  # NoPermissionError is one
        return ""


def _reconcile_all(services: Services, since: datetime) -> None:
    begin = since.isoformat(timespec="seconds")
    log.warning("redis_changed", since=begin, projects=len(services.config.projects))
    for project in services.config.projects:
        request_job(services, TaskName.RECONCILE, project, begin, "")
