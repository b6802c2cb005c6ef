"""The Celery tasks. Each calls the step of the same name.

Celery's retries are not used: failed work remains in the ledger's due work, and sweep republishes it. So a lost
message loses no work, and no countdown comes near the broker's visibility timeout.
"""

from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime
from typing import Any

from celery import Celery

from shared.messaging.celery_config import LONGEST_TASK_SECONDS, TaskName
from worker.runtime import task_logging
from worker.runtime.safe_task import SafeTask
from worker.services import Services
from worker.steps.block_at_twilio import block_at_twilio
from worker.steps.daily_check import daily_check, request_due_checks
from worker.steps.lookup_records import lookup_records
from worker.steps.notify_operator import notify_operator, ping
from worker.steps.reconcile import reconcile
from worker.steps.send_email import send_email
from worker.steps.sweep import sweep
from worker.steps.update_records import update_records


class _Step(SafeTask):
    """Time limits for a lookup that builds the index of a large project: at worst two exports of five minutes."""

    soft_time_limit, time_limit = 900, 960


def register(app: Celery, services: Callable[[], Services]) -> None:
    """Register the tasks. Each worker process calls `services()` on first use."""
    task_logging.connect()

    @app.task(base=_Step, name=TaskName.LOOKUP)
    def _lookup(project: str, event: str) -> None:
        lookup_records(project, event, services())

    @app.task(base=_Step, name=TaskName.UPDATE)
    def _update(project: str) -> None:
        update_records(project, services())

    @app.task(base=_Step, name=TaskName.EMAIL)
    def _email(project: str, event: str) -> None:
        send_email(project, event, services())

    @app.task(base=_Step, name=TaskName.BLOCK)
    def _block(project: str) -> None:
        block_at_twilio(project, services())

    @app.task(
        base=_Step,
        name=TaskName.RECONCILE,
        soft_time_limit=LONGEST_TASK_SECONDS - 60,
        time_limit=LONGEST_TASK_SECONDS,
    )
    def _reconcile(project: str, since: str | None = None, nightly: bool = False) -> dict[str, Any]:
        begin = datetime.fromisoformat(since) if since else None
        return asdict(reconcile(project, services(), since=begin, nightly=nightly))

    @app.task(base=_Step, name=TaskName.SWEEP)
    def _sweep() -> dict[str, int]:
        published = sweep(services())
        request_due_checks(services())
        notify_operator(services())
        ping(services())
        return published

    @app.task(base=_Step, name=TaskName.CHECK)
    def _check(project: str) -> None:
        daily_check(project, services())
