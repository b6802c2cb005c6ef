"""The Celery tasks. Each calls the step of the same name.

Celery's retries are not used: failed work remains in the ledger's due work, and sweep republishes it. So a lost
message loses no work, and no countdown comes near the broker's visibility timeout.
"""

from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime
from functools import partial
from typing import Any

from celery import Celery

from shared.messaging.tasks import TaskName
from shared.retry_policy import LONGEST_TASK_SECONDS, STEP_SECONDS
from worker.runtime import task_logging
from worker.runtime.safe_task import SafeTask
from worker.services import Services
from worker.steps.background import run_job
from worker.steps.block_at_twilio import block_at_twilio
from worker.steps.daily_check import daily_check, request_due_checks
from worker.steps.lookup_records import lookup_records
from worker.steps.monthly_summary import send_due_summaries
from worker.steps.notify_operator import notify_operator, ping
from worker.steps.reconcile import reconcile
from worker.steps.refresh_index import refresh_index
from worker.steps.send_email import send_email
from worker.steps.sweep import sweep
from worker.steps.update_records import update_records
from worker.steps.verify_project import verify_project

ServicesOf = Callable[..., Services]


class _Step(SafeTask):
    soft_time_limit, time_limit = STEP_SECONDS - 60, STEP_SECONDS


class _Reconciliation(_Step):
    soft_time_limit, time_limit = LONGEST_TASK_SECONDS - 60, LONGEST_TASK_SECONDS


def register(app: Celery, services: ServicesOf) -> None:
    """Register the tasks. `services()` returns those of a task, `services(project)` those of a project's task."""
    task_logging.connect()
    _register_steps(app, services)
    _register_background(app, services)


def _register_steps(app: Celery, services: ServicesOf) -> None:
    """What is done at once: the steps of a change, and the sweep."""

    @app.task(base=_Step, name=TaskName.LOOKUP)
    def _lookup(project: str, event: str) -> None:
        lookup_records(project, event, services(project))

    @app.task(base=_Step, name=TaskName.UPDATE)
    def _update(project: str) -> None:
        update_records(project, services(project))

    @app.task(base=_Step, name=TaskName.EMAIL)
    def _email(project: str, event: str) -> None:
        send_email(project, event, services(project))

    @app.task(base=_Step, name=TaskName.BLOCK)
    def _block(project: str) -> None:
        block_at_twilio(project, services(project))

    @app.task(base=_Step, name=TaskName.SWEEP)
    def _sweep() -> dict[str, int]:
        current = services()
        published = sweep(current)
        request_due_checks(current)
        send_due_summaries(current)
        notify_operator(current)
        ping(current)
        return published


def _register_background(app: Celery, services: ServicesOf) -> None:
    """What waits for a free place: reconciliations, checks of projects, and rebuilt indexes."""

    @app.task(base=_Reconciliation, name=TaskName.RECONCILE)
    def _reconcile(project: str, since: str | None = None, nightly: bool | str = False) -> dict[str, Any]:
        begin = datetime.fromisoformat(since) if since else None
        own = services(project)
        work = partial(reconcile, project, own, since=begin, nightly=bool(nightly))
        # What waits comes back with text for its arguments.
        report = run_job(own, work, TaskName.RECONCILE, project, since or "", "nightly" if nightly else "")
        return asdict(report) if report else {"project": project, "outcome": "waiting"}

    @app.task(base=_Step, name=TaskName.VERIFY)
    def _verify(project: str) -> None:
        own = services(project)
        run_job(own, partial(verify_project, project, own), TaskName.VERIFY, project)

    @app.task(base=_Step, name=TaskName.REFRESH)
    def _refresh(project: str) -> None:
        own = services(project)
        run_job(own, partial(refresh_index, project, own), TaskName.REFRESH, project)

    @app.task(base=_Step, name=TaskName.CHECK)
    def _check(project: str) -> None:
        own = services(project)
        run_job(own, partial(daily_check, project, own.in_background()), TaskName.CHECK, project)
