"""Background work: at most a few jobs at a time over all workers, so that a STOP always finds a free process.

Nightly runs, checks of projects, and refreshes of the phone index that no STOP needs. A job begins only if it gets
one of the places; otherwise it waits in the ledger, not in a process. Each job that ends publishes the next one.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

from shared.ledger.work.background import BackgroundJobs
from shared.ledger.work.locks import count_held, try_lock
from shared.messaging.record_events import publish_or_leave
from shared.messaging.tasks import TaskName
from shared.retry_policy import JOB_RETRY_AFTER, LONGEST_TASK_SECONDS, REFRESH_AHEAD_MS, STEP_SECONDS
from worker.services import Services

# Of the four processes of one worker; more workers do not make it more, as the budget of REDCap is the limit.
PLACES = 2
_PLACES = [f"background:{number}" for number in range(PLACES)]  # a lock each

Result = TypeVar("Result")


class NotNow(Exception):
    """The job could not be done, and has to be tried again later."""


def request_job(services: Services, task: TaskName, project: str, *arguments: str) -> None:
    """Have a task done in the background."""
    ahead_ms = REFRESH_AHEAD_MS if task is TaskName.REFRESH else 0
    BackgroundJobs(services.redis).add((task, project, *arguments), now=services.now(), ahead_ms=ahead_ms)
    publish_jobs(services)


def publish_jobs(services: Services) -> None:
    """Publish jobs that wait, as many as there are free places."""
    jobs = BackgroundJobs(services.redis)
    for _ in range(PLACES - count_held(services.redis, *_PLACES)):
        job = jobs.claim(now=services.now())
        if job is None:
            return
        publish_or_leave(services.publish, TaskName(job[0]), *job[1:])


def run_job(
    services: Services, work: Callable[[], Result], task: TaskName, project: str, *arguments: str
) -> Result | None:
    """Do a job if there is a free place, or have it wait for one. Returns what `work` returns; None if it waits."""
    job, jobs, result = (task, project, *arguments), BackgroundJobs(services.redis), None
    with _free_place(services) as found:
        if not found:
            jobs.postpone(job, until=services.now())
        else:
            # If this process is killed, its message comes again; at the latest the job does.
            jobs.postpone(job, until=services.now() + _longest(task))
            try:
                result = work()
            except NotNow:
                jobs.postpone(job, until=services.now() + JOB_RETRY_AFTER)
            else:
                jobs.done(job)
    publish_jobs(services)
    return result


def _longest(task: TaskName) -> timedelta:
    """How long a job may take."""
    return timedelta(seconds=LONGEST_TASK_SECONDS if task is TaskName.RECONCILE else STEP_SECONDS)


@contextmanager
def _free_place(services: Services) -> Iterator[bool]:
    for place in _PLACES:
        with try_lock(services.redis, place) as acquired:
            if acquired:
                yield True
                return
    yield False
