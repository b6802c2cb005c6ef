"""The WSGI server's entry point: reads the environment, says clearly what is missing."""

import sys

import structlog

from shared.config import broker_url, load_config, redis_url
from shared.errors import ConfigError
from shared.log import configure_logging
from shared.queue import CeleryPublisher, make_celery
from shared.redis_connection import connect
from web.app import build_services, create_app

configure_logging()
try:
    app = create_app(
        build_services(load_config(), connect(redis_url()), CeleryPublisher(make_celery(broker_url())))
    )
except ConfigError as error:
    structlog.get_logger(__name__).critical("configuration_error", problems=error.problems)
    sys.exit(str(error))
