"""The Celery application as each of its processes makes it; what a worker does besides is in `worker.celery_app`."""

import sys
from typing import Any

import structlog
from celery import Celery
from celery.signals import setup_logging

from shared.config import broker_url
from shared.errors import ConfigError
from shared.logs.setup import configure_logging
from shared.messaging.celery_config import make_celery
from worker.runtime.celery_patches import apply_celery_patches

log = structlog.get_logger(__name__)


def make_application() -> Celery:
    """Read the broker's address from the environment. If it is missing or invalid, log why and end the process."""
    apply_celery_patches()
    try:
        app = make_celery(broker_url())
    except ConfigError as error:
        # Celery would print an exception raised here as a traceback instead of a log line.
        configure_logging()
        log.critical("configuration_error", problems=error.problems)
        sys.exit(str(error))
    app.set_default()
    app.conf.beat_scheduler = "worker.runtime.schedule:ConfiguredScheduler"
    return app


@setup_logging.connect
def _configure_logging(**_: Any) -> None:
    configure_logging()
