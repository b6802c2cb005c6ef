"""The Celery tasks, each a thin view over a step of the same name: load, call, and nothing else.

Retries are not Celery's: a step that fails leaves its work among the due work of the ledger, and sweep
publishes it again. So a crash loses nothing with the messages that wait in the broker, and none waits there for
more than half a minute: no countdown comes near the visibility timeout.
"""

from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime
from typing import Any

from celery import Celery

from shared.messaging.queue import LONGEST_TASK_SECONDS, TaskName
from worker.runtime import task_logging as task_log
from worker.services import Services
from worker.steps.lookup_records import lookup_records
from worker.steps.reconcile import reconcile
from worker.steps.send_email import send_email
from worker.steps.sweep import sweep
from worker.steps.update_records import update_records


class _Step(task_log.DiscreetTask):
    """A lookup may build the index of a large project: two exports of five minutes each, at the worst."""

    soft_time_limit, time_limit = 900, 960


def register(app: Celery, services: Callable[[], Services]) -> None:
    """Register the tasks with an application. `services()` is called in each worker process, on first use."""
    task_log.connect()

    @app.task(base=_Step, name=TaskName.LOOKUP)
    def _lookup(project: str, event: str) -> None:
        lookup_records(project, event, services())

    @app.task(base=_Step, name=TaskName.UPDATE)
    def _update(project: str) -> None:
        update_records(project, services())

    @app.task(base=_Step, name=TaskName.EMAIL)
    def _email(project: str, event: str) -> None:
        send_email(project, event, services())

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
        return sweep(services())
