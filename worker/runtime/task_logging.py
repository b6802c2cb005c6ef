"""One canonical log line per step, and ids that connect all lines from webhook to mail.

While a task runs, each of its lines has step, project and event_id (the message SID). The web process logs the same
event_id for the same message.
"""

import time
from contextvars import ContextVar
from typing import Any

import structlog
from celery import Task
from celery.signals import task_postrun, task_prerun

from shared.messaging.tasks import TaskName

# Names of each task's arguments in its log lines.
_ARGUMENTS = {
    TaskName.LOOKUP: ("project", "event_id"),
    TaskName.UPDATE: ("project",),
    TaskName.EMAIL: ("project", "event_id"),
    TaskName.BLOCK: ("project",),
    TaskName.RECONCILE: ("project",),
    TaskName.VERIFY: ("project",),
    TaskName.REFRESH: ("project",),
    TaskName.SWEEP: (),
    TaskName.CHECK: ("project",),
}

_began: ContextVar[float] = ContextVar("began", default=0.0)
log = structlog.get_logger(__name__)


def connect() -> None:
    """Connect to Celery's signals, in this process and its children."""
    task_prerun.connect(begin, weak=False)
    task_postrun.connect(end, weak=False)


def begin(task: Task[Any, Any], args: tuple[Any, ...], **_: Any) -> None:
    """A task starts: bind its ids to all log lines."""
    names = _ARGUMENTS[TaskName(task.name)] if task.name in set(TaskName) else ()
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(
        step=task.name.removeprefix("optout."), **dict(zip(names, args, strict=False))
    )
    _began.set(time.monotonic())


def end(state: str | None = None, **_: Any) -> None:
    """A task ends: log the canonical line and unbind the ids."""
    took_ms = round((time.monotonic() - _began.get()) * 1000)
    if state == "SUCCESS":
        log.info("step_ended", outcome="done", took_ms=took_ms)
    else:
        log.error("step_ended", outcome="failed", took_ms=took_ms)
    structlog.contextvars.clear_contextvars()
