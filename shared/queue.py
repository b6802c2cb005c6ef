"""What web and worker agree on: task names, queues, and the broker's settings.

A message carries a project name and a message SID, nothing else: small, always fresh, and nothing
personal in Redis, Flower or logs (promise P5).
"""

from enum import StrEnum
from typing import Any, Protocol

from celery import Celery
from kombu import Exchange, Queue

# A message that a dead worker held is delivered again after this long, so it is above the longest task
# (reconcile) and every countdown; a countdown above it would be delivered twice. The shortest timeout of
# all processes that share a broker wins, which is why both sides read this line.
# Source: Celery docs, "Using Redis", visibility timeout.
VISIBILITY_TIMEOUT_SECONDS = 3600
LONGEST_TASK_SECONDS = 3000


class TaskName(StrEnum):
    """The tasks by the names that others rely on."""

    LOOKUP = "optout.lookup_records"
    UPDATE = "optout.update_records"
    EMAIL = "optout.send_email"
    RECONCILE = "optout.reconcile"
    SWEEP = "optout.sweep"


# One queue per task: Redis queues are served round robin, so that ten thousand lookups of a storm do not
# stand before the update that they ask for.
QUEUES = {
    TaskName.LOOKUP: "optout.lookup",
    TaskName.UPDATE: "optout.update",
    TaskName.EMAIL: "optout.email",
    TaskName.RECONCILE: "optout.reconcile",
    TaskName.SWEEP: "optout.sweep",
}


class Publisher(Protocol):
    """Asks for a task to be run, soon. Raises OSError or kombu's OperationalError where the broker is away."""

    def __call__(self, task: TaskName, *args: str, delay_seconds: float = 0) -> None: ...


def make_celery(broker_url: str) -> Celery:
    """A Celery application with the broker's settings; it connects on first use."""
    app = Celery("optout", broker=broker_url, set_as_current=False)
    app.conf.update(
        task_default_queue=QUEUES[TaskName.SWEEP],
        # An exchange for each: queues that share exchange and routing key would all get each message.
        task_queues=[Queue(name, Exchange(name), routing_key=name) for name in QUEUES.values()],
        task_serializer="json",
        accept_content=["json"],
        enable_utc=True,
        timezone="UTC",
        # There is no result backend to fill or to leak: the ledger holds what happened.
        task_ignore_result=True,
        # Flower's list is fed by these events. "sent" is left out: it would show what waits in the list, too, but
        # costs more than the publish itself, one at a time per process (docs/benchmarks.md); what waits is in
        # `/metrics` and among the queues of Flower's broker page.
        task_send_sent_event=False,
        worker_send_task_events=True,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options=_transport_options(broker_url),
        # The web process stores before it publishes, and sweep publishes again: better to answer Twilio
        # than to insist here.
        task_publish_retry=False,
        broker_connection_timeout=3,
    )
    return app


def _transport_options(broker_url: str) -> dict[str, Any]:
    if not broker_url.startswith(("redis", "sentinel")):
        return {}
    return {
        "visibility_timeout": VISIBILITY_TIMEOUT_SECONDS,
        # Without socket_timeout a publish on a half-open connection waits for ever, and the health check
        # of the BRPOP connection (kombu 5.7) never gets to run. Source: kombu's Redis transport docs.
        "socket_timeout": 10,
        "socket_connect_timeout": 3,
        "socket_keepalive": True,
        "health_check_interval": 10,
    }


class CeleryPublisher:
    """Publishes through Celery by task name, so that web needs no task code."""

    def __init__(self, app: Celery) -> None:
        self._app = app

    def __call__(self, task: TaskName, *args: str, delay_seconds: float = 0) -> None:
        self._app.send_task(
            task, args=args, queue=QUEUES[task], countdown=delay_seconds or None, ignore_result=True
        )
