"""The worker's Celery application: reads the environment, and builds services on first use."""

import gc
import os
from contextlib import suppress
from functools import lru_cache, partial
from typing import Any

import structlog
from celery.signals import heartbeat_sent, worker_init, worker_ready, worker_shutting_down
from redis.exceptions import RedisError

from shared.causes import cause_in_words
from shared.config import Config, redis_url
from shared.config.live import LiveConfiguration
from shared.errors import ConfigError
from shared.ledger.migration import migrate
from shared.ledger.platform.kept_configuration import last_valid
from shared.ledger.platform.loaded_configurations import Follower, follow
from shared.ledger.version import require_ledger_version
from shared.messaging.publisher import make_publisher
from shared.messaging.record_events import publish_or_leave
from shared.messaging.tasks import TaskName
from shared.redis_client import RedisClient, connect
from shared.redis_rights import missing_by_address, report_missing_rights
from worker.checks.configuration import require_own_secrets
from worker.mail.server_guard import ServerGuard
from worker.mail.template_check import report_templates
from worker.projects.problems import recheck_changed
from worker.runtime.application import make_application
from worker.runtime.tasks import register
from worker.runtime.watchdog import Watchdog, touch_heartbeat
from worker.services import Services

log = structlog.get_logger(__name__)
watchdog = Watchdog()

app = make_application()
app.conf.update(
    # At least once: a task is acknowledged when it ends, and returns to the queue if its process is killed. Every
    # step can be repeated. Source: Celery docs, "Tasks", acks_late.
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    worker_prefetch_multiplier=1,
    # Running tasks continue when the broker connection is lost: a second run is harmless.
    worker_cancel_long_running_tasks_on_connection_loss=False,
    # Tasks mostly wait for REDCap; one child each for lookup, update, e-mail and reconciliation.
    worker_concurrency=4,
    worker_consumer="worker.runtime.consumer:Consumer",
    worker_hijack_root_logger=False,
    worker_redirect_stdouts=False,
)


@lru_cache(maxsize=1)
def live_services() -> LiveConfiguration[Services]:
    """This process's services, which follow the configuration. Raises ConfigError."""
    redis = connect(redis_url())
    publish = make_publisher()

    def build(config: Config, before: Services | None) -> Services:
        return before.with_config(config) if before else Services(config=config, redis=redis, publish=publish)

    return LiveConfiguration(build, last_valid=partial(last_valid, redis))


def services(project: str | None = None) -> Services:
    """The services of a task, which keeps them to its end. Raises ConfigError.

    A project that they do not know may be one that has just been added, and that web knows already.
    """
    found = live_services().current()
    if project and project not in found.config.projects:
        live_services().refresh()
        return live_services().value
    return found


register(app, services)


# If web and worker share a machine, answering Twilio has priority over the worker's tasks.
NICENESS = 10


@worker_init.connect
def _lower_priority(**_: Any) -> None:
    """Run with lower priority than the web process; child processes inherit it."""
    os.nice(NICENESS)


@worker_init.connect
def _read_configuration(**_: Any) -> None:
    """Do not start with an invalid configuration, and log why."""
    try:
        services().hasher  # noqa: B018  resolves the hash key
        require_own_secrets(services().config)
        report_templates(services().config)
        _require_redis_rights(services().redis)
        with suppress(RedisError):
            require_ledger_version(services().redis)
            migrate(services().redis, services().config, services().hasher)
    except ConfigError as error:
        log.critical("configuration_error", problems=error.problems)
        raise SystemExit(str(error)) from None
    except Exception as error:  # noqa: BLE001
        # Celery would log the exception with its text and continue (celery/utils/dispatch/signal.py).
        name = cause_in_words(error)
        log.critical("configuration_error", problems=[name])
        raise SystemExit(f"the worker cannot start: {name}") from None


def _require_redis_rights(redis: RedisClient) -> None:
    """Raises SystemExit if a Redis user lacks a right. If Redis is unavailable, the worker waits for it."""
    try:
        problems = report_missing_rights(missing_by_address(redis))
    except RedisError:
        return
    if problems:
        raise SystemExit("\n".join(problems))


@worker_init.connect
def _limit_mail(sender: Any, **_: Any) -> None:
    """Leave half of the processes to other work if a mail server hangs."""
    with suppress(TypeError, ValueError):  # "auto" is not known yet
        ServerGuard.limit = max(1, int(sender.concurrency) // 2)


@worker_init.connect
def _freeze_gc(**_: Any) -> None:
    """Exclude loaded objects from garbage collection, so that child processes keep sharing their memory pages."""
    gc.collect()
    gc.freeze()


_followers: list[Follower] = []


@worker_ready.connect
def _schedule_project_checks(**_: Any) -> None:
    """Check new and changed projects now, so that an unsuitable field is reported before the first STOP."""
    _followers.append(
        follow(
            services().redis, "worker", live_services(), lambda before: recheck_changed(before, services())
        )
    )
    publish_or_leave(services().publish, TaskName.SWEEP)


@heartbeat_sent.connect
def _touch_heartbeat(**_: Any) -> None:
    """Sent every two seconds while the event loop runs and the broker is connected."""
    touch_heartbeat()
    # Watching starts with the first heartbeat: a worker that runs without heartbeats is not watched.
    watchdog.heartbeat()


@worker_shutting_down.connect
def _stop_watching(**_: Any) -> None:
    """A warm shutdown waits for running tasks, and may be cut short by SIGKILL."""
    watchdog.stop()
    for follower in _followers:
        follower.stop()
