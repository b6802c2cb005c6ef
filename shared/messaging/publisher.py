"""Asks for tasks to be run, through Celery."""

from celery import Celery

from shared.config import broker_url
from shared.messaging.celery_config import make_celery
from shared.messaging.tasks import QUEUES, Publisher, TaskName
from shared.retry_policy import SOCKET_TIMEOUT_SECONDS

# A connection may be lost or half-open: try once more on a new one. (kombu's defaults take six seconds to give up.)
ONE_MORE_TRY = {"max_retries": 1, "interval_start": 0, "interval_step": 0.1, "interval_max": 0.1}


def make_publisher() -> Publisher:
    """A publisher for the configured broker; it connects on first use. Raises ConfigError."""
    app = make_celery(broker_url())
    options = app.conf.broker_transport_options | ONE_MORE_TRY
    if "socket_timeout" in options:  # it never waits for messages, as a consumer does
        options["socket_timeout"] = SOCKET_TIMEOUT_SECONDS
    app.conf.broker_transport_options = options
    return CeleryPublisher(app)


class CeleryPublisher:
    """Publishes by task name, so that web needs no task code."""

    def __init__(self, app: Celery) -> None:
        self._app = app

    def __call__(self, task: TaskName, *args: str, delay_seconds: float = 0) -> None:
        self._app.send_task(
            task, args=args, queue=QUEUES[task], countdown=delay_seconds or None, ignore_result=True,
            retry=True, retry_policy=ONE_MORE_TRY,
        )  # fmt: skip
