"""Tasks whose failures reveal no secrets."""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import structlog
from celery import Task
from celery.exceptions import SoftTimeLimitExceeded, TaskPredicate
from redis.exceptions import RedisError

from shared.errors import OptOutError

# Exceptions that Celery handles itself: Retry, Ignore and Reject, the time limit, and exhausted memory, after which
# it replaces the process (celery/app/trace.py).
_CELERY_CONTROL = (TaskPredicate, SoftTimeLimitExceeded, MemoryError)

log = structlog.get_logger(__name__)


class SafeTask(Task):  # type: ignore[type-arg]  # Celery's class takes no parameters at run time
    """A task that raises redacted exceptions: Celery logs what a task raises, and Flower shows it."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with redact_exceptions():
            return super().__call__(*args, **kwargs)


@contextmanager
def redact_exceptions() -> Iterator[None]:
    """Replace exceptions from other libraries with their type name, and drop their context.

    Their text may contain secrets: the repr of a UnicodeError, for example, contains the whole text that could not
    be decoded (Python docs, "Built-in Exceptions", UnicodeError.object). The program's own exceptions, Redis' and
    Celery's pass unchanged.
    """
    try:
        yield
    except (OptOutError, RedisError, *_CELERY_CONTROL) as error:
        raise error from None
    except Exception as error:  # noqa: BLE001  redacted here, whatever it is
        log.error("step_failed", error=type(error).__name__, at=_traceback_locations(error))
        raise RuntimeError(type(error).__name__) from None


def _traceback_locations(error: Exception) -> list[str]:
    """The traceback as "module:line", outermost first, without any message."""
    return [
        f"{frame.f_globals.get('__name__')}:{line}" for frame, line in traceback.walk_tb(error.__traceback__)
    ]
