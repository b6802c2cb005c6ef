"""The WSGI entry point: reads the environment, and reports clearly what is missing."""

import sys

import structlog

from shared.config import load_config, redis_url
from shared.errors import ConfigError
from shared.logs.setup import configure_logging
from shared.messaging.publisher import make_publisher
from shared.redis_client import connect
from web.app import build_services, create_app

configure_logging()
try:
    redis = connect(redis_url())
    app = create_app(build_services(load_config(), redis, make_publisher(redis)))
except ConfigError as error:
    structlog.get_logger(__name__).critical("configuration_error", problems=error.problems)
    sys.exit(str(error))
