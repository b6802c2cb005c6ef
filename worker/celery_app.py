"""`celery -A worker.celery_app worker|beat|flower`: reads the environment, builds the rest on first use.

Flower and beat load this module too, and neither gets a secret: Flower needs the broker's address only,
beat the times in the configuration.
"""

import gc
import os
import sys
from functools import lru_cache
from typing import Any

import structlog
from celery.signals import heartbeat_sent, setup_logging, worker_init, worker_ready, worker_shutting_down

from shared.config import broker_url, load_config, redis_url
from shared.errors import ConfigError
from shared.logs.setup import configure_logging
from shared.messaging.queue import TaskName, make_celery, make_publisher
from shared.messaging.record_events import publish_or_leave
from shared.redis_client import connect
from worker.mail.event_mail import report_templates
from worker.projects.problems import check_again_soon
from worker.runtime import heartbeat
from worker.runtime.celery_patches import outlive_lost_connections
from worker.runtime.tasks import register
from worker.runtime.watchdog import Watchdog
from worker.services import Services

log = structlog.get_logger(__name__)
watchdog = Watchdog()

outlive_lost_connections()
try:
    app = make_celery(broker_url())
except ConfigError as error:
    # Raised from here, it would be printed by Celery as a traceback, and not as a line of the log.
    configure_logging()
    log.critical("configuration_error", problems=error.problems)
    sys.exit(str(error))
app.set_default()
app.conf.update(
    # At least once: a task is acknowledged when it has ended, and goes back to the queue when its process
    # was killed; every step can be repeated. Source: Celery docs, "Tasks", acks_late.
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    worker_prefetch_multiplier=1,
    # When the broker is lost, running tasks go on: their work is in the ledger, and a second run is harmless.
    worker_cancel_long_running_tasks_on_connection_loss=False,
    # Tasks wait for REDCap most of the time; one child each for lookup, update, e-mail and the nightly run.
    worker_concurrency=4,
    worker_hijack_root_logger=False,
    worker_redirect_stdouts=False,
    beat_scheduler="worker.runtime.schedule:ConfiguredScheduler",
)


@lru_cache(maxsize=1)
def services() -> Services:
    """This process's services. Raises ConfigError."""
    redis = connect(redis_url())
    return Services(config=load_config(), redis=redis, publish=make_publisher(redis))


register(app, services)


@setup_logging.connect
def _use_our_logging(**_: Any) -> None:
    configure_logging()


# Where web and worker share a machine, Twilio's answer comes first: all that a worker does can wait a little.
NICENESS = 10


@worker_init.connect
def _stand_back(**_: Any) -> None:
    """Give way to the web process; the children inherit it."""
    os.nice(NICENESS)


@worker_init.connect
def _read_configuration(**_: Any) -> None:
    """Refuse to start with a configuration that cannot be used, and say why."""
    try:
        services().hasher  # noqa: B018  resolves the hash key
        report_templates(services().config)
    except ConfigError as error:
        log.critical("configuration_error", problems=error.problems)
        raise SystemExit(str(error)) from None
    except Exception as error:
        # Celery would log what a receiver raises with its text, and go on (celery/utils/dispatch/signal.py).
        name = type(error).__name__
        log.critical("configuration_error", problems=[name])
        raise SystemExit(f"the worker cannot start: {name}") from None


@worker_init.connect
def _share_memory(**_: Any) -> None:
    """Keep the garbage collector off all that is loaded by now, so that the children go on sharing its pages."""
    gc.collect()
    gc.freeze()


@worker_ready.connect
def _look_at_projects(**_: Any) -> None:
    """Have every project checked now: a field that cannot hold the opt-out shows before the first STOP."""
    check_again_soon(services())
    publish_or_leave(services().publish, TaskName.SWEEP)


@heartbeat_sent.connect
def _show_life(**_: Any) -> None:
    """Every two seconds while the event loop turns and the broker is connected."""
    heartbeat.beat()
    # From the first one on: a worker that is run without heartbeats is not watched.
    watchdog.heartbeat()


@worker_shutting_down.connect
def _stop_watching(**_: Any) -> None:
    """A warm shutdown waits for its tasks."""
    watchdog.stop()
