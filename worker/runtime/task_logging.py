"""One canonical log line per step, and the ids that run through all lines from webhook to mail.

While a task runs, every line of it carries step, project and event_id (the message SID): what the web process
logged about the same message has the same id.
"""

import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import structlog
from celery import Task
from celery.exceptions import SoftTimeLimitExceeded, TaskPredicate
from celery.signals import task_postrun, task_prerun
from redis.exceptions import RedisError

from shared.errors import OptOutError
from shared.messaging.queue import TaskName

# The arguments of each task, by the names that its log lines give them.
_ARGUMENTS = {
    TaskName.LOOKUP: ("project", "event_id"),
    TaskName.UPDATE: ("project",),
    TaskName.EMAIL: ("project", "event_id"),
    TaskName.RECONCILE: ("project",),
    TaskName.SWEEP: (),
}

# What Celery itself steers by: Retry, Ignore and Reject, the time limit, and memory that has run out, for which it
# replaces the process (celery/app/trace.py).
_CELERYS_OWN = (TaskPredicate, SoftTimeLimitExceeded, MemoryError)

_began: ContextVar[float] = ContextVar("began", default=0.0)
log = structlog.get_logger(__name__)


def connect() -> None:
    """Listen to Celery's signals in this process and its children."""
    task_prerun.connect(begin, weak=False)
    task_postrun.connect(end, weak=False)


def begin(task: Task[Any, Any], args: tuple[Any, ...], **_: Any) -> None:
    """A task begins: bind its ids."""
    names = _ARGUMENTS.get(TaskName(task.name), ()) if task.name in set(TaskName) else ()
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(
        step=task.name.removeprefix("optout."), **dict(zip(names, args, strict=False))
    )
    _began.set(time.monotonic())


def end(state: str | None = None, **_: Any) -> None:
    """A task ends: the canonical line, and the ids are let go."""
    took_ms = round((time.monotonic() - _began.get()) * 1000)
    if state == "SUCCESS":
        log.info("step_ended", outcome="done", took_ms=took_ms)
    else:
        log.error("step_ended", outcome="failed", took_ms=took_ms)
    structlog.contextvars.clear_contextvars()


class DiscreetTask(Task):  # type: ignore[type-arg]  # Celery's class takes no parameters at run time
    """A task whose failures are told by their type: Celery logs what leaves a task, and Flower shows it."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with told_by_type():
            return super().__call__(*args, **kwargs)


@contextmanager
def told_by_type() -> Iterator[None]:
    """Let no text of an exception pass but our own, Redis' and Celery's; also none that another one led to.

    Who raised it may have put anything into it: the repr of a UnicodeError is all of the text that it stumbled over
    (Python docs, "Built-in Exceptions", UnicodeError.object), and that may be a password.
    """
    try:
        yield
    except (OptOutError, RedisError, *_CELERYS_OWN) as error:
        raise error from None
    except Exception as error:
        log.error("step_failed", error=type(error).__name__, at=_places(error))
        raise RuntimeError(type(error).__name__) from None


def _places(error: Exception) -> list[str]:
    """Where it came from, outermost first, as module and line: a traceback without anybody's text."""
    return [
        f"{frame.f_globals.get('__name__')}:{line}" for frame, line in traceback.walk_tb(error.__traceback__)
    ]
